//! The tunnel ends of Pinhole, in the roles gateway and client.

pub mod health;
pub mod identity;
pub mod kernel;
pub mod tunnel;
