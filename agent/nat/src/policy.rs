//! What the user allows.

use std::time::Duration;

/// How intervals are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Learn each binding's lifetime and stay just below it.
    #[default]
    Adaptive,
    /// Always [`Policy::interval`].
    Fixed,
}

/// The keepalive policy in force for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Adaptive or fixed.
    pub mode: Mode,
    /// Fixed: the interval. Adaptive: the longest interval until something was learnt.
    pub interval: Duration,
    /// Adaptive: the shortest interval that may be chosen.
    pub min: Duration,
    /// Adaptive: the longest interval that may be chosen.
    pub max: Duration,
    /// The longest time for which an undetectable loss of the binding may leave the client unreachable: no interval
    /// is longer than this. `None`: as long as the binding allows.
    pub longest_blind: Option<Duration>,
}

impl Policy {
    /// The longest interval that all limits allow.
    pub fn longest(&self) -> Duration {
        self.longest_blind.map_or(self.max, |blind| self.max.min(blind)).max(self.min)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Adaptive,
            interval: Duration::from_secs(25),
            min: Duration::from_secs(2),
            max: Duration::from_hours(1),
            longest_blind: None,
        }
    }
}
