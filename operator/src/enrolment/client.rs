//! The VPNClient that an enrolment makes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{Resource as _, ResourceExt as _};
use pinhole_crds::{
    ClientEnrolment, ClientPod, EnrolmentMethod, JoinToken, PoolRef, VPNClient, VPNClientPool, VPNClientSpec,
};

use super::{
    Ask, Credential, EnrolmentError, KEY_LABEL, KeyHash, PublicKey, SESSION_ANNOTATION,
    name::{is_word, machine_name, sidecar_name},
};
use crate::{
    fleet::ClientKey,
    identity::PodIdentity,
    plan::{GATEWAY_LABEL, MANAGED_BY, MANAGED_BY_LABEL, POOL_OBJECT_LABEL},
};

/// Annotation of a VPNClient: tokens that it was enrolled with again, after the one in its record, comma-separated. Such as the pool
/// does not have any more are left out, so that it stays bounded.
pub const TOKENS_ANNOTATION: &str = "pinhole.dev/tokens";

/// Client of a machine that holds `token`.
pub(super) fn of_machine(pool: &VPNClientPool, token: &JoinToken, ask: &Ask) -> VPNClient {
    let enrolment = ClientEnrolment {
        method: EnrolmentMethod::Token,
        token: Some(token.name.clone()),
        pod: None,
        hostname: hostname(ask),
    };
    let name = machine_name(ask.hostname.as_str(), ask.key_hash());
    client(pool, &name, ask, token.group.clone().filter(|group| is_word(group)), enrolment)
}

/// Client of a pod's sidecar.
pub(super) fn of_pod(pool: &VPNClientPool, pod: &PodIdentity, ask: &Ask) -> VPNClient {
    let enrolment = ClientEnrolment {
        method: EnrolmentMethod::ServiceAccount,
        token: None,
        pod: Some(ClientPod {
            namespace: pod.namespace.clone(),
            name: pod.pod.clone(),
            uid: pod.pod_uid.clone(),
        }),
        hostname: hostname(ask),
    };
    client(pool, &sidecar_name(&pod.pod, &pod.pod_uid), ask, None, enrolment)
}

/// The labels by which a client of this key is found.
pub(super) fn key_label(key: &PublicKey) -> (String, String) {
    (KEY_LABEL.to_owned(), KeyHash::of(key).to_string())
}

/// Whether the client was enrolled with the pool's token of this name, at first or again.
pub(super) fn is_enrolled_with(client: &VPNClient, token: &str) -> bool {
    let first = client.spec.enrolment.as_ref().and_then(|e| e.token.as_deref());
    first == Some(token) || later_tokens(client).any(|later| later == token)
}

/// What has to be written of an enrolment on a client that exists, empty when it says so already.
pub(super) fn changes(pool: &VPNClientPool, client: &VPNClient, ask: &Ask) -> BTreeMap<String, String> {
    let mut changes = BTreeMap::new();
    let binding = ask.binding();
    if !binding.is_of(client) {
        changes.insert(SESSION_ANNOTATION.to_owned(), binding.to_string());
    }
    if let Credential::Token { name, .. } = &ask.credential
        && !is_enrolled_with(client, name)
    {
        let tokens = || pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
        let kept = later_tokens(client).filter(|later| tokens().any(|token| token.name == *later));
        let tokens: Vec<&str> = kept.chain([name.as_str()]).collect();
        changes.insert(TOKENS_ANNOTATION.to_owned(), tokens.join(","));
    }
    changes
}

fn later_tokens(client: &VPNClient) -> impl Iterator<Item = &str> {
    let later = client.annotations().get(TOKENS_ANNOTATION).map(String::as_str).unwrap_or_default();
    later.split(',').filter(|token| !token.is_empty())
}

/// Whether the client may connect at `now`.
pub(super) fn check_entitled(client: &VPNClient, now: Timestamp) -> Result<(), EnrolmentError> {
    let name = || ClientKey::from(client).to_string();
    if client.metadata.deletion_timestamp.is_some() {
        return Err(EnrolmentError::ClientNotReady(name()));
    }
    if client.spec.suspended == Some(true) {
        return Err(EnrolmentError::ClientSuspended(name()));
    }
    if client.spec.expires_at.as_ref().is_some_and(|at| at.0 <= now) {
        return Err(EnrolmentError::ClientExpired(name()));
    }
    Ok(())
}

/// Owned by the pool, so that it goes with it; nothing waits for that.
pub(super) fn owner(pool: &VPNClientPool) -> OwnerReference {
    OwnerReference {
        api_version: VPNClientPool::api_version(&()).into_owned(),
        kind: VPNClientPool::kind(&()).into_owned(),
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// Labels of what is made for a pool.
pub(super) fn labels(pool: &VPNClientPool) -> BTreeMap<String, String> {
    let labels = [
        (MANAGED_BY_LABEL, MANAGED_BY),
        ("app.kubernetes.io/part-of", "pinhole"),
        (GATEWAY_LABEL, &pool.spec.gateway_ref.name),
        (POOL_OBJECT_LABEL, &pool.name_any()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn client(
    pool: &VPNClientPool,
    name: &str,
    ask: &Ask,
    group: Option<String>,
    enrolment: ClientEnrolment,
) -> VPNClient {
    let mut labels = labels(pool);
    labels.extend([key_label(&ask.public_key)]);
    VPNClient {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: pool.namespace(),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(SESSION_ANNOTATION.to_owned(), ask.binding().to_string())])),
            owner_references: Some(vec![owner(pool)]),
            ..ObjectMeta::default()
        },
        spec: VPNClientSpec {
            pool_ref: PoolRef { name: pool.name_any() },
            public_key: Some(ask.public_key.to_string()),
            addresses: vec![],
            suspended: None,
            expires_at: None,
            keepalive: None,
            group,
            enrolment: Some(enrolment),
        },
        status: None,
    }
}

fn hostname(ask: &Ask) -> Option<String> {
    Some(ask.hostname.as_str().to_owned()).filter(|h| !h.is_empty())
}
