//! Beats between a client's shard and a gateway's.

use std::{net::SocketAddr, time::Duration};

use super::{
    tests::{End, Made, connected, exchange},
    *,
};
use crate::nat::{
    Beat, Channel, Wake,
    wire::{Answer, BaitHash, Cookie, Echo, KeyId, decode_answer, encode_beat},
};

pub(super) const BAIT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 1);
const MS: Duration = Duration::from_millis(1);

struct Pair {
    now: Instant,
    client: End,
    gateway: End,
    key: BeatKey,
    seq: u64,
}

impl Pair {
    fn new() -> Self {
        let (now, client, gateway) = connected();
        let mut pair = Pair { now, client, gateway, key: key(1), seq: 0 };
        pair.give(key(1));
        pair
    }

    fn give(&mut self, key: BeatKey) {
        self.gateway.shard.add_beat_key(self.now, self.client.key, key.clone(), Role::Answer);
        self.client.shard.add_beat_key(self.now, self.gateway.key, key.clone(), Role::Hear);
        self.key = key;
    }

    fn beat(&mut self, channel: Channel, wake: Option<Duration>, cookie: Cookie) -> Vec<u8> {
        self.seq += 1;
        encode_beat(&self.key, &Beat { channel, seq: self.seq, wake }, cookie, BAIT)
    }

    /// Shows the gateway a datagram. What comes back.
    fn show(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.gateway.receives(self.now, from, &[datagram.to_vec()]);
        std::mem::take(&mut self.gateway.made.datagrams)
    }

    /// A beat and its reply.
    fn ask(&mut self, from: SocketAddr, channel: Channel, wake: Option<Duration>, cookie: Cookie) -> Echo {
        let beat = self.beat(channel, wake, cookie);
        let answers = self.show(from, &beat);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, from);
        assert!(answers[0].1.len() <= beat.len(), "no amplification");
        match decode_answer(&self.key, &answers[0].1) {
            Some(Answer::Reply(echo)) => echo,
            other => panic!("no reply but {other:?}"),
        }
    }

    /// Lets the gateway's deadlines pass until `end`. What it sent, and when.
    fn wait(&mut self, end: Instant) -> Vec<(Instant, SocketAddr, Answer)> {
        let mut sent = Vec::new();
        while let Some(at) = self.gateway.shard.poll_timeout().filter(|at| *at <= end) {
            self.now = at;
            self.gateway.shard.handle_timeout(at, &mut self.gateway.made);
            self.gateway.shard.commit();
            for (to, datagram) in std::mem::take(&mut self.gateway.made.datagrams) {
                sent.extend(decode_answer(&self.key, &datagram).map(|answer| (at, to, answer)));
            }
        }
        self.now = end;
        sent
    }

    fn counts(&self) -> crate::tunnel::BeatCounts {
        self.gateway.board.counts().1
    }
}

pub(super) fn key(n: u8) -> BeatKey {
    BeatKey::new(KeyId(n.into()), &[n; 32])
}

fn elsewhere() -> SocketAddr {
    "198.51.100.7:7".parse().unwrap()
}

#[test]
fn a_beat_is_answered_from_wherever_it_comes_and_moves_no_endpoint() {
    let mut pair = Pair::new();
    let here = pair.client.address;
    pair.now += Duration::from_secs(20);
    let echo = pair.ask(here, Channel::Live, None, Cookie::default());
    assert!(echo.reply.is_endpoint && echo.reply.observed == here && !echo.is_meddled_with(BAIT));
    let echo = pair.ask(elsewhere(), Channel::Live, None, Cookie::default());
    assert!(!echo.reply.is_endpoint && echo.reply.observed == elsewhere());
    let stats = pair.gateway.stats(&pair.client);
    assert_eq!((stats.endpoint, stats.endpoint_changes), (Some(here), 0));
    assert_eq!((stats.last_receive, stats.last_beat), (Some(pair.now), Some(pair.now)));
    assert!(stats.last_data < stats.last_beat);
    assert!(pair.gateway.made.events.contains(&TunnelEvent::FirstReceive {
        peer: pair.client.key,
        silence: Some(Duration::from_secs(20)),
    }));
    assert_eq!(pair.gateway.made.moves(), 0);
    // An authenticated packet does move it, and the gap is told from when the old place was last heard.
    pair.now += Duration::from_secs(3);
    pair.client.shard.keepalive(pair.now, &pair.gateway.key, &mut pair.client.made);
    let datagrams = pair.client.made.take_datagrams();
    pair.gateway.receives(pair.now, elsewhere(), &datagrams);
    let session = Message::parse(&datagrams[0]).and_then(Message::receiver);
    assert!(session.is_some());
    assert!(pair.gateway.made.events.contains(&TunnelEvent::EndpointChanged {
        peer: pair.client.key,
        from: Some(here),
        to: elsewhere(),
        idle: Some(Duration::from_secs(3)),
        session,
    }));
}

#[test]
fn what_is_forged_replayed_or_of_nobody_gets_no_answer_and_proves_nothing() {
    let mut pair = Pair::new();
    let before = pair.gateway.stats(&pair.client);
    pair.now += Duration::from_secs(1);
    let good = pair.beat(Channel::Live, None, Cookie::default());
    let mut forged = good.clone();
    forged[20] ^= 1;
    let mut unknown = good.clone();
    unknown[7] ^= 1;
    let from = elsewhere();
    for datagram in [&forged, &unknown, &good[..87].to_vec(), &vec![0x80], &vec![0xff; 88]] {
        assert_eq!(pair.show(from, datagram), []);
    }
    assert_eq!(pair.gateway.stats(&pair.client), before);
    assert_eq!(pair.show(from, &good).len(), 1);
    assert_eq!(pair.show(from, &good), [], "once is enough");
    let counts = pair.counts();
    assert_eq!((counts.answered, counts.forged, counts.unknown_key), (1, 1, 1));
    assert_eq!((counts.replayed, counts.malformed), (1, 3));
    // The gateway's own words are none of the client's.
    let reply = wire::encode_wake(&pair.key, Wake { channel: Channel::Live, seq: 9 });
    assert_eq!(pair.show(from, &reply), []);
    assert!(pair.gateway.made.events.iter().all(|event| !matches!(event, TunnelEvent::BeatAnswered { .. })));
}

#[test]
fn a_wake_comes_three_times_at_its_exact_time_where_its_sender_is_known_to_receive() {
    let mut pair = Pair::new();
    let (socket, channel, delay) = (elsewhere(), Channel::Probe(4), Duration::from_secs(30));
    let echo = pair.ask(socket, channel, Some(delay), Cookie::default());
    assert_eq!(pair.wait(pair.now + delay * 2), [], "nothing was proven yet");
    assert_eq!(pair.counts().unproven, 1);

    let start = pair.now;
    // The cookie is another address'.
    pair.ask(pair.client.address, channel, Some(delay), echo.cookie);
    assert_eq!(pair.counts().unproven, 2);
    pair.ask(socket, channel, Some(delay), echo.cookie);
    let wake = Answer::Wake(Wake { channel, seq: pair.seq });
    let due = start + delay;
    let sent = pair.wait(start + delay * 2);
    assert_eq!(sent, [0, 200, 500].map(|ms| (due + MS * ms, socket, wake)));
    assert_eq!(pair.counts().wakes_unanswered, 0, "a probe's silence is no news");
}

#[test]
fn another_beat_of_the_channel_takes_the_place_of_the_wake_asked_for_before() {
    let mut pair = Pair::new();
    let (socket, delay) = (elsewhere(), Duration::from_secs(10));
    let cookie = pair.ask(socket, Channel::Live, None, Cookie::default()).cookie;
    let start = pair.now;
    pair.ask(socket, Channel::Live, Some(delay), cookie);
    pair.ask(socket, Channel::Probe(1), Some(delay * 3), cookie);
    assert_eq!(pair.wait(start + delay + MS * 300).len(), 2);
    pair.ask(socket, Channel::Live, None, cookie);
    let sent = pair.wait(start + delay * 2);
    assert_eq!(sent, []);
    assert_eq!(pair.wait(start + delay * 4).len(), 3, "the other channel's");
    assert_eq!(pair.counts().wakes_unanswered, 0);

    // One that was overtaken on the way changes nothing.
    let late = pair.beat(Channel::Live, None, cookie);
    pair.ask(socket, Channel::Live, Some(delay), cookie);
    assert_eq!(pair.show(socket, &late).len(), 1);
    assert_eq!(pair.wait(pair.now + delay * 2).len(), 3);
}

#[test]
fn a_live_channel_that_does_not_wake_up_is_told() {
    let mut pair = Pair::new();
    let here = pair.client.address;
    let cookie = pair.ask(here, Channel::Live, None, Cookie::default()).cookie;
    pair.ask(here, Channel::Live, Some(Duration::from_secs(5)), cookie);
    let told = TunnelEvent::WakeUnanswered { peer: pair.client.key };
    pair.wait(pair.now + Duration::from_millis(6900));
    assert!(!pair.gateway.made.events.contains(&told));
    pair.wait(pair.now + Duration::from_millis(200));
    assert!(pair.gateway.made.events.contains(&told));
    assert_eq!(pair.counts().wakes_unanswered, 1);

    // Data is a sign of life as well.
    pair.ask(here, Channel::Live, Some(Duration::from_secs(5)), cookie);
    pair.wait(pair.now + Duration::from_millis(5100));
    pair.client.shard.keepalive(pair.now, &pair.gateway.key, &mut pair.client.made);
    let datagrams = pair.client.made.take_datagrams();
    pair.gateway.receives(pair.now, here, &datagrams);
    pair.wait(pair.now + Duration::from_secs(5));
    assert_eq!(pair.counts().wakes_unanswered, 1);
}

#[test]
fn answers_and_pending_wakes_of_one_client_are_bounded() {
    let mut pair = Pair::new();
    let socket = elsewhere();
    let cookie = pair.ask(socket, Channel::Live, None, Cookie::default()).cookie;
    for n in 0..100 {
        let beat = pair.beat(Channel::Probe(n), Some(Duration::from_secs(9)), cookie);
        assert_eq!(pair.show(socket, &beat).len(), usize::from(n < 64));
    }
    assert_eq!(pair.counts().crowded, 36);
    for n in 0..400 {
        let beat = pair.beat(Channel::Probe(n), None, cookie);
        pair.show(socket, &beat);
    }
    let counts = pair.counts();
    assert_eq!((counts.answered, counts.limited), (364, 101));
    pair.now += Duration::from_secs(1);
    pair.ask(socket, Channel::Live, None, cookie);
    // No wake is later than the longest.
    pair.wait(pair.now + Duration::from_secs(10));
    pair.ask(socket, Channel::Live, Some(Beat::LONGEST_WAKE * 2), cookie);
    assert_eq!(pair.wait(pair.now + Beat::LONGEST_WAKE + Duration::from_secs(3)).len(), 3);
}

#[test]
fn two_keys_are_good_and_a_peer_that_is_gone_leaves_none_behind() {
    let mut pair = Pair::new();
    let socket = elsewhere();
    pair.give(key(2));
    pair.key = key(1);
    let cookie = pair.ask(socket, Channel::Live, None, Cookie::default()).cookie;
    pair.give(key(3));
    pair.ask(socket, Channel::Live, Some(Duration::from_mins(1)), cookie);
    pair.key = key(1);
    let old = pair.beat(Channel::Live, None, cookie);
    assert_eq!(pair.show(socket, &old), []);

    pair.gateway.shard.set_peers(&[]);
    pair.key = key(3);
    let orphan = pair.beat(Channel::Live, None, cookie);
    assert_eq!(pair.show(socket, &orphan), []);
    assert_eq!(pair.gateway.shard.poll_timeout(), None);
    assert_eq!(pair.counts().unknown_key, 2);
    pair.give(key(4));
    let stranger = pair.beat(Channel::Live, None, cookie);
    assert_eq!(pair.show(socket, &stranger), [], "a key for nobody opens nothing");
}

#[test]
fn a_client_hears_answers_on_its_own_socket_and_nothing_else() {
    let mut pair = Pair::new();
    let beat = pair.beat(Channel::Live, None, Cookie::default());
    pair.client.shard.send_datagram(&pair.gateway.key, &beat, &mut pair.client.made);
    exchange(pair.now, &mut pair.client, &mut pair.gateway);
    let heard: Vec<_> = std::mem::take(&mut pair.client.made.events);
    let [TunnelEvent::BeatAnswered { peer, at, answer: Answer::Reply(echo) }] = heard.as_slice() else {
        panic!("{heard:?}");
    };
    assert_eq!((*peer, *at, echo.reply.seq), (pair.gateway.key, pair.now, pair.seq));
    assert_eq!((echo.reply.observed, echo.bait), (pair.client.address, BaitHash::of(BAIT)));
    assert_eq!(pair.client.stats(&pair.gateway).last_beat, Some(pair.now));

    let stranger = wire::encode_wake(&key(9), Wake { channel: Channel::Live, seq: 1 });
    for datagram in [stranger, beat, vec![0x80; 36], vec![0x82; 36]] {
        pair.client.receives(pair.now, pair.gateway.address, &[datagram]);
    }
    assert_eq!(pair.client.made.events, []);
    assert!(pair.client.made.datagrams.is_empty(), "a client answers nobody");
}

proptest::proptest! {
    #[test]
    fn whatever_comes_costs_no_more_than_it_brought(
        datagrams in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 1..120), 1..50),
    ) {
        let mut pair = Pair::new();
        pair.gateway.made = Made::default();
        for mut datagram in datagrams {
            datagram[0] |= 0x80;
            let answers = pair.show(elsewhere(), &datagram);
            proptest::prop_assert!(answers.is_empty());
        }
    }
}

#[test]
fn a_client_that_goes_to_sleep_is_not_woken_by_udp_and_one_that_beats_again_is_not_held() {
    let mut pair = Pair::new();
    let from = pair.client.address;
    let cookie = pair.ask(from, Channel::Live, None, Cookie::default()).cookie;
    pair.ask(from, Channel::Live, Some(MS * 1000), cookie);
    let sleeper = pair.client.key;
    pair.gateway.shard.hold_after(&sleeper, Some(MS * 500));
    pair.now += MS * 5000;
    pair.gateway.shard.handle_timeout(pair.now, &mut pair.gateway.made);
    assert!(pair.gateway.made.datagrams.is_empty() && pair.gateway.made.events.is_empty());
    pair.gateway.sends(pair.now, &pair.client, 1);
    assert!(matches!(pair.gateway.made.events.as_slice(), [TunnelEvent::Held { .. }]));
    pair.gateway.made = Made::default();
    pair.ask(from, Channel::Live, Some(MS * 1000), cookie);
    pair.now += MS * 900;
    pair.gateway.sends(pair.now, &pair.client, 2);
    assert!(!pair.gateway.made.datagrams.is_empty());
}
