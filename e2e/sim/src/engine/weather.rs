//! Loss that comes in bursts, and radios that have to be paged.

use std::time::Duration;

use crate::{
    metrics::LTE,
    model::{LossBursts, Paging, Time},
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
        if self.bad == turned { usual } else { usual.max(self.bursts.loss.probability()) }
    }
}

fn span(rng: &mut Rng, mean_s: f64) -> Duration {
    Duration::from_secs_f64(rng.exponential(mean_s).min(1e9))
}

/// A radio that sleeps once its tail is over, and hears the next packet for it only after it was paged.
#[derive(Debug)]
pub(super) struct Pager {
    paging: Paging,
    rng: Rng,
    /// When something last passed, or it woke.
    awake: Time,
    /// When those that it is paged for now reach it.
    paged: Time,
}

impl Pager {
    pub(super) fn new(paging: Paging, rng: Rng) -> Self {
        Self { paging, rng, awake: Time::ZERO, paged: Time::ZERO }
    }

    /// Something passed.
    pub(super) fn note(&mut self, now: Time) {
        self.awake = self.awake.max(now);
    }

    /// When a packet that is for the client now reaches it. `None`: at once.
    pub(super) fn delays(&mut self, now: Time) -> Option<Time> {
        if self.paged <= now {
            let since = now.since(self.awake.max(self.paged));
            if since <= LTE.tail {
                return None;
            }
            let (least, most) = (self.paging.least_s, self.paging.most_s);
            self.paged = now + Duration::from_secs_f64(self.rng.between(least, most));
        }
        Some(self.paged)
    }
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

    #[test]
    fn a_sleeping_radio_is_paged_once_for_all_that_come_meanwhile() {
        let mut pager = Pager::new(Paging { least_s: 1.0, most_s: 1.0 }, Rng::new(1));
        let at = |seconds| Time::from_secs_f64(seconds);
        pager.note(at(100.0));
        assert_eq!(pager.delays(at(105.0)), None);
        assert_eq!(pager.delays(at(120.0)), Some(at(121.0)));
        assert_eq!(pager.delays(at(120.5)), Some(at(121.0)));
        assert_eq!(pager.delays(at(121.0)), None, "what is delivered then passes");
        assert_eq!(pager.delays(at(133.0)), Some(at(134.0)));
    }
}
