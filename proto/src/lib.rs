//! `pinhole.v1`: what operator, gateways and clients say to each other. The `.proto` files beside this crate
//! carry the documentation of every message. What such a message may name is here as types that hold nothing else.

pub mod bounds;
mod domain;
#[cfg(any(test, feature = "hostile"))]
pub mod hostile;
pub mod news;
mod parted;
mod printable;
mod span;

pub use domain::{DomainName, DomainNameError, Host, HostPort, HostPortError, is_object_name};
pub use parted::{parted, quoted};
pub use printable::printable;
pub use span::Span;

/// The generated messages, clients and servers.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("pinhole.v1");
}

/// The encoded `FileDescriptorSet` of the protocol, to compare a build with another for breaking changes.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pinhole.v1.bin"));

/// Audience of the ServiceAccount token that a gateway pod shows to the operator.
pub const OPERATOR_AUDIENCE: &str = "pinhole.dev/operator";

/// Audience of the ServiceAccount token that a sidecar shows to a gateway.
pub const GATEWAY_AUDIENCE: &str = "pinhole.dev/gateway";

/// Metadata key of the low-cardinality category that every error status carries.
pub const CATEGORY_METADATA: &str = "pinhole-category";

/// The category that an error status carries.
pub fn category_of(status: &tonic::Status) -> Option<&str> {
    status.metadata().get(CATEGORY_METADATA)?.to_str().ok()
}

/// TLS server name of the operator's [`v1::gateway_link_server::GatewayLink`] service.
pub const OPERATOR_SERVER_NAME: &str = "operator.pinhole.dev";

/// TLS server name of a gateway's [`v1::client_session_server::ClientSession`] service.
pub fn gateway_server_name(namespace: &str, gateway: &str) -> String {
    format!("{gateway}.{namespace}.gateway.pinhole.dev")
}

#[cfg(test)]
#[path = "../tests/hostile/mod.rs"]
mod hostile_texts;
