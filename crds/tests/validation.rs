//! The CEL rules of the kinds, evaluated as the API server does. What the schema bounds (lengths, ranges,
//! enumerations) is tested against a real API server in the end-to-end tests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use kube::core::cel::{validate_cel, validate_cel_update};
use pinhole_crds::{VPNClient, VPNClientPool, VPNGateway};
use serde_json::{Value, json};

fn object<T: serde::de::DeserializeOwned>(kind: &str, spec: &Value) -> T {
    let object = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": kind,
        "metadata": { "name": "sample", "namespace": "default" }, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn gateway(spec: &Value) -> Result<(), String> {
    validate_cel(&object::<VPNGateway>("VPNGateway", spec)).map_err(|e| format!("{e:?}"))
}

fn pool_object(change: &Value) -> VPNClientPool {
    let mut spec = json!({ "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/16"] });
    let (Value::Object(spec_map), Value::Object(change)) = (&mut spec, change) else { unreachable!() };
    spec_map.extend(change.clone());
    object("VPNClientPool", &spec)
}

fn pool(change: &Value) -> Result<(), String> {
    validate_cel(&pool_object(change)).map_err(|e| format!("{e:?}"))
}

#[track_caller]
fn refused(result: Result<(), String>, words: &str) {
    let message = result.expect_err("accepted");
    assert!(message.contains(words), "`{words}` not in {message}");
}

#[test]
fn a_sound_gateway_is_accepted() {
    gateway(&json!({ "exposure": { "type": "LoadBalancer" } })).unwrap();
    gateway(&json!({
        "replicas": 1, "exposure": { "type": "HostPort", "addresses": ["vpn.example.org", "2001:db8::1"] },
        "ports": { "tunnel": 443, "session": 8443 },
        "keepalive": { "mode": "Adaptive", "min": "10s", "max": "5m" },
    }))
    .unwrap();
}

#[test]
fn a_keepalive_min_over_max_is_refused() {
    let spec = json!({ "exposure": { "type": "NodePort" }, "keepalive": { "min": "60s", "max": "30s" } });
    refused(gateway(&spec), "min: is greater than max");
}

#[test]
fn a_fixed_keepalive_without_an_interval_is_refused() {
    let spec = json!({ "exposure": { "type": "NodePort" }, "keepalive": { "mode": "Fixed" } });
    refused(gateway(&spec), "interval: is required");
}

#[test]
fn a_keepalive_out_of_range_is_refused() {
    for (field, value) in [("interval", "1s"), ("min", "4s"), ("max", "2h"), ("longestBlind", "2h")] {
        let spec = json!({ "exposure": { "type": "NodePort" }, "keepalive": { field: value } });
        refused(gateway(&spec), &format!("{field}: is out of range"));
    }
}

#[test]
fn a_longest_blind_time_that_the_other_limits_would_break_is_refused() {
    let keepalive =
        |keepalive: Value| gateway(&json!({ "exposure": { "type": "NodePort" }, "keepalive": keepalive }));
    keepalive(json!({ "longestBlind": "1m" })).unwrap();
    keepalive(json!({ "mode": "Fixed", "interval": "25s", "longestBlind": "25s" })).unwrap();
    refused(keepalive(json!({ "min": "30s", "longestBlind": "20s" })), "longestBlind: is less than min");
    refused(
        keepalive(json!({ "mode": "Fixed", "interval": "1m", "longestBlind": "30s" })),
        "longestBlind: is less than the fixed interval",
    );
}

#[test]
fn one_number_for_both_ports_is_refused_also_against_the_default() {
    for ports in [json!({ "tunnel": 443, "session": 443 }), json!({ "tunnel": 51821 })] {
        refused(
            gateway(&json!({ "exposure": { "type": "NodePort" }, "ports": ports })),
            "same number as tunnel",
        );
    }
}

#[test]
fn node_ports_belong_to_node_ports() {
    let ports = json!({ "tunnel": 30001, "session": 30002 });
    refused(
        gateway(&json!({ "exposure": { "type": "HostPort", "nodePorts": ports } })),
        "no meaning with type HostPort",
    );
    refused(
        gateway(&json!({ "replicas": 2, "exposure": { "type": "NodePort", "nodePorts": ports } })),
        "one replica only",
    );
}

#[test]
fn one_name_in_front_of_two_replicas_is_refused_unless_they_have_ports_of_their_own() {
    let with = |type_: &str, replicas: i32| {
        gateway(
            &json!({ "replicas": replicas, "exposure": { "type": type_, "addresses": ["vpn.example.org"] } }),
        )
    };
    for type_ in ["LoadBalancer", "HostPort"] {
        with(type_, 1).unwrap();
        refused(with(type_, 2), "each has a key of its own");
    }
    with("NodePort", 2).unwrap();
    gateway(&json!({ "replicas": 2, "exposure": { "type": "LoadBalancer", "addresses": [] } })).unwrap();
}

#[test]
fn a_lost_node_is_waited_for_a_minute_at_least() {
    let after = |span: &str| {
        gateway(&json!({ "exposure": { "type": "NodePort" }, "pod": { "removeAfterNodeLoss": span } }))
    };
    after("1m").unwrap();
    after("24h").unwrap();
    for span in ["59s", "25h", "0s"] {
        refused(after(span), "removeAfterNodeLoss: is out of range");
    }
}

#[test]
fn a_service_for_each_protocol_is_a_matter_of_load_balancers() {
    let with = |type_: &str| gateway(&json!({ "exposure": { "type": type_, "servicePerProtocol": true } }));
    with("LoadBalancer").unwrap();
    refused(with("NodePort"), "for type LoadBalancer only");
}

#[test]
fn a_pool_may_be_of_either_family_or_both() {
    for cidrs in
        [json!(["10.77.0.0/16"]), json!(["fd77::/64"]), json!(["10.77.0.0/16", "10.78.0.0/24", "fd77::/64"])]
    {
        pool(&json!({ "cidrs": cidrs })).unwrap();
    }
}

#[test]
fn overlapping_prefixes_of_a_pool_are_refused() {
    refused(pool(&json!({ "cidrs": ["10.77.0.0/16", "10.77.3.0/24"] })), "two prefixes overlap");
    refused(pool(&json!({ "cidrs": ["fd77::/64", "fd77::/64"] })), "two prefixes overlap");
}

#[test]
fn host_bits_are_refused() {
    refused(pool(&json!({ "cidrs": ["10.77.0.1/16"] })), "host bits");
    refused(pool(&json!({ "routes": ["10.96.0.1/12"] })), "host bits");
}

#[test]
fn a_prefix_too_small_or_too_large_is_refused() {
    for cidr in ["10.0.0.0/7", "10.0.0.0/31", "fd00::/16", "fd77::1/128"] {
        refused(pool(&json!({ "cidrs": [cidr] })), "too large or too small");
    }
}

#[test]
fn reserved_takes_addresses_prefixes_and_ranges() {
    pool(&json!({ "reserved": ["10.77.0.1", "10.77.1.0/24", "10.77.2.1-10.77.2.9", "fd77::1-fd77::9"] }))
        .unwrap();
}

#[test]
fn the_gateway_of_a_pool_cannot_be_changed() {
    let old = pool_object(&json!({}));
    let new = pool_object(&json!({ "gatewayRef": { "name": "other" } }));
    refused(validate_cel_update(&new, &old).map_err(|e| format!("{e:?}")), "gatewayRef: cannot be changed");
}

#[test]
fn a_pool_grows_and_does_not_shrink() {
    let small = pool_object(&json!({}));
    let large = pool_object(&json!({ "cidrs": ["10.77.0.0/16", "fd77::/64"] }));
    validate_cel_update(&large, &small).unwrap();
    refused(validate_cel_update(&small, &large).map_err(|e| format!("{e:?}")), "a prefix was removed");
}

#[test]
fn a_client_has_one_address_of_each_family() {
    let client = |addresses: Value| {
        let spec = json!({ "poolRef": { "name": "laptops" }, "addresses": addresses });
        validate_cel(&object::<VPNClient>("VPNClient", &spec)).map_err(|e| format!("{e:?}"))
    };
    client(json!(["10.77.0.9", "fd77::9"])).unwrap();
    refused(client(json!(["10.77.0.9", "10.77.0.10"])), "more than one of a family");
}
