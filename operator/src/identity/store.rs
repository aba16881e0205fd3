//! The Secret that holds the authorities.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::{Duration, SystemTime},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::{Authorities, Authority, IdentityError, rotation::Step};

/// Name of the Secret, in the operator's namespace, that holds the authorities.
pub const AUTHORITY_SECRET: &str = "pinhole-ca";

/// Key of the trust bundle, for whoever reads the Secret; made from the authorities, never read.
const BUNDLE_KEY: &str = "ca.crt";

/// How the keys of an authority begin; `.crt` and `.key` follow.
const AUTHORITY_PREFIX: &str = "authority-";

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 5;
const MAX_AUTHORITIES: usize = 8;

/// The Secret with the authorities.
pub struct AuthorityStore {
    api: Api<Secret>,
    namespace: String,
}

impl AuthorityStore {
    /// The Secret in the operator's `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    /// Reads the authorities; makes the first one when there is none. Of several operators that start at once,
    /// one makes it and the others read it.
    pub async fn load_or_create(&self, now: SystemTime) -> Result<Authorities, IdentityError> {
        for _ in 0..ATTEMPTS {
            if let Some(secret) = call(self.api.get_opt(AUTHORITY_SECRET)).await? {
                let authorities = self.read(&secret)?;
                if authorities.iter().next().is_some() {
                    return Ok(authorities);
                }
                // Made empty by hand, or by a chart: to be filled.
                let first = Authorities::new(vec![Authority::generate(now)?]);
                if self.replace(secret, &first).await? {
                    return Ok(first);
                }
                continue;
            }
            let first = Authorities::new(vec![Authority::generate(now)?]);
            let mut secret = Secret { type_: Some("Opaque".into()), ..Secret::default() };
            secret.metadata.name = Some(AUTHORITY_SECRET.into());
            secret.metadata.labels = Some(labels());
            secret.data = Some(data(&first));
            match call(self.api.create(&PostParams::default(), &secret)).await {
                Ok(_) => return Ok(first),
                Err(IdentityError::Api { source, .. }) if is_conflict(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Err(IdentityError::Contended(AUTHORITY_SECRET.into()))
    }

    /// Does what [`super::rotation`] wants done. To be called by the leader only.
    pub async fn rotate(&self, now: SystemTime) -> Result<Authorities, IdentityError> {
        for _ in 0..ATTEMPTS {
            let Some(secret) = call(self.api.get_opt(AUTHORITY_SECRET)).await? else {
                return self.load_or_create(now).await;
            };
            let before = self.read(&secret)?;
            if before.next_step(now) == Step::Keep {
                return Ok(before);
            }
            let after = rotated(before, now)?;
            if self.replace(secret, &after).await? {
                return Ok(after);
            }
        }
        Err(IdentityError::Contended(AUTHORITY_SECRET.into()))
    }

    /// False when somebody else changed the Secret meanwhile.
    async fn replace(&self, mut secret: Secret, authorities: &Authorities) -> Result<bool, IdentityError> {
        let foreign = secret.data.take().unwrap_or_default().into_iter().filter(|(key, _)| !is_ours(key));
        secret.data = Some(foreign.chain(data(authorities)).collect());
        match call(self.api.replace(AUTHORITY_SECRET, &PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(IdentityError::Api { source, .. }) if is_conflict(&source) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&self, secret: &Secret) -> Result<Authorities, IdentityError> {
        let unreadable = |key: &str, problem: String| IdentityError::AuthorityUnreadable {
            namespace: self.namespace.clone(),
            secret: AUTHORITY_SECRET.into(),
            key: key.to_owned(),
            problem,
        };
        let empty = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&empty);
        let text = |key: &str| {
            let bytes = data.get(key).ok_or_else(|| unreadable(key, "is missing".into()))?;
            std::str::from_utf8(&bytes.0).map_err(|_| unreadable(key, "is no text".into()))
        };
        let stem = |key: &String| {
            let stem = key.strip_suffix(".crt").or_else(|| key.strip_suffix(".key"))?;
            stem.starts_with(AUTHORITY_PREFIX).then(|| stem.to_owned())
        };
        let stems: BTreeSet<String> = data.keys().filter_map(stem).collect();
        let mut authorities = vec![];
        for stem in stems.into_iter().take(MAX_AUTHORITIES) {
            let (certificate, key) = (format!("{stem}.crt"), format!("{stem}.key"));
            let authority = Authority::from_pem(text(&certificate)?, text(&key)?)
                .map_err(|problem| unreadable(&certificate, problem))?;
            authorities.push(authority);
        }
        Ok(Authorities::new(authorities))
    }
}

/// All steps that are due at `now`, done.
fn rotated(before: Authorities, now: SystemTime) -> Result<Authorities, IdentityError> {
    let mut authorities = before;
    loop {
        let step = authorities.next_step(now);
        let mut list = authorities.into_inner();
        match step {
            Step::Keep => return Ok(Authorities::new(list)),
            Step::Make => list.push(Authority::generate(now)?),
            Step::Drop(at) => drop(list.remove(at)),
        }
        authorities = Authorities::new(list);
    }
}

fn data(authorities: &Authorities) -> BTreeMap<String, ByteString> {
    let mut data = BTreeMap::from([(BUNDLE_KEY.to_owned(), text(authorities.bundle_pem()))]);
    for authority in authorities.iter() {
        let made = authority.validity().not_before.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{AUTHORITY_PREFIX}{}", made.as_secs());
        data.insert(format!("{name}.crt"), text(authority.certificate_pem()));
        data.insert(format!("{name}.key"), text(&authority.key_pem()));
    }
    data
}

fn text(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn is_ours(key: &str) -> bool {
    key == BUNDLE_KEY || key.starts_with(AUTHORITY_PREFIX)
}

fn labels() -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (format!("app.kubernetes.io/{key}"), value.to_owned());
    [label("managed-by", "pinhole-operator"), label("part-of", "pinhole")].into()
}

async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, IdentityError> {
    let secret = AUTHORITY_SECRET.to_owned();
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(IdentityError::Api { secret, source: Box::new(source) }),
        Err(_) => Err(IdentityError::ApiTimeout { secret, timeout: CALL_TIMEOUT }),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::rotation::{AUTHORITY_LIFETIME, SPREAD, SUCCESSOR_BEFORE};

    fn store() -> AuthorityStore {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("no API server in this test"))
        });
        AuthorityStore::new(Client::new(service, "pinhole-system"), "pinhole-system")
    }

    fn secret(authorities: &Authorities) -> Secret {
        Secret { data: Some(data(authorities)), ..Secret::default() }
    }

    #[tokio::test]
    async fn what_is_written_is_read_back_through_a_whole_rotation() {
        let store = store();
        let start = SystemTime::now();
        let mut authorities = rotated(Authorities::new(vec![]), start).unwrap();
        assert_eq!(authorities.iter().count(), 1);
        let due = start + AUTHORITY_LIFETIME - SUCCESSOR_BEFORE + Duration::from_mins(1);
        authorities = rotated(store.read(&secret(&authorities)).unwrap(), due).unwrap();
        assert_eq!(authorities.iter().count(), 2);
        assert_eq!(authorities.bundle_pem().matches("BEGIN CERTIFICATE").count(), 2);
        let read = store.read(&secret(&authorities)).unwrap();
        assert_eq!(read.bundle_pem(), authorities.bundle_pem());
        authorities = rotated(read, due + SPREAD * 3).unwrap();
        assert_eq!(authorities.iter().count(), 1);
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_is_left_alone_and_named() {
        let mut broken = secret(&Authorities::new(vec![Authority::generate(SystemTime::now()).unwrap()]));
        let key = broken.data.as_ref().unwrap().keys().find(|k| k.contains(".key")).unwrap().clone();
        let certificate = key.replace(".key", ".crt");
        let mut halved = broken.clone();
        halved.data.as_mut().unwrap().remove(&certificate);
        assert_eq!(store().read(&halved).unwrap_err().category(), "AuthorityUnreadable");
        broken.data.as_mut().unwrap().remove(&key);
        let error = store().read(&broken).unwrap_err();
        assert_eq!(error.category(), "AuthorityUnreadable");
        assert!(
            error.to_string().contains(&format!("pinhole-system/pinhole-ca: key {key}: is missing")),
            "{error}"
        );
    }
}
