//! Where a peer's packets may go, whatever the peer believes. Pure.
//!
//! Some addresses are never reached: link-local ones, those of metadata services, and those that name no host elsewhere. Of
//! the gateway itself only echo is, of other clients nothing unless granted, and of all else what a route names. Where
//! several of these hold the first decides, so a route for everything opens none of the others.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;

use super::ip::{self, TCP, UDP};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// The IPv6 extension header of fragments (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;
/// Echo reply, unreachable, echo, time exceeded, parameter problem (RFC 792).
const ICMP_KINDS: [u8; 5] = [0, 3, 8, 11, 12];
/// Unreachable, too big, time exceeded, parameter problem, echo, echo reply (RFC 4443).
const ICMPV6_KINDS: [u8; 6] = [1, 2, 3, 4, 128, 129];
/// Offset of a TCP header's flags (RFC 9293, section 3.1).
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// DNS, plain and over TLS or QUIC (RFC 1035, 7858, 9250).
const DNS_PORTS: [u16; 2] = [53, 853];

/// Metadata services of AWS, Azure, GCP and others; of Alibaba; and Azure's `WireServer`.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// Those of AWS, with the credentials of EKS pods, and of GCP.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Why a peer's packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// To a link-local address.
    LinkLocal,
    /// To a metadata service of a cloud.
    Metadata,
    /// To an address that names no host elsewhere: loopback, multicast, broadcast, reserved (RFC 6890).
    Special,
    /// To the gateway itself, and neither echo nor an answer.
    Gateway,
    /// To another client.
    OtherClient,
    /// To what no route names.
    NoRoute,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::LinkLocal, Self::Metadata, Self::Special, Self::Gateway, Self::OtherClient, Self::NoRoute];

    /// A stable name for metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata",
            Self::Special => "special",
            Self::Gateway => "gateway",
            Self::OtherClient => "other-client",
            Self::NoRoute => "no-route",
        }
    }
}

/// Refused packets, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused([u64; Refusal::ALL.len()]);

impl Refused {
    /// How many were refused for this.
    pub fn of(&self, why: Refusal) -> u64 {
        self.0.get(why as usize).copied().unwrap_or_default()
    }

    /// Adds some.
    pub fn add(&mut self, why: Refusal, packets: u64) {
        if let Some(count) = self.0.get_mut(why as usize) {
            *count = count.wrapping_add(packets);
        }
    }
}

/// What is a gateway's own, the same for all of its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// Its addresses, by whichever device.
    pub addresses: Vec<IpAddr>,
    /// The ranges of all of its clients.
    pub clients: Vec<IpNet>,
}

/// The destinations that are open to some peers: to those of a pool, which share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destinations {
    inside: Arc<Inside>,
    clients: Vec<IpNet>,
    resolvers: Vec<IpAddr>,
    routes_v4: PrefixSet<Ipv4Net>,
    routes_v6: PrefixSet<Ipv6Net>,
}

impl Destinations {
    /// Of the gateway's addresses echo, and nothing else.
    pub fn new(inside: Arc<Inside>) -> Self {
        Self {
            inside,
            clients: Vec::new(),
            resolvers: Vec::new(),
            routes_v4: PrefixSet::default(),
            routes_v6: PrefixSet::default(),
        }
    }

    /// Also these prefixes.
    #[must_use]
    pub fn with_routes(mut self, routes: impl IntoIterator<Item = IpNet>) -> Self {
        for route in routes {
            match route.trunc() {
                IpNet::V4(net) => drop(self.routes_v4.insert(net)),
                IpNet::V6(net) => drop(self.routes_v6.insert(net)),
            }
        }
        self
    }

    /// Also DNS (ports 53 and 853) and echo at these addresses.
    #[must_use]
    pub fn with_resolvers(mut self, resolvers: impl IntoIterator<Item = IpAddr>) -> Self {
        self.resolvers.extend(resolvers);
        self
    }

    /// Also the clients of these ranges.
    #[must_use]
    pub fn with_clients(mut self, ranges: impl IntoIterator<Item = IpNet>) -> Self {
        self.clients.extend(ranges);
        self
    }

    fn scope_of(&self, address: IpAddr) -> Scope {
        if let Some(why) = never(address) {
            return Scope::Closed(why);
        }
        let covers = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        if self.inside.addresses.contains(&address) {
            Scope::Gateway
        } else if covers(&self.inside.clients) {
            if covers(&self.clients) { Scope::Open } else { Scope::Closed(Refusal::OtherClient) }
        } else if self.is_routed(address) {
            Scope::Open
        } else if self.resolvers.contains(&address) {
            Scope::Resolver
        } else {
            Scope::Closed(Refusal::NoRoute)
        }
    }

    fn is_routed(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.routes_v4.get_spm(&Ipv4Net::from(address)).is_some(),
            IpAddr::V6(address) => self.routes_v6.get_spm(&Ipv6Net::from(address)).is_some(),
        }
    }
}

/// What is open of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Open,
    /// DNS, and echo.
    Resolver,
    /// Echo, and answers.
    Gateway,
    Closed(Refusal),
}

impl Scope {
    fn refuses(self, packet: &[u8]) -> Option<Refusal> {
        match self {
            Self::Open => None,
            Self::Resolver => (!is_for_resolver(packet)).then_some(Refusal::NoRoute),
            Self::Gateway => (!is_for_gateway(packet)).then_some(Refusal::Gateway),
            Self::Closed(why) => Some(why),
        }
    }
}

/// Where one peer's packets may go, and what was found last: packets come in runs.
#[derive(Debug, Default)]
pub(super) struct Limits {
    destinations: Option<Arc<Destinations>>,
    recent: Option<(IpAddr, Scope)>,
}

impl Limits {
    /// From the next packet on. `None`: anywhere.
    pub(super) fn set(&mut self, destinations: Option<Arc<Destinations>>) {
        self.destinations = destinations;
        self.recent = None;
    }

    /// Why a packet is not to go where it is to go, if it is not.
    pub(super) fn refuse(&mut self, packet: &[u8]) -> Option<Refusal> {
        let destinations = self.destinations.as_deref()?;
        let Some(address) = ip::route(packet).map(|route| route.destination) else {
            return Some(Refusal::NoRoute);
        };
        let scope = match self.recent {
            Some((recent, scope)) if recent == address => scope,
            _ => {
                let scope = destinations.scope_of(address);
                self.recent = Some((address, scope));
                scope
            }
        };
        scope.refuses(packet)
    }
}

/// Why nobody ever reaches an address, if so.
fn never(address: IpAddr) -> Option<Refusal> {
    match address {
        IpAddr::V4(address) => never_v4(address),
        IpAddr::V6(address) => never_v6(address),
    }
}

fn never_v4(address: Ipv4Addr) -> Option<Refusal> {
    let [first, ..] = address.octets();
    if METADATA_V4.contains(&address) {
        Some(Refusal::Metadata)
    } else if address.is_link_local() {
        Some(Refusal::LinkLocal)
    } else if matches!(first, 0 | 127 | 224..) {
        Some(Refusal::Special)
    } else {
        None
    }
}

fn never_v6(address: Ipv6Addr) -> Option<Refusal> {
    if METADATA_V6.contains(&address) {
        return Some(Refusal::Metadata);
    }
    if address.is_unicast_link_local() {
        return Some(Refusal::LinkLocal);
    }
    match address.segments() {
        // A translator would make that address of it (RFC 6052, section 2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            never_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        // Unspecified, loopback, and addresses that stand for IPv4 ones within a host (RFC 4291, section 2.5.5).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0xff00..=0xffff, ..] => Some(Refusal::Special),
        _ => None,
    }
}

fn is_for_resolver(packet: &[u8]) -> bool {
    let Some((protocol, start)) = ip::payload(packet) else { return false };
    match protocol {
        TCP | UDP => ip::field::<2>(packet, start + 2)
            .is_some_and(|port| DNS_PORTS.contains(&u16::from_be_bytes(port))),
        _ => is_echo_or_error(packet, protocol, start),
    }
}

/// The gateway's own connections to a client must get their answers, so TCP that opens nothing passes; the kernel knows which
/// connections there are.
fn is_for_gateway(packet: &[u8]) -> bool {
    let Some((protocol, start)) = ip::payload(packet) else {
        // The rest of a large ping.
        return packet.first().is_some_and(|first| first >> 4 == 4) && packet.get(9) == Some(&ICMP);
    };
    match protocol {
        TCP => packet.get(start + TCP_FLAGS).is_some_and(|flags| flags & (SYN | ACK) != SYN),
        FRAGMENT => packet.get(start) == Some(&ICMPV6),
        _ => is_echo_or_error(packet, protocol, start),
    }
}

fn is_echo_or_error(packet: &[u8], protocol: u8, start: usize) -> bool {
    let kind = packet.get(start);
    match protocol {
        ICMP => kind.is_some_and(|kind| ICMP_KINDS.contains(kind)),
        ICMPV6 => kind.is_some_and(|kind| ICMPV6_KINDS.contains(kind)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
