//! IPv4 packets as a NAT sees them: who talks to whom, and how to say it differently with right checksums.
//!
//! Checksums are updated by the difference (RFC 1624), so that a packet that came in broken goes out broken.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// ICMP echo; its identifier is in the place of a port (RFC 5508, section 3).
    Icmp,
}

/// Why a packet cannot be translated at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// Of another version of IP.
    #[error("not IPv4")]
    NotIpv4,
    /// Shorter than its own lengths say, or than its protocol needs.
    #[error("truncated")]
    Truncated,
    /// A fragment: only the first has ports.
    #[error("a fragment")]
    Fragment,
    /// Neither UDP, TCP, ICMP echo nor an ICMP error.
    #[error("no protocol that is translated")]
    Unsupported,
    /// The checksum of an ICMP error is wrong (RFC 5508, section 4.1).
    #[error("a wrong checksum")]
    Checksum,
}

impl Malformed {
    /// Stable, low-cardinality name.
    pub const fn category(self) -> &'static str {
        match self {
            Self::NotIpv4 => "NotIpv4",
            Self::Truncated => "Truncated",
            Self::Fragment => "Fragment",
            Self::Unsupported => "Unsupported",
            Self::Checksum => "Checksum",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flow(Protocol),
    /// An ICMP echo reply, which names its flow from the other end.
    EchoReply,
    Error,
}

/// What a packet is, for a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It belongs to a flow between two ends.
    Flow { protocol: Protocol, source: SocketAddrV4, destination: SocketAddrV4 },
    /// It says that a packet of this flow met an error.
    Error { protocol: Protocol, source: SocketAddrV4, destination: SocketAddrV4 },
}

/// A complete IPv4 packet of a protocol that is translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    header: Header,
    kind: Kind,
    /// The header quoted in an ICMP error, counted from the start of the packet.
    quoted: Option<Header>,
}

/// An IPv4 header within a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    start: usize,
    /// Where its transport header begins.
    transport: usize,
    protocol: u8,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

impl Packet {
    /// Reads a packet; bytes beyond its own length are left out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes, 0)?;
        let total = usize::from(word(bytes, 2).ok_or(Malformed::Truncated)?);
        if total < header.transport {
            return Err(Malformed::Truncated);
        }
        let bytes = bytes.get(..total).ok_or(Malformed::Truncated)?.to_vec();
        let transport = bytes.get(header.transport..).unwrap_or_default();
        let (kind, least) = match (header.protocol, transport.first()) {
            (UDP, _) => (Kind::Flow(Protocol::Udp), 8),
            (TCP, _) => (Kind::Flow(Protocol::Tcp), 20),
            (ICMP, Some(8)) => (Kind::Flow(Protocol::Icmp), 8),
            (ICMP, Some(0)) => (Kind::EchoReply, 8),
            (ICMP, Some(3 | 11 | 12)) => (Kind::Error, 8 + 20 + 8),
            (ICMP, None) => return Err(Malformed::Truncated),
            _ => return Err(Malformed::Unsupported),
        };
        if transport.len() < least {
            return Err(Malformed::Truncated);
        }
        if kind == Kind::Flow(Protocol::Udp) && word(transport, 4).map(usize::from) != Some(transport.len()) {
            return Err(Malformed::Truncated);
        }
        if kind != Kind::Error {
            return Ok(Self { bytes, header, kind, quoted: None });
        }
        if sum(transport) != 0xffff {
            return Err(Malformed::Checksum);
        }
        let quoted = Header::parse(&bytes, header.transport + 8)?;
        if !matches!(quoted.protocol, UDP | TCP | ICMP) {
            return Err(Malformed::Unsupported);
        }
        if bytes.len() < quoted.transport + 8 {
            return Err(Malformed::Truncated);
        }
        Ok(Self { bytes, header, kind, quoted: Some(quoted) })
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The address it comes from.
    pub(crate) fn source_address(&self) -> Ipv4Addr {
        self.address(self.header, End::Source)
    }

    /// The address it goes to.
    pub(crate) fn destination_address(&self) -> Ipv4Addr {
        self.address(self.header, End::Destination)
    }

    /// What it is. The far end of an ICMP echo has port 0.
    pub(crate) fn meaning(&self) -> Meaning {
        let header = self.quoted.unwrap_or(self.header);
        let (source, destination) = self.ends(header);
        match (self.kind, header.protocol) {
            (Kind::Error, UDP) => Meaning::Error { protocol: Protocol::Udp, source, destination },
            (Kind::Error, TCP) => Meaning::Error { protocol: Protocol::Tcp, source, destination },
            (Kind::Error, _) => Meaning::Error { protocol: Protocol::Icmp, source, destination },
            (Kind::EchoReply, _) => Meaning::Flow { protocol: Protocol::Icmp, source, destination },
            (Kind::Flow(protocol), _) => Meaning::Flow { protocol, source, destination },
        }
    }

    /// Makes it come from elsewhere. An ICMP error then quotes a packet that went there.
    pub(crate) fn set_source(&mut self, to: SocketAddrV4) {
        self.set(End::Source, to);
    }

    /// Makes it go elsewhere. An ICMP error then quotes a packet that came from there.
    pub(crate) fn set_destination(&mut self, to: SocketAddrV4) {
        self.set(End::Destination, to);
    }

    /// The payload of a UDP datagram; empty for others.
    pub(crate) fn payload(&self) -> &[u8] {
        match self.kind {
            Kind::Flow(Protocol::Udp) => self.bytes.get(self.header.transport + 8..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Replaces the payload of a UDP datagram, with new checksums. Does nothing to others, nor where it would
    /// get too long for a packet.
    pub(crate) fn set_payload(&mut self, payload: &[u8]) {
        let transport = self.header.transport;
        let lengths = (u16::try_from(transport + 8 + payload.len()), u16::try_from(8 + payload.len()));
        let (Kind::Flow(Protocol::Udp), (Ok(total), Ok(length))) = (self.kind, lengths) else { return };
        self.bytes.truncate(transport + 8);
        self.bytes.extend_from_slice(payload);
        put_word(&mut self.bytes, 2, total);
        put_word(&mut self.bytes, transport + 4, length);
        put_word(&mut self.bytes, 10, 0);
        let header_sum = !sum(self.bytes.get(..transport).unwrap_or_default());
        put_word(&mut self.bytes, 10, header_sum);
        if word(&self.bytes, transport + 6) != Some(0) {
            put_word(&mut self.bytes, transport + 6, 0);
            let checksum = !self.transport_sum();
            put_word(&mut self.bytes, transport + 6, if checksum == 0 { 0xffff } else { checksum });
        }
    }

    /// Whether all its checksums are right. A UDP checksum of zero is none (RFC 768).
    #[cfg(test)]
    pub(crate) fn checksums_are_right(&self) -> bool {
        let header = self.bytes.get(..self.header.transport).unwrap_or_default();
        let none = self.header.protocol == UDP && word(&self.bytes, self.header.transport + 6) == Some(0);
        sum(header) == 0xffff && (none || self.transport_sum() == 0xffff)
    }

    /// One's complement sum of the transport part, with the pseudo header where it has one.
    fn transport_sum(&self) -> u16 {
        let part = self.bytes.get(self.header.transport..).unwrap_or_default();
        if self.header.protocol == ICMP {
            return sum(part);
        }
        let mut pseudo = self.bytes.get(12..20).unwrap_or_default().to_vec();
        pseudo.extend_from_slice(&[0, self.header.protocol]);
        pseudo.extend_from_slice(&u16::try_from(part.len()).unwrap_or_default().to_be_bytes());
        add(sum(&pseudo), sum(part))
    }

    fn address(&self, header: Header, end: End) -> Ipv4Addr {
        let at = header.address(end);
        let octets = self.bytes.get(at..at + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
        octets.unwrap_or_default().into()
    }

    fn ends(&self, header: Header) -> (SocketAddrV4, SocketAddrV4) {
        let end = |end| {
            let port = header.port(&self.bytes, end).and_then(|at| word(&self.bytes, at)).unwrap_or_default();
            SocketAddrV4::new(self.address(header, end), port)
        };
        (end(End::Source), end(End::Destination))
    }

    fn set(&mut self, end: End, to: SocketAddrV4) {
        let Some(quoted) = self.quoted else {
            self.replace(self.header, end, to);
            return;
        };
        // What it quotes travelled the other way.
        let other = if end == End::Source { End::Destination } else { End::Source };
        self.replace(quoted, other, to);
        self.replace_words(self.header.address(end), &to.ip().octets(), &[self.header.checksum()]);
        let at = self.header.transport;
        put_word(&mut self.bytes, at + 2, 0);
        let checksum = !sum(self.bytes.get(at..).unwrap_or_default());
        put_word(&mut self.bytes, at + 2, checksum);
    }

    /// Replaces address and port of one end in a header and its transport header.
    fn replace(&mut self, header: Header, end: End, to: SocketAddrV4) {
        let transport = header.transport_checksum(&self.bytes);
        let pseudo = (header.protocol != ICMP).then_some(transport).flatten();
        let sums: Vec<usize> = [Some(header.checksum()), pseudo].into_iter().flatten().collect();
        self.replace_words(header.address(end), &to.ip().octets(), &sums);
        if let Some(port) = header.port(&self.bytes, end) {
            let sums: Vec<usize> = transport.into_iter().collect();
            self.replace_words(port, &to.port().to_be_bytes(), &sums);
        }
        // Zero would mean that there is none.
        if let (UDP, Some(at)) = (header.protocol, transport)
            && word(&self.bytes, at) == Some(0)
        {
            put_word(&mut self.bytes, at, 0xffff);
        }
    }

    /// Replaces an even number of bytes, and updates the checksums at `sums` by the difference (RFC 1624,
    /// equation 3).
    fn replace_words(&mut self, at: usize, new: &[u8], sums: &[usize]) {
        let Some(place) = self.bytes.get_mut(at..at + new.len()) else { return };
        let change = add(!sum(place), sum(new));
        place.copy_from_slice(new);
        for at in sums {
            let Some(checksum) = word(&self.bytes, *at) else { continue };
            put_word(&mut self.bytes, *at, !add(!checksum, change));
        }
    }
}

impl Header {
    fn parse(bytes: &[u8], start: usize) -> Result<Self, Malformed> {
        let bytes = bytes.get(start..).unwrap_or_default();
        let first = *bytes.first().ok_or(Malformed::Truncated)?;
        if first >> 4 != 4 {
            return Err(Malformed::NotIpv4);
        }
        let length = usize::from(first & 0x0f) * 4;
        if length < 20 || bytes.len() < length {
            return Err(Malformed::Truncated);
        }
        // More fragments, or not the first one.
        if word(bytes, 6).is_some_and(|flags| flags & 0x3fff != 0) {
            return Err(Malformed::Fragment);
        }
        let protocol = *bytes.get(9).ok_or(Malformed::Truncated)?;
        Ok(Self { start, transport: start + length, protocol })
    }

    const fn checksum(self) -> usize {
        self.start + 10
    }

    const fn address(self, end: End) -> usize {
        self.start
            + match end {
                End::Source => 12,
                End::Destination => 16,
            }
    }

    /// Where the port of an end is. The one port of an ICMP echo is the asking end's.
    fn port(self, bytes: &[u8], end: End) -> Option<usize> {
        let asks = bytes.get(self.transport) == Some(&8);
        match (self.protocol, end) {
            (ICMP, End::Source) => asks.then_some(self.transport + 4),
            (ICMP, End::Destination) => (!asks).then_some(self.transport + 4),
            (_, End::Source) => Some(self.transport),
            (_, End::Destination) => Some(self.transport + 2),
        }
    }

    /// Where the transport checksum is, if there is one: an ICMP error need not quote that much.
    fn transport_checksum(self, bytes: &[u8]) -> Option<usize> {
        let at = self.transport
            + match self.protocol {
                ICMP => 2,
                TCP => 16,
                _ => 6,
            };
        let value = word(bytes, at)?;
        (self.protocol != UDP || value != 0).then_some(at)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// One's complement addition.
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// One's complement sum of 16-bit words; an odd last byte is followed by a zero (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let high = pair.first().copied().unwrap_or_default();
        u16::from_be_bytes([high, pair.get(1).copied().unwrap_or_default()])
    });
    words.fold(0, add)
}

#[cfg(test)]
pub(crate) mod build {
    //! Packets made from nothing, for tests.

    use super::*;

    pub(crate) fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, transport: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x45, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        let checksum = !sum(&bytes);
        put_word(&mut bytes, 10, checksum);
        bytes.extend_from_slice(transport);
        bytes
    }

    fn checksummed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        let packet = Packet::parse(&bytes).unwrap();
        let checksum = !packet.transport_sum();
        put_word(&mut bytes, 20 + at, if checksum == 0 { 0xffff } else { checksum });
        bytes
    }

    pub(crate) fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let mut part = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        part.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        part.extend([0, 0]);
        part.extend_from_slice(payload);
        checksummed(ipv4(UDP, *source.ip(), *destination.ip(), &part), 6)
    }

    pub(crate) fn tcp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let mut part = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        part.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        part.extend_from_slice(payload);
        checksummed(ipv4(TCP, *source.ip(), *destination.ip(), &part), 16)
    }

    pub(crate) fn echo(kind: u8, source: Ipv4Addr, destination: Ipv4Addr, identifier: u16) -> Vec<u8> {
        let identifier = identifier.to_be_bytes();
        let part = [kind, 0, 0, 0, identifier[0], identifier[1], 0, 1, 1, 2, 3];
        let mut part = part.to_vec();
        let checksum = !sum(&part);
        put_word(&mut part, 2, checksum);
        ipv4(ICMP, source, destination, &part)
    }

    /// "Port unreachable", about the first 8 bytes behind the IP header of `about`.
    pub(crate) fn error(source: Ipv4Addr, destination: Ipv4Addr, about: &[u8]) -> Vec<u8> {
        let mut part = vec![3, 3, 0, 0, 0, 0, 0, 0];
        part.extend_from_slice(&about[..28]);
        let checksum = !sum(&part);
        put_word(&mut part, 2, checksum);
        ipv4(ICMP, source, destination, &part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end() -> impl Strategy<Value = SocketAddrV4> {
        (any::<u32>(), any::<u16>()).prop_map(|(address, port)| SocketAddrV4::new(address.into(), port))
    }

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn fragments_other_protocols_and_other_versions_are_told_apart() {
        let good = build::udp(at("10.0.0.1:1"), at("10.0.0.2:2"), b"hello");
        let with = |index: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[index] = value;
            Packet::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(6, 0x20), Malformed::Fragment);
        assert_eq!(with(7, 0x01), Malformed::Fragment);
        assert_eq!(with(0, 0x60), Malformed::NotIpv4);
        assert_eq!(with(9, 47), Malformed::Unsupported);
        assert_eq!(with(3, 0xff), Malformed::Truncated);
    }

    #[test]
    fn an_error_quotes_the_packet_as_the_other_side_knows_it() {
        let (inside, outside, remote) =
            (at("192.168.1.2:4500"), at("203.0.113.30:50001"), at("203.0.113.10:53"));
        let sent = build::udp(outside, remote, b"");
        let mut packet = Packet::parse(&build::error(*remote.ip(), *outside.ip(), &sent)).unwrap();
        packet.set_destination(inside);
        assert!(packet.checksums_are_right());
        assert_eq!(packet.destination_address(), *inside.ip());
        let meaning = Meaning::Error { protocol: Protocol::Udp, source: inside, destination: remote };
        assert_eq!(packet.meaning(), meaning);
        let original = build::udp(inside, remote, b"");
        assert_eq!(&packet.bytes()[28..], &original[..28], "with its checksums");
    }

    #[test]
    fn an_error_with_a_wrong_checksum_is_refused() {
        let sent = build::udp(at("203.0.113.30:50001"), at("203.0.113.10:53"), b"");
        let mut error = build::error(Ipv4Addr::new(203, 0, 113, 10), Ipv4Addr::new(203, 0, 113, 30), &sent);
        error[30] ^= 1;
        assert_eq!(Packet::parse(&error), Err(Malformed::Checksum));
    }

    proptest! {
        #[test]
        fn translation_keeps_checksums_right_and_is_undone_by_its_inverse(
            source in end(), destination in end(), new in end(), payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let pairs = [build::udp(source, destination, &payload), build::tcp(source, destination, &payload)];
            for original in pairs {
                let mut packet = Packet::parse(&original).unwrap();
                prop_assert!(packet.checksums_are_right());
                packet.set_source(new);
                prop_assert!(packet.checksums_are_right());
                prop_assert_eq!(Packet::parse(packet.bytes()).unwrap().meaning(), packet.meaning());
                packet.set_source(source);
                packet.set_destination(new);
                prop_assert!(packet.checksums_are_right());
                packet.set_destination(destination);
                prop_assert_eq!(packet.into_bytes(), original);
            }
        }

        #[test]
        fn an_echo_is_known_by_its_identifier(
            source: u32, destination: u32, new in end(), identifier: u16,
        ) {
            let mut packet = Packet::parse(&build::echo(8, source.into(), destination.into(), identifier)).unwrap();
            packet.set_source(new);
            prop_assert!(packet.checksums_are_right());
            let remote = SocketAddrV4::new(destination.into(), 0);
            prop_assert_eq!(
                packet.meaning(),
                Meaning::Flow { protocol: Protocol::Icmp, source: new, destination: remote }
            );
        }

        #[test]
        fn another_payload_gets_right_lengths_and_checksums(
            source in end(), destination in end(), payload in prop::collection::vec(any::<u8>(), 0..99),
        ) {
            let mut packet = Packet::parse(&build::udp(source, destination, b"before")).unwrap();
            packet.set_payload(&payload);
            prop_assert!(packet.checksums_are_right());
            let again = Packet::parse(packet.bytes()).unwrap();
            prop_assert_eq!(again.payload(), &payload[..]);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..128), new in end(), like_ip: bool) {
            if like_ip && bytes.len() >= 20 {
                bytes[0] = 0x45 + bytes[0] % 3;
                bytes[2] = 0;
                (bytes[6], bytes[7]) = (0, 0);
                bytes[9] = [ICMP, TCP, UDP][usize::from(bytes[9]) % 3];
            }
            if let Ok(mut packet) = Packet::parse(&bytes) {
                let length = packet.bytes().len();
                packet.set_source(new);
                packet.set_destination(new);
                packet.meaning();
                prop_assert_eq!(packet.bytes().len(), length);
                packet.set_payload(b"something else");
            }
        }
    }
}
