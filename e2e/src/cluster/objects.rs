//! Objects that every cluster has and that a bare API server lacks: cluster DNS.

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice, rbac::v1},
    serde::{Serialize, de::DeserializeOwned},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde_json::{Value, json};

use super::{DNS_PORT, DNS_V4, DNS_V6};
use crate::{
    error::{Doing, Error, Result},
    node::{ADDRESS, ADDRESS_V6},
};

const NAMESPACE: &str = "kube-system";

/// Makes CoreDNS, which runs as a process of the node, known as `kube-dns`, with the permission to watch.
pub(crate) async fn apply(client: &Client) -> Result<()> {
    let roles: Api<v1::ClusterRole> = Api::all(client.clone());
    patch(&roles, "system:coredns", role()).await?;
    let bindings: Api<v1::ClusterRoleBinding> = Api::all(client.clone());
    patch(&bindings, "system:coredns", binding()).await?;
    let services: Api<Service> = namespaced(client);
    patch(&services, "kube-dns", service()).await?;
    let slices: Api<EndpointSlice> = namespaced(client);
    patch(&slices, "kube-dns-ipv4", slice("IPv4", &ADDRESS.to_string())).await?;
    patch(&slices, "kube-dns-ipv6", slice("IPv6", &ADDRESS_V6.to_string())).await
}

fn namespaced<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(client: &Client) -> Api<K> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn patch<K>(api: &Api<K>, name: &str, mut object: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".to_owned(), K::api_version(&()).into());
        fields.insert("kind".to_owned(), K::kind(&()).into());
        let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
        let metadata =
            metadata.as_object_mut().ok_or_else(|| Error::Invalid(format!("{name}: bad metadata")))?;
        metadata.insert("name".to_owned(), name.into());
    }
    let params = PatchParams::apply("pinhole-lab").force();
    api.patch(name, &params, &Patch::Apply(&object)).await.map(drop).doing(|| format!("applying {name}"))
}

fn role() -> Value {
    json!({ "rules": [
        { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ] })
}

fn binding() -> Value {
    json!({
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns" }],
    })
}

fn service() -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": 53 });
    json!({
        "metadata": { "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" } },
        "spec": {
            "clusterIP": DNS_V4, "clusterIPs": [DNS_V4, DNS_V6],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

fn slice(family: &str, address: &str) -> Value {
    let port = |name: &str, protocol: &str| json!({ "name": name, "protocol": protocol, "port": DNS_PORT });
    json!({
        "metadata": { "labels": { "kubernetes.io/service-name": "kube-dns" } },
        "addressType": family,
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
    })
}
