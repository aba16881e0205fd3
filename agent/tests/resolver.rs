//! A client's name servers, on machines with each of the ways in which they are set: Debian's packages over the files of this
//! machine, in a mount namespace. Needs root, `ip`, `nsenter` and `unshare`; a package that cannot be had is said, and its
//! tests are told as ignored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::{
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use lab::{
    Lab, Running, eventually,
    house::{
        House,
        floors::{OPENRESOLV, RESOLVED_IN_USE, package, systemd_resolved},
    },
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(15);

type Test = fn(Option<&Path>);

/// Each with the package that it takes.
const TESTS: &[(&str, Option<&str>, Test)] = &[
    ("a_dhcp_client_that_rewrites_resolv_conf_does_not_take_the_tunnels_servers_away", None, rewritten),
    ("down_and_the_next_start_bring_back_what_a_killed_process_left", None, killed),
    ("a_resolver_that_hangs_holds_nothing_up_and_is_named", None, hangs),
    (
        "the_resolver_lies_behind_the_dead_tunnel_and_the_gateway_is_found_at_its_new_address",
        None,
        behind_the_dead_tunnel,
    ),
    ("openresolv_asks_the_tunnels_servers_alone", Some("openresolv"), openresolv),
    ("debians_resolvconf_asks_the_tunnels_servers_first", Some("resolvconf"), debian),
    ("systemd_resolved_asks_them_for_what_is_theirs", Some("systemd-resolved"), resolved),
    (
        "behind_a_kill_switch_the_gateway_is_found_though_resolved_may_not_ask_a_public_server",
        Some("systemd-resolved"),
        resolved_shut_in,
    ),
    (
        "behind_a_kill_switch_a_resolver_that_may_ask_nobody_is_named",
        Some("systemd-resolved"),
        resolved_shut_off,
    ),
    (
        "systemd_resolved_that_is_installed_and_not_in_use_is_left_alone",
        Some("systemd-resolved"),
        resolved_not_in_use,
    ),
];

fn main() {
    let root = nix::unistd::geteuid().is_root();
    let trials = TESTS.iter().map(|&(name, needs, test)| {
        let files = needs.filter(|_| root).map(package).transpose();
        let missing = if root { files.as_ref().err().map(String::as_str) } else { Some("no root") };
        if let Some(why) = missing {
            eprintln!("ignored: {name}: {}: {why}", needs.unwrap_or("namespaces"));
        }
        let (ignored, files) = (missing.is_some(), files.ok().flatten());
        let trial = Trial::test(name, move || {
            test(files.as_deref());
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(ignored)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

const LAN: &str = "nameserver 192.168.50.1\nsearch lan\n";
const OURS: &str = "nameserver 10.96.0.10\nsearch cluster.local\n";
const UP: [&str; 2] = ["up", "--detach"];

/// A gateway whose pool has a name server, a search domain and these routes.
fn lab(name: &str, routes: &[&str]) -> (Lab, Running) {
    let lab = Lab::new(name);
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let routes: Vec<String> = routes.iter().map(|&route| route.to_owned()).collect();
    lab.operator.change(|desired| {
        let pool = &mut desired.pools[0];
        pool.dns_servers = vec!["10.96.0.10".into()];
        pool.dns_search = vec!["cluster.local".into()];
        pool.routes = routes;
    });
    (lab, gateway)
}

const SPLIT: &[&str] = &["10.50.0.0/24", "10.96.0.0/12"];
const FULL: &[&str] = &["0.0.0.0/0"];

fn up(lab: &Lab, house: &House<'_>) {
    let up = house.client(&[UP[0], UP[1], "--token-file", "-"], &lab.join("secret"));
    assert!(up.status.success(), "{up:?}");
}

fn down(house: &House<'_>) {
    let down = house.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
}

/// An openresolv whose subscribers never come to an end.
const HANGING: &str = r"
mkdir -p /usr/sbin
cat >/usr/sbin/resolvconf <<'END'
#!/bin/sh
case $1 in --version) echo openresolv 3.12.0;; -l) ;; -f) ;; *) exec sleep 60;; esac
END
chmod +x /usr/sbin/resolvconf
";

fn hangs(_: Option<&Path>) {
    let (lab, _gateway) = lab("hangs", SPLIT);
    let house = House::new(&lab, None, HANGING);
    let began = Instant::now();
    let up = house.client(&[UP[0], UP[1], "--token-file", "-"], &lab.join("secret"));
    assert!(up.status.success(), "{up:?}");
    assert!(up.stdout.contains("degraded") && up.stdout.contains("does not answer"), "{up:?}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // It is asked once more meanwhile, and again.
    let (until, mut slowest) = (Instant::now() + SOON, Duration::ZERO);
    while Instant::now() < until {
        let asked = Instant::now();
        assert!(impairment(&lab).is_some());
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "the tunnel's own loop was held up for {slowest:?}");
    assert!(lab.client_pings("10.50.0.2"));
    down(&house);
}

/// What the status says of name servers.
fn impairment(lab: &Lab) -> Option<String> {
    let status = lab.status().expect("the tunnel runs");
    let mut impairments = status["impairments"].as_array().unwrap().iter();
    let missing = impairments.find(|impairment| impairment["category"] == "ResolverNotSet")?;
    assert_eq!(status["phase"], "Degraded");
    Some(missing["message"].to_string())
}

fn rewritten(_: Option<&Path>) {
    let (lab, _gateway) = lab("dhcp", SPLIT);
    let house = House::new(&lab, None, "");
    up(&lab, &house);
    assert!(house.resolv_conf().ends_with(OURS), "{}", house.resolv_conf());
    assert_eq!(impairment(&lab), None);
    for newer in ["nameserver 192.168.50.2\n", "nameserver 192.168.50.3\n"] {
        // As dhclient does it, and as others do.
        let write = format!("printf '{newer}' > /etc/new && mv /etc/new /etc/resolv.conf");
        house.sh(if newer.contains(".3") {
            "printf 'nameserver 192.168.50.3\\n' > /etc/resolv.conf"
        } else {
            &write
        });
        eventually(SOON, "they are put back", || house.resolv_conf().ends_with(OURS));
        eventually(SOON, "and nothing is missing", || impairment(&lab).is_none());
    }
    let mut other =
        house.runs("while true; do printf 'nameserver 192.168.50.4\\n' > /etc/resolv.conf; sleep 0.05; done");
    eventually(SOON, "what is missing is said", || impairment(&lab).is_some());
    other.kill();
    eventually(SOON * 4, "until it is not", || impairment(&lab).is_none());
    assert!(house.resolv_conf().ends_with(OURS));
    down(&house);
    assert_eq!(house.resolv_conf(), "nameserver 192.168.50.4\n", "the newest of the network's own");
}

fn killed(_: Option<&Path>) {
    let (lab, _gateway) = lab("kill", SPLIT);
    let house = House::new(&lab, None, "");
    up(&lab, &house);
    lab.signal_client(Signal::SIGKILL);
    eventually(SOON, "it is gone", || lab.status().is_none());
    assert!(house.resolv_conf().ends_with(OURS));
    down(&house);
    assert_eq!(house.resolv_conf(), LAN);
    let again = house.client(&["down"], "");
    assert_eq!(again.status.code(), Some(21), "there is nothing left to take back: {again:?}");

    let up = house.client(&UP, "");
    assert!(up.status.success(), "{up:?}");
    lab.signal_client(Signal::SIGKILL);
    eventually(SOON, "it is gone again", || lab.status().is_none());
    let without = house.client(&[UP[0], UP[1], "--no-dns"], "");
    assert!(without.status.success(), "{without:?}");
    assert_eq!(house.resolv_conf(), LAN, "a start that sets none takes the former ones back as well");
    down(&house);
}

/// Names that somebody asked for.
type Asked = Arc<Mutex<Vec<String>>>;

/// A name server of the network, outside of the tunnel, that answers every question for an address with this one.
fn name_server(lab: &Lab, address: &Arc<AtomicU32>) -> Asked {
    let socket = lab.operator.in_gateway(|| UdpSocket::bind("192.0.2.53:53").unwrap());
    let (address, asked) = (Arc::clone(address), Asked::default());
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            seen.lock().unwrap().push(name_in(&query[..length]));
            let _ = socket.send_to(&answer(&query[..length], address.load(Ordering::Relaxed).into()), from);
        }
    });
    asked
}

fn name_in(query: &[u8]) -> String {
    let (mut rest, mut labels) = (&query[12..], Vec::new());
    while let Some((&length @ 1..=63, more)) = rest.split_first() {
        let (label, after) = more.split_at(usize::from(length));
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        rest = after;
    }
    labels.join(".")
}

/// RFC 1035: the question again, and one address where it asks for one.
fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let question_end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let asks_a = query[question_end - 4..question_end] == [0, 1, 0, 1];
    let mut answer = query[..question_end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(asks_a), 0, 0, 0, 0]);
    if asks_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

fn behind_the_dead_tunnel(_: Option<&Path>) {
    const NETWORK: &str = "nameserver 192.0.2.53\n";
    let (lab, mut gateway) = lab("dead", SPLIT);
    lab.gateway_ip("address add 192.0.2.53/24 dev out");
    let at = |text: &str| u32::from(text.parse::<Ipv4Addr>().unwrap());
    let address = Arc::new(AtomicU32::new(at("192.0.2.1")));
    name_server(&lab, &address);
    lab.operator.change(|desired| {
        desired.replicas[0].tunnel_endpoints = vec!["gateway.example:51820".into()];
        desired.replicas[0].session_endpoints = vec!["gateway.example:51821".into()];
    });
    let house = House::new(&lab, None, "printf 'nameserver 192.0.2.53\n' > /etc/resolv.conf");
    let up = house
        .client(&["up", "--detach", "--token-file", "-"], &lab.join_at("secret", "gateway.example:51821"));
    assert!(up.status.success(), "{up:?}");
    assert!(house.resolv_conf().ends_with(OURS));
    assert!(lab.client_pings("10.50.0.2"));

    // The network and its name server stay what they were.
    let move_to = |to: &str| {
        lab.gateway_ip("address flush dev out");
        lab.gateway_ip("address add 192.0.2.53/24 dev out");
        lab.gateway_ip(&format!("address add {to}/24 dev out"));
        address.store(at(to), Ordering::Relaxed);
    };
    gateway.kill();
    move_to("192.0.2.3");
    let mut gateway = lab.gateway();
    let status = || lab.status().unwrap_or_default();
    let connected = || status()["phase"] == "Connected" && lab.client_pings("10.50.0.2");
    eventually(SOON * 2, "the client finds it, by the network's name server", || {
        status()["endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("192.0.2.3:"))
            && connected()
    });
    assert!(house.resolv_conf().ends_with(OURS), "while all other names were asked of the tunnel's");

    gateway.kill();
    eventually(SOON * 4, "names are given back while the path is lost for long", || {
        house.resolv_conf() == NETWORK
    });
    assert_ne!(status()["phase"], "Connected");
    let _gateway = lab.gateway();
    eventually(SOON * 2, "the client finds it again", connected);
    eventually(SOON, "and names are the tunnel's again", || house.resolv_conf().ends_with(OURS));
    down(&house);
    assert_eq!(house.resolv_conf(), NETWORK);
}

fn openresolv(files: Option<&Path>) {
    let (lab, _gateway) = lab("open", FULL);
    let house = House::new(&lab, files, OPENRESOLV);
    let before = house.resolv_conf();
    up(&lab, &house);
    let ours = house.resolv_conf();
    assert!(ours.contains("nameserver 10.96.0.10\n") && ours.contains("search cluster.local\n"), "{ours}");
    assert!(!ours.contains("192.168.50.1"), "the network's own is not asked: {ours}");
    house.sh("echo nameserver 192.168.50.9 > /etc/resolv.conf");
    eventually(SOON, "they are put back", || house.resolv_conf() == ours);
    down(&house);
    assert_eq!(house.resolv_conf(), before);
    assert!(house.client(&UP, "").status.success());
    lab.signal_client(Signal::SIGKILL);
    eventually(SOON, "it is gone", || lab.status().is_none());
    assert_eq!(house.resolv_conf(), ours);
    down(&house);
    assert_eq!(house.resolv_conf(), before);
}

fn debian(files: Option<&Path>) {
    let (lab, _gateway) = lab("deb", FULL);
    let boot = "mkdir -p /run/resolvconf/interface && ln -sf /run/resolvconf/resolv.conf /etc/resolv.conf \
                && resolvconf --enable-updates && printf 'nameserver 192.168.50.1\\nsearch lan\\n' | resolvconf -a eth0.dhclient";
    let house = House::new(&lab, files, boot);
    let before = house.resolv_conf();
    assert!(before.contains("192.168.50.1"), "{before}");
    up(&lab, &house);
    let servers = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(str::to_owned).collect()
    };
    assert_eq!(servers(&house.resolv_conf()), ["10.96.0.10", "192.168.50.1"]);
    house.sh("printf 'nameserver 192.168.50.1\\nnameserver 192.168.50.2\\n' | resolvconf -a eth0.dhclient");
    eventually(SOON, "they stay first", || servers(&house.resolv_conf())[0] == "10.96.0.10");
    lab.signal_client(Signal::SIGKILL);
    eventually(SOON, "it is gone", || lab.status().is_none());
    down(&house);
    assert_eq!(servers(&house.resolv_conf()), ["192.168.50.1", "192.168.50.2"]);
}

fn resolved(files: Option<&Path>) {
    let (lab, _gateway) = lab("resolved", SPLIT);
    let script = format!("{}\n{RESOLVED_IN_USE}", systemd_resolved("wan"));
    let house = House::new(&lab, files, &script);
    up(&lab, &house);
    let link = |verb: &str| {
        let shown = house.sh(&format!("resolvectl {verb} pinhole0"));
        shown.split_once(": ").map(|(_, shown)| shown.trim().to_owned()).unwrap_or_default()
    };
    let all = || (link("dns"), link("domain"), link("default-route"));
    let expected =
        |domains: &str, default: &str| ("10.96.0.10".to_owned(), domains.to_owned(), default.to_owned());
    assert_eq!(all(), expected("cluster.local", "no"), "its own names alone");
    assert_eq!(impairment(&lab), None);
    lab.operator.change(|desired| desired.pools[0].routes = vec!["0.0.0.0/0".into()]);
    eventually(SOON, "all names in a full tunnel, search domains or not", || {
        all() == expected("cluster.local ~.", "yes")
    });
    house.sh("resolvectl revert pinhole0");
    eventually(SOON, "they are put back", || all() == expected("cluster.local ~.", "yes"));
    house.sh("rm /etc/resolv.conf && echo nameserver 192.168.50.9 > /etc/resolv.conf");
    eventually(SOON, "another way is in use now, and taken", || house.resolv_conf().ends_with(OURS));
    down(&house);
    assert_eq!(house.resolv_conf(), "nameserver 192.168.50.9\n");
}

/// The same with a name server that is not the local network's.
fn resolved_with(server: &str) -> String {
    let script = systemd_resolved("wan").replace("192.168.50.1", server);
    format!("{script}\n{RESOLVED_IN_USE}")
}

fn resolved_shut_in(files: Option<&Path>) {
    let lab = Lab::behind_a_nat("shut", (60, 120));
    lab.gateway_ip("address add 192.0.2.53/24 dev out");
    let at = |text: &str| u32::from(text.parse::<Ipv4Addr>().unwrap());
    let address = Arc::new(AtomicU32::new(at("192.0.2.1")));
    let asked = name_server(&lab, &address);
    lab.operator.change(|desired| {
        let pool = &mut desired.pools[0];
        pool.dns_servers = vec!["10.96.0.10".into()];
        pool.routes = FULL.iter().map(|&route| route.to_owned()).collect();
        desired.replicas[0].tunnel_endpoints = vec!["gateway.example:51820".into()];
        desired.replicas[0].session_endpoints = vec!["gateway.example:51821".into()];
    });
    let mut gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    let house = House::new(&lab, files, &resolved_with("192.0.2.53"));
    let up = ["up", "--detach", "--kill-switch"];
    let join = lab.join_at("secret", "gateway.example:51821");
    let first = house.client(&[&up[..], &["--token-file", "-"]].concat(), &join);
    assert!(first.status.success(), "{first:?}");
    assert!(lab.client_pings("10.50.0.2"));
    // As a machine starts again that was switched off.
    lab.signal_client(Signal::SIGKILL);
    eventually(SOON, "it is gone", || lab.status().is_none());
    let again = house.client(&up, "");
    assert!(again.status.success(), "{again:?}");
    assert!(lab.client_pings("10.50.0.2"));

    asked.lock().unwrap().clear();
    house.sh("timeout 3 resolvectl query --cache=no other.example || true");
    gateway.kill();
    lab.gateway_ip("address flush dev out");
    lab.gateway_ip("address add 192.0.2.53/24 dev out");
    lab.gateway_ip("address add 192.0.2.3/24 dev out");
    address.store(at("192.0.2.3"), Ordering::Relaxed);
    let _gateway = lab.gateway();
    eventually(SOON * 4, "the client finds it at its new address", || {
        let status = lab.status().unwrap_or_default();
        status["endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("192.0.2.3:"))
            && status["phase"] == "Connected"
            && lab.client_pings("10.50.0.2")
    });
    house.sh("timeout 3 resolvectl query --cache=no other.example || true");
    let asked = asked.lock().unwrap().clone();
    assert!(!asked.is_empty() && asked.iter().all(|name| name == "gateway.example"), "{asked:?}");
    down(&house);
}

fn resolved_shut_off(files: Option<&Path>) {
    let (lab, _gateway) = lab("shutoff", FULL);
    lab.operator.change(|desired| desired.pools[0].dns_servers.clear());
    let house = House::new(&lab, files, &resolved_with("198.51.100.53"));
    let up = ["up", "--detach", "--kill-switch", "--token-file", "-"];
    let up = house.client(&up, &lab.join("secret"));
    assert!(up.status.success() && up.stdout.contains("degraded"), "{up:?}");
    // The other is what the file said before it was the resolver's.
    assert!(
        up.stdout.contains("systemd-resolved asks 192.168.50.1, 198.51.100.53 past the tunnel"),
        "{up:?}"
    );
    // One that may be asked, or the pool's own, heals it.
    house.sh("resolvectl dns wan 192.0.2.53");
    eventually(SOON, "one of the local network", || lab.status().unwrap()["phase"] == "Connected");
    house.sh("resolvectl dns wan 198.51.100.53");
    eventually(SOON, "it is told again", || lab.status().unwrap()["phase"] == "Degraded");
    lab.operator.change(|desired| desired.pools[0].dns_servers = vec!["10.96.0.10".into()]);
    eventually(SOON, "the pool's own", || lab.status().unwrap()["phase"] == "Connected");
    down(&house);
}

fn resolved_not_in_use(files: Option<&Path>) {
    let (lab, _gateway) = lab("unused", SPLIT);
    let house = House::new(&lab, files, &systemd_resolved("wan"));
    up(&lab, &house);
    assert!(house.resolv_conf().ends_with(OURS), "{}", house.resolv_conf());
    assert!(!house.sh("resolvectl dns").contains("10.96.0.10"));
    down(&house);
    assert_eq!(house.resolv_conf(), LAN);
}
