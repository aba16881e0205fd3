//! Lifetime cliffs, as Tailscale probes them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pinhole_nat::{Beat, Channel, Reply, Wake};

use super::{Action, Algorithm};

/// Just below the lifetimes that NATs are known to have, 10, 30 and 60 s: by 2 s, for round trips and scheduling
/// (udpLifetimeProbeCliffSlack).
const CLIFFS: [Duration; 3] = [Duration::from_secs(8), Duration::from_secs(28), Duration::from_secs(58)];
/// The gateway's packet is waited for a little longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// In force where not even the first cliff was reached (heartbeatInterval).
const SHORTEST: Duration = Duration::from_secs(3);
/// How long an answer is waited for (pingTimeoutDuration).
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the cliffs are tested (CycleCanStartEvery).
const CYCLE: Duration = Duration::from_hours(24);

/// Once a day the live path is left alone for 8, 28, then 58 s, after each of which the gateway tries to reach the client.
/// The interval is the longest that worked, kept with pings that are answered, as disco's are.
///
/// Tailscale itself only gathers what it finds; that its keepalive follows is the friendliest reading.
#[derive(Debug)]
pub struct Cliffs {
    interval: Duration,
    next: Instant,
    /// Waiting for the answer to this ping.
    unanswered: Option<u64>,
    /// Which cliff is being tested.
    cliff: Option<usize>,
    cycle: Instant,
    seq: u64,
    found: bool,
    actions: VecDeque<Action>,
}

impl Cliffs {
    /// Right after a handshake.
    pub fn new(now: Instant) -> Self {
        Self {
            interval: SHORTEST,
            next: now,
            unanswered: None,
            cliff: None,
            cycle: now,
            seq: 0,
            found: false,
            actions: VecDeque::new(),
        }
    }

    fn ping(&mut self, now: Instant) {
        self.seq += 1;
        let span = self.cliff.and_then(|cliff| CLIFFS.get(cliff)).copied();
        self.actions.push_back(Action::Beat(Beat { channel: Channel::Live, seq: self.seq, wake: span }));
        self.unanswered = Some(self.seq);
        self.next = now + TIMEOUT;
    }

    fn survived(&mut self, now: Instant) {
        let Some(cliff) = self.cliff else { return };
        self.interval = CLIFFS.get(cliff).copied().unwrap_or(SHORTEST);
        self.cliff = (cliff + 1 < CLIFFS.len()).then_some(cliff + 1);
        self.found |= self.cliff.is_none();
        self.ping(now);
    }

    fn fell(&mut self, now: Instant) {
        self.cliff = None;
        self.found = true;
        self.ping(now);
    }
}

impl Algorithm for Cliffs {
    fn handle_reply(&mut self, now: Instant, reply: Reply) {
        if !reply.is_endpoint {
            self.actions.push_back(Action::Keepalive);
        }
        if self.unanswered != Some(reply.seq) {
            return;
        }
        self.unanswered = None;
        self.next = match self.cliff.and_then(|cliff| CLIFFS.get(cliff)) {
            Some(cliff) => now + *cliff + PATIENCE,
            None => now + self.interval,
        };
    }

    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        if wake.seq == self.seq {
            self.survived(now);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.unanswered.is_some() {
            return self.ping(now);
        }
        if self.cliff.is_some() {
            return self.fell(now);
        }
        if now >= self.cycle {
            self.cycle = now + CYCLE;
            self.cliff = Some(0);
            self.interval = SHORTEST;
        }
        self.ping(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn has_verdict(&self) -> bool {
        self.found
    }
}
