//! What the demo puts into the cluster, and clears away where the cluster stays.

use std::{net::IpAddr, time::Duration};

use pinhole_crds::{VPNClient, VPNClientPool, VPNGateway};

use super::{NAMESPACE, error::Error};
use crate::{
    error::Result,
    installation::{self, Installation, RELEASE},
    lab::Lab,
    progress,
    project::Images,
    wait,
};

const SAMPLE: &str = include_str!("sample.yaml");
/// The pool and the token in the sample.
const TOKEN_SECRET: &str = "staff-token-laptops";
const PATIENCE: Duration = Duration::from_mins(1);
/// A pod that is just there, for a cluster that pulls its images.
const PAUSE: &str = "registry.k8s.io/pause:3.10";

/// Something that was not there before the demo.
#[derive(Debug, Clone, Copy)]
enum Made {
    Definitions,
    Namespace(&'static str),
    Release,
}

/// Keeps book of what was made, in order.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    made: Vec<Made>,
}

impl Stage {
    /// Installs Pinhole. In a cluster of somebody else an installation that is there is used as it is.
    pub(crate) async fn install(&mut self, lab: &Lab) -> Result<Images> {
        let listed = lab.helm(["list", "--namespace", installation::NAMESPACE, "--short"]).await?;
        let installed = listed.lines().any(|release| release == RELEASE);
        if installed && !lab.is_own() {
            progress::say("Pinhole is installed already, and used as it is.");
            return Images::provide(lab).await;
        }
        if !installed {
            self.note_installation(lab).await?;
        }
        Ok(Installation::install(lab, &[]).await?.images)
    }

    async fn note_installation(&mut self, lab: &Lab) -> Result<()> {
        let args = ["get", "crd", "--ignore-not-found", "-o", "name"].into_iter();
        if lab.kubectl(args.chain(definitions())).await?.trim().is_empty() {
            self.made.push(Made::Definitions);
        }
        if !exists(lab, installation::NAMESPACE).await? {
            self.made.push(Made::Namespace(installation::NAMESPACE));
        }
        self.made.push(Made::Release);
        Ok(())
    }

    /// Makes the namespace, and in it a pod to ping; yields the pod's address.
    pub(crate) async fn prepare(&mut self, lab: &Lab) -> Result<IpAddr, Error> {
        if exists(lab, NAMESPACE).await? {
            return Err(Error::Occupied(NAMESPACE));
        }
        self.made.push(Made::Namespace(NAMESPACE));
        lab.kubectl(["create", "namespace", NAMESPACE]).await?;
        // Gateways need NET_ADMIN and /dev/net/tun.
        let privileged = "pod-security.kubernetes.io/enforce=privileged";
        lab.kubectl(["label", "namespace", NAMESPACE, privileged]).await?;
        let image = if lab.is_own() { crate::cluster::PAUSE_IMAGE } else { PAUSE };
        // With a restart the address would change.
        lab.kubectl([
            "-n",
            NAMESPACE,
            "run",
            "target",
            "--restart=Never",
            "--image-pull-policy=IfNotPresent",
            "--image",
            image,
        ])
        .await?;
        let address = wait::until("the pod to ping to run", PATIENCE, || async {
            let path = "jsonpath={.status.phase} {.status.podIP}";
            let said = lab.kubectl(["-n", NAMESPACE, "get", "pod", "target", "-o", path]).await;
            let said = said.map_err(|error| error.to_string())?;
            let address = said.strip_prefix("Running ").and_then(|address| address.parse::<IpAddr>().ok());
            address.ok_or_else(|| format!("it is {said:?}"))
        });
        Ok(progress::step("starting a pod to ping", address).await?)
    }

    /// Clears away what was made, the last thing first, where the cluster itself does not go. Goes on after a
    /// failure, and yields the first.
    pub(crate) async fn clear(&mut self, lab: &Lab) -> Result<()> {
        let cluster_goes = lab.is_own() && lab.is_mine();
        let mut outcome = Ok(());
        while let Some(made) = self.made.pop() {
            if !cluster_goes {
                outcome = outcome.and(progress::step("clearing the cluster", clear(lab, made)).await);
            }
        }
        outcome
    }
}

async fn clear(lab: &Lab, made: Made) -> Result<()> {
    let delete = ["delete", "--ignore-not-found", "--timeout=60s"].into_iter();
    match made {
        Made::Namespace(name) => lab.kubectl(delete.chain(["namespace", name])).await,
        Made::Definitions => lab.kubectl(delete.chain(["crd"]).chain(definitions())).await,
        Made::Release => {
            let from = ["--namespace", installation::NAMESPACE];
            let args = ["uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout", "60s"];
            lab.helm(args.into_iter().chain(from)).await
        }
    }
    .map(drop)
}

fn definitions() -> [&'static str; 3] {
    use kube::CustomResourceExt as _;
    [VPNGateway::crd_name(), VPNClientPool::crd_name(), VPNClient::crd_name()]
}

async fn exists(lab: &Lab, namespace: &str) -> Result<bool> {
    let args = ["get", "namespace", namespace, "--ignore-not-found", "-o", "name"];
    Ok(!lab.kubectl(args).await?.trim().is_empty())
}

/// Gateway and pool, with a route to `target` and nothing else.
pub(crate) fn sample(target: IpAddr) -> String {
    let (route, pool) = match target {
        IpAddr::V4(address) => (format!("{address}/32"), "10.77.0.0/24"),
        IpAddr::V6(address) => (format!("'{address}/128'"), "'fd77::/64'"),
    };
    SAMPLE.replace("POD/32", &route).replace("10.77.0.0/24", pool)
}

/// The join string, once the operator has made it.
pub(crate) async fn join_string(lab: &Lab) -> Result<String> {
    let template = "go-template={{ .data.join | base64decode }}";
    let args = ["-n", NAMESPACE, "get", "secret", TOKEN_SECRET, "-o", template];
    wait::until(&format!("the join string of {TOKEN_SECRET}"), PATIENCE, || async {
        let text = lab.kubectl(args).await.map_err(|error| error.to_string())?;
        if text.starts_with("pinhole:") { Ok(text) } else { Err("it has none yet".to_owned()) }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_routes_the_pod_in_its_family() {
        let four = sample([10, 244, 0, 7].into());
        assert!(four.contains("routes: [10.244.0.7/32]") && four.contains("cidrs: [10.77.0.0/24]"), "{four}");
        let six = sample("fd00:244::7".parse().unwrap());
        assert!(six.contains("routes: ['fd00:244::7/128']") && six.contains("cidrs: ['fd77::/64']"), "{six}");
    }

    #[test]
    fn the_sample_is_a_gateway_and_a_pool_as_the_api_reads_them() {
        use serde::Deserialize;
        let text = sample([10, 244, 0, 7].into());
        let mut documents = serde_yaml::Deserializer::from_str(&text);
        let gateway = VPNGateway::deserialize(documents.next().unwrap()).unwrap();
        let pool = VPNClientPool::deserialize(documents.next().unwrap()).unwrap();
        assert_eq!(gateway.metadata.namespace.as_deref(), Some(NAMESPACE));
        assert_eq!(pool.spec.gateway_ref.name, gateway.metadata.name.unwrap());
        let token = &pool.spec.enrolment.unwrap().tokens[0].name;
        assert_eq!(format!("{}-token-{token}", pool.metadata.name.unwrap()), TOKEN_SECRET);
    }
}
