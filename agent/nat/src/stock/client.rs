//! One client without an agent.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Counters, Recommendation, Why};
use crate::{Binding, Cause, Churn, ChurnLog, Confidence, Promotion};

/// The shortest silence that is tried.
const FIRST: Duration = Duration::from_secs(8);
/// The longest one that is tried where the client is silent for so long.
const MAX_INTERVAL: Duration = Duration::from_mins(5);
/// Each silence that was survived is followed by one longer by this, until one is not.
const STEP: f64 = 1.4;
/// Close enough: a bracket this narrow is not narrowed further.
const NARROW: f64 = 0.12;
/// A wake is repeated after so long, and again, and then given up: a stock client answers at once.
const COPIES: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(300), Duration::from_millis(1400)];
/// A client that speaks by itself is woken so long before, for all copies to be answered by then.
const AHEAD: Duration = Duration::from_millis(1200);
/// By then all copies would have been answered, over nearly any path.
const ANSWERED: Duration = Duration::from_millis(900);
/// While learning wakes are at least so far apart, and afterwards so far.
const LEARNING: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_hours(6);
/// What so many wakes did not settle, on a path that loses packets, is not settled by waking often.
const TRIES: u32 = 60;
const DOGGED: Duration = Duration::from_mins(1);
/// A client that was silent for so long may be switched off: it is not woken.
const ABSENT: Duration = Duration::from_mins(6);
/// Deaths that could also be a client that slept: so many, before they are believed.
const DOUBTFUL: u32 = 2;
/// Gaps between receives from which the client's own interval is read.
const GAPS: usize = 6;
/// So many of them agree when they show an interval.
const AGREEING: usize = 3;
/// How much two gaps of one interval differ at most: jitter, and the coarseness of counters.
const TOLERANCE: Duration = Duration::from_millis(1500);
/// A mapping that carried packets for less than this may not be promoted yet (2 s in Linux).
const YOUNG: Duration = Duration::from_secs(2);
/// Below what nearly all NATs give a mapping that is not promoted. Recommended at most, unless more was seen.
const UNPROMOTED: Duration = Duration::from_secs(25);
/// Of a silence that was survived so much is recommended.
const MARGIN: f64 = 0.9;

/// Silences survived and not survived.
#[derive(Debug, Clone, Copy, Default)]
struct Bracket {
    at_least: Duration,
    less_than: Option<Duration>,
}

impl Bracket {
    fn survived(&mut self, silence: Duration) {
        self.at_least = self.at_least.max(silence);
        if self.less_than.is_some_and(|end| end <= silence) {
            self.less_than = None;
        }
    }

    fn died(&mut self, silence: Duration) {
        self.less_than = Some(self.less_than.map_or(silence, |end| end.min(silence)));
        if self.at_least >= silence {
            // It lived longer before: the lifetime shrank, and what was known below is to be seen again.
            self.at_least = Duration::ZERO;
        }
    }

    /// A client with this interval sent something during any longer silence: its packet got lost behind the NAT, which
    /// it refreshed.
    fn disbelieve_beyond(&mut self, interval: Duration) {
        if self.at_least > interval {
            self.at_least = Duration::ZERO;
        }
    }

    fn is_narrow(&self) -> bool {
        self.less_than.is_some_and(|end| {
            let width = end.saturating_sub(self.at_least);
            width <= end.mul_f64(NARROW).max(Duration::from_secs(1))
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Wake {
    silence: Duration,
    since: Instant,
    copies: usize,
    next: Instant,
    endpoint: SocketAddr,
    young: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// A wake may be sent from then on.
    Idle { not_before: Instant },
    /// One was sent.
    Waking(Wake),
    /// It was not answered; when the client is heard again it is known whether it was there.
    Unanswered(Wake),
}

/// What the gateway knows of one client.
#[derive(Debug, Clone)]
pub(super) struct Client {
    counters: Counters,
    mapped: Option<Instant>,
    state: State,
    settled: Bracket,
    young: Bracket,
    doubtful: u32,
    gaps: VecDeque<Duration>,
    churn: ChurnLog,
    lost: Option<Churn>,
    answered: u64,
    unanswered: u64,
    /// Wakes since anything was settled.
    tries: u32,
    /// Its packets are not its own: nothing is learnt of them.
    aside: bool,
}

impl Client {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            counters: Counters::default(),
            mapped: None,
            state: State::Idle { not_before: now + LEARNING },
            settled: Bracket::default(),
            young: Bracket::default(),
            doubtful: 0,
            gaps: VecDeque::new(),
            churn: ChurnLog::default(),
            lost: None,
            answered: 0,
            unanswered: 0,
            tries: 0,
            aside: false,
        }
    }

    /// The data plane's counters. Those of one moment belong together.
    pub(super) fn handle_counters(&mut self, now: Instant, counters: Counters) {
        if self.aside {
            return;
        }
        let before = std::mem::replace(&mut self.counters, counters);
        if counters.endpoint != before.endpoint {
            self.mapped = counters.last_receive;
        }
        let (Some(last), Some(received)) = (before.last_receive, counters.last_receive) else { return };
        if received > last {
            if !self.is_answer() {
                self.note_gap(received - last);
            }
            self.heard(now, received, last, before.endpoint);
        }
    }

    /// The client's address changed after a silence, without an answer to us in between.
    pub(super) fn handle_moved(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, idle: Duration) {
        if self.aside {
            return;
        }
        let stayed = from.ip().to_canonical() == to.ip().to_canonical();
        let cause = if stayed { Cause::MappingChanged } else { Cause::Roam };
        self.churn.push(Churn { at: now, cause, from: Some(from), to: Some(to), idle });
        if !stayed {
            self.forget(now);
        } else if idle > Duration::ZERO && idle <= MAX_INTERVAL && self.is_regular() {
            // It was there all the time, and nothing but the NAT ended its mapping.
            self.settled.died(idle);
        }
    }

    /// Nothing is learnt any more, or again: what is known stays, and what was counted before tells nothing then.
    pub(super) fn set_aside(&mut self, now: Instant, aside: bool) {
        self.aside = aside;
        (self.counters, self.mapped, self.lost) = (Counters::default(), None, None);
        self.state = State::Idle { not_before: now + LEARNING };
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waking(wake) => Some(wake.next),
            State::Unanswered(_) => None,
            State::Idle { not_before } => {
                self.counters.endpoint?;
                let last = self.last_packet()?;
                let at = last + self.target()?;
                (at <= self.counters.last_receive? + ABSENT).then_some(at.max(not_before))
            }
        }
    }

    /// Time passed, with fresh counters handed in. Returns whether the client shall be sent a handshake initiation
    /// now.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Idle { .. } => {
                let due = self.poll_timeout().is_some_and(|at| now >= at);
                due && self.begin_wake(now)
            }
            State::Waking(wake) if now >= wake.next => {
                if let Some(delay) = COPIES.get(wake.copies) {
                    wake.copies += 1;
                    wake.next = now + *delay;
                    return true;
                }
                self.unanswered += 1;
                self.state = State::Unanswered(*wake);
                false
            }
            State::Waking(_) | State::Unanswered(_) => false,
        }
    }

    /// What is known of its mappings' lifetime, seen from here.
    pub(super) fn binding(&self) -> Binding {
        let confidence = match (self.settled.at_least.is_zero(), self.settled.less_than) {
            (true, None) => Confidence::Unknown,
            (false, None) => Confidence::Growing,
            (_, Some(_)) => Confidence::Bracketed,
        };
        Binding {
            at_least: self.settled.at_least,
            less_than: self.settled.less_than,
            promotion: Promotion::Unknown,
            confidence,
        }
    }

    pub(super) fn churn(&self) -> &ChurnLog {
        &self.churn
    }

    /// A mapping that was lost and came back as the same ip:port, which nobody else sees.
    pub(super) fn take_lost(&mut self) -> Option<Churn> {
        self.lost.take()
    }

    /// Wakes answered and not answered.
    pub(super) fn wakes(&self) -> (u64, u64) {
        (self.answered, self.unanswered)
    }

    /// The interval at which the client sends by itself, where it is regular.
    pub(super) fn interval(&self) -> Option<Duration> {
        let mut gaps: Vec<_> = self.gaps.iter().copied().collect();
        gaps.sort_unstable();
        let agreeing = |gap: Duration| gaps.iter().filter(|other| other.abs_diff(gap) <= TOLERANCE).count();
        let typical = gaps.iter().copied().max_by_key(|&gap| (agreeing(gap), gap))?;
        (agreeing(typical) >= AGREEING && agreeing(typical) * 2 > gaps.len()).then_some(typical)
    }

    /// What it should be configured with. `None`: nothing is known, or what is known is not settled.
    pub(super) fn recommendation(&self) -> Option<Recommendation> {
        let Bracket { at_least, less_than } = self.settled;
        let interval = self.interval();
        let cap = UNPROMOTED.max(self.young.at_least.mul_f64(MARGIN));
        let cap = self.young.less_than.map_or(cap, |end| cap.min(end.mul_f64(MARGIN)));
        match (less_than, interval) {
            (Some(end), _) if at_least.is_zero() => {
                // Half of what was fatal, until something was survived.
                Some(Recommendation::new(end / 2, cap, Why::Died { at: end }))
            }
            (Some(end), _) if self.settled.is_narrow() => {
                Some(Recommendation::new(at_least.mul_f64(MARGIN), cap, Why::Died { at: end }))
            }
            (None, Some(interval)) if self.is_survived(interval) => {
                Some(Recommendation::new(interval, interval, Why::Holds { interval }))
            }
            (None, None) if at_least >= UNPROMOTED.mul_f64(1.0 / MARGIN) => {
                Some(Recommendation::new(at_least.mul_f64(MARGIN), cap, Why::Survived { silence: at_least }))
            }
            _ => None,
        }
    }

    /// Whether what was heard last is the answer to a wake.
    fn is_answer(&self) -> bool {
        let (State::Waking(wake) | State::Unanswered(wake)) = self.state else { return false };
        self.counters.last_handshake.is_some_and(|at| at >= wake.since)
    }

    /// The longest silence that can be tried.
    fn limit(&self) -> Duration {
        self.interval().map_or(MAX_INTERVAL, |interval| interval.saturating_sub(AHEAD))
    }

    fn is_regular(&self) -> bool {
        self.interval().is_some()
    }

    /// Whether silences as long as the client's own were survived, but for the second in which it is woken.
    fn is_survived(&self, interval: Duration) -> bool {
        self.settled.at_least + Duration::from_secs(2) >= interval
    }

    fn last_packet(&self) -> Option<Instant> {
        self.counters.last_receive.max(self.counters.last_send)
    }

    /// The silence to try next.
    fn target(&self) -> Option<Duration> {
        let Bracket { at_least, less_than } = self.settled;
        let limit = self.limit();
        if limit < FIRST {
            return None;
        }
        let next = match less_than {
            None => at_least.mul_f64(STEP).max(FIRST),
            Some(_) if self.settled.is_narrow() => at_least.max(FIRST),
            Some(end) => (at_least + end) / 2,
        };
        Some(next.min(limit))
    }

    /// Whether nothing more can be learnt than that it still holds.
    fn is_settled(&self) -> bool {
        self.settled.is_narrow() || self.settled.at_least + Duration::from_secs(1) >= self.limit()
    }

    fn begin_wake(&mut self, now: Instant) -> bool {
        let (Some(last), Some(endpoint)) = (self.last_packet(), self.counters.endpoint) else { return false };
        let [delay, ..] = COPIES;
        let young = self.mapped.is_some_and(|mapped| last.saturating_duration_since(mapped) < YOUNG);
        let silence = now.saturating_duration_since(last);
        self.tries = self.tries.saturating_add(1);
        self.state =
            State::Waking(Wake { silence, since: now, copies: 1, next: now + delay, endpoint, young });
        true
    }

    /// Something authenticated came.
    fn heard(&mut self, now: Instant, received: Instant, before: Instant, was_at: Option<SocketAddr>) {
        let moved = self.counters.endpoint != was_at;
        match self.state {
            State::Idle { .. } => {}
            State::Waking(wake) => {
                let waited = received.saturating_duration_since(wake.since);
                if moved {
                    self.died(now, wake, true, moved);
                } else if self.is_answer() {
                    self.survived(wake);
                } else if wake.copies == COPIES.len() && waited >= ANSWERED {
                    // By itself, while it should have answered long ago.
                    self.died(now, wake, false, moved);
                }
                // A later answer would come through the mapping that the client just made or refreshed.
                self.rest(now);
            }
            // Either side may have begun this handshake, through the old mapping or through a new one.
            State::Unanswered(_) if self.is_answer() && !moved => self.rest(now),
            State::Unanswered(wake) => {
                // On time by its own clock: then it was there, and our packets did not reach it.
                let on_time =
                    self.interval().is_some_and(|interval| received - before <= interval + TOLERANCE);
                self.died(now, wake, on_time || moved, moved);
                self.rest(now);
            }
        }
    }

    fn survived(&mut self, wake: Wake) {
        self.answered += 1;
        self.doubtful = 0;
        self.settled.survived(wake.silence);
        if wake.young {
            self.young.survived(wake.silence);
        }
    }

    fn died(&mut self, now: Instant, wake: Wake, certain: bool, moved: bool) {
        self.doubtful += 1;
        if !certain && self.doubtful < DOUBTFUL {
            return;
        }
        self.doubtful = 0;
        // A young mapping may have the shorter of two lifetimes: nothing is known of the longer one.
        if wake.young {
            self.young.died(wake.silence);
        } else {
            self.settled.died(wake.silence);
        }
        if !moved {
            let at = Some(wake.endpoint);
            self.churn.push(Churn {
                at: now,
                cause: Cause::MappingLost,
                from: at,
                to: at,
                idle: wake.silence,
            });
        }
    }

    fn rest(&mut self, now: Instant) {
        if self.is_settled() {
            self.tries = 0;
        }
        let pause = match self.tries {
            0 => SETTLED,
            1..TRIES => LEARNING,
            _ => DOGGED,
        };
        self.state = State::Idle { not_before: now + pause };
    }

    /// Another network: nothing that was learnt holds there.
    fn forget(&mut self, now: Instant) {
        let churn = std::mem::take(&mut self.churn);
        let (counters, mapped) = (self.counters, self.mapped);
        let (answered, unanswered) = self.wakes();
        *self = Self { counters, mapped, churn, answered, unanswered, ..Self::new(now) };
    }

    fn note_gap(&mut self, gap: Duration) {
        // Packets of one exchange are no interval.
        if gap < Duration::from_secs(1) {
            return;
        }
        if self.gaps.len() == GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap);
        if let Some(interval) = self.interval() {
            self.settled.disbelieve_beyond(interval);
            self.young.disbelieve_beyond(interval);
        }
    }
}
