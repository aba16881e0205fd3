//! Where clients reach each replica, as far as the cluster has said.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{api::core::v1::Service, jiff::Timestamp};
use kube::ResourceExt as _;
use pinhole_crds::{ExposureType, VPNGateway};
use pinhole_proto::{Host, HostPort};

use super::{
    name::replica_names,
    refusal::Refusal,
    service::{SESSION_PORT, TUNNEL_PORT, session_service},
    unusable::exposure_hosts,
};

/// What matters of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// ExternalIP addresses.
    pub external: Vec<IpAddr>,
    /// InternalIP addresses.
    pub internal: Vec<IpAddr>,
    /// Since when nobody hears of it, in the words of its condition Ready.
    pub lost: Option<Lost>,
}

impl NodeFacts {
    /// Those that clients should use: external ones where there are any.
    fn best(&self) -> &[IpAddr] {
        if self.external.is_empty() { &self.internal } else { &self.external }
    }
}

/// A node that nobody hears of: whether its pods run is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when.
    pub since: Timestamp,
    /// What the node controller says.
    pub said: String,
}

/// What matters of a gateway's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// UID of this incarnation.
    pub uid: String,
    /// Node that it was bound to.
    pub node: Option<String>,
    /// Addresses of that node as the kubelet says.
    pub host_ips: Vec<IpAddr>,
    /// Whether its container runs.
    pub running: bool,
    /// Whether the kubelet took it in: what turned away the pod before it is over.
    pub admitted: bool,
    /// Why it does not run, as its status says.
    pub refusal: Option<Refusal>,
}

/// What was observed of a gateway's surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Services of the replicas, by their own name.
    pub services: &'a BTreeMap<String, std::sync::Arc<Service>>,
    /// Pods, by name.
    pub pods: &'a BTreeMap<String, PodFacts>,
    /// The nodes that those pods run on, by name.
    pub nodes: &'a BTreeMap<String, NodeFacts>,
    /// Public keys by name of the replica.
    pub public_keys: &'a BTreeMap<String, [u8; 32]>,
}

/// One replica as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// Name of its pod.
    pub name: String,
    /// WireGuard public key. None until it was made.
    pub public_key: Option<[u8; 32]>,
    /// Hosts by which it is reached, the best first.
    pub hosts: Vec<Host>,
    /// The tunnel (UDP).
    pub tunnel_endpoints: Vec<HostPort>,
    /// The session (TCP).
    pub session_endpoints: Vec<HostPort>,
    /// The tunnel, from within the cluster.
    pub cluster_tunnel_endpoints: Vec<HostPort>,
    /// The session, from within the cluster.
    pub cluster_session_endpoints: Vec<HostPort>,
}

/// The gateway's replicas, in order. Two of them cannot be behind one `host:port`, where only one of their keys is right:
/// the first keeps it, as with a load balancer that has one address, or one name in `exposure.addresses` for all.
pub fn replicas(gateway: &VPNGateway, observed: &Observed<'_>) -> Vec<Replica> {
    let mut taken = BTreeSet::new();
    let names = replica_names(gateway).into_iter();
    names.map(|name| replica(gateway, observed, name, &mut taken)).collect()
}

fn replica(
    gateway: &VPNGateway,
    observed: &Observed<'_>,
    name: String,
    taken: &mut BTreeSet<HostPort>,
) -> Replica {
    let service = |name: &str| observed.services.get(name).map(AsRef::as_ref);
    let tunnel = service(&name);
    let session = service(&session_service(gateway, &name));
    let at = |service: Option<&Service>, port_name: &str| -> Vec<HostPort> {
        let hosts = hosts(gateway, observed, service, &name);
        let port = outside_port(gateway, service, port_name);
        port.map(|port| hosts.iter().map(|h| host_port(h, port)).collect()).unwrap_or_default()
    };
    let mut tunnel_endpoints = at(tunnel, TUNNEL_PORT);
    tunnel_endpoints.retain(|endpoint| !taken.contains(endpoint));
    let mut session_endpoints = at(session, SESSION_PORT);
    session_endpoints.retain(|endpoint| !taken.contains(endpoint));
    taken.extend(tunnel_endpoints.iter().chain(&session_endpoints).cloned());
    let namespace = gateway.namespace().unwrap_or_default();
    let within = |service: Option<&Service>, name: &str, port| {
        cluster_hosts(service, name, &namespace).iter().map(|h| host_port(h, port)).collect()
    };
    Replica {
        public_key: observed.public_keys.get(&name).copied(),
        cluster_tunnel_endpoints: within(tunnel, &name, gateway.spec.tunnel_port()),
        cluster_session_endpoints: within(
            session,
            &session_service(gateway, &name),
            gateway.spec.session_port(),
        ),
        hosts: hosts_of(&tunnel_endpoints, &session_endpoints),
        tunnel_endpoints,
        session_endpoints,
        name,
    }
}

fn hosts_of(tunnel: &[HostPort], session: &[HostPort]) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for endpoint in tunnel.iter().chain(session) {
        if !hosts.contains(&endpoint.host) {
            hosts.push(endpoint.host.clone());
        }
    }
    hosts
}

/// The user's own addresses first of all; then what the load balancer says, or the node that runs the replica: with
/// `externalTrafficPolicy: Local` no other node answers for it.
fn hosts(
    gateway: &VPNGateway,
    observed: &Observed<'_>,
    service: Option<&Service>,
    replica: &str,
) -> Vec<Host> {
    let exposure = &gateway.spec.exposure;
    if !exposure.addresses.is_empty() {
        return exposure_hosts(gateway).0;
    }
    match exposure.type_ {
        ExposureType::LoadBalancer => service.map(load_balancer_hosts).unwrap_or_default(),
        ExposureType::NodePort | ExposureType::HostPort => node_hosts(observed, replica),
    }
}

fn load_balancer_hosts(service: &Service) -> Vec<Host> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|l| l.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|i| i.ip.as_deref().or(i.hostname.as_deref())?.parse().ok()).collect()
}

fn node_hosts(observed: &Observed<'_>, replica: &str) -> Vec<Host> {
    let Some(pod) = observed.pods.get(replica) else { return Vec::new() };
    let node = pod.node.as_ref().and_then(|name| observed.nodes.get(name));
    let addresses = node.map(NodeFacts::best).filter(|a| !a.is_empty()).unwrap_or(&pod.host_ips);
    addresses.iter().copied().map(Host::Address).collect()
}

/// The cluster's own addresses of the replica's Service, or its name until they are known.
fn cluster_hosts(service: Option<&Service>, name: &str, namespace: &str) -> Vec<Host> {
    let spec = service.and_then(|s| s.spec.as_ref());
    let texts = spec.and_then(|s| s.cluster_ips.as_deref()).unwrap_or_default();
    let addresses: Vec<Host> = texts.iter().filter_map(|a| a.parse().ok()).map(Host::Address).collect();
    if addresses.is_empty() {
        format!("{name}.{namespace}.svc").parse().into_iter().collect()
    } else {
        addresses
    }
}

fn outside_port(gateway: &VPNGateway, service: Option<&Service>, port_name: &str) -> Option<u16> {
    let of_spec =
        if port_name == TUNNEL_PORT { gateway.spec.tunnel_port() } else { gateway.spec.session_port() };
    if gateway.spec.exposure.type_ != ExposureType::NodePort {
        return Some(of_spec);
    }
    let ports = service?.spec.as_ref()?.ports.as_ref()?;
    let port = ports.iter().find(|p| p.name.as_deref() == Some(port_name))?;
    u16::try_from(port.node_port?).ok().filter(|p| *p != 0)
}

fn host_port(host: &Host, port: u16) -> HostPort {
    HostPort { host: host.clone(), port }
}
