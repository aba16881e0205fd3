//! Userspace WireGuards side by side, at the command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use pinhole_e2e::{
    lab, progress,
    speed::{self, Contender, Link, Options, Scenario},
};

/// Measure `pinhole wg`, wireguard-go, boringtun, gotatun and the bare cable side by side, in turns
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The agent's binary to measure
    #[arg(long, value_name = "FILE", default_value = "target/release/pinhole")]
    pinhole: PathBuf,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// What to measure; all when left out
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Whom to measure; all when left out
    #[arg(long, value_delimiter = ',')]
    with: Vec<Contender>,
    /// Offloads of the cable: both when left out
    #[arg(long, value_delimiter = ',')]
    link: Vec<Link>,
    /// Form of the results
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Also draw them
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn chosen<T: ValueEnum + Clone>(chosen: Vec<T>) -> Vec<T> {
    if chosen.is_empty() { T::value_variants().to_vec() } else { chosen }
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

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let options = Options {
        pinhole: cli.pinhole.canonicalize().unwrap_or(cli.pinhole),
        contenders: chosen(cli.with),
        scenarios: chosen(cli.only),
        links: chosen(cli.link),
        rounds: cli.rounds,
        seconds: cli.seconds,
    };
    let Some(results) = lab::until_signal(speed::run(&options)).await? else {
        progress::say("pinhole-bench: interrupted, and cleared away");
        return Ok(ExitCode::from(130));
    };
    let results = results?;
    if let Some(path) = &cli.svg {
        std::fs::write(path, results.svg()).with_context(|| format!("writing {}", path.display()))?;
    }
    match cli.output {
        Output::Table => print!("{}", results.table()),
        Output::Json => println!("{}", results.json()?),
    }
    Ok(ExitCode::SUCCESS)
}
