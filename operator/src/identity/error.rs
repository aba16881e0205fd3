//! Why there is no authority or certificate, and why a token proves nothing.

use std::time::Duration;

/// Why the operator's certificate authority could not be had or could not issue.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The Secret holds something that is no authority. It is left alone: certificates in the field hang on it.
    #[error(
        "Secret {namespace}/{secret}: key {key}: {problem}; restore the Secret from a backup, or delete it to make a new \
         authority and enrol every client again"
    )]
    AuthorityUnreadable {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        secret: String,
        /// Key within its data.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// None of the authorities is valid at present.
    #[error("no certificate authority is valid at present; check the clock of this node")]
    NoValidAuthority,
    /// A certificate signing request that is not accepted.
    #[error("certificate signing request: {0}")]
    RequestRefused(&'static str),
    /// Making a key or a certificate failed.
    #[error("making a certificate: {0}")]
    Issuing(#[from] rcgen::Error),
    /// rustls does not take the operator's own certificate.
    #[error("loading the operator's own certificate: {0}")]
    Loading(#[from] rustls::Error),
    /// The API server refused or did not answer.
    #[error("Secret {secret}: {source}")]
    Api {
        /// Name of the Secret.
        secret: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("Secret {secret}: no answer from the API server within {0:?}", .timeout)]
    ApiTimeout {
        /// Name of the Secret.
        secret: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// Others kept writing the Secret.
    #[error("Secret {0}: changed by somebody else again and again; will be tried later")]
    Contended(String),
}

impl IdentityError {
    /// Low-cardinality name for metrics, events and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::AuthorityUnreadable { .. } => "AuthorityUnreadable",
            Self::NoValidAuthority => "NoValidAuthority",
            Self::RequestRefused(_) => "CertificateRequestInvalid",
            Self::Issuing(_) | Self::Loading(_) => "CertificateIssuingFailed",
            Self::Api { .. } | Self::ApiTimeout { .. } => "ApiServerUnavailable",
            Self::Contended(_) => "Conflict",
        }
    }
}

/// Why a ServiceAccount token does not prove who the caller is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// No bearer token, or none that can be read.
    #[error(
        "no bearer token in the `authorization` metadata; mount a projected ServiceAccount token and send it"
    )]
    Missing,
    /// The API server does not accept it: expired, for another audience, or its pod is gone.
    #[error("the API server does not accept the ServiceAccount token for audience {audience}: {reason}")]
    Refused {
        /// Audience that was asked for.
        audience: &'static str,
        /// What the API server said.
        reason: String,
    },
    /// Valid, but bound to no pod.
    #[error("the ServiceAccount token is bound to no pod; use a projected volume, not a token made by hand")]
    NotOfPod,
    /// A pod that is no replica of a gateway.
    #[error(
        "pod {namespace}/{pod} with ServiceAccount {service_account} is no replica of a gateway of that name"
    )]
    NotOfGateway {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        pod: String,
        /// The name of its ServiceAccount.
        service_account: String,
    },
    /// The API server could not be asked.
    #[error("reviewing the ServiceAccount token: {0}")]
    Unavailable(String),
}

impl CredentialError {
    /// Low-cardinality name for metrics, events and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Missing => "CredentialMissing",
            Self::Refused { .. } => "CredentialInvalid",
            Self::NotOfPod | Self::NotOfGateway { .. } => "CredentialNotOfGateway",
            Self::Unavailable(_) => "ApiServerUnavailable",
        }
    }
}
