//! Who may connect, and how fast they may no longer.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    each_misuse_of_a_token_is_refused_in_one_line_with_its_reason,
    a_full_pool_says_so_on_both_sides_and_gives_no_address_twice,
    suspending_or_deleting_a_client_cuts_it_off_within_five_seconds,
    pools_that_overlap_stall_the_younger_one_alone,
    a_pool_without_its_gateway_waits_for_it,
];

/// What the issue of access allows from the API call to the last packet.
const CUT: Duration = Duration::from_secs(5);

async fn device(lab: &Lab, name: &str) -> anyhow::Result<Device> {
    Ok(Device::new(lab.nat_host(name, NatProfile::home()).await?).await?)
}

async fn each_misuse_of_a_token_is_refused_in_one_line_with_its_reason(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "misuse", Exposure::NodePort, "").await?;
    let tokens = |revoked: bool| {
        format!(
            "enrolment: {{ tokens: [{{ name: once, uses: 1 }}, {{ name: old, expiresAt: '2020-01-01T00:00:00Z' }}, \
             {{ name: withdrawn, revoked: {revoked} }}] }}"
        )
    };
    vpn.pool("staff", "[10.81.0.0/24]", &tokens(false)).await?;
    let once = vpn.join("staff", "once").await?;
    let withdrawn = vpn.join("staff", "withdrawn").await?;
    let old = vpn.join("staff", "old").await?;
    let mut first = device(lab, "misuse-first").await?;
    first.up(&once).await?;
    first.down().await?;
    vpn.pool("staff", "[10.81.0.0/24]", &tokens(true)).await?;
    wait::until("the revoked token's Secret to go", PATIENCE, || async {
        match vpn.kubectl(&["get", "secret", "staff-token-withdrawn"]).await {
            Err(error) if error.to_string().contains("NotFound") => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await?;
    let other = device(lab, "misuse-other").await?;
    for (join, words) in [
        ("pinhole:garbage".to_owned(), "TokenInvalid"),
        (altered(&once, "secret", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")?, "TokenInvalid"),
        (altered(&once, "token", "unheard-of")?, "TokenInvalid"),
        (once.clone(), "TokenUsedUp"),
        (withdrawn, "TokenRevoked"),
        (old, "TokenExpired"),
    ] {
        let output = other.refused(&join).await?;
        let said = output.stderr.clone();
        ensure!(!output.status.success(), "enrolled, though it should say {words}");
        let last = said.trim().lines().last().unwrap_or_default();
        ensure!(last.contains(words), "{words} is not in the last line of {said:?}");
    }
    vpn.delete().await?;
    Ok(())
}

/// The join string with one field changed.
fn altered(join: &str, field: &str, value: &str) -> anyhow::Result<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let body = URL_SAFE_NO_PAD.decode(join.trim().strip_prefix("pinhole:").context("no join string")?)?;
    let mut json: serde_json::Value = serde_json::from_slice(&body)?;
    *json.get_mut(field).context("no such field")? = value.into();
    Ok(format!("pinhole:{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&json)?)))
}

async fn a_full_pool_says_so_on_both_sides_and_gives_no_address_twice(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "full", Exposure::NodePort, "").await?;
    // Six hosts in a /29: the gateway's, the reserved one, and four for clients.
    let more = "reserved: [10.82.0.6]\n  enrolment: { tokens: [{ name: any }] }";
    vpn.pool("small", "[10.82.0.0/29]", more).await?;
    let join = vpn.join("small", "any").await?;
    let mut addresses = std::collections::BTreeSet::new();
    let mut devices = Vec::new();
    for n in 0..4 {
        let mut device = device(lab, &format!("full-{n}")).await?;
        addresses.extend(device.up(&join).await?.addresses);
        devices.push(device);
    }
    ensure!(addresses.len() == 4, "addresses were given twice: {addresses:?}");
    let late = device(lab, "full-late").await?;
    let output = late.refused(&join).await?;
    let said = output.stderr.clone();
    ensure!(!output.status.success() && said.contains("PoolExhausted"), "{said}");
    vpn.condition("vcp/small", "AddressesAvailable", "False", "PoolExhausted").await?;
    let events = vpn.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await?;
    ensure!(events.contains("PoolExhausted"), "the events are {events}");
    for device in &mut devices {
        device.connected(Duration::from_secs(5)).await?;
        device.down().await?;
    }
    vpn.delete().await?;
    Ok(())
}

async fn suspending_or_deleting_a_client_cuts_it_off_within_five_seconds(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "cut", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.83.0.0/24]", "enrolment: { tokens: [{ name: suspend }, { name: delete }] }")
        .await?;
    let again = device(lab, "cut-again").await?;
    let gateway = vpn.gateway_address("staff").await?;
    for (name, verb) in [("cut-suspend", "suspend"), ("cut-delete", "delete")] {
        let mut device = device(lab, name).await?;
        let join = vpn.join("staff", verb).await?;
        device.up(&join).await?;
        let client = vpn.client_in(name, ClientPhase::Connected, PATIENCE).await?;
        let object = format!("vc/{}", client.metadata.name.context("no name")?);
        let begun = Instant::now();
        match verb {
            "suspend" => {
                vpn.kubectl(&["patch", &object, "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])
                    .await?
            }
            _ => vpn.kubectl(&["delete", &object, "--timeout=30s"]).await?,
        };
        let cut = || async {
            if device.host().ping(gateway).await.is_err() { Ok(()) } else { Err("it still answers") }
        };
        wait::until("the tunnel to be cut", CUT + Duration::from_secs(2), cut).await?;
        // A ping that fails has waited two seconds for its answer.
        let took = begun.elapsed().saturating_sub(Duration::from_secs(2));
        ensure!(took < CUT, "{verb} took {took:?}");
        if verb == "suspend" {
            vpn.client_in(name, ClientPhase::Suspended, PATIENCE).await?;
            // A machine that was never seen, which may be the same person's.
            let output = again.refused(&join).await?;
            ensure!(output.stderr.contains("TokenSuspended"), "{}", output.stderr);
        }
    }
    vpn.delete().await?;
    Ok(())
}

async fn pools_that_overlap_stall_the_younger_one_alone(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "overlap", Exposure::NodePort, "").await?;
    vpn.pool("older", "[10.84.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    let join = vpn.join("older", "any").await?;
    let mut device = device(lab, "overlap").await?;
    device.up(&join).await?;
    // Creation times have seconds: the younger one must be younger by one.
    let created = vpn.pools().get("older").await?.metadata.creation_timestamp.context("no time")?.0;
    wait::until("the next second", PATIENCE, || async {
        let now = k8s_openapi::jiff::Timestamp::now();
        if now.as_second() > created.as_second() + 1 { Ok(()) } else { Err("not yet") }
    })
    .await?;
    vpn.pool("younger", "[10.84.0.128/25]", "").await?;
    vpn.condition("vcp/younger", "Stalled", "True", "OverlappingPool").await?;
    vpn.condition("vcp/older", "Ready", "True", "*").await?;
    device.reaches(vpn.gateway_address("older").await?, Duration::from_secs(5)).await?;
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_pool_without_its_gateway_waits_for_it(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "orphan", Exposure::NodePort, "").await?;
    vpn.kubectl(&["delete", "vgw", "edge", "--timeout=60s"]).await?;
    vpn.pool("staff", "[10.85.0.0/24]", "").await?;
    vpn.condition("vcp/staff", "Ready", "False", "GatewayNotFound").await?;
    vpn.delete().await?;
    Ok(())
}
