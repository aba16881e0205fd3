//! Shards that serve one tunnel together, where everything comes to any of them.

use std::num::NonZeroU8;

use super::{
    beat_tests::{BAIT, key},
    tests::{End, packet},
    *,
};
use crate::nat::{Beat, Channel, wire::Cookie};

const SHARDS: u8 = 3;

/// A gateway of several shards, and clients of which each shard has some.
struct World {
    now: Instant,
    gateway: Vec<End>,
    clients: Vec<End>,
}

impl World {
    fn new() -> Self {
        let private_key = PrivateKey::generate().unwrap();
        let of = NonZeroU8::new(SHARDS).unwrap();
        let mut gateway: Vec<_> =
            ShardId::all(of).map(|place| End::with(1, private_key.clone(), place)).collect();
        let mut clients = Vec::new();
        // Two at each shard.
        for n in 0..2 * SHARDS {
            let key = std::iter::repeat_with(|| PrivateKey::generate().unwrap());
            let is_of = |key: &PrivateKey| key.public().as_bytes()[0] % SHARDS == n % SHARDS;
            let mut client = End::with(10 + n, key.into_iter().find(is_of).unwrap(), ShardId::ALONE);
            client.knows(&gateway[0], true);
            clients.push(client);
        }
        let peers: Vec<_> = clients.iter().map(|client| client.as_peer(false)).collect();
        for shard in &mut gateway {
            shard.shard.set_peers(&peers);
            shard.shard.commit();
        }
        Self { now: Instant::now(), gateway, clients }
    }

    /// Carries all between a client and the gateway, to whose shards datagrams come in turns from this one on.
    fn exchange(&mut self, client: usize, mut at: usize) {
        loop {
            let there = self.clients[client].made.take_datagrams();
            let address = self.clients[client].address;
            for datagram in &there {
                at = (at + 1) % self.gateway.len();
                self.gateway[at].receives(self.now, address, std::slice::from_ref(datagram));
                self.hand_over();
            }
            let back: Vec<_> =
                self.gateway.iter_mut().flat_map(|shard| shard.made.take_datagrams()).collect();
            if there.is_empty() && back.is_empty() {
                return;
            }
            let gateway = self.gateway[0].address;
            self.clients[client].receives(self.now, gateway, &back);
        }
    }

    fn hand_over(&mut self) {
        for from in 0..self.gateway.len() {
            for (to, stray) in std::mem::take(&mut self.gateway[from].made.handed) {
                assert_ne!(usize::from(to), from);
                let end = &mut self.gateway[usize::from(to)];
                match stray {
                    Misdelivered::Datagram(path, datagram) => {
                        end.shard.handle_datagram(self.now, path, &datagram, &mut end.made);
                    }
                    Misdelivered::Initiation(caller) => end.shard.take_caller(self.now, caller),
                    Misdelivered::Frame(mut packet) => end.sends_packet(self.now, &mut packet),
                }
                while end.shard.answer_next(self.now, &mut end.made) {}
                end.shard.commit();
                assert!(end.made.handed.is_empty(), "what was handed over is at home");
            }
        }
    }

    /// The kernel gives a packet to any of the shards.
    fn gateway_sends(&mut self, at: usize, client: usize, number: u8) {
        let mut packet = packet(self.gateway[0].inner, self.clients[client].inner, number);
        let end = &mut self.gateway[at];
        match end.shard.elsewhere(&packet) {
            Some(other) => end.made.handed.push((other, Misdelivered::Frame(packet))),
            None => end.sends_packet(self.now, &mut packet),
        }
        end.shard.commit();
        self.hand_over();
    }
}

#[test]
fn peers_are_served_wherever_their_datagrams_and_packets_come_in() {
    let mut world = World::new();
    for client in 0..world.clients.len() {
        for at in 0..world.gateway.len() {
            let number = u8::try_from(client * 10 + at).unwrap();
            let now = world.now;
            world.clients[client].sends(now, &world.gateway[0], number);
            world.exchange(client, at);
            world.gateway_sends(at, client, number);
            world.exchange(client, at);
            let home = &world.gateway[client % 3];
            assert_eq!(home.numbers().last(), Some(&number));
            assert_eq!(world.clients[client].numbers().last(), Some(&number));
        }
        assert_eq!(world.clients[client].numbers().len(), 3);
    }
    for (number, shard) in world.gateway.iter().enumerate() {
        assert_eq!(shard.made.packets.len(), 6, "shard {number}");
        let stats = shard.board.snapshot();
        assert_eq!(stats.len(), 2, "each peer has its figures at one shard");
        assert!(
            stats.iter().all(|stats| stats.has_session && stats.received.packets == 3 && stats.dropped == 0)
        );
    }
}

#[test]
fn a_peer_cannot_speak_for_one_of_another_shard() {
    let mut world = World::new();
    let (now, stranger) = (world.now, world.clients[1].inner);
    world.clients[0].sends(now, &world.gateway[0], 1);
    world.exchange(0, 0);
    let mut forged = packet(stranger, world.gateway[0].inner, 2);
    world.clients[0].sends_packet(now, &mut forged);
    world.exchange(0, 0);
    assert_eq!(world.gateway[0].numbers(), [1]);
    let received: usize = world.gateway.iter().map(|shard| shard.made.packets.len()).sum();
    assert_eq!(received, 1);
    assert_eq!(world.gateway[0].stats(&world.clients[0]).dropped, 1);
}

#[test]
fn a_beat_is_answered_by_the_shard_of_its_peer_and_by_nobody_once_the_peer_is_gone() {
    let mut world = World::new();
    let key = key(1);
    let (now, peer) = (world.now, world.clients[1].key);
    for shard in &mut world.gateway {
        shard.shard.add_beat_key(now, peer, key.clone(), Role::Answer);
    }
    for (seq, at) in [(1, 0), (2, 1), (3, 2)] {
        let beat = Beat { channel: Channel::Live, seq, wake: None };
        let datagram = wire::encode_beat(&key, &beat, Cookie::default(), BAIT);
        let from = world.clients[1].address;
        world.gateway[at].receives(now, from, std::slice::from_ref(&datagram));
        world.hand_over();
        let answers = world.gateway[1].made.take_datagrams().len();
        let all: usize = world.gateway.iter_mut().map(|shard| shard.made.take_datagrams().len()).sum();
        assert_eq!((answers, all), (1, 0), "beat {seq}");
        // It was here before, and comes again to each of them.
        for at in 0..world.gateway.len() {
            world.gateway[at].receives(now, from, std::slice::from_ref(&datagram));
            world.hand_over();
        }
        assert!(world.gateway[1].made.take_datagrams().is_empty());
    }
    for shard in &mut world.gateway {
        shard.shard.set_peers(&[]);
        let beat = Beat { channel: Channel::Live, seq: 9, wake: None };
        shard.receives(
            now,
            world.clients[1].address,
            &[wire::encode_beat(&key, &beat, Cookie::default(), BAIT)],
        );
        assert!(shard.made.take_datagrams().is_empty() && shard.made.handed.is_empty());
        assert_eq!(shard.board.counts().1.unknown_key, 1);
    }
}

#[test]
fn an_index_of_a_shard_that_does_not_exist_is_nobodys() {
    let mut world = World::new();
    let mut datagram = [0; 64];
    datagram[0] = 4;
    datagram[5] = SHARDS;
    let (now, from) = (world.now, world.clients[0].address);
    world.gateway[0].receives(now, from, &[datagram.to_vec()]);
    assert!(world.gateway[0].made.handed.is_empty());
    assert_eq!(world.gateway[0].board.counts().0.unknown_peer, 1);
}
