//! The kernel's side of a tunnel, against the kernel, each test in namespaces of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use libtest_mimic::{Arguments, Failed, Trial};
use pinhole_agent::kernel::{
    DeviceMtu, FullTunnel, InnerAddresses, Link, LinkKind, MAIN_TABLE, Masquerade, RouteChanges, RouteSocket,
    RouteType, TunDevice, TunnelFilter, Way, forward_v6,
};

#[path = "namespace/mod.rs"]
mod namespace;
use namespace::Namespace;

const TESTS: &[(&str, fn())] = &[
    ("a_device_is_there_as_long_as_its_owner", a_device_is_there_as_long_as_its_owner),
    (
        "the_kernel_answers_through_the_queue_that_was_written",
        the_kernel_answers_through_the_queue_that_was_written,
    ),
    ("an_mtu_is_read_wherever_the_device_is_and_however_it_is_called", an_mtu_is_read_wherever_the_device_is),
    ("a_name_that_is_taken_or_impossible_is_said", a_name_that_is_taken_or_impossible_is_said),
    ("addresses_become_exactly_the_wanted_ones", addresses_become_exactly_the_wanted_ones),
    (
        "routes_become_exactly_the_wanted_ones_and_others_stay",
        routes_become_exactly_the_wanted_ones_and_others_stay,
    ),
    ("everything_goes_through_a_full_tunnel_but_its_own_datagrams", everything_goes_through_a_full_tunnel),
    ("a_route_that_the_network_pushes_takes_nothing_out_of_a_full_tunnel", a_pushed_route_takes_nothing),
    ("a_prefix_that_somebody_else_has_costs_no_other_prefix", a_prefix_of_somebody_else_costs_no_other),
    ("a_device_without_ipv6_has_its_addresses_of_ipv4", a_device_without_ipv6_has_the_others),
    ("the_way_of_a_packet_goes_by_its_source_and_its_mark", the_way_goes_by_source_and_mark),
    ("a_way_by_a_device_is_one_that_a_route_leads", a_way_by_a_device_is_one_that_a_route_leads),
    ("devices_are_told_with_their_kind_and_their_carrier", devices_are_told_with_kind_and_carrier),
    ("whatever_may_lead_packets_another_way_is_told", whatever_may_lead_another_way_is_told),
    ("forwarding_is_switched_by_device", forwarding_is_switched_by_device),
    ("clients_go_out_in_the_name_of_the_host", clients_go_out_in_the_name_of_the_host),
    (
        "nobody_but_the_tunnel_and_this_host_reaches_the_tunnels_address",
        nobody_but_the_tunnel_reaches_its_address,
    ),
    ("clients_get_answers_alone_and_ask_the_gateway_for_echo_alone", clients_get_answers_alone),
];

fn main() {
    let root = nix::unistd::geteuid().is_root();
    let trials = TESTS.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(!root).with_kind(if root { "" } else { "needs root" })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn sorted(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    nets.sort();
    nets
}

fn device(name: &str) -> (TunDevice, RouteSocket, u32) {
    let device = TunDevice::create(name).unwrap();
    let mut socket = RouteSocket::open().unwrap();
    socket.set_mtu(device.index(), 1420).unwrap();
    socket.set_up(device.index()).unwrap();
    let index = device.index();
    (device, socket, index)
}

fn a_device_is_there_as_long_as_its_owner() {
    let namespace = Namespace::new();
    let device = namespace.run(|| device("pin0").0);
    let shown = namespace.ip("-details link show pin0");
    assert!(shown.contains("mtu 1420") && shown.contains("UP"), "{shown}");
    assert!(!namespace.ip("address show pin0").contains("fe80"), "a link-local address nobody asked for");
    drop(device);
    // A program that a test beside this one starts has all descriptors for a moment, until it is executed.
    let deadline = Instant::now() + Duration::from_secs(5);
    while namespace.command("ip link show pin0").is_ok() {
        assert!(Instant::now() < deadline, "the device outlives its owner");
    }
}

fn an_mtu_is_read_wherever_the_device_is() {
    let (namespace, other) = (Namespace::new(), Namespace::new());
    let device = Arc::new(namespace.run(|| device("pin0").0));
    let reader = Arc::new(Mutex::new(DeviceMtu::default()));
    let read = || {
        let (device, reader) = (Arc::clone(&device), Arc::clone(&reader));
        namespace.run(move || reader.lock().unwrap().read(&device).unwrap())
    };
    assert_eq!(read(), 1420);
    namespace.ip("link set pin0 mtu 1280");
    assert_eq!(read(), 1280);
    namespace.ip("link set pin0 down");
    namespace.ip("link set pin0 name wg7");
    assert_eq!(read(), 1280);
    let there = other.run(nix::unistd::gettid);
    namespace.ip(&format!("link set wg7 netns {there}"));
    other.ip("link set wg7 mtu 65535");
    // Another of its old name is none of ours.
    namespace.ip("link add wg7 mtu 1400 type veth peer name wg8");
    assert_eq!(read(), 65_535);
    other.ip("link set wg7 mtu 68");
    assert_eq!(read(), 68);
}

fn a_name_that_is_taken_or_impossible_is_said() {
    let namespace = Namespace::new();
    let category =
        |name: &'static str| namespace.run(move || TunDevice::create(name).unwrap_err().category());
    let _first = namespace.run(|| TunDevice::create("pin0").unwrap());
    assert_eq!(category("pin0"), "DeviceNameInUse");
    namespace.ip("link add veth0 type veth peer name veth1");
    assert_eq!(category("veth0"), "DeviceNameInUse");
    for name in ["", "sixteen-letters!", "a/b", "a b", "..", "pin%d"] {
        assert_eq!(category(name), "DeviceNameInvalid", "{name:?}");
    }
}

fn the_kernel_answers_through_the_queue_that_was_written() {
    Namespace::new().run(|| {
        let (first, mut socket, index) = device("pin0");
        socket.set_addresses(index, &nets(&["10.9.0.1/24"])).unwrap();
        let queues = [first.another_queue().unwrap(), first];
        for written in [0, 1, 0, 1] {
            queues[written].send(&echo_request()).unwrap();
            // This one was under way before the kernel knew.
            answered_through(&queues);
            for _ in 0..20 {
                queues[written].send(&echo_request()).unwrap();
                assert_eq!(answered_through(&queues), written);
            }
        }
    });
}

/// From 10.9.0.2 to 10.9.0.1.
fn echo_request() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    let checksum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&checksum);
    let mut echo = [8, 0, 0, 0, 0, 7, 0, 1];
    let checksum = internet_checksum(&echo);
    echo[2..4].copy_from_slice(&checksum);
    packet.extend(echo);
    packet
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from(!folded & 0xffff).unwrap().to_be_bytes()
}

/// Number of the queue that an echo reply came through.
fn answered_through(queues: &[TunDevice]) -> usize {
    let end = Instant::now() + Duration::from_secs(10);
    let mut packet = [0; 1500];
    loop {
        for (n, queue) in queues.iter().enumerate() {
            // Others are the kernel's own, of IPv6.
            if queue.receive(&mut packet).is_ok() && packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0 {
                return n;
            }
        }
        assert!(Instant::now() < end, "no answer");
        std::thread::yield_now();
    }
}

fn addresses_become_exactly_the_wanted_ones() {
    Namespace::new().run(|| {
        let (_device, mut socket, index) = device("pin0");
        for wanted in [
            nets(&["10.9.0.1/24", "fd09::1/64"]),
            nets(&["10.9.0.1/24", "fd09::1/64"]),
            nets(&["10.9.0.2/24", "10.9.0.1/24"]),
            nets(&["10.9.0.1/16"]),
            vec![],
        ] {
            assert_eq!(socket.set_addresses(index, &wanted).unwrap(), []);
            assert_eq!(sorted(socket.addresses(index).unwrap()), sorted(wanted));
        }
    });
}

fn routes_become_exactly_the_wanted_ones_and_others_stay() {
    let namespace = Namespace::new();
    let kept = namespace.run(|| device("pin0"));
    namespace.ip("address add 10.9.0.1/24 dev pin0");
    namespace.ip("route add 198.51.100.0/24 dev pin0");
    let (_device, mut socket, index) = kept;
    let lists = [
        nets(&["192.0.2.0/24", "2001:db8::/32", "203.0.113.7/32"]),
        nets(&["192.0.2.0/24", "2001:db8::/32", "203.0.113.7/32"]),
        nets(&["192.0.2.0/25", "0.0.0.0/0", "::/0"]),
        vec![],
    ];
    for wanted in lists {
        // Host bits are no reason to refuse or to repeat a route.
        assert!(socket.set_routes(index, MAIN_TABLE, &wanted).unwrap().is_empty());
        assert_eq!(sorted(socket.routes(index, MAIN_TABLE).unwrap()), sorted(wanted));
        assert!(namespace.ip("route").contains("198.51.100.0/24"), "somebody else's route is gone");
    }
}

fn a_prefix_of_somebody_else_costs_no_other() {
    let namespace = Namespace::new();
    let (_device, mut socket, index) = namespace.run(|| device("pin0"));
    namespace.ip("link add docker0 type bridge");
    namespace.ip("address add 172.17.0.1/16 dev docker0");
    namespace.ip("link set docker0 up");
    let wanted = nets(&["172.17.0.0/16", "192.168.50.0/24", "10.96.0.0/12", "2001:db8::/32"]);
    for _ in 0..2 {
        let refused = socket.set_routes(index, MAIN_TABLE, &wanted).unwrap();
        let [refused] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!(refused.net, wanted[0]);
        assert_eq!(sorted(socket.routes(index, MAIN_TABLE).unwrap()), sorted(wanted[1..].to_vec()));
    }
    let routes = socket.main_routes().unwrap();
    let docker = routes.iter().find(|route| route.net == wanted[0]).unwrap();
    assert!(docker.is_connected && docker.device != index && docker.metric == 0);
    assert!(routes.iter().filter(|route| route.device == index).all(|route| !route.is_connected));
}

fn a_device_without_ipv6_has_the_others() {
    let namespace = Namespace::new();
    for which in ["all", "default"] {
        namespace.run(move || {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        });
    }
    let (_device, mut socket, index) = namespace.run(|| device("pin0"));
    for _ in 0..2 {
        let without = socket.set_addresses(index, &nets(&["fd77::9/128", "10.77.0.9/32"])).unwrap();
        assert_eq!(without, nets(&["fd77::9/128"]));
        assert_eq!(socket.addresses(index).unwrap(), nets(&["10.77.0.9/32"]));
    }
    let full = FullTunnel { fwmark: 0x7069, table: 28777, priority: 5200, main_first: false };
    let all = [net("0.0.0.0/0", RouteType::Device(index)), net("::/0", RouteType::Unreachable)];
    let refused = full.install(&mut socket, index, &all).unwrap();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(namespace.ip("route get 203.0.113.1").contains("dev pin0"));
}

fn net(net: &str, way: RouteType) -> (IpNet, RouteType) {
    (net.parse().unwrap(), way)
}

fn everything_goes_through_a_full_tunnel() {
    let (namespace, outside) = (Namespace::new(), Namespace::new());
    namespace.join(("eth0", "192.0.2.2/24"), &outside, ("eth0", "192.0.2.1/24"));
    namespace.ip("route add default via 192.0.2.1");
    let (_device, mut socket, index) = namespace.run(|| device("pin0"));
    let full = FullTunnel { fwmark: 0x7069, table: 28777, priority: 5200, main_first: false };
    let way = |words: &str| namespace.ip(&format!("route get {words}"));
    let before = namespace.ip("rule") + &namespace.ip("-6 rule");
    let (into, local) = (RouteType::Device(index), net("192.0.2.0/24", RouteType::Throw));

    for _ in 0..2 {
        full.install(&mut socket, index, &[net("0.0.0.0/0", into), net("::/0", into), local]).unwrap();
        assert!(way("203.0.113.1").contains("dev pin0"));
        assert!(way("2001:db8::1").contains("dev pin0"));
        assert!(way("203.0.113.1 mark 0x7069").contains("dev eth0"), "the tunnel's own datagrams loop");
        assert!(way("192.0.2.1").contains("dev eth0"), "the local network stays reachable");
    }
    full.install(&mut socket, index, &[net("0.0.0.0/0", into)]).unwrap();
    assert!(!namespace.ip("-6 rule").contains("28777"));
    assert!(way("192.0.2.1").contains("dev pin0"), "the local network is not left out any more");
    for _ in 0..2 {
        full.remove(&mut socket, index).unwrap();
        assert!(way("203.0.113.1").contains("dev eth0"));
        assert_eq!(namespace.ip("rule") + &namespace.ip("-6 rule"), before);
    }
    let full = FullTunnel { main_first: true, ..full };
    full.install(&mut socket, index, &[net("0.0.0.0/0", into)]).unwrap();
    assert!(way("203.0.113.1").contains("dev pin0") && way("192.0.2.1").contains("dev eth0"));
    full.remove(&mut socket, index).unwrap();
    assert_eq!(namespace.ip("rule") + &namespace.ip("-6 rule"), before);
}

/// CVE-2024-3661.
fn a_pushed_route_takes_nothing() {
    let (namespace, outside) = (Namespace::new(), Namespace::new());
    namespace.join(("eth0", "192.0.2.2/24"), &outside, ("eth0", "192.0.2.1/24"));
    namespace.ip("route add default via 192.0.2.1");
    let (_device, mut socket, index) = namespace.run(|| device("pin0"));
    let full = FullTunnel { fwmark: 0x7069, table: 28777, priority: 5200, main_first: false };
    full.install(&mut socket, index, &[net("0.0.0.0/0", RouteType::Device(index))]).unwrap();
    // As a DHCP client does with option 121.
    for pushed in ["203.0.113.0/24", "203.0.113.1", "0.0.0.0/1"] {
        namespace.ip(&format!("route add {pushed} via 192.0.2.1 proto dhcp"));
    }
    let way = namespace.ip("route get 203.0.113.1");
    assert!(way.contains("dev pin0"), "{way}");
}

/// A namespace with two devices, of both families.
fn two_homed() -> Namespace {
    let namespace = Namespace::new();
    for (n, [v4, v6]) in [["192.0.2", "2001:db8::"], ["198.51.100", "2001:db8:1::"]].into_iter().enumerate() {
        namespace.ip(&format!("link add eth{n} type veth peer name far{n}"));
        namespace.ip(&format!("address add {v4}.1/24 dev eth{n}"));
        namespace.ip(&format!("address add {v6}1/64 dev eth{n} nodad"));
        namespace.ip(&format!("link set far{n} up"));
        namespace.ip(&format!("link set eth{n} up"));
        namespace.await_addresses(&format!("eth{n}"));
    }
    namespace
}

fn the_way_goes_by_source_and_mark() {
    let namespace = two_homed();
    let index = |name: &'static str| namespace.run(move || RouteSocket::index_of(name).unwrap());
    let [first, second] = ["eth0", "eth1"].map(index);
    let socket = Arc::new(Mutex::new(namespace.run(|| RouteSocket::open().unwrap())));
    for [to, other, near, own, far, own_there] in [
        ["203.0.113.9", "203.0.113.10", "192.0.2.2", "192.0.2.1", "198.51.100.2", "198.51.100.1"],
        ["2001:db8:9::9", "2001:db8:9::10", "2001:db8::2", "2001:db8::1", "2001:db8:1::2", "2001:db8:1::1"],
    ] {
        let family = if to.contains(':') { "-6" } else { "-4" };
        namespace.ip(&format!("{family} route add {to} via {near}"));
        namespace.ip(&format!("{family} route add {to} via {far} table 7"));
        namespace.ip(&format!("{family} rule add from {own_there} table 7"));
        namespace.ip(&format!("{family} rule add fwmark 7 table 7"));
        namespace.ip(&format!("{family} route add unreachable {other}"));
        let [to, other, near, own, far, own_there]: [IpAddr; 6] =
            [to, other, near, own, far, own_there].map(|text| text.parse().unwrap());
        let mut socket = socket.lock().unwrap();
        let mut way = |from, mark| socket.way((to, 9).into(), from, mark).unwrap();
        let chosen = Some(Way { device: first, gateway: Some(near), source: Some(own) });
        assert_eq!([way(None, 0), way(None, 8)], [chosen; 2]);
        let [here, marked, there] = [way(Some(own), 0), way(None, 7), way(Some(own_there), 0)]
            .map(|way| way.map(|way| (way.device, way.gateway)));
        assert_eq!(here, Some((first, Some(near))));
        assert_eq!([marked, there], [Some((second, Some(far))); 2]);
        assert_eq!(socket.way((other, 9).into(), None, 0).unwrap(), None);
        assert_eq!(
            [own, own_there, to].map(|ip| socket.device_of(ip).unwrap()),
            [Some(first), Some(second), None]
        );
    }
}

fn a_way_by_a_device_is_one_that_a_route_leads() {
    let namespace = two_homed();
    let (_tunnel, socket, third) = namespace.run(|| device("pin0"));
    let index = |name: &'static str| namespace.run(move || RouteSocket::index_of(name).unwrap());
    let [first, second] = ["eth0", "eth1"].map(index);
    let socket = Arc::new(Mutex::new(socket));
    for [to, near, own, far, own_there, neighbour] in [
        ["203.0.113.9", "192.0.2.2", "192.0.2.1", "198.51.100.2", "198.51.100.1", "198.51.100.7"],
        ["2001:db8:9::9", "2001:db8::2", "2001:db8::1", "2001:db8:1::2", "2001:db8:1::1", "2001:db8:1::7"],
    ] {
        let family = if to.contains(':') { "-6" } else { "-4" };
        let ip = |words: &str| namespace.ip(&format!("{family} {words}"));
        let [to, near, own, far, own_there, neighbour]: [IpAddr; 6] =
            [to, near, own, far, own_there, neighbour].map(|text| text.parse().unwrap());
        let by =
            |to: IpAddr, device, mark| socket.lock().unwrap().way_by((to, 9).into(), device, mark).unwrap();
        let way = |device, gateway, source| Some(Way { device, gateway, source: Some(source) });
        let [by_first, by_second] = [way(first, Some(near), own), way(second, Some(far), own_there)];

        assert_eq!([by(to, first, 0), by(to, second, 0)], [None; 2], "no route at all");
        ip(&format!("route add default via {near} metric 100"));
        assert_eq!([by(to, first, 0), by(to, second, 0)], [by_first, None], "one default route");
        ip(&format!("route add default via {far} metric 600"));
        assert_eq!([by(to, first, 0), by(to, second, 0)], [by_first, by_second], "whatever their metrics");
        assert_eq!(by(to, third, 0), None);
        assert_eq!(by(neighbour, second, 0), way(second, None, own_there));
        assert_eq!(by(neighbour, first, 0), way(first, Some(near), own), "another network of that prefix");
        assert_eq!(by(own, first, 0), None, "what is here is reached by the loopback device");
        assert_eq!(by(to, 4_242, 0), None, "no such device");

        ip("route add default dev pin0 metric 50");
        assert_eq!(by(to, third, 0).map(|way| (way.device, way.gateway)), Some((third, None)));
        ip(&format!("route add {to} dev pin0 table 7"));
        ip(&format!("route add unreachable {to} table 8"));
        ip("rule add not fwmark 9 table 7");
        ip("rule add fwmark 8 table 8");
        assert_eq!([by(to, first, 0), by(to, first, 9)], [by_first; 2]);
        // Bound to a device, Linux passes over an IPv6 route that refuses: it is the loopback device's.
        let past_it = by_first.filter(|_| to.is_ipv6());
        assert_eq!(by(to, first, 8), past_it, "what is unreachable has no neighbours either");
        ip("rule add fwmark 9 oif eth1 blackhole");
        assert_eq!([by(to, second, 0), by(to, second, 9)], [by_second, None]);

        ip(&format!("route add 5.0.0.0/8 nexthop via {near} nexthop via {far}")
            .replace("5.0.0.0/8", if family == "-6" { "2001:db8:5::/48" } else { "5.0.0.0/8" }));
        let shared: IpAddr = if family == "-6" { "2001:db8:5::5" } else { "5.5.5.5" }.parse().unwrap();
        assert_eq!(
            [by(shared, first, 0), by(shared, second, 0)],
            [by_first, by_second],
            "a route with two ways"
        );
        ip("route del default dev pin0");
    }
}

fn devices_are_told_with_kind_and_carrier() {
    let namespace = Namespace::new();
    let _tunnel = namespace.run(|| device("pin0").0);
    for words in [
        "link add eth0 type veth peer name far0",
        "link add eth1 type veth peer name far1",
        "link add wlan0 type veth peer name far2",
        "link add br0 type bridge",
        "link set far0 up",
        "link set eth0 up",
        "link set eth1 up",
        "link set far2 up",
    ] {
        namespace.ip(words);
    }
    let look = || {
        let mut links = namespace.run(|| RouteSocket::open().unwrap().links().unwrap());
        links.sort_by(|a, b| a.name.cmp(&b.name));
        links
    };
    let names: Vec<String> = look().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["br0", "eth0", "eth1", "far0", "far1", "far2", "pin0", "wlan0"]);
    let [on, off] = [(LinkKind::Wired, true), (LinkKind::Wired, false)];
    let wanted = [off, on, off, on, off, off, (LinkKind::Tunnel, true), (LinkKind::Wireless, false)];
    // The kernel notices a carrier a moment after the device was switched on.
    let deadline = Instant::now() + Duration::from_secs(5);
    let links = loop {
        let links = look();
        let kinds: Vec<_> = links.iter().map(|link| (link.kind, link.is_up)).collect();
        if kinds == wanted {
            break links;
        }
        assert!(Instant::now() < deadline, "{links:?}");
        std::thread::yield_now();
    };
    let index = namespace.run(|| RouteSocket::index_of("eth0").unwrap());
    let eth0 = Link { index, name: "eth0".to_owned(), kind: LinkKind::Wired, is_up: true };
    assert_eq!(links[1], eth0);
}

fn whatever_may_lead_another_way_is_told() {
    let namespace = two_homed();
    let changes = namespace.run(|| RouteChanges::open().unwrap());
    assert!(!changes.drain().unwrap());
    for change in [
        "-4 route add 203.0.113.9 via 192.0.2.2",
        "-6 route add 2001:db8:9::9 via 2001:db8::2",
        "-4 rule add fwmark 7 table 7",
        "-6 rule add fwmark 7 table 7",
        "address del 198.51.100.1/24 dev eth1",
        "address del 2001:db8:1::1/64 dev eth1",
        "link set eth0 down",
    ] {
        namespace.ip(change);
        // The kernel tells before `ip` has its answer.
        assert!(changes.drain().unwrap(), "{change}");
    }
}

fn forwarding_is_switched_by_device() {
    Namespace::new().run(|| {
        let (_one, mut socket, one) = device("pin0");
        let (_two, _, two) = device("pin1");
        for on in [true, true, false] {
            socket.set_forwarding_v4(one, on).unwrap();
            assert_eq!(socket.forwarding_v4(one).unwrap(), on);
            assert!(!socket.forwarding_v4(two).unwrap(), "the other device is not meant");
        }
        forward_v6().unwrap();
        forward_v6().unwrap();
    });
}

/// client (pin0's side) — gateway — server
fn row() -> (Namespace, Namespace, Namespace) {
    let (client, gateway, server) = (Namespace::new(), Namespace::new(), Namespace::new());
    client.join(("eth0", "10.9.0.2/24"), &gateway, ("tun0", "10.9.0.1/24"));
    gateway.join(("eth0", "192.0.2.1/24"), &server, ("eth0", "192.0.2.9/24"));
    for (namespace, address) in [(&client, "fd09::2/64"), (&server, "2001:db8::9/64")] {
        namespace.ip(&format!("address add {address} dev eth0 nodad"));
    }
    gateway.ip("address add fd09::1/64 dev tun0 nodad");
    gateway.ip("address add 2001:db8::1/64 dev eth0 nodad");
    for (namespace, device) in [(&client, "eth0"), (&server, "eth0"), (&gateway, "tun0"), (&gateway, "eth0")]
    {
        namespace.await_addresses(device);
    }
    client.ip("route add default via 10.9.0.1");
    client.ip("-6 route add default via fd09::1");
    gateway.run(|| {
        let mut socket = RouteSocket::open().unwrap();
        for device in ["tun0", "eth0"] {
            socket.set_forwarding_v4(RouteSocket::index_of(device).unwrap(), true).unwrap();
        }
        forward_v6().unwrap();
    });
    (client, gateway, server)
}

fn clients_go_out_in_the_name_of_the_host() {
    let (client, gateway, server) = row();
    let masquerade = Masquerade {
        table: "pinhole".to_owned(),
        sources: nets(&["10.9.0.0/24", "fd09::/64"]),
        tunnel_device: "tun0".to_owned(),
    };
    let install = masquerade.clone();
    gateway.run(move || {
        install.install().unwrap();
        install.install().unwrap();
    });

    let seen = |from: &'static str, to: &'static str| {
        let listener = server.run(move || UdpSocket::bind((to, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        client.run(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"who", (to, port)).unwrap());
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (_, source) = listener.recv_from(&mut [0; 8]).expect("the packet gets through");
        source.ip()
    };
    assert_eq!(seen("10.9.0.2", "192.0.2.9"), "192.0.2.1".parse::<IpAddr>().unwrap());
    assert_eq!(seen("fd09::2", "2001:db8::9"), "2001:db8::1".parse::<IpAddr>().unwrap());

    for _ in 0..2 {
        let masquerade = masquerade.clone();
        gateway.run(move || masquerade.remove().unwrap());
    }
    server.ip("route add 10.9.0.0/24 via 192.0.2.1");
    assert_eq!(seen("10.9.0.2", "192.0.2.9"), "10.9.0.2".parse::<IpAddr>().unwrap());
}

/// Whether a TCP connection from one to a listener at an address of another comes about in time.
fn connects(from: &Namespace, to: &Namespace, address: IpAddr, within: Duration) -> bool {
    let listener = to.run(|| TcpListener::bind("[::]:0").unwrap());
    let at = SocketAddr::new(address, listener.local_addr().unwrap().port());
    from.run(move || TcpStream::connect_timeout(&at, within).is_ok())
}

/// Where it does at all, which may take a while: routers have to find out where their neighbours are.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the way is known by then.
const IN_VAIN: Duration = Duration::from_millis(500);

fn clients_get_answers_alone() {
    let (client, gateway, server) = row();
    // As in access mode Routed: the server knows the way to the clients.
    server.ip("route add 10.9.0.0/24 via 192.0.2.1");
    server.ip("-6 route add fd09::/64 via 2001:db8::1");
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    let clients = [at("10.9.0.2"), at("fd09::2")];
    let servers = [at("192.0.2.9"), at("2001:db8::9")];
    let own = [at("10.9.0.1"), at("192.0.2.1"), at("fd09::1"), at("2001:db8::1")];
    let filter = TunnelFilter { table: "pinhole-filter".to_owned(), tunnel_device: "tun0".to_owned() };
    for (client_address, server_address) in clients.into_iter().zip(servers) {
        assert!(connects(&server, &client, client_address, PATIENCE), "{client_address}, without the filter");
        assert!(connects(&client, &server, server_address, PATIENCE));
    }
    assert!(own.into_iter().all(|own| connects(&client, &gateway, own, PATIENCE)), "without the filter");
    let install = filter.clone();
    gateway.run(move || {
        install.install().unwrap();
        install.install().unwrap();
    });
    for (client_address, server_address) in clients.into_iter().zip(servers) {
        assert!(!connects(&server, &client, client_address, IN_VAIN), "nobody asked for it");
        assert!(connects(&client, &server, server_address, PATIENCE));
        assert!(connects(&gateway, &client, client_address, PATIENCE), "the gateway itself may");
    }
    for own in own {
        assert!(!connects(&client, &gateway, own, IN_VAIN), "{own} has an open port");
        client.command(&format!("ping -n -c 1 -W 2 {own}")).unwrap();
        assert!(connects(&server, &gateway, own, PATIENCE), "others are not meant");
    }
    // An answer that is an error.
    let refused = client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.9:9").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send(b"who").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    for _ in 0..2 {
        let filter = filter.clone();
        gateway.run(move || filter.remove().unwrap());
    }
    assert!(connects(&server, &client, clients[0], PATIENCE));
}

/// CVE-2019-14899: somebody in the same network speaks to the address that this host has in its tunnel.
fn nobody_but_the_tunnel_reaches_its_address() {
    let (neighbour, host, gateway) = (Namespace::new(), Namespace::new(), Namespace::new());
    neighbour.join(("eth0", "198.51.100.2/24"), &host, ("eth0", "198.51.100.1/24"));
    gateway.join(("eth0", "10.9.0.1/24"), &host, ("tun0", "10.9.0.2/24"));
    host.ip("address add fd09::2/64 dev tun0 nodad");
    gateway.ip("address add fd09::1/64 dev eth0 nodad");
    host.ip("address add 2001:db8::1/64 dev eth0 nodad");
    neighbour.ip("address add 2001:db8::2/64 dev eth0 nodad");
    for (namespace, device) in [(&neighbour, "eth0"), (&host, "eth0"), (&host, "tun0"), (&gateway, "eth0")] {
        namespace.await_addresses(device);
    }
    neighbour.ip("route add 10.9.0.2 via 198.51.100.1");
    neighbour.ip("-6 route add fd09::2 via 2001:db8::1");
    let at = |text: &str| text.parse::<IpAddr>().unwrap();
    let inner = [at("10.9.0.2"), at("fd09::2")];
    for address in inner {
        assert!(connects(&neighbour, &host, address, PATIENCE), "{address}, as Linux does it");
    }
    let keeper = InnerAddresses {
        table: "pinhole-inner".to_owned(),
        addresses: inner.to_vec(),
        tunnel_device: "tun0".to_owned(),
    };
    let install = keeper.clone();
    host.run(move || {
        install.install().unwrap();
        install.install().unwrap();
    });
    for address in inner {
        assert!(!connects(&neighbour, &host, address, IN_VAIN), "{address} is open to a neighbour");
        assert!(neighbour.command(&format!("ping -n -c 1 -W 1 {address}")).is_err(), "{address} is told");
        assert!(connects(&gateway, &host, address, PATIENCE), "the tunnel may");
        assert!(connects(&host, &host, address, PATIENCE), "this host may");
    }
    assert!(connects(&neighbour, &host, at("198.51.100.1"), PATIENCE), "other addresses are not meant");
    for _ in 0..2 {
        let keeper = keeper.clone();
        host.run(move || keeper.remove().unwrap());
    }
    assert!(connects(&neighbour, &host, inner[0], PATIENCE));
}
