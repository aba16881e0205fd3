//! Random delays, so that a fleet never retries in step.

use std::time::Duration;

/// A small deterministic generator (SplitMix64): the same seed gives the same delays, which lets virtual-time
/// runs be repeated. Not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter {
    state: u64,
}

impl Jitter {
    /// A generator that starts from `seed`, which is random where a fleet is not to be in step.
    pub fn new(seed: u64) -> Self {
        Jitter { state: seed }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A delay drawn evenly from zero to `most`.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(self.next_u64() % micros)
    }

    /// Full-jitter exponential backoff: evenly from zero to `base` doubled `failures` times, at most `cap`.
    pub fn backoff(&mut self, base: Duration, cap: Duration, failures: u32) -> Duration {
        let most = base.saturating_mul(1u32.checked_shl(failures.min(30)).unwrap_or(u32::MAX)).min(cap);
        self.up_to(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_backoff_never_exceeds_its_cap(seed: u64, failures in 0u32..100) {
            let cap = Duration::from_secs(10);
            let delay = Jitter::new(seed).backoff(Duration::from_millis(250), cap, failures);
            prop_assert!(delay <= cap);
        }
    }

    #[test]
    fn two_seeds_do_not_retry_in_step() {
        let draw = |seed| Jitter::new(seed).up_to(Duration::from_secs(1));
        assert_ne!(draw(1), draw(2));
    }
}
