//! How callers are received that nobody knows yet, at every port: the sessions of a gateway, the link of the operator, health
//! and metrics of both.
//!
//! Pure: [`place`] says who counts as one source, [`Rates`] how often somebody may ask, [`Guests`] which connections of
//! strangers may stay, [`Residents`] which of those who are known. Thin: [`bind`] and [`receive`] lead connections in, and out
//! again; [`serve_pages`] answers probes and scrapes; [`Shared`] finds out once what many ask.

mod guests;
#[cfg(feature = "hostile")]
pub mod hostile;
mod listen;
mod pages;
mod rates;
mod residents;
mod shared;
mod source;

pub use guests::{Action, Capacity, Guests, Id};
pub use listen::{Call, Caller, Connection, House, Welcome, bind, receive};
pub use pages::serve_pages;
pub use rates::{Allowance, Rates};
pub use residents::Residents;
pub use shared::Shared;
pub use source::place;
