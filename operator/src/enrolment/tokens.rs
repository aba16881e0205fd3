//! The Secrets of a pool's join tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use pinhole_crds::{TokenStatus, VPNClientPool};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;

use super::{
    EnrolmentError, RecordsError,
    records::{bounded, is_conflict},
    secrets::{POOL_OF_TOKEN_LABEL, Write, plan, statuses},
};

const FIELD_MANAGER: &str = "pinhole-operator-tokens";
const ATTEMPTS: usize = 3;

/// Where a join string leads.
#[derive(Clone, Copy, Debug)]
pub struct JoinTarget<'a> {
    /// TLS name of the gateway, see [`pinhole_proto::gateway_server_name`].
    pub server_name: &'a str,
    /// `host:port` of the gateway's client sessions, the best first. While there are none, join strings wait.
    pub endpoints: &'a [String],
    /// The trust bundle, PEM, see [`crate::identity::Authorities::bundle_pem`].
    pub ca_pem: &'a str,
}

/// Makes the Secrets of the pool's join tokens, keeps their join strings up to date, and removes those of revoked
/// and removed tokens. Writes nothing when all is as it should be. Returns what the pool's status should say.
pub async fn ensure_tokens(
    client: &Client,
    pool: &VPNClientPool,
    target: JoinTarget<'_>,
) -> Result<Vec<TokenStatus>, EnrolmentError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &pool.namespace().unwrap_or_default());
    for _ in 0..ATTEMPTS {
        let secrets = list(&api, &pool.name_any()).await?;
        let parts = drawn(pool)?;
        let mut parts = parts.into_iter();
        let writes = plan(pool, &secrets, &target, || parts.next().unwrap_or_default())
            .map_err(|error| RecordsError::Encoding(error.to_string()))?;
        if writes.is_empty() {
            return Ok(statuses(pool, &secrets, Timestamp::now()));
        }
        for write in writes {
            apply(&api, write).await?;
        }
    }
    Err(EnrolmentError::Contended(pool.name_any()))
}

async fn list(api: &Api<Secret>, pool: &str) -> Result<Vec<Secret>, RecordsError> {
    let params = ListParams::default().labels(&format!("{POOL_OF_TOKEN_LABEL}={pool}"));
    Ok(bounded("listing join tokens", api.list(&params)).await?.items)
}

/// A conflict is no error: the next look decides anew. But a Secret that is not ours and has the name is.
async fn apply(api: &Api<Secret>, write: Write) -> Result<(), EnrolmentError> {
    let result = match write {
        Write::Create(secret) => {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
            let made = bounded("making a join token", api.create(&params, &secret)).await;
            if made.as_ref().err().is_some_and(is_conflict) && is_foreign(api, &secret).await? {
                return Err(EnrolmentError::SecretTaken(secret.name_any()));
            }
            made.map(drop)
        }
        Write::Join { name, resource_version, join } => {
            let patch = json!({
                "metadata": { "resourceVersion": resource_version },
                "stringData": { super::secrets::JOIN_KEY: join },
            });
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            let patch = Patch::Merge(&patch);
            bounded("writing a join string", api.patch(&name, &params, &patch)).await.map(drop)
        }
        Write::Delete { name, uid } => {
            let preconditions = Preconditions { uid: Some(uid), resource_version: None };
            let params = DeleteParams::default().preconditions(preconditions);
            let deleted = bounded("removing a join token", api.delete(&name, &params)).await.map(drop);
            deleted.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
        }
    };
    match result {
        Err(error) if !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn is_foreign(api: &Api<Secret>, wanted: &Secret) -> Result<bool, RecordsError> {
    let found = bounded("reading a join token", api.get_opt(&wanted.name_any())).await?;
    Ok(found.is_some_and(|f| f.labels().get(POOL_OF_TOKEN_LABEL) != wanted.labels().get(POOL_OF_TOKEN_LABEL)))
}

/// Secret parts for as many tokens as the pool has: 256 random bits each.
fn drawn(pool: &VPNClientPool) -> Result<Vec<String>, EnrolmentError> {
    let random = SystemRandom::new();
    let tokens = pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
    let draw = |_| {
        let mut bytes = [0; 32];
        random.fill(&mut bytes).map_err(|_| RecordsError::Encoding("no random bytes to be had".into()))?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    };
    tokens.map(draw).collect()
}
