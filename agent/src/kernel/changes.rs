//! Tells that something changed of how packets leave this machine, or of tables of ours.

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

use super::{netlink, nftables};

/// Multicast groups of rtnetlink (`RTMGRP_*`): links, and addresses, routes and rules of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

/// Bytes of what comes at once.
const MAX_MESSAGE: usize = 64 * 1024;
/// That of nfnetlink that tells of nftables (`NFNLGRP_NFTABLES`, the seventh).
const TABLES: u32 = 1 << 6;

/// A socket that can be read once a link, an address, a route or a rule changed in the network namespace in which it was
/// opened. Needs no rights.
#[derive(Debug)]
pub struct RouteChanges(OwnedFd);

impl RouteChanges {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        listen(SockProtocol::NetlinkRoute, GROUPS).map(Self)
    }

    /// Reads all that is there. What it was does not matter: who asks looks at the result. `false` where there was nothing.
    pub fn drain(&self) -> io::Result<bool> {
        drain(&self.0, |_| true)
    }
}

fn listen(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Reads all that is there. Whether any of it counts.
fn drain(fd: &OwnedFd, counts: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut found = false;
    loop {
        match recv(fd.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(length) => found |= counts(message.get(..length).unwrap_or_default()),
            // Lost messages are changes as well.
            Err(Errno::ENOBUFS) => found = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(found),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A socket that can be read once an nftables table changed in the network namespace in which it was opened. Needs
/// `CAP_NET_ADMIN`.
#[derive(Debug)]
pub struct TableChanges {
    fd: OwnedFd,
    tables: Vec<String>,
}

impl TableChanges {
    /// Opens the socket, for changes of these tables.
    pub fn open(tables: Vec<String>) -> io::Result<Self> {
        Ok(Self { fd: listen(SockProtocol::NetlinkNetFilter, TABLES)?, tables })
    }

    /// Reads all that is there. Whether any of it was about the tables.
    pub fn drain(&self) -> io::Result<bool> {
        let is_ours = |message: netlink::Received<'_>| {
            nftables::table_of(message.body).is_some_and(|table| self.tables.contains(&table))
        };
        drain(&self.fd, |bytes| netlink::messages(bytes).flatten().any(is_ours))
    }
}

impl AsFd for TableChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for TableChanges {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
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
