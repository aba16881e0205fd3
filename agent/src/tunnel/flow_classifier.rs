//! Which flows fill a queue of the TUN device, and which send so little that they need not wait behind them (sparse
//! flows: RFC 8290, section 1.3).

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::ip::{self, TCP, UDP, field};

/// So many flows can be told apart; more share what is known of them.
const PLACES: usize = 1024;
/// How long a byte lasts: a sparse flow may send 1 MB/s all the time, the best video call, or any acknowledgements.
const BYTE: Duration = Duration::from_micros(1);
/// A flow that is so far ahead of that pace, by 128 KB, is bulk: an image or a page does not get there.
const BULK: Duration = BYTE.saturating_mul(131_072);
/// No flow counts as further ahead than this, and so near to the pace it is sparse again: after half a second, so that
/// the packets of its bulk have left the other queue.
const MOST: Duration = BYTE.saturating_mul(524_288);
const SPARSE: Duration = BYTE.saturating_mul(16_384);

#[derive(Debug, Clone, Copy)]
struct Flow {
    /// When what it sent would have been sent at the pace.
    even_at: Instant,
    is_bulk: bool,
}

/// What the flows through a device did of late.
#[derive(Debug)]
pub(super) struct FlowClassifier {
    places: Box<[Flow]>,
    /// Seeded at random, so that nobody chooses whose place to share.
    hasher: RandomState,
}

impl FlowClassifier {
    pub(super) fn new(now: Instant) -> Self {
        let flow = Flow { even_at: now, is_bulk: false };
        Self { places: vec![flow; PLACES].into_boxed_slice(), hasher: RandomState::new() }
    }

    /// Counts what was read of a flow: a packet or super-packet.
    pub(super) fn count(&mut self, now: Instant, packet: &[u8]) {
        let Some(flow) = self.place(packet).and_then(|place| self.places.get_mut(place)) else { return };
        let bytes = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let ahead = (flow.even_at.saturating_duration_since(now) + BYTE * bytes).min(MOST);
        flow.even_at = now + ahead;
        flow.is_bulk = ahead > if flow.is_bulk { SPARSE } else { BULK };
    }

    /// Whether the flow of this packet, which may be of its other direction, was bulk when it was last counted.
    pub(super) fn is_bulk(&self, packet: &[u8]) -> bool {
        self.place(packet).and_then(|place| self.places.get(place)).is_some_and(|flow| flow.is_bulk)
    }

    /// The same for both directions.
    fn place(&self, packet: &[u8]) -> Option<usize> {
        let route = ip::route(packet)?;
        let (protocol, ports) = match ip::payload(packet) {
            Some((protocol @ (TCP | UDP), start)) => {
                (protocol, field::<4>(packet, start).unwrap_or_default())
            }
            Some((protocol, _)) => (protocol, [0; 4]),
            None => (0, [0; 4]),
        };
        let [a, b, c, d] = ports;
        let source = (bits(route.source), [a, b]);
        let destination = (bits(route.destination), [c, d]);
        let hash = self.hasher.hash_one((source.min(destination), source.max(destination), protocol));
        usize::try_from(hash % PLACES as u64).ok()
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];
    const LARGE: usize = 65_000;

    /// IPv4 with the first bytes of a transport's header.
    fn packet(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16), length: usize) -> Vec<u8> {
        let mut packet = vec![0; length];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&from.0);
        packet[16..20].copy_from_slice(&to.0);
        packet[20..22].copy_from_slice(&from.1.to_be_bytes());
        packet[22..24].copy_from_slice(&to.1.to_be_bytes());
        packet
    }

    fn stream(length: usize) -> Vec<u8> {
        packet(TCP, (A, 1000), (B, 80), length)
    }

    #[test]
    fn a_flow_is_bulk_in_both_directions_once_it_sent_much() {
        let now = Instant::now();
        let mut flows = FlowClassifier::new(now);
        let answer = packet(TCP, (B, 80), (A, 1000), 52);
        for _ in 0..2 {
            flows.count(now, &stream(LARGE));
            assert!(!flows.is_bulk(&answer));
        }
        flows.count(now, &stream(LARGE));
        assert!(flows.is_bulk(&answer) && flows.is_bulk(&stream(52)));
    }

    #[test]
    fn others_of_the_same_hosts_are_not() {
        let now = Instant::now();
        let mut flows = FlowClassifier::new(now);
        for _ in 0..10 {
            flows.count(now, &stream(LARGE));
        }
        let others = (0..100)
            .map(|port| packet(TCP, (A, 2000 + port), (B, 80), 52))
            .chain((0..100).map(|port| packet(UDP, (A, 1000), (B, 1000 + port), 52)))
            .chain([packet(1, (A, 0x800), (B, 0), 84)]);
        // Two in 1024 share a place with it.
        assert!(others.filter(|packet| flows.is_bulk(packet)).count() < 10);
    }

    #[test]
    fn what_keeps_to_the_pace_stays_sparse_for_ever() {
        let start = Instant::now();
        let mut flows = FlowClassifier::new(start);
        for n in 0..10_000 {
            flows.count(start + Duration::from_millis(n), &stream(1000));
            assert!(!flows.is_bulk(&stream(52)));
        }
    }

    #[test]
    fn after_half_a_second_of_little_a_flow_is_sparse_again_and_not_before() {
        let start = Instant::now();
        let mut flows = FlowClassifier::new(start);
        for _ in 0..100 {
            flows.count(start, &stream(LARGE));
        }
        flows.count(start + Duration::from_millis(490), &stream(52));
        assert!(flows.is_bulk(&stream(52)));
        flows.count(start + Duration::from_millis(520), &stream(52));
        assert!(!flows.is_bulk(&stream(52)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_some_flow_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let now = Instant::now();
            let mut flows = FlowClassifier::new(now);
            flows.count(now, &bytes);
            prop_assert!(!flows.is_bulk(&bytes));
        }
    }
}
