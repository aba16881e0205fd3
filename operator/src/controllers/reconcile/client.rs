//! A look at a `VPNClient`: its addresses, Secret, status and Events.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    core::{PartialObjectMeta, PartialObjectMetaExt as _},
    runtime::events::EventType,
};
use pinhole_crds::{
    CLOCK_SKEW, ClientPhase, ClientPod, DEGRADED, EnrolmentMethod, KEY_ON_TWO_MACHINES, VPNClient,
    VPNClientPool, VPNClientStatus, VPNGateway,
};
use pinhole_proto::is_object_name;

use super::context::{Context, Wait, Written};
use crate::{
    controllers::runtime::{
        allocation::Assignment,
        apply::StatusWrite,
        error::{ControlError, call},
        index::{gateway_of, pool_of, public_key},
        oddity::Frozen,
        pace::Cause,
        request::Request,
    },
    fleet::{ClientKey, ClientView, GatewayKey, Hearing, PoolKey},
    plan::{
        Overlap,
        churn_events::{ChurnNews, Way, churn_news, crowd_note},
        client::{self, Backing},
        fields, overlaps,
    },
};

const STATUS_MANAGER: &str = "pinhole-operator-client-status";

/// What a client's pool and gateway are at present.
struct Surroundings {
    pool: Option<Arc<VPNClientPool>>,
    gateway: Option<Arc<VPNGateway>>,
    overlap: Option<Overlap>,
}

impl Surroundings {
    fn backing(&self) -> Backing<'_> {
        match (self.pool.as_deref(), self.gateway.as_deref(), &self.overlap) {
            (None, ..) => Backing::PoolNotFound,
            (Some(pool), None, _) => Backing::GatewayNotFound(pool),
            (Some(pool), Some(_), Some(overlap)) => Backing::Overlapping(pool, overlap),
            (Some(pool), Some(gateway), None) => Backing::Served(pool, gateway),
        }
    }
}

impl Context {
    /// A client's addresses, Secret and status.
    pub(super) async fn vpn_client(&self, key: &ClientKey) -> Result<Wait, ControlError> {
        let Some(client) = self.shared.index().client(key) else {
            self.tell_frozen::<VPNClient>(self.shared.index().frozen_client(key));
            return Ok(None);
        };
        if client.metadata.deletion_timestamp.is_some() || self.is_backed_by_frozen(&client) {
            return Ok(None);
        }
        let unread = self.shared.index().unread_client(key).to_vec();
        if self.outlived_its_pod(&client).await? {
            self.delete_client(&client).await?;
            return Ok(None);
        }
        let around = self.surroundings(&client);
        let assignment = self.assign(&client, &around);
        let addresses = if matches!(around.backing(), Backing::Served(..)) {
            assignment.addresses.clone()
        } else {
            client.status.as_ref().map(|s| s.addresses.clone()).unwrap_or_default()
        };
        let stock = match around.backing() {
            // Keys are not made, nor taken out of a Secret, on half of a spec.
            Backing::Served(pool, gateway) if client.spec.is_stock() && fields(&unread).is_none() => {
                Some(self.stock(&client, pool, gateway, &addresses).await)
            }
            _ => None,
        };
        let (stock, failure) = match stock {
            Some(Ok(stock)) => (Some(stock), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let key_error = failure.as_ref().and_then(ControlError::key_error);
        let view = self.view(&client, &around);
        let twin = self.shared.index().key_twin(&client, &gateway_key(&around, &client)).map(|k| k.name);
        let public = stock.as_ref().map(|s| s.public_key.as_str()).or_else(|| public_key(&client));
        let written = client.uid().and_then(|uid| self.written(&uid));
        let replica = view.as_ref().and_then(|v| v.sighting.as_ref()).map(|(replica, _)| replica.as_str());
        let secret_before = client.status.as_ref().and_then(|s| s.config_secret.as_deref());
        let inputs = client::StatusInputs {
            client: &client,
            backing: around.backing(),
            addresses: &addresses,
            denied: assignment.denied.as_ref(),
            public_key: public,
            key_error,
            key_twin: twin.as_deref(),
            config_secret: match &stock {
                Some(stock) => stock.secret.as_deref(),
                None => secret_before.filter(|_| !unread.is_empty()),
            },
            view: view.as_ref(),
            moves_seen: replica.and_then(|replica| written.as_ref()?.moves_of(replica)),
            written_ago: written.as_ref().map(|w| w.at.elapsed()),
            unread: &unread,
            now: Timestamp::now(),
        };
        let (status, wait) = client::status(&inputs);
        self.tell(&client, &assignment, &status);
        if let Some(unusable) = fields(&unread) {
            self.events.warn(client.as_ref(), unusable.category(), &unusable.to_string());
        }
        let settling = self.tell_churn(&client, &around, view.as_ref());
        let wait = wait.into_iter().chain(settling).min();
        let wait = self.client_status(&client, &status, &addresses, view.as_ref(), wait).await?;
        failure.map_or(Ok(wait), Err)
    }

    /// Whether its pool or gateway is not understood: its status stays as it is, and so does what runs.
    fn is_backed_by_frozen(&self, client: &VPNClient) -> bool {
        let index = self.shared.index();
        let pool = pool_of(client);
        index.frozen_pool(&pool).is_some()
            || index.pool(&pool).is_some_and(|pool| index.frozen_gateway(&gateway_of(&pool)).is_some())
    }

    /// Says that an object is not understood, if that is so.
    pub(super) fn tell_frozen<K: Resource<DynamicType = ()>>(&self, frozen: Option<&Frozen>) {
        let Some(frozen) = frozen else { return };
        let object = frozen.metadata.clone().into_request_partial::<K>();
        let note = format!(
            "{}: too little of it is understood to go by it; what runs for it goes on as it is: upgrade the operator, or \
             write what its version knows (`kubectl explain`)",
            frozen.why
        );
        self.events.warn(&object, "ObjectNotUnderstood", &note);
    }

    fn surroundings(&self, client: &VPNClient) -> Surroundings {
        let index = self.shared.index();
        let pool = index.pool(&pool_of(client)).filter(|p| p.metadata.deletion_timestamp.is_none());
        let gateway = pool.as_ref().and_then(|p| index.gateway(&gateway_of(p)));
        let siblings = pool.as_ref().map(|p| index.pools_of(&gateway_of(p))).unwrap_or_default();
        let all: Vec<&VPNClientPool> = siblings.iter().map(AsRef::as_ref).collect();
        let own = overlaps(&all).into_iter().find(|(p, _)| Some(p.uid()) == pool.as_ref().map(|p| p.uid()));
        Surroundings { overlap: own.and_then(|(_, overlap)| overlap), pool, gateway }
    }

    fn assign(&self, client: &VPNClient, around: &Surroundings) -> Assignment {
        let Backing::Served(pool, _) = around.backing() else { return Assignment::default() };
        let index = self.shared.index();
        let assignment = self.allocations.assign(&index, pool, client);
        let displaced: Vec<Request> = assignment
            .displaced
            .iter()
            .filter_map(|uid| index.client_key(uid).cloned())
            .map(Request::Client)
            .collect();
        drop(index);
        self.shared.raise_work(displaced);
        assignment
    }

    fn view(&self, client: &VPNClient, around: &Surroundings) -> Option<ClientView> {
        let Backing::Served(_, gateway) = around.backing() else { return None };
        let last = client.status.as_ref().and_then(|s| s.replica.as_deref());
        let uid = client.uid().unwrap_or_default();
        Some(self.fleet.client(&GatewayKey::from(gateway), &uid, last, Instant::now()))
    }

    async fn client_status(
        &self,
        client: &VPNClient,
        status: &VPNClientStatus,
        addresses: &[IpAddr],
        view: Option<&ClientView>,
        wait: Wait,
    ) -> Result<Wait, ControlError> {
        if client.status.as_ref() == Some(status) {
            return Ok(wait);
        }
        let before = client.status.as_ref();
        let provisions = before.is_none_or(|b| b.addresses != addresses || b.public_key != status.public_key);
        let connects = matches!(status.phase, Some(ClientPhase::Connected | ClientPhase::Degraded))
            && before.is_none_or(|b| b.phase != status.phase);
        let changed = before.is_some_and(|b| b.observed_generation != status.observed_generation);
        let cause = if connects || changed { Cause::Awaited } else { Cause::Other };
        if !provisions && let Err(pause) = self.pace.take(cause, Instant::now()) {
            return Ok(Some(pause));
        }
        let uid = client.uid().unwrap_or_default();
        match self.applier.status(client, status, STATUS_MANAGER).await {
            Ok(StatusWrite::Lagging) => return Ok(Some(Duration::from_secs(1))),
            Ok(StatusWrite::Written) => self.shared.metrics.wrote("VPNClientStatus"),
            Err(error) => {
                if error.is_not_found() {
                    self.allocations.release(&pool_of(client), &uid);
                }
                return Err(error);
            }
        }
        let sighting = view.and_then(|v| v.sighting.as_ref());
        self.count_rebinds(client, status);
        let moves = sighting.map(|(replica, sighting)| (replica.clone(), sighting.churn.count));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert(uid, Written { at: Instant::now(), moves });
        Ok(wait)
    }

    /// Tells of moves and losses of the client's mapping. When to look again: causes settle before they are told.
    fn tell_churn(&self, client: &VPNClient, around: &Surroundings, view: Option<&ClientView>) -> Wait {
        let (_, sighting) = view.filter(|v| v.hearing == Hearing::Live)?.sighting.as_ref()?;
        let (pool, uid) = (around.pool.as_deref()?, client.uid()?);
        let (news, wait) = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if sighting.churn.causes.is_empty() && !told.contains_key(&uid) {
                return None;
            }
            churn_news(&sighting.churn, told.entry(uid).or_default(), self.since, Timestamp::now())
        };
        for (_, ChurnNews { reason, warning, note }) in news {
            let type_ = if warning { EventType::Warning } else { EventType::Normal };
            let mut crowds = self.crowds.lock().unwrap_or_else(PoisonError::into_inner);
            match crowds.way(&pool.uid().unwrap_or_default(), reason, Instant::now()) {
                Way::Client => self.events.tell(client, type_, (reason, ""), &note),
                Way::Pool => self.events.tell(pool, type_, (reason, ""), &crowd_note(reason)),
                Way::Nobody => {}
            }
        }
        wait
    }

    /// What the pool's and the gateway's summaries count.
    fn count_rebinds(&self, client: &VPNClient, status: &VPNClientStatus) {
        let count = |s: &VPNClientStatus| s.churn.as_ref().map_or(0, |c| c.count);
        let news = count(status).saturating_sub(client.status.as_ref().map_or(0, count));
        if let Some(news) = u64::try_from(news).ok().filter(|news| *news > 0) {
            let mut rebinds = self.rebinds.lock().unwrap_or_else(PoisonError::into_inner);
            rebinds.entry(pool_of(client)).or_default().count(Instant::now(), news);
            drop(rebinds);
            let cause = status.churn.as_ref().and_then(|c| c.last_cause).unwrap_or_default();
            let gateway = self.shared.index().pool(&pool_of(client)).map(|pool| gateway_of(&pool));
            if let Some(gateway) = gateway {
                self.shared.metrics.churned(&gateway, cause, news);
            }
        }
    }

    fn tell(&self, client: &VPNClient, assignment: &Assignment, status: &VPNClientStatus) {
        if !assignment.refused.is_empty() {
            let lost: Vec<String> = assignment.refused.iter().map(ToString::to_string).collect();
            let text = format!(
                "{} belonged to an older client or is not the pool's: another was given",
                lost.join(", ")
            );
            self.events.warn(client, "AddressConflict", &text);
        }
        let before = client.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        // A clock stays wrong for long: told once, when it is seen.
        let skew = status.conditions.iter().find(|c| c.type_ == CLOCK_SKEW);
        if let Some(skew) = skew.filter(|_| before.iter().all(|c| c.type_ != CLOCK_SKEW)) {
            self.events.warn(client, CLOCK_SKEW, &skew.message);
        }
        for fault in [KEY_ON_TWO_MACHINES, DEGRADED] {
            if let Some(said) = status.conditions.iter().find(|c| c.type_ == fault) {
                self.events.warn(client, fault, &said.message);
            }
        }
        if let Some(denied) = &assignment.denied {
            self.events.warn(client, denied.category(), &denied.to_string());
        } else if let Some(stalled) = status.conditions.iter().find(|c| c.type_ == pinhole_crds::STALLED)
            && stalled.reason == "KeyConflict"
        {
            self.events.warn(client, "KeyConflict", &stalled.message);
        }
    }

    /// Whether the client is a sidecar whose pod is gone or has ended. What the watch does not show is asked for: it may
    /// not have shown a new pod yet.
    async fn outlived_its_pod(&self, client: &VPNClient) -> Result<bool, ControlError> {
        let enrolment = client.spec.enrolment.as_ref();
        let sidecar = enrolment.filter(|e| e.method == EnrolmentMethod::ServiceAccount);
        let Some(pod) = sidecar.and_then(|e| e.pod.as_ref()) else { return Ok(false) };
        if self.shared.index().has_sidecar_pod(&pod.uid) {
            return Ok(false);
        }
        // A record that somebody wrote by hand is no path into the API: no pod has such a name.
        if !is_object_name(&pod.namespace) || !is_object_name(&pod.name) {
            return Ok(true);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let what = || format!("reading Pod {}/{}", pod.namespace, pod.name);
        let found = call(what, api.get_opt(&pod.name)).await?;
        Ok(found.is_none_or(|found| has_ended(&found, pod)))
    }

    async fn delete_client(&self, client: &VPNClient) -> Result<(), ControlError> {
        let (namespace, name) = (client.namespace().unwrap_or_default(), client.name_any());
        let api: Api<PartialObjectMeta<VPNClient>> = Api::namespaced(self.client.clone(), &namespace);
        let preconditions = Preconditions { uid: client.uid(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let what = || format!("deleting VPNClient {namespace}/{name}, whose pod is gone");
        match call(what, api.delete(&name, &params)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// A client is gone: what it held is free.
    pub(crate) fn client_gone(&self, pool: &PoolKey, uid: &str) {
        self.allocations.release(pool, uid);
        self.stock.forget(uid);
        self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let gateway = self.shared.index().pool(pool).map(|p| gateway_of(&p));
        if let Some(gateway) = gateway {
            self.fleet.forget_client(&gateway, uid);
        }
    }
}

fn gateway_key(around: &Surroundings, client: &VPNClient) -> GatewayKey {
    let namespace = client.namespace().unwrap_or_default();
    around.pool.as_ref().map_or_else(|| GatewayKey::new(namespace, ""), |p| gateway_of(p))
}

fn has_ended(found: &Pod, pod: &ClientPod) -> bool {
    let phase = found.status.as_ref().and_then(|s| s.phase.as_deref());
    found.uid().as_ref() != Some(&pod.uid) || matches!(phase, Some("Succeeded" | "Failed"))
}
