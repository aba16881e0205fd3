//! Wake success: whether the gateway would have reached the client, at random times.

use std::{collections::VecDeque, time::Duration};

use crate::model::{LossBursts, Time};

/// The packets of one wake test, after its start. It succeeds if one passes.
const TEST: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(1)];

/// Follows whether the path to the client is open, and which times are excluded after a fault.
///
/// Instead of a sample of random times, all of them are tested: the probability that a test fails is integrated over
/// its start. Where the path is open the packet fails with the probability of loss. Same mean as drawing both, but none
/// of the noise.
#[derive(Debug, Clone)]
pub struct Reach {
    loss: f64,
    bursts: Option<LossBursts>,
    bad: Switch,
    /// Tests that start before this are done.
    tested: Time,
    open: Switch,
    excluded: Switch,
    result: Reached,
}

/// What all tests together came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reached {
    /// Seconds during which tests started that count.
    pub tested_s: f64,
    /// How many of them, weighted by probability, saw a failure.
    pub failed_s: f64,
}

impl Reached {
    /// Share of tests that succeeded.
    pub fn success(self) -> f64 {
        if self.tested_s > 0.0 { 1.0 - self.failed_s / self.tested_s } else { 1.0 }
    }
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.tested_s += other.tested_s;
        self.failed_s += other.failed_s;
    }
}

impl Reach {
    /// An open path, from the beginning on, with a probability of loss for each packet, and bursts of more.
    pub fn new(loss: f64, bursts: Option<LossBursts>) -> Self {
        Self {
            loss,
            bursts,
            bad: Switch::new(false),
            tested: Time::ZERO,
            open: Switch::new(true),
            excluded: Switch::new(false),
            result: Reached::default(),
        }
    }

    /// The path is open or shut from `at` on. Times never go back.
    pub fn set_open(&mut self, at: Time, open: bool) {
        if self.open.latest() == open {
            return;
        }
        self.test_until(at - TEST[2]);
        self.open.set(at, open);
    }

    /// A burst of loss begins or ends at `at`. Times never go back.
    pub fn set_bad(&mut self, at: Time, bad: bool) {
        self.test_until(at - TEST[2]);
        self.bad.set(at, bad);
    }

    fn loss(&self, at: Time) -> f64 {
        let bursts = self.bursts.filter(|_| self.bad.at(at));
        bursts.map_or(self.loss, |bursts| bursts.loss_beside(self.loss))
    }

    /// Whether it was open at last.
    pub fn is_open(&self) -> bool {
        self.open.latest()
    }

    /// Tests that start from `at` on do not count.
    pub fn exclude_from(&mut self, at: Time) {
        self.test_until(at - TEST[2]);
        self.excluded.set(at, true);
    }

    /// Tests that start from `at` on count again. This may lie ahead.
    pub fn include_from(&mut self, at: Time) {
        self.excluded.set(at, false);
    }

    /// What tests came to that ended by `end`.
    pub fn finish(mut self, end: Time) -> Reached {
        self.test_until(end - TEST[2]);
        self.result
    }

    fn test_until(&mut self, until: Time) {
        while self.tested < until {
            let start = self.tested;
            let mut next = self.excluded.next_change(start).min(until);
            let mut failure = 1.0;
            for delay in TEST {
                let at = start + delay;
                failure *= if self.open.at(at) { self.loss(at) } else { 1.0 };
                next = next.min(self.open.next_change(at) - delay).min(self.bad.next_change(at) - delay);
            }
            if !self.excluded.at(start) {
                let span = next.since(start).as_secs_f64();
                self.result.tested_s += span;
                self.result.failed_s += span * failure;
            }
            self.tested = next;
            self.open.forget_before(next);
            self.bad.forget_before(next);
            self.excluded.forget_before(next);
        }
    }
}

/// Something that is on or off over time.
#[derive(Debug, Clone)]
struct Switch {
    /// As of the oldest time that matters.
    base: bool,
    changes: VecDeque<(Time, bool)>,
}

impl Switch {
    fn new(on: bool) -> Self {
        Self { base: on, changes: VecDeque::new() }
    }

    fn latest(&self) -> bool {
        self.changes.back().map_or(self.base, |(_, on)| *on)
    }

    fn set(&mut self, at: Time, on: bool) {
        while self.changes.back().is_some_and(|(change, _)| *change >= at) {
            self.changes.pop_back();
        }
        if self.latest() != on {
            self.changes.push_back((at, on));
        }
    }

    fn at(&self, time: Time) -> bool {
        self.changes.iter().take_while(|(change, _)| *change <= time).last().map_or(self.base, |(_, on)| *on)
    }

    fn next_change(&self, after: Time) -> Time {
        let later = self.changes.iter().map(|(change, _)| *change).find(|change| *change > after);
        later.unwrap_or(Time::NEVER)
    }

    fn forget_before(&mut self, time: Time) {
        while let Some((change, on)) = self.changes.front()
            && *change <= time
        {
            self.base = *on;
            self.changes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-6, "{left} is not {right}");
    }

    #[test]
    fn a_path_that_is_always_open_fails_by_loss_alone() {
        close(Reach::new(0.0, None).finish(at(100.0)).success(), 1.0);
        close(Reach::new(0.1, None).finish(at(100.0)).success(), 0.999);
    }

    #[test]
    fn a_test_succeeds_if_one_of_its_packets_passes() {
        let mut reach = Reach::new(0.0, None);
        reach.set_open(at(10.0), false);
        reach.set_open(at(14.0), true);
        let reached = reach.finish(at(101.0));
        close(reached.tested_s, 100.0);
        // Tests that start in the last second of the gap still reach the client.
        close(reached.failed_s, 3.0);

        let mut reach = Reach::new(0.0, None);
        reach.set_open(at(10.0), false);
        reach.set_open(at(10.9), true);
        close(reach.finish(at(100.0)).failed_s, 0.0);
    }

    #[test]
    fn a_gap_between_two_packets_costs_only_what_falls_into_it() {
        let mut reach = Reach::new(0.5, None);
        reach.set_open(at(10.0), false);
        reach.set_open(at(10.2), true);
        // 0.2 s of starts for each of the three packets, in which two of them have a chance.
        close(reach.finish(at(11.2)).failed_s, 0.125 * (10.2 - 0.6) + 0.25 * 0.6);
    }

    #[test]
    fn excluded_tests_count_neither_way() {
        let mut reach = Reach::new(0.0, None);
        reach.exclude_from(at(10.0));
        reach.set_open(at(10.0), false);
        reach.include_from(at(30.04));
        reach.set_open(at(30.0), true);
        let reached = reach.finish(at(101.0));
        close(reached.tested_s, 100.0 - 20.04);
        close(reached.failed_s, 0.0);
    }

    #[test]
    fn a_fault_right_after_another_goes_on_excluding() {
        let mut reach = Reach::new(0.0, None);
        reach.exclude_from(at(10.0));
        reach.include_from(at(20.0));
        reach.exclude_from(at(19.0));
        reach.include_from(at(40.0));
        close(reach.finish(at(101.0)).tested_s, 70.0);
    }

    #[test]
    fn what_is_still_shut_after_the_exclusion_counts() {
        let mut reach = Reach::new(0.0, None);
        reach.exclude_from(at(10.0));
        reach.set_open(at(10.0), false);
        reach.include_from(at(20.0));
        reach.set_open(at(25.0), true);
        close(reach.finish(at(101.0)).failed_s, 4.0);
    }

    #[test]
    fn it_is_what_many_random_tests_would_find() {
        let mut rng = Rng::new(3);
        let mut reach = Reach::new(0.2, None);
        let (mut gaps, mut now) = (Vec::new(), 0.0);
        while now < 900.0 {
            let shut = now + rng.exponential(4.0);
            now = shut + rng.exponential(1.0);
            gaps.push((shut, now));
            reach.set_open(at(shut), false);
            reach.set_open(at(now), true);
        }
        let expected = reach.finish(at(900.0)).success();

        let open = |time: f64| !gaps.iter().any(|(shut, opened)| (*shut..*opened).contains(&time));
        let tests = 40_000;
        let passed: u32 = (0..tests)
            .map(|_| {
                let start = rng.between(0.0, 899.0);
                let passes = [0.0, 0.5, 1.0].iter().any(|delay| open(start + delay) && !rng.chance(0.2));
                u32::from(passes)
            })
            .sum();
        let sampled = f64::from(passed) / f64::from(tests);
        assert!((sampled - expected).abs() < 0.006, "sampled {sampled}, integrated {expected}");
    }
}
