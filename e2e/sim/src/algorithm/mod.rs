//! Ways to keep a binding: ours, what others do, and the oracle.

mod cliffs;
mod fixed;
mod growth;
mod keepalive;
mod oracle;
mod pinhole;
mod rfc5780;
mod sleeper;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use pinhole_nat::{
    Beat, Channel, Reply, Wake,
    standby::{Ended, Line},
};

pub use self::{
    cliffs::Cliffs, fixed::Fixed, growth::Growth, oracle::Oracle, pinhole::Pinhole, rfc5780::HalfOfSearch,
    sleeper::Sleeper,
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
    /// Ask the gateway over TCP for a wake.
    Rest {
        /// Over which connection.
        line: Line,
        /// Its number.
        seq: u64,
        /// After so long a silence.
        wake_after: Duration,
    },
    /// Ask the gateway over the session whether it is there.
    Ask,
    /// Dial a connection.
    Dial(Line),
    /// Close one.
    HangUp(Line),
}

/// A way to keep the live binding, as a state machine. It begins right after a WireGuard handshake.
pub trait Algorithm {
    /// The gateway answered a beat.
    fn handle_reply(&mut self, _now: Instant, _reply: Reply) {}

    /// The gateway sent what a beat had asked for.
    fn handle_wake(&mut self, _now: Instant, _wake: Wake) {}

    /// The gateway answered a handshake.
    fn handle_handshake(&mut self, _now: Instant) {}

    /// A TCP connection to the gateway is there. The first one is dialled by itself.
    fn handle_attached(&mut self, _now: Instant, _line: Line) {}

    /// It ended. The session is dialled again by itself.
    fn handle_ended(&mut self, _now: Instant, _line: Line, _ended: Ended) {}

    /// A wake came over it.
    fn handle_session_wake(&mut self, _now: Instant, _line: Line, _seq: u64) {}

    /// The gateway answered on the session.
    fn handle_session_packet(&mut self, _now: Instant) {}

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
