//! The persistent keepalive of WireGuard.

use std::time::{Duration, Instant};

use super::Action;

/// A session older than this is renewed by whoever sends (REKEY_AFTER_TIME of the WireGuard paper, section 6.1).
const REKEY_AFTER: Duration = Duration::from_mins(2);
/// An unanswered initiation is sent again after so long (REKEY_TIMEOUT).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a keepalive whenever nothing was sent for an interval, and a handshake instead where one is due.
#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    next: Instant,
    handshake: Instant,
}

impl Keepalive {
    /// Right after a handshake.
    pub(super) fn new(now: Instant, interval: Duration) -> Self {
        Self { interval, next: now, handshake: now }
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Another interval, from now on.
    pub(super) fn set_interval(&mut self, now: Instant, interval: Duration) {
        self.interval = interval;
        self.next = self.next.min(now + interval);
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next
    }

    pub(super) fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if now < self.next {
            return None;
        }
        if now.duration_since(self.handshake) < REKEY_AFTER {
            self.next = now + self.interval;
            return Some(Action::Keepalive);
        }
        self.next = now + REKEY_TIMEOUT;
        Some(Action::Handshake)
    }

    /// The initiator confirms the new session with a keepalive at once.
    pub(super) fn handle_handshake(&mut self, now: Instant) {
        self.handshake = now;
        self.next = now;
    }
}
