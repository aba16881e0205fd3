//! When an authority is made, used and dropped. Pure.
//!
//! A new authority is in the trust bundle for [`SPREAD`] before anything is issued from it, so that whoever
//! checks a certificate already trusts it; the old one stays until the last certificate it issued is over.

use std::time::{Duration, SystemTime};

use super::CLIENT_LIFETIME;

const DAY: Duration = Duration::from_hours(24);

/// Lifetime of an authority.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_hours(3 * 365 * 24);

/// A successor is made when an authority has less than this left.
pub const SUCCESSOR_BEFORE: Duration = Duration::from_hours(180 * 24);

/// Time between making an authority and issuing from it. Longer than any certificate lives: every holder has
/// renewed in between and got the bundle with both.
pub const SPREAD: Duration = CLIENT_LIFETIME.saturating_add(DAY);

/// Validity starts this long before an authority or certificate is made: clocks differ.
pub const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// That of an authority or certificate made at `now` to live for `lifetime`.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self { not_before: now - CLOCK_SKEW, not_after: now + lifetime }
    }

    /// Whether `now` lies in it.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    fn made(&self) -> SystemTime {
        self.not_before + CLOCK_SKEW
    }
}

/// What is to be done with the authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Make one more.
    Make,
    /// Drop the one at this index.
    Drop(usize),
}

/// The next step, for authorities in the order in which they were made.
pub fn next_step(authorities: &[Validity], now: SystemTime) -> Step {
    if let Some(over) = authorities.iter().position(|a| a.not_after < now) {
        return Step::Drop(over);
    }
    let Some(newest) = authorities.last() else {
        return Step::Make;
    };
    if newest.not_after < now + SUCCESSOR_BEFORE {
        return Step::Make;
    }
    let superseded = authorities.len() > 1 && newest.made() + SPREAD + CLIENT_LIFETIME + DAY <= now;
    if superseded { Step::Drop(0) } else { Step::Keep }
}

/// The authority to issue from: the newest that everybody knows by now, else the oldest that is valid.
pub fn issuing(authorities: &[Validity], now: SystemTime) -> Option<usize> {
    let spread = authorities.iter().rposition(|a| a.contains(now) && a.made() + SPREAD <= now);
    spread.or_else(|| authorities.iter().position(|a| a.contains(now)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn day(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 20_000 + DAY * u32::try_from(n).unwrap()
    }

    fn made_on(n: u64) -> Validity {
        Validity::starting(day(n), AUTHORITY_LIFETIME)
    }

    #[test]
    fn the_first_authority_is_made_and_used_at_once() {
        assert_eq!(next_step(&[], day(0)), Step::Make);
        assert_eq!(issuing(&[made_on(0)], day(0)), Some(0));
        assert_eq!(next_step(&[made_on(0)], day(0)), Step::Keep);
    }

    #[test]
    fn a_successor_is_made_in_time_and_only_one() {
        let first = made_on(0);
        let due = 3 * 365 - 180;
        assert_eq!(next_step(&[first], day(due - 1)), Step::Keep);
        assert_eq!(next_step(&[first], day(due + 1)), Step::Make);
        assert_eq!(next_step(&[first, made_on(due + 1)], day(due + 2)), Step::Keep);
    }

    #[test]
    fn a_successor_issues_only_when_every_holder_can_know_it() {
        let both = [made_on(0), made_on(920)];
        assert_eq!(issuing(&both, day(920) + SPREAD - DAY), Some(0));
        assert_eq!(issuing(&both, day(920) + SPREAD), Some(1));
    }

    #[test]
    fn an_authority_goes_when_the_last_certificate_it_issued_is_over() {
        let both = [made_on(0), made_on(920)];
        let last_issued = day(920) + SPREAD;
        assert_eq!(next_step(&both, last_issued + CLIENT_LIFETIME), Step::Keep);
        assert_eq!(next_step(&both, last_issued + CLIENT_LIFETIME + DAY), Step::Drop(0));
    }

    #[test]
    fn when_the_operator_was_off_for_years_a_new_authority_takes_over_at_once() {
        let old = made_on(0);
        let now = day(4000);
        assert_eq!(next_step(&[old], now), Step::Drop(0));
        assert_eq!(next_step(&[], now), Step::Make);
        assert_eq!(issuing(&[Validity::starting(now, AUTHORITY_LIFETIME)], now), Some(0));
    }

    proptest! {
        /// Run daily for ten years: whatever was issued is trusted, by those who know the bundle of that time,
        /// for as long as it lives.
        #[test]
        fn a_certificate_outlives_no_authority_that_issued_it(start in 0u64..400, step in 1u64..20) {
            let mut authorities = vec![made_on(start)];
            let mut issued: Vec<(Validity, SystemTime)> = vec![];
            for d in (start..start + 3650).step_by(usize::try_from(step).unwrap()) {
                let now = day(d);
                loop {
                    match next_step(&authorities, now) {
                        Step::Keep => break,
                        Step::Make => authorities.push(Validity::starting(now, AUTHORITY_LIFETIME)),
                        Step::Drop(i) => { authorities.remove(i); }
                    }
                    prop_assert!(authorities.len() <= 2);
                }
                let by = authorities[issuing(&authorities, now).unwrap()];
                issued.retain(|(_, until)| *until >= now);
                for (by, _) in &issued {
                    prop_assert!(authorities.contains(by), "dropped while a certificate of it lives");
                }
                issued.push((by, (now + CLIENT_LIFETIME).min(by.not_after)));
                prop_assert!(by.not_after >= now + CLIENT_LIFETIME, "cuts the certificate short");
            }
        }
    }
}
