//! A look at the NetworkPolicy of a gateway's pods.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use pinhole_crds::VPNGateway;

use super::context::Context;
use crate::{
    controllers::runtime::{
        error::{ControlError, call},
        index::Name,
    },
    fleet::GatewayKey,
    plan::{ObjectKind, network_policy, network_policy_name},
};

impl Context {
    /// The NetworkPolicy of the gateway's pods: made, or removed where none is wanted any more.
    pub(super) async fn gateway_traffic(
        &self,
        gateway: &VPNGateway,
        manager: &'static str,
    ) -> Result<(), ControlError> {
        let key = GatewayKey::from(gateway);
        let (pools, is_held) = {
            let index = self.shared.index();
            let name: Name = (key.namespace.clone(), network_policy_name(&key.name));
            let exists = index.marker(ObjectKind::NetworkPolicy, &name).is_some();
            (index.pools_of(&key), exists && index.holding_pool_of(&key).is_some())
        };
        // Made of fewer pools it would let less out than what the gateway's clients reach.
        if is_held {
            return Ok(());
        }
        match network_policy(gateway, pools.iter().map(AsRef::as_ref), &self.settings) {
            Some(policy) => self.applier.apply(&policy, manager).await.map(drop),
            None => self.remove_policy(gateway, (key.namespace, network_policy_name(&key.name))).await,
        }
    }

    async fn remove_policy(&self, gateway: &VPNGateway, name: Name) -> Result<(), ControlError> {
        if self.shared.index().marker(ObjectKind::NetworkPolicy, &name).is_none() {
            return Ok(());
        }
        let api: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), &name.0);
        let what = || format!("removing NetworkPolicy {}/{}", name.0, name.1);
        let Some(found) = call(what, api.get_metadata_opt(&name.1)).await? else { return Ok(()) };
        if !found.owner_references().iter().any(|owner| Some(&owner.uid) == gateway.metadata.uid.as_ref()) {
            return Ok(());
        }
        let preconditions = Preconditions { uid: found.uid(), resource_version: found.resource_version() };
        let params = DeleteParams::default().preconditions(preconditions);
        match call(what, api.delete(&name.1, &params)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => {
                self.applier.forget(ObjectKind::NetworkPolicy, &name);
                Ok(())
            }
        }
    }
}
