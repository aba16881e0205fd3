//! `VPNGateway`: WireGuard endpoints in the cluster.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Interval, Keepalive, NatSummary,
    naming::{IMAGE, QUALIFIED, SUBDOMAIN, is_domain, labels_schema},
};

/// A VPN gateway: WireGuard endpoints in this cluster for clients that live behind NATs.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "VPNGateway",
    plural = "vpngateways",
    shortname = "vgw",
    category = "pinhole",
    namespaced,
    status = "VPNGatewayStatus",
    derive = "PartialEq",
    doc = "A VPN gateway: WireGuard endpoints in this cluster for clients that live behind NATs.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.readyReplicas"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Exposure", type_ = "string", json_path = ".spec.exposure.type"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "Connected", type_ = "integer", json_path = ".status.clients.connected"),
    printcolumn(name = "Clients", type_ = "integer", json_path = ".status.clients.total"),
    printcolumn(name = "Lifetime", type_ = "string", priority = 1, json_path = ".status.nat.medianLifetime"),
    printcolumn(name = "Rebinds/h", type_ = "integer", priority = 1, json_path = ".status.nat.rebindsPerHour"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: must be a DNS label of at most 40 characters that starts with a letter: Services and pods are named after it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.exposure.nodePorts) || self.exposure.type != 'HostPort'")
        .message("exposure.nodePorts: has no meaning with type HostPort: remove it, or use type NodePort; host ports are set in spec.ports"),
    validation = Rule::new("!has(self.exposure.loadBalancerClass) || self.exposure.type == 'LoadBalancer'")
        .message("exposure.loadBalancerClass: is for type LoadBalancer only: remove it or change exposure.type"),
    validation = Rule::new("!has(self.exposure.nodePorts) || !has(self.replicas) || self.replicas <= 1")
        .message("exposure.nodePorts: fixed node ports serve one replica only: remove nodePorts or set replicas to 1"),
    validation = Rule::new("!has(self.exposure.addresses) || self.exposure.addresses.size() == 0 || self.exposure.type == 'NodePort' || !has(self.replicas) || self.replicas <= 1")
        .message("exposure.addresses: cannot lead to several replicas on the same ports, for each has a key of its own: set replicas to 1, use type NodePort, or make a VPNGateway for each address"),
    validation = Rule::new("!has(self.exposure.servicePerProtocol) || !self.exposure.servicePerProtocol || self.exposure.type == 'LoadBalancer'")
        .message("exposure.servicePerProtocol: is for type LoadBalancer only: remove it or change exposure.type"),
)]
pub struct VPNGatewaySpec {
    /// Endpoints, each with a key and an address of its own; clients fail over between them by themselves.
    /// 1 to 16, 1 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: Option<i32>,
    /// How clients outside of the cluster reach the gateway.
    pub exposure: Exposure,
    /// Port numbers that clients use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<GatewayPorts>,
    /// Keepalive policy of all clients, unless their pool says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// How clients prove that their path is alive. Loopback when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_mode: Option<HealthMode>,
    /// What clients appear as inside the cluster. Masquerade when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_access: Option<NetworkAccess>,
    /// Bytes of the largest inner packet: the path's MTU less 60 (IPv4) or 80 (IPv6). 1280 to 8920, 1420 when
    /// unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 8920))]
    pub mtu: Option<u16>,
    /// What the gateway's pods need to fit into this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<GatewayPod>,
}

/// How clients outside of the cluster reach a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// LoadBalancer, NodePort or HostPort.
    #[serde(rename = "type")]
    pub type_: ExposureType,
    /// Addresses or DNS names that clients are told, in place of those that the cluster reports: for a gateway
    /// behind an address translator of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new(format!("self.all(a, isIP(a) || {})", is_domain("a")))
        .message("addresses: holds what is neither an IP address nor a DNS name: write hosts only, ports are set in spec.ports"))]
    pub addresses: Vec<String>,
    /// Type LoadBalancer: the implementation to use. The cluster's default when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = QUALIFIED))]
    pub load_balancer_class: Option<String>,
    /// Type LoadBalancer: a Service for the tunnel (UDP) and another for the session (TCP) of each replica, each with an
    /// address of its own, for load balancers that carry one protocol only. One Service for both when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_per_protocol: Option<bool>,
    /// Annotations for the Services, as load balancers want them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fixed node ports. The cluster chooses when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePorts>,
}

/// Kinds of [`Exposure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ExposureType {
    /// A Service of type LoadBalancer for each replica.
    LoadBalancer,
    /// A Service of type NodePort for each replica.
    NodePort,
    /// Ports of the node that the replica runs on; at most one replica a node.
    HostPort,
}

/// Port numbers that clients use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.tunnel) ? self.tunnel : 51820) != (has(self.session) ? self.session : 51821)")
        .message("session: is the same number as tunnel: many load balancers cannot carry UDP and TCP on one number; choose another, such as 51821"),
)]
pub struct GatewayPorts {
    /// UDP port of the tunnel. 51820 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub tunnel: Option<u16>,
    /// TCP port of the client session. 51821 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub session: Option<u16>,
}

/// Fixed node ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.tunnel != self.session")
        .message("session: is the same number as tunnel: choose two node ports"),
)]
pub struct NodePorts {
    /// Node port (UDP) of the tunnel.
    #[schemars(range(min = 1, max = 65535))]
    pub tunnel: u16,
    /// Node port (TCP) of the client session.
    #[schemars(range(min = 1, max = 65535))]
    pub session: u16,
}

/// How clients prove that their path is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HealthMode {
    /// Probes inside the tunnel check the inbound path, and keep the NAT's mapping open.
    #[default]
    Loopback,
    /// No probe traffic: the link and the user's own packets are watched. Cheaper, and blind while idle.
    LinkStatus,
}

/// What clients appear as inside the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NetworkAccess {
    /// As the gateway's pod: works everywhere.
    #[default]
    Masquerade,
    /// As themselves: the network must route the pool's prefixes to the gateway's pods.
    Routed,
}

/// What the gateway's pods need to fit into a cluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.removeAfterNodeLoss) || (duration(self.removeAfterNodeLoss) >= duration('1m') && duration(self.removeAfterNodeLoss) <= duration('24h'))")
        .message("removeAfterNodeLoss: is out of range: use 1m to 24h"),
)]
pub struct GatewayPod {
    /// Image of the agent. The operator's own default when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = IMAGE))]
    pub image: Option<String>,
    /// Requests and limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Nodes that may run a replica.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that replicas tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity, in place of the default that spreads replicas over nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Further annotations on the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Further labels on the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub priority_class_name: Option<String>,
    /// Set the pod sysctl `net.ipv6.conf.all.forwarding=1`, which IPv6 clients need to reach beyond the
    /// gateway. The kubelet must allow it (`--allowed-unsafe-sysctls`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_forwarding: Option<bool>,
    /// Remove a pod by force once its node has not been heard of for this long, so that another node runs the replica.
    /// 1m to 24h; never when unset. Kubernetes itself waits for a person, because a node that is only cut off runs the
    /// pod still: then two pods have one key, and tunnels go to and fro between them until that node is back or off.
    /// The operator needs the right to it (chart value `rbac.removeLostPods`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_after_node_loss: Option<Interval>,
}

/// What is known of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VPNGatewayStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and Reconciling, Stalled or PartiallyInvalid while True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Hosts at which clients reach the gateway: addresses, or the names that a load balancer gave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Replicas that proved their data path lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Each replica.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub replicas: Vec<ReplicaStatus>,
    /// Clients of all pools of this gateway, by phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientCounts>,
    /// The NATs that its clients are behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatSummary>,
}

/// One replica of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Name of the pod.
    pub name: String,
    /// WireGuard public key, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// `host:port` of the tunnel (UDP).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnel_endpoints: Vec<String>,
    /// `host:port` of the client session (TCP).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_endpoints: Vec<String>,
    /// Whether the replica reports to the operator at present.
    pub attached: bool,
    /// How its data path was last proven. Unset: not lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_proof: Option<PathProof>,
    /// What the replica could not set up, by category.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub impairments: Vec<String>,
}

/// How a replica's data path was proven: always an authenticated receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathProof {
    /// A client's packet.
    ClientTraffic,
    /// An exchange of its own through the published endpoint.
    PublishedEndpoint,
    /// An exchange of its own through the pod's address: the way from outside is not proven.
    PodAddress,
}

/// Clients by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCounts {
    /// All of them.
    pub total: i64,
    /// A bidirectional exchange was confirmed lately. Degraded ones are among them.
    pub connected: i64,
    /// Asleep, and woken over their sessions.
    #[serde(default)]
    pub standby: i64,
    /// A path is back, the exchange is not confirmed yet.
    pub waiting_to_reconnect: i64,
    /// No usable path; session and address kept.
    pub dormant: i64,
    /// Never seen, said goodbye, or unknown because reports stopped.
    pub disconnected: i64,
    /// Not allowed to connect.
    pub suspended: i64,
}

/// When something was last seen to happen.
pub(crate) type Moment = Option<Time>;

impl VPNGatewaySpec {
    /// Replicas in force.
    pub fn replicas_or_default(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }

    /// UDP port of the tunnel in force.
    pub fn tunnel_port(&self) -> u16 {
        self.ports.as_ref().and_then(|p| p.tunnel).unwrap_or(51820)
    }

    /// TCP port of the client session in force.
    pub fn session_port(&self) -> u16 {
        self.ports.as_ref().and_then(|p| p.session).unwrap_or(51821)
    }

    /// MTU of the tunnel in force, bytes.
    pub fn mtu_or_default(&self) -> u16 {
        self.mtu.unwrap_or(1420)
    }
}
