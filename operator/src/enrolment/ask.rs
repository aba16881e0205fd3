//! A request to enrol, checked before anything is looked up. Pure.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pinhole_proto::{
    is_object_name,
    v1::{RelayEnrolRequest, enrol_request},
};
use zeroize::Zeroizing;

use super::{EnrolmentError, Hostname, KeyHash, binding::SessionBinding};
use crate::{fleet::PoolKey, identity::RequestedKey};

/// A WireGuard public key (Curve25519).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From 32 bytes. None for another length and for the zero key, which nobody can have.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let key: [u8; 32] = bytes.try_into().ok()?;
        (key != [0; 32]).then_some(Self(key))
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok().and_then(|bytes| Self::new(&bytes))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// What entitles the machine or pod.
pub enum Credential {
    /// A join token of the pool.
    Token {
        /// Its name.
        name: String,
        /// Its secret part.
        secret: Zeroizing<String>,
    },
    /// A pod's ServiceAccount token.
    ServiceAccount(Zeroizing<String>),
    /// Both keys of an enrolment before, whose certificate is over.
    Keys,
}

/// A well-formed request.
pub struct Ask {
    /// The pool to join.
    pub pool: PoolKey,
    /// By what right.
    pub credential: Credential,
    /// The tunnel's key, of which the private part was proven to be held.
    pub public_key: PublicKey,
    /// The session's key, of which too.
    pub session_key: RequestedKey,
    /// What the machine calls itself.
    pub hostname: Hostname,
}

impl Ask {
    /// Checks a request from the wire. That the WireGuard key is the asker's own the gateway has found out, or nobody.
    pub fn new(relayed: RelayEnrolRequest) -> Result<Self, EnrolmentError> {
        let invalid = EnrolmentError::RequestInvalid;
        let request = relayed.request.ok_or(invalid("the request is missing"))?;
        if !relayed.key_proven {
            return Err(EnrolmentError::KeyNotVouchedFor);
        }
        if !is_label(&request.pool_namespace) || !is_label(&request.pool) {
            return Err(invalid("pool and pool_namespace must be DNS labels"));
        }
        let public_key = PublicKey::new(&request.public_key)
            .ok_or(invalid("public_key must be a WireGuard public key of 32 bytes"))?;
        let credential = match request.credential {
            Some(enrol_request::Credential::Join(join)) => {
                // It becomes a part of a path into the API before anything is verified.
                if !is_object_name(&join.token) || join.token.len() > 63 || join.secret.len() > 256 {
                    return Err(EnrolmentError::TokenInvalid);
                }
                Credential::Token { name: join.token, secret: Zeroizing::new(join.secret) }
            }
            Some(enrol_request::Credential::ServiceAccountToken(token)) => {
                Credential::ServiceAccount(Zeroizing::new(token))
            }
            Some(enrol_request::Credential::Keys(_)) => Credential::Keys,
            None => return Err(invalid("credential is missing")),
        };
        Ok(Self {
            pool: PoolKey::new(request.pool_namespace, request.pool),
            credential,
            public_key,
            session_key: RequestedKey::from_csr(&request.csr)?,
            hostname: Hostname::new(&request.hostname),
        })
    }

    /// What renewals of this enrolment are bound to.
    pub(super) fn binding(&self) -> SessionBinding {
        SessionBinding::new(&self.public_key, &self.session_key)
    }

    /// The hash of the tunnel's key.
    pub fn key_hash(&self) -> KeyHash {
        KeyHash::of(&self.public_key)
    }
}

fn is_label(text: &str) -> bool {
    is_object_name(text) && text.len() <= 63 && !text.contains('.')
}

#[cfg(test)]
mod tests {
    use pinhole_proto::v1::{EnrolRequest, JoinCredential};

    use super::*;
    use crate::{enrolment::memory::csr, hostile};

    fn request() -> EnrolRequest {
        EnrolRequest {
            credential: Some(enrol_request::Credential::Join(JoinCredential {
                token: "first".into(),
                secret: "s".into(),
            })),
            pool_namespace: "vpn".into(),
            pool: "staff".into(),
            public_key: vec![7; 32],
            csr: csr(),
            hostname: "laptop".into(),
            proof: None,
        }
    }

    fn ask(request: EnrolRequest) -> Result<Ask, EnrolmentError> {
        Ask::new(RelayEnrolRequest { request: Some(request), key_proven: true })
    }

    fn category(change: impl FnOnce(&mut EnrolRequest)) -> &'static str {
        let mut request = request();
        change(&mut request);
        ask(request).err().map_or("accepted", |e| e.category())
    }

    #[test]
    fn a_well_formed_request_is_taken() {
        assert_eq!(category(|_| {}), "accepted");
    }

    #[test]
    fn a_key_that_no_gateway_vouches_for_is_nobodys() {
        let relayed = RelayEnrolRequest { request: Some(request()), key_proven: false };
        let error = Ask::new(relayed).err().unwrap();
        assert_eq!(error.category(), "GatewayOutdated");
        assert_eq!(Ask::new(RelayEnrolRequest::default()).err().unwrap().category(), "RequestInvalid");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(category(|r| r.public_key = vec![7; 31]), "RequestInvalid");
        assert_eq!(category(|r| r.public_key = vec![0; 32]), "RequestInvalid");
        assert_eq!(category(|r| r.credential = None), "RequestInvalid");
        assert_eq!(category(|r| r.pool = "../x".into()), "RequestInvalid");
        assert_eq!(category(|r| r.pool_namespace = String::new()), "RequestInvalid");
        assert_eq!(category(|r| r.csr = vec![1, 2, 3]), "CertificateRequestInvalid");
    }

    #[test]
    fn a_host_name_is_cut_and_cleaned_not_refused() {
        let hostname = format!("lap\0top\n{}", "x".repeat(1000));
        let ask = ask(EnrolRequest { hostname, ..request() }).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ask.hostname.as_str().len(), 253);
        assert!(ask.hostname.as_str().starts_with("laptopx"));
    }

    #[test]
    fn nothing_hostile_becomes_a_path_of_the_api() {
        for text in hostile::strings() {
            let pool = |r: &mut EnrolRequest| r.pool.clone_from(&text);
            let token = |r: &mut EnrolRequest| {
                let join = JoinCredential { token: text.clone(), secret: "s".into() };
                r.credential = Some(enrol_request::Credential::Join(join));
            };
            assert_eq!(category(token), "TokenInvalid", "{text:?}");
            assert_eq!(category(pool), "RequestInvalid", "{text:?}");
        }
    }
}
