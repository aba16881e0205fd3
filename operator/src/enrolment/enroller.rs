//! Enrols clients for the gateways that relay them.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::ResourceExt as _;
use pinhole_crds::{VPNClient, VPNClientPool};
use pinhole_proto::{
    GATEWAY_AUDIENCE,
    v1::{ClientConfig, EnrolResponse, IssuedCertificate, RelayEnrolRequest, RelayRenewRequest},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Ask, Credential, EnrolmentError, PublicKey, Records,
    binding::SessionBinding,
    capacity,
    client::{changes, check_entitled, is_enrolled_with, of_machine, of_pod},
    config::{client_config, find_peer},
    limit::{Limits, Unknown},
    lookups::Lookups,
    secrets::token_secret_name,
    sidecar,
    token::{Admission, Ledger, verify},
};
use crate::{
    fleet::{ClientKey, Fleet, GatewayKey, PoolKey},
    identity::{CachedReviewer, Identity, PodIdentity, ReplicaIdentity, RequestedKey, client_uri},
};

/// Most enrolments of good credentials under way at a time, and how long others wait for their turn: less than a gateway
/// waits for its answer, less the time that an enrolment takes.
const CONCURRENT: usize = 64;
const TURN: Duration = Duration::from_secs(2);

/// How often a write is tried that others get in the way of.
const ATTEMPTS: usize = 8;

/// How long the controllers may take to give a new client its address, looked at this many times.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_secs(1);

/// Enrols clients for the gateways that relay them.
///
/// The order of writes: a use of the token, with the key that took it; the VPNClient, or what changed of it; then the key is
/// struck off. A crash in between leaves a machine that can go on, and never one more client than there are uses.
pub struct Enroller<R> {
    records: R,
    fleet: Arc<Fleet>,
    identity: Arc<Identity>,
    reviewer: Arc<CachedReviewer>,
    limits: Mutex<Limits>,
    pools: Lookups<PoolKey, Option<Arc<VPNClientPool>>>,
    secrets: Lookups<(PoolKey, String), Option<Arc<Secret>>>,
    under_way: Semaphore,
    turns: Turns,
}

/// Whoever writes the uses of a token takes its turn: the API server would refuse all but one at a time. Tokens
/// share turns by the hash of their name.
#[derive(Default)]
struct Turns([tokio::sync::Mutex<()>; 16]);

impl Turns {
    async fn take(&self, secret: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        secret.hash(&mut hasher);
        let turn = usize::try_from(hasher.finish() % 16).ok().and_then(|n| self.0.get(n));
        Some(turn?.lock().await)
    }
}

/// A client that may connect.
struct Enrolled {
    client: VPNClient,
    /// Whether this very request made it.
    made: bool,
}

impl<R: Records> Enroller<R> {
    /// An enroller over `records`.
    pub fn new(
        records: R,
        fleet: Arc<Fleet>,
        identity: Arc<Identity>,
        reviewer: Arc<CachedReviewer>,
    ) -> Self {
        let under_way = Semaphore::new(CONCURRENT);
        Self {
            records,
            fleet,
            identity,
            reviewer,
            limits: Mutex::default(),
            pools: Lookups::default(),
            secrets: Lookups::default(),
            under_way,
            turns: Turns::default(),
        }
    }

    /// Enrols whoever `caller`, a replica of a gateway, relays. Enrolling again with the same key yields the same
    /// client.
    pub async fn enrol(
        &self,
        caller: &ReplicaIdentity,
        request: RelayEnrolRequest,
    ) -> Result<EnrolResponse, EnrolmentError> {
        let gateway = GatewayKey::new(&caller.namespace, &caller.gateway);
        let ask = Ask::new(request)?;
        let pool = Box::pin(self.pool_of(&gateway, caller, &ask.pool)).await?;
        match &ask.credential {
            Credential::Token { name, secret } => {
                Box::pin(self.check_token(&pool, &ask.pool, name, secret)).await?;
                self.limit(|limits, now| limits.token(now, &ask.pool, name))?;
                let _turn = self.turn().await?;
                let enrolled = self.by_token(&pool, name, secret, &ask).await?;
                let response = self.respond(&gateway, caller, &pool, &ask, enrolled).await?;
                self.settle(&pool, name, &ask).await;
                Ok(response)
            }
            Credential::ServiceAccount(token) => {
                if !self.reviewer.remembers(token, GATEWAY_AUDIENCE) {
                    self.limit(|limits, now| limits.unknown(now, Unknown::ServiceAccount, &gateway))?;
                }
                let pod = self.reviewer.review(token, GATEWAY_AUDIENCE).await?;
                self.limit(|limits, now| limits.pod(now, &pod.pod_uid))?;
                let _turn = self.turn().await?;
                let enrolled = self.by_pod(&pool, &pod, &ask).await?;
                self.respond(&gateway, caller, &pool, &ask, enrolled).await
            }
            Credential::Keys => {
                self.limit(|limits, now| limits.unknown(now, Unknown::Keys, &gateway))?;
                let _turn = self.turn().await?;
                let enrolled = self.by_keys(&gateway, &pool, &ask).await?;
                self.respond(&gateway, caller, &pool, &ask, enrolled).await
            }
        }
    }

    /// Renews the certificate of a client; `caller` vouches that it spoke with the one before.
    pub async fn renew(
        &self,
        caller: &ReplicaIdentity,
        request: RelayRenewRequest,
    ) -> Result<IssuedCertificate, EnrolmentError> {
        let client = request.client.ok_or(EnrolmentError::RequestInvalid("client is missing"))?;
        let key = RequestedKey::from_csr(&request.csr)?;
        let named = ClientKey::from(&client);
        if client.namespace != caller.namespace {
            return Err(EnrolmentError::ClientDeleted(named.to_string()));
        }
        let gateway = GatewayKey::new(&caller.namespace, &caller.gateway);
        self.limit(|limits, now| limits.renewal(now, &gateway, &client.uid))?;
        let is_peer = {
            let desired = self.fleet.desired(&gateway, &caller.replica);
            let desired = desired.borrow();
            desired.as_ref().is_some_and(|d| {
                find_peer(d, &client.uid).is_some_and(|p| p.client.as_ref() == Some(&client))
            })
        };
        let found = self.records.client(&named.namespace, &named.name).await?;
        let found = found.filter(|c| c.metadata.uid.as_deref() == Some(&client.uid));
        let found = found.ok_or_else(|| EnrolmentError::ClientDeleted(named.to_string()))?;
        check_entitled(&found, Timestamp::now())?;
        if !is_peer {
            return Err(EnrolmentError::ClientNotReady(named.to_string()));
        }
        let tunnel = found.spec.public_key.as_deref().and_then(PublicKey::parse);
        if !tunnel.is_some_and(|tunnel| SessionBinding::new(&tunnel, &key).is_of(&found)) {
            return Err(EnrolmentError::SessionKeyChanged(named.to_string()));
        }
        self.certificate(&key, &named, &client.uid)
    }

    fn limit(
        &self,
        take: impl FnOnce(&mut Limits, Instant) -> Result<(), EnrolmentError>,
    ) -> Result<(), EnrolmentError> {
        take(&mut self.limits.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }

    /// Waits for a turn, in order.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, EnrolmentError> {
        let turn = timeout(TURN, self.under_way.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(EnrolmentError::RateLimited)
    }

    async fn pool_of(
        &self,
        gateway: &GatewayKey,
        caller: &ReplicaIdentity,
        key: &PoolKey,
    ) -> Result<Arc<VPNClientPool>, EnrolmentError> {
        let not_found = || EnrolmentError::PoolNotFound(key.to_string());
        if key.namespace != gateway.namespace {
            return Err(not_found());
        }
        if !self.is_told_of(gateway, caller, key) {
            self.limit(|limits, now| limits.unknown(now, Unknown::Pool, gateway))?;
        }
        let look = async { Ok(self.records.pool(key).await?.map(Arc::new)) };
        let pool = self.pools.get(key.clone(), look).await?.ok_or_else(not_found)?;
        let serves = pool.spec.gateway_ref.name == gateway.name && pool.metadata.deletion_timestamp.is_none();
        if serves { Ok(pool) } else { Err(not_found()) }
    }

    /// Whether the gateway is told that this pool is one of its own.
    fn is_told_of(&self, gateway: &GatewayKey, caller: &ReplicaIdentity, key: &PoolKey) -> bool {
        let desired = self.fleet.desired(gateway, &caller.replica);
        let desired = desired.borrow();
        let mut pools = desired.iter().flat_map(|desired| &desired.pools).filter_map(|p| p.pool.as_ref());
        pools.any(|pool| pool.namespace == key.namespace && pool.name == key.name)
    }

    /// Whether somebody holds the token, as far as can be told at no cost to others who do.
    async fn check_token(
        &self,
        pool: &VPNClientPool,
        key: &PoolKey,
        name: &str,
        part: &str,
    ) -> Result<(), EnrolmentError> {
        if !pool.spec.enrolment.iter().flat_map(|e| &e.tokens).any(|token| token.name == name) {
            return Err(EnrolmentError::TokenInvalid);
        }
        let secret_name = token_secret_name(&key.name, name);
        let look = async { Ok(self.records.secret(&key.namespace, &secret_name).await?.map(Arc::new)) };
        let secret = self.secrets.get((key.clone(), name.to_owned()), look).await?;
        verify(pool, name, part, secret.as_deref()).map(drop)
    }

    async fn by_token(
        &self,
        pool: &VPNClientPool,
        name: &str,
        part: &str,
        ask: &Ask,
    ) -> Result<Enrolled, EnrolmentError> {
        let secret_name = token_secret_name(&ask.pool.name, name);
        for _ in 0..ATTEMPTS {
            let turn = self.turns.take(&secret_name).await;
            let secret = self.records.secret(&ask.pool.namespace, &secret_name).await?;
            let token = verify(pool, name, part, secret.as_ref())?;
            let known = self.known(pool, ask).await?;
            let known = match known {
                // Enrolled with this token before: it needs no other use, and the token may be over.
                Some(client) if is_enrolled_with(&client, name) => {
                    return Ok(Enrolled { client, made: false });
                }
                other => other,
            };
            // Who is suspended could otherwise come back with the same token under a new key.
            if self.records.suspended(&ask.pool).await?.iter().any(|client| is_enrolled_with(client, name)) {
                return Err(EnrolmentError::TokenSuspended(name.to_owned()));
            }
            let Some(secret) = secret else { return Err(EnrolmentError::TokenInvalid) };
            let ledger = Ledger::read(secret.metadata.annotations.as_ref());
            if let Admission::Take(next) = ledger.admit(token, ask.key_hash(), Timestamp::now())? {
                if known.is_none() {
                    capacity::check(pool)?;
                }
                if !self.records.annotate(&secret, next.annotations()).await? {
                    continue;
                }
            }
            drop(turn);
            return match known {
                Some(client) => Ok(Enrolled { client, made: false }),
                None => self.make(of_machine(pool, token, ask), ask).await,
            };
        }
        Err(EnrolmentError::Contended(name.to_owned()))
    }

    async fn by_pod(
        &self,
        pool: &VPNClientPool,
        identity: &PodIdentity,
        ask: &Ask,
    ) -> Result<Enrolled, EnrolmentError> {
        let pod = self.records.pod(&identity.namespace, &identity.pod).await?;
        let labels = if sidecar::needs_namespace_labels(pool, identity) {
            self.records.namespace_labels(&identity.namespace).await?
        } else {
            None
        };
        sidecar::admit(pool, identity, pod.as_ref(), labels.as_ref())?;
        let wanted = of_pod(pool, identity, ask);
        for _ in 0..ATTEMPTS {
            let Some(client) = self.records.client(&ask.pool.namespace, &wanted.name_any()).await? else {
                if self.known(pool, ask).await?.is_some() {
                    return Err(EnrolmentError::RequestInvalid("public_key is another client's"));
                }
                capacity::check(pool)?;
                return self.make(wanted, ask).await;
            };
            if client.spec.enrolment.as_ref().and_then(|e| e.pod.as_ref())
                != wanted.spec.enrolment.as_ref().and_then(|e| e.pod.as_ref())
            {
                return Err(EnrolmentError::NameTaken(ClientKey::from(&client).to_string()));
            }
            check_entitled(&client, Timestamp::now())?;
            if client.spec.public_key == wanted.spec.public_key {
                return Ok(Enrolled { client, made: false });
            }
            // The container lost its state and made another key; the pod is the same.
            if let Some(client) = self.records.change_key(&client, &ask.public_key).await? {
                return Ok(Enrolled { client, made: false });
            }
        }
        Err(EnrolmentError::ClientNotReady(ClientKey::from(&wanted).to_string()))
    }

    /// The client of both keys, which let its certificate end: a renewal without it, bound to the same keys and as often.
    async fn by_keys(
        &self,
        gateway: &GatewayKey,
        pool: &VPNClientPool,
        ask: &Ask,
    ) -> Result<Enrolled, EnrolmentError> {
        let known = self.known(pool, ask).await?;
        let client = known
            .ok_or_else(|| EnrolmentError::ClientDeleted(format!("of this key in pool {}", ask.pool)))?;
        if !ask.binding().is_of(&client) {
            return Err(EnrolmentError::SessionKeyChanged(ClientKey::from(&client).to_string()));
        }
        self.limit(|limits, now| limits.renewal(now, gateway, &client.uid().unwrap_or_default()))?;
        Ok(Enrolled { client, made: false })
    }

    /// The client that enrolled with this key before, which may connect and is of this pool.
    async fn known(&self, pool: &VPNClientPool, ask: &Ask) -> Result<Option<VPNClient>, EnrolmentError> {
        let found = self.records.client_of_key(&ask.pool.namespace, ask.key_hash()).await?;
        let Some(client) = found.filter(|c| c.spec.public_key == Some(ask.public_key.to_string())) else {
            return Ok(None);
        };
        if client.spec.pool_ref.name != pool.name_any() {
            return Err(EnrolmentError::RequestInvalid("public_key is that of a client of another pool"));
        }
        check_entitled(&client, Timestamp::now())?;
        Ok(Some(client))
    }

    async fn make(&self, wanted: VPNClient, ask: &Ask) -> Result<Enrolled, EnrolmentError> {
        if let Some(client) = self.records.create_client(&wanted).await? {
            return Ok(Enrolled { client, made: true });
        }
        let key = ClientKey::from(&wanted);
        let found = self.records.client(&key.namespace, &key.name).await?;
        let client = found.ok_or_else(|| EnrolmentError::ClientNotReady(key.to_string()))?;
        let same = client.spec.public_key == Some(ask.public_key.to_string())
            && client.spec.pool_ref == wanted.spec.pool_ref;
        if !same {
            return Err(EnrolmentError::NameTaken(key.to_string()));
        }
        check_entitled(&client, Timestamp::now())?;
        Ok(Enrolled { client, made: false })
    }

    async fn respond(
        &self,
        gateway: &GatewayKey,
        caller: &ReplicaIdentity,
        pool: &VPNClientPool,
        ask: &Ask,
        enrolled: Enrolled,
    ) -> Result<EnrolResponse, EnrolmentError> {
        let config = match self.configured(gateway, caller, ask, &enrolled.client).await {
            Err(error @ (EnrolmentError::PoolExhausted(_) | EnrolmentError::PoolFull(_)))
                if enrolled.made =>
            {
                self.records.delete_client(&enrolled.client).await?;
                return Err(error);
            }
            other => other?,
        };
        let uid = enrolled.client.uid().unwrap_or_default();
        let changes = changes(pool, &enrolled.client, ask);
        if !changes.is_empty() && self.records.note(&enrolled.client, &changes).await?.is_none() {
            return Err(EnrolmentError::ClientDeleted(ClientKey::from(&enrolled.client).to_string()));
        }
        let certificate = self.certificate(&ask.session_key, &ClientKey::from(&enrolled.client), &uid)?;
        Ok(EnrolResponse { certificate: Some(certificate), config: Some(config) })
    }

    /// Waits until the gateway is told of the client: then it has its addresses, and is let in.
    async fn configured(
        &self,
        gateway: &GatewayKey,
        caller: &ReplicaIdentity,
        ask: &Ask,
        client: &VPNClient,
    ) -> Result<ClientConfig, EnrolmentError> {
        let uid = client.uid().unwrap_or_default();
        let key = ClientKey::from(client);
        let mut desired = self.fleet.desired(gateway, &caller.replica);
        for _ in 0..LOOKS {
            let told = desired.wait_for(|desired| {
                let peer = desired.as_ref().and_then(|d| find_peer(d, &uid));
                peer.is_some_and(|p| p.public_key == ask.public_key.as_bytes())
            });
            if let Ok(Ok(desired)) = timeout(LOOK, told).await {
                let config = desired.as_ref().and_then(|d| client_config(d, find_peer(d, &uid)?));
                return config.ok_or_else(|| EnrolmentError::ClientNotReady(key.to_string()));
            }
            let Some(now) = self.records.client(&key.namespace, &key.name).await? else {
                return Err(EnrolmentError::ClientDeleted(key.to_string()));
            };
            check_entitled(&now, Timestamp::now())?;
            if let Some(refusal) = capacity::refusal(&now, &ask.pool) {
                return Err(refusal);
            }
        }
        Err(EnrolmentError::ClientNotReady(key.to_string()))
    }

    /// Strikes off the key that took a use: its client is there. To fail here does no harm, the entry ends by
    /// itself.
    async fn settle(&self, pool: &VPNClientPool, token: &str, ask: &Ask) {
        let name = token_secret_name(&pool.name_any(), token);
        for _ in 0..ATTEMPTS {
            let _turn = self.turns.take(&name).await;
            let Ok(Some(secret)) = self.records.secret(&ask.pool.namespace, &name).await else { return };
            let ledger = Ledger::read(secret.metadata.annotations.as_ref());
            let Some(settled) = ledger.settled(ask.key_hash()) else { return };
            match self.records.annotate(&secret, settled.annotations()).await {
                Ok(false) => {}
                Ok(true) | Err(_) => return,
            }
        }
    }

    fn certificate(
        &self,
        key: &RequestedKey,
        client: &ClientKey,
        uid: &str,
    ) -> Result<IssuedCertificate, EnrolmentError> {
        let authorities = self.identity.authorities();
        let uri = client_uri(&client.namespace, &client.name, uid);
        let issued = authorities.issue_client(key, &client.name, &uri, SystemTime::now())?;
        Ok(IssuedCertificate {
            chain_pem: issued.chain_pem,
            ca_pem: authorities.bundle_pem().to_owned(),
            not_after: Some(issued.not_after.into()),
        })
    }
}

#[cfg(test)]
#[path = "enroller_tests.rs"]
mod tests;
