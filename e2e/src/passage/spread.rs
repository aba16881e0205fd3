//! How a time that was measured again and again is spread. Pure.

use std::{fmt, time::Duration};

use super::record::milliseconds;

/// Times of several trials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    sorted: Vec<Duration>,
}

impl Spread {
    /// Of these.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<_> = times.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// The one in the middle.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// Of a hundred, all but one are not above it; of fewer it is the worst.
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }

    /// By the nearest rank.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, worst] = [self.median(), self.p99(), self.worst()].map(milliseconds);
        let trials = self.sorted.len();
        write!(f, "{trials} trials, median {median:.1} ms, p99 {p99:.1} ms, worst {worst:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let of = |count: u64| Spread::of((1..=count).rev().map(Duration::from_millis));
        let told = |spread: &Spread| [spread.median(), spread.p99(), spread.worst()].map(|it| it.as_millis());
        assert_eq!(told(&of(5)), [3, 5, 5]);
        assert_eq!(told(&of(200)), [100, 198, 200]);
        assert_eq!(told(&of(0)), [0, 0, 0]);
    }

    #[test]
    fn a_line_tells_all_of_it() {
        let spread = Spread::of([30, 10, 20].map(Duration::from_millis));
        assert_eq!(spread.to_string(), "3 trials, median 20.0 ms, p99 30.0 ms, worst 30.0 ms");
    }
}
