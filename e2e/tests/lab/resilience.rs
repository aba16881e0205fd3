//! What breaks in real life, and that clients come back from it by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    installation::{Installation, NAMESPACE},
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    clients_that_keep_sending_find_a_gateway_pod_that_was_replaced,
    a_rebind_of_the_nat_under_traffic_is_followed_at_once_and_counted,
    twenty_clients_behind_one_nat_with_one_source_port_are_told_apart,
    without_any_operator_tunnels_carry_on_and_status_says_unknown,
    a_killed_leader_is_replaced_and_loses_no_session,
    an_operator_killed_at_its_work_leaves_nothing_half_done,
];

const ANY: &str = "enrolment: { tokens: [{ name: any }] }";

async fn device(lab: &Lab, name: &str) -> anyhow::Result<Device> {
    Ok(Device::new(lab.nat_host(name, NatProfile::home()).await?).await?)
}

async fn clients_that_keep_sending_find_a_gateway_pod_that_was_replaced(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for (name, exposure, cidr) in [
        ("moved-node-port", Exposure::NodePort, "[10.91.0.0/24]"),
        ("moved-host-port", Exposure::HostPort(4600, 4601), "[10.91.1.0/24]"),
    ] {
        let vpn = Vpn::declare(lab, name, exposure, "").await?;
        vpn.pool("staff", cidr, ANY).await?;
        let join = vpn.join("staff", "any").await?;
        let gateway = vpn.gateway_address("staff").await?;
        let mut device = device(lab, name).await?;
        let before = device.up(&join).await?;
        // Ten a second, all the while: a stale conntrack entry would be refreshed for ever.
        let flood =
            pinhole_e2e::process::Command::new("ping").args(["-n", "-i", "0.1", &gateway.to_string()]);
        let flood = device.host().spawn("ping", &flood).await?;
        let uid = pod_uid(&vpn).await?;
        vpn.kubectl(&["delete", "pod", "edge-0", "--grace-period=1", "--wait=false"]).await?;
        wait::until("another pod", PATIENCE, || async {
            let now = pod_uid(&vpn).await.map_err(|error| error.to_string())?;
            if now == uid { Err("still the old one".to_owned()) } else { Ok(()) }
        })
        .await?;
        device.reaches(gateway, PATIENCE).await?;
        let after = device.connected(PATIENCE).await?;
        ensure!(before.addresses == after.addresses, "{before:?} then {after:?}");
        flood.kill().await?;
        device.down().await?;
        vpn.delete().await?;
    }
    Ok(())
}

async fn pod_uid(vpn: &Vpn<'_>) -> anyhow::Result<String> {
    let uid = vpn.kubectl(&["get", "pod", "edge-0", "-o", "jsonpath={.metadata.uid}"]).await?;
    ensure!(!uid.is_empty(), "no pod");
    Ok(uid)
}

async fn a_rebind_of_the_nat_under_traffic_is_followed_at_once_and_counted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "rebind", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.92.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let mut device = device(lab, "rebind").await?;
    device.up(&join).await?;
    let client = vpn.client_in("rebind", ClientPhase::Connected, PATIENCE).await?;
    let endpoint = client.status.and_then(|status| status.endpoint).context("no endpoint")?;
    device.host().nat().context("no NAT")?.rebind().await?;
    device.reaches(gateway, Duration::from_secs(3)).await?;
    let moved = vpn
        .client("rebind", "to have moved", PATIENCE, |client| {
            let status = client.status.as_ref();
            let churn = status.and_then(|status| status.churn.as_ref());
            churn.is_some_and(|churn| churn.count == 1)
        })
        .await?;
    let status = moved.status.context("no status")?;
    let churn = status.churn.context("no churn")?;
    ensure!(churn.from.as_deref() == Some(&endpoint), "{churn:?} does not start at {endpoint}");
    ensure!(churn.to == status.endpoint && churn.to != churn.from, "{churn:?} against {:?}", status.endpoint);
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn twenty_clients_behind_one_nat_with_one_source_port_are_told_apart(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "crowd", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.93.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let nat = lab.nat("crowd", NatProfile::home()).await?;
    let mut devices = Vec::new();
    for n in 0..20 {
        let mut device = Device::new(nat.host(&format!("crowd-{n}")).await?).await?;
        device.start(&join, &["--listen-port", "51820"]).await?;
        devices.push(device);
    }
    let mut addresses = std::collections::BTreeSet::new();
    for device in &devices {
        let status = device.connected(PATIENCE).await?;
        addresses.extend(status.addresses);
        device.reaches(gateway, Duration::from_secs(5)).await?;
    }
    ensure!(addresses.len() == 20, "{addresses:?}");
    let mut endpoints = std::collections::BTreeSet::new();
    for device in &devices {
        let client = vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
        endpoints.insert(client.status.and_then(|status| status.endpoint).context("no endpoint")?);
    }
    ensure!(endpoints.len() == 20, "{endpoints:?}");
    ensure!(
        endpoints.iter().all(|endpoint| endpoint.starts_with(&format!("{}:", nat.address()))),
        "{endpoints:?}"
    );
    let listed = vpn.plugin(&["peers", "--behind", &nat.address().to_string(), "-o", "json"]).await?;
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
    ensure!(listed.len() == 20, "one command lists {} of the 20 clients behind the NAT", listed.len());
    let groups = vpn.plugin(&["nat", "--pool", "staff", "--by-address", "-o", "json"]).await?;
    let groups: Vec<serde_json::Value> = serde_json::from_str(&groups)?;
    let address = nat.address().to_string();
    let group = groups.iter().find(|group| group["publicAddress"] == address).context("no group")?;
    let ports: std::collections::BTreeSet<u64> =
        group["clients"].as_array().into_iter().flatten().filter_map(|c| c["port"].as_u64()).collect();
    ensure!(ports.len() == 20, "{} ports behind the NAT", ports.len());
    for device in &mut devices {
        device.down().await?;
    }
    vpn.delete().await?;
    Ok(())
}

/// Runs the deployment of the operator with this many replicas.
pub(crate) async fn scale(lab: &Lab, replicas: usize) -> anyhow::Result<()> {
    let scale = format!("--replicas={replicas}");
    lab.kubectl(["scale", "deployment/pinhole-operator", "-n", NAMESPACE, &scale]).await?;
    wait::until("the operators to be as many", PATIENCE, || async {
        let running = Installation::operators(lab).await.map_err(|error| error.to_string())?;
        if running.len() == replicas { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await?;
    Ok(())
}

async fn without_any_operator_tunnels_carry_on_and_status_says_unknown(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "away", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.94.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let mut device = device(lab, "away").await?;
    device.up(&join).await?;
    vpn.client_in("away", ClientPhase::Connected, PATIENCE).await?;
    scale(lab, 0).await?;
    let outcome = async {
        device.reaches(gateway, Duration::from_secs(3)).await?;
        // An agent that starts anew needs nobody but its gateway.
        device.down().await?;
        device.up(&join).await?;
        device.reaches(gateway, Duration::from_secs(3)).await?;
        // So does the gateway, from its snapshot.
        let restarts = restarts(&vpn).await?;
        pinhole_e2e::pods::kill(lab, vpn.namespace(), "edge-0")?;
        wait::until("the gateway's container to be restarted", PATIENCE, || async {
            let now = self::restarts(&vpn).await.map_err(|error| error.to_string())?;
            if now > restarts { Ok(()) } else { Err(format!("{now} restarts")) }
        })
        .await?;
        device.reaches(gateway, PATIENCE).await?;
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    scale(lab, 2).await?;
    outcome?;
    vpn.client_in("away", ClientPhase::Connected, PATIENCE).await?;
    // The other way round: the operator is there, the reports stop.
    vpn.kubectl(&["scale", "statefulset/edge", "--replicas=0"]).await.ok();
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn restarts(vpn: &Vpn<'_>) -> anyhow::Result<u32> {
    let path = "jsonpath={.status.containerStatuses[0].restartCount}";
    Ok(vpn.kubectl(&["get", "pod", "edge-0", "-o", path]).await?.trim().parse()?)
}

async fn a_killed_leader_is_replaced_and_loses_no_session(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "leader", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.95.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let mut first = device(lab, "leader-first").await?;
    first.up(&join).await?;
    let leader = Installation::leader(lab).await?;
    lab.kubectl(["delete", "pod", &leader, "-n", NAMESPACE, "--grace-period=0", "--force"]).await?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        first.host().ping(gateway).await.context("the tunnel failed with the leader")?;
    }
    let mut second = device(lab, "leader-second").await?;
    second.up(&join).await?;
    vpn.client_in("leader-second", ClientPhase::Connected, PATIENCE).await?;
    ensure!(Installation::leader(lab).await? != leader, "the dead leader still leads");
    first.connected(Duration::from_secs(5)).await?;
    first.down().await?;
    second.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn an_operator_killed_at_its_work_leaves_nothing_half_done(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "midway", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.96.128.0/24]", ANY).await?;
    for n in 0..10 {
        vpn.apply(&format!(
            "kind: VPNClient\nmetadata: {{ name: c{n}, namespace: midway }}\nspec: {{ poolRef: {{ name: staff }} }}"
        ))
        .await?;
        if n % 3 == 0 {
            let leader = Installation::leader(lab).await?;
            let kill =
                ["delete", "pod", &leader, "-n", NAMESPACE, "--grace-period=0", "--force", "--wait=false"];
            lab.kubectl(kill).await?;
        }
    }
    let mut addresses = std::collections::BTreeSet::new();
    for n in 0..10 {
        let has_all = |client: &pinhole_crds::VPNClient| {
            client
                .status
                .as_ref()
                .is_some_and(|status| !status.addresses.is_empty() && status.config_secret.is_some())
        };
        let client = vpn.client(&format!("c{n}"), "to have an address", PATIENCE, has_all).await?;
        addresses.extend(client.status.map(|status| status.addresses).unwrap_or_default());
    }
    if addresses.len() != 10 {
        bail!("ten clients have the addresses {addresses:?}");
    }
    vpn.delete().await?;
    Ok(())
}
