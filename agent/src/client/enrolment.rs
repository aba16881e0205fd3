//! What enrolment yields, and what is kept of it on disk.

use std::time::{Duration, SystemTime};

use pinhole_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::{Code, Request, transport::Channel};
use v1::client_session_client::ClientSessionClient;
use zeroize::Zeroizing;

use super::{ClientError, heard};
use crate::{
    identity::{
        IdentityError, JoinString, Names, SessionKey, Store, certificate,
        dial::{Dialer, Liveness, Proof},
        possession,
    },
    tunnel::PrivateKey,
};

const MEMBERSHIP: &str = "enrolment.json";
const SESSION: &str = "session.pem";
const CONFIG: &str = "config.bin";
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Which gateway and pool a client belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The pool's namespace.
    pub namespace: String,
    /// The pool.
    pub pool: String,
    /// TLS name of the gateway.
    pub server_name: String,
    /// Where the gateway's sessions were reached first.
    pub endpoints: Vec<String>,
    /// What the gateway's certificate chains to, PEM.
    pub ca: String,
}

/// What proves the right to join.
#[derive(Clone)]
pub enum Credential {
    /// A token of the pool.
    Join {
        /// Its name.
        token: String,
        /// Its secret part.
        secret: Zeroizing<String>,
    },
    /// The pod's ServiceAccount token, a file that is read for each enrolment.
    ServiceAccount(std::path::PathBuf),
    /// The keys that it enrolled with before: that of its certificate, PEM, and that of its tunnel, which is proven in any case.
    Keys(Zeroizing<String>),
}

/// A way to become a client.
#[derive(Clone)]
pub struct Invitation {
    /// Of what.
    pub membership: Membership,
    /// By which right.
    pub credential: Credential,
    /// What the machine calls itself: a part of its VPNClient's name.
    pub hostname: String,
}

impl From<JoinString> for Invitation {
    fn from(join: JoinString) -> Self {
        Invitation {
            membership: Membership {
                namespace: join.ns,
                pool: join.pool,
                server_name: join.server_name,
                endpoints: join.endpoints,
                ca: join.ca,
            },
            credential: Credential::Join { token: join.token, secret: Zeroizing::new(join.secret) },
            hostname: hostname(),
        }
    }
}

impl Invitation {
    /// For a client that was one before, and let its certificate end.
    pub fn again(enrolment: &Enrolment) -> Self {
        Invitation {
            membership: enrolment.membership.clone(),
            credential: Credential::Keys(enrolment.proof.key_pem.clone()),
            hostname: hostname(),
        }
    }
}

/// A client's identity, complete.
#[derive(Clone)]
pub struct Enrolment {
    /// Where it belongs.
    pub membership: Membership,
    /// Its certificate and key.
    pub proof: Proof,
    /// Its configuration as last told.
    pub config: v1::ClientConfig,
}

impl Enrolment {
    /// What is kept, `None` when it is not complete.
    pub fn load(store: &Store) -> Result<Option<Self>, ClientError> {
        let (Some(membership), Some(session), Some(config)) =
            (store.read(MEMBERSHIP)?, store.read_text(SESSION)?.map(Zeroizing::new), store.read(CONFIG)?)
        else {
            return Ok(None);
        };
        let damaged = |file: &str, reason: String| IdentityError::Damaged { path: store.path(file), reason };
        let membership =
            serde_json::from_slice(&membership).map_err(|error| damaged(MEMBERSHIP, error.to_string()))?;
        let config = v1::ClientConfig::decode(config.as_slice())
            .map_err(|error| damaged(CONFIG, error.to_string()))?;
        let (key, chain) = session
            .split_once(SEPARATOR)
            .ok_or_else(|| damaged(SESSION, "the certificate is missing".to_owned()))?;
        let proof = Proof { chain_pem: chain.to_owned(), key_pem: Zeroizing::new(key.to_owned()) };
        Ok(Some(Enrolment { membership, proof, config }))
    }

    /// Keeps all of it.
    pub fn save(&self, store: &Store) -> Result<(), ClientError> {
        let membership = serde_json::to_vec_pretty(&self.membership)
            .map_err(|error| ClientError::Setting(error.to_string()))?;
        store.write(CONFIG, &self.config.encode_to_vec())?;
        self.save_proof(store)?;
        // Last: its presence makes the enrolment complete.
        Ok(store.write(MEMBERSHIP, &membership)?)
    }

    /// Keeps a renewed certificate, with its key in one file so that they always match.
    pub fn save_proof(&self, store: &Store) -> Result<(), ClientError> {
        let both = [self.proof.key_pem.as_str(), SEPARATOR, &self.proof.chain_pem].concat();
        Ok(store.write(SESSION, Zeroizing::new(both).as_bytes())?)
    }

    /// Keeps a newer configuration.
    pub fn save_config(&self, store: &Store) -> Result<(), ClientError> {
        Ok(store.write(CONFIG, &self.config.encode_to_vec())?)
    }

    /// Forgets that this machine was enrolled; the tunnel's key stays.
    pub fn forget(store: &Store) -> Result<(), ClientError> {
        store.remove(MEMBERSHIP)?;
        store.remove(SESSION)?;
        Ok(store.remove(CONFIG)?)
    }

    /// For how long the certificate has been over.
    pub fn over_for(&self, now: SystemTime) -> Option<Duration> {
        let (_, not_after) = certificate::validity(&self.proof.chain_pem).ok()?;
        now.duration_since(not_after).ok()
    }
}

/// Between key and chain.
const SEPARATOR: &str = "\n# certificate chain\n";

/// The name that the kernel knows the machine by.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Enrols the holder of `tunnel_key`, once.
pub async fn enrol(
    invitation: &Invitation,
    tunnel_key: &PrivateKey,
    fwmark: Option<u32>,
    names: &Names,
) -> Result<Enrolment, ClientError> {
    let membership = &invitation.membership;
    let dialer = Dialer {
        server_name: membership.server_name.clone(),
        ca_pem: membership.ca.clone(),
        proof: None,
        fwmark,
        liveness: Liveness::Pinged,
    };
    let gateway =
        dialer.connect_by(names, &membership.endpoints).await.map_err(ClientError::GatewayUnreachable)?;
    let key = match &invitation.credential {
        // Who has both keys is who enrolled with them; with another it would be somebody new.
        Credential::Keys(pem) => SessionKey::from_pem(pem)?,
        Credential::Join { .. } | Credential::ServiceAccount(_) => SessionKey::generate()?,
    };
    let credential = match &invitation.credential {
        Credential::Join { token, secret } => v1::enrol_request::Credential::Join(v1::JoinCredential {
            token: token.clone(),
            secret: secret.to_string(),
        }),
        Credential::Keys(_) => v1::enrol_request::Credential::Keys(v1::KeysCredential {}),
        Credential::ServiceAccount(path) => {
            let token = std::fs::read_to_string(path)
                .map_err(|source| IdentityError::Read { path: path.clone(), source })?;
            v1::enrol_request::Credential::ServiceAccountToken(token.trim().to_owned())
        }
    };
    let request = v1::EnrolRequest {
        credential: Some(credential),
        pool_namespace: membership.namespace.clone(),
        pool: membership.pool.clone(),
        public_key: tunnel_key.public().as_bytes().to_vec(),
        csr: key.request()?,
        hostname: invitation.hostname.clone(),
        proof: None,
    };
    let response = ask(&mut heard::client(gateway.channel), tunnel_key, request).await?;
    let missing = || ClientError::Config("the answer to the enrolment is incomplete".into());
    let (chain_pem, ca_pem) = heard::issued(response.certificate.ok_or_else(missing)?)?;
    let mut membership = membership.clone();
    if !ca_pem.is_empty() {
        membership.ca = ca_pem;
    }
    Ok(Enrolment {
        membership,
        proof: Proof { chain_pem, key_pem: key.to_pem() },
        config: response.config.ok_or_else(missing)?,
    })
}

/// Asks with a proof that the request's key is our own.
async fn ask(
    gateway: &mut ClientSessionClient<Channel>,
    tunnel_key: &PrivateKey,
    request: v1::EnrolRequest,
) -> Result<v1::EnrolResponse, ClientError> {
    let mut challenge = Request::new(v1::ChallengeRequest {});
    challenge.set_timeout(CALL_TIMEOUT);
    let challenge = gateway.challenge(challenge).await.map_err(|status| match status.code() {
        Code::Unimplemented => ClientError::outdated_gateway(),
        _ => ClientError::from_status(&status),
    })?;
    let proof = possession::prove(tunnel_key, challenge.get_ref(), &request)
        .map_err(|_| ClientError::Config("its challenge is malformed".into()))?;
    let mut request = Request::new(v1::EnrolRequest { proof: Some(proof), ..request });
    request.set_timeout(CALL_TIMEOUT);
    let response = gateway.enrol(request).await.map_err(|status| ClientError::from_status(&status))?;
    Ok(response.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrolment_survives_on_disk_and_can_be_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(Enrolment::load(&store).unwrap().is_none());
        let key = SessionKey::generate().unwrap();
        let enrolment = Enrolment {
            membership: Membership {
                namespace: "branch".into(),
                pool: "laptops".into(),
                server_name: "edge.branch.gateway.pinhole.dev".into(),
                endpoints: vec!["192.0.2.1:51821".into()],
                ca: "ca".into(),
            },
            proof: Proof { chain_pem: "chain".into(), key_pem: key.to_pem() },
            config: v1::ClientConfig { revision: 7, ..Default::default() },
        };
        enrolment.save(&store).unwrap();
        let kept = Enrolment::load(&store).unwrap().unwrap();
        assert_eq!(kept.membership, enrolment.membership);
        assert_eq!(kept.config.revision, 7);
        assert_eq!(kept.proof.chain_pem, "chain");
        assert!(SessionKey::from_pem(&kept.proof.key_pem).is_ok());
        Enrolment::forget(&store).unwrap();
        assert!(Enrolment::load(&store).unwrap().is_none());
    }
}
