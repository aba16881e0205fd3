//! Removes pods whose nodes are lost, where the user wants that.

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::events::EventType,
};
use pinhole_crds::VPNGateway;

use super::{
    context::{Context, Wait},
    gateway::Seen,
};
use crate::{
    controllers::runtime::error::{ControlError, call},
    plan::{LostPod, lost_pods},
};

impl Context {
    /// Removes the gateway's pods that are lost for good. What it waits for when none is yet.
    pub(super) async fn remove_lost_pods(
        &self,
        gateway: &VPNGateway,
        seen: &Seen,
    ) -> Result<Wait, ControlError> {
        if gateway.spec.pod.as_ref().and_then(|pod| pod.remove_after_node_loss).is_none() {
            return Ok(None);
        }
        let nodes = self.shared.index().nodes_of(&seen.pods);
        let (lost, wait) = lost_pods(gateway, &seen.pods, &nodes, &seen.view, Timestamp::now());
        for pod in lost {
            self.remove_lost_pod(gateway, &pod).await?;
        }
        Ok(wait)
    }

    async fn remove_lost_pod(&self, gateway: &VPNGateway, pod: &LostPod) -> Result<(), ControlError> {
        let namespace = gateway.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        // Nobody is there to end it in an orderly way.
        let params = DeleteParams::default().preconditions(preconditions).grace_period(0);
        let what = || format!("removing pod {namespace}/{}", pod.name);
        let (reason, note) = match call(what, api.delete(&pod.name, &params)).await {
            Ok(_) => {
                let note = format!(
                    "pod {} was removed by force: nobody hears of its node {}. If that node runs still, end the pod there",
                    pod.name, pod.node
                );
                ("LostPodRemoved", note)
            }
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            // Its status says that the node is lost; the rest of the gateway must not wait for this.
            Err(error) if error.lasting().is_some() => {
                ("LostPodNotRemoved", format!("{error}: set rbac.removeLostPods in the chart"))
            }
            Err(error) => return Err(error),
        };
        self.events.tell(gateway, EventType::Warning, (reason, &pod.name), &note);
        Ok(())
    }
}
