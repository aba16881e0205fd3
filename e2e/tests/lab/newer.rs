//! Objects of a version that is newer than the operator: nobody is cut off for what is not understood of them.

use std::time::Duration;

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, resilience::scale, tests};

tests![a_client_and_a_pool_of_a_newer_version_keep_what_they_have_over_a_restart_of_the_operator];

const KINDS: [&str; 2] = ["vpnclients", "vpnclientpools"];
/// Where each of these kinds lists the modes of keepalives.
const MODES: &str =
    "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/keepalive/properties/mode/enum";
const NEWER: &str = r#"{"spec":{"keepalive":{"mode":"Prophetic"}}}"#;

/// Patches the definition of each kind, as another version of the chart would.
async fn redefine(lab: &Lab, patch: &str) -> Outcome {
    for kind in KINDS {
        let crd = format!("crd/{kind}.pinhole.dev");
        lab.kubectl(["patch", &crd, "--type=json", "-p", patch]).await?;
    }
    Ok(())
}

async fn a_client_and_a_pool_of_a_newer_version_keep_what_they_have_over_a_restart_of_the_operator(
    lab: &Lab,
) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "newer", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.109.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    redefine(lab, &format!(r#"[{{"op":"add","path":"{MODES}/0","value":"Prophetic"}}]"#)).await?;
    let outcome = keep_what_they_have(&vpn).await;
    // Nothing of that version is left when the definitions go back to this one.
    vpn.delete().await?;
    redefine(lab, &format!(r#"[{{"op":"remove","path":"{MODES}/0"}}]"#)).await?;
    outcome
}

async fn keep_what_they_have(vpn: &Vpn<'_>) -> Outcome {
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let mut first = Device::new(vpn.lab().nat_host("newer", NatProfile::home()).await?).await?;
    let addresses = first.up(&join).await?.addresses;
    let client = vpn.client_in("newer", ClientPhase::Connected, PATIENCE).await?;

    let client = format!("vc/{}", client.metadata.name.context("no name")?);
    let objects = [client.as_str(), "vcp/staff"];
    for object in objects {
        vpn.kubectl(&["patch", object, "--type=merge", "-p", NEWER]).await?;
        vpn.condition(object, "PartiallyInvalid", "True", "FieldNotUnderstood").await?;
    }
    first.reaches(gateway, Duration::from_secs(3)).await?;
    // The next operator knows nothing of how they were before.
    scale(vpn.lab(), 0).await?;
    scale(vpn.lab(), 2).await?;
    let mut second = Device::new(vpn.lab().nat_host("newer-second", NatProfile::home()).await?).await?;
    let others = second.up(&join).await?.addresses;
    ensure!(addresses != others, "both have {addresses:?}");
    // This program is not the newer one either: it lists with the eyes of the operator.
    wait::until("the second to be Connected", PATIENCE, || async {
        let rows = vpn.plugin(&["clients"]).await.map_err(|error| error.to_string())?;
        let connected = rows.lines().filter(|row| row.contains("Connected")).count();
        if connected == 2 { Ok(()) } else { Err(rows) }
    })
    .await?;
    first.reaches(gateway, Duration::from_secs(3)).await?;
    first.down().await?;
    ensure!(first.up(&join).await?.addresses == addresses, "it came back to another address");

    for object in objects {
        vpn.kubectl(&["patch", object, "--type=merge", "-p", r#"{"spec":{"keepalive":null}}"#]).await?;
        wait::until("nothing to be left that is not understood", PATIENCE, || async {
            let path = "jsonpath={.status.conditions[?(@.type==\"PartiallyInvalid\")].message}";
            let said = vpn.kubectl(&["get", object, "-o", path]).await.map_err(|error| error.to_string())?;
            if said.is_empty() { Ok(()) } else { Err(said) }
        })
        .await?;
    }
    vpn.client_in("newer", ClientPhase::Connected, PATIENCE).await?;
    first.down().await?;
    Ok(second.down().await?)
}
