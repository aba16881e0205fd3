//! Why there is no device.

use crate::{kernel::KernelError, tunnel::TunnelError, uapi::UapiError};

/// Why a device could not be had. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum WgError {
    /// The TUN device.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The data plane.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The socket that it is configured by.
    #[error(transparent)]
    Uapi(#[from] UapiError),
}

impl WgError {
    /// A stable, low-cardinality name for scripts.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Kernel(error) => error.category(),
            Self::Tunnel(error) => error.category(),
            Self::Uapi(error) => error.category(),
        }
    }
}
