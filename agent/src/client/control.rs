//! The socket through which `pinhole status` and `pinhole down` reach a running tunnel: one request line, one
//! answer line of JSON. Only its owner may open it.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{ClientError, Impairment, keepalive::Change, uplinks::Uplink};
use crate::nat::{self, standby};

/// In the tunnel's state directory.
const SOCKET: &str = "control.sock";
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
const MAX_REQUEST: u64 = 64;
const MAX_ANSWER: u64 = 1 << 20;

/// What is said where two machines use one key, and what to do.
pub const KEY_SHARED: &str = "another machine uses this machine's key, and each takes the other's packets: to give this one a \
                              key and a name of its own, end it with `pinhole down` and join again with `pinhole up \
                              --new-key` and a join token";

/// What a tunnel is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// How it is.
    Status,
    /// To end.
    Down,
}

/// How a tunnel is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The tunnel's name, also of its device.
    pub name: String,
    /// Its phase. `Degraded`: the path is proven, and something that the pool promises is missing: `impairments` has it.
    pub phase: String,
    /// The client, `namespace/name`.
    pub client: String,
    /// The pool, `namespace/name`.
    pub pool: String,
    /// TLS name of the gateway.
    pub gateway: String,
    /// The replica in use or being tried.
    pub replica: Option<String>,
    /// Its `ip:port`.
    pub endpoint: Option<String>,
    /// By which networks of this machine the gateway could be reached, and by which it is.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// Own inner addresses.
    pub addresses: Vec<String>,
    /// What is reached through the tunnel.
    pub routes: Vec<String>,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// UDP port of the tunnel on this machine.
    pub local_port: u16,
    /// The kernel's offloads in use, by their short names ([`Offloads::list`](crate::tunnel::Offloads::list)).
    /// None where there is no tunnel yet.
    #[serde(default)]
    pub offloads: Option<Vec<String>>,
    /// Seconds since the last authenticated packet.
    pub last_receive_seconds: Option<f64>,
    /// Seconds since a bidirectional exchange was confirmed.
    pub last_confirmed_seconds: Option<f64>,
    /// Round trip of the last probe, in milliseconds.
    pub rtt_milliseconds: Option<f64>,
    /// The keepalive in force.
    pub keepalive: Keepalive,
    /// By what it is reached while it is idle.
    #[serde(default)]
    pub standby: Standby,
    /// The NATs on the way.
    #[serde(default)]
    pub nat: Nat,
    /// The binding at them.
    #[serde(default)]
    pub binding: Binding,
    /// What became of it.
    #[serde(default)]
    pub churn: Churn,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Whether the session stream to the gateway stands.
    pub session: bool,
    /// What of the gateway's configuration is not used, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Another machine connects with the same key, so that each takes the other's packets.
    #[serde(default)]
    pub key_shared: bool,
    /// What of the tunnel is not as the pool says.
    #[serde(default)]
    pub impairments: Vec<Impairment>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// A keepalive interval, and why it is that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// `Loopback` or `LinkStatus`.
    pub mode: String,
    /// Seconds, none when nothing is sent.
    pub interval_seconds: Option<f64>,
    /// Where it comes from.
    pub reason: String,
    /// Whether beats keep it, and not probes inside the tunnel.
    #[serde(default)]
    pub beats: bool,
    /// Wake-ups that it has cost.
    #[serde(default)]
    pub wakes: u64,
    /// Beats sent on the tunnel's own binding.
    #[serde(default)]
    pub live_beats: u64,
    /// Beats sent by experiments, on bindings of their own.
    #[serde(default)]
    pub probe_beats: u64,
    /// What a static keepalive of 25 s would have cost beyond those.
    #[serde(default)]
    pub wakes_saved: i64,
}

/// What is known of the NATs on the way. What was not measured is `Unknown`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nat {
    /// In one word: how it maps.
    pub class: String,
    /// Public `ip:port` of the tunnel, as the gateway sees it.
    pub public_endpoint: Option<String>,
    /// How the public side of a mapping is chosen.
    pub mapping: String,
    /// Whose packets get in.
    pub filtering: String,
    /// How public ports are chosen.
    pub port_allocation: String,
    /// Whether two sockets behind it reach each other by their public addresses.
    pub hairpin: String,
    /// Whether bindings that saw traffic both ways for a while live longer than new ones.
    pub two_class: String,
    /// Whether something on the path rewrites payloads.
    pub helper_interference: String,
    /// Whether there is more than one.
    pub double_nat: String,
}

impl Nat {
    pub(super) fn new(behaviour: &nat::Behaviour, observed: Option<SocketAddr>) -> Self {
        let finding = |finding: nat::Finding| finding.name().to_owned();
        Nat {
            class: behaviour.class().to_string(),
            public_endpoint: observed.map(|observed| observed.to_string()),
            mapping: behaviour.mapping.name().to_owned(),
            filtering: behaviour.filtering.name().to_owned(),
            port_allocation: behaviour.port_allocation.name().to_owned(),
            hairpin: finding(behaviour.hairpin),
            two_class: finding(behaviour.two_class),
            helper_interference: finding(behaviour.helper_interference),
            double_nat: finding(behaviour.double_nat),
        }
    }
}

/// How long a NAT keeps the tunnel's binding without traffic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// It lived for so many seconds.
    pub at_least_seconds: f64,
    /// It was gone after so many seconds; none where no end was seen.
    pub less_than_seconds: Option<f64>,
    /// `Unknown`, `Growing`, `Bracketed` or `Confirmed`.
    pub confidence: String,
    /// What it takes to get that lifetime: `Unknown`, `None`, `Short` or `Long` conversation.
    pub promotion: String,
}

impl Binding {
    pub(super) fn new(binding: &nat::Binding) -> Self {
        Binding {
            at_least_seconds: binding.at_least.as_secs_f64(),
            less_than_seconds: binding.less_than.map(|lifetime| lifetime.as_secs_f64()),
            confidence: binding.confidence.name().to_owned(),
            promotion: binding.promotion.name().to_owned(),
        }
    }
}

/// By what an idle client is reached, and how long that takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standby {
    /// `UDP`: by its binding, which is kept. `Session`: it sleeps, and is woken over its session.
    pub reachable_by: String,
    /// Why by that, such as `CheaperBySession`.
    pub reason: String,
    /// Seconds of silence on the session after which it is proven anew; none while it is not relied on.
    pub interval_seconds: Option<f64>,
    /// Seconds since something last came over the session.
    pub last_proven_seconds: Option<f64>,
    /// Milliseconds from the last call over the session to the first packet.
    pub last_wake_milliseconds: Option<f64>,
    /// The longest that it ever was.
    pub worst_wake_milliseconds: Option<f64>,
    /// The lifetime of the session's mapping.
    pub mapping: Binding,
}

impl Standby {
    pub(super) fn new(now: Instant, standby: &standby::Standby) -> Self {
        let stats = standby.stats();
        let milliseconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        let sleeps = standby.mode() == standby::Mode::Session;
        let proven = standby.proven().map(|at| now.saturating_duration_since(at).as_secs_f64());
        Standby {
            reachable_by: if sleeps { "Session" } else { "UDP" }.to_owned(),
            reason: standby.reason().name().to_owned(),
            interval_seconds: standby.interval().filter(|_| sleeps).map(|interval| interval.as_secs_f64()),
            last_proven_seconds: proven,
            last_wake_milliseconds: milliseconds(stats.last_wake),
            worst_wake_milliseconds: milliseconds(stats.worst_wake),
            mapping: Binding::new(&standby.lifetime()),
        }
    }
}

/// How often the path changed, and how the last time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Churn {
    /// Since the tunnel is up.
    pub count: u64,
    /// Such as `MappingChanged`.
    pub last_cause: Option<String>,
    /// Seconds since then.
    pub last_seconds: Option<f64>,
    /// Public `ip:port` before.
    pub last_from: Option<String>,
    /// And after.
    pub last_to: Option<String>,
    /// Seconds without traffic before it.
    pub last_idle_seconds: Option<f64>,
}

impl Churn {
    pub(super) fn new((count, last): (u64, Option<Change>)) -> Self {
        let Some(last) = last else { return Churn { count, ..Churn::default() } };
        Churn {
            count,
            last_cause: Some(last.cause.name().to_owned()),
            last_seconds: last.at.elapsed().ok().map(|elapsed| elapsed.as_secs_f64()),
            last_from: last.from.map(|at| at.to_string()),
            last_to: last.to.map(|at| at.to_string()),
            last_idle_seconds: Some(last.idle.as_secs_f64()),
        }
    }
}

/// A question with its way back.
pub(super) type Asked = (Question, Answer);

/// The way back to who asked.
pub(super) struct Answer {
    status: oneshot::Sender<Status>,
    /// Closed once the answer is written, or cannot be.
    written: oneshot::Receiver<()>,
}

impl Answer {
    /// Answers, and waits until that is written: for up to the time that an exchange may take. A process that
    /// ends before left its asker without a word.
    pub(super) async fn give(self, status: Status) {
        if self.status.send(status).is_ok() {
            let _ = self.written.await;
        }
    }

    /// Answers; another task writes it.
    pub(super) fn send(self, status: Status) {
        let _ = self.status.send(status);
    }
}

/// The listening socket; its file is removed when it is dropped.
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Listens for one tunnel, unless another process does.
    pub(super) async fn open(
        name: &str,
        state: &Path,
        asked: mpsc::Sender<Asked>,
    ) -> Result<Self, ClientError> {
        // A process that was killed a moment ago takes calls until the kernel has closed all it had open: one that answers runs.
        if !matches!(ask(name, state, Question::Status).await, Err(ClientError::NotRunning(_))) {
            return Err(ClientError::AlreadyRunning(name.to_owned()));
        }
        let path = state.join(SOCKET);
        let listener = listen(&path)
            .map_err(|source| ClientError::Control { path: path.display().to_string(), source })?;
        tokio::spawn(serve(listener, asked));
        Ok(Socket { path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    while let Ok((stream, _)) = listener.accept().await {
        let asked = asked.clone();
        tokio::spawn(async move { timeout(EXCHANGE_TIMEOUT, answer(stream, asked)).await });
    }
}

async fn answer(stream: UnixStream, asked: mpsc::Sender<Asked>) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_REQUEST)).read_line(&mut line).await.ok()?;
    let question = match line.trim() {
        "status" => Question::Status,
        "down" => Question::Down,
        _ => return None,
    };
    let (reply, status) = oneshot::channel();
    let (_until_written, written) = oneshot::channel();
    asked.send((question, Answer { status: reply, written })).await.ok()?;
    let mut line = serde_json::to_vec(&status.await.ok()?).ok()?;
    line.push(b'\n');
    writer.write_all(&line).await.ok()
}

/// Asks a running tunnel. After `Down` was answered the tunnel is gone.
pub async fn ask(name: &str, state: &Path, question: Question) -> Result<Status, ClientError> {
    let path = state.join(SOCKET);
    let failed = |source| ClientError::Control { path: path.display().to_string(), source };
    let stream = UnixStream::connect(&path).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => failed(source),
        _ => ClientError::NotRunning(name.to_owned()),
    })?;
    let timed_out = |_| failed(io::ErrorKind::TimedOut.into());
    let exchanged = timeout(EXCHANGE_TIMEOUT, exchange(stream, question)).await.map_err(timed_out)?;
    let status = exchanged.map_err(|source| match source.kind() {
        // It was killed a moment ago.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            ClientError::NotRunning(name.to_owned())
        }
        _ => failed(source),
    })?;
    if question == Question::Down {
        timeout(EXCHANGE_TIMEOUT, nobody_answers(&path)).await.map_err(timed_out)?;
    }
    Ok(status)
}

/// The tunnel's process ends a moment after its answer; until then another one of that name could not begin.
async fn nobody_answers(path: &Path) {
    while UnixStream::connect(path).await.is_ok() {
        sleep(RETRY_INTERVAL).await;
    }
}

async fn exchange(stream: UnixStream, question: Question) -> io::Result<Status> {
    let (reader, mut writer) = stream.into_split();
    let request: &[u8] = match question {
        Question::Status => b"status\n",
        Question::Down => b"down\n",
    };
    writer.write_all(request).await?;
    let mut line = String::new();
    if BufReader::new(reader.take(MAX_ANSWER)).read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Names of the tunnels that seem to run: those with a socket.
pub fn running(states: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(states).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join(SOCKET).exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tunnel_that_was_killed_a_moment_ago_does_not_stand_in_the_way_of_the_next() {
        let state = tempfile::tempdir().unwrap();
        let (asks, mut asked) = mpsc::channel(1);
        let dying = UnixListener::bind(state.path().join(SOCKET)).unwrap();
        let (opened, ()) = tokio::join!(Socket::open("vpn0", state.path(), asks.clone()), async {
            let _called = dying.accept().await.unwrap();
            drop(dying);
        });
        let _socket = opened.unwrap();
        let (second, ()) = tokio::join!(Socket::open("vpn0", state.path(), asks), async {
            let (_, answer): Asked = asked.recv().await.unwrap();
            answer.send(Status::default());
        });
        assert!(matches!(second, Err(ClientError::AlreadyRunning(_))), "one that answers does");
    }

    #[test]
    fn who_asks_for_the_end_hears_of_it_from_a_process_that_ends_at_once() {
        for _ in 0..50 {
            let state = tempfile::tempdir().unwrap();
            let (listening, listens) = std::sync::mpsc::channel();
            let directory = state.path().to_owned();
            let tunnel = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (ask, mut asked) = mpsc::channel(1);
                    let _socket = Socket::open("vpn0", &directory, ask).await.unwrap();
                    listening.send(()).unwrap();
                    let (question, answer) = asked.recv().await.unwrap();
                    assert_eq!(question, Question::Down);
                    answer.give(Status::default()).await;
                });
            });
            listens.recv().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let heard = runtime.block_on(ask("vpn0", state.path(), Question::Down));
            tunnel.join().unwrap();
            assert_eq!(heard.unwrap(), Status::default());
        }
    }
}
