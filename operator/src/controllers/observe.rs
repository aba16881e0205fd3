//! What matters of foreign objects.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

use super::work::Work;
use crate::{
    fleet::{ClientKey, GatewayKey, PoolKey},
    plan::{NodeAddresses, PodFacts},
};

/// Of a gateway's pod.
pub(super) fn pod(pod: &Pod) -> PodFacts {
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.iter().flatten().next();
    let state = container.and_then(|c| c.state.as_ref());
    let waiting = state.and_then(|s| s.waiting.as_ref());
    let terminated = state.and_then(|s| s.terminated.as_ref());
    let unscheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let why = waiting
        .map(|w| (w.reason.clone(), w.message.clone()))
        .or_else(|| terminated.map(|t| (t.reason.clone(), t.message.clone())))
        .or_else(|| unscheduled.map(|c| (c.reason.clone(), c.message.clone())));
    let host_ips = status.host_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok());
    PodFacts {
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        host_ips: host_ips.collect(),
        running: pod.metadata.deletion_timestamp.is_none() && state.is_some_and(|s| s.running.is_some()),
        waiting: why.map(|(reason, message)| (reason.unwrap_or_default(), message.unwrap_or_default())),
    }
}

/// Of a node.
pub(super) fn node(node: &Node) -> NodeAddresses {
    let addresses = || node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let of = |type_: &str| -> Vec<IpAddr> {
        addresses().filter(|a| a.type_ == type_).filter_map(|a| a.address.parse().ok()).collect()
    };
    NodeAddresses { external: of("ExternalIP"), internal: of("InternalIP") }
}

/// Who owns an object that the operator made.
pub(super) fn owners(namespace: &str, meta: &ObjectMeta) -> Vec<Work> {
    let owners = meta.owner_references.iter().flatten().filter(|o| o.api_version.starts_with("pinhole.dev/"));
    owners
        .filter_map(|owner| match owner.kind.as_str() {
            "VPNGateway" => Some(Work::Gateway(GatewayKey::new(namespace, &owner.name))),
            "VPNClientPool" => Some(Work::Pool(PoolKey::new(namespace, &owner.name))),
            "VPNClient" => Some(Work::Client(ClientKey::new(namespace, &owner.name))),
            _ => None,
        })
        .collect()
}

/// Takes away what is large and of no use here.
pub(super) fn prune(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}
