//! What a node refuses a gateway, or what becomes of one whose node is gone, and a load balancer that serves one replica.

use std::time::Duration;

use anyhow::ensure;
use pinhole_e2e::{
    Lab,
    node::NO_DEVICES,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{
    Outcome, product,
    refused::{WITHIN, namespace, pod_uid, says},
    stock, tests,
};

tests![
    a_node_without_a_tun_device_is_quoted,
    a_tun_device_that_must_not_be_opened_is_named,
    an_eviction_is_quoted,
    a_lost_node_is_named_and_its_pod_removed_where_the_user_wants_that,
    a_load_balancer_of_one_address_leaves_the_second_replica_without_and_stock_clients_use_the_first,
];

/// The node controller waits 50 s for a heartbeat (`--node-monitor-grace-period`), and the user a minute after that.
const LOST: Duration = Duration::from_mins(2);

/// The newest version in which the API server has policies that change objects.
async fn policies(lab: &Lab) -> anyhow::Result<&'static str> {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let path = format!("/apis/admissionregistration.k8s.io/{version}");
        let served = lab.kubectl(["get", "--raw", &path]).await;
        if served.is_ok_and(|served| served.contains("mutatingadmissionpolicies")) {
            return Ok(version);
        }
    }
    anyhow::bail!("the API server has no MutatingAdmissionPolicy")
}

/// A gateway whose node has its TUN device elsewhere.
async fn with_tun_at<'a>(lab: &'a Lab, name: &str, path: &str) -> anyhow::Result<Vpn<'a>> {
    namespace(lab, name, "{}").await?;
    let version = policies(lab).await?;
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/{version}
kind: MutatingAdmissionPolicy
metadata: {{ name: {name} }}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules: [{{ apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods] }}]
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: >
          Object{{ spec: Object.spec{{ volumes: [
            Object.spec.volumes{{ name: 'tun', hostPath: Object.spec.volumes.hostPath{{ path: '{path}' }} }}
          ] }} }}
---
apiVersion: admissionregistration.k8s.io/{version}
kind: MutatingAdmissionPolicyBinding
metadata: {{ name: {name} }}
spec:
  policyName: {name}
  matchResources: {{ namespaceSelector: {{ matchLabels: {{ kubernetes.io/metadata.name: {name} }} }} }}
"
    );
    lab.apply(&policy).await?;
    // A policy is in force a moment after it was made.
    let overrides =
        r#"--overrides={"spec":{"volumes":[{"name":"tun","hostPath":{"path":"/x","type":"CharDevice"}}]}}"#;
    wait::until("the policy to be in force", PATIENCE, || async {
        let probe = ["run", "probe", "--image=none", "--dry-run=server", "-o", "json", "-n", name, overrides];
        match lab.kubectl(probe).await {
            Ok(made) if made.contains(path) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await?;
    Ok(Vpn::declare(lab, name, Exposure::NodePort, "").await?)
}

async fn without_policy(vpn: Vpn<'_>) -> Outcome {
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        vpn.lab().kubectl(["delete", kind, vpn.namespace()]).await?;
    }
    Ok(vpn.delete().await?)
}

/// The kubelet looks where the policy says, and finds none, as on a node without the module.
async fn a_node_without_a_tun_device_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = with_tun_at(lab, "refused-no-tun", "/run/no-module/dev/net/tun").await?;
    let words = ["the kubelet", "hostPath type check failed", "/dev/net/tun", "modprobe tun"];
    says(&vpn, "TunDeviceMissing", &words).await?;
    without_policy(vpn).await
}

/// A mount on which no device opens says no to the gateway as a runtime's device rules would: the kernel's word is the same but
/// for EACCES in place of EPERM.
async fn a_tun_device_that_must_not_be_opened_is_named(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = with_tun_at(lab, "refused-tun", &format!("{NO_DEVICES}/dev/net/tun")).await?;
    says(&vpn, "TunDeviceForbidden", &["its container says", "/dev/net/tun", "c 10:200 rwm"]).await?;
    without_policy(vpn).await
}

/// A gateway's log alone is more than this.
async fn an_eviction_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let more = "pod: { resources: { limits: { ephemeral-storage: 1Ki } } }";
    let vpn = Vpn::declare(lab, "refused-eviction", Exposure::NodePort, more).await?;
    wait::until("the kubelet to evict the pod", PATIENCE, || async {
        let fields = "--field-selector=involvedObject.kind=Pod,reason=Evicted";
        let args = ["get", "events", fields, "-o", "jsonpath={.items[*].message}"];
        let seen = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if seen.contains("ephemeral") { Ok(()) } else { Err(seen) }
    })
    .await?;
    // The pod is made anew at once, runs until the next look of the kubelet, and so on: Ready may be True in between.
    let path = "jsonpath={.status.conditions[?(@.reason==\"Evicted\")].message}";
    wait::until("the condition that says so", WITHIN, || async {
        let message =
            vpn.kubectl(&["get", "vgw/edge", "-o", path]).await.map_err(|error| error.to_string())?;
        let says = |words: &&str| message.contains(*words);
        if ["the kubelet", "ephemeral", "spec.pod"].iter().all(says) { Ok(()) } else { Err(message) }
    })
    .await?;
    wait::until("an Event that says so", PATIENCE, || async {
        let args = [
            "get",
            "events.events.k8s.io",
            "-o",
            "jsonpath={.items[?(@.regarding.kind==\"VPNGateway\")].note}",
        ];
        let notes = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if notes.contains("ephemeral") { Ok(()) } else { Err(notes) }
    })
    .await?;
    Ok(vpn.delete().await?)
}

/// A node that nobody but this gateway may use, and whose kubelet is the test, until it says nothing any more.
async fn node(lab: &Lab, name: &str) -> Outcome {
    lab.apply(&format!(
        "{{ apiVersion: v1, kind: Node, metadata: {{ name: {name}, labels: {{ example.org/lost: 'true' }} }}, \
         spec: {{ taints: [{{ key: example.org/lost, effect: NoSchedule }}] }} }}"
    ))
    .await?;
    let status = r#"{"status":{"capacity":{"cpu":"4","memory":"4Gi","pods":"10","ephemeral-storage":"10Gi"},
        "allocatable":{"cpu":"4","memory":"4Gi","pods":"10","ephemeral-storage":"10Gi"},
        "addresses":[{"type":"InternalIP","address":"203.0.113.252"}],
        "conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"kubelet is posting ready status"}]}}"#;
    lab.kubectl(["patch", "node", name, "--subresource=status", "--type=merge", "-p", status]).await?;
    Ok(())
}

async fn a_lost_node_is_named_and_its_pod_removed_where_the_user_wants_that(lab: &Lab) -> Outcome {
    const NODE: &str = "lost-node";
    let _product = product::installed(lab).await?;
    node(lab, NODE).await?;
    let more = "pod: { nodeSelector: { example.org/lost: 'true' }, tolerations: [{ key: example.org/lost, operator: Exists }], \
                removeAfterNodeLoss: 1m }";
    let vpn = Vpn::declare(lab, "refused-lost", Exposure::NodePort, more).await?;
    wait::until("the scheduler to choose the node", PATIENCE, || async {
        let chosen = vpn.kubectl(&["get", "pod/edge-0", "-o", "jsonpath={.spec.nodeName}"]).await;
        let chosen = chosen.map_err(|error| error.to_string())?;
        if chosen == NODE { Ok(()) } else { Err(chosen) }
    })
    .await?;
    let first = pod_uid(&vpn).await;
    wait::until("the node controller to give the node up", LOST, || async {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let ready =
            lab.kubectl(["get", "node", NODE, "-o", path]).await.map_err(|error| error.to_string())?;
        if ready == "Unknown" { Ok(()) } else { Err(ready) }
    })
    .await?;
    let words = ["the node controller", NODE, "Kubelet stopped posting node status", "out-of-service"];
    says(&vpn, "NodeLost", &words).await?;
    wait::until("the pod to be removed", LOST, || async {
        let args = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
        let reasons = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        let removed = reasons.contains("LostPodRemoved") && pod_uid(&vpn).await != first;
        if removed { Ok(()) } else { Err(reasons) }
    })
    .await?;
    vpn.kubectl(&["delete", "vgw/edge"]).await?;
    vpn.kubectl(&["delete", "pod", "--all", "--force", "--grace-period=0"]).await?;
    lab.kubectl(["delete", "node", NODE]).await?;
    Ok(vpn.delete().await?)
}

/// No controller of the lab serves the class: the test is that controller, which has one address to give, as that of k3s has on one
/// node.
async fn a_load_balancer_of_one_address_leaves_the_second_replica_without_and_stock_clients_use_the_first(
    lab: &Lab,
) -> Outcome {
    const ADDRESS: &str = "203.0.113.251";
    let _product = product::installed(lab).await?;
    let name = "refused-second";
    namespace(lab, name, "{}").await?;
    lab.apply(&format!(
        "apiVersion: pinhole.dev/v1alpha1\nkind: VPNGateway\nmetadata: {{ name: edge, namespace: {name} }}\n\
         spec: {{ replicas: 2, exposure: {{ type: LoadBalancer, loadBalancerClass: example.org/one }} }}"
    ))
    .await?;
    let vpn = Vpn::declared(lab, name);
    vpn.condition("vgw/edge", "Ready", "False", "AddressPending").await?;
    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{ADDRESS}"}}]}}}}}}"#);
    vpn.kubectl(&["patch", "service/edge-0", "--subresource=status", "--type=merge", "-p", &status]).await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    vpn.condition("vgw/edge", "Reconciling", "True", "ReplicasWithoutAddress").await?;
    let path = "jsonpath={.status.conditions[?(@.type==\"Reconciling\")].message}";
    let message = vpn.kubectl(&["get", "vgw/edge", "-o", path]).await?;
    for words in ["edge-1 got no address", "replicas to 1", "NodePort"] {
        ensure!(message.contains(words), "{message}");
    }
    vpn.pool("phones", "[10.134.0.0/24]", "").await?;
    for n in 0..6 {
        let client = format!("phone-{n}");
        vpn.apply(&format!(
            "kind: VPNClient\nmetadata: {{ name: {client}, namespace: {name} }}\nspec: {{ poolRef: {{ name: phones }} }}"
        ))
        .await?;
        let text = stock::configuration(&vpn, &client).await?;
        let endpoint = text.lines().find(|line| line.starts_with("Endpoint")).unwrap_or_default();
        ensure!(endpoint.contains(&format!("{ADDRESS}:")), "{client}: {endpoint}");
    }
    Ok(vpn.delete().await?)
}
