//! A look at a `VPNGateway`: its objects, status and Events.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::events::EventType,
};
use pinhole_crds::{ClientCounts, VPNGateway, VPNGatewayStatus};
use std::{collections::BTreeMap, sync::PoisonError, time::Instant};

use super::context::{Context, Wait};
use crate::{
    controllers::runtime::{
        apply::StatusWrite,
        error::{ControlError, call},
        request::Request,
    },
    fleet::{GatewayKey, GatewayView, PoolKey, timestamp},
    plan::{
        self, Foreign, KeyError, ObjectKind, PodFacts, Replica,
        churn_events::restart_note,
        is_controlled_by, replica_services,
        summary::{self, Tally},
    },
};

const MANAGER: &str = "pinhole-operator-gateway";
/// Two restarts of one NAT are at least so far apart.
const DATE_SECONDS: i64 = 60;

/// What a replica is impaired by for a while after its control panicked.
const CONTROL_RESTARTED: &str = "ControlRestarted";

/// Restarts of NATs are remembered for so long, so that none is told twice.
const REMEMBERED_SECONDS: i64 = 86_400;

const STATUS_MANAGER: &str = "pinhole-operator-gateway-status";

/// What is known of a gateway, read once for a look at it.
pub(super) struct Seen {
    replicas: Vec<Replica>,
    /// Its pods, by name.
    pub(super) pods: BTreeMap<String, PodFacts>,
    /// What its replicas report.
    pub(super) view: GatewayView,
}

impl Context {
    /// A gateway's objects and status.
    pub(super) async fn gateway(&self, key: &GatewayKey) -> Result<Wait, ControlError> {
        let Some(gateway) = self.shared.index().gateway(key) else {
            if let Some(frozen) = self.shared.index().frozen_gateway(key) {
                self.tell_frozen::<VPNGateway>(Some(frozen));
                return Ok(None);
            }
            self.gateway_gone(key);
            return Ok(None);
        };
        if gateway.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let known = self.keys.last(key);
        let made = self.make_gateway(&gateway).await;
        if self.keys.last(key) != known {
            self.shared.raise_work([Request::Peers(key.clone())]);
            let below = self.shared.index().below(key);
            self.shared.raise_work(below);
        }
        let keys = self.keys.last(key).unwrap_or_default();
        let (replicas, pods) = self.replicas(&gateway, &keys);
        let seen = Seen { replicas, pods, view: self.fleet.view(key, Instant::now()) };
        let wait = self.gateway_status(&gateway, made.as_ref().err(), &seen).await?;
        let loss = self.remove_lost_pods(&gateway, &seen).await?;
        made.map(|()| wait.into_iter().chain(loss).min())
    }

    fn gateway_gone(&self, key: &GatewayKey) {
        self.fleet.remove(key);
        self.keys.forget(key);
        self.shared.metrics.clients(key, None);
        self.shared.metrics.nats(key, None);
        self.shared.metrics.forget_churn(key);
    }

    async fn make_gateway(&self, gateway: &VPNGateway) -> Result<(), ControlError> {
        let (mut failure, mut foreign) = (None, Vec::new());
        // Pods are not made anew for want of what nobody understands.
        let pods_unknown = self
            .shared
            .index()
            .unread_gateway(&GatewayKey::from(gateway))
            .iter()
            .any(|u| u.is_in("spec.pod") && !u.kept);
        // Pods wait for their keys, so nothing is lost by making everything else even when this fails.
        match self.ensure_keys(gateway).await {
            Err(ControlError::Key(KeyError::ForeignSecret(name))) => {
                foreign.push(Foreign { kind: ObjectKind::Secret, name, controller: None });
            }
            keys => failure = keys.err(),
        }
        for object in plan::gateway::objects(gateway, &self.settings, &self.ca_pem()) {
            // They would run as somebody else, or trust what somebody else wrote.
            let is_pods = object.kind() == ObjectKind::StatefulSet;
            if is_pods && (pods_unknown || foreign.iter().any(plan::gateway::is_of_pods)) {
                continue;
            }
            match self.applier.apply(&object, MANAGER).await {
                Err(ControlError::Foreign(found)) => foreign.extend(found),
                result => failure = failure.or(result.err()),
            }
        }
        if let Err(error) = self.gateway_traffic(gateway, MANAGER).await {
            failure.get_or_insert(error);
        }
        self.remove_surplus(gateway).await?;
        if foreign.is_empty() { failure.map_or(Ok(()), Err) } else { Err(ControlError::Foreign(foreign)) }
    }

    /// Services of replicas that the gateway has no more.
    async fn remove_surplus(&self, gateway: &VPNGateway) -> Result<(), ControlError> {
        let key = GatewayKey::from(gateway);
        let wanted = replica_services(gateway);
        let surplus: Vec<(String, Option<String>)> = self
            .shared
            .index()
            .services_of(&key)
            .iter()
            .filter(|s| is_controlled_by(&s.metadata, gateway))
            .filter(|s| s.name_any() != key.name && !wanted.contains(&s.name_any()))
            .map(|s| (s.name_any(), s.uid()))
            .collect();
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        for (name, uid) in surplus {
            let preconditions = Preconditions { uid, resource_version: None };
            let params = DeleteParams::default().preconditions(preconditions);
            let what = || format!("deleting Service {}/{name}", key.namespace);
            match call(what, api.delete(&name, &params)).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => self.applier.forget(ObjectKind::Service, &(key.namespace.clone(), name)),
            }
        }
        Ok(())
    }

    async fn gateway_status(
        &self,
        gateway: &VPNGateway,
        error: Option<&ControlError>,
        seen: &Seen,
    ) -> Result<Wait, ControlError> {
        let key = GatewayKey::from(gateway);
        self.tell_restarts(gateway, &seen.view);
        self.tell_panics(gateway, &seen.view);
        let (clients, tally, pools) = self.clients_of_gateway(&key);
        let (rebinds, fading) = self.rebinds(&pools);
        let before = gateway.status.as_ref();
        let nat = summary::summary(before.and_then(|s| s.nat.as_ref()), &tally, rebinds);
        self.shared.metrics.clients(&key, Some(clients));
        self.shared.metrics.nats(&key, Some(&tally));
        let refusal = error.and_then(ControlError::refusal);
        let message = error.map(|error| match &refusal {
            Some(refusal) => refusal.text(),
            None => error.to_string(),
        });
        let message = message.unwrap_or_default();
        let reason = refusal.as_ref().map(|r| r.cause.category()).or_else(|| error?.lasting());
        let obstacle = reason.map(|reason| (reason, message.as_str()));
        if let Some(ControlError::Foreign(_)) = error {
            self.events.warn(gateway, Foreign::CATEGORY, &message);
        }
        let (unread, frozen, refused, unbalanced, (evicted, forgotten)) = {
            let index = self.shared.index();
            let frozen = index.holding_pool_of(&key).map(|pool| pool.name.clone());
            let (refused, unbalanced) = (index.refusals_of(gateway), index.unbalanced_of(gateway));
            let evicted = index.evictions_of(gateway, Instant::now());
            (index.unread_gateway(&key).to_vec(), frozen, refused, unbalanced, evicted)
        };
        for (replica, eviction) in &evicted {
            self.events.warn(gateway, eviction.cause.category(), &format!("{replica}: {}", eviction.text()));
        }
        let inputs = plan::gateway::StatusInputs {
            gateway,
            replicas: &seen.replicas,
            pods: &seen.pods,
            refused: &refused,
            unbalanced: &unbalanced,
            evicted: &evicted,
            view: &seen.view,
            clients,
            nat: nat.as_ref(),
            obstacle,
            unread: &unread,
            frozen_pool: frozen.as_deref(),
            now: Timestamp::now(),
        };
        let (status, wait) = plan::gateway::status(&inputs);
        for unusable in [plan::fields(&unread), plan::exposure(gateway)].into_iter().flatten() {
            self.events.warn(gateway, unusable.category(), &unusable.to_string());
        }
        let wait = wait.into_iter().chain(fading).chain(forgotten).min();
        if before == Some(&status) {
            return Ok(wait);
        }
        let changed = before.and_then(|b| b.nat.as_ref()) != status.nat.as_ref();
        let others = before.map(|b| VPNGatewayStatus { nat: status.nat.clone(), ..b.clone() });
        let uid = gateway.metadata.uid.clone();
        if let Some(rest) = summary::rest(others.as_ref() == Some(&status), self.summary_age(uid.as_ref())) {
            return Ok(wait.into_iter().chain([rest]).min());
        }
        if changed {
            self.summarised(uid);
        }
        if self.applier.status(gateway, &status, STATUS_MANAGER).await? == StatusWrite::Written {
            self.shared.metrics.wrote("VPNGatewayStatus");
        }
        Ok(wait)
    }

    /// Tells once of each address translator that lost its state, however many clients are behind it.
    fn tell_restarts(&self, gateway: &VPNGateway, view: &GatewayView) {
        let uid = gateway.metadata.uid.clone().unwrap_or_default();
        for restart in view.replicas.values().flat_map(|replica| &replica.nat_restarts) {
            let Some(at) = restart.at.and_then(timestamp).filter(|at| *at > self.since) else { continue };
            let address = restart.public_address.as_str();
            let mut told = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
            told.retain(|_, last| at.as_second() - last.as_second() < REMEMBERED_SECONDS);
            let topic = (uid.clone(), address.to_owned());
            // Dates are not exact: a replica works them out anew for each report.
            if told.get(&topic).is_some_and(|last| at.as_second() - last.as_second() < DATE_SECONDS) {
                continue;
            }
            told.insert(topic, at);
            let note = restart_note(address, restart.changed, restart.clients);
            self.events.tell(gateway, EventType::Warning, ("NATRestart", address), &note);
        }
    }

    /// Tells of replicas whose control panicked and began anew.
    fn tell_panics(&self, gateway: &VPNGateway, view: &GatewayView) {
        for (replica, seen) in &view.replicas {
            let panics = seen.impairments.iter().filter(|(category, _)| category == CONTROL_RESTARTED);
            for (_, message) in panics {
                let note = format!("replica {replica}: {message}");
                self.events.tell(gateway, EventType::Warning, ("ControlRestarted", replica), &note);
            }
        }
    }

    fn clients_of_gateway(&self, key: &GatewayKey) -> (ClientCounts, Tally, Vec<PoolKey>) {
        let index = self.shared.index();
        let mut sum = ClientCounts::default();
        let mut tally = Tally::default();
        let pools: Vec<PoolKey> = index.pools_of(key).iter().map(|p| PoolKey::from(p.as_ref())).collect();
        for pool in &pools {
            tally.add(&index.tally(pool));
            let counts = index.count(pool);
            sum.total += counts.total;
            sum.connected += counts.connected;
            sum.standby += counts.standby;
            sum.waiting_to_reconnect += counts.waiting_to_reconnect;
            sum.dormant += counts.dormant;
            sum.disconnected += counts.disconnected;
            sum.suspended += counts.suspended;
        }
        (sum, tally, pools)
    }
}
