//! What the operator was started with and gateways need to know.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;

use super::network::GatewayEgress;

/// What the operator was started with and gateways need to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Namespace that the operator runs in.
    pub namespace: String,
    /// Service at which gateways reach the operator.
    pub service_name: String,
    /// TCP port of that Service's link.
    pub service_port: u16,
    /// Image of gateways that name none.
    pub gateway_image: String,
    /// What the gateways' NetworkPolicies let out. None: gateways get no NetworkPolicy.
    pub gateway_policy: Option<GatewayEgress>,
    /// Who may scrape gateways' metrics where a NetworkPolicy is enforced.
    pub metrics_from: Vec<NetworkPolicyPeer>,
}

impl Settings {
    /// URL at which gateways reach the operator.
    pub fn operator_url(&self) -> String {
        format!("https://{}.{}.svc:{}", self.service_name, self.namespace, self.service_port)
    }
}
