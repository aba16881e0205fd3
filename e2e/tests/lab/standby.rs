//! Clients that sleep on their sessions, behind NATs that have forgotten their bindings.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use pinhole_crds::{ClientPhase, ReachableBy, VPNClient};
use pinhole_e2e::{
    Lab,
    capture::{Burst, Capture, Kind},
    device::Device,
    nat::lab_profiles,
    netns::Netns,
    ping::round_trip,
    pods, progress,
    vpn::{Exposure, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![a_sleeping_client_is_woken_by_the_first_packet_and_called_what_it_is];

const POOL: &str = "enrolment: { tokens: [{ name: any }] }
  keepalive: { mode: Fixed, interval: 10s, standby: Session }";
/// By the kernel and by ourselves, with a round trip of nothing, of 10 ms and of 80 ms; the last loses every tenth packet.
const PROFILES: [&str; 3] = ["symmetric", "random-symmetric", "lossy-carrier"];
/// Half a minute of silence proves the session, once what comes with connecting is said.
const ASLEEP: Duration = Duration::from_mins(2);
/// None of these NATs keeps a binding for so long.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// WireGuard says something ten seconds after data, makes a handshake where that was lost, and says something again.
const SAID: Duration = Duration::from_mins(2);
const ROUNDS: usize = 2;

/// Whether a client answers one of three pings, and how long the first one took that it answered.
async fn ping(from: &Netns, inner: IpAddr) -> anyhow::Result<Duration> {
    let ping = from.command("ping").args(["-n", "-c", "3", "-i", "0.5", "-W", "2", &inner.to_string()]);
    let said = ping.output().await?.stdout;
    round_trip(&said).with_context(|| format!("no answer: {said}"))
}

async fn standby(vpn: &Vpn<'_>, name: &str) -> anyhow::Result<VPNClient> {
    Ok(vpn.client_in(name, ClientPhase::Standby, ASLEEP).await?)
}

/// Waits until nothing went by UDP for so long that no NAT has a binding; what else woke the client meanwhile.
async fn silent_by_udp(capture: &Capture) -> anyhow::Result<Vec<Burst>> {
    let bursts = wait::until("the binding to be let go", SAID, || async {
        let now = SystemTime::now();
        let bursts = capture.bursts(now - FORGOTTEN, now).map_err(|error| error.to_string())?;
        let kept = bursts.iter().any(|burst| burst.begun_by == Kind::Udp);
        if kept { Err(format!("{bursts:?}")) } else { Ok(bursts) }
    });
    Ok(bursts.await?)
}

async fn sleeps_and_wakes(lab: &Lab, vpn: &Vpn<'_>, join: &str, name: &str) -> Outcome {
    let profile = lab_profiles().into_iter().find(|profile| profile.name == name).context("no such NAT")?;
    let host = profile.host(lab, &format!("zz-{name}")).await?;
    let capture = Capture::begin(&host).await?;
    let mut device = Device::new(host).await?;
    device.start(join, &[]).await?;
    device.in_phase("Standby", ASLEEP).await?;
    let client = standby(vpn, device.host().name()).await?;
    let inner = *client.status.context("no status")?.addresses.first().context("no address")?;
    let gateway = pods::netns(lab, vpn.namespace(), "edge-0")?;
    for round in 1..=ROUNDS {
        let bursts = silent_by_udp(&capture).await.with_context(|| format!("{name}, round {round}"))?;
        // Its interval has yet to grow.
        ensure!(bursts.len() <= 3, "{name} slept badly in round {round}: {bursts:?}");
        let took = ping(&gateway, inner).await.with_context(|| format!("{name}, round {round}"))?;
        let said = device.status().await?.standby;
        progress::say(&format!("{name} was woken within {took:?}: {said:?}"));
        ensure!(said.last_wake_milliseconds.is_some(), "it was awake: {said:?}");
        device.in_phase("Standby", ASLEEP).await?;
    }
    let client = standby(vpn, device.host().name()).await?;
    let said = client.status.and_then(|status| status.standby).context("status says nothing of it")?;
    ensure!(said.reachable_by == ReachableBy::Session && said.reason == "Policy", "{said:?}");
    ensure!(said.last_proven.is_some() && said.last_wake.is_some(), "{said:?}");
    device.down().await?;
    Ok(())
}

async fn a_sleeping_client_is_woken_by_the_first_packet_and_called_what_it_is(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "standby", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.106.0.0/24]", POOL).await?;
    let join = vpn.join("staff", "any").await?;
    try_join_all(PROFILES.map(|name| sleeps_and_wakes(lab, &vpn, &join, name))).await?;
    vpn.delete().await?;
    Ok(())
}
