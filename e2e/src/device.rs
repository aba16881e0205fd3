//! A machine outside of the cluster that runs `pinhole up`.

use std::{
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    error::{Doing, Error, Result},
    host::Host,
    installation::Installation,
    process::{Command, Output, Process},
    state, wait,
};

/// Name of a host's first tunnel.
const TUNNEL: &str = "vpn0";

/// What `pinhole status -o json` says, as far as tests ask.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its phase.
    pub phase: String,
    /// `namespace/name` of its VPNClient.
    pub client: String,
    /// Inner addresses.
    pub addresses: Vec<String>,
    /// The gateway replica in use.
    pub replica: Option<String>,
    /// The gateway's `ip:port` in use.
    pub endpoint: Option<String>,
    /// Round trip of the last probe, in milliseconds.
    pub rtt_milliseconds: Option<f64>,
    /// Whether the session stands.
    pub session: bool,
    /// Another machine uses its key.
    #[serde(default)]
    pub key_shared: bool,
    /// UDP port of the tunnel on the machine.
    pub local_port: u16,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// The keepalive in force.
    pub keepalive: Keepalive,
    /// By what it is reached while it is idle.
    pub standby: Standby,
    /// What was learnt of the NATs' bindings.
    pub binding: Binding,
    /// What became of the tunnel's own.
    pub churn: Churn,
    /// What of the tunnel is not as the pool says.
    #[serde(default)]
    pub impairments: Vec<Impairment>,
}

/// Something that is not as the pool says, as `pinhole status` has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Impairment {
    /// Its stable name, such as `RouteConflict`.
    pub category: String,
    /// Which prefix, where it is about one.
    pub prefix: Option<String>,
    /// Which interface has it.
    pub interface: Option<String>,
    /// Whether the client counts as connected all the same.
    pub accepted: bool,
}

/// A keepalive, as `pinhole status` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// None when nothing is sent.
    pub interval_seconds: Option<f64>,
    /// Why it is that.
    pub reason: String,
    /// Whether beats keep the tunnel's binding.
    pub beats: bool,
    /// Wake-ups that it has cost.
    pub wakes: u64,
}

/// By what a client is reached, as `pinhole status` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standby {
    /// `UDP` or `Session`.
    pub reachable_by: String,
    /// Why by that.
    pub reason: String,
    /// Silence on the session while it is relied on.
    pub interval_seconds: Option<f64>,
    /// From the last call over it to the first packet.
    pub last_wake_milliseconds: Option<f64>,
}

/// A learnt lifetime, as `pinhole status` has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// It lived for so long.
    pub at_least_seconds: f64,
    /// It was gone after so long.
    pub less_than_seconds: Option<f64>,
    /// How well that is known.
    pub confidence: String,
    /// What it takes to get that lifetime.
    pub promotion: String,
}

/// Changes of the path, as `pinhole status` has them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Churn {
    /// Since the tunnel is up.
    pub count: u64,
    /// Why, the last time.
    pub last_cause: Option<String>,
    /// Public `ip:port` before.
    pub last_from: Option<String>,
    /// And after.
    pub last_to: Option<String>,
    /// Seconds without traffic before it.
    pub last_idle_seconds: Option<f64>,
}

/// A host with the agent. Its state directory stays until the lab goes, so that `up` again is the same client.
#[derive(Debug)]
pub struct Device {
    host: Host,
    /// What it calls itself.
    hostname: String,
    tunnel: String,
    agent: PathBuf,
    directory: PathBuf,
    process: Option<Process>,
}

impl Device {
    /// An agent on `host`, not yet up.
    ///
    /// # Errors
    /// When the agent cannot be built.
    pub async fn new(host: Host) -> Result<Self> {
        let directory = state::directory().join("devices").join(host.name());
        let hostname = host.name().to_owned();
        Self::at(host, (hostname, TUNNEL), directory).await
    }

    /// Another agent on the same host, with a tunnel of this name.
    ///
    /// # Errors
    /// When the agent cannot be built.
    pub async fn beside(&self, tunnel: &str) -> Result<Self> {
        let hostname = format!("{}-{tunnel}", self.host.name());
        let directory = state::directory().join("devices").join(&hostname);
        Self::at(self.host.clone(), (hostname, tunnel), directory).await
    }

    async fn at(host: Host, (hostname, tunnel): (String, &str), directory: PathBuf) -> Result<Self> {
        // An earlier run in the same lab may have had a machine of this name.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).doing(|| format!("making {}", directory.display()))?;
        let agent = Installation::agent_for(&host).await?;
        Ok(Self { host, hostname, tunnel: tunnel.to_owned(), agent, directory, process: None })
    }

    /// The same on another host, with a copy of all that it keeps, as an image of its disk has it.
    ///
    /// # Errors
    /// When that cannot be copied, or the agent cannot be built.
    pub async fn copied_to(&self, host: Host) -> Result<Self> {
        let copy = Self::new(host).await?;
        let (from, to) = (self.directory.join(&self.tunnel), copy.directory.join(&copy.tunnel));
        let doing = || format!("copying {}", from.display());
        std::fs::create_dir_all(&to).doing(doing)?;
        for file in std::fs::read_dir(&from).doing(doing)? {
            let file = file.doing(doing)?;
            if file.file_type().doing(doing)?.is_file() {
                std::fs::copy(file.path(), to.join(file.file_name())).doing(doing)?;
            }
        }
        Ok(copy)
    }

    /// What it calls itself: by this its VPNClient is found.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Name of its tunnel's device.
    pub fn tunnel(&self) -> &str {
        &self.tunnel
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs `pinhole up` until the tunnel is connected.
    ///
    /// # Errors
    /// When it ends instead, with its words, or is not connected in time.
    pub async fn up(&mut self, join: &str) -> Result<Status> {
        self.start(join, &[]).await?;
        self.connected(Duration::from_secs(30)).await
    }

    /// Starts `pinhole up` in the background; does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&mut self, join: &str, more: &[&str]) -> Result<()> {
        let token = self.token_file(join)?;
        let command = self
            .command(&["up", "--hostname", &self.hostname])
            // The machine's own name servers are not the lab's to change.
            .args((!self.host.has_own_files()).then_some("--no-dns"))
            .arg("--token-file")
            .arg(&token)
            .args(more);
        let log =
            if self.tunnel == TUNNEL { "pinhole".to_owned() } else { format!("pinhole-{}", self.tunnel) };
        self.process = Some(self.host.spawn(&log, &command).await?);
        Ok(())
    }

    /// Runs `pinhole up` to its end: for what should not come up.
    ///
    /// # Errors
    /// When it cannot be run, or does not end within a minute.
    pub async fn refused(&self, join: &str) -> Result<Output> {
        let token = self.token_file(join)?;
        let args = ["up", "--no-dns", "--hostname", &self.hostname];
        let command = self.netns_command(&args).arg("--token-file").arg(&token);
        let limit = Duration::from_mins(1);
        let outcome = tokio::time::timeout(limit, command.output()).await;
        outcome.map_err(|_| Error::Timeout {
            what: "`pinhole up` to be refused".to_owned(),
            waited: limit,
            last: "it runs".to_owned(),
        })?
    }

    /// What `pinhole status` says.
    ///
    /// # Errors
    /// When it is not up.
    pub async fn status(&self) -> Result<Status> {
        let text = self.netns_command(&["status", "-o", "json"]).run().await?;
        let tunnels: Vec<Status> = serde_json::from_str(&text)
            .map_err(|error| Error::Invalid(format!("status {text:?}: {error}")))?;
        tunnels.into_iter().next().ok_or_else(|| Error::Invalid("no tunnel is up".to_owned()))
    }

    /// Waits until the client calls itself Connected.
    ///
    /// # Errors
    /// When it does not in `limit`; the error holds the end of its log.
    pub async fn connected(&self, limit: Duration) -> Result<Status> {
        self.in_phase("Connected", limit).await
    }

    /// Waits until the client is in `phase`.
    ///
    /// # Errors
    /// When it is not in `limit`; the error holds the end of its log.
    pub async fn in_phase(&self, phase: &str, limit: Duration) -> Result<Status> {
        wait::until(&format!("{} to be {phase}", self.host.name()), limit, || async {
            if let Some(process) = &self.process {
                process.must_run().map_err(|error| error.to_string())?;
            }
            let log = || self.process.as_ref().map(|process| process.tail(5)).unwrap_or_default();
            let status = self.status().await.map_err(|error| format!("{error}; {}", log()))?;
            if status.phase == phase { Ok(status) } else { Err(format!("{status:?}; {}", log())) }
        })
        .await
    }

    /// Waits until a ping through the tunnel is answered.
    ///
    /// # Errors
    /// When none is in `limit`.
    pub async fn reaches(&self, target: IpAddr, limit: Duration) -> Result<()> {
        let what = format!("{} to reach {target}", self.host.name());
        wait::until(&what, limit, || self.host.ping(target)).await
    }

    /// Runs `pinhole down` and waits for the agent's end.
    ///
    /// # Errors
    /// When it fails.
    pub async fn down(&mut self) -> Result<()> {
        self.netns_command(&["down"]).run().await?;
        match self.process.take() {
            Some(process) => process.wait().await.map(drop),
            None => Ok(()),
        }
    }

    /// The agent's process, while it is up.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    fn command(&self, args: &[&str]) -> Command {
        self.with_identity(Command::new(&self.agent).args(args))
    }

    fn netns_command(&self, args: &[&str]) -> Command {
        self.with_identity(self.host.command(&self.agent).args(args))
    }

    fn with_identity(&self, command: Command) -> Command {
        command.args(["--name", &self.tunnel, "--state-dir"]).arg(&self.directory)
    }

    fn token_file(&self, join: &str) -> Result<PathBuf> {
        let path = self.directory.join("join");
        write_private(&path, join)?;
        Ok(path)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    std::fs::write(path, text).doing(doing)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).doing(doing)
}
