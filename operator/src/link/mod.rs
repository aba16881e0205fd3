//! The link to the gateways' replicas: desired state down, reports up, certificates and enrolments relayed. gRPC
//! over TLS, with the caller known by its ServiceAccount token.

mod attach;
mod authenticate;
mod callers;
mod door;
#[cfg(test)]
mod hostile;
mod report;
mod server;
mod service;
mod status;
#[cfg(test)]
mod tests;

pub use door::{LARGEST_CALL, LARGEST_REPORT, LARGEST_SNAPSHOT};
pub use server::{Link, LinkError};
