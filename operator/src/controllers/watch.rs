//! One watch for each kind, each with its own backoff, all feeding the world.

use std::{collections::HashSet, fmt::Debug, future::Future, pin::pin, sync::Arc, time::Instant};

use futures::{Stream, StreamExt as _, future::BoxFuture};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Event as CoreEvent, Node, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
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
    hub::Hub,
    observe::prune,
    world::{Effects, Name, World},
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

/// A watch that runs for ever.
pub type Watch = BoxFuture<'static, ()>;

/// All watches. Each is to be spawned. `own` is the operator's namespace.
pub fn watches(client: &Client, scope: &Scope, own: &str, hub: &Arc<Hub>) -> Vec<Watch> {
    let ours = || config().labels(&gateway_objects_selector());
    let start = Start { client, scope, hub };
    let mut watches = Vec::new();
    watches.extend(start.lenient("VPNGateway", |world, key, new: Option<Raw<VPNGateway>>| {
        world.gateway_read(&(&key).into(), new)
    }));
    watches.extend(start.lenient("VPNClientPool", |world, key, new: Option<Raw<VPNClientPool>>| {
        world.pool_read(&(&key).into(), new)
    }));
    watches.extend(start.lenient("VPNClient", |world, key, new: Option<Raw<VPNClient>>| {
        world.client_read((&key).into(), new)
    }));
    watches
        .extend(start.typed("Service", &ours(), |world, name, new: Option<Service>| {
            world.service_changed(&name, new)
        }));
    watches.extend(start.typed("Pod", &ours_pods(), |world, name, new: Option<Pod>| {
        if let Some(pod) = &new {
            world.remember_eviction(&name, pod, Instant::now());
        }
        world.pod_changed(name, new.as_ref())
    }));
    watches.extend(start.owned::<StatefulSet>("StatefulSet", ObjectKind::StatefulSet));
    watches.extend(start.owned::<Secret>("Secret", ObjectKind::Secret));
    watches.extend(start.owned::<ConfigMap>("ConfigMap", ObjectKind::ConfigMap));
    // One, in the operator's own namespace, which need not be one that it serves.
    let own = Start { scope: &Scope::new(vec![own.to_owned()]), ..start };
    watches.extend(own.owned::<SidecarTrust>("SidecarTrust", ObjectKind::SidecarTrust));
    watches.extend(start.owned::<ServiceAccount>("ServiceAccount", ObjectKind::ServiceAccount));
    watches.extend(start.owned::<NetworkPolicy>("NetworkPolicy", ObjectKind::NetworkPolicy));
    watches
        .extend(start.owned::<PodDisruptionBudget>("PodDisruptionBudget", ObjectKind::PodDisruptionBudget));
    for (kind, fields) in REFUSALS {
        watches.extend(start.typed(kind, &config().fields(fields), |world, name, new: Option<CoreEvent>| {
            world.event_changed(&name, new.as_ref())
        }));
    }
    watches.push(nodes(client, hub));
    watches.push(sidecars(client, hub));
    watches
}

/// What watches are started with.
#[derive(Clone, Copy)]
struct Start<'a> {
    client: &'a Client,
    scope: &'a Scope,
    hub: &'a Arc<Hub>,
}

impl Start<'_> {
    /// Kinds of our own: what is not understood of an object must not stop it, nor the others.
    fn lenient<K>(
        &self,
        kind: &'static str,
        put: impl Fn(&mut World, ObjectRef, Option<Raw<K>>) -> Effects + Copy + Send + 'static,
    ) -> Vec<Watch>
    where
        K: Lenient + Resource<Scope = NamespaceResourceScope> + Clone + Debug + Send + 'static,
    {
        let counted = |metrics: Arc<Metrics>| {
            move |world: &mut World, (namespace, name): Name, new: Option<Raw<K>>| {
                if new.as_ref().is_some_and(Raw::is_odd) {
                    metrics.unreadable(kind);
                    tracing::warn!(
                        kind,
                        namespace,
                        name,
                        "object is not understood in full; see its conditions and events: does the CRD match this operator?"
                    );
                }
                put(world, ObjectRef { namespace, name, uid: String::new() }, new)
            }
        };
        self.each(kind, &config(), || counted(Arc::clone(&self.hub.metrics)))
    }

    fn typed<K>(
        &self,
        kind: &'static str,
        config: &watcher::Config,
        put: impl Fn(&mut World, Name, Option<K>) -> Effects + Copy + Send + 'static,
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
        let put = move |world: &mut World, name: Name, new: Option<PartialObjectMeta<K>>| {
            world.owned_changed(kind, &name, new.as_ref().map(|o| &o.metadata))
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
        P: FnMut(&mut World, Name, Option<K>) -> Effects + Send + 'static,
    {
        let apis = self.scope.apis::<K>(self.client);
        apis.into_iter()
            .map(|api| -> Watch {
                Box::pin(pump(kind, watcher(api, config.clone()), Arc::clone(self.hub), put()))
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

fn nodes(client: &Client, hub: &Arc<Hub>) -> Watch {
    let stream = watcher(Api::<Node>::all(client.clone()), config());
    let put = |world: &mut World, (_, name): Name, new: Option<Node>| world.node_changed(&name, new.as_ref());
    Box::pin(pump("Node", stream, Arc::clone(hub), put))
}

/// Pods that ask for a sidecar, as long as they have not ended.
fn sidecars(client: &Client, hub: &Arc<Hub>) -> Watch {
    let config = config().labels(POOL_LABEL).fields("status.phase!=Succeeded,status.phase!=Failed");
    let stream = watcher(Api::<PartialObjectMeta<Pod>>::all(client.clone()), config);
    let mut uids: std::collections::HashMap<Name, String> = std::collections::HashMap::new();
    let put = move |world: &mut World, name: Name, new: Option<PartialObjectMeta<Pod>>| {
        let uid = new.and_then(|pod| pod.uid());
        let old = match &uid {
            Some(uid) => uids.insert(name, uid.clone()),
            None => uids.remove(&name),
        };
        let mut effects = Effects::default();
        if let Some(old) = old.filter(|old| Some(old) != uid.as_ref()) {
            effects.merge(world.sidecar_changed(&old, false));
        }
        if let Some(uid) = uid {
            effects.merge(world.sidecar_changed(&uid, true));
        }
        effects
    };
    Box::pin(pump("SidecarPod", stream, Arc::clone(hub), put))
}

fn pump<K: Resource<DynamicType = ()> + Clone + Send + 'static>(
    kind: &'static str,
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    hub: Arc<Hub>,
    mut put: impl FnMut(&mut World, Name, Option<K>) -> Effects + Send,
) -> impl Future<Output = ()> + Send {
    let watch = hub.health.expect_watch(kind);
    async move {
        let mut known: HashSet<Name> = HashSet::new();
        let mut listed: HashSet<Name> = HashSet::new();
        let mut stream = pin!(stream.default_backoff());
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    hub.health.watch_failed(watch, Instant::now());
                    hub.metrics.watch_failed(kind);
                    tracing::warn!(kind, %error, "watch failed; it will be tried again");
                    continue;
                }
            };
            hub.health.watch_works(watch);
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => {
                    listed.insert(name_of(&object));
                    known.insert(name_of(&object));
                    hub.put(&mut put, object);
                }
                Event::Apply(object) => {
                    known.insert(name_of(&object));
                    hub.put(&mut put, object);
                }
                Event::Delete(object) => {
                    known.remove(&name_of(&object));
                    hub.take(&mut put, name_of(&object));
                }
                Event::InitDone => {
                    for gone in known.extract_if(|name| !listed.contains(name)) {
                        hub.take(&mut put, gone);
                    }
                    listed = HashSet::new();
                    hub.health.watch_synced(watch);
                    tracing::debug!(kind, objects = known.len(), "listed");
                }
            }
        }
    }
}

impl Hub {
    fn put<K: Resource>(&self, put: &mut impl FnMut(&mut World, Name, Option<K>) -> Effects, mut object: K) {
        prune(object.meta_mut());
        let effects = put(&mut self.world(), name_of(&object), Some(object));
        self.raise(effects);
    }

    fn take<K>(&self, put: &mut impl FnMut(&mut World, Name, Option<K>) -> Effects, name: Name) {
        let effects = put(&mut self.world(), name, None);
        self.raise(effects);
    }
}

fn name_of<K: Resource>(object: &K) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
