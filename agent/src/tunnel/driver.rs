//! A thread of the data plane: waits for the socket, the TUN device, the owner and the clock, and feeds the shard.

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

use super::{
    Offloads, TunnelError, TunnelEvent,
    handle::Command,
    handshake_queue::{Budget, LULL},
    message::Message,
    output::Output,
    recv_batch::RecvBatch,
    segments::Segments,
    shard::Shard,
    shards::{Misdelivered, Number, WAITING},
    socket::UdpEndpoint,
    stats::StatsRegistry,
    transmit::Transmit,
    virtio::{self, FrameHeader},
};
use crate::kernel::{DeviceMtu, TunOffload};

const SOCKET: u64 = 0;
const DEVICE: u64 = 1;
const OWNER: u64 = 2;
/// Calls for datagrams in one go, and bytes after which it is enough, before the other side has its turn.
const RECEIVES: usize = 4;
const RECEIVED: usize = 128 << 10;
/// The largest frame.
const FRAME: usize = virtio::HEADER + 65_536;
/// How soon to publish again what a reader was in the way of.
const PUBLISH_AGAIN: Duration = Duration::from_millis(50);
/// How long the device's MTU is believed while packets come from it. Whoever lowers it has some packets padded beyond it
/// until then.
const MTU_BELIEVED: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub(super) shard: Shard,
    pub(super) outbox: Transmit,
    pub(super) fwmark: Option<u32>,
    pub(super) offloads: Offloads,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) strays: mpsc::Receiver<Misdelivered>,
    pub(super) board: StatsRegistry,
    pub(super) wake: Arc<EventFd>,
}

/// Starts the thread.
pub(super) fn spawn(number: Number, driver: Driver) -> Result<JoinHandle<()>, TunnelError> {
    let epoll = driver.watch().map_err(|errno| TunnelError::Thread(errno.into()))?;
    let name = format!("tunnel{number}-{}", driver.outbox.lanes.name());
    let run = move || {
        let _guard = NotHalfDead;
        driver.run(&epoll);
    };
    thread::Builder::new().name(name).spawn(run).map_err(TunnelError::Thread)
}

/// Ends the process when a thread of the data plane panics: nobody else carries its peers' packets, and whoever looks after
/// the process starts another.
struct NotHalfDead;

impl Drop for NotHalfDead {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a thread of the data plane panicked: the process ends, to be started anew");
            std::process::abort();
        }
    }
}

/// Where what comes in is put.
struct Room {
    inbox: RecvBatch,
    frame: Vec<u8>,
}

/// The device's MTU as it was when it was last looked at.
#[derive(Default)]
struct Mtu {
    device: DeviceMtu,
    looked: Option<Instant>,
}

/// What of a turn goes on to the next.
#[derive(Default)]
struct Carried {
    /// A reader was in the way of some figures.
    unpublished: bool,
    budget: Budget,
    mtu: Mtu,
    /// Handshakes wait until data has paused for longer.
    resting: bool,
}

enum Next {
    Continue,
    Shutdown,
}

impl Driver {
    fn watch(&self) -> Result<Epoll, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.outbox.socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
        for queue in self.outbox.lanes.files() {
            epoll.add(queue, EpollEvent::new(EpollFlags::EPOLLIN, DEVICE))?;
        }
        epoll.add(&*self.wake, EpollEvent::new(EpollFlags::EPOLLIN, OWNER))?;
        Ok(epoll)
    }

    fn run(mut self, epoll: &Epoll) {
        let mut room = Room { inbox: RecvBatch::new(self.outbox.socket.merges()), frame: vec![0; FRAME] };
        let mut carried = Carried::default();
        loop {
            match self.turn(epoll, &mut room, &mut carried) {
                Ok(Next::Continue) => {}
                Ok(Next::Shutdown) => return,
                Err(error) => {
                    tracing::warn!(device = self.outbox.lanes.name(), %error, "the tunnel has stopped");
                    self.outbox.event(TunnelEvent::Stopped { reason: error.to_string() });
                    return;
                }
            }
        }
    }

    /// Waits, and handles all that is ready.
    fn turn(&mut self, epoll: &Epoll, room: &mut Room, carried: &mut Carried) -> io::Result<Next> {
        let mut ready = [EpollEvent::empty(); 4];
        let count = match epoll.wait(&mut ready, self.patience(carried)) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        let began = Instant::now();
        self.shard.handle_timeout(began, &mut self.outbox);
        let (mut data, mut more_datagrams, mut more_packets) = (0, false, false);
        let mut packets = false;
        for event in ready.iter().take(count) {
            match event.data() {
                SOCKET => {
                    let (bytes, more) = self.take_datagrams(&mut room.inbox);
                    data += bytes;
                    more_datagrams = more;
                }
                DEVICE => packets = true,
                _ => {
                    if let Next::Shutdown = self.take_commands(epoll)? {
                        return Ok(Next::Shutdown);
                    }
                    data += self.take_strays();
                }
            }
        }
        if packets {
            self.look_at_mtu(began, &mut carried.mtu);
            let (bytes, more) = self.take_packets(&mut room.frame)?;
            data += bytes;
            more_packets = more;
        }
        carried.budget.saw(began, data);
        self.shard.set_short_of_time(carried.budget.is_short(began));
        if self.shard.has_callers() {
            self.outbox.flush();
            self.answer(carried);
        }
        self.outbox.end_batch(more_packets, more_datagrams);
        for (to, category) in self.outbox.failures() {
            self.shard.send_failed(to, category, &mut self.outbox);
        }
        carried.unpublished = !self.shard.commit();
        self.outbox.work.turns += 1;
        self.board.count_work(self.outbox.work);
        Ok(Next::Continue)
    }

    /// Answers handshakes in the time that data leaves for it.
    fn answer(&mut self, carried: &mut Carried) {
        let from = Instant::now();
        let granted = carried.budget.grant(from);
        carried.resting = granted.is_zero();
        let (mut now, mut answers) = (from, 0);
        while now - from < granted && self.shard.answer_next(now, &mut self.outbox) {
            now = Instant::now();
            answers += 1;
        }
        carried.budget.spend(answers, now - from);
    }

    fn patience(&self, carried: &Carried) -> EpollTimeout {
        let callers = self.shard.has_callers();
        if self.outbox.holds_some() || (callers && !carried.resting) {
            return EpollTimeout::ZERO;
        }
        let due = self.shard.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        let again = carried.unpublished.then_some(PUBLISH_AGAIN);
        let rest = callers.then_some(LULL);
        let Some(wait) = [due, again, rest].into_iter().flatten().min() else { return EpollTimeout::NONE };
        // Rounded up, so that it does not wake just before.
        let wait = wait + Duration::from_nanos(999_999);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    /// How many bytes there were beside initiations, and whether there may be more.
    fn take_datagrams(&mut self, inbox: &mut RecvBatch) -> (usize, bool) {
        let (mut taken, mut data) = (0, 0);
        for _ in 0..RECEIVES {
            let more = match inbox.receive(&self.outbox.socket) {
                Ok(more) => more,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "receiving failed");
                    }
                    return (data, false);
                }
            };
            let now = Instant::now();
            self.outbox.work.receives += 1;
            for run in inbox.runs() {
                if !Message::is_initiation(run.bytes) {
                    data += run.bytes.len();
                }
                for datagram in run.datagrams() {
                    self.outbox.work.datagrams_received += 1;
                    self.shard.handle_datagram(now, run.from, datagram, &mut self.outbox);
                }
            }
            taken += inbox.bytes_received();
            if !more {
                return (data, false);
            }
            if taken >= RECEIVED {
                break;
            }
        }
        (data, true)
    }

    /// Others may change it at any time, and tell nobody.
    fn look_at_mtu(&mut self, now: Instant, mtu: &mut Mtu) {
        if mtu.looked.is_some_and(|looked| now.saturating_duration_since(looked) < MTU_BELIEVED) {
            return;
        }
        mtu.looked = Some(now);
        match mtu.device.read(self.outbox.lanes.device()) {
            Ok(mtu) => self.shard.set_device_mtu(mtu),
            Err(error) => tracing::debug!(%error, "what is sent is padded up to the MTU known before"),
        }
    }

    /// How many bytes there were, and whether there may be more.
    fn take_packets(&mut self, frame: &mut [u8]) -> io::Result<(usize, bool)> {
        let now = Instant::now();
        let mut data = 0;
        self.outbox.lanes.begin_turn();
        while let Some(length) = self.outbox.lanes.read(now, frame)? {
            data += length;
            self.outbox.work.frames_read += 1;
            self.take_frame(now, frame.get_mut(..length).unwrap_or_default());
        }
        Ok((data, self.outbox.lanes.has_more()))
    }

    fn take_frame(&mut self, now: Instant, frame: &mut [u8]) {
        let has_header = self.outbox.lanes.offload() != TunOffload::None;
        if let Some(other) = self.shard.elsewhere(self.outbox.lanes.packet(frame)) {
            return self.outbox.hand_over(other, Misdelivered::Frame(frame.to_vec()));
        }
        let segments = if has_header {
            frame.split_first_chunk_mut().and_then(|(header, packet)| {
                FrameHeader::decode(*header).and_then(|header| Segments::new(header, packet))
            })
        } else {
            Some(Segments::whole(frame))
        };
        match segments {
            Some(segments) => self.shard.handle_packets(now, segments, &mut self.outbox),
            None => self.shard.discard_frame(),
        }
    }

    /// What came to other shards, and is ours. How many bytes there were beside initiations.
    fn take_strays(&mut self) -> usize {
        let now = Instant::now();
        let mut data = 0;
        // No more than can be on the way, so that somebody who hands over without end does not keep it here.
        for _ in 0..WAITING {
            let Ok(stray) = self.strays.try_recv() else { return data };
            match stray {
                Misdelivered::Datagram(from, datagram) => {
                    data += datagram.len();
                    self.shard.handle_datagram(now, from, &datagram, &mut self.outbox);
                }
                Misdelivered::Initiation(caller) => self.shard.take_caller(now, caller),
                Misdelivered::Frame(mut frame) => {
                    data += frame.len();
                    self.take_frame(now, &mut frame);
                }
            }
        }
        let _ = self.wake.write(1);
        data
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
                Command::BeginAnew(peer) => self.shard.begin_anew(&peer),
                Command::CallBack(peer) => self.shard.call_back(&peer, &mut self.outbox),
                Command::Keepalive(peer) => self.shard.keepalive(now, &peer, &mut self.outbox),
                Command::Probe(peer, probe) => self.shard.probe(now, &peer, &probe, &mut self.outbox),
                Command::BeatKey(peer, key, role) => self.shard.add_beat_key(now, peer, key, role),
                Command::Datagram(peer, datagram) => {
                    self.shard.send_datagram(&peer, &datagram, &mut self.outbox);
                }
                Command::HoldAfter(peer, after) => self.shard.hold_after(&peer, after),
                Command::Initiation(peer, initiation) => {
                    self.shard.take_initiation(now, &peer, &initiation, &mut self.outbox);
                }
                Command::Identity(key) => self.shard.set_identity(now, &key),
                Command::Endpoint(peer, to) => self.shard.set_endpoint(&peer, to),
                Command::ForgetLocals => self.shard.forget_locals(),
                Command::JudgeLocal(verdict) => self.shard.judge_local(&verdict),
                Command::PersistentKeepalive(peer, interval) => {
                    self.shard.keep_alive(now, &peer, interval, &mut self.outbox);
                }
                Command::Fwmark(mark, answer) => {
                    let _ = answer.send(self.set_fwmark(mark));
                }
                // The owner may have stopped waiting for the answer.
                Command::LetGo(answer) => {
                    let other = UdpEndpoint::bind(0, self.fwmark, self.offloads);
                    let _ = answer.send(other.and_then(|socket| self.adopt(socket, epoll)));
                }
                Command::Bind(port, count, answer) => {
                    let sockets = UdpEndpoint::bind_group(count, port, self.fwmark, self.offloads);
                    let _ = answer.send(sockets);
                }
                Command::Adopt(socket, answer) => {
                    let _ = answer.send(self.adopt(socket, epoll));
                }
                #[cfg(debug_assertions)]
                Command::Fault => panic!("a fault was asked for"),
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

    fn set_fwmark(&mut self, mark: Option<u32>) -> Result<(), TunnelError> {
        self.outbox.flush();
        self.outbox.socket.set_fwmark(mark.unwrap_or_default())?;
        self.fwmark = mark;
        self.shard.forget_locals();
        Ok(())
    }

    /// Goes on with this socket.
    fn adopt(&mut self, socket: UdpEndpoint, epoll: &Epoll) -> Result<(), TunnelError> {
        self.outbox.flush();
        let failed = |errno: Errno| TunnelError::Socket(errno.into());
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET)).map_err(failed)?;
        // Closed, the old one leaves the set by itself.
        self.outbox.socket = socket;
        self.shard.forget_locals();
        Ok(())
    }
}
