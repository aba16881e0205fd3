//! A gateway whose control panics goes on forwarding; one whose data plane does ends. Needs root, `ip` and `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::time::Duration;

use lab::{Lab, Running, eventually};
use nix::sys::signal::Signal::{SIGUSR1, SIGUSR2};

const SOON: Duration = Duration::from_secs(15);

fn connected(name: &str) -> (Lab, Running) {
    let lab = Lab::new(name);
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    eventually(SOON, "the session stands", || lab.counted("pinhole_gateway_sessions") == 1);
    (lab, gateway)
}

#[test]
fn a_control_that_panics_comes_back_while_packets_flow_without_a_gap() {
    let (lab, gateway) = connected("panic");
    let pings = lab.steady_pings("10.50.0.2", 400);
    for n in 1..=4 {
        gateway.signal(SIGUSR1);
        eventually(SOON, "the panic is counted", || lab.counted("pinhole_gateway_panics_total") == n);
        eventually(SOON, "the session is attached again", || lab.counted("pinhole_gateway_sessions") == 1);
        let words = format!("({n} times since");
        eventually(SOON, "the operator hears of it", || lab.operator.heard_of("ControlRestarted", &words));
    }
    eventually(SOON, "the gateway is ready", || lab.readyz());
    assert_eq!(pings.lost(), 0, "packets were lost");

    assert!(lab.status().is_some_and(|status| status["session"] == true && status["phase"] == "Connected"));
    lab.operator.remove("laptop");
    eventually(SOON, "it does what the operator says", || !lab.client_pings("10.50.0.2"));
}

#[test]
fn a_gateway_that_cannot_carry_packets_any_more_ends() {
    let (_lab, mut gateway) = connected("half");
    gateway.signal(SIGUSR2);
    let ended = gateway.wait();
    assert!(!ended.success(), "{ended:?}");
}
