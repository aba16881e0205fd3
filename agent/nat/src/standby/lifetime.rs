//! How long the session's TCP mapping lives, as far as proven, and the interval that follows.

use std::time::Duration;

/// A wake has this long to get through: four retransmissions.
const MARGIN: Duration = Duration::from_secs(4);
/// Timers of NATs are coarse, and one mapping is not like the other. TCP shows no losses to learn it from.
const COARSENESS: f64 = 0.02;
/// Never give away more of a short lifetime than this.
const LARGEST_SHARE: f64 = 0.25;
/// A bracket this narrow is not worth another connection.
const NARROW: f64 = 0.04;
/// Nor is what an interval of this share of the longest one could grow by.
const ENOUGH: f64 = 0.95;
/// Growth while the end is unknown: in intervals, so that what is tried ends in a live burst.
const GROWTH: u32 = 2;

/// The bracket of the mapping's lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// A mapping took a wake after so long.
    pub(super) at_least: Duration,
    /// A mapping did not, after so long.
    pub(super) less_than: Option<Duration>,
}

impl Lifetime {
    pub(super) fn alive(&mut self, age: Duration) {
        self.at_least = self.at_least.max(age);
        if self.less_than.is_some_and(|end| end <= self.at_least) {
            self.less_than = None;
        }
    }

    pub(super) fn dead(&mut self, age: Duration) {
        if age > self.at_least && self.less_than.is_none_or(|end| age < end) {
            self.less_than = Some(age);
        }
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.less_than.is_some_and(|end| end.saturating_sub(self.at_least) <= self.at_least.mul_f64(NARROW))
    }

    /// How long the session may be silent, with what was proven.
    pub(super) fn interval(&self, longest: Duration) -> Duration {
        self.at_least.saturating_sub(margin(self.at_least)).min(longest)
    }

    /// Whether nothing would be gained by a longer lifetime.
    pub(super) fn is_enough(&self, longest: Duration) -> bool {
        self.interval(longest) >= longest.mul_f64(ENOUGH)
    }

    /// The age to try next. `None`: nothing more is worth trying.
    pub(super) fn next_age(&self, longest: Duration) -> Option<Duration> {
        let interval = self.interval(longest);
        if self.at_least.is_zero() || self.is_enough(longest) || self.is_narrow() {
            return None;
        }
        let middle = self
            .less_than
            .map(|end| Duration::from_secs_f64((self.at_least.as_secs_f64() * end.as_secs_f64()).sqrt()));
        let grown = interval * GROWTH;
        // A proof of a short age has a margin so large that twice the interval would gain nothing.
        let grown = grown.max(self.at_least.mul_f64(1.4));
        Some(middle.map_or(grown, |middle| middle.min(grown)).min(enough_for(longest)))
    }
}

fn margin(age: Duration) -> Duration {
    (MARGIN + age.mul_f64(COARSENESS)).min(age.mul_f64(LARGEST_SHARE))
}

/// The age that has to be proven for an interval.
pub(super) fn enough_for(interval: Duration) -> Duration {
    (interval + MARGIN).div_f64(1.0 - COARSENESS) + Duration::from_millis(1)
}

/// Who knows that mappings do not live so long need not try whether they live just long enough for that interval.
pub(super) fn worth_trying(interval: Duration) -> Duration {
    enough_for(interval).mul_f64(1.0 + NARROW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_age_that_is_enough_allows_the_interval(seconds in 12_u64..8000) {
            let interval = Duration::from_secs(seconds);
            let life = Lifetime { at_least: enough_for(interval), less_than: None };
            prop_assert!(life.interval(Duration::MAX) >= interval);
        }

        #[test]
        fn every_bracket_gets_narrow_after_few_tries(truth in 30_u64..7300, first in 20_u64..30) {
            let (truth, longest) = (Duration::from_secs(truth), Duration::from_hours(2));
            let mut life = Lifetime { at_least: Duration::from_secs(first), less_than: None };
            let mut tries = 0;
            while let Some(age) = life.next_age(longest) {
                prop_assert!(age > life.at_least);
                if age < truth { life.alive(age) } else { life.dead(age) }
                tries += 1;
                prop_assert!(tries < 30, "{life:?}");
            }
            prop_assert!(life.at_least <= truth);
            prop_assert!(life.is_narrow() || life.is_enough(longest), "{life:?}");
        }
    }
}
