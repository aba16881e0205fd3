//! The UDP socket: both families, and many datagrams per call where the kernel can (UDP GRO and GSO).

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    num::NonZeroU8,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
        SockaddrStorage, bind, getsockname, getsockopt, sendmsg, setsockopt, socket, sockopt,
    },
};

use super::{
    Offloads, TunnelError,
    gso_denylist::{GsoDenylist, Refused},
    path::Path,
    steering,
};

/// The largest UDP payload over IPv4, and with it the largest run of datagrams for one call.
pub(super) const LARGEST_DATAGRAM: usize = 65_507;
/// Datagrams in one run: `UDP_MAX_SEGMENTS` of kernels before 6.9; later ones take 128.
pub(super) const LONGEST_RUN: usize = 64;
/// Room in the kernel for bursts, in bytes. One of 1 MB costs hundreds of retransmissions in a TCP stream.
const BUFFER: usize = 7 << 20;
/// How long to wait for room in the socket's buffer, in milliseconds: it drains at the speed of the network.
const MAX_RETRIES: u16 = 5;

/// The tunnel's UDP socket.
#[derive(Debug)]
pub(super) struct UdpEndpoint {
    fd: OwnedFd,
    dual_stack: bool,
    local_port: u16,
    splits: bool,
    merges: bool,
    buffer: usize,
    unsplit: GsoDenylist,
}

impl UdpEndpoint {
    /// Binds a port of all local addresses (0: any port). Without IPv6 in the kernel it serves IPv4 alone. It
    /// offloads as much as the kernel can, and as is wanted.
    pub(super) fn bind(port: u16, fwmark: Option<u32>, wanted: Offloads) -> Result<Self, TunnelError> {
        Self::bind_as(Sharing::Alone, port, fwmark, wanted)
    }

    /// Binds so many sockets to one port, the first for shard 0 and so on.
    pub(super) fn bind_group(
        count: NonZeroU8,
        port: u16,
        fwmark: Option<u32>,
        wanted: Offloads,
    ) -> Result<Vec<Self>, TunnelError> {
        // A port to share may be shared with strangers of the same user, so it is taken alone first.
        let first = Self::bind(port, fwmark, wanted)?;
        let port = first.local_port;
        if count > NonZeroU8::MIN {
            let failed = |errno: Errno| TunnelError::Socket(errno.into());
            setsockopt(&first, sockopt::ReusePort, &true).map_err(failed)?;
        }
        let mut sockets = vec![first];
        for _ in 1..count.get() {
            sockets.push(Self::bind_as(Sharing::Group, port, fwmark, wanted)?);
        }
        if let [first, _, ..] = &sockets[..]
            && let Err(errno) = steering::attach(first)
        {
            tracing::warn!(%errno, "datagrams do not come to the thread of their peer: threads hand them over");
        }
        Ok(sockets)
    }

    fn bind_as(
        sharing: Sharing,
        port: u16,
        fwmark: Option<u32>,
        wanted: Offloads,
    ) -> Result<Self, TunnelError> {
        let failed = |errno| match errno {
            Errno::EADDRINUSE => TunnelError::PortInUse { port },
            errno => TunnelError::Socket(errno.into()),
        };
        let (fd, dual_stack) = match open(AddressFamily::Inet6, port, sharing) {
            Ok(fd) => (fd, true),
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                (open(AddressFamily::Inet, port, sharing).map_err(failed)?, false)
            }
            Err(errno) => return Err(failed(errno)),
        };
        if let Some(mark) = fwmark {
            setsockopt(&fd, sockopt::Mark, &mark).map_err(failed)?;
        }
        let buffer = enlarge(&fd);
        // Where it is refused, answers go out by the address that the system chooses.
        let told = if dual_stack {
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)
        } else {
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)
        };
        if let Err(errno) = told {
            tracing::debug!(%errno, "the system does not tell which address a datagram came to");
        }
        let merges = wanted.udp_gro && setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok();
        // A kernel that knows the option can do it; whether a path can, only trying tells.
        let splits = wanted.udp_gso && getsockopt(&fd, sockopt::UdpGsoSegment).is_ok();
        let address: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed)?;
        let v4 = address.as_sockaddr_in().map(SockaddrIn::port);
        let local_port = v4.or(address.as_sockaddr_in6().map(SockaddrIn6::port)).unwrap_or(port);
        Ok(Self { fd, dual_stack, local_port, splits, merges, buffer, unsplit: GsoDenylist::default() })
    }

    /// Whether the kernel splits what is sent.
    pub(super) const fn splits(&self) -> bool {
        self.splits
    }

    /// Whether the kernel merges what is received.
    pub(super) const fn merges(&self) -> bool {
        self.merges
    }

    /// Marks what is sent from now on; 0 is no mark.
    pub(super) fn set_fwmark(&self, mark: u32) -> Result<(), TunnelError> {
        setsockopt(&self.fd, sockopt::Mark, &mark).map_err(|errno| TunnelError::Socket(errno.into()))
    }

    pub(super) const fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Bytes that the kernel keeps for us in a burst; fewer than wanted without `CAP_NET_ADMIN`.
    pub(super) const fn buffer(&self) -> usize {
        self.buffer
    }

    /// Sends one datagram.
    pub(super) fn send(&self, to: Path, datagram: &[u8]) -> io::Result<()> {
        self.send_by(to, datagram, None)
    }

    /// Sends a run of datagrams of `segment` bytes each, of which the last may be shorter. Where the kernel does
    /// not split them, they go one by one; the first that fails ends it.
    pub(super) fn send_run(&mut self, to: Path, run: &[u8], segment: usize) -> io::Result<()> {
        if self.splits && run.len() > segment && !self.unsplit.contains(to.remote, segment, Instant::now()) {
            let size = u16::try_from(segment).map_err(|_| io::ErrorKind::InvalidInput)?;
            match self.send_by(to, run, Some(size)) {
                // The device on the way out has no checksums.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    self.send_singly(to, Refused::Anything, &error);
                }
                // The path is too narrow for one of them in one piece: the kernel fragments single ones.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {
                    self.send_singly(to, Refused::Size(segment), &error);
                }
                result => return result,
            }
        }
        run.chunks(segment).try_for_each(|datagram| self.send(to, datagram))
    }

    fn send_singly(&mut self, to: Path, what: Refused, error: &io::Error) {
        tracing::debug!(%error, ?what, "a path does not split datagrams for us: sending one by one there");
        self.unsplit.refused(to.remote, what, Instant::now());
    }

    /// Leaves the source to the system where the own address is none any more.
    fn send_by(&self, to: Path, bytes: &[u8], size: Option<u16>) -> io::Result<()> {
        match self.send_patiently(to, bytes, size) {
            Err(error)
                if to.local.is_some()
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH)
                    ) =>
            {
                self.send_patiently(to.remote.into(), bytes, size)
            }
            result => result,
        }
    }

    /// Waits a little where the socket's buffer is full.
    fn send_patiently(&self, to: Path, bytes: &[u8], size: Option<u16>) -> io::Result<()> {
        match self.try_send(to, bytes, size) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
                poll(&mut ready, PollTimeout::from(MAX_RETRIES))?;
                self.try_send(to, bytes, size)
            }
            result => result,
        }
    }

    fn try_send(&self, to: Path, bytes: &[u8], size: Option<u16>) -> io::Result<()> {
        let local = to.local.map(|local| local.address);
        let (v6, v4) = (local.map(source_v6), local.and_then(source_v4));
        let source = if self.dual_stack {
            v6.as_ref().map(ControlMessage::Ipv6PacketInfo)
        } else {
            v4.as_ref().map(ControlMessage::Ipv4PacketInfo)
        };
        match (size.as_ref().map(ControlMessage::UdpGsoSegments), source) {
            (None, None) => self.send_with(to.remote, bytes, &[]),
            (Some(one), None) | (None, Some(one)) => self.send_with(to.remote, bytes, &[one]),
            (Some(one), Some(other)) => self.send_with(to.remote, bytes, &[one, other]),
        }
    }

    fn send_with(&self, to: SocketAddr, bytes: &[u8], control: &[ControlMessage<'_>]) -> io::Result<()> {
        let slices = [IoSlice::new(bytes)];
        let (fd, flags) = (self.fd.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        match (self.dual_stack, to) {
            (true, SocketAddr::V6(to)) => sendmsg(fd, &slices, control, flags, Some(&SockaddrIn6::from(to))),
            (true, SocketAddr::V4(to)) => {
                let mapped = SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0);
                sendmsg(fd, &slices, control, flags, Some(&SockaddrIn6::from(mapped)))
            }
            (false, SocketAddr::V4(to)) => sendmsg(fd, &slices, control, flags, Some(&SockaddrIn::from(to))),
            (false, SocketAddr::V6(_)) => Err(Errno::EAFNOSUPPORT),
        }?;
        Ok(())
    }
}

/// A source address as a socket of both families takes it, by whatever interface the way leads out.
fn source_v6(local: IpAddr) -> libc::in6_pktinfo {
    let address = match local {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 }
}

fn source_v4(local: IpAddr) -> Option<libc::in_pktinfo> {
    let IpAddr::V4(v4) = local else { return None };
    let address = libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) };
    Some(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } })
}

impl AsFd for UdpEndpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether other sockets may have the same port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Group,
}

fn open(family: AddressFamily, port: u16, sharing: Sharing) -> Result<OwnedFd, Errno> {
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if sharing == Sharing::Group {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
    } else {
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    }
    Ok(fd)
}

/// As much buffer as the rights allow: beyond the system's limit only with `CAP_NET_ADMIN`. Returns what the
/// kernel granted for receiving, in bytes.
fn enlarge(fd: &OwnedFd) -> usize {
    let received =
        setsockopt(fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::RcvBuf, &BUFFER));
    let sent =
        setsockopt(fd, sockopt::SndBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::SndBuf, &BUFFER));
    if let Err(errno) = received.and(sent) {
        tracing::debug!(%errno, "the UDP socket keeps its default buffers");
    }
    // The kernel counts twice, for what it needs itself.
    getsockopt(fd, sockopt::RcvBuf).unwrap_or_default() / 2
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tunnel::{path::Local, recv_batch::RecvBatch};

    fn bind(port: u16, offloads: Offloads) -> Result<UdpEndpoint, TunnelError> {
        UdpEndpoint::bind(port, None, offloads)
    }

    fn receive_all(socket: &UdpEndpoint, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut found, mut inbox) = (Vec::new(), RecvBatch::new(socket.merges()));
        let end = Instant::now() + Duration::from_secs(5);
        while found.len() < wanted && Instant::now() < end {
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(1000_u16)).unwrap();
            while inbox.receive(socket).is_ok() {
                for run in inbox.runs() {
                    found.extend(run.datagrams().map(|datagram| (run.from.remote, datagram.to_vec())));
                }
            }
        }
        found
    }

    #[test]
    fn one_socket_serves_both_families_and_shows_ipv4_as_ipv4() {
        let server = bind(0, Offloads::ALL).unwrap();
        let client = bind(0, Offloads::ALL).unwrap();
        let (port, from) = (server.local_port(), client.local_port());
        let mut hosts: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            hosts.push(Ipv6Addr::LOCALHOST.into());
        }
        for host in hosts {
            client.send(SocketAddr::from((host, port)).into(), b"hello").unwrap();
            assert_eq!(receive_all(&server, 1), [((host, from).into(), b"hello".to_vec())]);
        }
    }

    #[test]
    fn an_answer_comes_from_the_address_that_was_asked() {
        let (mut server, client) = (bind(0, Offloads::ALL).unwrap(), bind(0, Offloads::ALL).unwrap());
        let asked = SocketAddr::from(([127, 0, 0, 2], server.local_port()));
        client.send(asked.into(), b"question").unwrap();
        let mut inbox = RecvBatch::new(server.merges());
        let mut ready = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(1000_u16)).unwrap();
        inbox.receive(&server).unwrap();
        let path = inbox.runs().next().unwrap().from;
        assert_eq!(path.local.map(|local| local.address), Some(asked.ip()));
        server.send_run(path, &[7; 30], 20).unwrap();
        assert_eq!(receive_all(&client, 2), [(asked, vec![7; 20]), (asked, vec![7; 10])]);
        // The machine has lost that address.
        let local = path.local.map(|local| Local { address: [192, 0, 2, 77].into(), ..local });
        let gone = Path { local, ..path };
        server.send_run(gone, &[8; 30], 20).unwrap();
        assert_eq!(receive_all(&client, 2).len(), 2);
    }

    #[test]
    fn a_run_arrives_as_the_datagrams_it_was_made_of() {
        for (gso, gro) in [(true, true), (true, false), (false, true), (false, false)] {
            let offloads = Offloads { udp_gso: gso, udp_gro: gro, ..Offloads::ALL };
            let (server, mut client) = (bind(0, offloads).unwrap(), bind(0, offloads).unwrap());
            assert_eq!((server.merges(), client.splits()), (gro, gso));
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, server.local_port())).into();
            let run: Vec<u8> = (0..45_u8).flat_map(|n| vec![n; if n == 44 { 700 } else { 1452 }]).collect();
            client.send_run(to, &run, 1452).unwrap();
            let received: Vec<_> =
                receive_all(&server, 45).into_iter().map(|(_, datagram)| datagram).collect();
            assert_eq!(received, run.chunks(1452).map(<[u8]>::to_vec).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = bind(0, Offloads::ALL).unwrap();
        let error = bind(first.local_port(), Offloads::ALL).unwrap_err();
        assert_eq!(error.category(), "PortInUse");
        assert!(error.to_string().contains(&first.local_port().to_string()));
    }
}
