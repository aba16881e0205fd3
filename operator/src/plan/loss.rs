//! Which pods are removed because nobody hears of their node any more. Pure.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use pinhole_crds::VPNGateway;

use super::{
    endpoint::{NodeFacts, PodFacts},
    gateway::REPORTS_STALE,
    name::replica_names,
};
use crate::fleet::GatewayView;

/// A pod to remove by force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPod {
    /// Its name.
    pub name: String,
    /// UID of this incarnation: no other is meant.
    pub uid: String,
    /// The node that was lost.
    pub node: String,
}

/// The gateway's pods whose nodes have been lost for as long as the user wants to wait, and when the next one will have
/// been. A pod that still reports lives, whatever is said of its node.
pub fn lost_pods(
    gateway: &VPNGateway,
    pods: &BTreeMap<String, PodFacts>,
    nodes: &BTreeMap<String, NodeFacts>,
    view: &GatewayView,
    now: Timestamp,
) -> (Vec<LostPod>, Option<Duration>) {
    let patience = gateway.spec.pod.as_ref().and_then(|pod| pod.remove_after_node_loss);
    let Some(patience) = patience.map(|interval| interval.0) else { return (Vec::new(), None) };
    let (mut removed, mut wait) = (Vec::new(), None);
    for name in replica_names(gateway) {
        let Some(pod) = pods.get(&name) else { continue };
        let Some(node) = &pod.node else { continue };
        let Some(lost) = nodes.get(node).and_then(|facts| facts.lost.as_ref()) else { continue };
        let gone = u64::try_from(now.as_second() - lost.since.as_second()).unwrap_or_default();
        let left = patience.saturating_sub(Duration::from_secs(gone));
        let silence = view.replicas.get(&name).and_then(|replica| replica.silent_for);
        let heard = silence.map(|silence| REPORTS_STALE.saturating_sub(silence)).unwrap_or_default();
        let left = left.max(heard);
        if left.is_zero() {
            removed.push(LostPod { name, uid: pod.uid.clone(), node: node.clone() });
        } else {
            wait = Some(left).into_iter().chain(wait).min();
        }
    }
    (removed, wait)
}
