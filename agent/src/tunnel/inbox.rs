//! Receives datagrams many at a time.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;

/// The largest run of merged datagrams.
const LARGEST_RUN: usize = 65_536;
/// The largest datagram of a tunnel with the largest MTU, with room to spare.
const LARGEST_DATAGRAM: usize = 9_600;
/// Messages in one call, where each may be a run, and where each is one datagram.
const RUNS: usize = 8;
const DATAGRAMS: usize = 64;

/// Room for what one call receives.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    /// Bytes for each message.
    room: usize,
    messages: Vec<Message>,
}

#[derive(Debug)]
struct Message {
    from: SocketAddr,
    length: usize,
    segment: usize,
}

/// A run of datagrams from one source.
pub(super) struct Run<'a> {
    pub(super) from: SocketAddr,
    pub(super) bytes: &'a [u8],
    /// Bytes of every datagram but the last, which may be shorter.
    segment: usize,
}

impl<'a> Run<'a> {
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment)
    }
}

/// The one control message asked for, as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    segment: libc::c_int,
}

impl Inbox {
    /// `merged` says whether the kernel merges datagrams (UDP GRO).
    pub(super) fn new(merged: bool) -> Self {
        let (room, count) = if merged { (LARGEST_RUN, RUNS) } else { (LARGEST_DATAGRAM, DATAGRAMS) };
        Self { bytes: vec![0; room * count].into_boxed_slice(), room, messages: Vec::with_capacity(count) }
    }

    /// Receives what is there. `WouldBlock` when there is nothing; `false` when there was not more.
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> io::Result<bool> {
        if self.room == LARGEST_RUN {
            self.receive_up_to::<RUNS>(socket)
        } else {
            self.receive_up_to::<DATAGRAMS>(socket)
        }
    }

    fn receive_up_to<const MOST: usize>(&mut self, socket: &impl AsFd) -> io::Result<bool> {
        self.messages.clear();
        // SAFETY: all of these are plain data, for which all zeros are valid.
        let (mut headers, mut names, mut controls, mut slices) = unsafe {
            (
                mem::zeroed::<[libc::mmsghdr; MOST]>(),
                mem::zeroed::<[libc::sockaddr_in6; MOST]>(),
                mem::zeroed::<[Control; MOST]>(),
                mem::zeroed::<[libc::iovec; MOST]>(),
            )
        };
        let mut count = 0;
        let parts = headers.iter_mut().zip(&mut names).zip(controls.iter_mut().zip(&mut slices));
        for (((header, name), (control, slice)), bytes) in parts.zip(self.bytes.chunks_exact_mut(self.room)) {
            *slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = size_of_u32::<libc::sockaddr_in6>();
            header.msg_iov = slice;
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut *control).cast();
            header.msg_controllen = CONTROL;
            count += 1;
        }
        let (fd, flags) = (socket.as_fd().as_raw_fd(), libc::MSG_DONTWAIT as _);
        // SAFETY: the first `count` headers point to a name, a slice and a control buffer each, of the lengths
        // told, which are borrowed exclusively and outlive the call; the timeout may be null.
        let result = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, flags, std::ptr::null_mut()) };
        let received = usize::try_from(Errno::result(result)?).unwrap_or_default();
        for ((header, name), control) in headers.iter().zip(&names).zip(&controls).take(received) {
            let length = usize::try_from(header.msg_len).unwrap_or_default();
            let told = header.msg_hdr.msg_controllen >= CONTROL;
            let segment = control.segment().filter(|_| told).unwrap_or(length).max(1);
            // Always one of the two families: another would be an empty message from nowhere.
            let (from, length) = source(name).map_or((NOWHERE, 0), |from| (from, length));
            self.messages.push(Message { from, length, segment });
        }
        Ok(received == count as usize)
    }

    /// What the last call received, in its order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.messages.iter().zip(self.bytes.chunks_exact(self.room)).map(|(message, bytes)| Run {
            from: message.from,
            bytes: bytes.get(..message.length).unwrap_or_default(),
            segment: message.segment,
        })
    }
}

/// The kernel tells no length shorter than this where it has told anything.
const CONTROL: usize = mem::size_of::<Control>();
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[expect(clippy::cast_possible_truncation, reason = "sizes of small structures")]
const fn size_of_u32<T>() -> u32 {
    mem::size_of::<T>() as u32
}

impl Control {
    fn segment(&self) -> Option<usize> {
        let is_segment = self.header.cmsg_level == libc::SOL_UDP && self.header.cmsg_type == libc::UDP_GRO;
        is_segment.then(|| usize::try_from(self.segment).ok())?
    }
}

/// The address as the rest of the program knows it: IPv4 is IPv4, whatever the socket makes of it.
fn source(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    let port = u16::from_be(name.sin6_port);
    match i32::from(name.sin6_family) {
        // `sockaddr_in` has its address where `sockaddr_in6` has its flow label.
        libc::AF_INET => Some(SocketAddr::new(Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()).into(), port)),
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(match address.to_ipv4_mapped() {
                Some(v4) => SocketAddr::new(v4.into(), port),
                None => std::net::SocketAddrV6::new(address, port, 0, name.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}
