//! Tells that something changed of how packets leave this machine.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

/// Multicast groups of rtnetlink (`RTMGRP_*`): links, and addresses, routes and rules of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

/// A socket that can be read once a link, an address, a route or a rule changed in the network namespace in which it was
/// opened. Needs no rights.
#[derive(Debug)]
pub struct RouteChanges(OwnedFd);

impl RouteChanges {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(fd))
    }

    /// Reads all that is there. What it was does not matter: who asks looks at the result. `false` where there was nothing.
    pub fn drain(&self) -> io::Result<bool> {
        let mut message = [0; 8192];
        let mut found = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                // Lost messages are changes as well.
                Ok(_) | Err(Errno::ENOBUFS) => found = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(found),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for RouteChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for RouteChanges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
