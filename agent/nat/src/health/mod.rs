//! Is a path really alive: what a client and a gateway may call connected, and what to do when they may not.
//!
//! Pure: time, receives and answers go in; probes, attempts and phases come out. Nothing here reads a clock,
//! opens a socket or sleeps.

pub mod client;
pub mod gateway;
mod jitter;
mod reach;

pub use jitter::Jitter;
pub use reach::{AWAY, Reach};

use std::fmt;
use std::time::Duration;

/// When an unanswered probe is sent again, counted from its first transmission.
pub const PROBE_RESENDS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How long after its first transmission an unanswered probe means that the path is lost.
pub const PROBE_GIVE_UP: Duration = Duration::from_secs(8);

/// How long an authenticated receive is worth anything when nothing was agreed on keepalives: WireGuard's
/// Reject-After-Time, after which a session that was not renewed is gone.
pub const LONGEST_CERTAINTY: Duration = Duration::from_mins(3);

/// The field's own phases of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// A bidirectional exchange was confirmed on the active path, recently enough to know.
    Connected,
    /// No usable path; session and address are kept, and it is tried again at intervals.
    Dormant,
    /// A path is back or still there, the exchange over it is not confirmed.
    WaitingToReconnect,
    /// Asleep: it keeps no binding for the tunnel, and is woken over its session, which was proven recently enough to know.
    Standby,
    /// Never seen, or said goodbye.
    #[default]
    Disconnected,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Connected => "Connected",
            Phase::Dormant => "Dormant",
            Phase::WaitingToReconnect => "WaitingToReconnect",
            Phase::Standby => "Standby",
            Phase::Disconnected => "Disconnected",
        })
    }
}

/// How a client proves that its path carries traffic in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In-tunnel probes check the inbound path and keep the NAT binding open.
    #[default]
    Loopback,
    /// No probe traffic: only the link and the traffic of the user are watched.
    LinkStatus,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Loopback => "Loopback",
            Mode::LinkStatus => "LinkStatus",
        })
    }
}
