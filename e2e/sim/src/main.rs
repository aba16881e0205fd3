//! The simulator at the command line.

use std::{
    io::{BufWriter, ErrorKind, IsTerminal, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use pinhole_sim::{
    fleet::{Fleet, Kind},
    metrics::{Summary, compare},
    model::{Loss, Profile, ProfileError},
    profiles,
    report::{self, Style},
};
use serde::Serialize;
use thiserror::Error;

/// Runs fleets of clients behind modelled NATs in virtual time, and compares ways to keep their bindings
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// NATs of your own: a JSON array of profiles, instead of a set
    #[arg(long, value_name = "FILE.json", conflicts_with = "set")]
    profiles: Option<PathBuf>,
    /// Which NATs to draw
    #[arg(long, value_enum, default_value = "published")]
    set: Set,
    /// Which algorithm to run; may be given several times [default: all]
    #[arg(long = "algorithm", value_enum, value_name = "NAME", value_delimiter = ',')]
    algorithms: Vec<Kind>,
    /// How many clients, each behind a NAT of its own
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    clients: u32,
    /// For how many days of virtual time
    #[arg(long, value_name = "D", default_value_t = 7.0, value_parser = days)]
    days: f64,
    /// Packets lost each way before the NAT, in percent, beside the profile's own (below 1: a probability; `0.5%`)
    #[arg(long, value_name = "P", default_value = "0")]
    loss: Loss,
    /// Decides the set and all that is left to chance
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show the profiles that went worst, or all of them in JSON
    #[arg(long)]
    by_profile: bool,
    /// Tell all that happens to the first client whose NAT's name begins so, with the first algorithm
    #[arg(long, value_name = "NAME", conflicts_with_all = ["json", "svg", "by_profile"])]
    trace: Option<String>,
    /// Write a picture of success against wake-ups
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the profiles to a file, in the form that --profiles reads
    #[arg(long, value_name = "FILE.json")]
    write_profiles: Option<PathBuf>,
    /// How many clients to run at a time [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
}

/// Sets of NATs.
#[derive(Clone, Copy, ValueEnum)]
enum Set {
    /// 320 NATs drawn from published distributions
    Published,
    /// 80 NATs that promote late or keep mappings for up to an hour
    Hard,
    /// Both
    All,
}

#[derive(Debug, Error)]
enum Error {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", .path.display())]
    Profiles { path: PathBuf, source: ProfileError },
    #[error("no client's NAT has a name that begins with {name:?}; --by-profile shows names")]
    NoSuchNat { name: String },
    #[error("cannot print the results: {0}")]
    Print(#[from] std::io::Error),
    #[error("cannot make JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What --json prints.
#[derive(Serialize)]
struct Results {
    algorithms: Vec<Summary>,
    profiles: usize,
    clients: u32,
    days: f64,
    /// Beside each profile's own.
    loss_percent: f64,
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has read enough.
        Err(Error::Print(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinhole-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    let profiles = profiles(cli)?;
    if let Some(path) = &cli.write_profiles {
        write(path, &serde_json::to_string_pretty(&profiles)?)?;
    }
    let threads =
        cli.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZero::<usize>::MIN);
    let fleet = Fleet {
        profiles,
        clients: usize::try_from(cli.clients).unwrap_or(usize::MAX),
        duration: Duration::from_secs_f64(cli.days * 86_400.0),
        loss: cli.loss,
        seed: cli.seed,
        threads,
    };
    let algorithms = if cli.algorithms.is_empty() { Kind::value_variants() } else { &cli.algorithms };
    if let (Some(name), Some(kind)) = (&cli.trace, algorithms.first()) {
        return trace(&fleet, *kind, name);
    }
    let mut rows: Vec<_> = algorithms.iter().map(|kind| summarise(cli, &fleet, *kind)).collect();
    compare(&mut rows);
    show(cli, &fleet, rows)
}

fn trace(fleet: &Fleet, kind: Kind, name: &str) -> Result<(), Error> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut printed = Ok(());
    let outcome = fleet.trace(kind, name, &mut |at, what| {
        if printed.is_ok() {
            printed = writeln!(out, "{:14.3} {what}", at.as_secs_f64());
        }
    });
    printed?;
    let outcome = outcome.ok_or_else(|| Error::NoSuchNat { name: name.to_owned() })?;
    writeln!(out, "{:.4} % of wake tests succeeded", outcome.reached.success() * 100.0)?;
    Ok(out.flush()?)
}

fn summarise(cli: &Cli, fleet: &Fleet, kind: Kind) -> Summary {
    let progress = Progress::new(kind.name(), fleet.clients);
    let outcomes = fleet.run(kind, &|done| progress.note(done));
    progress.end();
    let mut summary = Summary::new(kind.name(), cli.days, &fleet.profiles, &outcomes);
    if !cli.by_profile {
        summary.profiles.clear();
    }
    summary
}

fn show(cli: &Cli, fleet: &Fleet, rows: Vec<Summary>) -> Result<(), Error> {
    let title = format!(
        "{} clients behind {} NATs for {} days, {} of packets lost each way, seed {}",
        cli.clients,
        fleet.profiles.len(),
        cli.days,
        cli.loss,
        cli.seed
    );
    if let Some(path) = &cli.svg {
        write(path, &report::svg(&rows, &title))?;
        eprintln!("picture: {}", path.display());
    }
    let mut out = std::io::stdout().lock();
    if cli.json {
        let results = Results {
            algorithms: rows,
            profiles: fleet.profiles.len(),
            clients: cli.clients,
            days: cli.days,
            loss_percent: cli.loss.probability() * 100.0,
            seed: cli.seed,
        };
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?);
    }
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = Style { colour: out.is_terminal() && !plain };
    writeln!(out, "{title}\n\n{}", report::table(&rows, style))?;
    for row in rows.iter().filter(|_| cli.by_profile) {
        writeln!(out, "{}", report::worst_profiles(row, style))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn profiles(cli: &Cli) -> Result<Vec<Profile>, Error> {
    let Some(path) = &cli.profiles else {
        return Ok(match cli.set {
            Set::Published => profiles::published(cli.seed),
            Set::Hard => profiles::hard(cli.seed),
            Set::All => [profiles::published(cli.seed), profiles::hard(cli.seed)].concat(),
        });
    };
    let json = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    Profile::parse_file(&json).map_err(|source| Error::Profiles { path: path.clone(), source })
}

fn days(text: &str) -> Result<f64, String> {
    let days: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.001..=3660.0).contains(&days) {
        Ok(days)
    } else {
        Err("must be from 0.001 to 3660 days".to_owned())
    }
}

/// Tells how far a run is: in place on a terminal, now and then elsewhere.
struct Progress {
    name: String,
    clients: usize,
    started: Instant,
    terminal: bool,
    /// Milliseconds after the start.
    next: AtomicU64,
    shown: Mutex<bool>,
}

impl Progress {
    fn new(name: String, clients: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let next = AtomicU64::new(if terminal { 200 } else { 10_000 });
        Self { name, clients, started: Instant::now(), terminal, next, shown: Mutex::new(false) }
    }

    fn note(&self, done: usize) {
        let passed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        let later = passed + if self.terminal { 200 } else { 10_000 };
        let mine = || self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if passed < next || !mine() {
            return;
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = true;
        let Self { name, clients, .. } = self;
        let line = format!("{name}: {done} of {clients} clients");
        if self.terminal { eprint!("\r{line}\x1b[K") } else { eprintln!("{line}") }
    }

    fn end(self) {
        if self.terminal && self.shown.into_inner().unwrap_or_else(PoisonError::into_inner) {
            eprint!("\r\x1b[K");
        }
    }
}
