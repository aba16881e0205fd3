//! What of a gateway's configuration cannot be used: it is left out and said, and the rest is in force. Pure.

/// A part of a configuration that is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Search domains that are none.
    #[error("search domain {0} is no domain name, and is not used: correct spec.dns.search of the pool")]
    SearchDomains(String),
    /// Search domains or name servers beyond what a resolver is given.
    #[error("only the first {most} {what} are used: shorten spec.dns of the pool")]
    Surplus {
        /// What there is too much of.
        what: &'static str,
        /// How many are used.
        most: usize,
    },
    /// Endpoints that are none.
    #[error(
        "endpoint {endpoints} of replica {replica} is not host:port, and is not tried: correct spec.exposure of the gateway"
    )]
    Endpoints {
        /// The replica.
        replica: String,
        /// What the gateway sent.
        endpoints: String,
    },
}

impl LeftOut {
    /// A stable, low-cardinality name.
    pub fn category(&self) -> &'static str {
        match self {
            Self::SearchDomains(_) => "SearchDomainInvalid",
            Self::Surplus { .. } => "DnsTooLong",
            Self::Endpoints { .. } => "EndpointInvalid",
        }
    }
}

/// At most `most` of `all`, and whether that is less than all.
pub(super) fn limited<T>(mut all: Vec<T>, what: &'static str, most: usize) -> (Vec<T>, Option<LeftOut>) {
    let surplus = (all.len() > most).then_some(LeftOut::Surplus { what, most });
    all.truncate(most);
    (all, surplus)
}
