//! A look at a `VPNClientPool`: its tokens, Service and status.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    sync::PoisonError,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use pinhole_crds::{TokenStatus, Unread, VPNClientPool, VPNClientPoolStatus, VPNGateway};
use pinhole_proto::gateway_server_name;

use super::context::{Context, Wait};
use crate::{
    controllers::runtime::{apply::StatusWrite, error::ControlError, index::gateway_of},
    enrolment::{JoinTarget, ensure_tokens, token_secret_name},
    fleet::PoolKey,
    plan::{self, Foreign, ObjectKind, overlaps, summary},
};

const MANAGER: &str = "pinhole-operator-pool";
const STATUS_MANAGER: &str = "pinhole-operator-pool-status";

impl Context {
    /// A pool's objects and status.
    pub(super) async fn pool(&self, key: &PoolKey) -> Result<Wait, ControlError> {
        let Some(pool) = self.shared.index().pool(key) else {
            if let Some(frozen) = self.shared.index().frozen_pool(key) {
                self.tell_frozen::<VPNClientPool>(Some(frozen));
                return Ok(None);
            }
            self.allocations.remove(key);
            self.lock_tokens().remove(&key.to_string());
            self.rebinds.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
            return Ok(None);
        };
        let has_frozen_gateway = self.shared.index().frozen_gateway(&gateway_of(&pool)).is_some();
        if pool.metadata.deletion_timestamp.is_some() || has_frozen_gateway {
            return Ok(None);
        }
        let unread = self.shared.index().unread_pool(key).to_vec();
        let gateway = self.shared.index().gateway(&gateway_of(&pool));
        let (mut failure, mut foreign) = (None, Vec::new());
        if gateway.is_some() {
            for object in plan::pool::objects(&pool) {
                match self.applier.apply(&object, MANAGER).await {
                    Err(ControlError::Foreign(found)) => foreign.extend(found),
                    result => failure = failure.or(result.err()),
                }
            }
        }
        let before = || pool.status.as_ref().map(|s| s.tokens.clone()).unwrap_or_default();
        // Tokens that are not understood are not revoked.
        let tokens = if unread.iter().any(|u| u.is_in("spec.enrolment") && !u.kept) {
            before()
        } else {
            self.ensure_pool_tokens(&pool, gateway.as_deref()).await.unwrap_or_else(|error| {
                failure.get_or_insert(error);
                before()
            })
        };
        let wait = self.pool_status(&pool, gateway.as_deref(), tokens, (&foreign, &unread)).await?;
        if !foreign.is_empty() {
            return Err(ControlError::Foreign(foreign));
        }
        failure.map_or_else(|| Ok(next_expiry(&pool).into_iter().chain(wait).min()), Err)
    }

    async fn pool_status(
        &self,
        pool: &VPNClientPool,
        gateway: Option<&VPNGateway>,
        tokens: Vec<TokenStatus>,
        (foreign, unread): (&[Foreign], &[Unread]),
    ) -> Result<Wait, ControlError> {
        let key = PoolKey::from(pool);
        let (capacity, shortage, clients, tally, overlap) = {
            let index = self.shared.index();
            let (capacity, shortage) = self.allocations.capacity(&index, pool);
            let siblings = index.pools_of(&gateway_of(pool));
            let all: Vec<&VPNClientPool> = siblings.iter().map(AsRef::as_ref).collect();
            let own = overlaps(&all).into_iter().find(|(p, _)| p.uid() == pool.uid());
            (capacity, shortage, index.count(&key), index.tally(&key), own.and_then(|(_, o)| o))
        };
        if let Some(denied) = &shortage {
            self.events.warn(pool, denied.category(), &denied.to_string());
        }
        let sidecar_trust = self.sidecar_trust_obstacle();
        let (rebinds, fading) = self.rebinds([&key]);
        let before = pool.status.as_ref();
        let status = plan::pool::status(plan::pool::StatusInputs {
            pool,
            gateway,
            overlap: overlap.as_ref(),
            capacity,
            shortage,
            clients,
            nat: summary::summary(before.and_then(|s| s.nat.as_ref()), &tally, rebinds),
            tokens,
            foreign,
            sidecar_trust: sidecar_trust.as_ref(),
            unread,
            now: Timestamp::now(),
        });
        if let Some(stalled) = status.conditions.iter().find(|c| c.type_ == pinhole_crds::STALLED) {
            let reason = match &sidecar_trust {
                _ if overlap.is_some() => "OverlappingPool",
                Some(obstacle) if foreign.is_empty() => obstacle.category(),
                _ => Foreign::CATEGORY,
            };
            self.events.warn(pool, reason, &stalled.message);
        }
        for unusable in [plan::fields(unread), plan::search_domains(pool).1].into_iter().flatten() {
            self.events.warn(pool, unusable.category(), &unusable.to_string());
        }
        if before == Some(&status) {
            return Ok(fading);
        }
        let changed = before.and_then(|b| b.nat.as_ref()) != status.nat.as_ref();
        let others = before.map(|b| VPNClientPoolStatus { nat: status.nat.clone(), ..b.clone() });
        if let Some(rest) =
            summary::rest(others.as_ref() == Some(&status), self.summary_age(pool.uid().as_ref()))
        {
            return Ok(fading.into_iter().chain([rest]).min());
        }
        if changed {
            self.summarised(pool.uid());
        }
        if self.applier.status(pool, &status, STATUS_MANAGER).await? == StatusWrite::Written {
            self.shared.metrics.wrote("VPNClientPoolStatus");
        }
        Ok(fading)
    }

    /// Asks the API server only when something differs from the last time.
    async fn ensure_pool_tokens(
        &self,
        pool: &VPNClientPool,
        gateway: Option<&VPNGateway>,
    ) -> Result<Vec<TokenStatus>, ControlError> {
        let has_some = |tokens: Option<usize>| tokens.is_some_and(|n| n > 0);
        let wanted = pool.spec.enrolment.as_ref().map(|e| e.tokens.len());
        if !has_some(wanted) && !has_some(pool.status.as_ref().map(|s| s.tokens.len())) {
            return Ok(Vec::new());
        }
        let endpoints = gateway.map(|g| self.session_endpoints(g)).unwrap_or_default();
        let name = gateway_of(pool);
        let server_name = gateway_server_name(&name.namespace, &name.name);
        let ca_pem = self.ca_pem();
        let id = PoolKey::from(pool).to_string();
        let inputs = self.token_inputs(pool, &endpoints, &ca_pem);
        if let Some((last, statuses)) = self.lock_tokens().get(&id)
            && *last == inputs
        {
            return Ok(statuses.clone());
        }
        let target = JoinTarget { server_name: &server_name, endpoints: &endpoints, ca_pem: &ca_pem };
        let statuses = ensure_tokens(&self.client, pool, target).await?;
        self.lock_tokens().insert(id, (inputs, statuses.clone()));
        Ok(statuses)
    }

    fn session_endpoints(&self, gateway: &VPNGateway) -> Vec<String> {
        let (replicas, _) = self.replicas(gateway, &std::collections::BTreeMap::new());
        replicas.iter().flat_map(|r| &r.session_endpoints).map(ToString::to_string).collect()
    }

    /// A hash of all that tokens' Secrets and statuses depend on.
    fn token_inputs(&self, pool: &VPNClientPool, endpoints: &[String], ca_pem: &str) -> u64 {
        let namespace = pool.namespace().unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        (pool.uid(), pool.metadata.generation, endpoints, ca_pem).hash(&mut hasher);
        let now = Timestamp::now();
        let wanted = pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
        for token in wanted.clone() {
            token.expires_at.as_ref().is_some_and(|end| end.0 <= now).hash(&mut hasher);
        }
        let known = pool.status.iter().flat_map(|s| &s.tokens).map(|t| &t.name);
        let index = self.shared.index();
        for token in wanted.map(|t| &t.name).chain(known) {
            let secret = (namespace.clone(), token_secret_name(&pool.name_any(), token));
            format!("{:?}", index.marker(ObjectKind::Secret, &secret)).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn lock_tokens(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, (u64, Vec<TokenStatus>)>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_expiry(pool: &VPNClientPool) -> Wait {
    let now = Timestamp::now();
    let tokens = pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
    let ends = tokens.filter_map(|t| Some(t.expires_at.as_ref()?.0)).filter(|end| *end > now);
    let millis = ends.min()?.as_millisecond() - now.as_millisecond();
    Some(Duration::from_millis(u64::try_from(millis).ok()? + 50))
}
