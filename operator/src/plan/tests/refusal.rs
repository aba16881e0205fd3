//! Refusals as API servers, kubelets and schedulers of Kubernetes 1.36 write them.

use k8s_openapi::api::core::v1::{Pod, Service};
use pinhole_crds::{ClientCounts, READY, RECONCILING, STALLED};

use super::*;
use crate::{
    fleet::GatewayView,
    plan::{
        NoteKind,
        gateway::{StatusInputs, status},
    },
};

fn of_set(answer: &str) -> Note {
    let message = format!("create Pod edge-0 in StatefulSet edge failed error: {answer}");
    Note::read(NoteKind::StatefulSet, "FailedCreate", &message, "uid-edge".into(), 9).unwrap()
}

fn of_pod(status: &Value) -> Option<Refusal> {
    let pod: Pod =
        serde_json::from_value(json!({ "metadata": { "name": "edge-0" }, "status": status })).unwrap();
    Refusal::of_pod(&pod)
}

fn container(state: &Value, last: &Value) -> Option<Refusal> {
    of_pod(&json!({ "phase": "Running", "containerStatuses": [{
        "name": "gateway", "image": "pinhole/agent:1", "imageID": "", "ready": false, "restartCount": 3,
        "state": state, "lastState": last,
    }]}))
}

fn waiting(reason: &str, message: &str) -> Option<Refusal> {
    container(&json!({ "waiting": { "reason": reason, "message": message } }), &json!({}))
}

fn said_of(refusal: Option<Refusal>) -> (&'static str, String) {
    refusal.map(|r| (r.cause.category(), r.text())).unwrap_or_default()
}

/// A gateway of two replicas, of which those named are refused, and the first may be proven.
fn judge(refused: &[(&str, Refusal)], unbalanced: &[(&str, Refusal)], proven: bool) -> Vec<Condition> {
    let gateway = gateway(&json!({ "exposure": { "type": "LoadBalancer" }, "replicas": 2 }));
    let map = |of: &[(&str, Refusal)]| -> BTreeMap<String, Refusal> {
        of.iter().map(|(n, r)| ((*n).to_owned(), r.clone())).collect()
    };
    let (refused, unbalanced) = (map(refused), map(unbalanced));
    let mut replicas = balanced(&gateway);
    if !unbalanced.is_empty() {
        for replica in &mut replicas {
            replica.tunnel_endpoints.clear();
        }
    }
    let second = Duration::from_secs(1);
    let view = replica_view(Some(second), Some((PathProof::PodAddress, second)));
    let view = proven.then(|| ("edge-0".to_owned(), view));
    let pods = if proven { running("n1") } else { BTreeMap::new() };
    let inputs = StatusInputs {
        gateway: &gateway,
        replicas: &replicas,
        pods: &pods,
        refused: &refused,
        unbalanced: &unbalanced,
        evicted: &BTreeMap::new(),
        view: &GatewayView { replicas: view.into_iter().collect() },
        clients: ClientCounts::default(),
        nat: None,
        obstacle: None,
        unread: &[],
        frozen_pool: None,
        now: at(100),
    };
    status(&inputs).0.conditions
}

#[test]
fn what_admission_says_of_a_pod_is_told_apart_and_quoted() {
    for (answer, category, remedy) in [
        (
            "pods \"edge-0\" is forbidden: violates PodSecurity \"baseline:latest\": non-default capabilities (container \
             \"gateway\" must not include \"NET_ADMIN\" in securityContext.capabilities.add), hostPath volumes (volume \
             \"tun\")",
            "PodSecurityForbidden",
            "enforce=privileged",
        ),
        (
            "pods \"edge-0\" is forbidden: failed quota: compute: must specify limits.cpu for: gateway; limits.memory \
             for: gateway",
            "QuotaExceeded",
            "spec.pod.resources",
        ),
        (
            "pods \"edge-0\" is forbidden: exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1",
            "QuotaExceeded",
            "raise the quota",
        ),
        (
            "pods \"edge-0\" is forbidden: status unknown for quota: few, resources: pods",
            "QuotaExceeded",
            "raise the quota",
        ),
        (
            "pods \"edge-0\" is forbidden: maximum memory usage per Container is 64Mi, but limit is 1Gi",
            "LimitRangeViolated",
            "LimitRange",
        ),
        (
            "pods \"edge-0\" is forbidden: [cpu max limit to request ratio per Container is 2, but provided ratio is \
             4.000000, minimum cpu usage per Pod is 1, but request is 100m]",
            "LimitRangeViolated",
            "LimitRange",
        ),
        (
            "pods \"edge-0\" is forbidden: ValidatingAdmissionPolicy 'no-root' with binding 'no-root' denied request: \
             exceeded quota: of patience",
            "AdmissionDenied",
            "exempt",
        ),
        (
            "admission webhook \"validate.kyverno.svc-fail\" denied the request: resource Pod/vpn/edge-0 was blocked",
            "AdmissionDenied",
            "exempt",
        ),
        (
            "pods \"edge-0\" is forbidden: no PriorityClass with name high was found",
            "AdmissionDenied",
            "change what it names",
        ),
        (
            "Internal error occurred: failed calling webhook \"pods.example.org\": failed to call webhook: Post \
             \"https://x\": no endpoints available for service \"x\"",
            "AdmissionUnavailable",
            "mend the webhook",
        ),
        ("the server was unable to return a response", "FailedCreate", "tried again"),
    ] {
        let note = of_set(answer);
        assert_eq!((note.pod.as_deref(), note.uid.as_str()), (Some("edge-0"), "uid-edge"));
        assert_eq!(note.refusal.cause.category(), category, "{answer}");
        let text = note.refusal.text();
        assert!(text.contains(answer) && text.contains(remedy), "{text}");
    }
}

#[test]
fn events_that_were_put_together_are_read_as_one() {
    let message = "(combined from similar events): create Pod edge-1 in StatefulSet edge failed error: pods \"edge-1\" is \
                   forbidden: exceeded quota: few";
    let note = Note::read(NoteKind::StatefulSet, "FailedCreate", message, "u".into(), 1).unwrap();
    assert_eq!((note.pod.as_deref(), note.refusal.cause), (Some("edge-1"), Cause::Quota));
}

#[test]
fn other_events_are_no_refusals() {
    for (kind, reason) in [
        (NoteKind::StatefulSet, "SuccessfulCreate"),
        (NoteKind::Pod, "BackOff"),
        (NoteKind::Service, "FailedToUpdateEndpointSlices"),
    ] {
        assert_eq!(Note::read(kind, reason, "x", "u".into(), 1), None, "{reason}");
    }
}

#[test]
fn what_the_kubelet_turns_away_is_said() {
    let sysctl = json!({ "phase": "Failed", "reason": "SysctlForbidden",
        "message": "Pod was rejected: forbidden sysctl: \"net.ipv6.conf.all.forwarding\" not allowlisted" });
    let (category, text) = said_of(of_pod(&sysctl));
    assert_eq!(category, "SysctlForbidden");
    assert!(text.contains("not allowlisted") && text.contains("--allowed-unsafe-sysctls"), "{text}");
    let evicted = json!({ "phase": "Failed", "reason": "Evicted",
        "message": "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. " });
    let (category, text) = said_of(of_pod(&evicted));
    assert_eq!(category, "Evicted");
    assert!(text.contains("low on resource: memory") && text.contains("priorityClassName"), "{text}");
    // By a limit of its own, and by the node's pressure with who used how much (kubernetes/kubernetes issues 122160 and 91600).
    for message in [
        "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
        "Container gateway exceeded its local ephemeral storage limit \"20Mi\". ",
        "The node was low on resource: ephemeral-storage. Container gateway was using 34260Ki, which exceeds its request of 0. ",
    ] {
        let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": message });
        let (category, text) = said_of(of_pod(&evicted));
        assert_eq!(category, "Evicted");
        assert!(text.contains(message.trim().trim_end_matches('.')) && text.contains("limits"), "{text}");
    }
    let other = json!({ "phase": "Failed", "reason": "NodeAffinity", "message": "Pod was rejected: Predicate NodeAffinity failed" });
    assert_eq!(said_of(of_pod(&other)).0, "PodFailed");
}

#[test]
fn a_pod_that_fits_no_node_is_unschedulable() {
    let message = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes \
         are available: 3 Preemption is not helpful for scheduling.";
    let status = json!({ "phase": "Pending", "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message },
    ]});
    let (category, text) = said_of(of_pod(&status));
    assert_eq!(category, "Unschedulable");
    assert!(text.contains("3 node(s) didn't match") && text.contains("nodeSelector"), "{text}");
}

#[test]
fn an_image_that_cannot_be_had_is_named_whoever_wants_it() {
    for reason in ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"] {
        let message = "Back-off pulling image \"example.org/agent:none\": not found";
        let (category, text) = said_of(waiting(reason, message));
        assert_eq!(category, "ImageUnavailable", "{reason}");
        assert!(text.contains(message) && text.contains(reason), "{text}");
    }
    let injected = json!({ "phase": "Pending", "initContainerStatuses": [{
        "name": "mesh", "image": "mesh", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ImagePullBackOff", "message": "Back-off pulling image \"mesh\"" } },
    }]});
    assert_eq!(said_of(of_pod(&injected)).0, "ImageUnavailable");
}

#[test]
fn a_node_without_a_tun_device_is_told_apart_from_one_that_forbids_it() {
    let mount = "MountVolume.SetUp failed for volume \"tun\" : hostPath type check failed: /dev/net/tun is not a character \
                 device";
    let note = Note::read(NoteKind::Pod, "FailedMount", mount, "u".into(), 1).unwrap();
    assert_eq!(note.refusal.cause.category(), "TunDeviceMissing");
    assert!(note.refusal.text().contains("modprobe tun"));
    let runtime = "failed to create containerd task: failed to create shim task: OCI runtime create failed: error mounting \
                   \"/dev/net/tun\" to rootfs at \"/dev/net/tun\": operation not permitted: unknown";
    assert_eq!(said_of(waiting("RunContainerError", runtime)).0, "TunDeviceForbidden");
    // What runc 1.2.0 to 1.2.3 do, and whoever takes the device from the default rules: the container starts and cannot open it.
    let text = "no permission to open /dev/net/tun: run as root, or grant CAP_NET_ADMIN";
    assert!(said_of(Refusal::of_impairment("NotPermitted", text)).1.contains("runc 1.2.0"));
    assert_eq!(said_of(Refusal::of_impairment("NotPermitted", text)).0, "TunDeviceForbidden");
    assert_eq!(said_of(Refusal::of_impairment("NoTunDevice", text)).0, "TunDeviceMissing");
    assert_eq!(Refusal::of_impairment("FilterFailed", text), None);
    let secret =
        "MountVolume.SetUp failed for volume \"keys\" : references non-existent secret key: edge-0.key";
    let note = Note::read(NoteKind::Pod, "FailedMount", secret, "u".into(), 1).unwrap();
    assert_eq!(note.refusal.cause.category(), "FailedMount");
}

#[test]
fn a_container_that_ends_again_and_again_is_quoted() {
    let ended = json!({ "terminated": { "exitCode": 2, "reason": "Error", "message": "the operator's URL is no URL" } });
    let back_off =
        json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s restarting" } });
    let (category, text) = said_of(container(&back_off, &ended));
    assert_eq!(category, "CrashLoopBackOff");
    assert!(text.contains("Error, exit code 2: the operator's URL is no URL"), "{text}");
    assert_eq!(container(&back_off, &ended), container(&ended, &json!({})), "the same while it waits");
    assert_eq!(container(&json!({ "running": {} }), &ended), None, "it runs");
}

#[test]
fn a_pod_on_its_way_is_refused_by_nobody() {
    assert_eq!(waiting("ContainerCreating", ""), None);
    assert_eq!(waiting("PodInitializing", ""), None);
    assert_eq!(of_pod(&json!({ "phase": "Pending" })), None);
}

#[test]
fn a_load_balancer_is_quoted_by_its_conditions_and_by_its_ports() {
    let of = |status: Value| {
        let service: Service = serde_json::from_value(json!({ "status": status })).unwrap();
        said_of(Refusal::of_service(&service))
    };
    let condition = |type_: &str, status: &str| {
        json!({ "type": type_, "status": status, "reason": "no_pool", "message": "no pool fits",
            "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let ports = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.7", "ports": [
        { "port": 51820, "protocol": "UDP", "error": "MixedProtocolNotSupported" },
        { "port": 51821, "protocol": "TCP" },
    ]}]}});
    let (category, text) = of(ports);
    assert_eq!(category, "LoadBalancerRefused");
    assert!(text.contains("port 51820/UDP: MixedProtocolNotSupported") && !text.contains("51821"), "{text}");
    for (type_, status, refused) in [
        ("LoadBalancerPortsError", "True", true),
        ("LoadBalancerPortsError", "False", false),
        ("cilium.io/IPAMRequestSatisfied", "False", true),
        ("cilium.io/IPAMRequestSatisfied", "True", false),
    ] {
        let (category, text) = of(json!({ "conditions": [condition(type_, status)] }));
        assert_eq!(category == "LoadBalancerRefused", refused, "{type_} {status}");
        assert!(!refused || text.contains("no_pool: no pool fits"), "{text}");
    }
    let event = "Error syncing load balancer: failed to ensure load balancer: mixed protocol is not supported for LoadBalancer";
    let note = Note::read(NoteKind::Service, "SyncLoadBalancerFailed", event, "u".into(), 1).unwrap().refusal;
    assert!(note.text().contains(event));
    let conditions = judge(&[], &[("edge-0", note)], true);
    assert_eq!(verdict(&conditions, READY), said("False", "LoadBalancerRefused"));
}

#[test]
fn a_quote_is_bounded_and_ends_no_line() {
    let refusal = of_set(&format!("violates PodSecurity\n\u{1b}[31m{}", "x".repeat(9_000))).refusal;
    assert!(refusal.text().chars().count() < 1_000);
    assert!(refusal.text().contains("enforce=privileged"), "the remedy is there all the same");
    assert!(!refusal.text().contains(['\n', '\u{1b}']));
}

#[test]
fn what_somebody_must_mend_stalls_and_what_may_pass_does_not() {
    let refusal = of_set("pods \"edge-0\" is forbidden: violates PodSecurity \"baseline:latest\": x").refusal;
    let conditions = judge(&[("edge-0", refusal.clone()), ("edge-1", refusal)], &[], false);
    assert_eq!(verdict(&conditions, READY), said("False", "PodSecurityForbidden"));
    assert_eq!(verdict(&conditions, STALLED), said("True", "PodSecurityForbidden"));
    assert!(
        find(&conditions, READY).message.starts_with("edge-0, edge-1: Pod Security admission says: pods")
    );
    let lost = Refusal::of_node("n1", "Kubelet stopped posting node status.");
    let conditions = judge(&[("edge-0", lost)], &[], false);
    assert_eq!(verdict(&conditions, READY), said("False", "NodeLost"));
    assert_eq!(verdict(&conditions, RECONCILING), said("True", "NodeLost"));
    let message = &find(&conditions, READY).message;
    assert!(message.contains("node n1: Kubelet stopped") && message.contains("out-of-service"), "{message}");
}

#[test]
fn one_refused_replica_is_named_while_the_others_serve() {
    let refusal = waiting("ImagePullBackOff", "no such image").unwrap();
    let conditions = judge(&[("edge-1", refusal)], &[], true);
    assert_eq!(verdict(&conditions, READY).0, "True");
    assert_eq!(verdict(&conditions, RECONCILING), said("True", "ImageUnavailable"));
    let message = &find(&conditions, RECONCILING).message;
    assert!(message.starts_with("edge-1: ") && message.ends_with("The others serve"), "{message}");
}

#[test]
fn whoever_is_heard_is_refused_by_nobody() {
    let lost = Refusal::of_node("n1", "Kubelet stopped posting node status.");
    let conditions = judge(&[("edge-0", lost)], &[], true);
    assert_eq!(verdict(&conditions, READY).0, "True");
}

#[test]
fn a_right_that_the_operator_lacks_is_no_admission() {
    let answer =
        "statefulsets.apps \"edge\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch resource";
    assert_eq!(Refusal::of_answer(answer).cause, Cause::Creation);
    let port = "Service \"edge-0\" is invalid: spec.ports[0].nodePort: Invalid value: 31000: provided port is already allocated";
    assert_eq!(Refusal::of_answer(port).cause.category(), "NodePortTaken");
}
