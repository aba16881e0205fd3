//! WireGuard's `PersistentKeepalive`.

use std::time::{Duration, Instant};

use super::{Action, Algorithm, keepalive::Keepalive};

/// A keepalive every so many seconds, not answered. A handshake every two minutes is, and promotes what needs it.
#[derive(Debug)]
pub struct Fixed {
    now: Instant,
    keepalive: Keepalive,
}

impl Fixed {
    /// Right after a handshake.
    pub fn new(now: Instant, interval: Duration) -> Self {
        Self { now, keepalive: Keepalive::new(now, interval) }
    }
}

impl Algorithm for Fixed {
    fn handle_handshake(&mut self, now: Instant) {
        self.now = now;
        self.keepalive.handle_handshake(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.keepalive.poll_timeout())
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.keepalive.poll_action(self.now)
    }

    fn interval(&self) -> Duration {
        self.keepalive.interval()
    }
}
