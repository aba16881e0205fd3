//! What the user allows a sleeping client.

use std::time::Duration;

/// By what an idle client is to be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Preference {
    /// By whichever costs clearly fewer wake-ups.
    #[default]
    Auto,
    /// By its UDP binding alone.
    UdpOnly,
    /// By its session, as soon as that was proven to live for half a minute.
    Session,
}

/// The standby policy in force for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// By what it is to be reached.
    pub preference: Preference,
    /// The session is never left silent for longer.
    pub max: Duration,
    /// The longest time for which an undetectable loss of the session's mapping may leave the client unreachable: no
    /// interval is longer than this. `None`: as long as the mapping allows.
    pub longest_blind: Option<Duration>,
}

impl Policy {
    /// The longest interval that all limits allow: at least 10 s, at most [`LONGEST_WAKE`](super::LONGEST_WAKE).
    pub fn longest(&self) -> Duration {
        let longest = self.longest_blind.map_or(self.max, |blind| self.max.min(blind));
        longest.clamp(Duration::from_secs(10), super::LONGEST_WAKE.mul_f64(0.95))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { preference: Preference::Auto, max: Duration::from_hours(2), longest_blind: None }
    }
}
