//! A look at what the sidecar policy reads.

use std::sync::PoisonError;

use kube::core::ObjectMeta;
use pinhole_crds::{SidecarTrust, SidecarTrustSpec};

use super::context::Context;
use crate::{
    controllers::runtime::{error::ControlError, request::Request},
    plan::{MANAGED_BY, MANAGED_BY_LABEL, Object, SidecarTrustObstacle, SidecarTrustWrite, obstacle_after},
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
        let result = self.applier.apply(&Object::SidecarTrust(trust), MANAGER).await.map(drop);
        self.remember_sidecar_trust(result.as_ref().err());
        result
    }

    /// Why the SidecarTrust is not as it should be.
    pub(super) fn sidecar_trust_obstacle(&self) -> Option<SidecarTrustObstacle> {
        self.sidecar_trust.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pools that take sidecars say it in their conditions.
    fn remember_sidecar_trust(&self, error: Option<&ControlError>) {
        let namespace = &self.settings.namespace;
        let write = error.map_or(SidecarTrustWrite::Done, |error| failed_write(error, namespace));
        let mut known = self.sidecar_trust.lock().unwrap_or_else(PoisonError::into_inner);
        let obstacle = obstacle_after(known.clone(), write);
        if *known == obstacle {
            return;
        }
        *known = obstacle;
        drop(known);
        let pools: Vec<Request> = self.shared.index().pools_with_sidecars().map(Request::Pool).collect();
        self.shared.raise_work(pools);
    }
}

fn failed_write(error: &ControlError, namespace: &str) -> SidecarTrustWrite {
    let namespace = namespace.to_owned();
    let foreign = if let ControlError::Foreign(foreign) = error { foreign.first() } else { None };
    if let Some(foreign) = foreign.cloned() {
        return SidecarTrustWrite::Obstacle(SidecarTrustObstacle::Taken { foreign, namespace });
    }
    // Without its definition the API server knows no such object.
    let reason = error.lasting().or_else(|| error.is_not_found().then(|| error.category()));
    let obstacle = reason.map(|reason| {
        let said = error.to_string();
        SidecarTrustObstacle::Refused { reason, said, namespace }
    });
    obstacle.map_or(SidecarTrustWrite::Failed, SidecarTrustWrite::Obstacle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Foreign, ObjectKind};

    fn refused(code: u16) -> ControlError {
        let status = kube::core::Status { code, message: "no".into(), ..kube::core::Status::default() };
        ControlError::Api { what: "making it".into(), source: Box::new(kube::Error::Api(status.boxed())) }
    }

    #[test]
    fn what_does_not_pass_by_itself_is_in_the_way_and_what_may_is_not() {
        let foreign = Foreign { kind: ObjectKind::SidecarTrust, name: NAME.into(), controller: None };
        let errors = [ControlError::Foreign(vec![foreign]), refused(403), refused(404), refused(422)];
        let reasons = errors.map(|error| match failed_write(&error, "ops") {
            SidecarTrustWrite::Obstacle(obstacle) => obstacle.category(),
            other => panic!("{other:?}"),
        });
        assert_eq!(reasons, ["ObjectTaken", "Forbidden", "NotFound", "Invalid"]);
        let passing = [refused(409), refused(429), refused(503), ControlError::Timeout { what: "it".into() }];
        for error in passing {
            assert_eq!(failed_write(&error, "ops"), SidecarTrustWrite::Failed, "{error}");
        }
    }
}
