//! What the API server said last, indexed by what belongs together. Pure: watches feed it, and it answers what has to
//! be looked at because of a change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Event, Node, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use pinhole_crds::{ClientCounts, Raw, Unread, VPNClient, VPNClientPool, VPNGateway};

use super::{
    notes::Notes,
    object_version::ObjectVersion,
    observe,
    oddity::{Frozen, Oddity, Resolved, resolve},
    request::Request,
};
use crate::{
    fleet::{ClientKey, GatewayKey, PoolKey},
    plan::{
        Cause, GATEWAY_LABEL, NodeFacts, NoteKind, ObjectKind, PodFacts, Refusal, client::count,
        replica_names, session_service, summary::Tally, takes_sidecars,
    },
};

/// For so long an eviction is told of a pod that runs again: it may be evicted anew at each look of its kubelet.
pub(crate) const EVICTED_LATELY: Duration = Duration::from_mins(5);

/// Namespace and name.
pub(crate) type Name = (String, String);

/// The observed objects.
#[derive(Debug, Default)]
pub(crate) struct Index {
    gateways: HashMap<GatewayKey, Arc<VPNGateway>>,
    pools: HashMap<PoolKey, Arc<VPNClientPool>>,
    clients: HashMap<ClientKey, Arc<VPNClient>>,
    clients_of_pool: HashMap<PoolKey, BTreeSet<ClientKey>>,
    /// Those that have not got the addresses that they should have.
    waiting_of_pool: HashMap<PoolKey, BTreeSet<ClientKey>>,
    client_of_uid: HashMap<String, ClientKey>,
    clients_of_key: HashMap<String, BTreeSet<ClientKey>>,
    clients_of_pod: HashMap<String, BTreeSet<ClientKey>>,
    services: HashMap<Name, Arc<Service>>,
    markers: HashMap<ObjectKind, HashMap<Name, ObjectVersion>>,
    pods: HashMap<GatewayKey, BTreeMap<String, PodFacts>>,
    sidecars: HashSet<String>,
    nodes: HashMap<String, NodeFacts>,
    notes: Notes,
    /// Why the last pod of that name was turned away, until another one is let in.
    turned_away: HashMap<Name, Refusal>,
    /// Pods that a kubelet evicted lately: they are made anew at once, and may run until it looks again.
    evicted: HashMap<Name, (Refusal, Instant)>,
    /// What of the objects above is not understood, and objects that are not at all.
    odd_gateways: HashMap<GatewayKey, Oddity>,
    odd_pools: HashMap<PoolKey, Oddity>,
    odd_clients: HashMap<ClientKey, Oddity>,
}

/// What a change asks for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Effects {
    /// To be looked at.
    pub(crate) request: BTreeSet<Request>,
    /// Clients that are gone: their pool and UID.
    pub(crate) gone: Vec<(PoolKey, String)>,
}

impl Effects {
    fn of(request: impl IntoIterator<Item = Request>) -> Self {
        Self { request: request.into_iter().collect(), gone: Vec::new() }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.request.extend(other.request);
        self.gone.extend(other.gone);
    }
}

/// Reading.
impl Index {
    /// Whether an agent waits for it: it has enrolled, and cannot connect before it has addresses.
    pub(crate) fn is_awaited(&self, request: &Request) -> bool {
        let Request::Client(key) = request else { return false };
        let client = self.clients.get(key).filter(|client| !client.spec.is_stock());
        client.is_some_and(|client| client.status.as_ref().is_none_or(|status| status.addresses.is_empty()))
    }

    pub(crate) fn gateway(&self, key: &GatewayKey) -> Option<Arc<VPNGateway>> {
        self.gateways.get(key).cloned()
    }

    pub(crate) fn pool(&self, key: &PoolKey) -> Option<Arc<VPNClientPool>> {
        self.pools.get(key).cloned()
    }

    pub(crate) fn client(&self, key: &ClientKey) -> Option<Arc<VPNClient>> {
        self.clients.get(key).cloned()
    }

    pub(crate) fn client_key(&self, uid: &str) -> Option<&ClientKey> {
        self.client_of_uid.get(uid)
    }

    /// Whether there is a client with this UID, understood or not.
    pub(crate) fn has_client(&self, uid: &str) -> bool {
        self.client_of_uid.contains_key(uid)
            || self
                .odd_clients
                .values()
                .any(|odd| odd.frozen().is_some_and(|frozen| frozen.metadata.uid.as_deref() == Some(uid)))
    }

    /// What of the gateway is not understood.
    pub(crate) fn unread_gateway(&self, key: &GatewayKey) -> &[Unread] {
        self.odd_gateways.get(key).map(Oddity::unread).unwrap_or_default()
    }

    /// What of the pool is not understood.
    pub(crate) fn unread_pool(&self, key: &PoolKey) -> &[Unread] {
        self.odd_pools.get(key).map(Oddity::unread).unwrap_or_default()
    }

    /// What of the client is not understood.
    pub(crate) fn unread_client(&self, key: &ClientKey) -> &[Unread] {
        self.odd_clients.get(key).map(Oddity::unread).unwrap_or_default()
    }

    /// A gateway that is not understood at all.
    pub(crate) fn frozen_gateway(&self, key: &GatewayKey) -> Option<&Frozen> {
        self.odd_gateways.get(key)?.frozen()
    }

    /// A pool that is not understood at all.
    pub(crate) fn frozen_pool(&self, key: &PoolKey) -> Option<&Frozen> {
        self.odd_pools.get(key)?.frozen()
    }

    /// A client that is not understood at all.
    pub(crate) fn frozen_client(&self, key: &ClientKey) -> Option<&Frozen> {
        self.odd_clients.get(key)?.frozen()
    }

    /// A pool that is not understood at all, is or may be one of the gateway's, and has clients that hold addresses: told of
    /// fewer pools, the gateway's replicas would cut these.
    pub(crate) fn holding_pool_of(&self, gateway: &GatewayKey) -> Option<&PoolKey> {
        let frozen = self.frozen_pools_in(&gateway.namespace);
        let of = frozen.filter(|(_, f)| f.gateway.as_ref().is_none_or(|of| of == gateway));
        of.map(|(key, _)| key).filter(|key| self.has_holders(key)).min()
    }

    /// Pools of the namespace that are not understood at all.
    pub(crate) fn frozen_pools_in(&self, namespace: &str) -> impl Iterator<Item = (&PoolKey, &Frozen)> {
        let within = self.odd_pools.iter().filter(move |(key, _)| key.namespace == namespace);
        within.filter_map(|(key, odd)| Some((key, odd.frozen()?)))
    }

    fn has_holders(&self, pool: &PoolKey) -> bool {
        let holds = |client: &VPNClient| client.status.as_ref().is_some_and(|s| !s.addresses.is_empty());
        let mut clients = self.clients_of_pool.get(pool).into_iter().flatten();
        clients.any(|key| self.clients.get(key).is_some_and(|client| holds(client)))
    }

    /// Clients of the namespace of which not even the pool is understood. Their addresses are not free.
    pub(crate) fn frozen_clients_in(&self, namespace: &str) -> impl Iterator<Item = &Frozen> {
        let within = self.odd_clients.iter().filter(move |(key, _)| key.namespace == namespace);
        within.filter_map(|(_, odd)| odd.frozen())
    }

    /// The pools that name the gateway.
    pub(crate) fn pools_of(&self, gateway: &GatewayKey) -> Vec<Arc<VPNClientPool>> {
        self.pools.values().filter(|p| gateway_of(p) == *gateway).cloned().collect()
    }

    /// The pools whose clients may be sidecars.
    pub(crate) fn pools_with_sidecars(&self) -> impl Iterator<Item = PoolKey> + use<'_> {
        self.pools.iter().filter(|(_, pool)| takes_sidecars(pool)).map(|(key, _)| key.clone())
    }

    /// The clients that name the pool, in order.
    pub(crate) fn clients_of(&self, pool: &PoolKey) -> Vec<Arc<VPNClient>> {
        let keys = self.clients_of_pool.get(pool).into_iter().flatten();
        keys.filter_map(|key| self.clients.get(key).cloned()).collect()
    }

    /// The clients of the pool that an address which is free again may help.
    pub(crate) fn waiting_of(&self, pool: &PoolKey) -> impl Iterator<Item = ClientKey> + use<'_> {
        self.waiting_of_pool.get(pool).into_iter().flatten().cloned()
    }

    /// The clients of a pool by phase, as their statuses say.
    pub(crate) fn count(&self, pool: &PoolKey) -> ClientCounts {
        let mut counts = ClientCounts::default();
        for key in self.clients_of_pool.get(pool).into_iter().flatten() {
            if let Some(client) = self.clients.get(key) {
                count(&mut counts, client.status.as_ref().and_then(|s| s.phase));
            }
        }
        counts
    }

    /// The NATs of a pool's clients, as their statuses say.
    pub(crate) fn tally(&self, pool: &PoolKey) -> Tally {
        let keys = self.clients_of_pool.get(pool).into_iter().flatten();
        Tally::of(keys.filter_map(|key| self.clients.get(key)?.status.as_ref()))
    }

    /// The oldest other client of `gateway` with the same public key, if that one is older than `client`.
    pub(crate) fn key_twin(&self, client: &VPNClient, gateway: &GatewayKey) -> Option<ClientKey> {
        let age = |c: &VPNClient| (c.creation_timestamp().map(|t| t.0), c.uid());
        let own = age(client);
        let twins = self.clients_of_key.get(public_key(client)?)?.iter().filter_map(|k| self.clients.get(k));
        twins
            .filter(|twin| age(twin) < own && twin.metadata.deletion_timestamp.is_none())
            .filter(|twin| self.pools.get(&pool_of(twin)).is_some_and(|p| gateway_of(p) == *gateway))
            .min_by_key(|twin| age(twin))
            .map(|twin| ClientKey::from(twin.as_ref()))
    }

    pub(crate) fn service(&self, name: &Name) -> Option<Arc<Service>> {
        self.services.get(name).cloned()
    }

    /// The Services that carry the gateway's label.
    pub(crate) fn services_of(&self, gateway: &GatewayKey) -> Vec<Arc<Service>> {
        let of = |s: &Service| Self::gateway_label(Some(&s.metadata), None).as_ref() == Some(gateway);
        self.services.values().filter(|s| of(s)).cloned().collect()
    }

    pub(crate) fn marker(&self, kind: ObjectKind, name: &Name) -> Option<&ObjectVersion> {
        self.markers.get(&kind)?.get(name)
    }

    pub(crate) fn pods_of(&self, gateway: &GatewayKey) -> BTreeMap<String, PodFacts> {
        self.pods.get(gateway).cloned().unwrap_or_default()
    }

    /// The nodes that `pods` run on.
    pub(crate) fn nodes_of(&self, pods: &BTreeMap<String, PodFacts>) -> BTreeMap<String, NodeFacts> {
        let names = pods.values().filter_map(|p| p.node.as_ref());
        names.filter_map(|n| Some((n.clone(), self.nodes.get(n)?.clone()))).collect()
    }

    /// Why replicas of the gateway do not run, by name, as far as somebody said it.
    pub(crate) fn refusals_of(&self, gateway: &VPNGateway) -> BTreeMap<String, Refusal> {
        let key = GatewayKey::from(gateway);
        let pods = self.pods.get(&key);
        let refusal = |replica: String| {
            let pod = pods.and_then(|pods| pods.get(&replica));
            Some((replica.clone(), self.refusal_of(&key, &replica, pod)?))
        };
        replica_names(gateway).into_iter().filter_map(refusal).collect()
    }

    /// Replicas of the gateway that were evicted lately, by name, and how long that is still to be said of one.
    pub(crate) fn evictions_of(
        &self,
        gateway: &VPNGateway,
        now: Instant,
    ) -> (BTreeMap<String, Refusal>, Option<Duration>) {
        let namespace = gateway.namespace().unwrap_or_default();
        let lately = replica_names(gateway).into_iter().filter_map(|replica| {
            let (refusal, at) = self.evicted.get(&(namespace.clone(), replica.clone()))?;
            let left = EVICTED_LATELY.checked_sub(now.saturating_duration_since(*at))?;
            Some((replica, refusal.clone(), left))
        });
        let lately: Vec<_> = lately.filter(|(_, _, left)| !left.is_zero()).collect();
        let next = lately.iter().map(|(_, _, left)| *left).min();
        (lately.into_iter().map(|(replica, refusal, _)| (replica, refusal)).collect(), next)
    }

    fn refusal_of(&self, key: &GatewayKey, replica: &str, pod: Option<&PodFacts>) -> Option<Refusal> {
        let name = || (key.namespace.clone(), replica.to_owned());
        let Some(pod) = pod else {
            let set = (key.namespace.clone(), key.name.clone());
            let uid = self.marker(ObjectKind::StatefulSet, &set).map(ObjectVersion::uid);
            let said = self.notes.of_set(&set, uid, replica);
            return said.or_else(|| self.turned_away.get(&name())).cloned();
        };
        let node = pod.node.as_ref().and_then(|name| Some((name, self.nodes.get(name)?.lost.as_ref()?)));
        if let Some((node, lost)) = node {
            return Some(Refusal::of_node(node, &lost.said));
        }
        if pod.running {
            return None;
        }
        let own = pod.refusal.as_ref().or_else(|| self.notes.of_pod(&name(), &pod.uid));
        own.or_else(|| self.turned_away.get(&name())).cloned()
    }

    /// Why replicas of the gateway get no load balancer, by name, as far as somebody said it.
    pub(crate) fn unbalanced_of(&self, gateway: &VPNGateway) -> BTreeMap<String, Refusal> {
        let namespace = gateway.namespace().unwrap_or_default();
        let of_service = |service: String| {
            let name = (namespace.clone(), service);
            let service = self.services.get(&name)?;
            let uid = service.uid().unwrap_or_default();
            Refusal::of_service(service).or_else(|| self.notes.of_service(&name, &uid).cloned())
        };
        let of_replica = |replica: String| {
            let refusal =
                of_service(replica.clone()).or_else(|| of_service(session_service(gateway, &replica)));
            Some((replica, refusal?))
        };
        replica_names(gateway).into_iter().filter_map(of_replica).collect()
    }

    /// Whether a pod with this UID asks for a sidecar and has not ended.
    pub(crate) fn has_sidecar_pod(&self, uid: &str) -> bool {
        self.sidecars.contains(uid)
    }

    /// Everything that there is to look at.
    pub(crate) fn all(&self) -> BTreeSet<Request> {
        let gateways = self.gateways.keys().cloned();
        let mut all: BTreeSet<Request> =
            gateways.flat_map(|k| [Request::Gateway(k.clone()), Request::Peers(k)]).collect();
        all.insert(Request::Sidecars);
        all.extend(self.pools.keys().cloned().map(Request::Pool));
        all.extend(self.clients.keys().cloned().map(Request::Client));
        all.extend(self.odd_gateways.keys().cloned().map(Request::Gateway));
        all.extend(self.odd_pools.keys().cloned().map(Request::Pool));
        all.extend(self.odd_clients.keys().cloned().map(Request::Client));
        all
    }
}

/// What watches show of our own kinds. Nothing is skipped that is not understood.
impl Index {
    pub(crate) fn gateway_read(&mut self, key: &GatewayKey, new: Option<Raw<VPNGateway>>) -> Effects {
        let known = self.gateways.get(key).cloned();
        let (odd, mut effects) = match new.map(|new| resolve(new, known.as_deref())) {
            None => (None, self.gateway_changed(key, None)),
            Some(Resolved::Object(object, unread)) => {
                (Oddity::partly(unread), self.gateway_changed(key, Some(*object)))
            }
            Some(Resolved::Kept(why)) => (Some(Oddity::kept(why)), Effects::default()),
            Some(Resolved::Frozen(frozen)) => (Some(Oddity::Frozen(frozen)), self.gateway_changed(key, None)),
        };
        set(&mut self.odd_gateways, key, odd);
        effects.request.insert(Request::Gateway(key.clone()));
        effects
    }

    pub(crate) fn pool_read(&mut self, key: &PoolKey, new: Option<Raw<VPNClientPool>>) -> Effects {
        let known = self.pools.get(key).cloned();
        let (odd, mut effects) = match new.map(|new| resolve(new, known.as_deref())) {
            None => (None, self.pool_changed(key, None)),
            Some(Resolved::Object(object, unread)) => {
                (Oddity::partly(unread), self.pool_changed(key, Some(*object)))
            }
            Some(Resolved::Kept(why)) => (Some(Oddity::kept(why)), Effects::default()),
            Some(Resolved::Frozen(frozen)) => (Some(Oddity::Frozen(frozen)), self.pool_changed(key, None)),
        };
        // A gateway that went on with what it was told is told again.
        let before = self.gateways_of_frozen(key);
        set(&mut self.odd_pools, key, odd);
        effects.request.extend(before.iter().cloned().map(Request::Peers));
        effects.request.extend(before.into_iter().chain(self.gateways_of_frozen(key)).map(Request::Gateway));
        effects.request.insert(Request::Pool(key.clone()));
        effects
    }

    /// The gateways that this pool is or may be of, if it is not understood at all.
    fn gateways_of_frozen(&self, pool: &PoolKey) -> Vec<GatewayKey> {
        let Some(frozen) = self.frozen_pool(pool) else { return Vec::new() };
        let gateways = self.gateways.keys().filter(|g| g.namespace == pool.namespace);
        gateways.filter(|g| frozen.gateway.as_ref().is_none_or(|of| of == *g)).cloned().collect()
    }

    pub(crate) fn client_read(&mut self, key: ClientKey, new: Option<Raw<VPNClient>>) -> Effects {
        let known = self.clients.get(&key).cloned();
        let was_frozen = self.frozen_client(&key).and_then(|frozen| frozen.metadata.uid.clone());
        let (odd, mut effects) = match new.map(|new| resolve(new, known.as_deref())) {
            None => (None, self.client_changed(key.clone(), None)),
            Some(Resolved::Object(object, unread)) => {
                (Oddity::partly(unread), self.client_changed(key.clone(), Some(*object)))
            }
            Some(Resolved::Kept(why)) => (Some(Oddity::kept(why)), Effects::default()),
            Some(Resolved::Frozen(frozen)) => {
                (Some(Oddity::Frozen(frozen)), self.client_changed(key.clone(), None))
            }
        };
        set(&mut self.odd_clients, &key, odd);
        // In which pool it held its addresses was not known.
        if let Some(uid) = was_frozen.filter(|uid| !self.has_client(uid)) {
            let pools = self.pools.keys().filter(|pool| pool.namespace == key.namespace);
            effects.gone.extend(pools.map(|pool| (pool.clone(), uid.clone())));
        }
        effects.request.insert(Request::Client(key));
        effects
    }
}

/// Changes.
impl Index {
    fn gateway_changed(&mut self, key: &GatewayKey, new: Option<VPNGateway>) -> Effects {
        let changed = if let Some(new) = new {
            let new = Arc::new(new);
            let old = self.gateways.insert(key.clone(), Arc::clone(&new));
            old.is_none_or(|old| old.spec != new.spec || old.uid() != new.uid() || !same_ready(&old, &new))
        } else {
            self.turned_away.retain(|(namespace, pod), _| {
                *namespace != key.namespace || pod.rsplit_once('-').is_none_or(|(of, _)| of != key.name)
            });
            self.gateways.remove(key).is_some()
        };
        let mut effects = Effects::of([Request::Gateway(key.clone())]);
        if changed {
            effects.request.insert(Request::Peers(key.clone()));
            effects.request.extend(self.below(key));
        }
        effects
    }

    fn pool_changed(&mut self, key: &PoolKey, new: Option<VPNClientPool>) -> Effects {
        let mut effects = Effects::of([Request::Pool(key.clone())]);
        let new = new.map(Arc::new);
        let old = match &new {
            Some(new) => self.pools.insert(key.clone(), Arc::clone(new)),
            None => self.pools.remove(key),
        };
        let identity = |p: &VPNClientPool| (p.spec.clone(), p.uid(), p.metadata.deletion_timestamp.is_some());
        if old.as_deref().map(identity) != new.as_deref().map(identity) {
            // Overlaps concern every pool of the gateway.
            for pool in old.iter().chain(&new) {
                let gateway = gateway_of(pool);
                effects.request.extend(self.below(&gateway));
                effects.request.extend([Request::Gateway(gateway.clone()), Request::Peers(gateway)]);
            }
            effects.request.extend(self.client_keys(key).map(Request::Client));
        }
        effects
    }

    fn client_changed(&mut self, key: ClientKey, new: Option<VPNClient>) -> Effects {
        let new = new.map(Arc::new);
        let old = match &new {
            Some(new) => self.clients.insert(key.clone(), Arc::clone(new)),
            None => self.clients.remove(&key),
        };
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        if let Some(new) = &new {
            self.keep(&key, new);
        }
        let mut effects = Effects::of([Request::Client(key)]);
        if let Some(old) = &old
            && new.as_ref().is_none_or(|new| new.uid() != old.uid())
        {
            effects.gone.push((pool_of(old), old.uid().unwrap_or_default()));
        }
        let concerns = |f: fn(&VPNClient) -> Option<serde_json::Value>| {
            old.as_deref().and_then(f) != new.as_deref().and_then(f)
        };
        let pools = || old.iter().chain(&new).map(|c| pool_of(c));
        if concerns(what_pools_count) {
            effects.request.extend(pools().map(Request::Pool));
            effects.request.extend(pools().flat_map(|p| self.gateways_of_pool(&p)).map(Request::Gateway));
        }
        if concerns(what_peers_are) {
            effects.request.extend(pools().flat_map(|p| self.gateways_of_pool(&p)).map(Request::Peers));
            let twins =
                old.iter().chain(&new).filter_map(|c| self.clients_of_key.get(public_key(c)?)).flatten();
            effects.request.extend(twins.cloned().map(Request::Client));
        }
        effects
    }

    pub(crate) fn service_changed(&mut self, name: &Name, new: Option<Service>) -> Effects {
        let meta = new.as_ref().map(|s| s.metadata.clone());
        let gateway = Self::gateway_label(
            new.as_ref().map(|s| &s.metadata),
            self.services.get(name).map(|s| &s.metadata),
        );
        match new {
            Some(new) => drop(self.services.insert(name.clone(), Arc::new(new))),
            None => drop(self.services.remove(name)),
        }
        let mut effects = self.owned_changed(ObjectKind::Service, name, meta.as_ref());
        if let Some(gateway) = gateway {
            effects.request.extend(self.below(&gateway));
            effects.request.extend([Request::Peers(gateway.clone()), Request::Gateway(gateway)]);
        }
        effects
    }

    /// An object that the operator made. `meta` is None when it is gone.
    pub(crate) fn owned_changed(
        &mut self,
        kind: ObjectKind,
        name: &Name,
        meta: Option<&ObjectMeta>,
    ) -> Effects {
        let markers = self.markers.entry(kind).or_default();
        let new = meta.map(|meta| ObjectVersion::new(kind, meta));
        let unchanged = markers.get(name) == new.as_ref();
        match new {
            Some(new) => drop(markers.insert(name.clone(), new)),
            None => drop(markers.remove(name)),
        }
        if unchanged {
            return Effects::default();
        }
        let owners = meta.map_or_else(|| self.owners_by_name(name), |meta| observe::owners(&name.0, meta));
        let parameters = kind == ObjectKind::SidecarTrust;
        Effects::of(owners.into_iter().chain(parameters.then_some(Request::Sidecars)))
    }

    pub(crate) fn pod_changed(&mut self, name: Name, new: Option<&Pod>) -> Effects {
        let (namespace, pod) = name;
        let holder = self.pods.iter().find(|(k, p)| k.namespace == namespace && p.contains_key(&pod));
        let old_gateway = holder.map(|(key, _)| key.clone());
        let new_gateway =
            new.and_then(|p| p.labels().get(GATEWAY_LABEL)).map(|g| GatewayKey::new(&namespace, g));
        let mut changed = BTreeSet::new();
        if let Some(old) = old_gateway.filter(|old| Some(old) != new_gateway.as_ref())
            && let Some(pods) = self.pods.get_mut(&old)
        {
            pods.remove(&pod);
            if pods.is_empty() {
                self.pods.remove(&old);
            }
            changed.insert(old);
        }
        if let (Some(gateway), Some(new)) = (new_gateway, new) {
            let facts = observe::pod(new);
            self.remember_turned_away(&(namespace, pod.clone()), &facts);
            let pods = self.pods.entry(gateway.clone()).or_default();
            let facts = settled(facts, pods.get(&pod));
            if pods.get(&pod) != Some(&facts) {
                pods.insert(pod, facts);
                changed.insert(gateway);
            }
        }
        let mut effects = Effects::default();
        for gateway in changed {
            effects.request.extend(self.below(&gateway));
            effects.request.extend([Request::Peers(gateway.clone()), Request::Gateway(gateway)]);
        }
        effects
    }

    /// A kubelet may have evicted a gateway's pod.
    pub(crate) fn remember_eviction(&mut self, name: &Name, pod: &Pod, now: Instant) {
        let eviction = Refusal::of_pod(pod).filter(|refusal| refusal.cause == Cause::Evicted);
        if let Some(eviction) = eviction {
            self.was_evicted(name.clone(), eviction, now);
        }
    }

    fn was_evicted(&mut self, name: Name, refusal: Refusal, at: Instant) {
        self.evicted.retain(|_, (_, before)| at.saturating_duration_since(*before) < EVICTED_LATELY);
        self.evicted.insert(name, (refusal, at));
    }

    /// A kubelet told of an eviction. Of a pod whose process ended well at its signal the status often says no more than that.
    pub(crate) fn eviction_told(&mut self, event: &Event, now: Instant, wall: Timestamp) -> Effects {
        let Some((NoteKind::Pod, pod, note)) = observe::note(event) else { return Effects::default() };
        let namespace = event.involved_object.namespace.as_deref().unwrap_or_default();
        let Some((gateway, _)) = pod.rsplit_once('-') else { return Effects::default() };
        let gateway = GatewayKey::new(namespace, gateway);
        let ago = Duration::from_secs(u64::try_from(wall.as_second() - note.at).unwrap_or_default());
        let Some(at) = now.checked_sub(ago).filter(|_| ago < EVICTED_LATELY) else {
            return Effects::default();
        };
        if note.refusal.cause != Cause::Evicted || !self.gateways.contains_key(&gateway) {
            return Effects::default();
        }
        self.was_evicted((namespace.to_owned(), pod), note.refusal, at);
        Effects::of([Request::Gateway(gateway)])
    }

    /// The StatefulSet's controller makes a pod anew that was turned away, at once, and it is turned away again.
    fn remember_turned_away(&mut self, name: &Name, facts: &PodFacts) {
        // It was made: what kept it from being made is over.
        self.notes.pod_was_made(name);
        match &facts.refusal {
            Some(refusal) => drop(self.turned_away.insert(name.clone(), refusal.clone())),
            None if facts.admitted => drop(self.turned_away.remove(name)),
            None => {}
        }
    }

    /// An Event about something of a gateway.
    pub(crate) fn event_changed(&mut self, name: &Name, new: Option<&Event>) -> Effects {
        let about = self.notes.changed(name, new.and_then(observe::note));
        let gateways = about.into_iter().filter_map(|(namespace, object)| {
            let of_set = GatewayKey::new(&namespace, &object);
            let replica = object.strip_suffix("-session").unwrap_or(&object);
            let of_replica =
                replica.rsplit_once('-').map(|(gateway, _)| GatewayKey::new(&namespace, gateway));
            [Some(of_set), of_replica].into_iter().flatten().find(|key| self.gateways.contains_key(key))
        });
        Effects::of(gateways.map(Request::Gateway))
    }

    /// A pod that asks for a sidecar appeared, or is gone or has ended.
    pub(crate) fn sidecar_changed(&mut self, uid: &str, exists: bool) -> Effects {
        if exists {
            self.sidecars.insert(uid.to_owned());
            return Effects::default();
        }
        self.sidecars.remove(uid);
        Effects::of(self.clients_of_pod.get(uid).into_iter().flatten().cloned().map(Request::Client))
    }

    pub(crate) fn node_changed(&mut self, name: &str, new: Option<&Node>) -> Effects {
        let new = new.map(observe::node);
        if self.nodes.get(name) == new.as_ref() {
            return Effects::default();
        }
        match new {
            Some(new) => drop(self.nodes.insert(name.to_owned(), new)),
            None => drop(self.nodes.remove(name)),
        }
        let on_it =
            self.pods.iter().filter(|(_, pods)| pods.values().any(|p| p.node.as_deref() == Some(name)));
        let gateways: Vec<GatewayKey> = on_it.map(|(key, _)| key.clone()).collect();
        let mut effects = Effects::default();
        for gateway in gateways {
            effects.request.extend(self.below(&gateway));
            effects.request.extend([Request::Peers(gateway.clone()), Request::Gateway(gateway)]);
        }
        effects
    }

    /// All that must be looked at when the gateway's keys, endpoints or the trust bundle changed: its pools, for their
    /// join strings, and its stock clients, for their configurations.
    pub(crate) fn below(&self, gateway: &GatewayKey) -> BTreeSet<Request> {
        let pools: Vec<PoolKey> = self
            .pools
            .iter()
            .filter(|(_, p)| gateway_of(p) == *gateway)
            .map(|(key, _)| key.clone())
            .collect();
        let mut request: BTreeSet<Request> = BTreeSet::new();
        for pool in pools {
            request.extend(self.client_keys(&pool).filter(|k| self.concerned(k)).map(Request::Client));
            request.insert(Request::Pool(pool));
        }
        request
    }

    /// Whether a client depends on its gateway's endpoints, or waits for something.
    fn concerned(&self, key: &ClientKey) -> bool {
        self.clients.get(key).is_some_and(|c| {
            c.spec.is_stock()
                || c.status.as_ref().is_none_or(|s| s.addresses.is_empty() || is_pending(s.phase))
        })
    }

    fn client_keys(&self, pool: &PoolKey) -> impl Iterator<Item = ClientKey> + use<'_> {
        self.clients_of_pool.get(pool).into_iter().flatten().cloned()
    }

    fn gateways_of_pool(&self, pool: &PoolKey) -> Vec<GatewayKey> {
        let known = self.pools.get(pool).map(|p| vec![gateway_of(p)]);
        known.unwrap_or_else(|| self.gateways_of_frozen(pool))
    }

    fn gateway_label(new: Option<&ObjectMeta>, old: Option<&ObjectMeta>) -> Option<GatewayKey> {
        let meta = new.or(old)?;
        let name = meta.labels.as_ref()?.get(GATEWAY_LABEL)?;
        Some(GatewayKey::new(meta.namespace.clone().unwrap_or_default(), name))
    }

    /// Whose an object was whose last version is not known any more: everything of the name's longest prefix.
    fn owners_by_name(&self, (namespace, name): &Name) -> Vec<Request> {
        let is_prefix =
            |key: &str| name == key || name.strip_prefix(key).is_some_and(|rest| rest.starts_with('-'));
        let mut request = Vec::new();
        let gateways = self.gateways.keys().filter(|k| k.namespace == *namespace && is_prefix(&k.name));
        request.extend(gateways.cloned().map(Request::Gateway));
        let pools = self.pools.keys().filter(|k| k.namespace == *namespace && is_prefix(&k.name));
        request.extend(pools.cloned().map(Request::Pool));
        if let Some(client) = name.strip_suffix("-wireguard") {
            request.push(Request::Client(ClientKey::new(namespace, client)));
        }
        request
    }

    fn keep(&mut self, key: &ClientKey, client: &VPNClient) {
        self.clients_of_pool.entry(pool_of(client)).or_default().insert(key.clone());
        if is_waiting(client) {
            self.waiting_of_pool.entry(pool_of(client)).or_default().insert(key.clone());
        }
        self.client_of_uid.insert(client.uid().unwrap_or_default(), key.clone());
        if let Some(public) = public_key(client) {
            self.clients_of_key.entry(public.to_owned()).or_default().insert(key.clone());
        }
        if let Some(pod) = client.spec.enrolment.as_ref().and_then(|e| e.pod.as_ref()) {
            self.clients_of_pod.entry(pod.uid.clone()).or_default().insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &ClientKey, client: &VPNClient) {
        remove_from(&mut self.clients_of_pool, &pool_of(client), key);
        remove_from(&mut self.waiting_of_pool, &pool_of(client), key);
        self.client_of_uid.remove(&client.uid().unwrap_or_default());
        if let Some(public) = public_key(client) {
            remove_from(&mut self.clients_of_key, &public.to_owned(), key);
        }
        if let Some(pod) = client.spec.enrolment.as_ref().and_then(|e| e.pod.as_ref()) {
            remove_from(&mut self.clients_of_pod, &pod.uid, key);
        }
    }
}

/// The gateway that a pool names.
pub(crate) fn gateway_of(pool: &VPNClientPool) -> GatewayKey {
    GatewayKey::new(pool.namespace().unwrap_or_default(), &pool.spec.gateway_ref.name)
}

/// The pool that a client names.
pub(crate) fn pool_of(client: &VPNClient) -> PoolKey {
    PoolKey::new(client.namespace().unwrap_or_default(), &client.spec.pool_ref.name)
}

/// A client's public key, base64.
pub(crate) fn public_key(client: &VPNClient) -> Option<&str> {
    client.spec.public_key.as_deref().or(client.status.as_ref()?.public_key.as_deref())
}

fn is_waiting(client: &VPNClient) -> bool {
    client.status.as_ref().is_none_or(|s| {
        s.addresses.is_empty() || s.conditions.iter().any(|c| c.type_ == pinhole_crds::STALLED)
    })
}

fn is_pending(phase: Option<pinhole_crds::ClientPhase>) -> bool {
    phase.is_none_or(|p| p == pinhole_crds::ClientPhase::Pending)
}

/// A kubelet that cannot get an image says so in two ways in turn: the first one stays.
fn settled(mut facts: PodFacts, before: Option<&PodFacts>) -> PodFacts {
    let before = before.filter(|before| before.uid == facts.uid).and_then(|before| before.refusal.as_ref());
    if let (Some(new), Some(old)) = (&facts.refusal, before)
        && (new.cause, old.cause) == (Cause::Image, Cause::Image)
    {
        facts.refusal = Some(old.clone());
    }
    facts
}

fn same_ready(a: &VPNGateway, b: &VPNGateway) -> bool {
    let ready = |g: &VPNGateway| g.status.as_ref().and_then(|s| crate::plan::ready_of(&s.conditions));
    ready(a) == ready(b)
}

fn what_pools_count(client: &VPNClient) -> Option<serde_json::Value> {
    let status = client.status.as_ref();
    let nat = status.map(|s| (s.nat.as_ref().map(|n| n.class), s.binding.as_ref().map(|b| b.at_least)));
    let churn = status.and_then(|s| s.churn.as_ref()).map(|c| c.count);
    serde_json::to_value((client.uid(), status.map(|s| (&s.phase, &s.addresses)), nat, churn)).ok()
}

fn what_peers_are(client: &VPNClient) -> Option<serde_json::Value> {
    let status = client.status.as_ref();
    let deleted = client.metadata.deletion_timestamp.is_some();
    let keepalive = status.filter(|_| client.spec.is_stock()).map(|s| &s.keepalive);
    let known = status.map(|s| (&s.addresses, &s.public_key));
    serde_json::to_value((client.uid(), deleted, &client.spec, known, keepalive)).ok()
}

fn set<K: Clone + std::hash::Hash + Eq>(odd: &mut HashMap<K, Oddity>, key: &K, new: Option<Oddity>) {
    match new {
        Some(new) => drop(odd.insert(key.clone(), new)),
        None => drop(odd.remove(key)),
    }
}

fn remove_from<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
