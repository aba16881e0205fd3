//! When the tunnel's name servers are to be in force: not while the path to them is lost for long, and not in a fight with
//! somebody who takes them away again and again. Pure.

use std::time::{Duration, Instant};

/// So long a path may be lost before names are asked of the network's own servers again: they are about to work again, and
/// what is meant for the tunnel alone is better not asked elsewhere.
pub(super) const GIVE_BACK: Duration = Duration::from_secs(30);
/// Until what was taken away is put back, doubled each time that it does not stay.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// What stood so long has stayed.
const STABLE: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Policy {
    /// Since when there is no path.
    lost: Option<Instant>,
    /// Not before this are they set again.
    again: Option<Instant>,
    set: Option<Instant>,
    failures: u32,
}

impl Policy {
    /// Whether there is a path to the servers.
    pub(super) fn handle_path(&mut self, now: Instant, there: bool) {
        self.lost = if there { None } else { self.lost.or(Some(now)) };
    }

    /// They were set.
    pub(super) fn handle_set(&mut self, now: Instant) {
        (self.set, self.again) = (Some(now), None);
    }

    /// They were taken away, or could not be set.
    pub(super) fn handle_missing(&mut self, now: Instant) {
        if self.again.is_some_and(|again| again > now) {
            return;
        }
        let stayed = self.set.take().is_some_and(|set| now.saturating_duration_since(set) >= STABLE);
        self.failures = if stayed { 0 } else { self.failures + 1 };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        self.again = Some(now + pause.min(LONGEST_PAUSE));
    }

    /// Whether the tunnel's servers are to be in force.
    pub(super) fn wants(&self, now: Instant) -> bool {
        self.give_back_at().is_none_or(|at| now < at)
    }

    /// Whether they may be set now.
    pub(super) fn may_set(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        [self.give_back_at(), self.again].into_iter().flatten().filter(|at| *at > now).min()
    }

    fn give_back_at(&self) -> Option<Instant> {
        self.lost.map(|lost| lost + GIVE_BACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_back_while_the_path_is_lost_for_long() {
        let (mut policy, began) = (Policy::default(), Instant::now());
        policy.handle_path(began, true);
        assert!(policy.wants(began) && policy.poll_timeout(began).is_none());
        policy.handle_path(began, false);
        policy.handle_path(began + GIVE_BACK / 2, false);
        assert!(policy.wants(began + GIVE_BACK / 2), "a short outage changes nothing");
        assert_eq!(policy.poll_timeout(began), Some(began + GIVE_BACK));
        assert!(!policy.wants(began + GIVE_BACK));
        assert_eq!(policy.poll_timeout(began + GIVE_BACK), None, "nothing is due then");
        policy.handle_path(began + GIVE_BACK * 2, true);
        assert!(policy.wants(began + GIVE_BACK * 2));
    }

    #[test]
    fn what_is_taken_away_is_put_back_at_once_and_ever_more_slowly_in_a_fight() {
        let (mut policy, mut now) = (Policy::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            policy.handle_set(now);
            policy.handle_missing(now);
            assert!(!policy.may_set(now));
            let again = policy.poll_timeout(now).unwrap();
            pauses.push(again - now);
            now = again;
            assert!(policy.may_set(now));
        }
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert_eq!(pauses[11], LONGEST_PAUSE);
        policy.handle_set(now);
        now += STABLE;
        policy.handle_missing(now);
        assert!(policy.poll_timeout(now).unwrap() - now <= FIRST_PAUSE);
    }

    #[test]
    fn being_told_twice_that_they_are_missing_is_no_second_time() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        policy.handle_missing(now);
        let again = policy.poll_timeout(now);
        policy.handle_missing(now);
        assert_eq!(policy.poll_timeout(now), again);
    }
}
