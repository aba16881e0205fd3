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

tests![
    a_client_and_a_pool_of_a_newer_version_keep_what_they_have_over_a_restart_of_the_operator,
    an_unreadable_pool_keeps_what_it_has_over_a_restart_and_its_gateways_other_pool_goes_on,
];

const KINDS: [&str; 2] = ["vpnclients", "vpnclientpools"];
/// Where each of these kinds lists the modes of keepalives.
const MODES: &str =
    "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/keepalive/properties/mode/enum";
const NEWER: &str = r#"{"spec":{"keepalive":{"mode":"Prophetic"}}}"#;

/// Where pools list what they do not give out, without which nobody can tell what is free.
const RESERVED: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/reserved";
const UNREADABLE: &str = r#"{"spec":{"reserved":[7]}}"#;

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

async fn an_unreadable_pool_keeps_what_it_has_over_a_restart_and_its_gateways_other_pool_goes_on(
    lab: &Lab,
) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "unreadable", Exposure::NodePort, "").await?;
    for (pool, cidrs) in [("staff", "[10.110.0.0/24]"), ("guests", "[10.111.0.0/24]")] {
        vpn.pool(pool, cidrs, "enrolment: { tokens: [{ name: any }] }").await?;
    }
    let known = pinhole_crds::definitions()?;
    let known = known.iter().find(|crd| crd["spec"]["names"]["plural"] == "vpnclientpools");
    let known = known.and_then(|crd| crd.pointer(RESERVED)).context("pools reserve nothing")?;
    redefine_reserved(lab, r#"{"type":"array","items":{"x-kubernetes-int-or-string":true}}"#).await?;
    let outcome = go_on_beside_it(&vpn).await;
    vpn.delete().await?;
    redefine_reserved(lab, &known.to_string()).await?;
    outcome
}

async fn redefine_reserved(lab: &Lab, schema: &str) -> Outcome {
    let patch = format!(r#"[{{"op":"replace","path":"{RESERVED}","value":{schema}}}]"#);
    lab.kubectl(["patch", "crd/vpnclientpools.pinhole.dev", "--type=json", "-p", &patch]).await?;
    Ok(())
}

async fn go_on_beside_it(vpn: &Vpn<'_>) -> Outcome {
    let (staff, guests) = (vpn.join("staff", "any").await?, vpn.join("guests", "any").await?);
    let gateway = vpn.gateway_address("staff").await?;
    let mut first = Device::new(vpn.lab().nat_host("unreadable", NatProfile::home()).await?).await?;
    let addresses = first.up(&staff).await?.addresses;
    vpn.client_in("unreadable", ClientPhase::Connected, PATIENCE).await?;
    vpn.kubectl(&["patch", "vcp/staff", "--type=merge", "-p", UNREADABLE]).await?;
    vpn.condition("vcp/staff", "PartiallyInvalid", "True", "FieldNotUnderstood").await?;
    // The next operator knows the pool by its status alone.
    scale(vpn.lab(), 0).await?;
    scale(vpn.lab(), 2).await?;

    let mut guest = Device::new(vpn.lab().nat_host("unreadable-guest", NatProfile::home()).await?).await?;
    guest.up(&guests).await?;
    vpn.client_in("unreadable-guest", ClientPhase::Connected, PATIENCE).await?;
    let routes = r#"{"spec":{"routes":["10.51.0.0/24"]}}"#;
    vpn.kubectl(&["patch", "vcp/guests", "--type=merge", "-p", routes]).await?;
    wait::until("the changed route to arrive", PATIENCE, || async {
        let routes = guest.host().command("ip").args(["route", "show", "table", "all"]).run().await;
        let routes = routes.map_err(|error| error.to_string())?;
        if routes.contains("10.51.0.0/24") { Ok(()) } else { Err(routes) }
    })
    .await?;
    let mut second = Device::new(vpn.lab().nat_host("unreadable-second", NatProfile::home()).await?).await?;
    ensure!(second.up(&staff).await?.addresses != addresses, "both have {addresses:?}");
    first.reaches(gateway, Duration::from_secs(3)).await?;
    for device in [&mut first, &mut guest, &mut second] {
        device.down().await?;
    }
    Ok(())
}
