//! Where clients reach each replica, as far as the cluster has said.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use pinhole_crds::{ExposureType, VPNGateway};
use pinhole_proto::{Host, HostPort};

use super::{
    name::replica_names,
    service::{SESSION_PORT, TUNNEL_PORT},
    unusable::exposure_hosts,
};

/// Addresses of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// ExternalIP addresses.
    pub external: Vec<IpAddr>,
    /// InternalIP addresses.
    pub internal: Vec<IpAddr>,
}

impl NodeAddresses {
    /// Those that clients should use: external ones where there are any.
    fn best(&self) -> &[IpAddr] {
        if self.external.is_empty() { &self.internal } else { &self.external }
    }
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
    /// Why it does not: reason and message of the kubelet or the scheduler.
    pub waiting: Option<(String, String)>,
}

/// What was observed of a gateway's surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Services of the replicas, by name of the replica.
    pub services: &'a BTreeMap<String, std::sync::Arc<Service>>,
    /// Pods, by name.
    pub pods: &'a BTreeMap<String, PodFacts>,
    /// Addresses of the nodes that those pods run on, by name.
    pub nodes: &'a BTreeMap<String, NodeAddresses>,
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

/// The gateway's replicas, in order.
pub fn replicas(gateway: &VPNGateway, observed: &Observed<'_>) -> Vec<Replica> {
    replica_names(gateway).into_iter().map(|name| replica(gateway, observed, name)).collect()
}

fn replica(gateway: &VPNGateway, observed: &Observed<'_>, name: String) -> Replica {
    let service = observed.services.get(&name).map(AsRef::as_ref);
    let hosts = hosts(gateway, observed, service, &name);
    let at = |port: Option<u16>| -> Vec<HostPort> {
        port.map(|port| hosts.iter().map(|h| host_port(h, port)).collect()).unwrap_or_default()
    };
    let namespace = gateway.namespace().unwrap_or_default();
    let inside = cluster_hosts(service, &name, &namespace);
    let within = |port| inside.iter().map(|h| host_port(h, port)).collect();
    Replica {
        public_key: observed.public_keys.get(&name).copied(),
        tunnel_endpoints: at(outside_port(gateway, service, TUNNEL_PORT)),
        session_endpoints: at(outside_port(gateway, service, SESSION_PORT)),
        cluster_tunnel_endpoints: within(gateway.spec.tunnel_port()),
        cluster_session_endpoints: within(gateway.spec.session_port()),
        hosts,
        name,
    }
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
    let addresses = node.map(NodeAddresses::best).filter(|a| !a.is_empty()).unwrap_or(&pod.host_ips);
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
