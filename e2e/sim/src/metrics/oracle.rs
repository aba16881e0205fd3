//! What the oracle needs: the fewest wake-ups that keep a binding whose lifetime is known.

use std::time::Duration;

use super::BURST;
use crate::model::Time;

/// Knows the true lifetime, promotes for free, never resends, learns a shrink at once. Sends one packet every lifetime,
/// without waiting for a sweep.
#[derive(Debug, Clone, Copy)]
pub struct Oracle {
    lifetime: Duration,
    shrink: Option<(Time, Duration)>,
}

impl Oracle {
    /// For a lifetime, and another one from some time on.
    pub fn new(lifetime: Duration, shrink: Option<(Time, Duration)>) -> Self {
        Self { lifetime, shrink }
    }

    /// Its wake-ups from the beginning, at which it sends its first packet, up to, not including, `end`.
    pub fn wakes(&self, end: Time) -> u64 {
        let shrink = self.shrink.filter(|(at, _)| *at < end);
        let before = shrink.map_or(end, |(at, _)| at);
        let period = bursts(self.lifetime);
        let wakes = steps(before, period);
        let Some((at, lifetime)) = shrink else { return wakes };
        let last = Time::from_nanos(wakes.saturating_sub(1).saturating_mul(nanos(period)));
        let period = bursts(lifetime);
        let next = at.max(last + period);
        wakes + steps(Time::from(end.since(next)), period)
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
        let oracle = Oracle::new(secs(10), None);
        assert_eq!(oracle.wakes(Time::ZERO), 0);
        assert_eq!(oracle.wakes(Time::from_secs(10)), 1);
        assert_eq!(oracle.wakes(Time::from_secs(11)), 2);
        assert_eq!(oracle.wakes(Time::from_secs(100)), 10);
        assert_eq!(oracle.wakes_between(Time::from_secs(50), Time::from_secs(100)), 5);
    }

    #[test]
    fn it_learns_a_shrink_at_once() {
        // 0, 10, then 15 (idle for 5 already), 19, 23, 27.
        let oracle = Oracle::new(secs(10), Some((Time::from_secs(15), secs(4))));
        assert_eq!(oracle.wakes(Time::from_secs(30)), 6);
        // 0, 10, then 14 + 4.
        let oracle = Oracle::new(secs(10), Some((Time::from_secs(11), secs(8))));
        assert_eq!(oracle.wakes(Time::from_secs(18)), 2);
        assert_eq!(oracle.wakes(Time::from_secs(19)), 3);
    }

    #[test]
    fn packets_closer_than_a_burst_share_a_wake_up() {
        assert_eq!(Oracle::new(secs(3), None).wakes(Time::from_secs(60)), 10);
        assert_eq!(Oracle::new(secs(4), None).wakes(Time::from_secs(60)), 15);
    }
}
