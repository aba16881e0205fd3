//! Userspace WireGuards side by side, at the command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use pinhole_e2e::{
    lab, progress,
    speed::{
        self, Contender, Link, Report, Scenario, crowd,
        flood::{self, Attack},
        profile,
    },
};

/// Measure userspace WireGuards side by side, in turns: `pinhole wg`, wireguard-go, boringtun, gotatun
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Throughput, what it costs, round trips under load, and handshakes, beside the bare cable
    Speed(Speed),
    /// A gateway with many peers: memory, idle CPU, all coming back at once, one at work among them
    Crowd(Crowd),
    /// A gateway under attack: what legitimate traffic keeps
    Flood(Flood),
    /// Where the time of both ends goes: a table, and a flamegraph of each
    Profile(Profile),
}

/// What all have in common.
#[derive(Args)]
struct Common {
    /// The agent's binary to measure
    #[arg(long, value_name = "FILE", default_value = "target/release/pinhole")]
    pinhole: PathBuf,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Whom to measure; all when left out
    #[arg(long, value_delimiter = ',')]
    with: Vec<Contender>,
    /// Form of the results
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Args)]
struct Speed {
    #[command(flatten)]
    common: Common,
    /// What to measure; all when left out
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Offloads of the cable: both when left out
    #[arg(long, value_delimiter = ',')]
    link: Vec<Link>,
    /// Also draw them
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args)]
struct Crowd {
    #[command(flatten)]
    common: Common,
    /// How many peers
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 10_000])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    peers: Vec<u32>,
    /// Seconds of doing nothing
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    idle: u32,
}

#[derive(Args)]
struct Flood {
    #[command(flatten)]
    common: Common,
    /// Kinds of attack; all when left out
    #[arg(long, value_delimiter = ',')]
    only: Vec<Attack>,
    /// Datagrams per second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    rate: u32,
}

#[derive(Args)]
struct Profile {
    /// The agent's binary, built with the feature `profile`
    #[arg(long, value_name = "FILE", default_value = "target/profiling/pinhole")]
    pinhole: PathBuf,
    /// What it does meanwhile; the near end sends where a scenario goes up
    #[arg(long, default_value_t = Scenario::Tcp1Up)]
    only: Scenario,
    /// Offloads of the cable
    #[arg(long, value_enum, default_value = "on")]
    link: Link,
    /// Seconds of each sample
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Directory for the pictures
    #[arg(long, value_name = "DIRECTORY", default_value = "target/profile")]
    svg: PathBuf,
    /// Form of the results
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn chosen<T: ValueEnum + Clone>(chosen: &[T]) -> Vec<T> {
    if chosen.is_empty() { T::value_variants().to_vec() } else { chosen.to_vec() }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            progress::say(&format!("pinhole-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Common {
    fn options(&self) -> speed::Common {
        speed::Common {
            pinhole: absolute(&self.pinhole),
            contenders: chosen(&self.with),
            rounds: self.rounds,
            seconds: self.seconds,
        }
    }
}

impl Output {
    fn print(self, results: &impl Report) -> anyhow::Result<()> {
        match self {
            Self::Table => print!("{}", results.table()),
            Self::Json => println!("{}", results.json()?),
        }
        Ok(())
    }
}

/// Things run in several directories.
fn absolute(program: &Path) -> PathBuf {
    program.canonicalize().unwrap_or_else(|_| program.to_owned())
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let work = async {
        match cli.what {
            What::Speed(options) => measure_speed(options).await,
            What::Crowd(options) => measure_crowd(options).await,
            What::Flood(options) => measure_flood(options).await,
            What::Profile(options) => sample(options).await,
        }
    };
    let Some(outcome) = lab::until_signal(work).await? else {
        progress::say("pinhole-bench: interrupted, and cleared away");
        return Ok(ExitCode::from(130));
    };
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn measure_speed(cli: Speed) -> anyhow::Result<()> {
    let options = speed::Options {
        common: cli.common.options(),
        scenarios: chosen(&cli.only),
        links: chosen(&cli.link),
    };
    let results = speed::run(&options).await?;
    if let Some(path) = &cli.svg {
        std::fs::write(path, results.svg()).with_context(|| format!("writing {}", path.display()))?;
    }
    cli.common.output.print(&results)
}

async fn measure_crowd(cli: Crowd) -> anyhow::Result<()> {
    let options = crowd::Options { common: cli.common.options(), peers: cli.peers, idle: cli.idle };
    let results = crowd::run(&options).await?;
    cli.common.output.print(&results)
}

async fn measure_flood(cli: Flood) -> anyhow::Result<()> {
    let options = flood::Options { common: cli.common.options(), attacks: chosen(&cli.only), rate: cli.rate };
    let results = flood::run(&options).await?;
    cli.common.output.print(&results)
}

async fn sample(cli: Profile) -> anyhow::Result<()> {
    let options = profile::Options {
        pinhole: absolute(&cli.pinhole),
        scenario: cli.only,
        link: cli.link,
        seconds: cli.seconds,
        directory: cli.svg,
    };
    cli.output.print(&profile::run(&options).await?)
}
