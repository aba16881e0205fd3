//! A gateway's shard and a client that has let its binding go.

use std::time::Duration;

use super::{
    tests::{End, Made, connected, exchange},
    *,
};

const AFTER: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

/// A client that was silent for longer than its binding lives.
fn asleep() -> (Instant, End, End) {
    let (now, mut client, mut gateway) = connected();
    gateway.shard.hold_after(&client.key, Some(AFTER));
    let now = now + AFTER + MS;
    for end in [&mut client, &mut gateway] {
        pass(now, end);
        end.made = Made::default();
    }
    (now, client, gateway)
}

fn held(made: &mut Made) -> Vec<Box<[u8]>> {
    let held = |event| match event {
        TunnelEvent::Held { initiation, .. } => Some(initiation),
        _ => None,
    };
    std::mem::take(&mut made.events).into_iter().filter_map(held).collect()
}

fn wake(now: Instant, client: &mut End, gateway: &End, initiation: &[u8]) {
    client.shard.take_initiation(now, &gateway.key, initiation, &mut client.made);
    client.shard.commit();
}

/// Lets time pass until nothing is due before `until`.
fn pass(until: Instant, end: &mut End) {
    while let Some(at) = end.shard.poll_timeout().filter(|at| *at <= until) {
        end.shard.handle_timeout(at, &mut end.made);
        end.shard.commit();
    }
}

#[test]
fn packets_to_a_sleeper_are_held_until_it_answers_what_came_by_other_means() {
    let (now, mut client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    gateway.sends(now, &client, 2);
    assert!(gateway.made.datagrams.is_empty(), "nothing is sent where nobody hears");
    let initiations = held(&mut gateway.made);
    assert_eq!(initiations.len(), 1);
    let before = client.stats(&gateway);
    wake(now, &mut client, &gateway, &initiations[0]);
    assert_eq!(client.stats(&gateway).last_receive, before.last_receive, "nobody came by UDP yet");
    // One round trip: the answer there, what was held back.
    let answer = client.made.take_datagrams();
    assert_eq!(answer.len(), 1);
    gateway.receives(now, client.address, &answer);
    let released = gateway.made.take_datagrams();
    client.receives(now, gateway.address, &released);
    assert_eq!(client.numbers(), [1, 2]);
    gateway.sends(now, &client, 3);
    exchange(now, &mut client, &mut gateway);
    assert_eq!((client.numbers(), gateway.shard.common.held), (vec![1, 2, 3], 0));
}

#[test]
fn they_go_to_where_it_is_now() {
    let (now, mut client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    let initiations = held(&mut gateway.made);
    wake(now, &mut client, &gateway, &initiations[0]);
    client.address.set_port(4);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [1]);
    assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again() {
    let (now, mut client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    let first = held(&mut gateway.made);
    wake(now, &mut client, &gateway, &first[0]);
    client.made = Made::default();
    let later = now + MS * 250;
    pass(later, &mut gateway);
    let second = held(&mut gateway.made);
    assert_eq!(second.len(), 1);
    wake(later, &mut client, &gateway, &second[0]);
    exchange(later, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [1]);
}

#[test]
fn a_long_round_trip_still_counts() {
    let (now, mut client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    pass(now + MS * 599, &mut gateway);
    let initiations = held(&mut gateway.made);
    assert_eq!(initiations.len(), 2);
    wake(now, &mut client, &gateway, &initiations[1]);
    pass(now + MS * 1199, &mut gateway);
    exchange(now + MS * 1199, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [1]);
}

#[test]
fn who_does_not_come_costs_four_calls_and_the_packet_and_no_datagram_ever() {
    let (now, client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    pass(now + Duration::from_mins(10), &mut gateway);
    let given_up = gateway.made.events.iter().any(|event| matches!(event, TunnelEvent::NotWoken { .. }));
    assert!(given_up);
    assert_eq!(held(&mut gateway.made).len(), 4);
    assert!(gateway.made.datagrams.is_empty());
    assert_eq!((gateway.stats(&client).dropped, gateway.shard.common.held), (1, 0));
}

#[test]
fn a_sleeper_that_has_something_to_say_gets_what_is_held() {
    let (now, mut client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    client.sends(now, &gateway, 9);
    exchange(now, &mut client, &mut gateway);
    assert_eq!((gateway.numbers(), client.numbers()), (vec![9], vec![1]));
}

#[test]
fn who_was_seen_lately_is_sent_to() {
    let (now, mut client, mut gateway) = asleep();
    client.sends(now, &gateway, 9);
    exchange(now, &mut client, &mut gateway);
    let later = now + MS * 2500;
    client.sends(later, &gateway, 9);
    exchange(later, &mut client, &mut gateway);
    gateway.sends(later + AFTER, &client, 1);
    assert!(held(&mut gateway.made).is_empty());
    exchange(later + AFTER, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [1]);
}

#[test]
fn what_is_no_initiation_of_the_peer_wakes_nobody() {
    let (now, mut client, mut gateway) = asleep();
    let mut stranger = End::new(3);
    stranger.knows(&client, true);
    stranger.sends(now, &client, 1);
    let foreign = stranger.made.take_datagrams().remove(0);
    gateway.sends(now, &client, 1);
    let own = held(&mut gateway.made).remove(0);
    wake(now, &mut client, &gateway, &foreign);
    wake(now, &mut client, &gateway, &[]);
    wake(now, &mut client, &gateway, &own[..100]);
    wake(now, &mut client, &gateway, &[4; 200]);
    assert!(client.made.take_datagrams().is_empty());
    wake(now, &mut client, &gateway, &own);
    assert_eq!(client.made.take_datagrams().len(), 1);
    wake(now, &mut client, &gateway, &own);
    assert!(client.made.take_datagrams().is_empty(), "replayed");
}

#[test]
fn what_is_held_goes_with_its_peer() {
    let (now, client, mut gateway) = asleep();
    gateway.sends(now, &client, 1);
    assert!(gateway.shard.common.held > 0);
    gateway.shard.set_peers(&[]);
    assert_eq!(gateway.shard.common.held, 0);
}

#[test]
fn a_crowd_of_sleepers_is_woken_at_a_pace() {
    let now = Instant::now();
    let mut gateway = End::new(1);
    let clients: Vec<_> = (0..1200_u32)
        .map(|n| {
            let inner = std::net::Ipv4Addr::from(0x0a00_0100 + n);
            let public_key = crate::tunnel::PrivateKey::generate().unwrap().public();
            let allowed_ips = vec![std::net::IpAddr::from(inner).into()];
            let config = PeerConfig {
                public_key,
                preshared_key: None,
                allowed_ips,
                endpoints: Vec::new(),
                destinations: None,
            };
            (inner, config)
        })
        .collect();
    gateway.shard.set_peers(&clients.iter().map(|(_, peer)| peer.clone()).collect::<Vec<_>>());
    for (inner, peer) in &clients {
        gateway.shard.hold_after(&peer.public_key, Some(AFTER));
        let mut packet = super::tests::packet(gateway.inner, *inner, 1);
        gateway.sends_packet(now, &mut packet);
    }
    gateway.shard.commit();
    assert!((490..=500).contains(&held(&mut gateway.made).len()));
    pass(now + MS * 1999, &mut gateway);
    assert!(held(&mut gateway.made).len() <= 2000);
    assert_eq!(gateway.shard.common.held, 1200 * 85);
    pass(now + MS * 2000, &mut gateway);
    assert_eq!(gateway.shard.common.held, 0);
}
