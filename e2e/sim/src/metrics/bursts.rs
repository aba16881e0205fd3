//! Wake-ups: bursts of packets, which cost a radio about the same as a single one.

use std::time::Duration;

use pinhole_nat::RADIO;

use crate::model::Time;

/// A burst starts at a packet more than so long after the *start* of the burst before: bursts do not chain.
pub const BURST: Duration = RADIO;

/// Counts bursts, and remembers the early ones, as it is known only later which of them count as converged.
#[derive(Debug, Clone)]
pub struct Bursts {
    remember_until: Time,
    early: Vec<Burst>,
    later: u64,
    later_live: u64,
    last: Option<Burst>,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    start: Time,
    /// Whether the live channel took part; otherwise it was probes alone.
    live: bool,
}

impl Bursts {
    /// None so far. Those that start before `remember_until` can be told apart later.
    pub fn new(remember_until: Time) -> Self {
        Self { remember_until, early: Vec::new(), later: 0, later_live: 0, last: None }
    }

    /// A packet was sent or received, on the live channel or on a probe's.
    pub fn note(&mut self, now: Time, live: bool) {
        if let Some(burst) = &mut self.last
            && now.since(burst.start) <= BURST
        {
            burst.live |= live;
            return;
        }
        self.finish();
        self.last = Some(Burst { start: now, live });
    }

    fn finish(&mut self) {
        let Some(burst) = self.last.take() else { return };
        if burst.start < self.remember_until {
            self.early.push(burst);
            return;
        }
        self.later += 1;
        self.later_live += u64::from(burst.live);
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.early.len() as u64 + self.later + u64::from(self.last.is_some())
    }

    /// How many started at `from` or later and were not probes alone. `from` is at most what is remembered.
    pub fn live_since(&self, from: Time) -> u64 {
        let early = self.early.iter().chain(&self.last).filter(|burst| burst.live && burst.start >= from);
        early.count() as u64 + self.later_live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(times: &[f64]) -> u64 {
        let mut bursts = Bursts::new(Time::from_secs(100));
        for time in times {
            bursts.note(Time::from_secs_f64(*time), true);
        }
        bursts.total()
    }

    #[test]
    fn packets_within_three_seconds_of_the_first_are_one_burst() {
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[10.0]), 1);
        assert_eq!(count(&[10.0, 10.1, 12.8, 13.0]), 1);
        assert_eq!(count(&[10.0, 13.001]), 2);
    }

    #[test]
    fn bursts_do_not_chain() {
        assert_eq!(count(&[10.0, 12.0, 14.0]), 2);
        assert_eq!(count(&[10.0, 12.0, 14.0, 16.0, 18.0]), 3);
    }

    #[test]
    fn probes_alone_are_a_burst_but_not_one_of_the_live_channel() {
        for remembered in [0, 15, 100] {
            let mut bursts = Bursts::new(Time::from_secs(remembered));
            for (second, live) in [(10, true), (20, false), (21, true), (30, false), (31, false)] {
                bursts.note(Time::from_secs(second), live);
            }
            assert_eq!(bursts.total(), 3);
            assert_eq!(bursts.live_since(Time::ZERO), 2, "remembered until {remembered}");
        }
    }

    #[test]
    fn what_came_before_convergence_is_left_out() {
        let mut bursts = Bursts::new(Time::from_secs(100));
        for second in [10, 20, 30, 200, 210] {
            bursts.note(Time::from_secs(second), true);
        }
        assert_eq!(bursts.live_since(Time::from_secs(20)), 4);
        assert_eq!(bursts.total(), 5);
    }
}
