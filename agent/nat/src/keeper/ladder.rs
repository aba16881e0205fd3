//! Which ages are tested.

use std::time::Duration;

use super::lifetime::Lifetime;

/// The lowest search step.
const LOWEST: Duration = Duration::from_secs(2);
/// Rungs are this far apart: a verdict then takes at most 1.3 lifetimes and the time to promote.
const RATIO: f64 = 1.3;
/// Long lifetimes are had at a pace that costs fewer wake-ups.
const LONG: Duration = Duration::from_secs(702);
const LONG_RATIO: f64 = 1.5;
/// Bounds the sockets, whatever is asked for.
const MAX_STEPS: usize = 32;
/// What a refinement cuts a bracket into.
const PARTS: u32 = 4;

/// The ages above `from`, up to and including the first that is beyond `longest`.
pub(super) fn search_steps(from: Duration, longest: Duration) -> Vec<Duration> {
    let first = if from.is_zero() { LOWEST } else { next(from) };
    let mut steps: Vec<_> = std::iter::successors(Some(first), |&step| (step < longest).then(|| next(step)))
        .take(MAX_STEPS)
        .collect();
    if let Some(last) = steps.last_mut() {
        *last = (*last).min(longest.max(first));
    }
    steps
}

/// The ages that tell whether an expected bracket holds: few, the bracket's own ends, and the way on above.
pub(super) fn rungs_around(expected: &Lifetime, longest: Duration) -> Vec<Duration> {
    let below = search_steps(Duration::ZERO, expected.at_least)
        .into_iter()
        .filter(|&step| step < expected.at_least.mul_f64(0.9))
        .collect::<Vec<_>>();
    // Every second one keeps the live channel well inside of what is proven.
    let skip = usize::from(below.len() % 2 == 0);
    let mut all: Vec<_> = below.into_iter().skip(skip).step_by(2).collect();
    all.push(expected.at_least);
    let top = expected.less_than.unwrap_or(expected.at_least);
    all.extend(expected.less_than);
    all.extend(search_steps(top, longest).into_iter().take(2));
    all
}

/// The ages that cut the bracket into parts of equal ratio.
pub(super) fn parts(at_least: Duration, less_than: Duration) -> impl Iterator<Item = Duration> {
    let ratio = less_than.as_secs_f64() / at_least.as_secs_f64().max(0.001);
    (1..PARTS).map(move |part| at_least.mul_f64(ratio.powf(f64::from(part) / f64::from(PARTS))))
}

/// An age beyond the bracket, which only longer lifetimes reach.
pub(super) fn beyond(less_than: Duration) -> Duration {
    less_than + less_than.mul_f64(0.03).max(Duration::from_secs(1))
}

fn next(step: Duration) -> Duration {
    step.mul_f64(if step < LONG { RATIO } else { LONG_RATIO })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_close_enough_for_a_verdict_within_a_third_of_the_lifetime() {
        let all = search_steps(Duration::ZERO, Duration::from_hours(1));
        assert!(all.len() <= MAX_STEPS);
        assert_eq!(all.last(), Some(&Duration::from_hours(1)));
        for pair in all.windows(2) {
            let limit = if pair[0] < LONG { 1.301 } else { 1.501 };
            assert!(pair[1] > pair[0] && pair[1] <= pair[0].mul_f64(limit), "{pair:?}");
        }
    }

    #[test]
    fn a_refinement_stays_inside_of_the_bracket() {
        let ages: Vec<_> = parts(Duration::from_secs(10), Duration::from_secs(160)).collect();
        assert_eq!(ages, [20, 40, 80].map(Duration::from_secs));
    }

    #[test]
    fn an_expected_bracket_is_tested_at_its_own_ends() {
        let expected = Lifetime {
            at_least: Duration::from_secs(118),
            less_than: Some(Duration::from_secs(121)),
            ..Lifetime::default()
        };
        let all = rungs_around(&expected, Duration::from_hours(1));
        assert!(all.contains(&Duration::from_secs(118)) && all.contains(&Duration::from_secs(121)));
        assert!(all.len() < 14, "{all:?}");
        assert!(all.is_sorted());
    }
}
