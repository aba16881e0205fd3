//! The ground that wireguard-go's own network test covers, with `pinhole wg` at both ends: devices that live in other
//! namespaces than their sockets, every MTU, ends that move, and sources that are nobody's.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use pinhole_agent::kernel::Masquerade;

use super::{Device, Namespace, PINHOLE, PrivateKey, Program, Test, cable, eventually, unique_name};

pub(crate) const TESTS: &[Test] = &[
    ("a_stream_crosses_every_mtu_without_loss", a_stream_crosses_every_mtu_without_loss),
    (
        "what_was_too_large_for_a_path_costs_nothing_once_the_mtu_is_lower",
        what_was_too_large_costs_nothing_afterwards,
    ),
    (
        "devices_in_other_namespaces_than_their_sockets_carry_all_over_both_families",
        devices_in_other_namespaces_than_their_sockets_carry_all,
    ),
    ("an_end_that_moves_is_followed_from_family_to_family", an_end_that_moves_is_followed),
    (
        "a_peer_at_a_link_local_address_is_reached_and_shown",
        a_peer_at_a_link_local_address_is_reached_and_shown,
    ),
    ("only_the_addresses_of_a_peer_pass", only_the_addresses_of_a_peer_pass),
    ("a_keepalive_keeps_the_way_through_a_nat_open", a_keepalive_keeps_the_way_through_a_nat_open),
    ("an_own_address_that_is_gone_is_used_no_more", an_own_address_that_is_gone_is_used_no_more),
    (
        "who_asks_at_one_of_many_addresses_is_answered_from_there_also_by_who_was_told_where_it_is",
        who_asks_is_answered_from_there,
    ),
    ("who_asks_follows_the_route_to_another_network", who_asks_follows_the_route),
    ("by_its_other_name_the_program_goes_to_the_background", the_program_goes_to_the_background),
];

const PATIENCE: Duration = Duration::from_secs(20);
/// The MTUs of paths with tunnels on them, of Ethernet, of large frames, and about the largest there can be.
const MTUS: [u32; 6] = [1280, 1420, 8920, 32_000, 34_736, 65_455];
const STREAM: usize = 16 << 20;
/// Segments that may be sent again: where any two large packets were lost together it was thousands.
const RESENT: u64 = 20;

/// One device for each end, who know each other, with both devices away from their sockets.
struct Away {
    one: Device,
    two: Device,
    /// Where the devices are.
    near: Namespace,
    far: Namespace,
}

/// Sockets on one loopback device, as where somebody keeps the way out to himself.
fn away() -> Away {
    let (near, far) = (Namespace::new(), Namespace::new());
    let middle = Namespace::new();
    let id = middle.run(nix::unistd::gettid);
    let one = Device::start(middle, Program::Pinhole);
    // A second thread in the first one's namespace.
    let second = Namespace::new();
    second.run(move || {
        let file = std::fs::File::open(format!("/proc/{id}/ns/net")).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    });
    let two = Device::start(second, Program::Pinhole);
    for (device, home, addresses) in
        [(&one, &near, ["10.9.0.1/24", "fd09::1/64"]), (&two, &far, ["10.9.0.2/24", "fd09::2/64"])]
    {
        let there = home.run(nix::unistd::gettid);
        device.namespace.ip(&format!("link set {} netns {there}", device.name));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            home.ip(&format!("address add {address} dev {}{nodad}", device.name));
        }
        home.ip(&format!("link set {} up", device.name));
        home.await_addresses(&device.name);
    }
    introduce(&one, &two);
    Away { one, two, near, far }
}

/// Makes them peers with a preshared key, of whom neither knows where the other is.
fn introduce(one: &Device, two: &Device) {
    let psk = one.file("psk");
    std::fs::write(&psk, PrivateKey::generate().unwrap().to_base64().as_bytes()).unwrap();
    for (device, other, nets) in
        [(one, two, "10.9.0.2/32,fd09::2/128"), (two, one, "10.9.0.1/32,fd09::1/128")]
    {
        let words = format!("set NAME peer {} preshared-key {psk} allowed-ips {nets}", other.public());
        device.wg(&words).unwrap();
    }
}

fn endpoint(device: &Device, other: &Device, address: &str) {
    device.wg(&format!("set NAME peer {} endpoint {address}:{}", other.public(), other.port())).unwrap();
}

fn ping(namespace: &Namespace, words: &str) -> Result<String, String> {
    namespace.command(&format!("ping -n -W 3 {words}"))
}

/// Whether every TCP connection is at an end, so that none of them sends anything any more.
fn has_no_stream(namespace: &Namespace) -> bool {
    /// As /proc/net/tcp has them.
    const TIME_WAIT_OR_LISTEN: [&str; 2] = ["06", "0A"];
    let tables = namespace.run(|| {
        ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap())
    });
    let mut states = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| line.split_whitespace().nth(3));
    states.all(|state| TIME_WAIT_OR_LISTEN.contains(&state))
}

/// Sends a stream, expects all of it, and tells how many segments went more than once.
fn stream(from: &Namespace, to: &Namespace, address: &str) -> u64 {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.run(move || TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return total,
                length => total += length,
            }
        }
    });
    let before = resent(from);
    from.run(move || {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![7; STREAM]).unwrap();
    });
    assert_eq!(receiver.join().unwrap(), STREAM);
    resent(from) - before
}

/// Segments that a namespace's TCP has sent again.
fn resent(namespace: &Namespace) -> u64 {
    snmp(namespace, "Tcp:", "RetransSegs")
}

/// A count of a namespace's kernel.
fn snmp(namespace: &Namespace, protocol: &str, count: &str) -> u64 {
    let text = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split_whitespace().position(|name| name == count).unwrap();
    values.split_whitespace().nth(place).unwrap().parse().unwrap()
}

/// Sends datagrams of this size one after the other, and expects each.
fn datagrams(from: &Namespace, to: &Namespace, address: &str, size: usize) {
    let address: IpAddr = address.parse().unwrap();
    let receiver = to.run(move || UdpSocket::bind((address, 0)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = receiver.local_addr().unwrap();
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let sender = from.run(move || UdpSocket::bind(any).unwrap());
    let mut buffer = vec![0; 65_536];
    for n in 0_u8..50 {
        let sent = vec![n; size];
        assert_eq!(sender.send_to(&sent, target).unwrap(), size);
        let length = receiver.recv(&mut buffer).unwrap();
        assert!(buffer[..length] == sent, "datagram {n} of {size} bytes");
    }
}

/// All kinds of traffic, both ways, in both families.
fn exercise(near: &Namespace, far: &Namespace, mtu: u32) {
    let fits = usize::try_from(mtu).unwrap() - 48;
    for (to_far, to_near) in [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")] {
        for (from, to, address) in [(near, far, to_far), (far, near, to_near)] {
            ping(from, &format!("-f -c 10 {address}")).unwrap();
            for size in [1, fits - 1, fits] {
                datagrams(from, to, address, size);
            }
        }
        let resent = stream(near, far, to_far) + stream(far, near, to_near);
        assert!(resent <= RESENT, "{resent} segments were sent again to {to_far} and back at MTU {mtu}");
    }
}

/// Two devices, one of which knows where the other is.
fn at_a_cable() -> (Device, Device) {
    let (one, two) = cable();
    let (one, two) = (Device::start(one, Program::Pinhole), Device::start(two, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    endpoint(&one, &two, "192.0.2.2");
    (one, two)
}

fn set_mtu(devices: [&Device; 2], mtu: impl std::fmt::Display) {
    for device in devices {
        device.namespace.ip(&format!("link set {} mtu {mtu}", device.name));
    }
}

/// Over Ethernet's 1500 bytes: what is larger goes in fragments.
fn a_stream_crosses_every_mtu_without_loss() {
    let (one, two) = at_a_cable();
    for mtu in MTUS {
        set_mtu([&one, &two], mtu);
        exercise(&one.namespace, &two.namespace, mtu);
    }
}

/// The kernel counts a run that it splits as one.
fn what_was_too_large_costs_nothing_afterwards() {
    let (one, two) = at_a_cable();
    let sent = || snmp(&one.namespace, "Udp:", "OutDatagrams");
    let datagrams_of = |mtu: u32| {
        set_mtu([&one, &two], mtu);
        let before = sent();
        stream(&one.namespace, &two.namespace, "10.9.0.2");
        sent() - before
    };
    let each = |mtu: u64| STREAM as u64 / mtu;
    assert!(datagrams_of(8920) >= each(8920), "none of these is split");
    let runs = datagrams_of(1420);
    assert!(runs < each(1420) / 4, "{runs} runs of {} datagrams", each(1420));
}

fn devices_in_other_namespaces_than_their_sockets_carry_all() {
    let Away { one, two, near, far } = away();
    for address in ["127.0.0.1", "[::1]"] {
        endpoint(&one, &two, address);
        endpoint(&two, &one, address);
        for mtu in [1420, 34_736] {
            near.ip(&format!("link set {} mtu {mtu}", one.name));
            far.ip(&format!("link set {} mtu {mtu}", two.name));
            exercise(&near, &far, mtu);
        }
        assert!(two.shown("endpoints", &one.public()).starts_with(address));
    }
    eventually("the last stream is closed", || [&near, &far].iter().all(|end| has_no_stream(end)));
    // The device's own counters count packets, without what WireGuard adds.
    let counted = |namespace: &Namespace, name: &str, what: &str| -> u64 {
        let name = name.to_owned();
        let line = namespace.run(move || {
            let all = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            all.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:")).map(str::to_owned))
        });
        let fields: Vec<u64> = line.unwrap().split_whitespace().map(|field| field.parse().unwrap()).collect();
        if what == "received" { fields[0] } else { fields[8] }
    };
    let before = [counted(&far, &two.name, "received"), counted(&near, &one.name, "sent")];
    ping(&near, "-c 10 -i 0.01 -s 56 10.9.0.2").unwrap();
    let after = [counted(&far, &two.name, "received"), counted(&near, &one.name, "sent")];
    assert_eq!([after[0] - before[0], after[1] - before[1]], [840; 2]);
}

fn an_end_that_moves_is_followed() {
    let Away { one, two, near, .. } = away();
    endpoint(&one, &two, "127.0.0.1");
    endpoint(&two, &one, "127.0.0.1");
    ping(&near, "-c 1 10.9.0.2").unwrap();
    one.namespace.ip("-4 address del 127.0.0.1/8 dev lo");
    one.namespace.ip("-4 address add 127.212.121.99/8 dev lo");
    one.wg("set NAME listen-port 9999").unwrap();
    ping(&near, "-c 1 fd09::2").unwrap();
    assert_eq!(two.shown("endpoints", &one.public()), "127.212.121.99:9999");
    one.wg("set NAME listen-port 9998").unwrap();
    endpoint(&one, &two, "[::1]");
    ping(&near, "-c 1 10.9.0.2").unwrap();
    assert_eq!(two.shown("endpoints", &one.public()), "[::1]:9998");
}

fn a_peer_at_a_link_local_address_is_reached_and_shown() {
    let (one, two) = cable();
    for (namespace, address) in [(&one, "fe80::1:1/64"), (&two, "fe80::1:2/64")] {
        namespace.ip(&format!("address add {address} dev eth0 nodad"));
    }
    let (one, two) = (Device::start(one, Program::Pinhole), Device::start(two, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    let file = one.file("conf");
    let private = std::fs::read_to_string(one.file("key")).unwrap();
    let peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.2/32, fd09::2/128", two.public());
    let at = format!("Endpoint = [fe80::1:2%eth0]:{}", two.port());
    std::fs::write(&file, format!("[Interface]\nPrivateKey = {private}\n[Peer]\n{peer}\n{at}\n")).unwrap();
    two.wg(&format!("set NAME peer {} preshared-key /dev/null", one.public())).unwrap();
    one.wg(&format!("setconf NAME {file}")).unwrap();
    assert_eq!(one.shown("endpoints", &two.public()), format!("[fe80::1:2%eth0]:{}", two.port()));
    one.ping("-c 1 10.9.0.2").unwrap();
    two.ping("-c 1 -s 4000 fd09::1").unwrap();
    let seen = two.shown("endpoints", &one.public());
    assert!(seen.starts_with("[fe80::") && seen.ends_with(&format!("%eth0]:{}", one.port())), "{seen}");
    // What is shown can be set, and the session goes on.
    let shown = one.wg("showconf NAME").unwrap();
    std::fs::write(&file, &shown).unwrap();
    one.wg(&format!("syncconf NAME {file}")).unwrap();
    one.ping("-c 1 fd09::2").unwrap();
    assert_eq!(one.shown("endpoints", &two.public()), format!("[fe80::1:2%eth0]:{}", two.port()));
}

fn only_the_addresses_of_a_peer_pass() {
    let Away { one, two, near, far } = away();
    endpoint(&one, &two, "127.0.0.1");
    ping(&near, "-c 1 10.9.0.2").unwrap();
    one.wg(&format!("set NAME peer {} allowed-ips 10.9.0.0/24", two.public())).unwrap();
    let receiver = near.run(|| UdpSocket::bind("10.9.0.1:1111").unwrap());
    let say = |word: &'static [u8]| {
        far.run(move || {
            UdpSocket::bind("10.9.0.2:0").unwrap().send_to(word, "10.9.0.1:1111").unwrap();
        });
    };
    let hear = |wait: Duration| {
        receiver.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 16];
        receiver.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
    };
    say(b"mine");
    assert_eq!(hear(PATIENCE).as_deref(), Some(&b"mine"[..]));
    // The address belongs to somebody else now, more narrowly; the sender is heard of, and what it sends is not.
    let other = PrivateKey::generate().unwrap().public();
    one.wg(&format!("set NAME peer {other} allowed-ips 10.9.0.2/32")).unwrap();
    two.wg("set NAME listen-port 9997").unwrap();
    say(b"not mine");
    eventually("the sender is followed", || one.shown("endpoints", &two.public()) == "127.0.0.1:9997");
    assert_eq!(hear(Duration::from_millis(200)), None);
    one.wg(&format!("set NAME peer {other} remove")).unwrap();
    one.wg(&format!("set NAME peer {} allowed-ips 10.9.0.0/24", two.public())).unwrap();
    say(b"mine again");
    assert_eq!(hear(PATIENCE).as_deref(), Some(&b"mine again"[..]));
}

/// Behind a router that forgets after two seconds, for its clients' packets and for answers alike.
fn a_keepalive_keeps_the_way_through_a_nat_open() {
    let (inside, router, outside) = (Namespace::new(), Namespace::new(), Namespace::new());
    inside.join(("eth0", "198.51.100.2/24"), &router, ("lan", "198.51.100.1/24"));
    router.join(("wan", "192.0.2.1/24"), &outside, ("eth0", "192.0.2.2/24"));
    inside.ip("route add default via 198.51.100.1");
    router.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let sources = vec!["198.51.100.0/24".parse().unwrap()];
        Masquerade { table: "nat".to_owned(), sources, tunnel_device: "lan".to_owned() }.install().unwrap();
    });
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_{timeout}");
        router.run(move || std::fs::write(file, "2").unwrap());
    }
    let (one, two) = (Device::start(inside, Program::Pinhole), Device::start(outside, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    endpoint(&one, &two, "192.0.2.2");
    one.ping("-c 1 10.9.0.2").unwrap();
    assert!(two.shown("endpoints", &one.public()).starts_with("192.0.2.1:"));
    one.wg(&format!("set NAME peer {} persistent-keepalive 1", two.public())).unwrap();
    let received = || -> u64 {
        let transfer = two.shown("transfer", &one.public());
        transfer.split_whitespace().next().unwrap().parse().unwrap()
    };
    // Twice as long as the router remembers.
    let before = received();
    eventually("four keepalives", || received() >= before + 4 * 32);
    two.ping("-c 1 10.9.0.1").unwrap();
}

fn an_own_address_that_is_gone_is_used_no_more() {
    let (one, two) = cable();
    let (one, two) = (Device::start(one, Program::Pinhole), Device::start(two, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    let replace = |device: &Device, old: &str, new: &str| {
        device.namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/promote_secondaries", "1").unwrap();
        });
        let nodad = if new.contains(':') { " nodad" } else { "" };
        device.namespace.ip(&format!("address add {new} dev eth0{nodad}"));
        device.namespace.ip(&format!("address del {old} dev eth0"));
        device.namespace.await_addresses("eth0");
    };
    for (host, own, other) in [
        ("192.0.2.2", ["192.0.2.1/24", "192.0.2.10/24"], ["192.0.2.2/24", "192.0.2.20/24"]),
        ("[2001:db8::2]", ["2001:db8::1/64", "2001:db8::10/64"], ["2001:db8::2/64", "2001:db8::20/64"]),
    ] {
        endpoint(&one, &two, host);
        one.ping("-c 1 10.9.0.2").unwrap();
        // Of the one that asks, and then of the one that was asked there until now.
        replace(&one, own[0], own[1]);
        one.ping("-c 1 10.9.0.2").unwrap();
        replace(&two, other[0], other[1]);
        two.ping("-c 1 10.9.0.1").unwrap();
        let now = other[1].split('/').next().unwrap();
        assert!(one.shown("endpoints", &two.public()).contains(now));
    }
}

fn who_asks_is_answered_from_there() {
    let (one, two) = cable();
    one.ip("address add 192.0.2.11/24 dev eth0");
    one.ip("address add 2001:db8::11/64 dev eth0 nodad");
    one.await_addresses("eth0");
    let (one, two) = (Device::start(one, Program::Pinhole), Device::start(two, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    for told in [None, Some("192.0.2.2"), Some("[2001:db8::2]")] {
        for address in ["192.0.2.1", "[2001:db8::1]", "192.0.2.11", "[2001:db8::11]"] {
            if let Some(told) = told {
                endpoint(&one, &two, told);
                one.ping("-c 1 10.9.0.2").unwrap();
            }
            endpoint(&two, &one, address);
            two.ping("-c 1 10.9.0.1").unwrap();
            assert_eq!(two.shown("endpoints", &one.public()), format!("{address}:{}", one.port()));
        }
    }
}

/// Both networks lead to the one that is asked, and the addresses in both stay.
fn who_asks_follows_the_route() {
    const WAYS: [[&str; 2]; 2] = [["192.0.2", "2001:db8::"], ["198.51.100", "2001:db8:1::"]];
    let (one, two) = (Namespace::new(), Namespace::new());
    for (n, [v4, v6]) in WAYS.into_iter().enumerate() {
        let device = format!("eth{n}");
        one.join((&device, &format!("{v4}.1/24")), &two, (&device, &format!("{v4}.2/24")));
        one.ip(&format!("address add {v6}1/64 dev {device} nodad"));
        two.ip(&format!("address add {v6}2/64 dev {device} nodad"));
        one.await_addresses(&device);
        two.await_addresses(&device);
    }
    two.ip("address add 203.0.113.9/32 dev lo");
    two.ip("address add 2001:db8:9::9/128 dev lo nodad");
    let (one, two) = (Device::start(one, Program::Pinhole), Device::start(two, Program::Pinhole));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    introduce(&one, &two);
    for (host, family) in [("203.0.113.9", 0), ("[2001:db8:9::9]", 1)] {
        let bare = host.trim_matches(['[', ']']);
        for (n, [v4, v6]) in WAYS.into_iter().chain(WAYS).enumerate() {
            let (router, source) =
                [(format!("{v4}.2"), format!("{v4}.1:")), (format!("{v6}2"), format!("[{v6}1]:"))][family]
                    .clone();
            one.namespace.ip(&format!("route replace {bare} via {router}"));
            if n == 0 {
                endpoint(&one, &two, host);
            }
            eventually("the other one sees the new address", || {
                one.ping("-c 1 10.9.0.2").unwrap();
                two.shown("endpoints", &one.public()).starts_with(&source)
            });
            assert_eq!(one.shown("endpoints", &two.public()), format!("{host}:{}", two.port()));
        }
    }
}

fn the_program_goes_to_the_background() {
    let (namespace, files, name) = (Namespace::new(), tempfile::tempdir().unwrap(), unique_name());
    let program = files.path().join("pinhole-wg");
    std::fs::copy(PINHOLE, &program).unwrap();
    namespace.command(&format!("{} {name}", program.display())).unwrap();
    namespace.command(&format!("wg show {name}")).unwrap();
    namespace.ip(&format!("link del {name}"));
    eventually("the socket to go", || !super::socket_of(&name).exists());
}
