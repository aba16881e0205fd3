//! What is read of objects of others.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::plan::Cause;

fn a_pod(deleted: bool, status: &Value) -> Pod {
    let gone = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
    serde_json::from_value(json!({
        "metadata": { "name": "edge-0", "namespace": "vpn", "uid": "1", "deletionTimestamp": gone },
        "spec": { "nodeName": "n1", "containers": [] }, "status": status,
    }))
    .unwrap()
}

fn with_container(state: &Value) -> Value {
    json!({ "containerStatuses": [{
        "name": "gateway", "image": "a", "imageID": "", "ready": true, "restartCount": 0, "state": state,
    }]})
}

#[test]
fn a_pod_runs_while_its_container_does_and_nobody_deleted_it() {
    let running = with_container(&json!({ "running": {} }));
    // Whether it is deleted, its status, whether it runs, whether the kubelet took it in.
    let table = [
        (false, running.clone(), true, true),
        (true, running, false, true),
        (false, with_container(&json!({ "waiting": { "reason": "ContainerCreating" } })), false, true),
        (false, with_container(&json!({ "terminated": { "exitCode": 1 } })), false, true),
        (false, json!({ "phase": "Pending" }), false, false),
    ];
    for (deleted, status, running, admitted) in table {
        let facts = pod(&a_pod(deleted, &status));
        assert_eq!((facts.running, facts.admitted), (running, admitted), "{deleted} {status}");
        assert_eq!((facts.uid.as_str(), facts.node.as_deref()), ("1", Some("n1")));
    }
}

#[test]
fn addresses_that_are_none_are_left_out() {
    let status =
        json!({ "hostIPs": [{ "ip": "192.0.2.1" }, { "ip": "somewhere" }, { "ip": "2001:db8::1" }] });
    let ips = pod(&a_pod(false, &status)).host_ips;
    assert_eq!(ips, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    let made: Node = serde_json::from_value(json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
        { "type": "InternalIP", "address": "192.0.2.1" }, { "type": "ExternalIP", "address": "203.0.113.1" },
        { "type": "Hostname", "address": "192.0.2.9" }, { "type": "ExternalIP", "address": "none" },
    ]}}))
    .unwrap();
    let facts = node(&made);
    assert_eq!(facts.internal, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(facts.external, ["203.0.113.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_node_is_lost_when_nobody_hears_of_it_and_not_when_it_says_that_it_is_not_ready() {
    let since = "2026-01-01T00:00:00Z";
    let of = |type_: &str, status: &str, message: Value, reason: Value| {
        let made: Node = serde_json::from_value(json!({
            "metadata": { "name": "n1" }, "status": { "conditions": [{
                "type": type_, "status": status, "message": message, "reason": reason, "lastTransitionTime": since,
            }]},
        }))
        .unwrap();
        node(&made).lost
    };
    let lost = of("Ready", "Unknown", json!("Kubelet stopped posting"), json!("NodeStatusUnknown")).unwrap();
    assert_eq!(
        (lost.since, lost.said.as_str()),
        (since.parse::<Timestamp>().unwrap(), "Kubelet stopped posting")
    );
    let said = |message, reason| of("Ready", "Unknown", message, reason).map(|lost| lost.said);
    assert_eq!(said(Value::Null, json!("NodeStatusUnknown")).as_deref(), Some("NodeStatusUnknown"));
    assert_eq!(said(Value::Null, Value::Null).as_deref(), Some("nothing is heard of it"));
    for (type_, status) in [("Ready", "False"), ("Ready", "True"), ("MemoryPressure", "Unknown")] {
        assert!(of(type_, status, json!("x"), json!("y")).is_none(), "{type_} {status}");
    }
}

#[test]
fn an_event_counts_from_when_it_was_last_said_whichever_field_says_so() {
    let event = |times: Value| -> Event {
        let mut event = json!({
            "metadata": { "name": "e", "namespace": "vpn" }, "reason": "Evicted", "message": "memory",
            "involvedObject": { "kind": "Pod", "name": "edge-0", "uid": "1" },
        });
        event.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    };
    let at = |times: Value| note(&event(times)).map(|(_, _, note)| note.at);
    let (first, second) = ("2026-01-01T00:00:01.000000Z", "2026-01-01T00:00:02.000000Z");
    let seconds = |text: &str| Some(text.parse::<Timestamp>().unwrap().as_second());
    assert_eq!(at(json!({ "lastTimestamp": "2026-01-01T00:00:02Z", "eventTime": first })), seconds(second));
    assert_eq!(at(json!({ "eventTime": second })), seconds(second));
    assert_eq!(at(json!({ "lastTimestamp": "2026-01-01T00:00:01Z", "eventTime": second })), seconds(second));
    let series = json!({ "count": 2, "lastObservedTime": second });
    assert_eq!(at(json!({ "eventTime": first, "series": series })), seconds(second));
    assert_eq!(at(json!({})), Some(0), "none says so");
    let (kind, name, note) = note(&event(json!({}))).unwrap();
    assert_eq!((kind, name.as_str(), note.refusal.cause), (NoteKind::Pod, "edge-0", Cause::Evicted));
}

#[test]
fn an_event_about_anything_else_is_no_note() {
    let of = |about: Value| {
        let event = json!({
            "metadata": { "name": "e" }, "reason": "Evicted", "message": "m", "involvedObject": about,
        });
        note(&serde_json::from_value(event).unwrap())
    };
    assert!(of(json!({ "kind": "Pod", "name": "edge-0" })).is_some());
    for about in [json!({}), json!({ "kind": "Node", "name": "n1" }), json!({ "kind": "Pod" })] {
        assert!(of(about.clone()).is_none(), "{about}");
    }
}

#[test]
fn only_owners_of_our_own_kinds_are_asked_for() {
    let owner =
        |api: &str, kind: &str| json!({ "apiVersion": api, "kind": kind, "name": "edge", "uid": "1" });
    let meta: ObjectMeta = serde_json::from_value(json!({ "ownerReferences": [
        owner("pinhole.dev/v1alpha1", "VPNGateway"), owner("pinhole.dev/v1beta1", "VPNClientPool"),
        owner("pinhole.dev/v1", "VPNClient"), owner("pinhole.dev/v1", "Else"),
        owner("apps/v1", "VPNGateway"), owner("pinhole.developers/v1", "VPNClient"),
    ]}))
    .unwrap();
    let expected = [
        Request::Gateway(GatewayKey::new("vpn", "edge")),
        Request::Pool(PoolKey::new("vpn", "edge")),
        Request::Client(ClientKey::new("vpn", "edge")),
    ];
    assert_eq!(owners("vpn", &meta), expected);
    assert!(owners("vpn", &ObjectMeta::default()).is_empty());
}

#[test]
fn what_is_large_and_of_no_use_is_not_kept() {
    let mut meta: ObjectMeta = serde_json::from_value(json!({
        "name": "edge", "managedFields": [{ "manager": "kubectl" }],
        "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b" },
    }))
    .unwrap();
    prune(&mut meta);
    assert_eq!((meta.name.as_deref(), meta.managed_fields), (Some("edge"), None));
    assert_eq!(meta.annotations.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
}
