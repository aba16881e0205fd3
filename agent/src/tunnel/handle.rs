//! The owner's side of a tunnel: a handle that talks to the data plane's threads.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU8,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    BeatCounts, Discards, Offloads, PeerConfig, PeerStats, PrivateKey, PublicKey, Threads, TunnelConfig,
    TunnelError, TunnelEvent, Work,
    beats::Role,
    driver::{self, Driver},
    lookout::Lookout,
    shard::{Shard, ShardConfig},
    shards::{self, Misdelivered, ShardId, Shards},
    socket::UdpEndpoint,
    sources::{Notices, Verdict},
    stats::StatsRegistry,
    transmit::{Events, Transmit},
    tun_queues::TunQueues,
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

/// What the owner asks of a thread of the data plane.
#[derive(Debug)]
pub(super) enum Command {
    SetPeers(Arc<[PeerConfig]>),
    UseEndpoint(PublicKey, SocketAddr),
    Handshake(PublicKey),
    BeginAnew(PublicKey),
    CallBack(PublicKey),
    Keepalive(PublicKey),
    Probe(PublicKey, Probe),
    BeatKey(PublicKey, BeatKey, Role),
    Datagram(PublicKey, Vec<u8>),
    HoldAfter(PublicKey, Option<Duration>),
    Initiation(PublicKey, Box<[u8]>),
    Identity(PrivateKey),
    Endpoint(PublicKey, SocketAddr),
    ForgetLocals,
    JudgeLocal(Verdict),
    PersistentKeepalive(PublicKey, Option<Duration>),
    Fwmark(Option<u32>, Answer<()>),
    /// Use any port meanwhile.
    LetGo(Answer<()>),
    /// Open sockets for all threads.
    Bind(u16, NonZeroU8, Answer<Vec<UdpEndpoint>>),
    Adopt(UdpEndpoint, Answer<()>),
    Shutdown,
    /// Panics.
    #[cfg(debug_assertions)]
    Fault,
}

/// How long to wait for an answer of a thread. It is busy for milliseconds at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A child of ours that is not yet the program that it is to be still holds the sockets that we closed.
const RETRIES: u32 = 50;
const RETRY: Duration = Duration::from_millis(4);

type Answer<T> = mpsc::SyncSender<Result<T, TunnelError>>;

/// A running tunnel. Dropping it stops the threads and removes the TUN device.
///
/// The methods return at once and take effect in their order, on the data plane's threads; only
/// [`rebind`](Self::rebind), [`listen`](Self::listen) and [`set_fwmark`](Self::set_fwmark) wait for their result.
#[derive(Debug)]
pub struct Tunnel {
    workers: Vec<Worker>,
    lookout: Option<Lookout>,
    threads: Threads,
    events_lost: Arc<AtomicU64>,
    local_port: AtomicU16,
    listen_port: AtomicU16,
    name: String,
    index: u32,
    offloads: Offloads,
}

/// A thread of the data plane, as the owner has it.
#[derive(Debug)]
struct Worker {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    board: StatsRegistry,
}

impl Worker {
    fn tell(&self, command: Command) {
        // The thread is gone only after `TunnelEvent::Stopped`, which the owner has been told.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, TunnelError> {
        let (answer, result) = mpsc::sync_channel(1);
        self.tell(command(answer));
        result.recv_timeout(ANSWER_TIMEOUT).map_err(|_| TunnelError::Stopped)?
    }
}

/// The ends of the channels to a thread.
struct Ends {
    commands: (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    strays: (mpsc::SyncSender<Misdelivered>, mpsc::Receiver<Misdelivered>),
    wake: Arc<EventFd>,
}

impl Ends {
    fn new() -> Result<Self, TunnelError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(|errno| TunnelError::Thread(errno.into()))?;
        let strays = mpsc::sync_channel(shards::WAITING);
        Ok(Self { commands: mpsc::channel(), strays, wake: Arc::new(wake) })
    }
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
        // The caller hears of those that cannot be had when it sets them itself.
        route.set_addresses(index, &config.addresses)?;
        route.set_up(index)?;
        Self::run(device, config, events)
    }

    /// Starts the data plane on a device that is left as it is: somebody else gives it addresses and an MTU and
    /// brings it up, and may change that. So TCP connections are not held to an MTU. The UDP port is any.
    pub fn start_on(
        device: TunDevice,
        private_key: PrivateKey,
        threads: Threads,
        events: tokio::sync::mpsc::Sender<TunnelEvent>,
    ) -> Result<Self, TunnelError> {
        let config = TunnelConfig {
            private_key,
            listen_port: 0,
            tun_name: device.name().to_owned(),
            addresses: Vec::new(),
            mtu: u16::MAX,
            fwmark: None,
            offloads: Offloads::ALL,
            threads,
        };
        Self::run(device, config, events)
    }

    fn run(
        device: TunDevice,
        config: TunnelConfig,
        events: tokio::sync::mpsc::Sender<TunnelEvent>,
    ) -> Result<Self, TunnelError> {
        let TunnelConfig { private_key, mtu, listen_port, fwmark, offloads: wanted, threads, .. } = config;
        let (name, index, tun) = (config.tun_name, device.index(), device.offload());
        let sockets = UdpEndpoint::bind_group(threads.count(), listen_port, fwmark, wanted)?;
        let first = sockets.first().ok_or(TunnelError::Stopped)?;
        let offloads = Offloads { tun, udp_gso: first.splits(), udp_gro: first.merges() };
        let (local_port, receive_buffer) = (AtomicU16::new(first.local_port()), first.buffer());
        tracing::info!(device = name, %offloads, receive_buffer, threads = threads.count(), "the tunnel's offloads");
        let events_lost = Arc::new(AtomicU64::new(0));
        let events = Events::new(events, Arc::clone(&events_lost));
        let lanes = lanes(device, threads)?;
        let ends = sockets.iter().map(|_| Ends::new()).collect::<Result<Vec<_>, _>>()?;
        let members: Vec<_> =
            ends.iter().map(|ends| (ends.strays.0.clone(), Arc::clone(&ends.wake))).collect();
        // Dropped where something fails, it ends the threads that run by then.
        let mut tunnel = Self {
            workers: Vec::new(),
            lookout: None,
            threads,
            events_lost,
            local_port,
            listen_port: AtomicU16::new(listen_port),
            name,
            index,
            offloads,
        };
        let notices = Notices::new().map_err(|errno| TunnelError::Thread(errno.into()))?;
        let parts = ShardId::all(threads.count()).zip(sockets).zip(lanes).zip(ends);
        for (((place, socket), lanes), ends) in parts {
            let Ends { commands: (commands, receiver), strays: (_, strays), wake } = ends;
            let board = StatsRegistry::default();
            let config =
                ShardConfig { private_key: private_key.clone(), mtu, place, notices: notices.clone() };
            let driver = Driver {
                shard: Shard::new(&config, board.clone(), Instant::now())?,
                outbox: Transmit::new(socket, lanes, events.clone(), Shards::new(members.iter().cloned())),
                fwmark,
                offloads,
                commands: receiver,
                strays,
                board: board.clone(),
                wake: Arc::clone(&wake),
            };
            let thread = Some(driver::spawn(place.number(), driver)?);
            tunnel.workers.push(Worker { commands, wake, thread, board });
        }
        tunnel.lookout = Some(Lookout::start(notices, fwmark, tunnel.judge())?);
        Ok(tunnel)
    }

    /// Makes the set of peers exactly this one. A peer that stays keeps its session and the endpoint that was
    /// learnt from it; one that is gone is cut at once.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let peers: Arc<[PeerConfig]> = peers.into();
        self.tell_all(|| Command::SetPeers(Arc::clone(&peers)));
    }

    /// Makes the addresses of the TUN device exactly these. Yields those that it cannot have, as this machine is without
    /// IPv6.
    pub fn set_addresses(&self, addresses: &[IpNet]) -> Result<Vec<IpNet>, TunnelError> {
        Ok(RouteSocket::open()?.set_addresses(self.index, addresses)?)
    }

    /// Sends to the peer at this endpoint from now on, and begins a handshake with it there.
    pub fn use_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) {
        self.tell(peer, Command::UseEndpoint(*peer, endpoint));
    }

    /// Takes another identity. Sessions end; peers stay, with their endpoints and figures.
    pub fn set_private_key(&self, key: &PrivateKey) {
        self.tell_all(|| Command::Identity(key.clone()));
    }

    /// Sends to the peer at this endpoint from now on, once there is something to send.
    pub fn set_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) {
        self.tell(peer, Command::Endpoint(*peer, endpoint));
    }

    /// This host is in another network: leaves it to the system from which address datagrams come, for each peer until it is
    /// heard again. The tunnel notices by itself, but maybe only after what is sent next.
    pub fn forget_own_addresses(&self) {
        self.tell_all(|| Command::ForgetLocals);
    }

    /// Sends an empty data message whenever nothing authenticated was sent or received for `interval`, and one at
    /// once where it was off before. `None` switches it off.
    pub fn set_persistent_keepalive(&self, peer: &PublicKey, interval: Option<Duration>) {
        self.tell(peer, Command::PersistentKeepalive(*peer, interval));
    }

    /// Begins a handshake now, even if there is a session or an attempt under way.
    pub fn handshake(&self, peer: &PublicKey) {
        self.tell(peer, Command::Handshake(*peer));
    }

    /// Ends the peer's sessions, and forgets how new its last handshake was: the next one is taken, whatever its stamp. Only for
    /// who has proven by other means to be the peer and to want it. What was recorded of its handshakes can be played back once
    /// after that, as after a start of the tunnel.
    pub fn begin_anew(&self, peer: &PublicKey) {
        self.tell(peer, Command::BeginAnew(*peer));
    }

    /// Sends one handshake initiation of ours to where an initiation of the peer came from that was not new
    /// ([`TunnelEvent::Stale`]): a peer whose clock went back answers it, by our stamp and keys that are fresh, and then has a
    /// session. Who played an old one back cannot. Nothing else changes before there is an answer: neither the peer's endpoint,
    /// nor what is known of its stamps. Nothing is sent where no such initiation came since the last time.
    pub fn call_back(&self, peer: &PublicKey) {
        self.tell(peer, Command::CallBack(*peer));
    }

    /// Sends an empty data message over the session, or begins a handshake when there is none.
    pub fn keepalive(&self, peer: &PublicKey) {
        self.tell(peer, Command::Keepalive(*peer));
    }

    /// Sends a probe over the session. Without a session it begins a handshake and waits for it, as any
    /// packet does.
    pub fn probe(&self, peer: &PublicKey, probe: Probe) {
        self.tell(peer, Command::Probe(*peer, probe));
    }

    /// Answers the beats of a peer under this key. The two newest of a peer are good, until the peer is gone.
    pub fn answer_beats(&self, peer: &PublicKey, key: &BeatKey) {
        self.tell_all(|| Command::BeatKey(*peer, key.clone(), Role::Answer));
    }

    /// Tells of a peer's answers under this key as [`TunnelEvent::BeatAnswered`]. The two newest of a peer are
    /// good, until the peer is gone.
    pub fn hear_beats(&self, peer: &PublicKey, key: &BeatKey) {
        self.tell_all(|| Command::BeatKey(*peer, key.clone(), Role::Hear));
    }

    /// Sends a beat, as [`encode_beat`](crate::nat::wire::encode_beat) writes it, from the tunnel's own socket to
    /// where the peer is.
    pub fn beat(&self, peer: &PublicKey, beat: Vec<u8>) {
        self.tell(peer, Command::Datagram(*peer, beat));
    }

    /// The peer keeps no binding of its own accord: once nothing came from it for `after`, packets to it are held for up to
    /// two seconds, and [`TunnelEvent::Held`] asks to wake it. Ends with `None`, and when the peer asks for a wake by UDP.
    pub fn hold_after(&self, peer: &PublicKey, after: Option<Duration>) {
        self.tell(peer, Command::HoldAfter(*peer, after));
    }

    /// Takes a peer's handshake initiation that came by other means than UDP. The answer goes by UDP to the peer's
    /// endpoint. An authentic one only; it counts for no sign of life.
    pub fn take_initiation(&self, peer: &PublicKey, initiation: Box<[u8]>) {
        self.tell(peer, Command::Initiation(*peer, initiation));
    }

    /// The figures of all peers, in no order, as of their last batch of packets.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.workers.iter().flat_map(|worker| worker.board.snapshot()).collect()
    }

    /// What was discarded without belonging to a peer.
    pub fn discards(&self) -> Discards {
        self.workers.iter().map(|worker| worker.board.counts().0).sum()
    }

    /// What became of beats.
    pub fn beats(&self) -> BeatCounts {
        self.workers.iter().map(|worker| worker.board.counts().1).sum()
    }

    /// What the threads did.
    pub fn work(&self) -> Work {
        self.workers.iter().map(|worker| worker.board.work()).sum()
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
        self.workers.iter().try_for_each(|worker| worker.ask(|answer| Command::Fwmark(mark, answer)))?;
        if let Some(lookout) = &self.lookout {
            lookout.set_fwmark(mark);
        }
        Ok(())
    }

    fn bind(&self, port: u16) -> Result<u16, TunnelError> {
        // The own port can be had again only when nobody holds it.
        let is_own = port == self.local_port();
        if is_own {
            self.workers.iter().try_for_each(|worker| worker.ask(Command::LetGo))?;
        }
        // On a thread of the tunnel, which is in the tunnel's network namespace.
        let opener = self.workers.first().ok_or(TunnelError::Stopped)?;
        let open = || opener.ask(|answer| Command::Bind(port, self.threads.count(), answer));
        let mut sockets = open();
        for _ in 0..RETRIES {
            if !(is_own && matches!(sockets, Err(TunnelError::PortInUse { .. }))) {
                break;
            }
            thread::sleep(RETRY);
            sockets = open();
        }
        let sockets = sockets?;
        let port = sockets.first().map_or(port, UdpEndpoint::local_port);
        for (worker, socket) in self.workers.iter().zip(sockets) {
            worker.ask(|answer| Command::Adopt(socket, answer))?;
        }
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

    /// Has a thread panic. Not in what is released.
    #[cfg(debug_assertions)]
    pub(crate) fn fault(&self) {
        if let Some(worker) = self.workers.first() {
            worker.tell(Command::Fault);
        }
    }

    /// Ends the threads and removes the TUN device.
    pub fn shutdown(mut self) {
        self.stop();
    }

    /// Tells the thread of a peer what an address is worth.
    fn judge(&self) -> impl Fn(Verdict) + Send + 'static {
        let count = self.threads.count();
        let ways: Vec<_> =
            self.workers.iter().map(|worker| (worker.commands.clone(), Arc::clone(&worker.wake))).collect();
        move |verdict| {
            let home = usize::from(shards::home(&verdict.0, count));
            let Some((commands, wake)) = ways.get(home) else { return };
            if commands.send(Command::JudgeLocal(verdict)).is_ok() {
                let _ = wake.write(1);
            }
        }
    }

    fn tell(&self, peer: &PublicKey, command: Command) {
        let home = shards::home(peer, self.threads.count());
        if let Some(worker) = self.workers.get(usize::from(home)) {
            worker.tell(command);
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.workers.iter().for_each(|worker| worker.tell(command()));
    }

    fn stop(&mut self) {
        self.lookout = None;
        self.tell_all(|| Command::Shutdown);
        for thread in self.workers.iter_mut().filter_map(|worker| worker.thread.take()) {
            if thread.join().is_err() {
                tracing::error!(device = self.name, "a thread of the tunnel had panicked");
            }
        }
    }
}

/// The queues of the device, two for each thread.
fn lanes(device: TunDevice, threads: Threads) -> Result<Vec<TunQueues>, TunnelError> {
    let now = Instant::now();
    let others = (1..threads.count().get())
        .map(|_| Ok(TunQueues::new(device.another_queue()?, device.another_queue()?, now)))
        .collect::<Result<Vec<_>, TunnelError>>()?;
    let sparse = device.another_queue()?;
    Ok(std::iter::once(TunQueues::new(device, sparse, now)).chain(others).collect())
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop();
    }
}
