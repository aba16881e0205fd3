//! What only the leader does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Client, ResourceExt as _, api::ListParams};
use pinhole_crds::{Raw, VPNClient};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    reconcile::{context::Context, keys::KeyMemory, stock::StockMemory},
    runtime::{
        allocation::Allocations,
        apply::Applier,
        error::{ControlError, call},
        events::Events,
        index::Effects,
        pace::WritePace,
        queue::{Lane, Outcome, Schedule},
        request::Request,
        shared_state::SharedState,
    },
};
use crate::{
    fleet::{Change, Fleet},
    identity::Authorities,
    plan::Settings,
    scope::Scope,
};

/// Objects looked at at the same time.
const CONCURRENT: usize = 16;

/// How often the fleet and the loop's own health are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two sweeps of what is remembered.
const SWEEP: u64 = 60;

/// How long looks that are under way may take when the operator stops.
const DRAIN: Duration = Duration::from_secs(5);

/// How long the watches may take to show what a list showed.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Clients of a page of the list that a new leader makes.
const PAGE: u32 = 500;

/// All that a leader needs.
pub struct Leader {
    /// Client for calls, without retries of its own.
    pub client: Client,
    /// The observed world.
    pub shared: Arc<SharedState>,
    /// The replicas.
    pub fleet: Arc<Fleet>,
    /// What the operator was started with.
    pub settings: Settings,
    /// The certificate authorities.
    pub authorities: watch::Receiver<Arc<Authorities>>,
    /// The namespaces that it serves.
    pub scope: Scope,
    /// Name of this operator's pod.
    pub instance: String,
}

/// Why a leader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The list that it starts from cannot be had.
    #[error(transparent)]
    List(#[from] ControlError),
    /// A look panicked: the state in memory cannot be trusted any more.
    #[error("a look at an object ended in a panic: {0}")]
    Panic(#[from] tokio::task::JoinError),
}

impl Leader {
    /// Leads until `stop`. `leading` becomes true as soon as the gateways may come. To be dropped when the lease is lost.
    pub async fn lead(
        self,
        leading: &watch::Sender<bool>,
        stop: CancellationToken,
    ) -> Result<(), LeaderError> {
        let mut tasks = JoinSet::new();
        let (events, publishing) = Events::new(self.client.clone(), &self.instance);
        tasks.spawn(publishing);
        let shared = Arc::clone(&self.shared);
        let context = Arc::new(Context {
            applier: Applier::new(self.client.clone(), Arc::clone(&self.shared)),
            client: self.client,
            shared: self.shared,
            fleet: self.fleet,
            settings: self.settings,
            authorities: self.authorities,
            allocations: Allocations::default(),
            events,
            keys: KeyMemory::default(),
            stock: StockMemory::default(),
            pace: WritePace::default(),
            written: std::sync::Mutex::default(),
            since: k8s_openapi::jiff::Timestamp::now(),
            told: std::sync::Mutex::default(),
            crowds: std::sync::Mutex::default(),
            restarts: std::sync::Mutex::default(),
            rebinds: std::sync::Mutex::default(),
            summaries: std::sync::Mutex::default(),
            tokens: std::sync::Mutex::default(),
            sidecar_trust: std::sync::Mutex::default(),
        });
        shared.start_leading();
        let listed = list(&context.client, &self.scope).await?;
        let uids = listed.iter().filter_map(Raw::uid).collect();
        // Of one that is not understood at all, the index tells what it holds.
        let understood: Vec<VPNClient> =
            listed.into_iter().filter_map(|raw| Some(raw.read(None).ok()?.object)).collect();
        context.allocations.load(&understood);
        let meanwhile = catch_up(&shared, uids).await;
        context.fleet.listen_from(Instant::now());
        leading.send_replace(true);
        shared.metrics.leading(true);
        let result = Loop::new(context).run(meanwhile, stop).await;
        leading.send_replace(false);
        shared.metrics.leading(false);
        shared.health.rest();
        result
    }
}

/// All clients as they are, not as a cache shows them: no address may be given that the leader before gave.
async fn list(client: &Client, scope: &Scope) -> Result<Vec<Raw<VPNClient>>, ControlError> {
    let mut all = Vec::new();
    for api in scope.apis::<Raw<VPNClient>>(client) {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = call(|| "listing VPNClients".to_owned(), api.list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => params = params.continue_token(&next),
                None => break,
            }
        }
    }
    Ok(all)
}

/// Waits, within reason, until the index knows all listed clients: gateways must not be told of fewer. Returns what
/// changed meanwhile.
async fn catch_up(shared: &SharedState, uids: Vec<String>) -> Effects {
    let mut effects = Effects::default();
    let knows_all = || {
        let index = shared.index();
        uids.iter().all(|uid| index.has_client(uid))
    };
    let wait = async {
        while !knows_all() {
            effects.merge(shared.changes().await);
        }
    };
    if timeout(CATCH_UP, wait).await.is_err() {
        tracing::warn!("the watch of VPNClients is behind; going on with what it shows");
    }
    effects
}

struct Loop {
    context: Arc<Context>,
    schedule: Schedule<Request>,
    running: JoinSet<(Request, Outcome)>,
    random: SystemRandom,
}

impl Loop {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            schedule: Schedule::new(Request::pace),
            running: JoinSet::new(),
            random: SystemRandom::new(),
        }
    }

    async fn run(mut self, meanwhile: Effects, stop: CancellationToken) -> Result<(), LeaderError> {
        self.react(meanwhile);
        let everything = self.context.shared.index().all();
        self.add(everything);
        let mut authorities = self.context.authorities.clone();
        let mut authorities_live = true;
        let mut ticks = interval(TICK);
        let mut ticked = 0_u64;
        loop {
            self.start_due();
            let context = Arc::clone(&self.context);
            let due = self.schedule.poll_timeout().filter(|_| self.running.len() < CONCURRENT);
            let until_due = async {
                match due {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = self.running.join_next() => self.ended(ended)?,
                effects = context.shared.changes() => self.react(effects),
                changes = context.fleet.changes() => self.add_changes(changes),
                changed = authorities.changed(), if authorities_live => {
                    authorities_live = changed.is_ok();
                    let everything = context.shared.index().all();
                    self.add(everything);
                }
                _ = ticks.tick() => {
                    ticked += 1;
                    self.tick(ticked.is_multiple_of(SWEEP));
                }
                () = until_due => {}
            }
        }
        self.drain().await;
        Ok(())
    }

    fn add(&mut self, request: impl IntoIterator<Item = Request>) {
        let now = Instant::now();
        let index = self.context.shared.index();
        for request in request {
            if index.is_awaited(&request) {
                self.schedule.add_to(Lane::First, request, now);
            } else {
                self.schedule.add(request, now);
            }
        }
    }

    /// What replicas say. Clients that are there go before those that nobody ever heard.
    fn add_changes(&mut self, changes: impl IntoIterator<Item = Change>) {
        let now = Instant::now();
        for change in changes {
            match change {
                Change::Gateway(key) => self.schedule.add(Request::Gateway(key), now),
                Change::Client(key) => self.schedule.add(Request::Client(key), now),
                Change::Peers(key) => self.schedule.add(Request::Peers(key), now),
                Change::Heard(key) => self.schedule.add_to(Lane::First, Request::Client(key), now),
            }
        }
    }

    fn react(&mut self, effects: Effects) {
        for (pool, uid) in &effects.gone {
            self.context.client_gone(pool, uid);
            let waiting: Vec<Request> =
                self.context.shared.index().waiting_of(pool).map(Request::Client).collect();
            self.add(waiting);
        }
        self.add(effects.request);
    }

    fn start_due(&mut self) {
        while self.running.len() < CONCURRENT {
            let Some(request) = self.schedule.take(Instant::now()) else { return };
            let context = Arc::clone(&self.context);
            self.running.spawn(async move {
                let outcome = context.reconcile(&request).await;
                (request, outcome)
            });
        }
    }

    fn ended(
        &mut self,
        ended: Result<(Request, Outcome), tokio::task::JoinError>,
    ) -> Result<(), LeaderError> {
        let (request, outcome) = ended?;
        let jitter = self.jitter();
        self.schedule.finish(request, outcome, Instant::now(), jitter);
        Ok(())
    }

    fn tick(&mut self, sweep: bool) {
        let now = Instant::now();
        let context = &self.context;
        context.shared.health.beat(now);
        context.shared.metrics.waiting(self.schedule.waiting());
        context.fleet.handle_timeout(now);
        if sweep {
            let index = context.shared.index();
            context.allocations.sweep(|uid| index.has_client(uid));
            drop(index);
            context.applier.sweep();
            self.schedule.sweep(now);
        }
    }

    fn jitter(&self) -> f64 {
        let mut bytes = [0; 4];
        match self.random.fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
            Err(_) => 0.5,
        }
    }

    async fn drain(&mut self) {
        let all = async { while self.running.join_next().await.is_some() {} };
        if timeout(DRAIN, all).await.is_err() {
            tracing::warn!("looks at objects were still under way when the operator stopped");
        }
    }
}
