//! The UDP socket: both families, and many datagrams per call where the kernel can (UDP GRO and GSO).

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
        SockaddrIn6, SockaddrStorage, bind, getsockname, recvmsg, sendmsg, setsockopt, socket, sockopt,
    },
};

use super::TunnelError;

/// The largest UDP payload over IPv4, and with it the largest run of datagrams for one call.
pub(super) const LARGEST_DATAGRAM: usize = 65_507;
/// Datagrams in one run: `UDP_MAX_SEGMENTS` of kernels before 6.9; later ones take 128.
pub(super) const LONGEST_RUN: usize = 64;
/// Room in the kernel for bursts, in bytes. One of 1 MB costs hundreds of retransmissions in a TCP stream.
const BUFFER: usize = 7 << 20;

/// What one call received.
pub(super) struct Received {
    pub(super) from: SocketAddr,
    /// Bytes in all.
    pub(super) length: usize,
    /// Bytes of every datagram but the last, which may be shorter.
    pub(super) segment: usize,
}

/// The tunnel's UDP socket.
#[derive(Debug)]
pub(super) struct UdpEndpoint {
    fd: OwnedFd,
    dual_stack: bool,
    local_port: u16,
    control: Vec<u8>,
    segmenting: bool,
}

impl UdpEndpoint {
    /// Binds a port of all local addresses (0: any port). Without IPv6 in the kernel it serves IPv4 alone.
    pub(super) fn bind(port: u16, fwmark: Option<u32>) -> Result<Self, TunnelError> {
        let failed = |errno| match errno {
            Errno::EADDRINUSE => TunnelError::PortInUse { port },
            errno => TunnelError::Socket(errno.into()),
        };
        let (fd, dual_stack) = match open(AddressFamily::Inet6, port) {
            Ok(fd) => (fd, true),
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                (open(AddressFamily::Inet, port).map_err(failed)?, false)
            }
            Err(errno) => return Err(failed(errno)),
        };
        if let Some(mark) = fwmark {
            setsockopt(&fd, sockopt::Mark, &mark).map_err(failed)?;
        }
        enlarge(&fd);
        if let Err(errno) = setsockopt(&fd, sockopt::UdpGroSegment, &true) {
            tracing::debug!(%errno, "the kernel does not merge received datagrams (UDP GRO)");
        }
        let address: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed)?;
        let local_port = to_std(&address).map_or(port, |address| address.port());
        Ok(Self { fd, dual_stack, local_port, control: cmsg_space!(libc::c_int), segmenting: true })
    }

    pub(super) const fn local_port(&self) -> u16 {
        self.local_port
    }

    /// Receives a datagram, or a run of them from one source. `WouldBlock` when there is none.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.fd.as_raw_fd(),
            &mut slices,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let length = message.bytes;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let from = message.address.as_ref().and_then(to_std).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Received { from, length, segment: segment.filter(|&size| size > 0).unwrap_or(length).max(1) })
    }

    /// Sends one datagram.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send_with(to, datagram, &[])
    }

    /// Sends a run of datagrams of `segment` bytes each, of which the last may be shorter. Where the kernel does
    /// not split them, they go one by one; the first that fails ends it.
    pub(super) fn send_run(&mut self, to: SocketAddr, run: &[u8], segment: usize) -> io::Result<()> {
        if self.segmenting && run.len() > segment {
            let size = u16::try_from(segment).map_err(|_| io::ErrorKind::InvalidInput)?;
            match self.send_with(to, run, &[ControlMessage::UdpGsoSegments(&size)]) {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    tracing::info!(
                        "this path cannot split datagrams for us (UDP GSO): sending them one by one"
                    );
                    self.segmenting = false;
                }
                // Too large for the path in one piece of the run: the kernel fragments single ones.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {}
                result => return result,
            }
        }
        run.chunks(segment).try_for_each(|datagram| self.send(to, datagram))
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

impl AsFd for UdpEndpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(family: AddressFamily, port: u16) -> Result<OwnedFd, Errno> {
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
        bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)))?;
    } else {
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    }
    Ok(fd)
}

/// As much buffer as the rights allow: beyond the system's limit only with `CAP_NET_ADMIN`.
fn enlarge(fd: &OwnedFd) {
    let received =
        setsockopt(fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::RcvBuf, &BUFFER));
    let sent =
        setsockopt(fd, sockopt::SndBufForce, &BUFFER).or_else(|_| setsockopt(fd, sockopt::SndBuf, &BUFFER));
    if let Err(errno) = received.and(sent) {
        tracing::debug!(%errno, "the UDP socket keeps its default buffers");
    }
}

/// The address as the rest of the program knows it: IPv4 is IPv4, whatever the socket makes of it.
fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    let v6 = SocketAddrV6::from(*address.as_sockaddr_in6()?);
    Some(match v6.ip().to_ipv4_mapped() {
        Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
        None => SocketAddr::V6(v6),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn receive_all(socket: &mut UdpEndpoint, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut found, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let end = Instant::now() + Duration::from_secs(5);
        while found.len() < wanted && Instant::now() < end {
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(1000_u16)).unwrap();
            while let Ok(received) = socket.receive(&mut buffer) {
                let datagrams = buffer[..received.length].chunks(received.segment);
                found.extend(datagrams.map(|datagram| (received.from, datagram.to_vec())));
            }
        }
        found
    }

    #[test]
    fn one_socket_serves_both_families_and_shows_ipv4_as_ipv4() {
        let mut server = UdpEndpoint::bind(0, None).unwrap();
        let client = UdpEndpoint::bind(0, None).unwrap();
        let (port, from) = (server.local_port(), client.local_port());
        let mut hosts: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            hosts.push(Ipv6Addr::LOCALHOST.into());
        }
        for host in hosts {
            client.send((host, port).into(), b"hello").unwrap();
            assert_eq!(receive_all(&mut server, 1), [((host, from).into(), b"hello".to_vec())]);
        }
    }

    #[test]
    fn a_run_arrives_as_the_datagrams_it_was_made_of() {
        let mut server = UdpEndpoint::bind(0, None).unwrap();
        let mut client = UdpEndpoint::bind(0, None).unwrap();
        let to = (Ipv4Addr::LOCALHOST, server.local_port()).into();
        let run: Vec<u8> = (0..45_u8).flat_map(|n| vec![n; if n == 44 { 700 } else { 1452 }]).collect();
        for segmenting in [true, false] {
            client.segmenting = segmenting;
            client.send_run(to, &run, 1452).unwrap();
            let received: Vec<_> =
                receive_all(&mut server, 45).into_iter().map(|(_, datagram)| datagram).collect();
            assert_eq!(received, run.chunks(1452).map(<[u8]>::to_vec).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = UdpEndpoint::bind(0, None).unwrap();
        let error = UdpEndpoint::bind(first.local_port(), None).unwrap_err();
        assert_eq!(error.category(), "PortInUse");
        assert!(error.to_string().contains(&first.local_port().to_string()));
    }
}
