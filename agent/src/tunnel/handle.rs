//! The owner's side of a tunnel: a handle that talks to the data plane's thread.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    BeatCounts, Discards, Offloads, PeerConfig, PeerStats, PrivateKey, PublicKey, TunnelConfig, TunnelError,
    TunnelEvent,
    beats::Role,
    driver::{self, Driver},
    outbox::{Events, Outbox},
    shard::{Shard, ShardConfig},
    socket::UdpEndpoint,
    stats::Board,
};
use crate::{
    kernel::{RouteSocket, TunDevice},
    nat::wire::BeatKey,
};

/// An ICMP or ICMPv6 echo request made inside the tunnel, to learn whether it carries traffic both ways. Its
/// answer is consumed by the tunnel and told as [`TunnelEvent::ProbeAnswered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Inner source: an address that the peer routes back here.
    pub from: IpAddr,
    /// Inner destination, of the same family: an address that answers echo requests beyond the peer, and that
    /// the peer's allowed IPs cover.
    pub to: IpAddr,
    /// Told back with the answer. The newest 16 unanswered probes of a peer are remembered.
    pub id: u64,
}

/// What the owner asks of the data plane's thread.
#[derive(Debug)]
pub(super) enum Command {
    SetPeers(Vec<PeerConfig>),
    UseEndpoint(PublicKey, SocketAddr),
    Handshake(PublicKey),
    Keepalive(PublicKey),
    Probe(PublicKey, Probe),
    BeatKey(PublicKey, BeatKey, Role),
    Datagram(PublicKey, Vec<u8>),
    Identity(PrivateKey),
    Endpoint(PublicKey, SocketAddr),
    PersistentKeepalive(PublicKey, Option<Duration>),
    Fwmark(Option<u32>, mpsc::SyncSender<Result<(), TunnelError>>),
    Rebind(u16, mpsc::SyncSender<Result<u16, TunnelError>>),
    Shutdown,
}

/// A running tunnel. Dropping it stops the thread and removes the TUN device.
///
/// The methods return at once and take effect in their order, on the data plane's thread; only
/// [`rebind`](Self::rebind), [`listen`](Self::listen) and [`set_fwmark`](Self::set_fwmark) wait for their result.
#[derive(Debug)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    board: Board,
    events_lost: Arc<AtomicU64>,
    local_port: AtomicU16,
    listen_port: AtomicU16,
    name: String,
    index: u32,
    offloads: Offloads,
}

impl Tunnel {
    /// Makes the TUN device (with its addresses, its MTU, and up), opens the UDP socket and starts the data
    /// plane, all in the network namespace of the calling thread.
    pub fn start(
        config: TunnelConfig,
        events: tokio::sync::mpsc::Sender<TunnelEvent>,
    ) -> Result<Self, TunnelError> {
        if !(1280..=9200).contains(&config.mtu) {
            return Err(TunnelError::Config(format!("an MTU of {} is not within 1280 to 9200", config.mtu)));
        }
        let device = TunDevice::create_offloading(&config.tun_name, config.offloads.tun)?;
        let index = device.index();
        let mut route = RouteSocket::open()?;
        route.set_mtu(index, u32::from(config.mtu))?;
        route.set_addresses(index, &config.addresses)?;
        route.set_up(index)?;
        let shard = ShardConfig { private_key: config.private_key, mtu: config.mtu };
        Self::run(device, &shard, (config.listen_port, config.fwmark), config.offloads, events)
    }

    /// Starts the data plane on a device that is left as it is: somebody else gives it addresses and an MTU and
    /// brings it up, and may change that. So TCP connections are not held to an MTU. The UDP port is any.
    pub fn start_on(
        device: TunDevice,
        private_key: PrivateKey,
        events: tokio::sync::mpsc::Sender<TunnelEvent>,
    ) -> Result<Self, TunnelError> {
        Self::run(device, &ShardConfig { private_key, mtu: u16::MAX }, (0, None), Offloads::ALL, events)
    }

    fn run(
        device: TunDevice,
        config: &ShardConfig,
        (listen_port, fwmark): (u16, Option<u32>),
        wanted: Offloads,
        events: tokio::sync::mpsc::Sender<TunnelEvent>,
    ) -> Result<Self, TunnelError> {
        let (name, index) = (device.name().to_owned(), device.index());
        let socket = UdpEndpoint::bind(listen_port, fwmark, wanted)?;
        let offloads = Offloads { tun: device.offload(), udp_gso: socket.splits(), udp_gro: socket.merges() };
        tracing::info!(device = name, %offloads, receive_buffer = socket.buffer(), "the tunnel's offloads");
        let local_port = AtomicU16::new(socket.local_port());
        let wake = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                .map_err(|errno| TunnelError::Thread(errno.into()))?,
        );
        let (commands, receiver) = mpsc::channel();
        let board = Board::default();
        let events_lost = Arc::new(AtomicU64::new(0));
        let shard = Shard::new(config, board.clone(), Instant::now())?;
        let driver = Driver {
            shard,
            outbox: Outbox::new(socket, device, Events::new(events, Arc::clone(&events_lost))),
            fwmark,
            offloads,
            commands: receiver,
            wake: Arc::clone(&wake),
        };
        let thread = driver::spawn(driver)?;
        Ok(Self {
            commands,
            wake,
            thread: Some(thread),
            board,
            events_lost,
            local_port,
            listen_port: AtomicU16::new(listen_port),
            name,
            index,
            offloads,
        })
    }

    /// Makes the set of peers exactly this one. A peer that stays keeps its session and the endpoint that was
    /// learnt from it; one that is gone is cut at once.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        self.tell(Command::SetPeers(peers));
    }

    /// Makes the addresses of the TUN device exactly these.
    pub fn set_addresses(&self, addresses: &[IpNet]) -> Result<(), TunnelError> {
        Ok(RouteSocket::open()?.set_addresses(self.index, addresses)?)
    }

    /// Sends to the peer at this endpoint from now on, and begins a handshake with it there.
    pub fn use_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) {
        self.tell(Command::UseEndpoint(*peer, endpoint));
    }

    /// Takes another identity. Sessions end; peers stay, with their endpoints and figures.
    pub fn set_private_key(&self, key: PrivateKey) {
        self.tell(Command::Identity(key));
    }

    /// Sends to the peer at this endpoint from now on, once there is something to send.
    pub fn set_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) {
        self.tell(Command::Endpoint(*peer, endpoint));
    }

    /// Sends an empty data message whenever nothing authenticated was sent or received for `interval`, and one at
    /// once where it was off before. `None` switches it off.
    pub fn set_persistent_keepalive(&self, peer: &PublicKey, interval: Option<Duration>) {
        self.tell(Command::PersistentKeepalive(*peer, interval));
    }

    /// Begins a handshake now, even if there is a session or an attempt under way.
    pub fn handshake(&self, peer: &PublicKey) {
        self.tell(Command::Handshake(*peer));
    }

    /// Sends an empty data message over the session, or begins a handshake when there is none.
    pub fn keepalive(&self, peer: &PublicKey) {
        self.tell(Command::Keepalive(*peer));
    }

    /// Sends a probe over the session. Without a session it begins a handshake and waits for it, as any
    /// packet does.
    pub fn probe(&self, peer: &PublicKey, probe: Probe) {
        self.tell(Command::Probe(*peer, probe));
    }

    /// Answers the beats of a peer under this key. The two newest of a peer are good, until the peer is gone.
    pub fn answer_beats(&self, peer: &PublicKey, key: BeatKey) {
        self.tell(Command::BeatKey(*peer, key, Role::Answer));
    }

    /// Tells of a peer's answers under this key as [`TunnelEvent::BeatAnswered`]. The two newest of a peer are
    /// good, until the peer is gone.
    pub fn hear_beats(&self, peer: &PublicKey, key: BeatKey) {
        self.tell(Command::BeatKey(*peer, key, Role::Hear));
    }

    /// Sends a beat, as [`encode_beat`](crate::nat::wire::encode_beat) writes it, from the tunnel's own socket to
    /// where the peer is.
    pub fn beat(&self, peer: &PublicKey, beat: Vec<u8>) {
        self.tell(Command::Datagram(*peer, beat));
    }

    /// The figures of all peers, in no order, as of their last batch of packets.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.board.snapshot()
    }

    /// What was discarded without belonging to a peer.
    pub fn discards(&self) -> Discards {
        self.board.counts().0
    }

    /// What became of beats.
    pub fn beats(&self) -> BeatCounts {
        self.board.counts().1
    }

    /// How many events were lost because the owner's channel was full.
    pub fn events_lost(&self) -> u64 {
        self.events_lost.load(Ordering::Relaxed)
    }

    /// Goes on with a new UDP socket: another source port where the configuration left it to the kernel, else
    /// the same port. Sessions stay. Returns the new port.
    pub fn rebind(&self) -> Result<u16, TunnelError> {
        self.bind(self.listen_port.load(Ordering::Relaxed))
    }

    /// Listens on this UDP port from now on, 0 for any. Where that fails the old one stays. Sessions stay.
    /// Returns the port.
    pub fn listen(&self, port: u16) -> Result<u16, TunnelError> {
        let bound = if port == self.local_port() { port } else { self.bind(port)? };
        self.listen_port.store(port, Ordering::Relaxed);
        Ok(bound)
    }

    /// Marks the tunnel's own datagrams, as [`TunnelConfig::fwmark`] does.
    pub fn set_fwmark(&self, mark: Option<u32>) -> Result<(), TunnelError> {
        self.ask(|answer| Command::Fwmark(mark, answer))
    }

    fn bind(&self, port: u16) -> Result<u16, TunnelError> {
        let port = self.ask(|answer| Command::Rebind(port, answer))?;
        self.local_port.store(port, Ordering::Relaxed);
        Ok(port)
    }

    /// The UDP port that the tunnel sends from and listens on.
    pub fn local_port(&self) -> u16 {
        self.local_port.load(Ordering::Relaxed)
    }

    /// The TUN device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The TUN device's interface index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The offloads in use. UDP GSO may be left out towards a peer whose path refuses it.
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Ends the thread and removes the TUN device.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(mpsc::SyncSender<Result<T, TunnelError>>) -> Command,
    ) -> Result<T, TunnelError> {
        let (answer, result) = mpsc::sync_channel(1);
        self.tell(command(answer));
        result.recv_timeout(Duration::from_secs(5)).map_err(|_| TunnelError::Stopped)?
    }

    fn tell(&self, command: Command) {
        // The thread is gone only after `TunnelEvent::Stopped`, which the owner has been told.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.tell(Command::Shutdown);
        if thread.join().is_err() {
            tracing::error!(device = self.name, "the tunnel's thread had panicked");
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop();
    }
}
