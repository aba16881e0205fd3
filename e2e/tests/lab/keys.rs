//! One key on two machines, and one client that is seen at once beside a crowd that nobody ever saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, stream};
use kube::api::{DeleteParams, ListParams, PostParams};
use pinhole_crds::{ClientPhase, KEY_ON_TWO_MACHINES, VPNClient};
use pinhole_e2e::{
    Lab,
    device::Device,
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use serde_json::json;

use crate::{Outcome, product, tests};

tests![
    one_key_on_two_machines_is_named_in_the_cluster_within_ten_seconds,
    one_key_on_two_machines_at_two_replicas_is_named_within_ten_seconds_and_both_machines_are_told,
    a_client_that_connects_beside_ten_thousand_new_ones_is_shown_within_two_seconds
];

const ANY: &str = "enrolment: { tokens: [{ name: any }] }";
/// From the second machine's connection.
const NAMED: Duration = Duration::from_secs(10);
const CROWD: u32 = 10_000;
/// Requests at a time.
const AT_ONCE: usize = 64;
const SHOWN: Duration = Duration::from_secs(2);
/// Ten thousand objects go slowly.
const GONE: Duration = Duration::from_mins(5);

async fn one_key_on_two_machines_is_named_in_the_cluster_within_ten_seconds(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "shared-key", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.131.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let mut one = Device::new(lab.nat_host("image-one", NatProfile::home()).await?).await?;
    one.up(&join).await?;
    let before = vpn.client_in("image-one", ClientPhase::Connected, PATIENCE).await?;
    let moves = |client: &VPNClient| {
        client.status.as_ref().and_then(|it| it.churn.as_ref()).map_or(0, |churn| churn.count)
    };
    let mut two = one.copied_to(lab.nat_host("image-two", NatProfile::home()).await?).await?;
    two.start(&join, &[]).await?;
    two.connected(PATIENCE).await?;
    let begun = Instant::now();
    is_named(&vpn, begun, "image-one", (&one, &two)).await?;
    let after = vpn.client("image-one", "to be there", PATIENCE, |_| true).await?;
    ensure!(moves(&after) <= moves(&before) + 2, "{} moves", moves(&after));
    two.down().await?;
    two.start(&join, &["--new-key"]).await?;
    two.connected(PATIENCE).await?;
    vpn.client_in("image-two", ClientPhase::Connected, PATIENCE).await?;
    for device in [&mut one, &mut two] {
        device.reaches(gateway, PATIENCE).await?;
        device.down().await?;
    }
    Ok(vpn.delete().await?)
}

/// With traffic from both, the client's condition names both within the time from `begun`, and an Event does. Yields what is said.
async fn is_named(
    vpn: &Vpn<'_>,
    begun: Instant,
    client: &str,
    (one, two): (&Device, &Device),
) -> anyhow::Result<String> {
    let gateway = vpn.gateway_address("staff").await?;
    let traffic = [one, two].map(|device| {
        let args = ["-q", "-n", "-i", "0.2", "-c", "150", &gateway.to_string()];
        device.host().command("ping").args(args)
    });
    let pings =
        [one.host().spawn("pings", &traffic[0]).await?, two.host().spawn("pings", &traffic[1]).await?];
    let condition = |client: &VPNClient| {
        let conditions = client.status.as_ref().map(|it| it.conditions.as_slice()).unwrap_or_default();
        conditions.iter().find(|it| it.type_ == KEY_ON_TWO_MACHINES).map(|it| it.message.clone())
    };
    let limit = NAMED.saturating_sub(begun.elapsed());
    let named = vpn.client(client, "to be named", limit, |client| condition(client).is_some()).await?;
    let text = condition(&named).context("no condition")?;
    for device in [one, two] {
        let public = device.host().nat().context("no NAT")?.address().to_string();
        ensure!(text.contains(&format!("{public}:")), "no {public} in {text}");
    }
    wait::until("an Event that says so", PATIENCE, || async {
        let args = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
        let reasons = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if reasons.contains(KEY_ON_TWO_MACHINES) { Ok(()) } else { Err(reasons) }
    })
    .await?;
    for ping in pings {
        ping.kill().await?;
    }
    Ok(text)
}

/// The ports at which one replica is reached, of its tunnel and its sessions.
async fn ports_of(vpn: &Vpn<'_>, replica: &str) -> anyhow::Result<BTreeSet<String>> {
    let status = vpn.gateways().get("edge").await?.status.context("no status")?;
    let replica = status.replicas.into_iter().find(|it| it.name == replica).context("no such replica")?;
    let port = |endpoint: &String| endpoint.rsplit_once(':').map(|(_, port)| port.to_owned());
    Ok(replica.tunnel_endpoints.iter().chain(&replica.session_endpoints).filter_map(port).collect())
}

async fn one_key_on_two_machines_at_two_replicas_is_named_within_ten_seconds_and_both_machines_are_told(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "shared-apart", Exposure::NodePort, "replicas: 2").await?;
    vpn.pool("staff", "[10.133.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    wait::until("both replicas", PATIENCE, || async {
        let edge = vpn.gateways().get("edge").await.map_err(|error| error.to_string())?;
        match edge.status.and_then(|status| status.ready_replicas) {
            Some(2) => Ok(()),
            ready => Err(format!("{ready:?} ready")),
        }
    })
    .await?;
    let mut one = Device::new(lab.nat_host("apart-one", NatProfile::home()).await?).await?;
    one.up(&join).await?;
    let connected = vpn.client_in("apart-one", ClientPhase::Connected, PATIENCE).await?;
    let first = connected.status.and_then(|it| it.replica).context("no replica")?;
    let mut two = one.copied_to(lab.nat_host("apart-two", NatProfile::home()).await?).await?;
    let ports = Vec::from_iter(ports_of(&vpn, &first).await?).join(", ");
    let rules = format!(
        "add table inet apart; add chain inet apart out {{ type filter hook output priority 0; }}; \
         add rule inet apart out meta l4proto {{ tcp, udp }} th dport {{ {ports} }} drop"
    );
    two.host().exec("nft", [rules.as_str()]).await?;
    two.start(&join, &[]).await?;
    two.connected(PATIENCE).await?;
    let begun = Instant::now();
    let text = is_named(&vpn, begun, "apart-one", (&one, &two)).await?;
    ensure!(text.contains("edge-0") && text.contains("edge-1"), "{text}");
    for device in [&one, &two] {
        wait::until("each machine to be told of the other", PATIENCE, || async {
            let status = device.status().await.map_err(|error| error.to_string())?;
            if status.key_shared { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await?;
    }
    for device in [&mut one, &mut two] {
        device.down().await?;
    }
    Ok(vpn.delete().await?)
}

/// A stock client with a key of its own, which nobody has.
fn absent(namespace: &str, n: u32) -> anyhow::Result<VPNClient> {
    let mut key = [7; 32];
    let (number, _) = key.split_at_mut(4);
    number.copy_from_slice(&n.to_be_bytes());
    let object = json!({
        "apiVersion": "pinhole.dev/v1alpha1",
        "kind": "VPNClient",
        "metadata": { "name": format!("absent-{n}"), "namespace": namespace },
        "spec": { "poolRef": { "name": "staff" }, "publicKey": STANDARD.encode(key) },
    });
    Ok(serde_json::from_value(object)?)
}

async fn crowd(vpn: &Vpn<'_>) -> anyhow::Result<()> {
    let clients = vpn.clients();
    let make = |n| {
        let clients = clients.clone();
        let namespace = vpn.namespace().to_owned();
        async move {
            clients.create(&PostParams::default(), &absent(&namespace, n)?).await?;
            anyhow::Ok(())
        }
    };
    let mut crowd = stream::iter((0..CROWD).map(make)).buffer_unordered(AT_ONCE);
    while let Some(one) = crowd.next().await {
        one?;
    }
    Ok(())
}

async fn a_client_that_connects_beside_ten_thousand_new_ones_is_shown_within_two_seconds(
    lab: &Lab,
) -> Outcome {
    // Ten thousand objects take the API server and both processors from all other tests.
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "beside", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.132.0.0/16]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let mut took = BTreeMap::new();
    let watch = async {
        for name in ["beside-one", "beside-two", "beside-three"] {
            let mut device = Device::new(lab.nat_host(name, NatProfile::home()).await?).await?;
            device.up(&join).await?;
            let connected = Instant::now();
            // Listing ten thousand to find it would take longer than what is measured.
            let client = device.status().await?.client;
            let client = client.split('/').next_back().unwrap_or_default();
            wait::until(&format!("{name} to be shown"), PATIENCE, || async {
                let found = vpn.clients().get(client).await.map_err(|error| error.to_string())?;
                let phase = found.status.and_then(|status| status.phase);
                if phase == Some(ClientPhase::Connected) { Ok(()) } else { Err(format!("{phase:?}")) }
            })
            .await?;
            took.insert(name, connected.elapsed());
            device.down().await?;
        }
        anyhow::Ok(())
    };
    let (made, watched) = futures::join!(crowd(&vpn), watch);
    made?;
    watched?;
    let clients = vpn.clients();
    clients.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    wait::until("the crowd to go", GONE, || async {
        let left = clients.list(&ListParams::default().limit(1)).await.map_err(|error| error.to_string())?;
        if left.items.is_empty() { Ok(()) } else { Err("some are left".to_owned()) }
    })
    .await?;
    vpn.delete().await?;
    ensure!(took.values().all(|after| *after < SHOWN), "{took:?}");
    Ok(())
}
