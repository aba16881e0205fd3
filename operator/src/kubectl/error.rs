//! What can go wrong with a command, and its exit code.

/// Why a command did not do what was asked, in one line.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The kubeconfig is no good.
    #[error("kubeconfig: {0}; set --kubeconfig, --context or $KUBECONFIG")]
    Kubeconfig(String),
    /// The API server cannot be reached.
    #[error("cannot reach the cluster: {0}; check the context and the network")]
    Unreachable(String),
    /// The API server does not know the caller.
    #[error("the cluster does not accept your credentials: {0}; log in again or choose another --context")]
    Unauthorized(String),
    /// The API server says no.
    #[error("{0}")]
    Refused(String),
    /// There is no such object.
    #[error("{kind} {namespace}/{name} does not exist; {hint}")]
    NotFound {
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What to try.
        hint: String,
    },
    /// The kinds of Pinhole are not installed.
    #[error("the cluster does not serve pinhole.dev/v1alpha1; install Pinhole, or choose another --context")]
    NotInstalled,
    /// There is something, but not what was asked for.
    #[error("{0}")]
    Unsuitable(String),
    /// Not there yet.
    #[error("{0}")]
    NotReady(String),
}

impl PluginError {
    /// Low-cardinality name.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Kubeconfig(_) => "KubeconfigInvalid",
            Self::Unreachable(_) => "ApiServerUnavailable",
            Self::Unauthorized(_) => "Unauthorized",
            Self::Refused(_) => "ApiServerRefused",
            Self::NotFound { .. } => "NotFound",
            Self::NotInstalled => "NotInstalled",
            Self::Unsuitable(_) => "Unsuitable",
            Self::NotReady(_) => "NotReady",
        }
    }

    /// Exit code of the process, see [`super::run`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 3,
            Self::NotReady(_) => 4,
            _ => 1,
        }
    }
}

impl From<kube::Error> for PluginError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 401 => Self::Unauthorized(status.message),
            kube::Error::Api(status) => Self::Refused(one_line(&status.message)),
            kube::Error::Auth(error) => Self::Unauthorized(one_line(&error.to_string())),
            other => Self::Unreachable(innermost(&other)),
        }
    }
}

/// The text of the error at the bottom, which names the cause.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    one_line(&error.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
