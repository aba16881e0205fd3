//! Clients without an agent behind NATs that forget, in virtual time.

use proptest::prelude::*;

use super::*;
use crate::{Cause, Confidence};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(40);

fn key() -> u8 {
    7
}

/// A client of WireGuard behind a NAT, in virtual time.
struct World {
    now: Instant,
    clients: StockClients<u8>,
    /// Lifetime of a mapping without traffic. Inbound packets refresh it too.
    lifetime: Duration,
    preserves_ports: bool,
    /// The client's own interval.
    keepalive: Option<Duration>,
    /// One of so many packets is lost.
    loses: u64,
    packets: u64,
    counters: Counters,
    mapped_until: Option<Instant>,
    port: u16,
    next_keepalive: Option<Instant>,
    wakes: u64,
}

impl World {
    fn new(lifetime: u64, keepalive: Option<u64>) -> Self {
        let now = Instant::now();
        let mut clients = StockClients::new();
        clients.handle_clients(now, &HashSet::from([key()]));
        let mut world = World {
            now,
            clients,
            lifetime: Duration::from_secs(lifetime),
            preserves_ports: true,
            keepalive: keepalive.map(Duration::from_secs),
            loses: u64::MAX,
            packets: 0,
            counters: Counters::default(),
            mapped_until: None,
            port: 1000,
            next_keepalive: None,
            wakes: 0,
        };
        world.send();
        world
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], self.port))
    }

    fn lost(&mut self) -> bool {
        self.packets += 1;
        self.packets.is_multiple_of(self.loses)
    }

    /// The client sends something by itself.
    fn send(&mut self) {
        let alive = self.mapped_until.is_some_and(|until| self.now < until);
        if !alive && self.mapped_until.is_some() && !self.preserves_ports {
            self.port += 1;
        }
        self.mapped_until = Some(self.now + self.lifetime);
        self.next_keepalive = self.keepalive.map(|interval| self.now + interval);
        if !self.lost() {
            self.receive(false);
        }
    }

    fn receive(&mut self, handshake: bool) {
        let (from, to) = (self.counters.endpoint, self.address());
        let idle = self.counters.last_receive.map(|last| self.now - last);
        if let (Some(from), Some(idle)) = (from.filter(|from| *from != to), idle) {
            self.clients.handle_moved(self.now, &key(), (from, to), idle);
        }
        self.counters.endpoint = Some(to);
        self.counters.last_receive = Some(self.now);
        if handshake {
            self.counters.last_handshake = Some(self.now);
        }
        self.clients.handle_counters(self.now, &key(), self.counters);
    }

    /// The gateway sends a handshake initiation; the client answers if it arrives.
    fn wake(&mut self) {
        self.wakes += 1;
        self.counters.last_send = Some(self.now);
        let alive = self.mapped_until.is_some_and(|until| self.now < until);
        let arrives = alive && !self.lost();
        self.clients.handle_counters(self.now, &key(), self.counters);
        if !arrives {
            return;
        }
        self.mapped_until = Some(self.now + self.lifetime);
        self.next_keepalive = self.keepalive.map(|interval| self.now + interval);
        if !self.lost() {
            self.now += RTT;
            self.receive(true);
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timeout = self.clients.poll_timeout();
            let next = [timeout, self.next_keepalive].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at < end) else { break };
            self.now = next.max(self.now + MS);
            if self.next_keepalive.is_some_and(|at| self.now >= at) {
                self.send();
            }
            if self.clients.handle_timeout(self.now).is_some() {
                self.wake();
            }
        }
        self.now = end;
    }

    fn nat_state(&self) -> NatState<'_> {
        self.clients.nat_state(&key()).unwrap()
    }

    fn recommended(&self) -> Option<u64> {
        self.nat_state().recommendation.map(|recommendation| recommendation.interval.as_secs())
    }
}

#[test]
fn a_client_that_was_never_heard_is_never_woken_and_nothing_is_recommended() {
    let mut clients = StockClients::new();
    clients.handle_clients(Instant::now(), &HashSet::from([key()]));
    assert_eq!(clients.poll_timeout(), None);
    assert_eq!(clients.nat_state(&key()).unwrap().recommendation, None);
    assert_eq!(clients.nat_state(&key()).unwrap().binding.confidence, Confidence::Unknown);
}

#[test]
fn an_interval_that_mappings_survive_is_left_as_it_is() {
    let mut world = World::new(180, Some(25));
    world.run(SECOND * 1800);
    let nat_state = world.nat_state();
    assert!(nat_state.interval.unwrap().abs_diff(SECOND * 25) < SECOND, "{nat_state:?}");
    assert!(nat_state.binding.at_least >= SECOND * 23, "{nat_state:?}");
    assert_eq!(nat_state.binding.less_than, None);
    assert_eq!(world.recommended(), Some(25));
    assert!(world.wakes < 30, "{} wakes", world.wakes);
}

#[test]
fn a_mapping_that_dies_within_the_interval_is_seen_although_the_port_stays() {
    let mut world = World::new(15, Some(25));
    world.run(SECOND * 1800);
    let nat_state = world.nat_state();
    assert!(nat_state.binding.at_least < SECOND * 15, "{nat_state:?}");
    assert!(nat_state.binding.less_than.is_some_and(|end| end > SECOND * 14), "{nat_state:?}");
    assert!(nat_state.churn.count(Cause::MappingLost) > 0);
    assert!(world.recommended().is_some_and(|seconds| (9..15).contains(&seconds)), "{nat_state:?}");
}

#[test]
fn a_port_that_changes_with_every_keepalive_shows_the_same() {
    let mut world = World { preserves_ports: false, ..World::new(15, Some(25)) };
    world.run(SECOND * 1800);
    let nat_state = world.nat_state();
    assert!(nat_state.churn.count(Cause::MappingChanged) > 0);
    assert!(world.recommended().is_some_and(|seconds| (5..15).contains(&seconds)), "{nat_state:?}");
}

#[test]
fn a_client_without_keepalives_is_woken_at_growing_ages_and_recommended_less_than_an_unpromoted_lifetime() {
    let mut world = World::new(120, None);
    world.run(SECOND * 3600);
    let nat_state = world.nat_state();
    assert!(nat_state.binding.at_least >= SECOND * 70, "{nat_state:?}");
    assert_eq!(nat_state.interval, None);
    assert_eq!(world.recommended(), Some(25));
}

#[test]
fn a_client_that_sleeps_once_does_not_make_its_mapping_short() {
    let mut world = World::new(600, Some(25));
    world.run(SECOND * 300);
    let next = world.next_keepalive.take();
    assert!(next.is_some());
    // Asleep: neither keepalives nor answers.
    world.mapped_until = Some(world.now);
    world.run(SECOND * 400);
    world.send();
    assert_eq!(world.nat_state().binding.less_than, None);
}

#[test]
fn another_address_is_a_roam_after_which_all_is_learnt_anew() {
    let mut world = World::new(15, Some(25));
    world.run(SECOND * 900);
    let to = SocketAddr::from(([203, 0, 113, 9], 5000));
    world.clients.handle_moved(world.now, &key(), (world.address(), to), SECOND);
    let nat_state = world.nat_state();
    assert_eq!(nat_state.churn.last().unwrap().cause, Cause::Roam);
    assert_eq!(nat_state.binding, Binding::default());
    assert_eq!(nat_state.recommendation, None);
}

#[test]
fn a_client_that_got_an_agent_or_went_is_forgotten() {
    let mut world = World::new(60, None);
    world.clients.handle_clients(world.now, &HashSet::new());
    assert_eq!(world.clients.poll_timeout(), None);
    assert!(world.clients.nat_state(&key()).is_none());
}

#[test]
fn wakes_of_many_clients_are_spread() {
    let now = Instant::now();
    let mut clients = StockClients::new();
    let keys: HashSet<_> = (0..20).collect();
    clients.handle_clients(now, &keys);
    let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 1000)));
    for key in &keys {
        let counters = Counters { endpoint, last_receive: Some(now), ..Counters::default() };
        clients.handle_counters(now, key, counters);
    }
    let mut wakes = Vec::new();
    while wakes.len() < 20 {
        let at = clients.poll_timeout().unwrap();
        wakes.extend(clients.handle_timeout(at).map(|_| at));
    }
    assert!(wakes.windows(2).all(|pair| pair[1] - pair[0] >= SPACING));
}

#[test]
fn evidence_that_contradicts_itself_is_not_gathered_for_ever() {
    let mut world = World { preserves_ports: false, loses: 20, ..World::new(16, Some(18)) };
    world.run(SECOND * 3600);
    let first = world.wakes;
    assert!(first < 400, "{first} wakes");
    world.run(SECOND * 3600);
    assert!(world.wakes - first <= 180, "{} more", world.wakes - first);
}

#[test]
fn a_keepalive_that_got_lost_is_no_longer_silence() {
    let mut world = World { loses: 20, ..World::new(85, Some(87)) };
    for _ in 0..3600 {
        world.run(SECOND);
        let Some(interval) = world.nat_state().interval else { continue };
        assert!(world.nat_state().binding.at_least <= interval, "{:?}", world.nat_state());
        assert!(world.recommended().is_none_or(|seconds| seconds < 85), "{:?}", world.nat_state());
    }
}

/// Another machine with the same key, elsewhere: its first packet looks like a client that went to another network.
#[test]
fn what_was_learnt_before_a_second_machine_came_with_the_same_key_is_known_after_it_too() {
    let mut world = World::new(40, None);
    world.run(Duration::from_mins(30));
    let known = |world: &World| {
        let nat_state = world.clients.nat_state(&key()).unwrap();
        (nat_state.binding.at_least, nat_state.binding.less_than, nat_state.recommendation)
    };
    let before = known(&world);
    assert!(before.0 > SECOND * 20 && before.2.is_some(), "{before:?}");
    let (here, there) = (world.address(), SocketAddr::from(([198, 51, 100, 9], 1)));
    world.clients.remember(&key());
    for (n, at) in [there, here, there, here, there].into_iter().enumerate() {
        world.now += SECOND * 6;
        let from = if at == here { there } else { here };
        let moved = Counters { endpoint: Some(at), last_receive: Some(world.now), ..world.counters };
        world.clients.handle_moved(world.now, &key(), (from, at), SECOND * 6);
        world.clients.handle_counters(world.now, &key(), moved);
        if n == 2 {
            assert_ne!(known(&world), before, "so far it was a move");
            world.clients.set_aside(world.now, &key(), true);
        }
    }
    assert_eq!(known(&world), before);
    assert_eq!(world.clients.poll_timeout(), None, "it is not woken either");
    world.clients.set_aside(world.now, &key(), false);
    world.send();
    world.run(Duration::from_mins(10));
    assert!(known(&world).0 >= before.0 && known(&world).0 < Duration::from_secs(41), "{:?}", known(&world));
}

proptest! {
    #[test]
    fn what_is_recommended_never_lets_a_mapping_die(
        lifetime in 10u64..700, keepalive in proptest::option::of(9u64..120), preserves_ports: bool, loses in 20u64..200
    ) {
        let mut world = World { preserves_ports, loses, ..World::new(lifetime, keepalive) };
        world.run(SECOND * 3600);
        if let Some(seconds) = world.recommended() {
            // Its own interval is proven but for the last moments before it.
            let holds = matches!(world.nat_state().recommendation.unwrap().why, Why::Holds { .. });
            prop_assert!(seconds < lifetime + if holds { 2 } else { 0 }, "{seconds} s of {lifetime} s");
            prop_assert!((1..=65_535).contains(&seconds));
        }
        prop_assert!(world.wakes < 400, "{} wakes", world.wakes);
    }

    #[test]
    fn a_survived_silence_was_survived(lifetime in 10u64..300, keepalive in proptest::option::of(9u64..120)) {
        let mut world = World::new(lifetime, keepalive);
        world.run(SECOND * 7200);
        prop_assert!(world.nat_state().binding.at_least < Duration::from_secs(lifetime));
        prop_assert!(world.nat_state().binding.less_than.is_none_or(|end| end >= Duration::from_secs(lifetime)));
    }
}
