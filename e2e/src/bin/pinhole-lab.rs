//! The lab at the command line.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use pinhole_e2e::{
    Lab,
    bench::{self, Plan, Row, Wakes},
    demo,
    installation::Installation,
    lab,
    nat::{lab_profiles, stock_profiles},
    playground::{self, Playground},
    progress,
    project::Images,
    setup::{linux, packages, rust, tools::Tools},
    state, strangers,
    vpn::{Exposure, Vpn},
};

/// A real one-node Kubernetes cluster and real NATs on this machine
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show Pinhole at work: a cluster, three clients behind three real NATs, a live table; cleans up after itself
    Demo {
        /// Form of the results; with json all else goes to standard error
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Compare adaptive clients with a static keepalive of 25 s, behind NATs with the timeouts of stock systems
    BenchNat {
        /// How long to watch, in minutes; what is learnt takes about three of them
        #[arg(short, long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1440))]
        minutes: u64,
        /// Times that each client is woken meanwhile
        #[arg(short, long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        wakes: u32,
        /// Which random times those are
        #[arg(short, long, default_value_t = 1)]
        seed: u64,
        /// Form of the results; with json all else goes to standard error
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Let strangers loose on a gateway's session port and on the operator's link: a thousand connections with half-sent calls
    BenchStrangers {
        /// Connections of strangers
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        connections: u16,
        /// Half-sent calls on each
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=100))]
        calls: u16,
        /// How long at each port
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(10..=600))]
        seconds: u64,
        /// Form of the results; with json all else goes to standard error
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Wake clients that sleep on their sessions, behind NATs that have forgotten them, again and again
    BenchWakes {
        /// For how long, in minutes; a client sleeps again after about 40 seconds
        #[arg(short, long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=1440))]
        minutes: u64,
        /// Clients behind each of two kinds of NAT, one of them 10 ms away
        #[arg(short, long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..=100))]
        clients: u8,
        /// At which random times
        #[arg(short, long, default_value_t = 1)]
        seed: u64,
        /// Form of the results; with json all else goes to standard error
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Bring the lab up with Pinhole, a gateway, a pool and three hosts behind three kinds of NAT, and leave it open to play in
    Up,
    /// End the lab, and clear away what a killed one left
    Down,
    /// Say what is up and what to type
    Status,
    /// Install and build all that the lab needs, without starting anything
    Setup,
    /// Build the project's images and load them into the open lab
    Images,
    /// Own the lab until a signal comes (what `up` leaves running)
    #[command(hide = true)]
    Supervise,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Behind these clients sleep in `bench-wakes`: by netfilter, and in userspace with a round trip of 10 ms.
const SLEEPERS: [&str; 2] = ["symmetric", "random-symmetric"];
const READY: &str = "ready";

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Action::Demo { output } => demo(output).await,
        Action::BenchNat { minutes, wakes, seed, output } => {
            let span = Duration::from_mins(minutes);
            bench_nat(Plan { profiles: stock_profiles(), span, wakes, seed }, output).await
        }
        Action::BenchStrangers { connections, calls, seconds, output } => {
            let plan = strangers::Plan {
                connections: connections.into(),
                calls: calls.into(),
                span: Duration::from_secs(seconds),
            };
            bench_strangers(plan, output).await
        }
        Action::BenchWakes { minutes, clients, seed, output } => {
            let span = Duration::from_mins(minutes);
            let profiles = lab_profiles().into_iter().filter(|profile| SLEEPERS.contains(&profile.name));
            let plan = Plan { profiles: profiles.collect(), span, wakes: 0, seed };
            bench_wakes(plan, usize::from(clients), output).await
        }
        Action::Up => up(),
        Action::Down => lab::down().await.map_err(Into::into),
        Action::Status => status(),
        Action::Setup => setup().await,
        Action::Images => images().await,
        Action::Supervise => supervise().await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::say(&format!("pinhole-lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn demo(output: Output) -> anyhow::Result<()> {
    let output = match output {
        Output::Text => demo::Output::Text,
        Output::Json => demo::Output::Json,
    };
    demo::run(output).await.map_err(Into::into)
}

async fn bench_nat(plan: Plan, output: Output) -> anyhow::Result<()> {
    let work = async {
        let lab = Lab::find_or_start().await?;
        Installation::install(&lab, &[]).await?;
        let vpn = Vpn::declare(&lab, "bench-nat", Exposure::NodePort, "").await?;
        let report = bench::run(&vpn, 100, &plan).await?;
        vpn.delete().await?;
        anyhow::Ok(report)
    };
    let report = lab::until_signal(work).await?.context("ended before the results were there")??;
    match output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{:#}", report.json()),
    }
    let faults: Vec<_> = report.rows.iter().flat_map(Row::faults).collect();
    for fault in &faults {
        progress::say(fault);
    }
    let loud = report.loud();
    ensure!(faults.is_empty() && loud.is_empty(), "faults: {}; too many wake-ups: {loud:?}", faults.len());
    Ok(())
}

async fn bench_strangers(plan: strangers::Plan, output: Output) -> anyhow::Result<()> {
    let work = async {
        let lab = Lab::find_or_start().await?;
        Installation::install(&lab, &[]).await?;
        let vpn = Vpn::declare(&lab, "bench-strangers", Exposure::NodePort, "").await?;
        let pod = Vpn::declare(&lab, "bench-strangers-pod", Exposure::NodePort, "").await?;
        let report = Box::pin(strangers::run(&vpn, &pod, &plan)).await?;
        pod.delete().await?;
        vpn.delete().await?;
        anyhow::Ok(report)
    };
    let report = lab::until_signal(work).await?.context("ended before the results were there")??;
    match output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    let faults: Vec<_> = report.rows.iter().flat_map(strangers::Row::faults).collect();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

async fn bench_wakes(plan: Plan, clients: usize, output: Output) -> anyhow::Result<()> {
    let work = async {
        let lab = Lab::find_or_start().await?;
        Installation::install(&lab, &[]).await?;
        let vpn = Vpn::declare(&lab, "bench-wakes", Exposure::NodePort, "").await?;
        let rows = bench::wake(&vpn, 101, clients, &plan).await?;
        vpn.delete().await?;
        anyhow::Ok(rows)
    };
    let rows = lab::until_signal(work).await?.context("ended before the results were there")??;
    match output {
        Output::Text => rows.iter().for_each(|row| println!("{row}")),
        Output::Json => println!("{:#}", rows.iter().map(Wakes::json).collect::<serde_json::Value>()),
    }
    let faults: Vec<_> = rows.iter().filter_map(Wakes::fault).collect();
    ensure!(faults.is_empty(), "not as promised: {}", faults.join("; "));
    Ok(())
}

async fn setup() -> anyhow::Result<()> {
    packages::install().await?;
    Tools::build().await?;
    rust::toolbox().await?;
    rust::binaries().await?;
    if let Err(error) = linux::prepare().await {
        progress::say(&format!("tests with an emulated machine will be skipped: {error}"));
    }
    Ok(())
}

async fn images() -> anyhow::Result<()> {
    let images = Images::provide(&Lab::open().await?).await?;
    progress::say(&format!("{} and {} are loaded.", images.agent(), images.operator()));
    Ok(())
}

/// Starts the lab in a session of its own and waits until it stands. A signal to this process while it waits
/// ends the lab, too: both are then in the middle of the same thing.
fn up() -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = std::process::Command::new(program);
    command.arg("supervise").stdin(Stdio::null()).stdout(Stdio::piped());
    // A group of its own keeps the terminal's Ctrl-C after `up` is done away from the lab.
    command.process_group(0);
    let mut child = command.spawn().context("starting the lab's own process")?;
    let child_id = i32::try_from(child.id()).context("an odd process id")?;
    forward_signals(child_id)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).context("waiting for the lab")?;
    }
    if line.trim() != READY {
        let status = child.wait().context("waiting for the lab's own process")?;
        bail!("the lab did not come up; its own process ended ({status})");
    }
    status()
}

fn forward_signals(child: i32) -> anyhow::Result<()> {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind).context("receiving signals")?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                // The child may have ended already, by the same signal.
                let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
            }
        });
    }
    Ok(())
}

/// Whoever reads what `up` prints must see its end: from here on the lab's own process writes to a log.
fn leave_terminal() -> anyhow::Result<()> {
    let path = state::directory().join("logs/lab.log");
    let log = std::fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
    nix::unistd::dup2_stdout(&log).context("leaving the terminal")?;
    nix::unistd::dup2_stderr(&log).context("leaving the terminal")
}

async fn supervise() -> anyhow::Result<()> {
    let work = async {
        let lab = Lab::start().await?;
        let _playground = Playground::open(&lab).await?;
        println!("{READY}");
        let _ = std::io::stdout().flush();
        leave_terminal()?;
        Err::<(), anyhow::Error>(lab.cluster().ended().await.into())
    };
    match lab::until_signal(work).await? {
        None => Ok(()),
        Some(outcome) => outcome,
    }
}

fn status() -> anyhow::Result<()> {
    if state::holder().is_none() {
        bail!(pinhole_e2e::Error::NotUp);
    }
    println!("{}", playground::guide());
    Ok(())
}
