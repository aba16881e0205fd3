//! Objects as users write them, for the tests of each plan.

mod client;
mod gateway;
mod hostile;
mod loss;
mod network;
mod pool;
mod refusal;
mod traffic;
mod wgquick;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use pinhole_crds::{PathProof, VPNClient, VPNClientPool, VPNGateway};
use serde_json::{Value, json};

use super::*;
use crate::fleet::{Hearing, Proof, ReplicaView};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn meta(name: &str, second: i64) -> Value {
    json!({
        "name": name, "namespace": "vpn", "uid": format!("uid-{name}"), "generation": 3,
        "creationTimestamp": Time(at(second)),
    })
}

fn gateway(spec: &Value) -> VPNGateway {
    serde_json::from_value(json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNGateway", "metadata": meta("edge", 1), "spec": spec,
    }))
    .unwrap()
}

fn load_balancer() -> VPNGateway {
    gateway(&json!({ "exposure": { "type": "LoadBalancer" } }))
}

fn pool(name: &str, second: i64, cidrs: &[&str]) -> VPNClientPool {
    serde_json::from_value(json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool", "metadata": meta(name, second),
        "spec": { "gatewayRef": { "name": "edge" }, "cidrs": cidrs, "routes": ["10.96.0.0/12", "fd00::/8"] },
    }))
    .unwrap()
}

fn client(spec: &Value) -> VPNClient {
    let mut spec = spec.clone();
    spec["poolRef"] = json!({ "name": "staff" });
    serde_json::from_value(json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient", "metadata": meta("laptop", 5), "spec": spec,
    }))
    .unwrap()
}

fn service(name: &str, spec: &Value, status: &Value) -> BTreeMap<String, Arc<Service>> {
    let service = json!({ "metadata": meta(name, 1), "spec": spec, "status": status });
    BTreeMap::from([(name.to_owned(), Arc::new(serde_json::from_value(service).unwrap()))])
}

fn running(node: &str) -> BTreeMap<String, PodFacts> {
    let pod = PodFacts { node: Some(node.into()), running: true, ..PodFacts::default() };
    BTreeMap::from([("edge-0".to_owned(), pod)])
}

fn key() -> BTreeMap<String, [u8; 32]> {
    BTreeMap::from([("edge-0".to_owned(), [7; 32])])
}

/// The replicas of a gateway whose load balancer gave `203.0.113.7`.
fn balanced(gateway: &VPNGateway) -> Vec<Replica> {
    let status = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.7" }] } });
    let services = service("edge-0", &json!({ "clusterIPs": ["10.96.0.7", "fd96::7"] }), &status);
    let observed =
        Observed { services: &services, pods: &running("n1"), nodes: &BTreeMap::new(), public_keys: &key() };
    replicas(gateway, &observed)
}

fn texts(endpoints: &[pinhole_proto::HostPort]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

fn replica_view(silent_for: Option<Duration>, proof: Option<(PathProof, Duration)>) -> ReplicaView {
    ReplicaView {
        attached: silent_for.is_some_and(|s| s < Duration::from_secs(12)),
        hearing: match silent_for {
            Some(s) if s < Duration::from_secs(12) => Hearing::Live,
            _ => Hearing::Silent,
        },
        silent_for,
        proof: proof.map(|(kind, age)| Proof { kind, age }),
        nat_restarts: vec![],
        impairments: vec![],
        published: 1,
        applied: 1,
        refusal: None,
    }
}

fn find<'a>(conditions: &'a [Condition], type_: &str) -> &'a Condition {
    conditions.iter().find(|c| c.type_ == type_).unwrap_or_else(|| panic!("no {type_} in {conditions:?}"))
}

/// Status and reason of a condition.
fn verdict(conditions: &[Condition], type_: &str) -> (String, String) {
    let condition = find(conditions, type_);
    (condition.status.clone(), condition.reason.clone())
}

fn said(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
