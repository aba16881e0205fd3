//! Reads and writes what enrolment keeps in the cluster.

use std::{collections::BTreeMap, future::Future, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use pinhole_crds::{Lenient, Raw, VPNClient, VPNClientPool};
use serde_json::json;

use super::{KEY_LABEL, KeyHash, PublicKey, client::key_label};
use crate::{fleet::PoolKey, scope::Scope};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const FIELD_MANAGER: &str = "pinhole-operator-enrolment";

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The API server refused, or could not be reached.
    #[error("{doing}: {source}")]
    Api {
        /// What was being done.
        doing: &'static str,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{doing}: no answer from the API server within {CALL_TIMEOUT:?}")]
    Timeout {
        /// What was being done.
        doing: &'static str,
    },
    /// The same, of a question that several asked together.
    #[error(transparent)]
    Shared(std::sync::Arc<RecordsError>),
    /// What was read is not understood.
    #[error("{0}")]
    NotUnderstood(String),
    /// What should be written cannot be.
    #[error("{0}")]
    Encoding(String),
}

impl RecordsError {
    /// Low-cardinality name for metrics, events and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match **source {
                kube::Error::Api(ref status) if status.code == 403 => "ApiServerForbids",
                kube::Error::Api(ref status) if status.code < 500 && status.code != 429 => "ApiServerRefused",
                _ => "ApiServerUnavailable",
            },
            Self::Timeout { .. } => "ApiServerUnavailable",
            Self::Shared(error) => error.category(),
            Self::NotUnderstood(_) => "ObjectNotUnderstood",
            Self::Encoding(_) => "Internal",
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match **source {
                kube::Error::Api(ref status) => Some(status.code),
                _ => None,
            },
            Self::Shared(error) => error.code(),
            Self::Timeout { .. } | Self::NotUnderstood(_) | Self::Encoding(_) => None,
        }
    }
}

/// Whether somebody else wrote first.
pub(super) fn is_conflict(error: &RecordsError) -> bool {
    error.code() == Some(409)
}

/// Waits for the API server, but not for ever.
pub(super) async fn bounded<T>(
    doing: &'static str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, RecordsError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(RecordsError::Api { doing, source: Box::new(source) }),
        Err(_) => Err(RecordsError::Timeout { doing }),
    }
}

type Answer<T> = Result<T, RecordsError>;

/// What enrolment reads and writes.
pub trait Records: Send + Sync + 'static {
    /// The pool, as it is now.
    fn pool(&self, key: &PoolKey) -> impl Future<Output = Answer<Option<VPNClientPool>>> + Send;
    /// The Secret, as it is now.
    fn secret(&self, namespace: &str, name: &str) -> impl Future<Output = Answer<Option<Secret>>> + Send;
    /// Changes annotations of the Secret, as it was read. False: somebody changed it since.
    fn annotate(
        &self,
        secret: &Secret,
        annotations: BTreeMap<String, Option<String>>,
    ) -> impl Future<Output = Answer<bool>> + Send;
    /// The pod, as it is now.
    fn pod(&self, namespace: &str, name: &str) -> impl Future<Output = Answer<Option<Pod>>> + Send;
    /// Labels of the namespace.
    fn namespace_labels(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Answer<Option<BTreeMap<String, String>>>> + Send;
    /// The client of that name, as it is now.
    fn client(&self, namespace: &str, name: &str) -> impl Future<Output = Answer<Option<VPNClient>>> + Send;
    /// The client that enrolled with the key.
    fn client_of_key(
        &self,
        namespace: &str,
        key: KeyHash,
    ) -> impl Future<Output = Answer<Option<VPNClient>>> + Send;
    /// Makes the client. None: there is one of that name.
    fn create_client(&self, client: &VPNClient) -> impl Future<Output = Answer<Option<VPNClient>>> + Send;
    /// Gives the client, as it was read, another key. None: somebody changed it since.
    fn change_key(
        &self,
        client: &VPNClient,
        key: &PublicKey,
    ) -> impl Future<Output = Answer<Option<VPNClient>>> + Send;
    /// Those clients of the pool that are suspended.
    fn suspended(&self, pool: &PoolKey) -> impl Future<Output = Answer<Vec<VPNClient>>> + Send;
    /// Sets annotations of the client, this incarnation only. None: it is gone.
    fn note(
        &self,
        client: &VPNClient,
        annotations: &BTreeMap<String, String>,
    ) -> impl Future<Output = Answer<Option<VPNClient>>> + Send;
    /// Removes the client, this incarnation only.
    fn delete_client(&self, client: &VPNClient) -> impl Future<Output = Answer<()>> + Send;
}

/// The Kubernetes API.
pub struct ApiRecords {
    client: Client,
    scope: Scope,
}

impl ApiRecords {
    /// Records behind `client`.
    pub fn new(client: Client) -> Self {
        Self { client, scope: Scope::default() }
    }

    /// Takes pools of namespaces that are not served for none: nothing may be read there.
    #[must_use]
    pub fn within(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    fn clients(&self, namespace: &str) -> Api<Raw<VPNClient>> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

impl Records for ApiRecords {
    async fn pool(&self, key: &PoolKey) -> Answer<Option<VPNClientPool>> {
        if !self.scope.serves(&key.namespace) {
            return Ok(None);
        }
        let api: Api<Raw<VPNClientPool>> = Api::namespaced(self.client.clone(), &key.namespace);
        bounded("reading a pool", api.get_opt(&key.name)).await?.map(understood).transpose()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Answer<Option<Secret>> {
        bounded("reading a join token", self.secrets(namespace).get_opt(name)).await
    }

    async fn annotate(&self, secret: &Secret, annotations: BTreeMap<String, Option<String>>) -> Answer<bool> {
        let patch = json!({
            "metadata": { "resourceVersion": secret.resource_version(), "annotations": annotations },
        });
        let api = self.secrets(&namespace_of(secret));
        let patch = Patch::Merge(&patch);
        match bounded("counting a use", api.patch(&secret.name_any(), &patch_params(), &patch)).await {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn pod(&self, namespace: &str, name: &str) -> Answer<Option<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        bounded("reading a pod", api.get_opt(name)).await
    }

    async fn namespace_labels(&self, namespace: &str) -> Answer<Option<BTreeMap<String, String>>> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = bounded("reading a namespace", api.get_metadata_opt(namespace)).await?;
        Ok(found.map(|n| n.metadata.labels.unwrap_or_default()))
    }

    async fn client(&self, namespace: &str, name: &str) -> Answer<Option<VPNClient>> {
        let found = bounded("reading a client", self.clients(namespace).get_opt(name)).await?;
        found.map(understood).transpose()
    }

    async fn client_of_key(&self, namespace: &str, key: KeyHash) -> Answer<Option<VPNClient>> {
        let params = ListParams::default().labels(&format!("{KEY_LABEL}={key}")).limit(1);
        let found = bounded("looking for a client by key", self.clients(namespace).list(&params)).await?;
        found.items.into_iter().next().map(understood).transpose()
    }

    async fn create_client(&self, client: &VPNClient) -> Answer<Option<VPNClient>> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let api: Api<VPNClient> = Api::namespaced(self.client.clone(), &namespace_of(client));
        match bounded("making a client", api.create(&params, client)).await {
            Ok(made) => Ok(Some(made)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn change_key(&self, client: &VPNClient, key: &PublicKey) -> Answer<Option<VPNClient>> {
        let patch = json!({
            "metadata": {
                "resourceVersion": client.resource_version(),
                "labels": BTreeMap::from([key_label(key)]),
            },
            "spec": { "publicKey": key.to_string() },
        });
        let api = self.clients(&namespace_of(client));
        let patch = Patch::Merge(&patch);
        match bounded("changing a client's key", api.patch(&client.name_any(), &patch_params(), &patch)).await
        {
            Ok(changed) => understood(changed).map(Some),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn suspended(&self, pool: &PoolKey) -> Answer<Vec<VPNClient>> {
        let fields = format!("spec.poolRef.name={},spec.suspended=true", pool.name);
        let params = ListParams::default().fields(&fields);
        let api = self.clients(&pool.namespace);
        let found = bounded("looking for suspended clients", api.list(&params)).await?;
        // One whose record of tokens is not understood may hold any of them.
        found.items.into_iter().map(understood).collect()
    }

    async fn note(
        &self,
        client: &VPNClient,
        annotations: &BTreeMap<String, String>,
    ) -> Answer<Option<VPNClient>> {
        // The UID is a precondition here.
        let patch = json!({ "metadata": { "uid": client.uid(), "annotations": annotations } });
        let api = self.clients(&namespace_of(client));
        let patch = Patch::Merge(&patch);
        match bounded("writing down an enrolment", api.patch(&client.name_any(), &patch_params(), &patch))
            .await
        {
            Ok(noted) => understood(noted).map(Some),
            Err(error) if is_conflict(&error) || error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_client(&self, client: &VPNClient) -> Answer<()> {
        let preconditions = Preconditions { uid: client.uid(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let api = self.clients(&namespace_of(client));
        match bounded("removing a client", api.delete(&client.name_any(), &params)).await {
            Err(error) if !error.is_not_found() && !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The object, where all that decides about enrolments is understood.
fn understood<K: Lenient>(raw: Raw<K>) -> Answer<K> {
    let name = raw.meta().name.clone().unwrap_or_default();
    let lost = |why: String| RecordsError::NotUnderstood(format!("{} {name}: {why}", K::kind(&())));
    let reading = raw.read(None).map_err(|why| lost(why.to_string()))?;
    match reading.unread.iter().find(|unread| unread.is_in("spec.enrolment")) {
        Some(unread) => Err(lost(format!("{}: {}", unread.path, unread.why))),
        None => Ok(reading.object),
    }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

fn namespace_of(object: &impl Resource) -> String {
    object.meta().namespace.clone().unwrap_or_default()
}
