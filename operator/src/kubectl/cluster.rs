//! The cluster that the command line means.

use std::{fmt::Debug, future::Future, time::Duration};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Secret};
use kube::{
    Api, Client, Config, Resource,
    api::{ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::PartialObjectMeta,
};
use pinhole_crds::{Lenient, Raw, VPNClient, VPNClientPool};
use pinhole_proto::is_object_name;
use serde::de::DeserializeOwned;

use super::{Args, PluginError};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: u32 = 500;
const FIELD_MANAGER: &str = "kubectl-pinhole";

/// The cluster that the command line means.
pub(super) struct Cluster {
    client: Client,
    /// Namespace of the command line, else of the context.
    pub(super) namespace: String,
}

impl Cluster {
    pub(super) async fn connect(args: &Args) -> Result<Self, PluginError> {
        let invalid = |error: &dyn std::error::Error| PluginError::Kubeconfig(error.to_string());
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let file = match &args.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let mut config = Config::from_custom_kubeconfig(file.map_err(|e| invalid(&e))?, &options)
            .await
            .map_err(|e| invalid(&e))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)?;
        Ok(Self { client, namespace })
    }

    /// The clients of the namespace, or of all when None, in pages.
    pub(super) async fn clients(&self, namespace: Option<&str>) -> Result<Vec<VPNClient>, PluginError> {
        let api: Api<Raw<VPNClient>> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut all = vec![];
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = match bounded(api.list(&params)).await {
                // The API server answers 404 for a kind that it does not serve.
                Err(Failure::Api(kube::Error::Api(status))) if status.code == 404 => {
                    return Err(PluginError::NotInstalled);
                }
                other => other?,
            };
            // Of one that is newer than this program, what it knows; `kubectl get` shows it all.
            all.extend(page.items.into_iter().filter_map(|raw| Some(raw.read(None).ok()?.object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    pub(super) async fn client(&self, name: &str) -> Result<VPNClient, PluginError> {
        self.read("VPNClient", name, "see `kubectl pinhole clients`").await
    }

    pub(super) async fn pool(&self, name: &str) -> Result<VPNClientPool, PluginError> {
        self.read("VPNClientPool", name, "see `kubectl get vpnclientpools`").await
    }

    pub(super) async fn secret(&self, name: &str) -> Result<Secret, PluginError> {
        self.get("Secret", name, "the operator has not made it yet, or you may not read it").await
    }

    /// Sets or clears `spec.suspended`.
    pub(super) async fn suspend(&self, name: &str, suspended: bool) -> Result<(), PluginError> {
        // What comes back may hold what is not understood.
        let api: Api<PartialObjectMeta<VPNClient>> = Api::namespaced(self.client.clone(), &self.namespace);
        let value = if suspended { serde_json::Value::Bool(true) } else { serde_json::Value::Null };
        let patch = serde_json::json!({ "spec": { "suspended": value } });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        bounded(api.patch(name, &params, &Patch::Merge(&patch))).await?;
        Ok(())
    }

    /// What this program knows of an object that may be newer than it.
    async fn read<K: Lenient<Scope = NamespaceResourceScope> + Clone + Debug>(
        &self,
        kind: &'static str,
        name: &str,
        hint: &str,
    ) -> Result<K, PluginError> {
        let raw: Raw<K> = self.get(kind, name, hint).await?;
        let newer = |why| {
            PluginError::Unsuitable(format!("{kind} {name}: {why}; use the kubectl-pinhole of the operator"))
        };
        Ok(raw.read(None).map_err(newer)?.object)
    }

    async fn get<K>(&self, kind: &'static str, name: &str, hint: &str) -> Result<K, PluginError>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        // Another name would be another path of the API, and there is no such object.
        let found = if is_object_name(name) { bounded(api.get_opt(name)).await? } else { None };
        found.ok_or_else(|| PluginError::NotFound {
            kind,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            hint: hint.to_owned(),
        })
    }
}

enum Failure {
    Api(kube::Error),
    Timeout,
}

impl From<Failure> for PluginError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Api(error) => error.into(),
            Failure::Timeout => Self::Unreachable(format!("no answer within {CALL_TIMEOUT:?}")),
        }
    }
}

async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(Failure::Api),
        Err(_) => Err(Failure::Timeout),
    }
}
