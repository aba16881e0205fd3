//! Userspace WireGuards side by side: the same work for each, in turns, between namespaces of their own. [`crowd`]
//! measures a gateway with many peers, [`flood`] one that is attacked, and [`profile`] shows where time goes.
//!
//! Each contender has a pair of namespaces with a cable between them (`pair`), all of which stand for the whole
//! run; `scenario` says what is measured, `traffic` and `handshakes` do it, `usage` reads what it cost. `summary`
//! makes medians, and ratios between figures of one round, so that a machine whose speed wanders does not matter;
//! `table` and `svg` show them.

mod contender;
pub mod crowd;
pub mod flood;
mod handshakes;
mod keys;
mod pair;
mod peer;
pub mod profile;
mod scenario;
mod storm;
mod summary;
mod svg;
mod table;
mod traffic;
pub(crate) mod usage;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use self::{
    contender::Contender,
    pair::Link,
    scenario::{Metric, Scenario},
};
use self::{
    pair::Pair,
    summary::{Key, Samples},
};
use crate::{
    error::{Doing, Error, Result},
    lab::must_be_possible,
    progress,
    setup::{Lock, packages, tools::Tools},
};

const LOCK: &str = "/run/pinhole-bench.lock";

/// Whom to measure, and how thoroughly.
#[derive(Debug, Clone)]
pub struct Common {
    /// The agent's binary.
    pub pinhole: PathBuf,
    /// Whom, without those that are not there.
    pub contenders: Vec<Contender>,
    /// How often each.
    pub rounds: u32,
    /// Seconds of each measurement.
    pub seconds: u32,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whom, and how thoroughly.
    pub common: Common,
    /// What.
    pub scenarios: Vec<Scenario>,
    /// Over which cables.
    pub links: Vec<Link>,
}

/// What was measured.
pub trait Report: Serialize {
    /// A table for people.
    fn table(&self) -> String;

    /// All figures.
    ///
    /// # Errors
    /// None that can come up.
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|error| Error::Invalid(error.to_string()))
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    machine: Machine,
    rounds: u32,
    seconds: u32,
    /// Who the ratios are to.
    reference: Contender,
    figures: Vec<summary::Figure>,
}

#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processors: usize,
}

/// Measures. Leaves nothing behind, also where it fails or is dropped.
///
/// # Errors
/// When the machine has no namespaces for it, or a contender does not work.
pub async fn run(options: &Options) -> Result<Results> {
    let Common { rounds, seconds, .. } = options.common;
    let (tools, _lock) = take_turns().await?;
    let contenders = present(&options.common, &tools)?;
    let logs = logs()?;
    let mut pairs = Vec::new();
    for (number, (contender, program)) in contenders.iter().enumerate() {
        let set_up = Pair::set_up(*contender, program.as_deref(), number, logs.path());
        pairs.push(progress::step(&format!("setting up {contender}"), set_up).await?);
    }
    let mut samples = Samples::default();
    for round in 1..=rounds {
        for &link in &options.links {
            for pair in &pairs {
                pair.set_link(link).await?;
            }
            for &scenario in &options.scenarios {
                let name = format!("round {round} of {rounds}: {scenario}, {link}");
                let measuring = measure(&pairs, (scenario, link), (round, seconds), &mut samples);
                progress::step(&name, measuring).await?;
            }
        }
        // Nobody is always the first after a pause, or the one after somebody who heats the machine.
        pairs.rotate_left(1);
    }
    let names: Vec<Contender> = contenders.iter().map(|(contender, _)| *contender).collect();
    Ok(Results {
        machine: Machine::here(),
        rounds,
        seconds,
        reference: reference(&names),
        figures: samples.figures(reference(&names)),
    })
}

/// Makes sure that this machine can measure, and that nobody else does meanwhile.
async fn take_turns() -> Result<(Tools, Lock)> {
    must_be_possible()?;
    packages::install().await?;
    let tools = Tools::build_module("wireguard-go").await?;
    let lock = Lock::take(Path::new(LOCK), "measuring").await?;
    pair::sweep()?;
    Ok((tools, lock))
}

fn logs() -> Result<tempfile::TempDir> {
    tempfile::tempdir().doing(|| "making a directory for logs".to_owned())
}

/// What fails for one contender is missing, and the others are measured all the same; what fails for all is an error.
async fn measure(
    pairs: &[Pair],
    (scenario, link): (Scenario, Link),
    (round, seconds): (u32, u32),
    samples: &mut Samples,
) -> Result<()> {
    let mut failed = Vec::new();
    for pair in pairs {
        let readings: BTreeMap<Metric, f64> = match scenario::measure(pair, scenario, seconds).await {
            Ok(readings) => readings,
            Err(error) => {
                progress::say(&format!("{scenario} of {} is missing: {error}", pair.contender()));
                failed.push(error);
                continue;
            }
        };
        for (metric, value) in readings {
            samples.add(Key { link, scenario, metric }, pair.contender(), (round, value));
        }
    }
    match failed.pop() {
        Some(error) if failed.len() + 1 == pairs.len() => Err(error),
        _ => Ok(()),
    }
}

impl Machine {
    fn here() -> Self {
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { kernel: kernel.unwrap_or_default(), processors }
    }
}

/// Those to be measured, with their programs. Who is not there is named and left out.
fn present(common: &Common, tools: &Tools) -> Result<Vec<(Contender, Option<PathBuf>)>> {
    let mut present = Vec::new();
    for &contender in &common.contenders {
        match contender.program(&common.pinhole, tools)? {
            Some(program) if !program.is_file() => {
                let path = program.display();
                if contender == Contender::Pinhole {
                    return Err(Error::Invalid(format!("{path} is missing: `make bench` builds it")));
                }
                progress::say(&format!(
                    "{contender} is left out: {path} is missing, `make bench` installs it"
                ));
            }
            program => present.push((contender, program)),
        }
    }
    Ok(present)
}

/// Those of them that have a program, and so can be a gateway.
fn gateways(common: &Common, tools: &Tools) -> Result<Vec<(Contender, PathBuf)>> {
    let present = present(common, tools)?;
    Ok(present.into_iter().filter_map(|(contender, program)| Some((contender, program?))).collect())
}

/// The one that all others are compared with.
fn reference(contenders: &[Contender]) -> Contender {
    let others = contenders.first().copied().unwrap_or(Contender::Veth);
    contenders.iter().copied().find(|&contender| contender == Contender::WireguardGo).unwrap_or(others)
}

impl Results {
    /// A picture of throughput and cost.
    pub fn svg(&self) -> String {
        svg::render(self)
    }
}

impl Report for Results {
    fn table(&self) -> String {
        table::render(self)
    }
}
