/// What the operator was started with and gateways need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace that the operator runs in.
    pub namespace: String,
    /// Service at which gateways reach the operator.
    pub service_name: String,
    /// TCP port of that Service's link.
    pub service_port: u16,
    /// Image of gateways that name none.
    pub gateway_image: String,
}

impl Settings {
    /// URL at which gateways reach the operator.
    pub fn operator_url(&self) -> String {
        format!("https://{}.{}.svc:{}", self.service_name, self.namespace, self.service_port)
    }
}
