//! What the oracle needs: the fewest wake-ups that keep a binding whose lifetime is known.

use std::time::Duration;

use super::BURST;
use crate::model::Time;

/// Knows the true lifetime, promotes for free, never resends, learns a change at once. Sends one packet every lifetime,
/// without waiting for a sweep.
#[derive(Debug, Clone)]
pub struct Oracle {
    lifetime: Duration,
    changes: Vec<(Time, Duration)>,
}

impl Oracle {
    /// For a lifetime, and others that hold from these times on, in their order.
    pub fn new(lifetime: Duration, changes: Vec<(Time, Duration)>) -> Self {
        Self { lifetime, changes }
    }

    /// Its wake-ups from the beginning, at which it sends its first packet, up to, not including, `end`.
    pub fn wakes(&self, end: Time) -> u64 {
        let mut period = bursts(self.lifetime);
        let (mut wakes, mut next) = (0, Time::ZERO);
        let mut last = None;
        let changes = self.changes.iter().take_while(|(at, _)| *at < end).copied();
        for (until, lifetime) in changes.chain([(end, self.lifetime)]) {
            let steps = steps(Time::from(until.since(next)), period);
            if let Some(more) = steps.checked_sub(1) {
                last = Some(next + Duration::from_nanos(nanos(period).saturating_mul(more)));
            }
            wakes += steps;
            period = bursts(lifetime);
            next = last.map_or(next, |last| until.max(last + period));
        }
        wakes
    }

    /// Its wake-ups from `start` on.
    pub fn wakes_between(&self, start: Time, end: Time) -> u64 {
        self.wakes(end) - self.wakes(start)
    }
}

/// Packets closer than a burst share one.
fn bursts(lifetime: Duration) -> Duration {
    let lifetime = lifetime.max(Duration::from_nanos(1));
    let packets = nanos(BURST) / nanos(lifetime) + 1;
    Duration::from_nanos(nanos(lifetime).saturating_mul(packets))
}

fn steps(end: Time, period: Duration) -> u64 {
    end.as_nanos().div_ceil(nanos(period))
}

fn nanos(duration: Duration) -> u64 {
    Time::from(duration).as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn it_sends_one_packet_every_lifetime() {
        let oracle = Oracle::new(secs(10), Vec::new());
        assert_eq!(oracle.wakes(Time::ZERO), 0);
        assert_eq!(oracle.wakes(Time::from_secs(10)), 1);
        assert_eq!(oracle.wakes(Time::from_secs(11)), 2);
        assert_eq!(oracle.wakes(Time::from_secs(100)), 10);
        assert_eq!(oracle.wakes_between(Time::from_secs(50), Time::from_secs(100)), 5);
    }

    #[test]
    fn it_learns_a_shrink_at_once() {
        // 0, 10, then 15 (idle for 5 already), 19, 23, 27.
        let oracle = Oracle::new(secs(10), vec![(Time::from_secs(15), secs(4))]);
        assert_eq!(oracle.wakes(Time::from_secs(30)), 6);
        // 0, 10, then 14 + 4.
        let oracle = Oracle::new(secs(10), vec![(Time::from_secs(11), secs(8))]);
        assert_eq!(oracle.wakes(Time::from_secs(18)), 2);
        assert_eq!(oracle.wakes(Time::from_secs(19)), 3);
    }

    #[test]
    fn it_learns_one_change_after_the_other() {
        // 0, 10, then 10 + 20 as of 12, but at 14 (as of 13) and 18, then 18 + 9 as of 20.
        let changes = [(12, 20), (13, 4), (20, 9)].map(|(at, to)| (Time::from_secs(at), secs(to)));
        let oracle = Oracle::new(secs(10), changes.to_vec());
        assert_eq!(
            [13, 14, 15, 18, 19, 27, 28].map(|at| oracle.wakes(Time::from_secs(at))),
            [2, 2, 3, 3, 4, 4, 5]
        );
    }

    #[test]
    fn packets_closer_than_a_burst_share_a_wake_up() {
        assert_eq!(Oracle::new(secs(3), Vec::new()).wakes(Time::from_secs(60)), 10);
        assert_eq!(Oracle::new(secs(4), Vec::new()).wakes(Time::from_secs(60)), 15);
    }
}
