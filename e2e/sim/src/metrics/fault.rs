//! What a NAT did to its client, and how that went.

use std::time::Duration;

/// What a NAT did to its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// It lost all mappings, and will use other ports.
    VisibleFlush,
    /// It lost all mappings, and will use the same ports again.
    InvisibleFlush,
    /// Its lifetime shrank.
    Shrink,
}

/// A fault, and for how long the client did nothing about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Which.
    pub kind: FaultKind,
    /// From the fault to the first live packet that the client sent after it, and one round trip more. Wake tests of
    /// this time do not count.
    pub blind: Duration,
    /// How long it took until the path was open again, after a flush.
    pub recovery: Option<Duration>,
    /// The interval in force at the fault, and a round trip.
    pub allowed: Duration,
}
