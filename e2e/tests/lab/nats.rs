//! The NATs behave as their profiles say.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, ensure};
use pinhole_e2e::{
    Lab,
    host::Host,
    nat::{Loss, Mapping, Nat, NatProfile, UdpFilter},
    wait,
};

use crate::{Outcome, tests};

tests![
    a_home_nat_keeps_the_port_towards_every_destination,
    a_symmetric_nat_has_a_port_for_each_destination,
    a_carrier_nat_translates_again,
    a_rebind_moves_every_kind_of_mapping,
    a_change_of_address_shows_and_carries_on,
    a_binding_expires_after_the_lifetime_of_its_kind,
    a_blocked_port_lets_nothing_out_while_another_does,
    total_loss_loses_everything_and_is_mended,
    twenty_hosts_with_one_source_port_share_a_nat,
    a_nat_out_of_ports_turns_new_flows_away,
    nobody_outside_gets_in_unasked,
];

const PATIENCE: Duration = Duration::from_secs(20);

/// A host of the public segment that answers each datagram with the address it came from.
struct Mirror {
    host: Host,
    ports: Vec<u16>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Mirror {
    async fn start(lab: &Lab, name: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let host = lab.public_host(name).await?;
        let mut tasks = Vec::new();
        for port in ports {
            let socket = host.udp_socket(*port)?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let answer = async move {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(from.to_string().as_bytes(), from).await;
                }
            };
            tasks.push(tokio::spawn(answer).abort_handle());
        }
        Ok(Self { host, ports: ports.to_vec(), tasks })
    }

    fn address(&self, n: usize) -> anyhow::Result<SocketAddr> {
        let port = self.ports.get(n).context("no such port")?;
        Ok(SocketAddr::new(self.host.address().into(), *port))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// How the mirror sees this socket; none when no answer comes.
async fn seen(socket: &UdpSocket, mirror: SocketAddr) -> anyhow::Result<Option<SocketAddr>> {
    let socket = socket.try_clone()?;
    let ask = move || -> anyhow::Result<Option<SocketAddr>> {
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut buffer = [0; 64];
        for _ in 0..3 {
            if socket.send_to(b"who am I?", mirror).is_err() {
                continue;
            }
            // An answer to a question before may be late: only the one asked counts.
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if from == mirror {
                    let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default())?;
                    return Ok(Some(text.parse()?));
                }
            }
        }
        Ok(None)
    };
    tokio::task::spawn_blocking(ask).await?
}

async fn must_be_seen(socket: &UdpSocket, mirror: SocketAddr) -> anyhow::Result<SocketAddr> {
    seen(socket, mirror).await?.with_context(|| format!("no answer from {mirror}"))
}

fn nat(host: &Host) -> anyhow::Result<&Nat> {
    host.nat().context("the host has no NAT")
}

async fn a_home_nat_keeps_the_port_towards_every_destination(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-home", &[7001, 7002]).await?;
    let host = lab.nat_host("keeps", NatProfile::home()).await?;
    let socket = host.udp_socket(4500)?;
    let expected = SocketAddr::new(nat(&host)?.address().into(), 4500);
    ensure!(must_be_seen(&socket, mirror.address(0)?).await? == expected);
    ensure!(must_be_seen(&socket, mirror.address(1)?).await? == expected);
    Ok(())
}

async fn a_symmetric_nat_has_a_port_for_each_destination(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-symmetric", &[7001, 7002, 7003]).await?;
    let host = lab.nat_host("symmetric", NatProfile::symmetric()).await?;
    let socket = host.udp_socket(4500)?;
    let mut ports = BTreeSet::new();
    for n in 0..3 {
        ports.insert(must_be_seen(&socket, mirror.address(n)?).await?.port());
    }
    ensure!(ports.len() == 3, "{ports:?}");
    let again = must_be_seen(&socket, mirror.address(0)?).await?.port();
    ensure!(ports.contains(&again), "the binding did not last: {again} is not among {ports:?}");
    Ok(())
}

async fn a_carrier_nat_translates_again(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-carrier", &[7001, 7002]).await?;
    let host = lab.carrier_host("twice", NatProfile::carrier(), NatProfile::home()).await?;
    let socket = host.udp_socket(4500)?;
    let first = must_be_seen(&socket, mirror.address(0)?).await?;
    let [home, carrier] = host.nats() else { anyhow::bail!("{:?}", host.nats()) };
    ensure!(first.ip() == carrier.address(), "{first}");
    ensure!((50_000..51_000).contains(&first.port()), "{first}");
    ensure!(must_be_seen(&socket, mirror.address(1)?).await? == first, "it is endpoint-independent");
    let inner = home.mappings().await?;
    let inner = inner.iter().find(|m| Some(m.remote) == mirror.address(0).ok()).context("no mapping")?;
    ensure!(inner.outside == SocketAddr::new(home.address().into(), 4500), "{inner:?}");
    Ok(())
}

async fn a_rebind_moves_every_kind_of_mapping(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-rebind", &[7001]).await?;
    let mirror = mirror.address(0).map(|address| (address, mirror))?;
    for (name, profile) in [
        ("rebinds-home", NatProfile::home()),
        ("rebinds-office", NatProfile::symmetric()),
        ("rebinds-carrier", NatProfile::carrier()),
    ] {
        let host = lab.nat_host(name, profile).await?;
        let socket = host.udp_socket(4500)?;
        let mut ports = BTreeSet::from([must_be_seen(&socket, mirror.0).await?.port()]);
        for _ in 0..3 {
            nat(&host)?.rebind().await?;
            let port = must_be_seen(&socket, mirror.0).await?.port();
            ensure!(ports.insert(port), "{name} came back on {port}, as before: {ports:?}");
        }
    }
    Ok(())
}

async fn a_change_of_address_shows_and_carries_on(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-address", &[7001]).await?;
    let host = lab.nat_host("moves", NatProfile::home()).await?;
    let socket = host.udp_socket(4500)?;
    let before = must_be_seen(&socket, mirror.address(0)?).await?;
    let new = nat(&host)?.change_address().await?;
    let after = must_be_seen(&socket, mirror.address(0)?).await?;
    ensure!(before.ip() != new && after.ip() == new, "{before}, then {after} instead of {new}");
    Ok(())
}

async fn a_binding_expires_after_the_lifetime_of_its_kind(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-expiry", &[7001]).await?;
    let profile = NatProfile::home().timeouts(Duration::from_secs(5), Duration::from_secs(15));
    let host = lab.nat_host("expires", profile).await?;
    let socket = host.udp_socket(4500)?;
    must_be_seen(&socket, mirror.address(0)?).await?;
    let begun = std::time::Instant::now();
    wait::until("the binding to expire", PATIENCE, || async {
        let left = nat(&host).map_err(|e| e.to_string())?.mappings().await.map_err(|e| e.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await?;
    let lasted = begun.elapsed();
    ensure!((4..8).contains(&lasted.as_secs()), "it lasted {lasted:?}");
    Ok(())
}

async fn a_blocked_port_lets_nothing_out_while_another_does(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-filter", &[7001, 7002]).await?;
    let blocked = UdpFilter::BlockedPorts(BTreeSet::from([7001]));
    let host = lab.nat_host("filtered", NatProfile::home().udp(blocked)).await?;
    let socket = host.udp_socket(4500)?;
    ensure!(seen(&socket, mirror.address(0)?).await?.is_none());
    must_be_seen(&socket, mirror.address(1)?).await?;
    nat(&host)?.set_udp(UdpFilter::Blocked).await?;
    ensure!(seen(&socket, mirror.address(1)?).await?.is_none());
    nat(&host)?.set_udp(UdpFilter::Open).await?;
    must_be_seen(&socket, mirror.address(0)?).await?;
    Ok(())
}

async fn total_loss_loses_everything_and_is_mended(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-loss", &[7001]).await?;
    let host = lab.nat_host("loses", NatProfile::home().loss(Loss::percent(100))).await?;
    let socket = host.udp_socket(4500)?;
    ensure!(seen(&socket, mirror.address(0)?).await?.is_none());
    nat(&host)?.set_loss(Loss::NONE).await?;
    must_be_seen(&socket, mirror.address(0)?).await?;
    Ok(())
}

async fn twenty_hosts_with_one_source_port_share_a_nat(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-crowd", &[7001]).await?;
    let nat = lab.nat("crowd", NatProfile::home()).await?;
    let mut public = BTreeSet::new();
    let mut hosts = Vec::new();
    for n in 0..20 {
        let host = nat.host(&format!("crowd-{n}")).await?;
        let seen = must_be_seen(&host.udp_socket(4500)?, mirror.address(0)?).await?;
        ensure!(seen.ip() == nat.address(), "{seen}");
        public.insert(seen);
        hosts.push(host);
    }
    ensure!(public.len() == 20, "{public:?}");
    let private: BTreeSet<_> = hosts.iter().map(Host::address).collect();
    ensure!(private.len() == 20, "{private:?}");
    Ok(())
}

async fn a_nat_out_of_ports_turns_new_flows_away(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-narrow", &[7001]).await?;
    let narrow = NatProfile::home().mapping(Mapping::Range(50_000..=50_003));
    let host = lab.nat_host("narrow", narrow).await?;
    let sockets: Vec<_> = (0..5).map(|n| host.udp_socket(4500 + n)).collect::<Result<_, _>>()?;
    let mut answered = 0;
    for socket in &sockets {
        answered += usize::from(seen(socket, mirror.address(0)?).await?.is_some());
    }
    ensure!(answered == 4, "{answered} of 5 flows got through 4 ports");
    Ok(())
}

async fn nobody_outside_gets_in_unasked(lab: &Lab) -> Outcome {
    let mirror = Mirror::start(lab, "mirror-unasked", &[7001, 7002]).await?;
    let host = lab.nat_host("closed", NatProfile::home()).await?;
    let socket = host.udp_socket(4500)?;
    let public = must_be_seen(&socket, mirror.address(0)?).await?;
    // From an address that the host has not sent to, to the very binding it has.
    let stranger = lab.public_host("stranger").await?;
    stranger.udp_socket(9)?.send_to(b"let me in", public)?;
    // Had it come in, it would be the first in the queue, before the answer to this question.
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who am I?", mirror.address(1)?)?;
    let (_, from) = socket.recv_from(&mut [0; 64])?;
    ensure!(from == mirror.address(1)?, "a datagram of {from} came in");
    let mappings = nat(&host)?.mappings().await?;
    ensure!(mappings.iter().all(|mapping| mapping.inside.port() == 4500), "{mappings:?}");
    Ok(())
}
