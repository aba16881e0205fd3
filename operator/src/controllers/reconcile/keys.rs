//! The gateways' private keys: made once, kept for good, read for their public halves only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use pinhole_crds::VPNGateway;
use serde_json::json;

use super::context::Context;
use crate::{
    controllers::runtime::{
        error::{ControlError, call},
        index::Name,
        object_version::ObjectVersion,
    },
    fleet::GatewayKey,
    plan::{
        KeyError, ObjectKind, PrivateKey, check_owner, gateway, key_entry, keys_secret, public_keys,
        replica_names,
    },
};

const MANAGER: &str = "pinhole-operator-keys";

/// Public keys by name of the replica.
pub(crate) type PublicKeys = BTreeMap<String, [u8; 32]>;

/// The public keys of each gateway, and the version of the Secret that they were read from.
#[derive(Debug, Default)]
pub(crate) struct KeyMemory(Mutex<HashMap<GatewayKey, (ObjectVersion, PublicKeys)>>);

impl KeyMemory {
    /// What was last read.
    pub(crate) fn last(&self, gateway: &GatewayKey) -> Option<PublicKeys> {
        self.get(gateway).map(|(_, keys)| keys)
    }

    pub(crate) fn forget(&self, gateway: &GatewayKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(gateway);
    }

    fn get(&self, gateway: &GatewayKey) -> Option<(ObjectVersion, PublicKeys)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(gateway).cloned()
    }

    fn put(&self, gateway: &GatewayKey, read: (ObjectVersion, PublicKeys)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(gateway.clone(), read);
    }
}

impl Context {
    /// Makes the keys that are missing, and reads the public halves.
    pub(crate) async fn ensure_keys(&self, owner: &VPNGateway) -> Result<PublicKeys, ControlError> {
        let key = GatewayKey::from(owner);
        let names = replica_names(owner);
        let secret: Name = (key.namespace.clone(), keys_secret(&key.name));
        let seen = self.shared.index().marker(ObjectKind::Secret, &secret).cloned();
        if let Some((marker, keys)) = self.keys.get(&key)
            && seen == Some(marker)
            && names.iter().all(|name| keys.contains_key(name))
        {
            return Ok(keys);
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.0);
        let what = || format!("reading Secret {}/{}", secret.0, secret.1);
        let found = match call(what, api.get_opt(&secret.1)).await? {
            Some(found) => found,
            None => create(&api, owner).await?,
        };
        check_owner(&found, owner)?;
        let found = complete(&api, found, &names).await?;
        let data = found.data.clone().unwrap_or_default();
        let keys = public_keys(&data, &names)?;
        self.keys.put(&key, (ObjectVersion::new(ObjectKind::Secret, &found.metadata), keys.clone()));
        Ok(keys)
    }
}

async fn create(api: &Api<Secret>, owner: &VPNGateway) -> Result<Secret, ControlError> {
    let data = made(&replica_names(owner))?;
    let secret = gateway::keys(owner, data);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    let what = || format!("making Secret {}", secret.name_any());
    match call(what, api.create(&params, &secret)).await {
        // Somebody was faster; it has the keys.
        Err(error) if error.is_conflict() => call(what, api.get(&secret.name_any())).await,
        other => other,
    }
}

/// Adds what is missing; never touches what is there.
async fn complete(api: &Api<Secret>, found: Secret, names: &[String]) -> Result<Secret, ControlError> {
    let has = |name: &String| found.data.as_ref().is_some_and(|d| d.contains_key(&key_entry(name)));
    let missing: Vec<String> = names.iter().filter(|name| !has(name)).cloned().collect();
    if missing.is_empty() {
        return Ok(found);
    }
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "data": made(&missing)?,
    });
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let what = || format!("adding keys to Secret {}", found.name_any());
    call(what, api.patch(&found.name_any(), &params, &Patch::Merge(&patch))).await
}

fn made(names: &[String]) -> Result<BTreeMap<String, ByteString>, KeyError> {
    let entry = |name: &String| {
        let text = PrivateKey::generate(&ring::rand::SystemRandom::new())?.to_base64();
        Ok((key_entry(name), ByteString(text.as_bytes().to_vec())))
    };
    names.iter().map(entry).collect()
}
