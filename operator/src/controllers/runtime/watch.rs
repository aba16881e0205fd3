//! One watch for each kind, each with its own backoff, all feeding the index.

use std::{collections::HashSet, fmt::Debug, future::Future, pin::pin, sync::Arc, time::Instant};

use futures::{Stream, StreamExt as _, future::BoxFuture};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Event as CoreEvent, Node, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::PartialObjectMeta,
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use pinhole_crds::{Lenient, POOL_LABEL, Raw, SidecarTrust, VPNClient, VPNClientPool, VPNGateway};
use pinhole_proto::v1::ObjectRef;
use serde::de::DeserializeOwned;

use super::{
    index::{Effects, Index, Name},
    observe::prune,
    shared_state::SharedState,
};
use crate::{
    plan::{GATEWAY_LABEL, ObjectKind, gateway_objects_selector},
    scope::Scope,
    telemetry::Metrics,
};

/// Objects of a page of a list: small pages keep memory small.
const PAGE: u32 = 200;

/// The Events that say what no object's status does: why a pod is not made, why it does not start, and why there is no
/// load balancer. Selectors know no "or", and nothing else of a cluster's Events is to be read.
const REFUSALS: [(&str, &str); 4] = [
    ("CreationEvent", "involvedObject.kind=StatefulSet,reason=FailedCreate"),
    ("MountEvent", "involvedObject.kind=Pod,reason=FailedMount"),
    ("SandboxEvent", "involvedObject.kind=Pod,reason=FailedCreatePodSandBox"),
    ("BalancerEvent", "involvedObject.kind=Service,type=Warning"),
];

/// What kubelets say of pods that they evict.
const EVICTIONS: &str = "involvedObject.kind=Pod,reason=Evicted";

/// A watch that runs for ever.
pub type Watch = BoxFuture<'static, ()>;

/// All watches. Each is to be spawned. `own` is the operator's namespace.
pub fn watches(client: &Client, scope: &Scope, own: &str, shared: &Arc<SharedState>) -> Vec<Watch> {
    let ours = || config().labels(&gateway_objects_selector());
    let start = Start { client, scope, shared };
    let mut watches = Vec::new();
    watches.extend(start.lenient("VPNGateway", |index, key, new: Option<Raw<VPNGateway>>| {
        index.gateway_read(&(&key).into(), new)
    }));
    watches.extend(start.lenient("VPNClientPool", |index, key, new: Option<Raw<VPNClientPool>>| {
        index.pool_read(&(&key).into(), new)
    }));
    watches.extend(start.lenient("VPNClient", |index, key, new: Option<Raw<VPNClient>>| {
        index.client_read((&key).into(), new)
    }));
    watches
        .extend(start.typed("Service", &ours(), |index, name, new: Option<Service>| {
            index.service_changed(&name, new)
        }));
    watches.extend(start.typed("Pod", &ours_pods(), |index, name, new: Option<Pod>| {
        if let Some(pod) = &new {
            index.remember_eviction(&name, pod, Instant::now());
        }
        index.pod_changed(name, new.as_ref())
    }));
    watches.extend(start.owned::<StatefulSet>("StatefulSet", ObjectKind::StatefulSet));
    watches.extend(start.owned::<Secret>("Secret", ObjectKind::Secret));
    watches.extend(start.owned::<ConfigMap>("ConfigMap", ObjectKind::ConfigMap));
    // One, in the operator's own namespace, which need not be one that it serves.
    let own = Start { scope: &Scope::new(vec![own.to_owned()]), ..start };
    // Whose it is does not matter: one of somebody else is in the way, and is gone one day.
    watches.extend(own.typed("SidecarTrust", &config(), move |index, name, new| {
        let new: Option<PartialObjectMeta<SidecarTrust>> = new;
        index.owned_changed(ObjectKind::SidecarTrust, &name, new.as_ref().map(|o| &o.metadata))
    }));
    watches.extend(start.owned::<ServiceAccount>("ServiceAccount", ObjectKind::ServiceAccount));
    watches.extend(start.owned::<NetworkPolicy>("NetworkPolicy", ObjectKind::NetworkPolicy));
    watches
        .extend(start.owned::<PodDisruptionBudget>("PodDisruptionBudget", ObjectKind::PodDisruptionBudget));
    for (kind, fields) in REFUSALS {
        watches.extend(start.typed(kind, &config().fields(fields), |index, name, new: Option<CoreEvent>| {
            index.event_changed(&name, new.as_ref())
        }));
    }
    let evictions = config().fields(EVICTIONS);
    watches.extend(start.typed("EvictionEvent", &evictions, |index, _, new: Option<CoreEvent>| {
        let told = |event| index.eviction_told(event, Instant::now(), Timestamp::now());
        new.as_ref().map(told).unwrap_or_default()
    }));
    watches.push(nodes(client, shared));
    watches.push(sidecars(client, shared));
    watches
}

/// What watches are started with.
#[derive(Clone, Copy)]
struct Start<'a> {
    client: &'a Client,
    scope: &'a Scope,
    shared: &'a Arc<SharedState>,
}

impl Start<'_> {
    /// Kinds of our own: what is not understood of an object must not stop it, nor the others.
    fn lenient<K>(
        &self,
        kind: &'static str,
        put: impl Fn(&mut Index, ObjectRef, Option<Raw<K>>) -> Effects + Copy + Send + 'static,
    ) -> Vec<Watch>
    where
        K: Lenient + Resource<Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    {
        let counted = |metrics: Arc<Metrics>| {
            move |index: &mut Index, (namespace, name): Name, new: Option<Raw<K>>| {
                if new.as_ref().is_some_and(Raw::is_odd) {
                    metrics.unreadable(kind);
                    tracing::warn!(
                        kind,
                        namespace,
                        name,
                        "object is not understood in full; see its conditions and events: does the CRD match this operator?"
                    );
                }
                put(index, ObjectRef { namespace, name, uid: String::new() }, new)
            }
        };
        self.each(kind, &config(), || counted(Arc::clone(&self.shared.metrics)))
    }

    fn typed<K>(
        &self,
        kind: &'static str,
        config: &watcher::Config,
        put: impl Fn(&mut Index, Name, Option<K>) -> Effects + Copy + Send + 'static,
    ) -> Vec<Watch>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        self.each(kind, config, || put)
    }

    /// What the operator made, as metadata only.
    fn owned<K>(&self, label: &'static str, kind: ObjectKind) -> Vec<Watch>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let put = move |index: &mut Index, name: Name, new: Option<PartialObjectMeta<K>>| {
            index.owned_changed(kind, &name, new.as_ref().map(|o| &o.metadata))
        };
        self.typed(label, &config().labels(&gateway_objects_selector()), put)
    }

    /// One watch for each namespace that is served, or one for all.
    fn each<K, P>(&self, kind: &'static str, config: &watcher::Config, put: impl Fn() -> P) -> Vec<Watch>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
        P: FnMut(&mut Index, Name, Option<K>) -> Effects + Send + 'static,
    {
        let apis = self.scope.apis::<K>(self.client);
        apis.into_iter()
            .map(|api| -> Watch {
                Box::pin(pump(kind, watcher(api, config.clone()), Arc::clone(self.shared), put()))
            })
            .collect()
    }
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// Pods carry the StatefulSet's template labels.
fn ours_pods() -> watcher::Config {
    config().labels(&format!("{},{}", gateway_objects_selector(), GATEWAY_LABEL))
}

fn nodes(client: &Client, shared: &Arc<SharedState>) -> Watch {
    let stream = watcher(Api::<Node>::all(client.clone()), config());
    let put = |index: &mut Index, (_, name): Name, new: Option<Node>| index.node_changed(&name, new.as_ref());
    Box::pin(pump("Node", stream, Arc::clone(shared), put))
}

/// Pods that ask for a sidecar, as long as they have not ended.
fn sidecars(client: &Client, shared: &Arc<SharedState>) -> Watch {
    let config = config().labels(POOL_LABEL).fields("status.phase!=Succeeded,status.phase!=Failed");
    let stream = watcher(Api::<PartialObjectMeta<Pod>>::all(client.clone()), config);
    let mut uids: std::collections::HashMap<Name, String> = std::collections::HashMap::new();
    let put = move |index: &mut Index, name: Name, new: Option<PartialObjectMeta<Pod>>| {
        let uid = new.and_then(|pod| pod.uid());
        let old = match &uid {
            Some(uid) => uids.insert(name, uid.clone()),
            None => uids.remove(&name),
        };
        let mut effects = Effects::default();
        if let Some(old) = old.filter(|old| Some(old) != uid.as_ref()) {
            effects.merge(index.sidecar_changed(&old, false));
        }
        if let Some(uid) = uid {
            effects.merge(index.sidecar_changed(&uid, true));
        }
        effects
    };
    Box::pin(pump("SidecarPod", stream, Arc::clone(shared), put))
}

fn pump<K: Resource<DynamicType = ()> + Clone + Send + 'static>(
    kind: &'static str,
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    shared: Arc<SharedState>,
    mut put: impl FnMut(&mut Index, Name, Option<K>) -> Effects + Send,
) -> impl Future<Output = ()> + Send {
    let watch = shared.health.expect_watch(kind);
    async move {
        let mut known: HashSet<Name> = HashSet::new();
        let mut listed: HashSet<Name> = HashSet::new();
        let mut stream = pin!(stream.default_backoff());
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    shared.health.watch_failed(watch, Instant::now());
                    shared.metrics.watch_failed(kind);
                    tracing::warn!(kind, %error, "watch failed; it will be tried again");
                    continue;
                }
            };
            shared.health.watch_works(watch);
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => {
                    listed.insert(name_of(&object));
                    known.insert(name_of(&object));
                    shared.put(&mut put, object);
                }
                Event::Apply(object) => {
                    known.insert(name_of(&object));
                    shared.put(&mut put, object);
                }
                Event::Delete(object) => {
                    known.remove(&name_of(&object));
                    shared.take(&mut put, name_of(&object));
                }
                Event::InitDone => {
                    for gone in known.extract_if(|name| !listed.contains(name)) {
                        shared.take(&mut put, gone);
                    }
                    listed = HashSet::new();
                    shared.health.watch_synced(watch);
                    tracing::debug!(kind, objects = known.len(), "listed");
                }
            }
        }
    }
}

impl SharedState {
    fn put<K: Resource>(&self, put: &mut impl FnMut(&mut Index, Name, Option<K>) -> Effects, mut object: K) {
        prune(object.meta_mut());
        let effects = put(&mut self.index(), name_of(&object), Some(object));
        self.raise(effects);
    }

    fn take<K>(&self, put: &mut impl FnMut(&mut Index, Name, Option<K>) -> Effects, name: Name) {
        let effects = put(&mut self.index(), name, None);
        self.raise(effects);
    }
}

fn name_of<K: Resource>(object: &K) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
