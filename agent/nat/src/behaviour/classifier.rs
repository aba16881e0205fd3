//! The experiments, one after the other, and what follows from them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Behaviour, Filtering, Finding, Mapping,
    ports::{Pair, Ports},
};
use crate::Payload;

/// Fresh sockets, each with a mapping of its own.
const SOCKETS: u32 = 8;
/// When a question is asked again, and at last given up: a mapping that is there answers within a round trip.
const RESENDS: [Duration; 4] = [
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
    Duration::from_millis(2400),
];
/// RFC 6886, section 3.1: 250 ms, doubled; three are enough to tell that a router does not speak it.
const ROUTER_RESENDS: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];

/// Asks each of the others where it is seen.
const MAPPER: u32 = 0;
/// Has sent to the first vantage alone.
const FILTERED: u32 = 1;
/// Try to reach each other.
const HAIRPINNED: [u32; 2] = [2, 3];

/// An ip:port of the gateway that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vantage {
    /// Where it is reached.
    pub address: SocketAddr,
    /// From which other ip:ports it can be made to answer. A gateway with one socket: none.
    pub answers_from: Vec<SocketAddr>,
}

/// What the shell has to do. Sockets are numbered; one is opened, on a port of the system's choice, by its first
/// experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experiment {
    /// Ask where this socket is seen.
    Ask {
        /// From which socket.
        socket: u32,
        /// Whom.
        to: SocketAddr,
        /// Who shall answer, where it is not the one that is asked.
        from: Option<SocketAddr>,
    },
    /// Send something recognisable to a public address of the client's own.
    Hairpin {
        /// From which socket.
        socket: u32,
        /// Where another of the sockets is seen.
        to: SocketAddr,
    },
    /// Ask the router for its public address (NAT-PMP, RFC 6886, section 3.2).
    AskRouter,
    /// The socket is not needed any more.
    Close {
        /// Which.
        socket: u32,
    },
}

/// An answer to [`Experiment::Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The socket's own address. Its ip is that of the interface, never the wildcard.
    pub local: SocketAddr,
    /// Where the gateway saw it.
    pub observed: SocketAddr,
    /// Whether question and answer passed as they were sent.
    pub payload: Payload,
}

/// What experiments with time have shown elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timers {
    /// See [`Behaviour::two_class`].
    pub two_class: Finding,
    /// See [`Behaviour::refresh_outbound`].
    pub refresh_outbound: Finding,
    /// See [`Behaviour::refresh_inbound`].
    pub refresh_inbound: Finding,
}

/// What is tried at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trial {
    /// Where is this socket seen by the first vantage?
    Port(u32),
    /// Where is [`MAPPER`] seen by another one?
    Map(SocketAddr),
    /// Does [`FILTERED`] hear from one that it never sent to?
    Filter(SocketAddr),
    Hairpin,
    Router,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    trial: Trial,
    due: Instant,
    sent: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It arrived, and where an answer says so, from where it was seen.
    Seen(Option<SocketAddr>),
    Router(IpAddr),
    Silence,
}

/// The state machine: one trial at a time, about a round trip each where there is an answer. Begin a new one in
/// every network.
#[derive(Debug)]
pub struct Classifier {
    vantages: Vec<Vantage>,
    running: Option<Running>,
    outcomes: BTreeMap<Trial, Outcome>,
    pairs: Vec<Pair>,
    local: Option<SocketAddr>,
    payload: Payload,
    timers: Timers,
    opened: Vec<u32>,
    experiments: std::collections::VecDeque<Experiment>,
}

impl Classifier {
    /// A machine that asks at once. The first of `vantages` is the one that the tunnel uses.
    pub fn new(now: Instant, vantages: Vec<Vantage>) -> Self {
        let mut classifier = Self {
            vantages,
            running: None,
            outcomes: BTreeMap::new(),
            pairs: Vec::new(),
            local: None,
            payload: Payload::Unknown,
            timers: Timers::default(),
            opened: Vec::new(),
            experiments: std::collections::VecDeque::new(),
        };
        classifier.go_on(now);
        classifier
    }

    /// An answer came to this socket, from this ip:port of the gateway.
    pub fn handle_answer(&mut self, now: Instant, socket: u32, from: SocketAddr, answer: Answer) {
        self.payload = match (self.payload, answer.payload) {
            (Payload::Altered, _) | (_, Payload::Altered) => Payload::Altered,
            (seen, Payload::Unknown) => seen,
            (_, Payload::Intact) => Payload::Intact,
        };
        let Some(Running { trial, .. }) = self.running else { return };
        let expected = match trial {
            Trial::Port(port) => socket == port && self.is_first(from),
            Trial::Map(vantage) => socket == MAPPER && from == vantage,
            Trial::Filter(vantage) => socket == FILTERED && from == vantage,
            Trial::Hairpin | Trial::Router => false,
        };
        if !expected {
            return;
        }
        if matches!(trial, Trial::Port(_)) {
            self.local.get_or_insert(canonical(answer.local));
            self.pairs.push(Pair { local: answer.local.port(), public: answer.observed.port() });
        }
        self.finish(now, trial, Outcome::Seen(Some(canonical(answer.observed))));
    }

    /// What another socket sent to this one's public address arrived.
    pub fn handle_hairpin(&mut self, now: Instant, socket: u32) {
        let running = self.running.is_some_and(|running| running.trial == Trial::Hairpin);
        if running && HAIRPINNED.contains(&socket) {
            self.finish(now, Trial::Hairpin, Outcome::Seen(None));
        }
    }

    /// The router said which public address it has.
    pub fn handle_router(&mut self, now: Instant, public: IpAddr) {
        if self.running.is_some_and(|running| running.trial == Trial::Router) {
            self.finish(now, Trial::Router, Outcome::Router(public.to_canonical()));
        }
    }

    /// What experiments with time have shown.
    pub fn handle_timers(&mut self, timers: Timers) {
        self.timers = timers;
    }

    /// When [`Self::handle_timeout`] is due. `None`: all is tried.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.running.map(|running| running.due)
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(running) = self.running.filter(|running| now >= running.due) else { return };
        if running.sent < resends(running.trial).len() {
            self.send(now, running.trial, running.sent);
        } else {
            self.finish(now, running.trial, Outcome::Silence);
        }
    }

    /// The next thing to do.
    pub fn poll_experiment(&mut self) -> Option<Experiment> {
        self.experiments.pop_front()
    }

    /// Whether all is tried.
    pub fn is_done(&self) -> bool {
        self.running.is_none()
    }

    /// What is known by now.
    pub fn behaviour(&self) -> Behaviour {
        let observed = self.seen(Trial::Port(MAPPER)).or_else(|| self.any_observed());
        let natted = match (self.local, observed) {
            (Some(_), Some(_)) => Finding::from(!self.pairs_are_own()),
            _ => Finding::Unknown,
        };
        let ports = Ports::of(&self.pairs);
        let mut behaviour = Behaviour {
            natted,
            public_address: observed.map(|address| address.ip()),
            filtering: self.filtering(),
            helper_interference: self.interference(),
            refresh_outbound: self.timers.refresh_outbound,
            refresh_inbound: self.timers.refresh_inbound,
            two_class: self.timers.two_class,
            ..Behaviour::default()
        };
        match natted {
            // An address that nobody translates is the same towards everybody.
            Finding::No => {
                behaviour.mapping = Mapping::EndpointIndependent;
                behaviour.double_nat = Finding::No;
            }
            Finding::Yes => {
                behaviour.mapping = self.mapping();
                behaviour.port_allocation = ports.allocation;
                behaviour.port_parity = ports.parity;
                behaviour.port_delta = ports.delta;
                behaviour.hairpin = self.hairpin();
                behaviour.double_nat = self.double_nat(observed);
            }
            Finding::Unknown => {}
        }
        behaviour
    }

    fn is_first(&self, address: SocketAddr) -> bool {
        self.vantages.first().is_some_and(|vantage| vantage.address == address)
    }

    fn others(&self) -> impl Iterator<Item = SocketAddr> {
        self.vantages.iter().skip(1).map(|vantage| vantage.address)
    }

    /// What is to be tried next, given what is known.
    fn next_trial(&self) -> Option<Trial> {
        let first = self.vantages.first()?;
        let ports = (0..SOCKETS).map(Trial::Port);
        let maps = self.others().map(Trial::Map);
        if self.outcomes.get(&Trial::Port(MAPPER)) == Some(&Outcome::Silence) {
            // The tunnel's own port is not answered: do the others tell whether it is the port?
            return maps.into_iter().find(|trial| !self.outcomes.contains_key(trial));
        }
        let open = ports.chain(maps).find(|trial| !self.outcomes.contains_key(trial));
        if open.is_some() {
            return open;
        }
        let filters = first.answers_from.iter().copied().map(Trial::Filter);
        let rest = filters.chain([Trial::Hairpin, Trial::Router]);
        rest.into_iter().find(|trial| !self.outcomes.contains_key(trial) && self.makes_sense(*trial))
    }

    fn makes_sense(&self, trial: Trial) -> bool {
        let v4 = self.local.is_some_and(|local| local.is_ipv4());
        match trial {
            Trial::Hairpin => {
                !self.pairs_are_own() && HAIRPINNED.iter().all(|&n| self.seen(Trial::Port(n)).is_some())
            }
            Trial::Router => v4 && !self.pairs_are_own(),
            Trial::Port(_) | Trial::Map(_) | Trial::Filter(_) => true,
        }
    }

    fn go_on(&mut self, now: Instant) {
        let Some(trial) = self.next_trial() else {
            self.running = None;
            let opened = std::mem::take(&mut self.opened);
            self.experiments.extend(opened.into_iter().map(|socket| Experiment::Close { socket }));
            return;
        };
        self.send(now, trial, 0);
    }

    fn send(&mut self, now: Instant, trial: Trial, sent: usize) {
        let delay = resends(trial).get(sent).copied().unwrap_or_default();
        self.running = Some(Running { trial, due: now + delay, sent: sent + 1 });
        let Some(first) = self.vantages.first().map(|vantage| vantage.address) else { return };
        match trial {
            Trial::Port(socket) => self.ask(socket, first, None),
            Trial::Map(vantage) => self.ask(MAPPER, vantage, None),
            Trial::Filter(vantage) => self.ask(FILTERED, first, Some(vantage)),
            Trial::Hairpin => {
                let [one, other] = HAIRPINNED;
                // Both, so that each has sent to the other where the NAT asks for that.
                for (socket, target) in [(one, other), (other, one)] {
                    if let Some(to) = self.seen(Trial::Port(target)) {
                        self.experiments.push_back(Experiment::Hairpin { socket, to });
                    }
                }
            }
            Trial::Router => self.experiments.push_back(Experiment::AskRouter),
        }
    }

    fn ask(&mut self, socket: u32, to: SocketAddr, from: Option<SocketAddr>) {
        if !self.opened.contains(&socket) {
            self.opened.push(socket);
        }
        self.experiments.push_back(Experiment::Ask { socket, to, from });
    }

    fn finish(&mut self, now: Instant, trial: Trial, outcome: Outcome) {
        self.outcomes.insert(trial, outcome);
        self.go_on(now);
    }

    fn seen(&self, trial: Trial) -> Option<SocketAddr> {
        match self.outcomes.get(&trial) {
            Some(Outcome::Seen(address)) => *address,
            _ => None,
        }
    }

    fn any_observed(&self) -> Option<SocketAddr> {
        (0..SOCKETS).find_map(|socket| self.seen(Trial::Port(socket)))
    }

    /// Whether the gateway sees the client's own address. A firewall that tracks connections leaves it alone.
    fn pairs_are_own(&self) -> bool {
        let same_ip = self.any_observed().map(|at| at.ip()) == self.local.map(|at| at.ip());
        same_ip && self.pairs.iter().all(|pair| pair.local == pair.public)
    }

    /// RFC 5780, section 4.3, with the vantages that there are.
    fn mapping(&self) -> Mapping {
        let first = self.vantages.first().map(|vantage| vantage.address);
        let (Some(first), Some(public)) = (first, self.seen(Trial::Port(MAPPER))) else {
            return Mapping::Unknown;
        };
        let answers: Vec<_> =
            self.others().filter_map(|to| self.seen(Trial::Map(to)).map(|at| (to, at))).collect();
        let other_port = answers.iter().find(|(to, _)| to.ip() == first.ip()).map(|(_, at)| *at == public);
        let elsewhere: Vec<_> = answers.iter().filter(|(to, _)| to.ip() != first.ip()).collect();
        let other_address = elsewhere.first().map(|(_, at)| *at == public);
        // Two ports of the second address serve as well as two of the first.
        let two_ports = elsewhere.iter().enumerate().find_map(|(n, (one, at))| {
            let other = elsewhere.iter().skip(n + 1).find(|(other, _)| other.ip() == one.ip())?;
            Some(*at == other.1)
        });
        match (other_address, other_port.or(two_ports)) {
            (None, None) => Mapping::Unknown,
            (None, Some(true)) => Mapping::NotPortDependent,
            (_, Some(false)) => Mapping::AddressAndPortDependent,
            (Some(true), _) => Mapping::EndpointIndependent,
            (Some(false), Some(true)) => Mapping::AddressDependent,
            (Some(false), None) => Mapping::EndpointDependent,
        }
    }

    /// RFC 5780, section 4.4, with the vantages that there are.
    fn filtering(&self) -> Filtering {
        let Some(first) = self.vantages.first() else { return Filtering::Unknown };
        let passed = |same_ip: bool| {
            let tried = first.answers_from.iter().filter(|from| (from.ip() == first.address.ip()) == same_ip);
            // Silence of one that does not answer anyway tells nothing.
            let speaks = |from: &SocketAddr| self.outcomes.get(&Trial::Map(*from)) != Some(&Outcome::Silence);
            let tried = tried.filter(|from| speaks(from));
            let outcomes = tried.filter_map(|from| self.outcomes.get(&Trial::Filter(*from)));
            outcomes.map(|outcome| *outcome != Outcome::Silence).reduce(|one, other| one || other)
        };
        match (passed(false), passed(true)) {
            (Some(true), _) => Filtering::EndpointIndependent,
            (None, None) => Filtering::Unknown,
            (None, Some(true)) => Filtering::NotPortDependent,
            (Some(false), Some(true)) => Filtering::AddressDependent,
            (_, Some(false)) => Filtering::AddressAndPortDependent,
            (Some(false), None) => Filtering::EndpointDependent,
        }
    }

    fn hairpin(&self) -> Finding {
        match self.outcomes.get(&Trial::Hairpin) {
            None => Finding::Unknown,
            Some(outcome) => Finding::from(*outcome != Outcome::Silence),
        }
    }

    /// A payload that was altered; or a port that is not answered while another of the gateway's is.
    fn interference(&self) -> Finding {
        let silent = self.outcomes.get(&Trial::Port(MAPPER)) == Some(&Outcome::Silence);
        let Some(first) = self.vantages.first().map(|vantage| vantage.address) else {
            return Finding::Unknown;
        };
        let other_port = self.others().filter(|to| to.ip() == first.ip() && to.port() != first.port());
        let blocked = silent && other_port.into_iter().any(|to| self.seen(Trial::Map(to)).is_some());
        match (self.payload, blocked) {
            (Payload::Altered, _) | (_, true) => Finding::Yes,
            (Payload::Intact, false) => Finding::No,
            (Payload::Unknown, false) => Finding::Unknown,
        }
    }

    /// The nearest router's public address is not the one that the gateway sees: somebody else translates too.
    fn double_nat(&self, observed: Option<SocketAddr>) -> Finding {
        match (self.outcomes.get(&Trial::Router), observed) {
            (Some(Outcome::Router(public)), Some(observed)) if !public.is_unspecified() => {
                Finding::from(*public != observed.ip())
            }
            _ => Finding::Unknown,
        }
    }
}

const fn resends(trial: Trial) -> &'static [Duration] {
    match trial {
        Trial::Router => &ROUTER_RESENDS,
        Trial::Port(_) | Trial::Map(_) | Trial::Filter(_) | Trial::Hairpin => &RESENDS,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
