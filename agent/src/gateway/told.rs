//! What a client says on its session, as far as it is believed: parsed here, once, and nowhere else. Pure.
//!
//! Any client that ever enrolled can say anything. Spans and counts have the ranges of [`bounds`], a list has as many entries
//! as there are causes, a place is an `ip:port`. A word that is newer than this gateway stays what it is on its way to an
//! operator that may know it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use pinhole_proto::{
    bounds::{self, LONGEST_IMPAIRMENT, LONGEST_SPAN, LONGEST_TRIP, MOST_OF_CLIENT, Word},
    v1,
};

use crate::{
    health::Phase,
    nat::{Behaviour, Binding, Cause, Class, Finding, Mapping, standby::LONGEST_WAKE},
    wire,
};

/// Bytes of the largest message of a client, or of a call of one: the longest token or request is half of it.
pub(super) const LARGEST_MESSAGE: usize = 16 << 10;

/// Nobody's packets are held while it was heard so lately, whatever it asks for.
const SHORTEST_HOLD: Duration = Duration::from_secs(2);

/// A message of a client.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// The first one.
    Hello {
        /// It says `Heard` for what it is told.
        hears: bool,
        /// Which process it is. `None`: an agent that does not say, or not in the right form.
        instance: Option<Instance>,
    },
    /// It took over this revision.
    Heard(u64),
    /// It has nothing to say for a while.
    Rest(Asked),
    /// Its handshakes begin anew.
    Anew,
    /// What it takes for the time.
    Clock(SystemTime),
    /// How it is.
    Told(Box<Told>),
    /// Something that this gateway does not know.
    Newer,
}

impl From<v1::ClientMessage> for Said {
    fn from(wire: v1::ClientMessage) -> Self {
        use v1::client_message::Message;
        match wire.message {
            Some(Message::Hello(hello)) => {
                Self::Hello { hears: hello.hears, instance: hello.instance.try_into().ok().map(Instance) }
            }
            Some(Message::Heard(heard)) => Self::Heard(heard.revision),
            Some(Message::Rest(rest)) => Self::Rest(Asked::from(&rest)),
            Some(Message::Anew(_)) => Self::Anew,
            Some(Message::Clock(clock)) => bounds::time(clock.now).map_or(Self::Newer, Self::Clock),
            Some(Message::State(state)) => Self::Told(Box::new(Told::from(state))),
            None => Self::Newer,
        }
    }
}

/// A number by which an agent's process is told from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instance(pub(super) [u8; Self::LENGTH]);

impl Instance {
    /// Its bytes.
    pub(super) const LENGTH: usize = 16;
}

/// What a client asks for while it has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// Its number.
    pub(super) seq: u64,
    /// How long the silence is to be: at most [`LONGEST_WAKE`], which it is where nothing sensible is asked for.
    pub(super) wake_after: Duration,
    /// After how long a silence by UDP its packets are held: between two seconds and [`LONGEST_WAKE`].
    pub(super) hold_after: Option<Duration>,
}

impl From<&v1::Rest> for Asked {
    fn from(wire: &v1::Rest) -> Self {
        Self {
            seq: wire.seq,
            wake_after: bounds::span(wire.wake_after, LONGEST_WAKE).unwrap_or(LONGEST_WAKE),
            hold_after: bounds::span(wire.hold_after, LONGEST_WAKE).map(|after| after.max(SHORTEST_HOLD)),
        }
    }
}

/// A client's own view of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// `None`: it says nothing of it, or in a word that is newer.
    pub phase: Option<Phase>,
    /// The NATs in front of it.
    pub nat: Option<NatTold>,
    /// The lifetime of its binding.
    pub binding: Option<BindingTold>,
    /// Its keepalive.
    pub keepalive: Option<KeepaliveTold>,
    /// By what it is reached.
    pub standby: Option<StandbyTold>,
    /// What became of its binding.
    pub churn: Option<ChurnTold>,
    /// What of its pool's promise does not hold on its machine.
    pub impairments: Vec<v1::Impairment>,
}

impl From<v1::ClientState> for Told {
    fn from(wire: v1::ClientState) -> Self {
        Self {
            phase: wire::phase_from_wire(wire.phase.into()),
            nat: wire.nat.as_ref().map(NatTold::from),
            binding: wire.binding.as_ref().map(BindingTold::from),
            keepalive: wire.keepalive.as_ref().map(KeepaliveTold::from),
            standby: wire.standby.as_ref().map(StandbyTold::from),
            churn: wire.churn.as_ref().map(ChurnTold::from),
            impairments: bounds::impairments(wire.impairments, MOST_OF_CLIENT, LONGEST_IMPAIRMENT),
        }
    }
}

impl Told {
    /// It tells of NATs, bindings or what became of them.
    pub fn measures(&self) -> bool {
        self.nat.is_some() || self.binding.is_some() || self.churn.is_some()
    }

    /// All else that it tells.
    #[must_use]
    pub fn without_measurements(&self) -> Self {
        Self { nat: None, binding: None, churn: None, ..self.clone() }
    }

    /// It is not to be woken by its session.
    pub fn keeps_its_binding(&self) -> bool {
        self.standby.is_some_and(|standby| {
            standby.reachable_by == Word::Known(v1::keepalive_policy::Standby::Udp)
                && standby.reason != Word::Known(v1::StandbyReason::Busy)
        })
    }
}

/// The NATs in front of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the protocol")]
pub struct NatTold {
    pub natted: Word<v1::Finding>,
    pub mapping: Word<v1::NatMapping>,
    pub filtering: Word<v1::NatFiltering>,
    pub port_allocation: Word<v1::PortAllocation>,
    pub port_parity: Word<v1::Finding>,
    /// Within ±65 535, as ports are. 0: not known.
    pub port_delta: i32,
    pub hairpin: Word<v1::Finding>,
    pub refresh_outbound: Word<v1::Finding>,
    pub refresh_inbound: Word<v1::Finding>,
    pub two_class: Word<v1::Finding>,
    pub helper_interference: Word<v1::Finding>,
    pub double_nat: Word<v1::Finding>,
    pub public_address: Option<IpAddr>,
    pub vantage: Word<v1::Vantage>,
}

impl From<&v1::NatReport> for NatTold {
    fn from(wire: &v1::NatReport) -> Self {
        const PORTS: i32 = u16::MAX as i32;
        Self {
            natted: wire.natted.into(),
            mapping: wire.mapping.into(),
            filtering: wire.filtering.into(),
            port_allocation: wire.port_allocation.into(),
            port_parity: wire.port_parity.into(),
            port_delta: wire.port_delta.clamp(-PORTS, PORTS),
            hairpin: wire.hairpin.into(),
            refresh_outbound: wire.refresh_outbound.into(),
            refresh_inbound: wire.refresh_inbound.into(),
            two_class: wire.two_class.into(),
            helper_interference: wire.helper_interference.into(),
            double_nat: wire.double_nat.into(),
            public_address: wire.public_address.parse().ok().map(|address: IpAddr| address.to_canonical()),
            vantage: wire.vantage.into(),
        }
    }
}

impl NatTold {
    /// What kind of NAT it is, in one word. Of a way to map that is newer than this gateway it knows that there is a NAT.
    pub fn class(&self) -> Class {
        let natted = match self.natted {
            Word::Known(v1::Finding::Yes) => Finding::Yes,
            Word::Known(v1::Finding::No) => Finding::No,
            Word::Known(v1::Finding::Unknown) | Word::Newer(_) => Finding::Unknown,
        };
        let mapping = match self.mapping {
            Word::Known(v1::NatMapping::EndpointIndependent) => Mapping::EndpointIndependent,
            Word::Known(v1::NatMapping::NotPortDependent) => Mapping::NotPortDependent,
            Word::Known(v1::NatMapping::EndpointDependent) => Mapping::EndpointDependent,
            Word::Known(v1::NatMapping::AddressDependent) => Mapping::AddressDependent,
            Word::Known(v1::NatMapping::AddressAndPortDependent) => Mapping::AddressAndPortDependent,
            Word::Known(v1::NatMapping::Unknown) | Word::Newer(_) => Mapping::Unknown,
        };
        Behaviour { natted, mapping, ..Behaviour::default() }.class()
    }

    /// As the operator is told.
    pub fn to_wire(self) -> v1::NatReport {
        v1::NatReport {
            natted: self.natted.number(),
            mapping: self.mapping.number(),
            filtering: self.filtering.number(),
            port_allocation: self.port_allocation.number(),
            port_parity: self.port_parity.number(),
            port_delta: self.port_delta,
            hairpin: self.hairpin.number(),
            refresh_outbound: self.refresh_outbound.number(),
            refresh_inbound: self.refresh_inbound.number(),
            two_class: self.two_class.number(),
            helper_interference: self.helper_interference.number(),
            double_nat: self.double_nat.number(),
            public_address: self.public_address.map(|address| address.to_string()).unwrap_or_default(),
            vantage: self.vantage.number(),
        }
    }
}

/// The lifetime of a client's binding; spans are at most [`LONGEST_SPAN`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the protocol")]
pub struct BindingTold {
    pub at_least: Option<Duration>,
    pub less_than: Option<Duration>,
    pub unpromoted: Option<Duration>,
    pub promoted_after: Option<Duration>,
    pub confidence: Word<v1::BindingConfidence>,
    pub since: Option<SystemTime>,
    pub vantage: Word<v1::Vantage>,
}

impl From<&v1::BindingReport> for BindingTold {
    fn from(wire: &v1::BindingReport) -> Self {
        Self {
            at_least: bounds::span(wire.at_least, LONGEST_SPAN),
            less_than: bounds::span(wire.less_than, LONGEST_SPAN),
            unpromoted: bounds::span(wire.unpromoted, LONGEST_SPAN),
            promoted_after: bounds::span(wire.promoted_after, LONGEST_SPAN),
            confidence: wire.confidence.into(),
            since: bounds::time(wire.since),
            vantage: wire.vantage.into(),
        }
    }
}

impl BindingTold {
    /// The binding that is meant; `None` where it makes no sense.
    pub fn binding(&self) -> Option<Binding> {
        wire::binding((self.at_least?, self.less_than), self.promoted_after, self.confidence)
    }

    /// As the operator is told.
    pub fn to_wire(self) -> v1::BindingReport {
        v1::BindingReport {
            at_least: span(self.at_least),
            less_than: span(self.less_than),
            unpromoted: span(self.unpromoted),
            promoted_after: span(self.promoted_after),
            confidence: self.confidence.number(),
            since: self.since.map(Into::into),
            vantage: self.vantage.number(),
        }
    }
}

/// A client's keepalive and its costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the protocol")]
pub struct KeepaliveTold {
    /// At most [`LONGEST_SPAN`].
    pub interval: Option<Duration>,
    pub mode: Word<v1::keepalive_policy::Mode>,
    pub reason: Word<v1::KeepaliveReason>,
    pub since: Option<SystemTime>,
    pub wakes: u64,
    pub wakes_saved: i64,
    pub beats: u64,
    pub probes: u64,
}

impl From<&v1::KeepaliveReport> for KeepaliveTold {
    fn from(wire: &v1::KeepaliveReport) -> Self {
        Self {
            interval: bounds::span(wire.interval, LONGEST_SPAN),
            mode: wire.mode.into(),
            reason: wire.reason.into(),
            since: bounds::time(wire.since),
            wakes: bounds::count(wire.wakes),
            wakes_saved: bounds::difference(wire.wakes_saved),
            beats: bounds::count(wire.beats),
            probes: bounds::count(wire.probes),
        }
    }
}

impl KeepaliveTold {
    /// As the operator is told.
    pub fn to_wire(self) -> v1::KeepaliveReport {
        v1::KeepaliveReport {
            interval: span(self.interval),
            mode: self.mode.number(),
            reason: self.reason.number(),
            since: self.since.map(Into::into),
            wakes: self.wakes,
            wakes_saved: self.wakes_saved,
            beats: self.beats,
            probes: self.probes,
        }
    }
}

/// By what a client is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the protocol")]
pub struct StandbyTold {
    pub reachable_by: Word<v1::keepalive_policy::Standby>,
    pub reason: Word<v1::StandbyReason>,
    /// At most [`LONGEST_SPAN`].
    pub interval: Option<Duration>,
    /// At most [`LONGEST_TRIP`]: nobody is waited for longer, whatever an agent says.
    pub last_wake: Option<Duration>,
    /// At most [`LONGEST_TRIP`].
    pub worst_wake: Option<Duration>,
    pub session_at_least: Option<Duration>,
    pub session_less_than: Option<Duration>,
}

impl From<&v1::StandbyReport> for StandbyTold {
    fn from(wire: &v1::StandbyReport) -> Self {
        Self {
            reachable_by: wire.reachable_by.into(),
            reason: wire.reason.into(),
            interval: bounds::span(wire.interval, LONGEST_SPAN),
            last_wake: bounds::span(wire.last_wake, LONGEST_TRIP),
            worst_wake: bounds::span(wire.worst_wake, LONGEST_TRIP),
            session_at_least: bounds::span(wire.session_at_least, LONGEST_SPAN),
            session_less_than: bounds::span(wire.session_less_than, LONGEST_SPAN),
        }
    }
}

impl StandbyTold {
    /// As the operator is told.
    pub fn to_wire(self) -> v1::StandbyReport {
        v1::StandbyReport {
            reachable_by: self.reachable_by.number(),
            reason: self.reason.number(),
            interval: span(self.interval),
            last_wake: span(self.last_wake),
            worst_wake: span(self.worst_wake),
            session_at_least: span(self.session_at_least),
            session_less_than: span(self.session_less_than),
        }
    }
}

/// What became of a client's binding, as its agent counts it: each cause at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChurnTold {
    /// Counted since then.
    pub since: Option<SystemTime>,
    causes: Vec<CauseTold>,
}

/// What one cause came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CauseTold {
    /// Why.
    pub cause: Cause,
    /// How often.
    pub count: u64,
    /// The last time.
    pub last: Option<EventTold>,
}

/// One move or loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventTold {
    /// By the client's clock.
    pub at: Option<SystemTime>,
    /// Public ip:port before.
    pub from: Option<SocketAddr>,
    /// Public ip:port after.
    pub to: Option<SocketAddr>,
    /// Silence before it, at most [`LONGEST_SPAN`].
    pub idle: Option<Duration>,
}

impl From<&v1::ChurnReport> for ChurnTold {
    fn from(wire: &v1::ChurnReport) -> Self {
        let mut causes: Vec<CauseTold> = Vec::new();
        for told in wire.causes.iter().take(Cause::COUNT) {
            // One that is newer than this gateway, or not known, is none that it could count.
            let Some(cause) = Word::from(told.cause).known().and_then(wire::cause_from_wire) else {
                continue;
            };
            if causes.iter().all(|known| known.cause != cause) {
                let last = told.last.as_ref().map(EventTold::from);
                causes.push(CauseTold { cause, count: bounds::count(told.count), last });
            }
        }
        Self { since: bounds::time(wire.since), causes }
    }
}

impl From<&v1::ChurnEvent> for EventTold {
    fn from(wire: &v1::ChurnEvent) -> Self {
        let place = |text: &str| text.parse().ok().map(plain);
        Self {
            at: bounds::time(wire.at),
            from: place(&wire.from),
            to: place(&wire.to),
            idle: bounds::span(wire.idle, LONGEST_SPAN),
        }
    }
}

impl ChurnTold {
    /// What each cause came to.
    pub fn causes(&self) -> &[CauseTold] {
        &self.causes
    }

    /// How often it was this cause, where it was told.
    pub fn count(&self, cause: Cause) -> Option<u64> {
        self.causes.iter().find(|known| known.cause == cause).map(|known| known.count)
    }
}

/// `ip:port` without the IPv4-in-IPv6 form that a dual-stack socket sees.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn span(span: Option<Duration>) -> Option<prost_types::Duration> {
    span.and_then(|span| span.try_into().ok())
}

#[cfg(test)]
mod tests {
    use pinhole_proto::hostile::Hostile;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn what_is_half_known_of_a_nat_arrives_as_that() {
        let wire = v1::NatReport {
            natted: v1::Finding::Yes.into(),
            mapping: v1::NatMapping::EndpointDependent.into(),
            filtering: 99,
            ..v1::NatReport::default()
        };
        let nat = NatTold::from(&wire);
        assert_eq!(nat.class(), Class::EndpointDependent);
        assert_eq!(nat.to_wire(), wire, "a newer word goes on as it is");
        assert_eq!(NatTold { mapping: Word::Newer(99), ..nat }.class(), Class::Nat);
    }

    #[test]
    fn a_phase_that_is_newer_does_not_say_that_the_client_went() {
        let says = |phase| Told::from(v1::ClientState { phase, ..v1::ClientState::default() }).phase;
        assert_eq!(says(v1::Phase::Disconnected.into()), Some(Phase::Disconnected));
        assert_eq!((says(0), says(99), says(-1)), (None, None, None));
    }

    #[test]
    fn the_largest_honest_messages_are_a_quarter_of_what_is_read() {
        let place = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".to_owned();
        let event = v1::ChurnEvent {
            at: Some(SystemTime::now().into()),
            from: place.clone(),
            to: place,
            idle: Some(prost_types::Duration { seconds: 1 << 30, nanos: 999_999_999 }),
        };
        let cause = v1::ChurnOfCause { cause: 8, count: u64::MAX, last: Some(event) };
        let churn = v1::ChurnReport { since: None, count: u64::MAX, causes: vec![cause; Cause::COUNT] };
        let state = v1::ClientState { churn: Some(churn), ..v1::ClientState::default() };
        let enrol = v1::EnrolRequest {
            credential: Some(v1::enrol_request::Credential::ServiceAccountToken("t".repeat(2_000))),
            csr: vec![0; 1_000],
            hostname: "h".repeat(253),
            ..v1::EnrolRequest::default()
        };
        assert!(state.encoded_len().max(enrol.encoded_len()) * 4 < LARGEST_MESSAGE);
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_within_bounds(seed: u64) {
            let told = Told::from(Hostile::new(seed).readable::<v1::ClientState>("ClientState"));
            let binding = told.binding.unwrap_or_default();
            for span in [binding.at_least, binding.less_than, binding.unpromoted, binding.promoted_after] {
                prop_assert!(span.unwrap_or_default() <= LONGEST_SPAN);
            }
            let churn = told.churn.unwrap_or_default();
            prop_assert!(churn.causes().len() <= Cause::COUNT);
            for cause in churn.causes() {
                prop_assert!(cause.count <= bounds::MOST_COUNTED);
                prop_assert!(cause.last.and_then(|last| last.idle).unwrap_or_default() <= LONGEST_SPAN);
            }
        }
    }
}
