//! The tunnel ends of Pinhole, in the roles gateway and client.

pub mod cli;
pub mod client;
pub mod gateway;
pub mod health;
pub mod identity;
pub mod kernel;
pub mod nat;
pub mod tunnel;
