//! How a NAT behaves, and the nftables rules that make it behave so.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr, ops::RangeInclusive, time::Duration};

use ipnet::Ipv4Net;

use super::model;

/// How a NAT picks the public port of a flow (the mapping behaviour of RFC 4787, section 4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Endpoint-independent, keeping the client's own port where it is free.
    PortPreserving,
    /// Endpoint-independent, with public ports from this range. A narrow range runs out of ports.
    Range(RangeInclusive<u16>),
    /// Address-and-port-dependent ("symmetric"): each destination gets a random port of its own.
    Symmetric,
}

/// Which UDP the NAT lets out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UdpFilter {
    /// All of it.
    #[default]
    Open,
    /// None at all.
    Blocked,
    /// All but these destination ports.
    BlockedPorts(BTreeSet<u16>),
}

/// Share of datagrams that get lost, in tenths of a percent, either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss(u16);

impl Loss {
    /// No loss.
    pub const NONE: Self = Self(0);

    /// A loss of `tenths` tenths of a percent; more than 1000 counts as 1000.
    pub const fn per_mille(tenths: u16) -> Self {
        Self(if tenths > 1000 { 1000 } else { tenths })
    }

    /// A loss of `percent`; more than 100 counts as 100.
    pub const fn percent(percent: u16) -> Self {
        Self::per_mille(percent.saturating_mul(10))
    }

    /// The end of a rule that loses so much. None: it loses nothing.
    pub(super) fn verdict(self) -> Option<String> {
        match self.0 {
            0 => None,
            1000 => Some("drop".to_owned()),
            tenths => Some(format!("numgen random mod 1000 < {tenths} drop")),
        }
    }
}

impl From<Loss> for model::Loss {
    fn from(loss: Loss) -> Self {
        Self::percent(f64::from(loss.0) / 10.0)
    }
}

/// The behaviour of one netfilter NAT.
///
/// The kernel counts a flow as a stream only two seconds after its first datagram, so keep `udp_timeout` at
/// 5 s or more and `udp_stream_timeout` at 15 s or more when scaling time down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatProfile {
    /// Network on the inside; the NAT is its first address.
    pub inside: Ipv4Net,
    /// How public ports are picked.
    pub mapping: Mapping,
    /// Lifetime of a binding that has not seen traffic both ways for two seconds.
    pub udp_timeout: Duration,
    /// Lifetime of a binding that has.
    pub udp_stream_timeout: Duration,
    /// Which UDP gets out.
    pub udp: UdpFilter,
    /// How much UDP gets lost.
    pub loss: Loss,
    /// Lets no UDP in; what leaves, leaves, and keeps its mapping.
    pub deaf: bool,
}

impl NatProfile {
    /// An ordinary home router: port-preserving, 30 s, 120 s for streams (the kernel's defaults).
    pub const fn home() -> Self {
        Self {
            inside: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24),
            mapping: Mapping::PortPreserving,
            udp_timeout: Duration::from_secs(30),
            udp_stream_timeout: Duration::from_mins(2),
            udp: UdpFilter::Open,
            loss: Loss::NONE,
            deaf: false,
        }
    }

    /// A symmetric NAT, as in many companies.
    pub const fn symmetric() -> Self {
        let mut profile = Self::home();
        profile.inside = Ipv4Net::new_assert(Ipv4Addr::new(10, 20, 30, 0), 24);
        profile.mapping = Mapping::Symmetric;
        profile
    }

    /// A carrier's NAT: not port-preserving, and quicker to forget (RFC 6888 calls for two minutes; carriers
    /// with less are ordinary).
    pub const fn carrier() -> Self {
        let mut profile = Self::home().timeouts(Duration::from_secs(20), Duration::from_mins(1));
        profile.inside = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 24);
        profile.mapping = Mapping::Range(50_000..=50_999);
        profile
    }

    /// With other lifetimes of bindings.
    #[must_use]
    pub const fn timeouts(mut self, udp: Duration, stream: Duration) -> Self {
        self.udp_timeout = udp;
        self.udp_stream_timeout = stream;
        self
    }

    /// With another mapping behaviour.
    #[must_use]
    pub fn mapping(mut self, mapping: Mapping) -> Self {
        self.mapping = mapping;
        self
    }

    /// With loss.
    #[must_use]
    pub const fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// With another filter of UDP.
    #[must_use]
    pub fn udp(mut self, udp: UdpFilter) -> Self {
        self.udp = udp;
        self
    }
}

/// Interface to the outside of every NAT.
pub(crate) const WAN: &str = "wan0";
/// Bridge towards the inside of every NAT.
pub(crate) const LAN: &str = "lan0";

const TABLE: &str = "inet pinhole_nat";

/// The complete ruleset of a NAT, which replaces the one before in one transaction. Each `reboot` moves the
/// public ports to another range, so that a rebind is always visible.
pub(crate) fn ruleset(profile: &NatProfile, reboot: u32) -> String {
    let mut rules = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    let _ = write!(
        rules,
        "  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname \"{WAN}\" meta nfproto ipv4 meta l4proto udp {udp}
    oifname \"{WAN}\" meta nfproto ipv4 masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
{filter}    iifname \"{WAN}\" ct state new,invalid drop
  }}
  chain input {{
    type filter hook input priority filter;
    iifname \"{WAN}\" ct state new,invalid drop
  }}
}}
",
        udp = masquerade(&profile.mapping, reboot),
        filter = filter(profile),
    );
    rules
}

fn masquerade(mapping: &Mapping, reboot: u32) -> String {
    match (mapping, reboot) {
        (Mapping::PortPreserving, 0) => "masquerade".to_owned(),
        (Mapping::Symmetric, 0) => "masquerade random,fully-random".to_owned(),
        (Mapping::Range(ports), _) => {
            let (first, last) = shifted(ports, reboot);
            format!("masquerade to :{first}-{last}")
        }
        (Mapping::PortPreserving, _) => {
            let (first, last) = fresh(reboot);
            format!("masquerade to :{first}-{last}")
        }
        (Mapping::Symmetric, _) => {
            let (first, last) = fresh(reboot);
            format!("masquerade to :{first}-{last} random,fully-random")
        }
    }
}

/// A range of a thousand ports that the `reboot`s before did not use.
fn fresh(reboot: u32) -> (u16, u16) {
    let slot = u16::try_from(reboot.saturating_sub(1) % 40).unwrap_or_default();
    let first = 20_000 + slot * 1000;
    (first, first + 999)
}

/// The range moved by its own width, and back to 1024 where it would end beyond 65535.
fn shifted(ports: &RangeInclusive<u16>, reboot: u32) -> (u16, u16) {
    let width = u32::from(ports.end().saturating_sub(*ports.start())) + 1;
    if reboot == 0 {
        return (*ports.start(), *ports.end());
    }
    let slots = ((65_536 - 1024) / width).max(1);
    let origin = u32::from(*ports.start()).saturating_sub(1024) / width;
    // The range may straddle the slot it begins in and the next one: the first move skips both.
    let first = 1024 + (origin + 1 + reboot) % slots * width;
    let narrow = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
    (narrow(first), narrow(first + width - 1))
}

fn filter(profile: &NatProfile) -> String {
    let mut rules = String::new();
    if let Some(verdict) = profile.loss.verdict() {
        let _ = writeln!(rules, "    meta l4proto udp {verdict}");
    }
    if profile.deaf {
        let _ = writeln!(rules, "    iifname \"{WAN}\" meta l4proto udp drop");
    }
    match &profile.udp {
        UdpFilter::Blocked => rules.push_str("    meta l4proto udp drop\n"),
        UdpFilter::BlockedPorts(ports) if !ports.is_empty() => {
            let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let _ = writeln!(rules, "    oifname \"{WAN}\" udp dport {{ {list} }} drop");
        }
        UdpFilter::Open | UdpFilter::BlockedPorts(_) => {}
    }
    rules
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_home_router_masquerades_and_drops_what_nobody_asked_for() {
        let rules = ruleset(&NatProfile::home(), 0);
        assert!(rules.contains("meta l4proto udp masquerade\n"), "{rules}");
        assert!(rules.contains("iifname \"wan0\" ct state new,invalid drop"), "{rules}");
        assert!(!rules.contains("numgen"), "{rules}");
    }

    #[test]
    fn a_symmetric_nat_randomises() {
        assert!(ruleset(&NatProfile::symmetric(), 0).contains("masquerade random,fully-random"));
        assert!(ruleset(&NatProfile::symmetric(), 2).contains("to :21000-21999 random,fully-random"));
    }

    #[test]
    fn loss_and_filters_come_before_anything_is_let_through() {
        let ports = BTreeSet::from([51_820, 443]);
        let profile = NatProfile::home().loss(Loss::percent(5)).udp(UdpFilter::BlockedPorts(ports));
        let rules = ruleset(&profile, 0);
        assert!(rules.contains("numgen random mod 1000 < 50 drop"), "{rules}");
        assert!(rules.contains("udp dport { 443, 51820 } drop"), "{rules}");
    }

    proptest! {
        #[test]
        fn a_reboot_always_moves_the_ports(start in 1024_u16..60_000, width in 1_u16..2000, reboot in 1_u32..99) {
            let ports = start..=start.saturating_add(width - 1);
            let (before, after) = (shifted(&ports, reboot - 1), shifted(&ports, reboot));
            prop_assert!(after.0 >= 1024 && after.0 <= after.1);
            prop_assert_eq!(after.1 - after.0, ports.end() - ports.start());
            prop_assert!(after.1 < before.0 || after.0 > before.1, "{:?} then {:?}", before, after);
            prop_assert_ne!(fresh(reboot), fresh(reboot + 1));
        }
    }
}
