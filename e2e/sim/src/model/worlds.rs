//! What else may become of mappings: lifetimes that change, differ, or are cut short because a table is full.

use serde::{Deserialize, Serialize};

/// What is wrong with a profile: a field, what it must be, and what it is.
pub(super) type Fault = (&'static str, &'static str, String);

/// Hours of each day in which all mappings live for longer or shorter. The client starts at a random hour.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// When they begin, from 0 up to 24.
    pub from_h: f64,
    /// When they are over; before `from_h` on the next day.
    pub until_h: f64,
    /// What lifetimes are multiplied by meanwhile, from 0.05 to 20.
    pub times: f64,
}

/// All mappings live for as long as the NAT's load leaves them, which changes at random times (Poisson).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// How long it is until the next change in the mean, in seconds; a minute at least.
    pub every_s: f64,
    /// Lifetimes are multiplied by something between this, from 0.05 on, and 1; all alike.
    pub least: f64,
}

/// Which mapping makes room for another subscriber's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// The one that was made first, however recently it was used.
    Oldest,
    /// Any.
    Random,
}

/// Other subscribers fill the NAT's table, and mappings go although they are refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pressure {
    /// How long it is in the mean until a mapping's turn comes, from its making on, in seconds: that give or take a
    /// tenth for the oldest, an exponential time for a random one.
    pub mean_s: f64,
    /// Which one goes.
    pub evicts: Victim,
}

/// What becomes of a new mapping that the subscriber's table has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// It is not made, and the packet dropped, until another one ends.
    Refuse,
    /// The one goes that was not used for the longest time.
    EvictOldest,
    /// Any one goes.
    EvictRandom,
}

/// The subscriber has so many mappings at a time, of UDP and TCP together (RFC 6888, requirement 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many, from 1 on.
    pub mappings: u32,
    /// What becomes of the next.
    pub full: Full,
}

const HOUR: &str = "must be an hour from 0 up to 24";
const TIMES: &str = "must be from 0.05 to 20";

impl Hours {
    pub(super) fn fault(self) -> Option<Fault> {
        let day = 0.0..24.0;
        let checks = [
            ("hours.from_h", HOUR, self.from_h, day.contains(&self.from_h)),
            ("hours.until_h", HOUR, self.until_h, day.contains(&self.until_h)),
            ("hours.times", TIMES, self.times, (0.05..=20.0).contains(&self.times)),
        ];
        first(checks)
    }

    /// Whether this hour of the day is one of them.
    pub fn contain(self, hour: f64) -> bool {
        let since = |from: f64| (hour - from).rem_euclid(24.0);
        since(self.from_h) < (self.until_h - self.from_h).rem_euclid(24.0)
    }
}

impl Load {
    pub(super) fn fault(self) -> Option<Fault> {
        first([
            ("load.every_s", "must be seconds, from a minute up", self.every_s, self.every_s >= 60.0),
            ("load.least", "must be from 0.05 to 1", self.least, (0.05..=1.0).contains(&self.least)),
        ])
    }
}

impl Pressure {
    pub(super) fn fault(self) -> Option<Fault> {
        let mean = self.mean_s;
        first([("pressure.mean_s", "must be seconds, from one up", mean, mean >= 1.0)])
    }
}

impl Quota {
    pub(super) fn fault(self) -> Option<Fault> {
        let mappings = f64::from(self.mappings);
        first([("quota.mappings", "must be one at least", mappings, self.mappings > 0)])
    }
}

fn first<const N: usize>(checks: [(&'static str, &'static str, f64, bool); N]) -> Option<Fault> {
    let wrong = checks.into_iter().find(|(.., good)| !good);
    wrong.map(|(field, demand, value, _)| (field, demand, value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_past_midnight() {
        let within = |from_h, until_h| {
            let hours = Hours { from_h, until_h, times: 0.5 };
            [0.0, 1.9, 2.0, 17.9, 18.0, 23.0].map(|hour| hours.contain(hour))
        };
        assert_eq!(within(18.0, 23.0), [false, false, false, false, true, false]);
        assert_eq!(within(23.0, 2.0), [true, true, false, false, false, true]);
        assert_eq!(within(18.0, 18.0), [false; 6]);
    }
}
