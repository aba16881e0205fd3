//! Where the time of both ends goes: while a scenario runs, each end samples itself, once for a table and once for a
//! picture. No timings: who is sampled is built for that, and rounds tell nothing here.

mod ask;
mod shares;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use self::shares::{Place, Shares};
use super::{
    Contender, Link, Machine, Report, Scenario, logs,
    pair::{End, Pair},
    scenario, take_turns,
};
use crate::{
    error::{Doing, Error, Result},
    progress,
};

/// What to sample, and where the pictures go.
#[derive(Debug, Clone)]
pub struct Options {
    /// The agent's binary, built with the feature `profile`.
    pub pinhole: PathBuf,
    /// What it does meanwhile.
    pub scenario: Scenario,
    /// Over which cable.
    pub link: Link,
    /// Seconds of each sample.
    pub seconds: u32,
    /// Directory for the pictures, which is made.
    pub directory: PathBuf,
}

/// Where the time went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    machine: Machine,
    scenario: String,
    link: Link,
    ends: Vec<Sampled>,
}

#[derive(Debug, Serialize)]
struct Sampled {
    end: &'static str,
    shares: Shares,
    picture: PathBuf,
}

/// Samples. Leaves nothing behind but the pictures, also where it fails or is dropped.
///
/// # Errors
/// When the machine has no namespaces for it, or the binary does not sample itself.
pub async fn run(options: &Options) -> Result<Results> {
    let (_tools, _lock) = take_turns().await?;
    let program = &options.pinhole;
    if !program.is_file() {
        let path = program.display();
        return Err(Error::Invalid(format!("{path} is missing: `make profile` builds it")));
    }
    let directory = &options.directory;
    std::fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
    let logs = logs()?;
    let set_up = Pair::set_up(Contender::Pinhole, Some(program), 0, logs.path());
    let pair = progress::step("setting up both ends", set_up).await?;
    pair.set_link(options.link).await?;
    // Both samples of both ends, and what reading debug information takes.
    let load = Box::pin(scenario::measure(&pair, options.scenario, 2 * options.seconds + 5));
    let seconds = options.seconds;
    let near = sample(&pair.near, "near", (seconds, directory));
    let far = sample(&pair.far, "far", (seconds, directory));
    let name = format!("sampling both ends: {}, {}", options.scenario, options.link);
    let (_load, near, far) = progress::step(&name, async { tokio::try_join!(load, near, far) }).await?;
    Ok(Results {
        machine: Machine::here(),
        scenario: options.scenario.to_string(),
        link: options.link,
        ends: vec![near, far],
    })
}

async fn sample(end: &End, name: &'static str, (seconds, directory): (u32, &Path)) -> Result<Sampled> {
    let query = format!("seconds={seconds}");
    let patience = Duration::from_secs(u64::from(seconds) + 30);
    let stacks = ask::get(end.netns(), &format!("/debug/stacks?{query}"), patience).await?;
    let picture = ask::get(end.netns(), &format!("/debug/flamegraph?{query}"), patience).await?;
    let path = directory.join(format!("{name}.svg"));
    std::fs::write(&path, picture).doing(|| format!("writing {}", path.display()))?;
    Ok(Sampled { end: name, shares: Shares::of(&stacks), picture: path })
}

impl Report for Results {
    fn table(&self) -> String {
        let mut text = format!(
            "Percent of each end's CPU time: {}, {}; Linux {}, {} processors.\n\n",
            self.scenario, self.link, self.machine.kernel, self.machine.processors
        );
        row(&mut text, "", self.ends.iter().map(|sampled| sampled.end.to_owned()));
        for place in Place::ALL {
            let shares = self.ends.iter().map(|sampled| format!("{:.1}", sampled.shares.percent(place)));
            row(&mut text, place.title(), shares);
        }
        row(&mut text, "samples", self.ends.iter().map(|sampled| sampled.shares.samples().to_string()));
        text.push('\n');
        for sampled in &self.ends {
            let _ = writeln!(text, "{}", sampled.picture.display());
        }
        text
    }
}

fn row(text: &mut String, title: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "{title:48}");
    for cell in cells {
        let _ = write!(text, "{cell:>8}");
    }
    text.push('\n');
}
