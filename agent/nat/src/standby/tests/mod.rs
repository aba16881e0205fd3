//! Standby against a model of NAT and gateway, in virtual time.

mod hostile;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use self::world::{Close, Nat, World};
use super::*;

const WEEK: Duration = Duration::from_hours(168);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn nat(lifetime: u64, udp: u64) -> Nat {
    Nat { lifetime: seconds(lifetime), close: Close::Silent, udp: seconds(udp), loss: 0.0 }
}

fn settled(nat: Nat) -> World {
    let mut world = World::new(nat, Policy::default());
    world.run(Duration::from_hours(24));
    assert_eq!(world.standby.mode(), Mode::Session, "{:?}", world.standby);
    world
}

#[test]
fn a_week_on_the_session_costs_few_wake_ups_learning_included() {
    for (lifetime, most) in [(1800, 60.0), (7200, 20.0), (7440, 20.0), (86_400, 20.0)] {
        for udp in [10, 25, 58, 107, 300] {
            for loss in [0.0, 0.05] {
                let mut world = World::new(Nat { loss, ..nat(lifetime, udp) }, Policy::default());
                world.run(WEEK);
                let (cost, success) = (world.per_day(), world.success());
                assert!(cost <= most, "{lifetime} s, udp {udp} s: {cost} {:?}", world.standby);
                assert!(success >= if loss > 0.0 { 0.999 } else { 0.9999 }, "{lifetime}/{udp}: {success}");
            }
        }
    }
}

#[test]
fn a_lost_or_shorter_mapping_is_noticed_within_the_interval_and_eight_seconds() {
    for close in [Close::Silent, Close::Reset] {
        for (lifetime, to) in
            [(1800, None), (7200, None), (1800, Some(600)), (7200, Some(200)), (600, Some(40))]
        {
            let mut world = settled(Nat { close, ..nat(lifetime, 58) });
            let interval = world.standby.interval().unwrap();
            match to {
                Some(to) => world.nat.lifetime = seconds(to),
                None => world.flush_in(Duration::ZERO),
            }
            world.run(interval + seconds(8));
            assert_eq!(world.standby.stats().suspected_losses, 1, "{lifetime} {to:?}: {:?}", world.standby);
            let success = world.success();
            world.run(interval.max(seconds(3600)) * 3);
            assert!(world.success() >= success, "blind once only: {lifetime} {to:?}");
            let stats = world.standby.stats();
            assert_eq!(
                (stats.losses, stats.shrinks),
                if to.is_some() { (0, 1) } else { (1, 0) },
                "{lifetime} {to:?}"
            );
            assert_eq!(stats.suspected_losses, 1);
            match to {
                None => assert!(world.standby.interval().unwrap() >= interval.mul_f64(0.95)),
                Some(40) => assert_eq!(world.standby.reason(), Reason::TooShort),
                Some(to) => assert!(world.standby.interval().unwrap() < seconds(to)),
            }
        }
    }
}

#[test]
fn a_session_that_lives_no_longer_than_udp_is_left_alone() {
    for close in [Close::Silent, Close::Reset] {
        for lifetime in [20, 60, 110, 180] {
            let mut world = World::new(Nat { close, ..nat(lifetime, 107) }, Policy::default());
            world.run(WEEK);
            assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::TooShort));
            let alone = 86_400.0 / 109.9;
            assert!(world.per_day() <= alone * 1.02 + 5.0, "{lifetime}: {} not {alone}", world.per_day());
            assert!(world.success() >= 0.9999, "{lifetime}: {}", world.success());
        }
    }
}

#[test]
fn nobody_rests_on_what_only_others_have_proven() {
    let now = Instant::now();
    let mut standby = Standby::new(now, Policy::default(), Some(Prior { at_least: seconds(7000) }), 1);
    standby.handle_udp(now, UdpCost { interval: seconds(60), learnt: true });
    standby.handle_attached(now);
    assert_eq!((standby.mode(), standby.reason()), (Mode::Udp, Reason::Learning));
    let rest = std::iter::from_fn(|| standby.poll_action()).find_map(|action| match action {
        Action::Rest { line: Line::Live, wake_after, .. } => Some(wake_after),
        _ => None,
    });
    assert!(rest.is_some_and(|after| after < seconds(200)), "{rest:?}");
}

#[test]
fn a_prior_saves_the_climb() {
    let mut world = World::new(nat(7440, 58), Policy::default());
    world.standby.handle_network(world.now, Some(Prior { at_least: seconds(7400) }));
    world.run(seconds(900) + seconds(7400));
    assert!(world.standby.interval().unwrap() >= seconds(7000), "{:?}", world.standby);
}

#[test]
fn the_policy_chooses_otherwise() {
    let mut world =
        World::new(nat(7200, 58), Policy { preference: Preference::UdpOnly, ..Policy::default() });
    world.run(Duration::from_hours(24));
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::Policy));
    assert_eq!(world.standby.stats(), Stats::default());
    let policy = Policy { longest_blind: Some(seconds(300)), ..Policy::default() };
    world.standby.handle_policy(world.now, policy);
    world.run(Duration::from_hours(6));
    assert_eq!(world.standby.mode(), Mode::Session);
    assert!(world.standby.interval().unwrap() <= seconds(300));
    world.standby.handle_policy(world.now, Policy { longest_blind: Some(seconds(60)), ..policy });
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::CheaperByUdp));
    let preferred = Policy { preference: Preference::Session, ..policy };
    let mut world = World::new(nat(100, 107), preferred);
    world.run(Duration::from_hours(1));
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Session, Reason::Policy));
}

#[test]
fn who_has_no_session_keeps_its_binding() {
    let mut world = World::new(nat(7200, 58), Policy::default());
    world.open = false;
    world.run(Duration::from_hours(1));
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::SessionClosed));
    assert!(world.success() > 0.9999);
}

#[test]
fn a_poke_opens_udp_at_once_and_silence_closes_it_without_a_burst() {
    let mut world = settled(nat(1800, 58));
    world.standby.handle_poke(world.now);
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::Busy));
    world.run(Duration::from_millis(130));
    world.standby.handle_reached(world.now);
    let wakeups = world.wakeups;
    assert_eq!(world.standby.stats().worst_wake, Some(Duration::from_millis(130)));
    world.run(seconds(58));
    assert_eq!(world.standby.mode(), Mode::Session);
    assert_eq!(world.wakeups, wakeups, "nothing but the answer");
    let (success, stats) = (world.success(), world.standby.stats());
    world.run(Duration::from_hours(12));
    assert!(world.success() >= success);
    assert_eq!(world.standby.stats().suspected_losses, stats.suspected_losses);
}

#[test]
fn a_gateway_that_restarts_is_no_strike() {
    let mut world = settled(nat(1800, 58));
    let interval = world.standby.interval();
    world.standby.handle_detached(world.now, Ended::Closed);
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::SessionClosed));
    world.standby.handle_attached(world.now);
    assert_eq!(world.standby.mode(), Mode::Session);
    assert_eq!((world.standby.interval(), world.standby.stats().suspected_losses), (interval, 0));
}

#[test]
fn a_session_that_is_lost_all_the_time_is_given_up_for_hours() {
    let mut world = World::new(nat(7200, 58), Policy::default());
    for minute in 0..48 {
        world.flush_in(Duration::from_mins(minute * 15));
    }
    world.run(Duration::from_hours(12));
    assert_eq!((world.standby.mode(), world.standby.reason()), (Mode::Udp, Reason::SessionLost));
    world.run(Duration::from_hours(24));
    assert_eq!(world.standby.mode(), Mode::Session, "but not for ever");
}

#[test]
fn the_more_often_mappings_are_lost_the_shorter_the_client_is_left_alone() {
    for (apart, least) in [(3, 0.98), (24, 0.98)] {
        let mut world = World::new(nat(7200, 58), Policy::default());
        for n in 1..=168 / apart {
            world.flush_in(Duration::from_hours(apart * n) + Duration::from_mins(n * 17 % 60));
        }
        world.run(WEEK);
        assert!(world.success() >= least, "every {apart} h: {} {:?}", world.success(), world.standby);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_is_never_worse_than_udp_alone(
        lifetime in (20_f64.ln()..86_400_f64.ln()).prop_map(|log| Duration::from_secs_f64(log.exp())),
        udp in 10_u64..300,
        loss in 0.0..0.1,
        reset in any::<bool>(),
    ) {
        let close = if reset { Close::Reset } else { Close::Silent };
        let mut world = World::new(Nat { lifetime, close, loss, udp: seconds(udp) }, Policy::default());
        world.run(Duration::from_hours(72));
        let alone = Duration::from_hours(24).div_duration_f64(seconds(udp) + Duration::from_millis(2880));
        let cost = world.per_day();
        prop_assert!(cost <= alone * 1.03 + 25.0, "{cost} instead of {alone}: {:?}", world.standby);
        let least = if loss > 0.05 { 0.998 } else { 0.999 };
        prop_assert!(world.success() >= least, "{}: {:?}", world.success(), world.standby);
        prop_assert!(world.standby.life.at_least <= lifetime + seconds(2));
    }
}
