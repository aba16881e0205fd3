//! Worlds that are harder than loss on its own: radios that sleep, and loss that comes in bursts.

use std::{num::NonZero, time::Duration};

use pinhole_sim::{
    fleet::{Fleet, Kind, Outcome},
    model::{Loss, LossBursts, Paging, Profile},
};

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
        clients: 24,
        duration: Duration::from_hours(48),
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
    let (calm, paged) =
        (run(|_| {}), run(|profile| profile.paging = Some(Paging { least_s: 0.3, most_s: 2.0 })));
    assert!(wakes(&paged) * 100 <= wakes(&calm) * 105, "{} and {}", wakes(&paged), wakes(&calm));
    assert!(success(&paged) >= success(&calm) - 1e-4, "{} and {}", success(&paged), success(&calm));
}

#[test]
fn bursts_of_loss_cost_what_nobody_could_get_through_and_few_wake_ups() {
    let bursts = LossBursts { mean_s: 3.0, every_s: 300.0, loss: Loss::percent(80.0) };
    let (calm, rough) = (run(|_| {}), run(|profile| profile.loss_bursts = Some(bursts)));
    assert!(wakes(&rough) * 100 <= wakes(&calm) * 106, "{} and {}", wakes(&rough), wakes(&calm));
    // A hundredth of the time is bad, and a test of three packets fails in half of it.
    assert!(success(&rough) >= 0.994, "{}", success(&rough));
}
