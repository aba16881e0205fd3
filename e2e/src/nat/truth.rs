//! What really holds of a binding behind one or more NATs: what learnt values are compared with.

use std::time::Duration;

use super::{
    Behaviour, Mapping, NatProfile,
    model::{Dependence, Loss, PortAllocation, Profile, Refresh},
};

/// How UDP bindings live on the way between a client and the public segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// Lifetime of a binding until it is promoted.
    pub unreplied: Duration,
    /// Lifetime of a promoted binding.
    pub replied: Duration,
    /// An outbound packet promotes a binding that saw a reply from so long on after its first packet.
    pub promote_after: Duration,
    /// Which packets restart the timer.
    pub refresh: Refresh,
    /// A binding may live for up to so much longer.
    pub sweep: Duration,
    /// What the public port depends on.
    pub mapping: Dependence,
    /// Who gets in.
    pub filtering: Dependence,
    /// How public ports are picked.
    pub port: PortAllocation,
    /// How much UDP gets lost, each way.
    pub loss: Loss,
    /// What the NATs add to a round trip.
    pub round_trip: Duration,
}

/// From when on netfilter takes a UDP flow with a reply for a stream.
const NETFILTER_PROMOTES_AFTER: Duration = Duration::from_secs(2);

impl Truth {
    /// Whether bindings have a lifetime before promotion and another after.
    pub fn is_two_class(&self) -> bool {
        self.unreplied != self.replied
    }

    /// Behind one NAT.
    pub fn of(behaviour: &Behaviour) -> Self {
        match behaviour {
            Behaviour::Netfilter(profile) => Self::of_netfilter(profile),
            Behaviour::Userspace(profile) => Self::of_model(&profile.nat),
        }
    }

    /// Behind this NAT and another one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let both = |a: Refresh, b: Refresh| Refresh {
            outbound: a.outbound && b.outbound,
            inbound: a.inbound && b.inbound,
        };
        Self {
            unreplied: self.unreplied.min(other.unreplied),
            replied: self.replied.min(other.replied),
            promote_after: self.promote_after.max(other.promote_after),
            refresh: both(self.refresh, other.refresh),
            sweep: self.sweep.max(other.sweep),
            mapping: stricter(self.mapping, other.mapping),
            filtering: stricter(self.filtering, other.filtering),
            port: if self.port == PortAllocation::Preserve { other.port } else { self.port },
            loss: self.loss.and(other.loss),
            round_trip: self.round_trip + other.round_trip,
        }
    }

    fn of_netfilter(profile: &NatProfile) -> Self {
        let (mapping, port) = match profile.mapping {
            Mapping::PortPreserving => (Dependence::EndpointIndependent, PortAllocation::Preserve),
            Mapping::Range(_) => (Dependence::EndpointIndependent, PortAllocation::Random),
            Mapping::Symmetric => (Dependence::AddressAndPortDependent, PortAllocation::Random),
        };
        Self {
            unreplied: profile.udp_timeout,
            replied: profile.udp_stream_timeout,
            promote_after: NETFILTER_PROMOTES_AFTER,
            refresh: Refresh::default(),
            sweep: Duration::ZERO,
            mapping,
            filtering: Dependence::AddressAndPortDependent,
            port,
            loss: profile.loss.into(),
            round_trip: Duration::ZERO,
        }
    }

    fn of_model(profile: &Profile) -> Self {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Self {
            unreplied: seconds(profile.timeout_s.unreplied),
            replied: seconds(profile.timeout_s.replied),
            promote_after: seconds(profile.promote_after_s),
            refresh: profile.refresh,
            sweep: seconds(profile.sweep_s),
            mapping: profile.mapping,
            filtering: profile.filtering,
            port: profile.port,
            loss: profile.loss,
            round_trip: profile.rtt(),
        }
    }
}

fn stricter(a: Dependence, b: Dependence) -> Dependence {
    use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    match (a, b) {
        (AddressAndPortDependent, _) | (_, AddressAndPortDependent) => AddressAndPortDependent,
        (AddressDependent, _) | (_, AddressDependent) => AddressDependent,
        (EndpointIndependent, EndpointIndependent) => EndpointIndependent,
    }
}
