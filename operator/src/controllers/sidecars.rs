use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{context::Context, error::ControlError};
use crate::plan::{MANAGED_BY, MANAGED_BY_LABEL, Object};

/// ConfigMap, in the operator's namespace, that the sidecar policy reads.
const NAME: &str = "pinhole-sidecars";

const MANAGER: &str = "pinhole-operator-sidecars";

impl Context {
    /// Tells the sidecar policy which authority sidecars trust, and which image they run.
    pub(super) async fn sidecar_parameters(&self) -> Result<(), ControlError> {
        let labels = [(MANAGED_BY_LABEL, MANAGED_BY), ("app.kubernetes.io/part-of", "pinhole")];
        let parameters = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(self.settings.namespace.clone()),
                labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                ("ca.crt".to_owned(), self.ca_pem()),
                ("image".to_owned(), self.settings.gateway_image.clone()),
            ])),
            ..ConfigMap::default()
        };
        self.applier.apply(&Object::ConfigMap(parameters), MANAGER).await.map(drop)
    }
}
