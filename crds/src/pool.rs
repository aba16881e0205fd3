//! `VPNClientPool`: addresses, routes, DNS, and who may enrol.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    AddressRange, ClientCounts, HealthMode, Keepalive, NatSummary,
    addressing::{addresses_schema, cidr_schema, cidrs_schema, pool_cidrs_schema},
    gateway::Moment,
    naming::{LABEL, LETTERED_LABEL, WORD, is_domain, labels_schema},
};

/// A pool of clients of one gateway: their addresses, routes, DNS, and who may enrol.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "VPNClientPool",
    plural = "vpnclientpools",
    shortname = "vcp",
    category = "pinhole",
    namespaced,
    status = "VPNClientPoolStatus",
    derive = "PartialEq",
    doc = "A pool of clients of one gateway: their addresses, routes, DNS, and who may enrol.",
    selectable = ".spec.gatewayRef.name",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gatewayRef.name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Allocated", type_ = "integer", json_path = ".status.capacity.allocated"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.capacity.free"),
    printcolumn(name = "Connected", type_ = "integer", json_path = ".status.clients.connected"),
    printcolumn(name = "Lifetime", type_ = "string", priority = 1, json_path = ".status.nat.medianLifetime"),
    printcolumn(name = "Rebinds/h", type_ = "integer", priority = 1, json_path = ".status.nat.rebindsPerHour"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: must be a DNS label of at most 40 characters that starts with a letter: Services and Secrets are named after it")
)]
#[serde(rename_all = "camelCase")]
pub struct VPNClientPoolSpec {
    /// The gateway, in the pool's own namespace, that serves this pool. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("gatewayRef: cannot be changed: clients hold its keys; make a new pool for the other gateway"))]
    pub gateway_ref: GatewayRef,
    /// Prefixes that clients get their addresses from, IPv4, IPv6 or both; a client gets one address of each
    /// family. Prefixes can be added, not removed.
    #[schemars(schema_with = "pool_cidrs_schema")]
    #[x_kube(
        validation = Rule::new("self.all(c, isCIDR(c))")
            .message("cidrs: holds what is not a CIDR prefix: write each as 10.77.0.0/16 or fd77::/64"),
        validation = Rule::new("self.all(c, !isCIDR(c) || cidr(c) == cidr(c).masked())")
            .message("cidrs: a prefix has host bits set: write its network address, such as 10.77.0.0/16 for 10.77.0.1/16"),
        validation = Rule::new("self.all(c, !isCIDR(c) || (cidr(c).ip().family() == 4 ? cidr(c).prefixLength() >= 8 && cidr(c).prefixLength() <= 30 : cidr(c).prefixLength() >= 48 && cidr(c).prefixLength() <= 126))")
            .message("cidrs: a prefix is too large or too small: use /8 to /30 for IPv4 and /48 to /126 for IPv6"),
        validation = Rule::new("self.all(c, self.exists_one(d, isCIDR(c) && isCIDR(d) && cidr(c).ip().family() == cidr(d).ip().family() && (cidr(c).containsCIDR(d) || cidr(d).containsCIDR(c))) || !isCIDR(c))")
            .message("cidrs: two prefixes overlap: remove the one that the other contains"),
        validation = Rule::new("oldSelf.all(c, c in self)")
            .message("cidrs: a prefix was removed: clients may hold its addresses; add it back, and make a new pool to leave it"),
    )]
    pub cidrs: Vec<IpNet>,
    /// Addresses that are not given out: single ones, prefixes, or `FIRST-LAST`. The first address of every
    /// prefix is the gateway's and needs no mention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.all(r, isIP(r) || isCIDR(r) || (r.indexOf('-') > 0 && isIP(r.substring(0, r.indexOf('-'))) && isIP(r.substring(r.indexOf('-') + 1)) && ip(r.substring(0, r.indexOf('-'))).family() == ip(r.substring(r.indexOf('-') + 1)).family()))")
        .message("reserved: holds what is no range: write an address, a prefix, or FIRST-LAST such as 10.77.0.1-10.77.0.20"))]
    pub reserved: Vec<AddressRange>,
    /// Prefixes that clients reach through the tunnel, whatever they have in their own configuration. Only the gateway itself,
    /// by ping, when empty. Link-local addresses, metadata services of clouds, and the clients of other pools are not reached
    /// even where a prefix holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cidrs_schema")]
    #[x_kube(
        validation = Rule::new("self.all(c, isCIDR(c))")
            .message("routes: holds what is not a CIDR prefix: write each as 10.96.0.0/12; 0.0.0.0/0 sends everything"),
        validation = Rule::new("self.all(c, !isCIDR(c) || cidr(c) == cidr(c).masked())")
            .message("routes: a prefix has host bits set: write its network address"),
    )]
    pub routes: Vec<IpNet>,
    /// True: clients of this pool reach one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_to_client: Option<bool>,
    /// Name resolution of clients while the tunnel is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Who may enrol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<Enrolment>,
    /// Most clients that may be enrolled at a time. As many as there are addresses when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_clients: Option<i64>,
    /// Keepalive policy, in place of the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// Health mode, in place of the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_mode: Option<HealthMode>,
}

/// A gateway in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
pub struct GatewayRef {
    /// Its name.
    #[schemars(length(min = 1, max = 40), regex(pattern = LETTERED_LABEL))]
    pub name: String,
}

/// Name resolution of clients while the tunnel is up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Resolvers, reached through the tunnel: outside of `routes` for DNS alone (ports 53 and 853). Link-local ones are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses_schema")]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a))")
        .message("dns.servers: holds what is not an IP address: write addresses, such as the cluster DNS 10.96.0.10"))]
    pub servers: Vec<std::net::IpAddr>,
    /// Search domains, such as `svc.cluster.local`; at most 32, of which C libraries before glibc 2.26 and musl use
    /// the first six.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(format!("self.all(d, {})", is_domain("d")))
        .message("dns.search: holds what is no domain name: write each as svc.cluster.local: labels of at most 63 letters, digits, '-' and '_', none of which begins or ends with '-', the last one no number"))]
    pub search: Vec<String>,
}

/// Who may enrol in a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Enrolment {
    /// Join tokens. Each becomes a Secret `POOL-token-NAME`, which `pinhole up` reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tokens: Vec<JoinToken>,
    /// Pods that may carry a sidecar client. None when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecars: Option<Sidecars>,
}

/// A token that lets machines enrol.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// Name of the token within the pool.
    #[schemars(length(min = 1, max = 40), regex(pattern = LABEL))]
    pub name: String,
    /// How many clients may enrol with it, ever. Any number when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub uses: Option<i64>,
    /// When it ends. Never when unset. Clients that enrolled before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// True: nobody enrols with it any more, and its Secret is gone. Clients that enrolled before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,
    /// Group that clients enrolled with it belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = WORD))]
    pub group: Option<String>,
}

/// Pods that may carry a sidecar client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sidecars {
    /// Namespaces whose pods may join. The pool's own namespace when unset; `{}` selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<NamespaceSelector>,
}

/// Selects namespaces by name or by label; a namespace matches when either does, and `{}` matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63), regex(pattern = LABEL)))]
    pub names: Vec<String>,
    /// Labels that a namespace must carry, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub match_labels: BTreeMap<String, String>,
}

/// What is known of a pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VPNClientPoolStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready and AddressesAvailable, and Reconciling, Stalled or PartiallyInvalid while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Addresses of the scarcer family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<PoolCapacity>,
    /// What clients reach through the tunnel: all of it, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 96))]
    pub reachable: Vec<Reachable>,
    /// Clients by phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientCounts>,
    /// The NATs that its clients are behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatSummary>,
    /// Join tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tokens: Vec<TokenStatus>,
    /// What its clients depend on, as it was last understood: an operator that does not understand the spec goes on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<PoolInForce>,
}

/// What a pool's clients depend on, as an operator last understood it. No later version changes the form of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolInForce {
    /// Name of the gateway that serves it.
    pub gateway: String,
    /// Prefixes that clients get their addresses from.
    #[schemars(schema_with = "pool_cidrs_schema")]
    pub cidrs: Vec<IpNet>,
    /// Addresses that are not given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub reserved: Vec<AddressRange>,
    /// Prefixes that clients reach through the tunnel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "cidrs_schema")]
    pub routes: Vec<IpNet>,
    /// Whether clients of the pool reach one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_to_client: Option<bool>,
    /// Name resolution of clients while the tunnel is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

impl From<&VPNClientPoolSpec> for PoolInForce {
    fn from(spec: &VPNClientPoolSpec) -> Self {
        Self {
            gateway: spec.gateway_ref.name.clone(),
            cidrs: spec.cidrs.clone(),
            reserved: spec.reserved.clone(),
            routes: spec.routes.clone(),
            client_to_client: spec.client_to_client,
            dns: spec.dns.clone(),
        }
    }
}

/// Destinations that a pool's clients reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reachable {
    /// Their prefix.
    #[schemars(schema_with = "cidr_schema")]
    pub destination: IpNet,
    /// What is reached there.
    pub scope: ReachableScope,
}

/// What is reached at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ReachableScope {
    /// The gateway, which answers pings.
    Gateway,
    /// Whatever is there.
    All,
    /// DNS.
    #[serde(rename = "DNS")]
    Dns,
    /// Other clients of the pool.
    Clients,
}

/// Addresses of a pool, counted in the family that has fewest. Counts stop at 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolCapacity {
    /// Clients that the pool can hold.
    pub total: i64,
    /// Clients that hold addresses.
    pub allocated: i64,
    /// Clients that can still come.
    pub free: i64,
}

/// One join token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenStatus {
    /// Name of the token within the pool.
    pub name: String,
    /// Whether it can be used.
    pub state: TokenState,
    /// Clients that enrolled with it.
    pub used: i64,
    /// Secret that holds it. Unset when revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Last enrolment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Moment,
}

/// Whether a token can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TokenState {
    /// It can.
    Active,
    /// Its time is over.
    Expired,
    /// All of its uses were made.
    UsedUp,
    /// Somebody ended it.
    Revoked,
}
