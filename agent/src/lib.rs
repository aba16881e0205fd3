//! The tunnel ends of Pinhole, in the roles gateway and client.

pub mod cli;
pub mod client;
pub mod clock;
pub mod entropy;
pub mod gateway;
pub mod identity;
pub mod kernel;
#[cfg(any(test, feature = "profile"))]
pub mod profile;
pub mod tunnel;
pub mod uapi;
pub mod wg;
mod wire;

pub use pinhole_nat as nat;
pub use pinhole_nat::health;

#[cfg(test)]
#[path = "../../proto/tests/hostile/mod.rs"]
mod hostile;
