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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(change: impl FnOnce(&mut Value)) -> ObjectMeta {
        let mut meta = json!({
            "name": "edge", "namespace": "vpn", "uid": "1", "resourceVersion": "10", "generation": 3,
            "labels": { "a": "b" }, "annotations": { "c": "d" },
            "ownerReferences": [{ "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNGateway", "name": "edge", "uid": "2" }],
        });
        change(&mut meta);
        serde_json::from_value(meta).unwrap()
    }

    #[test]
    fn of_what_changes_its_status_all_the_time_only_what_was_applied_makes_a_version() {
        type Change = fn(&mut Value);
        // What was changed, and whether that is another version to whoever applies it.
        let table: [(&str, Change, bool); 9] = [
            ("nothing", |_| (), false),
            ("its status", |m| m["resourceVersion"] = json!("11"), false),
            ("its spec", |m| m["generation"] = json!(4), true),
            ("a label", |m| m["labels"]["a"] = json!("x"), true),
            ("an annotation", |m| m["annotations"] = json!({}), true),
            ("its owner", |m| m["ownerReferences"][0]["uid"] = json!("3"), true),
            ("that it goes", |m| m["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), true),
            ("its incarnation", |m| m["uid"] = json!("9"), true),
            ("who manages it", |m| m["managedFields"] = json!([{ "manager": "kubectl" }]), false),
        ];
        for kind in [ObjectKind::StatefulSet, ObjectKind::PodDisruptionBudget] {
            let before = ObjectVersion::new(kind, &meta(|_| ()));
            for (what, change, differs) in table {
                assert_eq!(ObjectVersion::new(kind, &meta(change)) != before, differs, "{kind:?}: {what}");
            }
        }
    }

    #[test]
    fn of_anything_else_every_write_makes_a_version() {
        for kind in ObjectKind::ALL {
            if matches!(kind, ObjectKind::StatefulSet | ObjectKind::PodDisruptionBudget) {
                continue;
            }
            let version = |change: fn(&mut Value)| ObjectVersion::new(kind, &meta(change));
            assert_ne!(version(|_| ()), version(|m| m["resourceVersion"] = json!("11")), "{kind:?}");
            assert_ne!(version(|_| ()), version(|m| m["uid"] = json!("9")), "{kind:?}");
            assert_eq!(version(|_| ()), version(|m| m["generation"] = json!(4)), "{kind:?}");
        }
    }

    #[test]
    fn without_a_generation_the_resource_version_tells() {
        let version = |number: &str| {
            let number = json!(number);
            let meta = meta(move |m| (m["generation"], m["resourceVersion"]) = (Value::Null, number));
            ObjectVersion::new(ObjectKind::StatefulSet, &meta)
        };
        assert_ne!(version("10"), version("11"));
        assert_eq!((version("10"), version("10").uid()), (version("10"), "1"));
    }
}
