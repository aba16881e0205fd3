//! Many clients behind one NAT: the rows of that acceptance table, one test each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pinhole_crds::{ClientPhase, Finding, NatClass, PortAllocation, VPNClient};
use pinhole_e2e::{
    Lab,
    device::Device,
    nat::{Nat, NatProfile, Truth, UserspaceProfile, lab_profiles, model::Profile, userspace::Helper},
    pods,
    process::{Command, Process},
    setup::rust,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use tokio::task::JoinSet;

use crate::{Outcome, product, tests};

tests![
    row_1_2_and_50_clients_with_one_source_port_are_all_up_and_distinct_and_never_crossed,
    row_2_the_same_private_address_behind_two_nats,
    row_3_a_helper_that_rewrites_is_named_and_the_payload_of_others_is_intact,
    row_3_a_helper_that_lets_one_client_through_is_named_and_avoided_by_another_port,
    row_4_the_verdict_equals_the_oracle_and_without_a_nat_keepalives_cease,
    row_5_after_a_flush_50_clients_are_back_without_a_storm,
    row_6_one_command_lists_every_peer_behind_an_address_with_its_ports,
];

const ANY: &str = "enrolment: { tokens: [{ name: any }] }";
/// The source port of all.
const PORT: u16 = 51_820;
/// Clients that enrol together.
const WAVE: usize = 10;
/// How long a loss may go unnoticed beyond an interval.
const GIVE_UP: Duration = Duration::from_secs(8);

/// Clients behind one NAT, from one source port.
struct Crowd<'a> {
    vpn: Vpn<'a>,
    nat: Nat,
    devices: Vec<Device>,
    gateway: IpAddr,
}

impl<'a> Crowd<'a> {
    async fn gather(
        lab: &'a Lab,
        name: &str,
        cidr: &str,
        nat: NatProfile,
        count: usize,
    ) -> anyhow::Result<Self> {
        let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
        vpn.pool("staff", cidr, ANY).await?;
        let join = vpn.join("staff", "any").await?;
        let gateway = vpn.gateway_address("staff").await?;
        let nat = lab.nat(name, nat).await?;
        let mut devices: Vec<Device> = Vec::new();
        // In waves: fifty enrolments at once are another test's matter.
        while devices.len() < count {
            let wave = devices.len();
            for n in wave..count.min(wave + WAVE) {
                let mut device = Device::new(nat.host(&format!("{name}-{n}")).await?).await?;
                device.start(&join, &["--listen-port", &PORT.to_string()]).await?;
                devices.push(device);
            }
            for device in devices.iter().skip(wave) {
                device.connected(PATIENCE).await?;
            }
        }
        Ok(Self { vpn, nat, devices, gateway })
    }

    /// Inner addresses, in the order of the devices.
    async fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for device in &self.devices {
            let status = device.status().await?;
            let address = status.addresses.first().context("no address")?;
            addresses.push(address.split('/').next().unwrap_or_default().parse()?);
        }
        Ok(addresses)
    }

    /// The longest interval in force, as the devices know it: of a binding, or of a session slept on.
    async fn longest_interval(&self) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        for device in &self.devices {
            let interval = device.status().await?.keepalive.interval_seconds.unwrap_or_default();
            longest = longest.max(Duration::from_secs_f64(interval));
        }
        Ok(longest)
    }

    /// Where the gateway sees each, once it says that each is connected.
    async fn endpoints(&self) -> anyhow::Result<BTreeSet<SocketAddr>> {
        let mut endpoints = BTreeSet::new();
        for device in &self.devices {
            let client = self.vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
            let endpoint = client.status.and_then(|status| status.endpoint).context("no endpoint")?;
            endpoints.insert(endpoint.parse()?);
        }
        Ok(endpoints)
    }

    /// From within the gateway's pod, each answers under its own address and on a port of its own, and none on
    /// its neighbour's.
    async fn must_be_told_apart(&self, lab: &Lab) -> anyhow::Result<()> {
        let toolbox = rust::toolbox().await?;
        let port = |n: usize| 7000 + u16::try_from(n).unwrap_or_default();
        let mut servers: Vec<Process> = Vec::new();
        for (n, device) in self.devices.iter().enumerate() {
            let serve = Command::new(&toolbox).args(["tcp-echo", &port(n).to_string()]);
            servers.push(device.host().spawn("identity", &serve).await?);
        }
        let addresses = self.addresses().await?;
        for (n, address) in addresses.iter().enumerate() {
            let ask = |port: u16| {
                let to = format!("{address}:{port}");
                let toolbox = toolbox.clone();
                async move { pods::exec(lab, self.vpn.namespace(), "edge-0", &toolbox, &["connect", &to]).await }
            };
            wait::until(&format!("client {n} to answer"), PATIENCE, || ask(port(n))).await?;
            let neighbour = (n + 1) % addresses.len();
            ensure!(ask(port(neighbour)).await.is_err(), "client {neighbour} answers for client {n}");
        }
        for server in servers {
            server.kill().await?;
        }
        Ok(())
    }

    async fn leave(mut self) -> anyhow::Result<()> {
        for device in &mut self.devices {
            device.down().await?;
        }
        Ok(self.vpn.delete().await?)
    }
}

fn nat_of(client: &VPNClient) -> Option<&pinhole_crds::NatBehaviour> {
    client.status.as_ref()?.nat.as_ref()
}

async fn row_1_2_and_50_clients_with_one_source_port_are_all_up_and_distinct_and_never_crossed(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    for (name, cidr, count) in [("pair", "[10.110.0.0/24]", 2), ("fifty", "[10.111.0.0/24]", 50)] {
        let crowd = Crowd::gather(lab, name, cidr, NatProfile::home(), count).await?;
        let addresses: BTreeSet<_> = crowd.addresses().await?.into_iter().collect();
        ensure!(addresses.len() == count, "{} inner addresses", addresses.len());
        let endpoints = crowd.endpoints().await?;
        ensure!(endpoints.len() == count, "{} public ports", endpoints.len());
        let public = IpAddr::from(crowd.nat.address());
        ensure!(endpoints.iter().all(|endpoint| endpoint.ip() == public), "{endpoints:?}");
        for device in &crowd.devices {
            device.reaches(crowd.gateway, PATIENCE).await?;
        }
        crowd.must_be_told_apart(lab).await?;
        crowd.leave().await?;
    }
    Ok(())
}

async fn row_2_the_same_private_address_behind_two_nats(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "twins", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.112.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let (mut devices, mut private, mut public) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for name in ["twin-a", "twin-b"] {
        let host = lab.nat_host(name, NatProfile::home()).await?;
        private.insert(host.address());
        let mut device = Device::new(host).await?;
        device.start(&join, &["--listen-port", &PORT.to_string()]).await?;
        device.connected(PATIENCE).await?;
        devices.push(device);
    }
    ensure!(private.len() == 1, "the private addresses differ: {private:?}");
    for device in &devices {
        device.reaches(gateway, PATIENCE).await?;
        let client = vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
        let endpoint = client.status.and_then(|status| status.endpoint).context("no endpoint")?;
        let endpoint: SocketAddr = endpoint.parse()?;
        let nat = device.host().nat().context("no NAT")?.address();
        ensure!(endpoint.ip() == IpAddr::from(nat), "{endpoint} is not at {nat}");
        public.insert(endpoint);
    }
    ensure!(public.len() == 2, "{public:?}");
    for device in &mut devices {
        device.down().await?;
    }
    vpn.delete().await?;
    Ok(())
}

fn with_helper(helper: Helper) -> UserspaceProfile {
    let mut nat = Profile::new("helper", 30.0, 60.0);
    nat.rtt_ms = 4.0;
    UserspaceProfile::new(nat).helper(helper)
}

async fn row_3_a_helper_that_rewrites_is_named_and_the_payload_of_others_is_intact(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "rewritten", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.113.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let gateway = vpn.gateway_address("staff").await?;
    let meddler = with_helper(Helper::Rewrites { ports: BTreeSet::new() });
    let hosts = [
        (lab.nat_host("meddled", meddler).await?, Finding::True),
        (lab.nat_host("left-alone", NatProfile::home()).await?, Finding::False),
    ];
    for (host, expected) in hosts {
        let mut device = Device::new(host).await?;
        device.up(&join).await?;
        let name = device.host().name().to_owned();
        let client = vpn
            .client(&name, "to have a verdict", PATIENCE, |client| {
                nat_of(client).is_some_and(|nat| nat.helper_interference != Finding::Unknown)
            })
            .await?;
        let verdict = nat_of(&client).map(|nat| nat.helper_interference);
        ensure!(verdict == Some(expected), "{name}: {verdict:?}");
        device.reaches(gateway, PATIENCE).await?;
        if expected == Finding::True {
            event(&vpn, "HelperInterference").await?;
        }
        device.down().await?;
    }
    vpn.delete().await?;
    Ok(())
}

/// Waits for an Event of this reason.
async fn event(vpn: &Vpn<'_>, reason: &str) -> anyhow::Result<String> {
    let selector = format!("reason={reason}");
    let args = ["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].message}"];
    let what = format!("an Event {reason}");
    let seen = wait::until(&what, PATIENCE, || async {
        let text = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if text.trim().is_empty() { Err("there is none".to_owned()) } else { Ok(text) }
    });
    Ok(seen.await?)
}

async fn row_3_a_helper_that_lets_one_client_through_is_named_and_avoided_by_another_port(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "one-by-one", Exposure::NodePort, "replicas: 2").await?;
    vpn.pool("staff", "[10.114.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let nat = lab.nat("one-by-one", with_helper(Helper::OneClient { port: 1 })).await?;
    // Of three clients two choose the same replica, and with it the same port.
    let mut devices = Vec::new();
    let mut by_port: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for n in 0..3 {
        let mut device = Device::new(nat.host(&format!("one-by-one-{n}")).await?).await?;
        let status = device.up(&join).await?;
        let endpoint: SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
        by_port.entry(endpoint.port()).or_default().push(n);
        devices.push(device);
    }
    let crowded = by_port.iter().max_by_key(|(_, clients)| clients.len());
    let (&port, clients) = crowded.context("nobody connected")?;
    for device in &mut devices {
        device.down().await?;
    }
    nat.userspace()?.change(|nat, now| {
        nat.flush(now);
        nat.set_helpers(vec![Helper::OneClient { port }]);
    });
    for device in &mut devices {
        device.start(&join, &[]).await?;
    }
    let mut through = 0;
    let mut named = 0;
    for n in clients {
        let device = devices.get(*n).context("no such device")?;
        let status = device.connected(PATIENCE).await?;
        let endpoint: SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
        if endpoint.port() == port {
            through += 1;
            continue;
        }
        vpn.client(device.host().name(), "to name the helper", PATIENCE, |client| {
            nat_of(client).is_some_and(|nat| nat.helper_interference == Finding::True)
        })
        .await?;
        named += 1;
    }
    ensure!(through == 1, "{through} clients are let through to port {port}");
    ensure!(named + 1 == clients.len(), "{named} of {} named it", clients.len() - 1);
    event(&vpn, "HelperInterference").await?;
    for device in &mut devices {
        device.down().await?;
    }
    vpn.delete().await?;
    Ok(())
}

async fn row_4_the_verdict_equals_the_oracle_and_without_a_nat_keepalives_cease(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "verdicts", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.115.0.0/24]", ANY).await?;
    let join = vpn.join("staff", "any").await?;
    let mut open = Device::new(lab.public_host("open").await?).await?;
    open.up(&join).await?;
    let mut judged = Vec::new();
    for profile in lab_profiles() {
        let ports = match profile.name {
            "home" | "one-class" => PortAllocation::Preserved,
            "symmetric" => PortAllocation::Random,
            "inbound-ignored" => PortAllocation::Sequential,
            _ => continue,
        };
        let mut device = Device::new(profile.host(lab, &format!("verdict-{}", profile.name)).await?).await?;
        device.start(&join, &[]).await?;
        judged.push((device, profile.truth(), ports));
    }
    for (device, truth, ports) in &mut judged {
        let name = device.host().name().to_owned();
        let limit = truth.replied.mul_f64(1.3) + Duration::from_mins(1);
        let client = vpn
            .client(&name, "to have a bracket", limit, |client| {
                let status = client.status.as_ref();
                let binding = status.and_then(|status| status.binding.as_ref());
                binding.is_some_and(|binding| binding.less_than.is_some() && binding.at_least.is_some())
                    && nat_of(client).is_some_and(|nat| nat.port_allocation != PortAllocation::Unknown)
            })
            .await?;
        let nat = nat_of(&client).context("no NAT")?;
        ensure!(nat.port_allocation == *ports, "{name}: {nat:?}");
        ensure!(nat.class != NatClass::NoNAT && nat.class != NatClass::Unknown, "{name}: {nat:?}");
        agrees(&name, &client, truth)?;
        device.down().await?;
    }
    let client = vpn
        .client("open", "to be seen without a NAT", PATIENCE, |client| {
            nat_of(client).is_some_and(|nat| nat.class == NatClass::NoNAT)
        })
        .await?;
    let binding = client.status.as_ref().and_then(|status| status.binding.as_ref());
    ensure!(binding.is_none_or(|binding| binding.less_than.is_none()), "{binding:?}");
    let longest = judged.iter().map(|(_, truth, _)| truth.replied).max().unwrap_or_default();
    vpn.client("open", "to keep silent longer than any NAT allows", PATIENCE, |client| {
        let status = client.status.as_ref();
        let keepalive = status.and_then(|status| status.keepalive.as_ref());
        keepalive.is_some_and(|keepalive| keepalive.interval.0 > longest)
    })
    .await?;
    open.down().await?;
    vpn.delete().await?;
    Ok(())
}

/// The truth lies in the bracket, but for the second in which a wake is on its way.
fn agrees(name: &str, client: &VPNClient, truth: &Truth) -> anyhow::Result<()> {
    let binding = client.status.as_ref().and_then(|status| status.binding.as_ref()).context("no binding")?;
    let at_least = binding.at_least.as_ref().context("no lower end")?.0;
    let less_than = binding.less_than.as_ref().context("no upper end")?.0;
    let second = Duration::from_secs(1);
    let (lived, died) = (truth.replied + second, truth.replied.saturating_sub(second));
    ensure!(at_least <= lived && less_than >= died, "{name}: {binding:?} against {truth:?}");
    Ok(())
}

async fn row_5_after_a_flush_50_clients_are_back_without_a_storm(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let count = 50;
    let nat = NatProfile::home().timeouts(Duration::from_secs(8), Duration::from_secs(20));
    let crowd = Crowd::gather(lab, "restarted", "[10.116.0.0/24]", nat, count).await?;
    crowd.endpoints().await?;
    let intervals = |client: &VPNClient| {
        let keepalive = client.status.as_ref().and_then(|status| status.keepalive.as_ref());
        keepalive.filter(|keepalive| keepalive.reason != "Initial").map(|keepalive| keepalive.interval.0)
    };
    let mut longest = Duration::ZERO;
    for device in &crowd.devices {
        let learnt = crowd
            .vpn
            .client(device.host().name(), "to have learnt", Duration::from_mins(2), |client| {
                intervals(client).is_some_and(|interval| interval > Duration::from_secs(9))
            })
            .await?;
        longest = longest.max(intervals(&learnt).unwrap_or_default());
    }
    ensure!(longest < Duration::from_secs(21), "{longest:?}");
    let quiet = crowd.nat.mappings().await?.len();
    crowd.nat.flush().await?;
    let flushed = Instant::now();
    // Some sleep on their sessions by now, which are asked for less often than bindings.
    let longest = longest.max(crowd.longest_interval().await?);
    let mut most = 0;
    let mut behind: Vec<IpAddr> = crowd.addresses().await?;
    // A client is back when the gateway's own packet reaches it.
    while !behind.is_empty() && flushed.elapsed() < longest + GIVE_UP {
        most = most.max(crowd.nat.mappings().await?.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
        if flushed.elapsed() < longest {
            continue;
        }
        let mut pings = JoinSet::new();
        for address in behind {
            let ping = pods::netns(lab, crowd.vpn.namespace(), "edge-0")?.command("ping");
            let ping = ping.args(["-n", "-c", "1", "-W", "1", &address.to_string()]);
            pings.spawn(async move { ping.run().await.is_err().then_some(address) });
        }
        let still = pings.join_all().await.into_iter().flatten().collect();
        behind = still;
    }
    ensure!(behind.is_empty(), "{} of {count} are not back after {:?}", behind.len(), flushed.elapsed());
    // A storm would be everybody's ladder at once, some tens of sockets each.
    ensure!(most < quiet + 4 * count, "{most} mappings, {quiet} before");
    for device in &crowd.devices {
        device.connected(GIVE_UP).await?;
    }
    let told = event(&crowd.vpn, "NATRestart").await?;
    ensure!(told.contains(&crowd.nat.address().to_string()), "{told}");
    crowd.leave().await
}

async fn row_6_one_command_lists_every_peer_behind_an_address_with_its_ports(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let crowd = Crowd::gather(lab, "listed", "[10.117.0.0/24]", NatProfile::home(), 5).await?;
    let expected = crowd.endpoints().await?;
    let address = crowd.nat.address().to_string();
    let text = crowd.vpn.plugin(&["nat", "--by-address"]).await?;
    for endpoint in &expected {
        let port = endpoint.port().to_string();
        ensure!(text.split_whitespace().any(|word| word == port), "no {endpoint} in\n{text}");
    }
    let groups = crowd.vpn.plugin(&["nat", "--by-address", "-o", "json"]).await?;
    let groups: Vec<serde_json::Value> = serde_json::from_str(&groups)?;
    let group = groups.iter().find(|group| group["publicAddress"] == address).context("no group")?;
    let listed: BTreeSet<u64> =
        group["clients"].as_array().into_iter().flatten().filter_map(|c| c["port"].as_u64()).collect();
    let ports: BTreeSet<u64> = expected.iter().map(|endpoint| endpoint.port().into()).collect();
    ensure!(listed == ports, "{listed:?} instead of {ports:?}");
    let peers = crowd.vpn.plugin(&["peers", "--behind", &address, "-o", "json"]).await?;
    let peers: Vec<serde_json::Value> = serde_json::from_str(&peers)?;
    ensure!(peers.len() == 5, "{} peers", peers.len());
    crowd.leave().await
}
