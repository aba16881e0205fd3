//! Real agents behind real NATs, in real time: an adaptive client and one with a static keepalive behind each of
//! several NATs of the same kind, and wakes at random times.
//!
//! What it costs is counted on the client's interface: bursts of anything between it and the world. The agent's own count has
//! to be the same, and what the simulator says of that NAT stands beside.
//!
//! A wake asks the NATs whether a packet that the gateway sends now would get in; it sends none, as that would keep
//! the mapping alive. At the end every client is woken once by a real packet, and the NATs must have told the truth.

mod report;
mod simulated;
mod wakes;
mod way;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures::future::try_join_all;
use kube::{Api, api::ListParams};
use pinhole_crds::VPNClient;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::{
    report::{Kept, Report, Row},
    wakes::{Wakes, wake},
    way::{Way, WayIn},
};
use crate::{
    capture::{Burst, Capture},
    device::{Device, Status},
    error::{Error, Result},
    nat::{LabProfile, Truth, userspace::Random},
    netns::Netns,
    pods, progress,
    vpn::Vpn,
};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Behind these.
    pub profiles: Vec<LabProfile>,
    /// From the first connection on, for so long.
    pub span: Duration,
    /// So many wakes of each client in that time.
    pub wakes: u32,
    /// Of the times of the wakes.
    pub seed: u64,
}

/// The keepalive of those who do not learn.
pub const STATIC: Duration = Duration::from_secs(25);

/// The pools of both kinds of client, in 10.N.0.0/24 and 10.N.1.0/24.
const POOLS: [&str; 2] = ["adaptive", "static"];
/// How long a client may take to connect while all the others do, too.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often the gateway's view is read.
const LOOK: Duration = Duration::from_millis(500);
/// So long after a mapping moved the API server may still name the old one.
const NEWS: Duration = Duration::from_secs(4);

/// A client behind NATs of its own.
struct Seat {
    device: Device,
    way: Way,
    inner: IpAddr,
    connected: Instant,
    capture: Capture,
}

/// Where the gateway sends to, by the client's hostname.
type Endpoints = Arc<Mutex<HashMap<String, SocketAddr>>>;

/// Carries out a plan in a VPN that has a gateway and no pools yet; `subnet` is the second byte of their addresses.
///
/// # Errors
/// When a client does not connect, or a part of the lab fails.
pub async fn run(vpn: &Vpn<'_>, subnet: u8, plan: &Plan) -> Result<Report> {
    let joins = pools(vpn, subnet).await?;
    let begin = plan.profiles.iter().flat_map(|profile| {
        POOLS
            .iter()
            .zip(&joins)
            .map(|(pool, join)| take_seat(vpn, profile, pool.get(..1).unwrap_or_default(), join))
    });
    let seats = progress::step("connecting clients from behind every NAT", try_join_all(begin)).await?;
    let endpoints = Endpoints::default();
    let watching = tokio::spawn(watch(vpn.clients(), Arc::clone(&endpoints)));
    let waking = async {
        let kept = seats.iter().enumerate().map(|(n, seat)| seat.keep(plan, n, &endpoints));
        let kept = progress::step("waking them at random times", try_join_all(kept)).await?;
        let gateway = pods::netns(vpn.lab(), vpn.namespace(), "edge-0")?;
        let wakes = seats.iter().enumerate().map(|(n, seat)| seat.wake(plan, n, (&gateway, &endpoints)));
        Ok((kept, try_join_all(wakes).await?))
    };
    let woken: Result<_> = waking.await;
    watching.abort();
    let (kept, really) = woken?;
    let clients = listed(&vpn.clients()).await?;
    let mut halves = kept.into_iter().zip(really).zip(&seats).map(|((kept, really), seat)| {
        let client = clients.iter().find(|client| hostname(client) == Some(seat.device.host().name()));
        (kept.really(really), client.cloned())
    });
    let mut rows = Vec::new();
    for profile in &plan.profiles {
        let (Some((adaptive, client)), Some((fixed, _))) = (halves.next(), halves.next()) else { break };
        let truth = profile.truth();
        let simulated = simulated::bursts(profile.name, &truth, adaptive.since, adaptive.span);
        rows.push(Row { name: profile.name, truth, adaptive, fixed, simulated, told: told(client) });
    }
    drop(halves);
    try_join_all(seats.into_iter().map(|mut seat| async move { seat.device.down().await })).await?;
    Ok(Report { rows })
}

fn told(client: Option<VPNClient>) -> Option<pinhole_crds::BindingLifetime> {
    client?.status?.binding
}

async fn pools(vpn: &Vpn<'_>, subnet: u8) -> Result<[String; 2]> {
    let token = "enrolment: { tokens: [{ name: any }] }";
    let fixed = format!("{token}\n  keepalive: {{ mode: Fixed, interval: {}s }}", STATIC.as_secs());
    let [adaptive, unlearnt] = POOLS;
    // What is compared is how a mapping of UDP is kept.
    let learning = format!("{token}\n  keepalive: {{ standby: UDP }}");
    vpn.pool(adaptive, &format!("[10.{subnet}.0.0/24]"), &learning).await?;
    vpn.pool(unlearnt, &format!("[10.{subnet}.1.0/24]"), &fixed).await?;
    Ok([vpn.join(adaptive, "any").await?, vpn.join(unlearnt, "any").await?])
}

async fn take_seat(vpn: &Vpn<'_>, profile: &LabProfile, kind: &str, join: &str) -> Result<Seat> {
    let host = profile.host(vpn.lab(), &format!("{}-{kind}", profile.name)).await?;
    let capture = Capture::begin(&host).await?;
    let mut device = Device::new(host).await?;
    device.start(join, &[]).await?;
    let status = device.connected(PATIENCE).await?;
    let connected = Instant::now();
    let inner = inner_address(&status)?;
    Ok(Seat { way: Way::of(&device).await?, device, inner, connected, capture })
}

fn inner_address(status: &Status) -> Result<IpAddr> {
    let first = status.addresses.first().and_then(|address| address.split('/').next()?.parse().ok());
    first.ok_or_else(|| Error::Invalid(format!("no inner address: {status:?}")))
}

fn hostname(client: &VPNClient) -> Option<&str> {
    client.spec.enrolment.as_ref()?.hostname.as_deref()
}

async fn listed(clients: &Api<VPNClient>) -> Result<Vec<VPNClient>> {
    let list = clients.list(&ListParams::default()).await;
    list.map(|list| list.items).map_err(|error| Error::Invalid(format!("listing the clients: {error}")))
}

async fn watch(clients: Api<VPNClient>, endpoints: Endpoints) {
    loop {
        // What is not read now is read the next time.
        let list = listed(&clients).await.unwrap_or_default();
        let endpoint = |client: &VPNClient| {
            let endpoint = client.status.as_ref()?.endpoint.as_deref()?.parse().ok()?;
            Some((hostname(client)?.to_owned(), endpoint))
        };
        endpoints.lock().unwrap_or_else(PoisonError::into_inner).extend(list.iter().filter_map(endpoint));
        sleep(LOOK).await;
    }
}

impl Seat {
    /// Wakes it at random times, and reads what it costs.
    async fn keep(&self, plan: &Plan, n: usize, endpoints: &Endpoints) -> Result<Kept> {
        let begun = Instant::now();
        let before = self.device.status().await?;
        let (from, since) = (SystemTime::now(), self.connected.elapsed());
        let mut missed = Vec::new();
        for at in times(plan, n, plan.wakes) {
            sleep_until(begun + at).await;
            if let Some(why) = self.why_not_reached(endpoints).await? {
                missed.push((self.connected.elapsed(), why));
            }
        }
        sleep_until(begun + plan.span).await;
        let status = self.device.status().await?;
        let bursts = self.capture.bursts(from, SystemTime::now())?;
        let told = status.keepalive.wakes.saturating_sub(before.keepalive.wakes);
        Ok(Kept {
            wakes: plan.wakes,
            missed,
            bursts,
            told,
            since,
            span: begun.elapsed(),
            status,
            really: None,
        })
    }

    async fn why_not_reached(&self, endpoints: &Endpoints) -> Result<Option<String>> {
        let Some(way) = self.way.in_force().await? else { return Ok(Some("no mapping".to_owned())) };
        let deadline = Instant::now() + NEWS;
        loop {
            let known = endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(self.device.host().name())
                .copied();
            if known == Some(way.outside) {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Ok(Some(format!("the gateway sends to {known:?}, not to {}", way.outside)));
            }
            sleep(LOOK).await;
        }
    }

    /// Wakes it by real packets, at a random time; whether one was answered and whether the NATs had said so, and the
    /// gateway known: a new mapping is of no use to it when the keepalive that made it was lost behind the NAT. Not when
    /// a mapping came or went in that very moment.
    async fn wake(
        &self,
        plan: &Plan,
        n: usize,
        (gateway, endpoints): (&Netns, &Endpoints),
    ) -> Result<(bool, bool)> {
        let times = times(&Plan { span: STATIC, ..plan.clone() }, n + 1000, 1);
        sleep(times.first().copied().unwrap_or_default()).await;
        loop {
            let before = self.why_not_reached(endpoints).await?.is_none();
            let answered = self.answers(gateway).await?;
            if before == self.why_not_reached(endpoints).await?.is_none() {
                return Ok((answered, before));
            }
        }
    }

    async fn answers(&self, gateway: &Netns) -> Result<bool> {
        // Enough to get through loss, also of the handshake that an idle client needs; too few to meet a keepalive.
        let ping = ["-n", "-c", "6", "-i", "0.5", "-W", "1", &self.inner.to_string()].map(str::to_owned);
        Ok(gateway.command("ping").args(ping).output().await?.status.success())
    }
}

/// Whether the wire and the agent counted the same: but for one in twenty, or two, as a look may fall into a burst.
///
/// # Errors
/// What the wire saw.
pub fn agree(name: &str, wire: &[Burst], told: u64) -> Result<()> {
    if is_same_count(wire.len(), told) {
        return Ok(());
    }
    let list = wire.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Err(Error::Invalid(format!(
        "{name} counted {told} wake-ups, and on its interface there were {}:\n{list}",
        wire.len()
    )))
}

fn is_same_count(seen: usize, told: u64) -> bool {
    let seen = u64::try_from(seen).unwrap_or(u64::MAX);
    seen.abs_diff(told) <= (seen / 20).max(2)
}

/// Times in the span of the plan, in order, at random.
fn times(plan: &Plan, n: usize, count: u32) -> Vec<Duration> {
    let mut random = Random::seeded(plan.seed.wrapping_add(u64::try_from(n).unwrap_or_default() << 32));
    let mut times: Vec<_> = (0..count).map(|_| plan.span.mul_f64(random.fraction())).collect();
    times.sort();
    times
}

/// What really holds behind a NAT, of use to nobody longer than the gateway's own node keeps a flow.
pub(crate) fn lifetime(truth: &Truth) -> (Duration, Duration) {
    /// Of a promoted flow at the node, which translates the Service's address: Linux's default.
    const NODE: Duration = Duration::from_mins(2);
    (truth.replied.min(NODE), (truth.replied + truth.sweep).min(NODE))
}

#[cfg(test)]
mod tests {
    use super::is_same_count;

    #[test]
    fn the_wire_and_the_agent_may_differ_by_one_in_twenty_or_by_two() {
        for (seen, told) in [(0, 0), (0, 2), (10, 8), (10, 12), (100, 95), (100, 105)] {
            assert!(is_same_count(seen, told), "{seen} {told}");
        }
        for (seen, told) in [(0, 3), (10, 7), (10, 13), (100, 94), (100, 106), (23, 10)] {
            assert!(!is_same_count(seen, told), "{seen} {told}");
        }
    }
}
