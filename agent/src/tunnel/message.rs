//! The four messages of WireGuard (whitepaper, section 5.4), as far as they can be read without keys.

use super::ip::field;

/// Bytes of a handshake initiation.
pub(super) const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE_REPLY: usize = 64;
/// What a data message adds to its packet: header and authentication tag.
pub(super) const DATA_OVERHEAD: usize = 32;
/// `REJECT_AFTER_MESSAGES`. Beyond it `Tunn` would overflow its replay window, so such a message is not shown
/// to it.
const LAST_COUNTER: u64 = u64::MAX - (1 << 13) - 1;

/// What a datagram claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Initiation,
    Response {
        receiver: u32,
    },
    CookieReply {
        receiver: u32,
    },
    /// `counter`: how many were sent by this key before it.
    Data {
        receiver: u32,
        counter: u64,
    },
}

impl Message {
    /// `None` for whatever is not one of the messages, by type, reserved bytes, length or counter.
    pub(super) fn parse(datagram: &[u8]) -> Option<Self> {
        let receiver_at = |offset| field::<4>(datagram, offset).map(u32::from_le_bytes);
        match (datagram.first_chunk::<4>()?, datagram.len()) {
            ([1, 0, 0, 0], INITIATION) => Some(Self::Initiation),
            ([2, 0, 0, 0], RESPONSE) => Some(Self::Response { receiver: receiver_at(8)? }),
            ([3, 0, 0, 0], COOKIE_REPLY) => Some(Self::CookieReply { receiver: receiver_at(4)? }),
            ([4, 0, 0, 0], DATA_OVERHEAD..) => {
                let counter = field::<8>(datagram, 8).map(u64::from_le_bytes)?;
                (counter <= LAST_COUNTER).then_some(Self::Data { receiver: receiver_at(4)?, counter })
            }
            _ => None,
        }
    }

    /// The index of ours that it is meant for. An initiation has none.
    pub(super) const fn receiver(self) -> Option<u32> {
        match self {
            Self::Initiation => None,
            Self::Response { receiver } | Self::CookieReply { receiver } | Self::Data { receiver, .. } => {
                Some(receiver)
            }
        }
    }

    /// Whether this begins as an initiation does.
    pub(super) fn is_initiation(datagram: &[u8]) -> bool {
        datagram.starts_with(&[1, 0, 0, 0])
    }

    /// The sender's own index, as initiations and responses carry it.
    pub(super) fn sender(message: &[u8]) -> Option<u32> {
        field::<4>(message, 4).map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_by_type_and_length() {
        let message = |kind: u8, length: usize| {
            let mut bytes = vec![0; length];
            bytes[0] = kind;
            bytes
        };
        assert_eq!(Message::parse(&message(1, 148)), Some(Message::Initiation));
        assert_eq!(Message::parse(&message(2, 92)), Some(Message::Response { receiver: 0 }));
        assert_eq!(Message::parse(&message(3, 64)), Some(Message::CookieReply { receiver: 0 }));
        assert_eq!(Message::parse(&message(4, 32)), Some(Message::Data { receiver: 0, counter: 0 }));
        for (kind, length) in [(1, 147), (1, 149), (2, 91), (3, 65), (4, 31), (0, 148), (5, 148), (0x80, 32)]
        {
            assert_eq!(Message::parse(&message(kind, length)), None, "type {kind}, {length} bytes");
        }
        assert_eq!(Message::parse(&[]), None);
        assert_eq!(Message::parse(&[4, 0, 0]), None);
    }

    #[test]
    fn counters_at_the_end_of_a_key_are_refused() {
        let mut bytes = [0; 32];
        bytes[0] = 4;
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Message::parse(&bytes), None);
    }
}
