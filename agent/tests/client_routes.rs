//! What a client's machine has of its own beside the tunnel's routes: bridges, a local network, pushed routes, other hands, a
//! second VPN, one family of addresses alone. Needs root, `ip`, `ping` and `wg`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;

use std::{process::Command, time::Duration};

use lab::{Lab, Running, eventually, second_vpn::SecondVpn};

const SOON: Duration = Duration::from_secs(15);
const REPORTED: [&str; 5] = ["0.0.0.0/0", "10.96.0.0/12", "172.17.0.0/16", "192.168.50.0/24", "10.50.0.0/24"];
const DOCKER: [&str; 3] =
    ["link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up"];

/// A lab whose pool has these routes, with its gateway.
fn lab(name: &str, routes: &[&str]) -> (Lab, Running) {
    with(Lab::new(name), routes)
}

fn with(lab: Lab, routes: &[&str]) -> (Lab, Running) {
    lab.operator.change(|desired| {
        desired.pools[0].routes = routes.iter().map(|&route| route.to_owned()).collect();
    });
    let gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    (lab, gateway)
}

fn phase(lab: &Lab) -> String {
    lab.status().map(|status| status["phase"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// The device by which a packet to there leaves.
fn way(lab: &Lab, to: &str) -> String {
    // It fails where there is none.
    let shown = lab.try_client_ip(&format!("route get {to}")).unwrap_or_default();
    let device = shown.split_whitespace().skip_while(|word| *word != "dev").nth(1);
    device.unwrap_or("nowhere").to_owned()
}

fn impaired(lab: &Lab) -> Vec<(String, String, String)> {
    let status = lab.status().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let impairments = status["impairments"].as_array().unwrap().iter();
    impairments.map(|one| (text(&one["category"]), text(&one["prefix"]), text(&one["interface"]))).collect()
}

fn conflict(prefix: &str, interface: &str) -> (String, String, String) {
    ("RouteConflict".to_owned(), prefix.to_owned(), interface.to_owned())
}

#[test]
fn a_full_tunnel_beside_dockers_bridge_does_not_leak() {
    let (lab, _gateway) = lab("docker", &REPORTED);
    for words in DOCKER {
        lab.client_ip(words);
    }
    lab.client_ip("route add default via 192.0.2.1");
    let said = lab.up(&[]).stdout;
    assert!(said.contains("degraded: connected to edge-0") && said.contains("docker0"), "{said}");
    for to in ["8.8.8.8", "192.168.50.7", "10.96.0.1", "10.77.0.1"] {
        assert_eq!(way(&lab, to), "pinhole0", "{to}");
    }
    assert_eq!(way(&lab, "172.17.0.2"), "docker0");
    assert_eq!(way(&lab, "192.0.2.1"), "wan");
    assert!(lab.client_pings("10.50.0.2"));
    assert_eq!(phase(&lab), "Degraded");
    assert_eq!(impaired(&lab), [conflict("172.17.0.0/16", "docker0")]);
    let table = lab.client(&["status"], "").stdout;
    assert!(table.contains("172.17.0.0/16") && table.contains("docker0"), "{table}");
    assert!(!lab.client(&["status", "--check"], "").status.success());
    let reported = || {
        let report = lab.operator.reported("laptop").unwrap_or_default();
        report.impairments.into_iter().map(|it| (it.category, it.message)).collect::<Vec<_>>()
    };
    eventually(SOON, "the operator hears of it", || {
        reported().iter().any(|(category, said)| category == "RouteConflict" && said.contains("docker0"))
    });

    lab.client_ip("link delete docker0");
    eventually(SOON, "the prefix is the pool's again", || {
        phase(&lab) == "Connected" && way(&lab, "172.17.0.2") == "pinhole0"
    });
    assert_eq!(impaired(&lab), []);
    eventually(SOON, "the operator hears of that", || reported().is_empty());
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert_eq!(way(&lab, "8.8.8.8"), "wan");
}

#[test]
fn who_wins_where_the_local_network_overlaps_is_the_users_choice() {
    let (lab, _gateway) = lab("overlap", &REPORTED);
    for words in DOCKER {
        lab.client_ip(words);
    }
    let refused =
        lab.client(&["up", "--no-dns", "--token-file", "-", "--on-overlap", "refuse"], &lab.join("secret"));
    assert_eq!(refused.status.code(), Some(32), "{refused:?}");
    assert!(refused.stderr.contains("docker0") && refused.stderr.contains("[RouteConflict]"), "{refused:?}");
    assert!(!lab.client_ip("rule").contains("fwmark"), "nothing stays behind");

    assert!(lab.up(&["--on-overlap", "local"]).stdout.starts_with("connect"));
    assert_eq!((phase(&lab).as_str(), way(&lab, "172.17.0.2").as_str()), ("Connected", "docker0"));
    assert_eq!(impaired(&lab), [conflict("172.17.0.0/16", "docker0")], "it is a note");
    lab.client(&["down"], "");

    lab.up(&["--on-overlap", "tunnel"]);
    assert_eq!((phase(&lab).as_str(), way(&lab, "172.17.0.2").as_str()), ("Connected", "pinhole0"));
    assert_eq!(impaired(&lab), []);
    assert!(lab.client_pings("10.50.0.2"), "the tunnel's own packets have their way");
}

#[test]
fn what_somebody_else_takes_away_is_put_back() {
    let (lab, _gateway) = lab("hands", &["0.0.0.0/0"]);
    lab.client_ip("route add default via 192.0.2.1");
    lab.up(&[]);
    let rule = lab.client_ip("rule").lines().find(|line| line.contains("fwmark")).unwrap().to_owned();
    let priority = rule.split(':').next().unwrap().to_owned();
    let table = rule.split_whitespace().last().unwrap().to_owned();
    let taken = [
        format!("rule delete priority {priority}"),
        format!("route flush table {table}"),
        "address flush dev pinhole0".to_owned(),
        "link set pinhole0 down".to_owned(),
    ];
    for words in taken {
        assert_eq!((way(&lab, "8.8.8.8").as_str(), phase(&lab).as_str()), ("pinhole0", "Connected"));
        lab.client_ip(&words);
        eventually(Duration::from_secs(2), &words, || {
            way(&lab, "8.8.8.8") == "pinhole0" && lab.client_pings("10.50.0.2")
        });
        eventually(SOON, "it says so", || phase(&lab) == "Connected");
    }
}

#[test]
fn a_split_tunnels_route_that_somebody_takes_away_or_has_is_put_back_or_named() {
    let (lab, _gateway) = lab("split", &["10.50.0.0/24", "10.96.0.0/12"]);
    lab.up(&[]);
    lab.client_ip("route delete 10.50.0.0/24");
    eventually(Duration::from_secs(2), "it is back", || way(&lab, "10.50.0.2") == "pinhole0");
    lab.client_ip("route replace 10.96.0.0/12 dev wan");
    eventually(Duration::from_secs(2), "it is named", || phase(&lab) == "Degraded");
    assert_eq!(impaired(&lab), [conflict("10.96.0.0/12", "wan")]);
    assert!(lab.client_pings("10.50.0.2"), "the others are not meant");
    lab.client_ip("route delete 10.96.0.0/12 dev wan");
    eventually(SOON, "it is the pool's again", || {
        phase(&lab) == "Connected" && way(&lab, "10.96.0.1") == "pinhole0"
    });
}

/// CVE-2024-3661.
#[test]
fn a_route_that_dhcp_pushes_takes_nothing_from_a_full_tunnel() {
    let (lab, _gateway) = lab("pushed", &["0.0.0.0/0"]);
    lab.client_ip("route add default via 192.0.2.1");
    lab.client_ip("route add 10.50.0.0/24 via 192.0.2.1 proto dhcp");
    lab.up(&[]);
    lab.client_ip("route add 8.8.8.0/24 via 192.0.2.1 proto dhcp");
    for to in ["10.50.0.2", "8.8.8.8"] {
        assert_eq!(way(&lab, to), "pinhole0", "{to}");
    }
    assert_eq!((phase(&lab).as_str(), impaired(&lab)), ("Connected", vec![]));
}

#[test]
fn without_ipv6_on_the_host_or_the_gateways_node_the_tunnel_is_one_of_ipv4() {
    for without in ["host", "node", "both"] {
        let lab = Lab::new(without);
        lab.operator.change(|desired| {
            desired.replicas[0].tunnel_addresses.insert(0, "fd77::1".into());
            desired.tunnel_addresses.push("fd77::1/64".into());
            desired.pools[0].cidrs.push("fd77::/64".into());
            desired.pools[0].routes.extend(["fd50::/64".into(), "::/0".into()]);
        });
        lab.operator.give("fd77::9/128");
        let off = || {
            for which in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
            }
        };
        if without != "node" {
            lab.within_client(off);
        }
        if without != "host" {
            lab.operator.in_gateway(off);
        }
        let _gateway = lab.gateway();
        eventually(SOON, "the gateway is ready", || lab.readyz());
        lab.up(&[]);
        assert!(lab.client_pings("10.50.0.2"), "{without}");
        assert_eq!(phase(&lab), "Connected", "{without}");
        let said = impaired(&lab).iter().any(|(category, ..)| category == "IPv6Unavailable");
        assert_eq!(said, without != "node", "{without}");
        let unavailable = "pinhole_gateway_impairments{category=\"IPv6Unavailable\"} 1";
        assert_eq!(lab.metrics().contains(unavailable), without != "host", "{without}");
        lab.client(&["down"], "");
    }
}

#[test]
fn a_host_that_has_ipv6_alone_has_a_tunnel_of_both_families() {
    let (lab, _gateway) = lab("six", &["10.50.0.0/24", "0.0.0.0/0", "fd50::/64", "::/0"]);
    lab.operator.change(|desired| {
        desired.replicas[0].tunnel_endpoints.push("[2001:db8::1]:51820".into());
        desired.replicas[0].session_endpoints.push("[2001:db8::1]:51821".into());
    });
    lab.gateway_ip("address add 2001:db8::1/64 dev out nodad");
    lab.client_ip("address flush dev wan");
    lab.client_ip("address add 2001:db8::2/64 dev wan nodad");
    lab.client_ip("-6 route add default via 2001:db8::1");
    let up = lab.client(
        &["up", "--detach", "--no-dns", "--token-file", "-"],
        &lab.operator.join_by("secret", &["192.0.2.1:51821", "[2001:db8::1]:51821"]),
    );
    assert!(up.status.success(), "{up:?}");
    assert!(lab.client_pings("10.50.0.2"));
    assert_eq!((phase(&lab).as_str(), impaired(&lab)), ("Connected", vec![]));
    for to in ["8.8.8.8", "2600::1"] {
        assert_eq!(way(&lab, to), "pinhole0", "{to}");
    }
    assert_eq!(lab.steady_pings("10.50.0.2", 50).lost(), 0);
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert_eq!((way(&lab, "8.8.8.8"), way(&lab, "2600::1")), ("nowhere".to_owned(), "wan".to_owned()));
}

/// Where the tunnel's own packets leave.
fn own_way(lab: &Lab) -> String {
    way(lab, "192.0.2.1 mark 0x70696e68")
}

#[test]
fn a_second_vpn_that_takes_everything_is_not_led_round_in_circles() {
    let (lab, _gateway) = with(Lab::behind_a_nat("second", (60, 120)), &["0.0.0.0/0"]);
    let second = SecondVpn::new(&lab, "wg-first");
    second.cover(&lab);
    let before = lab.client_ip("rule");
    lab.up(&[]);
    assert_eq!((way(&lab, "8.8.8.8").as_str(), own_way(&lab).as_str()), ("pinhole0", "wan"));
    // Until then its packets went through the other one.
    let proven = || phase(&lab) == "Connected" && lab.client_pings("10.50.0.2");
    eventually(Duration::from_secs(2), "by its new way", proven);
    assert_eq!(impaired(&lab), []);
    assert_eq!(lab.steady_pings("10.50.0.2", 50).lost(), 0);
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert_eq!(
        (lab.client_ip("rule").as_str(), way(&lab, "8.8.8.8").as_str()),
        (before.as_str(), second.device())
    );
}

#[test]
fn a_split_tunnel_goes_through_a_second_vpn_that_takes_everything() {
    let (lab, _gateway) = with(Lab::behind_a_nat("within", (60, 120)), &["10.50.0.0/24"]);
    let second = SecondVpn::new(&lab, "wg-within");
    second.cover(&lab);
    let before = lab.client_ip("rule");
    lab.up(&[]);
    assert!(lab.client_pings("10.50.0.2"));
    assert_eq!((phase(&lab).as_str(), impaired(&lab)), ("Connected", vec![]));
    assert_eq!((way(&lab, "10.50.0.2").as_str(), own_way(&lab).as_str()), ("pinhole0", second.device()));
    assert_eq!(lab.client_ip("rule"), before);
}

#[test]
fn a_second_vpn_that_comes_later_and_takes_everything_is_named() {
    let (lab, _gateway) = with(Lab::behind_a_nat("later", (60, 120)), &["0.0.0.0/0"]);
    let before = lab.client_ip("rule");
    lab.up(&[]);
    assert_eq!((phase(&lab).as_str(), impaired(&lab)), ("Connected", vec![]));
    let second = SecondVpn::new(&lab, "wg-later");
    second.cover(&lab);
    eventually(SOON, "it is named", || phase(&lab) == "Degraded");
    assert_eq!(impaired(&lab), ["0.0.0.0/0", "10.77.0.1/32"].map(|net| conflict(net, second.device())));
    assert_eq!(own_way(&lab), "wan", "no circles");
    second.uncover(&lab);
    eventually(SOON, "everything is the tunnel's again", || phase(&lab) == "Connected");
    assert!(lab.client_pings("10.50.0.2"));
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert_eq!(lab.client_ip("rule"), before);
}

#[test]
fn what_is_left_of_a_killed_client_beside_a_second_vpn_is_gone_with_down() {
    let (lab, _gateway) = with(Lab::behind_a_nat("left", (60, 120)), &["0.0.0.0/0"]);
    let second = SecondVpn::new(&lab, "wg-left");
    second.cover(&lab);
    let before = lab.client_ip("rule");
    lab.up(&[]);
    lab.signal_client(nix::sys::signal::Signal::SIGKILL);
    eventually(SOON, "its device is gone", || !lab.client_links().contains("pinhole0"));
    assert_ne!(lab.client_ip("rule"), before, "a killed one cannot clean up");
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert_eq!(lab.client_ip("rule"), before);
}

#[test]
fn a_host_that_is_strict_about_the_way_back_has_a_full_tunnel() {
    let (lab, _gateway) = with(Lab::behind_a_nat("strict", (60, 120)), &["0.0.0.0/0"]);
    lab.within_client(|| {
        for which in ["all", "default", "wan"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{which}/rp_filter"), "1").unwrap();
        }
    });
    lab.up(&[]);
    assert_eq!(lab.steady_pings("10.50.0.2", 50).lost(), 0);
    assert_eq!((phase(&lab).as_str(), impaired(&lab)), ("Connected", vec![]));
    lab.within_client(|| {
        let nft = Command::new("nft").args(["delete", "table", "inet", "pinhole0-mark"]).status();
        assert!(nft.unwrap().success());
    });
    eventually(SOON, "it is put back", || lab.client_ruleset().contains("pinhole0-mark"));
    assert!(lab.client_pings("10.50.0.2"), "without it nothing comes back");
    lab.client(&["down"], "");
    assert!(!lab.client_ruleset().contains("pinhole"), "{}", lab.client_ruleset());
}

#[test]
fn tables_that_somebody_changes_are_made_again_and_others_are_left_as_they_are() {
    let (lab, _gateway) = with(Lab::behind_a_nat("tables", (60, 120)), &["0.0.0.0/0"]);
    lab.up(&["--kill-switch"]);
    let nft = |words: &str| {
        lab.within_client(|| {
            let output = Command::new("nft").args(words.split(' ')).output().unwrap();
            assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    };
    // All but what is counted; what is made again comes last.
    let shape = |ruleset: &str| {
        let words = ruleset.split_whitespace().filter(|word| word.parse::<u64>().is_err());
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.sort();
        words
    };
    let ours = shape(&nft("list ruleset"));
    for table in ["pinhole0-inner", "pinhole0-mark", "pinhole0-killswitch"] {
        assert!(ours.iter().any(|word| word == table), "{ours:?}");
    }
    let changes = [
        "delete table inet pinhole0-inner",
        "delete table inet pinhole0-killswitch",
        "flush chain inet pinhole0-killswitch output",
        "add rule inet pinhole0-inner prerouting accept",
        "delete table inet pinhole0-mark",
        "flush ruleset",
    ];
    for change in changes {
        nft(change);
        eventually(Duration::from_secs(2), change, || shape(&nft("list ruleset")) == ours);
        assert!(lab.client_pings("10.50.0.2"), "{change}");
    }
    // Any table that is made again has another handle.
    let handles = || -> Vec<String> {
        nft("-a list ruleset")
            .lines()
            .filter_map(|line| line.split_once("# handle "))
            .map(|it| it.1.into())
            .collect()
    };
    let before = handles();
    let rules = lab.client_ip("rule");
    let rule = rules.lines().find(|line| line.contains("fwmark")).unwrap();
    lab.client_ip("link add other type bridge");
    lab.client_ip("link set other up");
    nft("add table inet somebodys");
    nft("delete table inet somebodys");
    lab.client_ip(&format!("rule delete priority {}", rule.split(':').next().unwrap()));
    eventually(SOON, "all that is there was looked at", || lab.client_ip("rule") == rules);
    assert_eq!(handles(), before);
}

#[test]
fn routes_that_are_not_accepted_are_not_made_and_status_says_so() {
    let (lab, _gateway) = lab("accept", &["0.0.0.0/0", "10.96.0.0/12"]);
    lab.up(&["--accept-routes", "10.50.0.0/24"]);
    assert_eq!((way(&lab, "10.50.0.2").as_str(), way(&lab, "10.77.0.1").as_str()), ("pinhole0", "pinhole0"));
    assert!(!lab.client_ip("route show table all").contains("10.96.0.0/12"));
    assert!(!lab.client_ip("rule").contains("fwmark"));
    lab.client(&["down"], "");
    lab.up(&["--no-routes"]);
    assert!(!lab.client_ip("route show table main").contains("pinhole0"));
    assert_eq!(phase(&lab), "Connected");
    assert_eq!(impaired(&lab)[0].0, "RoutesNotInstalled");
}

#[test]
fn what_a_killed_client_leaves_is_gone_with_the_next_start_or_with_down() {
    let (lab, _gateway) = lab("killed", &["0.0.0.0/0", "::/0"]);
    lab.client_ip("route add default via 192.0.2.1");
    let before = lab.client_ip("rule") + &lab.client_ip("-6 rule");
    let left = || {
        lab.client_ip("route show table all").contains("proto 112")
            || lab.client_ruleset().contains("pinhole")
    };
    for way_out in ["up", "down"] {
        lab.up(&[]);
        lab.signal_client(nix::sys::signal::Signal::SIGKILL);
        eventually(SOON, "its device is gone", || !lab.client_links().contains("pinhole0"));
        assert_ne!(lab.client_ip("rule") + &lab.client_ip("-6 rule"), before, "a killed one cannot clean up");
        if way_out == "up" {
            lab.up(&[]);
            assert_eq!(lab.client_ip("rule").matches("fwmark").count(), 1);
        }
        let down = lab.client(&["down"], "");
        assert!(down.status.success(), "{way_out}: {down:?}");
        assert_eq!(lab.client_ip("rule") + &lab.client_ip("-6 rule"), before, "{way_out}");
        assert!(!left(), "{way_out}");
    }
    let down = lab.client(&["down"], "");
    assert_eq!(down.status.code(), Some(21), "nothing is left: {down:?}");
}

#[test]
fn a_kill_switch_lets_nothing_out_beside_the_tunnel_until_down() {
    let (lab, mut gateway) = with(Lab::behind_a_nat("switch", (60, 120)), &["0.0.0.0/0"]);
    // Known to the NAT, beside the tunnel.
    let leaks = || lab.client_pings("192.0.2.1");
    assert!(leaks());
    lab.up(&["--kill-switch"]);
    assert!(lab.client_pings("10.50.0.2"), "through the tunnel");
    assert!(lab.client_pings("10.0.0.1"), "the local network");
    gateway.kill();
    lab.signal_client(nix::sys::signal::Signal::SIGKILL);
    eventually(SOON, "its device is gone", || !lab.client_links().contains("pinhole0"));
    assert!(!leaks(), "{}", lab.client_ruleset());
    assert!(lab.client_pings("10.0.0.1"), "the local network");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is back", || lab.readyz());
    lab.up(&["--kill-switch"]);
    assert!(lab.client_pings("10.50.0.2"), "its own packets have their way");
    lab.signal_client(nix::sys::signal::Signal::SIGTERM);
    eventually(SOON, "its device is gone", || !lab.client_links().contains("pinhole0"));
    assert!(!leaks(), "whoever restarts it has no gap");
    let down = lab.client(&["down"], "");
    assert!(down.status.success(), "{down:?}");
    assert!(leaks() && !lab.client_ruleset().contains("pinhole"));
}
