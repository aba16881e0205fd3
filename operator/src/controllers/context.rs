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

use super::{
    allocation::Allocations, apply::Applier, error::ControlError, events::Events, hub::Hub, keys::KeyMemory,
    pace::WritePace, queue::Outcome, stock::StockMemory, work::Work,
};
use crate::{
    fleet::{Fleet, GatewayKey, PoolKey},
    identity::Authorities,
    plan::{
        Observed, PodFacts, Replica, Settings, is_controlled_by, replica_services, replicas,
        summary::{Rebinds, SUMMARY_REST},
        tidings::{Crowds, Told},
    },
};

/// All that a look at an object needs.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) hub: Arc<Hub>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) settings: Settings,
    pub(super) authorities: watch::Receiver<Arc<Authorities>>,
    pub(super) applier: Applier,
    pub(super) allocations: Allocations,
    pub(super) events: Events,
    pub(super) keys: KeyMemory,
    pub(super) stock: StockMemory,
    pub(super) pace: WritePace,
    /// By UID of the client: its status as it was last written.
    pub(super) written: Mutex<HashMap<String, Written>>,
    /// When this operator took the lead: what happened before was for another one to tell.
    pub(super) since: Timestamp,
    /// By UID of the client: what Events told of it.
    pub(super) told: Mutex<HashMap<String, Told>>,
    pub(super) crowds: Mutex<Crowds>,
    /// By UID of the gateway and public address: the last restart of a NAT that was told.
    pub(super) restarts: Mutex<HashMap<(String, String), Timestamp>>,
    /// By pool: moves and losses of its clients' mappings.
    pub(super) rebinds: Mutex<HashMap<PoolKey, Rebinds>>,
    /// By UID of a gateway or pool: when its summary was last written.
    pub(super) summaries: Mutex<HashMap<String, Instant>>,
    /// By pool: what its tokens were last made from, and what their statuses were.
    pub(super) tokens: Mutex<HashMap<String, (u64, Vec<pinhole_crds::TokenStatus>)>>,
}

impl Context {
    /// Looks at one object.
    pub(super) async fn look(&self, work: &Work) -> Outcome {
        let started = Instant::now();
        let result = match work {
            Work::Gateway(key) => self.gateway(key).await,
            Work::Peers(key) => Ok(self.peers(key)),
            Work::Pool(key) => self.pool(key).await,
            Work::Client(key) => self.vpn_client(key).await,
            Work::Sidecars => self.sidecar_parameters().await.map(|()| None),
        };
        let category = result.as_ref().map_or_else(ControlError::category, |_| "Ok");
        self.hub.metrics.reconciled(work.kind(), category, started.elapsed());
        match result {
            Ok(wait) => Outcome::Done(wait),
            Err(error) => {
                log(work, &error);
                Outcome::Failed
            }
        }
    }

    /// The trust bundle, PEM.
    pub(super) fn ca_pem(&self) -> String {
        self.authorities.borrow().bundle_pem().to_owned()
    }

    /// The gateway's replicas as observed, and its pods.
    pub(super) fn replicas(
        &self,
        gateway: &VPNGateway,
        public_keys: &BTreeMap<String, [u8; 32]>,
    ) -> (Vec<Replica>, BTreeMap<String, PodFacts>) {
        let key = GatewayKey::from(gateway);
        let world = self.hub.world();
        let pods = world.pods_of(&key);
        let nodes = world.nodes_of(&pods);
        let namespace = gateway.namespace().unwrap_or_default();
        let services = replica_services(gateway)
            .into_iter()
            .filter_map(|name| Some((name.clone(), world.service(&(namespace.clone(), name))?)))
            // Where somebody else's Service leads is nothing to tell clients.
            .filter(|(_, service)| is_controlled_by(&service.metadata, gateway))
            .collect();
        drop(world);
        let observed = Observed { services: &services, pods: &pods, nodes: &nodes, public_keys };
        let all = replicas(gateway, &observed);
        (all, pods)
    }

    /// What is remembered of the last write of a client's status.
    pub(super) fn written(&self, uid: &str) -> Option<Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}

impl Context {
    /// Rebinds of the pools within the last hour, and when that changes though nothing happens.
    pub(super) fn rebinds<'a>(&self, pools: impl IntoIterator<Item = &'a PoolKey>) -> (u64, Wait) {
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
    pub(super) fn summary_age(&self, uid: Option<&String>) -> Option<Duration> {
        let summaries = self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        summaries.get(uid?).map(Instant::elapsed)
    }

    /// The summary of a gateway or pool was written.
    pub(super) fn summarised(&self, uid: Option<String>) {
        let mut summaries = self.summaries.lock().unwrap_or_else(PoisonError::into_inner);
        summaries.retain(|_, at| at.elapsed() < SUMMARY_REST);
        summaries.extend(uid.map(|uid| (uid, Instant::now())));
    }
}

/// The last write of a client's status.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) at: Instant,
    /// The replica that it was made from, and the moves that one had counted.
    pub(super) moves: Option<(String, u64)>,
}

impl Written {
    /// Moves that `replica` had counted.
    pub(super) fn moves_of(&self, replica: &str) -> Option<u64> {
        self.moves.as_ref().filter(|(name, _)| name == replica).map(|(_, moves)| *moves)
    }
}

/// The wait of a look that has nothing to wait for.
pub(super) type Wait = Option<Duration>;

fn log(work: &Work, error: &ControlError) {
    let (namespace, name) = work.object();
    let (kind, category) = (work.kind(), error.category());
    if error.is_conflict() || error.is_not_found() {
        tracing::debug!(kind, namespace, name, category, %error, "to be looked at again");
    } else {
        tracing::warn!(kind, namespace, name, category, %error, "not as it should be yet; will be tried again");
    }
}
