//! Certificate signing requests of strangers.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519},
    prelude::FromDer as _,
    x509::AlgorithmIdentifier,
};

use super::IdentityError;

/// Bytes of the largest certificate signing request that is looked at.
pub const MAX_CSR_BYTES: usize = 4096;

/// The public key of a signing request whose maker proved to hold the private one. All else in a request is
/// ignored: names and usages are the operator's to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Reads a PKCS#10 request in DER and checks its signature. Keys are ECDSA P-256 or Ed25519.
    pub fn from_csr(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(IdentityError::RequestRefused("is longer than 4096 bytes"));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der)
            .map_err(|_| IdentityError::RequestRefused("is no PKCS#10 request in DER"))?;
        if !rest.is_empty() {
            return Err(IdentityError::RequestRefused("is followed by other bytes"));
        }
        let key = &csr.certification_request_info.subject_pki;
        if !is_accepted(&key.algorithm) {
            return Err(IdentityError::RequestRefused("its key is neither ECDSA P-256 nor Ed25519"));
        }
        csr.verify_signature()
            .map_err(|_| IdentityError::RequestRefused("its signature does not match its key"))?;
        Ok(Self(SubjectPublicKeyInfo::from_der(key.raw)?))
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

fn is_accepted(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    if algorithm.algorithm == OID_SIG_ED25519 {
        return true;
    }
    let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve.is_some_and(|c| c == OID_EC_P256)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn request(algorithm: &'static SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["operator.pinhole.dev".into()]).unwrap();
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        (key, der)
    }

    #[test]
    fn the_key_of_a_p256_or_ed25519_request_is_taken() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let (key, der) = request(algorithm);
            assert_eq!(RequestedKey::from_csr(&der).unwrap().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn a_key_of_another_type_is_refused() {
        let (_, der) = request(&PKCS_ECDSA_P384_SHA384);
        let error = RequestedKey::from_csr(&der).unwrap_err();
        assert_eq!(error.category(), "CertificateRequestInvalid");
        assert!(error.to_string().contains("P-256"), "{error}");
    }

    #[test]
    fn a_request_whose_signature_was_made_with_another_key_is_refused() {
        let (_, mut der) = request(&PKCS_ECDSA_P256_SHA256);
        // The last bytes are the signature's.
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(RequestedKey::from_csr(&der).is_err());
    }

    #[test]
    fn trailing_bytes_and_oversize_are_refused() {
        let (_, mut der) = request(&PKCS_ECDSA_P256_SHA256);
        der.push(0);
        assert!(RequestedKey::from_csr(&der).is_err());
        assert!(RequestedKey::from_csr(&vec![0x30; MAX_CSR_BYTES + 1]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(RequestedKey::from_csr(&bytes).is_err());
        }

        #[test]
        fn no_single_changed_byte_yields_another_key(at in 0usize..1000, to in any::<u8>()) {
            let (key, mut der) = request(&PKCS_ECDSA_P256_SHA256);
            let at = at % der.len();
            der[at] = to;
            if let Ok(taken) = RequestedKey::from_csr(&der) {
                prop_assert_eq!(taken.der_bytes(), key.der_bytes());
            }
        }
    }
}
