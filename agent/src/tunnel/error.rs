//! Why a tunnel could not be had.

use std::{io, path::PathBuf};

use crate::kernel::KernelError;

/// Why a tunnel could not be started or changed. The messages are for people and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The configuration cannot work.
    #[error("tunnel configuration: {0}")]
    Config(String),
    /// A key file cannot be read or holds no key.
    #[error("cannot read the private key in {}: {source}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The system's random source failed.
    #[error("the system gives no random numbers, so no key can be made")]
    NoRandomness,
    /// The UDP port belongs to somebody else.
    #[error("UDP port {port} is taken by another program: choose another port, or end that program")]
    PortInUse {
        /// The wanted port.
        port: u16,
    },
    /// The UDP socket could not be made.
    #[error("cannot open the tunnel's UDP socket: {0}")]
    Socket(#[source] io::Error),
    /// The TUN device, an address or a route could not be set.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The data plane's thread could not be started.
    #[error("cannot start the tunnel's thread: {0}")]
    Thread(#[source] io::Error),
    /// The data plane's thread has ended.
    #[error("the tunnel has stopped")]
    Stopped,
}

impl TunnelError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Config(_) => "TunnelConfigInvalid",
            Self::KeyFile { .. } => "PrivateKeyUnreadable",
            Self::NoRandomness => "NoRandomness",
            Self::PortInUse { .. } => "PortInUse",
            Self::Socket(_) => "SocketFailed",
            Self::Kernel(error) => error.category(),
            Self::Thread(_) => "ThreadFailed",
            Self::Stopped => "TunnelStopped",
        }
    }
}
