//! Kinds of objects that the operator makes.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::{ApiResource, TypeMeta};
use pinhole_crds::SidecarTrust;

/// Kinds of objects that the operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy/v1` PodDisruptionBudget.
    PodDisruptionBudget,
    /// `v1` Secret.
    Secret,
    /// `v1` Service.
    Service,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `pinhole.dev/v1alpha1` SidecarTrust.
    SidecarTrust,
    /// `apps/v1` StatefulSet.
    StatefulSet,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ConfigMap,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::Secret,
        Self::Service,
        Self::ServiceAccount,
        Self::SidecarTrust,
        Self::StatefulSet,
    ];

    /// How the API names it.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::SidecarTrust => ApiResource::erase::<SidecarTrust>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        }
    }

    /// Its type, as objects carry it.
    pub fn type_meta(self) -> TypeMeta {
        let resource = self.resource();
        TypeMeta { api_version: resource.api_version, kind: resource.kind }
    }
}

/// An object that should exist.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A ConfigMap.
    ConfigMap(ConfigMap),
    /// A NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// A PodDisruptionBudget.
    PodDisruptionBudget(PodDisruptionBudget),
    /// A Secret.
    Secret(Secret),
    /// A Service.
    Service(Box<Service>),
    /// A ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// A SidecarTrust.
    SidecarTrust(SidecarTrust),
    /// A StatefulSet.
    StatefulSet(Box<StatefulSet>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::ConfigMap(_) => ObjectKind::ConfigMap,
            Self::NetworkPolicy(_) => ObjectKind::NetworkPolicy,
            Self::PodDisruptionBudget(_) => ObjectKind::PodDisruptionBudget,
            Self::Secret(_) => ObjectKind::Secret,
            Self::Service(_) => ObjectKind::Service,
            Self::ServiceAccount(_) => ObjectKind::ServiceAccount,
            Self::SidecarTrust(_) => ObjectKind::SidecarTrust,
            Self::StatefulSet(_) => ObjectKind::StatefulSet,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::ConfigMap(o) => &o.metadata,
            Self::NetworkPolicy(o) => &o.metadata,
            Self::PodDisruptionBudget(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::ServiceAccount(o) => &o.metadata,
            Self::SidecarTrust(o) => &o.metadata,
            Self::StatefulSet(o) => &o.metadata,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    /// As the API takes it.
    pub fn to_value(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::ConfigMap(o) => serde_json::to_value(o),
            Self::NetworkPolicy(o) => serde_json::to_value(o),
            Self::PodDisruptionBudget(o) => serde_json::to_value(o),
            Self::Secret(o) => serde_json::to_value(o),
            Self::Service(o) => serde_json::to_value(o),
            Self::ServiceAccount(o) => serde_json::to_value(o),
            Self::SidecarTrust(o) => serde_json::to_value(o),
            Self::StatefulSet(o) => serde_json::to_value(o),
        }
    }
}
