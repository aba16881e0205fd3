//! Loss that comes in bursts.

use std::time::Duration;

use crate::{
    model::{LossBursts, Time},
    rng::Rng,
};

/// Two states that a path changes between at random times (Gilbert 1960, Elliott 1963); in time, not by packets, as minutes
/// lie between those of an idle client. The path begins in the good one.
#[derive(Debug)]
pub(super) struct Weather {
    bursts: LossBursts,
    rng: Rng,
    bad: bool,
    until: Time,
}

impl Weather {
    pub(super) fn new(bursts: LossBursts, mut rng: Rng) -> Self {
        let until = Time::ZERO + span(&mut rng, bursts.every_s);
        Self { bursts, rng, bad: false, until }
    }

    /// When the state changes.
    pub(super) fn until(&self) -> Time {
        self.until
    }

    /// It does. Whether it is bad from now on.
    pub(super) fn turn(&mut self) -> bool {
        self.bad = !self.bad;
        let mean = if self.bad { self.bursts.mean_s } else { self.bursts.every_s };
        self.until += span(&mut self.rng, mean);
        self.bad
    }

    /// The probability of loss now or a little later, where it is `usual` in good times.
    pub(super) fn loss(&self, at: Time, usual: f64) -> f64 {
        let turned = at >= self.until;
        if self.bad == turned { usual } else { self.bursts.loss_beside(usual) }
    }
}

fn span(rng: &mut Rng, mean_s: f64) -> Duration {
    Duration::from_secs_f64(rng.exponential(mean_s).min(1e9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Loss;

    #[test]
    fn bad_times_are_as_long_and_as_far_apart_as_told() {
        let bursts = LossBursts { mean_s: 4.0, every_s: 36.0, loss: Loss::percent(80.0) };
        let mut weather = Weather::new(bursts, Rng::new(1));
        let (mut bad, mut last) = (Duration::ZERO, Time::ZERO);
        for _ in 0..20_000 {
            let until = weather.until();
            let before = weather.loss(last, 0.01);
            assert!((weather.loss(until, 0.01) - before).abs() > 0.5, "it looks ahead");
            if before > 0.5 {
                bad += until.since(last);
            }
            weather.turn();
            last = until;
        }
        let share = bad.as_secs_f64() / last.as_secs_f64();
        assert!((share - 0.1).abs() < 0.005, "{share}");
    }
}
