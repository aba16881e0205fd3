//! The live channel between and during its bursts.

use std::time::{Duration, Instant};

use super::sequence::Sequence;

/// After the path was given up, it is tried again at twice the pause each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and it is in a burst most of the time that counts"
)]
pub(super) enum Activity {
    /// There is no path, or none is to be kept.
    Off,
    /// Silent until then.
    Rest { due: Instant },
    /// Beats are under way.
    Burst(Sequence),
    /// The path does not answer; try again then.
    Lost { retry: Instant },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    pub(super) activity: Activity,
    /// The last transmission that is known to have arrived.
    pub(super) anchor: Option<Instant>,
    /// The last transmission at all: what the binding's age counts from.
    pub(super) last_sent: Option<Instant>,
    /// The last beat that asked for a wake.
    pub(super) asked: Option<u64>,
    /// When the wake is due that was asked for, and did not come yet.
    pub(super) wake_due: Option<Instant>,
    /// Which wake that was, and when it was due: it may only be late.
    pub(super) missed: Option<(u64, Instant)>,
    /// The interval that the present burst asked the gateway to wake before.
    pub(super) interval: Duration,
    /// The gateway is asked to begin the next burst.
    pub(super) wants_wake: bool,
    /// The burst began because a wake was missing.
    pub(super) wake_missed: bool,
    /// The binding is new: it has to be promoted.
    pub(super) needs_promotion: bool,
    /// How long to wait before a lost path is tried again; `None`: it is not lost.
    pub(super) lost: Option<Duration>,
}

impl Live {
    pub(super) fn new() -> Self {
        Self {
            activity: Activity::Off,
            anchor: None,
            last_sent: None,
            asked: None,
            wake_due: None,
            missed: None,
            interval: Duration::ZERO,
            wants_wake: false,
            wake_missed: false,
            needs_promotion: true,
            lost: None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.activity {
            Activity::Off => None,
            Activity::Rest { due } => Some(*due),
            Activity::Burst(sequence) => sequence.deadline(),
            Activity::Lost { retry } => Some(*retry),
        }
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.activity, Activity::Rest { .. })
    }

    /// How old the binding is, by what is known to have arrived.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.anchor.map(|anchor| now.saturating_duration_since(anchor))
    }

    /// Nobody answers. Tells whether that is new.
    pub(super) fn lose(&mut self, now: Instant) -> bool {
        let pause = self.lost.map_or(FIRST_RETRY, |pause| (pause * 2).min(LAST_RETRY));
        let is_new = self.lost.replace(pause).is_none();
        self.activity = Activity::Lost { retry: now + pause };
        self.wake_due = None;
        self.asked = None;
        is_new
    }
}
