//! What of a peer's packets gets through to the TUN device, where its destinations are limited.

use std::{net::Ipv4Addr, num::NonZeroU8, sync::Arc};

use super::{
    tests::{End, exchange, packet},
    *,
};
use crate::tunnel::{Destinations, Inside, Refusal};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What a pool's clients may reach of a gateway at 10.9.0.1.
fn open_to(routes: &[&str]) -> Arc<Destinations> {
    let inside = Inside {
        addresses: vec![Ipv4Addr::new(10, 9, 0, 1).into()],
        clients: vec!["10.9.0.0/24".parse().unwrap()],
    };
    let routes = routes.iter().map(|route| route.parse().unwrap());
    Arc::new(Destinations::new(Arc::new(inside)).with_routes(routes))
}

/// A client that believes that it reaches everything.
fn greedy(n: u8, private_key: PrivateKey, gateway: &End) -> End {
    let mut client = End::with(n, private_key, ShardId::ALONE);
    let everything = vec!["0.0.0.0/0".parse().unwrap()];
    client.shard.set_peers(&[PeerConfig { allowed_ips: everything, ..gateway.as_peer(true) }]);
    client.shard.commit();
    client
}

fn limited(client: &End, destinations: &Arc<Destinations>) -> PeerConfig {
    PeerConfig { destinations: Some(Arc::clone(destinations)), ..client.as_peer(false) }
}

fn refused(gateway: &End, client: &End) -> [u64; 6] {
    let refused = gateway.stats(client).refused;
    Refusal::ALL.map(|why| refused.of(why))
}

#[test]
fn a_packet_to_where_no_route_leads_is_never_written_and_is_counted() {
    let now = Instant::now();
    let mut gateway = End::new(1);
    let mut client = greedy(2, PrivateKey::generate().unwrap(), &gateway);
    gateway.shard.set_peers(&[limited(&client, &open_to(&["192.0.2.80/32"]))]);
    let destinations = [
        METADATA,
        Ipv4Addr::new(10, 9, 0, 3),
        gateway.inner,
        Ipv4Addr::new(10, 96, 0, 1),
        Ipv4Addr::new(192, 0, 2, 81),
        SERVER,
        Ipv4Addr::LOCALHOST,
    ];
    for (number, to) in (1..).zip(destinations) {
        client.sends_packet(now, &mut packet(client.inner, to, number));
        exchange(now, &mut client, &mut gateway);
    }
    assert_eq!(gateway.numbers(), [6], "the server's alone");
    assert_eq!(refused(&gateway, &client), [0, 1, 1, 1, 1, 2]);
    let stats = gateway.stats(&client);
    assert_eq!((stats.received.packets, stats.dropped), (1, 0));
}

#[test]
fn who_only_sends_what_is_refused_is_there_all_the_same() {
    let now = Instant::now();
    let mut gateway = End::new(1);
    let mut client = greedy(2, PrivateKey::generate().unwrap(), &gateway);
    gateway.shard.set_peers(&[limited(&client, &open_to(&[]))]);
    client.sends_packet(now, &mut packet(client.inner, SERVER, 1));
    exchange(now, &mut client, &mut gateway);
    assert!(gateway.made.packets.is_empty());
    assert!(gateway.stats(&client).has_session, "its session is confirmed");
    assert_eq!(gateway.stats(&client).last_data, Some(now));
    gateway.sends(now, &client, 2);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [2]);
}

#[test]
fn a_change_of_routes_holds_from_the_next_packet_on_and_sessions_stay() {
    let now = Instant::now();
    let mut gateway = End::new(1);
    let mut client = greedy(2, PrivateKey::generate().unwrap(), &gateway);
    let mut number = 0;
    let mut send = |gateway: &mut End, destinations: Option<Arc<Destinations>>| {
        number += 1;
        gateway.shard.set_peers(&[PeerConfig { destinations, ..client.as_peer(false) }]);
        client.sends_packet(now, &mut packet(client.inner, SERVER, number));
        exchange(now, &mut client, gateway);
        gateway.numbers()
    };
    assert_eq!(send(&mut gateway, Some(open_to(&["192.0.2.0/24"]))), [1]);
    assert_eq!(send(&mut gateway, Some(open_to(&["198.51.100.0/24"]))), [1]);
    assert_eq!(send(&mut gateway, Some(open_to(&["0.0.0.0/0"]))), [1, 3]);
    assert_eq!(send(&mut gateway, Some(open_to(&[]))), [1, 3]);
    assert_eq!(send(&mut gateway, None), [1, 3, 5]);
    let handshakes = gateway.made.events.iter();
    let handshakes = handshakes.filter(|event| matches!(event, TunnelEvent::HandshakeCompleted { .. }));
    assert_eq!(handshakes.count(), 1);
}

#[test]
fn the_peers_of_every_shard_are_held_to_the_same() {
    let now = Instant::now();
    let private_key = PrivateKey::generate().unwrap();
    let of = NonZeroU8::new(3).unwrap();
    let mut shards: Vec<_> = ShardId::all(of).map(|place| End::with(1, private_key.clone(), place)).collect();
    // One at each shard.
    let mut clients: Vec<_> = (0..3)
        .map(|n| {
            let key = std::iter::repeat_with(|| PrivateKey::generate().unwrap())
                .find(|key| key.public().as_bytes()[0] % 3 == n);
            greedy(10 + n, key.unwrap(), &shards[0])
        })
        .collect();
    let destinations = open_to(&["192.0.2.80/32"]);
    let peers: Vec<_> = clients.iter().map(|client| limited(client, &destinations)).collect();
    for (shard, client) in shards.iter_mut().zip(&mut clients) {
        shard.shard.set_peers(&peers);
        // Of these, the other clients are peers of other shards.
        for (number, to) in (1..).zip([SERVER, METADATA, Ipv4Addr::new(10, 9, 0, 11), SERVER]) {
            client.sends_packet(now, &mut packet(client.inner, to, number));
            exchange(now, client, shard);
        }
        assert_eq!(shard.numbers(), [1, 4]);
        assert_eq!(refused(shard, client), [0, 1, 0, 0, 1, 0]);
    }
}
