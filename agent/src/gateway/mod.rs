//! The role gateway: runs in a pod, serves clients, and does what the operator wants for as long as it can be
//! heard, and after that what it wanted last.

mod access;
mod admission;
mod callers;
mod command;
mod control;
pub mod desired;
mod door;
mod ends;
mod error;
mod faults;
mod link;
mod metrics;
pub mod nat_state;
mod neighbours;
mod paces;
mod probes;
mod proof;
pub mod report;
mod rest;
mod session;
mod shared_keys;
mod stale;
mod tls;
pub mod told;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pinhole_proto::v1;
use pinhole_reception::{bind, receive};
use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use v1::client_session_server::ClientSessionServer;

pub use error::GatewayError;
pub use link::OperatorAccess;

use self::{
    control::{Control, Inputs, Setup},
    door::Door,
    faults::{Faults, lasting},
    link::{Link, Running},
    proof::Prober,
    session::{Served, Sessions},
    tls::ServerTls,
};
use crate::{
    identity::{Store, possession::Challenger},
    tunnel::{PrivateKey, Threads},
    uapi,
};

const SNAPSHOT: &str = "desired.bin";
const COMMANDS: usize = 1024;
/// How long sessions get to move to another replica when this one goes away.
const DRAIN: Duration = Duration::from_secs(3);
/// The same when there is no other.
const DRAIN_ALONE: Duration = Duration::from_millis(300);
/// Streams on one client's connection.
const STREAMS: u32 = 8;
/// Bytes that a client may send ahead on a stream: more than any of its messages has.
const STREAM_WINDOW: u32 = 32 << 10;
/// The same for all streams of a connection: the least that HTTP/2 knows.
const CONNECTION_WINDOW: u32 = 65_535;
/// Bytes of the headers of a call.
const HEADERS: u32 = 8 << 10;

/// How a gateway is set up by its pod.
#[derive(Debug)]
pub struct Options {
    /// The operator.
    pub operator: OperatorAccess,
    /// This replica's WireGuard key.
    pub private_key: PrivateKey,
    /// Where the last snapshot and the session certificate are kept.
    pub state_directory: PathBuf,
    /// UDP port of the tunnel.
    pub listen_port: u16,
    /// TCP port of client sessions.
    pub session_port: u16,
    /// TCP port of `/livez`, `/readyz` and `/metrics`.
    pub health_port: u16,
    /// Own address towards the cluster, for the path proof of last resort.
    pub pod_ip: IpAddr,
    /// Name of the TUN device.
    pub tun_name: String,
    /// Threads that carry packets.
    pub threads: Threads,
    /// Device towards the cluster, for forwarding. `None`: the one of the default route.
    pub uplink: Option<String>,
}

/// Runs until `stop`, then drains.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), GatewayError> {
    let store = Store::open(&options.state_directory)?;
    let sessions = listen(options.session_port, "client sessions")?;
    let probes = listen(options.health_port, "health probes")?;
    let (control, commands) = mpsc::channel(COMMANDS);
    let (served, served_now) = watch::channel(Served::default());
    let (running, running_now) = watch::channel(Running::default());
    let (relay, relay_now) = watch::channel(None);
    let (snapshot, snapshot_now) = watch::channel(None);
    let tls = Arc::new(ServerTls::default());
    let faults = Faults::default();
    let draining = CancellationToken::new();
    let public_key = options.private_key.public();
    let challenger = Challenger::generate(Instant::now())?;
    let own_peer = Prober::new(PrivateKey::generate()?, public_key);

    let (_wg_socket, questions) = uapi::open_or_say(&options.tun_name);
    let setup = Setup {
        private_key: options.private_key,
        prober: own_peer,
        listen_port: options.listen_port,
        tun_name: options.tun_name,
        threads: options.threads,
        uplink: options.uplink.or_else(default_uplink),
        pod_address: SocketAddr::new(options.pod_ip, options.listen_port),
        served,
        running,
        snapshot,
        control: control.clone(),
        faults: faults.clone(),
    };
    let (mut loop_, events) = Control::new(setup);
    if let Some(kept) = load_snapshot(&store) {
        tracing::info!(revision = kept.revision, "starting from the kept desired state");
        if let Err(error) = loop_.apply(kept) {
            tracing::warn!(%error, category = error.category(), "the kept desired state is not applied in full");
        }
    }

    let link = Link {
        access: options.operator.clone(),
        public_key,
        control: control.clone(),
        running: running_now,
        relay,
        tls: Arc::clone(&tls),
        store: store.clone(),
    };
    let service = Sessions::new(
        options.operator,
        relay_now,
        served_now.clone(),
        control.clone(),
        draining.clone(),
        challenger,
    );
    let mut tasks = tokio::task::JoinSet::new();
    #[cfg(debug_assertions)]
    tokio::spawn(faults::on_signals(control.clone()));
    tasks.spawn(lasting("the stream to the operator", faults.clone(), async move || {
        link.run().await;
        Some(())
    }));
    let drained = draining.clone();
    tasks.spawn(lasting("the session port", faults.clone(), async move || {
        serve_sessions(&sessions, service.clone(), Arc::clone(&tls), &drained).await;
        // Before that it does not end by itself.
        drained.is_cancelled().then_some(())
    }));
    tasks.spawn(lasting("the health port", faults.clone(), async move || {
        match another(&probes) {
            Ok(probes) => probes::serve(probes, control.clone()).await,
            Err(error) => tracing::error!(%error, "the health port cannot be listened on"),
        }
        None
    }));
    let mut snapshots = snapshot_now;
    tasks.spawn(lasting("keeping the desired state", faults, async move || {
        keep_snapshots(&store, &mut snapshots).await;
        Some(())
    }));

    let control_stop = CancellationToken::new();
    let ended = {
        let control_loop = loop_.run(Inputs { commands, events, questions }, control_stop.clone());
        tokio::pin!(control_loop);
        tokio::select! {
            ended = &mut control_loop => ended,
            () = stop.cancelled() => {
                let replicas = served_now.borrow().desired.as_ref().map_or(1, |desired| desired.replicas.len());
                tracing::info!(replicas, "draining");
                draining.cancel();
                let drain = if replicas > 1 { DRAIN } else { DRAIN_ALONE };
                // Packets flow until the clients have gone elsewhere.
                let _ = tokio::time::timeout(drain, &mut control_loop).await;
                Ok(())
            }
            _ = tasks.join_next() => Err(GatewayError::Setting("a part of the gateway ended; see the log".into())),
        }
    };
    loop_.shut_down();
    ended
}

/// Serves client sessions until `draining`, or until what leads connections in has panicked.
async fn serve_sessions(
    listener: &TcpListener,
    service: Sessions,
    tls: Arc<ServerTls>,
    draining: &CancellationToken,
) {
    let listener = match another(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the session port cannot be listened on"),
    };
    let ended = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADERS)
        .add_service(Door(ClientSessionServer::new(service).max_decoding_message_size(told::LARGEST_MESSAGE)))
        .serve_with_incoming_shutdown(
            receive(listener, callers::house(), callers::Greeter(tls)),
            draining.clone().cancelled_owned(),
        );
    report_end("the session service", ended.await);
}

/// The same port once more, for a part that begins anew.
fn another(listener: &TcpListener) -> std::io::Result<TcpListener> {
    TcpListener::from_std(listener.as_fd().try_clone_to_owned()?.into())
}

fn listen(port: u16, what: &str) -> Result<TcpListener, GatewayError> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = match bind(address) {
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind((Ipv4Addr::UNSPECIFIED, port).into())
        }
        result => result,
    };
    listener.map_err(|source| GatewayError::Listen { what: format!("TCP port {port} for {what}"), source })
}

fn report_end<E: std::error::Error>(what: &str, ended: Result<(), E>) {
    match ended {
        Ok(()) => tracing::debug!(what, "ended"),
        Err(error) => tracing::error!(what, %error, "failed"),
    }
}

fn load_snapshot(store: &Store) -> Option<v1::DesiredState> {
    let kept = store.read(SNAPSHOT).ok()??;
    let decoded = v1::DesiredState::decode(kept.as_slice());
    decoded.inspect_err(|error| tracing::warn!(%error, "the kept desired state is damaged")).ok()
}

/// Writes the newest snapshot, without holding up anybody.
async fn keep_snapshots(store: &Store, snapshots: &mut watch::Receiver<Option<v1::DesiredState>>) {
    while snapshots.changed().await.is_ok() {
        let Some(snapshot) = snapshots.borrow_and_update().clone() else { continue };
        let store = store.clone();
        let written =
            tokio::task::spawn_blocking(move || store.write(SNAPSHOT, &snapshot.encode_to_vec())).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, category = error.category(), "the desired state is not kept for a restart");
        }
    }
}

/// The device of the IPv4 or IPv6 default route.
fn default_uplink() -> Option<String> {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v4 = v4.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next()?;
        (fields.next()? == "00000000").then(|| device.to_owned())
    });
    v4.or_else(|| {
        let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        v6.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [destination, length, .., device] = fields.as_slice() else { return None };
            let default =
                destination.bytes().all(|digit| digit == b'0') && *length == "00" && *device != "lo";
            default.then(|| (*device).to_owned())
        })
    })
}
