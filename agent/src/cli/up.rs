//! `pinhole up` and `pinhole sidecar`.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use pinhole_proto::{is_object_name, printable};
use zeroize::Zeroizing;

use super::{
    Failure, Log, Tunnel, background,
    notify::{self, Notify},
};
use crate::{
    client::{
        self, Accepted, Choice, ClientError, Credential, Invitation, Membership, Options, Overlap, Progress,
    },
    identity::{IdentityError, JoinString},
};

const TOKEN: &str = "PINHOLE_TOKEN";
/// Seconds that somebody waits at a terminal.
const TIMEOUT: u64 = 30;
const LONGEST_TOKEN: u64 = 64 * 1024;
/// In the tunnel's state directory.
const LOG: &str = "log";

#[derive(Args, Debug)]
pub(super) struct Up {
    #[command(flatten)]
    tunnel: Tunnel,
    #[command(flatten)]
    joining: Joining,
    /// UDP port of the tunnel on this machine, 0 for any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    listen_port: u16,
    /// Leave the name servers of this machine alone
    #[arg(long)]
    no_dns: bool,
    #[command(flatten)]
    routes: Routing,
    /// Let nothing that is to go through the tunnel leave this machine otherwise, from now until `pinhole down`, also while
    /// the tunnel is down or its process was killed. The local network stays open, but with --on-overlap tunnel
    #[arg(long, env = "PINHOLE_KILL_SWITCH", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    kill_switch: bool,
    /// Go to the background once connected
    #[arg(short, long)]
    detach: bool,
    /// Seconds that enrolment and the first connection may take, each; 0 for ever [default: 30, and for ever in a service]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[command(flatten)]
    log: Log,
}

/// As whom this machine joins.
#[derive(Args, Debug)]
struct Joining {
    #[command(flatten)]
    token: TokenFile,
    /// What this machine calls itself when it enrols; the kernel's host name otherwise
    #[arg(long, env = "PINHOLE_HOSTNAME")]
    hostname: Option<String>,
    /// Join with a new key, under a new name: for a machine whose key another one has as well. Needs a join token
    #[arg(long)]
    new_key: bool,
}

/// Where a join token is.
#[derive(Args, Debug)]
pub(super) struct TokenFile {
    /// File with the join token, `-` for standard input; PINHOLE_TOKEN holds it otherwise. Not needed again once
    /// this machine is enrolled
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Which of the pool's routes are made.
#[derive(Args, Debug)]
struct Routing {
    /// Who has a prefix of the pool that the local network has as well: the local network (local), the tunnel (tunnel), or
    /// nobody, and the tunnel does not come up (refuse). Without a choice it is the local network, and the tunnel does not
    /// count as connected
    #[arg(long, env = "PINHOLE_ON_OVERLAP", value_enum, value_name = "WHO")]
    on_overlap: Option<OnOverlap>,
    /// Make no routes: something else does
    #[arg(long, conflicts_with = "accept_routes")]
    no_routes: bool,
    /// Make only those routes of the pool that lie within these prefixes; several are separated by commas
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    accept_routes: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOverlap {
    Local,
    Tunnel,
    Refuse,
}

impl Routing {
    fn choice(&self) -> Choice {
        let overlap = self.on_overlap.map(|who| match who {
            OnOverlap::Local => Overlap::Local,
            OnOverlap::Tunnel => Overlap::Tunnel,
            OnOverlap::Refuse => Overlap::Refuse,
        });
        let accepted = match self.accept_routes.as_slice() {
            _ if self.no_routes => Accepted::None,
            [] => Accepted::All,
            list => Accepted::Within(list.iter().map(IpNet::trunc).collect()),
        };
        Choice { overlap, accepted, main_first: false }
    }

    /// The same as arguments.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(who) = self.on_overlap.and_then(|who| who.to_possible_value()) {
            arguments.extend(["--on-overlap".to_owned(), who.get_name().to_owned()]);
        }
        if self.no_routes {
            arguments.push("--no-routes".to_owned());
        }
        if !self.accept_routes.is_empty() {
            let list: Vec<String> = self.accept_routes.iter().map(IpNet::to_string).collect();
            arguments.extend(["--accept-routes".to_owned(), list.join(",")]);
        }
        arguments
    }
}

impl Up {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.detach && !background::is_here() {
            return self.detach();
        }
        self.log.start("warn");
        let patience = patience(self.timeout, notify::is_expected());
        let kept = || client::kept_token(&self.tunnel.name, &self.tunnel.state_dir);
        let token = self.joining.token.read()?.map_or_else(kept, |token| Ok(Some(token)))?;
        let invitation = token.map(|token| token.parse::<JoinString>()).transpose();
        let mut invitation = invitation.map_err(ClientError::from)?.map(Invitation::from);
        if let (Some(invitation), Some(hostname)) = (&mut invitation, self.joining.hostname) {
            invitation.hostname = hostname;
        }
        let options = Options {
            name: self.tunnel.name,
            state_root: self.tunnel.state_dir,
            invitation,
            new_key: self.joining.new_key,
            dns: !self.no_dns,
            routes: self.routes.choice(),
            kill_switch: self.kill_switch,
            listen_port: self.listen_port,
            patience,
        };
        bring_up(options)
    }
}

/// How long to wait, `None` for ever: a service manager has all the time.
fn patience(seconds: Option<u64>, is_service: bool) -> Option<Duration> {
    let seconds = seconds.unwrap_or(if is_service { 0 } else { TIMEOUT });
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

impl TokenFile {
    /// The join string. Never from an argument: those can be read by everybody on the machine.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<String>>, ClientError> {
        let mut token = Zeroizing::new(String::new());
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Read { path, source }
        };
        match &self.token_file {
            Some(path) if path == Path::new("-") => {
                let read = std::io::stdin().take(LONGEST_TOKEN).read_to_string(&mut token);
                read.map_err(failed(Path::new("standard input")))?;
            }
            Some(path) => {
                let file = File::open(path).map_err(failed(path))?;
                file.take(LONGEST_TOKEN).read_to_string(&mut token).map_err(failed(path))?;
            }
            None => token = Zeroizing::new(std::env::var(TOKEN).unwrap_or_default()),
        }
        let given = self.token_file.is_some() || !token.is_empty();
        Ok(given.then_some(token))
    }
}

impl Up {
    /// Starts the same command anew, in a session of its own, and waits until it is connected or has failed.
    fn detach(&self) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| ClientError::Setting(format!("cannot go to the background: {error}"));
        let token = self.joining.token.read()?;
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("up").args(["--name", &self.tunnel.name, "--state-dir"]).arg(&self.tunnel.state_dir);
        let patience = patience(self.timeout, notify::is_expected()).unwrap_or_default();
        command.args(["--timeout", &patience.as_secs().to_string(), "--detach"]);
        command.args(["--listen-port", &self.listen_port.to_string()]);
        if let Some(hostname) = &self.joining.hostname {
            command.args(["--hostname", hostname]);
        }
        if self.joining.new_key {
            command.arg("--new-key");
        }
        if self.no_dns {
            command.arg("--no-dns");
        }
        command.args(self.routes.arguments());
        if self.kill_switch {
            command.arg("--kill-switch");
        }
        if let Some(filter) = &self.log.filter {
            command.args(["--log", filter]);
        }
        if self.log.log_json {
            command.arg("--log-json");
        }
        if token.is_some() {
            command.args(["--token-file", "-"]);
        }
        let mut child = background::mark(&mut command)
            .env_remove(TOKEN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let (Some(mut stdin), Some(token)) = (child.stdin.take(), token) {
            stdin.write_all(token.as_bytes()).map_err(failed)?;
        }
        Ok(background::await_ready(child).map_err(failed)?)
    }
}

#[derive(Args, Debug)]
pub(super) struct Sidecar {
    #[command(flatten)]
    tunnel: Tunnel,
    /// The pool to join
    #[arg(long, env = "PINHOLE_POOL")]
    pool: String,
    /// Its namespace
    #[arg(long, env = "PINHOLE_POOL_NAMESPACE")]
    pool_namespace: String,
    /// Where the gateway's client sessions are; several are separated by commas
    #[arg(long, env = "PINHOLE_GATEWAY_SESSION", value_name = "HOST:PORT", value_delimiter = ',')]
    gateway_session: Vec<String>,
    /// TLS name of the gateway
    #[arg(long, env = "PINHOLE_SERVER_NAME")]
    server_name: String,
    /// CA bundle of the gateway: PEM, not a file
    #[arg(long, env = "PINHOLE_CA", value_name = "PEM")]
    ca: String,
    /// ServiceAccount token for the gateway, read for each enrolment
    #[arg(
        long,
        env = "PINHOLE_SA_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/pinhole/token"
    )]
    sa_token_file: PathBuf,
    /// Set the pod's name servers to those of the pool
    #[arg(long, env = "PINHOLE_DNS", action = ArgAction::Set, num_args = 0..=1, default_value = "false", default_missing_value = "true")]
    dns: bool,
    #[command(flatten)]
    log: Log,
}

impl Sidecar {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.log.start("info");
        // They come from the pod's label and annotation.
        check_pool(&self.pool_namespace, &self.pool)?;
        let membership = Membership {
            namespace: self.pool_namespace,
            pool: self.pool,
            server_name: self.server_name,
            endpoints: self.gateway_session,
            ca: self.ca,
        };
        bring_up(Options {
            name: self.tunnel.name,
            state_root: self.tunnel.state_dir,
            invitation: Some(Invitation {
                membership,
                credential: Credential::ServiceAccount(self.sa_token_file),
                hostname: client::hostname(),
            }),
            new_key: false,
            dns: self.dns,
            // A pod's network is its cluster's, and the pool's owner knows it.
            kill_switch: false,
            routes: Choice { overlap: Some(Overlap::Local), main_first: true, ..Choice::default() },
            listen_port: 0,
            patience: None,
        })
    }
}

fn check_pool(namespace: &str, pool: &str) -> Result<(), ClientError> {
    if is_object_name(namespace) && is_object_name(pool) {
        return Ok(());
    }
    Err(ClientError::Setting(format!(
        "pool {pool:?} of namespace {namespace:?} cannot exist: correct the label pinhole.dev/pool and the annotation \
         pinhole.dev/pool-namespace of the pod"
    )))
}

/// Nobody reads on: what is left to say goes to a file.
fn leave_terminal(log: &Path) {
    let Ok(log) = File::options().create(true).append(true).open(log) else { return };
    let _ = nix::unistd::dup2_stdout(&log);
    let _ = nix::unistd::dup2_stderr(&log);
}

fn bring_up(options: Options) -> Result<(), Failure> {
    let is_background = background::is_here();
    if is_background {
        background::leave_session();
    }
    let said_ready = AtomicBool::new(false);
    let manager = Notify::from_env();
    let log = options.state_root.join(&options.name).join(LOG);
    let progress = move |progress: Progress| {
        if !matches!(progress, Progress::Enrolling(_)) {
            manager.ready();
        }
        manager.status(&progress.to_string());
        if said_ready.load(Ordering::Relaxed) {
            return;
        }
        let mut output = std::io::stdout();
        let _ = writeln!(output, "{}", printable(&progress.to_string(), super::LONGEST_MESSAGE));
        if is_background && matches!(progress, Progress::Connected { .. }) {
            background::say_ready();
            said_ready.store(true, Ordering::Relaxed);
        }
        let _ = output.flush();
        if said_ready.load(Ordering::Relaxed) {
            leave_terminal(&log);
        }
    };
    super::end_on_panic();
    super::run(2, async |stop| client::up(options, &progress, stop).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn a_service_waits_for_ever_and_a_person_half_a_minute() {
        assert_eq!(patience(None, true), None);
        assert_eq!(patience(None, false), Some(Duration::from_secs(30)));
        assert_eq!((patience(Some(0), false), patience(Some(7), true)), (None, Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_pod_that_asks_for_what_cannot_be_a_pool_is_told() {
        assert!(check_pool("vpn", "staff").is_ok());
        for text in hostile::strings() {
            assert_eq!(check_pool("vpn", &text).unwrap_err().category(), "SettingInvalid", "{text:?}");
            assert_eq!(check_pool(&text, "staff").unwrap_err().category(), "SettingInvalid", "{text:?}");
        }
    }
}
