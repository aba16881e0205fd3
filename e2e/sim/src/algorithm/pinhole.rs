//! Ours: the very state machine that runs in the agent.

use std::time::{Duration, Instant};

use pinhole_nat::{Confidence, Keeper, Policy, Reply, Wake};

use super::{Action, Algorithm};

/// The production [`Keeper`] with the default policy and without a prior.
#[derive(Debug)]
pub struct Pinhole(Keeper);

impl Pinhole {
    /// Right after a handshake.
    pub fn new(now: Instant, seed: u64) -> Self {
        Self(Keeper::new(now, Policy::default(), None, seed))
    }
}

impl Algorithm for Pinhole {
    fn handle_reply(&mut self, now: Instant, reply: Reply) {
        self.0.handle_reply(now, reply);
    }

    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        self.0.handle_wake(now, wake);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.0.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.0.poll_timeout()
    }

    fn poll_action(&mut self) -> Option<Action> {
        loop {
            return match self.0.poll_action()? {
                pinhole_nat::Action::Send(beat) => Some(Action::Beat(beat)),
                pinhole_nat::Action::Close(channel) => Some(Action::Close(channel)),
                pinhole_nat::Action::Prove => Some(Action::Keepalive),
                // There is no other path here, and nobody to tell. The keeper goes on trying.
                pinhole_nat::Action::Lost
                | pinhole_nat::Action::Confirmed { .. }
                | pinhole_nat::Action::Event(_) => continue,
            };
        }
    }

    fn interval(&self) -> Duration {
        self.0.interval()
    }

    fn has_verdict(&self) -> bool {
        self.0.binding().confidence >= Confidence::Bracketed
    }
}
