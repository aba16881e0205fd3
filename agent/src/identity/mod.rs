//! Who an end of the tunnel is, and how it proves it: join strings, session keys and certificates, the files
//! that keep them, and TLS connections made with them.

pub mod certificate;
pub mod dial;
mod error;
pub mod join;
mod judge;
mod names;
mod objection;
pub mod possession;
pub mod store;
mod tapped;

pub use certificate::SessionKey;
pub use error::IdentityError;
pub use join::JoinString;
pub use names::Names;
pub use objection::Objection;
pub use store::Store;
