//! How a userspace NAT behaves.

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive, time::Duration};

use ipnet::Ipv4Net;

use super::helper::Helper;
use crate::nat::{
    Mapping, UdpFilter,
    model::{Dependence, PortAllocation, Profile},
};

/// Lifetimes that shrink under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// From so many UDP mappings on ...
    pub mappings: usize,
    /// ... no mapping lives longer than this without traffic, for good.
    pub lifetime: Duration,
}

/// The behaviour of one userspace NAT: all that a [`Profile`] says, and what only shows in real networks.
///
/// `shrink_to` happens when it is asked for ([`Nat::shrink`](crate::nat::Nat::shrink)), not at a random time.
#[derive(Debug, Clone, PartialEq)]
pub struct UserspaceProfile {
    /// Network on the inside; the NAT is its first address.
    pub inside: Ipv4Net,
    /// Mapping, filtering, lifetimes, loss and delay. Loss is UDP's; delay is everybody's.
    pub nat: Profile,
    /// Public ports for UDP. A narrow range runs out of ports.
    pub ports: RangeInclusive<u16>,
    /// Even ports get even ones, odd ports odd ones (RFC 4787, section 4.2.2).
    pub parity: bool,
    /// Whether a host inside reaches another by the other's public address (RFC 4787, section 6).
    pub hairpin: bool,
    /// Up to so much is added to the delay of each packet, each way; packets stay in order.
    pub jitter: Duration,
    /// Which UDP gets out.
    pub udp: UdpFilter,
    /// Outside UDP ports that let nothing in.
    pub deaf: BTreeSet<u16>,
    /// Its application-level gateways.
    pub helpers: Vec<Helper>,
    /// Lifetimes that shrink under load.
    pub pressure: Option<Pressure>,
    /// How many mappings it can hold.
    pub capacity: usize,
    /// Chance: what is random comes out the same for the same seed.
    pub seed: u64,
}

impl UserspaceProfile {
    /// A NAT that does what `nat` says and nothing else.
    pub const fn new(nat: Profile) -> Self {
        Self {
            inside: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24),
            nat,
            ports: 1024..=u16::MAX,
            parity: false,
            hairpin: false,
            jitter: Duration::ZERO,
            udp: UdpFilter::Open,
            deaf: BTreeSet::new(),
            helpers: Vec::new(),
            pressure: None,
            capacity: 16_384,
            seed: 1,
        }
    }

    /// With another network on the inside.
    #[must_use]
    pub fn inside(mut self, inside: Ipv4Net) -> Self {
        self.inside = inside;
        self
    }

    /// With public UDP ports from this range.
    #[must_use]
    pub fn ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports = ports;
        self
    }

    /// With hairpinning.
    #[must_use]
    pub fn hairpin(mut self) -> Self {
        self.hairpin = true;
        self
    }

    /// Keeping the parity of ports.
    #[must_use]
    pub fn parity(mut self) -> Self {
        self.parity = true;
        self
    }

    /// With jitter.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// With another filter of UDP.
    #[must_use]
    pub fn udp(mut self, udp: UdpFilter) -> Self {
        self.udp = udp;
        self
    }

    /// With a helper.
    #[must_use]
    pub fn helper(mut self, helper: Helper) -> Self {
        self.helpers.push(helper);
        self
    }

    /// With lifetimes that shrink under load.
    #[must_use]
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.pressure = Some(pressure);
        self
    }

    /// Maps as a netfilter NAT of this kind does.
    pub(crate) fn set_mapping(&mut self, mapping: &Mapping) {
        let all = 1024..=u16::MAX;
        (self.nat.mapping, self.nat.port, self.ports) = match mapping {
            Mapping::PortPreserving => (Dependence::EndpointIndependent, PortAllocation::Preserve, all),
            Mapping::Range(range) => {
                (Dependence::EndpointIndependent, PortAllocation::Sequential, range.clone())
            }
            Mapping::Symmetric => (Dependence::AddressAndPortDependent, PortAllocation::Random, all),
        };
    }
}
