//! A client, the NAT's TCP mappings and a gateway, in virtual time. UDP keepalive is taken to be perfect while it is on.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::super::*;
use crate::health::Jitter;

pub(super) const RTT: Duration = Duration::from_millis(60);
/// When a segment is sent again.
const RTO: [u64; 4] = [0, 200, 600, 1400];
const USER_TIMEOUT: Duration = Duration::from_secs(3);
const RADIO: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    Silent,
    Reset,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Nat {
    pub(super) lifetime: Duration,
    pub(super) close: Close,
    pub(super) udp: Duration,
    pub(super) loss: f64,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    number: u64,
    refreshed: Instant,
    gone: bool,
    /// The gateway's end is open.
    served: bool,
    /// The rest in force at the gateway.
    rest: Option<(u64, Duration)>,
    heard: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Occurrence {
    Attached(Line),
    Ended(Line, u64, Ended),
    /// A rest, or something else, arrives at the gateway.
    Arrives(Line, u64, Option<(u64, Duration)>),
    Due(Line, u64, u64),
    Woken(Line, u64, u64),
    Answer(u64),
    Burst(u64),
    Flush,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) nat: Nat,
    pub(super) standby: Standby,
    pub(super) events: Vec<(Instant, Event)>,
    pub(super) wakeups: u64,
    reachable: Duration,
    /// UDP is kept since; and which time that is.
    udp: Option<Instant>,
    udp_epoch: u64,
    /// Can anything be dialled?
    pub(super) open: bool,
    connections: HashMap<Line, Connection>,
    queue: BTreeMap<(Instant, u64), Occurrence>,
    order: u64,
    burst: Option<Instant>,
    jitter: Jitter,
    spins: u32,
}

impl World {
    pub(super) fn new(nat: Nat, policy: Policy) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            nat,
            standby: Standby::new(now, policy, None, 5),
            events: Vec::new(),
            wakeups: 0,
            reachable: Duration::ZERO,
            udp: Some(now),
            udp_epoch: 0,
            open: true,
            connections: HashMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            burst: None,
            jitter: Jitter::new(11),
            spins: 0,
        };
        world
            .standby
            .handle_udp(now, UdpCost { interval: Duration::from_secs(25).min(nat.udp), learnt: false });
        world.after(Duration::ZERO, Occurrence::Burst(0));
        world.dial(Line::Live);
        world
    }

    fn after(&mut self, delay: Duration, what: Occurrence) {
        self.order += 1;
        self.queue.insert((self.now + delay, self.order), what);
    }

    pub(super) fn flush_in(&mut self, delay: Duration) {
        self.after(delay, Occurrence::Flush);
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.act();
            let queued = self.queue.first_key_value().map(|(&(at, _), _)| at);
            let timer = self.standby.poll_timeout();
            let next = queued.into_iter().chain(timer).min().unwrap_or(end).max(self.now);
            if next >= end {
                return self.advance(end);
            }
            self.spins = if next > self.now { 0 } else { self.spins + 1 };
            assert!(self.spins < 200, "{:?}", self.standby);
            self.advance(next);
            if queued.is_some_and(|at| at <= self.now) {
                let (_, what) = self.queue.pop_first().unwrap();
                self.happen(what);
            } else {
                self.standby.handle_timeout(self.now);
            }
        }
    }

    fn advance(&mut self, to: Instant) {
        let by_udp = self.udp.map(|since| since + RTT);
        let whole = to - self.now;
        let udp = by_udp.map_or(Duration::ZERO, |from| to.saturating_duration_since(from.max(self.now)));
        let session = self.connections.get(&Line::Live).filter(|live| live.served && !live.gone);
        let session = session.map_or(Duration::ZERO, |live| {
            (live.refreshed + self.nat.lifetime).min(to).saturating_duration_since(self.now)
        });
        self.reachable += (udp + session).min(whole);
        self.now = to;
    }

    pub(super) fn success(&self) -> f64 {
        self.reachable.div_duration_f64(self.now - self.start)
    }

    pub(super) fn per_day(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let wakeups = self.wakeups as f64;
        wakeups / (self.now - self.start).div_duration_f64(Duration::from_hours(24))
    }

    fn packet(&mut self) {
        self.packet_at(self.now);
    }

    fn packet_at(&mut self, at: Instant) {
        if self.burst.is_none_or(|began| at > began + RADIO) {
            self.burst = Some(at);
            self.wakeups += 1;
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.standby.poll_action() {
            match action {
                Action::Rest { line, seq, wake_after } => self.send(line, Some((seq, wake_after))),
                Action::Ask => self.send(Line::Live, None),
                Action::Open { canary } => self.dial(Line::Canary(canary)),
                Action::Close { canary } => {
                    self.packet();
                    self.connections.remove(&Line::Canary(canary));
                }
                Action::LetUdpGo => {
                    self.udp = None;
                    self.udp_epoch += 1;
                }
                Action::KeepUdp => {
                    self.udp = Some(self.now);
                    self.udp_epoch += 1;
                    self.after(Duration::ZERO, Occurrence::Burst(self.udp_epoch));
                }
                Action::Event(event) => self.events.push((self.now, event)),
            }
        }
    }

    /// How long until a segment gets through; `None`: not before the other end gives up.
    fn delivery(&mut self) -> Option<Duration> {
        let loss = self.nat.loss;
        RTO.into_iter().map(Duration::from_millis).find(|_| {
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let drawn = self.jitter.next_u64() as f64 / u64::MAX as f64;
            drawn >= loss
        })
    }

    fn dial(&mut self, line: Line) {
        self.packet();
        let delay = self.delivery().filter(|_| self.open);
        self.after(
            delay.map_or(Duration::from_secs(15), |delay| delay + RTT * 3),
            Occurrence::Attached(line),
        );
    }

    fn is_alive(&self, connection: &Connection, at: Instant) -> bool {
        !connection.gone && at < connection.refreshed + self.nat.lifetime
    }

    fn send(&mut self, line: Line, rest: Option<(u64, Duration)>) {
        self.packet();
        let Some(connection) = self.connections.get(&line).copied() else { return };
        let number = connection.number;
        let delay = self.delivery();
        let passes = delay.filter(|delay| self.is_alive(&connection, self.now + *delay));
        match (passes, self.nat.close) {
            (Some(delay), _) if connection.served => {
                self.connections.get_mut(&line).unwrap().refreshed = self.now + delay;
                self.after(delay + RTT / 2, Occurrence::Arrives(line, number, rest));
            }
            (Some(_), _) | (None, Close::Reset) if delay.is_some() => {
                self.after(RTT, Occurrence::Ended(line, number, Ended::Reset));
            }
            _ => self.after(USER_TIMEOUT, Occurrence::Ended(line, number, Ended::TimedOut)),
        }
    }

    fn happen(&mut self, what: Occurrence) {
        match what {
            Occurrence::Attached(line) => self.attached(line),
            Occurrence::Ended(line, number, ended) => {
                if self.connections.get(&line).is_none_or(|connection| connection.number != number) {
                    return;
                }
                self.connections.remove(&line);
                self.packet();
                match line {
                    Line::Live => {
                        self.standby.handle_detached(self.now, ended);
                        self.dial(line);
                    }
                    Line::Canary(id) => self.standby.handle_canary_ended(self.now, id, ended),
                }
            }
            Occurrence::Arrives(line, number, rest) => self.arrives(line, number, rest),
            Occurrence::Due(line, number, seq) => self.due(line, number, seq),
            Occurrence::Woken(line, number, seq) => {
                let lives = self.connections.get(&line).is_some_and(|connection| connection.number == number);
                if lives {
                    self.packet();
                    self.standby.handle_wake(self.now, line, seq);
                }
            }
            Occurrence::Answer(number) => {
                if self.connections.get(&Line::Live).is_some_and(|live| live.number == number) {
                    self.packet();
                    self.standby.handle_session_packet(self.now);
                }
            }
            Occurrence::Burst(epoch) => {
                if self.udp.is_some() && epoch == self.udp_epoch {
                    self.packet();
                    self.standby.handle_udp_burst(self.now);
                    let learnt = self.now - self.start > Duration::from_mins(5);
                    let interval =
                        if learnt { self.nat.udp } else { self.nat.udp.min(Duration::from_secs(25)) };
                    self.standby.handle_udp(self.now, UdpCost { interval, learnt });
                    let period = interval + Duration::from_millis(2900);
                    let early = self.jitter.up_to(period.mul_f64(0.01));
                    self.after(period.saturating_sub(early), what);
                }
            }
            Occurrence::Flush => {
                for connection in self.connections.values_mut() {
                    connection.gone = true;
                }
            }
        }
    }

    fn attached(&mut self, line: Line) {
        if !self.open {
            match line {
                Line::Live => self.dial(line),
                Line::Canary(id) => self.standby.handle_canary_ended(self.now, id, Ended::TimedOut),
            }
            return;
        }
        self.packet();
        self.order += 1;
        let (number, now) = (self.order, self.now);
        let fresh = Connection { number, refreshed: now, gone: false, served: true, rest: None, heard: now };
        self.connections.insert(line, fresh);
        match line {
            Line::Live => self.standby.handle_attached(self.now),
            Line::Canary(id) => self.standby.handle_canary_attached(self.now, id),
        }
    }

    fn arrives(&mut self, line: Line, number: u64, rest: Option<(u64, Duration)>) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&line).filter(|own| own.number == number) else {
            return;
        };
        connection.heard = now;
        match rest {
            Some((seq, after)) => {
                connection.rest = Some((seq, after));
                self.after(after, Occurrence::Due(line, number, seq));
            }
            None => self.after(RTT / 2, Occurrence::Answer(number)),
        }
    }

    fn due(&mut self, line: Line, number: u64, seq: u64) {
        let Some(connection) = self.connections.get(&line).copied().filter(|own| own.number == number) else {
            return;
        };
        let Some((_, after)) = connection.rest.filter(|(newest, _)| *newest == seq) else { return };
        let silent = self.now - connection.heard;
        if silent < after {
            return self.after(after.saturating_sub(silent), Occurrence::Due(line, number, seq));
        }
        let delay = self.delivery().map(|delay| delay + RTT / 2);
        let passes = delay.filter(|delay| self.is_alive(&connection, self.now + *delay));
        let (now, own) = (self.now, self.connections.get_mut(&line).unwrap());
        own.rest = None;
        match passes {
            Some(delay) => {
                own.refreshed = now + delay;
                own.heard = now;
                self.after(delay, Occurrence::Woken(line, number, seq));
            }
            None => own.served = false,
        }
    }
}
