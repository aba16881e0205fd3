//! The tunnel ends of Pinhole, in the roles gateway and client.

pub mod cli;
pub mod client;
pub mod clock;
pub mod gateway;
pub mod health;
pub mod identity;
pub mod kernel;
mod measured;
pub mod nat;
#[cfg(any(test, feature = "profile"))]
pub mod profile;
pub mod tunnel;
pub mod uapi;
pub mod wg;

#[cfg(test)]
#[path = "../../proto/tests/hostile/mod.rs"]
mod hostile;
