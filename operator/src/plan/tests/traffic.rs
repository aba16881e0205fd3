//! What a NetworkPolicy lets through, as the API documents it; for two kinds of plugins.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

pub(crate) type Labels = BTreeMap<String, String>;

/// The two readings of a prefix that are in use: by address alone (Calico, kube-router), or for what is outside of the
/// cluster alone (Cilium).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefixes {
    Addresses,
    Outside,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Pod { address: IpAddr, labels: Labels, namespace: Labels, ports: BTreeMap<String, u16> },
    Node(IpAddr),
    Outside(IpAddr),
}

impl Peer {
    fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::Node(address) | Self::Outside(address) => *address,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

/// The first packet of a conversation of the pods that the policy selects.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub direction: Direction,
    pub peer: Peer,
    pub protocol: &'static str,
    pub port: u16,
}

/// Whether the pod's only policy lets the conversation begin. `own` are the names of the pod's ports.
pub(crate) fn admits(
    policy: &NetworkPolicy,
    own: &BTreeMap<String, u16>,
    flow: &Flow,
    reading: Prefixes,
) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    let kind = format!("{:?}", flow.direction);
    if !spec.policy_types.as_ref().unwrap().contains(&kind) {
        return true;
    }
    let of_peer = BTreeMap::new();
    let names = match (&flow.peer, flow.direction) {
        (_, Direction::Ingress) => own,
        (Peer::Pod { ports, .. }, Direction::Egress) => ports,
        _ => &of_peer,
    };
    let holds = |peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>| {
        let peers = peers.filter(|p| !p.is_empty());
        let ports = ports.filter(|p| !p.is_empty());
        peers.is_none_or(|peers| peers.iter().any(|peer| is_peer(peer, &flow.peer, reading)))
            && ports.is_none_or(|ports| ports.iter().any(|port| is_port(port, flow, names)))
    };
    match flow.direction {
        Direction::Ingress => {
            spec.ingress.iter().flatten().any(|rule| holds(rule.from.as_ref(), rule.ports.as_ref()))
        }
        Direction::Egress => {
            spec.egress.iter().flatten().any(|rule| holds(rule.to.as_ref(), rule.ports.as_ref()))
        }
    }
}

fn is_peer(rule: &NetworkPolicyPeer, peer: &Peer, reading: Prefixes) -> bool {
    if let Some(block) = &rule.ip_block {
        let within = |cidr: &String| cidr.parse::<IpNet>().unwrap().contains(&peer.address());
        let counts = reading == Prefixes::Addresses || matches!(peer, Peer::Outside(_));
        return counts && within(&block.cidr) && !block.except.iter().flatten().any(within);
    }
    let Peer::Pod { labels, namespace, .. } = peer else { return false };
    assert!(rule.namespace_selector.is_some(), "pods of the policy's own namespace are not told apart here");
    rule.namespace_selector.as_ref().is_none_or(|s| selects(s, namespace))
        && rule.pod_selector.as_ref().is_none_or(|s| selects(s, labels))
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    assert!(selector.match_expressions.is_none(), "not evaluated here");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_port(rule: &NetworkPolicyPort, flow: &Flow, names: &BTreeMap<String, u16>) -> bool {
    assert!(rule.end_port.is_none(), "not evaluated here");
    rule.protocol.as_deref().unwrap_or("TCP") == flow.protocol
        && match &rule.port {
            None => true,
            Some(IntOrString::Int(number)) => *number == i32::from(flow.port),
            Some(IntOrString::String(name)) => names.get(name) == Some(&flow.port),
        }
}
