//! A NAT of every kind, and what is told of it from one vantage and from four.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::{Class, PortAllocation};

const PUBLIC: [u8; 4] = [198, 51, 100, 7];
const RTT: Duration = Duration::from_millis(40);

fn at(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], port))
}

fn vantages(addresses: &[SocketAddr]) -> Vec<Vantage> {
    let vantage = |&address: &SocketAddr| Vantage {
        address,
        answers_from: addresses.iter().copied().filter(|other| *other != address).collect(),
    };
    addresses.iter().map(vantage).collect()
}

/// A NAT as RFC 4787 describes them.
#[derive(Debug, Clone)]
struct Nat {
    mapping: Option<Mapping>,
    filtering: Filtering,
    ports: PortAllocation,
    hairpin: bool,
    altered: bool,
    router: Option<IpAddr>,
    deaf: Vec<SocketAddr>,
    lost: HashSet<usize>,
    table: HashMap<(u32, Option<IpAddr>, Option<u16>), u16>,
    contacted: HashMap<u32, Vec<SocketAddr>>,
    sent: usize,
}

impl Nat {
    fn new(mapping: Mapping, filtering: Filtering, ports: PortAllocation) -> Self {
        Nat {
            mapping: Some(mapping),
            filtering,
            ports,
            hairpin: false,
            altered: false,
            router: None,
            deaf: Vec::new(),
            lost: HashSet::new(),
            table: HashMap::new(),
            contacted: HashMap::new(),
            sent: 0,
        }
    }

    fn local(socket: u32) -> SocketAddr {
        let scattered = 40_000 + u16::try_from(socket * 271 % 1000).unwrap();
        SocketAddr::from(([192, 168, 1, 5], scattered))
    }

    fn translate(&mut self, socket: u32, to: SocketAddr) -> SocketAddr {
        let Some(mapping) = self.mapping else { return Self::local(socket) };
        let key = match mapping {
            Mapping::AddressAndPortDependent => (socket, Some(to.ip()), Some(to.port())),
            Mapping::AddressDependent => (socket, Some(to.ip()), None),
            _ => (socket, None, None),
        };
        let n = u16::try_from(self.table.len()).unwrap();
        let taken: Vec<u16> = self.table.values().copied().collect();
        let local = Self::local(socket).port();
        let port = *self.table.entry(key).or_insert_with(|| match self.ports {
            PortAllocation::Preserved if !taken.contains(&local) => local,
            PortAllocation::Sequential | PortAllocation::Preserved => 2000 + 3 * n,
            _ => 1024 + n.wrapping_mul(25_717) % 60_000,
        });
        SocketAddr::from((PUBLIC, port))
    }

    fn lets_in(&self, socket: u32, from: SocketAddr) -> bool {
        let known = self.contacted.get(&socket).map(Vec::as_slice).unwrap_or_default();
        match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => known.iter().any(|to| to.ip() == from.ip()),
            _ => known.contains(&from),
        }
    }

    fn run(&mut self, vantages: Vec<Vantage>) -> (Behaviour, Duration) {
        let start = Instant::now();
        let mut now = start;
        let mut machine = Classifier::new(now, vantages);
        let mut open = HashSet::new();
        while !machine.is_done() {
            while let Some(experiment) = machine.poll_experiment() {
                self.perform(now, &mut machine, experiment, &mut open);
            }
            let Some(due) = machine.poll_timeout() else { break };
            now = due.max(now);
            machine.handle_timeout(now);
        }
        while let Some(Experiment::Close { socket }) = machine.poll_experiment() {
            open.remove(&socket);
        }
        assert!(open.is_empty(), "sockets left open: {open:?}");
        (machine.behaviour(), now - start)
    }

    fn perform(&mut self, now: Instant, machine: &mut Classifier, what: Experiment, open: &mut HashSet<u32>) {
        match what {
            Experiment::Ask { socket, to, from } => {
                open.insert(socket);
                let observed = self.translate(socket, to);
                self.contacted.entry(socket).or_default().push(to);
                self.sent += 1;
                let source = from.unwrap_or(to);
                if self.deaf.contains(&to) || self.lost.contains(&self.sent) || !self.lets_in(socket, source)
                {
                    return;
                }
                let payload = if self.altered { Payload::Altered } else { Payload::Intact };
                let answer = Answer { local: Self::local(socket), observed, payload };
                machine.handle_answer(now + RTT, socket, source, answer);
            }
            Experiment::Hairpin { to, .. } if self.hairpin => {
                let target = (0..SOCKETS).find(|&n| self.translate(n, at(1, 51820)) == to);
                machine.handle_hairpin(now + RTT, target.unwrap());
            }
            Experiment::AskRouter => {
                if let Some(router) = self.router {
                    machine.handle_router(now + RTT, router);
                }
            }
            Experiment::Hairpin { .. } => {}
            Experiment::Close { socket } => {
                open.remove(&socket);
            }
        }
    }
}

fn four() -> Vec<Vantage> {
    vantages(&[at(1, 51820), at(1, 51821), at(2, 51820), at(2, 51821)])
}

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn four_vantages_tell_every_mapping_and_every_filtering() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            let (behaviour, _) = Nat::new(mapping, filtering, PortAllocation::Random).run(four());
            assert_eq!((behaviour.mapping, behaviour.filtering), (mapping, filtering));
            assert_eq!(behaviour.natted, Finding::Yes);
            assert_eq!(behaviour.public_address, Some(IpAddr::from(PUBLIC)));
        }
    }
}

#[test]
fn one_vantage_tells_ports_and_says_unknown_of_mapping_and_filtering() {
    for ports in [PortAllocation::Preserved, PortAllocation::Sequential, PortAllocation::Random] {
        let mut nat = Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, ports);
        let (behaviour, _) = nat.run(vantages(&[at(1, 51820)]));
        assert_eq!((behaviour.mapping, behaviour.filtering), (Mapping::Unknown, Filtering::Unknown));
        assert_eq!(behaviour.port_allocation, ports);
        assert_eq!(behaviour.port_delta, (ports == PortAllocation::Sequential).then_some(3));
        assert_eq!(behaviour.class(), Class::Nat);
    }
}

#[test]
fn another_port_alone_tells_only_whether_the_port_counts() {
    let two = || vantages(&[at(1, 51820), at(1, 4500)]);
    for mapping in MAPPINGS {
        let mut nat = Nat::new(mapping, Filtering::EndpointIndependent, PortAllocation::Random);
        let (behaviour, _) = nat.run(two());
        let expected = match mapping {
            Mapping::AddressAndPortDependent => Mapping::AddressAndPortDependent,
            _ => Mapping::NotPortDependent,
        };
        assert_eq!(behaviour.mapping, expected);
        assert_eq!(behaviour.filtering, Filtering::NotPortDependent);
    }
}

#[test]
fn another_address_alone_tells_independence_or_that_something_counts() {
    let two = || vantages(&[at(1, 51820), at(2, 51820)]);
    let mut nat = Nat::new(Mapping::EndpointIndependent, FILTERINGS[1], PortAllocation::Random);
    assert_eq!(nat.run(two()).0.mapping, Mapping::EndpointIndependent);
    for mapping in [Mapping::AddressDependent, Mapping::AddressAndPortDependent] {
        let mut nat = Nat::new(mapping, FILTERINGS[1], PortAllocation::Random);
        let (behaviour, _) = nat.run(two());
        assert_eq!(behaviour.mapping, Mapping::EndpointDependent);
        assert_eq!(behaviour.filtering, Filtering::EndpointDependent);
    }
}

#[test]
fn an_address_of_its_own_is_no_nat_and_needs_few_experiments() {
    let mut nat = Nat {
        mapping: None,
        ..Nat::new(MAPPINGS[0], Filtering::EndpointIndependent, PortAllocation::Random)
    };
    let (behaviour, took) = nat.run(vantages(&[at(1, 51820)]));
    assert_eq!((behaviour.natted, behaviour.class()), (Finding::No, Class::NoNat));
    assert_eq!(behaviour.double_nat, Finding::No);
    assert_eq!(behaviour.hairpin, Finding::Unknown);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn hairpin_and_the_routers_own_address_are_told() {
    let mut nat = Nat {
        hairpin: true,
        router: Some(IpAddr::from(PUBLIC)),
        ..Nat::new(MAPPINGS[0], FILTERINGS[2], PortAllocation::Preserved)
    };
    let (behaviour, _) = nat.run(four());
    assert_eq!((behaviour.hairpin, behaviour.double_nat), (Finding::Yes, Finding::No));
    assert_eq!(behaviour.helper_interference, Finding::No);
    nat.router = Some(IpAddr::from([100, 64, 0, 9]));
    nat.hairpin = false;
    let (behaviour, _) = nat.run(four());
    assert_eq!((behaviour.hairpin, behaviour.double_nat), (Finding::No, Finding::Yes));
    nat.router = None;
    assert_eq!(nat.run(four()).0.double_nat, Finding::Unknown);
}

#[test]
fn a_payload_that_was_altered_once_is_interference() {
    let mut nat = Nat { altered: true, ..Nat::new(MAPPINGS[0], FILTERINGS[0], PortAllocation::Preserved) };
    assert_eq!(nat.run(four()).0.helper_interference, Finding::Yes);
}

#[test]
fn a_port_that_alone_is_not_answered_is_interference_and_a_silent_gateway_is_not() {
    let mut nat = Nat::new(MAPPINGS[0], FILTERINGS[0], PortAllocation::Preserved);
    nat.deaf = vec![at(1, 500)];
    let two = || vantages(&[at(1, 500), at(1, 51820)]);
    let (behaviour, _) = nat.run(two());
    assert_eq!((behaviour.helper_interference, behaviour.natted), (Finding::Yes, Finding::Unknown));
    nat.deaf.push(at(1, 51820));
    let (behaviour, took) = nat.run(two());
    assert_eq!(behaviour, Behaviour::default());
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn what_time_has_shown_elsewhere_is_part_of_the_behaviour() {
    let mut machine = Classifier::new(Instant::now(), Vec::new());
    assert!(machine.is_done());
    let timers = Timers { two_class: Finding::Yes, refresh_inbound: Finding::No, ..Timers::default() };
    machine.handle_timers(timers);
    assert_eq!(machine.behaviour().two_class, Finding::Yes);
    assert_eq!(machine.behaviour().refresh_inbound, Finding::No);
}

proptest! {
    #[test]
    fn single_losses_change_no_verdict(lost in proptest::collection::hash_set(1usize..40, 0..6)) {
        let clean = Nat::new(MAPPINGS[1], FILTERINGS[0], PortAllocation::Sequential).run(four()).0;
        let mut lost: Vec<_> = lost.into_iter().collect();
        lost.sort_unstable();
        // Never all four of one question.
        lost.dedup_by(|a, b| *a - *b < 2);
        let mut nat = Nat::new(MAPPINGS[1], FILTERINGS[0], PortAllocation::Sequential);
        nat.lost = lost.into_iter().collect();
        let (behaviour, _) = nat.run(four());
        prop_assert_eq!(behaviour, clean);
    }

    #[test]
    fn whatever_arrives_it_ends_and_guesses_nothing(
        answers in proptest::collection::vec((0u32..10, 0u8..4, any::<u16>()), 0..200)
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut machine = Classifier::new(now, vantages(&[at(1, 51820)]));
        for (socket, vantage, port) in answers {
            while machine.poll_experiment().is_some() {}
            let answer = Answer {
                local: Nat::local(socket),
                observed: SocketAddr::from((PUBLIC, port)),
                payload: Payload::Intact,
            };
            machine.handle_answer(now, socket, at(vantage, 51820), answer);
            if let Some(due) = machine.poll_timeout() {
                now = due;
                machine.handle_timeout(now);
            }
        }
        while let Some(due) = machine.poll_timeout() {
            machine.handle_timeout(due);
            prop_assert!(due - start < Duration::from_secs(90));
        }
        prop_assert_eq!(machine.behaviour().mapping, Mapping::Unknown);
        prop_assert_eq!(machine.behaviour().filtering, Filtering::Unknown);
    }
}
