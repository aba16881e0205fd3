//! Whose an object is that bears the name of one that the operator makes. What is somebody else's is left alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};

use kube::Resource;

use super::{
    name::{GATEWAY_LABEL, MANAGED_BY_LABEL, POOL_OBJECT_LABEL},
    object::ObjectKind,
};

/// Every field manager of the operator begins so.
const MANAGERS: &str = "pinhole-operator";

/// Field manager of an object's first write, which is no apply: an apply would take over what somebody else made a
/// moment before. The next apply takes its fields over, see [`adopted`].
pub const CREATOR: &str = "pinhole-operator-create";

/// Operations of field managers.
const APPLY: &str = "Apply";

/// Labels that say whose an object of the operator is.
const LABELS: [&str; 3] = [MANAGED_BY_LABEL, GATEWAY_LABEL, POOL_OBJECT_LABEL];

/// An object that belongs to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {name} exists and {}", .kind.type_meta().kind, belongs(.controller.as_ref()))]
pub struct Foreign {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// Kind and name of its controller, if it has one.
    pub controller: Option<(String, String)>,
}

impl Foreign {
    /// The reason's name, for conditions, events and metrics.
    pub const CATEGORY: &'static str = "ObjectTaken";
}

/// What a person reads of all that are in the way of one object.
pub fn remedy(foreign: &[Foreign]) -> String {
    let all: Vec<String> = foreign.iter().map(ToString::to_string).collect();
    format!(
        "{}; the operator leaves it alone: give this object another name, or delete or rename what is in its way",
        all.join("; ")
    )
}

/// `found` has the kind and name of `wanted`: whether the operator made it for the same owner. A former owner of the same
/// name counts: what it left is taken over. Without a controller, labels and a field manager of the operator tell.
pub fn check(kind: ObjectKind, found: &ObjectMeta, wanted: &ObjectMeta) -> Result<(), Foreign> {
    let is_ours = match (controller(found), controller(wanted)) {
        (Some(found), Some(wanted)) => is_namesake(found, wanted),
        (Some(_), None) => false,
        (None, _) => has_labels(found, wanted) && is_managed(found),
    };
    if is_ours {
        return Ok(());
    }
    Err(Foreign {
        kind,
        name: wanted.name.clone().unwrap_or_default(),
        controller: controller(found).map(|c| (c.kind.clone(), c.name.clone())),
    })
}

/// Whether `owner` is the controller of the object, in its present incarnation.
pub fn is_controlled_by<K: Resource<DynamicType = ()>>(found: &ObjectMeta, owner: &K) -> bool {
    let uid = owner.meta().uid.as_ref();
    uid.is_some() && controller(found).map(|c| &c.uid) == uid
}

/// The field managers of `found`, with the fields of its creation as applied by `manager`: what an apply leaves out is
/// removed only where it was applied before. None: they need not change.
pub fn adopted(found: &ObjectMeta, manager: &str) -> Option<Vec<ManagedFieldsEntry>> {
    let all = found.managed_fields.as_ref()?;
    let is_creation = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(CREATOR) && entry.subresource.as_deref().is_none_or(str::is_empty)
    };
    let has_applied = |entry: &ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(manager) && entry.operation.as_deref() == Some(APPLY)
    };
    all.iter().any(is_creation).then(|| {
        let (creation, mut rest): (Vec<_>, Vec<_>) = all.iter().cloned().partition(is_creation);
        if !rest.iter().any(has_applied) {
            rest.extend(creation.into_iter().next().map(|entry| ManagedFieldsEntry {
                manager: Some(manager.to_owned()),
                operation: Some(APPLY.to_owned()),
                ..entry
            }));
        }
        rest
    })
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

fn is_namesake(a: &OwnerReference, b: &OwnerReference) -> bool {
    let group = |o: &OwnerReference| o.api_version.split_once('/').map(|(group, _)| group.to_owned());
    group(a) == group(b) && a.kind == b.kind && a.name == b.name
}

fn has_labels(found: &ObjectMeta, wanted: &ObjectMeta) -> bool {
    let label = |meta: &ObjectMeta, key: &str| meta.labels.as_ref().and_then(|l| l.get(key)).cloned();
    label(found, MANAGED_BY_LABEL).is_some()
        && LABELS.iter().all(|key| label(found, key) == label(wanted, key))
}

fn is_managed(meta: &ObjectMeta) -> bool {
    let managers = meta.managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
    managers.into_iter().any(|manager| manager.starts_with(MANAGERS))
}

fn belongs(controller: Option<&(String, String)>) -> String {
    controller.map_or_else(
        || "was not made by this operator for this object".to_owned(),
        |(kind, name)| format!("belongs to {kind} {name}"),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
    use serde_json::json;

    use super::*;

    fn wanted() -> ObjectMeta {
        serde_json::from_value(json!({
            "name": "default",
            "labels": { MANAGED_BY_LABEL: "pinhole-operator", GATEWAY_LABEL: "default", "app": "x" },
            "ownerReferences": [owner("pinhole.dev/v1alpha1", "VPNGateway", "default", "1")],
        }))
        .unwrap()
    }

    fn owner(api: &str, kind: &str, name: &str, uid: &str) -> serde_json::Value {
        json!({ "apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": true })
    }

    fn found(meta: &serde_json::Value) -> Result<(), Foreign> {
        let found = serde_json::from_value(meta.clone()).unwrap();
        check(ObjectKind::ServiceAccount, &found, &wanted())
    }

    #[test]
    fn the_service_account_of_a_namespace_is_not_a_gateways() {
        let foreign = found(&json!({ "name": "default", "uid": "7" })).unwrap_err();
        let text = remedy(&[foreign]);
        for part in ["ServiceAccount default", "leaves it alone", "another name"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_a_gateway_owns_is_its_own_also_when_it_was_made_anew() {
        for uid in ["1", "2"] {
            let owned = json!({ "ownerReferences": [owner("pinhole.dev/v1", "VPNGateway", "default", uid)] });
            assert_eq!(found(&owned), Ok(()), "{uid}");
        }
    }

    #[test]
    fn another_owner_makes_it_foreign_whatever_its_labels_say() {
        for (api, kind, name) in [
            ("pinhole.dev/v1alpha1", "VPNGateway", "other"),
            ("pinhole.dev/v1alpha1", "VPNClientPool", "default"),
            ("apps/v1", "VPNGateway", "default"),
            ("v1", "VPNGateway", "default"),
        ] {
            let owned = json!({
                "labels": { MANAGED_BY_LABEL: "pinhole-operator", GATEWAY_LABEL: "default" },
                "ownerReferences": [owner(api, kind, name, "1")],
                "managedFields": [{ "manager": "pinhole-operator-gateway", "operation": "Apply" }],
            });
            let text = found(&owned).unwrap_err().to_string();
            assert!(text.contains(&format!("belongs to {kind} {name}")), "{text}");
        }
    }

    #[test]
    fn what_was_orphaned_is_known_by_its_labels_and_its_field_manager_together() {
        let orphan = |gateway: &str, manager: &str| {
            json!({
                "labels": { MANAGED_BY_LABEL: "pinhole-operator", GATEWAY_LABEL: gateway },
                "managedFields": [{ "manager": manager, "operation": "Apply" }],
            })
        };
        assert_eq!(found(&orphan("default", "pinhole-operator-gateway")), Ok(()));
        assert!(found(&orphan("default", "helm")).is_err());
        assert!(found(&orphan("other", "pinhole-operator-gateway")).is_err());
        let mut unlabelled = orphan("default", "pinhole-operator-gateway");
        unlabelled.as_object_mut().unwrap().remove("labels");
        assert!(found(&unlabelled).is_err());
    }

    #[test]
    fn a_reference_that_controls_nothing_is_no_proof() {
        let mut reference = owner("pinhole.dev/v1alpha1", "VPNGateway", "default", "1");
        reference["controller"] = json!(false);
        assert!(found(&json!({ "ownerReferences": [reference] })).is_err());
    }

    fn entry(manager: &str, operation: &str, subresource: Option<&str>) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: Some(manager.into()),
            operation: Some(operation.into()),
            subresource: subresource.map(Into::into),
            fields_v1: Some(FieldsV1(json!({ "f:spec": {} }))),
            ..ManagedFieldsEntry::default()
        }
    }

    fn managed(entries: &[ManagedFieldsEntry]) -> ObjectMeta {
        ObjectMeta { managed_fields: Some(entries.to_vec()), ..ObjectMeta::default() }
    }

    #[test]
    fn what_was_created_becomes_what_was_applied() {
        let others = entry("kube-controller-manager", "Update", Some("status"));
        let created = managed(&[entry(CREATOR, "Update", None), others.clone()]);
        let expected = vec![others.clone(), entry("m", "Apply", None)];
        assert_eq!(adopted(&created, "m"), Some(expected.clone()));
        assert_eq!(adopted(&managed(&expected), "m"), None, "once");
        let both = managed(&[entry(CREATOR, "Update", None), entry("m", "Apply", None)]);
        assert_eq!(adopted(&both, "m"), Some(vec![entry("m", "Apply", None)]));
        assert_eq!(adopted(&ObjectMeta::default(), "m"), None);
    }
}
