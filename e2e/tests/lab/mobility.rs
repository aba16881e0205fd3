//! Clients that change networks: what passes meanwhile is measured from outside of the tunnel, by numbered packets and a
//! connection's bytes.
//!
//! Each row is tried a few times, which shows that it works; `PINHOLE_MOBILITY_TRIALS=50` shows how well. Medians, p99 and the
//! worst are printed (`make bench-mobility`).

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use ipnet::Ipv4Net;
use pinhole_crds::{ClientPhase, VPNClient};
use pinhole_e2e::{
    Lab,
    capture::{Capture, Kind},
    device::{Device, Status},
    host::{Families, Host, Uplink, Wiring},
    nat::{Faults, Loss, NatProfile, UserspaceProfile, model::Profile},
    passage::{BothWays, End, Gap, Moment, Record, Spread, Streams, Transfer, Transferred, longest_stall},
    ping,
    pods::HiddenNetwork,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use tokio::time::sleep;

use crate::{
    Outcome,
    phases::{Phases, phases_told},
    product, tests,
};

tests![
    connected_dormant_waiting_and_connected_again_are_seen_on_both_sides,
    an_interface_switch_reprovisions_nothing_and_a_tcp_transfer_survives,
    break_before_make_costs_a_round_trip_once_the_route_exists,
    without_a_network_it_is_dormant_at_once_and_back_by_the_event,
    retries_into_silence_are_jittered_and_regular,
    ipv4_to_ipv6_and_back_keeps_a_tcp_transfer,
    ten_flaps_a_minute_cost_a_bounded_number_of_packets,
    two_tunnels_of_one_machine_move_together,
    a_path_that_is_slow_or_lossy_is_not_called_dead,
];

/// The far end of what is measured: the one host of a network behind the gateway, which lets nothing but pings in itself.
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// That of another tunnel.
const OTHER_FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const INTERVAL: Duration = Duration::from_secs(5);
const POLICY: &str = "enrolment: { tokens: [{ name: any }] }
  keepalive: { mode: Fixed, interval: 5s, standby: UDP }";
/// Beside the interval, until silence is noticed.
const NOTICED: Duration = Duration::from_secs(8);
/// Until what a client tells is in the API server.
const NEWS: Duration = Duration::from_secs(2);
/// What a switch may cost beside a round trip, by the seed.
const SWITCH: Duration = Duration::from_millis(100);
/// Until something that takes no time has happened on a busy machine.
const SOON: Duration = Duration::from_secs(15);
/// Until what a switch sets off is over.
const SETTLED: Duration = Duration::from_millis(750);
const WIRED: &str = "eth0";
const WIRELESS: &str = "wlan0";

/// How often each row is tried.
pub(crate) fn trials() -> u32 {
    wanted().unwrap_or(5)
}

fn wanted() -> Option<u32> {
    std::env::var("PINHOLE_MOBILITY_TRIALS").ok()?.parse().ok()
}

/// What a single outage may take longer, not the median, where others have their turns on the machine as well. Who wants a number of
/// trials has the machine for them.
fn contention() -> Duration {
    if wanted().is_some() { Duration::ZERO } else { Duration::from_millis(400) }
}

/// Routers whose bindings live longer than any test.
fn wired() -> Wiring {
    Wiring::wired(NatProfile::home())
}

fn wireless() -> Wiring {
    Wiring::wireless(NatProfile::carrier())
}

/// A client on a host with uplinks, and a place at the gateway to speak to.
struct Roamer<'a> {
    vpn: Vpn<'a>,
    device: Device,
    behind: HiddenNetwork,
    inner: IpAddr,
    far: Ipv4Addr,
}

/// Who is the same machine to everybody.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    addresses: Vec<String>,
    uid: Option<String>,
    generation: Option<i64>,
    enrolled: usize,
}

impl<'a> Roamer<'a> {
    async fn connect(lab: &'a Lab, name: &str, cidr: &str, wirings: &[Wiring]) -> anyhow::Result<Self> {
        let device = Device::new(lab.roaming_host(name, wirings).await?).await?;
        Self::join(lab, name, cidr, device, FAR).await
    }

    /// Connects to a VPN of its own, with the far end at this address.
    async fn join(
        lab: &'a Lab,
        name: &str,
        cidr: &str,
        mut device: Device,
        far: Ipv4Addr,
    ) -> anyhow::Result<Self> {
        let vpn = Vpn::declare(lab, name, Exposure::LoadBalancer, "").await?;
        vpn.pool("staff", cidr, &format!("routes: [{}]\n  {POLICY}", Ipv4Net::new(far, 24)?.trunc())).await?;
        let join = vpn.join("staff", "any").await?;
        device.start(&join, &["--log", "pinhole_agent=info"]).await?;
        let status = device.connected(PATIENCE).await?;
        vpn.client_in(device.hostname(), ClientPhase::Connected, PATIENCE).await?;
        let behind = HiddenNetwork::behind(lab, name, "edge-0", &format!("{name}-far"), far).await?;
        device.reaches(far.into(), SOON).await?;
        Ok(Self { inner: inner(&status)?, vpn, device, behind, far })
    }

    fn host(&self) -> &Host {
        self.device.host()
    }

    fn uplink(&self, interface: &str) -> anyhow::Result<&Uplink> {
        Ok(self.host().uplink(interface)?)
    }

    fn near(&self) -> End<'_> {
        End { netns: self.host().netns(), address: self.inner }
    }

    fn far(&self) -> End<'_> {
        End { netns: self.behind.netns(), address: self.far.into() }
    }

    async fn streams(&self) -> anyhow::Result<Streams> {
        for uplink in self.host().uplinks() {
            uplink.nat()?.meter().await?;
        }
        let streams = Streams::begin(self.near(), self.far()).await?;
        streams.flow(SOON).await?;
        Ok(streams)
    }

    fn transfer(&self) -> anyhow::Result<Transfer> {
        Ok(Transfer::begin(self.near(), self.far())?)
    }

    /// The round trip through the tunnel.
    async fn round_trip(&self) -> anyhow::Result<Duration> {
        let said = self.host().exec("ping", ["-n", "-c", "1", "-W", "2", &self.far.to_string()]).await?;
        ping::round_trip(&said).context(said)
    }

    /// Waits until the streams go by this uplink, by what its NAT counts.
    async fn is_carried_by(&self, uplink: &Uplink, limit: Duration) -> Outcome {
        let nat = uplink.nat()?;
        // Before the first look nothing counts.
        let last = AtomicU64::new(u64::MAX);
        let what = format!("the streams to go by {}", uplink.interface());
        wait::until(&what, limit, || async {
            let count = nat.count().await.map_err(|error| error.to_string())?;
            let more = count.saturating_sub(last.swap(count, Ordering::SeqCst));
            if more >= 20 { Ok(()) } else { Err(format!("{more} packets since the last look")) }
        })
        .await?;
        Ok(())
    }

    /// Waits until both streams go by this uplink after a switch, and what follows from it is over. Yields the time in which all of
    /// that was.
    async fn settles_on(
        &self,
        uplink: &Uplink,
        streams: &Streams,
        since: Moment,
    ) -> anyhow::Result<Range<Moment>> {
        self.is_carried_by(uplink, PATIENCE).await?;
        streams.flow(SOON).await?;
        // What an agent does late is seen as well.
        sleep(SETTLED).await;
        Ok(since..Moment::now())
    }

    async fn identity(&self) -> anyhow::Result<Identity> {
        let status = self.device.status().await?;
        let client = self.client("to be there", PATIENCE, |_| true).await?;
        let log = self.device.process().context("it is not up")?.log();
        Ok(Identity {
            addresses: status.addresses,
            uid: client.metadata.uid,
            generation: client.metadata.generation,
            enrolled: log.matches("enrolled as").count(),
        })
    }

    async fn client(
        &self,
        what: &str,
        limit: Duration,
        seen: impl Fn(&VPNClient) -> bool,
    ) -> anyhow::Result<VPNClient> {
        Ok(self.vpn.client(self.device.hostname(), what, limit, seen).await?)
    }

    async fn client_in(&self, phase: ClientPhase, limit: Duration) -> Outcome {
        self.vpn.client_in(self.device.hostname(), phase, limit).await?;
        Ok(())
    }

    async fn leave(mut self) -> Outcome {
        self.device.down().await?;
        Ok(self.vpn.delete().await?)
    }
}

fn inner(status: &Status) -> anyhow::Result<IpAddr> {
    let addresses = status.addresses.iter().filter_map(|net| net.split('/').next()?.parse().ok());
    addresses.into_iter().find(IpAddr::is_ipv4).with_context(|| format!("no address: {status:?}"))
}

/// Outages of several trials, each way.
struct Outages {
    row: &'static str,
    bound: Duration,
    each: BothWays<Vec<Outage>>,
}

/// The longest time in which nothing came, after a switch.
#[derive(Clone, Copy)]
struct Outage {
    /// It began so long after the switch.
    after: Duration,
    lasted: Duration,
}

impl Outage {
    fn of(record: &Record, window: &Range<Moment>) -> Self {
        let Gap { began, lasted } = record.passage(window.clone()).longest;
        Self { after: began.since(window.start), lasted }
    }

    fn tell(&self) -> String {
        format!("{:?} from {:?} on", self.lasted, self.after)
    }
}

impl Outages {
    fn new(row: &'static str, bound: Duration) -> Self {
        Self { row, bound, each: BothWays::default() }
    }

    /// The longest gap of each window.
    fn add(&mut self, records: &BothWays<Record>, windows: &[Range<Moment>]) {
        self.each.up.extend(windows.iter().map(|window| Outage::of(&records.up, window)));
        self.each.down.extend(windows.iter().map(|window| Outage::of(&records.down, window)));
    }

    /// Prints them; they may not be above the bound.
    fn must_be_bounded(self) -> Outcome {
        let Self { row, bound, each } = self;
        for (way, outages) in each.named() {
            ensure!(!outages.is_empty(), "{row}: nothing was tried");
            let spread = Spread::of(outages.iter().map(|outage| outage.lasted));
            println!("mobility {row}, {way}: {spread}");
            let is_bounded = spread.median() <= bound && spread.worst() <= bound + contention();
            let all: Vec<_> = outages.iter().map(Outage::tell).collect();
            ensure!(is_bounded, "{row}, {way}, of at most {bound:?}: {all:?}");
        }
        Ok(())
    }
}

/// From one network to none and back.
const STEPS: [ClientPhase; 4] =
    [ClientPhase::Connected, ClientPhase::Dormant, ClientPhase::WaitingToReconnect, ClientPhase::Connected];

/// Whether these steps are among what was seen, in this order.
fn goes_through(seen: &[ClientPhase], steps: &[ClientPhase]) -> bool {
    let mut seen = seen.iter();
    steps.iter().all(|step| seen.any(|phase| phase == step))
}

/// Prints the longest time in which a transfer stood still.
fn tell_stalls(row: &str, came: &BothWays<Transferred>, window: Range<Moment>) {
    for (way, came) in came.named() {
        let stall = longest_stall(&came.came, window.clone());
        println!("mobility {row}, tcp {way}: {} bytes, longest stall {:?}", came.bytes, stall.lasted);
    }
}

async fn connected_dormant_waiting_and_connected_again_are_seen_on_both_sides(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-phases", "[10.151.0.0/24]", &[wired()]).await?;
    let before = roamer.identity().await?;
    let phases = Phases::watch(&roamer.vpn);
    roamer.client_in(ClientPhase::Connected, SOON).await?;
    let told = phases_told(&roamer.device)?.len();
    let (uplink, nat) = (roamer.uplink(WIRED)?, roamer.uplink(WIRED)?.nat()?);
    uplink.unplug().await?;
    roamer.device.in_phase("Dormant", NEWS).await?;
    // Nobody can tell it: it is missed.
    roamer.client_in(ClientPhase::Dormant, INTERVAL + NOTICED + NEWS).await?;
    // It is heard, and hears nothing.
    nat.set_deaf(true).await?;
    uplink.plug_in().await?;
    roamer.device.in_phase("WaitingToReconnect", NEWS).await?;
    roamer.client_in(ClientPhase::WaitingToReconnect, SOON).await?;
    nat.set_deaf(false).await?;
    roamer.device.connected(SOON).await?;
    roamer.client_in(ClientPhase::Connected, SOON).await?;
    let seen = phases.changes();
    ensure!(goes_through(&seen, &STEPS), "the operator saw {seen:?}");
    let all = phases_told(&roamer.device)?;
    let all = all.get(told..).unwrap_or_default();
    let says = |line: &String, phase: &str| line.contains(&format!("phase={phase}"));
    let told: Vec<_> = ["Dormant", "WaitingToReconnect", "Connected"]
        .iter()
        .map(|phase| all.iter().position(|line| says(line, phase)))
        .collect();
    ensure!(told == [Some(0), Some(1), Some(2)] && all.len() == 3, "the client told {all:#?}");
    ensure!(roamer.identity().await? == before, "{before:?}");
    drop(phases);
    roamer.leave().await
}

async fn an_interface_switch_reprovisions_nothing_and_a_tcp_transfer_survives(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-switch", "[10.151.1.0/24]", &[wired(), wireless()]).await?;
    let (wired, wireless) = (roamer.uplink(WIRED)?, roamer.uplink(WIRELESS)?);
    let before = roamer.identity().await?;
    let mut away = Outages::new("interface switch, to the other one", roamer.round_trip().await? + SWITCH);
    let mut home = Outages::new("interface switch, back", away.bound);
    let (streams, transfer) = (roamer.streams().await?, roamer.transfer()?);
    roamer.is_carried_by(wired, SOON).await?;
    let begun = Moment::now();
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for _ in 0..trials() {
        let moment = wired.unplug().await?;
        there.push(roamer.settles_on(wireless, &streams, moment).await?);
        let moment = wired.plug_in().await?;
        back.push(roamer.settles_on(wired, &streams, moment).await?);
    }
    let ended = Moment::now();
    let (records, came) = (streams.end().await?, transfer.end().await.context("the transfer")?);
    away.add(&records, &there);
    home.add(&records, &back);
    tell_stalls("interface switch", &came, begun..ended);
    for (way, record) in records.named() {
        println!("mobility interface switch, {way}: {}", record.passage(begun..ended));
    }
    ensure!(roamer.identity().await? == before, "{before:?}");
    away.must_be_bounded()?;
    home.must_be_bounded()?;
    roamer.leave().await
}

/// Unplugs one uplink, and plugs another in once nothing passes any more, again and again; yields the times from just before
/// routes came to be.
async fn break_before_make(
    roamer: &Roamer<'_>,
    streams: &Streams,
    mut uplinks: [&Uplink; 2],
) -> anyhow::Result<Vec<Range<Moment>>> {
    let mut windows = Vec::new();
    for trial in 0..trials() {
        let [from, to] = uplinks;
        from.unplug().await?;
        streams.are_silent_for(Duration::from_millis(200), SOON).await?;
        // So that it comes at any time of whatever is repeated.
        sleep(Duration::from_millis(u64::from(trial % 10) * 137)).await;
        let moment = to.plug_in().await?;
        windows.push(roamer.settles_on(to, streams, moment).await?);
        uplinks = [to, from];
    }
    Ok(windows)
}

async fn break_before_make_costs_a_round_trip_once_the_route_exists(lab: &Lab) -> Outcome {
    const BOUND: Duration = Duration::from_millis(50);
    let (_alone, _) = product::alone(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-break", "[10.151.2.0/24]", &[wired(), wireless()]).await?;
    let (wired, wireless) = (roamer.uplink(WIRED)?, roamer.uplink(WIRELESS)?);
    let mut outages = Outages::new("break before make", roamer.round_trip().await? + BOUND);
    wireless.unplug().await?;
    let begun = Moment::now();
    let (streams, transfer) = (roamer.streams().await?, roamer.transfer()?);
    let windows = break_before_make(&roamer, &streams, [wired, wireless]).await?;
    let ended = Moment::now();
    let (records, came) = (streams.end().await?, transfer.end().await.context("the transfer")?);
    outages.add(&records, &windows);
    tell_stalls("break before make", &came, begun..ended);
    outages.must_be_bounded()?;
    roamer.leave().await
}

async fn without_a_network_it_is_dormant_at_once_and_back_by_the_event(lab: &Lab) -> Outcome {
    const AT_ONCE: Duration = Duration::from_secs(1);
    let (_alone, _) = product::alone(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-none", "[10.151.3.0/24]", &[wired()]).await?;
    let uplink = roamer.uplink(WIRED)?;
    let before = roamer.identity().await?;
    let mut outages = Outages::new("no network, then one", roamer.round_trip().await? + SWITCH);
    let streams = roamer.streams().await?;
    let mut windows = Vec::new();
    for trial in 0..trials() {
        uplink.unplug().await?;
        roamer.device.in_phase("Dormant", AT_ONCE).await?;
        // Long enough that whatever is repeated is repeated seldom.
        sleep(Duration::from_secs(3) + Duration::from_millis(u64::from(trial % 10) * 731)).await;
        roamer.device.in_phase("Dormant", AT_ONCE).await?;
        let moment = uplink.plug_in().await?;
        windows.push(roamer.settles_on(uplink, &streams, moment).await?);
        roamer.device.connected(SOON).await?;
    }
    let records = streams.end().await?;
    outages.add(&records, &windows);
    ensure!(roamer.identity().await? == before, "{before:?}");
    outages.must_be_bounded()?;
    roamer.leave().await
}

async fn retries_into_silence_are_jittered_and_regular(lab: &Lab) -> Outcome {
    /// Longer than any pause between two tries.
    const SPAN: Duration = Duration::from_mins(1);
    const MOST: Duration = Duration::from_secs(8);
    let _product = product::installed(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-silence", "[10.151.4.0/24]", &[wired()]).await?;
    let nat = roamer.uplink(WIRED)?.nat()?;
    let capture = Capture::begin_inside(nat).await?;
    nat.set_faults(Faults::SILENCE).await?;
    roamer.device.in_phase("WaitingToReconnect", INTERVAL + NOTICED).await?;
    let seen = capture.packets()?.len();
    sleep(SPAN).await;
    let packets = capture.packets()?;
    let times: Vec<_> = packets.iter().skip(seen).filter(|it| it.kind == Kind::Udp).map(|it| it.at).collect();
    let pauses: Vec<_> =
        times.iter().zip(times.iter().skip(1)).map(|(one, next)| next.saturating_sub(*one)).collect();
    println!("mobility retries into silence: {pauses:?}");
    ensure!(pauses.len() >= 4 && pauses.iter().all(|pause| *pause <= MOST), "{pauses:?}");
    let alike = |one: &Duration, other: &Duration| one.abs_diff(*other) < Duration::from_millis(2);
    let longest = pauses.iter().max().context("no pause")?;
    let long: Vec<_> = pauses.iter().filter(|pause| **pause * 2 > *longest).collect();
    ensure!(long.iter().zip(long.iter().skip(1)).any(|(one, next)| !alike(one, next)), "{long:?}");
    nat.set_faults(Faults::NONE).await?;
    roamer.device.connected(MOST + SOON).await?;
    roamer.leave().await
}

async fn ipv4_to_ipv6_and_back_keeps_a_tcp_transfer(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let wirings = [wired(), wireless().families(Families::V6)];
    let roamer = Roamer::connect(lab, "mobile-families", "[10.151.5.0/24]", &wirings).await?;
    let (v4, v6) = (roamer.uplink(WIRED)?, roamer.uplink(WIRELESS)?);
    let before = roamer.identity().await?;
    v6.unplug().await?;
    let mut outages = Outages::new("IPv4 to IPv6 and back", roamer.round_trip().await? + SWITCH);
    let begun = Moment::now();
    let (streams, transfer) = (roamer.streams().await?, roamer.transfer()?);
    let mut windows = Vec::new();
    let mut uplinks = [v4, v6];
    for _ in 0..2 * trials().div_ceil(2) {
        let [from, to] = uplinks;
        from.unplug().await?;
        streams.are_silent_for(Duration::from_millis(200), SOON).await?;
        let moment = to.plug_in().await?;
        windows.push(roamer.settles_on(to, &streams, moment).await?);
        let is_v6 = to.interface() == WIRELESS;
        let moved = |client: &VPNClient| {
            let endpoint = client.status.as_ref().and_then(|status| status.endpoint.as_ref());
            endpoint.is_some_and(|endpoint| endpoint.starts_with('[') == is_v6)
        };
        roamer.client("to be seen by its other family", SOON, moved).await?;
        roamer.device.connected(NEWS).await?;
        uplinks = [to, from];
    }
    let ended = Moment::now();
    let (records, came) = (streams.end().await?, transfer.end().await.context("the transfer")?);
    outages.add(&records, &windows);
    tell_stalls("IPv4 to IPv6 and back", &came, begun..ended);
    ensure!(roamer.identity().await? == before, "{before:?}");
    outages.must_be_bounded()?;
    roamer.leave().await
}

async fn ten_flaps_a_minute_cost_a_bounded_number_of_packets(lab: &Lab) -> Outcome {
    const FLAPS: u32 = 10;
    /// A handshake, a session over TLS that is made anew, what is asked and told by both: 12 are usual.
    const EACH: u64 = 30;
    let _product = product::installed(lab).await?;
    let roamer = Roamer::connect(lab, "mobile-flaps", "[10.151.6.0/24]", &[wired()]).await?;
    let uplink = roamer.uplink(WIRED)?;
    let before = roamer.identity().await?;
    uplink.nat()?.meter().await?;
    for _ in 0..FLAPS {
        uplink.unplug().await?;
        // The pace is what is tested.
        sleep(Duration::from_secs(3)).await;
        uplink.plug_in().await?;
        sleep(Duration::from_secs(3)).await;
    }
    let packets = uplink.nat()?.count().await?;
    println!("mobility ten flaps: {packets} packets to the network");
    roamer.device.connected(SOON).await?;
    roamer.device.reaches(FAR.into(), SOON).await?;
    ensure!(packets > 0 && packets <= EACH * u64::from(FLAPS), "{packets} packets");
    ensure!(roamer.identity().await? == before, "{before:?}");
    roamer.leave().await
}

async fn two_tunnels_of_one_machine_move_together(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let one = Roamer::connect(lab, "mobile-one", "[10.151.7.0/24]", &[wired(), wireless()]).await?;
    let beside = one.device.beside("vpn1").await?;
    let other = Roamer::join(lab, "mobile-other", "[10.151.8.0/24]", beside, OTHER_FAR).await?;
    let before = [one.identity().await?, other.identity().await?];
    let bound = one.round_trip().await? + SWITCH;
    let [mut first, mut second] =
        ["two tunnels, the first", "two tunnels, the second"].map(|row| Outages::new(row, bound));
    let streams = [one.streams().await?, other.streams().await?];
    let (wired, wireless) = (one.uplink(WIRED)?, one.uplink(WIRELESS)?);
    let mut windows = Vec::new();
    for _ in 0..trials() {
        for uplink in [wireless, wired] {
            let moment =
                if uplink.interface() == WIRED { wired.plug_in().await? } else { wired.unplug().await? };
            one.settles_on(uplink, &streams[0], moment).await?;
            windows.push(other.settles_on(uplink, &streams[1], moment).await?);
        }
    }
    for (streams, outages) in streams.into_iter().zip([&mut first, &mut second]) {
        outages.add(&streams.end().await?, &windows);
    }
    ensure!([one.identity().await?, other.identity().await?] == before, "{before:?}");
    first.must_be_bounded()?;
    second.must_be_bounded()?;
    other.leave().await?;
    one.leave().await
}

async fn a_path_that_is_slow_or_lossy_is_not_called_dead(lab: &Lab) -> Outcome {
    const SPAN: Duration = Duration::from_secs(15);
    let (_alone, _) = product::alone(lab).await?;
    let mut quick = Profile::new("quick", 30.0, 120.0);
    quick.rtt_ms = 2.0;
    let wirings = [Wiring::wired(UserspaceProfile::new(quick)), wireless()];
    let roamer = Roamer::connect(lab, "mobile-slow", "[10.151.9.0/24]", &wirings).await?;
    let (wired, wireless) = (roamer.uplink(WIRED)?, roamer.uplink(WIRELESS)?);
    let streams = roamer.streams().await?;
    roamer.is_carried_by(wired, SOON).await?;
    let phases = Phases::watch(&roamer.vpn);
    roamer.client_in(ClientPhase::Connected, SOON).await?;
    let told = phases_told(&roamer.device)?.len();
    let before = wireless.nat()?.count().await?;
    let mut spans = Vec::new();
    for (what, loss, round_trip) in [
        ("5 % lost", Loss::percent(5), Duration::from_millis(2)),
        ("500 ms of delay", Loss::NONE, Duration::from_millis(500)),
        ("as before", Loss::NONE, Duration::from_millis(2)),
    ] {
        wired.nat()?.set_faults(Faults::each_way(loss)).await?;
        wired.nat()?.set_round_trip(round_trip)?;
        let begun = Moment::now();
        sleep(SPAN).await;
        spans.push((what, begun..Moment::now()));
    }
    let records = streams.end().await?;
    for (what, span) in &spans {
        for (way, record) in records.named() {
            println!("mobility {what}, {way}: {}", record.passage(span.clone()));
        }
    }
    let lossy = spans.first().map(|(_, span)| records.up.passage(span.clone())).context("no span")?;
    ensure!(lossy.lost * 100 > lossy.sent, "nothing was lost: {lossy}");
    let log = phases_told(&roamer.device)?;
    ensure!(log.len() == told, "its phases: {log:#?}");
    phases.must_all_be_connected()?;
    let strayed = wireless.nat()?.count().await? - before;
    ensure!(strayed < 100, "{strayed} packets went by the other uplink");
    drop(phases);
    roamer.leave().await
}
