//! Each algorithm alone, behind NATs whose lifetimes are known.

use std::time::{Duration, Instant};

use super::{Algorithm, Cliffs, Growth, HalfOfSearch, Pinhole};
use crate::{
    engine::{Observed, Scenario, run::perform},
    model::{Loss, PortAllocation, Profile, Time},
};

/// Behind a NAT for so many hours, without loss.
fn keep<A: Algorithm>(profile: &Profile, hours: u64, build: impl FnOnce(Instant) -> A) -> (Observed, A) {
    let scenario = Scenario::draw(profile, Loss::NONE, Time::from_secs(hours * 3600), 3);
    perform(&scenario, None, |_, now| build(now))
}

fn plain(lifetime: f64) -> Profile {
    Profile::new("plain", lifetime, lifetime)
}

/// Netfilter with its usual timeouts.
fn linux() -> Profile {
    let mut profile = Profile::new("linux", 30.0, 120.0);
    profile.promote_after_s = 2.0;
    profile
}

fn secs(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

#[test]
fn half_of_the_search_is_half_of_a_single_lifetime() {
    for lifetime in [20.0, 45.0, 100.0, 300.0, 690.0] {
        let (observed, search) = keep(&plain(lifetime), 5, HalfOfSearch::new);
        let interval = search.interval();
        assert!(search.has_verdict());
        assert!((secs(lifetime / 2.0 - 2.6)..=secs(lifetime / 2.0)).contains(&interval), "{interval:?}");
        assert!(observed.reached.success() > 0.99);
    }
}

#[test]
fn half_of_the_search_is_half_of_the_wrong_lifetime_where_there_are_two() {
    let (_, search) = keep(&linux(), 5, HalfOfSearch::new);
    assert!((secs(12.4)..=secs(15.0)).contains(&search.interval()), "{:?}", search.interval());
}

#[test]
fn cliffs_find_the_last_one_that_holds() {
    for (lifetime, interval) in
        [(7.0, 3.0), (9.0, 8.0), (29.0, 28.0), (45.0, 28.0), (60.0, 58.0), (300.0, 58.0)]
    {
        let (_, cliffs) = keep(&plain(lifetime), 5, Cliffs::new);
        assert!(cliffs.has_verdict());
        assert_eq!(cliffs.interval(), secs(interval), "lifetime {lifetime}");
    }
}

#[test]
fn a_heartbeat_grows_until_it_fails_and_steps_back() {
    for lifetime in [41.0, 98.0, 203.0] {
        let (observed, growth) = keep(&plain(lifetime), 20, Growth::new);
        assert!(growth.has_verdict());
        let interval = growth.interval();
        assert!((secs(lifetime - 23.0)..secs(lifetime)).contains(&interval), "{lifetime}: {interval:?}");
        // It costs three outages.
        assert!((3.0..300.0).contains(&observed.reached.failed_s), "{:?}", observed.reached);
    }
}

#[test]
fn the_keeper_learns_the_longer_of_two_lifetimes() {
    for port in [PortAllocation::Preserve, PortAllocation::Random] {
        let mut profile = linux();
        profile.port = port;
        let (observed, keeper) = keep(&profile, 6, |now| Pinhole::new(now, 1));
        assert!(keeper.has_verdict());
        assert!((secs(105.0)..secs(120.0)).contains(&keeper.interval()), "{:?}", keeper.interval());
        assert!(observed.reached.success() > 0.9999, "{:?}", observed.reached);
    }
}
