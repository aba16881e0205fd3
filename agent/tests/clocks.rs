//! Clients whose clocks are behind, ahead, set meanwhile, and machines that were off for longer than a certificate lives.
//! Needs root, `ip`, `ping` and libfaketime, which works on a program that is linked dynamically.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::time::{Duration, Instant, SystemTime};

use lab::{Lab, Output, Running, Stock, eventually};
use pinhole_agent::tunnel::PrivateKey;
use pinhole_proto::v1::HandshakeFate::CalledBack;

const SOON: Duration = Duration::from_secs(15);
/// Less than it takes until an attempt is repeated twice.
const AT_ONCE: Duration = Duration::from_secs(9);
const DAY: Duration = Duration::from_hours(24);

const STALE: &str = "pinhole_gateway_handshakes_dropped_total{reason=\"stale\"}";
const CALLED: &str = "pinhole_gateway_handshakes_called_back_total";
const ANEW: &str = "pinhole_gateway_handshakes_begun_anew_total";

fn lab(name: &str) -> (Lab, Running) {
    let lab = Lab::new(name);
    // As long as a gateway's real one.
    lab.operator.server_certificates_live_for(7 * DAY);
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    (lab, gateway)
}

/// Comes up by this clock, with a token where it is not enrolled yet.
fn up(lab: &Lab, clock: &str, token: &str) -> Output {
    lab.set_clock(clock);
    let arguments = ["up", "--detach", "--no-dns", "--timeout", "20"];
    match token {
        "" => lab.client_with_clock(&arguments, ""),
        _ => lab.client_with_clock(&[&arguments[..], &["--token-file", "-"]].concat(), &lab.join(token)),
    }
}

fn down(lab: &Lab) {
    let down = lab.client_with_clock(&["down"], "");
    assert!(down.status.success(), "{down:?}");
}

/// A clock that goes back by itself while a machine is off, or is corrected after it was ahead.
#[test]
fn clock_behind_after_a_reboot() {
    let (lab, _gateway) = lab("behind");
    let first = up(&lab, "+0", "secret");
    assert!(first.status.success(), "{first:?}");
    let mut begun_anew = 0;
    for (clock, goes_back) in
        [("-30m", true), ("+1h", false), ("+0", true), ("-1h", true), ("+0", false), ("-6d", true)]
    {
        down(&lab);
        let (began, again) = (Instant::now(), up(&lab, clock, ""));
        assert!(again.status.success(), "{clock}: {again:?}");
        assert!(began.elapsed() < AT_ONCE, "{clock}: {:?}", began.elapsed());
        assert!(lab.client_pings("10.50.0.2"), "{clock}");
        let now = lab.counted(ANEW);
        assert_eq!(now > begun_anew, goes_back, "{clock}: {now} after {begun_anew}");
        begun_anew = now;
    }
    assert!(lab.counted(STALE) >= begun_anew);
    assert_eq!(lab.operator.enrolments(), 1);
}

/// A clock that is set while a tunnel is up.
#[test]
fn clock_corrected_while_up() {
    let (lab, mut gateway) = lab("corrected");
    let first = up(&lab, "+0", "secret");
    assert!(first.status.success(), "{first:?}");
    down(&lab);
    let behind = up(&lab, "-1h", "");
    assert!(behind.status.success(), "{behind:?}");
    for clock in ["+0", "+1h", "-2h", "+0"] {
        lab.set_clock(clock);
        assert!(lab.client_pings("10.50.0.2"), "{clock}: a session that stands goes on");
        // Every handshake of before is forgotten there, and one has to be made.
        gateway.kill();
        gateway = lab.gateway();
        eventually(SOON * 2, "it comes back by itself", || lab.client_pings("10.50.0.2"));
    }
    down(&lab);
    let last = up(&lab, "+0", "");
    assert!(last.status.success(), "{last:?}");
}

#[test]
fn clock_wrong_by_days_behind() {
    let (lab, _gateway) = lab("days");
    let first = up(&lab, "-2d", "secret");
    assert!(first.status.success(), "the pinned authority vouches that it is later: {first:?}");
    assert!(lab.client_pings("10.50.0.2"));
}

#[test]
fn clock_wrong_by_days_ahead() {
    let (lab, _gateway) = lab("ahead");
    lab.set_clock("+400d");
    let arguments = ["up", "--no-dns", "--timeout", "2", "--token-file", "-"];
    let refused = lab.client_with_clock(&arguments, &lab.join("secret"));
    assert_eq!(refused.status.code(), Some(31), "{refused:?}");
    assert!(refused.stderr.contains("[ClockSkew]"), "{refused:?}");
    assert!(refused.stderr.contains("393 days ahead of the gateway's"), "{refused:?}");
    assert_eq!(lab.operator.enrolments(), 0, "no token was shown to a gateway that may be a thief");
    // It waits, and somebody sets the clock.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let arguments = ["up", "--detach", "--no-dns", "--timeout", "60", "--token-file", "-"];
            lab.client_with_clock(&arguments, &lab.join("secret"))
        });
        eventually(SOON, "it asks", || lab.client_log().contains("ClockSkew") || lab.client_waits());
        lab.set_clock("+0");
        let connected = waiting.join().unwrap();
        assert!(connected.status.success(), "{connected:?}");
    });
    assert!(lab.client_pings("10.50.0.2"));
    // Enrolled, it needs no certificate to be connected.
    down(&lab);
    let again = up(&lab, "+400d", "");
    assert!(again.status.success(), "{again:?}");
    let status = || lab.status().expect("the tunnel runs");
    assert_eq!(status()["session"], false, "{}", status());
    lab.set_clock("+0");
    eventually(SOON, "the session follows the clock", || status()["session"] == true);
}

/// A client without an agent, whose machine starts again with its clock behind: there is nobody to ask whether that is so.
#[test]
fn clock_behind_after_a_reboot_of_a_client_without_an_agent() {
    let (lab, mut gateway) = lab("stock");
    let key = PrivateKey::generate().unwrap();
    let stock = Stock {
        addresses: &["10.77.0.20/32"],
        endpoint: "192.0.2.1:51820",
        allowed: "10.77.0.0/16",
        routes: &["10.77.0.1"],
    };
    lab.operator.add_stock("phone", key.public().as_bytes(), stock.addresses);
    let name = format!("c{}", std::process::id());
    let fate =
        || lab.operator.reported("phone").and_then(|report| report.clock).map(|clock| clock.handshakes());
    for (clock, expected) in
        [("+0", None), ("-1h", Some(CalledBack)), ("-6d", Some(CalledBack)), ("+1h", None)]
    {
        lab.set_clock(clock);
        let mut wg = lab.stock_with_clock(&key, &name, &stock);
        eventually(SOON, &format!("{clock}: it is connected"), || lab.client_pings("10.77.0.1"));
        eventually(SOON, &format!("{clock}: it is called {expected:?}"), || fate() == expected);
        wg.kill();
        eventually(SOON, "its device is gone", || !lab.client_links().contains(&name));
    }
    assert!(lab.counted(CALLED) >= 2, "{}", lab.metrics());
    gateway.kill();
}

/// What the cluster shows of it.
#[test]
fn a_clock_that_is_wrong_is_told_and_so_is_that_it_was_corrected() {
    let (lab, _gateway) = lab("told");
    let behind = up(&lab, "-2d", "secret");
    assert!(behind.status.success(), "{behind:?}");
    let ahead = || {
        let report = lab.operator.reported("laptop")?;
        Some(report.clock.map_or(0, |clock| clock.ahead_seconds))
    };
    let two_days = -2 * 86_400;
    eventually(SOON, "it is told", || ahead().is_some_and(|ahead| (ahead - two_days).abs() < 10));
    lab.set_clock("+0");
    // It looks once a minute.
    eventually(SOON * 5, "the correction is told", || ahead() == Some(0));
}

/// The certificate ends while the machine is off, and the gateway still has the peer.
#[test]
fn switched_off_for_31_days() {
    const LIFE: Duration = Duration::from_secs(4);
    // By its own clock, or by the gateway's alone where the machine's stood still meanwhile.
    for (clock, name) in [("+0", "off"), ("-6d", "stood")] {
        let (lab, _gateway) = lab(name);
        lab.operator.certificates_live_for(LIFE);
        let enrolled = up(&lab, "+0", "secret");
        assert!(enrolled.status.success(), "{enrolled:?}");
        down(&lab);
        // It may have been renewed meanwhile.
        let ends = SystemTime::now() + LIFE + Duration::from_secs(1);
        eventually(LIFE * 2, "it ends", || SystemTime::now() > ends);
        lab.operator.certificates_live_for(None);
        // On a slow machine one was over before it was used.
        let before = lab.operator.certificates_by_keys();
        let again = up(&lab, clock, "");
        assert!(again.status.success(), "{clock}: {again:?}");
        eventually(SOON, "another certificate by its keys", || {
            lab.operator.certificates_by_keys() == before + 1
                && lab.status().is_some_and(|status| status["session"] == true)
        });
        assert_eq!(lab.operator.enrolments(), 1);
    }
}
