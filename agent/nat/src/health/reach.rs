//! How long a client was proven reachable, and how long it was not: the service level that a gateway keeps.

use std::time::{Duration, Instant};

/// A client that is silent for so long is taken to be switched off: time beyond it counts neither way until it is heard again.
pub const AWAY: Duration = Duration::from_mins(15);

/// The account of one client, or the sum of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Time between packets that came before the certainty of the one before was over.
    pub proven: Duration,
    /// Time in which none came: from the last packet before it on, at most [`AWAY`] at a time.
    pub unproven: Duration,
    /// The longest such time.
    pub longest_gap: Duration,
}

impl Reach {
    /// The share of time that was proven. `None`: there was none to speak of.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of centuries are exact enough")]
    pub fn share(&self) -> Option<f64> {
        let all = self.proven + self.unproven;
        (!all.is_zero()).then(|| self.proven.as_millis() as f64 / all.as_millis().max(1) as f64)
    }

    /// What came since an earlier look at the same account. The longest gap is that of all time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            proven: self.proven.saturating_sub(earlier.proven),
            unproven: self.unproven.saturating_sub(earlier.unproven),
            longest_gap: self.longest_gap,
        }
    }

    /// Adds another account to this one.
    pub fn add(&mut self, other: &Self) {
        self.proven += other.proven;
        self.unproven += other.unproven;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
    }
}

/// Keeps the account of one client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ledger {
    reach: Reach,
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// It is not expected.
    #[default]
    Away,
    /// Proven until then.
    Proven(Instant),
    /// Not heard since the first; counted until the second.
    Missing(Instant, Instant),
}

impl Ledger {
    /// An authenticated packet came at `at`. What it adds.
    pub(super) fn heard(&mut self, at: Instant) -> Reach {
        let added = match self.state {
            State::Away => Reach::default(),
            State::Proven(until) => Reach { proven: at.saturating_duration_since(until), ..Reach::default() },
            State::Missing(..) => self.missing(at),
        };
        // Packets are stamped by other threads.
        let at = match self.state {
            State::Proven(until) => at.max(until),
            State::Away | State::Missing(..) => at,
        };
        self.state = State::Proven(at);
        self.count(added)
    }

    /// It is `now` overdue, or still is. What that adds.
    pub(super) fn missed(&mut self, now: Instant) -> Reach {
        if let State::Proven(until) = self.state {
            self.state = State::Missing(until, until);
        }
        let added = self.missing(now);
        self.count(added)
    }

    /// It said that it goes.
    pub(super) fn left(&mut self) {
        self.state = State::Away;
    }

    /// Whether it is overdue.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.state, State::Missing(..))
    }

    /// The account so far.
    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    fn missing(&mut self, now: Instant) -> Reach {
        let State::Missing(since, counted) = self.state else { return Reach::default() };
        let until = now.min(since + AWAY).max(counted);
        self.state = if now >= since + AWAY { State::Away } else { State::Missing(since, until) };
        Reach {
            unproven: until.saturating_duration_since(counted),
            longest_gap: until.saturating_duration_since(since),
            ..Reach::default()
        }
    }

    fn count(&mut self, added: Reach) -> Reach {
        self.reach.add(&added);
        added
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_between_packets_is_proven_and_a_gap_is_not_from_its_beginning_on() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        ledger.heard(start);
        ledger.heard(start + SECOND * 60);
        assert_eq!(ledger.missed(start + SECOND * 93).unproven, SECOND * 33);
        assert!(ledger.is_missing());
        assert_eq!(ledger.missed(start + SECOND * 100).unproven, SECOND * 7);
        ledger.heard(start + SECOND * 120);
        let reach = ledger.reach();
        assert_eq!((reach.proven, reach.unproven), (SECOND * 60, SECOND * 60));
        assert_eq!((reach.longest_gap, reach.share()), (SECOND * 60, Some(0.5)));
    }

    #[test]
    fn who_said_goodbye_or_is_silent_for_long_is_not_expected() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        assert_eq!(ledger.reach().share(), None);
        ledger.heard(start);
        ledger.left();
        ledger.heard(start + SECOND * 3600);
        assert_eq!(ledger.reach(), Reach::default());
        let later = start + SECOND * 3600 + AWAY * 4;
        ledger.missed(later);
        assert!(!ledger.is_missing());
        ledger.heard(later + SECOND);
        assert_eq!((ledger.reach().unproven, ledger.reach().longest_gap), (AWAY, AWAY));
    }

    proptest! {
        #[test]
        fn no_time_counts_twice(steps in proptest::collection::vec((0u64..2000, 0u8..3), 1..60)) {
            let (mut ledger, start) = (Ledger::default(), Instant::now());
            let (mut now, mut sum) = (start, Reach::default());
            for (seconds, what) in steps {
                now += Duration::from_secs(seconds);
                match what {
                    0 => sum.add(&ledger.heard(now)),
                    1 => sum.add(&ledger.missed(now)),
                    _ => ledger.left(),
                }
                prop_assert!(ledger.reach().proven + ledger.reach().unproven <= now - start);
            }
            prop_assert_eq!(sum, ledger.reach());
        }
    }
}
