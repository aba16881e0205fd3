//! Extra connections that try an age at which the live session must not be left silent yet.

use std::time::{Duration, Instant};

use super::GRACE;

/// A connection is there within this, or it is given up.
const DIALLING: Duration = Duration::from_secs(15);

/// What a canary is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Whether an age holds that was proven once, or elsewhere.
    Hint,
    /// Whether mappings live longer than was proven.
    Growth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialling { since: Instant },
    Resting { seq: u64, since: Instant },
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canary {
    pub(super) id: u32,
    pub(super) purpose: Purpose,
    pub(super) age: Duration,
    state: State,
}

impl Canary {
    pub(super) fn new(now: Instant, id: u32, purpose: Purpose, age: Duration) -> Self {
        Self { id, purpose, age, state: State::Dialling { since: now } }
    }

    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.state, State::Dialling { .. })
    }

    pub(super) fn rest(&mut self, now: Instant, seq: u64) {
        self.state = State::Resting { seq, since: now };
    }

    pub(super) fn expects(&self, seq: u64) -> bool {
        matches!(self.state, State::Resting { seq: own, .. } if own == seq)
    }

    /// How long it has been silent. `None`: it is not there yet.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Dialling { .. } => None,
            State::Resting { since, .. } => Some(now.saturating_duration_since(since)),
        }
    }

    /// When its wake is due.
    pub(super) fn due(&self) -> Instant {
        match self.state {
            State::Dialling { since } | State::Resting { since, .. } => since + self.age,
        }
    }

    /// When it is not waited for any longer.
    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            State::Dialling { since } => since + DIALLING,
            State::Resting { .. } => self.due() + GRACE,
        }
    }
}
