//! One mapping of UDP or TCP, and what is drawn for it when it is made.

use std::time::Duration;

use crate::{
    model::{Binding, Pressure, Time, Timers, Victim},
    rng::Rng,
};

/// How far the turns of the oldest mappings stray.
const STRAYS: f64 = 0.1;

/// A mapping with its timer, and the end that comes whatever that says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapping {
    binding: Binding,
    evicted: Time,
    used: Time,
}

impl Mapping {
    /// A packet from the inside passes.
    pub(super) fn outbound(&mut self, now: Time, timers: &Timers) {
        self.binding.outbound(now, timers);
        self.used = now;
    }

    /// A packet from the outside passes.
    pub(super) fn inbound(&mut self, now: Time, timers: &Timers) {
        self.binding.inbound(now, timers);
        self.used = now;
    }

    /// It is taken away.
    pub(super) fn evict(&mut self, now: Time) {
        self.evicted = self.evicted.min(now);
    }

    /// When it goes if nothing passes any more.
    pub(super) fn ends(&self, timers: &Timers) -> Time {
        self.binding.ends(timers).min(self.evicted)
    }

    pub(super) fn is_alive(&self, now: Time, timers: &Timers) -> bool {
        now < self.ends(timers)
    }

    /// When something last passed.
    pub(super) fn used(&self) -> Time {
        self.used
    }
}

/// Makes mappings.
#[derive(Debug)]
pub(super) struct Maker {
    scatter: Option<f64>,
    pressure: Option<Pressure>,
    rng: Rng,
}

impl Maker {
    pub(super) fn new(scatter: Option<f64>, pressure: Option<Pressure>, rng: Rng) -> Self {
        Self { scatter, pressure, rng }
    }

    /// One that a packet from the inside made now.
    pub(super) fn open(&mut self, now: Time) -> Mapping {
        let binding = Binding::open(now);
        let binding = match self.scatter {
            Some(scatter) => binding.living(self.rng.between(1.0 - scatter, 1.0 + scatter)),
            None => binding,
        };
        let turn = self.pressure.map_or(Time::NEVER, |Pressure { mean_s, evicts }| {
            let turn = match evicts {
                Victim::Oldest => mean_s * self.rng.between(1.0 - STRAYS, 1.0 + STRAYS),
                Victim::Random => self.rng.exponential(mean_s),
            };
            now + Duration::from_nanos(Time::from_secs_f64(turn).as_nanos())
        });
        Mapping { binding, evicted: turn, used: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Profile;

    /// The lifetimes of many new mappings, in seconds, behind a NAT that keeps them for 100 s.
    fn lifetimes(scatter: Option<f64>, pressure: Option<Pressure>, refreshed_until: u64) -> Vec<f64> {
        let timers = Timers::new(&Profile::new("plain", 100.0, 100.0), 0.0);
        let mut maker = Maker::new(scatter, pressure, Rng::new(1));
        let mut mappings: Vec<Mapping> = (0..20_000).map(|_| maker.open(Time::ZERO)).collect();
        for mapping in &mut mappings {
            mapping.outbound(Time::from_secs(refreshed_until), &timers);
        }
        mappings.iter().map(|mapping| mapping.ends(&timers).as_secs_f64()).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn scattered_lifetimes_lie_around_the_one_that_is_told() {
        let all = lifetimes(Some(0.2), None, 0);
        assert!(all.iter().all(|lifetime| (80.0..=120.0).contains(lifetime)));
        assert!((mean(&all) - 100.0).abs() < 0.5, "{}", mean(&all));
        assert!(all.iter().any(|lifetime| *lifetime < 81.0) && all.iter().any(|lifetime| *lifetime > 119.0));
    }

    #[test]
    fn refreshing_does_not_help_against_eviction() {
        let random = Pressure { mean_s: 50.0, evicts: Victim::Random };
        let all = lifetimes(None, Some(random), 10_000_000);
        assert!((mean(&all) - 50.0).abs() < 1.5, "{}", mean(&all));
        let oldest = Pressure { mean_s: 50.0, evicts: Victim::Oldest };
        let all = lifetimes(None, Some(oldest), 10_000_000);
        assert!(all.iter().all(|lifetime| (45.0..=55.0).contains(lifetime)));
    }

    #[test]
    fn without_pressure_a_mapping_lives_by_its_timer_alone() {
        assert!(lifetimes(None, None, 7).iter().all(|lifetime| (lifetime - 107.0).abs() < 1e-9));
    }
}
