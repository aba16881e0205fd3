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

/// All readings, one a round for each contender.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<Key, BTreeMap<Contender, Vec<f64>>>);

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
    pub(super) fn add(&mut self, key: Key, contender: Contender, value: f64) {
        self.0.entry(key).or_default().entry(contender).or_default().push(value);
    }

    /// All figures, with ratios to one contender's.
    pub(super) fn figures(&self, reference: Contender) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (key, contenders) in &self.0 {
            let base = contenders.get(&reference).filter(|_| key.metric.is_a_quantity());
            for (&contender, readings) in contenders {
                let Some(value) = Spread::of(readings) else { continue };
                figures.push(Figure {
                    link: key.link,
                    scenario: key.scenario.to_string(),
                    metric: key.metric,
                    contender,
                    readings: readings.clone(),
                    value,
                    ratio: base.and_then(|base| Spread::of(&ratios(readings, base))),
                });
            }
        }
        figures
    }
}

fn ratios(readings: &[f64], base: &[f64]) -> Vec<f64> {
    readings.iter().zip(base).filter(|(_, base)| **base > 0.0).map(|(reading, base)| reading / base).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { link: Link::Plain, scenario: Scenario::Tcp1Up, metric: Metric::Throughput };

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut samples = Samples::default();
        // The machine is twice as fast in the second round, and all with it.
        for (ours, theirs) in [(2.0, 1.0), (4.0, 2.0), (3.3, 1.1)] {
            samples.add(KEY, Contender::Pinhole, ours);
            samples.add(KEY, Contender::WireguardGo, theirs);
        }
        let figures = samples.figures(Contender::WireguardGo);
        let ours = figures.iter().find(|figure| figure.contender == Contender::Pinhole).unwrap();
        assert_eq!(ours.value, Spread { median: 3.3, least: 2.0, most: 4.0 });
        let ratio = ours.ratio.unwrap();
        assert_eq!((ratio.median, ratio.least), (2.0, 2.0));
        assert!((ratio.most - 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_may_be_nothing_has_no_ratio() {
        let key = Key { metric: Metric::Loss, ..KEY };
        let mut samples = Samples::default();
        samples.add(key, Contender::WireguardGo, 0.0);
        samples.add(key, Contender::Pinhole, 0.0);
        assert!(samples.figures(Contender::WireguardGo).iter().all(|figure| figure.ratio.is_none()));
    }
}
