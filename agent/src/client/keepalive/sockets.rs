//! The small sockets of experiments: beside the tunnel's own, past its routes, and closed a moment late, so that a
//! late packet meets an open one.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use crate::nat::Radio;

/// Sockets that the keeper's experiments use at once.
const MAX_SOCKETS: usize = 40;
/// And those of a survey of the network.
const MOST_OF_SURVEY: usize = 10;
/// How long a socket stays open that is not needed any more.
const LINGER: Duration = Duration::from_secs(1);
const MAX_DATAGRAM: usize = 256;

/// The sockets of a survey are numbered from here; the keeper's begin at 0.
pub(super) const FIRST_SOCKET: u32 = 1 << 31;

/// What came to one of them.
#[derive(Debug)]
pub(in crate::client) struct Arrival {
    /// To which.
    pub(super) socket: u32,
    /// From where.
    pub(super) from: SocketAddr,
    /// When.
    pub(super) at: Instant,
    /// What it was.
    pub(super) datagram: Vec<u8>,
}

struct Open {
    socket: Arc<UdpSocket>,
    port: u16,
    reader: AbortOnDropHandle<()>,
    permit: OwnedSemaphorePermit,
}

/// All of a client.
pub(super) struct Sockets {
    open: HashMap<u32, Open>,
    arrivals: mpsc::Sender<Arrival>,
    fwmark: u32,
    radio: Arc<Radio>,
    /// As many again may be about to be closed.
    permits: Arc<Semaphore>,
}

impl Sockets {
    pub(super) fn new(arrivals: mpsc::Sender<Arrival>, fwmark: u32, radio: Arc<Radio>) -> Self {
        Sockets {
            open: HashMap::new(),
            arrivals,
            fwmark,
            radio,
            permits: Arc::new(Semaphore::new(2 * (MAX_SOCKETS + MOST_OF_SURVEY))),
        }
    }

    /// The port of a socket, which is opened where it is not. `to` tells the family.
    pub(super) fn port(&mut self, number: u32, to: SocketAddr) -> Option<u16> {
        if let Some(open) = self.open.get(&number) {
            return Some(open.port);
        }
        let of_survey = |number: &u32| *number >= FIRST_SOCKET;
        let alike = self.open.keys().filter(|other| of_survey(other) == of_survey(&number)).count();
        if alike >= if of_survey(&number) { MOST_OF_SURVEY } else { MAX_SOCKETS } {
            tracing::debug!("no socket for another experiment");
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let opened = open(to, self.fwmark);
        let (socket, port) =
            opened.inspect_err(|error| tracing::debug!(%error, "no socket for an experiment")).ok()?;
        let socket = Arc::new(socket);
        let reader =
            tokio::spawn(read(Arc::clone(&socket), number, self.arrivals.clone(), Arc::clone(&self.radio)));
        let reader = AbortOnDropHandle::new(reader);
        self.open.insert(number, Open { socket, port, reader, permit });
        Some(port)
    }

    /// Sends from a socket that is open.
    pub(super) fn send(&self, number: u32, to: SocketAddr, datagram: &[u8]) {
        let Some(open) = self.open.get(&number) else { return };
        self.radio.packet(Instant::now());
        // Not through the runtime, which does not know a fresh socket to be writable.
        let (fd, address) = (open.socket.as_raw_fd(), SockaddrStorage::from(to));
        if let Err(error) = sendto(fd, datagram, &address, MsgFlags::MSG_DONTWAIT) {
            tracing::debug!(%error, "an experiment's packet was not sent");
        }
    }

    /// Closes a socket, a moment later.
    pub(super) fn close(&mut self, number: u32) {
        let Some(Open { reader, permit, .. }) = self.open.remove(&number) else { return };
        tokio::spawn(async move {
            sleep(LINGER).await;
            drop((reader, permit));
        });
    }
}

fn open(to: SocketAddr, fwmark: u32) -> io::Result<(UdpSocket, u16)> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    setsockopt(&socket, sockopt::Mark, &fwmark)?;
    socket.set_nonblocking(true)?;
    let port = socket.local_addr()?.port();
    Ok((UdpSocket::from_std(socket)?, port))
}

async fn read(socket: Arc<UdpSocket>, number: u32, arrivals: mpsc::Sender<Arrival>, radio: Arc<Radio>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let received = socket.recv_from(&mut buffer).await;
        let at = Instant::now();
        radio.packet(at);
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "an experiment's socket does not receive");
                // Such as an ICMP error, of which there may be more.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let datagram = buffer.get(..length).unwrap_or_default().to_vec();
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if arrivals.send(Arrival { socket: number, from, at, datagram }).await.is_err() {
            return;
        }
    }
}
