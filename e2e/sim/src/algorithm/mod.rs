//! Ways to keep a binding: ours, what others do, and the oracle.

mod cliffs;
mod fixed;
mod growth;
mod keepalive;
mod oracle;
mod pinhole;
mod rfc5780;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use pinhole_agent::nat::{Beat, Channel, Reply, Wake};

pub use self::{
    cliffs::Cliffs, fixed::Fixed, growth::Growth, oracle::Oracle, pinhole::Pinhole, rfc5780::HalfOfSearch,
};

/// What an algorithm wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a beat, which the gateway answers.
    Beat(Beat),
    /// Send a WireGuard keepalive: authenticated, moves the gateway's endpoint, not answered.
    Keepalive,
    /// Send a WireGuard handshake initiation: the same, but answered.
    Handshake,
    /// This probe's socket is no longer needed.
    Close(Channel),
}

/// A way to keep the live binding, as a state machine. It begins right after a WireGuard handshake.
pub trait Algorithm {
    /// The gateway answered a beat.
    fn handle_reply(&mut self, _now: Instant, _reply: Reply) {}

    /// The gateway sent what a beat had asked for.
    fn handle_wake(&mut self, _now: Instant, _wake: Wake) {}

    /// The gateway answered a handshake.
    fn handle_handshake(&mut self, _now: Instant) {}

    /// The NAT's lifetime shrank. Only the oracle may listen.
    fn handle_truth(&mut self, _now: Instant, _lifetime: Duration) {}

    /// Time has come to what [`poll_timeout`](Self::poll_timeout) said.
    fn handle_timeout(&mut self, now: Instant);

    /// When it wants to be called next.
    fn poll_timeout(&self) -> Option<Instant>;

    /// What it wants done now, one thing at a time.
    fn poll_action(&mut self) -> Option<Action>;

    /// The longest silence that it leaves the live channel in.
    fn interval(&self) -> Duration;

    /// Whether it came to a first verdict on the binding's lifetime.
    fn has_verdict(&self) -> bool {
        false
    }
}
