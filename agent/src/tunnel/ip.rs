//! The IP packets that the tunnel carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 header without options (RFC 791, section 3.1).
pub(super) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header (RFC 8200, section 3).
pub(super) const IPV6_HEADER: usize = 40;
/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;
/// Bytes of a TCP header without options (RFC 9293, section 3.1).
pub(super) const TCP_HEADER: usize = 20;
/// Bytes of a UDP header (RFC 768).
pub(super) const UDP_HEADER: usize = 8;

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

/// Writes `N` bytes at an offset, where there is room for them.
pub(super) fn set_field<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *place = value;
    }
}
