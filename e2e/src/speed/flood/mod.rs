//! A gateway under attack: what legitimate traffic keeps, how long a newcomer takes, and what memory grows by.
//!
//! The same flood at a socket that nobody reads is what it is compared with: on a small machine, whoever sends the
//! flood takes processor time from everybody.

mod attack;
mod sender;
mod table;

use std::{net::UdpSocket, path::PathBuf};

use serde::Serialize;

pub use self::attack::Attack;
use self::{attack::Insider, sender::Flood};
use super::{
    Contender, Machine, json, logs,
    pair::Pair,
    present,
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
    /// The agent's binary.
    pub pinhole: PathBuf,
    /// Whose gateways, without those that are not there.
    pub contenders: Vec<Contender>,
    /// What they are attacked with.
    pub attacks: Vec<Attack>,
    /// Datagrams per second of each attack.
    pub rate: u32,
    /// How often each is measured.
    pub rounds: u32,
    /// Seconds of each measurement.
    pub seconds: u32,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    machine: Machine,
    rate: u32,
    rounds: u32,
    seconds: u32,
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
/// When the machine has no namespaces for it, or a contender does not work at all under an attack.
pub async fn run(options: &Options) -> Result<Results> {
    let (tools, _lock) = take_turns().await?;
    let logs = logs()?;
    let mut targets = Vec::new();
    for (contender, program) in present(&options.contenders, &options.pinhole, &tools)? {
        let Some(program) = program else { continue };
        let number = targets.len();
        let set_up = Pair::set_up(contender, Some(&program), number, logs.path());
        let pair = progress::step(&format!("setting up {contender}"), set_up).await?;
        targets.push(Target::new(pair).await?);
    }
    let mut all: Vec<Vec<Readings>> =
        targets.iter().map(|_| options.attacks.iter().map(|_| Readings::default()).collect()).collect();
    for round in 1..=options.rounds {
        for (n, &attack) in options.attacks.iter().enumerate() {
            for (target, readings) in targets.iter().zip(&mut all) {
                let name =
                    format!("round {round} of {}: {attack} at {}", options.rounds, target.pair.contender());
                let Some(readings) = readings.get_mut(n) else { continue };
                progress::step(&name, target.suffer(attack, options, readings)).await?;
            }
        }
    }
    let mut figures = Vec::new();
    for (target, readings) in targets.iter().zip(all) {
        for (&attack, readings) in options.attacks.iter().zip(readings) {
            let spread =
                |values: &[f64]| Spread::of(values).ok_or_else(|| Error::Invalid("no round".to_owned()));
            figures.push(Figure {
                contender: target.pair.contender(),
                attack,
                sent: spread(&readings.sent)?,
                kept: spread(&readings.kept)?,
                newcomer: spread(&readings.newcomer)?,
                grown: readings.grown,
            });
        }
    }
    let Options { rate, rounds, seconds, .. } = *options;
    Ok(Results { machine: Machine::here(), rate, rounds, seconds, figures })
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

    async fn suffer(&self, attack: Attack, options: &Options, readings: &mut Readings) -> Result<()> {
        let beside = {
            let _flood = self.flood(attack, options.rate, SINK)?;
            self.throughput(options.seconds).await?
        };
        let before = self.pair.gateway()?.resident;
        let newcomer = Crowd::new(&self.pair, 1)?;
        newcomer.join().await?;
        let flood = self.flood(attack, options.rate, Pair::endpoint().port())?;
        let (under, storm) =
            tokio::join!(self.throughput(options.seconds), newcomer.storm(Origin::AddressEach));
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

impl Results {
    /// A table for people.
    pub fn table(&self) -> String {
        table::render(self)
    }

    /// All figures.
    ///
    /// # Errors
    /// None that can come up.
    pub fn json(&self) -> Result<String> {
        json(self)
    }
}
