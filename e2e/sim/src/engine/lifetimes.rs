//! Lifetimes that change for all mappings at once: when, and to what.

use std::time::Duration;

use crate::{
    model::{Hours, Load, Profile, Time},
    rng::Rng,
};

const DAY_S: f64 = 86_400.0;
const HOUR_S: f64 = 3600.0;

/// The lifetimes in force at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of UDP mappings until they are promoted.
    pub unreplied: Duration,
    /// Of UDP mappings once they are promoted.
    pub replied: Duration,
    /// Of TCP mappings, where the client has a session.
    pub tcp: Option<Duration>,
}

impl Lifetimes {
    fn times(self, factor: f64) -> Self {
        let times = |lifetime: Duration| lifetime.mul_f64(factor);
        Self { unreplied: times(self.unreplied), replied: times(self.replied), tcp: self.tcp.map(times) }
    }
}

/// They become others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Time,
    /// Which then hold.
    pub to: Lifetimes,
    /// A fault: until the client could notice, it is not to blame. Load is no fault, as it changes all the time.
    pub fault: bool,
}

/// All changes of one NAT's lifetimes.
#[derive(Debug)]
pub(super) struct Course {
    base: Lifetimes,
    hours: Option<(Hours, f64)>,
    load: Option<(Load, f64)>,
    rng: Rng,
}

impl Course {
    /// Draws the hour of the day and the load at the beginning.
    pub(super) fn new(profile: &Profile, base: Lifetimes, mut rng: Rng) -> Self {
        let begins = rng.between(0.0, 24.0);
        let load = profile.load.map(|load| (load, rng.between(load.least, 1.0)));
        Self { base, hours: profile.hours.map(|hours| (hours, begins)), load, rng }
    }

    /// Those in force now.
    pub(super) fn at(&self, now: Time) -> Lifetimes {
        let hours = self.hours.map(|(hours, begins)| {
            let hour = (begins + now.as_secs_f64() / HOUR_S).rem_euclid(24.0);
            // The boundaries themselves, where floats would not tell.
            if hours.contain((hour + 1e-6).rem_euclid(24.0)) { hours.times } else { 1.0 }
        });
        match (hours, self.load) {
            (None, None) => self.base,
            (hours, load) => self.base.times(hours.unwrap_or(1.0) * load.map_or(1.0, |(_, factor)| factor)),
        }
    }

    /// All changes until `end`, and a shrink among them.
    pub(super) fn changes(mut self, shrink: Option<(Time, Duration)>, end: Time) -> Vec<Change> {
        let mut causes: Vec<(Time, Cause)> =
            shrink.map(|(at, to)| (at, Cause::Shrink(to))).into_iter().collect();
        causes.extend(self.boundaries(end).into_iter().map(|at| (at, Cause::Hours)));
        causes.extend(self.loads(end));
        causes.sort_by_key(|(at, _)| *at);
        let mut changes = Vec::with_capacity(causes.len());
        for (at, cause) in causes {
            let before = self.at(at - Duration::from_secs(1));
            match cause {
                Cause::Shrink(to) => {
                    self.base.replied = to;
                    self.base.unreplied = self.base.unreplied.min(to);
                }
                Cause::Load(factor) => self.load = self.load.map(|(load, _)| (load, factor)),
                Cause::Hours => {}
            }
            let to = self.at(at);
            let fault = match cause {
                Cause::Shrink(_) => true,
                Cause::Hours => to.replied < before.replied,
                Cause::Load(_) => false,
            };
            changes.push(Change { at, to, fault });
        }
        changes
    }

    /// When the hours begin and are over.
    fn boundaries(&self, end: Time) -> Vec<Time> {
        let Some((hours, begins)) = self.hours else { return Vec::new() };
        let mut boundaries = Vec::new();
        for hour in [hours.from_h, hours.until_h] {
            let mut at = (hour - begins).rem_euclid(24.0) * HOUR_S;
            while at < end.as_secs_f64() {
                boundaries.push(Time::from_secs_f64(at));
                at += DAY_S;
            }
        }
        boundaries
    }

    fn loads(&mut self, end: Time) -> Vec<(Time, Cause)> {
        let Some((load, _)) = self.load else { return Vec::new() };
        let mut loads = Vec::new();
        let mut at = self.rng.exponential(load.every_s);
        while at < end.as_secs_f64() {
            loads.push((Time::from_secs_f64(at), Cause::Load(self.rng.between(load.least, 1.0))));
            at += self.rng.exponential(load.every_s);
        }
        loads
    }
}

#[derive(Debug, Clone, Copy)]
enum Cause {
    Shrink(Duration),
    Hours,
    Load(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Time = Time::from_secs(7 * 86_400);

    fn course(change: impl Fn(&mut Profile), seed: u64) -> (Lifetimes, Vec<Change>) {
        let mut profile = Profile::new("nat", 50.0, 100.0);
        change(&mut profile);
        let base = Lifetimes {
            unreplied: Duration::from_secs(50),
            replied: Duration::from_secs(100),
            tcp: Some(Duration::from_secs(1000)),
        };
        let course = Course::new(&profile, base, Rng::new(seed));
        (course.at(Time::ZERO), course.changes(None, WEEK))
    }

    /// Share of a week in which mappings lived for less than 70 s.
    fn short(first: Lifetimes, changes: &[Change]) -> f64 {
        let begins = changes.iter().map(|change| (change.at, change.to));
        let all: Vec<(Time, Lifetimes)> = std::iter::once((Time::ZERO, first)).chain(begins).collect();
        let ends = all.iter().skip(1).map(|(at, _)| *at).chain([WEEK]);
        let spans = all.iter().zip(ends).filter(|((_, held), _)| held.replied < Duration::from_secs(70));
        spans.map(|((from, _), until)| until.since(*from).as_secs_f64()).sum::<f64>() / WEEK.as_secs_f64()
    }

    #[test]
    fn hours_come_each_day_at_their_time_for_udp_and_tcp() {
        for (from_h, until_h) in [(18.0, 23.0), (22.0, 3.0)] {
            for seed in 0..20 {
                let hours = Hours { from_h, until_h, times: 0.5 };
                let (first, changes) = course(|profile| profile.hours = Some(hours), seed);
                assert!((short(first, &changes) - 5.0 / 24.0).abs() < 1e-3);
                for change in &changes {
                    let begins = change.to.replied == Duration::from_secs(50);
                    assert_eq!(change.fault, begins);
                    assert_eq!(change.to.tcp.unwrap() == Duration::from_secs(500), begins);
                }
            }
        }
    }

    #[test]
    fn load_leaves_anything_between_the_least_and_all_and_is_no_fault() {
        let load = Load { every_s: 600.0, least: 0.4 };
        let (first, changes) = course(|profile| profile.load = Some(load), 1);
        assert!((900..1120).contains(&changes.len()), "{}", changes.len());
        for change in &changes {
            assert!((0.4..=1.0).contains(&(change.to.replied.as_secs_f64() / 100.0)));
            assert!(!change.fault);
        }
        assert!((short(first, &changes) - 0.5).abs() < 0.05);
    }

    #[test]
    fn a_shrink_in_force_is_multiplied_too() {
        let mut profile = Profile::new("nat", 50.0, 100.0);
        profile.hours = Some(Hours { from_h: 0.0, until_h: 12.0, times: 0.5 });
        let base =
            Lifetimes { unreplied: Duration::from_secs(50), replied: Duration::from_secs(100), tcp: None };
        let course = Course::new(&profile, base, Rng::new(3));
        let shrink = (Time::from_secs(2 * 86_400), Duration::from_secs(40));
        let changes = course.changes(Some(shrink), WEEK);
        let late =
            changes.iter().filter(|change| change.at > shrink.0).map(|change| change.to.replied.as_secs());
        assert!(late.clone().all(|replied| [20, 40].contains(&replied)));
        assert!(late.count() > 8);
    }
}
