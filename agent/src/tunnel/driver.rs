//! The data plane's thread: waits for the socket, the TUN device, the owner and the clock, and feeds the shard.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::EventFd,
    },
};

use super::{TunnelError, TunnelEvent, handle::Command, outbox::Outbox, shard::Shard, socket::UdpEndpoint};

const SOCKET: u64 = 0;
const DEVICE: u64 = 1;
const OWNER: u64 = 2;
/// Runs of datagrams, and packets, taken in one go before the other side has its turn.
const RUNS: usize = 8;
const PACKETS: usize = 128;
/// The largest IP packet and the largest run of datagrams.
const BUFFER: usize = 65_536;
/// How soon to publish again what a reader was in the way of.
const PUBLISH_AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Driver {
    pub(super) shard: Shard,
    pub(super) outbox: Outbox,
    pub(super) fwmark: Option<u32>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) wake: Arc<EventFd>,
}

/// Starts the thread.
pub(super) fn spawn(driver: Driver) -> Result<JoinHandle<()>, TunnelError> {
    let epoll = driver.watch().map_err(|errno| TunnelError::Thread(errno.into()))?;
    let name = format!("tunnel-{}", driver.outbox.device.name());
    thread::Builder::new().name(name).spawn(move || driver.run(&epoll)).map_err(TunnelError::Thread)
}

enum Next {
    Continue,
    Shutdown,
}

impl Driver {
    fn watch(&self) -> Result<Epoll, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.outbox.socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
        epoll.add(&self.outbox.device, EpollEvent::new(EpollFlags::EPOLLIN, DEVICE))?;
        epoll.add(&*self.wake, EpollEvent::new(EpollFlags::EPOLLIN, OWNER))?;
        Ok(epoll)
    }

    fn run(mut self, epoll: &Epoll) {
        let mut buffer = vec![0; BUFFER];
        let mut published = true;
        loop {
            match self.turn(epoll, &mut buffer, &mut published) {
                Ok(Next::Continue) => {}
                Ok(Next::Shutdown) => return,
                Err(error) => {
                    tracing::error!(device = self.outbox.device.name(), %error, "the tunnel has stopped");
                    super::output::Output::event(
                        &mut self.outbox,
                        TunnelEvent::Stopped { reason: error.to_string() },
                    );
                    return;
                }
            }
        }
    }

    /// Waits, and handles all that is ready.
    fn turn(&mut self, epoll: &Epoll, buffer: &mut [u8], published: &mut bool) -> io::Result<Next> {
        let mut ready = [EpollEvent::empty(); 3];
        let count = match epoll.wait(&mut ready, self.patience(*published)) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        self.shard.handle_timeout(Instant::now(), &mut self.outbox);
        for event in ready.iter().take(count) {
            match event.data() {
                SOCKET => self.take_datagrams(buffer),
                DEVICE => self.take_packets(buffer)?,
                _ => {
                    if let Next::Shutdown = self.take_commands(epoll)? {
                        return Ok(Next::Shutdown);
                    }
                }
            }
        }
        self.outbox.flush();
        for (to, category) in self.outbox.failures() {
            self.shard.send_failed(to, category, &mut self.outbox);
        }
        *published = self.shard.settle();
        Ok(Next::Continue)
    }

    fn patience(&self, published: bool) -> EpollTimeout {
        let due = self.shard.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        let again = (!published).then_some(PUBLISH_AGAIN);
        let Some(wait) = due.into_iter().chain(again).min() else { return EpollTimeout::NONE };
        // Rounded up, so that it does not wake just before.
        let wait = wait + Duration::from_nanos(999_999);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn take_datagrams(&mut self, buffer: &mut [u8]) {
        for _ in 0..RUNS {
            let received = match self.outbox.socket.receive(buffer) {
                Ok(received) => received,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "receiving failed");
                    }
                    return;
                }
            };
            let now = Instant::now();
            for datagram in buffer.get(..received.length).unwrap_or_default().chunks(received.segment) {
                self.shard.handle_datagram(now, received.from, datagram, &mut self.outbox);
            }
        }
    }

    fn take_packets(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..PACKETS {
            match self.outbox.device.receive(buffer) {
                Ok(length) => {
                    let packet = buffer.get_mut(..length).unwrap_or_default();
                    self.shard.handle_packet(now, packet, &mut self.outbox);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_commands(&mut self, epoll: &Epoll) -> io::Result<Next> {
        match self.wake.read() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let now = Instant::now();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::SetPeers(peers) => self.shard.set_peers(&peers),
                Command::UseEndpoint(peer, to) => self.use_endpoint(now, &peer, to),
                Command::Handshake(peer) => self.shard.handshake(now, &peer, &mut self.outbox),
                Command::Keepalive(peer) => self.shard.keepalive(now, &peer, &mut self.outbox),
                Command::Probe(peer, probe) => self.shard.probe(now, &peer, &probe, &mut self.outbox),
                Command::BeatKey(peer, key, role) => self.shard.add_beat_key(now, peer, key, role),
                Command::Datagram(peer, datagram) => {
                    self.shard.send_datagram(&peer, &datagram, &mut self.outbox);
                }
                Command::Rebind(port, answer) => {
                    // The owner may have stopped waiting for the answer.
                    let _ = answer.send(self.rebind(port, epoll));
                }
                Command::Shutdown => {
                    self.outbox.flush();
                    return Ok(Next::Shutdown);
                }
            }
        }
        Ok(Next::Continue)
    }

    fn use_endpoint(&mut self, now: Instant, peer: &super::PublicKey, to: SocketAddr) {
        self.shard.use_endpoint(now, peer, to, &mut self.outbox);
    }

    fn rebind(&mut self, port: u16, epoll: &Epoll) -> Result<u16, TunnelError> {
        self.outbox.flush();
        let failed = |errno: Errno| TunnelError::Socket(errno.into());
        epoll.delete(&self.outbox.socket).map_err(failed)?;
        let result = self.replace_socket(port);
        epoll.add(&self.outbox.socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET)).map_err(failed)?;
        result
    }

    fn replace_socket(&mut self, port: u16) -> Result<u16, TunnelError> {
        // A fixed port must be let go first: bind another one meanwhile.
        if port != 0 {
            self.outbox.socket = UdpEndpoint::bind(0, self.fwmark)?;
        }
        self.outbox.socket = UdpEndpoint::bind(port, self.fwmark)?;
        Ok(self.outbox.socket.local_port())
    }
}
