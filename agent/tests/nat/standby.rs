//! A client that lets its UDP binding go and is woken over its session.

use std::{thread::sleep, time::Duration};

use pinhole_proto::v1::{Phase, keepalive_policy::Standby};

use super::{
    CLIENT, gateway_says, is,
    lab::{Lab, Running, eventually},
};

/// How long the NAT keeps a mapping of UDP that is new, and one in use.
const TIMEOUTS: (u32, u32) = (5, 12);
const KEEPALIVE: Duration = Duration::from_secs(8);
/// A first proof takes half a minute.
const PROVEN: Duration = Duration::from_secs(75);
/// After the last packet, WireGuard's own ten seconds later, no mapping is left.
const FORGOTTEN: Duration = Duration::from_secs(24);

/// A client that sleeps, and whose mapping is gone.
fn asleep(name: &str) -> (Lab, Running) {
    let (lab, gateway) = Lab::connected_behind_a_nat(name, TIMEOUTS);
    lab.operator.standby(KEEPALIVE, Standby::Session);
    eventually(PROVEN, "the client sleeps", || is(&lab, "Standby"));
    eventually(KEEPALIVE + FORGOTTEN, "the gateway says so", || gateway_says(&lab, Phase::Standby));
    sleep(FORGOTTEN);
    (lab, gateway)
}

fn churn(lab: &Lab) -> u64 {
    lab.operator.reported("laptop").unwrap().churn.unwrap_or_default().count
}

pub(crate) fn packets_to_a_sleeping_client_wake_it_and_arrive_and_it_sleeps_again() {
    let (lab, _gateway) = asleep("zwake");
    for round in 1..=2 {
        let before = lab.status().unwrap();
        assert!(lab.gateway_pings(CLIENT), "{before:#}\n{:#}\n{}", lab.status().unwrap(), lab.client_log());
        let status = lab.status().unwrap();
        assert_eq!(status["phase"], "Connected", "awake while data flows: {status:#}");
        assert!(status["standby"]["lastWakeMilliseconds"].as_f64().is_some_and(|wake| wake < 500.0));
        assert!(lab.counted("pinhole_gateway_session_wakes_total") >= round);
        assert_eq!(status["churn"]["count"], 0, "what was let go is no churn: {status:#}");
        eventually(FORGOTTEN, "it sleeps", || is(&lab, "Standby"));
        sleep(FORGOTTEN);
        assert!(is(&lab, "Standby"), "{:#}\n{}", lab.status().unwrap(), lab.client_log());
        let report = lab.operator.reported("laptop").unwrap();
        assert_eq!(report.phase(), Phase::Standby, "{report:#?}\n{}", lab.client_log());
    }
    assert!(lab.client_pings("10.50.0.2"), "it need not be woken to speak");
    assert_eq!(churn(&lab), 0);
}

pub(crate) fn a_sleeper_whose_session_was_forgotten_is_called_lost_with_the_first_packet_and_is_back_by_itself()
 {
    let (lab, _gateway) = asleep("zlost");
    lab.nat().forget_sessions();
    assert!(!lab.gateway_pings(CLIENT), "nobody can reach it now");
    eventually(Duration::from_secs(5), "the gateway says so", || gateway_says(&lab, Phase::Dormant));
    let interval = lab.status().unwrap()["standby"]["intervalSeconds"].as_f64().unwrap();
    let bound = Duration::from_secs_f64(interval + 8.0);
    eventually(bound, "it keeps its binding again", || lab.gateway_pings(CLIENT));
    eventually(Duration::from_secs(5), "the gateway says so", || gateway_says(&lab, Phase::Connected));
    assert_eq!(churn(&lab), 0, "its binding was let go, not lost");
}

pub(crate) fn a_sleeper_whose_network_blocks_udp_by_now_is_called_lost_on_both_sides_and_is_back_when_it_does_not()
 {
    let (lab, _gateway) = asleep("zblock");
    lab.nat().block();
    assert!(!lab.gateway_pings(CLIENT), "it is called, and cannot come");
    eventually(Duration::from_secs(5), "the gateway says so", || gateway_says(&lab, Phase::Dormant));
    let asked = Duration::from_secs(15);
    eventually(asked, "the client sees it", || is(&lab, "WaitingToReconnect"));
    eventually(asked, "and says so", || gateway_says(&lab, Phase::WaitingToReconnect));
    lab.nat().unblock();
    eventually(Duration::from_secs(45), "it is back", || lab.gateway_pings(CLIENT));
    eventually(asked, "the gateway says so", || gateway_says(&lab, Phase::Connected));
}

pub(crate) fn the_lifetime_of_sessions_is_bracketed_by_canaries_while_the_client_sleeps_on() {
    let (lab, _gateway) = Lab::connected_behind_a_nat("zlife", TIMEOUTS);
    lab.nat().keep_sessions_for(45);
    lab.operator.standby(KEEPALIVE, Standby::Session);
    eventually(PROVEN, "the client sleeps", || is(&lab, "Standby"));
    let mapping = || lab.status().unwrap()["standby"]["mapping"].clone();
    eventually(Duration::from_mins(2), "a canary finds the end", || {
        mapping()["lessThanSeconds"].as_f64().is_some()
    });
    let (least, most) = (mapping()["atLeastSeconds"].as_f64(), mapping()["lessThanSeconds"].as_f64());
    assert!(least.is_some_and(|least| (30.0..45.0).contains(&least)), "{:#}", mapping());
    assert!(most.is_some_and(|most| (45.0..65.0).contains(&most)), "{:#}", mapping());
    assert!(is(&lab, "Standby"), "nothing rests on what was not proven: {:#}", lab.status().unwrap());
    assert!(lab.gateway_pings(CLIENT), "and it can be woken: {:#}", lab.status().unwrap());
}
