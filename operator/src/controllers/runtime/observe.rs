//! What matters of foreign objects.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{Event, Node, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

use super::request::Request;
use crate::{
    fleet::{ClientKey, GatewayKey, PoolKey},
    plan::{Lost, NodeFacts, Note, NoteKind, PodFacts, Refusal},
};

/// Of a gateway's pod.
pub(crate) fn pod(pod: &Pod) -> PodFacts {
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.iter().flatten().next();
    let state = container.and_then(|c| c.state.as_ref());
    let host_ips = status.host_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok());
    PodFacts {
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        host_ips: host_ips.collect(),
        running: pod.metadata.deletion_timestamp.is_none() && state.is_some_and(|s| s.running.is_some()),
        admitted: container.is_some(),
        refusal: Refusal::of_pod(pod),
    }
}

/// Of a node.
pub(crate) fn node(node: &Node) -> NodeFacts {
    let addresses = || node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let of = |type_: &str| -> Vec<IpAddr> {
        addresses().filter(|a| a.type_ == type_).filter_map(|a| a.address.parse().ok()).collect()
    };
    NodeFacts { external: of("ExternalIP"), internal: of("InternalIP"), lost: lost(node) }
}

/// The kubelet of a lost node posts nothing: then its condition Ready is Unknown.
fn lost(node: &Node) -> Option<Lost> {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready" && c.status == "Unknown")?;
    let since = ready.last_transition_time.as_ref().map(|time| time.0).unwrap_or_default();
    let said = ready.message.as_deref().or(ready.reason.as_deref()).unwrap_or("nothing is heard of it");
    Some(Lost { since, said: said.to_owned() })
}

/// Of an Event: what it is about, and what it says if that is a refusal.
pub(crate) fn note(event: &Event) -> Option<(NoteKind, String, Note)> {
    let about = &event.involved_object;
    let kind = match about.kind.as_deref()? {
        "StatefulSet" => NoteKind::StatefulSet,
        "Pod" => NoteKind::Pod,
        "Service" => NoteKind::Service,
        _ => return None,
    };
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    let at = series.or(event.event_time.as_ref()).map(|time| time.0);
    let at = event.last_timestamp.as_ref().map(|time| time.0).into_iter().chain(at).max();
    let note = Note::read(
        kind,
        event.reason.as_deref().unwrap_or_default(),
        event.message.as_deref().unwrap_or_default(),
        about.uid.clone().unwrap_or_default(),
        at.unwrap_or_default().as_second(),
    )?;
    Some((kind, about.name.clone()?, note))
}

/// Who owns an object that the operator made.
pub(crate) fn owners(namespace: &str, meta: &ObjectMeta) -> Vec<Request> {
    let owners = meta.owner_references.iter().flatten().filter(|o| o.api_version.starts_with("pinhole.dev/"));
    owners
        .filter_map(|owner| match owner.kind.as_str() {
            "VPNGateway" => Some(Request::Gateway(GatewayKey::new(namespace, &owner.name))),
            "VPNClientPool" => Some(Request::Pool(PoolKey::new(namespace, &owner.name))),
            "VPNClient" => Some(Request::Client(ClientKey::new(namespace, &owner.name))),
            _ => None,
        })
        .collect()
}

/// Takes away what is large and of no use here.
pub(crate) fn prune(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
