//! The run of one client.

mod session;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use pinhole_nat::{Beat, Channel, Reply, Wake, standby::Line};

pub(super) use self::session::Occurrence;
use self::session::Sessions;
use super::{
    Change, MOMENT, Scenario,
    mapping::Maker,
    nat::Table,
    pager::Pager,
    queue::{Downward, Event, Queue},
    quota::Room,
    weather::Weather,
};
use crate::{
    algorithm::{Action, Algorithm},
    metrics::{Awake, Bursts, Convergence, Fault, FaultKind, Intervals, LTE, Reach, Reached, Spent, WIFI},
    model::{PortAllocation, Time},
    rng::Rng,
};

/// Where clients appear to be.
const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// Sizes with IPv4 and UDP headers, in bytes.
const BEAT: u64 = 110;
const KEEPALIVE: u64 = 60;
const INITIATION: u64 = 176;
const RESPONSE: u64 = 120;

/// An algorithm that asks for the same moment so often is stuck.
const STUCK: u32 = 10_000;

/// How it went for one client.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Wake tests.
    pub reached: Reached,
    /// Wake-ups.
    pub wakes: u64,
    /// Wake-ups if only what the client sends counted.
    pub wakes_sent: u64,
    /// Packets that the client sent or received.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What they cost an LTE radio.
    pub lte: Spent,
    /// What they cost a Wi-Fi radio.
    pub wifi: Spent,
    /// When the interval converged.
    pub convergence: Option<Convergence>,
    /// Wake-ups after that, but for those that were probes alone.
    pub wakes_converged: u64,
    /// The first verdict.
    pub verdict: Option<Time>,
    /// All faults that the client lived to see the end of.
    pub faults: Vec<Fault>,
}

/// Is told what happens, in words.
pub type Trace<'a> = &'a mut dyn FnMut(Time, fmt::Arguments<'_>);

struct Run<'s, 't, A> {
    scenario: &'s Scenario,
    trace: Option<Trace<'t>>,
    algorithm: A,
    epoch: Instant,
    nat: Table,
    maker: Maker,
    room: Option<Room>,
    /// Where the gateway sends the tunnel's packets.
    endpoint: u16,
    queue: Queue,
    losses: Rng,
    weather: Option<Weather>,
    pager: Option<Pager>,
    sessions: Option<Sessions>,
    bursts: Bursts,
    bursts_sent: Bursts,
    packets: u64,
    bytes: u64,
    lte: Awake,
    wifi: Awake,
    reach: Reach,
    /// When the path was last looked at.
    watched: Time,
    intervals: Intervals,
    interval: Duration,
    verdict: Option<Time>,
    /// Faults before the client's next live packet.
    open_faults: Vec<(FaultKind, Time, Duration)>,
    /// Flushes that the path has not recovered from, as places in `faults`.
    faults: Vec<Fault>,
    unrecovered: Vec<(usize, Time)>,
}

/// Runs one client until the end. `build` gets the time of the first packet and that at which its answer is there,
/// from which on the algorithm is in charge.
pub fn run<A: Algorithm>(
    scenario: &Scenario,
    trace: Option<Trace<'_>>,
    build: impl FnOnce(Instant, Instant) -> A,
) -> Observed {
    perform(scenario, trace, build).0
}

/// The same, with what became of the algorithm.
pub(crate) fn perform<A: Algorithm>(
    scenario: &Scenario,
    trace: Option<Trace<'_>>,
    build: impl FnOnce(Instant, Instant) -> A,
) -> (Observed, A) {
    // Which instant it is does not matter: only differences are ever looked at.
    let epoch = Instant::now();
    let start = Time::ZERO + scenario.rtt;
    let mut run = Run {
        trace,
        scenario,
        algorithm: build(epoch, epoch + scenario.rtt),
        epoch,
        nat: Table::new(
            scenario.timers,
            scenario.port,
            Rng::stream(scenario.seed, 1),
            scenario.quota.is_some(),
        ),
        maker: Maker::new(scenario.scatter, scenario.pressure, Rng::stream(scenario.seed, 7)),
        room: scenario.quota.map(|quota| Room::new(quota, Rng::stream(scenario.seed, 8))),
        endpoint: 0,
        queue: Queue::default(),
        losses: Rng::stream(scenario.seed, 2),
        weather: scenario.bursts.map(|bursts| Weather::new(bursts, Rng::stream(scenario.seed, 4))),
        pager: scenario.paging.map(|paging| Pager::new(paging, Rng::stream(scenario.seed, 5))),
        sessions: scenario.tcp.map(|(timers, _)| Sessions::new(timers, Rng::stream(scenario.seed, 3))),
        bursts: Bursts::new(Time::ZERO),
        bursts_sent: Bursts::new(Time::ZERO),
        packets: 0,
        bytes: 0,
        lte: Awake::new(LTE),
        wifi: Awake::new(WIFI),
        reach: Reach::new(if scenario.ideal { 0.0 } else { scenario.loss }, scenario.bursts),
        watched: Time::ZERO,
        intervals: Intervals::new(scenario.end),
        interval: Duration::ZERO,
        verdict: None,
        open_faults: Vec::new(),
        faults: Vec::new(),
        unrecovered: Vec::new(),
    };
    run.bursts = Bursts::new(run.intervals.until());
    run.begin(start);
    run.go(start);
    run.finish()
}

impl<A: Algorithm> Run<'_, '_, A> {
    /// The session begins with a handshake, at both ends of which nothing is lost.
    fn begin(&mut self, start: Time) {
        self.sent(Time::ZERO, Channel::Live, INITIATION);
        self.endpoint = self.nat.outbound(Time::ZERO, Channel::Live, &mut self.maker);
        if self.nat.inbound(start, Channel::Live, self.endpoint) {
            self.carried(start, Channel::Live, RESPONSE);
        }
        if self.sessions.is_some() {
            self.dial(Time::ZERO, Line::Live);
        }
        if let Some(weather) = &self.weather {
            self.queue.push(weather.until(), Event::Weather);
        }
        for flush in &self.scenario.flushes {
            self.queue.push((*flush).max(start), Event::Flush);
        }
        for change in &self.scenario.changes {
            self.queue.push(change.at.max(start), Event::Lifetimes(*change));
        }
    }

    fn go(&mut self, start: Time) {
        let mut now = start;
        let mut again = 0;
        loop {
            self.drain(now);
            let timer = self.algorithm.poll_timeout().map_or(Time::NEVER, |at| self.virtually(at)).max(now);
            let next = self.queue.next_at().min(timer);
            if next >= self.scenario.end {
                return;
            }
            again = if next == now { again + 1 } else { 0 };
            assert!(again < STUCK, "the algorithm wants to be called at {now:?} for ever");
            now = next;
            if timer <= self.queue.next_at() {
                self.algorithm.handle_timeout(self.really(now));
            } else if let Some((_, event)) = self.queue.pop() {
                self.handle(now, event);
            }
        }
    }

    fn tell(&mut self, now: Time, what: fmt::Arguments<'_>) {
        if let Some(trace) = &mut self.trace {
            trace(now, what);
        }
    }

    fn really(&self, time: Time) -> Instant {
        self.epoch + Duration::from_nanos(time.as_nanos())
    }

    fn virtually(&self, instant: Instant) -> Time {
        Time::from(instant.saturating_duration_since(self.epoch))
    }

    /// Does what the algorithm wants, and looks at what it thinks.
    fn drain(&mut self, now: Time) {
        while let Some(action) = self.algorithm.poll_action() {
            match action {
                Action::Beat(beat) => self.send_beat(now, beat),
                Action::Keepalive => self.send_tunnel(now, false),
                Action::Handshake => self.send_tunnel(now, true),
                Action::Close(channel) => self.nat.close(now, channel),
                Action::Rest { line, seq, wake_after } => self.say(now, line, Some((seq, wake_after))),
                Action::Ask => self.say(now, Line::Live, None),
                Action::Dial(line) => self.dial(now, line),
                Action::HangUp(line) => self.hang_up(now, line),
            }
        }
        if self.verdict.is_none() && self.algorithm.has_verdict() {
            self.verdict = Some(now);
        }
        if now < self.intervals.until() || self.trace.is_some() {
            self.note_interval(now);
        }
    }

    fn note_interval(&mut self, now: Time) {
        let interval = self.algorithm.interval();
        if interval != self.interval {
            self.tell(now, format_args!("= interval {interval:?}"));
        }
        self.interval = interval;
        self.intervals.note(now, interval);
    }

    fn send_beat(&mut self, now: Time, beat: Beat) {
        self.tell(now, format_args!("> beat {} on {:?}, wake {:?}", beat.seq, beat.channel, beat.wake));
        self.sent(now, beat.channel, BEAT);
        if let Some(port) = self.leave(now, beat.channel) {
            self.queue.push(now + self.scenario.rtt / 2, Event::BeatArrives { beat, port });
        }
    }

    fn send_tunnel(&mut self, now: Time, handshake: bool) {
        self.tell(now, format_args!("> {}", if handshake { "handshake" } else { "keepalive" }));
        self.sent(now, Channel::Live, if handshake { INITIATION } else { KEEPALIVE });
        if let Some(port) = self.leave(now, Channel::Live) {
            self.queue.push(now + self.scenario.rtt / 2, Event::TunnelArrives { port, handshake });
        }
    }

    /// A packet of the client passes the NAT, if it gets there. Returns its external port.
    fn leave(&mut self, now: Time, channel: Channel) -> Option<u16> {
        if channel == Channel::Live {
            self.answer_faults(now);
        }
        if self.is_lost(now) {
            self.tell(now, format_args!("  lost before the NAT"));
            return None;
        }
        let concerns_live = channel == Channel::Live || self.room.is_some();
        if concerns_live {
            self.watch(now);
        }
        if !self.nat.has(now, channel) && !self.make_room(now) {
            self.tell(now, format_args!("  the table is full"));
            return None;
        }
        let port = self.nat.outbound(now, channel, &mut self.maker);
        if concerns_live {
            self.watch(now);
        }
        Some(port)
    }

    /// A mapping is to be made: whether the table has room for it.
    fn make_room(&mut self, now: Time) -> bool {
        let Some(room) = &mut self.room else { return true };
        let sessions = self.sessions.iter_mut().flat_map(Sessions::mappings);
        room.make(now, self.nat.mappings().chain(sessions).collect())
    }

    /// Tests count again a round trip after the first live packet that follows a fault.
    fn answer_faults(&mut self, now: Time) {
        if self.open_faults.is_empty() {
            return;
        }
        let known = now + self.scenario.rtt;
        self.reach.include_from(known);
        for (kind, since, allowed) in self.open_faults.drain(..) {
            if kind != FaultKind::Shrink {
                self.unrecovered.push((self.faults.len(), since));
            }
            self.faults.push(Fault { kind, blind: known.since(since), recovery: None, allowed });
        }
    }

    fn is_lost(&mut self, now: Time) -> bool {
        let loss = self.loss(now);
        !self.scenario.ideal && self.losses.chance(loss)
    }

    /// The probability of loss now or a little later.
    fn loss(&self, at: Time) -> f64 {
        let usual = self.scenario.loss;
        self.weather.as_ref().map_or(usual, |weather| weather.loss(at, usual))
    }

    fn turn_weather(&mut self, now: Time) {
        let Some(weather) = &mut self.weather else { return };
        let bad = weather.turn();
        self.queue.push(weather.until(), Event::Weather);
        self.reach.set_bad(now, bad);
        self.tell(now, format_args!("! {}", if bad { "a burst of loss" } else { "the burst is over" }));
    }

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::BeatArrives { beat, port } => self.beat_arrives(now, beat, port),
            Event::TunnelArrives { port, handshake } => self.tunnel_arrives(now, port, handshake),
            Event::WakeDue { channel, seq, port, copy, from } => {
                self.wake_due(now, channel, seq, port, copy, from);
            }
            Event::ToClient { to, packet } => self.reach_client(now, to, packet),
            Event::Paged { to, packet } => self.deliver(now, to, packet),
            Event::Weather => {
                self.watch(now);
                self.turn_weather(now);
            }
            Event::Session(occurrence) => {
                self.watch(now);
                self.occur(now, occurrence);
                self.watch(now);
            }
            Event::Flush => {
                self.watch(now);
                self.fault(now, self.flush_kind());
                self.nat.flush();
                self.flush_sessions(now);
                self.watch(now);
            }
            Event::Lifetimes(change) => {
                self.watch(now);
                self.change_lifetimes(now, change);
                self.watch(now);
                self.algorithm.handle_truth(self.really(now), change.to.replied);
            }
        }
    }

    fn change_lifetimes(&mut self, now: Time, Change { to, fault, .. }: Change) {
        if fault {
            self.fault(now, FaultKind::Shrink);
        } else {
            self.tell(now, format_args!("! lifetimes are {to:?}"));
        }
        if self.scenario.ideal {
            let replied = to.replied + MOMENT;
            return self.nat.set(now, replied, replied);
        }
        self.nat.set(now, to.unreplied, to.replied);
        if let (Some(sessions), Some(lifetime)) = (&mut self.sessions, to.tcp) {
            sessions.set_lifetime(now, lifetime);
        }
    }

    fn flush_kind(&self) -> FaultKind {
        match self.scenario.port {
            PortAllocation::Preserve => FaultKind::InvisibleFlush,
            PortAllocation::Sequential | PortAllocation::Random => FaultKind::VisibleFlush,
        }
    }

    fn fault(&mut self, now: Time, kind: FaultKind) {
        self.tell(now, format_args!("! {kind:?}"));
        self.open_faults.push((kind, now, self.algorithm.interval() + self.scenario.rtt));
        self.reach.exclude_from(now);
    }

    fn beat_arrives(&mut self, now: Time, beat: Beat, port: u16) {
        let Beat { channel, seq, wake } = beat;
        self.nat.note_beat(channel, seq);
        if let Some(after) = wake {
            let from = now + after.min(Beat::LONGEST_WAKE);
            self.queue.push(from, Event::WakeDue { channel, seq, port, copy: 0, from });
        }
        let is_endpoint = channel == Channel::Live && self.endpoint == port;
        self.answer(now, port, Downward::Reply { channel, seq, is_endpoint });
    }

    fn tunnel_arrives(&mut self, now: Time, port: u16, handshake: bool) {
        self.watch(now);
        self.endpoint = port;
        self.watch(now);
        if handshake {
            self.answer(now, port, Downward::Handshake);
        }
    }

    fn wake_due(&mut self, now: Time, channel: Channel, seq: u64, port: u16, copy: u8, from: Time) {
        if !self.nat.is_newest(channel, seq) {
            return;
        }
        if let Some(delay) = Beat::WAKES.get(usize::from(copy) + 1) {
            let event = Event::WakeDue { channel, seq, port, copy: copy + 1, from };
            self.queue.push(from + *delay, event);
        }
        self.answer(now, port, Downward::Wake { channel, seq });
    }

    fn answer(&mut self, now: Time, to: u16, packet: Downward) {
        if self.is_lost(now) {
            return self.tell(now, format_args!("| {packet:?} is lost"));
        }
        self.queue.push(now + self.scenario.rtt / 2, Event::ToClient { to, packet });
    }

    fn reach_client(&mut self, now: Time, to: u16, packet: Downward) {
        let channel = packet.channel();
        if channel == Channel::Live {
            self.watch(now);
        }
        if !self.nat.inbound(now, channel, to) {
            self.tell(now, format_args!("| {packet:?} ends at the NAT"));
            return;
        }
        match self.pager.as_mut().and_then(|pager| pager.delays(now)) {
            Some(later) => self.queue.push(later, Event::Paged { to, packet }),
            None => self.deliver(now, to, packet),
        }
    }

    fn deliver(&mut self, now: Time, to: u16, packet: Downward) {
        let channel = packet.channel();
        let size = match packet {
            Downward::Reply { .. } | Downward::Wake { .. } => BEAT,
            Downward::Handshake => RESPONSE,
        };
        self.tell(now, format_args!("< {packet:?}"));
        self.carried(now, channel, size);
        let at = self.really(now);
        match packet {
            Downward::Reply { channel, seq, is_endpoint } => {
                let observed = SocketAddr::new(PUBLIC, to);
                self.algorithm.handle_reply(at, Reply { channel, seq, observed, is_endpoint });
            }
            Downward::Wake { channel, seq } => self.algorithm.handle_wake(at, Wake { channel, seq }),
            Downward::Handshake => self.algorithm.handle_handshake(at),
        }
    }

    fn sent(&mut self, now: Time, channel: Channel, bytes: u64) {
        self.bursts_sent.note(now, channel == Channel::Live);
        self.carried(now, channel, bytes);
    }

    fn carried(&mut self, now: Time, channel: Channel, bytes: u64) {
        self.bursts.note(now, channel == Channel::Live);
        if let Some(pager) = &mut self.pager {
            pager.note(now);
        }
        self.lte.note(now);
        self.wifi.note(now);
        self.packets += 1;
        self.bytes += bytes;
    }

    /// Follows the path from the gateway to the client, before and after anything that may change it.
    fn watch(&mut self, now: Time) {
        let udp = self.nat.live().filter(|(port, _)| *port == self.endpoint).map(|(_, ends)| ends);
        let ends = self.session_ends().into_iter().chain(udp).max();
        let open = ends.is_some_and(|ends| ends > now);
        if let Some(ends) = ends.filter(|_| !open && self.reach.is_open()) {
            // It closed by itself, but not before it was last seen open.
            let ends = ends.max(self.watched);
            self.tell(ends, format_args!("! the live mapping ended"));
            self.reach.set_open(ends, false);
        }
        self.watched = now;
        if open != self.reach.is_open() {
            self.tell(now, format_args!("! the path is {}", if open { "open" } else { "shut" }));
        }
        self.reach.set_open(now, open);
        if open && !self.unrecovered.is_empty() {
            for (place, since) in self.unrecovered.drain(..) {
                if let Some(fault) = self.faults.get_mut(place) {
                    fault.recovery = Some(now.since(since));
                }
            }
        }
    }

    fn finish(mut self) -> (Observed, A) {
        let end = self.scenario.end;
        self.watch(end);
        let convergence = self.intervals.convergence();
        let observed = Observed {
            reached: self.reach.finish(end),
            wakes: self.bursts.total(),
            wakes_sent: self.bursts_sent.total(),
            packets: self.packets,
            bytes: self.bytes,
            lte: self.lte.spent(),
            wifi: self.wifi.spent(),
            wakes_converged: convergence.map_or(0, |convergence| self.bursts.live_since(convergence.at)),
            convergence,
            verdict: self.verdict,
            faults: self.faults,
        };
        (observed, self.algorithm)
    }
}
