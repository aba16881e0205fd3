//! The data plane without sockets and clock: time, datagrams and packets in; datagrams, packets and events out.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use boringtun::noise::{Packet, Tunn, handshake::parse_handshake_anon};

use super::{
    PeerConfig, PresharedKey, PrivateKey, PublicKey, SendFailure, TunnelError, TunnelEvent,
    beats::{Beats, Heard, Role},
    gate::{Bucket, HandshakeGate, Verdict},
    handle::Probe,
    handshake_queue::{HandshakeQueue, PendingInitiation, Priority},
    ip,
    message::Message,
    output::Output,
    padding::Padding,
    path::Path,
    peer::{Context, Jitter, Peer},
    probe::Magic,
    routing::{Holder, RoutingTable, Slot},
    segments::Segments,
    shards::{Misdelivered, Number, ShardId},
    sources::{Notices, Verdict as SourceVerdict},
    stats::{Discards, PeerStats, StatsRegistry},
};
use crate::{
    entropy,
    nat::{
        Channel,
        wire::{self, BeatKey, CookieMint},
    },
};

/// What a shard is made from.
pub(super) struct ShardConfig {
    pub(super) private_key: PrivateKey,
    /// Largest inner packet, in bytes.
    pub(super) mtu: u16,
    /// Where it stands among others.
    pub(super) place: ShardId,
    /// Whom to tell from which addresses of ours peers are answered.
    pub(super) notices: Notices,
}

/// Peers that are served by one thread, and share nothing with those of other shards.
pub(super) struct Shard {
    public: PublicKey,
    gate: HandshakeGate,
    queue: HandshakeQueue,
    beats: Beats,
    peers: Vec<Option<Box<Peer>>>,
    vacant: Vec<Slot>,
    by_key: HashMap<PublicKey, Slot>,
    /// Peers that live elsewhere.
    others: HashSet<PublicKey>,
    routes: RoutingTable,
    deadlines: BTreeSet<(Instant, Slot)>,
    touched: Vec<Slot>,
    common: Context,
    board: StatsRegistry,
    discards: Discards,
}

impl Shard {
    pub(super) fn new(config: &ShardConfig, board: StatsRegistry, now: Instant) -> Result<Self, TunnelError> {
        let random = entropy::secret::<16>().ok_or(TunnelError::NoRandomness)?;
        let (magic, seed) = (ip::field::<8>(&*random, 0), ip::field::<8>(&*random, 8));
        let public = config.private_key.public();
        let gate = HandshakeGate::new(&public.to_x25519(), now);
        let limiter = gate.limiter();
        Ok(Self {
            public,
            gate,
            queue: HandshakeQueue::default(),
            beats: Beats::new(CookieMint::new(&*entropy::secret().ok_or(TunnelError::NoRandomness)?), now),
            peers: Vec::new(),
            vacant: Vec::new(),
            by_key: HashMap::new(),
            others: HashSet::new(),
            routes: RoutingTable::default(),
            deadlines: BTreeSet::new(),
            touched: Vec::new(),
            common: Context {
                place: config.place,
                secret: config.private_key.secret().clone(),
                limiter,
                mtu: config.mtu,
                padding: Padding::new(config.mtu),
                magic: Magic(magic.unwrap_or_default()),
                notices: config.notices.clone(),
                jitter: Jitter(seed.map_or(1, u64::from_ne_bytes) | 1),
                waiting: 0,
                held: 0,
                knocks: Bucket::full(now),
                stale: 0,
            },
            board,
            discards: Discards::default(),
        })
    }

    /// Makes the set of peers exactly this one. Those of other shards are among them.
    pub(super) fn set_peers(&mut self, configs: &[PeerConfig]) {
        let wanted: HashSet<&PublicKey> = configs.iter().map(|config| &config.public_key).collect();
        let gone: Vec<_> = self.by_key.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            self.remove(&key);
        }
        for key in self.others.extract_if(|key| !wanted.contains(key)) {
            self.beats.remove(&key);
        }
        let mut routes = RoutingTable::default();
        let own = self.public;
        for config in configs.iter().filter(|config| config.public_key != own) {
            let Some(holder) = self.admit(config) else { continue };
            for &net in &config.allowed_ips {
                routes.insert(net, holder);
            }
        }
        self.routes = routes;
    }

    /// The device has another MTU now, in bytes: what is sent is not padded beyond it.
    pub(super) fn set_device_mtu(&mut self, mtu: u16) {
        self.common.padding.set_mtu(mtu);
    }

    /// Becomes somebody else: sessions end, peers stay.
    pub(super) fn set_identity(&mut self, now: Instant, private_key: &PrivateKey) {
        self.public = private_key.public();
        self.gate = HandshakeGate::new(&self.public.to_x25519(), now);
        self.common.secret = private_key.secret().clone();
        self.common.limiter = self.gate.limiter();
        self.queue = HandshakeQueue::default();
        for &slot in self.by_key.values() {
            let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) else { continue };
            peer.rekey(peer.preshared().cloned());
            touch(&mut self.touched, slot, peer);
        }
    }

    /// Takes a UDP datagram, whoever sent it. An initiation only gets in line: see [`answer_next`](Self::answer_next).
    pub(super) fn handle_datagram<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        datagram: &[u8],
        out: &mut O,
    ) {
        if datagram.first().is_some_and(|&first| first >= wire::FIRST) {
            return self.handle_beat(now, from, datagram, out);
        }
        let Some(message) = Message::parse(datagram) else {
            self.discards.malformed += 1;
            return;
        };
        if let Some(other) =
            message.receiver().and_then(|receiver| self.common.place.other(shard_of(receiver)))
        {
            return out.hand_over(other, Misdelivered::Datagram(from, datagram.to_vec()));
        }
        match message {
            Message::Initiation => {
                let priority = self.pass_gate(now, from, datagram, out);
                if let (Some(priority), Ok(initiation)) = (priority, datagram.try_into()) {
                    self.queue.join(now, PendingInitiation { from, priority, initiator: None, initiation });
                }
            }
            Message::Response { receiver } => {
                if self.pass_gate(now, from, datagram, out).is_some() {
                    self.receive(now, from, self.slot_of(receiver), (message, datagram), out);
                }
            }
            Message::CookieReply { receiver } | Message::Data { receiver, .. } => {
                self.receive(now, from, self.slot_of(receiver), (message, datagram), out);
            }
        }
    }

    /// Says whether there is little time for answers.
    pub(super) const fn set_short_of_time(&mut self, is_short: bool) {
        self.queue.set_narrow(is_short);
    }

    /// Whether an initiation waits for its answer.
    pub(super) fn has_callers(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Answers the next initiation in line, or hands it to the shard of its peer. `false` where there was none.
    pub(super) fn answer_next<O: Output>(&mut self, now: Instant, out: &mut O) -> bool {
        let Some(mut caller) = self.queue.next(now) else { return false };
        caller.initiator = caller.initiator.or_else(|| self.initiator_of(&caller.initiation));
        if let Some(other) = caller.initiator.and_then(|key| self.common.place.elsewhere(&key)) {
            out.hand_over(other, Misdelivered::Initiation(caller));
            return true;
        }
        let slot = caller.initiator.and_then(|key| self.by_key.get(&key).copied());
        self.receive(now, caller.from, slot, (Message::Initiation, &caller.initiation), out);
        true
    }

    /// Takes an initiation from the shard that found out whose it is.
    pub(super) fn take_caller(&mut self, now: Instant, caller: PendingInitiation) {
        if self.queue.has_room(caller.priority) {
            self.queue.join(now, caller);
        } else {
            self.discards.refused += 1;
        }
    }

    /// Where an inner packet is to be handed, if its peer lives elsewhere.
    pub(super) fn elsewhere(&self, packet: &[u8]) -> Option<Number> {
        if self.common.place.is_alone() {
            return None;
        }
        match self.routes.peer_of(ip::route(packet)?.destination)? {
            Holder::Here(_) => None,
            Holder::At(number) => Some(number),
        }
    }

    fn receive<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        slot: Option<Slot>,
        (message, datagram): (Message, &[u8]),
        out: &mut O,
    ) {
        let Some((slot, peer)) =
            slot.and_then(|slot| Some((slot, self.peers.get_mut(usize::from(slot))?.as_mut()?)))
        else {
            self.discards.unknown_peer += 1;
            return;
        };
        let routes = &self.routes;
        let is_own = |address| routes.peer_of(address) == Some(Holder::Here(slot));
        peer.receive(now, from, (message, datagram), is_own, &mut self.common, out);
        touch(&mut self.touched, slot, peer);
    }

    fn handle_beat<O: Output>(&mut self, now: Instant, from: Path, datagram: &[u8], out: &mut O) {
        let Some((key, heard)) = self.beats.open(datagram) else { return };
        if let Some(other) = self.common.place.elsewhere(&key) {
            return out.hand_over(other, Misdelivered::Datagram(from, datagram.to_vec()));
        }
        let Some(&slot) = self.by_key.get(&key) else { return };
        let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) else { return };
        peer.beat_received(now, from.remote, out);
        touch(&mut self.touched, slot, peer);
        match heard {
            Heard::Request(id, request) => {
                if request.beat.channel == Channel::Live && request.beat.wake.is_some() {
                    // It keeps its binding again.
                    peer.hold_after(None);
                }
                let is_endpoint = peer.is_at(from.remote);
                self.beats.answer(now, from, (id, request), is_endpoint, out);
            }
            Heard::Answer(answer) => {
                out.event(TunnelEvent::BeatAnswered { peer: key, at: now, answer });
            }
        }
    }

    /// Accepts a peer's beats, or their answers, under this key. The peer may be another shard's: only with the key
    /// can be told whose a beat is.
    pub(super) fn add_beat_key(&mut self, now: Instant, peer: PublicKey, key: BeatKey, role: Role) {
        if self.by_key.contains_key(&peer) || self.others.contains(&peer) {
            self.beats.add_key(now, peer, key, role);
        }
    }

    /// Sends a datagram that is none of WireGuard's to where the peer is.
    pub(super) fn send_datagram<O: Output>(&mut self, key: &PublicKey, datagram: &[u8], out: &mut O) {
        let Some(slot) = self.by_key.get(key) else { return };
        let Some(Some(peer)) = self.peers.get(usize::from(*slot)) else { return };
        let Some(to) = peer.path() else { return };
        if let Some(room) = out.datagram(to, datagram.len()).get_mut(..datagram.len()) {
            room.copy_from_slice(datagram);
            out.send(datagram.len());
        }
    }

    /// Takes the inner packets that the TUN device gave in one piece. A SYN among them may be changed.
    pub(super) fn handle_packets<O: Output>(&mut self, now: Instant, packets: Segments<'_>, out: &mut O) {
        let holder = ip::route(packets.head()).and_then(|route| self.routes.peer_of(route.destination));
        let slot = holder.and_then(|holder| match holder {
            Holder::Here(slot) => Some(slot),
            Holder::At(_) => None,
        });
        let Some((slot, peer)) =
            slot.and_then(|slot| Some((slot, self.peers.get_mut(usize::from(slot))?.as_mut()?)))
        else {
            self.discards.unrouted += 1;
            return;
        };
        peer.send(now, packets, &mut self.common, out);
        touch(&mut self.touched, slot, peer);
    }

    /// Takes note that the TUN device gave something that makes no sense.
    pub(super) const fn discard_frame(&mut self) {
        self.discards.unrouted += 1;
    }

    /// Does what is due.
    pub(super) fn handle_timeout<O: Output>(&mut self, now: Instant, out: &mut O) {
        let (by_key, peers) = (&self.by_key, &self.peers);
        let heard = |key: &PublicKey| peers.get(usize::from(*by_key.get(key)?))?.as_ref()?.last_receive();
        self.beats.handle_timeout(now, heard, out);
        while let Some(&(at, slot)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) else { continue };
            peer.scheduled = None;
            peer.timeout(now, &mut self.common, out);
            touch(&mut self.touched, slot, peer);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next due. `None`: never, as things are.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let peer = self.deadlines.first().map(|&(at, _)| at);
        peer.into_iter().chain(self.beats.poll_timeout()).min()
    }

    /// Ends a batch: schedules the peers that it touched, and publishes their figures. `false` where a reader
    /// was in the way, so that it wants to be called again soon.
    pub(super) fn commit(&mut self) -> bool {
        let mut unpublished = Vec::new();
        for slot in self.touched.drain(..) {
            let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) else { continue };
            let deadline = peer.deadline();
            if peer.scheduled != deadline {
                if let Some(at) = peer.scheduled {
                    self.deadlines.remove(&(at, slot));
                }
                self.deadlines.extend(deadline.map(|at| (at, slot)));
                peer.scheduled = deadline;
            }
            peer.touched = !peer.publish();
            if peer.touched {
                unpublished.push(slot);
            }
        }
        self.touched = unpublished;
        self.discards.stale = self.common.stale;
        self.board.count(self.discards, self.beats.counts());
        self.touched.is_empty()
    }

    /// Sends to the peer at this endpoint, and begins a handshake.
    pub(super) fn use_endpoint<O: Output>(
        &mut self,
        now: Instant,
        key: &PublicKey,
        to: SocketAddr,
        out: &mut O,
    ) {
        self.with(key, |peer, common| peer.use_endpoint(now, to, common, out));
    }

    /// Sends to the peer at this endpoint from now on.
    pub(super) fn set_endpoint(&mut self, key: &PublicKey, to: SocketAddr) {
        self.with(key, |peer, _| peer.set_endpoint(to));
    }

    /// Leaves it to the system from which address datagrams come, for each peer until it is heard again.
    pub(super) fn forget_locals(&mut self) {
        self.peers.iter_mut().flatten().for_each(|peer| peer.forget_local());
    }

    /// Takes note of what the address is worth from which a peer is answered.
    pub(super) fn judge_local(&mut self, (peer, path, standing): &SourceVerdict) {
        self.with(peer, |peer, _| peer.judge_local(*path, *standing));
    }

    /// Sets the interval of the peer's persistent keepalive.
    pub(super) fn keep_alive<O: Output>(
        &mut self,
        now: Instant,
        key: &PublicKey,
        interval: Option<Duration>,
        out: &mut O,
    ) {
        self.with(key, |peer, common| peer.keep_alive(now, interval, common, out));
    }

    /// The peer lets its binding go: once nothing came from it for `after`, packets to it are held. Until it asks for a wake
    /// by UDP again, or `None`.
    pub(super) fn hold_after(&mut self, key: &PublicKey, after: Option<Duration>) {
        if after.is_some() {
            self.beats.let_sleep(key);
        }
        self.with(key, |peer, _| peer.hold_after(after));
    }

    /// Takes an initiation that the owner got by other means.
    pub(super) fn take_initiation<O: Output>(
        &mut self,
        now: Instant,
        key: &PublicKey,
        initiation: &[u8],
        out: &mut O,
    ) {
        if Message::parse(initiation) == Some(Message::Initiation) {
            self.with(key, |peer, common| peer.take_initiation(now, initiation, common, out));
        }
    }

    /// Forgets the peer's sessions, and which of its initiations is the newest.
    pub(super) fn begin_anew(&mut self, key: &PublicKey) {
        self.with(key, |peer, _| peer.begin_anew());
    }

    /// Sends an initiation to where one of the peer's came from that was not new.
    pub(super) fn call_back<O: Output>(&mut self, key: &PublicKey, out: &mut O) {
        self.with(key, |peer, common| peer.call_back(common, out));
    }

    /// Begins a handshake.
    pub(super) fn handshake<O: Output>(&mut self, now: Instant, key: &PublicKey, out: &mut O) {
        self.with(key, |peer, common| peer.handshake(now, common, out));
    }

    /// Sends a keepalive.
    pub(super) fn keepalive<O: Output>(&mut self, now: Instant, key: &PublicKey, out: &mut O) {
        self.with(key, |peer, common| peer.keepalive(now, common, out));
    }

    /// Sends a probe. One whose addresses are of different families is none.
    pub(super) fn probe<O: Output>(&mut self, now: Instant, key: &PublicKey, probe: &Probe, out: &mut O) {
        let Some(mut request) = self.common.magic.request(probe) else { return };
        self.with(key, |peer, common| peer.probe(now, probe.id, &mut request, common, out));
    }

    /// Takes note that the kernel refused a datagram to this address.
    pub(super) fn send_failed<O: Output>(&mut self, to: SocketAddr, category: SendFailure, out: &mut O) {
        // Rare, so a search is cheap enough.
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.is_at(to)) {
            peer.send_failed(category, out);
        }
    }

    /// The place of the peer that a receiver index belongs to.
    fn slot_of(&self, receiver: u32) -> Option<Slot> {
        let [_, shard, low, high] = receiver.to_le_bytes();
        (shard == self.common.place.number()).then_some(Slot::from_le_bytes([low, high]))
    }

    fn with(&mut self, key: &PublicKey, act: impl FnOnce(&mut Peer, &mut Context)) {
        let Some(&slot) = self.by_key.get(key) else { return };
        let Some(Some(peer)) = self.peers.get_mut(usize::from(slot)) else { return };
        act(peer, &mut self.common);
        touch(&mut self.touched, slot, peer);
    }

    /// Handshakes cost much to answer, so they must pass the gate first. Answers with a cookie where it says so.
    fn pass_gate<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        datagram: &[u8],
        out: &mut O,
    ) -> Option<Priority> {
        match self.gate.judge(now, from.remote.ip(), datagram, &self.queue) {
            Verdict::Admit(priority) => return Some(priority),
            Verdict::Challenge(cookie) => {
                self.discards.challenged += 1;
                if let Some(room) = out.datagram(from, cookie.len()).first_chunk_mut() {
                    *room = cookie;
                    out.send(cookie.len());
                }
            }
            Verdict::Refuse => self.discards.refused += 1,
        }
        None
    }

    fn initiator_of(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.common.secret, &self.public.to_x25519(), &initiation).ok()?;
        Some(PublicKey::from_bytes(half.peer_static_public))
    }

    /// The peer's place, new or as it was.
    fn admit(&mut self, config: &PeerConfig) -> Option<Holder> {
        let key = config.public_key;
        if let Some(other) = self.common.place.elsewhere(&key) {
            self.others.insert(key);
            return Some(Holder::At(other));
        }
        let slot = match self.by_key.get(&key) {
            Some(&slot) => slot,
            None => self.place(key, config.preshared_key.clone())?,
        };
        let peer = self.peers.get_mut(usize::from(slot))?.as_mut()?;
        if peer.preshared() != config.preshared_key.as_ref() {
            peer.rekey(config.preshared_key.clone());
        }
        peer.offer_endpoints(&config.endpoints);
        peer.limit(config.destinations.clone());
        touch(&mut self.touched, slot, peer);
        Some(Holder::Here(slot))
    }

    fn place(&mut self, key: PublicKey, preshared: Option<PresharedKey>) -> Option<Slot> {
        let slot = match self.vacant.pop() {
            Some(slot) => slot,
            None => self.grow()?,
        };
        let published = self.board.add(PeerStats::new(key));
        *self.peers.get_mut(usize::from(slot))? = Some(Box::new(Peer::new(slot, key, preshared, published)));
        self.by_key.insert(key, slot);
        Some(slot)
    }

    fn grow(&mut self) -> Option<Slot> {
        let slot = Slot::try_from(self.peers.len()).ok()?;
        self.peers.push(None);
        Some(slot)
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(slot) = self.by_key.remove(key) else { return };
        self.board.remove(key);
        self.beats.remove(key);
        self.common.notices.put(*key, None);
        let Some(peer) = self.peers.get_mut(usize::from(slot)).and_then(Option::take) else { return };
        debug_assert_eq!(peer.key(), key);
        self.common.waiting -= peer.waiting();
        self.common.held -= peer.held();
        if let Some(at) = peer.scheduled {
            self.deadlines.remove(&(at, slot));
        }
        self.touched.retain(|&touched| touched != slot);
        self.vacant.push(slot);
    }
}

/// The shard that a receiver index belongs to: session in the low byte, then shard, then place.
const fn shard_of(receiver: u32) -> Number {
    let [_, shard, ..] = receiver.to_le_bytes();
    shard
}

fn touch(touched: &mut Vec<Slot>, slot: Slot, peer: &mut Peer) {
    if !peer.touched {
        peer.touched = true;
        touched.push(slot);
    }
}

#[cfg(test)]
mod asleep_tests;
#[cfg(test)]
mod beat_tests;
#[cfg(test)]
mod destinations_tests;
#[cfg(test)]
mod shards_tests;
#[cfg(test)]
mod stamp_tests;
#[cfg(test)]
mod tests;
