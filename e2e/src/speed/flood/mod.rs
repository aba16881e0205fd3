//! A gateway under attack: what legitimate traffic keeps, how long a newcomer takes, and what memory grows by.
//!
//! The same flood at a socket that nobody reads is what it is compared with: on a small machine, whoever sends the
//! flood takes processor time from everybody.

mod attack;
mod sender;
mod table;

use std::{collections::BTreeMap, net::UdpSocket};

use serde::Serialize;

pub use self::attack::Attack;
use self::{attack::Insider, sender::Flood};
use super::{
    Common, Contender, Machine, Report, gateways, logs,
    pair::Pair,
    scenario::{self, Metric, Scenario},
    storm::{Crowd, Origin},
    summary::Spread,
    take_turns,
};
use crate::{
    error::{Doing, Error, Result},
    progress,
};

/// Where nobody reads.
const SINK: u16 = 9;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose gateways, and how thoroughly.
    pub common: Common,
    /// What they are attacked with.
    pub attacks: Vec<Attack>,
    /// Datagrams per second of each attack.
    pub rate: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    machine: Machine,
    rate: u32,
    rounds: u32,
    seconds: u32,
    /// By attack and contender.
    figures: Vec<Figure>,
}

/// A gateway under one attack.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    contender: Contender,
    attack: Attack,
    /// Datagrams per second that were really sent.
    sent: Spread,
    /// A TCP stream's throughput, as a share of what it has beside the same flood at somebody else.
    kept: Spread,
    /// Seconds until a newcomer had its answer.
    newcomer: Spread,
    /// Bytes by which memory grew in all.
    grown: i64,
}

/// Readings of one attack.
#[derive(Default)]
struct Readings {
    sent: Vec<f64>,
    kept: Vec<f64>,
    newcomer: Vec<f64>,
    grown: i64,
}

/// Measures. Leaves nothing behind, also where it fails or is dropped.
///
/// # Errors
/// When the machine has no namespaces for it, or a contender does not work at all.
pub async fn run(options: &Options) -> Result<Results> {
    let Common { rounds, seconds, .. } = options.common;
    let (tools, _lock) = take_turns().await?;
    let logs = logs()?;
    let mut targets = Vec::new();
    for (number, (contender, program)) in gateways(&options.common, &tools)?.into_iter().enumerate() {
        let set_up = Pair::set_up(contender, Some(&program), number, logs.path());
        let pair = progress::step(&format!("setting up {contender}"), set_up).await?;
        targets.push(Target::new(pair).await?);
    }
    let mut all: BTreeMap<(Attack, Contender), Readings> = BTreeMap::new();
    for round in 1..=rounds {
        for &attack in &options.attacks {
            for target in &targets {
                let contender = target.pair.contender();
                let readings = all.entry((attack, contender)).or_default();
                let suffer = target.suffer(attack, (options.rate, seconds), readings);
                let name = format!("round {round} of {rounds}: {attack} at {contender}");
                // Who does not stand it has no figure, and the others are measured all the same.
                if let Err(error) = progress::step(&name, suffer).await {
                    progress::say(&format!("{attack} at {contender} is missing: {error}"));
                }
            }
        }
    }
    let figures = all.into_iter().filter_map(|((attack, contender), readings)| {
        Some(Figure {
            contender,
            attack,
            sent: Spread::of(&readings.sent)?,
            kept: Spread::of(&readings.kept)?,
            newcomer: Spread::of(&readings.newcomer)?,
            grown: readings.grown,
        })
    });
    let figures = figures.collect();
    Ok(Results { machine: Machine::here(), rate: options.rate, rounds, seconds, figures })
}

/// A gateway to attack.
struct Target {
    pair: Pair,
    insider: Insider,
    _sink: UdpSocket,
}

impl Target {
    async fn new(pair: Pair) -> Result<Self> {
        let sink = pair.far.netns().within(|| UdpSocket::bind(("0.0.0.0", SINK)))?;
        let sink = sink.doing(|| "opening a socket that nobody reads".to_owned())?;
        let insider = Insider::join(&pair).await?;
        Ok(Self { pair, insider, _sink: sink })
    }

    async fn suffer(
        &self,
        attack: Attack,
        (rate, seconds): (u32, u32),
        readings: &mut Readings,
    ) -> Result<()> {
        let beside = {
            let _flood = self.flood(attack, rate, SINK)?;
            self.throughput(seconds).await?
        };
        let before = self.pair.gateway()?.resident;
        let newcomer = Crowd::new(&self.pair, 1)?;
        newcomer.join().await?;
        let flood = self.flood(attack, rate, Pair::endpoint().port())?;
        let (under, storm) = tokio::join!(self.throughput(seconds), newcomer.storm(Origin::AddressEach));
        readings.sent.push(flood.rate());
        drop(flood);
        let storm = storm?;
        if storm.sessions == 0 {
            return Err(Error::Invalid(format!("{}: no session under {attack}", self.pair.contender())));
        }
        readings.newcomer.push(storm.last);
        readings.kept.push(under? / beside.max(1e-9));
        readings.grown += self.pair.gateway()?.resident.cast_signed() - before.cast_signed();
        Ok(())
    }

    fn flood(&self, attack: Attack, rate: u32, port: u16) -> Result<Flood> {
        let ammunition = self.insider.ammunition(&self.pair, attack)?;
        let mut to = Pair::endpoint();
        to.set_port(port);
        Flood::begin(self.pair.near.netns(), ammunition, to, rate)
    }

    async fn throughput(&self, seconds: u32) -> Result<f64> {
        let readings = scenario::measure(&self.pair, Scenario::Tcp1Up, seconds).await?;
        Ok(readings.get(&Metric::Throughput).copied().unwrap_or_default())
    }
}

impl Report for Results {
    fn table(&self) -> String {
        table::render(self)
    }
}
