//! The operator of Pinhole.

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use k8s_controller::LeaderElection;
use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::{Client, Config};
use pinhole_operator::{
    controllers::{Leader, SharedState, watches},
    enrolment::{ApiRecords, Enroller},
    fleet::Fleet,
    identity::{ApiTokenReviewer, AuthorityStore, CachedReviewer, Identity},
    link::Link,
    plan::{GatewayEgress, Settings},
    scope::Scope,
    telemetry::{self, Health, LogFormat, Metrics, init_logs},
};
use pinhole_reception::bind;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Lease by which the replicas agree on a leader.
const LEASE: &str = "pinhole-operator";

/// How long all tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Port of the operator's Service, which gateways are told.
const SERVICE_PORT: u16 = 8443;

/// Reconciles VPN gateways, their client pools and clients.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Namespace that the operator runs in.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of this operator's pod: who holds the lease.
    #[arg(long, env = "POD_NAME")]
    instance: String,
    /// Service by which gateways reach the operator.
    #[arg(long, default_value = "pinhole-operator")]
    service_name: String,
    /// Port of that Service.
    #[arg(long, default_value_t = SERVICE_PORT)]
    service_port: u16,
    /// Where gateways are served.
    #[arg(long, default_value = "0.0.0.0:8443")]
    link_addr: SocketAddr,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    metrics_addr: SocketAddr,
    /// Image of gateways that name none.
    #[arg(long, env = "PINHOLE_GATEWAY_IMAGE")]
    gateway_image: String,
    /// Namespaces to serve, separated by commas. All when unset.
    #[arg(long, value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Makes NetworkPolicies for gateways, which let this out. None are made when unset.
    #[arg(long, value_enum)]
    gateway_network_policy: Option<GatewayEgress>,
    /// Who may scrape gateways' metrics under these policies, a JSON list of NetworkPolicyPeers.
    #[arg(long, default_value = "[]", value_parser = peers)]
    metrics_from: Peers,
    /// How logs are written.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// What is logged, such as `info` or `pinhole_operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log: String,
}

/// Peers of a NetworkPolicy.
#[derive(Clone, Debug)]
struct Peers(Vec<NetworkPolicyPeer>);

fn peers(json: &str) -> Result<Peers, serde_json::Error> {
    serde_json::from_str(json).map(Peers)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    init_logs(args.log_format, &args.log);
    end_on_panic();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has a panic anywhere end the process: another one takes over from what the API server holds, and gateways go on.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

async fn run(args: Args) -> anyhow::Result<()> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("the TLS provider was set already");
    }
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(stop_on_signal(stop.clone()));
    let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new()));
    let listener = bind(args.metrics_addr).with_context(|| {
        format!("listening on {} for metrics: choose another --metrics-addr", args.metrics_addr)
    })?;
    let serving = telemetry::serve(listener, Arc::clone(&health), Arc::clone(&metrics), stop.clone());
    tasks.spawn(async move {
        serving.await;
        Ok(())
    });
    tokio::select! {
        started = start(&args, &health, &metrics, &stop, &mut tasks) => started?,
        () = stop.cancelled() => return Ok(()),
    }
    let ended = tasks.join_next().await;
    let result = first_end(ended, &stop);
    stop.cancel();
    let rest = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN, rest).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    result
}

async fn start(
    args: &Args,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let client = client().await?;
    let scope = Scope::new(args.watch_namespaces.clone());
    let shared = SharedState::new(Arc::clone(health), Arc::clone(metrics));
    for watch in watches(&client, &scope, &args.namespace, &shared) {
        let stop = stop.clone();
        tasks.spawn(async move {
            match stop.run_until_cancelled(watch).await {
                Some(()) => bail!("a watch ended"),
                None => Ok(()),
            }
        });
    }
    let store = AuthorityStore::new(client.clone(), &args.namespace);
    let authorities =
        store.load_or_create(SystemTime::now()).await.context("loading the certificate authority")?;
    let identity = Identity::new(authorities, &args.namespace, &args.service_name)?;
    let (leading, following) = watch::channel(false);
    let fleet = Fleet::new(Instant::now());
    let keeping = (Arc::clone(&identity), following.clone(), stop.clone());
    tasks.spawn(async move {
        keeping.0.keep(store, keeping.1, keeping.2).await;
        Ok(())
    });
    let reviewer = Arc::new(CachedReviewer::new(ApiTokenReviewer::new(client.clone())));
    let records = ApiRecords::new(client.clone()).within(scope.clone());
    let enroller = Enroller::new(records, Arc::clone(&fleet), Arc::clone(&identity), Arc::clone(&reviewer));
    let listener = bind(args.link_addr).with_context(|| {
        format!("listening on {} for gateways: choose another --link-addr", args.link_addr)
    })?;
    let link = Link {
        fleet: Arc::clone(&fleet),
        identity: Arc::clone(&identity),
        reviewer,
        enroller: Arc::new(enroller),
        leading: following,
    };
    let serving = link.serve(listener, stop.clone());
    tasks.spawn(async move { serving.await.context("serving gateways") });
    let leader = Leader {
        client: client.clone(),
        shared,
        fleet,
        settings: Settings {
            namespace: args.namespace.clone(),
            service_name: args.service_name.clone(),
            service_port: args.service_port,
            gateway_image: args.gateway_image.clone(),
            gateway_policy: args.gateway_network_policy,
            metrics_from: args.metrics_from.0.clone(),
        },
        authorities: identity.subscribe(),
        scope,
        instance: args.instance.clone(),
    };
    let election = LeaderElection::new(client, &args.namespace, LEASE, &args.instance);
    tasks.spawn(lead(leader, election, leading, Arc::clone(health), stop.clone()));
    Ok(())
}

/// Without kube's own retries, which would make a refused call take minutes; every call has its time limit instead.
async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("finding the API server")?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(Duration::from_secs(10));
    Client::try_from(config).context("making a client of the API server")
}

/// Leads whenever the lease is held. Losing the lease ends the process: nothing that was started as a leader must
/// outlive it.
async fn lead(
    leader: Leader,
    election: LeaderElection,
    leading: watch::Sender<bool>,
    health: Arc<Health>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = health.wait_ready() => {}
        () = stop.cancelled() => return Ok(()),
    }
    let releasing = election.clone();
    let held = election.with_lease(leader.lead(&leading, stop.clone()));
    tokio::select! {
        result = held => match result {
            Some(result) => result.context("leading"),
            None => bail!("the lease was lost: the process ends, and another replica leads"),
        },
        () = standby_stopped(&leading, &stop) => {
            releasing.release().await;
            Ok(())
        }
    }
}

/// Ends when the operator stops without leading. A leader ends its work first, and releases its lease then.
async fn standby_stopped(leading: &watch::Sender<bool>, stop: &CancellationToken) {
    stop.cancelled().await;
    if *leading.borrow() {
        std::future::pending::<()>().await;
    }
}

async fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping on SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
        () = stop.cancelled() => return Ok(()),
    }
    stop.cancel();
    Ok(())
}

/// Any task that ends, ends the process; cleanly only when that was asked for.
fn first_end(
    ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Ok(()))) if stop.is_cancelled() => Ok(()),
        Some(Ok(Ok(()))) => bail!("a task ended that should not"),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a task panicked"),
        None => bail!("no task runs"),
    }
}
