//! The two ends of a peer's datagrams.

use std::net::{IpAddr, SocketAddr};

/// Where datagrams come from or go to, and by which address of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The other end.
    pub(super) remote: SocketAddr,
    /// This end. A NAT lets nothing in that comes from another address than it was asked at, so answers go out by
    /// the one that the question came to. `None`: the system chooses.
    pub(super) local: Option<Local>,
}

/// An address of this machine, as something came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Local {
    pub(super) address: IpAddr,
    /// Index of the device by which it came. What is sent leaves by whichever the routes name.
    pub(super) device: u32,
}

impl From<SocketAddr> for Path {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}
