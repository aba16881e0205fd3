//! The cluster's certificates: one CA, a certificate for each component, kubeconfigs around them.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::error::{Doing, Result};

/// Signs for everybody in the cluster; lives as long as the cluster.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both as PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("pinhole-lab", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// The CA with its key, for the controller manager, which signs for those who ask.
    pub(crate) fn identity(&self) -> Identity {
        Identity { certificate: self.pem.clone(), key: self.issuer.key().serialize_pem() }
    }

    /// A client's certificate: the name is its user, the group its organisation.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        self.issue(user, group, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's certificate for these names and addresses.
    pub(crate) fn server(&self, name: &str, subjects: &[&str]) -> Result<Identity> {
        self.issue(name, None, subjects, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn issue(
        &self,
        name: &str,
        group: Option<&str>,
        subjects: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let mut params =
            CertificateParams::new(subjects.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.distinguished_name = named(name, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }

    /// A kubeconfig for this identity.
    pub(crate) fn kubeconfig(&self, server: &str, user: &str, identity: &Identity) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "pinhole-lab", "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(&self.pem),
            }}],
            "users": [{ "name": user, "user": {
                "client-certificate-data": STANDARD.encode(&identity.certificate),
                "client-key-data": STANDARD.encode(&identity.key),
            }}],
            "contexts": [{ "name": "pinhole-lab", "context": { "cluster": "pinhole-lab", "user": user } }],
            "current-context": "pinhole-lab",
        })
    }
}

impl Identity {
    /// A bare key pair, for signing service account tokens: the public key stands for the certificate.
    pub(crate) fn signing_key() -> Result<Self> {
        let key = KeyPair::generate()?;
        Ok(Self { certificate: key.public_key_pem(), key: key.serialize_pem() })
    }

    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, dir: &Path, name: &str) -> Result<()> {
        write_private(&dir.join(format!("{name}.crt")), &self.certificate)?;
        write_private(&dir.join(format!("{name}.key")), &self.key)
    }
}

/// Writes a file that only its owner reads.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut options = std::fs::File::options();
    options.create(true).write(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(content.as_bytes()));
    written.doing(|| format!("writing {}", path.display()))
}

fn named(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}
