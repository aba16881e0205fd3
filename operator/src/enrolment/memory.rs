//! Records in memory for tests, with an end to the writes where a test wants one, and controllers that give
//! addresses while there are any.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use pinhole_crds::{
    Enrolment, GatewayRef, JoinToken, POOL_LABEL, VPNClient, VPNClientPool, VPNClientPoolSpec,
    VPNClientStatus,
};
use pinhole_proto::v1::{DesiredState, GatewayReplica, Peer, Pool};
use rcgen::{CertificateParams, KeyPair};

use super::{
    KEY_LABEL, KeyHash, PublicKey, Records, RecordsError, client::key_label, secrets::TOKEN_KEY,
    token_secret_name,
};
use crate::{
    fleet::{Fleet, GatewayKey, PoolKey, object_ref},
    identity::{
        Authorities, Authority, CachedReviewer, CredentialError, Identity, PodIdentity, TokenReviewer,
    },
};

pub(crate) const NAMESPACE: &str = "vpn";
pub(crate) const GATEWAY: &str = "edge";
pub(crate) const REPLICA: &str = "edge-0";

pub(crate) fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

pub(crate) fn pool(name: &str, tokens: Vec<JoinToken>) -> VPNClientPool {
    VPNClientPool {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(NAMESPACE.into()),
            uid: Some(format!("uid-of-{name}")),
            ..ObjectMeta::default()
        },
        spec: VPNClientPoolSpec {
            gateway_ref: GatewayRef { name: GATEWAY.into() },
            cidrs: vec!["10.77.0.0/24".parse().unwrap()],
            reserved: vec![],
            routes: vec![],
            client_to_client: None,
            dns: None,
            enrolment: Some(Enrolment { tokens, sidecars: None }),
            max_clients: None,
            keepalive: None,
            health_mode: None,
        },
        status: None,
    }
}

pub(crate) fn token_secret(pool: &VPNClientPool, token: &str, part: &str) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(token_secret_name(&pool.name_any(), token)),
            namespace: pool.namespace(),
            resource_version: Some("as-made".into()),
            owner_references: Some(vec![super::client::owner(pool)]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(TOKEN_KEY.into(), ByteString(part.into()))])),
        ..Secret::default()
    }
}

pub(crate) fn sidecar(namespace: &str, name: &str, pool: &str) -> (PodIdentity, Pod) {
    let identity = PodIdentity {
        namespace: namespace.into(),
        service_account: "default".into(),
        pod: name.into(),
        pod_uid: format!("uid-of-{namespace}-{name}"),
        node: None,
    };
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            uid: Some(identity.pod_uid.clone()),
            labels: Some(BTreeMap::from([(POOL_LABEL.into(), pool.into())])),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    };
    (identity, pod)
}

/// Says what it was told to of each token.
#[derive(Default)]
pub(crate) struct Reviewer {
    pub(crate) pods: Mutex<HashMap<(String, &'static str), PodIdentity>>,
}

impl TokenReviewer for Arc<Reviewer> {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'static str,
    ) -> BoxFuture<'a, Result<PodIdentity, CredentialError>> {
        let found = self.pods.lock().unwrap().get(&(token.to_owned(), audience)).cloned();
        let refused = CredentialError::Refused { audience, reason: "not known".into() };
        Box::pin(async move { found.ok_or(refused) })
    }
}

/// How a write ends that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It never arrived.
    Request,
    /// It was done, but nobody heard.
    Answer,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) pools: BTreeMap<String, VPNClientPool>,
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) pods: BTreeMap<(String, String), Pod>,
    pub(crate) clients: BTreeMap<String, VPNClient>,
    /// Addresses that the controllers can give.
    pub(crate) addresses: usize,
    /// The write, counted from 0, that fails, and with it all that follow.
    pub(crate) fail: Option<(usize, Lost)>,
    writes: usize,
    clock: u64,
}

pub(crate) struct Memory {
    state: Mutex<State>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) reviewer: Arc<Reviewer>,
}

impl Memory {
    pub(crate) fn new(pools: Vec<VPNClientPool>) -> Arc<Self> {
        let authorities = Authorities::new(vec![Authority::generate(SystemTime::now()).unwrap()]);
        let memory = Self {
            state: Mutex::new(State { addresses: 200, ..State::default() }),
            fleet: Fleet::new(Instant::now()),
            identity: Identity::new(authorities, "pinhole-system", "pinhole-operator").unwrap(),
            reviewer: Arc::default(),
        };
        memory.lock().pools.extend(pools.into_iter().map(|p| (p.name_any(), p)));
        memory.reconcile();
        Arc::new(memory)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn cached_reviewer(&self) -> Arc<CachedReviewer> {
        Arc::new(CachedReviewer::new(Arc::clone(&self.reviewer)))
    }

    pub(crate) fn fail_at(&self, fail: Option<(usize, Lost)>) {
        let mut state = self.lock();
        state.fail = fail;
        state.writes = 0;
    }

    /// What the controllers do: an address for each client that may connect while there are any, and the gateway is told.
    pub(crate) fn reconcile(&self) {
        let mut state = self.lock();
        let State { clients, addresses, pools, .. } = &mut *state;
        let mut peers = vec![];
        for client in clients.values_mut() {
            if !may_connect(pools, client) {
                continue;
            }
            if peers.len() == *addresses {
                client.status = Some(exhausted());
                continue;
            }
            let key = client.spec.public_key.clone().unwrap_or_default();
            let Ok(public_key) = STANDARD.decode(key) else { continue };
            peers.push(Peer {
                client: Some(object_ref(client)),
                pool: u32::try_from(pools.keys().position(|n| *n == client.spec.pool_ref.name).unwrap())
                    .unwrap(),
                public_key,
                addresses: vec![format!("10.77.0.{}/32", peers.len() + 2)],
                ..Peer::default()
            });
        }
        let desired = DesiredState {
            mtu: 1420,
            replicas: vec![GatewayReplica { name: REPLICA.into(), ..GatewayReplica::default() }],
            pools: pools
                .values()
                .map(|p| Pool {
                    pool: Some(object_ref(p)),
                    cidrs: vec!["10.77.0.0/24".into()],
                    ..Pool::default()
                })
                .collect(),
            peers,
            ..DesiredState::default()
        };
        drop(state);
        self.fleet.publish(
            std::time::SystemTime::now(),
            &GatewayKey::new(NAMESPACE, GATEWAY),
            REPLICA,
            desired,
        );
    }

    fn write<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, RecordsError> {
        let timeout = || RecordsError::Timeout { doing: "writing in a test" };
        let mut state = self.lock();
        let n = state.writes;
        state.writes += 1;
        let answer = match state.fail {
            Some((at, _)) if n > at => return Err(timeout()),
            Some((at, Lost::Request)) if n == at => return Err(timeout()),
            Some((at, Lost::Answer)) if n == at => {
                act(&mut state);
                Err(timeout())
            }
            _ => Ok(act(&mut state)),
        };
        drop(state);
        self.reconcile();
        answer
    }
}

impl State {
    fn next_version(&mut self) -> String {
        self.clock += 1;
        self.clock.to_string()
    }
}

/// Whether it would be a peer with an address.
fn may_connect(pools: &BTreeMap<String, VPNClientPool>, client: &VPNClient) -> bool {
    let gateway = serde_json::json!({
        "apiVersion": "pinhole.dev/v1alpha1",
        "kind": "VPNGateway",
        "metadata": { "name": GATEWAY, "namespace": NAMESPACE },
        "spec": { "exposure": { "type": "LoadBalancer" } },
    });
    let gateway = serde_json::from_value(gateway).unwrap();
    let address = "10.77.0.2".parse().unwrap();
    let status = Some(VPNClientStatus { addresses: vec![address], ..VPNClientStatus::default() });
    let addressed = VPNClient { status, ..client.clone() };
    let pool = &pools[&client.spec.pool_ref.name];
    crate::plan::peer(&gateway, pool, &addressed, &[address], Timestamp::now()).is_some()
}

fn exhausted() -> VPNClientStatus {
    let condition = Condition {
        type_: "Stalled".into(),
        status: "True".into(),
        reason: "PoolExhausted".into(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    VPNClientStatus { conditions: vec![condition], ..VPNClientStatus::default() }
}

impl Records for Arc<Memory> {
    async fn pool(&self, key: &PoolKey) -> Result<Option<VPNClientPool>, RecordsError> {
        tokio::task::yield_now().await;
        Ok(self.lock().pools.get(&key.name).filter(|_| key.namespace == NAMESPACE).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, RecordsError> {
        tokio::task::yield_now().await;
        Ok(self.lock().secrets.get(name).cloned())
    }

    async fn annotate(
        &self,
        read: &Secret,
        annotations: BTreeMap<String, Option<String>>,
    ) -> Result<bool, RecordsError> {
        tokio::task::yield_now().await;
        self.write(|state| {
            let version = state.next_version();
            let secret = state.secrets.get_mut(&read.name_any()).unwrap();
            if secret.resource_version() != read.resource_version() {
                return false;
            }
            secret.metadata.resource_version = Some(version);
            for (key, value) in annotations {
                match value {
                    Some(value) => secret.annotations_mut().insert(key, value),
                    None => secret.annotations_mut().remove(&key),
                };
            }
            true
        })
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, RecordsError> {
        Ok(self.lock().pods.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    async fn namespace_labels(&self, _: &str) -> Result<Option<BTreeMap<String, String>>, RecordsError> {
        Ok(Some(BTreeMap::new()))
    }

    async fn client(&self, _: &str, name: &str) -> Result<Option<VPNClient>, RecordsError> {
        tokio::task::yield_now().await;
        Ok(self.lock().clients.get(name).cloned())
    }

    async fn client_of_key(&self, _: &str, key: KeyHash) -> Result<Option<VPNClient>, RecordsError> {
        tokio::task::yield_now().await;
        let state = self.lock();
        Ok(state.clients.values().find(|c| c.labels().get(KEY_LABEL) == Some(&key.to_string())).cloned())
    }

    async fn create_client(&self, client: &VPNClient) -> Result<Option<VPNClient>, RecordsError> {
        tokio::task::yield_now().await;
        self.write(|state| {
            if state.clients.contains_key(&client.name_any()) {
                return None;
            }
            let mut client = client.clone();
            let version = state.next_version();
            client.metadata.uid = Some(format!("uid-{version}"));
            client.metadata.resource_version = Some(version);
            state.clients.insert(client.name_any(), client.clone());
            Some(client)
        })
    }

    async fn change_key(&self, read: &VPNClient, key: &PublicKey) -> Result<Option<VPNClient>, RecordsError> {
        self.write(|state| {
            let client = state.clients.get_mut(&read.name_any())?;
            client.spec.public_key = Some(key.to_string());
            client.labels_mut().extend([key_label(key)]);
            Some(client.clone())
        })
    }

    async fn suspended(&self, pool: &PoolKey) -> Result<Vec<VPNClient>, RecordsError> {
        tokio::task::yield_now().await;
        let state = self.lock();
        let suspended = |c: &&VPNClient| c.spec.suspended == Some(true) && c.spec.pool_ref.name == pool.name;
        Ok(state.clients.values().filter(suspended).cloned().collect())
    }

    async fn note(
        &self,
        read: &VPNClient,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<VPNClient>, RecordsError> {
        tokio::task::yield_now().await;
        self.write(|state| {
            let client = state.clients.get_mut(&read.name_any()).filter(|c| c.uid() == read.uid())?;
            client.annotations_mut().extend(annotations.clone());
            Some(client.clone())
        })
    }

    async fn delete_client(&self, client: &VPNClient) -> Result<(), RecordsError> {
        self.write(|state| drop(state.clients.remove(&client.name_any())))
    }
}
