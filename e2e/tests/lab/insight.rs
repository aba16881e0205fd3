//! What users see of a client's NAT: in its status, in Events, and in the sums of its pool and gateway.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pinhole_crds::{BindingConfidence, Finding, NatClass, VPNClient, VPNClientStatus};
use pinhole_e2e::{
    Lab,
    device::Device,
    nat::{Mapping, NatProfile},
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use serde_json::Value;

use crate::{Outcome, product, tests};

tests![status_tells_the_nat_its_lifetime_and_the_keepalive_and_is_not_written_while_nothing_happens,];

/// What is looked at is what clients tell of their mappings of UDP.
const ANY: &str = "enrolment: { tokens: [{ name: any }] }\n  keepalive: { standby: UDP }";

/// Lifetime of a mapping in use.
const LIFETIME: Duration = Duration::from_secs(15);

/// A verdict takes 1.3 lifetimes and 30 s, more on a machine that has much to do.
const LEARNING: Duration = Duration::from_mins(2);

/// A carrier's NAT in a hurry.
fn hasty() -> NatProfile {
    NatProfile::carrier().mapping(Mapping::Range(50_000..=50_999)).timeouts(Duration::from_secs(5), LIFETIME)
}

fn has_learnt(client: &VPNClient) -> bool {
    let keepalive = client.status.as_ref().and_then(|status| status.keepalive.as_ref());
    keepalive.is_some_and(|keepalive| keepalive.reason == "Learnt")
}

async fn status_of(vpn: &Vpn<'_>, name: &str) -> anyhow::Result<VPNClientStatus> {
    let client = vpn.client(name, "to have learnt its NAT", LEARNING, has_learnt).await?;
    client.status.context("no status")
}

async fn status_tells_the_nat_its_lifetime_and_the_keepalive_and_is_not_written_while_nothing_happens(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "insight", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.97.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let host = lab.nat_host("insight", hasty()).await?;
    let mut device = Device::new(host).await?;
    device.up(&join).await?;
    let status = status_of(&vpn, "insight").await?;
    let nat = status.nat.context("no NAT")?;
    let public = device.host().nat().context("no NAT")?.address().to_string();
    ensure!(nat.public_address.as_deref() == Some(&public), "{nat:?} is not at {public}");
    ensure!(nat.class != NatClass::Unknown && nat.class != NatClass::NoNAT, "{nat:?}");
    ensure!(nat.helper_interference != Finding::True, "{nat:?}");
    let binding = status.binding.context("no binding")?;
    let at_least = binding.at_least.context("no lifetime")?.0;
    let less_than = binding.less_than.context("no upper bound")?.0;
    let slack = Duration::from_secs(2);
    ensure!(at_least <= LIFETIME + slack && less_than + slack >= LIFETIME, "{binding:?}");
    ensure!(binding.confidence >= BindingConfidence::Bracketed && binding.since.is_some(), "{binding:?}");
    let keepalive = status.keepalive.context("no keepalive")?;
    ensure!(keepalive.interval.0 < LIFETIME && keepalive.wakes_saved.is_some(), "{keepalive:?}");
    let printed = vpn.plugin(&["nat", "--pool", "staff"]).await?;
    ensure!(printed.contains(&public) && printed.contains("Learnt"), "{printed}");
    summed_up(&vpn).await?;
    at_rest(&vpn).await?;
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

/// The pool and the gateway count the client.
async fn summed_up(vpn: &Vpn<'_>) -> anyhow::Result<()> {
    for kind in ["vcp/staff", "vgw/edge"] {
        // Summaries are written once a minute.
        wait::until("a summary", PATIENCE * 2, || async {
            let text = vpn.kubectl(&["get", kind, "-o", "json"]).await.map_err(|error| error.to_string())?;
            let object: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let has = |field: &str| object.pointer(&format!("/status/nat/{field}")).is_some();
            if has("medianLifetime") && has("minLifetime") && has("classes") {
                Ok(())
            } else {
                Err(format!("{kind}: {:?}", object.pointer("/status")))
            }
        })
        .await?;
    }
    Ok(())
}

/// A while passes in which no object is written.
async fn at_rest(vpn: &Vpn<'_>) -> anyhow::Result<()> {
    const REST: Duration = Duration::from_secs(40);
    let versions = || async {
        let path = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        vpn.kubectl(&["get", "vc,vcp,vgw", "-o", path]).await
    };
    let begun = Instant::now();
    let (mut known, mut since) = (versions().await?, Instant::now());
    while since.elapsed() < REST {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = versions().await?;
        if now != known {
            (known, since) = (now, Instant::now());
        }
        if begun.elapsed() > PATIENCE * 2 + REST {
            bail!("statuses are written although nothing happens: {known}");
        }
    }
    Ok(())
}
