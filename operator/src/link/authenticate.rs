//! Who calls on the link.

use std::sync::Arc;

use pinhole_proto::OPERATOR_AUDIENCE;
use tonic::{Status, metadata::MetadataMap};

use super::status;
use crate::identity::{CachedReviewer, ReplicaIdentity, bearer_token};

/// Tells which replica of which gateway calls.
#[derive(Clone)]
pub(super) struct Authenticator {
    reviewer: Arc<CachedReviewer>,
}

impl Authenticator {
    pub(super) fn new(reviewer: Arc<CachedReviewer>) -> Self {
        Self { reviewer }
    }

    /// Whether nobody would be asked who the caller is.
    pub(super) fn remembers(&self, metadata: &MetadataMap) -> bool {
        bearer_token(metadata).map_or(true, |token| self.reviewer.remembers(token, OPERATOR_AUDIENCE))
    }

    /// The caller, by the token that came with the call.
    pub(super) async fn caller(&self, metadata: &MetadataMap) -> Result<ReplicaIdentity, Status> {
        let token = bearer_token(metadata).map_err(|error| status::of_credential(&error))?;
        let pod = self.reviewer.review(token, OPERATOR_AUDIENCE).await;
        let caller = pod.and_then(crate::identity::PodIdentity::into_replica);
        caller.map_err(|error| {
            tracing::info!(category = error.category(), %error, "a call to the link was refused");
            status::of_credential(&error)
        })
    }

    /// Whether the token is still good for `caller`. That the API server is away is no reason to doubt it.
    pub(super) async fn is_current(&self, token: &str, caller: &ReplicaIdentity) -> bool {
        match self.reviewer.review_anew(token, OPERATOR_AUDIENCE).await {
            Ok(pod) => pod.pod_uid == caller.pod_uid,
            Err(crate::identity::CredentialError::Unavailable(_)) => true,
            Err(_) => false,
        }
    }
}
