//! Uninstalling, in any order, never hangs and leaves nothing but what `crds.keep` says.

use anyhow::ensure;
use pinhole_e2e::{
    Lab,
    device::Device,
    installation::{Installation, NAMESPACE},
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![uninstalling_first_or_last_leaves_nothing_but_the_kinds];

async fn uninstalling_first_or_last_leaves_nothing_but_the_kinds(lab: &Lab) -> Outcome {
    let (_alone, installation) = product::alone(lab).await?;
    for operator_first in [true, false] {
        let name = if operator_first { "gone-first" } else { "gone-last" };
        let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
        vpn.pool("staff", "[10.98.0.0/24]", "enrolment: { tokens: [{ name: any }] }").await?;
        let join = vpn.join("staff", "any").await?;
        let mut device = Device::new(lab.nat_host(name, NatProfile::home()).await?).await?;
        device.up(&join).await?;
        device.down().await?;
        let transit = product::Transit::begin(lab)?;
        if operator_first {
            Installation::uninstall(lab).await?;
        }
        vpn.kubectl(&["delete", "vpngateways,vpnclientpools,vpnclients", "--all", "--timeout=60s"]).await?;
        // Garbage collection does the rest, with or without an operator.
        wait::until("everything that belonged to the VPN to go", PATIENCE, || async {
            let kinds = "pods,services,endpointslices,secrets,configmaps,statefulsets,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,vpnclients";
            let left = vpn.kubectl(&["get", kinds, "-o", "name"]).await.map_err(|error| error.to_string())?;
            let ours: Vec<_> = left
                .lines()
                .filter(|name| !["configmap/kube-root-ca.crt", "serviceaccount/default"].contains(name))
                .collect();
            if ours.is_empty() { Ok(()) } else { Err(ours.join(" ")) }
        })
        .await?;
        if !operator_first {
            Installation::uninstall(lab).await?;
        }
        vpn.delete().await?;
        let kinds = lab.kubectl(["get", "crds", "-o", "name"]).await?;
        ensure!(kinds.lines().filter(|kind| kind.ends_with(".pinhole.dev")).count() == 4, "{kinds}");
        for kind in [
            "clusterroles",
            "clusterrolebindings",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ] {
            let left = lab.kubectl(["get", kind, "-o", "name"]).await?;
            let left: Vec<_> = left.lines().filter(|name| name.contains("pinhole")).collect();
            ensure!(left.is_empty(), "{left:?} stayed");
        }
        lab.kubectl(["delete", "namespace", NAMESPACE, "--timeout=60s"]).await?;
        installation.clone().apply(lab, &[]).await?;
        transit.end(lab)?;
    }
    Ok(())
}
