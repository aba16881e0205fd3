//! Application-level gateways: helpers that meddle with what they think is some protocol's payload.
//!
//! Real ones mean FTP, SIP or IPsec; they fall on whatever looks alike, or travels on their ports.

use std::{collections::BTreeSet, net::SocketAddrV4};

/// A helper of a NAT, for UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Helper {
    /// Replaces the client's address (and its port, where that stands right beside) wherever it finds them in a
    /// payload, in binary or as text; on the way in, it puts the client's own back.
    Rewrites {
        /// Only towards these ports of the other end. Empty: towards all.
        ports: BTreeSet<u16>,
    },
    /// Lets only one client at a time through to this port of the other end, as an IPsec passthrough does; the
    /// others wait until its mapping is gone.
    OneClient {
        /// The port.
        port: u16,
    },
}

/// The payload with all traces of `from` replaced by `to`; none when there are no traces.
pub(crate) fn rewrite(payload: &[u8], from: SocketAddrV4, to: SocketAddrV4) -> Option<Vec<u8>> {
    let mut left = payload;
    let mut rewritten = Vec::with_capacity(payload.len());
    let mut found = false;
    while let Some(byte) = left.first() {
        let before = payload.get(..payload.len() - left.len()).unwrap_or_default();
        let taken = binary(left, before, from, to, &mut rewritten)
            .or_else(|| text(left, before, from, to, &mut rewritten));
        found |= taken.is_some();
        if taken.is_none() {
            rewritten.push(*byte);
        }
        left = left.get(taken.unwrap_or(1)..).unwrap_or_default();
    }
    found.then_some(rewritten)
}

/// Takes an address in network byte order, with the port right before it (as in STUN) or behind it.
fn binary(
    left: &[u8],
    before: &[u8],
    from: SocketAddrV4,
    to: SocketAddrV4,
    rewritten: &mut Vec<u8>,
) -> Option<usize> {
    let rest = left.strip_prefix(&from.ip().octets())?;
    let (old, new) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    let port_before = before.ends_with(&old) && rewritten.ends_with(&old);
    if port_before {
        rewritten.truncate(rewritten.len() - 2);
        rewritten.extend(new);
    }
    rewritten.extend(to.ip().octets());
    if !port_before && rest.starts_with(&old) {
        rewritten.extend(new);
        return Some(6);
    }
    Some(4)
}

/// Takes an address in dotted form, with the port behind a colon.
fn text(
    left: &[u8],
    before: &[u8],
    from: SocketAddrV4,
    to: SocketAddrV4,
    rewritten: &mut Vec<u8>,
) -> Option<usize> {
    if !left.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let goes_on = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let (address, port) = (from.ip().to_string(), format!(":{}", from.port()));
    let rest = left.strip_prefix(address.as_bytes())?;
    if before.last().is_some_and(goes_on) || rest.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    rewritten.extend(to.ip().to_string().bytes());
    match rest.strip_prefix(port.as_bytes()) {
        Some(rest) if !rest.first().is_some_and(u8::is_ascii_digit) => {
            rewritten.extend(format!(":{}", to.port()).bytes());
            Some(address.len() + port.len())
        }
        _ => Some(address.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRIVATE: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(192, 168, 1, 2), 4500);
    const PUBLIC: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(203, 0, 113, 30), 50_001);

    fn rewritten(payload: &[u8]) -> Vec<u8> {
        rewrite(payload, PRIVATE, PUBLIC).unwrap()
    }

    #[test]
    fn text_is_rewritten_with_the_port_where_it_is_named() {
        assert_eq!(rewritten(b"Via: 192.168.1.2:4500;"), b"Via: 203.0.113.30:50001;");
        assert_eq!(rewritten(b"c=IN IP4 192.168.1.2"), b"c=IN IP4 203.0.113.30");
        assert_eq!(rewritten(b"192.168.1.2:45001"), b"203.0.113.30:45001");
    }

    #[test]
    fn binary_is_rewritten_with_the_port_on_either_side() {
        let (private, public) = ([192, 168, 1, 2], [203, 0, 113, 30]);
        let (old, new) = (4500_u16.to_be_bytes(), 50_001_u16.to_be_bytes());
        assert_eq!(
            rewritten(&[&b"x"[..], &old, &private, b"y"].concat()),
            [&b"x"[..], &new, &public, b"y"].concat()
        );
        assert_eq!(rewritten(&[&private[..], &old].concat()), [&public[..], &new].concat());
        assert_eq!(rewritten(&private), public);
    }

    #[test]
    fn what_only_looks_alike_is_left_alone() {
        for payload in [&b"1192.168.1.2"[..], b"192.168.1.23", b"192.168.1.", &[192, 168, 1], b""] {
            assert_eq!(rewrite(payload, PRIVATE, PUBLIC), None, "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_survived_and_only_traces_change_it(
            mut payload in prop::collection::vec(any::<u8>(), 0..64), at in 0_usize..64, plant: bool,
        ) {
            let at = at.min(payload.len());
            if plant {
                payload.splice(at..at, PRIVATE.ip().octets());
            }
            let result = rewrite(&payload, PRIVATE, PUBLIC);
            prop_assert!(!plant || result.is_some());
            if let Some(result) = result {
                prop_assert_eq!(result.len(), payload.len());
                prop_assert!(rewrite(&result, PRIVATE, PUBLIC).is_none());
            }
        }
    }
}
