//! Wall clocks that are wrong, jump, or are corrected. Pure, but for [`Clocks::now`] and [`until_set`].

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use pinhole_proto::Span;

/// The wall clock, and one that nobody sets, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// What the machine believes to be the time.
    pub wall: SystemTime,
    /// Time since the machine started, sleep included (`CLOCK_BOOTTIME`).
    pub boot: Duration,
}

impl Clocks {
    /// As they are now.
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        Self { wall: SystemTime::now(), boot }
    }

    /// What the wall clock would say now had nobody set it since `before`.
    fn undisturbed_since(&self, before: &Self) -> SystemTime {
        before.wall + self.boot.saturating_sub(before.boot)
    }

    /// By how much the wall clock was put forward since `before`.
    pub fn gained_since(&self, before: &Self) -> Duration {
        self.wall.duration_since(self.undisturbed_since(before)).unwrap_or_default()
    }

    /// Whether the wall clock was set since `before`, by [`JUMP`] or more, in whichever direction.
    pub fn was_set_since(&self, before: &Self) -> bool {
        Skew::between(self.wall, self.undisturbed_since(before)).0.size() >= JUMP
    }
}

/// What `ntpd` and the like take for a step, and do not slew away (128 ms), with some room.
pub const JUMP: Duration = Duration::from_secs(1);

/// How often [`until_set`] looks.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until somebody sets the wall clock. For who cannot go on before that: it looks each second, as no clock that can be
/// waited for tells how far it was set.
pub async fn until_set() {
    let before = Clocks::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if Clocks::now().was_set_since(&before) {
            return;
        }
    }
}

/// How far one wall clock is from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// It is this much behind.
    Behind(Duration),
    /// It is this much ahead.
    Ahead(Duration),
}

impl Offset {
    /// Its size, whichever way it goes.
    pub const fn size(self) -> Duration {
        match self {
            Self::Behind(size) | Self::Ahead(size) => size,
        }
    }
}

/// How far this machine's clock is from the gateway's. Written out as a sentence's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew(pub Offset);

impl Skew {
    /// Of `ours` from `theirs`.
    pub fn between(ours: SystemTime, theirs: SystemTime) -> Self {
        Self(match ours.duration_since(theirs) {
            Ok(ahead) => Offset::Ahead(ahead),
            Err(error) => Offset::Behind(error.duration()),
        })
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.0 {
            Offset::Behind(_) => "behind",
            Offset::Ahead(_) => "ahead of",
        };
        write!(f, "this machine's clock is {} {way} the gateway's", Span(self.0.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const DAY: Duration = Duration::from_hours(24);

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000
    }

    /// How the clocks stand `later`, with the wall clock set by this much meanwhile.
    fn clocks(later: Duration, set: Offset) -> Clocks {
        let wall = match set {
            Offset::Ahead(by) => noon() + later + by,
            Offset::Behind(by) => noon() + later - by,
        };
        Clocks { wall, boot: DAY + later }
    }

    #[test]
    fn a_clock_that_is_set_is_told_from_time_that_passes() {
        let before = clocks(Duration::ZERO, Offset::Ahead(Duration::ZERO));
        let table = [
            // Nobody touches it, however long it takes; a machine that sleeps is no other case.
            (Offset::Ahead(Duration::ZERO), false, Duration::ZERO),
            // Slewed.
            (Offset::Ahead(JUMP / 2), false, JUMP / 2),
            (Offset::Behind(JUMP / 2), false, Duration::ZERO),
            // Corrected.
            (Offset::Ahead(30 * MINUTE), true, 30 * MINUTE),
            (Offset::Behind(60 * MINUTE), true, Duration::ZERO),
            (Offset::Behind(400 * DAY), true, Duration::ZERO),
        ];
        for later in [Duration::ZERO, MINUTE, DAY * 31] {
            for (set, was_set, gained) in table {
                let now = clocks(later, set);
                assert_eq!(now.was_set_since(&before), was_set, "{set:?} within {later:?}");
                assert_eq!(now.gained_since(&before), gained, "{set:?} within {later:?}");
            }
        }
    }

    #[test]
    fn the_clocks_of_this_machine_go_on() {
        let before = Clocks::now();
        let after = Clocks::now();
        assert!(before.boot > Duration::ZERO && after.boot >= before.boot);
        assert!(!after.was_set_since(&before));
    }

    #[test]
    fn a_skew_says_by_how_much_and_which_way() {
        for (ours, said) in [
            (noon() - 2 * DAY, "2 days behind"),
            (noon() + 400 * DAY, "400 days ahead of"),
            (noon() - 30 * MINUTE, "30 minutes behind"),
            (noon() + 119 * MINUTE + Duration::from_secs(50), "120 minutes ahead of"),
            (noon() + 151 * MINUTE, "3 hours ahead of"),
            (noon() + 90 * MINUTE, "90 minutes ahead of"),
            (noon() - Duration::from_secs(45), "45 seconds behind"),
        ] {
            let skew = Skew::between(ours, noon()).to_string();
            assert_eq!(skew, format!("this machine's clock is {said} the gateway's"));
        }
    }
}
