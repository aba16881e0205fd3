//! A NAT forgets a client's mapping while everything looks green: it must not come to that, and where it does, it is
//! seen and told.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use pinhole_crds::{ChurnCause, ClientPhase, VPNClient, VPNClientStatus};
use pinhole_e2e::{
    Lab,
    bench::{self, Plan, Row, Way},
    device::{Device, Status},
    host::Host,
    nat::{LabProfile, Nat, NatProfile, lab_profiles},
    netns::Netns,
    pods, progress,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{Outcome, product, tests};

tests![
    control_without_keepalives_a_client_idle_for_longer_than_the_timeout_is_out_of_reach,
    tuned_every_one_of_at_least_200_wakes_at_random_times_succeeds_behind_each_nat,
    a_rebind_of_an_idle_client_is_adopted_by_the_first_authenticated_packet_and_by_no_other,
    status_is_not_green_while_the_inbound_path_fails_and_the_link_is_up,
    the_churn_event_carries_old_and_new_endpoint_idle_gap_and_cause,
    an_invisible_flush_is_healed_in_the_first_cycle_and_stays_healed,
];

const ANY: &str = "enrolment: { tokens: [{ name: any }] }";
/// What is tested is how a mapping of UDP is kept.
const LEARNING: &str = "enrolment: { tokens: [{ name: any }] }\n  keepalive: { standby: UDP }";
/// Until the lifetime is known behind any of the ready-made NATs: 1.3 timeouts and 30 s, and the time to connect.
const VERDICT: Duration = Duration::from_mins(2);
/// How often NATs are asked.
const LOOK: Duration = Duration::from_millis(250);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The gateway's pod, as the one that sends to clients by itself.
struct Gateway(Netns);

impl Gateway {
    fn of(vpn: &Vpn<'_>) -> anyhow::Result<Self> {
        Ok(Self(pods::netns(vpn.lab(), vpn.namespace(), "edge-0")?))
    }

    /// Whether a client answers within a second.
    async fn reaches(&self, inner: IpAddr) -> anyhow::Result<bool> {
        let ping = self.0.command("ping").args(["-n", "-c", "1", "-W", "1", &inner.to_string()]);
        Ok(ping.output().await?.status.success())
    }
}

fn inner(status: &Status) -> anyhow::Result<IpAddr> {
    let address = status.addresses.first().and_then(|address| address.split('/').next());
    Ok(address.context("no address")?.parse()?)
}

async fn connect(lab: &Lab, name: &str, profile: &LabProfile, join: &str) -> anyhow::Result<Device> {
    let mut device = Device::new(profile.host(lab, name).await?).await?;
    device.start(join, &[]).await?;
    device.connected(PATIENCE).await?;
    Ok(device)
}

/// Waits until the client knows its binding's lifetime.
async fn verdict(device: &Device) -> anyhow::Result<Status> {
    let begun = Instant::now();
    loop {
        let status = device.status().await?;
        if ["Bracketed", "Confirmed"].contains(&status.binding.confidence.as_str()) {
            return Ok(status);
        }
        ensure!(begun.elapsed() < VERDICT, "{} has no verdict: {status:?}", device.host().name());
        sleep(LOOK * 4).await;
    }
}

fn interval(status: &Status) -> anyhow::Result<Duration> {
    let interval = status.keepalive.interval_seconds.context("no keepalive")?;
    Ok(Duration::try_from_secs_f64(interval)?)
}

/// Waits for a moment between two keepalives, not amid one: nothing refreshed the mapping for a while.
async fn rest(way: &Way, lifetime: Duration) -> Outcome {
    /// Longer than any pause within a keepalive.
    const QUIET: Duration = Duration::from_secs(5);
    Ok(wait::until("the client to be at rest", PATIENCE, || async {
        let way = way.in_force().await.map_err(|error| error.to_string())?;
        if way.is_some_and(|way| way.stream && way.left + QUIET <= lifetime) {
            Ok(())
        } else {
            Err(format!("{way:?}"))
        }
    })
    .await?)
}

fn nearest(device: &Device) -> anyhow::Result<&Nat> {
    device.host().nat().context("no NAT")
}

async fn control_without_keepalives_a_client_idle_for_longer_than_the_timeout_is_out_of_reach(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "control", Exposure::NodePort, "").await?;
    // As good as none.
    let keepalive = "keepalive: { mode: Fixed, interval: 1h }";
    vpn.pool("staff", "[10.101.0.0/24]", &format!("{ANY}\n  healthMode: LinkStatus\n  {keepalive}")).await?;
    let join = vpn.join("staff", "any").await?;
    let host = lab.nat_host("control", NatProfile::home().timeouts(seconds(5), seconds(15))).await?;
    let mut device = Device::new(host).await?;
    let inner = inner(&device.up(&join).await?)?;
    let (gateway, way) = (Gateway::of(&vpn)?, Way::of(&device).await?);
    wait::until("the mapping to be promoted", seconds(10), || async {
        let reached = gateway.reaches(inner).await.map_err(|error| error.to_string())?;
        let way = way.in_force().await.map_err(|error| error.to_string())?;
        if reached && way.is_some_and(|way| way.stream) { Ok(()) } else { Err(format!("{reached} {way:?}")) }
    })
    .await?;
    let idle = Instant::now();
    // Nothing is sent but the beats of a new binding, and what WireGuard itself has to say after data.
    while way.in_force().await?.is_some() {
        ensure!(idle.elapsed() < seconds(60), "something keeps the mapping");
        sleep(LOOK).await;
    }
    for _ in 0..3 {
        ensure!(!gateway.reaches(inner).await?, "the gateway reaches the client without a mapping");
    }
    // It was the mapping and nothing else.
    device.reaches(vpn.gateway_address("staff").await?, PATIENCE).await?;
    ensure!(gateway.reaches(inner).await?, "the gateway does not follow");
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn tuned_every_one_of_at_least_200_wakes_at_random_times_succeeds_behind_each_nat(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "tuned", Exposure::NodePort, "").await?;
    let plan = Plan { profiles: lab_profiles(), span: seconds(165), wakes: 220, seed: 4 };
    let report = bench::run(&vpn, 100, &plan).await?;
    progress::say(&report.to_string());
    let wrong: Vec<String> = report.rows.iter().flat_map(Row::faults).collect();
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(report.rows.len() >= 8);
    // Else this test could not fail.
    let lost = report.rows.iter().filter(|row| !row.fixed.missed.is_empty()).count();
    ensure!(lost >= 4, "a static keepalive is enough here");
    vpn.delete().await?;
    Ok(())
}

/// What a host sends to a gateway, as anybody on the way sees it.
struct Tap {
    socket: OwnedFd,
    gateway: SocketAddr,
}

impl Tap {
    fn on(host: &Host, gateway: SocketAddr) -> anyhow::Result<Self> {
        let open = || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)
        };
        Ok(Self { socket: host.netns().within(open)??, gateway })
    }

    /// The payloads sent since the last time.
    fn take(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let mut payloads = Vec::new();
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            payloads.extend(payload(&buffer[..length], self.gateway).map(<[u8]>::to_vec));
        }
        payloads
    }
}

/// The payload of an IPv4 packet, if it is UDP to there.
fn payload(packet: &[u8], to: SocketAddr) -> Option<&[u8]> {
    const UDP: u8 = 17;
    let header = usize::from(packet.first()? & 0xf) * 4;
    let IpAddr::V4(address) = to.ip() else { return None };
    let is_ours =
        packet.first()? >> 4 == 4 && *packet.get(9)? == UDP && packet.get(16..20)? == address.octets();
    let udp = packet.get(header..)?;
    (is_ours && udp.get(2..4)? == to.port().to_be_bytes()).then(|| udp.get(8..)).flatten()
}

fn is_wireguard(datagram: &[u8]) -> bool {
    matches!(datagram, [1..=4, 0, 0, 0, ..])
}

/// Sends what it heard, as it was and changed, and what it made up; hears nothing for it.
async fn attack(intruder: &Host, gateway: SocketAddr, heard: &[Vec<u8>]) -> Outcome {
    let socket: UdpSocket = intruder.udp_socket(0)?;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    for datagram in heard {
        socket.send_to(datagram, gateway).await?;
        let mut changed = datagram.clone();
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        socket.send_to(&changed, gateway).await?;
    }
    for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 128), (0x80, 64), (0x81, 96), (0xff, 80)]
    {
        let mut garbage: Vec<u8> = (0..length).map(|n: u8| n.wrapping_mul(37)).collect();
        garbage[..4].copy_from_slice(&[kind, 0, 0, 0]);
        socket.send_to(&garbage, gateway).await?;
    }
    let mut buffer = [0; 2048];
    if let Ok(answer) = timeout(seconds(1), socket.recv_from(&mut buffer)).await {
        bail!("the intruder got an answer: {answer:?}");
    }
    Ok(())
}

fn endpoint(client: &VPNClient) -> anyhow::Result<SocketAddr> {
    let endpoint = client.status.as_ref().and_then(|status| status.endpoint.as_deref());
    Ok(endpoint.context("no endpoint")?.parse()?)
}

async fn a_rebind_of_an_idle_client_is_adopted_by_the_first_authenticated_packet_and_by_no_other(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "adopted", Exposure::NodePort, "").await?;
    let keepalive = "keepalive: { mode: Fixed, interval: 12s }";
    vpn.pool("staff", "[10.101.1.0/24]", &format!("{ANY}\n  {keepalive}")).await?;
    let join = vpn.join("staff", "any").await?;
    let mut device = Device::new(lab.nat_host("adopted", NatProfile::home()).await?).await?;
    // Enrolled already, it meets the gateway again with somebody listening from the start.
    let gateway_endpoint = device.up(&join).await?.endpoint.context("no endpoint")?.parse()?;
    device.down().await?;
    let tap = Tap::on(device.host(), gateway_endpoint)?;
    let inner = inner(&device.up(&join).await?)?;
    let (gateway, way, nat) = (Gateway::of(&vpn)?, Way::of(&device).await?, nearest(&device)?);
    device.reaches(vpn.gateway_address("staff").await?, PATIENCE).await?;
    wait::until("beats to keep the tunnel", PATIENCE, || async {
        let status = device.status().await.map_err(|error| error.to_string())?;
        if status.keepalive.beats { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;
    let client = vpn.client_in("adopted", ClientPhase::Connected, PATIENCE).await?;
    let before = endpoint(&client)?;
    let heard = tap.take();
    ensure!(heard.iter().any(|datagram| datagram.first() == Some(&1)), "no handshake was heard");
    ensure!(heard.iter().any(|datagram| datagram.first() == Some(&4)), "no data was heard");
    ensure!(heard.iter().any(|datagram| !is_wireguard(datagram)), "no beat was heard");

    let intruder = lab.public_host("intruder").await?;
    attack(&intruder, gateway_endpoint, &heard).await?;
    ensure!(gateway.reaches(inner).await?, "the gateway follows an intruder");

    // From here on the client is idle, and nothing of it has a way in.
    nat.rebind().await?;
    tap.take();
    let mut sent = Vec::new();
    attack(&intruder, gateway_endpoint, &heard).await?;
    let begun = Instant::now();
    while !sent.iter().any(|datagram: &Vec<u8>| is_wireguard(datagram)) {
        ensure!(begun.elapsed() < seconds(12 + 8), "the client sends nothing");
        sleep(Duration::from_millis(10)).await;
        sent.extend(tap.take());
    }
    ensure!(gateway.reaches(inner).await?, "the gateway does not follow the first authenticated packet");
    let after = way.in_force().await?.context("no mapping")?.outside;
    ensure!(after != before && after.ip() == before.ip(), "{before}, then {after}");
    let moved = |client: &VPNClient| endpoint(client).is_ok_and(|endpoint| endpoint == after);
    let client = vpn.client("adopted", "to be known at its new place", PATIENCE, moved).await?;
    let churn = client.status.and_then(|status| status.churn).context("no churn")?;
    ensure!(churn.count == 1, "{churn:?}");
    ensure!(churn.from == Some(before.to_string()) && churn.to == Some(after.to_string()), "{churn:?}");
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn status_is_not_green_while_the_inbound_path_fails_and_the_link_is_up(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "one-way", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.101.2.0/24]", LEARNING).await?;
    let join = vpn.join("staff", "any").await?;
    let (at, join) = (&vpn, &join);
    let checks = lab_profiles().into_iter().map(|profile| async move {
        turns_red(at, &profile, join).await.with_context(|| format!("behind {}", profile.name))
    });
    let table = try_join_all(checks).await?;
    progress::say(&table.concat());
    vpn.delete().await?;
    Ok(())
}

/// How long it took until neither side called it connected.
async fn turns_red(vpn: &Vpn<'_>, profile: &LabProfile, join: &str) -> anyhow::Result<String> {
    /// Until what the client tells is in the API server, on a machine that has other things to do as well.
    const NEWS: Duration = Duration::from_secs(1);
    let name = format!("one-way-{}", profile.name);
    let mut device = connect(vpn.lab(), &name, profile, join).await?;
    verdict(&device).await?;
    vpn.client_in(&name, ClientPhase::Connected, PATIENCE).await?;
    let nat = nearest(&device)?;
    let limit = interval(&device.status().await?)? + seconds(8);
    nat.set_deaf(true).await?;
    let begun = Instant::now();
    let (mut at_client, mut at_operator) = (None, None);
    while at_client.is_none() || at_operator.is_none() {
        let status = device.status().await?;
        if at_client.is_none() && status.phase != "Connected" {
            ensure!(status.session, "the session went, too: {status:?}");
            at_client = Some(begun.elapsed());
        }
        if at_operator.is_none() && phase(vpn, &name).await? != Some(ClientPhase::Connected) {
            at_operator = Some(begun.elapsed());
        }
        ensure!(begun.elapsed() < limit + seconds(10), "after {at_client:?} and {at_operator:?}; {status:?}");
        sleep(LOOK).await;
    }
    let (at_client, at_operator) = (at_client.unwrap_or_default(), at_operator.unwrap_or_default());
    ensure!(at_client <= limit + LOOK, "the client took {at_client:?} of {limit:?}");
    ensure!(at_operator <= limit + LOOK + NEWS, "the operator took {at_operator:?} of {limit:?}");
    nat.set_deaf(false).await?;
    device.connected(PATIENCE).await?;
    vpn.client_in(&name, ClientPhase::Connected, PATIENCE).await?;
    device.down().await?;
    Ok(format!("{:<16} red after {at_client:.1?} and {at_operator:.1?} of {limit:.1?}\n", profile.name))
}

async fn phase(vpn: &Vpn<'_>, hostname: &str) -> anyhow::Result<Option<ClientPhase>> {
    let clients = vpn.clients().list(&kube::api::ListParams::default()).await?.items;
    let is_it = |client: &&VPNClient| {
        client.spec.enrolment.as_ref().and_then(|enrolment| enrolment.hostname.as_deref()) == Some(hostname)
    };
    let status = clients.iter().find(is_it).and_then(|client| client.status.as_ref());
    Ok(status.and_then(|status| status.phase))
}

async fn the_churn_event_carries_old_and_new_endpoint_idle_gap_and_cause(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "churned", Exposure::NodePort, "").await?;
    let keepalive = "keepalive: { mode: Fixed, interval: 10s }";
    vpn.pool("staff", "[10.101.3.0/24]", &format!("{ANY}\n  {keepalive}")).await?;
    let join = vpn.join("staff", "any").await?;
    let mut device = Device::new(lab.nat_host("churned", NatProfile::home()).await?).await?;
    device.up(&join).await?;
    let client = vpn.client_in("churned", ClientPhase::Connected, PATIENCE).await?;
    let before = endpoint(&client)?.to_string();
    rest(&Way::of(&device).await?, NatProfile::home().udp_stream_timeout).await?;
    nearest(&device)?.rebind().await?;
    let churned = |client: &VPNClient| churn_count(client.status.as_ref()) == 1;
    let client = vpn.client("churned", "to have moved", PATIENCE, churned).await?;
    let name = client.metadata.name.clone().context("no name")?;
    let after = endpoint(&client)?.to_string();
    let churn = client.status.and_then(|status| status.churn).context("no churn")?;
    ensure!(churn.last_cause == Some(ChurnCause::MappingChanged), "{churn:?}");
    ensure!(before != after, "{after}");
    ensure!(churn.from.as_ref() == Some(&before) && churn.to.as_ref() == Some(&after), "{churn:?}");
    let idle = churn.idle.context("no idle gap")?.0;
    // The interval, less the companion of the keepalive before.
    ensure!((seconds(5)..=seconds(11)).contains(&idle), "{idle:?} of 10 s");
    // The gateway may have seen it first.
    let own = wait::until("the client to know itself", PATIENCE, || async {
        let own = device.status().await.map_err(|error| error.to_string())?.churn;
        if own.count > 0 { Ok(own) } else { Err(format!("{own:?}")) }
    })
    .await?;
    ensure!(own.last_cause.as_deref() == Some("MappingChanged") && own.count == 1, "{own:?}");
    ensure!(own.last_from.as_ref() == Some(&before) && own.last_to.as_ref() == Some(&after), "{own:?}");
    let note = wait::until("the Event", PATIENCE, || async {
        let events = vpn.kubectl(&["get", "events", "-o", "json"]).await.map_err(|e| e.to_string())?;
        let events: serde_json::Value = serde_json::from_str(&events).map_err(|error| error.to_string())?;
        let mut of_it = events["items"].as_array().into_iter().flatten().filter(|event| {
            event["reason"] == "MappingChanged"
                && event["involvedObject"]["kind"] == "VPNClient"
                && event["involvedObject"]["name"] == name
        });
        of_it
            .next()
            .and_then(|event| event["message"].as_str().map(str::to_owned))
            .ok_or_else(|| "there is none".to_owned())
    })
    .await?;
    let gap = format!("{}s of silence", idle.as_secs());
    for word in [&before, &after, &gap] {
        ensure!(note.contains(word), "no {word} in {note:?}");
    }
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

fn churn_count(status: Option<&VPNClientStatus>) -> i64 {
    status.and_then(|status| status.churn.as_ref()).map(|churn| churn.count).unwrap_or_default()
}

async fn an_invisible_flush_is_healed_in_the_first_cycle_and_stays_healed(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "flushed", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.101.4.0/24]", LEARNING).await?;
    let join = vpn.join("staff", "any").await?;
    let (at, join, gateway) = (&vpn, &join, &Gateway::of(&vpn)?);
    // Those that give the same port again, and a new mapping a shorter life.
    let traps = ["home", "late-promotion", "double", "full-cone"];
    let profiles = lab_profiles().into_iter().filter(|profile| traps.contains(&profile.name));
    let checks = profiles.map(|profile| async move {
        heals(at, gateway, &profile, join).await.with_context(|| format!("behind {}", profile.name))
    });
    let table = try_join_all(checks).await?;
    ensure!(table.len() == traps.len());
    progress::say(&table.concat());
    vpn.delete().await?;
    Ok(())
}

async fn heals(vpn: &Vpn<'_>, gateway: &Gateway, profile: &LabProfile, join: &str) -> anyhow::Result<String> {
    /// From the first beat to the end of the longest conversation that a NAT's promotion takes.
    const CONVERSATION: Duration = Duration::from_secs(13);
    let mut device = connect(vpn.lab(), &format!("flushed-{}", profile.name), profile, join).await?;
    let way = Way::of(&device).await?;
    let begun = Instant::now();
    // A new mapping does not live for an interval, else there is no trap.
    let truth = profile.truth();
    let interval = loop {
        let status = verdict(&device).await?;
        let interval = interval(&status)?;
        // While the bracket is still cut, bursts begin that no wake was due in.
        let width = status.binding.less_than_seconds.map(|end| end - status.binding.at_least_seconds);
        if width.is_some_and(|width| width <= 0.6) {
            ensure!(interval > truth.unreplied, "only {interval:?}");
            break interval;
        }
        ensure!(begun.elapsed() < VERDICT * 2, "learning still: {status:?}");
        sleep(LOOK * 4).await;
    };
    let before = way.in_force().await?.context("no mapping")?.outside;
    // A flush amid a keepalive is healed by the next one.
    rest(&way, truth.replied).await?;
    let begun = Instant::now();
    nearest(&device)?.flush().await?;
    let blind = loop {
        match way.in_force().await? {
            Some(way) => {
                ensure!(way.outside == before, "not invisible: {before}, then {}", way.outside);
                break begun.elapsed();
            }
            None => ensure!(begun.elapsed() < interval + seconds(1), "still gone after {interval:?}"),
        }
        sleep(LOOK).await;
    };
    let back = Instant::now();
    let mut promoted = None;
    while back.elapsed() < CONVERSATION + interval * 3 {
        let way = way.in_force().await?.with_context(|| format!("lost again after {:?}", back.elapsed()))?;
        ensure!(way.outside == before, "{before}, then {}", way.outside);
        if way.stream && promoted.is_none() {
            promoted = Some(back.elapsed());
        }
        ensure!(promoted.is_some() || back.elapsed() < CONVERSATION, "not promoted in the first cycle");
        sleep(LOOK).await;
    }
    ensure!(gateway.reaches(inner(&device.status().await?)?).await?, "the gateway does not reach it");
    device.down().await?;
    let promoted = promoted.unwrap_or_default();
    Ok(format!(
        "{:<16} interval {interval:.1?}: blind for {blind:.1?}, promoted {promoted:.1?} later, and stays\n",
        profile.name
    ))
}
