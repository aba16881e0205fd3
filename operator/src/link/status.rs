//! Errors on the wire: a gRPC code that says whether to try again, a text for people, and the category in the
//! metadata `pinhole-category`. Pure.

use pinhole_proto::CATEGORY_METADATA;
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    enrolment::EnrolmentError,
    identity::{CredentialError, IdentityError},
};

/// A status with its category.
pub(super) fn status(code: Code, category: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(CATEGORY_METADATA, MetadataValue::from_static(category));
    status
}

/// This operator does not lead.
pub(super) fn standby() -> Status {
    status(Code::Unavailable, "Standby", "this operator is a standby; connect again to reach the leader")
}

/// The operator is about to end.
pub(super) fn stopping() -> Status {
    status(Code::Unavailable, "Stopping", "this operator is stopping; connect again to reach another")
}

pub(super) fn of_credential(error: &CredentialError) -> Status {
    let code = match error {
        CredentialError::Missing | CredentialError::Refused { .. } => Code::Unauthenticated,
        CredentialError::NotOfPod | CredentialError::NotOfGateway { .. } => Code::PermissionDenied,
        CredentialError::Unavailable(_) => Code::Unavailable,
    };
    status(code, error.category(), error.to_string())
}

pub(super) fn of_identity(error: &IdentityError) -> Status {
    let code = match error {
        IdentityError::RequestRefused(_) => Code::InvalidArgument,
        _ => Code::Unavailable,
    };
    status(code, error.category(), error.to_string())
}

pub(super) fn of_enrolment(error: &EnrolmentError) -> Status {
    use EnrolmentError as E;
    let code = match error {
        E::RequestInvalid(_) => Code::InvalidArgument,
        E::TokenInvalid => Code::Unauthenticated,
        E::TokenExpired(_)
        | E::TokenUsedUp(_)
        | E::TokenRevoked(_)
        | E::TokenSuspended(_)
        | E::SessionKeyChanged(_)
        | E::SidecarNotAllowed { .. }
        | E::PodNotSelected { .. }
        | E::PodOnHostNetwork(_)
        | E::ClientSuspended(_)
        | E::ClientExpired(_) => Code::PermissionDenied,
        E::KeyNotVouchedFor => Code::FailedPrecondition,
        E::PoolNotFound(_) | E::ClientDeleted(_) => Code::NotFound,
        E::PoolExhausted(_) | E::PoolFull(_) | E::RateLimited => Code::ResourceExhausted,
        E::NameTaken(_) | E::SecretTaken(_) => Code::AlreadyExists,
        E::ClientNotReady(_) | E::Contended(_) | E::Records(_) => Code::Unavailable,
        E::Credential(error) => return of_credential(error),
        E::Identity(error) => return of_identity(error),
    };
    // What the API server says is for the operator's log, not for whoever knocks.
    let message = match error {
        E::Records(_) => "the operator cannot reach the Kubernetes API at present; try again".to_owned(),
        _ => error.to_string(),
    };
    status(code, error.category(), message)
}
