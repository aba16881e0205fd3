//! The lab's own NAT, packet by packet.

use proptest::prelude::*;

use super::*;
use crate::nat::userspace::{packet::build, profile::Pressure};

const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
const GATEWAY: &str = "203.0.113.10:51820";
const CLIENT: &str = "192.168.1.2:4500";

fn end(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn at(seconds: f64) -> Time {
    // Whole microseconds, so that sums come out even.
    Time::from(Duration::from_micros(Duration::from_secs_f64(seconds + 5e-7).as_micros().try_into().unwrap()))
}

/// Two classes, promoted by the second outbound packet; without delay.
fn profile(unreplied: f64, replied: f64) -> UserspaceProfile {
    let mut nat = Profile::new("test", unreplied, replied);
    nat.rtt_ms = 0.0;
    UserspaceProfile::new(nat)
}

/// What came out: source, destination, payload.
type Datagram = (SocketAddrV4, SocketAddrV4, Vec<u8>);

struct World {
    nat: Translator,
}

impl World {
    fn new(profile: UserspaceProfile) -> Self {
        Self { nat: Translator::new(profile, PUBLIC) }
    }

    fn pass(&mut self, seconds: f64, bytes: &[u8]) -> Option<Packet> {
        self.nat.handle_packet(at(seconds), bytes);
        let packet = Packet::parse(&self.nat.poll_transmit(at(seconds))?).unwrap();
        assert!(packet.checksums_are_right());
        assert_eq!(self.nat.poll_transmit(at(seconds)), None, "one in, one out");
        Some(packet)
    }

    fn udp(
        &mut self,
        seconds: f64,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
    ) -> Option<Datagram> {
        let packet = self.pass(seconds, &build::udp(from, to, payload))?;
        match packet.meaning() {
            Meaning::Flow { source, destination, .. } => {
                Some((source, destination, packet.payload().to_vec()))
            }
            Meaning::Error { .. } => None,
        }
    }

    /// Sends from inside; yields the public end.
    fn out(&mut self, seconds: f64, from: &str, to: &str) -> Option<SocketAddrV4> {
        self.udp(seconds, end(from), end(to), b"out").map(|(source, ..)| source)
    }

    /// Sends from outside; yields who got it.
    fn back(&mut self, seconds: f64, from: &str, to: SocketAddrV4) -> Option<SocketAddrV4> {
        self.udp(seconds, end(from), to, b"in").map(|(_, destination, _)| destination)
    }

    /// A promoted mapping of the client, at `seconds`; it was made 6 s before.
    fn promoted(&mut self, seconds: f64) -> SocketAddrV4 {
        let public = self.out(seconds - 6.0, CLIENT, GATEWAY).unwrap();
        self.out(seconds - 3.0, CLIENT, GATEWAY).unwrap();
        self.back(seconds - 2.9, GATEWAY, public).unwrap();
        self.out(seconds, CLIENT, GATEWAY).unwrap();
        public
    }

    fn expiries(&self) -> Vec<(f64, f64, bool)> {
        let told = self.nat.oracle().expired().map(|entry| match &entry.event {
            Event::Expired { idle, promoted, .. } => (entry.at.as_secs_f64(), idle.as_secs_f64(), *promoted),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    fn dropped(&self, why: Dropped) -> u64 {
        self.nat.drops().get(&why).copied().unwrap_or_default()
    }
}

#[test]
fn mapping_depends_on_what_the_profile_says() {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    for (mapping, same_port, same_address, neither) in [
        (EndpointIndependent, true, true, true),
        (AddressDependent, true, true, false),
        (AddressAndPortDependent, true, false, false),
    ] {
        let mut with = profile(30.0, 120.0);
        with.nat.mapping = mapping;
        let mut world = World::new(with);
        let first = world.out(0.0, CLIENT, "203.0.113.10:1").unwrap();
        let mut is_first = |to| world.out(0.1, CLIENT, to).unwrap() == first;
        assert_eq!(is_first("203.0.113.10:1"), same_port, "{mapping:?}");
        assert_eq!(is_first("203.0.113.10:2"), same_address, "{mapping:?}");
        assert_eq!(is_first("203.0.113.11:1"), neither, "{mapping:?}");
    }
}

#[test]
fn filtering_depends_on_what_the_profile_says() {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    for (filtering, other_port, other_address) in [
        (EndpointIndependent, true, true),
        (AddressDependent, true, false),
        (AddressAndPortDependent, false, false),
    ] {
        let mut with = profile(30.0, 120.0);
        with.nat.filtering = filtering;
        let mut world = World::new(with);
        let public = world.out(0.0, CLIENT, "203.0.113.10:1").unwrap();
        assert_eq!(world.back(0.1, "203.0.113.10:1", public), Some(end(CLIENT)));
        assert_eq!(world.back(0.1, "203.0.113.10:2", public).is_some(), other_port, "{filtering:?}");
        assert_eq!(world.back(0.1, "203.0.113.11:1", public).is_some(), other_address, "{filtering:?}");
    }
}

#[test]
fn a_mapping_lives_for_its_class_and_the_oracle_says_how_long() {
    let mut world = World::new(profile(8.0, 20.0));
    let public = world.out(1.0, "192.168.1.3:4500", GATEWAY).unwrap();
    assert!(world.back(8.99, GATEWAY, public).is_some());
    let client = world.promoted(10.0);
    assert!(world.back(29.9, GATEWAY, client).is_some());
    assert_eq!(world.back(49.9, GATEWAY, client), None);
    assert_eq!(world.expiries(), [(16.99, 8.0, false), (49.9, 20.0, true)]);
    assert!(world.nat.mappings(at(49.9)).is_empty());
}

#[test]
fn with_outbound_refresh_only_inbound_traffic_does_not_keep_a_mapping() {
    let mut with = profile(8.0, 15.0);
    with.nat.refresh = Refresh { outbound: true, inbound: false };
    let mut world = World::new(with);
    let public = world.promoted(10.0);
    let answered = [14.0, 19.0, 24.0, 26.0].map(|second| world.back(second, GATEWAY, public).is_some());
    assert_eq!(answered, [true, true, true, false]);
}

#[test]
fn with_inbound_refresh_only_outbound_traffic_does_not_keep_a_mapping() {
    let mut with = profile(8.0, 15.0);
    with.nat.refresh = Refresh { outbound: false, inbound: true };
    let mut world = World::new(with);
    let public = world.promoted(10.0);
    // Its last inbound packet came at 7.1.
    world.out(15.0, CLIENT, GATEWAY).unwrap();
    world.out(20.0, CLIENT, GATEWAY).unwrap();
    assert!(world.back(22.0, GATEWAY, public).is_some());
    world.out(30.0, CLIENT, GATEWAY).unwrap();
    assert_eq!(world.back(37.1, GATEWAY, public), None);
}

#[test]
fn a_late_promotion_needs_an_outbound_packet_after_its_time() {
    let mut with = profile(10.0, 30.0);
    with.nat.promote_after_s = 5.0;
    let mut world = World::new(with);
    let public = world.out(0.0, CLIENT, GATEWAY).unwrap();
    world.back(0.1, GATEWAY, public).unwrap();
    world.out(4.9, CLIENT, GATEWAY).unwrap();
    assert!(!world.nat.mappings(at(4.9))[0].stream);
    world.out(5.0, CLIENT, GATEWAY).unwrap();
    assert!(world.nat.mappings(at(5.0))[0].stream);
    assert!(world.back(34.9, GATEWAY, public).is_some());
}

#[test]
fn sweeps_let_mappings_live_longer() {
    let mut with = profile(12.0, 12.0);
    with.nat.sweep_s = 5.0;
    let mut world = World::new(with);
    for n in 0..20 {
        let port = 4500 + n;
        world.out(f64::from(n) * 0.5, &format!("192.168.1.2:{port}"), GATEWAY).unwrap();
    }
    world.nat.handle_timeout(at(60.0));
    let expiries = world.expiries();
    assert_eq!(expiries.len(), 20);
    assert!(expiries.iter().all(|(_, idle, _)| (12.0..17.0).contains(idle)), "{expiries:?}");
    let first = expiries[0].0;
    assert!(expiries.iter().all(|(end, ..)| ((end - first) / 5.0).fract().abs() < 1e-6), "{expiries:?}");
}

#[test]
fn a_zombie_lets_packets_out_but_none_in_until_the_client_takes_another_port() {
    let mut world = World::new(profile(8.0, 20.0));
    let public = world.promoted(10.0);
    world.nat.make_zombies(at(11.0));
    assert_eq!(world.back(11.0, GATEWAY, public), None);
    for second in [20.0, 35.0, 50.0] {
        assert_eq!(world.out(second, CLIENT, GATEWAY), Some(public), "it is even kept");
        assert_eq!(world.back(second + 0.1, GATEWAY, public), None);
    }
    let other = world.out(51.0, "192.168.1.2:4501", GATEWAY).unwrap();
    assert_eq!(world.back(51.1, GATEWAY, other), Some(end("192.168.1.2:4501")));
}

#[test]
fn a_helper_rewrites_both_ways() {
    let with = profile(8.0, 20.0).helper(Helper::Rewrites { ports: BTreeSet::from([5060]) });
    let mut world = World::new(with);
    let (client, proxy) = (end(CLIENT), end("203.0.113.10:5060"));
    let (public, _, payload) = world.udp(0.0, client, proxy, b"Contact: 192.168.1.2:4500").unwrap();
    assert_eq!(payload, b"Contact: 203.0.113.30:4500");
    let (.., payload) = world.udp(0.1, proxy, public, b"received=203.0.113.30;").unwrap();
    assert_eq!(payload, b"received=192.168.1.2;");
    let (.., payload) = world.udp(0.2, client, end(GATEWAY), b"192.168.1.2:4500").unwrap();
    assert_eq!(payload, b"192.168.1.2:4500", "other ports are let alone");
}

#[test]
fn a_helper_for_one_client_makes_the_others_wait() {
    let mut world = World::new(profile(8.0, 20.0).helper(Helper::OneClient { port: 500 }));
    assert!(world.out(0.0, "192.168.1.2:500", "203.0.113.10:500").is_some());
    assert!(world.out(1.0, "192.168.1.3:500", "203.0.113.11:500").is_none());
    assert!(world.out(1.0, "192.168.1.3:501", GATEWAY).is_some());
    assert!(world.out(1.0, "192.168.1.2:500", "203.0.113.11:500").is_some(), "the first may go on");
    assert!(world.out(9.0, "192.168.1.3:500", "203.0.113.11:500").is_some());
    assert_eq!(world.dropped(Dropped::OtherClient), 1);
}

#[test]
fn a_nat_out_of_ports_turns_new_flows_away_until_one_is_free() {
    let mut world = World::new(profile(8.0, 20.0).ports(50_000..=50_003));
    let answered: Vec<bool> =
        (0..5).map(|n| world.out(0.0, &format!("192.168.1.2:{}", 4500 + n), GATEWAY).is_some()).collect();
    assert_eq!(answered, [true, true, true, true, false]);
    assert!(world.nat.oracle().entries().any(|entry| matches!(entry.event, Event::Exhausted { .. })));
    assert!(world.out(8.0, "192.168.1.2:4504", GATEWAY).is_some());
}

#[test]
fn ports_are_preserved_even_with_their_parity_or_picked_anew() {
    let mut world = World::new(profile(8.0, 20.0).parity());
    let ports = ["192.168.1.2:4500", "192.168.1.3:4500", "192.168.1.4:4501"]
        .map(|client| world.out(0.0, client, GATEWAY).unwrap().port());
    assert_eq!(ports, [4500, 4502, 4501]);

    let mut with = profile(8.0, 20.0);
    with.nat.port = PortAllocation::Sequential;
    let mut world = World::new(with);
    let ports = [1, 2, 3].map(|n| world.out(0.0, &format!("192.168.1.{}:9", n + 1), GATEWAY).unwrap().port());
    assert_eq!(ports, [1024, 1025, 1026]);
}

#[test]
fn hosts_inside_reach_each_other_by_public_addresses_where_hairpinning_is_on() {
    for hairpin in [false, true] {
        let mut with = profile(8.0, 20.0);
        with.hairpin = hairpin;
        with.nat.filtering = Dependence::EndpointIndependent;
        let mut world = World::new(with);
        let other = world.out(0.0, "192.168.1.3:4501", GATEWAY).unwrap();
        let arrived = world.udp(0.1, end(CLIENT), other, b"hello neighbour");
        let expected =
            (SocketAddrV4::new(PUBLIC, 4500), end("192.168.1.3:4501"), b"hello neighbour".to_vec());
        assert_eq!(arrived, hairpin.then_some(expected));
        assert_eq!(world.dropped(Dropped::Hairpin), u64::from(!hairpin));
    }
}

#[test]
fn a_shrink_ends_mappings_that_were_idle_for_longer() {
    let mut world = World::new(profile(8.0, 20.0));
    let public = world.promoted(10.0);
    world.nat.shrink(at(16.0), Duration::from_secs(5));
    assert_eq!(world.back(16.0, GATEWAY, public), None);
    world.promoted(30.0);
    assert_eq!(world.nat.mappings(at(30.0))[0].left, Duration::from_secs(5));
}

#[test]
fn lifetimes_shrink_under_load_for_good() {
    let pressure = Pressure { mappings: 10, lifetime: Duration::from_secs(6) };
    let mut world = World::new(profile(8.0, 20.0).pressure(pressure));
    let public = world.promoted(10.0);
    for n in 0..9 {
        world.out(12.0, &format!("192.168.1.3:{}", 5000 + n), GATEWAY).unwrap();
    }
    assert!(world.back(15.9, GATEWAY, public).is_some());
    assert_eq!(world.back(21.9, GATEWAY, public), None);
    let again = world.promoted(60.0);
    assert_eq!(world.back(66.0, GATEWAY, again), None);
}

#[test]
fn a_flush_is_invisible_and_a_rebind_is_not() {
    let mut world = World::new(profile(8.0, 20.0));
    let public = world.promoted(10.0);
    world.nat.flush(at(11.0));
    assert_eq!(world.back(11.0, GATEWAY, public), None);
    assert_eq!(world.out(12.0, CLIENT, GATEWAY), Some(public));
    let mut seen = BTreeSet::from([public]);
    for second in [13.0, 14.0, 15.0] {
        world.nat.rebind(at(second));
        assert!(seen.insert(world.out(second, CLIENT, GATEWAY).unwrap()), "{seen:?}");
    }
    let address = Ipv4Addr::new(203, 0, 113, 31);
    world.nat.set_address(at(16.0), address);
    assert_eq!(*world.out(16.0, CLIENT, GATEWAY).unwrap().ip(), address);
}

#[test]
fn udp_can_be_blocked_and_ports_be_deaf() {
    let mut world = World::new(profile(8.0, 20.0).udp(UdpFilter::BlockedPorts(BTreeSet::from([51_820]))));
    assert_eq!(world.out(0.0, CLIENT, GATEWAY), None);
    let public = world.out(0.0, CLIENT, "203.0.113.10:443").unwrap();
    world.nat.set_deaf(BTreeSet::from([4500]));
    assert_eq!(world.back(0.1, "203.0.113.10:443", public), None);
    world.nat.set_deaf(BTreeSet::new());
    assert!(world.back(0.2, "203.0.113.10:443", public).is_some());
    world.nat.set_udp(UdpFilter::Blocked);
    assert_eq!(world.back(0.3, "203.0.113.10:443", public), None);
    assert_eq!(world.out(0.3, CLIENT, "203.0.113.10:443"), None);
}

#[test]
fn lost_packets_refresh_nothing() {
    let mut world = World::new(profile(8.0, 20.0));
    let public = world.out(0.0, CLIENT, GATEWAY).unwrap();
    world.nat.set_loss(Loss::percent(100.0));
    assert_eq!(world.out(5.0, CLIENT, GATEWAY), None);
    assert_eq!(world.back(5.0, GATEWAY, public), None);
    world.nat.handle_timeout(at(8.0));
    assert_eq!(world.expiries(), [(8.0, 8.0, false)]);
}

#[test]
fn packets_take_half_the_round_trip_each_way_and_stay_in_order() {
    let mut with = profile(8.0, 20.0).jitter(Duration::from_millis(30));
    with.nat.rtt_ms = 80.0;
    let mut nat = Translator::new(with, PUBLIC);
    for n in 0..50_u8 {
        nat.handle_packet(at(0.001 * f64::from(n)), &build::udp(end(CLIENT), end(GATEWAY), &[n]));
    }
    let mut arrived = Vec::new();
    while let Some(due) = nat.poll_timeout().filter(|due| *due < at(1.0)) {
        while let Some(packet) = nat.poll_transmit(due) {
            arrived.push((due.as_secs_f64(), Packet::parse(&packet).unwrap().payload()[0]));
        }
    }
    assert!(arrived.iter().map(|(_, n)| *n).eq(0..50));
    for (due, n) in arrived {
        let delay = due - 0.001 * f64::from(n);
        assert!((0.04..0.0701).contains(&delay), "{delay}");
    }
}

#[test]
fn a_round_trip_that_grows_and_shrinks_keeps_packets_in_order() {
    let mut nat = Translator::new(profile(8.0, 20.0), PUBLIC);
    let send = |nat: &mut Translator, ms: u32, n| {
        nat.handle_packet(at(0.001 * f64::from(ms)), &build::udp(end(CLIENT), end(GATEWAY), &[n]));
    };
    nat.set_round_trip(Duration::from_secs(1));
    send(&mut nat, 0, 0);
    assert!(nat.poll_transmit(at(0.499)).is_none());
    nat.set_round_trip(Duration::ZERO);
    send(&mut nat, 100, 1);
    assert!(nat.poll_transmit(at(0.1)).is_none(), "it would overtake");
    let arrived =
        |nat: &mut Translator| Packet::parse(&nat.poll_transmit(at(0.5)).unwrap()).unwrap().payload()[0];
    assert_eq!([arrived(&mut nat), arrived(&mut nat)], [0, 1]);
}

#[test]
fn errors_about_mappings_find_their_way_and_others_do_not() {
    let mut world = World::new(profile(8.0, 20.0));
    let (client, gateway) = (end(CLIENT), end(GATEWAY));
    let sent = world.pass(0.0, &build::udp(client, gateway, b"x")).unwrap().into_bytes();
    let router = Ipv4Addr::new(198, 51, 100, 1);
    let error = world.pass(0.1, &build::error(router, PUBLIC, &sent)).unwrap();
    assert_eq!((error.source_address(), error.destination_address()), (router, *client.ip()));
    let inner = Meaning::Error { protocol: Protocol::Udp, source: client, destination: gateway };
    assert_eq!(error.meaning(), inner);

    let received = world.pass(0.2, &build::udp(gateway, SocketAddrV4::new(PUBLIC, 4500), b"y")).unwrap();
    let refused = build::error(*client.ip(), *gateway.ip(), received.bytes());
    let error = world.pass(0.3, &refused).unwrap();
    assert_eq!((error.source_address(), error.destination_address()), (PUBLIC, *gateway.ip()));
    let outside = SocketAddrV4::new(PUBLIC, 4500);
    assert_eq!(
        error.meaning(),
        Meaning::Error { protocol: Protocol::Udp, source: gateway, destination: outside }
    );

    let forged = build::udp(SocketAddrV4::new(PUBLIC, 4501), gateway, b"x");
    assert!(world.pass(0.4, &build::error(router, PUBLIC, &forged)).is_none());
    let stranger = build::udp(SocketAddrV4::new(PUBLIC, 4500), end("198.51.100.9:9"), b"x");
    assert!(world.pass(0.4, &build::error(router, PUBLIC, &stranger)).is_none());
    assert_eq!(world.dropped(Dropped::NoMapping) + world.dropped(Dropped::NotPermitted), 2);
    world.nat.handle_timeout(at(8.2));
    assert_eq!(world.expiries().len(), 1, "errors refresh nothing");
}

#[test]
fn tcp_and_echo_pass_whatever_udp_may_do() {
    let mut world = World::new(profile(8.0, 20.0).udp(UdpFilter::Blocked).ports(50_000..=50_000));
    let (client, gateway) = (end(CLIENT), end(GATEWAY));
    let syn = world.pass(0.0, &build::tcp(client, gateway, b"")).unwrap();
    let outside = SocketAddrV4::new(PUBLIC, 4500);
    let flow = |source, destination| Meaning::Flow { protocol: Protocol::Tcp, source, destination };
    assert_eq!(syn.meaning(), flow(outside, gateway));
    let answer = world.pass(3600.0, &build::tcp(gateway, outside, b"")).unwrap();
    assert_eq!(answer.meaning(), flow(gateway, client));
    assert!(world.pass(3600.0, &build::tcp(end("198.51.100.9:9"), outside, b"")).is_none());

    let [request, reply] = [(8, *client.ip(), *gateway.ip()), (0, *gateway.ip(), PUBLIC)]
        .map(|(kind, source, destination)| build::echo(kind, source, destination, 4000));
    assert_eq!(world.pass(3601.0, &request).unwrap().source_address(), PUBLIC);
    assert_eq!(world.pass(3601.1, &reply).unwrap().destination_address(), *client.ip());
    let unasked = build::echo(8, *gateway.ip(), PUBLIC, 4000);
    assert!(world.pass(3601.2, &unasked).is_none());
}

#[test]
fn what_is_not_translated_is_dropped_and_counted() {
    let mut world = World::new(profile(8.0, 20.0));
    let mut fragment = build::udp(end(CLIENT), end(GATEWAY), b"x");
    fragment[6] = 0x20;
    assert!(world.pass(0.0, &fragment).is_none());
    for (from, to) in
        [(CLIENT, "192.168.1.3:1"), (CLIENT, "239.1.1.1:1"), ("198.51.100.9:9", "198.51.100.8:8")]
    {
        assert!(world.udp(0.0, end(from), end(to), b"").is_none());
    }
    assert_eq!(world.dropped(Dropped::Malformed(Malformed::Fragment)), 1);
    assert_eq!(world.dropped(Dropped::Stray), 3);
}

#[test]
fn mappings_are_lost_at_random_when_the_profile_says_so() {
    let mut with = profile(1e6, 1e6);
    with.nat.flush_per_day = 24.0;
    let mut world = World::new(with);
    for minute in 0..60 * 24 {
        world.out(f64::from(minute) * 60.0, CLIENT, GATEWAY).unwrap();
    }
    let flushed =
        world.nat.oracle().entries().filter(|entry| matches!(entry.event, Event::Flushed(_))).count();
    assert!((10..40).contains(&flushed), "{flushed}");
}

#[derive(Debug, Clone)]
enum Step {
    Out { host: u8, port: u16, to: u8 },
    In { from: u8, port: u16 },
    Wait(f64),
    Flush,
    Shrink(f64),
    Raw(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (2_u8..6, 4500_u16..4504, 0_u8..3).prop_map(|(host, port, to)| Step::Out { host, port, to }),
        6 => (0_u8..3, 4498_u16..4516).prop_map(|(from, port)| Step::In { from, port }),
        6 => (0.0..9.0).prop_map(Step::Wait),
        1 => Just(Step::Flush),
        1 => (3.0..20.0).prop_map(Step::Shrink),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Step::Raw),
    ];
    prop::collection::vec(step, 1..80)
}

fn dependence() -> impl Strategy<Value = Dependence> {
    prop::sample::select(vec![
        Dependence::EndpointIndependent,
        Dependence::AddressDependent,
        Dependence::AddressAndPortDependent,
    ])
}

proptest! {
    #[test]
    fn a_reply_to_what_came_out_arrives_where_it_came_from(
        host in 2_u8..250, port: u16, remote: (u8, u16), mapping in dependence(), filtering in dependence(),
        allocation in prop::sample::select(vec![PortAllocation::Preserve, PortAllocation::Sequential, PortAllocation::Random]),
        payload in prop::collection::vec(any::<u8>(), 0..99), seed: u64,
    ) {
        let mut with = profile(30.0, 120.0);
        (with.nat.mapping, with.nat.filtering, with.nat.port, with.seed) = (mapping, filtering, allocation, seed);
        let mut world = World::new(with);
        let client = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, host), port);
        let remote = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, remote.0), remote.1);
        let (public, to, out) = world.udp(0.0, client, remote, &payload).unwrap();
        prop_assert_eq!((to, &out), (remote, &payload));
        prop_assert_eq!(public.ip(), &PUBLIC);
        let (from, back, answer) = world.udp(0.1, remote, public, &payload).unwrap();
        prop_assert_eq!((from, back, answer), (remote, client, payload));
    }

    #[test]
    fn no_mapping_outlives_its_lifetime_and_the_table_is_bounded(
        steps in steps(), unreplied in 2.0..20.0, replied in 2.0..20.0, sweep in prop::sample::select(vec![0.0, 5.0]),
        mapping in dependence(),
    ) {
        let mut with = profile(unreplied, replied);
        (with.nat.mapping, with.nat.sweep_s, with.capacity) = (mapping, sweep, 6);
        // A "shrink" may be up to 20 s.
        let longest = 20.0 + sweep + 1e-5;
        let mut world = World::new(with);
        let mut now = 0.0;
        let mut last_passed: BTreeMap<u16, f64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Out { host, port, to } => {
                    let client = format!("192.168.1.{host}:{port}");
                    if let Some(public) = world.out(now, &client, &format!("198.51.100.{to}:{to}")) {
                        last_passed.insert(public.port(), now);
                    }
                }
                Step::In { from, port } => {
                    let to = SocketAddrV4::new(PUBLIC, port);
                    if world.back(now, &format!("198.51.100.{from}:{from}"), to).is_some() {
                        let silent = now - last_passed.insert(port, now).unwrap();
                        prop_assert!(silent < longest, "{silent}");
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Flush => {
                    world.nat.flush(at(now));
                    last_passed.clear();
                }
                Step::Shrink(to) => world.nat.shrink(at(now), Duration::from_secs_f64(to)),
                Step::Raw(bytes) => {
                    world.nat.handle_packet(at(now), &bytes);
                    while world.nat.poll_transmit(at(now)).is_some() {}
                }
            }
            let mappings = world.nat.mappings(at(now));
            prop_assert!(mappings.len() <= 6);
            prop_assert!(mappings.iter().all(|mapping| mapping.left.as_secs_f64() <= longest));
        }
        world.nat.handle_timeout(at(now + longest + 20.0));
        prop_assert!(world.nat.mappings(at(now)).is_empty());
        prop_assert_eq!(world.nat.poll_timeout(), None);
    }
}
