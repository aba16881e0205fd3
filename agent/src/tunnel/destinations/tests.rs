//! Packets to where a pool leads and to where it does not.

use proptest::prelude::*;

use super::*;

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn inside() -> Arc<Inside> {
    let addresses = ["10.77.0.1", "fd77::1", "10.244.0.7", "fd00:244::7"];
    let clients = ["10.77.0.0/16", "fd77::/64", "10.78.0.0/16"];
    Arc::new(Inside {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        clients: clients.map(net).to_vec(),
    })
}

/// Of a pool that has 10.77.0.0/16 and fd77::/64.
fn open_to(routes: &[&str]) -> Destinations {
    Destinations::new(inside()).with_routes(routes.iter().map(|route| net(route)))
}

fn limits(destinations: Destinations) -> Limits {
    let mut limits = Limits::default();
    limits.set(Some(Arc::new(destinations)));
    limits
}

/// A packet from the client with this behind its IP header.
fn packet(to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    match to {
        IpAddr::V4(to) => {
            let header = [0x45, 0, 0, 20 + length, 0, 0, 0, 0, 64, protocol, 0, 0];
            [&header, CLIENT_V4.octets().as_slice(), &to.octets(), payload].concat()
        }
        IpAddr::V6(to) => {
            let header = [0x60, 0, 0, 0, 0, length, protocol, 64];
            [&header, CLIENT_V6.octets().as_slice(), &to.octets(), payload].concat()
        }
    }
}

fn tcp(to: IpAddr, port: u16, flags: u8) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut header = [0; ip::TCP_HEADER];
    header[..4].copy_from_slice(&[200, 0, high, low]);
    header[12..14].copy_from_slice(&[0x50, flags]);
    packet(to, TCP, &header)
}

fn udp(to: IpAddr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    packet(to, UDP, &[200, 0, high, low, 0, 8, 0, 0])
}

fn echo(to: IpAddr) -> Vec<u8> {
    let (protocol, kind) = if to.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
    packet(to, protocol, &[kind, 0, 0, 0, 0, 0, 0, 0])
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn each_destination_is_open_or_refused_for_its_own_reason() {
    use Refusal::{LinkLocal, Metadata, NoRoute, OtherClient, Special};
    let narrow = ["10.96.0.0/12", "fd00:96::/112", "192.0.2.7/32"];
    let all = ["0.0.0.0/0", "::/0"];
    // With narrow routes, and with all.
    let table = [
        ("10.96.0.1", None, None),
        ("10.111.255.255", None, None),
        ("10.112.0.0", Some(NoRoute), None),
        ("192.0.2.7", None, None),
        ("192.0.2.8", Some(NoRoute), None),
        ("fd00:96::1", None, None),
        ("fd00:97::1", Some(NoRoute), None),
        ("2001:db8::1", Some(NoRoute), None),
        ("10.77.0.8", Some(OtherClient), Some(OtherClient)),
        ("10.77.0.9", Some(OtherClient), Some(OtherClient)),
        ("10.78.3.3", Some(OtherClient), Some(OtherClient)),
        ("fd77::8", Some(OtherClient), Some(OtherClient)),
        ("169.254.169.254", Some(Metadata), Some(Metadata)),
        ("100.100.100.200", Some(Metadata), Some(Metadata)),
        ("168.63.129.16", Some(Metadata), Some(Metadata)),
        ("fd00:ec2::254", Some(Metadata), Some(Metadata)),
        ("fd20:ce::254", Some(Metadata), Some(Metadata)),
        ("64:ff9b::a9fe:a9fe", Some(Metadata), Some(Metadata)),
        ("64:ff9b::192.0.2.7", Some(NoRoute), None),
        ("169.254.170.2", Some(LinkLocal), Some(LinkLocal)),
        ("fe80::1", Some(LinkLocal), Some(LinkLocal)),
        ("febf::1", Some(LinkLocal), Some(LinkLocal)),
        ("127.0.0.1", Some(Special), Some(Special)),
        ("0.0.0.0", Some(Special), Some(Special)),
        ("224.0.0.251", Some(Special), Some(Special)),
        ("255.255.255.255", Some(Special), Some(Special)),
        ("::", Some(Special), Some(Special)),
        ("::1", Some(Special), Some(Special)),
        ("::ffff:10.96.0.1", Some(Special), Some(Special)),
        ("ff02::1", Some(Special), Some(Special)),
    ];
    let (mut narrow, mut wide) = (limits(open_to(&narrow)), limits(open_to(&all)));
    for (to, with_narrow, with_all) in table {
        for packet in [tcp(at(to), 443, SYN), tcp(at(to), 443, ACK), udp(at(to), 53), echo(at(to))] {
            assert_eq!(narrow.refuse(&packet), with_narrow, "{to}");
            assert_eq!(wide.refuse(&packet), with_all, "{to}");
        }
    }
}

#[test]
fn the_gateway_itself_takes_echo_and_answers_by_each_of_its_addresses_whatever_the_routes() {
    for own in ["10.77.0.1", "fd77::1", "10.244.0.7", "fd00:244::7"].map(at) {
        for routes in [&[][..], &["0.0.0.0/0", "::/0"], &["10.244.0.7/32", "fd77::/64"]] {
            let mut limits = limits(open_to(routes).with_resolvers([own]));
            let error = if own.is_ipv4() { packet(own, ICMP, &[3, 4]) } else { packet(own, ICMPV6, &[2, 0]) };
            for open in [echo(own), error, tcp(own, 40_000, SYN | ACK), tcp(own, 40_000, ACK)] {
                assert_eq!(limits.refuse(&open), None, "{own}");
            }
            let redirect =
                if own.is_ipv4() { packet(own, ICMP, &[5, 1]) } else { packet(own, ICMPV6, &[137, 0]) };
            let options = packet(own, 60, &[TCP, 0, 0, 0, 0, 0, 0, 0]);
            for closed in [tcp(own, 9090, SYN), udp(own, 53), udp(own, 51820), redirect, options] {
                assert_eq!(limits.refuse(&closed), Some(Refusal::Gateway), "{own} {routes:?}");
            }
        }
    }
}

#[test]
fn a_syn_in_pieces_is_none_the_less_a_syn() {
    let mut limits = limits(open_to(&[]));
    let gateway = at("10.77.0.1");
    // The flags would come with the next fragment.
    let mut tiny = tcp(gateway, 9090, SYN)[..28].to_vec();
    tiny[6] = 0x20;
    assert_eq!(limits.refuse(&tiny), Some(Refusal::Gateway));
    let mut rest = tcp(gateway, 9090, SYN);
    rest[7] = 1;
    assert_eq!(limits.refuse(&rest), Some(Refusal::Gateway));
    // Of pings the pieces pass.
    let mut rest = echo(gateway);
    rest[7] = 185;
    assert_eq!(limits.refuse(&rest), None);
    let piece = |of: u8| packet(at("fd77::1"), FRAGMENT, &[of, 0, 0, 1, 0, 0, 0, 7]);
    assert_eq!(limits.refuse(&piece(ICMPV6)), None);
    assert_eq!(limits.refuse(&piece(TCP)), Some(Refusal::Gateway));
}

#[test]
fn a_resolver_without_a_route_is_reached_for_dns_alone() {
    for resolver in ["10.96.0.10", "fd00:96::a"].map(at) {
        let mut limits = limits(open_to(&[]).with_resolvers([resolver]));
        for open in [udp(resolver, 53), tcp(resolver, 53, SYN), tcp(resolver, 853, SYN), echo(resolver)] {
            assert_eq!(limits.refuse(&open), None, "{resolver}");
        }
        for closed in [tcp(resolver, 9153, SYN), tcp(resolver, 9153, ACK), udp(resolver, 54)] {
            assert_eq!(limits.refuse(&closed), Some(Refusal::NoRoute), "{resolver}");
        }
    }
    // Link-local ones are none.
    let resolver = at("169.254.20.10");
    let mut limits = limits(open_to(&[]).with_resolvers([resolver]));
    assert_eq!(limits.refuse(&udp(resolver, 53)), Some(Refusal::LinkLocal));
}

#[test]
fn other_clients_are_reached_where_their_pool_grants_it_and_those_of_other_pools_never() {
    let mut limits =
        limits(open_to(&["0.0.0.0/0", "10.78.0.0/16"]).with_clients(["10.77.0.0/16", "fd77::/64"].map(net)));
    assert_eq!(limits.refuse(&tcp(at("10.77.0.8"), 22, SYN)), None);
    assert_eq!(limits.refuse(&tcp(at("fd77::8"), 22, SYN)), None);
    assert_eq!(limits.refuse(&tcp(at("10.78.0.8"), 22, SYN)), Some(Refusal::OtherClient));
    assert_eq!(limits.refuse(&tcp(at("10.77.0.1"), 9090, SYN)), Some(Refusal::Gateway));
}

#[test]
fn a_peer_without_limits_reaches_anything_and_what_is_no_packet_goes_nowhere() {
    let mut none = Limits::default();
    assert_eq!(none.refuse(&tcp(at("169.254.169.254"), 80, SYN)), None);
    assert_eq!(limits(open_to(&["0.0.0.0/0", "::/0"])).refuse(&[0x45, 0]), Some(Refusal::NoRoute));
}

#[test]
fn each_reason_has_a_name_and_a_count_of_its_own() {
    let names: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::name).into();
    assert_eq!(names.len(), Refusal::ALL.len());
    let mut refused = Refused::default();
    for (packets, why) in (1..).zip(Refusal::ALL) {
        refused.add(why, packets);
    }
    assert_eq!(Refusal::ALL.map(|why| refused.of(why)), [1, 2, 3, 4, 5, 6]);
}

fn routes() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<u32>(), 0_u8..=32)
        .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from_bits(bits).into(), length).unwrap());
    let v6 = (any::<u128>(), 0_u8..=128)
        .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap());
    // Few bits, so that routes hold what is asked for, and nest.
    let near = (0_u8..8, 24_u8..=32)
        .prop_map(|(last, length)| IpNet::new(Ipv4Addr::new(192, 0, 2, last).into(), length).unwrap());
    prop::collection::vec(prop_oneof![v4, v6, near], 0..12)
}

fn unreachable() -> impl Strategy<Value = IpAddr> {
    let link_local_v4 = any::<[u8; 2]>().prop_map(|[c, d]| Ipv4Addr::new(169, 254, c, d).into());
    let link_local_v6 = any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(0xfe80 << 112 | bits >> 10).into());
    let translated = any::<u16>().prop_map(|low| Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, low).into());
    let multicast_v4 =
        (224_u8.., any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d).into());
    let multicast_v6 = any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(0xff << 120 | bits >> 8).into());
    prop_oneof![link_local_v4, link_local_v6, translated, multicast_v4, multicast_v6]
}

fn reachable() -> impl Strategy<Value = IpAddr> {
    let near = (0_u8..9).prop_map(|last| Ipv4Addr::new(192, 0, 2, last).into());
    let any_v4 = any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into());
    let any_v6 = any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into());
    prop_oneof![near, any_v4, any_v6]
}

proptest! {
    #[test]
    fn link_local_and_special_addresses_are_never_reached(mut routes in routes(), to in unreachable()) {
        routes.push(to.into());
        let destinations = Destinations::new(inside()).with_routes(routes).with_clients([to.into()]);
        let mut limits = limits(destinations.with_resolvers([to]));
        for packet in [tcp(to, 80, SYN), udp(to, 53), echo(to)] {
            prop_assert!(limits.refuse(&packet).is_some());
        }
    }

    #[test]
    fn an_address_outside_is_reached_as_long_as_a_route_names_it(
        routes in routes(),
        to in prop::collection::vec(reachable(), 1..8),
    ) {
        let mut limits = Limits::default();
        // One after another is withdrawn.
        for left in (0..=routes.len()).rev().filter_map(|count| routes.get(..count)) {
            limits.set(Some(Arc::new(Destinations::new(inside()).with_routes(left.to_vec()))));
            // Twice, in runs and out of them.
            for &to in to.iter().flat_map(|to| [to, to]).chain(&to) {
                let own = inside().addresses.contains(&to);
                let kept = never(to).is_some() || own || inside().clients.iter().any(|net| net.contains(&to));
                let named = left.iter().any(|route| route.contains(&to));
                prop_assert_eq!(limits.refuse(&tcp(to, 80, SYN)).is_none(), named && !kept);
            }
        }
    }

    #[test]
    fn nothing_that_a_peer_may_send_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), v6: bool) {
        let to = if v6 { at("fd77::1") } else { at("10.77.0.1") };
        let mut limits = limits(open_to(&[]).with_resolvers([at("10.96.0.10")]));
        limits.refuse(&bytes);
        if let Some((&protocol, payload)) = bytes.split_first() {
            limits.refuse(&packet(to, protocol, payload));
            limits.refuse(&packet(at("10.96.0.10"), protocol, payload));
        }
    }
}
