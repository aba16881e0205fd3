//! Names and labels of what belongs to a gateway, a pool or a client.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use pinhole_crds::VPNGateway;

/// Label on everything that the operator makes.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Its value.
pub const MANAGED_BY: &str = "pinhole-operator";

/// Label: name of the gateway that an object belongs to.
pub const GATEWAY_LABEL: &str = "pinhole.dev/gateway";

/// Label: name of the pool whose client an object belongs to. Not [`pinhole_crds::POOL_LABEL`], which asks for a
/// sidecar.
pub const POOL_OBJECT_LABEL: &str = "pinhole.dev/of-pool";

/// Label that the StatefulSet controller puts on each pod.
pub(super) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

/// Label selector of all that the operator made.
pub fn gateway_objects_selector() -> String {
    format!("{MANAGED_BY_LABEL}={MANAGED_BY}")
}

/// Names of the gateway's replicas: of their pods, their Services and their keys.
pub fn replica_names(gateway: &VPNGateway) -> Vec<String> {
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    (0..gateway.spec.replicas_or_default()).map(|n| format!("{name}-{n}")).collect()
}

/// Name of the Secret with a gateway's private keys.
pub fn keys_secret(gateway: &str) -> String {
    format!("{gateway}-keys")
}

/// Name of a gateway's NetworkPolicy.
pub fn network_policy_name(gateway: &str) -> String {
    gateway.to_owned()
}

/// Name of the ConfigMap with the trust bundle that a gateway's pods mount.
pub(super) fn ca_config_map(gateway: &str) -> String {
    format!("{gateway}-ca")
}

/// Name of the Service at which a pool's sidecars enrol.
pub fn join_service(pool: &str) -> String {
    format!("{pool}-join")
}

/// Name of the Secret with a stock client's configuration.
pub fn config_secret(client: &str) -> String {
    format!("{client}-wireguard")
}

/// Labels that select a gateway's pods. Immutable in a StatefulSet: never change them.
pub(super) fn selector(gateway: &str) -> BTreeMap<String, String> {
    labels([("app.kubernetes.io/name", "pinhole-gateway"), ("app.kubernetes.io/instance", gateway)])
}

/// Labels of all that belongs to a gateway.
pub(super) fn gateway_labels(gateway: &str) -> BTreeMap<String, String> {
    let mut all = selector(gateway);
    all.extend(common());
    all.extend(labels([(GATEWAY_LABEL, gateway)]));
    all
}

/// Labels of all that the operator makes.
pub(super) fn common() -> BTreeMap<String, String> {
    labels([(MANAGED_BY_LABEL, MANAGED_BY), ("app.kubernetes.io/part-of", "pinhole")])
}

pub(super) fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub(super) fn match_labels(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}

/// Metadata of an object in `owner`'s namespace that goes when `owner` does.
pub(super) fn owned<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: String,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: owner.meta().namespace.clone(),
        labels: Some(labels),
        owner_references: owner_reference(owner).map(|r| vec![r]),
        ..ObjectMeta::default()
    }
}

/// A reference that lets the garbage collector work and holds nobody up.
pub(super) fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    let mut reference = owner.controller_owner_ref(&())?;
    reference.block_owner_deletion = Some(false);
    Some(reference)
}
