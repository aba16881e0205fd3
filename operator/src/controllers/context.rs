use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{Client, ResourceExt as _};
use pinhole_crds::VPNGateway;
use tokio::sync::watch;

use super::{
    allocation::Allocations, apply::Applier, error::ControlError, events::Events, hub::Hub, keys::KeyMemory,
    pace::WritePace, queue::Outcome, stock::StockMemory, work::Work,
};
use crate::{
    fleet::{Fleet, GatewayKey},
    identity::Authorities,
    plan::{Observed, PodFacts, Replica, Settings, replica_names, replicas},
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
    /// By UID of the client: moves that its replica had counted when its status was last written.
    pub(super) moves: Mutex<HashMap<String, u64>>,
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
        let services = replica_names(gateway)
            .into_iter()
            .filter_map(|name| Some((name.clone(), world.service(&(namespace.clone(), name))?)))
            .collect();
        drop(world);
        let observed = Observed { services: &services, pods: &pods, nodes: &nodes, public_keys };
        let all = replicas(gateway, &observed);
        (all, pods)
    }

    pub(super) fn moves_seen(&self, uid: &str) -> Option<u64> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied()
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
