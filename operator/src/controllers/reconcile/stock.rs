//! The keys and configurations of clients without an agent.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::PostParams};
use pinhole_crds::{VPNClient, VPNClientPool, VPNGateway};

use super::context::Context;
use crate::{
    controllers::runtime::{
        error::{ControlError, call},
        index::Name,
        object_version::ObjectVersion,
    },
    fleet::GatewayKey,
    plan::{
        KeyError, Object, ObjectKind, PrivateKey, check_owner, config_secret, parse_public,
        wgquick::{self, ClientKey, ConfigInputs, PRIVATE_KEY_ENTRY},
    },
};

const MANAGER: &str = "pinhole-operator-client";

/// What was last found and made, by UID of the client.
#[derive(Debug, Default)]
pub(crate) struct StockMemory(Mutex<HashMap<String, Made>>);

/// A stock client's Secret as it was last seen.
#[derive(Clone, Debug)]
struct Made {
    version: ObjectVersion,
    /// The configuration without its private key, if it could be made.
    from: Option<String>,
    public_key: String,
}

/// What a stock client has.
pub(crate) struct Stock {
    /// Its public key, base64.
    pub(crate) public_key: String,
    /// The Secret with its configuration, when that is complete.
    pub(crate) secret: Option<String>,
}

impl StockMemory {
    pub(crate) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn get(&self, uid: &str) -> Option<Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn put(&self, uid: String, made: Made) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, made);
    }
}

impl Context {
    /// Makes the client's key if it has none, and keeps its configuration up to date.
    pub(crate) async fn stock(
        &self,
        client: &VPNClient,
        pool: &VPNClientPool,
        gateway: &VPNGateway,
        addresses: &[IpAddr],
    ) -> Result<Stock, ControlError> {
        let keys = self.keys.last(&GatewayKey::from(gateway)).unwrap_or_default();
        let (replicas, _) = self.replicas(gateway, &keys);
        let inputs = ConfigInputs { client, pool, gateway, replicas: &replicas, addresses };
        if let Some(theirs) = &client.spec.public_key {
            let key = ClientKey::Theirs(parse_public(theirs).ok_or(KeyError::NotPublic)?);
            let secret = self.apply_config(&inputs, &key).await?;
            return Ok(Stock { public_key: theirs.clone(), secret });
        }
        if let Some(stock) = self.unchanged(&inputs) {
            return Ok(stock);
        }
        let (found, key) = self.client_key(client).await?;
        let key = ClientKey::Ours(key);
        let public_key = key.public_base64();
        let secret = self.apply_config(&inputs, &key).await?;
        // The Secret's version after the apply is not known here: the next look reads it once more.
        let made = Made {
            version: ObjectVersion::new(ObjectKind::Secret, &found.metadata),
            from: template(&inputs, &public_key),
            public_key: public_key.clone(),
        };
        self.stock.put(client.uid().unwrap_or_default(), made);
        Ok(Stock { public_key, secret })
    }

    /// What the last look found, when neither the Secret nor what it is made from differs.
    fn unchanged(&self, inputs: &ConfigInputs<'_>) -> Option<Stock> {
        let client = inputs.client;
        let made = self.stock.get(&client.uid()?)?;
        let name: Name = (client.namespace()?, config_secret(&client.name_any()));
        let seen = self.shared.index().marker(ObjectKind::Secret, &name).cloned();
        if seen != Some(made.version) || made.from != template(inputs, &made.public_key) {
            return None;
        }
        Some(Stock { secret: made.from.map(|_| name.1), public_key: made.public_key })
    }

    async fn client_key(&self, client: &VPNClient) -> Result<(Secret, PrivateKey), ControlError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &client.namespace().unwrap_or_default());
        let name = config_secret(&client.name_any());
        let read = || format!("reading Secret {name}");
        let found = if let Some(found) = call(read, api.get_opt(&name)).await? {
            found
        } else {
            let key = PrivateKey::generate(&ring::rand::SystemRandom::new())?;
            let secret = wgquick::key_secret(client, &key.public_base64(), Some(&key));
            let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
            match call(|| format!("making Secret {name}"), api.create(&params, &secret)).await {
                Err(error) if error.is_conflict() => call(read, api.get(&name)).await?,
                other => other?,
            }
        };
        check_owner(&found, client)?;
        let bytes = found.data.as_ref().and_then(|d| d.get(PRIVATE_KEY_ENTRY));
        if let Some(bytes) = bytes {
            let key = PrivateKey::read(PRIVATE_KEY_ENTRY, &bytes.0)?;
            return Ok((found, key));
        }
        // The user's own key was named before and is not any more.
        let key = PrivateKey::generate(&ring::rand::SystemRandom::new())?;
        let secret = wgquick::key_secret(client, &key.public_base64(), Some(&key));
        self.apply_secret(secret).await?;
        Ok((found, key))
    }

    async fn apply_config(
        &self,
        inputs: &ConfigInputs<'_>,
        key: &ClientKey,
    ) -> Result<Option<String>, ControlError> {
        let Some(secret) = wgquick::secret(inputs, key) else { return Ok(None) };
        let name = secret.name_any();
        self.apply_secret(secret).await?;
        Ok(Some(name))
    }

    async fn apply_secret(&self, secret: Secret) -> Result<(), ControlError> {
        let name = secret.name_any();
        match self.applier.apply(&Object::Secret(secret), MANAGER).await {
            Err(ControlError::Foreign(_)) => Err(KeyError::ForeignSecret(name).into()),
            result => result.map(drop),
        }
    }
}

/// The configuration without its private key: what it is made from.
fn template(inputs: &ConfigInputs<'_>, public_key: &str) -> Option<String> {
    wgquick::render(inputs, &ClientKey::Theirs(parse_public(public_key)?))
}
