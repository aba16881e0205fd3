//! Clients on hosts as people have them: what keeps a tunnel from a NAT's forgetfulness holds there, too, the status says what a
//! host takes away, and `down` gives back what it was.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pinhole_crds::{ClientPhase, VPNClient};
use pinhole_e2e::{
    Lab,
    device::{Device, Impairment, Status},
    host::{Docker, Footprint, Host, Resolver, SecondVpn},
    nat::{Nat, NatProfile},
    netns::Netns,
    pods,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use tokio::{sync::Mutex, time::sleep};

use crate::{Outcome, product, tests};

tests![
    beside_dockers_bridge_a_full_tunnel_lacks_one_prefix_says_so_and_outlives_its_mapping,
    a_second_vpn_that_takes_everything_carries_a_split_tunnel_and_is_carried_by_a_full_one,
    a_host_that_is_strict_about_the_way_back_is_reached_after_silence_and_a_lost_mapping,
    a_host_without_ipv6_says_so_and_is_connected,
    a_host_with_ipv6_alone_is_reached_after_silence_and_a_lost_mapping,
    a_dhcp_client_that_rewrites_resolv_conf_costs_no_name_and_no_mapping,
    systemd_resolved_has_the_tunnels_names_while_it_is_up,
    openresolv_has_the_tunnels_names_while_it_is_up,
    a_clock_that_is_behind_and_corrected_costs_no_connection,
];

/// Everything, in both families, as most people mean by a VPN.
const FULL: &str = "full";
/// A part of the cluster, with its names.
const SPLIT: &str = "split";
const INTERVAL: Duration = Duration::from_secs(5);
const POLICY: &str = "enrolment: { tokens: [{ name: any }] }
  keepalive: { mode: Fixed, interval: 5s, standby: UDP }";
/// Beside the interval, as on any host.
const NOTICED: Duration = Duration::from_secs(8);
/// Until what a client tells is in the API server.
const NEWS: Duration = Duration::from_secs(1);
/// Until a gateway has seen four handshakes of a client come to nothing, and tells it.
const FOUND_OUT: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_millis(250);
/// A moment on any other day.
const SOON: Duration = Duration::from_secs(15);
/// A name of the cluster, and what it stands for.
const NAME: (&str, &str) = ("kubernetes.default.svc.cluster.local", "10.96.0.1");

/// A router whose bindings live for seconds: nothing but keepalives keeps them.
fn forgetful() -> NatProfile {
    NatProfile::home().timeouts(Duration::from_secs(8), Duration::from_secs(16))
}

/// How many tests have the one VPN of all of them.
static USERS: Mutex<usize> = Mutex::const_new(0);

/// The VPN that the tests here share.
struct Shared<'a> {
    vpn: Vpn<'a>,
    gateway: Netns,
}

impl<'a> Shared<'a> {
    async fn join(lab: &'a Lab) -> anyhow::Result<Self> {
        const NAMESPACE: &str = "hosts";
        let mut users = USERS.lock().await;
        let vpn = if *users == 0 {
            let vpn = Vpn::declare(lab, NAMESPACE, Exposure::LoadBalancer, "").await?;
            let everything = "routes: ['0.0.0.0/0', '::/0', 172.17.0.0/16, 10.96.0.0/16]";
            vpn.pool(FULL, "[10.141.0.0/24, 'fd41::/64']", &format!("{everything}\n  {POLICY}")).await?;
            let names = "dns: { servers: [10.96.0.10], search: [svc.cluster.local] }";
            let part = "routes: [10.96.0.0/16, 10.244.0.0/24]";
            vpn.pool(SPLIT, "[10.142.0.0/24]", &format!("{part}\n  {names}\n  {POLICY}")).await?;
            vpn
        } else {
            Vpn::declared(lab, NAMESPACE)
        };
        vpn.join(FULL, "any").await?;
        let gateway = pods::netns(lab, NAMESPACE, "edge-0")?;
        *users += 1;
        Ok(Self { vpn, gateway })
    }

    async fn leave(self) -> Outcome {
        let mut users = USERS.lock().await;
        *users -= 1;
        if *users == 0 {
            self.vpn.delete().await?;
        }
        Ok(())
    }

    /// Connects a host that is as it was before.
    async fn connect(&'a self, host: Host, pool: &'static str, green: Green) -> anyhow::Result<Client<'a>> {
        let before = Footprint::of(&host).await?;
        let mut device = Device::new(host).await?;
        device.start(&self.vpn.join(pool, "any").await?, &[]).await?;
        let client = Client { shared: self, device, before, pool, green };
        client.is_green(PATIENCE).await?;
        Ok(client)
    }
}

/// What a client is called that has its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Green {
    Connected,
    Degraded,
}

impl Green {
    const fn phase(self) -> ClientPhase {
        match self {
            Self::Connected => ClientPhase::Connected,
            Self::Degraded => ClientPhase::Degraded,
        }
    }
}

/// One that is connected.
struct Client<'a> {
    shared: &'a Shared<'a>,
    device: Device,
    before: Footprint,
    pool: &'static str,
    green: Green,
}

impl Client<'_> {
    fn name(&self) -> &str {
        self.device.host().name()
    }

    fn nat(&self) -> anyhow::Result<&Nat> {
        self.device.host().nat().context("no NAT")
    }

    /// Waits until both sides call it what it is.
    async fn is_green(&self, limit: Duration) -> anyhow::Result<Status> {
        let phase = self.green.phase();
        let status = self.device.in_phase(phase.name(), limit).await?;
        self.shared.vpn.client_in(self.name(), phase, PATIENCE).await?;
        Ok(status)
    }

    async fn inner(&self) -> anyhow::Result<IpAddr> {
        let status = self.device.status().await?;
        let addresses = status.addresses.iter().filter_map(|net| net.split('/').next()?.parse().ok());
        addresses.into_iter().find(IpAddr::is_ipv4).context("no address")
    }

    /// Whether the gateway reaches it, within a second.
    async fn is_reached(&self) -> anyhow::Result<bool> {
        let inner = self.inner().await?.to_string();
        let ping = self.shared.gateway.command("ping").args(["-n", "-c", "1", "-W", "1", &inner]);
        Ok(ping.output().await?.status.success())
    }

    /// Waits until the gateway reaches it.
    async fn becomes_reached(&self, limit: Duration) -> Outcome {
        Ok(wait::until(&format!("{} to be reached", self.name()), limit, || async {
            let reached = self.is_reached().await.map_err(|error| error.to_string())?;
            if reached { Ok(()) } else { Err("no answer".to_owned()) }
        })
        .await?)
    }

    /// What the seeds ask of any host: its mapping is kept, lost and found again, and what is shown of it is true; it is told from
    /// others behind its NAT; and it is up while data flows.
    async fn holds_the_rows_beside(&self, neighbour: &Client<'_>) -> Outcome {
        self.holds_the_rows_told(neighbour, NEWS).await
    }

    /// The same, where it takes so long until the operator hears what the client knows.
    async fn holds_the_rows_told(&self, neighbour: &Client<'_>, news: Duration) -> Outcome {
        are_told_apart(&[self, neighbour]).await?;
        self.carries().await?;
        self.stays_green_under_load().await?;
        self.outlives_a_flush().await?;
        self.is_reached_after_silence().await?;
        self.turns_red_and_green_told(news).await?;
        neighbour.is_green(PATIENCE).await?;
        are_told_apart(&[self, neighbour]).await
    }

    /// Connects another machine behind the same NAT, without any quirk.
    async fn neighbour(&self, green: Green) -> anyhow::Result<Self> {
        let (name, has_ipv4) =
            (format!("{}-next", self.name()), !self.public_endpoint().await?.starts_with('['));
        let nat = self.nat()?;
        let host = if has_ipv4 { nat.host(&name).await? } else { nat.ipv6_host(&name).await? };
        self.shared.connect(host, self.pool, green).await
    }

    /// Packets of a size that fill it, none of which gets lost.
    async fn carries(&self) -> Outcome {
        let gateway = self.shared.vpn.gateway_address(self.pool).await?.to_string();
        let args = ["-q", "-n", "-i", "0.01", "-c", "200", "-s", "1000", "-W", "2", &gateway];
        let said = self.device.host().exec("ping", args).await?;
        ensure!(said.contains(" 0% packet loss"), "{}: {said}", self.name());
        Ok(())
    }

    /// Packets of a size that fill it flow both ways for longer than tunnels take to be torn down whose keepalives wait.
    async fn stays_green_under_load(&self) -> Outcome {
        let gateway = self.shared.vpn.gateway_address(self.pool).await?.to_string();
        let args = ["-q", "-n", "-i", "0.005", "-c", "3000", "-s", "1000", "-W", "2", &gateway];
        let load = self.device.host().exec("ping", args);
        let watched = async {
            loop {
                let phase = self.device.status().await?.phase;
                ensure!(phase == self.green.phase().name(), "{} is {phase} under load", self.name());
                sleep(LOOK).await;
            }
        };
        let said = tokio::select! {
            said = load => said?,
            watched = watched => return watched,
        };
        let received = said.split(" received").next().and_then(|said| said.rsplit(' ').next());
        let received: u32 = received.and_then(|count| count.parse().ok()).context(said.clone())?;
        ensure!(received >= 2970, "{}: {said}", self.name());
        Ok(())
    }

    /// The NAT forgets it, and nobody is told: with the next keepalive it is reached again.
    async fn outlives_a_flush(&self) -> Outcome {
        self.nat()?.flush().await?;
        self.becomes_reached(INTERVAL + NOTICED).await.context("after a flush")
    }

    /// The NAT lets nothing in: neither side calls it green any more, until it does. So long it takes until the operator hears
    /// what the client knows.
    async fn turns_red_and_green_told(&self, news: Duration) -> Outcome {
        let limit = INTERVAL + NOTICED;
        self.nat()?.set_deaf(true).await?;
        let begun = Instant::now();
        let (mut at_client, mut at_operator) = (None, None);
        while at_client.is_none() || at_operator.is_none() {
            let status = self.device.status().await?;
            if status.phase != self.green.phase().name() {
                at_client = at_client.or(Some(begun.elapsed()));
            }
            let seen = |_: &VPNClient| true;
            let client = self.shared.vpn.client(self.name(), "to be there", PATIENCE, seen).await?;
            if client.status.and_then(|status| status.phase) != Some(self.green.phase()) {
                at_operator = at_operator.or(Some(begun.elapsed()));
            }
            ensure!(begun.elapsed() < limit + news + SOON, "{at_client:?}, {at_operator:?}: {status:?}");
            sleep(LOOK).await;
        }
        ensure!(at_client.is_some_and(|after| after <= limit + LOOK), "{}: {at_client:?}", self.name());
        ensure!(
            at_operator.is_some_and(|after| after <= limit + LOOK + news),
            "{}: {at_operator:?} at the operator",
            self.name()
        );
        self.nat()?.set_deaf(false).await?;
        self.is_green(PATIENCE).await?;
        self.becomes_reached(SOON).await.context("after a NAT that let nothing in")
    }

    /// Nothing but keepalives for longer than the NAT remembers, and the gateway's first packet arrives.
    async fn is_reached_after_silence(&self) -> Outcome {
        // The silence is what is tested.
        sleep(forgetful().udp_stream_timeout + NEWS).await;
        ensure!(self.is_reached().await?, "{} is out of reach after silence", self.name());
        Ok(())
    }

    async fn public_endpoint(&self) -> anyhow::Result<String> {
        let known =
            |client: &VPNClient| client.status.as_ref().is_some_and(|status| status.endpoint.is_some());
        let client = self.shared.vpn.client(self.name(), "to have an endpoint", PATIENCE, known).await?;
        client.status.and_then(|status| status.endpoint).context("no endpoint")
    }

    /// Waits until a name of the cluster is one on this host.
    async fn knows_the_cluster(&self) -> Outcome {
        let (name, address) = NAME;
        Ok(wait::until(&format!("{name} to be known"), PATIENCE, || async {
            let args = ["ahostsv4", name];
            let said = self.device.host().exec("getent", args).await.map_err(|error| error.to_string())?;
            if said.contains(address) { Ok(()) } else { Err(said) }
        })
        .await?)
    }

    /// After `down` the host is as it was.
    async fn down(mut self) -> Outcome {
        self.device.down().await?;
        let host = self.device.host();
        Ok(wait::until(&format!("{} to be as before", host.name()), SOON, || async {
            let now = Footprint::of(host).await.map_err(|error| error.to_string())?;
            let left = self.before.differences(&now);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        })
        .await?)
    }
}

/// Several clients behind one NAT are each reached, in an own place.
async fn are_told_apart(clients: &[&Client<'_>]) -> Outcome {
    let (mut endpoints, mut inner) = (BTreeSet::new(), BTreeSet::new());
    for client in clients {
        client.becomes_reached(SOON).await?;
        endpoints.insert(client.public_endpoint().await?);
        inner.insert(client.inner().await?);
    }
    ensure!(endpoints.len() == clients.len() && inner.len() == clients.len(), "{endpoints:?} {inner:?}");
    Ok(())
}

fn impairment(category: &str, prefix: Option<&str>, interface: Option<&str>, accepted: bool) -> Impairment {
    Impairment {
        category: category.to_owned(),
        prefix: prefix.map(str::to_owned),
        interface: interface.map(str::to_owned),
        accepted,
    }
}

async fn beside_dockers_bridge_a_full_tunnel_lacks_one_prefix_says_so_and_outlives_its_mapping(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let host = lab.nat_host("on-docker", forgetful()).await?;
    let docker = Docker::on(&host).await?;
    let client = shared.connect(host, FULL, Green::Degraded).await?;
    let neighbour = client.neighbour(Green::Connected).await?;
    let status = client.device.status().await?;
    let lost = impairment("RouteConflict", Some("172.17.0.0/16"), Some("docker0"), false);
    ensure!(status.impairments == [lost], "{status:?}");
    client.device.host().ping(docker.address()).await.context("the container, by the bridge")?;
    let gateway = shared.vpn.gateway_address(FULL).await?;
    docker.ping(gateway).await.context("the gateway, from within the container")?;
    client.holds_the_rows_beside(&neighbour).await?;
    docker.ping(gateway).await.context("the gateway, from within the container, again")?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn a_second_vpn_that_takes_everything_carries_a_split_tunnel_and_is_carried_by_a_full_one(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let wireguard_go = lab.cluster().tools().path("wireguard-go")?;
    let beside = async |pool: &'static str| {
        let host = lab.nat_host(&format!("on-second-{pool}"), forgetful()).await?;
        let office = lab.public_host(&format!("on-office-{pool}")).await?;
        let second = SecondVpn::between(&host, &office, wireguard_go).await?;
        let client = shared.connect(host, pool, Green::Connected).await?;
        // With a full tunnel the way to the gateway changes once.
        client.becomes_reached(SOON).await?;
        let status = client.is_green(SOON).await?;
        ensure!(status.impairments.is_empty(), "{pool}: {status:?}");
        let host = client.device.host();
        let way = async |to: &[&str]| host.exec("ip", ["route", "get"].iter().chain(to)).await;
        let into = |pool| if pool == FULL { client.device.tunnel() } else { second.device() };
        ensure!(way(&["198.18.0.1"]).await?.contains(into(pool)), "{pool}");
        ensure!(way(&["10.96.0.1"]).await?.contains(client.device.tunnel()), "{pool}");
        if pool == SPLIT {
            let public = client.public_endpoint().await?;
            ensure!(public.starts_with(&format!("{}:", office.address())), "{public} is not the office's");
        }
        let neighbour = client.neighbour(Green::Connected).await?;
        // Elsewhere its session is lost with all that comes in: the gateway sees by itself that the client hears nothing.
        client.holds_the_rows_told(&neighbour, if pool == FULL { NEWS } else { FOUND_OUT }).await?;
        neighbour.down().await?;
        // The other one is as it was as well.
        client.down().await.with_context(|| pool)
    };
    let (split, full) = futures::join!(beside(SPLIT), beside(FULL));
    split.and(full)?;
    shared.leave().await
}

async fn a_host_that_is_strict_about_the_way_back_is_reached_after_silence_and_a_lost_mapping(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let host = lab.nat_host("on-strict", forgetful()).await?;
    host.be_strict()?;
    let client = shared.connect(host, FULL, Green::Connected).await?;
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn a_host_without_ipv6_says_so_and_is_connected(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let host = lab.nat_host("on-without-six", forgetful()).await?;
    host.forgo_ipv6()?;
    let client = shared.connect(host, FULL, Green::Connected).await?;
    let status = client.device.status().await?;
    ensure!(status.impairments == [impairment("IPv6Unavailable", None, None, true)], "{status:?}");
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn a_host_with_ipv6_alone_is_reached_after_silence_and_a_lost_mapping(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let host = lab.ipv6_host("on-six", forgetful()).await?;
    let client = shared.connect(host, FULL, Green::Connected).await?;
    let neighbour = client.neighbour(Green::Connected).await?;
    let status = client.device.status().await?;
    ensure!(status.impairments.is_empty(), "{status:?}");
    for client in [&client, &neighbour] {
        let endpoint: std::net::SocketAddr = client.public_endpoint().await?.parse()?;
        ensure!(endpoint.is_ipv6(), "{endpoint}");
    }
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

/// A host with files of its own, on which it is the tunnel's names that count.
async fn named<'a>(shared: &'a Shared<'a>, name: &str, resolver: Resolver) -> anyhow::Result<Client<'a>> {
    let host = shared.vpn.lab().nat_host(name, forgetful()).await?;
    host.keep_files(resolver).await?;
    let client = shared.connect(host, SPLIT, Green::Connected).await?;
    ensure!(client.device.status().await?.impairments.is_empty());
    client.knows_the_cluster().await?;
    Ok(client)
}

async fn a_dhcp_client_that_rewrites_resolv_conf_costs_no_name_and_no_mapping(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let client = named(&shared, "on-dhcp", Resolver::DhcpClient).await?;
    // The last lease is the one of before.
    for name_server in ["192.168.50.2", "192.168.50.1"] {
        client.device.host().renew_lease(name_server).await?;
        client.knows_the_cluster().await?;
        client.is_green(SOON).await?;
    }
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn systemd_resolved_has_the_tunnels_names_while_it_is_up(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let client = named(&shared, "on-resolved", Resolver::SystemdResolved).await?;
    let tunnel = client.device.tunnel();
    client.device.host().exec("resolvectl", ["revert", tunnel]).await?;
    let servers = || async {
        let said = client.device.host().exec("resolvectl", ["dns", tunnel]).await;
        let said = said.map_err(|error| error.to_string())?;
        if said.contains("10.96.0.10") { Ok(()) } else { Err(said) }
    };
    wait::until("the tunnel's name server to be put back", SOON, servers).await?;
    client.knows_the_cluster().await?;
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn openresolv_has_the_tunnels_names_while_it_is_up(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let client = named(&shared, "on-openresolv", Resolver::Openresolv).await?;
    client.device.host().renew_lease("192.168.50.9").await?;
    client.knows_the_cluster().await?;
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.down().await?;
    shared.leave().await
}

async fn a_clock_that_is_behind_and_corrected_costs_no_connection(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let shared = Shared::join(lab).await?;
    let host = lab.nat_host("on-clock", forgetful()).await?;
    host.set_clock("-30m")?;
    let client = shared.connect(host, SPLIT, Green::Connected).await?;
    client.outlives_a_flush().await?;
    client.device.host().set_clock("+0")?;
    let neighbour = client.neighbour(Green::Connected).await?;
    client.holds_the_rows_beside(&neighbour).await?;
    neighbour.down().await?;
    client.device.host().set_clock("-1h")?;
    client.outlives_a_flush().await?;
    client.is_green(SOON).await?;
    client.down().await?;
    shared.leave().await
}
