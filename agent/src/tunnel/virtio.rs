//! The header in front of each frame that crosses a TUN device with offloads: `struct virtio_net_hdr`
//! (virtio 1.3, section 5.1.6), in the machine's byte order.

use super::ip::{field, set_field};

/// Bytes of the header.
pub(super) const HEADER: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const NONE: u8 = 0;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;
/// Said beside a kind of TCP: the connection marks congestion.
const ECN: u8 = 0x80;

/// What a super-packet is to be split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    TcpV4,
    TcpV6,
    Udp,
}

/// A checksum that somebody else is to finish: the field holds the sum of the pseudo header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Where the bytes begin that it covers; they reach to the end.
    pub(super) start: u16,
    /// Where its field is, from there.
    pub(super) offset: u16,
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) unfinished: Option<Unfinished>,
    /// The kind, and the payload of each segment but the last, in bytes.
    pub(super) split: Option<(Kind, u16)>,
}

impl FrameHeader {
    /// `None` for a kind that nobody asked for.
    pub(super) fn decode(bytes: [u8; HEADER]) -> Option<Self> {
        let word = |offset| field::<2>(&bytes, offset).map_or(0, u16::from_ne_bytes);
        let [flags, kind, ..] = bytes;
        let kind = match kind & !ECN {
            NONE => None,
            TCP_V4 => Some(Kind::TcpV4),
            TCP_V6 => Some(Kind::TcpV6),
            UDP => Some(Kind::Udp),
            _ => return None,
        };
        let unfinished =
            (flags & NEEDS_CHECKSUM != 0).then(|| Unfinished { start: word(6), offset: word(8) });
        Some(Self { unfinished, split: kind.map(|kind| (kind, word(4))) })
    }

    /// `headers` is the length of everything in front of the payload, which only a super-packet needs.
    pub(super) fn encode(self, headers: u16) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        if let Some(Unfinished { start, offset }) = self.unfinished {
            set_field(&mut bytes, 0, [NEEDS_CHECKSUM]);
            set_field(&mut bytes, 6, start.to_ne_bytes());
            set_field(&mut bytes, 8, offset.to_ne_bytes());
        }
        if let Some((kind, size)) = self.split {
            let kind = match kind {
                Kind::TcpV4 => TCP_V4,
                Kind::TcpV6 => TCP_V6,
                Kind::Udp => UDP,
            };
            set_field(&mut bytes, 1, [kind]);
            set_field(&mut bytes, 2, headers.to_ne_bytes());
            set_field(&mut bytes, 4, size.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_survives_its_own_bytes(
            start: u16, offset: u16, size: u16, headers: u16, unfinished: bool,
            kind in prop_oneof![Just(None), Just(Some(Kind::TcpV4)), Just(Some(Kind::TcpV6)), Just(Some(Kind::Udp))],
        ) {
            let header = FrameHeader {
                unfinished: unfinished.then_some(Unfinished { start, offset }),
                split: kind.map(|kind| (kind, size)),
            };
            prop_assert_eq!(FrameHeader::decode(header.encode(headers)), Some(header));
        }

        #[test]
        fn any_bytes_are_survived(bytes: [u8; HEADER]) {
            FrameHeader::decode(bytes);
        }
    }
}
