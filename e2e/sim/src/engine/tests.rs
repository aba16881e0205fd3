//! The engine itself: a script of packets, and what is observed of it.

use std::time::{Duration, Instant};

use pinhole_nat::{Beat, Channel, Reply, Wake};

use super::{Change, Lifetimes, Observed, Scenario, run::perform};
use crate::{
    algorithm::{self, Action, Algorithm},
    engine::run,
    metrics::FaultKind,
    model::{Loss, PortAllocation, Profile, Time},
    profiles,
};

/// Does things at given seconds, proves its path when it is told to, and writes down what comes.
#[derive(Debug)]
struct Script {
    epoch: Instant,
    plan: Vec<(f64, Action)>,
    done: usize,
    due: usize,
    proves: bool,
    prove: bool,
    replies: Vec<(f64, Reply)>,
    wakes: Vec<(f64, Wake)>,
}

impl Script {
    fn at(&self, now: Instant) -> f64 {
        now.duration_since(self.epoch).as_secs_f64()
    }
}

impl Algorithm for Script {
    fn handle_reply(&mut self, now: Instant, reply: Reply) {
        self.prove = self.proves && reply.channel == Channel::Live && !reply.is_endpoint;
        self.replies.push((self.at(now), reply));
    }

    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        self.wakes.push((self.at(now), wake));
    }

    fn handle_timeout(&mut self, now: Instant) {
        let at = self.at(now);
        self.due = self.plan.iter().take_while(|(time, _)| *time <= at + 1e-6).count();
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.plan.get(self.due).map(|(time, _)| self.epoch + Duration::from_secs_f64(*time))
    }

    fn poll_action(&mut self) -> Option<Action> {
        if std::mem::take(&mut self.prove) {
            return Some(Action::Keepalive);
        }
        if self.done >= self.due {
            return None;
        }
        self.done += 1;
        Some(self.plan[self.done - 1].1)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Netfilter, scaled: 5 s until promoted, 15 s after.
fn linux() -> Profile {
    let mut profile = Profile::new("linux", 5.0, 15.0);
    profile.promote_after_s = 2.0;
    profile
}

/// 60 s of wake tests behind a NAT, with a round trip of 100 ms.
fn scenario(mut profile: Profile) -> Scenario {
    profile.rtt_ms = 100.0;
    Scenario::draw(&profile, Loss::NONE, Time::from_secs(61), 1)
}

fn play(scenario: &Scenario, plan: Vec<(f64, Action)>) -> (Observed, Script) {
    perform(scenario, None, |epoch, _| Script {
        epoch,
        plan,
        done: 0,
        due: 0,
        proves: true,
        prove: false,
        replies: Vec::new(),
        wakes: Vec::new(),
    })
}

fn beat(channel: Channel, seq: u64, wake: Option<f64>) -> Action {
    Action::Beat(Beat { channel, seq, wake: wake.map(Duration::from_secs_f64) })
}

fn live(seq: u64) -> Action {
    beat(Channel::Live, seq, None)
}

/// A beat every so many seconds, and another one `companion` seconds after each where that is given.
fn beats(every: f64, companion: Option<f64>) -> Vec<(f64, Action)> {
    let mut plan = Vec::new();
    let (mut at, mut seq) = (every, 0);
    while at < 61.0 {
        for time in [Some(at), companion.map(|after| at + after)].into_iter().flatten() {
            seq += 1;
            plan.push((time, live(seq)));
        }
        at += every;
    }
    plan
}

fn close(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-6, "{left} is not {right}");
}

fn times<T>(events: &[(f64, T)]) -> Vec<f64> {
    events.iter().map(|(at, _)| (at * 1000.0).round() / 1000.0).collect()
}

#[test]
fn a_mapping_without_traffic_is_gone_after_its_lifetime() {
    let (observed, _) = play(&scenario(linux()), Vec::new());
    // The handshake's answer came at 0.1 s. Tests that start from 5.1 s on fail with all their packets.
    close(observed.reached.failed_s, 60.0 - 5.1);
    close(observed.reached.tested_s, 60.0);
}

#[test]
fn answered_beats_within_the_unpromoted_lifetime_promote_and_keep() {
    let (observed, script) = play(&scenario(linux()), beats(4.0, None));
    close(observed.reached.failed_s, 0.0);
    assert_eq!(script.replies.len(), 15);
    assert!(script.replies.iter().all(|(_, reply)| reply.is_endpoint));
    // The handshake and fifteen beats.
    assert_eq!((observed.wakes, observed.wakes_sent, observed.packets), (16, 16, 32));
    assert_eq!(observed.bytes, 176 + 120 + 30 * 110);
}

#[test]
fn after_an_invisible_flush_a_single_exchange_a_cycle_never_recovers() {
    let mut trapped = scenario(linux());
    trapped.flushes = vec![Time::from_secs(21)];
    let mut plan = vec![(2.5, live(100))];
    plan.extend(beats(10.0, None));
    let (observed, _) = play(&trapped, plan);
    // Tests count again from 30.1 s on. Of each cycle then: open until the reply's 5.1 s, shut for 4.9 s.
    assert_eq!(observed.faults.len(), 1);
    assert_eq!(observed.faults[0].kind, FaultKind::InvisibleFlush);
    close(observed.faults[0].blind.as_secs_f64(), 9.1);
    close(observed.faults[0].recovery.unwrap().as_secs_f64(), 9.0);
    close(observed.reached.tested_s, 60.0 - 9.1);
    close(observed.reached.failed_s, 3.0 * (4.9 - 1.0));
}

#[test]
fn a_companion_gets_out_of_the_promotion_trap_in_one_cycle() {
    let mut healed = scenario(linux());
    healed.flushes = vec![Time::from_secs(23)];
    let mut plan = vec![(2.5, live(100))];
    plan.extend(beats(10.0, Some(2.5)));
    let (observed, _) = play(&healed, plan);
    close(observed.reached.failed_s, 0.0);
}

#[test]
fn after_a_visible_flush_the_gateway_sends_to_the_old_port_until_the_path_is_proven() {
    for (allocation, proves) in [(PortAllocation::Random, false), (PortAllocation::Sequential, true)] {
        let mut profile = Profile::new("plain", 30.0, 30.0);
        profile.port = allocation;
        let mut moved = scenario(profile);
        moved.flushes = vec![Time::from_secs(15)];
        let (observed, script) = perform(&moved, None, |epoch, _| Script {
            epoch,
            plan: beats(10.0, None),
            done: 0,
            due: 0,
            proves,
            prove: false,
            replies: Vec::new(),
            wakes: Vec::new(),
        });
        assert_eq!(observed.faults[0].kind, FaultKind::VisibleFlush);
        let before = script.replies[0].1.observed;
        let after = script.replies[1].1;
        assert_ne!(before, after.observed);
        assert!(!after.is_endpoint);
        if proves {
            // A round trip and a half after the beat.
            close(observed.faults[0].recovery.unwrap().as_secs_f64(), 5.15);
            close(observed.reached.failed_s, 0.0);
            assert!(script.replies[2].1.is_endpoint);
        } else {
            assert_eq!(observed.faults[0].recovery, None);
            close(observed.reached.failed_s, 60.0 - 20.1);
        }
    }
}

#[test]
fn a_shrink_is_in_force_at_once() {
    let mut shrinking = scenario(Profile::new("plain", 30.0, 30.0));
    let lifetime = Duration::from_secs(7);
    let to = Lifetimes { unreplied: lifetime, replied: lifetime, tcp: None };
    shrinking.changes = vec![Change { at: Time::from_secs(18), to, fault: true }];
    let (observed, _) = play(&shrinking, beats(10.0, None));
    // Idle since 10.1 s, so shut at 18 s; open again at 20 s, where tests count from 20.1 s on; then shut for 2.9 s of
    // every ten, of which the last second does not matter.
    assert_eq!(observed.faults[0].kind, FaultKind::Shrink);
    close(observed.faults[0].blind.as_secs_f64(), 2.1);
    close(observed.reached.tested_s, 60.0 - 2.1);
    close(observed.reached.failed_s, 4.0 * 1.9);
}

#[test]
fn a_wake_comes_three_times_unless_another_beat_follows() {
    let scenario = scenario(Profile::new("plain", 30.0, 30.0));
    let probe = Channel::Probe(7);
    let (_, script) = play(&scenario, vec![(1.0, beat(probe, 1, Some(5.0)))]);
    assert_eq!(times(&script.wakes), [6.1, 6.3, 6.6]);
    assert!(script.wakes.iter().all(|(_, wake)| *wake == Wake { channel: probe, seq: 1 }));

    let answered = vec![(1.0, beat(probe, 1, Some(5.0))), (6.15, beat(probe, 2, None))];
    assert_eq!(times(&play(&scenario, answered).1.wakes), [6.1]);

    let replaced = vec![(1.0, beat(probe, 1, Some(5.0))), (2.0, beat(probe, 2, Some(10.0)))];
    assert_eq!(times(&play(&scenario, replaced).1.wakes), [12.1, 12.3, 12.6]);

    let elsewhere = vec![(1.0, beat(probe, 1, Some(5.0))), (2.0, live(2))];
    assert_eq!(play(&scenario, elsewhere).1.wakes.len(), 3);
}

#[test]
fn a_wake_does_not_reach_a_mapping_that_is_gone_nor_a_closed_socket() {
    let scenario = scenario(linux());
    let probe = Channel::Probe(7);
    let (observed, script) = play(&scenario, vec![(1.0, beat(probe, 1, Some(6.0)))]);
    assert!(script.wakes.is_empty());
    assert_eq!(observed.packets, 4);

    let closed = vec![(1.0, beat(probe, 1, Some(3.0))), (2.0, Action::Close(probe))];
    assert!(play(&scenario, closed).1.wakes.is_empty());
}

#[test]
fn a_probe_has_a_mapping_of_its_own_and_never_is_the_endpoint() {
    let scenario = scenario(Profile::new("plain", 30.0, 30.0));
    let (_, script) = play(&scenario, vec![(1.0, beat(Channel::Probe(7), 1, None)), (2.0, live(2))]);
    let [(_, probe), (_, tunnel)] = script.replies[..] else { panic!("{:?}", script.replies) };
    assert!(!probe.is_endpoint && tunnel.is_endpoint);
    assert_ne!(probe.observed, tunnel.observed);
}

#[test]
fn packets_get_lost_before_the_nat_and_restart_no_timer() {
    let mut lossy = scenario(Profile::new("plain", 10.0, 10.0));
    lossy.loss = 1.0;
    let (observed, script) = play(&lossy, beats(5.0, None));
    assert!(script.replies.is_empty());
    // All that passed was the handshake.
    assert_eq!(observed.packets, 14);
    close(observed.reached.success(), 0.0);
}

#[test]
fn the_oracle_is_always_reached_and_wakes_as_often_as_it_has_to() {
    for profile in profiles::published(1).iter().chain(&profiles::hard(1)).step_by(7) {
        let scenario = Scenario::draw(profile, Loss::percent(10.0), Time::from_secs(100_000), 5);
        let observed = run(&scenario.for_the_oracle(profile), None, |first, _| {
            algorithm::Oracle::new(first, scenario.timers.replied())
        });
        assert_eq!(observed.wakes, scenario.oracle().wakes(scenario.end), "{profile:?}");
        close(observed.reached.success(), 1.0);
    }
}

#[test]
fn the_oracle_learns_a_change_of_the_lifetime_at_once() {
    for to in [20.0, 300.0] {
        let mut profile = Profile::new("changing", 60.0, 60.0);
        profile.shrink_to = Some(to);
        let scenario = Scenario::draw(&profile, Loss::NONE, Time::from_secs(100_000), 5);
        let (observed, oracle) = perform(&scenario.for_the_oracle(&profile), None, |first, _| {
            algorithm::Oracle::new(first, scenario.timers.replied())
        });
        assert_eq!(oracle.interval(), Duration::from_secs_f64(to));
        assert_eq!(observed.wakes, scenario.oracle().wakes(scenario.end));
        close(observed.reached.success(), 1.0);
    }
}

#[test]
fn wireguard_does_not_promote_what_is_gone_before_its_next_keepalive() {
    let end = Time::from_secs(600);
    let scenario = Scenario::draw(&linux(), Loss::NONE, end, 1);
    // The keepalive that confirms a handshake comes too soon to promote.
    for (interval, success) in [(4, 1.0..=1.0), (12, 0.4..=0.6)] {
        let observed =
            run(&scenario, None, |_, now| algorithm::Fixed::new(now, Duration::from_secs(interval)));
        assert!(success.contains(&observed.reached.success()), "{interval}: {:?}", observed.reached);
    }
}
