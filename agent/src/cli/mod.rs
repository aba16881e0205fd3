//! The `pinhole` command.

mod background;
mod gateway;
mod notify;
mod service;
mod status;
mod up;
mod wg;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use pinhole_proto::printable;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{client::ClientError, gateway::GatewayError};

/// Longest message that ends a command, characters: it may quote another end.
const LONGEST_MESSAGE: usize = 4096;

/// Both ends of a Pinhole VPN.
#[derive(Parser, Debug)]
#[command(name = "pinhole", version, about, max_term_width = 100)]
struct Command {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    /// Join a VPN and run the tunnel
    Up(up::Up),
    /// End a tunnel
    Down(status::Down),
    /// Show the tunnels of this machine
    Status(status::Show),
    /// Have a tunnel come up whenever this machine starts
    InstallService(service::Install),
    /// No longer have it come up
    UninstallService(service::Uninstall),
    /// Run the tunnel of a pod (set up by the pod's environment)
    Sidecar(up::Sidecar),
    /// Serve clients (set up by the operator's pod template)
    Gateway(gateway::Gateway),
    /// Be a userspace WireGuard that `wg` and `wg-quick` configure
    Wg(wg::Wg),
}

/// Which tunnel.
#[derive(Args, Debug, Clone)]
struct Tunnel {
    /// Name of the tunnel and of its network device
    #[arg(long, env = "PINHOLE_NAME", default_value = "pinhole0")]
    name: String,
    /// Directory of keys and certificates, one directory in it per tunnel
    #[arg(long, env = "PINHOLE_STATE_DIR", default_value = "/var/lib/pinhole")]
    state_dir: PathBuf,
}

/// How much is logged.
#[derive(Args, Debug, Clone)]
struct Log {
    /// What to log, such as `info` or `pinhole_agent=debug`
    #[arg(long = "log", env = "PINHOLE_LOG")]
    filter: Option<String>,
    /// Log JSON lines
    #[arg(long, env = "PINHOLE_LOG_JSON", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    log_json: bool,
}

impl Log {
    /// Logs go to stderr: stdout is for what was asked.
    fn start(&self, default: &str) {
        let filter = self.filter.as_deref().unwrap_or(default);
        let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new(default));
        // With fields, where stderr leads there anyway.
        if let Some(journal) = is_journal().then(tracing_journald::layer).and_then(Result::ok) {
            let _ = tracing_subscriber::registry().with(filter).with(journal).try_init();
            return;
        }
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = if self.log_json { log.json().try_init() } else { log.with_ansi(false).try_init() };
        if let Err(error) = started {
            eprintln!("pinhole: cannot log: {error}");
        }
    }
}

/// Whether stderr is journald's, as of `systemd.exec(5)`.
fn is_journal() -> bool {
    let Ok(stderr) = nix::sys::stat::fstat(std::io::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|it| it == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// What ended the command: one line for a person, and a code for a script.
#[derive(Debug)]
struct Failure {
    category: &'static str,
    message: String,
    code: u8,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure { category: error.category(), message: error.to_string(), code: error.exit_code() }
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        Failure { category: error.category(), message: error.to_string(), code: 1 }
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    if let Some(wg) = wg::Wg::by_name() {
        return finish(wg.run().map(|()| ExitCode::SUCCESS));
    }
    let command = Command::parse();
    let result = match command.role {
        Role::Up(up) => up.run(),
        Role::Sidecar(sidecar) => sidecar.run(),
        Role::Down(down) => down.run(),
        Role::InstallService(install) => install.run(),
        Role::UninstallService(uninstall) => uninstall.run(),
        Role::Status(show) => return finish(show.run()),
        Role::Gateway(gateway) => gateway.run(),
        Role::Wg(wg) => wg.run(),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

fn finish(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("pinhole: {} [{}]", printable(&failure.message, LONGEST_MESSAGE), failure.category);
            ExitCode::from(failure.code)
        }
    }
}

/// Has a panic anywhere end the process, as one in a task would else go on half dead. A gateway looks after its own.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Runs `work` on a runtime, with a token that ends it on SIGTERM, SIGINT or SIGHUP.
fn run<E>(threads: usize, work: impl AsyncFnOnce(CancellationToken) -> Result<(), E>) -> Result<(), Failure>
where
    Failure: From<E>,
{
    let failed = |error: std::io::Error| Failure {
        category: "SystemFailed",
        message: format!("cannot start: {error}"),
        code: 1,
    };
    // Somebody else may have chosen one already, in a test.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(signals(stop.clone()).map_err_logged());
        let work = work(stop.clone());
        #[cfg(feature = "profile")]
        let work = crate::profile::beside(&stop, work);
        work.await
    });
    // A name that does not resolve must not hold up the end.
    runtime.shutdown_background();
    Ok(result?)
}

trait LogError {
    async fn map_err_logged(self);
}

impl<F: Future<Output = std::io::Result<()>>> LogError for F {
    async fn map_err_logged(self) {
        if let Err(error) = self.await {
            tracing::error!(%error, "signals are not handled");
        }
    }
}

async fn signals(stop: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    stop.cancel();
    Ok(())
}
