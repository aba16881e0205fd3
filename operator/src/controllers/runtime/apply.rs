//! Server-side apply of what was planned, only when something differs.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::{DynamicObject, PartialObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{
    error::{ControlError, call},
    index::Name,
    object_version::ObjectVersion,
    shared_state::SharedState,
};
use crate::plan::{CREATOR, Object, ObjectKind, adopted, check};

/// How long a watch may take to show what was just written.
const CACHE_LAG: Duration = Duration::from_secs(10);

/// So many remembered statuses are looked through for old ones.
const MANY: usize = 4096;

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusWrite {
    /// It was written.
    Written,
    /// The watch has not shown the write before: to be decided again when it has.
    Lagging,
}

/// Writes objects, and remembers what it wrote.
pub(crate) struct Applier {
    client: Client,
    shared: Arc<SharedState>,
    written: Mutex<HashMap<(ObjectKind, Name), Written>>,
    /// By UID: the version that the last write to a status was made from.
    statuses: Mutex<HashMap<String, (String, Instant)>>,
}

/// The last write to an object.
struct Written {
    content: u64,
    before: Option<ObjectVersion>,
    after: ObjectVersion,
    at: Instant,
    /// The watch has shown something else than what was there before: what it shows now is no earlier than the write.
    shown: bool,
}

impl Written {
    fn new(content: u64, before: Option<ObjectVersion>, after: ObjectVersion, at: Instant) -> Self {
        Self { content, before, after, at, shown: false }
    }

    /// Whether the object is there with this content, where the watch shows `seen`.
    fn stands(&mut self, now: Instant, content: u64, seen: Option<&ObjectVersion>) -> bool {
        self.shown |= seen != self.before.as_ref();
        let is_lagging = !self.shown && now.saturating_duration_since(self.at) < CACHE_LAG;
        self.content == content && (seen == Some(&self.after) || is_lagging)
    }
}

impl Applier {
    pub(crate) fn new(client: Client, shared: Arc<SharedState>) -> Self {
        Self { client, shared, written: Mutex::default(), statuses: Mutex::default() }
    }

    /// Applies the object as `manager`, unless it is known to be there just so. True when it was written. What somebody
    /// else has under that name is left alone, and so is what somebody else makes in this moment: it is created where
    /// nothing is, and applied to the very object that was found to be ours.
    pub(crate) async fn apply(&self, object: &Object, manager: &'static str) -> Result<bool, ControlError> {
        let kind = object.kind();
        let name: Name = (object.namespace().to_owned(), object.name().to_owned());
        let body = object.to_value()?;
        let content = hash(&body);
        let before = self.shared.index().marker(kind, &name).cloned();
        if self.is_there(kind, &name, content, before.as_ref()) {
            return Ok(false);
        }
        let resource = kind.resource();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.0, &resource);
        let what = || format!("reading {} {}/{}", resource.kind, name.0, name.1);
        let after = match call(what, api.get_metadata_opt(&name.1)).await? {
            None => create(&api, body).await?,
            Some(found) => {
                check(kind, &found.metadata, object.meta())
                    .map_err(|foreign| ControlError::Foreign(vec![foreign]))?;
                update(&api, &found.metadata, body, manager).await?
            }
        };
        let after = ObjectVersion::new(kind, &after);
        // An apply that changed nothing leaves the version as it was.
        let wrote = before.as_ref() != Some(&after);
        if wrote {
            self.shared.metrics.wrote(kind_name(kind));
        }
        self.written().insert((kind, name), Written::new(content, before, after, Instant::now()));
        Ok(wrote)
    }

    /// Forgets what was written under an owner's names, when that one is gone.
    pub(crate) fn forget(&self, kind: ObjectKind, name: &Name) {
        self.written().remove(&(kind, name.clone()));
    }

    /// Forgets what does not exist any more.
    pub(crate) fn sweep(&self) {
        let index = self.shared.index();
        self.written()
            .retain(|(kind, name), w| w.at.elapsed() < CACHE_LAG || index.marker(*kind, name).is_some());
    }

    fn is_there(&self, kind: ObjectKind, name: &Name, content: u64, seen: Option<&ObjectVersion>) -> bool {
        let mut written = self.written();
        written.get_mut(&(kind, name.clone())).is_some_and(|last| last.stands(Instant::now(), content, seen))
    }

    fn written(&self) -> MutexGuard<'_, HashMap<(ObjectKind, Name), Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the whole status of one of our kinds. It is pinned to the incarnation: a status for an object that was
    /// made anew meanwhile is refused. Nothing is written before the watch has shown the last write to it: a status
    /// made from an older one would undo transition times and counts.
    pub(crate) async fn status<K, S>(
        &self,
        object: &K,
        status: &S,
        manager: &'static str,
    ) -> Result<StatusWrite, ControlError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        S: Serialize,
    {
        let (namespace, name) = name_of(object.meta());
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": name, "namespace": namespace, "uid": object.meta().uid },
            "status": status,
        });
        if self.lags(object.meta()) {
            return Ok(StatusWrite::Lagging);
        }
        // What comes back may hold what is not understood.
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams::apply(manager).force();
        let what = || format!("writing the status of {} {namespace}/{name}", K::kind(&()));
        let after = call(what, api.patch_status(&name, &params, &Patch::Apply(&body))).await?;
        self.remember(object.meta(), after.meta());
        Ok(StatusWrite::Written)
    }

    fn lags(&self, seen: &ObjectMeta) -> bool {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.uid.as_ref().and_then(|uid| statuses.get(uid));
        last.is_some_and(|(version, at)| {
            Some(version) == seen.resource_version.as_ref() && at.elapsed() < CACHE_LAG
        })
    }

    fn remember(&self, before: &ObjectMeta, after: &ObjectMeta) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(uid), Some(version)) = (&before.uid, &before.resource_version) else { return };
        if before.resource_version == after.resource_version {
            statuses.remove(uid);
            return;
        }
        statuses.insert(uid.clone(), (version.clone(), Instant::now()));
        if statuses.len() > MANY {
            statuses.retain(|_, (_, at)| at.elapsed() < CACHE_LAG);
        }
    }
}

/// Makes the object, and never touches one that is there.
async fn create(api: &Api<DynamicObject>, body: serde_json::Value) -> Result<ObjectMeta, ControlError> {
    let object: DynamicObject = serde_json::from_value(body)?;
    let params = PostParams { field_manager: Some(CREATOR.into()), ..PostParams::default() };
    let what =
        || format!("making {} {}", api.resource_url(), object.metadata.name.as_deref().unwrap_or_default());
    Ok(call(what, api.create(&params, &object)).await?.metadata)
}

/// Applies to this incarnation only.
async fn update(
    api: &Api<DynamicObject>,
    found: &ObjectMeta,
    mut body: serde_json::Value,
    manager: &'static str,
) -> Result<ObjectMeta, ControlError> {
    let name = found.name.as_deref().unwrap_or_default();
    if let Some(managed) = adopted(found, manager) {
        let patch = json!({ "metadata": {
            "uid": found.uid, "resourceVersion": found.resource_version, "managedFields": managed,
        }});
        let what = || format!("taking over the fields of {} {name}", api.resource_url());
        let params = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
        call(what, api.patch_metadata(name, &params, &Patch::Merge(&patch))).await?;
    }
    if let Some(metadata) = body.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.insert("uid".to_owned(), json!(found.uid));
    }
    let params = PatchParams::apply(manager).force();
    let what = || format!("applying {} {name}", api.resource_url());
    let applied: PartialObjectMeta<DynamicObject> =
        call(what, api.patch_metadata(name, &params, &Patch::Apply(&body))).await?;
    Ok(applied.metadata)
}

pub(crate) fn name_of(meta: &ObjectMeta) -> Name {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn hash(body: &serde_json::Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.to_string().hash(&mut hasher);
    hasher.finish()
}

fn kind_name(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::ConfigMap => "ConfigMap",
        ObjectKind::NetworkPolicy => "NetworkPolicy",
        ObjectKind::PodDisruptionBudget => "PodDisruptionBudget",
        ObjectKind::Secret => "Secret",
        ObjectKind::Service => "Service",
        ObjectKind::ServiceAccount => "ServiceAccount",
        ObjectKind::SidecarTrust => "SidecarTrust",
        ObjectKind::StatefulSet => "StatefulSet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(uid: &str, version: &str) -> ObjectVersion {
        let meta = ObjectMeta {
            uid: Some(uid.into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        ObjectVersion::new(ObjectKind::Secret, &meta)
    }

    #[test]
    fn a_watch_that_lags_is_waited_for_and_what_is_gone_once_it_was_shown_is_made_again() {
        let (at, content) = (Instant::now(), 7);
        let (made, others) = (version("a", "1"), version("a", "2"));
        let mut last = Written::new(content, None, made.clone(), at);
        assert!(last.stands(at, content, None), "not shown yet");
        assert!(!last.stands(at, 8, None), "something else is wanted");
        assert!(!Written::new(content, None, made.clone(), at).stands(at + CACHE_LAG, content, None));
        for shown in [&made, &others] {
            let mut last = Written::new(content, None, made.clone(), at);
            assert_eq!(last.stands(at, content, Some(shown)), *shown == made);
            assert!(!last.stands(at, content, None), "it was deleted a moment after it was made");
        }
    }
}
