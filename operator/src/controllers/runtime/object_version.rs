//! Versions of objects, as far as they concern whoever applies them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::plan::ObjectKind;

/// What tells one version of an object from another, as far as it concerns whoever applies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectVersion {
    uid: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Resource(String),
    /// For kinds whose status changes all the time: generation, and a hash of the metadata.
    Generation(i64, u64),
}

impl ObjectVersion {
    pub(crate) fn new(kind: ObjectKind, meta: &ObjectMeta) -> Self {
        let version = match (kind, meta.generation) {
            (ObjectKind::StatefulSet | ObjectKind::PodDisruptionBudget, Some(generation)) => {
                Version::Generation(generation, hash(meta))
            }
            _ => Version::Resource(meta.resource_version.clone().unwrap_or_default()),
        };
        Self { uid: meta.uid.clone().unwrap_or_default(), version }
    }

    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }
}

fn hash(meta: &ObjectMeta) -> u64 {
    let mut hasher = DefaultHasher::new();
    meta.labels.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    for owner in meta.owner_references.iter().flatten() {
        (&owner.kind, &owner.name, &owner.uid).hash(&mut hasher);
    }
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    hasher.finish()
}
