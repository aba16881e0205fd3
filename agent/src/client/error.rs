//! Why a client is not connected.

use std::time::Duration;

use pinhole_proto::{Span, bounds::LONGEST_TEXT, category_of, printable};
use tonic::{Code, Status};

use crate::{
    clock::Skew,
    identity::{IdentityError, dial::DialError},
    kernel::KernelError,
    tunnel::TunnelError,
};

/// Why a client could not start, or ended. Each is one line for a person, and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is known of this tunnel, and no token was given.
    #[error("this machine is not enrolled as {0:?}: give a join token with --token-file or PINHOLE_TOKEN")]
    NotEnrolled(String),
    /// The gateway's session service does not answer.
    #[error("the gateway cannot be reached: {0}")]
    GatewayUnreachable(DialError),
    /// The session service answers, the tunnel does not.
    #[error(
        "the gateway's tunnel does not answer at {endpoints} within {seconds} s: check that UDP to this port is allowed"
    )]
    TunnelUnreachable {
        /// `ip:port`s that were tried.
        endpoints: String,
        /// How long.
        seconds: u64,
    },
    /// The gateway's tunnel has seen handshakes from a later time.
    #[error("the gateway's tunnel drops this machine's handshakes as old ones: {0}; set the clock")]
    ClockSkew(Skew),
    /// The certificate is over, and its keys get no other.
    #[error("this client's certificate {}, and gets no other: {error}; enrol again with a join token", ended(*over_for))]
    NotRenewed {
        /// For how long, by this machine's clock.
        over_for: Option<Duration>,
        /// Why not.
        error: Box<ClientError>,
    },
    /// Gateway or operator refused.
    #[error("{message}")]
    Refused {
        /// Its category.
        category: &'static str,
        /// Its words, or ours.
        message: String,
    },
    /// The gateway took the right to connect away.
    #[error("the gateway has cut this client off: {message}")]
    Cut {
        /// Its category.
        category: &'static str,
        /// Its words.
        message: String,
    },
    /// The configuration that the gateway sent makes no sense.
    #[error("the gateway's configuration is invalid: {0}")]
    Config(String),
    /// Another process runs this tunnel.
    #[error("the tunnel {0:?} is up already: `pinhole down --name {0}` ends it")]
    AlreadyRunning(String),
    /// No process runs this tunnel.
    #[error("the tunnel {0:?} is not up")]
    NotRunning(String),
    /// The socket for status and down.
    #[error("the control socket {path}: {source}")]
    Control {
        /// The socket.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The pool's routes overlap with this machine's, and the user would rather have no tunnel.
    #[error("the tunnel does not come up, as --on-overlap refuse says: {0}")]
    RouteConflict(String),
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// A file, key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data plane.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Categories of other ends that have a meaning here, with the exit code of each.
const KNOWN: [(&str, u8); 35] = [
    ("TokenInvalid", 10),
    ("TokenExpired", 11),
    ("TokenUsedUp", 12),
    ("TokenRevoked", 13),
    ("PoolExhausted", 14),
    ("PoolFull", 14),
    ("GatewayUnreachable", 15),
    ("NameUnresolved", 15),
    ("TunnelUnreachable", 15),
    ("NoTunDevice", 16),
    ("NotPermitted", 17),
    ("AlreadyRunning", 18),
    ("ClientSuspended", 19),
    ("ClientExpired", 19),
    ("ClientDeleted", 20),
    ("ClientRemoved", 20),
    ("NotRunning", 21),
    ("NotEnrolled", 22),
    ("PoolNotFound", 23),
    ("OperatorUnreachable", 24),
    ("EnrolmentBusy", 24),
    ("RateLimited", 24),
    ("ClientNotReady", 24),
    ("Conflict", 24),
    ("SidecarNotAllowed", 25),
    ("PodNotSelected", 25),
    ("PodOnHostNetwork", 25),
    ("ChallengeExpired", 24),
    ("TokenSuspended", 26),
    ("AgentOutdated", 27),
    ("GatewayOutdated", 28),
    ("KeyNotProven", 29),
    ("SessionKeyChanged", 30),
    ("ClockSkew", 31),
    ("RouteConflict", 32),
];

/// Since when a certificate is over, where it is by this machine's clock.
fn ended(ago: Option<Duration>) -> String {
    ago.map_or_else(|| "is over by the gateway's clock".to_owned(), |ago| format!("ended {} ago", Span(ago)))
}

/// A text from the wire, as it can be shown and logged.
pub(super) fn said(text: &str) -> String {
    printable(text, LONGEST_TEXT)
}

/// A category from the wire as one of ours, so that it stays low in cardinality.
pub(super) fn known_category(category: &str) -> &'static str {
    KNOWN.iter().find(|(known, _)| *known == category).map_or("Refused", |(known, _)| known)
}

impl ClientError {
    /// A stable, low-cardinality name.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotEnrolled(_) => "NotEnrolled",
            Self::GatewayUnreachable(error) => error.category(),
            Self::TunnelUnreachable { .. } => "TunnelUnreachable",
            Self::ClockSkew(_) => "ClockSkew",
            Self::NotRenewed { error, .. } => error.category(),
            Self::Refused { category, .. } | Self::Cut { category, .. } => category,
            Self::Config(_) => "ConfigInvalid",
            Self::AlreadyRunning(_) => "AlreadyRunning",
            Self::NotRunning(_) => "NotRunning",
            Self::Control { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "NotPermitted"
            }
            Self::Control { .. } => "ControlSocketFailed",
            Self::RouteConflict(_) => "RouteConflict",
            Self::Setting(_) => "SettingInvalid",
            Self::Identity(error) => error.category(),
            Self::Tunnel(error) => error.category(),
            Self::Kernel(error) => error.category(),
        }
    }

    /// The exit code of the command: one for each category that a caller may want to tell apart, else 1.
    pub fn exit_code(&self) -> u8 {
        let category = self.category();
        KNOWN.iter().find(|(known, _)| *known == category).map_or(1, |(_, code)| *code)
    }

    /// Whether it may be different in a moment without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::GatewayUnreachable(error) => !matches!(error, DialError::Tls(_)),
            Self::Refused { category, .. } => matches!(
                *category,
                "OperatorUnreachable"
                    | "EnrolmentBusy"
                    | "RateLimited"
                    | "ClientNotReady"
                    | "Conflict"
                    | "ChallengeExpired"
            ),
            _ => false,
        }
    }

    /// The gateway cannot tell whose key it is told.
    pub(super) fn outdated_gateway() -> Self {
        let message = "the gateway is older than this agent, and cannot have it prove its WireGuard key: update the gateway";
        Self::Refused { category: "GatewayOutdated", message: message.to_owned() }
    }

    /// What a gRPC error means.
    pub fn from_status(status: &Status) -> Self {
        let category = match (category_of(status).map(known_category), status.code()) {
            (Some(category), _) if category != "Refused" => category,
            // A timeout of our own is Cancelled.
            (_, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => "OperatorUnreachable",
            _ => "Refused",
        };
        let said = said(status.message());
        let message = match category {
            "TokenInvalid" => "the join token is not valid: ask for another".to_owned(),
            "TokenExpired" => "the join token has expired: ask for another".to_owned(),
            "TokenUsedUp" => "the join token was used as often as it may be: ask for another".to_owned(),
            "TokenRevoked" => "the join token was revoked: ask for another".to_owned(),
            "TokenSuspended" => {
                "a client that enrolled with the join token is suspended: ask for another token".to_owned()
            }
            "AgentOutdated" => "this agent is older than its gateway: update it".to_owned(),
            "GatewayOutdated" => "the gateway is older than its operator: it must be updated".to_owned(),
            "SessionKeyChanged" => "this client was enrolled anew elsewhere: enrol it again".to_owned(),
            "PoolExhausted" => {
                "the pool has no free address: its CIDR must be extended, or clients removed".to_owned()
            }
            "PoolFull" => {
                "the pool has its maximum of clients: raise maxClients, or remove clients".to_owned()
            }
            "PoolNotFound" => "the pool does not exist: check its name and namespace".to_owned(),
            "ClientSuspended" => "this client is suspended: its VPNClient must be resumed".to_owned(),
            "ClientDeleted" | "ClientRemoved" => "this client was deleted: enrol it again".to_owned(),
            "OperatorUnreachable" => "the gateway cannot reach the operator now: try again later".to_owned(),
            "EnrolmentBusy" => "too many clients enrol now: try again in a moment".to_owned(),
            _ if said.is_empty() => format!("the gateway refused: {}", status.code()),
            _ => return Self::Refused { category, message: format!("the gateway refused: {said}") },
        };
        let message = if said.is_empty() { message } else { format!("{message} ({said})") };
        Self::Refused { category, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use pinhole_proto::CATEGORY_METADATA;
    use std::collections::HashMap;
    use tonic::metadata::MetadataValue;

    #[test]
    fn every_category_that_a_caller_can_tell_apart_comes_over_the_wire() {
        for (category, code) in KNOWN {
            let mut status = Status::failed_precondition("");
            status.metadata_mut().insert(CATEGORY_METADATA, MetadataValue::from_static(category));
            let error = ClientError::from_status(&status);
            assert_eq!((error.category(), error.exit_code()), (category, code));
        }
    }

    #[test]
    fn a_category_that_nobody_knows_is_a_plain_refusal() {
        let mut status = Status::internal("odd\nthing");
        status.metadata_mut().insert(CATEGORY_METADATA, MetadataValue::from_static("Surprise"));
        let error = ClientError::from_status(&status);
        assert_eq!((error.category(), error.exit_code()), ("Refused", 1));
    }

    #[test]
    fn a_certificate_that_is_over_says_since_when_and_why_it_gets_no_other() {
        let refused =
            || ClientError::Refused { category: "ClientSuspended", message: "it is suspended".into() };
        for (over_for, said) in [
            (
                Some(Duration::from_hours(31 * 24)),
                "certificate ended 31 days ago, and gets no other: it is suspended",
            ),
            (None, "certificate is over by the gateway's clock, and gets no other: it is suspended"),
        ] {
            let error = ClientError::NotRenewed { over_for, error: Box::new(refused()) };
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!((error.category(), error.exit_code()), ("ClientSuspended", 19));
        }
    }

    #[test]
    fn what_another_end_says_is_repeated_in_one_line_that_does_not_act_on_the_terminal() {
        for text in hostile::strings() {
            let error = ClientError::from_status(&Status::internal(text.clone()));
            let shown = error.to_string();
            assert!(!shown.chars().any(char::is_control) && !shown.contains('\u{202e}'), "{shown:?}");
            assert!(shown.chars().count() < LONGEST_TEXT + 100, "{text:?}");
        }
    }

    #[test]
    fn the_causes_that_the_manual_names_have_codes_of_their_own() {
        let named = [
            "TokenInvalid",
            "TokenExpired",
            "TokenUsedUp",
            "TokenRevoked",
            "PoolExhausted",
            "GatewayUnreachable",
            "NoTunDevice",
            "NotPermitted",
        ];
        let codes: HashMap<_, _> =
            KNOWN.iter().filter(|(name, _)| named.contains(name)).map(|(name, code)| (code, name)).collect();
        assert_eq!(codes.len(), named.len());
    }
}
