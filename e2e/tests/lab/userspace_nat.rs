//! The userspace NAT behaves as its profile says, its log tells the truth, and an independent judge agrees.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    device::Device,
    host::Host,
    nat::{
        Behaviour, LabProfile, Loss, Mapping, Nat, NatProfile, Truth, UdpFilter, UserspaceProfile,
        lab_profiles,
        model::{self, Dependence, PortAllocation, Profile, Refresh},
        userspace::{Direction, Event, Helper, Translator},
    },
    process::Process,
    state,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, UdpSocket},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{Outcome, product, tests};

tests![
    natdiscovery_agrees_with_every_userspace_mapping_and_filter,
    natdiscovery_agrees_with_the_truth_of_every_ready_made_nat,
    natdiscovery_sees_a_helper_that_rewrites,
    outbound_only_refresh_dies_under_inbound_traffic_alone,
    a_promotion_can_come_late,
    a_coarse_sweep_lets_a_binding_live_longer,
    a_zombie_binding_lets_nothing_in_until_the_port_changes,
    a_helper_rewrites_the_clients_address_both_ways,
    loss_and_filters_of_a_userspace_nat_are_switched_while_it_runs,
    a_userspace_nat_rebinds_and_changes_its_address,
    tcp_and_ping_pass_a_userspace_nat_behind_another,
    bindings_of_every_ready_made_nat_live_as_long_as_its_truth_says,
    a_client_connects_from_behind_a_lossy_carriers_nat,
];

const QUICK: Duration = Duration::from_millis(400);

/// A NAT that does what `change` makes of one with these lifetimes, in seconds.
fn profile(unreplied: f64, replied: f64, change: impl FnOnce(&mut Profile)) -> UserspaceProfile {
    let mut nat = Profile::new("test", unreplied, replied);
    nat.rtt_ms = 4.0;
    change(&mut nat);
    UserspaceProfile::new(nat)
}

/// A client behind a NAT and a server that it talks to, with one UDP socket each.
struct Talk {
    client: UdpSocket,
    server: UdpSocket,
    address: SocketAddr,
    host: Host,
    _server_host: Host,
}

impl Talk {
    async fn begin(lab: &Lab, name: &str, behaviour: impl Into<Behaviour>) -> anyhow::Result<Self> {
        let host = lab.nat_host(name, behaviour).await?;
        let server_host = lab.public_host(&format!("{name}-server")).await?;
        let address = SocketAddr::new(server_host.address().into(), 7001);
        let (client, server) = (socket(&host, 4500)?, socket(&server_host, 7001)?);
        Ok(Self { client, server, address, host, _server_host: server_host })
    }

    fn nat(&self) -> anyhow::Result<&Nat> {
        self.host.nat().context("no NAT")
    }

    /// The client sends; yields where the server saw it come from.
    async fn out(&self) -> anyhow::Result<Option<SocketAddr>> {
        let got = exchange(&self.client, self.address, &self.server, b"out").await?;
        Ok(got.map(|(_, from)| from))
    }

    async fn must_get_out(&self) -> anyhow::Result<SocketAddr> {
        self.out().await?.context("nothing came out")
    }

    /// The server sends there; yields whether the client got it.
    async fn back(&self, to: SocketAddr) -> anyhow::Result<bool> {
        Ok(exchange(&self.server, to, &self.client, b"in").await?.is_some())
    }

    /// Packets both ways until the binding is promoted.
    async fn promote(&self) -> anyhow::Result<SocketAddr> {
        let public = self.must_get_out().await?;
        ensure!(self.back(public).await?);
        self.must_get_out().await
    }
}

fn socket(host: &Host, port: u16) -> anyhow::Result<UdpSocket> {
    let socket = host.udp_socket(port)?;
    socket.set_nonblocking(true)?;
    Ok(UdpSocket::from_std(socket)?)
}

/// Sends something that was never sent before, and sees what of it arrives in time.
async fn exchange(
    from: &UdpSocket,
    to: SocketAddr,
    at: &UdpSocket,
    payload: &[u8],
) -> anyhow::Result<Option<(Vec<u8>, SocketAddr)>> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    from.send_to(&[&number, payload].concat(), to).await?;
    let arrives = async {
        let mut buffer = [0; 256];
        loop {
            let (length, source) = at.recv_from(&mut buffer).await?;
            let got = buffer.get(..length).unwrap_or_default();
            if let Some(payload) = got.strip_prefix(&number) {
                return anyhow::Ok((payload.to_vec(), source));
            }
        }
    };
    timeout(QUICK, arrives).await.ok().transpose()
}

/// An RFC 5780 server: one that can answer from another address and port.
struct StunServer {
    host: Host,
    _process: Process,
}

impl StunServer {
    async fn start(lab: &Lab, name: &str) -> anyhow::Result<Self> {
        let host = lab.public_host(name).await?;
        let addresses = [host.address(), host.add_address().await?];
        let directory = state::directory().join("stun").join(name);
        std::fs::create_dir_all(&directory)?;
        let mut command = host.command("turnserver");
        for address in addresses {
            command = command.args(["-L", &address.to_string()]);
        }
        command = command.args(["-n", "-S", "--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout"]);
        command = command.arg("--pidfile").arg(directory.join("pid")).arg("-b").arg(directory.join("db"));
        let process = host.spawn("turnserver", &command).await?;
        process.wait_for_line("Total General servers", Duration::from_secs(10)).await?;
        Ok(Self { host, _process: process })
    }

    /// What `turnutils_natdiscovery` says at a host.
    async fn judges(&self, host: &Host) -> anyhow::Result<String> {
        let arguments = ["-m", "-f", &self.host.address().to_string()].map(str::to_owned);
        Ok(timeout(Duration::from_mins(1), host.exec("turnutils_natdiscovery", arguments)).await??)
    }

    async fn must_find(&self, host: &Host, mapping: Dependence, filtering: Dependence) -> Outcome {
        let said = self.judges(host).await?;
        for verdict in [format!("{} Mapping!", words(mapping)), format!("{} Filtering!", words(filtering))] {
            ensure!(said.contains(&verdict), "{}: no \"{verdict}\" in {said}", host.name());
        }
        ensure!(said.contains("No ALG") && !said.contains("ALG detected"), "{said}");
        Ok(())
    }
}

fn words(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::EndpointIndependent => "NAT with Endpoint Independent",
        Dependence::AddressDependent => "NAT with Address Dependent",
        Dependence::AddressAndPortDependent => "NAT with Address and Port Dependent",
    }
}

const DEPENDENCES: [Dependence; 3] =
    [Dependence::EndpointIndependent, Dependence::AddressDependent, Dependence::AddressAndPortDependent];

async fn natdiscovery_agrees_with_every_userspace_mapping_and_filter(lab: &Lab) -> Outcome {
    let server = &StunServer::start(lab, "stun-userspace").await?;
    let ports = [PortAllocation::Preserve, PortAllocation::Sequential, PortAllocation::Random];
    let pairs = DEPENDENCES
        .into_iter()
        .zip(ports)
        .flat_map(|(mapping, port)| DEPENDENCES.map(|filtering| (mapping, port, filtering)));
    let judged = pairs.enumerate().map(|(n, (mapping, port, filtering))| async move {
        let behaviour = profile(30.0, 120.0, |nat| {
            (nat.mapping, nat.filtering, nat.port) = (mapping, filtering, port);
        });
        let host = lab.nat_host(&format!("judged-{n}"), behaviour).await?;
        server.must_find(&host, mapping, filtering).await
    });
    futures::future::try_join_all(judged).await.map(drop)
}

async fn natdiscovery_agrees_with_the_truth_of_every_ready_made_nat(lab: &Lab) -> Outcome {
    let server = &StunServer::start(lab, "stun-ready-made").await?;
    let profiles = lab_profiles();
    // It does not repeat itself often enough to get through loss.
    let judged = profiles.iter().filter(|profile| profile.truth().loss == model::Loss::NONE).map(
        |profile| async move {
            let host = profile.host(lab, &format!("judged-{}", profile.name)).await?;
            let truth = profile.truth();
            server.must_find(&host, truth.mapping, truth.filtering).await
        },
    );
    let judged = futures::future::try_join_all(judged).await?;
    ensure!(judged.len() >= 8, "{}", judged.len());
    Ok(())
}

async fn natdiscovery_sees_a_helper_that_rewrites(lab: &Lab) -> Outcome {
    let server = StunServer::start(lab, "stun-helper").await?;
    let behaviour = profile(30.0, 120.0, |_| {}).helper(Helper::Rewrites { ports: BTreeSet::new() });
    let host = lab.nat_host("judged-helper", behaviour).await?;
    let said = server.judges(&host).await?;
    ensure!(said.contains("ALG detected!"), "{said}");
    Ok(())
}

async fn outbound_only_refresh_dies_under_inbound_traffic_alone(lab: &Lab) -> Outcome {
    let behaviour = profile(3.0, 3.0, |nat| nat.refresh = Refresh { outbound: true, inbound: false });
    let talk = Talk::begin(lab, "outbound-only", behaviour).await?;
    let public = talk.promote().await?;
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_millis(500));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while talk.back(public).await? {
        ensure!(begun.elapsed() < Duration::from_secs(6), "inbound traffic keeps it");
        ticks.tick().await;
    }
    ensure!(begun.elapsed() > Duration::from_millis(2500), "gone after {:?}", begun.elapsed());
    let oracle = talk.nat()?.oracle()?;
    let idle: Vec<_> = oracle.expired().filter_map(|entry| entry.event.idle()).collect();
    ensure!(idle == [Duration::from_secs(3)], "{}", oracle.json_lines());
    for _ in 0..10 {
        ticks.tick().await;
        talk.must_get_out().await?;
    }
    ensure!(talk.back(public).await?, "outbound traffic keeps it");
    Ok(())
}

async fn a_promotion_can_come_late(lab: &Lab) -> Outcome {
    let behaviour = profile(2.0, 5.0, |nat| nat.promote_after_s = 3.0);
    let talk = Talk::begin(lab, "late-promotion", behaviour).await?;
    let begun = Instant::now();
    let public = talk.promote().await?;
    sleep_until(begun + Duration::from_millis(1500)).await;
    ensure!(talk.back(public).await?);
    talk.must_get_out().await?;
    ensure!(talk.nat()?.mappings().await?.iter().all(|mapping| !mapping.stream), "promoted too early");
    sleep_until(begun + Duration::from_millis(3100)).await;
    talk.must_get_out().await?;
    let promoted = Instant::now();
    sleep_until(promoted + Duration::from_millis(4500)).await;
    ensure!(talk.back(public).await?, "it was not promoted");
    let oracle = talk.nat()?.oracle()?;
    let at =
        oracle.entries().find(|entry| matches!(entry.event, Event::Promoted(_))).context("no promotion")?.at;
    let created = oracle.entries().find(|entry| matches!(entry.event, Event::Created(_))).context("none")?.at;
    ensure!(at.since(created) >= Duration::from_secs(3), "{}", oracle.json_lines());
    Ok(())
}

async fn a_coarse_sweep_lets_a_binding_live_longer(lab: &Lab) -> Outcome {
    let behaviour = profile(1.0, 1.0, |nat| nat.sweep_s = 3.0);
    let talk = Talk::begin(lab, "sweep", behaviour).await?;
    let mut sockets = Vec::new();
    for n in 0..6 {
        let socket = socket(&talk.host, 4600 + n)?;
        let begun = Instant::now();
        socket.send_to(b"new", talk.address).await?;
        sockets.push(socket);
        sleep_until(begun + Duration::from_millis(500)).await;
    }
    let gone = || async {
        let left = talk.nat().map_err(|e| e.to_string())?.mappings().await.map_err(|e| e.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    };
    wait::until("the last sweep", Duration::from_secs(5), gone).await?;
    let oracle = talk.nat()?.oracle()?;
    let idle: Vec<_> = oracle.expired().filter_map(|entry| entry.event.idle()).collect();
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(4));
    ensure!(idle.len() == 6 && idle.iter().all(|idle| (least..most).contains(idle)), "{idle:?}");
    ensure!(idle.iter().any(|idle| *idle > Duration::from_millis(2500)), "{idle:?}");
    let ends: BTreeSet<_> = oracle.expired().map(|entry| entry.at).collect();
    ensure!(ends.len() <= 3, "not together, but at {ends:?}");
    Ok(())
}

async fn a_zombie_binding_lets_nothing_in_until_the_port_changes(lab: &Lab) -> Outcome {
    let talk = Talk::begin(lab, "zombie", profile(10.0, 20.0, |_| {})).await?;
    let public = talk.promote().await?;
    talk.nat()?.userspace()?.change(Translator::make_zombies);
    ensure!(!talk.back(public).await?);
    ensure!(talk.must_get_out().await? == public, "it still leaves by the same port");
    ensure!(!talk.back(public).await?);
    let fresh = socket(&talk.host, 0)?;
    let (_, other) =
        exchange(&fresh, talk.address, &talk.server, b"new").await?.context("nothing came out")?;
    ensure!(other != public);
    ensure!(exchange(&talk.server, other, &fresh, b"in").await?.is_some());
    Ok(())
}

async fn a_helper_rewrites_the_clients_address_both_ways(lab: &Lab) -> Outcome {
    let behaviour = profile(10.0, 20.0, |nat| nat.port = PortAllocation::Sequential)
        .helper(Helper::Rewrites { ports: BTreeSet::from([7001]) });
    let talk = Talk::begin(lab, "helper", behaviour).await?;
    let private = SocketAddr::new(talk.host.address().into(), 4500).to_string();
    let (seen, public) = exchange(&talk.client, talk.address, &talk.server, private.as_bytes())
        .await?
        .context("nothing came out")?;
    ensure!(seen == public.to_string().as_bytes(), "{public} saw {:?}", String::from_utf8_lossy(&seen));
    let told = exchange(&talk.server, public, &talk.client, &seen).await?.context("nothing came back")?.0;
    ensure!(told == private.as_bytes(), "{:?}", String::from_utf8_lossy(&told));
    let oracle = talk.nat()?.oracle()?;
    for way in [Direction::Outbound, Direction::Inbound] {
        let told = |event: &Event| matches!(event, Event::Rewritten { by, .. } if *by == way);
        ensure!(oracle.entries().any(|entry| told(&entry.event)), "{way:?}: {}", oracle.json_lines());
    }
    Ok(())
}

async fn loss_and_filters_of_a_userspace_nat_are_switched_while_it_runs(lab: &Lab) -> Outcome {
    let talk = Talk::begin(lab, "switched", profile(10.0, 20.0, |_| {})).await?;
    let nat = talk.nat()?;
    let public = talk.promote().await?;
    nat.set_loss(Loss::percent(100)).await?;
    ensure!(talk.out().await?.is_none() && !talk.back(public).await?);
    nat.set_loss(Loss::NONE).await?;
    nat.set_udp(UdpFilter::BlockedPorts(BTreeSet::from([7001]))).await?;
    ensure!(talk.out().await?.is_none());
    nat.set_udp(UdpFilter::Open).await?;
    nat.userspace()?.change(|nat, _| nat.set_deaf(BTreeSet::from([public.port()])));
    ensure!(talk.out().await?.is_some() && !talk.back(public).await?);
    nat.userspace()?.change(|nat, _| nat.set_deaf(BTreeSet::new()));
    ensure!(talk.back(public).await?);
    nat.shrink(Duration::from_secs(1)).await?;
    let begun = Instant::now();
    sleep_until(begun + Duration::from_millis(1100)).await;
    ensure!(!talk.back(public).await?, "it lives longer than it may");
    Ok(())
}

async fn a_userspace_nat_rebinds_and_changes_its_address(lab: &Lab) -> Outcome {
    let talk = Talk::begin(lab, "userspace-moves", profile(10.0, 20.0, |_| {})).await?;
    let nat = talk.nat()?;
    let before = talk.promote().await?;
    ensure!(before == SocketAddr::new(nat.address().into(), 4500), "{before}");
    nat.flush().await?;
    ensure!(!talk.back(before).await?);
    ensure!(talk.must_get_out().await? == before, "a flush is invisible");
    nat.rebind().await?;
    let moved = talk.must_get_out().await?;
    ensure!(moved.ip() == before.ip() && moved.port() != before.port(), "{moved}");
    nat.set_mapping(Mapping::Range(50_000..=50_010)).await?;
    nat.flush().await?;
    let ranged = talk.must_get_out().await?;
    ensure!((50_000..=50_010).contains(&ranged.port()), "{ranged}");
    let address: Ipv4Addr = nat.change_address().await?;
    let after = talk.must_get_out().await?;
    ensure!(after.ip() == address && after.ip() != before.ip(), "{before}, then {after}");
    ensure!(talk.back(after).await?);
    Ok(())
}

async fn tcp_and_ping_pass_a_userspace_nat_behind_another(lab: &Lab) -> Outcome {
    let carrier = profile(10.0, 20.0, |nat| nat.port = PortAllocation::Random)
        .inside(NatProfile::carrier().inside)
        .hairpin();
    let host = lab.carrier_host("userspace-twice", carrier, profile(10.0, 20.0, |_| {})).await?;
    let server = lab.public_host("userspace-twice-server").await?;
    host.ping(server.address().into()).await?;
    let listen = || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7002));
    let listener = server.netns().within(listen)??;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let socket = host.netns().within(TcpSocket::new_v4)??;
    let address = SocketAddr::new(server.address().into(), 7002);
    let limit = Duration::from_secs(10);
    let (stream, accepted) =
        timeout(limit, async { tokio::join!(socket.connect(address), listener.accept()) }).await?;
    let (mut stream, (mut accepted, from)) = (stream?, accepted?);
    ensure!(from.ip() == host.outermost_nat().context("no NAT")?.address(), "{from}");
    // More than fits in any packet: it also has to be cut right.
    let sent: Vec<u8> = (0..400_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let echo = async {
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).await?;
        accepted.write_all(&got).await?;
        accepted.shutdown().await
    };
    let talk = async {
        stream.write_all(&sent).await?;
        stream.shutdown().await?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await?;
        std::io::Result::Ok(got)
    };
    let (echoed, got) = timeout(limit, async { tokio::join!(echo, talk) }).await?;
    echoed?;
    if got? != sent {
        bail!("what came back is not what was sent");
    }
    Ok(())
}

/// A binding of its own behind a ready-made NAT, as old as wanted.
struct Bound {
    client: UdpSocket,
    server: UdpSocket,
    public: SocketAddr,
    /// When its timer was last restarted.
    since: Instant,
}

impl Bound {
    async fn make(
        host: &Host,
        server_host: &Host,
        n: u16,
        truth: &Truth,
        promoted: bool,
    ) -> anyhow::Result<Self> {
        let (client, server) = (socket(host, 4500 + n)?, socket(server_host, 7100 + n)?);
        let address = SocketAddr::new(server_host.address().into(), 7100 + n);
        let begun = Instant::now();
        let public = patiently(&client, address, &server).await?.context("nothing came out")?;
        let mut bound = Self { client, server, public, since: Instant::now() };
        bound.back().await?.context("no answer")?;
        if truth.refresh.inbound {
            bound.since = Instant::now();
        }
        if promoted {
            sleep_until(begun + truth.promote_after + Duration::from_millis(500)).await;
            patiently(&bound.client, address, &bound.server).await?.context("nothing came out")?;
            bound.since = Instant::now();
        }
        Ok(bound)
    }

    async fn back(&self) -> anyhow::Result<Option<SocketAddr>> {
        patiently(&self.server, self.public, &self.client).await
    }

    async fn lives_for(&self, idle: Duration) -> anyhow::Result<bool> {
        sleep_until(self.since + idle).await;
        Ok(self.back().await?.is_some())
    }
}

/// As [`exchange`], with more tries than loss can bear.
async fn patiently(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> anyhow::Result<Option<SocketAddr>> {
    for _ in 0..5 {
        if let Some((_, source)) = exchange(from, to, at, b"").await? {
            return Ok(Some(source));
        }
    }
    Ok(None)
}

async fn bindings_of_every_ready_made_nat_live_as_long_as_its_truth_says(lab: &Lab) -> Outcome {
    let profiles = lab_profiles();
    let checks = profiles.iter().map(|profile| async move {
        check(lab, profile).await.with_context(|| format!("behind {}", profile.name))
    });
    futures::future::try_join_all(checks).await.map(drop)
}

async fn check(lab: &Lab, profile: &LabProfile) -> Outcome {
    const MARGIN: Duration = Duration::from_millis(1500);
    let truth = profile.truth();
    let host = profile.host(lab, &format!("truth-{}", profile.name)).await?;
    let server = lab.public_host(&format!("truth-{}-server", profile.name)).await?;
    // Asking whether a binding lives may keep it: each is asked once.
    let questions = [
        (false, truth.unreplied.saturating_sub(MARGIN), true),
        (false, truth.unreplied + truth.sweep + MARGIN, false),
        (true, truth.replied.saturating_sub(MARGIN), true),
        (true, truth.replied + truth.sweep + MARGIN, false),
    ];
    let (host, server) = (&host, &server);
    let ask = (0_u16..).zip(questions).map(|(n, (promoted, idle, lives))| async move {
        let bound = Bound::make(host, server, n, &truth, promoted).await?;
        let answer = bound.lives_for(idle).await?;
        ensure!(
            answer == lives,
            "promoted: {promoted}; it is {answer} that it lives for {idle:?}; {truth:?}"
        );
        anyhow::Ok(())
    });
    futures::future::try_join_all(ask).await?;
    let Ok(oracle) = host.nat().context("no NAT")?.oracle() else { return Ok(()) };
    for entry in oracle.expired() {
        let Event::Expired { idle, promoted, .. } = entry.event else { continue };
        let lifetime = if promoted { truth.replied } else { truth.unreplied };
        let all_right = idle >= lifetime && idle <= lifetime + truth.sweep;
        ensure!(all_right, "{idle:?} instead of {lifetime:?} in {}", oracle.json_lines());
    }
    ensure!(oracle.expired().count() >= 2, "{}", oracle.json_lines());
    Ok(())
}

async fn a_client_connects_from_behind_a_lossy_carriers_nat(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "lossy", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.89.3.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    let join = vpn.join("staff", "any").await?;
    let profile =
        lab_profiles().into_iter().find(|profile| profile.name == "lossy-carrier").context("none")?;
    let mut device = Device::new(profile.host(lab, "lossy").await?).await?;
    device.up(&join).await?;
    wait::until("the session to stand", PATIENCE, || async {
        let status = device.status().await.map_err(|error| error.to_string())?;
        if status.session { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;
    device.reaches(vpn.gateway_address("staff").await?, PATIENCE).await?;
    let client = vpn.client_in("lossy", ClientPhase::Connected, PATIENCE).await?;
    let endpoint: SocketAddr = client.status.and_then(|status| status.endpoint).context("none")?.parse()?;
    let nat = device.host().nat().context("no NAT")?;
    let mappings = nat.mappings().await?;
    ensure!(mappings.iter().any(|mapping| mapping.outside == endpoint), "{endpoint} is not in {mappings:?}");
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}
