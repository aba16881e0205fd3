//! Refusals as watches show them, in any order.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Event, Node, Pod},
    jiff::{SignedDuration, Timestamp},
};
use serde_json::{Value, json};

use super::super::{
    index::{EVICTED_LATELY, Effects, Index, Name},
    request::Request,
};
use crate::{fleet::GatewayKey, plan::ObjectKind};

fn name(name: &str) -> Name {
    ("vpn".to_owned(), name.to_owned())
}

fn index() -> Index {
    let gateway = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNGateway",
        "metadata": { "name": "edge", "namespace": "vpn", "uid": "uid-edge" },
        "spec": { "exposure": { "type": "NodePort" } },
    });
    let mut index = Index::default();
    index.gateway_read(&edge(), Some(serde_json::from_value(gateway).unwrap()));
    index
}

fn edge() -> GatewayKey {
    GatewayKey::new("vpn", "edge")
}

fn event(kind: &str, about: (&str, &str), reason: &str, message: &str) -> Event {
    serde_json::from_value(json!({
        "metadata": { "name": "edge.1", "namespace": "vpn" },
        "involvedObject": { "kind": kind, "namespace": "vpn", "name": about.0, "uid": about.1 },
        "reason": reason, "message": message, "type": "Warning", "count": 3,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z",
    }))
    .unwrap()
}

fn failed_create(uid: &str) -> Event {
    let message = "create Pod edge-0 in StatefulSet edge failed error: pods \"edge-0\" is forbidden: exceeded quota: few";
    event("StatefulSet", ("edge", uid), "FailedCreate", message)
}

fn pod(uid: &str, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "edge-0", "namespace": "vpn", "uid": uid,
            "labels": { "app.kubernetes.io/instance": "edge", "pinhole.dev/gateway": "edge" } },
        "spec": { "nodeName": "n1", "containers": [] }, "status": status,
    }))
    .unwrap()
}

fn running() -> Value {
    json!({ "phase": "Running", "containerStatuses": [{
        "name": "gateway", "image": "a", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": {} },
    }]})
}

fn rejected() -> Value {
    json!({ "phase": "Failed", "reason": "SysctlForbidden", "message": "Pod was rejected: forbidden sysctl" })
}

/// It ran before.
fn evicted() -> Value {
    let mut status = running();
    status["phase"] = json!("Failed");
    status["reason"] = json!("Evicted");
    status["message"] = json!("The node was low on resource: memory.");
    status["containerStatuses"][0]["state"] = json!({ "terminated": { "exitCode": 137 } });
    status
}

fn refused(index: &Index) -> Option<&'static str> {
    let gateway = index.gateway(&edge()).unwrap();
    index.refusals_of(&gateway).get("edge-0").map(|refusal| refusal.cause.category())
}

fn asks_for_the_gateway(effects: &Effects) -> bool {
    effects.request.contains(&Request::Gateway(edge()))
}

#[test]
fn a_pod_that_cannot_be_made_is_refused_until_it_is_there() {
    let mut index = index();
    let effects = index.event_changed(&name("edge.1"), Some(&failed_create("uid-set")));
    assert!(asks_for_the_gateway(&effects));
    assert_eq!(refused(&index), Some("QuotaExceeded"));
    index.pod_changed(name("edge-0"), Some(&pod("a", &json!({ "phase": "Pending" }))));
    assert_eq!(refused(&index), None);
    // Deleted by somebody: the old Event says nothing about that.
    index.pod_changed(name("edge-0"), None);
    assert_eq!(refused(&index), None);
}

#[test]
fn what_was_said_of_an_older_stateful_set_does_not_count() {
    let mut index = index();
    let meta = serde_json::from_value(json!({ "name": "edge", "uid": "uid-new", "generation": 1 })).unwrap();
    index.owned_changed(ObjectKind::StatefulSet, &name("edge"), Some(&meta));
    index.event_changed(&name("edge.1"), Some(&failed_create("uid-old")));
    assert_eq!(refused(&index), None);
    index.event_changed(&name("edge.1"), Some(&failed_create("uid-new")));
    assert_eq!(refused(&index), Some("QuotaExceeded"));
    assert!(asks_for_the_gateway(&index.event_changed(&name("edge.1"), None)));
    assert_eq!(refused(&index), None, "Events go after a while");
}

#[test]
fn a_pod_that_is_turned_away_again_and_again_is_refused_all_the_while() {
    for (status, reason) in [(rejected(), "SysctlForbidden"), (evicted(), "Evicted")] {
        let mut index = index();
        for uid in ["a", "b", "c"] {
            index.pod_changed(name("edge-0"), Some(&pod(uid, &status)));
            assert_eq!(refused(&index), Some(reason));
            index.pod_changed(name("edge-0"), None);
            assert_eq!(refused(&index), Some(reason), "until the next is made");
            index.pod_changed(name("edge-0"), Some(&pod(uid, &json!({ "phase": "Pending" }))));
            assert_eq!(refused(&index), Some(reason), "until the kubelet has seen it");
        }
        index.pod_changed(name("edge-0"), Some(&pod("d", &running())));
        assert_eq!(refused(&index), None);
        index.pod_changed(name("edge-0"), None);
        assert_eq!(refused(&index), None);
    }
}

#[test]
fn an_eviction_is_told_for_a_while_though_the_pod_runs_again() {
    let mut index = index();
    let now = Instant::now();
    let gateway = index.gateway(&GatewayKey::new("vpn", "edge")).unwrap();
    let evicted =
        json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory." });
    for (uid, status) in [("a", &evicted), ("b", &running())] {
        index.remember_eviction(&name("edge-0"), &pod(uid, status), now);
        index.pod_changed(name("edge-0"), Some(&pod(uid, status)));
        let (told, left) = index.evictions_of(&gateway, now + Duration::from_secs(1));
        assert_eq!(told.keys().map(String::as_str).collect::<Vec<_>>(), ["edge-0"]);
        assert!(told["edge-0"].text().contains("low on resource: memory") && left < Some(EVICTED_LATELY));
    }
    assert_eq!(index.evictions_of(&gateway, now + EVICTED_LATELY), (BTreeMap::new(), None));
}

/// Its process ended well at its signal: the pod says `Succeeded`.
#[test]
fn an_eviction_is_told_that_only_the_kubelets_event_tells() {
    let gateway = index().gateway(&edge()).unwrap();
    let (now, said) = (Instant::now(), "2026-01-01T00:01:00Z".parse::<Timestamp>().unwrap());
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 1Ki.";
    let told = |index: &mut Index, about: &str, reason: &str, later: i64| {
        let wall = said + SignedDuration::from_secs(later);
        index.eviction_told(&event("Pod", (about, "a"), reason, message), now, wall)
    };
    for later in [-60, 0, 200] {
        let mut index = index();
        assert!(asks_for_the_gateway(&told(&mut index, "edge-0", "Evicted", later)));
        let (evicted, left) = index.evictions_of(&gateway, now);
        assert!(evicted["edge-0"].text().contains("ephemeral"));
        let over = Duration::from_secs(u64::try_from(later).unwrap_or_default());
        assert_eq!(left, EVICTED_LATELY.checked_sub(over));
    }
    for (about, reason, later) in [
        ("edge-0", "Evicted", 400),
        ("edge-0", "Killing", 0),
        ("web-0", "Evicted", 0),
        ("edge", "Evicted", 0),
    ] {
        let mut index = index();
        assert!(told(&mut index, about, reason, later).request.is_empty(), "{about} {reason} {later}");
        assert!(index.evictions_of(&gateway, now).0.is_empty());
    }
}

#[test]
fn an_event_of_a_pod_counts_for_that_pod_until_it_runs() {
    let mut index = index();
    let message = "MountVolume.SetUp failed for volume \"tun\" : hostPath type check failed: /dev/net/tun is not a character device";
    index.event_changed(&name("edge-0.1"), Some(&event("Pod", ("edge-0", "a"), "FailedMount", message)));
    let creating = json!({ "phase": "Pending", "containerStatuses": [{
        "name": "gateway", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ContainerCreating" } },
    }]});
    index.pod_changed(name("edge-0"), Some(&pod("a", &creating)));
    assert_eq!(refused(&index), Some("TunDeviceMissing"));
    index.pod_changed(name("edge-0"), Some(&pod("a", &running())));
    assert_eq!(refused(&index), None);
    index.pod_changed(name("edge-0"), Some(&pod("b", &creating)));
    assert_eq!(refused(&index), None, "another pod");
}

#[test]
fn the_pods_of_a_node_that_nobody_hears_of_are_lost() {
    let mut index = index();
    let node = |status: &str| -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n1" }, "status": { "conditions": [{
            "type": "Ready", "status": status, "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}}))
        .unwrap()
    };
    index.pod_changed(name("edge-0"), Some(&pod("a", &running())));
    index.node_changed("n1", Some(&node("True")));
    assert_eq!(refused(&index), None);
    assert!(asks_for_the_gateway(&index.node_changed("n1", Some(&node("Unknown")))));
    assert_eq!(refused(&index), Some("NodeLost"));
    let mut leaving = pod("a", &running());
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:05:00Z")).unwrap();
    index.pod_changed(name("edge-0"), Some(&leaving));
    assert_eq!(refused(&index), Some("NodeLost"));
}

#[test]
fn events_of_others_ask_for_nothing() {
    let mut index = index();
    let other = event(
        "StatefulSet",
        ("database", "x"),
        "FailedCreate",
        "create Pod database-0 in StatefulSet database failed error: x",
    );
    assert_eq!(index.event_changed(&name("database.1"), Some(&other)), Effects::default());
}
