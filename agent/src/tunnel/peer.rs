//! One peer: its `Tunn`, and what surrounds it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519,
};

use super::{
    PresharedKey, PublicKey, SILENCE, SendFailure, TunnelEvent,
    asleep::{self, Asleep},
    clamp::clamp_mss,
    destinations::{Destinations, Limits, Refusal},
    gate::{Allowance, Bucket},
    message::{DATA_OVERHEAD, INITIATION, Message},
    newest::{Newest, Sent},
    output::Output,
    padding::Padding,
    path::{Local, Path},
    probe::{Magic, Pending},
    routing::Slot,
    segments::Segments,
    shards::ShardId,
    sources::{Learnt, Notices, Standing},
    staged_packets::StagedPackets,
    stats::{PeerStats, Published},
    timers::{Due, RETRY_JITTER, Timers},
};
use crate::{
    clock::{Clocks, JUMP},
    health::gateway::Unconfirmed,
};

/// `Tunn` stamps everything with the time of its last poll, so it must have been polled this recently.
const CLOCK: Duration = Duration::from_millis(250);
/// Initiations for sleeping peers in a second, in the whole shard: each costs about as much as a hundred datagrams. Whoever
/// sends to ten thousand sleepers at once wakes them one after the other, and leaves the others their tunnel.
const KNOCKS: Allowance = Allowance { rate: 1000, burst: 500 };
/// Packets that may wait for sessions in the whole shard, about 12 MB.
const WAITING_TOGETHER: usize = 8192;

/// A datagram that the network delivers twice comes again within this.
const TWICE: Duration = Duration::from_secs(1);

/// What the peers of a shard have in common.
pub(super) struct Context {
    pub(super) place: ShardId,
    pub(super) secret: x25519::StaticSecret,
    /// Lets everything through: the gate is in front.
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) mtu: u16,
    pub(super) padding: Padding,
    pub(super) magic: Magic,
    pub(super) notices: Notices,
    pub(super) jitter: Jitter,
    /// Packets that wait for sessions now.
    pub(super) waiting: usize,
    /// Bytes held for sleeping peers now.
    pub(super) held: usize,
    /// What is left for waking them.
    pub(super) knocks: Bucket,
    /// Authentic initiations so far that were not newer than one before.
    pub(super) stale: u64,
}

/// Spreads retries. No secret depends on it.
#[derive(Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    fn next(&mut self) -> Duration {
        // xorshift64 (Marsaglia 2003); its state is never 0.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let most = u64::try_from(RETRY_JITTER.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.0 % most)
    }
}

/// How the endpoint is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// From the configuration, so another configuration may replace it.
    Configured,
    /// From the owner's choice or an authenticated packet, so only these may replace it.
    Settled,
}

#[derive(Debug, Clone, Copy)]
struct Endpoint {
    path: Path,
    origin: Origin,
}

/// Keys derived as responder, of which the initiator has not proved possession.
#[derive(Debug, Clone, Copy)]
struct NewKeys {
    index: u32,
    since: Instant,
}

/// What became of a decrypted packet.
enum Verdict {
    Deliver(usize),
    ProbeAnswer(u64),
    Foreign,
    Refused(Refusal),
}

pub(super) struct Peer {
    key: PublicKey,
    preshared: Option<PresharedKey>,
    slot: Slot,
    /// Made with the first handshake. It costs two multiplications on the curve and several kilobytes, so the
    /// peers of a large set would hold up the packets of all others when the set is taken.
    tunn: Option<Box<Tunn>>,
    /// When it was made: it reads the wall clock then, and counts its handshakes' stamps (TAI64N) on from there by the boot
    /// clock, whatever becomes of the wall clock.
    anchor: Option<Clocks>,
    polled: Option<Instant>,
    has_session: bool,
    new_keys: Option<NewKeys>,
    /// When an initiation was last taken.
    taken: Option<Instant>,
    /// Where one came from that was authentic and not new, until it is called back.
    stale_from: Option<Path>,
    timers: Timers,
    endpoint: Option<Endpoint>,
    /// Whether the owner ever said where it is.
    is_told: bool,
    /// An address of ours that is not to be learnt, though the peer asks there.
    unfit: Option<Local>,
    waiting: StagedPackets,
    asleep: Asleep,
    probes: Pending,
    limits: Limits,
    stats: PeerStats,
    published: Published,
    /// When the shard is to come back.
    pub(super) scheduled: Option<Instant>,
    /// Whether the shard has it on its list of peers to settle after the batch.
    pub(super) touched: bool,
    failing: Option<SendFailure>,
    /// When something authenticated last came from the endpoint.
    seen_there: Option<Instant>,
    /// The newest of its data messages: where they come from is followed.
    newest: Newest,
}

impl Peer {
    pub(super) fn new(
        slot: Slot,
        key: PublicKey,
        preshared: Option<PresharedKey>,
        published: Published,
    ) -> Self {
        Self {
            key,
            preshared,
            slot,
            tunn: None,
            anchor: None,
            polled: None,
            has_session: false,
            new_keys: None,
            taken: None,
            stale_from: None,
            timers: Timers::default(),
            endpoint: None,
            is_told: false,
            unfit: None,
            waiting: StagedPackets::default(),
            asleep: Asleep::default(),
            probes: Pending::default(),
            limits: Limits::default(),
            stats: PeerStats::new(key),
            published,
            scheduled: None,
            touched: false,
            failing: None,
            seen_there: None,
            newest: Newest::default(),
        }
    }

    pub(super) const fn key(&self) -> &PublicKey {
        &self.key
    }

    pub(super) const fn preshared(&self) -> Option<&PresharedKey> {
        self.preshared.as_ref()
    }

    #[cfg(test)]
    pub(super) const fn is_handshaking(&self) -> bool {
        self.timers.handshaking()
    }

    #[cfg(test)]
    pub(super) const fn has_tunn(&self) -> bool {
        self.tunn.is_some()
    }

    /// As if the wall clock had been put forward since the `Tunn` was made.
    #[cfg(test)]
    pub(super) fn put_clock_forward(&mut self, by: Duration) {
        self.anchor = self.anchor.map(|anchor| Clocks { wall: anchor.wall - by, ..anchor });
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) const fn held(&self) -> usize {
        self.asleep.bytes()
    }

    /// Holds packets, and tells the owner of them, once nothing came from the peer for `after`.
    pub(super) fn hold_after(&mut self, after: Option<Duration>) {
        self.asleep.set(after);
    }

    fn is_asleep(&self, now: Instant) -> bool {
        self.asleep.is(now)
    }

    /// Begins anew with other keys; the figures and the endpoint stay.
    pub(super) fn rekey(&mut self, preshared: Option<PresharedKey>) {
        self.preshared = preshared;
        self.begin_anew();
    }

    /// Forgets its sessions and the newest of its initiations: the next one counts, whatever its stamp.
    pub(super) fn begin_anew(&mut self) {
        self.forget_tunn();
        self.has_session = false;
        self.timers = self.timers.anew();
    }

    /// The next one begins to count sessions anew.
    fn forget_tunn(&mut self) {
        self.tunn = None;
        self.polled = None;
        self.new_keys = None;
        self.newest = Newest::default();
    }

    /// Sends one initiation to where its last one came from that was not new. It is not repeated, and the endpoint follows an
    /// answer alone.
    pub(super) fn call_back<O: Output>(&mut self, common: &mut Context, out: &mut O) {
        let Some(path) = self.stale_from.take() else { return };
        let mut room = [0; INITIATION];
        let TunnResult::WriteToNetwork(initiation) =
            self.make_tunn(common).format_handshake_initiation(&mut room, true)
        else {
            return;
        };
        if let Some(room) = out.datagram(path, initiation.len()).get_mut(..initiation.len()) {
            room.copy_from_slice(initiation);
            out.send(initiation.len());
        }
        self.stats.sent_messages.count(initiation.len());
    }

    /// Lets its packets go there alone, from the next one on. `None`: anywhere.
    pub(super) fn limit(&mut self, destinations: Option<Arc<Destinations>>) {
        self.limits.set(destinations);
    }

    /// Takes the configured candidates, unless the endpoint is settled.
    pub(super) fn offer_endpoints(&mut self, candidates: &[SocketAddr]) {
        let keep = self.endpoint.is_some_and(|endpoint| {
            endpoint.origin == Origin::Settled || candidates.contains(&endpoint.path.remote)
        });
        if !keep {
            let configured = |&address| Endpoint { path: Path::from(address), origin: Origin::Configured };
            self.endpoint = candidates.first().map(configured);
        }
        self.is_told |= !candidates.is_empty();
    }

    /// Sends to this endpoint from now on, once there is something to send.
    pub(super) fn set_endpoint(&mut self, address: SocketAddr) {
        self.endpoint = Some(Endpoint { path: address.into(), origin: Origin::Settled });
        self.is_told = true;
        self.unfit = None;
        self.failing = None;
    }

    /// Leaves it to the system from which address its datagrams come, until it is heard again.
    pub(super) fn forget_local(&mut self) {
        self.unfit = None;
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.path.local = None;
        }
    }

    /// Takes note of what the address is worth by which its datagrams go.
    pub(super) fn judge_local(&mut self, of: Path, standing: Standing) {
        if standing == Standing::Fit {
            self.unfit.take_if(|unfit| Some(*unfit) == of.local);
            return;
        }
        // It may have moved meanwhile.
        if let Some(endpoint) = self.endpoint.as_mut().filter(|endpoint| endpoint.path == of) {
            endpoint.path.local = None;
            self.unfit = of.local.filter(|_| standing == Standing::Unfit);
        }
    }

    /// Lets no such time pass without a message; the first goes at once.
    pub(super) fn keep_alive<O: Output>(
        &mut self,
        now: Instant,
        interval: Option<Duration>,
        common: &mut Context,
        out: &mut O,
    ) {
        if self.timers.keep_alive(now, interval) {
            self.keepalive(now, common, out);
        }
    }

    /// The next time at which something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.next().map(|(at, _)| at).into_iter().chain(self.asleep.deadline()).min()
    }

    /// Shows the figures to the owner. `false`: try again later.
    pub(super) fn publish(&mut self) -> bool {
        self.stats.endpoint = self.endpoint();
        self.stats.has_session = self.has_session;
        self.published.publish(&self.stats)
    }

    /// Encrypts inner packets to the peer, or holds them until there is a session.
    pub(super) fn send<O: Output>(
        &mut self,
        now: Instant,
        mut packets: Segments<'_>,
        common: &mut Context,
        out: &mut O,
    ) {
        if self.is_asleep(now) {
            while let Some(packet) = packets.make_next() {
                clamp_mss(packet, common.mtu);
                let held = self.asleep.hold(now, packet, &mut common.held);
                self.stats.dropped += u64::from(!held);
            }
            return self.see_to_held(now, common, out);
        }
        let Some(endpoint) = self.endpoint else {
            self.stats.dropped += 1;
            return;
        };
        self.poll_if_stale(now, common, out);
        if !self.has_session {
            while let Some(packet) = packets.make_next() {
                clamp_mss(packet, common.mtu);
                self.hold(now, packet, common);
            }
            if !self.timers.handshaking() {
                self.initiate(now, common, out);
            }
            return;
        }
        while let Some(packet) = packets.make_next() {
            clamp_mss(packet, common.mtu);
            self.encrypt(now, endpoint.path, packet, common, out);
        }
        if self.timers.renew_on_send(now) {
            self.initiate(now, common, out);
        }
    }

    /// Begins a handshake because the owner wants one.
    pub(super) fn handshake<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.poll_if_stale(now, common, out);
        self.timers.abandon_attempt();
        self.initiate(now, common, out);
    }

    /// Sends to another endpoint from now on, and proves it with a handshake.
    pub(super) fn use_endpoint<O: Output>(
        &mut self,
        now: Instant,
        address: SocketAddr,
        common: &mut Context,
        out: &mut O,
    ) {
        self.set_endpoint(address);
        self.handshake(now, common, out);
    }

    /// Sends an empty data message, or begins a handshake where there is no session.
    pub(super) fn keepalive<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.poll_if_stale(now, common, out);
        if !self.has_session {
            if !self.timers.handshaking() {
                self.initiate(now, common, out);
            }
            return;
        }
        let Some(endpoint) = self.endpoint else { return };
        self.encrypt(now, endpoint.path, &[], common, out);
        if self.timers.renew_on_send(now) {
            self.initiate(now, common, out);
        }
    }

    /// Sends a probe as any packet is sent, and remembers it.
    pub(super) fn probe<O: Output>(
        &mut self,
        now: Instant,
        id: u64,
        request: &mut [u8],
        common: &mut Context,
        out: &mut O,
    ) {
        self.probes.sent(id, now);
        self.send(now, Segments::whole(request), common, out);
    }

    /// Takes a message that may be from the peer. `is_own` tells whether an inner address belongs to it.
    pub(super) fn receive<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        (message, datagram): (Message, &[u8]),
        is_own: impl Fn(IpAddr) -> bool,
        common: &mut Context,
        out: &mut O,
    ) {
        self.poll_if_stale(now, common, out);
        match message {
            Message::Data { receiver, counter } => {
                let sent = Sent { session: receiver, counter };
                if !self.receive_data(now, (from, sent), datagram, is_own, common, out) {
                    self.stats.dropped += 1;
                    return;
                }
                if let Some(keys) = self.new_keys.filter(|keys| keys.index == receiver) {
                    self.new_keys = None;
                    self.session_ready(now, keys.since, false, common, out);
                }
                self.release(now, common, out);
                if self.timers.renew_on_receive(now) {
                    self.initiate(now, common, out);
                }
            }
            Message::Initiation | Message::Response { .. } | Message::CookieReply { .. } => {
                self.receive_handshake(now, from, (message, datagram), common, out);
            }
        }
    }

    /// Takes an initiation that came to the owner by other means. Its answer goes by UDP to where the peer is, so that it
    /// opens a binding. Nothing is proven by it: nobody came here.
    pub(super) fn take_initiation<O: Output>(
        &mut self,
        now: Instant,
        initiation: &[u8],
        common: &mut Context,
        out: &mut O,
    ) {
        let mut room = [0; INITIATION];
        self.poll_if_stale(now, common, out);
        match self.make_tunn(common).decapsulate(None, initiation, &mut room) {
            TunnResult::WriteToNetwork(reply) => self.respond(now, reply, common, out),
            // Its clock went back. Who was called all the same can call.
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) if !self.comes_twice(now) => {
                self.handshake(now, common, out);
            }
            _ => self.stats.dropped += 1,
        }
    }

    /// Does what is due.
    pub(super) fn timeout<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.see_to_held(now, common, out);
        while let Some((_, due)) = self.timers.next().filter(|&(at, _)| at <= now) {
            // `Tunn` may see to it itself; then another thing is due afterwards, at another time.
            self.poll(now, common, out);
            if self.timers.next().is_none_or(|(at, next)| next != due || at > now) {
                continue;
            }
            match due {
                Due::RetryHandshake | Due::Silence => self.initiate(now, common, out),
                Due::Keepalive => self.passive_keepalive(now, common, out),
                Due::PersistentKeepalive => {
                    self.timers.traversed(now);
                    self.keepalive(now, common, out);
                }
                Due::GiveUpHandshake => self.give_up(now, common, out),
                Due::DropKeys => {}
            }
            self.timers.done(due);
        }
    }

    /// Takes note that the kernel refused a datagram.
    pub(super) fn send_failed<O: Output>(&mut self, category: SendFailure, out: &mut O) {
        if self.failing != Some(category) {
            self.failing = Some(category);
            out.event(TunnelEvent::SendFailed { peer: self.key, category });
        }
    }

    /// Where its datagrams go now.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.path().map(|path| path.remote)
    }

    /// The same, and by which address of ours.
    pub(super) fn path(&self) -> Option<Path> {
        self.endpoint.map(|endpoint| endpoint.path)
    }

    /// When something authenticated last came.
    pub(super) const fn last_receive(&self) -> Option<Instant> {
        self.stats.last_receive
    }

    /// Takes note of an authenticated beat: the peer is there, but its endpoint stays.
    pub(super) fn beat_received<O: Output>(&mut self, now: Instant, from: SocketAddr, out: &mut O) {
        self.stats.last_beat = Some(now);
        if self.is_at(from) {
            self.seen_there = Some(now);
            self.asleep.seen(now, false);
        }
        self.heard(now, out);
    }

    /// Whether datagrams to this address are the peer's.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.endpoint() == Some(address)
    }

    fn receive_handshake<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        (message, datagram): (Message, &[u8]),
        common: &mut Context,
        out: &mut O,
    ) {
        // `Tunn` panics where this is shorter than the datagram.
        let mut room = [0; INITIATION];
        // Only an initiation can come to a peer that has had no handshake yet.
        if message == Message::Initiation {
            self.make_tunn(common);
        }
        let Some(tunn) = &mut self.tunn else {
            self.stats.dropped += 1;
            return;
        };
        let reply = match tunn.decapsulate(None, datagram, &mut room) {
            TunnResult::WriteToNetwork(reply) => reply,
            // A cookie: to be used with the next retry. It proves nobody's presence.
            TunnResult::Done => return,
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                self.stats.dropped += 1;
                common.stale += 1;
                if !self.comes_twice(now) {
                    self.stale_from = Some(from);
                    out.event(TunnelEvent::Stale { peer: self.key });
                }
                return;
            }
            _ => {
                self.stats.dropped += 1;
                return;
            }
        };
        self.stats.received_messages.count(datagram.len());
        self.authenticated(now, (from, None), false, &common.notices, out);
        if message == Message::Initiation {
            return self.respond(now, reply, common, out);
        }
        self.transmit(now, reply, common, out);
        self.session_ready(now, now, true, common, out);
    }

    /// Whether an initiation may be the one that was taken, delivered twice.
    fn comes_twice(&self, now: Instant) -> bool {
        self.taken.is_some_and(|taken| now.saturating_duration_since(taken) < TWICE)
    }

    /// Sends the response that an authentic initiation calls for.
    fn respond<O: Output>(&mut self, now: Instant, response: &[u8], common: &mut Context, out: &mut O) {
        self.taken = Some(now);
        self.new_keys = Message::sender(response).map(|index| NewKeys { index, since: now });
        self.stats.unconfirmed = Some(Unconfirmed::and_another(self.stats.unconfirmed, now));
        self.timers.keys_derived(now);
        self.transmit(now, response, common, out);
    }

    /// Decrypts. `false` where the message is not authentic, or its packet not the peer's to send.
    fn receive_data<O: Output>(
        &mut self,
        now: Instant,
        (from, sent): (Path, Sent),
        datagram: &[u8],
        is_own: impl Fn(IpAddr) -> bool,
        common: &Context,
        out: &mut O,
    ) -> bool {
        let Some(tunn) = &mut self.tunn else { return false };
        let (packet, source): (&mut [u8], IpAddr) =
            match tunn.decapsulate(None, datagram, out.packet(datagram.len())) {
                TunnResult::WriteToTunnelV4(packet, source) => (packet, source.into()),
                TunnResult::WriteToTunnelV6(packet, source) => (packet, source.into()),
                TunnResult::Done => {
                    self.stats.received_messages.count(datagram.len());
                    self.stats.last_data = Some(now);
                    self.authenticated(now, (from, Some(sent)), false, &common.notices, out);
                    return true;
                }
                TunnResult::Err(_) | TunnResult::WriteToNetwork(_) => return false,
            };
        let verdict = judge(packet, source, is_own, &mut self.limits, common);
        self.stats.received_messages.count(datagram.len());
        self.stats.last_data = Some(now);
        self.authenticated(now, (from, Some(sent)), true, &common.notices, out);
        match verdict {
            Verdict::Deliver(length) => {
                self.stats.received.count(length);
                out.deliver(length);
                true
            }
            Verdict::ProbeAnswer(id) => {
                if let Some(rtt) = self.probes.answered(id, now) {
                    out.event(TunnelEvent::ProbeAnswered { peer: self.key, id, rtt });
                }
                true
            }
            Verdict::Foreign => false,
            Verdict::Refused(why) => {
                self.stats.refused.add(why, 1);
                true
            }
        }
    }

    /// Follows the peer to where an authenticated packet came from, unless it is late. `sent` is `None` for a handshake
    /// message, whose stamp or number was checked already.
    fn authenticated<O: Output>(
        &mut self,
        now: Instant,
        (from, sent): (Path, Option<Sent>),
        data: bool,
        notices: &Notices,
        out: &mut O,
    ) {
        self.timers.received(now, data);
        self.heard(now, out);
        self.stats.last_answered_send = self.stats.last_send;
        self.failing = None;
        let is_newest = sent.is_none_or(|sent| self.newest.take(sent));
        if !is_newest && self.endpoint.is_some_and(|endpoint| endpoint.path.remote != from.remote) {
            return;
        }
        let idle = self.seen_there.replace(now).map(|seen| now.saturating_duration_since(seen));
        let before = self.endpoint();
        self.asleep.seen(now, before != Some(from.remote));
        self.follow(from, notices);
        if before != Some(from.remote) {
            self.stats.endpoint_changes += u64::from(before.is_some());
            let (to, session) = (from.remote, sent.map(|sent| sent.session));
            out.event(TunnelEvent::EndpointChanged { peer: self.key, from: before, to, idle, session });
        }
    }

    /// Sends to there from now on, by the address at which it came in.
    fn follow(&mut self, from: Path, notices: &Notices) {
        let local = from.local.filter(|local| self.unfit != Some(*local));
        let path = Path { local, ..from };
        if self.path() != Some(path)
            && let Path { remote, local: Some(local) } = path
        {
            notices.put(self.key, Some(Learnt { remote, local, is_told: self.is_told }));
        }
        self.endpoint = Some(Endpoint { path, origin: Origin::Settled });
    }

    /// Takes note of an authenticated packet of any kind.
    fn heard<O: Output>(&mut self, now: Instant, out: &mut O) {
        let silence = self.stats.last_receive.map(|last| now.saturating_duration_since(last));
        self.stats.last_receive = Some(now);
        if silence.is_none_or(|silence| silence >= SILENCE) {
            out.event(TunnelEvent::FirstReceive { peer: self.key, silence });
        }
    }

    fn session_ready<O: Output>(
        &mut self,
        now: Instant,
        since: Instant,
        initiator: bool,
        common: &mut Context,
        out: &mut O,
    ) {
        self.has_session = true;
        self.stats.last_handshake = Some(now);
        self.stats.unconfirmed = None;
        self.timers.session_ready(now, since, initiator);
        out.event(TunnelEvent::HandshakeCompleted { peer: self.key, initiated: initiator });
        let Some(endpoint) = self.endpoint else { return };
        self.drain_tunn(now, endpoint.path, common, out);
        let held = self.waiting.len();
        let (packets, stale) = self.waiting.take(now);
        common.waiting -= held;
        self.stats.dropped += stale;
        for packet in packets {
            self.encrypt(now, endpoint.path, &packet, common, out);
        }
        self.release(now, common, out);
    }

    /// Wakes the peer for what is held, or lets that go.
    fn see_to_held<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.release(now, common, out);
        while let Some(due) = self.asleep.take_due(now, &mut common.held) {
            match due {
                asleep::Due::Knock if self.is_asleep(now) => self.knock(now, common, out),
                asleep::Due::Knock => self.initiate(now, common, out),
                asleep::Due::GivenUp(dropped) => {
                    self.stats.dropped += dropped;
                    if self.is_asleep(now) {
                        out.event(TunnelEvent::NotWoken { peer: self.key });
                    }
                }
            }
        }
    }

    /// Hands the owner an initiation that no datagram would bring to the peer.
    fn knock<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        if !common.knocks.take(now, KNOCKS) {
            return;
        }
        self.poll_if_stale(now, common, out);
        let mut room = [0; INITIATION];
        if let TunnResult::WriteToNetwork(initiation) =
            self.make_tunn(common).format_handshake_initiation(&mut room, true)
        {
            out.event(TunnelEvent::Held { peer: self.key, initiation: (&*initiation).into() });
        }
    }

    /// Sends what was held, once the peer is seen and there is a session.
    fn release<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        if !self.asleep.holds() || !self.has_session || self.is_asleep(now) {
            return;
        }
        let Some(endpoint) = self.endpoint else { return };
        while let Some(packet) = self.asleep.pop(&mut common.held) {
            self.encrypt(now, endpoint.path, &packet, common, out);
        }
    }

    /// Sends what `Tunn` itself held back.
    fn drain_tunn<O: Output>(&mut self, now: Instant, to: Path, common: &Context, out: &mut O) {
        loop {
            let Some(tunn) = &mut self.tunn else { return };
            let room = out.datagram(to, usize::from(common.mtu) + INITIATION);
            let TunnResult::WriteToNetwork(message) = tunn.decapsulate(None, &[], room) else { return };
            let length = message.len();
            self.stats.sent_messages.count(length);
            self.sent(now, true);
            out.send(length);
        }
    }

    fn hold(&mut self, now: Instant, packet: &[u8], common: &mut Context) {
        if common.waiting >= WAITING_TOGETHER {
            self.stats.dropped += 1;
            return;
        }
        let dropped = self.waiting.hold(now, packet);
        self.stats.dropped += dropped;
        if dropped == 0 {
            common.waiting += 1;
        }
    }

    fn encrypt<O: Output>(
        &mut self,
        now: Instant,
        to: Path,
        packet: &[u8],
        common: &mut Context,
        out: &mut O,
    ) {
        let padded = common.padding.pad(packet);
        let room = out.datagram(to, (padded.len() + DATA_OVERHEAD).max(INITIATION));
        let made = self.tunn.as_mut().map(|tunn| tunn.encapsulate(padded, room));
        let Some(TunnResult::WriteToNetwork(message)) = made else {
            self.stats.dropped += 1;
            return;
        };
        let length = message.len();
        out.send(length);
        self.stats.sent_messages.count(length);
        if !packet.is_empty() {
            self.stats.sent.count(packet.len());
        }
        self.sent(now, !packet.is_empty());
    }

    fn sent(&mut self, now: Instant, data: bool) {
        self.timers.sent(now, data);
        self.stats.last_send = Some(now);
        if data {
            self.stats.last_data_send = Some(now);
        }
    }

    fn initiate<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.follow_clock();
        let mut room = [0; INITIATION];
        if self.endpoint.is_some()
            && !self.is_asleep(now)
            && let TunnResult::WriteToNetwork(message) =
                self.make_tunn(common).format_handshake_initiation(&mut room, true)
        {
            self.transmit(now, message, common, out);
            return;
        }
        // Nowhere to send it: an attempt would only wait for an answer that cannot come.
        self.timers.abandon_attempt();
    }

    fn passive_keepalive<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        let Some(endpoint) = self.endpoint else { return };
        if self.has_session {
            self.encrypt(now, endpoint.path, &[], common, out);
        }
    }

    fn give_up<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        common.waiting -= self.waiting.len();
        let (fresh, stale) = self.waiting.take(now);
        self.stats.dropped += stale + fresh.len() as u64;
        out.event(TunnelEvent::HandshakeTimedOut { peer: self.key });
    }

    /// A wall clock that was behind and is right now: the peer may know stamps of before it was behind, and refuse each that is
    /// older. `Tunn` takes no other clock, but a new one reads the clock again. Not where the clock was put back, so that stamps
    /// never go back; and not while there is a session, which would be lost and shows that the stamps do.
    fn follow_clock(&mut self) {
        let gained = self.anchor.map(|anchor| Clocks::now().gained_since(&anchor));
        if self.tunn.is_some() && !self.has_session && gained.is_some_and(|gained| gained >= JUMP) {
            self.forget_tunn();
        }
    }

    fn make_tunn(&mut self, common: &Context) -> &mut Tunn {
        self.tunn.get_or_insert_with(|| {
            self.anchor = Some(Clocks::now());
            // The low byte of the 24-bit index is the shard's number, at a fixed place in every message to us,
            // so that datagrams can be steered by peer.
            let index = u32::from(self.slot) << 8 | u32::from(common.place.number());
            let preshared = self.preshared.as_ref().map(PresharedKey::to_bytes);
            let (secret, limiter) = (common.secret.clone(), Arc::clone(&common.limiter));
            Box::new(Tunn::new(secret, self.key.to_x25519(), preshared, None, index, Some(limiter)))
        })
    }

    fn poll_if_stale<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        if self.polled.is_none_or(|polled| now.saturating_duration_since(polled) >= CLOCK) {
            self.poll(now, common, out);
        }
    }

    /// Lets `Tunn` see the time: it stamps, expires sessions, and may want to send.
    fn poll<O: Output>(&mut self, now: Instant, common: &mut Context, out: &mut O) {
        self.polled = Some(now);
        let Some(tunn) = &mut self.tunn else { return };
        let mut room = [0; INITIATION];
        let result = tunn.update_timers(&mut room);
        let has_session = tunn.time_since_last_handshake().is_some();
        if let TunnResult::WriteToNetwork(message) = result
            && !self.is_asleep(now)
        {
            self.transmit(now, message, common, out);
        }
        if self.has_session && !has_session {
            self.timers.session_gone();
        }
        self.has_session = has_session;
    }

    /// Sends what `Tunn` made by itself: an initiation, a response or a keepalive.
    fn transmit<O: Output>(&mut self, now: Instant, message: &[u8], common: &mut Context, out: &mut O) {
        let Some(endpoint) = self.endpoint else { return };
        if let Some(room) = out.datagram(endpoint.path, message.len()).get_mut(..message.len()) {
            room.copy_from_slice(message);
            out.send(message.len());
        }
        self.stats.sent_messages.count(message.len());
        match Message::parse(message) {
            Some(Message::Initiation) => {
                self.timers.initiation_sent(now, common.jitter.next(), self.waiting.len() > 0);
                self.stats.last_send = Some(now);
            }
            _ => self.sent(now, false),
        }
    }
}

fn judge(
    packet: &mut [u8],
    source: IpAddr,
    is_own: impl Fn(IpAddr) -> bool,
    limits: &mut Limits,
    common: &Context,
) -> Verdict {
    // Replicas of a gateway share an inner address, which routes lead to one of them only: the magic proves the
    // answer, not its source.
    if let Some(id) = common.magic.answer(packet) {
        return Verdict::ProbeAnswer(id);
    }
    if !is_own(source) {
        return Verdict::Foreign;
    }
    if let Some(why) = limits.refuse(packet) {
        return Verdict::Refused(why);
    }
    clamp_mss(packet, common.mtu);
    Verdict::Deliver(packet.len())
}
