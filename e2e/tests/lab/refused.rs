//! What the cluster refuses a gateway is quoted in its condition, with what to do, within half a minute.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pinhole_e2e::{
    Lab,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    pod_security_is_quoted_and_gone_once_the_namespace_is_labelled,
    a_quota_is_quoted,
    a_limit_range_is_quoted,
    an_admission_policy_that_denies_is_quoted,
    a_sysctl_that_the_kubelet_forbids_is_quoted_and_stays_so,
    an_image_that_is_not_there_is_quoted,
    a_gateway_that_fits_no_node_is_quoted,
    a_fixed_node_port_of_another_service_is_quoted,
    a_load_balancer_that_is_refused_is_quoted,
];

/// From the refusal to the words in the condition.
pub(crate) const WITHIN: Duration = Duration::from_secs(30);

/// What the condition says of the gateway: reason, and message.
async fn verdict(vpn: &Vpn<'_>) -> Result<(String, String), String> {
    let path = "jsonpath={range .status.conditions[?(@.type==\"Ready\")]}{.reason} {.message}{end}";
    let said = vpn.kubectl(&["get", "vgw/edge", "-o", path]).await.map_err(|error| error.to_string())?;
    let (reason, message) = said.split_once(' ').ok_or_else(|| format!("it says {said:?}"))?;
    Ok((reason.to_owned(), message.to_owned()))
}

/// Waits until the condition has the reason and says all of `words`.
pub(crate) async fn says(vpn: &Vpn<'_>, reason: &str, words: &[&str]) -> Outcome {
    let begun = Instant::now();
    wait::until(&format!("the gateway to say {reason}"), PATIENCE, || async {
        let (seen, message) = verdict(vpn).await?;
        let fits = seen == reason && words.iter().all(|word| message.contains(word));
        if fits { Ok(()) } else { Err(format!("it says {seen}: {message}")) }
    })
    .await?;
    ensure!(begun.elapsed() < WITHIN, "{reason} was said after {:?}", begun.elapsed());
    Ok(())
}

pub(crate) async fn namespace(lab: &Lab, name: &str, labels: &str) -> Outcome {
    lab.apply(&format!(
        "{{ apiVersion: v1, kind: Namespace, metadata: {{ name: {name}, labels: {labels} }} }}"
    ))
    .await?;
    Ok(())
}

/// A namespace with one more object, and then a gateway in it.
async fn beside<'a>(lab: &'a Lab, name: &str, object: &str, more: &str) -> anyhow::Result<Vpn<'a>> {
    namespace(lab, name, "{}").await?;
    lab.apply(object).await?;
    Ok(Vpn::declare(lab, name, Exposure::NodePort, more).await?)
}

async fn pod_security_is_quoted_and_gone_once_the_namespace_is_labelled(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-baseline";
    let enforce = "pod-security.kubernetes.io/enforce";
    // Not by `declare` alone, which would make it without the label.
    namespace(lab, name, &format!("{{ {enforce}: baseline }}")).await?;
    lab.apply(&format!(
        "apiVersion: pinhole.dev/v1alpha1\nkind: VPNGateway\nmetadata: {{ name: edge, namespace: {name} }}\n\
         spec: {{ exposure: {{ type: NodePort }} }}"
    ))
    .await?;
    let vpn = Vpn::declared(lab, name);
    let words = ["edge-0: Pod Security admission", "violates PodSecurity", "NET_ADMIN", "enforce=privileged"];
    says(&vpn, "PodSecurityForbidden", &words).await?;
    vpn.condition("vgw/edge", "Stalled", "True", "PodSecurityForbidden").await?;
    lab.kubectl(["label", "namespace", name, "--overwrite", &format!("{enforce}=privileged")]).await?;
    // Its controller tries again later and later: a change makes it try at once.
    vpn.kubectl(&[
        "patch",
        "vgw/edge",
        "--type=merge",
        "-p",
        r#"{"spec":{"pod":{"labels":{"try":"again"}}}}"#,
    ])
    .await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    Ok(vpn.delete().await?)
}

async fn a_quota_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-quota";
    let quota = format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{ name: compute, namespace: {name} }}\n\
         spec: {{ hard: {{ limits.cpu: '1', limits.memory: 1Gi }} }}"
    );
    let vpn = beside(lab, name, &quota, "").await?;
    says(&vpn, "QuotaExceeded", &["failed quota: compute", "limits.cpu", "spec.pod.resources"]).await?;
    vpn.kubectl(&[
        "patch",
        "vgw/edge",
        "--type=merge",
        "-p",
        r#"{"spec":{"pod":{"resources":{"limits":{"cpu":"500m","memory":"256Mi"}}}}}"#,
    ])
    .await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    Ok(vpn.delete().await?)
}

async fn a_limit_range_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-limits";
    let range = format!(
        "apiVersion: v1\nkind: LimitRange\nmetadata: {{ name: small, namespace: {name} }}\n\
         spec: {{ limits: [{{ type: Container, max: {{ memory: 16Mi }}, default: {{ memory: 16Mi }} }}] }}"
    );
    let more = "pod: { resources: { limits: { memory: 256Mi } } }";
    let vpn = beside(lab, name, &range, more).await?;
    says(&vpn, "LimitRangeViolated", &["maximum memory usage per Container is 16Mi", "LimitRange"]).await?;
    Ok(vpn.delete().await?)
}

async fn an_admission_policy_that_denies_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-policy";
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{ name: {name} }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{{ apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods] }}]
  validations: [{{ expression: 'false', message: nobody runs anything here }}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{ name: {name} }}
spec:
  policyName: {name}
  validationActions: [Deny]
  matchResources: {{ namespaceSelector: {{ matchLabels: {{ kubernetes.io/metadata.name: {name} }} }} }}
"
    );
    namespace(lab, name, "{}").await?;
    lab.apply(&policy).await?;
    // A policy is in force a moment after it was made.
    wait::until("the policy to be in force", PATIENCE, || async {
        let probe = ["run", "probe", "--image=none", "--dry-run=server", "-n", name];
        match lab.kubectl(probe).await {
            Err(error) if error.to_string().contains("nobody runs anything here") => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await?;
    let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
    let policy_words = format!("ValidatingAdmissionPolicy '{name}'");
    says(&vpn, "AdmissionDenied", &[&policy_words, "nobody runs anything here", "exempt"]).await?;
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        lab.kubectl(["delete", kind, name]).await?;
    }
    Ok(vpn.delete().await?)
}

async fn a_sysctl_that_the_kubelet_forbids_is_quoted_and_stays_so(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let more = "pod: { ipv6Forwarding: true }";
    let vpn = Vpn::declare(lab, "refused-sysctl", Exposure::NodePort, more).await?;
    let words = ["net.ipv6.conf.all.forwarding", "--allowed-unsafe-sysctls"];
    says(&vpn, "SysctlForbidden", &words).await?;
    // Pod after pod is made and turned away meanwhile.
    let first = pod_uid(&vpn).await;
    wait::until("another pod to be turned away", PATIENCE, || async {
        let seen = verdict(&vpn).await?.0;
        if seen != "SysctlForbidden" {
            return Ok(Some(seen));
        }
        if pod_uid(&vpn).await == first { Err("it is the same pod".to_owned()) } else { Ok(None) }
    })
    .await?
    .map_or(Ok(()), |seen| Err(anyhow::anyhow!("it says {seen} in between")))?;
    vpn.kubectl(&["patch", "vgw/edge", "--type=merge", "-p", r#"{"spec":{"pod":{"ipv6Forwarding":false}}}"#])
        .await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    Ok(vpn.delete().await?)
}

pub(crate) async fn pod_uid(vpn: &Vpn<'_>) -> Option<String> {
    vpn.kubectl(&["get", "pod/edge-0", "-o", "jsonpath={.metadata.uid}"]).await.ok()
}

/// Nobody listens there: no name to look up, nothing to wait for.
async fn an_image_that_is_not_there_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let more = "pod: { image: '127.0.0.1:9/pinhole/agent:none' }";
    let vpn = Vpn::declare(lab, "refused-image", Exposure::NodePort, more).await?;
    says(&vpn, "ImageUnavailable", &["127.0.0.1:9/pinhole/agent:none", "spec.pod.image"]).await?;
    Ok(vpn.delete().await?)
}

async fn a_gateway_that_fits_no_node_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let more = "pod: { nodeSelector: { example.org/none: 'true' } }";
    let vpn = Vpn::declare(lab, "refused-node", Exposure::NodePort, more).await?;
    says(&vpn, "Unschedulable", &["nodes are available", "nodeSelector"]).await?;
    Ok(vpn.delete().await?)
}

async fn a_fixed_node_port_of_another_service_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-port";
    let taken = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: theirs, namespace: {name} }}\n\
         spec: {{ type: NodePort, ports: [{{ port: 80, nodePort: 32611, protocol: UDP }}] }}"
    );
    namespace(lab, name, "{}").await?;
    lab.apply(&taken).await?;
    lab.apply(&format!(
        "apiVersion: pinhole.dev/v1alpha1\nkind: VPNGateway\nmetadata: {{ name: edge, namespace: {name} }}\n\
         spec: {{ exposure: {{ type: NodePort, nodePorts: {{ tunnel: 32611, session: 32612 }} }} }}"
    ))
    .await?;
    let vpn = Vpn::declared(lab, name);
    says(&vpn, "NodePortTaken", &["32611", "provided port is already allocated", "nodePorts"]).await?;
    Ok(vpn.delete().await?)
}

/// No controller of the lab serves a class: the test is that controller.
async fn a_load_balancer_that_is_refused_is_quoted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "refused-balancer";
    namespace(lab, name, "{}").await?;
    lab.apply(&format!(
        "apiVersion: pinhole.dev/v1alpha1\nkind: VPNGateway\nmetadata: {{ name: edge, namespace: {name} }}\n\
         spec: {{ exposure: {{ type: LoadBalancer, loadBalancerClass: example.org/none }} }}"
    ))
    .await?;
    let vpn = Vpn::declared(lab, name);
    vpn.condition("vgw/edge", "Ready", "False", "AddressPending").await?;
    let status = r#"{"status":{"conditions":[{"type":"LoadBalancerPortsError","status":"True","reason":"MixedProtocol","message":"UDP is not for sale","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
    vpn.kubectl(&["patch", "service/edge-0", "--subresource=status", "--type=merge", "-p", status]).await?;
    says(&vpn, "LoadBalancerRefused", &["edge-0", "UDP is not for sale", "NodePort or HostPort"]).await?;
    Ok(vpn.delete().await?)
}
