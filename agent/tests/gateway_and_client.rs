//! Gateway and client as processes in network namespaces of their own, with an operator in the test that feeds the
//! desired state. Needs root, `ip` and `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant, SystemTime},
};

use lab::{Lab, Stock, eventually, twin::Twin};
use pinhole_agent::{identity::possession, tunnel::PrivateKey};
use pinhole_proto::v1;

const SOON: Duration = Duration::from_secs(15);
/// A pod's grace period is ten seconds.
const PROMPT: Duration = Duration::from_secs(2);
const CUT: Duration = Duration::from_secs(5);

#[test]
fn a_client_enrols_connects_and_reaches_what_only_the_gateway_reaches() {
    let lab = Lab::new("reach");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let up = lab.up(&[]);
    assert!(up.stdout.contains("connected to edge-0"), "{up:?}");
    assert!(lab.client_pings("10.50.0.2"), "through the tunnel, masqueraded");

    let status = lab.status().expect("the tunnel runs");
    assert_eq!(status["phase"], "Connected");
    assert_eq!(status["replica"], "edge-0");
    assert_eq!(status["addresses"][0], "10.77.0.9/32");
    assert!(status["rttMilliseconds"].as_f64().is_some_and(|rtt| rtt > 0.0));
    eventually(SOON, "the operator hears of it", || {
        lab.operator.reported("laptop").is_some_and(|report| {
            report.phase() == pinhole_proto::v1::Phase::Connected
                && report.session
                && report.endpoint.starts_with("192.0.2.2:")
                && report.last_receive.is_some()
        })
    });
    assert!(lab.metrics().contains("pinhole_gateway_clients{phase=\"Connected\"} 1"));

    // Without a token: this machine is enrolled now, with the same key and so the same address.
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert!(!lab.client_pings("10.50.0.2"));
    assert!(!lab.client_links().contains("pinhole0"), "the device is gone");
    eventually(SOON, "the goodbye reaches the operator", || {
        lab.operator
            .reported("laptop")
            .is_some_and(|report| report.phase() == pinhole_proto::v1::Phase::Disconnected)
    });
    let again = lab.client(&["up", "--detach", "--no-dns"], "");
    assert!(again.status.success(), "{again:?}");
    assert!(lab.client_pings("10.50.0.2"));
    assert_eq!(lab.operator.enrolments(), 1);

    lab.operator.remove("laptop");
    eventually(CUT, "a client that was deleted is cut off", || {
        !lab.client_pings("10.50.0.2") && lab.status().is_none()
    });
    let refused = lab.client(&["up", "--detach", "--no-dns"], "");
    assert_eq!(refused.status.code(), Some(20), "{refused:?}");
    assert!(refused.stderr.contains("[ClientRemoved]"), "{refused:?}");
}

#[test]
fn a_service_that_starts_before_there_is_a_network_is_ready_waits_and_says_how_it_is() {
    let lab = Lab::new("service");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = |what: &str| loop {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).expect(what);
        if String::from_utf8_lossy(&message[..length]).contains(what) {
            return;
        }
    };
    lab.client_ip("link set wan down");
    let mut service = lab.service(&path, &lab.join("secret"));
    hear("READY=1");
    hear("STATUS=not yet: the gateway cannot be reached");
    lab.client_ip("link set wan up");
    hear("STATUS=enrolled as branch/laptop");
    hear("STATUS=connected to edge-0");
    assert!(lab.client_pings("10.50.0.2"));

    // It is started anew and needs no token.
    assert!(service.terminate().success());
    let mut again = lab.service(&path, &lab.join("none"));
    hear("STATUS=connected to edge-0");
    assert_eq!(lab.operator.enrolments(), 1);
    assert!(again.terminate().success());
}

#[test]
fn what_install_service_writes_uninstall_service_removes() {
    let lab = Lab::new("install");
    let root = tempfile::tempdir().unwrap();
    let at = root.path().to_str().unwrap();
    let run = |verb: &str, init: &str, input: &str| {
        let more: &[&str] = if input.is_empty() { &[] } else { &["--token-file", "-"] };
        let arguments = [&[verb, "--root", at, "--init", init], more].concat();
        let output = lab.client(&arguments, input);
        assert!(output.status.success(), "{output:?}");
    };
    let unit = root.path().join("etc/systemd/system/pinhole@.service");
    run("install-service", "systemd", "pinhole:token");
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains("/pinhole up --name %i --timeout 0"), "{text}");
    let token = root.path().join("var/lib/pinhole/pinhole0/join.token");
    assert_eq!(std::fs::read_to_string(&token).unwrap(), "pinhole:token");
    let mode = std::os::unix::fs::PermissionsExt::mode(&token.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // The manager's own opinion, where it is here.
    let verify =
        std::process::Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    if let Ok(verify) = verify {
        let said = String::from_utf8_lossy(&verify.stderr).into_owned();
        assert!(!said.contains("pinhole@.service:"), "{said}");
    }
    run("uninstall-service", "systemd", "");
    assert!(!unit.exists());
    let script = root.path().join("etc/init.d/pinhole.pinhole0");
    run("install-service", "openrc", "");
    assert!(std::fs::read_to_string(&script).unwrap().starts_with("#!/sbin/openrc-run\n"));
    run("uninstall-service", "openrc", "");
    assert!(!script.exists());
}

/// CVE-2019-14899.
#[test]
fn a_neighbour_does_not_reach_the_address_that_a_client_has_in_its_tunnel() {
    let lab = Lab::new("inner");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    assert!(lab.client_pings("10.50.0.2") && lab.gateway_pings("10.77.0.9"), "by the tunnel");
    assert!(lab.neighbour_pings("192.0.2.2"), "the client's other address is open");
    assert!(!lab.neighbour_pings("10.77.0.9"), "beside the tunnel");
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert!(!lab.client_ruleset().contains("pinhole"), "{}", lab.client_ruleset());
}

#[test]
fn a_public_key_that_was_seen_elsewhere_is_worth_nothing() {
    let lab = Lab::new("thief");
    let mut gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let (victim, thief) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let request = lab.operator.request(victim.public());
    let proven = |key, challenge: &v1::EnrolmentChallenge| {
        let proof = possession::prove(key, challenge, &request).unwrap();
        v1::EnrolRequest { proof: Some(proof), ..request.clone() }
    };
    let challenge = lab.operator.challenge();
    assert_eq!(lab.operator.refusal(request.clone()), "AgentOutdated", "without a proof");
    assert_eq!(lab.operator.refusal(proven(&thief, &challenge)), "KeyNotProven");
    let stolen =
        v1::EnrolRequest { csr: lab.operator.request(victim.public()).csr, ..proven(&victim, &challenge) };
    assert_eq!(lab.operator.refusal(stolen), "KeyNotProven", "another session key than was proven for");
    gateway.kill();
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is back", || lab.readyz());
    assert_eq!(lab.operator.refusal(proven(&victim, &challenge)), "ChallengeExpired");
    assert_eq!(lab.operator.enrolments(), 0, "nothing of it reached the operator");
}

#[test]
fn a_certificate_is_renewed_again_and_again_for_the_key_of_the_first_one() {
    let lab = Lab::new("renew");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.operator.certificates_live_for(PROMPT * 3);
    lab.up(&[]);
    eventually(SOON * 2, "two renewals", || lab.operator.session_keys().len() >= 3);
    let keys = lab.operator.session_keys();
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn a_right_that_ends_while_the_operator_is_away_ends_at_the_gateway_and_does_not_come_back_with_it() {
    let lab = Lab::new("end");
    let mut gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    let end = SystemTime::now() + CUT * 2;
    let told = lab.operator.end("laptop", end);
    let in_force = format!("pinhole_gateway_desired_revision {told}");
    eventually(CUT, "the gateway knows the end", || lab.metrics().contains(&in_force));
    lab.operator.stop();
    assert!(lab.client_pings("10.50.0.2"));
    eventually(SOON, "the client is cut off", || !lab.client_pings("10.50.0.2") && lab.status().is_none());
    assert!(SystemTime::now() >= end);
    assert!(lab.client_log().contains("ClientRemoved"), "it says why: {}", lab.client_log());
    gateway.kill();
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is back", || lab.readyz());
    let refused = lab.client(&["up", "--detach", "--no-dns"], "");
    assert_eq!(refused.status.code(), Some(20), "{refused:?}");
}

#[test]
fn a_stock_client_reaches_what_its_pool_names_whatever_it_believes() {
    let lab = Lab::new("limits");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.operator.change(|desired| {
        desired.tunnel_addresses.push("fd77::1/64".into());
        desired.pools[0].cidrs.push("fd77::/64".into());
        desired.pools[0].routes.clear();
    });
    let name = |role: &str| format!("s{}{role}", std::process::id());
    let greedy = Stock {
        addresses: &["10.77.0.20/32", "fd77::20/128"],
        endpoint: "192.0.2.1:51820",
        allowed: "0.0.0.0/0,::/0",
        routes: &["10.0.0.0/8", "169.254.169.254", "fd00::/8"],
    };
    let _stock = lab.stock_client(&name("c"), &greedy);
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let connects = |to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_ok();
    let reaches = |to: &str| lab.within_client(|| connects(at(to)));
    let _server = lab.within_host(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let _client = lab.within_client(|| TcpListener::bind("[::]:7000").unwrap());
    eventually(SOON, "the gateway answers pings", || lab.client_pings("10.77.0.1"));
    eventually(SOON, "of both families", || lab.client_pings("fd77::1"));
    assert!(!reaches("10.50.0.2:8080"), "no route names it");
    assert!(lab.refused("no-route") >= 1, "{}", lab.metrics());
    for own in ["10.77.0.1:9090", "10.50.0.1:9090", "[fd77::1]:9090", "10.77.0.1:51821"] {
        let before = lab.refused("gateway");
        assert!(!reaches(own), "{own}");
        eventually(SOON, "it is counted", || lab.refused("gateway") > before);
    }
    assert!(!reaches("169.254.169.254:80"));
    assert!(lab.refused("metadata") >= 1);
    assert!(lab.operator.in_gateway(|| connects(at("10.77.0.20:7000"))), "the gateway reaches its client");

    let routes = |routes: &[&str]| {
        lab.operator.change(|desired| {
            desired.pools[0].routes = routes.iter().map(|&route| route.to_owned()).collect();
        });
    };
    routes(&["0.0.0.0/0", "::/0"]);
    eventually(CUT, "a route is enough", || reaches("10.50.0.2:8080"));
    for never in ["10.77.0.1:9090", "[fd77::1]:9090", "169.254.169.254:80"] {
        assert!(!reaches(never), "{never}");
    }
    // Who was not asked stays outside, also where it knows the way.
    lab.host_knows_the_way_to("10.77.0.20");
    assert!(!lab.within_host(|| connects(at("10.77.0.20:7000"))));

    let other = Stock {
        addresses: &["10.77.0.21/32"],
        endpoint: "10.50.0.1:51820",
        allowed: "10.77.0.0/16",
        routes: &["10.77.0.0/16", "10.77.0.20"],
    };
    let _other = lab.stock_host(&name("h"), &other);
    eventually(SOON, "the gateway reaches the other client", || lab.gateway_pings("10.77.0.21"));
    assert!(!reaches("10.77.0.21:8080"));
    assert!(lab.refused("other-client") >= 1);
    lab.operator.change(|desired| desired.pools[0].client_to_client = Some(true));
    eventually(CUT, "clients that are granted one another meet", || reaches("10.77.0.21:8080"));
    lab.operator.change(|desired| desired.pools[0].client_to_client = Some(false));
    eventually(CUT, "and no longer", || !reaches("10.77.0.21:8080"));

    // A connection that stands ends with its route.
    let long = lab.within_host(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let mut near = lab.within_client(|| TcpStream::connect(at("10.50.0.2:8081")).unwrap());
    let (mut far, _) = long.accept().unwrap();
    near.write_all(b"1").unwrap();
    far.read_exact(&mut [0]).unwrap();
    routes(&[]);
    eventually(CUT, "a route is withdrawn", || !reaches("10.50.0.2:8080"));
    near.write_all(b"2").unwrap();
    far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    far.read_exact(&mut [0]).expect_err("something still comes");

    lab.operator.change(|desired| desired.pools[0].client_to_client = None);
    eventually(CUT, "an older operator limits nothing", || reaches("10.50.0.2:8080"));
    assert!(lab.metrics().contains("pinhole_gateway_impairments{category=\"ReachUnlimited\"} 1"));
    assert!(!reaches("10.77.0.1:9090"), "but for the gateway's own ports");
}

#[test]
fn strangers_that_fill_the_session_port_keep_no_client_out_and_cannot_stay() {
    let lab = Lab::new("strange");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let mut strangers = lab.strangers(700);
    let begun = Instant::now();
    lab.up(&[]);
    assert!(begun.elapsed() < PROMPT * 2, "it took {:?} with strangers around", begun.elapsed());
    assert!(lab.client_pings("10.50.0.2"));
    eventually(SOON * 3, "all strangers are shown out", || {
        strangers.retain_mut(|stranger| {
            stranger.set_nonblocking(true).unwrap();
            let read = std::io::Read::read(stranger, &mut [0]);
            matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        strangers.is_empty()
    });
    assert!(lab.status().is_some_and(|status| status["session"] == true), "and the client is attached still");
}

/// CVE-2023-44487.
#[test]
fn calls_that_are_reset_as_fast_as_they_are_begun_cost_a_gateway_nothing_and_its_clients_no_time() {
    let lab = Lab::new("rapid");
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let before = gateway.resident();
    let mut strangers: Vec<_> = (0..4).map(|_| lab.http2("/pinhole.v1.ClientSession/Enrol")).collect();
    let mut reset = 0;
    for _ in 0..100 {
        reset += strangers
            .iter_mut()
            .filter_map(|stranger| stranger.begin_and_reset(100).then_some(100))
            .sum::<u32>();
    }
    assert!(
        strangers.iter_mut().all(|stranger| !stranger.begin_and_reset(100)),
        "still welcome after {reset}"
    );
    let begun = Instant::now();
    lab.up(&[]);
    assert!(begun.elapsed() < CUT, "{:?}", begun.elapsed());
    let grown = gateway.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more after {reset} resets");
    assert_eq!(lab.operator.enrolments(), 1, "a call that was taken back was relayed");
}

#[test]
fn a_thousand_connections_with_half_sent_enrolments_cost_little_and_nobody_notices() {
    const GROWTH: u64 = 32 << 20;
    let lab = Lab::new("half");
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let before = gateway.resident();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let strangers = runtime.block_on(async { lab.half_sent(1000, 16) });
    eventually(SOON, "there are as many as can be", || strangers.begun().1 >= 128);
    let begun = Instant::now();
    lab.up(&[]);
    let took = begun.elapsed();
    assert!(took < PROMPT, "it took {took:?} with strangers around");
    let (mut most, begun) = (0, Instant::now());
    while begun.elapsed() < SOON {
        assert!(lab.client_pings("10.50.0.2"), "an attached one notices nothing");
        most = most.max(gateway.resident());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(lab.status().unwrap()["session"], true);
    let grown = most.saturating_sub(before);
    eprintln!(
        "{:?} begun; grown by {} kB of {} kB; a newcomer took {took:?}",
        strangers.begun(),
        grown / 1000,
        before / 1000
    );
    assert!(grown < GROWTH, "memory grew by {} kB", grown / 1000);
}

#[test]
fn a_client_that_knows_no_way_keeps_its_session_and_learns_one_over_it() {
    let lab = Lab::new("nowhere");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.operator.expose("gateway.invalid:51820");
    let join = lab.join("secret");
    std::thread::scope(|scope| {
        let up = scope.spawn(|| {
            lab.client(&["up", "--detach", "--no-dns", "--token-file", "-", "--timeout", "60"], &join)
        });
        eventually(SOON, "its session stands", || {
            lab.operator.reported("laptop").is_some_and(|report| report.session)
        });
        lab.operator.expose("192.0.2.1:51820");
        let up = up.join().unwrap();
        assert!(up.status.success(), "{up:?}");
    });
    assert!(lab.client_pings("10.50.0.2"));
}

#[test]
fn the_tunnel_outlives_the_operator_and_a_restart_of_the_gateway() {
    let lab = Lab::new("alone");
    let mut gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    lab.operator.stop();
    assert!(lab.client_pings("10.50.0.2"));
    gateway.kill();
    assert!(!lab.client_pings("10.50.0.2"));
    let _gateway = lab.gateway();
    eventually(SOON, "the client is back, from the kept snapshot", || lab.client_pings("10.50.0.2"));
    eventually(SOON, "and so is its session", || {
        lab.status().is_some_and(|status| status["session"] == true)
    });
    assert!(lab.readyz());
}

#[test]
fn a_gateway_that_is_told_to_end_ends_at_once_with_clients_attached_and_serves_them_when_it_is_back() {
    let lab = Lab::new("term");
    let mut gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    eventually(SOON, "the session stands", || lab.status().is_some_and(|status| status["session"] == true));
    let told = Instant::now();
    let ended = gateway.terminate();
    let took = told.elapsed();
    assert!(ended.success(), "{ended:?}");
    assert!(took < PROMPT, "it took {took:?}");
    let _gateway = lab.gateway();
    eventually(SOON, "the client is back", || lab.client_pings("10.50.0.2"));
}

#[test]
fn each_reason_not_to_connect_has_a_line_and_a_code_of_its_own() {
    let lab = Lab::new("codes");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let up = |token: &str| lab.client(&["up", "--no-dns", "--timeout", "3", "--token-file", "-"], token);
    let expect = |token: &str, code: i32, category: &str| {
        let output = up(token);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stderr.trim_end().ends_with(&format!("[{category}]")), "{output:?}");
        let lines = output.stderr.lines().filter(|line| line.starts_with("pinhole:")).count();
        assert_eq!(lines, 1, "{output:?}");
        assert!(!output.stderr.contains("secret"), "{output:?}");
    };
    expect("pinhole:rubbish", 10, "TokenInvalid");
    expect(&lab.join("wrong"), 10, "TokenInvalid");
    expect(&lab.join("expired"), 11, "TokenExpired");
    expect(&lab.join("used-up"), 12, "TokenUsedUp");
    expect(&lab.join("revoked"), 13, "TokenRevoked");
    expect(&lab.join("exhausted"), 14, "PoolExhausted");
    expect(&lab.join_at("secret", "192.0.2.1:9"), 15, "GatewayUnreachable");
    let none = lab.client(&["up", "--no-dns"], "");
    assert_eq!(none.status.code(), Some(22), "{none:?}");
    let not_running = lab.client(&["status"], "");
    assert_eq!(not_running.status.code(), Some(21), "{not_running:?}");

    let unprivileged = lab.unprivileged_client(&["up", "--no-dns", "--token-file", "-"], &lab.join("secret"));
    assert_eq!(unprivileged.status.code(), Some(17), "{unprivileged:?}");
    let without_tun = lab.client_without_tun(&["up", "--no-dns", "--token-file", "-"], &lab.join("secret"));
    assert_eq!(without_tun.status.code(), Some(16), "{without_tun:?}");
    assert_eq!(lab.operator.enrolments(), 0, "no token was spent on a machine that cannot run a tunnel");
}

#[test]
fn a_new_pool_brings_the_gateway_a_certificate_with_its_name_and_breaks_no_session() {
    let lab = Lab::new("pools");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    eventually(SOON, "the session stands", || lab.status().is_some_and(|status| status["session"] == true));
    let before = lab.operator.server_certificates();
    lab.operator.add_pool("staff");
    eventually(SOON, "a certificate is asked for", || lab.operator.server_certificates() == before + 1);
    assert!(lab.status().is_some_and(|status| status["session"] == true && status["phase"] == "Connected"));
}

#[test]
fn a_sidecar_waits_for_its_gateway_and_keeps_its_client_over_a_restart() {
    let lab = Lab::new("sidecar");
    let mut sidecar = lab.sidecar();
    let check = || lab.client(&["status", "--check"], "").status.success();
    eventually(SOON, "the sidecar runs", || lab.client_waits());
    eventually(SOON, "it says that it is not connected", || {
        lab.status().is_some_and(|status| status["phase"] == "Disconnected")
    });
    assert!(!check(), "nothing is connected before there is a gateway");
    let _gateway = lab.gateway();
    eventually(SOON * 2, "the sidecar is connected", check);
    assert!(lab.client_pings("10.50.0.2"));
    sidecar.kill();
    let _sidecar = lab.sidecar();
    eventually(SOON, "the restarted sidecar is connected", || check() && lab.client_pings("10.50.0.2"));
    assert_eq!(lab.operator.enrolments(), 1);
}

#[test]
fn a_mapping_that_moves_under_traffic_is_followed_and_reported() {
    let lab = Lab::new("moves");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    lab.renumber_client("192.0.2.2/24", "192.0.2.7/24");
    eventually(CUT, "traffic flows from the new address", || lab.client_pings("10.50.0.2"));
    eventually(CUT, "the operator hears of the move", || {
        lab.operator.reported("laptop").is_some_and(|report| {
            report.endpoint.starts_with("192.0.2.7:")
                && report.last_change.is_some_and(|change| change.from.starts_with("192.0.2.2:"))
        })
    });
}

#[test]
fn wg_shows_both_ends_and_changes_neither() {
    let lab = Lab::new("wg");
    // Sockets have their place by name in a directory that all namespaces share.
    let names = ["g", "c"].map(|role| format!("w{}{role}", std::process::id()));
    let _gateway = lab.gateway_on(&names[0]);
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let client = ["--name", &names[1], "--detach", "--no-dns", "--token-file", "-"];
    let up = lab.client(&[&["up"], &client[..]].concat(), &lab.join("secret"));
    assert!(up.status.success(), "{up:?}");
    assert!(lab.client_pings("10.50.0.2"));
    let wg = |words: &[&str]| std::process::Command::new("wg").args(words).output().expect("`wg` runs");
    for name in &names {
        let output = wg(&["show", name, "dump"]);
        assert!(output.status.success(), "{output:?}");
        let shown = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split('\t').collect()).collect();
        let [device, peer] = &lines[..] else { panic!("a device and a peer: {shown}") };
        assert_eq!(device[0], "(none)", "the private key is not told");
        assert_eq!(peer[1], "(none)", "nor is a preshared key");
        let at = if *name == names[0] { "192.0.2.2:" } else { "192.0.2.1:51820" };
        assert!(peer[2].starts_with(at), "{shown}");
        assert_eq!(peer[3].contains("10.77.0.9/32"), *name == names[0], "{shown}");
        assert!(peer[4..7].iter().all(|figure| figure.parse::<u64>().unwrap() > 0), "{shown}");

        let set = wg(&["set", name, "fwmark", "1"]);
        assert!(!set.status.success());
        assert!(String::from_utf8_lossy(&set.stderr).contains("Operation not permitted"), "{set:?}");
    }
    let down = lab.client(&["down", "--name", &names[1]], "");
    assert!(down.status.success(), "{down:?}");
    assert!(!std::path::Path::new(&format!("/var/run/wireguard/{}.sock", names[1])).exists());
}

fn is_named_at_both_places(lab: &Lab) {
    let seen = || lab.operator.reported("laptop").and_then(|report| report.key_on_two_machines);
    eventually(PROMPT * 5, "it is named", || seen().is_some());
    let shared = seen().unwrap();
    let at = |address: &str| [&shared.first, &shared.second].iter().any(|it| it.starts_with(address));
    assert!(at("192.0.2.2:") && at("192.0.3.2:"), "{shared:?}");
}

#[test]
fn one_key_on_two_machines_is_named_within_ten_seconds_and_one_of_them_gets_a_key_of_its_own() {
    let lab = Lab::new("twins");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.up(&[]);
    eventually(SOON, "the client is known", || lab.operator.reported("laptop").is_some_and(|it| it.session));
    assert_eq!(lab.operator.reported("laptop").unwrap().key_on_two_machines, None);
    let twin = Twin::of(&lab);
    let again = twin.client(&["up", "--detach", "--no-dns"], "");
    assert!(again.status.success(), "{again:?}");
    let pings = [lab.steady_pings("10.77.0.1", 5_000), twin.steady_pings("10.77.0.1", 5_000)];
    is_named_at_both_places(&lab);
    eventually(SOON, "both say so, and what to do", || {
        let said = [lab.client(&["status"], ""), twin.client(&["status"], "")];
        said.iter().all(|status| status.stdout.contains("pinhole up --new-key"))
    });
    let churn = || lab.operator.reported("laptop").unwrap().churn.unwrap_or_default();
    assert!(churn().count <= 2, "going to and fro is no churn: {:?}", churn());
    for pings in pings {
        pings.stop();
    }

    assert!(twin.client(&["down"], "").status.success());
    let new = ["up", "--detach", "--no-dns", "--new-key", "--hostname", "twin"];
    let untold = twin.client(&new, "");
    assert!(!untold.status.success() && untold.stderr.contains("join token"), "{untold:?}");
    let own = twin.client(&[&new[..], &["--token-file", "-"]].concat(), &lab.join("secret"));
    assert!(own.status.success() && own.stdout.contains("enrolled as branch/twin"), "{own:?}");
    // The gateway's newest session may still be that of the machine which left.
    eventually(SOON, "the first machine makes a session of its own", || lab.client_pings("10.77.0.1"));
    let pings = [lab.steady_pings("10.77.0.1", 100), twin.steady_pings("10.77.0.1", 100)];
    assert_eq!(pings.map(lab::Pings::lost), [0, 0], "each has its own packets");
    let kept = twin.client(&["down"], "");
    assert!(kept.status.success(), "{kept:?}");
    let again = twin.client(&["up", "--detach", "--no-dns"], "");
    assert!(again.status.success() && again.stdout.contains("10.77.0.10"), "the new key stays: {again:?}");
}

#[test]
fn a_stock_configuration_on_two_machines_is_named_within_ten_seconds_of_traffic() {
    let lab = Lab::new("phones");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let twin = Twin::of(&lab);
    let stock = Stock {
        addresses: &["10.77.0.20/32"],
        endpoint: "192.0.2.1:51820",
        allowed: "10.77.0.0/16",
        routes: &["10.77.0.1"],
    };
    let [one, other] = ["a", "b"].map(|role| format!("s{}{role}", std::process::id()));
    let _both = twin.stock_on_both([&one, &other], &stock);
    let pings = [lab.steady_pings("10.77.0.1", 5_000), twin.steady_pings("10.77.0.1", 5_000)];
    is_named_at_both_places(&lab);
    let report = lab.operator.reported("laptop").unwrap();
    assert!(report.churn.as_ref().is_some_and(|churn| churn.count <= 2), "{report:?}");
    for pings in pings {
        pings.stop();
    }
}
