//! When an algorithm had found its interval.

use std::time::Duration;

use crate::model::Time;

/// The interval in force over time.
#[derive(Debug, Clone)]
pub struct Intervals {
    from: Time,
    until: Time,
    changes: Vec<(Time, Duration)>,
}

/// What became of the interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convergence {
    /// The first time that it was at least 90 % of its median.
    pub at: Time,
    /// Its median over hours 6 to 24.
    pub median: Duration,
}

impl Intervals {
    /// For an observation that ends at `end`: the median is taken over hours 6 to 24, or over the last three quarters
    /// where it is shorter than a day.
    pub fn new(end: Time) -> Self {
        let until = end.min(Time::from_secs(24 * 3600));
        Self { from: Time::from_nanos(until.as_nanos() / 4), until, changes: Vec::new() }
    }

    /// Nothing later matters.
    pub fn until(&self) -> Time {
        self.until
    }

    /// The interval in force from now on.
    pub fn note(&mut self, now: Time, interval: Duration) {
        if self.changes.last().is_none_or(|(_, last)| *last != interval) && now < self.until {
            self.changes.push((now, interval));
        }
    }

    /// When it converged. `None` if there never was an interval.
    pub fn convergence(&self) -> Option<Convergence> {
        let median = self.median()?;
        let enough = median.mul_f64(0.9);
        let at = self.changes.iter().find(|(_, interval)| *interval >= enough)?.0;
        Some(Convergence { at, median })
    }

    fn median(&self) -> Option<Duration> {
        let ends = self.changes.iter().skip(1).map(|(start, _)| *start).chain([self.until]);
        let mut spans: Vec<(Duration, Duration)> = self
            .changes
            .iter()
            .zip(ends)
            .map(|((start, interval), end)| (*interval, end.since((*start).max(self.from))))
            .filter(|(_, span)| !span.is_zero())
            .collect();
        spans.sort_unstable();
        let half = spans.iter().map(|(_, span)| *span).sum::<Duration>() / 2;
        let mut passed = Duration::ZERO;
        spans.into_iter().find_map(|(interval, span)| {
            passed += span;
            (passed >= half).then_some(interval)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn it_has_converged_at_nine_tenths_of_the_median_over_hours_6_to_24() {
        let mut intervals = Intervals::new(Time::from_secs(7 * 24 * HOUR));
        for (at, interval) in [(0, 25), (60, 80), (300, 92), (7 * HOUR, 100), (30 * HOUR, 10)] {
            intervals.note(Time::from_secs(at), secs(interval));
        }
        let expected = Convergence { at: Time::from_secs(300), median: secs(100) };
        assert_eq!(intervals.convergence(), Some(expected));
    }

    #[test]
    fn the_median_is_weighted_by_time() {
        let mut intervals = Intervals::new(Time::from_secs(24 * HOUR));
        for (at, interval) in [(0, 50), (20 * HOUR, 10), (20 * HOUR + 60, 11), (20 * HOUR + 120, 12)] {
            intervals.note(Time::from_secs(at), secs(interval));
        }
        assert_eq!(intervals.convergence().unwrap().median, secs(50));
    }

    #[test]
    fn a_constant_interval_converges_at_once() {
        let mut intervals = Intervals::new(Time::from_secs(HOUR));
        intervals.note(Time::ZERO, secs(25));
        assert_eq!(intervals.convergence().unwrap().at, Time::ZERO);
    }
}
