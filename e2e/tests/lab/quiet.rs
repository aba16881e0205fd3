//! What wakes a client's radio while nothing happens, seen from outside.

use std::time::{Duration, SystemTime};

use anyhow::ensure;
use pinhole_e2e::{
    Lab, bench,
    capture::{Capture, Kind},
    device::Device,
    nat::NatProfile,
    vpn::{Exposure, Vpn},
    wait,
};
use tokio::time::{Instant, sleep_until};

use crate::{Outcome, product, tests};

tests![an_idle_client_wakes_for_its_binding_alone_and_counts_what_the_wire_sees];

/// What is counted is what keeps a mapping of UDP.
const ANY: &str = "enrolment: { tokens: [{ name: any }] }\n  keepalive: { standby: UDP }";
const LEARNING: Duration = Duration::from_mins(2);
/// Four intervals and more, and longer than any ping of a session would wait.
const WATCHED: Duration = Duration::from_secs(75);

async fn an_idle_client_wakes_for_its_binding_alone_and_counts_what_the_wire_sees(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "quiet", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.98.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let nat = NatProfile::symmetric().timeouts(Duration::from_secs(5), Duration::from_secs(20));
    let host = lab.nat_host("quiet", nat).await?;
    let capture = Capture::begin(&host).await?;
    let mut device = Device::new(host).await?;
    device.up(&join).await?;
    wait::until("the lifetime to be learnt", LEARNING, || async {
        let status = device.status().await.map_err(|error| error.to_string())?;
        if status.keepalive.reason == "Learnt" { Ok(()) } else { Err(format!("{:?}", status.keepalive)) }
    })
    .await?;
    let (before, from) = (device.status().await?, SystemTime::now());
    sleep_until(Instant::now() + WATCHED).await;
    let bursts = capture.bursts(from, SystemTime::now())?;
    let after = device.status().await?;
    let told = after.keepalive.wakes.saturating_sub(before.keepalive.wakes);
    bench::agree("quiet", &bursts, told)?;
    ensure!(bursts.len() >= 3, "nothing keeps the binding: {bursts:?}");
    let others: Vec<_> = bursts.iter().filter(|burst| burst.begun_by != Kind::Udp).collect();
    ensure!(others.is_empty(), "the session or a name woke it: {others:?}");
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}
