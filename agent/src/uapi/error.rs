//! Why something was refused: to the other end of the socket by number, to a person in words.

use std::{io, path::PathBuf};

/// Why a question is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `EPROTO`: this is not the protocol.
    #[error("not a request of the configuration protocol")]
    Protocol,
    /// `EINVAL`: an unknown key, or a value that it cannot have.
    #[error("an unknown key, or a value that it cannot have")]
    Invalid,
    /// `EADDRINUSE`: the UDP port belongs to somebody else.
    #[error("the UDP port is taken by another program")]
    PortInUse,
    /// `EPERM`: the tunnel belongs to its control plane, and is not to be changed here.
    #[error("this tunnel is not configured here")]
    ReadOnly,
    /// `EIO`: the tunnel could not do it, or is gone.
    #[error("the tunnel could not do it")]
    Failed,
}

impl Refusal {
    /// The error number of the answer: negative, as wireguard-go sends it and `wg` expects it.
    pub const fn errno(self) -> i32 {
        -match self {
            Self::Protocol => libc::EPROTO,
            Self::Invalid => libc::EINVAL,
            Self::PortInUse => libc::EADDRINUSE,
            Self::ReadOnly => libc::EPERM,
            Self::Failed => libc::EIO,
        }
    }

    /// A stable, low-cardinality name for logs.
    pub const fn category(self) -> &'static str {
        match self {
            Self::Protocol => "ProtocolViolated",
            Self::Invalid => "SettingInvalid",
            Self::PortInUse => "PortInUse",
            Self::ReadOnly => "ReadOnly",
            Self::Failed => "TunnelFailed",
        }
    }
}

/// Why there is no socket for `wg`. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum UapiError {
    /// The socket cannot be made.
    #[error("cannot make the socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody answers on it.
    #[error("another program answers on {}: end it, or choose another name for the device", .0.display())]
    InUse(PathBuf),
    /// Everybody could put a socket of their own there, and get to see private keys.
    #[error("{} can be written by others: `chmod 700` it", .0.display())]
    OpenToAll(PathBuf),
}

impl UapiError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Socket { .. } => "UapiSocketFailed",
            Self::InUse(_) => "UapiSocketInUse",
            Self::OpenToAll(_) => "UapiDirectoryUnsafe",
        }
    }
}
