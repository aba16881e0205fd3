//! `SidecarTrust`: what the sidecar admission policy reads.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

// A kind of our own and no ConfigMap: the API server (1.36) watches parameters of built-in kinds through shared
// informers, which it stops with the last policy that wants them and never starts again. A policy that was
// uninstalled and installed anew would hand out the certificate authority of long ago.

/// What injected sidecars trust. Written by the operator, read by the sidecar admission policy; not for users.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "pinhole.dev",
    version = "v1alpha1",
    kind = "SidecarTrust",
    plural = "sidecartrusts",
    namespaced,
    derive = "PartialEq",
    doc = "What injected sidecars trust. Written by the operator, read by the sidecar admission policy; not for users."
)]
#[serde(rename_all = "camelCase")]
pub struct SidecarTrustSpec {
    /// Certificate authorities of the gateways, PEM.
    #[schemars(length(min = 1, max = 65536))]
    pub ca_bundle: String,
}
