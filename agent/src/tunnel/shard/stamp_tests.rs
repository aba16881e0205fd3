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
    gateway.shard.settle();
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
