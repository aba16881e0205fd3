//! Pods of nodes that are lost.

use super::*;
use crate::fleet::GatewayView;

const SINCE: i64 = 1_000;

/// What is removed at this second, and how long until something is, seconds.
fn removed(
    after: Option<&str>,
    lost: bool,
    silent_for: Option<u64>,
    second: i64,
) -> (Vec<String>, Option<u64>) {
    let pod = after.map_or_else(|| json!({}), |after| json!({ "removeAfterNodeLoss": after }));
    let gateway = gateway(&json!({ "exposure": { "type": "NodePort" }, "pod": pod }));
    let pod = PodFacts { uid: "a".into(), node: Some("n1".into()), running: true, ..PodFacts::default() };
    let lost = lost.then(|| Lost { since: at(SINCE), said: "Kubelet stopped posting node status.".into() });
    let nodes = BTreeMap::from([("n1".to_owned(), NodeFacts { lost, ..NodeFacts::default() })]);
    let view = silent_for.map(|s| ("edge-0".to_owned(), replica_view(Some(Duration::from_secs(s)), None)));
    let view = GatewayView { replicas: view.into_iter().collect() };
    let pods = BTreeMap::from([("edge-0".to_owned(), pod)]);
    let (pods, wait) = lost_pods(&gateway, &pods, &nodes, &view, at(second));
    let named = |pod: LostPod| format!("{} {} {}", pod.name, pod.uid, pod.node);
    (pods.into_iter().map(named).collect(), wait.map(|wait| wait.as_secs()))
}

#[test]
fn a_pod_of_a_lost_node_stays_unless_the_user_wants_it_removed() {
    assert_eq!(removed(None, true, None, SINCE + 1_000_000), (vec![], None));
    assert_eq!(removed(Some("10m"), false, None, SINCE + 1_000_000), (vec![], None));
}

#[test]
fn a_pod_is_removed_once_its_node_was_lost_for_long_enough_and_not_before() {
    assert_eq!(removed(Some("10m"), true, Some(500), SINCE + 599), (vec![], Some(1)));
    assert_eq!(removed(Some("10m"), true, Some(500), SINCE + 600), (vec!["edge-0 a n1".to_owned()], None));
    assert_eq!(removed(Some("10m"), true, None, SINCE + 600), (vec!["edge-0 a n1".to_owned()], None));
    assert_eq!(removed(Some("10m"), true, None, SINCE - 60), (vec![], Some(600)), "clocks differ");
}

/// Its kubelet is ill; the pod serves.
#[test]
fn a_pod_that_is_heard_is_not_removed() {
    assert_eq!(removed(Some("10m"), true, Some(2), SINCE + 6_000), (vec![], Some(28)));
}
