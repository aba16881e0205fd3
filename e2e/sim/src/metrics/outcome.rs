//! What was counted of one client.

use std::time::Duration;

use super::{Fault, Reached, Spent};
use crate::model::Time;

/// How it went for one client.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its NAT, as a place in the fleet's profiles.
    pub profile: usize,
    /// Wake tests.
    pub reached: Reached,
    /// Wake-ups.
    pub wakes: u64,
    /// Wake-ups if only what the client sends counted.
    pub wakes_sent: u64,
    /// The oracle's.
    pub wakes_oracle: u64,
    /// Wake-ups after convergence, without probes, and the oracle's. `None`: it did not converge in time.
    pub converged: Option<(u64, u64)>,
    /// When it converged.
    pub converge: Option<Time>,
    /// Its first verdict.
    pub verdict: Option<Time>,
    /// The true lifetime at the beginning.
    pub lifetime: Duration,
    /// Packets that it sent or received.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What they cost an LTE radio.
    pub lte: Spent,
    /// What they cost a Wi-Fi radio.
    pub wifi: Spent,
    /// What its NAT did to it.
    pub faults: Vec<Fault>,
}
