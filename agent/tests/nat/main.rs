//! A client behind a NAT that forgets quickly, with its gateway beyond. Needs root, `ip`, `nft`, `conntrack` and
//! `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

#[path = "../lab/mod.rs"]
mod lab;
mod standby;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use lab::{Lab, eventually};
use libtest_mimic::{Arguments, Trial};

const SOON: Duration = Duration::from_secs(15);
/// What a silence of the binding's whole lifetime leaves open, at most.
const GIVE_UP: Duration = Duration::from_secs(8);
/// How long the NAT keeps a mapping that is new, and one in use.
const USUAL: (u32, u32) = (5, 15);
const QUICK: (u32, u32) = (4, 8);
const CUT: Duration = Duration::from_secs(5);
const CLIENT: &str = "10.77.0.9";

fn interval(lab: &Lab) -> Duration {
    Duration::from_secs_f64(lab.status().unwrap()["keepalive"]["intervalSeconds"].as_f64().unwrap())
}

fn is(lab: &Lab, phase: &str) -> bool {
    lab.status().is_some_and(|status| status["phase"] == phase)
}

fn is_connected(lab: &Lab) -> bool {
    is(lab, "Connected")
}

fn gateway_says(lab: &Lab, phase: pinhole_proto::v1::Phase) -> bool {
    lab.operator.reported("laptop").is_some_and(|report| report.phase() == phase)
}

fn main() {
    let mut arguments = Arguments::from_args();
    // They wait for NATs to forget more than they work.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let tests = [
        ("beats_learn_how_long_the_nat_waits_and_keep_the_mapping_over_idle_time_and_a_flush", beats_learn_how_long_the_nat_waits_and_keep_the_mapping_over_idle_time_and_a_flush as fn()),
        ("a_path_that_is_dead_inbound_alone_is_not_called_connected_on_either_side", a_path_that_is_dead_inbound_alone_is_not_called_connected_on_either_side as fn()),
        ("a_client_that_was_asleep_is_dormant_at_the_gateway_asked_over_its_session_and_back_at_once", a_client_that_was_asleep_is_dormant_at_the_gateway_asked_over_its_session_and_back_at_once as fn()),
        ("a_mapping_that_moves_while_all_is_quiet_is_followed_by_an_authenticated_packet", a_mapping_that_moves_while_all_is_quiet_is_followed_by_an_authenticated_packet as fn()),
        ("a_saturated_path_is_never_called_dead_and_costs_no_beats", a_saturated_path_is_never_called_dead_and_costs_no_beats as fn()),
        ("beats_without_an_answer_tear_nothing_down_under_load_and_probes_take_over_without_it", beats_without_an_answer_tear_nothing_down_under_load_and_probes_take_over_without_it as fn()),
        ("packets_to_a_sleeping_client_wake_it_and_arrive_and_it_sleeps_again", standby::packets_to_a_sleeping_client_wake_it_and_arrive_and_it_sleeps_again),
        ("a_sleeper_whose_session_was_forgotten_is_called_lost_with_the_first_packet_and_is_back_by_itself", standby::a_sleeper_whose_session_was_forgotten_is_called_lost_with_the_first_packet_and_is_back_by_itself),
        ("a_sleeper_whose_network_blocks_udp_by_now_is_called_lost_on_both_sides_and_is_back_when_it_does_not", standby::a_sleeper_whose_network_blocks_udp_by_now_is_called_lost_on_both_sides_and_is_back_when_it_does_not),
        ("the_lifetime_of_sessions_is_bracketed_by_canaries_while_the_client_sleeps_on", standby::the_lifetime_of_sessions_is_bracketed_by_canaries_while_the_client_sleeps_on),
    ];
    let trial = |(name, test): (&str, fn())| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run)
    };
    libtest_mimic::run(&arguments, tests.map(trial).into()).exit();
}

fn beats_learn_how_long_the_nat_waits_and_keep_the_mapping_over_idle_time_and_a_flush() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("learn", USUAL);
    eventually(Duration::from_mins(1), "the lifetime is known", || {
        lab.status().is_some_and(|status| {
            let binding = &status["binding"];
            let (least, most) = (binding["atLeastSeconds"].as_f64(), binding["lessThanSeconds"].as_f64());
            status["keepalive"]["reason"] == "Learnt"
                && least.is_some_and(|least| least > 12.0)
                && most.is_some_and(|most| most < 20.0)
        })
    });
    let status = lab.status().unwrap();
    let interval = interval(&lab);
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&interval), "{status:#}");
    assert_eq!(status["nat"]["publicEndpoint"].as_str().unwrap().split(':').next(), Some("192.0.2.2"));
    assert_eq!(status["nat"]["helperInterference"], "No", "{status:#}");
    eventually(SOON, "the gateway has been told of it", || {
        lab.metrics().contains("pinhole_gateway_beats_total{result=\"answered\"}")
    });
    for pause in [9, 14, 7, 16, 11] {
        sleep(Duration::from_secs(pause));
        assert!(lab.gateway_pings(CLIENT), "after {pause} s: {:#}", lab.status().unwrap());
    }
    lab.nat().flush();
    assert!(!lab.gateway_pings(CLIENT), "the flush cuts it off, and nothing shows it");
    sleep(interval);
    for pause in [1, 11, 12] {
        sleep(Duration::from_secs(pause));
        assert!(lab.gateway_pings(CLIENT), "{pause} s later: {:#}", lab.status().unwrap());
    }
    assert!(is_connected(&lab));

    // What was learnt outlives the agent.
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    let up = lab.client(&["up", "--detach", "--no-dns"], "");
    assert!(up.status.success(), "{up:?}");
    eventually(Duration::from_secs(50), "what was learnt before is confirmed and used", || {
        lab.status().is_some_and(|status| status["keepalive"]["reason"] == "Cached")
    });
}

fn a_path_that_is_dead_inbound_alone_is_not_called_connected_on_either_side() {
    for (name, block) in [("inbound", lab::Nat::block_inbound as fn(&lab::Nat)), ("both", lab::Nat::block)] {
        let (lab, _gateway) = Lab::connected_behind_a_nat(name, USUAL);
        eventually(SOON, "both are connected", || {
            is_connected(&lab) && gateway_says(&lab, pinhole_proto::v1::Phase::Connected)
        });
        sleep(Duration::from_secs(20));
        let limit = interval(&lab) + GIVE_UP;
        block(lab.nat());
        let began = Instant::now();
        eventually(limit, "the client knows", || !is_connected(&lab));
        eventually(
            limit.saturating_sub(began.elapsed()) + Duration::from_secs(1),
            "the gateway knows",
            || !gateway_says(&lab, pinhole_proto::v1::Phase::Connected),
        );
        assert_eq!(lab.status().unwrap()["session"], true, "everything else is up");
        if name == "both" {
            eventually(SOON * 2, "the block has a name", || {
                lab.status().is_some_and(|status| status["churn"]["lastCause"] == "UDPBlocked")
            });
        }
        lab.nat().unblock();
        eventually(Duration::from_secs(40), "both are back", || {
            is_connected(&lab) && gateway_says(&lab, pinhole_proto::v1::Phase::Connected)
        });
    }
}

fn a_client_that_was_asleep_is_dormant_at_the_gateway_asked_over_its_session_and_back_at_once() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("asleep", QUICK);
    eventually(SOON, "both are connected", || {
        is_connected(&lab) && gateway_says(&lab, pinhole_proto::v1::Phase::Connected)
    });
    eventually(SOON, "the gateway knows the interval", || {
        let report = lab.operator.reported("laptop").and_then(|report| report.keepalive);
        let interval = report.and_then(|keepalive| keepalive.interval);
        interval.is_some_and(|interval| interval.seconds <= QUICK.1.into())
    });
    lab.signal_client(nix::sys::signal::Signal::SIGSTOP);
    // Its intervals still grow; none is longer than a mapping lives.
    let limit = Duration::from_secs(QUICK.1.into()) + GIVE_UP;
    eventually(limit + Duration::from_secs(1), "the gateway knows", || {
        gateway_says(&lab, pinhole_proto::v1::Phase::Dormant)
    });
    eventually(CUT, "it asks for a sign of life", || {
        !lab.metrics().contains("pinhole_gateway_pokes_total 0\n")
    });
    lab.signal_client(nix::sys::signal::Signal::SIGCONT);
    eventually(CUT, "both are connected again", || {
        is_connected(&lab) && gateway_says(&lab, pinhole_proto::v1::Phase::Connected)
    });
    assert!(lab.gateway_pings(CLIENT));
}

fn a_mapping_that_moves_while_all_is_quiet_is_followed_by_an_authenticated_packet() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("follow", USUAL);
    let endpoint =
        |lab: &Lab| lab.operator.reported("laptop").map(|report| report.endpoint).unwrap_or_default();
    eventually(SOON, "the gateway knows the mapping", || endpoint(&lab).starts_with("192.0.2.2:"));
    let before = endpoint(&lab);
    lab.nat().shift_ports();
    lab.nat().flush();
    eventually(interval(&lab) + GIVE_UP, "the gateway follows", || {
        let now = endpoint(&lab);
        now != before && now.starts_with("192.0.2.2:")
    });
    eventually(SOON, "the client has noticed", || {
        lab.status().is_some_and(|status| status["churn"]["lastCause"] == "MappingChanged")
    });
    assert!(lab.gateway_pings(CLIENT));
}

fn a_saturated_path_is_never_called_dead_and_costs_no_beats() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("load", QUICK);
    // Rounds of refinement: 120 s with time to spare, longer where much else runs.
    eventually(Duration::from_mins(4), "the lifetime is known", || {
        lab.status().is_some_and(|status| status["binding"]["confidence"] == "Confirmed")
    });
    let figures = |lab: &Lab| {
        let status = lab.status().unwrap();
        let beats = status["keepalive"]["liveBeats"].as_u64().unwrap();
        (beats, status["txBytes"].as_u64().unwrap().min(status["rxBytes"].as_u64().unwrap()))
    };
    let before = figures(&lab);
    let load = lab.saturate(Duration::from_secs(30));
    let (mut slowest, mut asked) = (Duration::ZERO, 0);
    while load.is_running() {
        let began = Instant::now();
        assert!(is_connected(&lab), "{:#}", lab.status().unwrap());
        slowest = slowest.max(began.elapsed());
        asked += 1;
        sleep(Duration::from_millis(100));
    }
    let after = figures(&lab);
    println!("{asked} answers, the slowest after {slowest:?}; {before:?} became {after:?}");
    assert!(asked > 50, "{asked}");
    assert!(after.1 - before.1 > 50_000_000, "{before:?} {after:?}: it was not saturated");
    // An experiment may take the live binding along.
    assert!(after.0 - before.0 <= 4, "data does what beats do: {before:?} {after:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(is_connected(&lab));
}

fn beats_without_an_answer_tear_nothing_down_under_load_and_probes_take_over_without_it() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("answers", QUICK);
    let load = lab.saturate(Duration::from_secs(25));
    sleep(Duration::from_secs(2));
    lab.nat().block_answers();
    while load.is_running() {
        assert!(is_connected(&lab), "{:#}", lab.status().unwrap());
        sleep(Duration::from_millis(200));
    }
    eventually(Duration::from_secs(40), "probes prove the path", || {
        lab.status()
            .is_some_and(|status| status["phase"] == "Connected" && status["keepalive"]["beats"] == false)
    });
    assert!(lab.client_pings("10.50.0.2"));
    lab.nat().unblock();
    eventually(Duration::from_mins(1), "beats are answered again", || {
        lab.status().is_some_and(|status| status["keepalive"]["beats"] == true)
    });
}
