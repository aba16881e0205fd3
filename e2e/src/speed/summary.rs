//! Medians, their spread, and ratios.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Contender, Link, Metric, Scenario, scenario::quantile};

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) link: Link,
    pub(super) scenario: Scenario,
    pub(super) metric: Metric,
}

/// Readings by round. One that failed is missing.
type Rounds = BTreeMap<u32, f64>;

/// All readings, one a round for each contender.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<Key, BTreeMap<Contender, Rounds>>);

/// A median, and what it lies between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// One figure of one contender.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub(super) link: Link,
    pub(super) scenario: String,
    pub(super) metric: Metric,
    pub(super) contender: Contender,
    /// The readings, by round.
    pub(super) readings: Vec<f64>,
    /// What they come to.
    pub(super) value: Spread,
    /// The same as multiples of the reference's readings of the same rounds.
    pub(super) ratio: Option<Spread>,
}

impl Spread {
    /// Of all readings; none of none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let [median, least, most] = [0.5, 0.0, 1.0].map(|share| quantile(values, share));
        Some(Self { median: median?, least: least?, most: most? })
    }
}

impl Samples {
    pub(super) fn add(&mut self, key: Key, contender: Contender, (round, value): (u32, f64)) {
        self.0.entry(key).or_default().entry(contender).or_default().insert(round, value);
    }

    /// All figures, with ratios to one contender's.
    pub(super) fn figures(&self, reference: Contender) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (key, contenders) in &self.0 {
            let base = contenders.get(&reference).filter(|_| key.metric.is_a_quantity());
            for (&contender, rounds) in contenders {
                let readings: Vec<f64> = rounds.values().copied().collect();
                let Some(value) = Spread::of(&readings) else { continue };
                figures.push(Figure {
                    link: key.link,
                    scenario: key.scenario.to_string(),
                    metric: key.metric,
                    contender,
                    readings,
                    value,
                    ratio: base.and_then(|base| Spread::of(&ratios(rounds, base))),
                });
            }
        }
        figures
    }
}

fn ratios(rounds: &Rounds, base: &Rounds) -> Vec<f64> {
    let base_of = |round| base.get(round).copied().filter(|&base| base > 0.0);
    rounds.iter().filter_map(|(round, reading)| Some(reading / base_of(round)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { link: Link::Plain, scenario: Scenario::Tcp1Up, metric: Metric::Throughput };

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut samples = Samples::default();
        // The machine is twice as fast in the second round, and all with it.
        for (round, (ours, theirs)) in (1..).zip([(2.0, 1.0), (4.0, 2.0), (3.3, 1.1)]) {
            samples.add(KEY, Contender::Pinhole, (round, ours));
            samples.add(KEY, Contender::WireguardGo, (round, theirs));
        }
        let figures = samples.figures(Contender::WireguardGo);
        let ours = figures.iter().find(|figure| figure.contender == Contender::Pinhole).unwrap();
        assert_eq!(ours.value, Spread { median: 3.3, least: 2.0, most: 4.0 });
        let ratio = ours.ratio.unwrap();
        assert_eq!((ratio.median, ratio.least), (2.0, 2.0));
        assert!((ratio.most - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_round_that_failed_for_one_of_them_has_no_ratio() {
        let mut samples = Samples::default();
        for (contender, rounds) in
            [(Contender::Pinhole, [(1, 2.0), (3, 6.0)]), (Contender::WireguardGo, [(2, 9.0), (3, 2.0)])]
        {
            for reading in rounds {
                samples.add(KEY, contender, reading);
            }
        }
        let figures = samples.figures(Contender::WireguardGo);
        let ours = figures.iter().find(|figure| figure.contender == Contender::Pinhole).unwrap();
        assert_eq!(ours.readings, [2.0, 6.0]);
        assert_eq!(ours.ratio, Some(Spread { median: 3.0, least: 3.0, most: 3.0 }));
    }

    #[test]
    fn what_may_be_nothing_has_no_ratio() {
        let key = Key { metric: Metric::Loss, ..KEY };
        let mut samples = Samples::default();
        samples.add(key, Contender::WireguardGo, (1, 0.0));
        samples.add(key, Contender::Pinhole, (1, 0.0));
        assert!(samples.figures(Contender::WireguardGo).iter().all(|figure| figure.ratio.is_none()));
    }
}
