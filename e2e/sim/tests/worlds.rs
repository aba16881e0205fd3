//! Worlds that are harder than loss on its own: radios that sleep, loss that comes in bursts, lifetimes that change or
//! differ, and tables that are full.

use std::{num::NonZero, sync::LazyLock, time::Duration};

use pinhole_sim::{
    fleet::{Fleet, Kind},
    metrics::Outcome,
    model::{Full, Hours, Load, Loss, LossBursts, Paging, Pressure, Profile, Quota, Victim},
};

/// Without any of it.
static CALM: LazyLock<Vec<Outcome>> = LazyLock::new(|| run(|_| {}));

fn run(change: impl Fn(&mut Profile)) -> Vec<Outcome> {
    let lifetimes = [(30.0, 60.0), (30.0, 120.0), (120.0, 120.0), (60.0, 300.0)];
    let profiles = lifetimes.map(|(unreplied, replied)| {
        let mut profile = Profile::new(format!("{unreplied}/{replied}"), unreplied, replied);
        profile.promote_after_s = 2.0;
        change(&mut profile);
        profile
    });
    let fleet = Fleet {
        profiles: profiles.to_vec(),
        clients: 12,
        duration: Duration::from_hours(48),
        loss: Loss::NONE,
        seed: 9,
        threads: NonZero::<usize>::MIN,
    };
    fleet.run(Kind::Pinhole, &|_| {})
}

/// The same behind one NAT with a session, which it keeps for half an hour.
fn asleep(change: impl Fn(&mut Profile)) -> Vec<Outcome> {
    let mut profile = Profile::new("nat", 120.0, 120.0);
    profile.tcp_timeout_s = Some(1800.0);
    change(&mut profile);
    let fleet = Fleet {
        profiles: vec![profile],
        clients: 6,
        duration: Duration::from_hours(4 * 24),
        loss: Loss::NONE,
        seed: 9,
        threads: NonZero::<usize>::MIN,
    };
    fleet.run(Kind::Pinhole, &|_| {})
}

fn wakes(outcomes: &[Outcome]) -> u64 {
    outcomes.iter().map(|outcome| outcome.wakes).sum()
}

fn success(outcomes: &[Outcome]) -> f64 {
    let mut all = pinhole_sim::metrics::Reached::default();
    for outcome in outcomes {
        all += outcome.reached;
    }
    all.success()
}

#[test]
fn a_radio_that_has_to_be_paged_costs_no_wake_ups_and_no_success() {
    let (calm, paged) = (&*CALM, run(|profile| profile.paging = Some(Paging { least_s: 0.3, most_s: 2.0 })));
    assert!(wakes(&paged) * 100 <= wakes(calm) * 105, "{} and {}", wakes(&paged), wakes(calm));
    assert!(success(&paged) >= success(calm) - 1e-4, "{} and {}", success(&paged), success(calm));
}

#[test]
fn bursts_of_loss_cost_what_nobody_could_get_through_and_few_wake_ups() {
    let bursts = LossBursts { mean_s: 3.0, every_s: 300.0, loss: Loss::percent(80.0) };
    let (calm, rough) = (&*CALM, run(|profile| profile.loss_bursts = Some(bursts)));
    assert!(wakes(&rough) * 100 <= wakes(calm) * 106, "{} and {}", wakes(&rough), wakes(calm));
    // A hundredth of the time is bad, and a test of three packets fails in half of it.
    assert!(success(&rough) >= 0.994, "{}", success(&rough));
}

#[test]
fn mappings_that_do_not_live_alike_cost_the_spread_of_their_lifetimes() {
    let scattered = |profile: &mut Profile| profile.scatter = Some(0.05);
    let (calm, uneven) = (&*CALM, run(scattered));
    assert!(wakes(&uneven) * 100 <= wakes(calm) * 110, "{} and {}", wakes(&uneven), wakes(calm));
    assert!(success(&uneven) >= success(calm) - 1e-4, "{} and {}", success(&uneven), success(calm));
}

#[test]
fn eviction_costs_half_an_interval_each_time_and_few_wake_ups() {
    for evicts in [Victim::Oldest, Victim::Random] {
        let pressure = Pressure { mean_s: 43_200.0, evicts };
        let (calm, pressed) = (&*CALM, run(|profile| profile.pressure = Some(pressure)));
        assert!(wakes(&pressed) * 100 <= wakes(calm) * 105, "{} and {}", wakes(&pressed), wakes(calm));
        // Two a day, each after 150 s at most.
        assert!((0.9970..0.9999).contains(&success(&pressed)), "{evicts:?}: {}", success(&pressed));
        let asleep = asleep(|profile| profile.pressure = Some(pressure));
        assert!(success(&asleep) >= 0.96, "{evicts:?}: {}", success(&asleep));
    }
}

#[test]
fn lifetimes_that_follow_the_load_are_kept_at_what_is_left_of_them() {
    let load = Load { every_s: 1800.0, least: 0.5 };
    let (calm, loaded) = (&*CALM, run(|profile| profile.load = Some(load)));
    assert!(wakes(&loaded) <= wakes(calm) * 2, "{} and {}", wakes(&loaded), wakes(calm));
    assert!(success(&loaded) >= 0.998, "{}", success(&loaded));
}

#[test]
fn a_table_that_refuses_what_it_has_no_room_for_is_lived_with() {
    let quota = Quota { mappings: 16, full: Full::Refuse };
    let (calm, short) = (&*CALM, run(|profile| profile.quota = Some(quota)));
    assert!(wakes(&short) * 100 <= wakes(calm) * 105, "{} and {}", wakes(&short), wakes(calm));
    assert!(success(&short) >= success(calm) - 1e-4, "{} and {}", success(&short), success(calm));
}

#[test]
fn a_ladder_that_fills_a_table_makes_do_with_fewer_rungs() {
    for (full, most, least) in [(Full::EvictOldest, 125, 0.9995), (Full::EvictRandom, 150, 0.998)] {
        let quota = Quota { mappings: 16, full };
        let (calm, short) = (&*CALM, run(|profile| profile.quota = Some(quota)));
        assert!(wakes(&short) * 100 <= wakes(calm) * most, "{full:?}: {} and {}", wakes(&short), wakes(calm));
        assert!(success(&short) >= least, "{full:?}: {}", success(&short));
    }
}

#[test]
fn lifetimes_that_are_shorter_in_the_evening_are_found_long_again_at_night() {
    let hours = Hours { from_h: 18.0, until_h: 23.0, times: 0.5 };
    let (calm, daily) = (&*CALM, run(|profile| profile.hours = Some(hours)));
    assert!(wakes(&daily) * 100 <= wakes(calm) * 150, "{} and {}", wakes(&daily), wakes(calm));
    assert!(success(&daily) >= success(calm) - 2e-4, "{} and {}", success(&daily), success(calm));
}
