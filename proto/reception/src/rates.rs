//! How often somebody may ask. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

/// A token bucket: one each `every`, for good, and up to `burst` at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// From one token to the next. Not zero.
    pub every: Duration,
    /// Tokens of a full bucket, at least 1.
    pub burst: u32,
}

impl Allowance {
    fn whole(self) -> Duration {
        self.every * self.burst
    }
}

/// A bucket for each of those who ask. Who has a full one is not remembered; when there are more than can be, the one whose
/// bucket is the fullest is forgotten, so that a newcomer is never refused for want of memory.
///
/// A bucket is its moment of being full again (GCRA), at most the whole bucket's time ahead: a clock that goes back gives
/// nothing to anybody, and keeps nobody out for longer than an empty bucket does.
#[derive(Debug)]
pub struct Rates<K> {
    allowance: Allowance,
    most: usize,
    full_at: HashMap<K, Instant>,
    /// The same, the fullest first.
    fullest: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Eq + Hash + Ord> Rates<K> {
    /// Full buckets of this kind; at most `most` (at least 1) others are remembered.
    pub fn new(allowance: Allowance, most: usize) -> Self {
        Self { allowance, most: most.max(1), full_at: HashMap::new(), fullest: BTreeSet::new() }
    }

    /// Takes a token of this bucket, if there is one.
    pub fn take(&mut self, now: Instant, key: &K) -> bool {
        let whole = self.allowance.whole();
        self.forget_full(now);
        let owed = self.full_at.get(key).map_or(now, |at| (*at).clamp(now, now + whole));
        let full_at = owed + self.allowance.every;
        let allowed = full_at <= now + whole;
        self.remember(key, if allowed { full_at } else { owed });
        allowed
    }

    /// Gives a token back that was taken.
    pub fn give_back(&mut self, key: &K) {
        let Some(full_at) = self.full_at.get(key).copied() else { return };
        // On underflow the bucket is long full.
        self.remember(key, full_at.checked_sub(self.allowance.every).unwrap_or(full_at));
    }

    fn forget_full(&mut self, now: Instant) {
        while let Some((at, key)) = self.fullest.pop_first() {
            if at > now {
                self.fullest.insert((at, key));
                return;
            }
            self.full_at.remove(&key);
        }
    }

    fn remember(&mut self, key: &K, full_at: Instant) {
        match self.full_at.insert(key.clone(), full_at) {
            Some(before) => drop(self.fullest.remove(&(before, key.clone()))),
            None if self.full_at.len() > self.most => {
                if let Some((_, forgotten)) = self.fullest.pop_first() {
                    self.full_at.remove(&forgotten);
                }
            }
            None => {}
        }
        self.fullest.insert((full_at, key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_millis(100);
    const BURST: u32 = 8;
    const ALLOWANCE: Allowance = Allowance { every: EVERY, burst: BURST };

    fn allowed(rates: &mut Rates<u32>, now: Instant, key: u32, times: u32) -> u32 {
        (0..times).map(|_| u32::from(rates.take(now, &key))).sum()
    }

    #[test]
    fn after_a_rest_there_is_a_burst_and_then_the_rate() {
        let (mut rates, now) = (Rates::new(ALLOWANCE, 100), Instant::now());
        assert_eq!(allowed(&mut rates, now, 1, 100), BURST);
        assert_eq!(allowed(&mut rates, now + EVERY.mul_f64(0.99), 1, 100), 0);
        assert_eq!(allowed(&mut rates, now + EVERY * 3, 1, 100), 3);
        assert_eq!(allowed(&mut rates, now + EVERY * 100, 1, 100), BURST);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_not_twice() {
        let (mut rates, now) = (Rates::new(ALLOWANCE, 100), Instant::now());
        assert_eq!(allowed(&mut rates, now, 1, 100), BURST);
        rates.give_back(&1);
        assert_eq!(allowed(&mut rates, now, 1, 100), 1);
        rates.give_back(&2);
        assert_eq!(allowed(&mut rates, now, 2, 100), BURST);
        for _ in 0..100 {
            rates.give_back(&1);
        }
        assert_eq!(allowed(&mut rates, now, 1, 100), BURST);
    }

    #[test]
    fn ten_thousand_that_flood_take_nothing_from_one_that_asks_now_and_then() {
        let (mut rates, start) = (Rates::new(ALLOWANCE, 4096), Instant::now());
        let good = u32::MAX;
        for round in 0..50_u32 {
            let now = start + EVERY * round;
            for flooder in 0..10_000 {
                rates.take(now, &flooder);
                rates.take(now, &flooder);
            }
            assert!(rates.take(now, &good), "round {round}");
            assert!(rates.full_at.len() <= 4096);
        }
    }

    #[test]
    fn a_clock_that_goes_back_by_an_hour_keeps_nobody_out_for_longer_than_an_empty_bucket() {
        let (mut rates, now) = (Rates::new(ALLOWANCE, 100), Instant::now());
        let hour = Duration::from_hours(1);
        assert_eq!(allowed(&mut rates, now + hour, 1, 100), BURST);
        assert_eq!(allowed(&mut rates, now, 1, 100), 0, "and gives nothing");
        assert_eq!(allowed(&mut rates, now + EVERY, 1, 100), 1);
        assert_eq!(allowed(&mut rates, now + EVERY * (1 + BURST), 1, 100), BURST);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_the_burst_and_the_rate_and_memory_is_bounded(
            steps in prop::collection::vec((0_u32..20, 0_u64..150), 1..500),
            most in 20_usize..40,
        ) {
            let (mut rates, start) = (Rates::new(ALLOWANCE, most), Instant::now());
            let (mut now, mut got) = (start, [0_u32; 20]);
            for (key, ms) in steps {
                now += Duration::from_millis(ms);
                got[key as usize] += u32::from(rates.take(now, &key));
                let refilled = u32::try_from((now - start).as_millis() / EVERY.as_millis()).unwrap();
                prop_assert!(got[key as usize] <= BURST + refilled);
                prop_assert!(rates.full_at.len() <= most && rates.fullest.len() == rates.full_at.len());
            }
        }

        #[test]
        fn whatever_the_clock_and_the_others_do_who_has_not_asked_before_is_let_in(
            steps in prop::collection::vec((0_u32..200, 0_u64..100_000), 1..500),
            most in 1_usize..50,
        ) {
            let (mut rates, start) = (Rates::new(ALLOWANCE, most), Instant::now());
            for (newcomer, (key, ms)) in (1000..).zip(steps) {
                // Any time after any other.
                let now = start + Duration::from_millis(ms);
                rates.take(now, &key);
                prop_assert!(rates.take(now, &newcomer));
                prop_assert!(rates.full_at.len() <= most && rates.fullest.len() == rates.full_at.len());
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused_whatever_others_do(
            floods in prop::collection::vec((0_u32..300, 0_u32..4), 1..300),
        ) {
            let (mut rates, start) = (Rates::new(ALLOWANCE, 16), Instant::now());
            for (round, (key, times)) in (0_u32..).zip(floods) {
                let now = start + EVERY * round;
                allowed(&mut rates, now, key, times * 10);
                prop_assert!(rates.take(now, &1_000_000));
            }
        }
    }
}
