//! A certificate authority that issues for clients and servers.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    IdentityError,
    rotation::{self, AUTHORITY_LIFETIME, Validity},
};

/// Lifetime of a client's certificate. Losing the right to connect does not wait for it: a gateway serves only
/// the peers it was told. Long, so that a machine that was off for weeks comes back without enrolling again.
pub const CLIENT_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// Lifetime of a server's certificate: gateways and the operator itself.
pub const SERVER_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// A certificate authority with its key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// An issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The leaf, PEM. Its issuer is in the bundle.
    pub chain_pem: String,
    /// Last moment of its validity.
    pub not_after: SystemTime,
}

impl Authority {
    /// Makes a new authority: ECDSA P-256, allowed to sign leaves only.
    pub fn generate(now: SystemTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity::starting(now, AUTHORITY_LIFETIME);
        let made = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("pinhole authority {made}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let certificate_pem = params.self_signed(&key)?.pem();
        Self::from_pem(&certificate_pem, &key.serialize_pem())
            .map_err(|_| IdentityError::Issuing(rcgen::Error::CouldNotParseCertificate))
    }

    /// Reads an authority. The error says what is wrong with it.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| "the certificate is no PEM".to_owned())?;
        let (_, x509) =
            X509Certificate::from_der(&der).map_err(|_| "the certificate cannot be read".to_owned())?;
        if !x509.is_ca() {
            return Err("the certificate is not that of an authority".into());
        }
        // rcgen's own error may quote its input.
        let key = KeyPair::from_pem(key_pem).map_err(|_| "the private key cannot be read".to_owned())?;
        if x509.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err("the private key is not the certificate's".into());
        }
        let validity = Validity {
            not_before: x509.validity().not_before.to_datetime().into(),
            not_after: x509.validity().not_after.to_datetime().into(),
        };
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| format!("the certificate cannot be issued from: {e}"))?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer, validity })
    }

    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, PEM: for the Secret and for nothing else.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// From when to when it is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    fn issue(
        &self,
        name: &str,
        alternative_names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<Issued, IdentityError> {
        let validity = Validity {
            not_before: validity.not_before.max(self.validity.not_before),
            not_after: validity.not_after.min(self.validity.not_after),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.subject_alt_names = alternative_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued { chain_pem: certificate.pem(), not_after: validity.not_after })
    }
}

/// All authorities, in the order in which they were made: one, or two while a rotation overlaps.
#[derive(Debug)]
pub struct Authorities {
    authorities: Vec<Authority>,
    bundle_pem: String,
}

impl Authorities {
    /// The authorities, in the order in which they were made.
    pub fn new(mut authorities: Vec<Authority>) -> Self {
        authorities.sort_by_key(|a| a.validity.not_before);
        let bundle_pem = authorities.iter().map(|a| a.certificate_pem.as_str()).collect();
        Self { authorities, bundle_pem }
    }

    /// The trust bundle, PEM.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Authority> {
        self.authorities.iter()
    }

    /// What is next to be done with them, see [`rotation::next_step`].
    pub fn next_step(&self, now: SystemTime) -> rotation::Step {
        rotation::next_step(&self.validities(), now)
    }

    /// Takes the authorities out.
    pub fn into_inner(self) -> Vec<Authority> {
        self.authorities
    }

    /// A server's certificate for `names`; the first names the subject.
    pub fn issue_server(
        &self,
        key: &impl PublicKeyData,
        names: &[String],
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let alternative_names = names
            .iter()
            .map(|n| Ok(SanType::DnsName(n.as_str().try_into()?)))
            .collect::<Result<_, rcgen::Error>>()?;
        let first = names.first().map_or("", String::as_str);
        let validity = Validity::starting(now, SERVER_LIFETIME);
        self.issuing(now)?.issue(first, alternative_names, ExtendedKeyUsagePurpose::ServerAuth, key, validity)
    }

    /// A client's certificate for its URI, see [`super::client_uri`].
    pub fn issue_client(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        uri: &str,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let alternative_names = vec![SanType::URI(uri.try_into()?)];
        let validity = Validity::starting(now, CLIENT_LIFETIME);
        self.issuing(now)?.issue(name, alternative_names, ExtendedKeyUsagePurpose::ClientAuth, key, validity)
    }

    fn issuing(&self, now: SystemTime) -> Result<&Authority, IdentityError> {
        rotation::issuing(&self.validities(), now)
            .and_then(|i| self.authorities.get(i))
            .ok_or(IdentityError::NoValidAuthority)
    }

    fn validities(&self) -> Vec<Validity> {
        self.authorities.iter().map(|a| a.validity).collect()
    }
}

/// A subject of one common name, at most 64 characters (RFC 5280, appendix A.1, ub-common-name).
fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    subject
}

#[cfg(test)]
mod tests {
    use rcgen::{PKCS_ECDSA_P256_SHA256, SignatureAlgorithm};
    use rustls::{
        RootCertStore,
        client::WebPkiServerVerifier,
        pki_types::{ServerName, UnixTime},
        server::WebPkiClientVerifier,
    };
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::identity::{RequestedKey, client_uri, gateway_names};

    static P256: &SignatureAlgorithm = &PKCS_ECDSA_P256_SHA256;

    fn requested() -> RequestedKey {
        let key = KeyPair::generate_for(P256).unwrap();
        let params = CertificateParams::new(vec!["operator.pinhole.dev".into()]).unwrap();
        RequestedKey::from_csr(params.serialize_request(&key).unwrap().der()).unwrap()
    }

    fn authorities(now: SystemTime) -> Authorities {
        Authorities::new(vec![Authority::generate(now).unwrap()])
    }

    fn roots(authorities: &Authorities) -> std::sync::Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(authorities.bundle_pem().as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        roots.into()
    }

    fn leaf(issued: &Issued) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap()
    }

    fn unix(at: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    fn server_accepted(authorities: &Authorities, issued: &Issued, name: &str, at: SystemTime) -> bool {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(authorities), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &leaf(issued),
            &[],
            &name,
            &[],
            unix(at),
        )
        .is_ok()
    }

    fn client_accepted(authorities: &Authorities, issued: &Issued, at: SystemTime) -> bool {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots(authorities), provider).build().unwrap();
        verifier.verify_client_cert(&leaf(issued), &[], unix(at)).is_ok()
    }

    #[test]
    fn no_two_authorities_have_a_key_in_common() {
        let made = || Authority::generate(SystemTime::now()).unwrap();
        let (one, other) = (made(), made());
        assert_ne!(one.key_pem(), other.key_pem());
        assert_ne!(one.certificate_pem(), other.certificate_pem());
    }

    #[test]
    fn a_gateway_is_accepted_under_its_own_names_and_no_other() {
        let now = SystemTime::now();
        let authorities = authorities(now);
        let issued =
            authorities.issue_server(&requested(), &gateway_names("vpn", "edge", ["staff"]), now).unwrap();
        assert!(server_accepted(&authorities, &issued, "edge.vpn.gateway.pinhole.dev", now));
        assert!(server_accepted(&authorities, &issued, "staff.vpn.pool.pinhole.dev", now));
        // The name that the request itself asked for.
        assert!(!server_accepted(&authorities, &issued, "operator.pinhole.dev", now));
        assert!(!server_accepted(
            &authorities,
            &issued,
            "edge.vpn.gateway.pinhole.dev",
            now + SERVER_LIFETIME * 2
        ));
    }

    #[test]
    fn a_client_certificate_is_no_server_certificate_and_the_other_way_round() {
        let now = SystemTime::now();
        let authorities = authorities(now);
        let uri = client_uri("vpn", "laptop-1", "6f1f1c1e-0000-4000-8000-000000000001");
        let client = authorities.issue_client(&requested(), "laptop-1", &uri, now).unwrap();
        let server =
            authorities.issue_server(&requested(), &["edge.vpn.gateway.pinhole.dev".into()], now).unwrap();
        assert!(client_accepted(&authorities, &client, now));
        assert!(!client_accepted(&authorities, &server, now));
        assert!(!server_accepted(&authorities, &client, "laptop-1", now));
    }

    #[test]
    fn a_client_certificate_carries_its_uri_and_nothing_of_the_request() {
        let now = SystemTime::now();
        let issued = authorities(now)
            .issue_client(&requested(), "laptop-1", &client_uri("vpn", "laptop-1", "uid"), now)
            .unwrap();
        let der = leaf(&issued);
        let (_, x509) = X509Certificate::from_der(&der).unwrap();
        let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.as_slice(), [GeneralName::URI("pinhole://vpn/laptop-1/uid")]);
        assert!(!x509.is_ca());
    }

    #[test]
    fn an_authority_survives_being_written_and_read() {
        let now = SystemTime::now();
        let first = Authority::generate(now).unwrap();
        let read = Authority::from_pem(first.certificate_pem(), &first.key_pem()).unwrap();
        assert_eq!(read.validity(), first.validity());
        let issued =
            Authorities::new(vec![read]).issue_client(&requested(), "c", "pinhole://a/b/c", now).unwrap();
        assert!(client_accepted(&Authorities::new(vec![first]), &issued, now));
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let now = SystemTime::now();
        let (one, other) = (Authority::generate(now).unwrap(), Authority::generate(now).unwrap());
        assert!(
            Authority::from_pem(one.certificate_pem(), &other.key_pem())
                .unwrap_err()
                .contains("not the certificate's")
        );
    }

    #[test]
    fn while_a_rotation_overlaps_certificates_of_both_authorities_are_accepted() {
        let now = SystemTime::now();
        let old = Authority::generate(now).unwrap();
        let later = now + AUTHORITY_LIFETIME - rotation::SUCCESSOR_BEFORE;
        let by_old =
            Authorities::new(vec![Authority::from_pem(old.certificate_pem(), &old.key_pem()).unwrap()])
                .issue_client(&requested(), "c", "pinhole://a/b/c", later)
                .unwrap();
        let both = Authorities::new(vec![Authority::generate(later).unwrap(), old]);
        let switched = later + rotation::SPREAD;
        let by_new = both.issue_client(&requested(), "c", "pinhole://a/b/c", switched).unwrap();
        let by_old_again = both.issue_client(&requested(), "c", "pinhole://a/b/c", later).unwrap();
        assert!(client_accepted(&both, &by_old, later + CLIENT_LIFETIME));
        assert!(client_accepted(&both, &by_new, switched));
        let issuer = |i: &Issued| {
            let der = leaf(i);
            X509Certificate::from_der(&der).unwrap().1.issuer().to_string()
        };
        assert_eq!(issuer(&by_old_again), issuer(&by_old));
        assert_ne!(issuer(&by_new), issuer(&by_old));
    }
}
