//! Splitting and merging undo each other.

use proptest::prelude::*;

use super::*;
use crate::tunnel::{checksum::checksum, segments::Segments};

const FIN: u8 = 0x01;

/// What the packets of a flow have in common, and what the first of them says.
#[derive(Debug, Clone, Copy)]
struct Flow {
    v6: bool,
    udp: bool,
    ports: [u8; 4],
    class: u8,
    hops: u8,
    dont_fragment: bool,
    id: u16,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    options: usize,
}

impl Flow {
    fn kind(&self) -> Kind {
        match (self.udp, self.v6) {
            (true, _) => Kind::Udp,
            (false, false) => Kind::TcpV4,
            (false, true) => Kind::TcpV6,
        }
    }

    fn start(&self) -> usize {
        if self.v6 { IPV6_HEADER } else { IPV4_HEADER }
    }

    fn headers(&self) -> usize {
        self.start() + if self.udp { UDP_HEADER } else { TCP_HEADER + self.options * 4 }
    }

    /// The packet number `n`, `offset` bytes into the stream, with right checksums.
    fn packet(&self, n: u16, offset: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
        let transport = self.headers() - self.start() + payload.len();
        let length = u16::try_from(transport).unwrap().to_be_bytes();
        let mut packet = if self.v6 {
            let mut header = vec![0x60 | self.class >> 4, self.class << 4, 1, 2, length[0], length[1]];
            header.extend([if self.udp { UDP } else { TCP }, self.hops]);
            header.extend([0xfd; 16]);
            header.extend([0xfe; 16]);
            header
        } else {
            let total = u16::try_from(IPV4_HEADER + transport).unwrap().to_be_bytes();
            let id = self.id.wrapping_add(n).to_be_bytes();
            let fragment = if self.dont_fragment { 0x40 } else { 0 };
            let mut header = vec![0x45, self.class, total[0], total[1], id[0], id[1], fragment, 0, self.hops];
            header.extend([if self.udp { UDP } else { TCP }, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = checksum(&[&header]);
            set_field(&mut header, 10, sum.to_be_bytes());
            header
        };
        let start = packet.len();
        packet.extend(self.ports);
        if self.udp {
            packet.extend(length);
            packet.extend([0, 0]);
        } else {
            let offset = u32::try_from(offset).unwrap();
            packet.extend(self.sequence.wrapping_add(offset).to_be_bytes());
            packet.extend(self.acknowledged.to_be_bytes());
            packet.extend([u8::try_from(5 + self.options).unwrap() << 4, flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend((0..self.options * 4).map(|n| u8::try_from(n).unwrap()));
        }
        packet.extend(payload);
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let protocol = [0, if self.udp { UDP } else { TCP }];
        let sum = checksum(&[&packet[addresses], &protocol, &length, &packet[start..]]);
        let sum = if self.udp && sum == 0 { 0xffff } else { sum };
        set_field(&mut packet, start + if self.udp { 6 } else { 16 }, sum.to_be_bytes());
        packet
    }

    /// A stream of payload, as packets of `size`.
    fn packets(&self, payload: &[u8], size: usize, pushed: bool) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        (0_u16..)
            .zip(payload.chunks(size))
            .map(|(n, chunk)| {
                let last = usize::from(n) + 1 == count;
                let flags = ACK | if pushed && last { PSH } else { 0 };
                self.packet(n, usize::from(n) * size, flags, chunk)
            })
            .collect()
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u16>(), 0_usize..=10);
    (any::<(bool, bool, [u8; 4], u8, u8, bool)>(), numbers).prop_map(|(first, second)| {
        let (v6, udp, ports, class, hops, dont_fragment) = first;
        let (id, sequence, acknowledged, window, options) = second;
        Flow { v6, udp, ports, class, hops, dont_fragment, id, sequence, acknowledged, window, options }
    })
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    // Long ones by repetition, which generate faster.
    (prop::collection::vec(any::<u8>(), 1..500), 1_usize..100).prop_map(|(bytes, times)| bytes.repeat(times))
}

/// Everything that goes to the TUN device for these packets.
fn frames(offload: TunOffload, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut coalescer, mut frames) = (Coalescer::new(offload), Vec::new());
    for packet in packets {
        // As decryption does: the room is larger than the packet, and everything in it is written to.
        let room = coalescer.room(packet.len() + 16);
        room.fill(0xaa);
        room[..packet.len()].copy_from_slice(packet);
        coalescer.push(packet.len(), |frame| frames.push(frame.to_vec()));
    }
    coalescer.flush(|frame| frames.push(frame.to_vec()));
    frames
}

/// As the kernel, or the other end, splits a frame.
fn split(mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    let (header, packet) = frame.split_first_chunk_mut().unwrap();
    let mut segments = Segments::new(FrameHeader::decode(*header).unwrap(), packet).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = segments.make_next() {
        packets.push(packet.to_vec());
    }
    packets
}

fn split_all(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.into_iter().flat_map(split).collect()
}

/// Something that may befall a packet on its way.
fn damage() -> impl Strategy<Value = (prop::sample::Index, usize, u8)> {
    (any::<prop::sample::Index>(), 0_usize..130, 1_u8..)
}

proptest! {
    #[test]
    fn merging_and_splitting_gives_the_same_packets(
        flow in flow(), payload in payload(), size in 1_usize..1400, pushed: bool,
    ) {
        let packets = flow.packets(&payload, size, pushed);
        let frames = frames(TunOffload::TcpAndUdp, &packets);
        if !flow.udp {
            // As few as can be: only what does not fit one begins another, but that a last one that is pushed
            // goes alone where nothing is open.
            let most = (MAX_PACKET - flow.headers()) / size;
            prop_assert_eq!(frames.len(), packets.len().div_ceil(most));
        }
        prop_assert_eq!(split_all(frames), packets);
    }

    #[test]
    fn packets_so_large_that_two_or_three_fill_a_frame_arrive_too(
        flow in flow(), size in 16_000_usize..65_400, last in 1_usize..65_400, count in 1_usize..4, pushed: bool,
    ) {
        let packets = flow.packets(&vec![7; size * count + last.min(size)], size, pushed);
        let frames = frames(TunOffload::TcpAndUdp, &packets);
        prop_assert!(frames.iter().all(|frame| frame.len() <= virtio::HEADER + MAX_PACKET));
        prop_assert_eq!(split_all(frames), packets);
    }

    #[test]
    fn splitting_makes_what_the_sender_would_have_made(
        flow in flow(), bytes in payload(), size in 1_u16..1400, flags in prop_oneof![
            Just(ACK), Just(ACK | PSH), Just(ACK | PSH | FIN), Just(ACK | 0x80), Just(ACK | PSH | 0xc0)
        ],
    ) {
        let whole = flow.packet(0, 0, flags, &bytes);
        let (start, mut sent) = (flow.start(), whole.clone());
        // The kernel leaves the sum of the pseudo header.
        let offset = if flow.udp { 6 } else { 16 };
        set_field(&mut sent, start + offset, [0; 2]);
        let covered = Sum::of(&sent[start..]).folded();
        let pseudo = u16::try_from((u32::from(!field::<2>(&whole, start + offset).map(u16::from_be_bytes).unwrap())
            + 0xffff - u32::from(covered)) % 0xffff).unwrap();
        set_field(&mut sent, start + offset, pseudo.to_be_bytes());
        let unfinished = Some(Unfinished { start: u16::try_from(start).unwrap(), offset: u16::try_from(offset).unwrap() });

        let unsplit = FrameHeader { unfinished, split: None }.encode(0);
        let same = split([&unsplit[..], &sent].concat());
        let expected = Sum::of(&whole[start..]);
        prop_assert_eq!(same.len(), 1);
        prop_assert_eq!(Sum::of(&same[0][start..]).folded() % 0xffff, expected.folded() % 0xffff);

        let header = FrameHeader { unfinished, split: Some((flow.kind(), size)) }.encode(0);
        let made = split([&header[..], &sent].concat());
        let size = usize::from(size);
        let count = bytes.len().div_ceil(size);
        prop_assert_eq!(made.len(), count);
        for (n, (chunk, made)) in bytes.chunks(size).zip(made).enumerate() {
            let mut flags = flags;
            if n > 0 {
                flags &= !0x80;
            }
            if n + 1 < count {
                flags &= !(PSH | FIN);
            }
            prop_assert_eq!(made, flow.packet(u16::try_from(n).unwrap(), n * size, flags, chunk));
        }
    }

    #[test]
    fn a_damaged_packet_arrives_as_it_was_and_so_do_all_others_in_their_order(
        flow in flow(), other in flow(), payload in payload(), size in 200_usize..1400,
        damages in prop::collection::vec(damage(), 0..6),
        strangers in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..3000), 0..4),
    ) {
        let flow = Flow { dont_fragment: false, ..flow };
        let mut packets = flow.packets(&payload, size, true);
        for (at, byte, bits) in damages {
            let packet = at.get(&packets).clone();
            let at = at.index(packets.len());
            if let Some(place) = packets[at].get_mut(byte % packet.len()) {
                *place ^= bits;
            }
        }
        for (at, length) in strangers {
            let at = at.index(packets.len());
            packets.insert(at, other.packet(7, 0, ACK, &vec![9; length]));
        }
        // What says that it may not be fragmented may get another identification.
        let comparable = |packets: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            packets.into_iter().map(|mut packet| {
                if packet.len() >= IPV4_HEADER && packet[0] == 0x45 && packet[6] & 0x40 != 0 {
                    packet[4..6].fill(0);
                    packet[10..12].fill(0);
                }
                packet
            }).collect()
        };
        let made = split_all(frames(TunOffload::TcpAndUdp, &packets));
        prop_assert_eq!(comparable(made), comparable(packets));
    }

    #[test]
    fn any_packets_are_survived_and_pass(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
        first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
    ) {
        let mut packets = packets;
        for packet in &mut packets {
            packet[0] = first;
            let at = if first == 0x45 { 9 } else { 6 };
            if let Some(place) = packet.get_mut(at) {
                *place = protocol;
            }
        }
        prop_assert_eq!(frames(TunOffload::None, &packets), packets.clone());
        prop_assert_eq!(split_all(frames(TunOffload::TcpAndUdp, &packets)), packets);
    }

    #[test]
    fn any_frame_is_survived(
        header: [u8; virtio::HEADER], mut packet in prop::collection::vec(any::<u8>(), 0..400),
        first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()], kind in 0_u8..6, start in 0_u16..60,
        size in 0_u16..500,
    ) {
        let mut header = header;
        header[1] = kind;
        set_field(&mut header, 4, size.to_ne_bytes());
        set_field(&mut header, 6, start.to_ne_bytes());
        set_field(&mut header, 8, (if kind == 5 { 6_u16 } else { 16 }).to_ne_bytes());
        if let Some(place) = packet.first_mut() {
            *place = first;
        }
        let length = packet.len();
        if let Some(mut segments) =
            FrameHeader::decode(header).and_then(|header| Segments::new(header, &mut packet))
        {
            let mut count = 0;
            while let Some(segment) = segments.make_next() {
                prop_assert!(segment.len() <= length);
                count += 1;
            }
            prop_assert!(count <= length.max(1));
        }
    }
}

fn example() -> Flow {
    Flow {
        v6: false,
        udp: false,
        ports: [0, 80, 0x80, 0],
        class: 0,
        hops: 64,
        dont_fragment: true,
        id: 0xfffe,
        sequence: 0xffff_fff0,
        acknowledged: 7,
        window: 500,
        options: 3,
    }
}

/// How many frames two packets make, of which the second continues the first but for what is changed.
fn frames_of(flow: Flow, change: impl FnOnce(&mut Flow)) -> usize {
    let mut second = flow;
    change(&mut second);
    let packets = [flow.packet(0, 0, ACK, &[1; 100]), second.packet(1, 100, ACK, &[2; 100])];
    frames(TunOffload::TcpAndUdp, &packets).len()
}

#[test]
fn only_what_continues_the_flow_exactly_is_merged() {
    for v6 in [false, true] {
        let flow = Flow { v6, ..example() };
        assert_eq!(frames_of(flow, |_| {}), 1);
        assert_eq!(frames_of(flow, |next| next.ports[1] ^= 1), 2);
        assert_eq!(frames_of(flow, |next| next.class ^= 1), 2);
        assert_eq!(frames_of(flow, |next| next.hops ^= 1), 2);
        assert_eq!(frames_of(flow, |next| next.sequence += 1), 2);
        assert_eq!(frames_of(flow, |next| next.acknowledged += 1), 2);
        assert_eq!(frames_of(flow, |next| next.window += 1), 2);
        assert_eq!(frames_of(flow, |next| next.options += 1), 2);
        assert_eq!(frames_of(flow, |next| next.udp = true), 2);
    }
    assert_eq!(frames_of(example(), |next| next.dont_fragment = false), 2);
    assert_eq!(frames_of(example(), |next| next.id = 0), 1, "it may not be fragmented");
    let fragmentable = Flow { dont_fragment: false, ..example() };
    assert_eq!(frames_of(fragmentable, |_| {}), 1);
    assert_eq!(frames_of(fragmentable, |next| next.id = 0), 2);
}

#[test]
fn a_push_a_short_packet_and_a_full_frame_end_a_run() {
    let count = |packets: &[Vec<u8>]| frames(TunOffload::TcpAndUdp, packets).len();
    let packet =
        |n: u16, flags, length: usize| example().packet(n, usize::from(n) * 100, flags, &vec![1; length]);
    assert_eq!(count(&[packet(0, ACK, 100), packet(1, ACK | PSH, 100), packet(2, ACK, 100)]), 2);
    assert_eq!(count(&[packet(0, ACK | PSH, 100), packet(1, ACK, 100)]), 2);
    assert_eq!(count(&[packet(0, ACK, 100), packet(1, ACK | FIN, 100)]), 2);
    let short = example().packet(2, 150, ACK, &[1; 100]);
    assert_eq!(count(&[packet(0, ACK, 100), packet(1, ACK, 50), short]), 2);
    let datagrams: Vec<_> =
        (0..65).map(|n| Flow { udp: true, ..example() }.packet(n, 0, 0, &[1; 100])).collect();
    assert_eq!(count(&datagrams), 2);
    assert_eq!(frames(TunOffload::Tcp, &datagrams).len(), 65);
}

#[test]
fn a_packet_beside_which_no_other_fits_goes_alone_and_those_that_fit_go_together() {
    for (size, frames_wanted) in [(16_000, 1), (21_000, 2), (32_000, 2), (33_000, 4), (65_403, 4)] {
        let packets = example().packets(&vec![7; size * 4], size, false);
        let frames = frames(TunOffload::TcpAndUdp, &packets);
        assert_eq!(frames.len(), frames_wanted, "payloads of {size} bytes");
        assert_eq!(split_all(frames), packets, "payloads of {size} bytes");
    }
}

#[test]
fn wrong_checksums_are_not_made_right() {
    for udp in [false, true] {
        let flow = Flow { udp, ..example() };
        let mut packets = flow.packets(&[3; 300], 100, false);
        let at = flow.headers() + 5;
        packets[1][at] ^= 0x10;
        let frames = frames(TunOffload::TcpAndUdp, &packets);
        assert_eq!(frames.len(), 3);
        assert_eq!(split_all(frames), packets);
    }
}
