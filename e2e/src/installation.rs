//! Pinhole, installed into a cluster by its own chart, as a user does.

use std::time::Duration;

use crate::{
    error::Result,
    host::Host,
    lab::Lab,
    progress,
    project::Images,
    setup::{crate_dir, rust},
    wait,
};

/// Namespace of the operator.
pub const NAMESPACE: &str = "pinhole-system";

/// Name of the Helm release.
pub const RELEASE: &str = "pinhole";

const PATIENCE: Duration = Duration::from_mins(2);

/// Pinhole in a cluster.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The images in use.
    pub images: Images,
}

impl Installation {
    /// Builds and loads the images, and installs or upgrades the release; `values` are further `--set`s.
    ///
    /// # Errors
    /// When a build or helm fails, or the operator does not become ready.
    pub async fn install(lab: &Lab, values: &[&str]) -> Result<Self> {
        let images = Images::provide(lab).await?;
        Self { images }.apply(lab, values).await
    }

    /// Installs or upgrades the release with the images at hand.
    ///
    /// # Errors
    /// When helm fails, or the operator does not become ready.
    pub async fn apply(self, lab: &Lab, values: &[&str]) -> Result<Self> {
        let chart = crate_dir().join("../charts/pinhole");
        let mut args: Vec<String> = ["upgrade", "--install", RELEASE].map(str::to_owned).to_vec();
        args.push(chart.display().to_string());
        args.extend(["--namespace", NAMESPACE, "--create-namespace"].map(str::to_owned));
        let images = &self.images;
        for (name, repository) in
            [("operator", images.operator_repository()), ("agent", images.agent_repository())]
        {
            args.extend(["--set".to_owned(), format!("{name}.image.repository={repository}")]);
            args.extend(["--set".to_owned(), format!("{name}.image.tag={}", images.tag)]);
        }
        for value in values {
            args.extend(["--set".to_owned(), (*value).to_owned()]);
        }
        args.extend(["--wait".to_owned(), "--timeout".to_owned(), format!("{}s", PATIENCE.as_secs())]);
        progress::step("installing the chart", lab.helm(args)).await?;
        Ok(self)
    }

    /// Uninstalls the release and waits until its pods are gone. CRDs stay, as `crds.keep` says.
    ///
    /// # Errors
    /// When helm fails or something stays.
    pub async fn uninstall(lab: &Lab) -> Result<()> {
        let timeout = format!("{}s", PATIENCE.as_secs());
        let args = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", &timeout];
        progress::step("uninstalling the chart", lab.helm(args)).await.map(drop)
    }

    /// Names of the operator's pods that run.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn operators(lab: &Lab) -> Result<Vec<String>> {
        let args = [
            "get",
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            "app.kubernetes.io/name=pinhole-operator",
            "--field-selector=status.phase=Running",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ];
        Ok(lab.kubectl(args).await?.split_whitespace().map(str::to_owned).collect())
    }

    /// Name of the pod that leads.
    ///
    /// # Errors
    /// When none leads within a minute.
    pub async fn leader(lab: &Lab) -> Result<String> {
        let args =
            ["get", "lease", "pinhole-operator", "-n", NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"];
        wait::until("an operator that leads", Duration::from_mins(1), || async {
            let holder = lab.kubectl(args).await.map_err(|error| error.to_string())?;
            let running = Self::operators(lab).await.map_err(|error| error.to_string())?;
            let leads = |pod: &&String| holder.starts_with(pod.as_str());
            running.iter().find(leads).cloned().ok_or_else(|| format!("the lease is held by {holder:?}"))
        })
        .await
    }

    /// The agent's static binary on this machine, for hosts outside of the cluster.
    ///
    /// # Errors
    /// When it cannot be built.
    pub async fn agent() -> Result<std::path::PathBuf> {
        Ok(rust::binaries().await?.agent)
    }

    /// The agent for this host: one that sees its clock, where it has one of its own.
    ///
    /// # Errors
    /// When it cannot be built.
    pub async fn agent_for(host: &Host) -> Result<std::path::PathBuf> {
        if host.has_own_clock() { rust::linked_agent().await } else { Self::agent().await }
    }
}
