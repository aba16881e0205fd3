//! A VPN as a user declares it: a namespace with a gateway, pools and clients.

use std::{fmt, net::IpAddr, time::Duration};

use kube::{Api, api::ListParams};
use pinhole_crds::{ClientPhase, VPNClient, VPNClientPool, VPNGateway};

use crate::{error::Result, lab::Lab, process::Command, setup::rust, wait};

/// How long anything that the operator does may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How a gateway is exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// A Service of type NodePort.
    NodePort,
    /// A Service of type LoadBalancer.
    LoadBalancer,
    /// Ports of the node: tunnel and session.
    HostPort(u16, u16),
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodePort => f.write_str("exposure: { type: NodePort }"),
            Self::LoadBalancer => f.write_str("exposure: { type: LoadBalancer }"),
            Self::HostPort(tunnel, session) => write!(
                f,
                "exposure: {{ type: HostPort }}\n  ports: {{ tunnel: {tunnel}, session: {session} }}"
            ),
        }
    }
}

/// A namespace with a gateway named `edge`.
#[derive(Debug)]
pub struct Vpn<'a> {
    lab: &'a Lab,
    namespace: String,
}

impl<'a> Vpn<'a> {
    /// Declares the namespace and its gateway; `more` are further lines of the gateway's spec.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn declare(lab: &'a Lab, namespace: &str, exposure: Exposure, more: &str) -> Result<Self> {
        let vpn = Self { lab, namespace: namespace.to_owned() };
        lab.apply(&format!(
            r#"
{{ "apiVersion": "v1", "kind": "Namespace", "metadata": {{ "name": "{namespace}" }} }}
---
apiVersion: pinhole.dev/v1alpha1
kind: VPNGateway
metadata: {{ name: edge, namespace: {namespace} }}
spec:
  {exposure}
  {more}
"#
        ))
        .await?;
        Ok(vpn)
    }

    /// One that was declared by other means.
    pub fn declared(lab: &'a Lab, namespace: &str) -> Self {
        Self { lab, namespace: namespace.to_owned() }
    }

    /// The lab that it lives in.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Declares a pool of the gateway, with a join token `any` of unlimited use; `more` are further lines of its
    /// spec.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn pool(&self, name: &str, cidrs: &str, more: &str) -> Result<()> {
        self.apply(&format!(
            "kind: VPNClientPool\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  gatewayRef: {{ name: edge }}\n  \
             cidrs: {cidrs}\n  {more}\n",
            namespace = self.namespace
        ))
        .await
    }

    /// Applies an object of `pinhole.dev/v1alpha1`, given from its kind on.
    ///
    /// # Errors
    /// When the API server refuses; the error holds its words.
    pub async fn apply(&self, object: &str) -> Result<()> {
        self.lab.apply(&format!("apiVersion: pinhole.dev/v1alpha1\n{object}")).await.map(drop)
    }

    /// Runs `kubectl -n NAMESPACE`.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.lab.kubectl(["-n", &self.namespace].iter().chain(args)).await
    }

    /// Runs the plugin, as `kubectl pinhole -n NAMESPACE` does.
    ///
    /// # Errors
    /// What it says.
    pub async fn plugin(&self, args: &[&str]) -> Result<String> {
        let plugin = rust::binaries().await?.kubectl;
        let command = Command::new(plugin).env("KUBECONFIG", self.lab.cluster().kubeconfig());
        command.args(["-n", &self.namespace]).args(args).run().await
    }

    /// The join string of a token, once the gateway is Ready: by then all of its addresses are in it.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn join(&self, pool: &str, token: &str) -> Result<String> {
        self.condition("vgw/edge", "Ready", "True", "*").await?;
        let secret = format!("{pool}-token-{token}");
        let args = ["get", "secret", &secret, "-o", "go-template={{ .data.join | base64decode }}"];
        wait::until(&format!("the join string of {secret}"), PATIENCE, || async {
            let text = self.kubectl(&args).await.map_err(|error| error.to_string())?;
            if text.starts_with("pinhole:") { Ok(text) } else { Err("it has none yet".to_owned()) }
        })
        .await
    }

    /// The gateway.
    pub fn gateways(&self) -> Api<VPNGateway> {
        Api::namespaced(self.lab.client(), &self.namespace)
    }

    /// The pools.
    pub fn pools(&self) -> Api<VPNClientPool> {
        Api::namespaced(self.lab.client(), &self.namespace)
    }

    /// The clients.
    pub fn clients(&self) -> Api<VPNClient> {
        Api::namespaced(self.lab.client(), &self.namespace)
    }

    /// The client whose machine called itself `hostname`, or a stock client of that name, once `seen` likes it.
    ///
    /// # Errors
    /// When that does not happen in `limit`; the error holds the status seen last.
    pub async fn client(
        &self,
        hostname: &str,
        what: &str,
        limit: Duration,
        seen: impl Fn(&VPNClient) -> bool,
    ) -> Result<VPNClient> {
        wait::until(&format!("client {hostname} {what}"), limit, || async {
            let list =
                self.clients().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let client = list.items.into_iter().find(|client| is_named(client, hostname));
            let client = client.ok_or_else(|| "there is no such VPNClient".to_owned())?;
            if seen(&client) { Ok(client) } else { Err(format!("its status is {:?}", client.status)) }
        })
        .await
    }

    /// The client of `hostname` once it is in `phase`.
    ///
    /// # Errors
    /// As [`Vpn::client`].
    pub async fn client_in(&self, hostname: &str, phase: ClientPhase, limit: Duration) -> Result<VPNClient> {
        let in_phase =
            |client: &VPNClient| client.status.as_ref().and_then(|status| status.phase) == Some(phase);
        self.client(hostname, &format!("to be {phase:?}"), limit, in_phase).await
    }

    /// Waits until the condition of a kind's object has this status and reason (`*` for any).
    ///
    /// # Errors
    /// When that does not happen in time; the error holds the conditions seen last.
    pub async fn condition(&self, object: &str, type_: &str, status: &str, reason: &str) -> Result<()> {
        let path = format!(
            "jsonpath={{range .status.conditions[?(@.type==\"{type_}\")]}}{{.status}} {{.reason}} {{.message}}{{end}}"
        );
        let what = format!("{object} to be {type_}={status} ({reason})");
        wait::until(&what, PATIENCE, || async {
            let seen =
                self.kubectl(&["get", object, "-o", &path]).await.map_err(|error| error.to_string())?;
            let mut words = seen.split_whitespace();
            let fits = words.next() == Some(status) && (reason == "*" || words.next() == Some(reason));
            if fits { Ok(()) } else { Err(format!("it says {seen:?}")) }
        })
        .await
    }

    /// An inner address of the gateway: the first of the pool's first prefix.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub async fn gateway_address(&self, pool: &str) -> Result<IpAddr> {
        let pools = self.pools();
        let pool = wait::until("the pool", PATIENCE, || pools.get(pool)).await?;
        let first = pool.spec.cidrs.first().and_then(|cidr| cidr.hosts().next());
        first.ok_or_else(|| crate::Error::Invalid("the pool has no prefix".to_owned()))
    }

    /// Deletes the namespace and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go: a finalizer hangs.
    pub async fn delete(self) -> Result<()> {
        self.lab.kubectl(["delete", "namespace", &self.namespace, "--timeout=90s"]).await.map(drop)
    }
}

fn is_named(client: &VPNClient, hostname: &str) -> bool {
    let enrolled = client.spec.enrolment.as_ref().and_then(|enrolment| enrolment.hostname.as_deref());
    enrolled == Some(hostname) || client.metadata.name.as_deref() == Some(hostname)
}
