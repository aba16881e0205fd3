//! The IP packets that the tunnel carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 header without options (RFC 791, section 3.1).
pub(super) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header (RFC 8200, section 3).
pub(super) const IPV6_HEADER: usize = 40;

/// Where a packet comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// Reads the addresses of an IP packet. `None` for what is neither IPv4 nor IPv6 or has no whole header.
pub(super) fn route(packet: &[u8]) -> Option<Route> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<IPV4_HEADER>()?;
            Some(Route {
                source: Ipv4Addr::from(field::<4>(header, 12)?).into(),
                destination: Ipv4Addr::from(field::<4>(header, 16)?).into(),
            })
        }
        6 => {
            let header = packet.first_chunk::<IPV6_HEADER>()?;
            Some(Route {
                source: Ipv6Addr::from(field::<16>(header, 8)?).into(),
                destination: Ipv6Addr::from(field::<16>(header, 24)?).into(),
            })
        }
        _ => None,
    }
}

/// The protocol and the offset of what an unfragmented packet carries right behind its IP header. `None` for
/// fragments (but the first), and where the header is broken. IPv6 extension headers count as protocols.
pub(super) fn payload(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<IPV4_HEADER>()?;
            let length = usize::from(header[0] & 0xf) * 4;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            (length >= IPV4_HEADER && fragment == 0).then_some((header[9], length))
        }
        6 => packet.first_chunk::<IPV6_HEADER>().map(|header| (header[6], IPV6_HEADER)),
        _ => None,
    }
}

/// `N` bytes at an offset.
pub(super) fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// The Internet checksum (RFC 1071) over several pieces, of which all but the last have an even length.
pub(super) fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for piece in pieces {
        let (words, rest) = piece.as_chunks::<2>();
        sum += words.iter().map(|&word| u64::from(u16::from_be_bytes(word))).sum::<u64>();
        sum += rest.first().map_or(0, |&byte| u64::from(byte) << 8);
    }
    !fold(sum)
}

/// Folds a sum into 16 bits with end-around carry.
pub(super) const fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
    let folded = sum as u16;
    folded
}
