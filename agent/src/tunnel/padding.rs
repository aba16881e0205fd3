//! Zeros behind packets, so that the wire does not show how long they are (WireGuard whitepaper, section 5.4.6). Whoever
//! receives them cuts each packet to the length that its own header tells.

/// What lengths are rounded up to, in bytes.
const STEP: usize = 16;

/// Pads packets.
#[derive(Debug)]
pub(super) struct Padding {
    /// No packet is made longer than this: the device's MTU.
    limit: usize,
    /// The packet that was padded last. Packets that fill the MTU are not copied, so bulk costs nothing.
    room: Vec<u8>,
}

impl Padding {
    /// `mtu` is the device's, in bytes.
    pub(super) fn new(mtu: u16) -> Self {
        Self { limit: mtu.into(), room: Vec::new() }
    }

    /// The device has another MTU now.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.limit = mtu.into();
    }

    /// The packet with as many zeros as it takes. One of no length is a keepalive, and stays one.
    pub(super) fn pad<'a>(&'a mut self, packet: &'a [u8]) -> &'a [u8] {
        let length = padded(packet.len(), self.limit);
        if length == packet.len() {
            return packet;
        }
        self.room.clear();
        self.room.extend_from_slice(packet);
        self.room.resize(length, 0);
        &self.room
    }
}

/// A packet that is longer than the limit, which has changed then, stays as long as it is.
fn padded(length: usize, limit: usize) -> usize {
    length.next_multiple_of(STEP).min(limit).max(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_rounded_up_but_never_beyond_the_mtu() {
        for (length, limit, wanted) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (17, 1420, 32),
            (1408, 1420, 1408),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1421, 1420, 1421),
            (60, 0, 60),
        ] {
            assert_eq!(padded(length, limit), wanted, "{length} of {limit}");
        }
    }

    proptest! {
        #[test]
        fn a_padded_packet_is_the_packet_and_zeros(
            packets in prop::collection::vec(prop::collection::vec(1_u8.., 0..100), 1..5), mtu in 0_u16..100,
        ) {
            let mut padding = Padding::new(1420);
            padding.set_mtu(mtu);
            for packet in packets {
                let padded = padding.pad(&packet);
                let (same, zeros) = padded.split_at(packet.len());
                prop_assert_eq!(same, &packet[..]);
                prop_assert!(zeros.len() < STEP && zeros.iter().all(|&byte| byte == 0));
                prop_assert!(padded.len() <= packet.len().max(mtu.into()));
                prop_assert!(padded.len().is_multiple_of(STEP) || padded.len() >= usize::from(mtu));
            }
        }
    }
}
