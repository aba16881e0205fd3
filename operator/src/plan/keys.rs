//! WireGuard keys in Secrets.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use boringtun::x25519::{PublicKey, StaticSecret};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt as _};
use ring::rand::SecureRandom;

/// A WireGuard private key. Wiped when dropped; shows its public key only.
pub struct PrivateKey(StaticSecret);

/// Why a key cannot be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gives no random numbers.
    #[error("the system's random generator failed: check that /dev/urandom works on this node")]
    NoRandomness,
    /// An entry of a Secret is not 32 bytes in base64.
    #[error(
        "entry {0} is not a WireGuard private key (32 bytes, base64): restore it, or delete the entry to have a new key made"
    )]
    Unreadable(String),
    /// A public key of the API is not 32 bytes in base64.
    #[error("spec.publicKey is not a WireGuard public key (32 bytes, base64): write what `wg pubkey` prints")]
    NotPublic,
    /// A Secret has the name that belongs to another object's keys.
    #[error("Secret {0} exists and belongs to something else: delete or rename it")]
    ForeignSecret(String),
    /// A Secret of a deleted object of the same name is about to go.
    #[error("Secret {0} belongs to a deleted object of the same name: waiting for the cluster to remove it")]
    OutgoingSecret(String),
}

impl KeyError {
    /// The reason's name, for conditions, events and metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NoRandomness => "NoRandomness",
            Self::Unreadable(_) => "KeyUnreadable",
            Self::NotPublic => "PublicKeyInvalid",
            Self::ForeignSecret(_) => "SecretTaken",
            Self::OutgoingSecret(_) => "SecretOutgoing",
        }
    }
}

impl PrivateKey {
    /// A new key.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, KeyError> {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        random.fill(bytes.as_mut_slice()).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self(StaticSecret::from(*bytes)))
    }

    /// A key as a Secret's `entry` holds it: base64.
    pub fn read(entry: &str, bytes: &[u8]) -> Result<Self, KeyError> {
        let unreadable = || KeyError::Unreadable(entry.to_owned());
        let text = std::str::from_utf8(bytes).map_err(|_| unreadable())?;
        let decoded = zeroize::Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| unreadable())?);
        let key: [u8; 32] = decoded.as_slice().try_into().map_err(|_| unreadable())?;
        Ok(Self(StaticSecret::from(key)))
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The public half, base64.
    pub fn public_base64(&self) -> String {
        STANDARD.encode(self.public())
    }

    /// The key, base64, as a Secret holds it.
    pub fn to_base64(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public_base64())
    }
}

/// Whether keys in `secret` are those of this very `owner`.
pub fn check_owner<K: Resource<DynamicType = ()>>(secret: &Secret, owner: &K) -> Result<(), KeyError> {
    let name = secret.name_any();
    let owners = secret.owner_references();
    if owners.iter().any(|o| Some(&o.uid) == owner.meta().uid.as_ref()) {
        return Ok(());
    }
    let is_namesake =
        |o: &OwnerReference| o.kind == K::kind(&()) && Some(&o.name) == owner.meta().name.as_ref();
    Err(if owners.iter().any(is_namesake) {
        KeyError::OutgoingSecret(name)
    } else {
        KeyError::ForeignSecret(name)
    })
}

/// Entry of a replica in its gateway's Secret of keys.
pub fn key_entry(replica: &str) -> String {
    format!("{replica}.key")
}

/// Public keys of the replicas whose keys the Secret holds.
pub fn public_keys(
    data: &BTreeMap<String, ByteString>,
    replicas: &[String],
) -> Result<BTreeMap<String, [u8; 32]>, KeyError> {
    let entries = replicas.iter().filter_map(|name| Some((name, data.get(&key_entry(name))?)));
    entries
        .map(|(name, bytes)| Ok((name.clone(), PrivateKey::read(&key_entry(name), &bytes.0)?.public())))
        .collect()
}

/// A public key of the API, base64, as bytes.
pub(crate) fn parse_public(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use pinhole_crds::VPNGateway;

    use super::*;

    #[test]
    fn a_key_survives_its_secret_and_does_not_show_itself() {
        let key = PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap();
        let text = key.to_base64();
        let read = PrivateKey::read("edge-0.key", format!("{}\n", *text).as_bytes()).unwrap();
        assert_eq!(read.public(), key.public());
        assert!(!format!("{key:?}").contains(text.as_str()));
    }

    #[test]
    fn the_public_key_is_that_of_wg_pubkey() {
        // RFC 7748, section 6.1: Alice's keys.
        let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        let key = PrivateKey::read("alice", private.as_bytes()).unwrap();
        assert_eq!(key.public_base64(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn a_secret_of_somebody_else_is_not_used() {
        let gateway = |uid: &str| VPNGateway {
            metadata: ObjectMeta {
                name: Some("edge".into()),
                uid: Some(uid.into()),
                ..ObjectMeta::default()
            },
            spec: serde_json::from_value(serde_json::json!({ "exposure": { "type": "HostPort" } })).unwrap(),
            status: None,
        };
        let mut secret = crate::plan::gateway::keys(&gateway("1"), BTreeMap::new());
        assert_eq!(check_owner(&secret, &gateway("1")), Ok(()));
        assert_eq!(check_owner(&secret, &gateway("2")).unwrap_err().category(), "SecretOutgoing");
        secret.metadata.owner_references = None;
        assert_eq!(check_owner(&secret, &gateway("1")).unwrap_err().category(), "SecretTaken");
    }

    #[test]
    fn what_is_no_key_is_named_by_its_entry() {
        for bytes in [&b"zz"[..], b"", b"AAAA", b"\xff\xfe"] {
            let error = PrivateKey::read("edge-0.key", bytes).unwrap_err();
            assert!(error.to_string().contains("edge-0.key"), "{error}");
        }
    }
}
