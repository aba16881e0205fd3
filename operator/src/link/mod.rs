//! The link to the gateways' replicas: desired state down, reports up, certificates and enrolments relayed. gRPC
//! over TLS, with the caller known by its ServiceAccount token.

mod attach;
mod authenticate;
mod listen;
mod report;
mod server;
mod service;
mod status;
#[cfg(test)]
mod tests;

pub use server::{Link, LinkError};
pub use service::MAX_MESSAGE_BYTES;
