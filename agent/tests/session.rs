//! A session that is silent while there is nothing to say, over a NAT that forgets it without a word. Needs root, `ip`,
//! `nft`, `conntrack` and `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::time::Duration;

use lab::{Lab, Running, eventually};
use pinhole_proto::v1::Phase;

const SOON: Duration = Duration::from_secs(15);
/// Within what a change arrives, whatever became of the session.
const BOUND: Duration = Duration::from_secs(5);

/// A client whose session is forgotten by its NAT, and who does not know.
fn forgotten(name: &str) -> (Lab, Running) {
    let (lab, gateway) = Lab::connected_behind_a_nat(name, (30, 120));
    lab.nat().forget_sessions();
    assert!(lab.client_pings("10.50.0.2"));
    (lab, gateway)
}

#[test]
fn a_client_that_is_cut_hears_of_it_although_its_session_was_forgotten() {
    let (lab, _gateway) = forgotten("scut");
    lab.operator.remove("laptop");
    eventually(BOUND, "the client ends", || lab.status().is_none());
    assert!(lab.client_log().contains("ClientRemoved"), "it says why: {}", lab.client_log());
}

#[test]
fn a_configuration_arrives_although_the_session_was_forgotten() {
    let (lab, _gateway) = forgotten("sconf");
    lab.operator.expose("192.0.2.1:51999");
    eventually(BOUND, "the client has it", || lab.client_config().contains("51999"));
    assert!(lab.counted("pinhole_gateway_recalls_total") > 0, "the gateway had to ask over UDP");
    eventually(SOON, "its session stands", || lab.status().is_some_and(|status| status["session"] == true));
}

#[test]
fn a_goodbye_arrives_although_the_session_was_forgotten() {
    let (lab, _gateway) = forgotten("sbye");
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    eventually(BOUND, "the operator hears of it", || {
        lab.operator.reported("laptop").is_some_and(|report| report.phase() == Phase::Disconnected)
    });
}

#[test]
fn a_path_that_is_lost_is_told_although_the_session_was_forgotten() {
    let (lab, _gateway) = forgotten("slost");
    lab.nat().block();
    eventually(SOON * 2, "the client looks for another path", || {
        lab.status().is_some_and(|status| status["phase"] == "WaitingToReconnect")
    });
    eventually(BOUND, "the operator hears of it", || {
        lab.operator.reported("laptop").is_some_and(|report| report.phase() == Phase::WaitingToReconnect)
    });
}
