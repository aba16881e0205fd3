//! Why the kernel refused something.

use std::io;

use nix::errno::Errno;

/// Why a device, address, route, rule or filter could not be set. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// `/dev/net/tun` is missing.
    #[error(
        "/dev/net/tun is missing: load the kernel module `tun`, or give the container the device as a hostPath CharDevice"
    )]
    NoTunDevice,
    /// The process lacks `CAP_NET_ADMIN`, or may not open the device.
    #[error("no permission to {what}: run as root, or grant CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else holds a device of this name.
    #[error(
        "the network device {name} is taken by another program: choose another name, or end that program"
    )]
    NameInUse {
        /// The device.
        name: String,
    },
    /// A name that no network device can have.
    #[error(
        "{0:?} cannot name a network device: use 1 to 15 letters, digits, '_', '=', '+', '.' and '-', the first neither '.' nor '-'"
    )]
    BadName(String),
    /// There is no such device.
    #[error("there is no network device {0}")]
    NoSuchDevice(String),
    /// The kernel has no support for it.
    #[error("this kernel cannot {what}: {source}")]
    Unsupported {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer of the kernel that makes no sense.
    #[error("cannot {what}: the kernel's answer is malformed")]
    Malformed {
        /// What was tried.
        what: String,
    },
}

impl KernelError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::NoTunDevice => "NoTunDevice",
            Self::NotPermitted { .. } => "NotPermitted",
            Self::NameInUse { .. } => "DeviceNameInUse",
            Self::BadName(_) => "DeviceNameInvalid",
            Self::NoSuchDevice(_) => "NoSuchDevice",
            Self::Unsupported { .. } => "KernelUnsupported",
            Self::Refused { .. } | Self::Malformed { .. } => "KernelRefused",
        }
    }

    pub(super) fn new(what: impl Into<String>, errno: Errno) -> Self {
        let (what, source) = (what.into(), io::Error::from(errno));
        match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted { what, source },
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::ENOSYS => {
                Self::Unsupported { what, source }
            }
            _ => Self::Refused { what, source },
        }
    }

    /// The kernel's error number, where there is one.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::NotPermitted { source, .. }
            | Self::Unsupported { source, .. }
            | Self::Refused { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}
