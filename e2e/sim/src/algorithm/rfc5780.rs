//! Half of what an RFC 5780 search finds.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pinhole_nat::{Beat, Channel, Wake};

use super::{Action, Algorithm, keepalive::Keepalive};

/// In force until the search ends.
const INITIAL: Duration = Duration::from_secs(15);
/// The first lifetime that is tried.
const FIRST: Duration = Duration::from_mins(1);
/// The longest one.
const LONGEST: Duration = Duration::from_mins(20);
/// How narrow the search ends.
const RESOLUTION: Duration = Duration::from_secs(5);
/// How long after the expected wake it counts as missing.
const PATIENCE: Duration = Duration::from_secs(2);
/// The network may have changed: the search starts anew.
const AGAIN: Duration = Duration::from_hours(24);

/// The binding lifetime test of RFC 5780 (section 4.6): one request from a second socket, one packet back after T;
/// a binary search over T, one after the other. What it measures is the timer of a mapping that saw a single exchange.
/// The interval is half of it, kept with WireGuard's persistent keepalive. Repeated daily.
#[derive(Debug)]
pub struct HalfOfSearch {
    now: Instant,
    keepalive: Keepalive,
    search: Option<Search>,
    again: Instant,
    next_probe: u32,
    actions: VecDeque<Action>,
    found: bool,
}

#[derive(Debug)]
struct Search {
    alive: Duration,
    dead: Option<Duration>,
    trial: Duration,
    probe: Channel,
    deadline: Instant,
}

impl HalfOfSearch {
    /// Right after a handshake.
    pub fn new(now: Instant) -> Self {
        Self {
            now,
            keepalive: Keepalive::new(now, INITIAL),
            search: None,
            again: now,
            next_probe: 0,
            actions: VecDeque::new(),
            found: false,
        }
    }

    fn probe(&mut self, now: Instant, alive: Duration, dead: Option<Duration>) {
        let trial = match dead {
            Some(dead) => (alive + dead) / 2,
            None if alive.is_zero() => FIRST,
            None => (alive * 2).min(LONGEST),
        };
        let probe = Channel::Probe(self.next_probe);
        self.next_probe += 1;
        let seq = u64::from(self.next_probe);
        self.actions.push_back(Action::Beat(Beat { channel: probe, seq, wake: Some(trial) }));
        self.search = Some(Search { alive, dead, trial, probe, deadline: now + trial + PATIENCE });
    }

    fn conclude(&mut self, now: Instant, survived: bool) {
        let Some(search) = self.search.take() else { return };
        self.actions.push_back(Action::Close(search.probe));
        let (alive, dead) =
            if survived { (search.trial, search.dead) } else { (search.alive, Some(search.trial)) };
        let open = dead.map_or(alive < LONGEST, |dead| dead.saturating_sub(alive) > RESOLUTION);
        if open {
            return self.probe(now, alive, dead);
        }
        self.found = true;
        self.again = now + AGAIN;
        self.keepalive.set_interval(now, (alive / 2).max(Duration::from_secs(1)));
    }
}

impl Algorithm for HalfOfSearch {
    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        self.now = now;
        if self.search.as_ref().is_some_and(|search| search.probe == wake.channel) {
            self.conclude(now, true);
        }
    }

    fn handle_handshake(&mut self, now: Instant) {
        self.now = now;
        self.keepalive.handle_handshake(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        match &self.search {
            Some(search) if now >= search.deadline => self.conclude(now, false),
            None if now >= self.again => self.probe(now, Duration::ZERO, None),
            _ => {}
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let search = self.search.as_ref().map_or(self.again, |search| search.deadline);
        Some(search.min(self.keepalive.poll_timeout()))
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| self.keepalive.poll_action(self.now))
    }

    fn interval(&self) -> Duration {
        self.keepalive.interval()
    }

    fn has_verdict(&self) -> bool {
        self.found
    }
}
