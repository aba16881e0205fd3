//! Who is who: the operator's certificate authority and what it issues, and the reviewed ServiceAccount tokens
//! of gateway pods and sidecars.
//!
//! Deciding ([`rotation`], `pod`, `reviews`) is apart from doing (`store`, `keeper`, `reviewer`).

mod authority;
mod credential;
mod csr;
mod error;
mod keeper;
mod names;
mod pod;
mod resolver;
mod reviewer;
mod reviews;
pub mod rotation;
mod store;

pub use authority::{Authorities, Authority, CLIENT_LIFETIME, Issued, SERVER_LIFETIME};
pub use credential::bearer_token;
pub use csr::{MAX_CSR_BYTES, RequestedKey};
pub use error::{CredentialError, IdentityError};
pub use keeper::Identity;
pub use names::{client_uri, gateway_names, operator_names};
pub use pod::{PodIdentity, ReplicaIdentity};
pub use resolver::ServerCertificate;
pub use reviewer::{ApiTokenReviewer, CachedReviewer, TokenReviewer};
pub use store::{AUTHORITY_SECRET, AuthorityStore};
