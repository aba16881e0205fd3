//! The NATs of many clients in a few figures.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use pinhole_crds::{NatClass, NatSummary, VPNClientStatus};

use super::nat::steady;

/// A summary that changed is written at most this often, when nothing else is.
pub const SUMMARY_REST: Duration = Duration::from_mins(1);

const HOUR: Duration = Duration::from_hours(1);

/// Rebinds are forgotten in steps of this length.
const STEP: Duration = Duration::from_mins(5);

/// What is counted of clients' NATs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Clients by class, those of which nothing is known included.
    pub classes: BTreeMap<NatClass, i64>,
    /// Clients by the measured lifetime of their mappings.
    pub lifetimes: BTreeMap<Duration, usize>,
}

impl Tally {
    /// Of the clients with these statuses.
    pub fn of<'a>(statuses: impl IntoIterator<Item = &'a VPNClientStatus>) -> Self {
        let mut tally = Self::default();
        for status in statuses {
            let class = status.nat.as_ref().map(|nat| nat.class).unwrap_or_default();
            *tally.classes.entry(class).or_default() += 1;
            if let Some(at_least) = status.binding.as_ref().and_then(|b| b.at_least) {
                *tally.lifetimes.entry(at_least.0).or_default() += 1;
            }
        }
        tally
    }

    /// Adds the clients of another pool.
    pub fn add(&mut self, other: &Self) {
        for (class, n) in &other.classes {
            *self.classes.entry(*class).or_default() += n;
        }
        for (lifetime, n) in &other.lifetimes {
            *self.lifetimes.entry(*lifetime).or_default() += n;
        }
    }

    fn median(&self) -> Option<Duration> {
        let all: usize = self.lifetimes.values().sum();
        let mut seen = 0;
        let middle = |(lifetime, n): (&Duration, &usize)| {
            seen += n;
            (seen * 2 >= all).then_some(*lifetime)
        };
        self.lifetimes.iter().find_map(middle)
    }
}

/// The summary to write. None: there is nothing to say, and never was.
pub fn summary(before: Option<&NatSummary>, tally: &Tally, rebinds: u64) -> Option<NatSummary> {
    let known = tally.classes.iter().filter(|(class, n)| **class != NatClass::Unknown && **n > 0);
    let summary = NatSummary {
        classes: known.map(|(class, n)| (*class, *n)).collect(),
        median_lifetime: tally.median().map(|m| steady(before.and_then(|b| b.median_lifetime), m)),
        min_lifetime: tally.lifetimes.keys().next().map(|m| steady(before.and_then(|b| b.min_lifetime), *m)),
        rebinds_per_hour: Some(rounded(rebinds)),
    };
    let empty = NatSummary { rebinds_per_hour: Some(0), ..NatSummary::default() };
    (before.is_some() || summary != empty).then_some(summary)
}

/// Exact below ten, and to one digit above.
fn rounded(rebinds: u64) -> i64 {
    let scale = 10_u64.pow(rebinds.max(1).ilog10());
    i64::try_from(if rebinds < 10 { rebinds } else { rebinds / scale * scale }).unwrap_or(i64::MAX)
}

/// How long a status is left as it is, when nothing but its summary changed. None: it may be written.
pub fn rest(only_summary_changed: bool, written_ago: Option<Duration>) -> Option<Duration> {
    let rest = SUMMARY_REST.checked_sub(written_ago?)?;
    only_summary_changed.then_some(rest + Duration::from_millis(50))
}

/// Moves and losses of mappings within the last hour.
#[derive(Clone, Debug, Default)]
pub struct Rebinds(VecDeque<(Instant, u64)>);

impl Rebinds {
    /// `news` more at `now`.
    pub fn count(&mut self, now: Instant, news: u64) {
        match self.0.back_mut() {
            Some((since, n)) if now.saturating_duration_since(*since) < STEP => *n = n.saturating_add(news),
            _ => self.0.push_back((now, news)),
        }
        self.forget(now);
    }

    /// Within the hour before `now`.
    pub fn per_hour(&mut self, now: Instant) -> u64 {
        self.forget(now);
        self.0.iter().fold(0, |sum: u64, (_, n)| sum.saturating_add(*n))
    }

    /// When the figure changes next though nothing happens.
    pub fn next_change(&self, now: Instant) -> Option<Duration> {
        let (since, _) = self.0.front()?;
        Some((*since + HOUR).saturating_duration_since(now) + Duration::from_millis(50))
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= HOUR) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use pinhole_crds::{BindingLifetime, Interval, NatBehaviour};

    use super::*;

    fn status(class: NatClass, lifetime: u64) -> VPNClientStatus {
        VPNClientStatus {
            nat: Some(NatBehaviour { class, ..NatBehaviour::default() }),
            binding: Some(BindingLifetime {
                at_least: Some(Interval(Duration::from_secs(lifetime))),
                ..BindingLifetime::default()
            }),
            ..VPNClientStatus::default()
        }
    }

    #[test]
    fn a_summary_counts_classes_and_names_the_median_and_the_least_lifetime() {
        let clients = [
            status(NatClass::EndpointIndependent, 120),
            status(NatClass::EndpointIndependent, 180),
            status(NatClass::AddressAndPortDependent, 30),
            VPNClientStatus::default(),
        ];
        let made = summary(None, &Tally::of(&clients), 0).unwrap();
        let classes: Vec<_> = made.classes.into_iter().collect();
        assert_eq!(classes, [(NatClass::EndpointIndependent, 2), (NatClass::AddressAndPortDependent, 1)]);
        assert_eq!(made.median_lifetime.unwrap().to_string(), "2m");
        assert_eq!(made.min_lifetime.unwrap().to_string(), "30s");
    }

    #[test]
    fn nothing_is_said_of_clients_of_which_nothing_is_known() {
        assert_eq!(summary(None, &Tally::of(&[VPNClientStatus::default()]), 0), None);
    }

    #[test]
    fn a_wobbling_median_is_written_once() {
        let first = summary(None, &Tally::of(&[status(NatClass::NAT, 100)]), 12);
        let second = summary(first.as_ref(), &Tally::of(&[status(NatClass::NAT, 103)]), 17);
        assert_eq!(first, second);
    }

    #[test]
    fn rebinds_are_those_of_the_last_hour() {
        let (mut rebinds, now) = (Rebinds::default(), Instant::now());
        rebinds.count(now, 2);
        rebinds.count(now + Duration::from_mins(1), 1);
        rebinds.count(now + Duration::from_mins(30), 4);
        assert_eq!(rebinds.per_hour(now + Duration::from_mins(59)), 7);
        assert_eq!(rebinds.per_hour(now + Duration::from_mins(61)), 4);
        assert_eq!(rebinds.per_hour(now + Duration::from_mins(91)), 0);
        assert_eq!(rebinds.next_change(now), None);
    }

    #[test]
    fn a_summary_alone_waits_and_with_other_news_it_does_not() {
        let lately = Some(Duration::from_secs(10));
        assert!(rest(true, lately).is_some_and(|wait| wait < SUMMARY_REST));
        assert_eq!(rest(false, lately), None);
        assert_eq!(rest(true, None), None);
        assert_eq!(rest(true, Some(SUMMARY_REST * 2)), None);
    }
}
