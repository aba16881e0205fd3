//! An operator that was given a list of namespaces serves these, asks for nothing elsewhere, and may not.

use std::collections::BTreeSet;

use anyhow::ensure;
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    installation::NAMESPACE,
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![an_operator_of_one_namespace_serves_it_and_touches_no_other];

const OPERATOR: &str = "--as=system:serviceaccount:pinhole-system:pinhole-operator";

async fn an_operator_of_one_namespace_serves_it_and_touches_no_other(lab: &Lab) -> Outcome {
    let (_alone, installation) = product::alone(lab).await?;
    let vpns = [
        Vpn::declare(lab, "watched", Exposure::NodePort, "").await?,
        Vpn::declare(lab, "left-behind", Exposure::NodePort, "").await?,
    ];
    vpns[1].condition("vgw/edge", "Ready", "True", "*").await?;
    let narrowed = async {
        install(lab, installation, &["operator.watchNamespaces={watched}"]).await?;
        let refused = lab.cluster().forbidden()?.len();
        serves_its_own(&vpns[0]).await?;
        writes_its_trust_again(lab).await?;
        leaves_alone(lab, &vpns[1]).await?;
        may_read_secrets_of(lab, "watched", true).await?;
        may_read_secrets_of(lab, "left-behind", false).await?;
        let refused: Vec<_> = lab.cluster().forbidden()?.split_off(refused);
        let refused: Vec<_> = refused.into_iter().filter(|request| request.contains("pinhole")).collect();
        ensure!(refused.is_empty(), "{refused:#?}");
        anyhow::Ok(())
    };
    let outcome = narrowed.await;
    install(lab, installation, &[]).await?;
    outcome?;
    vpns[1].condition("vgw/late", "Ready", "True", "*").await?;
    for vpn in vpns {
        vpn.delete().await?;
    }
    Ok(())
}

async fn install(
    lab: &Lab,
    installation: &pinhole_e2e::installation::Installation,
    values: &[&str],
) -> Outcome {
    let transit = product::Transit::begin(lab)?;
    let before = operators(lab).await?;
    let installed = installation.clone().apply(lab, values).await;
    // Those of before may ask until they are gone for what they may no more.
    let gone = wait::until("the operators of before to be gone", PATIENCE, || async {
        let now = operators(lab).await.map_err(|error| error.to_string())?;
        if now.is_disjoint(&before) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let gone = gone.await;
    transit.end(lab)?;
    installed?;
    Ok(gone?)
}

/// Names of the operator's pods, those that end included.
async fn operators(lab: &Lab) -> anyhow::Result<BTreeSet<String>> {
    let args =
        ["-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/name=pinhole-operator", "-o", "name"];
    Ok(lab.kubectl(args).await?.lines().map(str::to_owned).collect())
}

async fn serves_its_own(vpn: &Vpn<'_>) -> Outcome {
    vpn.pool("staff", "[10.97.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    let join = vpn.join("staff", "any").await?;
    let mut device = Device::new(vpn.lab().nat_host("watched", NatProfile::home()).await?).await?;
    device.up(&join).await?;
    device.reaches(vpn.gateway_address("staff").await?, PATIENCE).await?;
    vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
    // What it makes it also makes again.
    vpn.kubectl(&["delete", "secret/staff-token-any", "networkpolicy/edge"]).await?;
    wait::until("the token's Secret and the NetworkPolicy to come back", PATIENCE, || async {
        let args = ["get", "secret/staff-token-any", "networkpolicy/edge", "-o", "name"];
        vpn.kubectl(&args).await.map_err(|error| error.to_string())
    })
    .await?;
    Ok(device.down().await?)
}

/// The trust of sidecars is in the operator's namespace, which is not among those that it serves.
async fn writes_its_trust_again(lab: &Lab) -> Outcome {
    lab.kubectl(["-n", NAMESPACE, "delete", "sidecartrust/pinhole"]).await?;
    wait::until("the SidecarTrust to come back", PATIENCE, || async {
        let found = lab.kubectl(["-n", NAMESPACE, "get", "sidecartrust/pinhole", "-o", "name"]).await;
        found.map_err(|error| error.to_string())
    })
    .await?;
    Ok(())
}

/// A gateway of before stays as it is, and one that comes gets nothing.
async fn leaves_alone(lab: &Lab, vpn: &Vpn<'_>) -> Outcome {
    let named = async || {
        let kinds =
            "statefulsets,services,secrets,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies";
        let names = vpn.kubectl(&["get", kinds, "-o", "name"]).await?;
        anyhow::Ok(names.lines().map(str::to_owned).collect::<BTreeSet<_>>())
    };
    let status = ["get", "vgw/edge", "-o", "jsonpath={.status}"];
    let before = (named().await?, vpn.kubectl(&status).await?);
    ensure!(before.0.contains("networkpolicy.networking.k8s.io/edge"), "{:?}", before.0);
    vpn.kubectl(&["patch", "vgw/edge", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]).await?;
    let late = format!("kind: VPNGateway\nmetadata: {{ name: late, namespace: {} }}", vpn.namespace());
    vpn.apply(&format!("{late}\nspec: {{ exposure: {{ type: NodePort }} }}")).await?;
    // Declared later and served: whatever the operator meant to do for the others it has done by then.
    let marker = "kind: VPNGateway\nmetadata: { name: marker, namespace: watched }";
    vpn.apply(&format!("{marker}\nspec: {{ exposure: {{ type: NodePort }} }}")).await?;
    wait::until("the gateway that was declared last to be Ready", PATIENCE, || async {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let ready = lab.kubectl(["-n", "watched", "get", "vgw/marker", "-o", path]).await;
        let ready = ready.map_err(|error| error.to_string())?;
        if ready == "True" { Ok(()) } else { Err(format!("Ready is {ready:?}")) }
    })
    .await?;
    let after = (named().await?, vpn.kubectl(&status).await?);
    ensure!(after == before, "{after:?}, before {before:?}");
    let late = vpn.kubectl(&["get", "vgw/late", "-o", "jsonpath={.status}"]).await?;
    ensure!(late.is_empty(), "{late}");
    Ok(())
}

async fn may_read_secrets_of(lab: &Lab, namespace: &str, wanted: bool) -> Outcome {
    for verb in ["get", "list", "create", "delete"] {
        // The answer "no" is a failure, too.
        let said = lab.kubectl(["-n", namespace, "auth", "can-i", verb, "secrets", OPERATOR]).await;
        ensure!(said.is_ok() == wanted, "{verb} secrets in {namespace}: {said:?}");
    }
    Ok(())
}
