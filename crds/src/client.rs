//! `VPNClient`: one client of a pool.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BindingLifetime, ChurnCause, Interval, Keepalive, KeepaliveMode, NatBehaviour, Reachability,
    StandbyInForce,
    addressing::addresses_schema,
    gateway::Moment,
    naming::{LABEL, LETTERED_LABEL, SUBDOMAIN, UID, WORD},
};

/// One client of a pool. Agents make theirs when they enrol; for a stock WireGuard client, a user makes it.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "VPNClient",
    plural = "vpnclients",
    shortname = "vc",
    category = "pinhole",
    namespaced,
    status = "VPNClientStatus",
    derive = "PartialEq",
    doc = "One client of a pool. Agents make theirs when they enrol; for a stock WireGuard client, a user makes it.",
    selectable = ".spec.poolRef.name",
    selectable = ".spec.suspended",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.poolRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "NAT", type_ = "string", json_path = ".status.nat.class"),
    printcolumn(name = "Keepalive", type_ = "string", json_path = ".status.keepalive.interval"),
    printcolumn(name = "Moves", type_ = "integer", json_path = ".status.churn.count"),
    printcolumn(name = "Moved", type_ = "date", json_path = ".status.churn.lastChange"),
    printcolumn(name = "Cause", type_ = "string", priority = 1, json_path = ".status.churn.lastCause"),
    printcolumn(name = "Lifetime", type_ = "string", priority = 1, json_path = ".status.binding.atLeast"),
    printcolumn(name = "Why", type_ = "string", priority = 1, json_path = ".status.keepalive.reason"),
    printcolumn(name = "Reachable", type_ = "string", priority = 1, json_path = ".status.reachability.percent"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type=='Connected')].reason"),
    printcolumn(name = "Gateway", type_ = "string", priority = 1, json_path = ".status.replica"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: must be a DNS label of at most 63 characters: a Secret and a certificate are named after it")
)]
#[serde(rename_all = "camelCase")]
pub struct VPNClientSpec {
    /// The pool, in the client's own namespace, that it belongs to. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("poolRef: cannot be changed: its address and keys are of this pool; make a new VPNClient"))]
    pub pool_ref: PoolRef,
    /// WireGuard public key, base64. When unset the operator makes a key pair, for a stock WireGuard client, and
    /// keeps it in the Secret `NAME-wireguard` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 44, max = 44), regex(pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))]
    pub public_key: Option<String>,
    /// Fixed addresses, at most one of each family, within the pool's prefixes. Chosen by the operator, and kept,
    /// when unset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses_schema")]
    #[x_kube(
        validation = Rule::new("self.all(a, isIP(a))")
            .message("addresses: holds what is not an IP address: write plain addresses, such as 10.77.0.9"),
        validation = Rule::new("self.filter(a, isIP(a) && ip(a).family() == 4).size() <= 1 && self.filter(a, isIP(a) && ip(a).family() == 6).size() <= 1")
            .message("addresses: holds more than one of a family: keep one IPv4 and one IPv6 address at most"),
    )]
    pub addresses: Vec<IpAddr>,
    /// True: it may not connect; it keeps its address and keys. A join token that it enrolled with admits no new client
    /// meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
    /// When its right to connect ends, by the gateway's clock too. Never when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Keepalive policy, in place of the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// Group that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = WORD))]
    pub group: Option<String>,
    /// How an agent enrolled; written by the operator at enrolment. Unset: a stock WireGuard client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("enrolment: is a record and cannot be changed"))]
    pub enrolment: Option<ClientEnrolment>,
}

/// A pool in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct PoolRef {
    /// Its name.
    #[schemars(length(min = 1, max = 40), regex(pattern = LETTERED_LABEL))]
    pub name: String,
}

/// How an agent enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientEnrolment {
    /// By which credential.
    pub method: EnrolmentMethod,
    /// Method Token: the token's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = LABEL))]
    pub token: Option<String>,
    /// Method ServiceAccount: the pod that carries the sidecar. The client goes when the pod does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ClientPod>,
    /// What the machine called itself; `-` stands for what is no letter, digit, `.` or `_`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = WORD))]
    pub hostname: Option<String>,
}

/// Credentials that agents enrol with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum EnrolmentMethod {
    /// A join token of the pool.
    Token,
    /// A pod's ServiceAccount token.
    ServiceAccount,
}

/// The pod that carries a sidecar client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientPod {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub name: String,
    /// Its UID: a pod made anew under the name is another client.
    #[schemars(length(min = 1, max = 64), regex(pattern = UID))]
    pub uid: String,
}

/// What is known of a client.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VPNClientStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready and Connected, and Reconciling, Stalled, Degraded, PartiallyInvalid, KeyOnTwoMachines or ClockSkew while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where it stands. Never Connected without an authenticated receive lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ClientPhase>,
    /// WireGuard public key in force, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Its addresses inside the tunnel: one of each of the pool's families, for as long as it exists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses_schema")]
    pub addresses: Vec<IpAddr>,
    /// Public `ip:port` that its packets come from, as the gateway sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Gateway replica that it speaks to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Last completed handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Moment,
    /// The NATs between it and the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatBehaviour>,
    /// How long its NAT keeps a mapping without traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<BindingLifetime>,
    /// Keepalive interval in force, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<KeepaliveInForce>,
    /// Moves and losses of its NAT mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    /// By what it is reached while it is idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyInForce>,
    /// For how long it was proven reachable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachability: Option<Reachability>,
    /// Secret with the configuration of a stock WireGuard client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_secret: Option<String>,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum ClientPhase {
    /// Known, not yet given what it needs to connect.
    Pending,
    /// A bidirectional exchange was confirmed on the active path, recently enough to know.
    Connected,
    /// As Connected, but its machine lacks something that the pool promises: a route, a name server.
    Degraded,
    /// Asleep: it keeps no mapping for the tunnel, and is woken over its session, which was proven recently enough to know.
    Standby,
    /// No usable path; session and address are kept.
    Dormant,
    /// A path is back, the exchange is not confirmed yet.
    WaitingToReconnect,
    /// Not seen by any gateway replica.
    Disconnected,
    /// Not allowed to connect.
    Suspended,
    /// The gateway's reports stopped: nobody knows.
    Unknown,
}

impl ClientPhase {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Connected => "Connected",
            Self::Degraded => "Degraded",
            Self::Standby => "Standby",
            Self::Dormant => "Dormant",
            Self::WaitingToReconnect => "WaitingToReconnect",
            Self::Disconnected => "Disconnected",
            Self::Suspended => "Suspended",
            Self::Unknown => "Unknown",
        }
    }
}

/// The keepalive interval in force.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeepaliveInForce {
    /// Time between keepalives when there is no traffic.
    pub interval: Interval,
    /// Adaptive or Fixed.
    pub mode: KeepaliveMode,
    /// Why this interval: `Policy` (configured), `Initial` (nothing learnt yet), `Learning` (being measured),
    /// `Learnt` (just below the measured lifetime), `Cached` (learnt before or by a neighbour, and confirmed),
    /// `Backoff` (shortened, since mappings were lost lately), `GatewayObserved` (recommended from the gateway's
    /// side alone, for a client without an agent).
    pub reason: String,
    /// Wake-ups saved since the agent started, against a static keepalive of 25 s. Counted by the agent; renewed
    /// here only now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wakes_saved: Option<i64>,
}

/// Moves and losses of a client's NAT mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Churn {
    /// How often its packets came from another ip:port than before, or its mapping was found lost.
    pub count: i64,
    /// Why, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cause: Option<ChurnCause>,
    /// The last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_change: Moment,
    /// ip:port before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// ip:port after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Silence before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Interval>,
}

impl VPNClientSpec {
    /// Whether a stock WireGuard client is meant: one without an agent.
    pub fn is_stock(&self) -> bool {
        self.enrolment.is_none()
    }
}
