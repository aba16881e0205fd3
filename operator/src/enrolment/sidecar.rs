//! May this pod join this pool. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use pinhole_crds::{NamespaceSelector, POOL_LABEL, POOL_NAMESPACE_ANNOTATION, VPNClientPool};

use super::EnrolmentError;
use crate::{fleet::PoolKey, identity::PodIdentity};

/// Whether the labels of the pod's namespace are needed to decide.
pub(super) fn needs_namespace_labels(pool: &VPNClientPool, pod: &PodIdentity) -> bool {
    selector(pool).is_some_and(|s| !s.match_labels.is_empty() && !s.names.contains(&pod.namespace))
}

/// Decides over `pod`, as the API server has it, for the holder of the reviewed token.
pub(super) fn admit(
    pool: &VPNClientPool,
    identity: &PodIdentity,
    pod: Option<&Pod>,
    namespace_labels: Option<&BTreeMap<String, String>>,
) -> Result<(), EnrolmentError> {
    let key = PoolKey::from(pool);
    let not_selected = || EnrolmentError::PodNotSelected {
        pool: key.to_string(),
        pod: format!("{}/{}", identity.namespace, identity.pod),
    };
    let pod =
        pod.filter(|p| p.metadata.uid.as_deref() == Some(&identity.pod_uid)).ok_or_else(not_selected)?;
    let chosen = pod.annotations().get(POOL_NAMESPACE_ANNOTATION).unwrap_or(&identity.namespace);
    if pod.labels().get(POOL_LABEL) != Some(&key.name) || *chosen != key.namespace {
        return Err(not_selected());
    }
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return Err(EnrolmentError::PodOnHostNetwork(format!("{}/{}", identity.namespace, identity.pod)));
    }
    if !is_allowed(pool, &key, &identity.namespace, namespace_labels) {
        return Err(EnrolmentError::SidecarNotAllowed {
            pool: key.to_string(),
            namespace: identity.namespace.clone(),
        });
    }
    Ok(())
}

fn is_allowed(
    pool: &VPNClientPool,
    key: &PoolKey,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let Some(sidecars) = pool.spec.enrolment.as_ref().and_then(|e| e.sidecars.as_ref()) else {
        return false;
    };
    let Some(selector) = &sidecars.namespace_selector else {
        return namespace == key.namespace;
    };
    if selector.names.is_empty() && selector.match_labels.is_empty() {
        return true;
    }
    let by_name = selector.names.iter().any(|n| n == namespace);
    let carries = |(k, v): (&String, &String)| labels.is_some_and(|l| l.get(k) == Some(v));
    by_name || (!selector.match_labels.is_empty() && selector.match_labels.iter().all(carries))
}

fn selector(pool: &VPNClientPool) -> Option<&NamespaceSelector> {
    pool.spec.enrolment.as_ref()?.sidecars.as_ref()?.namespace_selector.as_ref()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use pinhole_crds::{Enrolment, Sidecars};

    use super::*;
    use crate::enrolment::memory;

    fn pool(sidecars: Option<Sidecars>) -> VPNClientPool {
        let mut pool = memory::pool("staff", vec![]);
        pool.spec.enrolment = Some(Enrolment { tokens: vec![], sidecars });
        pool
    }

    fn selecting(names: &[&str], labels: &[(&str, &str)]) -> Sidecars {
        let namespace_selector = NamespaceSelector {
            names: names.iter().map(|&n| n.into()).collect(),
            match_labels: labels.iter().map(|&(k, v)| (k.into(), v.into())).collect(),
        };
        Sidecars { namespace_selector: Some(namespace_selector) }
    }

    fn verdict(pool: &VPNClientPool, namespace: &str, labels: &[(&str, &str)]) -> &'static str {
        let (identity, mut pod) = memory::sidecar(namespace, "web-0", "staff");
        if namespace != "vpn" {
            pod.annotations_mut().insert(POOL_NAMESPACE_ANNOTATION.into(), "vpn".into());
        }
        let labels = labels.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        admit(pool, &identity, Some(&pod), Some(&labels)).err().map_or("admitted", |e| e.category())
    }

    #[test]
    fn a_pool_without_sidecars_takes_none() {
        assert_eq!(verdict(&pool(None), "vpn", &[]), "SidecarNotAllowed");
    }

    #[test]
    fn without_a_selector_only_the_pools_own_namespace_may() {
        assert_eq!(verdict(&pool(Some(Sidecars::default())), "vpn", &[]), "admitted");
        assert_eq!(verdict(&pool(Some(Sidecars::default())), "shop", &[]), "SidecarNotAllowed");
    }

    #[test]
    fn an_empty_selector_takes_all_and_a_filled_one_by_name_or_by_all_its_labels() {
        assert_eq!(verdict(&pool(Some(selecting(&[], &[]))), "shop", &[]), "admitted");
        let some = pool(Some(selecting(&["shop"], &[("team", "a"), ("tier", "x")])));
        assert_eq!(verdict(&some, "shop", &[]), "admitted");
        assert_eq!(verdict(&some, "other", &[("team", "a"), ("tier", "x")]), "admitted");
        assert_eq!(verdict(&some, "other", &[("team", "a")]), "SidecarNotAllowed");
        assert_eq!(verdict(&pool(Some(selecting(&["shop"], &[]))), "other", &[]), "SidecarNotAllowed");
    }

    #[test]
    fn a_pod_joins_only_the_pool_that_it_asks_for_by_label() {
        let pool = pool(Some(selecting(&[], &[])));
        let category = |change: fn(&mut Pod)| {
            let (identity, mut pod) = memory::sidecar("vpn", "web-0", "staff");
            change(&mut pod);
            admit(&pool, &identity, Some(&pod), None).err().map_or("admitted", |e| e.category())
        };
        assert_eq!(category(|_| {}), "admitted");
        assert_eq!(category(|p| drop(p.labels_mut().remove(POOL_LABEL))), "PodNotSelected");
        assert_eq!(
            category(|p| drop(p.labels_mut().insert(POOL_LABEL.into(), "x".into()))),
            "PodNotSelected"
        );
        assert_eq!(
            category(|p| drop(p.annotations_mut().insert(POOL_NAMESPACE_ANNOTATION.into(), "x".into()))),
            "PodNotSelected"
        );
        assert_eq!(category(|p| p.metadata.uid = Some("anew".into())), "PodNotSelected");
    }

    #[test]
    fn a_pod_in_its_nodes_network_joins_no_pool() {
        let pool = pool(Some(selecting(&[], &[])));
        for (host_network, verdict) in
            [(None, None), (Some(false), None), (Some(true), Some("PodOnHostNetwork"))]
        {
            let (identity, mut pod) = memory::sidecar("vpn", "web-0", "staff");
            pod.spec = Some(PodSpec { host_network, ..PodSpec::default() });
            let refused = admit(&pool, &identity, Some(&pod), None).err();
            assert_eq!(refused.map(|e| e.category()), verdict, "{host_network:?}");
        }
    }
}
