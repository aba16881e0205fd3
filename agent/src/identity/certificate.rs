//! Keys and certificates of the session (gRPC over TLS). The key is made here and stays here: only a request
//! (PKCS#10) leaves, and a certificate comes back.

use std::time::{Duration, SystemTime};

use pinhole_proto::v1::ObjectRef;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, prelude::FromDer, prelude::X509Certificate};
use zeroize::Zeroizing;

use super::IdentityError;

/// How a client's certificate names it: `pinhole://<namespace>/<name>/<uid>`, a URI subject alternative name.
const SCHEME: &str = "pinhole://";

/// The private key of a session certificate (ECDSA P-256).
pub struct SessionKey(KeyPair);

impl SessionKey {
    /// A new key.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate().map(Self).map_err(|error| IdentityError::Key(error.to_string()))
    }

    /// Reads what [`Self::to_pem`] wrote.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        KeyPair::from_pem(pem).map(Self).map_err(|error| IdentityError::Key(error.to_string()))
    }

    /// PKCS#8, PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// The key as TLS wants it.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }

    /// A certificate signing request without any name, DER: whoever issues sets the names.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request =
            params.serialize_request(&self.0).map_err(|error| IdentityError::Key(error.to_string()))?;
        Ok(request.der().to_vec())
    }
}

/// The certificates of a PEM bundle.
pub fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let chain = chain.map_err(|error| IdentityError::Certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(IdentityError::Certificate("the PEM text holds no certificate".into()));
    }
    Ok(chain)
}

/// The client that a certificate, already verified, was issued to.
pub fn client_of(certificate: &[u8]) -> Result<ObjectRef, IdentityError> {
    let refuse = |why: &str| IdentityError::Certificate(why.to_owned());
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| refuse("it is not a certificate"))?;
    let names = certificate.subject_alternative_name().map_err(|_| refuse("its names are malformed"))?;
    let names = names.ok_or_else(|| refuse("it has no names"))?;
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        })
        .collect();
    let [uri] = uris.as_slice() else { return Err(refuse("it does not name exactly one client")) };
    let parts: Vec<&str> = uri.split('/').collect();
    let [namespace, name, uid] = parts.as_slice() else { return Err(refuse("its client name is malformed")) };
    if [namespace, name, uid].iter().any(|part| part.is_empty()) {
        return Err(refuse("its client name is incomplete"));
    }
    Ok(ObjectRef { namespace: (*namespace).into(), name: (*name).into(), uid: (*uid).into() })
}

/// From when and until when a chain's leaf is valid.
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime), IdentityError> {
    let chain = chain(pem)?;
    leaf_validity(chain.first().ok_or_else(|| IdentityError::Certificate("it is empty".into()))?)
}

/// From when until when a certificate (DER) is valid. Times before 1970 are 1970.
pub fn leaf_validity(leaf: &[u8]) -> Result<(SystemTime, SystemTime), IdentityError> {
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|_| IdentityError::Certificate("it is not a certificate".into()))?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    let validity = leaf.validity();
    Ok((time(validity.not_before.timestamp()), time(validity.not_after.timestamp())))
}

/// How long to wait before a certificate is renewed: two thirds of its life have then passed. Zero when it is
/// due, and never more than these.
pub fn renewal_delay(now: SystemTime, (not_before, not_after): (SystemTime, SystemTime)) -> Duration {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let wait = life / 3 * 2;
    // By a clock that is behind it would be over before.
    (not_before + wait).duration_since(now).unwrap_or_default().min(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{SanType, string::Ia5String};

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap())).collect();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_its_client() {
        let client = client_of(&certificate(&["pinhole://branch/laptop-1/42-uid"])).unwrap();
        assert_eq!(
            (client.namespace.as_str(), client.name.as_str(), client.uid.as_str()),
            ("branch", "laptop-1", "42-uid")
        );
    }

    #[test]
    fn a_certificate_that_names_no_client_or_two_is_refused() {
        for uris in [
            &[][..],
            &["https://example.com/a/b"],
            &["pinhole://a/b"],
            &["pinhole://a/b/c/d"],
            &["pinhole://a//c"],
            &["pinhole://a/b/c", "pinhole://a/b/d"],
        ] {
            assert!(client_of(&certificate(uris)).is_err(), "{uris:?}");
        }
        assert!(client_of(b"junk").is_err());
    }

    #[test]
    fn a_key_survives_its_file_and_makes_a_request() {
        let key = SessionKey::generate().unwrap();
        let again = SessionKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.0.public_key_raw(), again.0.public_key_raw());
        let request = again.request().unwrap();
        assert!(rcgen::CertificateSigningRequestParams::from_der(&request.into()).is_ok());
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let start = SystemTime::UNIX_EPOCH;
        let life = (start, start + Duration::from_mins(5));
        assert_eq!(renewal_delay(start, life), Duration::from_secs(200));
        assert_eq!(renewal_delay(start + Duration::from_secs(250), life), Duration::ZERO);
        let later = (start + Duration::from_hours(48), start + Duration::from_hours(51));
        assert_eq!(renewal_delay(start, later), Duration::from_hours(2), "the clock is two days behind");
    }
}
