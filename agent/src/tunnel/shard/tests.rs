//! Shards that talk to each other in memory.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    health::gateway::Unconfirmed,
    tunnel::{
        TunnelEvent,
        path::Local,
        sources::{Learnt, Standing},
    },
};

/// Keeps what a shard makes.
#[derive(Default)]
pub(super) struct Made {
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// By which addresses of its own the datagrams were to go, of all so far.
    pub(super) locals: BTreeSet<Option<Local>>,
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) events: Vec<TunnelEvent>,
    pub(super) handed: Vec<(Number, Misdelivered)>,
    room: Vec<u8>,
    to: Option<Path>,
}

impl Output for Made {
    fn datagram(&mut self, to: Path, size: usize) -> &mut [u8] {
        self.to = Some(to);
        self.room = vec![0; size];
        &mut self.room
    }

    fn send(&mut self, length: usize) {
        self.locals.extend(self.to.map(|to| to.local));
        self.datagrams.push((self.to.unwrap().remote, self.room[..length].to_vec()));
    }

    fn packet(&mut self, size: usize) -> &mut [u8] {
        self.room = vec![0; size];
        &mut self.room
    }

    fn deliver(&mut self, length: usize) {
        self.packets.push(self.room[..length].to_vec());
    }

    fn event(&mut self, event: TunnelEvent) {
        self.events.push(event);
    }

    fn hand_over(&mut self, to: Number, stray: Misdelivered) {
        self.handed.push((to, stray));
    }
}

impl Made {
    pub(super) fn take_datagrams(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.datagrams).into_iter().map(|(_, datagram)| datagram).collect()
    }

    pub(super) fn moves(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, TunnelEvent::EndpointChanged { .. })).count()
    }
}

pub(super) struct End {
    pub(super) shard: Shard,
    pub(super) key: PublicKey,
    pub(super) made: Made,
    pub(super) board: StatsRegistry,
    pub(super) notices: Notices,
    pub(super) address: SocketAddr,
    pub(super) inner: Ipv4Addr,
}

impl End {
    pub(super) fn new(n: u8) -> Self {
        Self::with(n, PrivateKey::generate().unwrap(), ShardId::ALONE)
    }

    pub(super) fn with(n: u8, private_key: PrivateKey, place: ShardId) -> Self {
        let key = private_key.public();
        let board = StatsRegistry::default();
        let notices = Notices::new().unwrap();
        let config = ShardConfig { private_key, mtu: 1420, place, notices: notices.clone() };
        let shard = Shard::new(&config, board.clone(), Instant::now()).unwrap();
        let address = (Ipv4Addr::new(192, 0, 2, n), 51820).into();
        let (made, inner) = (Made::default(), Ipv4Addr::new(10, 9, 0, n));
        Self { shard, key, made, board, notices, address, inner }
    }

    pub(super) fn knows(&mut self, other: &Self, endpoint: bool) {
        self.shard.set_peers(&[other.as_peer(endpoint)]);
        self.shard.commit();
    }

    pub(super) fn as_peer(&self, endpoint: bool) -> PeerConfig {
        PeerConfig {
            public_key: self.key,
            preshared_key: None,
            allowed_ips: vec![IpAddr::from(self.inner).into()],
            endpoints: endpoint.then_some(self.address).into_iter().collect(),
            destinations: None,
        }
    }

    pub(super) fn sends(&mut self, now: Instant, other: &Self, number: u8) {
        self.sends_packet(now, &mut packet(self.inner, other.inner, number));
        self.shard.commit();
    }

    pub(super) fn sends_packet(&mut self, now: Instant, packet: &mut [u8]) {
        self.shard.handle_packets(now, Segments::whole(packet), &mut self.made);
    }

    pub(super) fn receives(&mut self, now: Instant, from: SocketAddr, datagrams: &[Vec<u8>]) {
        let from = Path { remote: from, local: Some(self.local()) };
        for datagram in datagrams {
            self.shard.handle_datagram(now, from, datagram, &mut self.made);
        }
        while self.shard.answer_next(now, &mut self.made) {}
        self.shard.commit();
    }

    /// Its own end of what comes to it.
    pub(super) fn local(&self) -> Local {
        Local { address: self.address.ip(), device: 2 }
    }

    /// By which own address a keepalive to the other one goes.
    fn answers_by(&mut self, now: Instant, other: &Self) -> Option<Local> {
        self.made.locals.clear();
        self.shard.keepalive(now, &other.key, &mut self.made);
        self.made.datagrams.clear();
        let locals: Vec<_> = std::mem::take(&mut self.made.locals).into_iter().collect();
        let [local] = locals[..] else { panic!("one datagram, not {locals:?}") };
        local
    }

    pub(super) fn stats(&self, other: &Self) -> PeerStats {
        self.board.snapshot().into_iter().find(|stats| stats.public_key == other.key).unwrap()
    }

    pub(super) fn numbers(&self) -> Vec<u8> {
        self.made.packets.iter().map(|packet| packet[20]).collect()
    }
}

/// An IPv4 packet of 21 bytes.
pub(super) fn packet(from: Ipv4Addr, to: Ipv4Addr, number: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 21, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.push(number);
    packet
}

/// Carries datagrams to and fro until there are none.
pub(super) fn exchange(now: Instant, one: &mut End, two: &mut End) {
    loop {
        let (there, back) = (one.made.take_datagrams(), two.made.take_datagrams());
        if there.is_empty() && back.is_empty() {
            return;
        }
        two.receives(now, one.address, &there);
        one.receives(now, two.address, &back);
    }
}

/// A client that knows where its gateway is, and a gateway that does not know where its client is.
pub(super) fn pair() -> (Instant, End, End) {
    let (mut client, mut gateway) = (End::new(2), End::new(1));
    client.knows(&gateway, true);
    gateway.knows(&client, false);
    (Instant::now(), client, gateway)
}

pub(super) fn connected() -> (Instant, End, End) {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 0);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [0]);
    gateway.made = Made::default();
    client.made = Made::default();
    (now, client, gateway)
}

#[test]
fn the_first_packets_wait_for_the_session_and_arrive_in_order() {
    let (now, mut client, mut gateway) = pair();
    for number in 1..=3 {
        client.sends(now, &gateway, number);
    }
    assert_eq!(client.made.datagrams.len(), 1, "one initiation, however many packets wait");
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [1, 2, 3]);
    for (end, other, initiated) in [(&client, &gateway, true), (&gateway, &client, false)] {
        let stats = end.stats(other);
        assert!(stats.has_session);
        assert_eq!(stats.endpoint, Some(other.address));
        assert!(end.made.events.contains(&TunnelEvent::HandshakeCompleted { peer: other.key, initiated }));
        assert!(end.made.events.contains(&TunnelEvent::FirstReceive { peer: other.key, silence: None }));
    }
    gateway.sends(now, &client, 4);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [4]);
}

/// A packet of so many bytes, between the hosts of these numbers.
fn sized(v6: bool, [from, to]: [u8; 2], length: usize) -> Vec<u8> {
    let mut packet = if v6 {
        let behind = u16::try_from(length - 40).unwrap().to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, behind[0], behind[1], 253, 64];
        for host in [from, to] {
            header.extend(inner_v6(host).octets());
        }
        header
    } else {
        let mut header = self::packet(Ipv4Addr::new(10, 9, 0, from), Ipv4Addr::new(10, 9, 0, to), 0);
        header.truncate(20);
        header[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        header
    };
    packet.resize(length, 0xab);
    packet
}

fn inner_v6(host: u8) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, host.into())
}

#[test]
fn the_wire_shows_lengths_in_steps_up_to_the_mtu_and_packets_arrive_as_they_were() {
    let (now, mut client, mut gateway) = pair();
    let (to_client, to_gateway) = (client.as_peer(false), gateway.as_peer(true));
    for (end, mut other, host) in [(&mut client, to_gateway, 1), (&mut gateway, to_client, 2)] {
        other.allowed_ips.push(IpAddr::from(inner_v6(host)).into());
        end.shard.set_peers(&[other]);
    }
    // The first ones wait for the session.
    for v6 in [false, true] {
        client.sends_packet(now, &mut sized(v6, [2, 1], 77));
    }
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.made.packets, [sized(false, [2, 1], 77), sized(true, [2, 1], 77)]);
    for (mtu, wanted) in [(1420, 1420), (1300, 1300), (1290, 1295)] {
        for v6 in [false, true] {
            for length in [40, 41, 47, 48, 49, 1295] {
                gateway.made = Made::default();
                client.shard.set_device_mtu(mtu);
                client.sends_packet(now, &mut sized(v6, [2, 1], length));
                let shown =
                    client.made.datagrams.iter().map(|(_, bytes)| bytes.len() - 32).collect::<Vec<_>>();
                let wanted = if length == 1295 { 1296.min(wanted) } else { length.next_multiple_of(16) };
                assert_eq!(shown, [wanted], "{length} bytes, MTU {mtu}");
                exchange(now, &mut client, &mut gateway);
                assert_eq!(gateway.made.packets, [sized(v6, [2, 1], length)]);
            }
        }
    }
    // Without a packet there is nothing to pad.
    client.shard.keepalive(now, &gateway.key, &mut client.made);
    assert_eq!(client.made.datagrams.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [32]);
    // Both ends count what was sent, not what it was padded to.
    client.shard.commit();
    assert_eq!(client.stats(&gateway).sent.bytes, 2 * 77 + 3 * 2 * (40 + 41 + 47 + 48 + 49 + 1295));
}

#[test]
fn a_peer_is_answered_from_where_it_asked_until_somebody_says_where_it_is() {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 1);
    assert_eq!(client.made.locals, BTreeSet::from([None]), "who asks leaves it to the system at first");
    exchange(now, &mut client, &mut gateway);
    assert_eq!(client.answers_by(now, &gateway), Some(client.local()));
    assert_eq!(gateway.answers_by(now, &client), Some(gateway.local()));
    for (end, other, is_told) in [(&client, &gateway, true), (&gateway, &client, false)] {
        let learnt = Learnt { remote: other.address, local: end.local(), is_told };
        assert_eq!(end.notices.take(), HashMap::from([(other.key, Some(learnt))]));
    }
    client.sends(now, &gateway, 2);
    exchange(now, &mut client, &mut gateway);
    assert!(client.notices.take().is_empty() && gateway.notices.take().is_empty(), "nothing is new");

    gateway.shard.set_endpoint(&client.key, client.address);
    assert_eq!(gateway.answers_by(now, &client), None);
    client.shard.use_endpoint(now, &gateway.key, gateway.address, &mut client.made);
    client.made.datagrams.clear();
    assert_eq!(client.answers_by(now, &gateway), None);
    // Another one of the gateway's.
    gateway.address = (Ipv4Addr::new(192, 0, 2, 77), 51820).into();
    client.sends(now, &gateway, 3);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.answers_by(now, &client), Some(gateway.local()));
    assert_eq!(gateway.notices.take()[&client.key].map(|learnt| learnt.is_told), Some(true));
    gateway.shard.set_peers(&[]);
    assert_eq!(gateway.notices.take(), HashMap::from([(client.key, None)]));
}

#[test]
fn an_own_address_is_left_as_it_is_judged() {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 1);
    exchange(now, &mut client, &mut gateway);
    let (path, key) = (Path { remote: gateway.address, local: Some(client.local()) }, gateway.key);
    let mut judged = |client: &mut End, standing| {
        client.shard.judge_local(&(key, path, standing));
        let before = client.answers_by(now, &gateway);
        gateway.sends(now, client, 2);
        exchange(now, client, &mut gateway);
        [before, client.answers_by(now, &gateway)]
    };
    let own = Some(client.local());
    assert_eq!(judged(&mut client, Standing::Forgotten), [None, own], "learnt again");
    assert_eq!(judged(&mut client, Standing::Unfit), [None, None], "not learnt again");
    client.address = (Ipv4Addr::new(192, 0, 2, 78), 51820).into();
    let other = Some(client.local());
    assert_eq!(judged(&mut client, Standing::Forgotten), [None, other], "but another one is");
    assert_eq!(judged(&mut client, Standing::Unfit), [other, other], "of which that is not said");
    client.address = (Ipv4Addr::new(192, 0, 2, 2), 51820).into();
    assert_eq!(judged(&mut client, Standing::Fit), [other, own]);
    client.shard.forget_locals();
    assert_eq!(client.answers_by(now, &gateway), None);
}

#[test]
fn nothing_is_begun_towards_a_peer_of_unknown_whereabouts() {
    let (now, client, mut gateway) = pair();
    gateway.sends(now, &client, 1);
    gateway.shard.keepalive(now, &client.key, &mut gateway.made);
    gateway.shard.handshake(now, &client.key, &mut gateway.made);
    gateway.shard.commit();
    assert!(gateway.made.datagrams.is_empty());
    assert_eq!(gateway.shard.poll_timeout(), None);
    assert_eq!(gateway.stats(&client).dropped, 1);
}

#[test]
fn a_persistent_keepalive_opens_a_session_and_keeps_to_its_interval() {
    let (now, mut client, mut gateway) = pair();
    let interval = Some(Duration::from_secs(7));
    client.shard.keep_alive(now, &gateway.key, interval, &mut client.made);
    client.shard.commit();
    exchange(now, &mut client, &mut gateway);
    assert!(gateway.stats(&client).has_session, "the first is sent at once, and has the session made");
    for _ in 0..3 {
        let due = client.shard.poll_timeout().unwrap();
        assert_eq!(due, client.stats(&gateway).last_send.unwrap() + Duration::from_secs(7));
        client.shard.handle_timeout(due, &mut client.made);
        client.shard.commit();
        assert_eq!(client.made.datagrams.len(), 1);
        let before = gateway.stats(&client).received_messages;
        exchange(due, &mut client, &mut gateway);
        assert_eq!(gateway.stats(&client).received_messages.bytes, before.bytes + 32);
    }
    client.shard.keep_alive(now, &gateway.key, None, &mut client.made);
    client.shard.commit();
    assert!(client.shard.poll_timeout().unwrap() > now + Duration::from_secs(100), "off again");
    assert_eq!(gateway.stats(&client).received.packets, 0);
}

#[test]
fn another_identity_keeps_peers_and_endpoints_and_makes_sessions_anew() {
    let (now, mut client, mut gateway) = connected();
    let other = PrivateKey::generate().unwrap();
    client.shard.set_identity(now, &other);
    client.key = other.public();
    gateway.knows(&client, false);
    client.shard.commit();
    assert!(!client.stats(&gateway).has_session);
    client.sends(now, &gateway, 5);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [5]);
    assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
}

#[test]
fn a_new_endpoint_is_silent_until_there_is_something_to_send() {
    let (now, mut client, gateway) = connected();
    let elsewhere = (Ipv4Addr::new(192, 0, 2, 77), 1).into();
    client.shard.set_endpoint(&gateway.key, elsewhere);
    assert!(client.made.datagrams.is_empty());
    client.sends(now, &gateway, 1);
    assert_eq!(client.made.datagrams[0].0, elsewhere);
}

#[test]
fn crossing_initiations_end_with_a_session_at_once() {
    let (mut one, mut two) = (End::new(1), End::new(2));
    one.knows(&two, true);
    two.knows(&one, true);
    let now = Instant::now();
    one.sends(now, &two, 1);
    two.sends(now, &one, 2);
    exchange(now, &mut one, &mut two);
    assert_eq!((one.numbers(), two.numbers()), (vec![2], vec![1]));
    for number in 3..9 {
        one.sends(now, &two, number);
        exchange(now, &mut one, &mut two);
        two.sends(now, &one, number);
        exchange(now, &mut one, &mut two);
    }
    assert_eq!((one.numbers().len(), two.numbers().len()), (7, 7));
    assert!(!one.shard.peers[0].as_ref().unwrap().is_handshaking());
}

#[test]
fn crossing_initiations_whose_answers_are_lost_are_tried_again() {
    let (mut one, mut two) = (End::new(1), End::new(2));
    one.knows(&two, true);
    two.knows(&one, true);
    let now = Instant::now();
    one.sends(now, &two, 1);
    two.sends(now, &one, 2);
    let (there, back) = (one.made.take_datagrams(), two.made.take_datagrams());
    two.receives(now, one.address, &there);
    one.receives(now, two.address, &back);
    assert_eq!(
        one.made.take_datagrams().len() + two.made.take_datagrams().len(),
        2,
        "both answers, lost here"
    );
    let retry = one.shard.poll_timeout().unwrap().min(two.shard.poll_timeout().unwrap());
    assert!(retry <= now + Duration::from_millis(5333));
    one.shard.handle_timeout(retry, &mut one.made);
    two.shard.handle_timeout(retry, &mut two.made);
    exchange(retry, &mut one, &mut two);
    assert_eq!((one.numbers(), two.numbers()), (vec![2], vec![1]));
}

#[test]
fn handshakes_whose_answers_do_not_arrive_are_counted_until_one_does() {
    let (first, mut client, mut gateway) = pair();
    let mut now = first;
    client.sends(now, &gateway, 1);
    for count in 1..=4 {
        gateway.receives(now, client.address, &client.made.take_datagrams());
        assert_eq!(gateway.made.take_datagrams().len(), 1, "an answer, lost here");
        assert_eq!(gateway.stats(&client).unconfirmed, Some(Unconfirmed { count, first, last: now }));
        now = client.shard.poll_timeout().unwrap();
        client.shard.handle_timeout(now, &mut client.made);
        client.shard.commit();
    }
    exchange(now, &mut client, &mut gateway);
    let stats = gateway.stats(&client);
    assert!(stats.has_session);
    assert_eq!(stats.unconfirmed, None);
}

#[test]
fn the_endpoint_follows_authentic_packets_only_and_at_once() {
    let (now, mut client, mut gateway) = connected();
    let elsewhere: SocketAddr = "198.51.100.7:4500".parse().unwrap();
    client.sends(now, &gateway, 1);
    let genuine = client.made.take_datagrams();
    let mut forged = genuine.clone();
    *forged[0].last_mut().unwrap() ^= 1;
    gateway.receives(now, elsewhere, &forged);
    assert_eq!((gateway.stats(&client).endpoint, gateway.made.moves()), (Some(client.address), 0));

    gateway.receives(now, elsewhere, &genuine);
    let stats = gateway.stats(&client);
    assert_eq!((stats.endpoint, stats.endpoint_changes, gateway.made.moves()), (Some(elsewhere), 1, 1));
    // A replay from where the client was does not bring it back, nor does its packet arrive twice.
    gateway.receives(now, client.address, &genuine);
    assert_eq!(gateway.stats(&client).endpoint, Some(elsewhere));
    assert_eq!(gateway.numbers(), [1]);

    gateway.sends(now, &client, 2);
    assert_eq!(gateway.made.datagrams[0].0, elsewhere);
}

#[test]
fn a_packet_that_is_late_on_the_way_left_turns_nothing_back_to_it() {
    let (now, mut client, mut gateway) = connected();
    let elsewhere: SocketAddr = "198.51.100.7:4500".parse().unwrap();
    client.sends(now, &gateway, 1);
    let late = client.made.take_datagrams();
    client.sends(now, &gateway, 2);
    let newer = client.made.take_datagrams();
    gateway.receives(now, elsewhere, &newer);
    assert_eq!((gateway.stats(&client).endpoint, gateway.made.moves()), (Some(elsewhere), 1));
    gateway.receives(now, client.address, &late);
    assert_eq!((gateway.stats(&client).endpoint, gateway.made.moves()), (Some(elsewhere), 1));
    assert_eq!(gateway.made.packets.len(), 2, "it is delivered all the same");
    client.sends(now, &gateway, 3);
    gateway.receives(now, client.address, &client.made.take_datagrams());
    assert_eq!(gateway.stats(&client).endpoint, Some(client.address), "it is back");
}

#[test]
fn a_peer_that_sends_by_the_session_before_again_is_followed() {
    let (mut now, mut client, mut gateway) = connected();
    let elsewhere: SocketAddr = "198.51.100.7:4500".parse().unwrap();
    client.sends(now, &gateway, 1);
    let by_the_first = client.made.take_datagrams();
    now += Duration::from_secs(6);
    client.shard.handshake(now, &gateway.key, &mut client.made);
    exchange(now, &mut client, &mut gateway);
    client.sends(now, &gateway, 2);
    gateway.receives(now, client.address, &client.made.take_datagrams());
    assert_eq!(gateway.made.moves(), 0);
    gateway.receives(now, elsewhere, &by_the_first);
    assert_eq!((gateway.stats(&client).endpoint, gateway.made.moves()), (Some(elsewhere), 1));
}

#[test]
fn a_replayed_initiation_is_not_answered() {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 1);
    let initiation = client.made.take_datagrams();
    gateway.receives(now, client.address, &initiation);
    assert_eq!(gateway.made.take_datagrams().len(), 1);
    gateway.receives(now, "198.51.100.7:4500".parse().unwrap(), &initiation);
    assert!(gateway.made.datagrams.is_empty());
    assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
}

#[test]
fn a_stranger_is_not_answered() {
    let (now, mut client, mut gateway) = pair();
    gateway.shard.set_peers(&[]);
    client.sends(now, &gateway, 1);
    let initiation = client.made.take_datagrams();
    gateway.receives(now, client.address, &initiation);
    assert!(gateway.made.datagrams.is_empty());
    assert_eq!(gateway.shard.discards.unknown_peer, 1);
}

#[test]
fn a_source_that_is_not_the_peers_is_refused_even_where_it_is_another_peers() {
    let (now, mut client, mut gateway) = connected();
    let other = End::new(3);
    gateway.shard.set_peers(&[client.as_peer(false), other.as_peer(false)]);
    for source in [other.inner, Ipv4Addr::new(8, 8, 8, 8), gateway.inner] {
        client.sends_packet(now, &mut packet(source, gateway.inner, 1));
    }
    let datagrams = client.made.take_datagrams();
    assert_eq!(datagrams.len(), 3);
    gateway.receives(now, client.address, &datagrams);
    assert_eq!(gateway.numbers(), [0; 0]);
    assert_eq!(gateway.stats(&client).dropped, 3);
}

#[test]
fn a_peer_that_stays_keeps_its_session_and_one_that_goes_is_cut_at_once() {
    let (now, mut client, mut gateway) = connected();
    let other = End::new(3);
    gateway.shard.set_peers(&[other.as_peer(false), client.as_peer(false)]);
    client.sends(now, &gateway, 1);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [1]);

    gateway.shard.set_peers(&[other.as_peer(false)]);
    client.sends(now, &gateway, 2);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [1]);
    assert_eq!(gateway.board.snapshot().len(), 1);

    // Another peer in the same place does not understand the old session.
    gateway.shard.set_peers(&[other.as_peer(false), End::new(4).as_peer(false)]);
    client.sends(now, &gateway, 3);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [1]);
}

#[test]
fn another_preshared_key_ends_the_session() {
    let (now, mut client, mut gateway) = connected();
    let with_key =
        PeerConfig { preshared_key: Some(PresharedKey::from_bytes([7; 32])), ..client.as_peer(false) };
    gateway.shard.set_peers(&[with_key]);
    client.sends(now, &gateway, 1);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [0; 0]);

    let with_key =
        PeerConfig { preshared_key: Some(PresharedKey::from_bytes([7; 32])), ..gateway.as_peer(true) };
    client.shard.set_peers(&[with_key]);
    client.sends(now, &gateway, 2);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [2]);
}

#[test]
fn a_configured_endpoint_gives_way_to_another_but_a_learnt_one_stays() {
    let (now, mut client, mut gateway) = pair();
    let elsewhere = End::new(9).address;
    let moved = |end: &End| PeerConfig { endpoints: vec![elsewhere], ..end.as_peer(false) };
    client.shard.set_peers(&[moved(&gateway)]);
    client.shard.commit();
    assert_eq!(client.stats(&gateway).endpoint, Some(elsewhere));
    client.knows(&gateway, true);
    client.sends(now, &gateway, 1);
    exchange(now, &mut client, &mut gateway);
    client.shard.set_peers(&[moved(&gateway)]);
    client.shard.commit();
    assert_eq!(client.stats(&gateway).endpoint, Some(gateway.address));
}

#[test]
fn the_owners_choice_of_endpoint_is_proved_by_a_handshake_there() {
    let (now, mut client, gateway) = connected();
    let elsewhere = End::new(9).address;
    client.shard.use_endpoint(now, &gateway.key, elsewhere, &mut client.made);
    let (to, message) = client.made.datagrams.pop().unwrap();
    assert_eq!((to, Message::parse(&message)), (elsewhere, Some(Message::Initiation)));
}

#[test]
fn idle_peers_have_no_near_deadline() {
    let (now, mut client, mut gateway) = connected();
    // The owed keepalive is the last of it.
    let at = gateway.shard.poll_timeout().unwrap();
    assert_eq!(at, now + Duration::from_secs(10));
    gateway.shard.handle_timeout(at, &mut gateway.made);
    gateway.shard.commit();
    assert_eq!(gateway.made.datagrams.len(), 1);
    exchange(at, &mut client, &mut gateway);
    for end in [&mut client, &mut gateway] {
        assert!(end.shard.poll_timeout().unwrap() >= now + Duration::from_mins(3));
        while let Some(at) = end.shard.poll_timeout() {
            end.shard.handle_timeout(at, &mut end.made);
            end.shard.commit();
        }
        assert!(end.made.datagrams.is_empty(), "the end of the keys is silent");
    }
}

#[test]
fn an_unanswered_initiation_is_given_up_and_told_and_its_packets_are_dropped() {
    let (start, mut client, gateway) = pair();
    client.sends(start, &gateway, 1);
    let mut last = start;
    while let Some(at) = client.shard.poll_timeout() {
        assert!(at > last, "time moves on");
        last = at;
        client.shard.handle_timeout(at, &mut client.made);
        client.shard.commit();
    }
    assert_eq!(last, start + Duration::from_secs(90));
    assert!(client.made.datagrams.len() >= 17);
    assert_eq!(client.made.events, [TunnelEvent::HandshakeTimedOut { peer: gateway.key }]);
    assert_eq!((client.stats(&gateway).dropped, client.shard.common.waiting), (1, 0));
    // The next packet begins anew.
    let before = client.made.datagrams.len();
    client.sends(last, &gateway, 2);
    assert_eq!(client.made.datagrams.len(), before + 1);
}

#[test]
fn an_attempt_ends_when_the_endpoint_is_taken_away() {
    let (start, mut client, gateway) = pair();
    client.sends(start, &gateway, 1);
    client.made = Made::default();
    client.knows(&gateway, false);
    let at = client.shard.poll_timeout().unwrap();
    client.shard.handle_timeout(at, &mut client.made);
    client.shard.commit();
    assert_eq!(client.shard.poll_timeout(), None);
    assert!(client.made.datagrams.is_empty());
}

/// What the first packet for an idle peer costs where its handshake is lost on the way: a part of a second, not five.
#[test]
fn an_initiation_that_is_lost_while_data_waits_is_soon_sent_again() {
    let (idle, mut client, mut gateway) = connected();
    // Keys cannot be made to age here.
    let other = PrivateKey::generate().unwrap();
    client.shard.set_identity(idle, &other);
    client.key = other.public();
    gateway.knows(&client, false);
    client.sends(idle, &gateway, 7);
    assert_eq!(client.made.take_datagrams().len(), 1, "lost");
    let retry = client.shard.poll_timeout().unwrap();
    assert!(retry <= idle + Duration::from_millis(400), "{:?}", retry - idle);
    client.shard.handle_timeout(retry, &mut client.made);
    client.shard.commit();
    exchange(retry, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [7]);
}

#[test]
fn retries_of_many_peers_are_spread() {
    let now = Instant::now();
    let mut client = End::new(2);
    let gateways: Vec<End> = (10..110).map(End::new).collect();
    client.shard.set_peers(&gateways.iter().map(|gateway| gateway.as_peer(true)).collect::<Vec<_>>());
    for gateway in &gateways {
        client.sends(now, gateway, 1);
    }
    let deadlines: std::collections::BTreeSet<Instant> =
        client.shard.deadlines.iter().map(|&(at, _)| at).collect();
    assert!(deadlines.len() > 90, "{} different times for 100 peers", deadlines.len());
    let spread = *deadlines.last().unwrap() - *deadlines.first().unwrap();
    assert!(spread > Duration::from_millis(200), "{spread:?}");
}

#[test]
fn packets_that_wait_are_bounded_in_all_and_released_with_their_peer() {
    let now = Instant::now();
    let mut client = End::new(2);
    let gateway = End::new(1);
    client.knows(&gateway, true);
    for number in 0..100 {
        client.sends(now, &gateway, number);
    }
    assert_eq!(client.shard.common.waiting, 16);
    assert_eq!(client.stats(&gateway).dropped, 84);
    client.shard.set_peers(&[]);
    assert_eq!(client.shard.common.waiting, 0);
}

#[test]
fn many_sources_of_valid_initiations_are_challenged_and_a_cookie_lets_one_in() {
    let (now, mut client, mut gateway) = pair();
    let mut stranger = End::new(7);
    stranger.knows(&gateway, true);
    for _ in 0..200 {
        stranger.shard.handshake(now, &gateway.key, &mut stranger.made);
    }
    // Behind the same address as the client, as behind one NAT.
    let flood = stranger.made.take_datagrams();
    gateway.receives(now, client.address, &flood);
    assert!(gateway.shard.discards.challenged >= 90);
    gateway.made.datagrams.clear();

    client.sends(now, &gateway, 1);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [0; 0], "only a cookie came back");
    let retry = client.shard.poll_timeout().unwrap();
    client.shard.handle_timeout(retry, &mut client.made);
    // At the same time as the flood, so that no allowance has grown back.
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [1]);
}

#[test]
fn a_probe_crosses_the_tunnel_and_its_answer_ends_there() {
    let (now, mut client, mut gateway) = connected();
    let probe = Probe { from: client.inner.into(), to: gateway.inner.into(), id: 42 };
    client.shard.probe(now, &gateway.key, &probe, &mut client.made);
    exchange(now, &mut client, &mut gateway);
    let mut answer = gateway.made.packets.pop().unwrap();
    let (source, destination) = (client.inner.octets(), gateway.inner.octets());
    answer[12..16].copy_from_slice(&destination);
    answer[16..20].copy_from_slice(&source);
    answer[20] = 0;
    for n in 0..2 {
        let later = now + Duration::from_millis(30);
        gateway.sends_packet(later, &mut answer.clone());
        exchange(later, &mut client, &mut gateway);
        let answered =
            client.made.events.iter().filter(|event| matches!(event, TunnelEvent::ProbeAnswered { .. }));
        assert_eq!(answered.count(), 1, "answer {n}");
    }
    let rtt = Duration::from_millis(30);
    assert!(client.made.events.contains(&TunnelEvent::ProbeAnswered { peer: gateway.key, id: 42, rtt }));
    assert!(client.made.packets.is_empty());
}

/// What can come from the network: noise of any size, noise that looks like a message, and real messages,
/// damaged, cut, or lengthened.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..300);
    let large = (any::<u8>(), 0_usize..70_000).prop_map(|(byte, length)| vec![byte; length]);
    let dressed =
        (1_u8..=4, prop_oneof![Just(148_usize), Just(92), Just(64), 32_usize..2000], any::<[u8; 8]>())
            .prop_map(|(kind, length, bytes)| {
                let mut datagram = vec![0x5a; length];
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                // Small indexes, which belong to sessions.
                datagram[4..8].copy_from_slice(&[bytes[0] % 12, 0, bytes[1] % 3, 0]);
                datagram[8..16].copy_from_slice(&bytes);
                datagram
            });
    prop_oneof![noise, large, dressed]
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Lengthen(u16),
    Repeat,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        (0_u16..2000).prop_map(Damage::Lengthen),
        Just(Damage::Repeat),
    ]
}

impl Damage {
    fn to(&self, message: &[u8]) -> Vec<u8> {
        let length = message.len();
        let mut message = message.to_vec();
        match self {
            Self::Flip(at, bits) => message[at.index(length)] ^= bits,
            Self::Cut(at) => message.truncate(at.index(length)),
            Self::Lengthen(by) => message.resize(length + usize::from(*by), 0),
            Self::Repeat => {}
        }
        message
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_datagram_stops_a_gateway_or_moves_its_client(
        noise in prop::collection::vec(hostile(), 0..40),
        damages in prop::collection::vec(damage(), 0..40),
    ) {
        let (now, mut client, mut gateway) = pair();
        let attacker: SocketAddr = "203.0.113.66:666".parse().unwrap();
        // Real messages of all kinds, each delivered before it is abused.
        let mut seen = Vec::new();
        client.sends(now, &gateway, 1);
        loop {
            let there = client.made.take_datagrams();
            gateway.receives(now, client.address, &there);
            let back = gateway.made.take_datagrams();
            if there.is_empty() && back.is_empty() {
                break;
            }
            client.receives(now, gateway.address, &back);
            seen.extend(there.into_iter().chain(back));
        }
        let damaged = damages.iter().enumerate().map(|(n, damage)| damage.to(&seen[n % seen.len()]));
        let all: Vec<_> = noise.into_iter().chain(damaged).collect();
        let delivered = gateway.numbers();
        gateway.receives(now, attacker, &all);
        client.receives(now, attacker, &all);
        prop_assert_eq!(gateway.numbers(), delivered.clone());
        prop_assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
        prop_assert_eq!(client.stats(&gateway).endpoint, Some(gateway.address));
        client.made.datagrams.clear();
        gateway.made.datagrams.clear();
        client.sends(now, &gateway, 2);
        exchange(now, &mut client, &mut gateway);
        prop_assert_eq!(gateway.numbers().len(), delivered.len() + 1);
    }

    #[test]
    fn no_inner_packet_stops_a_tunnel(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..30),
        version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
    ) {
        let (now, mut client, mut gateway) = connected();
        for mut packet in packets {
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            if let Some(destination) = packet.get_mut(16..20) {
                destination.copy_from_slice(&gateway.inner.octets());
            }
            client.sends_packet(now, &mut packet);
        }
        exchange(now, &mut client, &mut gateway);
        client.sends(now, &gateway, 77);
        exchange(now, &mut client, &mut gateway);
        prop_assert_eq!(gateway.made.packets.last().map(|packet| packet[20]), Some(77));
    }
}

#[test]
fn a_large_set_of_peers_is_taken_without_work_for_each_on_the_curve() {
    let now = Instant::now();
    let mut gateway = End::new(1);
    let configs: Vec<_> = (0..20_000_u32)
        .map(|n| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&n.to_le_bytes());
            PeerConfig {
                public_key: PublicKey::from_bytes(key),
                preshared_key: None,
                allowed_ips: vec![IpAddr::from(Ipv4Addr::from(0x0a40_0000 + n)).into()],
                endpoints: Vec::new(),
                destinations: None,
            }
        })
        .collect();
    gateway.shard.set_peers(&configs);
    assert!(gateway.shard.peers.iter().flatten().all(|peer| !peer.has_tunn()));
    // Nor for what claims to be a message of a session.
    let mut message = vec![0; 64];
    message[0] = 4;
    message[6..8].copy_from_slice(&5_u16.to_le_bytes());
    gateway.receives(now, "192.0.2.9:9".parse().unwrap(), &[message]);
    assert!(gateway.shard.peers.iter().flatten().all(|peer| !peer.has_tunn()));
}
