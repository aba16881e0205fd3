//! What is shown of the NATs in front of a client, of its mapping, and of how that moves.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Interval, gateway::Moment};

/// Whether something is so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Finding {
    /// It was not measured, or cannot be from where somebody listens.
    #[default]
    Unknown,
    /// It is.
    True,
    /// It is not.
    False,
}

/// What kind of NAT a client is behind, in one word: how it maps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
pub enum NatClass {
    /// Nothing was measured yet.
    #[default]
    Unknown,
    /// No NAT: the client has its public address itself.
    NoNAT,
    /// There is a NAT; how it maps is not known.
    NAT,
    /// One public ip:port towards everybody.
    EndpointIndependent,
    /// The same public ip:port towards two ports of one address; no second address was there to ask.
    NotPortDependent,
    /// Another public ip:port towards a second address; whether the port counts too could not be asked.
    EndpointDependent,
    /// Another public ip:port towards each address.
    AddressDependent,
    /// Another public ip:port towards each address and port: a symmetric NAT.
    AddressAndPortDependent,
}

impl NatClass {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::NoNAT,
        Self::NAT,
        Self::EndpointIndependent,
        Self::NotPortDependent,
        Self::EndpointDependent,
        Self::AddressDependent,
        Self::AddressAndPortDependent,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::NoNAT => "NoNAT",
            Self::NAT => "NAT",
            Self::EndpointIndependent => "EndpointIndependent",
            Self::NotPortDependent => "NotPortDependent",
            Self::EndpointDependent => "EndpointDependent",
            Self::AddressDependent => "AddressDependent",
            Self::AddressAndPortDependent => "AddressAndPortDependent",
        }
    }
}

/// How a NAT chooses the public side of a mapping (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NatMapping {
    /// Not measured.
    #[default]
    Unknown,
    /// The same towards everybody.
    EndpointIndependent,
    /// The same towards two ports of one address; no second address was there to ask.
    NotPortDependent,
    /// Another towards a second address; whether the port counts too could not be asked.
    EndpointDependent,
    /// Another towards each address.
    AddressDependent,
    /// Another towards each address and port.
    AddressAndPortDependent,
}

/// Whose packets a NAT lets in through a mapping (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NatFiltering {
    /// Not measured.
    #[default]
    Unknown,
    /// Everybody's.
    EndpointIndependent,
    /// Those of another port of a known address; no second address was there to try.
    NotPortDependent,
    /// Not those of a second address; whether the port counts too could not be tried.
    EndpointDependent,
    /// Those of addresses that were sent to.
    AddressDependent,
    /// Those of addresses and ports that were sent to.
    AddressAndPortDependent,
}

/// How a NAT chooses public ports (RFC 4787, section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PortAllocation {
    /// Not measured.
    #[default]
    Unknown,
    /// The client's own port, unless it is taken.
    Preserved,
    /// One after the other.
    Sequential,
    /// At random.
    Random,
}

/// Who measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Vantage {
    /// The client's agent, with probes.
    Client,
    /// The gateway alone, from packets that came by themselves: a client without an agent.
    Gateway,
}

/// The NATs between a client and its gateway. What was not measured is Unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatBehaviour {
    /// In one word: how it maps.
    pub class: NatClass,
    /// Public address that the client's packets come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_address: Option<String>,
    /// How the public side of a mapping is chosen.
    pub mapping: NatMapping,
    /// Whose packets get in.
    pub filtering: NatFiltering,
    /// How public ports are chosen.
    pub port_allocation: PortAllocation,
    /// Whether odd ports stay odd and even ones even.
    pub port_parity: Finding,
    /// Step between ports that are given one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_delta: Option<i32>,
    /// Whether two clients behind it reach each other by their public addresses.
    pub hairpin: Finding,
    /// Whether the client's packets keep a mapping alive.
    pub refresh_outbound: Finding,
    /// Whether packets to the client keep a mapping alive.
    pub refresh_inbound: Finding,
    /// Whether mappings that saw traffic both ways for a while live longer than new ones.
    pub two_class: Finding,
    /// Whether something on the path rewrites payloads or drops by port number.
    pub helper_interference: Finding,
    /// Whether there is more than one NAT.
    pub double_nat: Finding,
    /// Who measured. Unset: nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_by: Option<Vantage>,
}

/// How well a mapping's lifetime is known.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
pub enum BindingConfidence {
    /// Nothing was measured.
    #[default]
    Unknown,
    /// It lives for `atLeast`; its end was not seen.
    Growing,
    /// Between two measured values.
    Bracketed,
    /// The bracket is narrow, and holds under use.
    Confirmed,
}

/// How long the NAT keeps a client's mapping without traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BindingLifetime {
    /// A mapping in use lived for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Interval>,
    /// A mapping in use was gone after so long. Unset: none was seen to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub less_than: Option<Interval>,
    /// Lifetime of a new mapping, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpromoted: Option<Interval>,
    /// How long after its first packet a new mapping must see another one to live longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_after: Option<Interval>,
    /// How well it is known.
    pub confidence: BindingConfidence,
    /// Since when it is known so well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Moment,
    /// Who measured. Unset: nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_by: Option<Vantage>,
}

/// A client's service level, as the gateway replica that serves it has kept it since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reachability {
    /// Share of time in which it was proven reachable, in percent, rounded down, such as `99.95`. Time counts from its first
    /// packet on, but not after a goodbye, nor after 15 minutes of silence, when it is taken to be switched off.
    pub percent: String,
    /// The longest time without proof when one was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_gap: Option<Interval>,
}

/// Why a mapping moved or went.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
pub enum ChurnCause {
    /// Nobody could tell.
    #[default]
    Unknown,
    /// Another public ip:port for the same local address.
    MappingChanged,
    /// The mapping was gone, and came back as the same ip:port.
    MappingLost,
    /// The NAT keeps mappings for a shorter time than it did.
    LifetimeShrank,
    /// Many clients of one public address changed together.
    NATRestart,
    /// The client's own address or route changed.
    Roam,
    /// UDP is not answered on any port.
    UDPBlocked,
    /// Something on the path rewrites or blocks.
    HelperInterference,
    /// The client went to another replica of the gateway.
    GatewayMoved,
}

impl ChurnCause {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::MappingChanged,
        Self::MappingLost,
        Self::LifetimeShrank,
        Self::NATRestart,
        Self::Roam,
        Self::UDPBlocked,
        Self::HelperInterference,
        Self::GatewayMoved,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::MappingChanged => "MappingChanged",
            Self::MappingLost => "MappingLost",
            Self::LifetimeShrank => "LifetimeShrank",
            Self::NATRestart => "NATRestart",
            Self::Roam => "Roam",
            Self::UDPBlocked => "UDPBlocked",
            Self::HelperInterference => "HelperInterference",
            Self::GatewayMoved => "GatewayMoved",
        }
    }
}

/// The NATs of many clients. Figures are rounded and follow with some delay; the exact ones are in the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatSummary {
    /// Clients by NAT class. Those of which nothing is known are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<NatClass, i64>,
    /// Median of the measured lifetimes (`atLeast`) of mappings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_lifetime: Option<Interval>,
    /// Least of the measured lifetimes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lifetime: Option<Interval>,
    /// Mappings that moved or went within the last hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebinds_per_hour: Option<i64>,
}
