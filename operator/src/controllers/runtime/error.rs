//! Why a look at an object did not work.

use std::{future::Future, time::Duration};

use crate::{
    enrolment::EnrolmentError,
    plan::{Cause, Foreign, KeyError, Refusal, remedy},
};

/// Longest that one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);

/// Why a look at an object did not work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The API server refused, or was not reached.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{what}: the API server did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        what: String,
    },
    /// An object of ours does not become JSON.
    #[error("encoding an object: {0}")]
    Encoding(#[from] serde_json::Error),
    /// A key cannot be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Objects of others have names that objects of the operator should have.
    #[error("{}", remedy(.0))]
    Foreign(Vec<Foreign>),
    /// A pool's tokens.
    #[error("join tokens: {0}")]
    Tokens(#[from] EnrolmentError),
}

impl ControlError {
    /// The error's name, for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => api_category(source),
            Self::Timeout { .. } => "Timeout",
            Self::Encoding(_) => "Encoding",
            Self::Key(error) => error.category(),
            Self::Foreign(_) => Foreign::CATEGORY,
            Self::Tokens(error) => error.category(),
        }
    }

    /// The reason to give in a condition, when trying again will not help before somebody acts.
    pub(crate) fn lasting(&self) -> Option<&'static str> {
        match self {
            Self::Key(_) => self.key_error().map(KeyError::category),
            Self::Foreign(_) => Some(Foreign::CATEGORY),
            Self::Api { .. } if matches!(self.code(), Some(400 | 403 | 422)) => Some(self.category()),
            _ => None,
        }
    }

    /// What the API server did not take, if it said more than that.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.lasting()?;
        let Self::Api { .. } = self else { return None };
        let refusal = Refusal::of_answer(&self.to_string());
        (refusal.cause != Cause::Creation).then_some(refusal)
    }

    /// What is wrong with a key, if that is it and will not pass.
    pub(crate) fn key_error(&self) -> Option<&KeyError> {
        match self {
            Self::Key(KeyError::OutgoingSecret(_)) => None,
            Self::Key(error) => Some(error),
            _ => None,
        }
    }

    /// Somebody else wrote meanwhile, or the object is another one now: to be looked at again, and no fault.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The object is gone.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

fn api_category(error: &kube::Error) -> &'static str {
    let kube::Error::Api(status) = error else { return "Unreachable" };
    match status.code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        400 | 422 => "Invalid",
        429 => "TooManyRequests",
        500..=599 => "ServerError",
        _ => "Refused",
    }
}

/// Makes a call, but not for ever.
pub(crate) async fn call<T>(
    what: impl FnOnce() -> String,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ControlError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(ControlError::Api { what: what(), source: Box::new(source) }),
        Err(_) => Err(ControlError::Timeout { what: what() }),
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
