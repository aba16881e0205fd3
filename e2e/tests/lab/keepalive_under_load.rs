//! Tunnels under load stay up: data counts as a sign of life, keepalives get through it, and are spared while it flows.
//!
//! Each direction is saturated for 30 s, which is enough to pass the time at which keepalives that wait behind data
//! tear tunnels down (60 to 80 s in all). `make soak` takes ten minutes for each: `PINHOLE_SOAK_SECONDS` says how long.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    host::Host,
    nat::{
        Nat, NatProfile, UserspaceProfile,
        model::{Profile, Refresh},
        userspace::Event,
    },
    pods::{self, HiddenNetwork},
    process::{Command, Process},
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use tokio::time::{Instant, sleep_until};

use crate::{
    Outcome,
    phases::{Phases, phases_told},
    product,
    stock::{configuration, wg_up},
    tests,
};

tests![
    saturating_iperf3_up_down_and_both_ways_disconnects_nobody,
    with_every_keepalive_answer_dropped_under_load_nothing_is_torn_down,
    no_keepalives_are_sent_while_data_flows_both_ways,
    a_stream_to_the_client_alone_stays_up_where_only_outbound_packets_refresh,
    a_peer_that_never_answers_keepalives_is_served_all_the_same,
    control_packets_do_not_queue_behind_data,
];

/// Where iperf3 serves: the one host of a network behind the gateway.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const ROUTES: &str = "routes: [198.51.100.0/24]";
const ANY: &str = "routes: [198.51.100.0/24]\n  enrolment: { tokens: [{ name: any }] }";
/// Keepalives as often as they can be.
const EAGER: &str = "keepalive: { mode: Fixed, interval: 5s }";
/// More than any throughput that would not saturate anything.
const TRICKLE: f64 = 5e6;

/// How long each direction is saturated.
pub(crate) fn soak() -> Duration {
    let wanted = std::env::var("PINHOLE_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(wanted.unwrap_or(30))
}

/// A home router whose bindings live for seconds: nothing but traffic keeps them.
fn forgetful() -> NatProfile {
    NatProfile::home().timeouts(Duration::from_secs(8), Duration::from_secs(16))
}

/// Which way data flows.
#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
    Both,
}

impl Way {
    const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Both];

    fn argument(self) -> Option<&'static str> {
        match self {
            Self::Up => None,
            Self::Down => Some("--reverse"),
            Self::Both => Some("--bidir"),
        }
    }
}

/// An iperf3 server behind the gateway.
struct Load {
    gateway: IpAddr,
    _server: Process,
    _network: HiddenNetwork,
}

impl Load {
    async fn serve(vpn: &Vpn<'_>) -> anyhow::Result<Self> {
        let (namespace, name) = (vpn.namespace(), format!("{}-server", vpn.namespace()));
        let network = HiddenNetwork::behind(vpn.lab(), namespace, "edge-0", &name, SERVER).await?;
        let command = Command::new("iperf3").args(["--server", "--forceflush"]);
        let server = network.spawn("iperf3", &command).await?;
        server.wait_for_line("listening", Duration::from_secs(10)).await?;
        let gateway = vpn.gateway_address("staff").await?;
        Ok(Self { gateway, _server: server, _network: network })
    }

    /// Sends for so long; yields what iperf3 tells.
    async fn run(
        &self,
        host: &Host,
        way: Way,
        span: Duration,
        more: &[&str],
    ) -> anyhow::Result<serde_json::Value> {
        let command = host.command("iperf3").args(["--json", "--client", &SERVER.to_string()]);
        let command = command.args(["--time", &span.as_secs().to_string()]).args(way.argument()).args(more);
        let limit = span + Duration::from_secs(30);
        let text = tokio::time::timeout(limit, command.run()).await.context("iperf3 hangs")??;
        serde_json::from_str(&text).with_context(|| format!("iperf3 said {text}"))
    }

    /// As much as goes through, by TCP; yields the bits per second that arrived, of each direction.
    async fn saturate(&self, host: &Host, way: Way, span: Duration) -> anyhow::Result<Vec<f64>> {
        let told = self.run(host, way, span, &[]).await?;
        let sums = ["sum_received", "sum_received_bidir_reverse"];
        let rates: Vec<_> =
            sums.iter().filter_map(|sum| told["end"][sum]["bits_per_second"].as_f64()).collect();
        let wanted = if matches!(way, Way::Both) { 2 } else { 1 };
        ensure!(rates.len() == wanted && rates.iter().all(|rate| *rate > TRICKLE), "{way:?}: {rates:?}");
        println!("{} {way:?} for {span:?}: {} Mbit/s", host.name(), megabits(&rates));
        Ok(rates)
    }
}

fn megabits(rates: &[f64]) -> String {
    rates.iter().map(|rate| format!("{:.0}", rate / 1e6)).collect::<Vec<_>>().join(" and ")
}

/// A client that is connected, and every disconnect from then on.
struct Client {
    device: Device,
    /// Phases that its log tells of until then.
    told: usize,
    phases: Phases,
}

impl Client {
    async fn connect(vpn: &Vpn<'_>, host: Host) -> anyhow::Result<Self> {
        let join = vpn.join("staff", "any").await?;
        let mut device = Device::new(host).await?;
        device.start(&join, &["--log", "pinhole_agent=info"]).await?;
        device.connected(PATIENCE).await?;
        vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
        wait::until("beats to be answered", PATIENCE, || async {
            let status = device.status().await.map_err(|error| error.to_string())?;
            if status.keepalive.beats { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await?;
        let told = phases_told(&device)?.len();
        Ok(Self { phases: Phases::watch(vpn), told, device })
    }

    fn host(&self) -> &Host {
        self.device.host()
    }

    fn nat(&self) -> anyhow::Result<&Nat> {
        self.host().nat().context("no NAT")
    }

    async fn must_have_stayed_connected(&self) -> Outcome {
        let told = phases_told(&self.device)?;
        ensure!(told.len() == self.told, "its phases: {told:#?}");
        let status = self.device.status().await?;
        ensure!(status.phase == "Connected", "{status:?}");
        self.phases.must_all_be_connected()
    }

    /// Sent and received.
    async fn bytes(&self) -> anyhow::Result<[u64; 2]> {
        let status = self.device.status().await?;
        Ok([status.tx_bytes, status.rx_bytes])
    }
}

/// Beats on their way through a netfilter NAT: counted, and their answers dropped where that is wanted.
struct Tap<'a> {
    nat: &'a Nat,
}

const TAP: &str = "inet load";

impl<'a> Tap<'a> {
    /// Beats from the client's own port, so not those of experiments. A datagram's first byte follows the eight of
    /// UDP's header.
    async fn install(nat: &'a Nat, port: u16) -> anyhow::Result<Self> {
        let rules = format!(
            "table {TAP} {{
  counter beats {{ }}
  counter dropped {{ }}
  chain answers {{ }}
  chain forward {{
    type filter hook forward priority filter - 10;
    iifname \"lan0\" udp sport {port} @th,64,8 >= 0x80 counter name beats
    iifname \"wan0\" meta l4proto udp @th,64,8 >= 0x80 jump answers
  }}
}}
"
        );
        let tap = Self { nat };
        tap.nft(&rules).await?;
        Ok(tap)
    }

    async fn drop_answers(&self) -> Outcome {
        self.nft(&format!("add rule {TAP} answers counter name dropped drop\n")).await
    }

    async fn let_answers_pass(&self) -> Outcome {
        self.nft(&format!("flush chain {TAP} answers\n")).await
    }

    async fn count(&self, counter: &str) -> anyhow::Result<u64> {
        let arguments = ["-j", "list", "counter", "inet", "load", counter];
        let text = self.nat.netns().command("nft").args(arguments).run().await?;
        let told: serde_json::Value = serde_json::from_str(&text)?;
        let objects = told["nftables"].as_array().context("no list")?;
        let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.with_context(|| format!("no count in {text}"))
    }

    async fn nft(&self, rules: &str) -> Outcome {
        self.nat.netns().command("nft").args(["-f", "-"]).stdin(rules).run().await?;
        Ok(())
    }
}

async fn saturating_iperf3_up_down_and_both_ways_disconnects_nobody(lab: &Lab) -> Outcome {
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "load-saturated", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.97.0.0/24]", ANY).await?;
    let mut client = Client::connect(&vpn, lab.nat_host("load-saturated", forgetful()).await?).await?;
    let load = Load::serve(&vpn).await?;
    for way in Way::ALL {
        load.saturate(client.host(), way, soak()).await?;
        client.must_have_stayed_connected().await.with_context(|| format!("{way:?}"))?;
    }
    client.device.reaches(load.gateway, Duration::from_secs(3)).await?;
    client.device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn with_every_keepalive_answer_dropped_under_load_nothing_is_torn_down(lab: &Lab) -> Outcome {
    // Keepalives are given up after less.
    const SPAN: Duration = Duration::from_secs(20);
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "load-unanswered", Exposure::NodePort, EAGER).await?;
    vpn.pool("staff", "[10.97.1.0/24]", ANY).await?;
    let mut client = Client::connect(&vpn, lab.nat_host("load-unanswered", forgetful()).await?).await?;
    let load = Load::serve(&vpn).await?;
    let port = client.device.status().await?.local_port;
    let tap = Tap::install(client.nat()?, port).await?;
    for way in Way::ALL {
        let before = tap.count("dropped").await?;
        tap.drop_answers().await?;
        // One is asked for and not answered before there is any load.
        wait::until("an answer to be dropped", Duration::from_secs(10), || async {
            let dropped = tap.count("dropped").await.map_err(|error| error.to_string())?;
            if dropped > before { Ok(()) } else { Err(format!("{dropped} were")) }
        })
        .await?;
        let end = Instant::now() + SPAN;
        let run = load.saturate(client.host(), way, SPAN + Duration::from_secs(3));
        let pass = async {
            sleep_until(end).await;
            client.must_have_stayed_connected().await?;
            tap.let_answers_pass().await
        };
        let (run, pass) = tokio::join!(run, pass);
        pass.with_context(|| format!("{way:?}"))?;
        run?;
        client.must_have_stayed_connected().await.with_context(|| format!("after {way:?}"))?;
    }
    client.device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn no_keepalives_are_sent_while_data_flows_both_ways(lab: &Lab) -> Outcome {
    /// Three keepalives would be due.
    const SPAN: Duration = Duration::from_secs(18);
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "load-spared", Exposure::NodePort, EAGER).await?;
    vpn.pool("staff", "[10.97.2.0/24]", ANY).await?;
    let mut client = Client::connect(&vpn, lab.nat_host("load-spared", forgetful()).await?).await?;
    let load = Load::serve(&vpn).await?;
    let port = client.device.status().await?.local_port;
    let tap = Tap::install(client.nat()?, port).await?;
    wait::until("three keepalives in the silence", Duration::from_secs(25), || async {
        let beats = tap.count("beats").await.map_err(|error| error.to_string())?;
        if beats >= 3 { Ok(()) } else { Err(format!("{beats} were sent")) }
    })
    .await?;
    for way in Way::ALL {
        let before = client.bytes().await?;
        let run = load.run(client.host(), way, SPAN + Duration::from_secs(4), &["--bitrate", "4M"]);
        let count = async {
            wait::until("data to flow", PATIENCE, || async {
                let bytes = client.bytes().await.map_err(|error| error.to_string())?;
                // Acknowledgements of merged segments are few.
                let flows = bytes.iter().zip(before).all(|(now, before)| *now > before + 1000);
                if flows { Ok(()) } else { Err(format!("{before:?}, then {bytes:?} bytes")) }
            })
            .await?;
            // What was under way when it began may still be asked once more.
            let flows = Instant::now();
            sleep_until(flows + Duration::from_secs(3)).await;
            let first = tap.count("beats").await?;
            sleep_until(flows + SPAN).await;
            anyhow::Ok(tap.count("beats").await? - first)
        };
        let (run, beats) = tokio::join!(run, count);
        run?;
        let beats = beats?;
        ensure!(beats == 0, "{beats} keepalives in {SPAN:?} of data {way:?}");
        client.must_have_stayed_connected().await?;
    }
    client.device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_stream_to_the_client_alone_stays_up_where_only_outbound_packets_refresh(lab: &Lab) -> Outcome {
    const SPAN: Duration = Duration::from_secs(45);
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "load-inbound", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.97.3.0/24]", ANY).await?;
    // Less than the ten seconds after which WireGuard itself says that it still hears.
    let mut nat = Profile::new("outbound-only", 7.0, 7.0);
    nat.rtt_ms = 10.0;
    nat.refresh = Refresh { outbound: true, inbound: false };
    let host = lab.nat_host("load-inbound", UserspaceProfile::new(nat)).await?;
    let mut client = Client::connect(&vpn, host).await?;
    let load = Load::serve(&vpn).await?;
    let told =
        load.run(client.host(), Way::Down, SPAN, &["--udp", "--bitrate", "2M", "--length", "1200"]).await?;
    let lost = told["end"]["sum"]["lost_percent"].as_f64().context("no loss was counted")?;
    ensure!(lost < 1.0, "{lost} % of the stream was lost");
    client.must_have_stayed_connected().await?;
    let IpAddr::V4(address) = IpAddr::from(client.host().address()) else { bail!("no IPv4") };
    let tunnel = SocketAddrV4::new(address, client.device.status().await?.local_port);
    let oracle = client.nat()?.oracle()?;
    let expired = oracle.of(tunnel).filter(|entry| matches!(entry.event, Event::Expired { .. })).count();
    ensure!(expired == 0, "the binding was lost {expired} times: {}", oracle.json_lines());
    println!("load-inbound: {lost:.3} % of a stream of {SPAN:?} was lost");
    client.device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_peer_that_never_answers_keepalives_is_served_all_the_same(lab: &Lab) -> Outcome {
    const SPAN: Duration = Duration::from_secs(10);
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "load-stock", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.97.4.0/24]", ROUTES).await?;
    // One-way, and so below the lifetime of a binding that never sees an answer.
    vpn.apply("kind: VPNClient\nmetadata: { name: router, namespace: load-stock }\nspec: { poolRef: { name: staff }, keepalive: { mode: Fixed, interval: 5s } }")
        .await?;
    let config = configuration(&vpn, "router").await?;
    let host = lab.nat_host("load-stock", forgetful()).await?;
    let process = wg_up(lab, &host, &config).await?;
    let gateway = vpn.gateway_address("staff").await?;
    wait::until("the gateway to answer", PATIENCE, || host.ping(gateway)).await?;
    let load = Load::serve(&vpn).await?;
    let client = vpn.client_in("router", ClientPhase::Connected, PATIENCE).await?;
    let address = client.status.and_then(|status| status.addresses.first().copied()).context("no address")?;
    let phases = Phases::watch(&vpn);
    for way in Way::ALL {
        load.saturate(&host, way, SPAN).await?;
    }
    // Longer than any binding lives here.
    let silence = Instant::now();
    sleep_until(silence + Duration::from_secs(25)).await;
    let ping = pods::netns(lab, vpn.namespace(), "edge-0")?;
    let ping = ping.command("ping").args(["-n", "-c", "1", "-W", "2", &address.to_string()]);
    ping.run().await.context("the binding was lost in silence")?;
    phases.must_all_be_connected()?;
    process.kill().await?;
    drop(phases);
    vpn.delete().await?;
    Ok(())
}

async fn control_packets_do_not_queue_behind_data(lab: &Lab) -> Outcome {
    const SPAN: Duration = Duration::from_secs(40);
    const LIMIT: f64 = 250.0;
    let (_alone, _) = product::alone(lab).await?;
    let vpn = Vpn::declare(lab, "load-control", Exposure::NodePort, EAGER).await?;
    vpn.pool("staff", "[10.97.5.0/24]", ANY).await?;
    let mut client = Client::connect(&vpn, lab.nat_host("load-control", forgetful()).await?).await?;
    let load = Load::serve(&vpn).await?;
    for way in [Way::Up, Way::Down] {
        // One-way, so that keepalives go on, and more than goes through.
        let flood = ["--udp", "--bitrate", "0", "--length", "1200"];
        let run = load.run(client.host(), way, SPAN, &flood);
        let (run, trips) = tokio::join!(run, round_trips(&client.device, SPAN));
        let (run, mut trips) = (run?, trips?);
        let rate = run["end"]["sum"]["bits_per_second"].as_f64().context("no rate")?;
        ensure!(rate > TRICKLE, "{way:?}: {rate} bit/s saturate nothing");
        trips.sort_by(f64::total_cmp);
        ensure!(trips.len() >= 5, "{way:?}: only {} round trips", trips.len());
        let slowest = percentile(&trips, 0.99);
        println!(
            "load-control {way:?} at {} Mbit/s: {} round trips, median {:.1} ms, p99 {slowest:.1} ms",
            megabits(&[rate]),
            trips.len(),
            percentile(&trips, 0.5)
        );
        ensure!(slowest < LIMIT, "{way:?}: {trips:?} ms");
        client.must_have_stayed_connected().await.with_context(|| format!("{way:?}"))?;
    }
    client.device.down().await?;
    vpn.delete().await?;
    Ok(())
}

/// The round trips of keepalives in this time, in milliseconds.
async fn round_trips(device: &Device, span: Duration) -> anyhow::Result<Vec<f64>> {
    let begun = Instant::now();
    let mut trips: Vec<f64> = Vec::new();
    let mut last = device.status().await?.rtt_milliseconds;
    while begun.elapsed() < span {
        let rtt = device.status().await?.rtt_milliseconds;
        // They are told to more digits than two would share.
        if rtt != last {
            trips.extend(rtt);
            last = rtt;
        }
        sleep_until(Instant::now() + Duration::from_millis(250)).await;
    }
    Ok(trips)
}

/// By the nearest rank: of fewer than a hundred, the last percent is the greatest.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "few"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
