//! Handshakes whose stamps are not in order, and clocks that are set meanwhile.

use super::{
    tests::{End, connected, exchange, pair},
    *,
};
use crate::clock::JUMP;

fn told_stale(gateway: &End, client: &End) -> usize {
    let stale = TunnelEvent::Stale { peer: client.key };
    gateway.made.events.iter().filter(|event| **event == stale).count()
}

fn put_clock_forward(end: &mut End, by: Duration) {
    end.shard.peers.iter_mut().flatten().for_each(|peer| peer.put_clock_forward(by));
}

#[test]
fn an_initiation_that_is_not_new_is_told_and_counted_and_taken_once_all_before_is_forgotten() {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 1);
    let initiation = client.made.take_datagrams();
    gateway.receives(now, client.address, &initiation);
    assert_eq!((gateway.made.take_datagrams().len(), told_stale(&gateway, &client)), (1, 0));

    gateway.receives(now, client.address, &initiation);
    assert_eq!(
        (gateway.made.take_datagrams().len(), told_stale(&gateway, &client)),
        (0, 0),
        "delivered twice"
    );
    let now = now + Duration::from_secs(2);
    gateway.receives(now, client.address, &initiation);
    assert_eq!((gateway.made.take_datagrams().len(), told_stale(&gateway, &client)), (0, 1));
    assert_eq!(gateway.board.counts().0.stale, 2);

    gateway.shard.begin_anew(&client.key);
    gateway.receives(now, client.address, &initiation);
    assert_eq!((gateway.made.take_datagrams().len(), told_stale(&gateway, &client)), (1, 1));
}

#[test]
fn what_nobody_who_holds_the_key_has_made_is_not_called_old() {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 1);
    let mut initiation = client.made.take_datagrams();
    gateway.receives(now, client.address, &initiation);
    initiation[0][100] ^= 1;
    gateway.receives(now + Duration::from_mins(1), client.address, &initiation);
    assert_eq!((told_stale(&gateway, &client), gateway.board.counts().0.stale), (0, 0));
}

#[test]
fn who_begins_anew_has_no_session_and_the_next_handshake_makes_one() {
    let (now, mut client, mut gateway) = connected();
    gateway.shard.begin_anew(&client.key);
    gateway.shard.commit();
    assert!(!gateway.stats(&client).has_session);
    client.shard.handshake(now, &gateway.key, &mut client.made);
    exchange(now, &mut client, &mut gateway);
    client.sends(now, &gateway, 2);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(gateway.numbers(), [2]);
}

#[test]
fn a_call_over_the_session_that_is_too_old_is_answered_by_a_handshake_of_ones_own() {
    let (now, mut client, mut gateway) = pair();
    client.shard.handshake(now, &gateway.key, &mut client.made);
    exchange(now, &mut client, &mut gateway);
    gateway.shard.handshake(now, &client.key, &mut gateway.made);
    let initiation = gateway.made.take_datagrams().remove(0);
    client.shard.take_initiation(now, &gateway.key, &initiation, &mut client.made);
    let is_initiation = |datagrams: Vec<Vec<u8>>| Message::is_initiation(&datagrams[0]);
    assert!(!is_initiation(client.made.take_datagrams()), "the first time it is answered");
    let now = now + Duration::from_secs(2);
    client.shard.take_initiation(now, &gateway.key, &initiation, &mut client.made);
    assert!(is_initiation(client.made.take_datagrams()));
}

#[test]
fn a_clock_that_was_behind_and_is_corrected_is_followed_with_the_next_attempt() {
    for (by, answered) in [(JUMP / 2, true), (JUMP * 2, false), (Duration::from_hours(1), false)] {
        let (now, mut client, mut gateway) = pair();
        client.sends(now, &gateway, 1);
        let first = client.made.take_datagrams();
        put_clock_forward(&mut client, by);
        client.shard.handshake(now, &gateway.key, &mut client.made);
        let second = client.made.take_datagrams();
        gateway.receives(now, client.address, &first);
        let late = gateway.made.take_datagrams();
        client.receives(now, gateway.address, &late);
        assert_eq!(
            client.stats(&gateway).has_session,
            answered,
            "by what began before the clock gained {by:?}"
        );
        gateway.receives(now, client.address, &second);
        exchange(now, &mut client, &mut gateway);
        assert_eq!(gateway.numbers(), [1]);
    }
}

#[test]
fn a_session_that_stands_is_not_given_up_for_a_clock() {
    let (now, mut client, mut gateway) = connected();
    put_clock_forward(&mut client, Duration::from_hours(1));
    client.shard.handshake(now, &gateway.key, &mut client.made);
    client.made.take_datagrams();
    gateway.sends(now, &client, 7);
    exchange(now, &mut client, &mut gateway);
    assert_eq!(client.numbers(), [7], "by the keys of before");
}

/// An initiation of a client whose clock went back afterwards: it made it before the one by which it is connected.
fn connected_with_an_older_initiation() -> (Instant, End, End, Vec<Vec<u8>>) {
    let (now, mut client, mut gateway) = pair();
    client.sends(now, &gateway, 0);
    let older = client.made.take_datagrams();
    client.shard.handshake(now, &gateway.key, &mut client.made);
    exchange(now, &mut client, &mut gateway);
    gateway.made = super::tests::Made::default();
    client.made = super::tests::Made::default();
    (now + Duration::from_secs(2), client, gateway, older)
}

#[test]
fn a_client_whose_clock_went_back_is_called_where_it_is_and_answers() {
    let (now, mut client, mut gateway, older) = connected_with_an_older_initiation();
    gateway.shard.call_back(&client.key, &mut gateway.made);
    assert!(gateway.made.take_datagrams().is_empty(), "nobody came");
    // It started anew meanwhile, behind another address.
    client.address = (std::net::Ipv4Addr::new(192, 0, 2, 77), 4500).into();
    gateway.receives(now, client.address, &older);
    assert_eq!((gateway.made.take_datagrams().len(), told_stale(&gateway, &client)), (0, 1));
    let before = gateway.stats(&client).endpoint;
    gateway.shard.call_back(&client.key, &mut gateway.made);
    gateway.shard.commit();
    assert_eq!(gateway.stats(&client).endpoint, before, "it follows an answer alone");
    exchange(now, &mut client, &mut gateway);
    let called = TunnelEvent::HandshakeCompleted { peer: client.key, initiated: true };
    assert!(gateway.made.events.contains(&called), "{:?}", gateway.made.events);
    assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
    client.sends(now, &gateway, 5);
    gateway.sends(now, &client, 6);
    exchange(now, &mut client, &mut gateway);
    assert_eq!((gateway.numbers(), client.numbers()), (vec![5], vec![6]));
    gateway.shard.call_back(&client.key, &mut gateway.made);
    assert!(gateway.made.take_datagrams().is_empty(), "it is called once");
}

#[test]
fn who_plays_an_old_initiation_back_gets_one_that_it_cannot_answer_and_takes_nothing() {
    let (now, mut client, mut gateway, older) = connected_with_an_older_initiation();
    let thief = (std::net::Ipv4Addr::new(203, 0, 113, 66), 1).into();
    for second in 0..30 {
        let now = now + Duration::from_secs(second);
        gateway.receives(now, thief, &older);
        gateway.shard.call_back(&client.key, &mut gateway.made);
        let sent = gateway.made.take_datagrams();
        assert!(sent.iter().map(Vec::len).sum::<usize>() <= older[0].len(), "no more than came");
        gateway.shard.commit();
        assert_eq!(gateway.stats(&client).endpoint, Some(client.address));
        client.sends(now, &gateway, 7);
        exchange(now, &mut client, &mut gateway);
        gateway.sends(now, &client, 8);
        exchange(now, &mut client, &mut gateway);
    }
    assert_eq!((gateway.numbers(), client.numbers()), (vec![7; 30], vec![8; 30]), "the session goes on");
    // Nothing older is taken than before.
    gateway.receives(now + Duration::from_mins(1), thief, &older);
    assert!(gateway.made.take_datagrams().is_empty());
}

#[test]
fn a_client_that_was_taken_away_and_is_given_again_may_come_with_any_stamp() {
    let (now, client, mut gateway, older) = connected_with_an_older_initiation();
    gateway.receives(now, client.address, &older);
    assert!(gateway.made.take_datagrams().is_empty());
    gateway.shard.set_peers(&[]);
    gateway.shard.commit();
    gateway.knows(&client, false);
    gateway.receives(now, client.address, &older);
    assert_eq!(gateway.made.take_datagrams().len(), 1);
}
