//! A gateway and the operator under strangers, in a whole lab: a thousand connections with half-sent calls, from hosts on the
//! internet at the gateway's session port, and from a pod at the operator's link. What memory grows by, how long a machine
//! with a good token takes to be connected meanwhile, and what an attached one notices.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use pinhole_reception::hostile::{Bind, Conduct, Strangers};
use serde::Serialize;
use tokio::{
    net::TcpSocket,
    time::{Instant, interval, sleep},
};

use crate::{
    device::Device,
    error::{Doing, Error, Result},
    installation::{self, Installation},
    lab::Lab,
    nat::NatProfile,
    netns::Netns,
    pods, progress,
    speed::usage,
    vpn::Vpn,
    wait,
};

/// Bytes that memory may grow by.
const GROWTH: u64 = 32 << 20;
/// How long a newcomer may take.
const SOON: Duration = Duration::from_secs(2);
/// How often memory is read, and the attached one pings.
const LOOK: Duration = Duration::from_millis(100);
const PINGS: &str = "0.2";
/// Addresses that strangers come from.
const ADDRESSES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(30);
const POOL: &str = "strangers";

/// How many, and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Connections.
    pub connections: usize,
    /// Calls on each.
    pub calls: usize,
    /// For so long.
    pub span: Duration,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// One for each port.
    pub rows: Vec<Row>,
}

/// What was measured at one port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Whose port.
    pub port: &'static str,
    /// Connections, handshakes and calls of strangers.
    pub connections: u64,
    /// Those with TLS.
    pub handshakes: u64,
    /// Calls that were begun.
    pub calls: u64,
    /// Resident bytes before, and the most while they were there.
    pub before: u64,
    /// The most while they were there.
    pub most: u64,
    /// Seconds until machines with a good token were connected.
    pub newcomers: Vec<f64>,
    /// Pings of an attached one that were sent, and answered.
    pub pings: (u32, u32),
    /// Whether it kept its session and its path.
    pub unmoved: bool,
}

impl Row {
    /// What is not as it should be.
    pub fn faults(&self) -> Vec<String> {
        let grown = self.most.saturating_sub(self.before);
        let (sent, answered) = self.pings;
        let mut faults = Vec::new();
        if grown >= GROWTH {
            faults.push(format!("{}: memory grew by {} kB", self.port, grown / 1000));
        }
        if self.newcomers.is_empty() || self.newcomers.iter().any(|seconds| *seconds > SOON.as_secs_f64()) {
            faults.push(format!("{}: newcomers took {:.1?} s", self.port, self.newcomers));
        }
        if answered < sent || !self.unmoved {
            faults.push(format!("{}: an attached client noticed: {answered} of {sent} pings", self.port));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12}{:>12}{:>12}{:>10}{:>14}{:>12}{:>20}{:>14}",
            "port", "connections", "handshakes", "calls", "before, kB", "grown, kB", "newcomer, s", "pings"
        )?;
        for row in &self.rows {
            let slowest = row.newcomers.iter().copied().fold(0.0, f64::max);
            writeln!(
                f,
                "{:<12}{:>12}{:>12}{:>10}{:>14}{:>12}{:>20}{:>14}",
                row.port,
                row.connections,
                row.handshakes,
                row.calls,
                row.before / 1000,
                row.most.saturating_sub(row.before) / 1000,
                format!("{slowest:.2} (of {})", row.newcomers.len()),
                format!("{} of {}", row.pings.1, row.pings.0),
            )?;
        }
        Ok(())
    }
}

/// Carries out a plan in a VPN that has a gateway and no pools yet; `pod` is another VPN, whose gateway's pod strangers sit in.
///
/// # Errors
/// When a part of the lab fails.
pub async fn run(vpn: &Vpn<'_>, pod: &Vpn<'_>, plan: &Plan) -> Result<Report> {
    let lab = vpn.lab();
    vpn.pool(POOL, "[10.99.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
    let join = vpn.join(POOL, "any").await?;
    let mut attached = Device::new(lab.nat_host("strangers-old", NatProfile::home()).await?).await?;
    attached.up(&join).await?;
    let stage = Stage { vpn, join, gateway: vpn.gateway_address(POOL).await?, attached };

    let host = lab.public_host("strangers").await?;
    let mut from = vec![IpAddr::from(host.address())];
    while from.len() < ADDRESSES {
        from.push(host.add_address().await?.into());
    }
    let session = Conduct {
        to: session_port(&stage.join)?,
        path: "/pinhole.v1.ClientSession/Enrol",
        calls: plan.calls,
    };
    let gateway = pods::process(lab, vpn.namespace(), "edge-0")?.as_raw();
    let crowd = || come(host.netns(), &from, plan.connections, session);
    let at_gateway = Box::pin(stage.suffer("session", gateway, plan.span, crowd));
    let at_gateway = progress::step("strangers at the gateway's session port", at_gateway).await?;

    let link =
        Conduct { to: link_port(lab).await?, path: "/pinhole.v1.GatewayLink/RelayEnrol", calls: plan.calls };
    let netns = wait::until("a pod for strangers", PATIENCE, || async {
        pods::netns(lab, pod.namespace(), "edge-0").map_err(|error| error.to_string())
    })
    .await?;
    let leader = Installation::leader(lab).await?;
    let operator = pods::process(lab, installation::NAMESPACE, &leader)?.as_raw();
    let from = [pod_address(&netns).await?];
    let crowd = || come(&netns, &from, plan.connections, link);
    let at_operator = Box::pin(stage.suffer("link", operator, plan.span, crowd));
    let at_operator = progress::step("strangers at the operator's link", at_operator).await?;

    let Stage { mut attached, .. } = stage;
    attached.down().await?;
    Ok(Report { rows: vec![at_gateway, at_operator] })
}

fn come(netns: &Netns, from: &[IpAddr], count: usize, conduct: Conduct) -> Result<Strangers> {
    let netns = netns.clone();
    let bind: Arc<Bind> = Arc::new(move |address: IpAddr| {
        let bound = netns.within(|| {
            let socket = TcpSocket::new_v4()?;
            socket.bind((address, 0).into()).map(|()| socket)
        });
        bound.map_err(std::io::Error::other)?
    });
    Strangers::come(&bind, from, count, conduct).doing(|| "letting strangers loose".to_owned())
}

/// Who is to notice nothing.
struct Stage<'a> {
    vpn: &'a Vpn<'a>,
    join: String,
    gateway: IpAddr,
    attached: Device,
}

impl Stage<'_> {
    async fn suffer(
        &self,
        port: &'static str,
        pid: i32,
        span: Duration,
        come: impl FnOnce() -> Result<Strangers>,
    ) -> Result<Row> {
        let before = usage::of(pid)?.resident;
        let was = self.attached.status().await?;
        let strangers = come()?;
        let newcomers = async {
            // By then they are all there.
            sleep(span / 4).await;
            let mut took = Vec::new();
            for n in 0..3 {
                took.push(self.newcomer(&format!("{port}-new-{n}")).await?);
            }
            Ok::<_, Error>(took)
        };
        let (most, newcomers, pings) = tokio::join!(most_resident(pid, span), newcomers, self.pings(span));
        let is = self.attached.status().await?;
        let (connections, handshakes, calls) = strangers.begun();
        Ok(Row {
            port,
            connections,
            handshakes,
            calls,
            before,
            most: most?,
            newcomers: newcomers?,
            pings: pings?,
            unmoved: is.session && is.churn.count == was.churn.count && is.replica == was.replica,
        })
    }

    /// Seconds until a machine is connected that was none before.
    async fn newcomer(&self, name: &str) -> Result<f64> {
        let host = self.vpn.lab().nat_host(name, NatProfile::home()).await?;
        let mut device = Device::new(host).await?;
        let begun = Instant::now();
        device.start(&self.join, &[]).await?;
        device.connected(PATIENCE).await?;
        let took = begun.elapsed().as_secs_f64();
        device.down().await?;
        Ok(took)
    }

    /// Sent and answered.
    async fn pings(&self, span: Duration) -> Result<(u32, u32)> {
        let (seconds, target) = (span.as_secs().to_string(), self.gateway.to_string());
        let args = ["-n", "-q", "-i", PINGS, "-w", &seconds, &target];
        let said = self.attached.host().command("ping").args(args).output().await?.stdout;
        let summary = said.lines().find(|line| line.contains("packets transmitted"));
        let mut numbers = summary
            .unwrap_or_default()
            .split(',')
            .filter_map(|part| part.split_whitespace().next()?.parse::<u32>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(sent), Some(answered)) => Ok((sent, answered)),
            _ => Err(Error::Invalid(format!("ping says {said:?}"))),
        }
    }
}

async fn most_resident(pid: i32, span: Duration) -> Result<u64> {
    let begun = Instant::now();
    let (mut most, mut looks) = (0, interval(LOOK));
    while begun.elapsed() < span {
        looks.tick().await;
        most = most.max(usage::of(pid)?.resident);
    }
    Ok(most)
}

/// Where a join string says that sessions are.
fn session_port(join: &str) -> Result<SocketAddr> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let odd = || Error::Invalid("the join string names no address".to_owned());
    let body = join.trim().strip_prefix("pinhole:").ok_or_else(odd)?;
    let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| odd())?;
    let join: serde_json::Value = serde_json::from_slice(&body).map_err(|_| odd())?;
    let endpoints = join.get("endpoints").and_then(|endpoints| endpoints.as_array()).into_iter().flatten();
    let mut addresses = endpoints.filter_map(|endpoint| endpoint.as_str()?.parse::<SocketAddr>().ok());
    addresses.find(SocketAddr::is_ipv4).ok_or_else(odd)
}

/// The operator's Service, as gateways reach it.
async fn link_port(lab: &Lab) -> Result<SocketAddr> {
    let args = [
        "get",
        "service",
        "-n",
        installation::NAMESPACE,
        "pinhole-operator",
        "-o",
        "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
    ];
    let said = lab.kubectl(args).await?;
    said.trim().parse().map_err(|_| Error::Invalid(format!("the operator's Service is at {said:?}")))
}

async fn pod_address(netns: &Netns) -> Result<IpAddr> {
    let said = netns.command("ip").args(["-4", "-o", "route", "get", "192.0.2.1"]).run().await?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "src").skip(1);
    let address = words.next().and_then(|word| word.parse().ok());
    address.ok_or_else(|| Error::Invalid(format!("a pod without an address: {said:?}")))
}
