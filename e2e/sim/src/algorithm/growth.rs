//! A heartbeat that grows until it fails, as Tencent's Mars does it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pinhole_nat::{Beat, Channel, Reply, Wake};

use super::{Action, Algorithm};

/// Mars has 4.5 minutes for TCP; UDP bindings live a twentieth.
const MIN: Duration = Duration::from_secs(15);
/// As Mars (MaxHeartInterval).
const MAX: Duration = Duration::from_secs(590);
/// How the heartbeat grows. Mars' minute would step over most of UDP's lifetimes.
const STEP: Duration = Duration::from_secs(10);
/// How far below what failed it settles, beside a step: a third of one (SuccessStep).
const BACK: Duration = Duration::from_secs(3);
/// Heartbeats at an interval before a longer one is tried (BaseSuccCount).
const SUCCESSES: u32 = 3;
/// Failures at an interval before it is given up (MaxHeartFailCount).
const FAILURES: u32 = 3;
/// Heartbeats at the shortest interval before a failed one is tried again (NetStableTestCount).
const SETTLE: u32 = 3;
/// How often a settled heartbeat tries to grow. Mars does on Wednesdays; daily is kinder.
const RETRY: Duration = Duration::from_hours(24);
/// How long a missing heartbeat is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The heartbeat comes from the gateway at the interval's end, as a push would; the client answers, and the next one
/// is on its way. Three in a row and it grows; three failures and it steps back and stays, trying again daily. Each
/// failure is an outage.
#[derive(Debug)]
pub struct Growth {
    interval: Duration,
    settled: bool,
    successes: u32,
    failures: u32,
    /// Heartbeats at the shortest interval still to come.
    settling: u32,
    retry: Instant,
    next: Instant,
    unanswered: bool,
    seq: u64,
    found: bool,
    actions: VecDeque<Action>,
}

impl Growth {
    /// Right after a handshake.
    pub fn new(now: Instant) -> Self {
        Self {
            interval: MIN,
            settled: false,
            successes: 0,
            failures: 0,
            settling: SETTLE,
            retry: now,
            next: now,
            unanswered: true,
            seq: 0,
            found: false,
            actions: VecDeque::new(),
        }
    }

    fn current(&self) -> Duration {
        if self.settling > 0 { MIN } else { self.interval }
    }

    fn beat(&mut self, now: Instant) {
        self.seq += 1;
        let wake = Some(self.current());
        self.actions.push_back(Action::Beat(Beat { channel: Channel::Live, seq: self.seq, wake }));
        self.unanswered = true;
        self.next = now + TIMEOUT;
    }

    fn succeed(&mut self, now: Instant) {
        if self.settling > 0 {
            self.settling -= 1;
            return;
        }
        self.failures = 0;
        self.successes += 1;
        if self.settled {
            if now < self.retry || self.interval >= MAX {
                return;
            }
            self.settled = false;
        }
        if self.successes < SUCCESSES {
            return;
        }
        self.successes = 0;
        if self.interval >= MAX {
            return self.settle(now, MAX);
        }
        self.interval = (self.interval + STEP).min(MAX);
    }

    fn fail(&mut self, now: Instant) {
        self.successes = 0;
        if self.settling > 0 {
            return;
        }
        self.settling = SETTLE;
        self.failures += 1;
        if self.failures < FAILURES {
            return;
        }
        self.failures = 0;
        if self.settled {
            self.settled = false;
            self.interval = MIN;
            return;
        }
        self.settle(now, self.interval.saturating_sub(STEP + BACK).max(MIN));
    }

    fn settle(&mut self, now: Instant, interval: Duration) {
        self.interval = interval;
        self.settled = true;
        self.found = true;
        self.retry = now + RETRY;
    }
}

impl Algorithm for Growth {
    fn handle_reply(&mut self, now: Instant, reply: Reply) {
        if !reply.is_endpoint {
            self.actions.push_back(Action::Keepalive);
        }
        if reply.seq == self.seq && self.unanswered {
            self.unanswered = false;
            self.next = now + self.current() + PATIENCE;
        }
    }

    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        if wake.seq == self.seq {
            self.succeed(now);
            self.beat(now);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if !self.unanswered {
            self.fail(now);
        }
        self.beat(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn interval(&self) -> Duration {
        self.current()
    }

    fn has_verdict(&self) -> bool {
        self.found
    }
}
