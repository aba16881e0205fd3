//! Why a gateway could not do something.

use crate::{
    identity::{IdentityError, dial::DialError},
    kernel::KernelError,
    tunnel::TunnelError,
};

/// Why a gateway could not start, or not do what the operator wants. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// What the operator sent makes no sense.
    #[error("the desired state is invalid: {0}")]
    DesiredState(String),
    /// Some clients of the desired state make no sense; the others are served.
    #[error("{0}")]
    Peers(String),
    /// The key of this replica is missing.
    #[error("cannot load the key of this replica: {0}")]
    ReplicaKey(String),
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The session or the health port cannot be opened.
    #[error("cannot listen on {what}: {source}")]
    Listen {
        /// What was to listen, and where.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operator cannot be reached.
    #[error("the operator: {0}")]
    Dial(#[from] DialError),
    /// The operator refused.
    #[error("the operator answered {}: {}", .0.code(), .0.message())]
    Operator(Box<tonic::Status>),
    /// A file, key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data plane.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The session service's TLS.
    #[error("cannot set up TLS for client sessions: {0}")]
    Tls(String),
}

impl GatewayError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub fn category(&self) -> &'static str {
        match self {
            Self::DesiredState(_) => "DesiredStateInvalid",
            Self::Peers(_) => "PeerInvalid",
            Self::ReplicaKey(_) => "ReplicaKeyMissing",
            Self::Setting(_) => "SettingInvalid",
            Self::Listen { .. } => "PortInUse",
            Self::Dial(_) => "OperatorUnreachable",
            Self::Operator(_) => "OperatorRefused",
            Self::Identity(error) => error.category(),
            Self::Tunnel(error) => error.category(),
            Self::Kernel(error) => error.category(),
            Self::Tls(_) => "TlsConfigInvalid",
        }
    }
}

impl From<tonic::Status> for GatewayError {
    fn from(status: tonic::Status) -> Self {
        Self::Operator(Box::new(status))
    }
}
