//! One key on two machines that are at two replicas.

use pinhole_proto::v1::{ClientReport, ObjectRef, Phase};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// How often a replica tells of everything.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Who speaks for a machine.
#[derive(Clone, Copy, PartialEq)]
enum Agent {
    /// Nobody: stock WireGuard.
    Stock,
    /// One that does not say which process it is.
    Older,
    /// The process of this number.
    Process(u8),
}

fn gateway() -> GatewayKey {
    GatewayKey::new("vpn", "edge")
}

/// One machine: where it is, and which process of an agent holds its session, if one does.
#[derive(Clone, Copy)]
struct Machine {
    endpoint: &'static str,
    agent: Agent,
}

const ONE: Machine = Machine { endpoint: "198.51.100.9:4500", agent: Agent::Process(1) };
const TWO: Machine = Machine { endpoint: "203.0.113.5:4501", agent: Agent::Process(2) };

/// Two replicas, with clocks that are far apart, and what they heard of one client.
struct World {
    start: Instant,
    now: Instant,
    fleet: Arc<Fleet>,
    replicas: [Attachment; 2],
    heard: [Option<(Machine, Instant)>; 2],
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let fleet = Fleet::new(now);
        let replicas = ["edge-0", "edge-1"].map(|name| fleet.attached(&gateway(), name, 0, now));
        Self { start: now, now, fleet, replicas, heard: [None, None] }
    }

    fn hear(&mut self, replica: usize, machine: Machine) {
        self.heard[replica] = Some((machine, self.now));
    }

    fn report(&self, replica: usize) {
        let Some((machine, at)) = self.heard[replica] else { return };
        // The second one's clock is a minute ahead.
        let clock = |at: Instant| {
            let elapsed =
                at.saturating_duration_since(self.start) + SECOND * 60 * u32::try_from(replica).unwrap();
            Some((std::time::UNIX_EPOCH + SECOND * 1_000_000 + elapsed).into())
        };
        let instance = match machine.agent {
            Agent::Process(process) => vec![process; 16],
            Agent::Stock | Agent::Older => Vec::new(),
        };
        let report = ClientReport {
            client: Some(ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() }),
            phase: Phase::Connected.into(),
            endpoint: machine.endpoint.into(),
            last_receive: clock(at),
            session: machine.agent != Agent::Stock,
            instance,
            ..ClientReport::default()
        };
        let report = GatewayReport {
            clients: vec![report],
            full: true,
            sent_at: clock(self.now),
            ..GatewayReport::default()
        };
        self.replicas[replica].report(report, self.now);
    }

    /// So many seconds pass. `at` says which machine is where at which second; each sends five packets a second.
    fn run(&mut self, seconds: u32, at: impl Fn(u32) -> [Option<Machine>; 2]) -> Option<Duration> {
        let begun = self.now;
        let mut named = None;
        for tick in 0..seconds * 5 {
            for (replica, machine) in at(tick / 5).into_iter().enumerate() {
                if let Some(machine) = machine {
                    let is_new = self.heard[replica].is_none();
                    self.hear(replica, machine);
                    if is_new {
                        self.report(replica);
                    }
                }
                // One tells in the middle between two words of the other.
                if (tick + 12 * u32::try_from(replica).unwrap()) % 25 == 0 {
                    self.report(replica);
                }
            }
            if tick % 5 == 0 {
                self.fleet.handle_timeout(self.now);
            }
            self.now += SECOND / 5;
            if named.is_none() && self.shared().is_some() {
                named = Some(self.now - begun);
            }
        }
        named
    }

    fn shared(&self) -> Option<SharedKey> {
        self.fleet.client(&gateway(), "u", None, self.now).shared
    }
}

#[test]
fn two_machines_at_two_replicas_are_named_within_ten_seconds_with_both_places_and_once() {
    for (one, two) in
        [(ONE, TWO), (Machine { agent: Agent::Stock, ..ONE }, Machine { agent: Agent::Stock, ..TWO })]
    {
        let mut world = World::new();
        world.run(7, |_| [Some(one), None]);
        std::mem::take(&mut world.fleet.lock().changes);
        let named = world.run(30, |_| [Some(one), Some(two)]).expect("it is named");
        assert!(named <= SECOND * 10, "{named:?}");
        let places = world.shared().unwrap().places.map(|place| (place.replica, place.endpoint.unwrap()));
        let expected = [("edge-0", one.endpoint), ("edge-1", two.endpoint)];
        assert_eq!(places, expected.map(|(replica, endpoint)| (replica.to_owned(), endpoint.to_owned())));
        let told = [Change::Client(ClientKey::new("vpn", "laptop")), Change::Peers(gateway())];
        assert!(told.iter().all(|change| world.fleet.lock().changes.contains(change)));
        assert_eq!(world.fleet.shared_keys(&gateway()), BTreeSet::from(["u".to_owned()]));
        world.run(200, |_| [Some(one), None]);
        assert!(world.shared().is_some(), "the other one may only be quiet");
        std::mem::take(&mut world.fleet.lock().changes);
        world.run(120, |_| [Some(one), None]);
        assert_eq!(world.shared(), None);
        assert!(told.iter().all(|change| world.fleet.lock().changes.contains(change)));
        assert!(world.fleet.shared_keys(&gateway()).is_empty());
    }
}

#[test]
fn two_idle_stock_machines_with_a_usual_keepalive_are_named() {
    let mut world = World::new();
    let (one, two) = (Machine { agent: Agent::Stock, ..ONE }, Machine { agent: Agent::Stock, ..TWO });
    let named =
        world.run(180, |second| [(second % 25 == 0).then_some(one), (second % 25 == 11).then_some(two)]);
    assert!(named.is_some());
}

#[test]
fn a_client_that_moves_fails_over_or_comes_back_is_one_machine() {
    for agent in [ONE.agent, Agent::Stock] {
        let (here, there) = (Machine { agent, ..ONE }, Machine { agent, endpoint: "198.51.100.9:4501" });
        let mut world = World::new();
        // To the other replica, back to the first when that one fails, and to the other once more.
        let named = world.run(200, |second| match second {
            0..40 | 80..120 => [Some(here), None],
            _ => [None, Some(there)],
        });
        assert_eq!(named, None);
    }
}

#[test]
fn an_agent_that_tries_its_gateways_in_turn_is_one_machine_however_often() {
    // Its session stands with one of them, with none, or with both.
    let elsewhere = |agent| Machine { agent, endpoint: "203.0.113.5:4501" };
    for (one, other) in [
        (ONE, elsewhere(ONE.agent)),
        (ONE, elsewhere(Agent::Stock)),
        (Machine { agent: Agent::Older, ..ONE }, elsewhere(Agent::Older)),
    ] {
        let mut world = World::new();
        let named = world.run(300, |second| match second % 6 {
            0..3 => [Some(one), None],
            _ => [None, Some(other)],
        });
        assert_eq!(named, None);
    }
}

#[test]
fn one_socket_that_two_replicas_hear_is_one_machine() {
    let mut world = World::new();
    let named = world.run(60, |_| [Some(Machine { agent: Agent::Stock, ..ONE }); 2]);
    assert_eq!(named, None);
}

#[test]
fn a_word_that_was_late_is_no_return() {
    let mut world = World::new();
    world.run(7, |_| [Some(ONE), None]);
    let left = world.now;
    world.run(4, |_| [None, Some(TWO)]);
    // What the first one heard before the move is told after it.
    world.heard[0] = Some((ONE, left));
    world.report(0);
    world.run(60, |_| [None, Some(TWO)]);
    assert_eq!(world.fleet.lock().shared_keys.values().map(SharedKeys::entries).sum::<usize>(), 0);
}

#[test]
fn a_replica_that_does_not_say_when_it_sent_a_word_is_not_judged() {
    let mut world = World::new();
    for _ in 0..60 {
        for (replica, machine) in [ONE, TWO].into_iter().enumerate() {
            world.hear(replica, machine);
            let client = ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() };
            let elapsed = world.now.saturating_duration_since(world.start);
            let last_receive = Some((std::time::UNIX_EPOCH + elapsed).into());
            let clients =
                vec![ClientReport { client: Some(client), last_receive, ..ClientReport::default() }];
            world.replicas[replica].report(GatewayReport { clients, ..GatewayReport::default() }, world.now);
        }
        world.now += HEARTBEAT;
    }
    assert_eq!(world.shared(), None);
}

#[test]
fn what_is_remembered_ends_with_the_client() {
    let mut world = World::new();
    world.run(30, |_| [Some(ONE), Some(TWO)]);
    assert!(world.shared().is_some());
    world.fleet.forget_client(&gateway(), "u");
    assert_eq!(world.shared(), None);
}
