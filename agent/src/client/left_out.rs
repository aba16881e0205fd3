//! What of a gateway's configuration cannot be used: it is left out and said, and the rest is in force. Pure.

use std::str::FromStr;

use pinhole_proto::printable;

/// Texts that are quoted, and the longest part of one that is, characters.
const QUOTES: usize = 3;
const QUOTE: usize = 48;

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

/// Those of `texts` that are what they should be, and the others in words. None: there are no others.
pub(super) fn parted<T: FromStr>(texts: &[String]) -> (Vec<T>, Option<String>) {
    let good = texts.iter().filter_map(|text| text.parse().ok()).collect();
    let bad: Vec<&String> = texts.iter().filter(|text| text.parse::<T>().is_err()).collect();
    let quotes: Vec<String> =
        bad.iter().take(QUOTES).map(|text| format!("'{}'", printable(text, QUOTE))).collect();
    let more = bad.len().saturating_sub(QUOTES);
    let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
    (good, (!bad.is_empty()).then(|| format!("{}{more}", quotes.join(", "))))
}

/// At most `most` of `all`, and whether that is less than all.
pub(super) fn limited<T>(mut all: Vec<T>, what: &'static str, most: usize) -> (Vec<T>, Option<LeftOut>) {
    let surplus = (all.len() > most).then_some(LeftOut::Surplus { what, most });
    all.truncate(most);
    (all, surplus)
}
