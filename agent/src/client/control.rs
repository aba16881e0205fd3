//! The socket through which `pinhole status` and `pinhole down` reach a running tunnel: one request line, one
//! answer line of JSON. Only its owner may open it.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::ClientError;

/// In the tunnel's state directory.
const SOCKET: &str = "control.sock";
const EXCHANGE: Duration = Duration::from_secs(10);
const LONGEST_REQUEST: u64 = 64;
const LONGEST_ANSWER: u64 = 1 << 20;

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
    /// Its phase.
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
    /// Own inner addresses.
    pub addresses: Vec<String>,
    /// What is reached through the tunnel.
    pub routes: Vec<String>,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// UDP port of the tunnel on this machine.
    pub local_port: u16,
    /// Seconds since the last authenticated packet.
    pub last_receive_seconds: Option<f64>,
    /// Seconds since a bidirectional exchange was confirmed.
    pub last_confirmed_seconds: Option<f64>,
    /// Round trip of the last probe, in milliseconds.
    pub rtt_milliseconds: Option<f64>,
    /// The keepalive in force.
    pub keepalive: Keepalive,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Whether the session stream to the gateway stands.
    pub session: bool,
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
}

/// A question with its way back.
pub(super) type Asked = (Question, oneshot::Sender<Status>);

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
        let path = state.join(SOCKET);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(ClientError::AlreadyRunning(name.to_owned()));
        }
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
        tokio::spawn(async move { timeout(EXCHANGE, answer(stream, asked)).await });
    }
}

async fn answer(stream: UnixStream, asked: mpsc::Sender<Asked>) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(LONGEST_REQUEST)).read_line(&mut line).await.ok()?;
    let question = match line.trim() {
        "status" => Question::Status,
        "down" => Question::Down,
        _ => return None,
    };
    let (reply, status) = oneshot::channel();
    asked.send((question, reply)).await.ok()?;
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
    let exchange = timeout(EXCHANGE, exchange(stream, question)).await;
    exchange.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)
}

async fn exchange(stream: UnixStream, question: Question) -> io::Result<Status> {
    let (reader, mut writer) = stream.into_split();
    let request: &[u8] = match question {
        Question::Status => b"status\n",
        Question::Down => b"down\n",
    };
    writer.write_all(request).await?;
    let mut line = String::new();
    BufReader::new(reader.take(LONGEST_ANSWER)).read_line(&mut line).await?;
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
