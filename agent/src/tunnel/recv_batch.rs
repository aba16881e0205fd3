//! Receives datagrams many at a time.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;

use super::{
    ip::field,
    path::{Local, Path},
};

/// The largest datagram, and the largest run of merged ones. What of it is never used never takes memory.
const MAX_DATAGRAM: usize = 65_536;
/// Messages in one call, where each may be a run, and where each is one datagram.
const RUNS: usize = 8;
const DATAGRAMS: usize = 64;
/// Bytes in one call, if messages are as large as they were in the last.
const BYTES: usize = 128 << 10;

/// Room for what one call receives.
#[derive(Debug)]
pub(super) struct RecvBatch {
    bytes: Box<[u8]>,
    /// Whether the kernel merges datagrams (UDP GRO).
    merged: bool,
    /// Messages to ask for in the next call.
    wanted: usize,
    messages: Vec<Message>,
}

#[derive(Debug)]
struct Message {
    from: Path,
    length: usize,
    segment: usize,
}

/// A run of datagrams from one source.
pub(super) struct Run<'a> {
    pub(super) from: Path,
    pub(super) bytes: &'a [u8],
    /// Bytes of every datagram but the last, which may be shorter.
    segment: usize,
}

impl<'a> Run<'a> {
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment)
    }
}

/// Room for the control messages asked for, as the kernel lays them out.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

impl RecvBatch {
    /// `merged` says whether the kernel merges datagrams (UDP GRO).
    pub(super) fn new(merged: bool) -> Self {
        let count = if merged { RUNS } else { DATAGRAMS };
        let bytes = vec![0; MAX_DATAGRAM * count].into_boxed_slice();
        Self { bytes, merged, wanted: count, messages: Vec::with_capacity(count) }
    }

    /// Receives what is there. `WouldBlock` when there is nothing; `false` when there was not more.
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> io::Result<bool> {
        if self.merged { self.receive_up_to::<RUNS>(socket) } else { self.receive_up_to::<DATAGRAMS>(socket) }
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
        for (((header, name), (control, slice)), bytes) in
            parts.zip(self.bytes.chunks_exact_mut(MAX_DATAGRAM)).take(self.wanted)
        {
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
            let told = control.told(header.msg_hdr.msg_controllen);
            let segment = told.segment.unwrap_or(length).max(1);
            // Always one of the two families: another would be an empty message from nowhere.
            let (remote, length) = source(name).map_or((NOWHERE, 0), |from| (from, length));
            self.messages.push(Message { from: Path { remote, local: told.local }, length, segment });
        }
        let average = self.bytes_received() / received.max(1);
        self.wanted = (BYTES / average.max(1)).clamp(1, MOST);
        Ok(received == count as usize)
    }

    /// Of the last call.
    pub(super) fn bytes_received(&self) -> usize {
        self.messages.iter().map(|message| message.length).sum()
    }

    /// What the last call received, in its order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.messages.iter().zip(self.bytes.chunks_exact(MAX_DATAGRAM)).map(|(message, bytes)| Run {
            from: message.from,
            bytes: bytes.get(..message.length).unwrap_or_default(),
            segment: message.segment,
        })
    }
}

const CONTROL: usize = mem::size_of::<Control>();
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[expect(clippy::cast_possible_truncation, reason = "sizes of small structures")]
const fn size_of_u32<T>() -> u32 {
    mem::size_of::<T>() as u32
}

/// What control messages tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Bytes of each datagram of a run.
    segment: Option<usize>,
    /// The address that it came to.
    local: Option<Local>,
}

impl Control {
    /// Reads what the kernel wrote: headers of 16 bytes (length, level, type), each with its data behind it, all of
    /// them at multiples of 8.
    fn told(&self, length: usize) -> Told {
        const HEADER: usize = mem::size_of::<libc::cmsghdr>();
        let mut told = Told::default();
        let mut rest = self.0.get(..length).unwrap_or_default();
        while let (Some(size), Some(level), Some(kind)) =
            (field::<8>(rest, 0), field::<4>(rest, 8), field::<4>(rest, 12))
        {
            let size = usize::from_ne_bytes(size);
            let data = rest.get(HEADER..size).unwrap_or_default();
            match (i32::from_ne_bytes(level), i32::from_ne_bytes(kind)) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let segment = field::<4>(data, 0).map(i32::from_ne_bytes);
                    told.segment = segment.and_then(|segment| usize::try_from(segment).ok());
                }
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    let address = field::<16>(data, 0).map(|address| unmapped(Ipv6Addr::from(address)));
                    told.local = local(address, field(data, 16));
                }
                (libc::SOL_IP, libc::IP_PKTINFO) => {
                    let address = field::<4>(data, 4).map(|address| Ipv4Addr::from(address).into());
                    told.local = local(address, field(data, 0));
                }
                _ => {}
            }
            let next = size.max(HEADER).next_multiple_of(mem::align_of::<Self>());
            rest = rest.get(next..).unwrap_or_default();
        }
        told
    }
}

fn local(address: Option<IpAddr>, device: Option<[u8; 4]>) -> Option<Local> {
    Some(Local { address: address?, device: u32::from_ne_bytes(device?) })
}

fn unmapped(address: Ipv6Addr) -> IpAddr {
    address.to_ipv4_mapped().map_or(address.into(), IpAddr::from)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn told(messages: &[Vec<u8>]) -> Told {
        let bytes = messages.concat();
        let mut control = Control([0; CONTROL]);
        control.0[..bytes.len()].copy_from_slice(&bytes);
        control.told(bytes.len())
    }

    #[test]
    fn what_the_kernel_tells_is_read_in_any_order() {
        let run = message(libc::SOL_UDP, libc::UDP_GRO, &1452_i32.to_ne_bytes());
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        let v6 = message(libc::SOL_IPV6, libc::IPV6_PKTINFO, &[&mapped[..], &[2, 0, 0, 0]].concat());
        let v4 = message(libc::SOL_IP, libc::IP_PKTINFO, &[2, 0, 0, 0, 192, 0, 2, 7, 192, 0, 2, 255]);
        let local = Some(Local { address: [192, 0, 2, 7].into(), device: 2 });
        for both in [[run.clone(), v6.clone()], [v6, run.clone()], [run.clone(), v4]] {
            assert_eq!(told(&both), Told { segment: Some(1452), local });
        }
        assert_eq!(told(&[run]), Told { segment: Some(1452), local: None });
        assert_eq!(told(&[]), Told::default());
    }

    proptest! {
        #[test]
        fn nonsense_is_survived(bytes: [[u8; 32]; 2], length in 0_usize..200) {
            let mut control = Control([0; CONTROL]);
            control.0.copy_from_slice(&bytes.concat());
            control.told(length);
        }
    }
}
