//! Many peers of one gateway: what each costs, how all come back at once, and what one at work notices of the others.
//!
//! The peers are the `storm`'s: real handshakes with real keys, of which this process keeps the other end.

mod table;

use serde::Serialize;

use super::{
    Common, Contender, Machine, Report, gateways, logs,
    pair::Pair,
    scenario::{self, Metric, Scenario},
    storm::{Crowd, Origin, Storm},
    summary::Spread,
    take_turns,
    usage::Usage,
};
use crate::{error::Result, progress};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose gateways, and how thoroughly their throughput.
    pub common: Common,
    /// With how many peers each.
    pub peers: Vec<u32>,
    /// Seconds in which nothing happens.
    pub idle: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    machine: Machine,
    gateways: Vec<Gateway>,
}

/// A gateway with so many peers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gateway {
    contender: Contender,
    peers: u32,
    /// Seconds until it had taken them.
    configured: f64,
    /// Bytes of memory for each peer before it had a session, and with one. None of few: they drown in the rest.
    bytes: Option<f64>,
    bytes_with_session: Option<f64>,
    /// All at once, each from an address of its own, and then from one address together.
    storm: Storm,
    storm_behind_one_address: Storm,
    /// Percent of one processor while nothing happens.
    idle: f64,
    /// Of one more peer at work: Gbit/s and CPU seconds per GB.
    throughput: Option<Spread>,
    cpu_per_gigabyte: Option<Spread>,
}

/// Measures. Leaves nothing behind, also where it fails or is dropped.
///
/// # Errors
/// When the machine has no namespaces for it, or a contender does not work.
pub async fn run(options: &Options) -> Result<Results> {
    let Common { rounds, seconds, .. } = options.common;
    let (tools, _lock) = take_turns().await?;
    let logs = logs()?;
    let mut standing = Vec::new();
    for (contender, program) in gateways(&options.common, &tools)? {
        for &peers in &options.peers {
            let number = standing.len();
            let set_up = Pair::set_up(contender, Some(&program), number, logs.path());
            let pair = progress::step(&format!("setting up {contender}"), set_up).await?;
            let measure = gather(&pair, peers, options.idle);
            let measured = progress::step(&format!("{peers} peers of {contender}"), measure).await;
            let gateway = match measured {
                Err(error) if contender != Contender::Pinhole => {
                    // Some end under so many.
                    progress::say(&format!("{contender} with {peers} peers is left out: {error}"));
                    continue;
                }
                measured => measured?,
            };
            standing.push((pair, gateway, Vec::new()));
        }
    }
    for round in 1..=rounds {
        for (pair, gateway, readings) in &mut standing {
            let peers = gateway.peers;
            let name = format!("round {round} of {rounds}: one beside {peers} of {}", pair.contender());
            let measure = scenario::measure(pair, Scenario::Tcp1Up, seconds);
            readings.push(progress::step(&name, measure).await?);
        }
    }
    let gateways = standing.into_iter().map(|(_pair, gateway, readings)| {
        let spread = |metric: Metric| {
            Spread::of(&readings.iter().filter_map(|it| it.get(&metric).copied()).collect::<Vec<_>>())
        };
        let (throughput, cpu) = (spread(Metric::Throughput), spread(Metric::CpuPerGigabyte));
        Gateway { throughput, cpu_per_gigabyte: cpu, ..gateway }
    });
    Ok(Results { machine: Machine::here(), gateways: gateways.collect() })
}

/// All but throughput.
async fn gather(pair: &Pair, peers: u32, idle: u32) -> Result<Gateway> {
    /// Fewer drown in what the process needs anyway.
    const ENOUGH: u32 = 100;
    let before = pair.gateway()?;
    let crowd = Crowd::new(pair, peers)?;
    let begun = tokio::time::Instant::now();
    crowd.join().await?;
    let configured = begun.elapsed().as_secs_f64();
    let with_peers = pair.gateway()?;
    let storm = crowd.storm(Origin::AddressEach).await?;
    let with_sessions = pair.gateway()?;
    let idle = idle_share(pair, idle).await?;
    let storm_behind_one_address = crowd.storm(Origin::OneAddress).await?;
    #[expect(clippy::cast_precision_loss, reason = "nobody has that much memory")]
    let each = |usage: Usage| {
        (peers >= ENOUGH).then(|| usage.resident.saturating_sub(before.resident) as f64 / f64::from(peers))
    };
    Ok(Gateway {
        contender: pair.contender(),
        peers,
        configured,
        bytes: each(with_peers),
        bytes_with_session: each(with_sessions),
        storm,
        storm_behind_one_address,
        idle,
        throughput: None,
        cpu_per_gigabyte: None,
    })
}

/// Percent of a processor that the gateway takes for itself.
async fn idle_share(pair: &Pair, seconds: u32) -> Result<f64> {
    let before = pair.gateway()?;
    // What is measured is the passing of time.
    tokio::time::sleep(std::time::Duration::from_secs(seconds.into())).await;
    let used = pair.gateway()?.cpu.saturating_sub(before.cpu);
    Ok(100.0 * used.as_secs_f64() / f64::from(seconds.max(1)))
}

impl Report for Results {
    fn table(&self) -> String {
        table::render(self)
    }
}
