//! Why somebody did not become a client.

use super::RecordsError;
use crate::identity::{CredentialError, IdentityError};

/// Why somebody did not become a client.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The request cannot be meant.
    #[error("enrolment request: {0}")]
    RequestInvalid(&'static str),
    /// No such token, or not its secret: which of the two is not told.
    #[error("the join token is not valid for this pool; ask for a new one")]
    TokenInvalid,
    /// Its time is over.
    #[error("join token {0} has expired; ask for a new one")]
    TokenExpired(String),
    /// All of its uses were made.
    #[error("join token {0} was used as often as it may be; ask for a new one")]
    TokenUsedUp(String),
    /// Somebody ended it.
    #[error("join token {0} was revoked; ask for a new one")]
    TokenRevoked(String),
    /// A client that enrolled with it is suspended.
    #[error(
        "join token {0} admits no new client while one that enrolled with it is suspended; resume or delete that VPNClient, or ask for another token"
    )]
    TokenSuspended(String),
    /// Nobody found out whether the WireGuard key is the asker's own.
    #[error(
        "the gateway is older than its operator and does not have clients prove their WireGuard key; update its image"
    )]
    KeyNotVouchedFor,
    /// A renewal for another session key than the client was enrolled with, or after its WireGuard key was changed.
    #[error("client {0} was enrolled with another session key; enrol it anew")]
    SessionKeyChanged(String),
    /// No such pool, or not one of this gateway.
    #[error("this gateway serves no pool {0}")]
    PoolNotFound(String),
    /// Every address is given out.
    #[error("pool {0} has no free address; remove clients that are gone, or add a prefix to spec.cidrs")]
    PoolExhausted(String),
    /// As many clients as it may have.
    #[error(
        "pool {0} has as many clients as spec.maxClients allows; remove clients that are gone, or raise it"
    )]
    PoolFull(String),
    /// The pool takes no sidecars, or not from this namespace.
    #[error("pool {pool} takes no sidecars from namespace {namespace}; allow it in spec.enrolment.sidecars")]
    SidecarNotAllowed {
        /// The pool.
        pool: String,
        /// Namespace of the pod.
        namespace: String,
    },
    /// The pod does not ask to be in this pool.
    #[error("pod {pod} does not carry the label pinhole.dev/pool of pool {pool}")]
    PodNotSelected {
        /// The pool.
        pool: String,
        /// The pod.
        pod: String,
    },
    /// What the pod would route, its node would.
    #[error(
        "pod {0} has hostNetwork: the tunnel and the pool's routes would be its node's own; remove the label pinhole.dev/pool, or hostNetwork"
    )]
    PodOnHostNetwork(String),
    /// The pod's ServiceAccount token does not prove who it is.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// It exists, and may not connect.
    #[error("client {0} is suspended; set spec.suspended to false to let it connect")]
    ClientSuspended(String),
    /// It exists, and its time is over.
    #[error("client {0} has expired; move spec.expiresAt to let it connect")]
    ClientExpired(String),
    /// It is gone, or going.
    #[error("client {0} was deleted; enrol anew with a valid token")]
    ClientDeleted(String),
    /// Another client has the name.
    #[error(
        "a VPNClient {0} of another key exists; delete it, or let the machine call itself something else"
    )]
    NameTaken(String),
    /// The controllers did not get it ready in time.
    #[error("client {0} was made but is not ready yet; try again")]
    ClientNotReady(String),
    /// Too many at a time.
    #[error("too many enrolments at this gateway at present; try again")]
    RateLimited,
    /// Others kept writing the token's Secret.
    #[error("the uses of join token {0} are being counted by somebody else; try again")]
    Contended(String),
    /// A Secret of the name is somebody else's.
    #[error(
        "Secret {0} exists and is not of this pool's join tokens; delete it, or name the token otherwise"
    )]
    SecretTaken(String),
    /// Issuing the certificate failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The API server refused or did not answer.
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl EnrolmentError {
    /// Low-cardinality name for metrics, events, conditions and the wire.
    pub fn category(&self) -> &'static str {
        match self {
            Self::RequestInvalid(_) => "RequestInvalid",
            Self::TokenInvalid => "TokenInvalid",
            Self::TokenExpired(_) => "TokenExpired",
            Self::TokenUsedUp(_) => "TokenUsedUp",
            Self::TokenRevoked(_) => "TokenRevoked",
            Self::TokenSuspended(_) => "TokenSuspended",
            Self::KeyNotVouchedFor => "GatewayOutdated",
            Self::SessionKeyChanged(_) => "SessionKeyChanged",
            Self::PoolNotFound(_) => "PoolNotFound",
            Self::PoolExhausted(_) => "PoolExhausted",
            Self::PoolFull(_) => "PoolFull",
            Self::SidecarNotAllowed { .. } => "SidecarNotAllowed",
            Self::PodNotSelected { .. } => "PodNotSelected",
            Self::PodOnHostNetwork(_) => "PodOnHostNetwork",
            Self::Credential(error) => error.category(),
            Self::ClientSuspended(_) => "ClientSuspended",
            Self::ClientExpired(_) => "ClientExpired",
            Self::ClientDeleted(_) => "ClientDeleted",
            Self::NameTaken(_) => "NameTaken",
            Self::ClientNotReady(_) => "ClientNotReady",
            Self::RateLimited => "RateLimited",
            Self::Contended(_) => "Conflict",
            Self::SecretTaken(_) => "SecretTaken",
            Self::Identity(error) => error.category(),
            Self::Records(error) => error.category(),
        }
    }
}
