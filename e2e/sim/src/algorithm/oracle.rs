//! The bound: what knowing the truth would cost.

use std::time::{Duration, Instant};

use super::{Action, Algorithm};

/// Sends one packet every true lifetime, and learns a shrink at once.
///
/// The engine spares it what it does not have to deal with: its mapping is promoted from the start, its packets do not
/// get lost, sweeps do not matter.
#[derive(Debug)]
pub struct Oracle {
    lifetime: Duration,
    last: Instant,
    due: bool,
}

impl Oracle {
    /// The first packet was sent at `first`.
    pub fn new(first: Instant, lifetime: Duration) -> Self {
        Self { lifetime, last: first, due: false }
    }
}

impl Algorithm for Oracle {
    fn handle_truth(&mut self, now: Instant, lifetime: Duration) {
        self.lifetime = lifetime;
        self.due = self.last + lifetime <= now;
        if self.due {
            self.last = now;
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.last = now;
        self.due = true;
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.last + self.lifetime)
    }

    fn poll_action(&mut self) -> Option<Action> {
        std::mem::take(&mut self.due).then_some(Action::Keepalive)
    }

    fn interval(&self) -> Duration {
        self.lifetime
    }

    fn has_verdict(&self) -> bool {
        true
    }
}
