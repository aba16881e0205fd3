//! A look at what the sidecar policy reads.

use kube::core::ObjectMeta;
use pinhole_crds::{SidecarTrust, SidecarTrustSpec};

use super::context::Context;
use crate::{
    controllers::runtime::error::ControlError,
    plan::{MANAGED_BY, MANAGED_BY_LABEL, Object},
};

/// Name, in the operator's namespace, that the sidecar policy reads it by.
const NAME: &str = "pinhole";

const MANAGER: &str = "pinhole-operator-sidecars";

impl Context {
    /// Tells the sidecar policy which authority sidecars trust.
    pub(super) async fn sidecar_parameters(&self) -> Result<(), ControlError> {
        let labels = [(MANAGED_BY_LABEL, MANAGED_BY), ("app.kubernetes.io/part-of", "pinhole")];
        let trust = SidecarTrust {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(self.settings.namespace.clone()),
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                ..ObjectMeta::default()
            },
            spec: SidecarTrustSpec { ca_bundle: self.ca_pem() },
        };
        self.applier.apply(&Object::SidecarTrust(trust), MANAGER).await.map(drop)
    }
}
