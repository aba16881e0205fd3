//! Objects of others that have the names of a gateway's own: left as they are, and named.

use anyhow::ensure;
use pinhole_e2e::{
    Lab,
    installation::NAMESPACE,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    a_gateway_called_default_leaves_the_service_account_alone,
    objects_of_others_are_untouched_and_named_until_they_are_out_of_the_way,
    what_a_gateway_does_not_ask_for_any_more_goes_from_what_was_made_for_it,
    a_sidecar_trust_of_somebody_else_is_named_at_the_pools_that_take_sidecars_until_it_is_gone,
];

async fn namespace(lab: &Lab, name: &str) -> Outcome {
    let object =
        format!(r#"{{ "apiVersion": "v1", "kind": "Namespace", "metadata": {{ "name": "{name}" }} }}"#);
    lab.apply(&object).await?;
    Ok(())
}

/// Changes with every write.
async fn version(vpn: &Vpn<'_>, object: &str) -> anyhow::Result<String> {
    let path = "jsonpath={.metadata.uid} {.metadata.resourceVersion}";
    Ok(vpn.kubectl(&["get", object, "-o", path]).await?)
}

async fn message(vpn: &Vpn<'_>, gateway: &str) -> anyhow::Result<String> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Stalled\")].message}";
    Ok(vpn.kubectl(&["get", gateway, "-o", path]).await?)
}

async fn a_gateway_called_default_leaves_the_service_account_alone(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "foreign-default";
    let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
    wait::until("the ServiceAccount default", PATIENCE, || version(&vpn, "serviceaccount/default")).await?;
    let before = version(&vpn, "serviceaccount/default").await?;
    vpn.apply(&format!(
        "kind: VPNGateway\nmetadata: {{ name: default, namespace: {name} }}\nspec: {{ exposure: {{ type: NodePort }} }}"
    ))
    .await?;
    vpn.condition("vgw/default", "Stalled", "True", "ObjectTaken").await?;
    let said = message(&vpn, "vgw/default").await?;
    ensure!(said.contains("ServiceAccount default") && said.contains("another name"), "{said}");
    wait::until("an Event that says so", PATIENCE, || async {
        let args = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
        let reasons = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if reasons.contains("ObjectTaken") { Ok(()) } else { Err(reasons) }
    })
    .await?;
    let sets = vpn.kubectl(&["get", "statefulsets", "-o", "name"]).await?;
    ensure!(!sets.contains("statefulset.apps/default"), "pods would run as somebody else: {sets}");
    vpn.kubectl(&["delete", "vgw/default", "--timeout=60s"]).await?;
    ensure!(version(&vpn, "serviceaccount/default").await? == before, "the ServiceAccount was touched");
    // The one beside it is none the worse.
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    Ok(vpn.delete().await?)
}

async fn objects_of_others_are_untouched_and_named_until_they_are_out_of_the_way(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "foreign-objects";
    namespace(lab, name).await?;
    let theirs = ["service/edge", "secret/edge-keys", "configmap/edge-ca"];
    lab.apply(&format!(
        r"
{{ apiVersion: v1, kind: Service, metadata: {{ name: edge, namespace: {name} }}, spec: {{ ports: [{{ port: 80 }}] }} }}
---
{{ apiVersion: v1, kind: Secret, metadata: {{ name: edge-keys, namespace: {name} }}, stringData: {{ mine: kept }} }}
---
{{ apiVersion: v1, kind: ConfigMap, metadata: {{ name: edge-ca, namespace: {name} }}, data: {{ ca.crt: mine }} }}
"
    ))
    .await?;
    let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
    let mut before = Vec::new();
    for object in theirs {
        before.push(version(&vpn, object).await?);
    }
    vpn.condition("vgw/edge", "Stalled", "True", "ObjectTaken").await?;
    let said = message(&vpn, "vgw/edge").await?;
    for part in ["Service edge", "Secret edge-keys", "ConfigMap edge-ca"] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    for (object, before) in theirs.into_iter().zip(&before) {
        ensure!(version(&vpn, object).await? == *before, "{object} was touched");
    }
    vpn.kubectl(&["delete", "service/edge", "secret/edge-keys", "configmap/edge-ca"]).await?;
    // At once, in place of at the next try.
    vpn.kubectl(&["annotate", "vgw/edge", "example.org/cleared=yes"]).await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    Ok(vpn.delete().await?)
}

async fn what_a_gateway_does_not_ask_for_any_more_goes_from_what_was_made_for_it(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "foreign-fields";
    namespace(lab, name).await?;
    let gateway = |annotations: &str| {
        format!(
            "apiVersion: pinhole.dev/v1alpha1\nkind: VPNGateway\nmetadata: {{ name: edge, namespace: {name} }}\n\
             spec: {{ exposure: {{ type: NodePort, annotations: {annotations} }} }}"
        )
    };
    lab.apply(&gateway("{ example.org/a: '1', example.org/b: '1' }")).await?;
    let annotations = || async {
        let path = "jsonpath={.metadata.annotations}";
        let args = ["-n", name, "get", "service/edge-0", "-o", path];
        lab.kubectl(args).await.map_err(|error| error.to_string())
    };
    let are = |wanted: fn(&str) -> bool| async move {
        let seen = annotations().await?;
        if wanted(&seen) { Ok(()) } else { Err(seen) }
    };
    wait::until("both annotations", PATIENCE, || are(|a| a.contains("/a") && a.contains("/b"))).await?;
    lab.apply(&gateway("{ example.org/a: '2' }")).await?;
    wait::until("one annotation", PATIENCE, || are(|a| a.contains(r#"/a":"2""#) && !a.contains("/b")))
        .await?;
    let args = ["-n", name, "get", "service/edge-0", "--show-managed-fields", "-o"];
    let managers = lab
        .kubectl(
            args.iter().chain(&["jsonpath={range .metadata.managedFields[*]}{.manager}/{.operation} {end}"]),
        )
        .await?;
    ensure!(
        managers.contains("pinhole-operator-gateway/Apply") && !managers.contains("pinhole-operator-create"),
        "{managers}"
    );
    lab.kubectl(["delete", "namespace", name, "--timeout=90s"]).await?;
    Ok(())
}

async fn a_sidecar_trust_of_somebody_else_is_named_at_the_pools_that_take_sidecars_until_it_is_gone(
    lab: &Lab,
) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "foreign-trust", Exposure::NodePort, "").await?;
    vpn.pool("pods", "[10.112.0.0/24]", "enrolment: { sidecars: {} }").await?;
    vpn.pool("staff", "[10.113.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    // Whose it was is told by labels, which somebody takes away.
    let label = "app.kubernetes.io/managed-by";
    let trust = ["-n", NAMESPACE, "label", "--overwrite", "sidecartrust/pinhole"];
    lab.kubectl(trust.iter().copied().chain([format!("{label}=somebody").as_str()])).await?;
    let outcome = async {
        vpn.condition("vcp/pods", "Stalled", "True", "ObjectTaken").await?;
        let said = message(&vpn, "vcp/pods").await?;
        ensure!(said.contains("SidecarTrust pinhole") && said.contains(NAMESPACE), "{said}");
        vpn.condition("vcp/pods", "Ready", "True", "*").await?;
        let others = message(&vpn, "vcp/staff").await?;
        ensure!(others.is_empty(), "it takes no sidecars: {others}");
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    lab.kubectl(["-n", NAMESPACE, "delete", "sidecartrust/pinhole"]).await?;
    outcome?;
    wait::until("nothing to be said any more", PATIENCE, || async {
        let said = message(&vpn, "vcp/pods").await.map_err(|error| error.to_string())?;
        if said.is_empty() { Ok(()) } else { Err(said) }
    })
    .await?;
    lab.kubectl(["-n", NAMESPACE, "get", "sidecartrust/pinhole"]).await?;
    Ok(vpn.delete().await?)
}
