//! Domain names and hosts, as they may stand in a resolver's configuration, on a command line or in an endpoint.

use std::{fmt, net::IpAddr, str::FromStr};

/// Octets of a domain name in text, without the dot of the root (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;

/// Octets of a label (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// A domain name in lower case and without the dot of the root: labels of 1 to 63 letters, digits, dashes and
/// underscores, of which none begins or ends with a dash (RFC 1123, section 2.1; underscores as in RFC 8552), 253
/// octets in all. Its last label is no number, so that no program takes it for an IPv4 address.
///
/// So it can be no option, holds no character that ends a line, a word or a quotation, and is safe to print.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// Why a text is no [`DomainName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainNameError {
    /// More than 253 octets, or none.
    #[error("a domain name has 1 to 253 characters")]
    Length,
    /// A label is empty, too long, begins or ends with a dash, or holds another character.
    #[error(
        "a label of a domain name is 1 to 63 letters, digits, '-' and '_', and neither begins nor ends with '-'"
    )]
    Label,
    /// The last label is a number.
    #[error("a domain name does not end in a number")]
    Number,
}

impl DomainName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    /// Takes upper case and the dot of the root, as resolvers do.
    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(DomainNameError::Length);
        }
        if !name.split('.').all(is_label) {
            return Err(DomainNameError::Label);
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(DomainNameError::Number);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether `text` can name an object of Kubernetes, of whatever kind: small letters, digits, dashes and dots, 253 at
/// most, a letter or digit at both ends. What can is no path and no option.
pub fn is_object_name(text: &str) -> bool {
    let is_end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// By what a gateway is reached: an address or a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name.
    Name(DomainName),
}

impl FromStr for Host {
    type Err = DomainNameError;

    /// An address stands without brackets and zone.
    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        text.parse().map(Self::Address).or_else(|_| text.parse().map(Self::Name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A port of a host, written `host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, not 0.
    pub port: u16,
}

/// The text is no `host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an endpoint is written host:port, with a domain name or an address, and an IPv6 address in brackets"
)]
pub struct HostPortError;

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = text.rsplit_once(':').ok_or(HostPortError)?;
        let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| is_number && *port != 0).ok_or(HostPortError)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse().map(|address| Host::Address(IpAddr::V6(address))).ok(),
            None => host.parse().ok().filter(|host| !matches!(host, Host::Address(IpAddr::V6(_)))),
        };
        Ok(Self { host: host.ok_or(HostPortError)?, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hostile_texts;

    #[test]
    fn a_name_is_kept_in_lower_case_and_without_the_dot_of_the_root() {
        for (text, name) in [
            ("cluster.local", "cluster.local"),
            ("Corp.Example.", "corp.example"),
            ("_tcp.example.com", "_tcp.example.com"),
            ("local", "local"),
            ("10.in-addr.arpa", "10.in-addr.arpa"),
            ("1a", "1a"),
        ] {
            assert_eq!(text.parse::<DomainName>().unwrap().as_str(), name);
        }
        assert!(format!("{}.{}", "a".repeat(63), "b".repeat(63)).parse::<DomainName>().is_ok());
    }

    #[test]
    fn what_breaks_a_rule_of_names_is_refused_and_says_which() {
        use DomainNameError::{Label, Length, Number};
        let (long_label, long_name) = ("a".repeat(64), format!("{}a", "a.".repeat(127)));
        for (text, error) in [
            ("", Length),
            (".", Length),
            (long_name.as_str(), Length),
            (long_label.as_str(), Label),
            ("a..b", Label),
            (".a", Label),
            ("a..", Label),
            ("-a", Label),
            ("a-.b", Label),
            ("~.", Label),
            ("10.0.0.1", Number),
            ("example.1.", Number),
        ] {
            assert_eq!(text.parse::<DomainName>(), Err(error), "{text}");
        }
    }

    #[test]
    fn objects_are_named_in_small_letters_digits_dashes_and_dots() {
        for text in ["a", "1", "edge-0", "web.1", &"a".repeat(253)] {
            assert!(is_object_name(text), "{text}");
        }
        for text in ["", "-a", "a.", "A", "a_b", "a/b", &"a".repeat(254)] {
            assert!(!is_object_name(text), "{text}");
        }
    }

    #[test]
    fn an_endpoint_is_written_as_it_was_read() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:51820", "vpn.example.org:1", "edge-0.vpn.svc:65535"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in ["192.0.2.1", "2001:db8::1:51820", "[192.0.2.1]:1", "a:0", "a:+1", "a:65536", ":1", "a:"]
        {
            assert_eq!(text.parse::<HostPort>(), Err(HostPortError), "{text}");
        }
    }

    #[test]
    fn nothing_hostile_is_a_name_a_host_or_an_endpoint() {
        for text in hostile_texts::strings() {
            assert!(text.parse::<DomainName>().is_err(), "{text:?}");
            assert!(text.parse::<Host>().is_err(), "{text:?}");
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
            assert!(!is_object_name(&text), "{text:?}");
            assert!(format!("{text}:51820").parse::<HostPort>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_a_name_can_stand_in_a_configuration_and_on_a_command_line(text in "[a-zA-Z0-9._\n\0 é\"'-]{0,20}|.*") {
            if let Ok(name) = text.parse::<DomainName>() {
                let name = name.to_string();
                prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)));
                prop_assert!(!name.starts_with('-') && name.len() <= 253);
                prop_assert_eq!(name.parse::<DomainName>().map(|n| n.to_string()), Ok(name));
            }
            if let Ok(endpoint) = text.parse::<HostPort>() {
                let again = endpoint.to_string().parse::<HostPort>();
                prop_assert_eq!(again, Ok(endpoint));
            }
        }
    }
}
