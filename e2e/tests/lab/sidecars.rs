//! Pods that carry a client of their own.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    pods::HiddenNetwork,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    a_labelled_pod_reaches_through_its_gateway_alone_and_leaves_no_client_behind,
    a_pod_of_a_namespace_that_may_not_join_is_told_so,
    a_labelled_pod_in_its_nodes_network_is_refused,
];

fn pod(namespace: &str, pool_namespace: &str) -> String {
    format!(
        r#"
{{ "apiVersion": "v1", "kind": "Namespace", "metadata": {{ "name": "{namespace}" }} }}
---
apiVersion: v1
kind: Pod
metadata:
  name: app
  namespace: {namespace}
  labels: {{ pinhole.dev/pool: staff }}
  annotations: {{ pinhole.dev/pool-namespace: {pool_namespace} }}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{ name: app, image: "pinhole/toolbox:lab", imagePullPolicy: Never, args: [pause] }}
"#
    )
}

async fn a_labelled_pod_reaches_through_its_gateway_alone_and_leaves_no_client_behind(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "sidecars", Exposure::NodePort, "").await?;
    let more = "routes: [198.51.100.0/24]\n  enrolment: { sidecars: { namespaceSelector: { names: [sidecars-app] } } }";
    vpn.pool("staff", "[10.97.0.0/24]", more).await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    // A network with one door, into the gateway's pod.
    let only = Ipv4Addr::new(198, 51, 100, 2);
    let hidden = HiddenNetwork::behind(lab, vpn.namespace(), "edge-0", "hidden", only).await?;
    let toolbox = pinhole_e2e::setup::rust::toolbox().await?;
    let echo = hidden
        .spawn("echo", &pinhole_e2e::process::Command::new(&toolbox).args(["tcp-echo", "7000"]))
        .await?;

    lab.apply(&pod("sidecars-app", "sidecars")).await?;
    lab.kubectl(["wait", "-n", "sidecars-app", "pod/app", "--for=condition=Ready", "--timeout=90s"]).await?;
    let target = format!("{only}:7000");
    lab.kubectl(["exec", "-n", "sidecars-app", "app", "-c", "app", "--", "/toolbox", "connect", &target])
        .await?;
    let added = lab
        .kubectl([
            "get", "pod", "app", "-n", "sidecars-app", "-o",
            "jsonpath={.spec.initContainers[*].securityContext.capabilities}{.spec.initContainers[*].restartPolicy}",
        ])
        .await?;
    ensure!(added == r#"{"add":["NET_ADMIN"],"drop":["ALL"]}Always"#, "the sidecar has {added}");
    let log = lab.kubectl(["logs", "-n", "sidecars-app", "app", "-c", "pinhole"]).await?;
    ensure!(!log.contains("will not be answered"), "there is no socket for `wg`: {log}");
    let client = vpn
        .client("app", "to be connected", PATIENCE, |client| {
            client.status.as_ref().and_then(|status| status.phase) == Some(ClientPhase::Connected)
        })
        .await?;
    let record = client.spec.enrolment.and_then(|enrolment| enrolment.pod).context("no pod is recorded")?;
    ensure!((record.namespace.as_str(), record.name.as_str()) == ("sidecars-app", "app"), "{record:?}");

    lab.kubectl(["delete", "pod", "app", "-n", "sidecars-app", "--timeout=60s"]).await?;
    wait::until("the pod's client to go", PATIENCE, || async {
        let left = vpn.kubectl(&["get", "vc", "-o", "name"]).await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await?;
    echo.kill().await?;
    lab.kubectl(["delete", "namespace", "sidecars-app", "--timeout=60s"]).await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_pod_of_a_namespace_that_may_not_join_is_told_so(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "closed", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.97.1.0/24]", "enrolment: { sidecars: {} }").await?;
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    lab.apply(&pod("closed-app", "closed")).await?;
    wait::until("the sidecar to say why", Duration::from_secs(90), || async {
        let log = lab.kubectl(["logs", "-n", "closed-app", "app", "-c", "pinhole"]).await;
        let log = log.map_err(|error| error.to_string())?;
        if log.contains("SidecarNotAllowed") { Ok(()) } else { Err(log) }
    })
    .await?;
    let clients = vpn.kubectl(&["get", "vc", "-o", "name"]).await?;
    ensure!(clients.is_empty(), "it was enrolled all the same: {clients}");
    lab.kubectl(["delete", "namespace", "closed-app", "--timeout=60s"]).await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_labelled_pod_in_its_nodes_network_is_refused(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let name = "host-network";
    let labelled = pod(name, name);
    let refused = labelled.replace("spec:\n", "spec:\n  hostNetwork: true\n");
    ensure!(refused.contains("hostNetwork"), "{refused}");
    let said = match lab.apply(&refused).await {
        Ok(done) => anyhow::bail!("it was taken: {done}"),
        Err(error) => error.to_string(),
    };
    ensure!(said.contains("the pool's routes would be the node's own"), "{said}");
    lab.kubectl(["delete", "namespace", name, "--timeout=60s"]).await?;
    Ok(())
}
