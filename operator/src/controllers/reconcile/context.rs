//! What every look at an object needs, and what is remembered from one to the next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use pinhole_crds::VPNGateway;
use tokio::sync::watch;

use super::{keys::KeyMemory, stock::StockMemory};
use crate::{
    controllers::runtime::{
        allocation::Allocations, apply::Applier, error::ControlError, events::Events, pace::WritePace,
        queue::Outcome, request::Request, shared_state::SharedState,
    },
    fleet::{Fleet, GatewayKey, PoolKey},
    identity::Authorities,
    plan::{
        Observed, PodFacts, Replica, Settings, SidecarTrustObstacle,
        churn_events::{EventAggregator, Told},
        is_controlled_by, replica_services, replicas,
        summary::{Rebinds, SUMMARY_REST},
    },
};

/// All that a look at an object needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) shared: Arc<SharedState>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) settings: Settings,
    pub(crate) authorities: watch::Receiver<Arc<Authorities>>,
    pub(crate) applier: Applier,
    pub(crate) allocations: Allocations,
    pub(crate) events: Events,
    pub(crate) keys: KeyMemory,
    pub(crate) stock: StockMemory,
    pub(crate) pace: WritePace,
    /// By UID of the client: its status as it was last written.
    pub(crate) written: Mutex<HashMap<String, Written>>,
    /// When this operator took the lead: what happened before was for another one to tell.
    pub(crate) since: Timestamp,
    /// By UID of the client: what Events told of it.
    pub(crate) told: Mutex<HashMap<String, Told>>,
    pub(crate) crowds: Mutex<EventAggregator>,
    /// By UID of the gateway and public address: the last restart of a NAT that was told.
    pub(crate) restarts: Mutex<HashMap<(String, String), Timestamp>>,
    /// By pool: moves and losses of its clients' mappings.
    pub(crate) rebinds: Mutex<HashMap<PoolKey, Rebinds>>,
    /// By UID of a gateway or pool: when its summary was last written.
    pub(crate) summaries: Mutex<HashMap<String, Instant>>,
    /// By pool: what its tokens were last made from, and what their statuses were.
    pub(crate) tokens: Mutex<HashMap<String, (u64, Vec<pinhole_crds::TokenStatus>)>>,
    /// Why the SidecarTrust is not as it should be.
    pub(crate) sidecar_trust: Mutex<Option<SidecarTrustObstacle>>,
}

impl Context {
    /// Looks at one object.
    pub(crate) async fn reconcile(&self, request: &Request) -> Outcome {
        let started = Instant::now();
        let result = match request {
            Request::Gateway(key) => self.gateway(key).await,
            Request::Peers(key) => Ok(self.peers(key)),
            Request::Pool(key) => self.pool(key).await,
            Request::Client(key) => self.vpn_client(key).await,
            Request::Sidecars => self.sidecar_parameters().await.map(|()| None),
        };
        let category = result.as_ref().map_or_else(ControlError::category, |_| "Ok");
        self.shared.metrics.reconciled(request.kind(), category, started.elapsed());
        match result {
            Ok(wait) => Outcome::Done(wait),
            Err(error) => {
                log(request, &error);
                Outcome::Failed
            }
        }
    }

    /// The trust bundle, PEM.
    pub(crate) fn ca_pem(&self) -> String {
        self.authorities.borrow().bundle_pem().to_owned()
    }

    /// The gateway's replicas as observed, and its pods.
    pub(crate) fn replicas(
        &self,
        gateway: &VPNGateway,
        public_keys: &BTreeMap<String, [u8; 32]>,
    ) -> (Vec<Replica>, BTreeMap<String, PodFacts>) {
        let key = GatewayKey::from(gateway);
        let index = self.shared.index();
        let pods = index.pods_of(&key);
        let nodes = index.nodes_of(&pods);
        let namespace = gateway.namespace().unwrap_or_default();
        let services = replica_services(gateway)
            .into_iter()
            .filter_map(|name| Some((name.clone(), index.service(&(namespace.clone(), name))?)))
            // Where somebody else's Service leads is nothing to tell clients.
            .filter(|(_, service)| is_controlled_by(&service.metadata, gateway))
            .collect();
        drop(index);
        let observed = Observed { services: &services, pods: &pods, nodes: &nodes, public_keys };
        let all = replicas(gateway, &observed);
        (all, pods)
    }

    /// What is remembered of the last write of a client's status.
    pub(crate) fn written(&self, uid: &str) -> Option<Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

impl Context {
    /// Rebinds of the pools within the last hour, and when that changes though nothing happens.
    pub(crate) fn rebinds<'a>(&self, pools: impl IntoIterator<Item = &'a PoolKey>) -> (u64, Wait) {
        let now = Instant::now();
        let mut rebinds = self.rebinds.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut sum, mut wait) = (0, None);
        for pool in pools {
            let Some(of_pool) = rebinds.get_mut(pool) else { continue };
            sum += of_pool.per_hour(now);
            wait = of_pool.next_change(now).into_iter().chain(wait).min();
        }
        (sum, wait)
    }

    /// How long ago the summary of a gateway or pool was last written.
    pub(crate) fn summary_age(&self, uid: Option<&String>) -> Option<Duration> {
        let summaries = self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        summaries.get(uid?).map(Instant::elapsed)
    }

    /// The summary of a gateway or pool was written.
    pub(crate) fn summarised(&self, uid: Option<String>) {
        let mut summaries = self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        summaries.retain(|_, at| at.elapsed() < SUMMARY_REST);
        summaries.extend(uid.map(|uid| (uid, Instant::now())));
    }
}

/// The last write of a client's status.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) at: Instant,
    /// The replica that it was made from, and the moves that one had counted.
    pub(crate) moves: Option<(String, u64)>,
}

impl Written {
    /// Moves that `replica` had counted.
    pub(crate) fn moves_of(&self, replica: &str) -> Option<u64> {
        self.moves.as_ref().filter(|(name, _)| name == replica).map(|(_, moves)| *moves)
    }
}

/// The wait of a look that has nothing to wait for.
pub(crate) type Wait = Option<Duration>;

fn log(request: &Request, error: &ControlError) {
    let (namespace, name) = request.object();
    let (kind, category) = (request.kind(), error.category());
    if error.is_conflict() || error.is_not_found() {
        tracing::debug!(kind, namespace, name, category, %error, "to be looked at again");
    } else {
        tracing::warn!(kind, namespace, name, category, %error, "not as it should be yet; will be tried again");
    }
}
