//! Merges packets of one flow that come one after the other into super-packets, for one write each to the TUN
//! device. What cannot be merged goes out as it is, and nothing overtakes anything.
//!
//! A packet is merged only where the kernel, splitting the super-packet, makes exactly that packet again. So
//! its checksums are checked first: the kernel would make right ones of wrong ones.

use std::ops::Range;

use super::{
    checksum::Sum,
    ip::{IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER, UDP, UDP_HEADER, field, set_field},
    virtio::{self, FrameHeader, Kind, Unfinished},
};
use crate::kernel::TunOffload;

/// Where a super-packet begins in the buffer; its frame's header is right in front.
const BASE: usize = 64;
/// The largest IP packet.
const MAX_PACKET: usize = 65_535;
/// The longest headers that are merged: IPv6 and TCP with all options.
const LONGEST_HEADERS: usize = 100;
/// `UDP_MAX_SEGMENTS` of kernels before 6.9.
const MOST_UDP: usize = 64;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u16 = 0x4000;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// The super-packet that is open. Its headers in the buffer are those of its first packet until it is closed. It has
/// room for another packet as large as the first.
#[derive(Debug)]
struct Open {
    first: Mergeable,
    /// The headers of its first packet: the room may lie over those in the buffer.
    headers: [u8; LONGEST_HEADERS],
    /// Where its last payload ends in the buffer.
    end: usize,
    count: usize,
    next_sequence: u32,
    pushed: bool,
}

/// Gathers the packets that go to the TUN device.
#[derive(Debug)]
pub(super) struct Coalescer {
    offload: TunOffload,
    buffer: Box<[u8]>,
    open: Option<Open>,
    /// A packet came to it since this was last asked for.
    grew: bool,
    /// Where the room last asked for begins.
    room: usize,
    /// What was there where the room overlaps the open super-packet.
    covered: Covered,
}

#[derive(Debug)]
struct Covered {
    bytes: [u8; LONGEST_HEADERS],
    length: usize,
}

impl Coalescer {
    pub(super) fn new(offload: TunOffload) -> Self {
        Self {
            offload,
            buffer: vec![0; BASE + 2 * MAX_PACKET + 64].into_boxed_slice(),
            open: None,
            grew: false,
            room: BASE,
            covered: Covered { bytes: [0; LONGEST_HEADERS], length: 0 },
        }
    }

    /// Room of `size` bytes, at most 65 535, for a packet. It lies so that the payload of a packet that
    /// continues the open super-packet comes right behind it. What was there is lost unless
    /// [`push`](Self::push) follows.
    pub(super) fn room(&mut self, size: usize) -> &mut [u8] {
        self.uncover();
        self.room = BASE;
        if let Some(open) = &self.open {
            let headers = open.first.headers;
            self.room = open.end - headers;
            let below = self.buffer.get(self.room..open.end).unwrap_or_default();
            if let Some(place) = self.covered.bytes.get_mut(..headers) {
                place.copy_from_slice(below);
                self.covered.length = headers;
            }
        }
        self.buffer.get_mut(self.room..self.room + size).unwrap_or_default()
    }

    /// Takes the first `length` bytes of the room last asked for as a packet. Frames that are complete go to
    /// `write`.
    pub(super) fn push(&mut self, length: usize, mut write: impl FnMut(&[u8])) {
        self.grew = true;
        let packet = self.buffer.get(self.room..self.room + length).unwrap_or_default();
        let Some(packet) = Mergeable::parse(packet, self.offload) else {
            self.displace(length, &mut write);
            self.write_single(self.room, length, &mut write);
            return;
        };
        if self.continues(&packet) {
            self.uncover();
            self.extend(&packet, write);
            return;
        }
        self.displace(length, &mut write);
        if packet.pushed || length + packet.payload > MAX_PACKET {
            self.write_single(self.room, length, &mut write);
            return;
        }
        self.buffer.copy_within(self.room..self.room + length, BASE);
        let mut headers = [0; LONGEST_HEADERS];
        if let (Some(copy), Some(bytes)) =
            (headers.get_mut(..packet.headers), self.buffer.get(BASE..BASE + packet.headers))
        {
            copy.copy_from_slice(bytes);
        }
        self.open = Some(Open {
            end: BASE + length,
            count: 1,
            next_sequence: packet.next_sequence(),
            pushed: false,
            headers,
            first: packet,
        });
    }

    /// Whether a packet waits for others that continue it.
    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether something came to what is open since the last call.
    pub(super) const fn grew(&mut self) -> bool {
        std::mem::replace(&mut self.grew, false)
    }

    /// Closes what is open.
    pub(super) fn flush(&mut self, write: impl FnMut(&[u8])) {
        self.uncover();
        self.close(write);
    }

    /// Closes what is open under the packet in the room, which stays.
    fn displace(&mut self, length: usize, write: &mut impl FnMut(&[u8])) {
        if self.open.is_none() {
            return;
        }
        let shared = self.covered.length.min(length);
        let mut headers = [0; LONGEST_HEADERS];
        let place = self.room..self.room + shared;
        let (Some(kept), Some(bytes)) = (headers.get_mut(..shared), self.buffer.get(place.clone())) else {
            return;
        };
        kept.copy_from_slice(bytes);
        self.uncover();
        self.close(write);
        if let (Some(bytes), Some(kept)) = (self.buffer.get_mut(place), headers.get(..shared)) {
            bytes.copy_from_slice(kept);
        }
    }

    /// Puts back what the room covers of the open super-packet.
    fn uncover(&mut self) {
        let length = std::mem::take(&mut self.covered.length);
        let place = self.buffer.get_mut(self.room..self.room + length);
        if let (Some(place), Some(bytes)) = (place, self.covered.bytes.get(..length)) {
            place.copy_from_slice(bytes);
        }
    }

    /// Whether the packet in the room is the next of the open super-packet.
    fn continues(&self, packet: &Mergeable) -> bool {
        let Some(open) = &self.open else { return false };
        let first = &open.headers;
        let next = self.buffer.get(self.room..self.room + packet.headers).unwrap_or_default();
        packet.kind == open.first.kind
            && packet.headers == open.first.headers
            && packet.payload <= open.first.payload
            && packet.sequence == open.next_sequence
            && packet.follows(&open.first, open.count)
            && packet.constant().into_iter().all(|range| first.get(range.clone()) == next.get(range))
    }

    fn extend(&mut self, packet: &Mergeable, write: impl FnMut(&[u8])) {
        let Some(open) = &mut self.open else { return };
        open.end += packet.payload;
        open.count += 1;
        open.next_sequence = packet.next_sequence();
        open.pushed = packet.pushed;
        let full = open.end - BASE + open.first.payload > MAX_PACKET
            || (open.first.kind == Kind::Udp && open.count == MOST_UDP);
        if packet.pushed || packet.payload < open.first.payload || full {
            self.close(write);
        }
    }

    fn close(&mut self, mut write: impl FnMut(&[u8])) {
        let Some(open) = self.open.take() else { return };
        let length = open.end - BASE;
        if open.count == 1 {
            return self.write_single(BASE, length, write);
        }
        let Some(packet) = self.buffer.get_mut(BASE..open.end) else { return };
        let Some(header) = open.seal(packet) else { return };
        set_field(&mut self.buffer, BASE - virtio::HEADER, header);
        write(self.buffer.get(BASE - virtio::HEADER..open.end).unwrap_or_default());
    }

    fn write_single(&mut self, at: usize, length: usize, mut write: impl FnMut(&[u8])) {
        let mut start = at;
        if self.offload != TunOffload::None {
            start = at - virtio::HEADER;
            set_field(&mut self.buffer, start, [0; virtio::HEADER]);
        }
        write(self.buffer.get(start..at + length).unwrap_or_default());
    }
}

impl Open {
    /// Makes the headers those of the super-packet.
    fn seal(&self, packet: &mut [u8]) -> Option<[u8; virtio::HEADER]> {
        let Mergeable { kind, start, headers, payload, v4, .. } = self.first;
        let length = packet.len();
        let (network, transport) = packet.split_at_mut_checked(start)?;
        let behind_network = u16::try_from(transport.len()).ok()?;
        let protocol = if kind == Kind::Udp { UDP } else { TCP };
        let addresses = if v4.is_some() {
            set_field(network, 2, u16::try_from(length).ok()?.to_be_bytes());
            set_field(network, 10, [0; 2]);
            let sum = Sum::of(network).checksum();
            set_field(network, 10, sum.to_be_bytes());
            network.get(12..20)?
        } else {
            set_field(network, 4, behind_network.to_be_bytes());
            network.get(8..40)?
        };
        let pseudo = Sum::of(addresses) + Sum::word(u16::from(protocol)) + Sum::word(behind_network);
        let offset = if kind == Kind::Udp {
            set_field(transport, 4, behind_network.to_be_bytes());
            UDP_CHECKSUM
        } else {
            if self.pushed {
                set_field(transport, 13, [ACK | PSH]);
            }
            TCP_CHECKSUM
        };
        set_field(transport, usize::from(offset), pseudo.folded().to_be_bytes());
        let unfinished = Unfinished { start: u16::try_from(start).ok()?, offset };
        let header =
            FrameHeader { unfinished: Some(unfinished), split: Some((kind, u16::try_from(payload).ok()?)) };
        Some(header.encode(u16::try_from(headers).ok()?))
    }
}

/// A packet that may be part of a super-packet.
#[derive(Debug, Clone, Copy)]
struct Mergeable {
    kind: Kind,
    /// Where the transport's header begins.
    start: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes behind them.
    payload: usize,
    v4: Option<Identification>,
    /// 0 for UDP.
    sequence: u32,
    /// Whether the sender says that no more will come at once.
    pushed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Identification {
    id: u16,
    /// May not be fragmented, so that the identification means nothing (RFC 6864, section 4.1).
    is_atomic: bool,
}

impl Mergeable {
    /// `None` for all that is better left alone: other protocols, fragments, IP options and extensions, TCP
    /// segments without payload or with other flags than ACK and PSH, UDP without checksum, wrong checksums.
    fn parse(packet: &[u8], offload: TunOffload) -> Option<Self> {
        if offload == TunOffload::None {
            return None;
        }
        let (protocol, start, v4) = match packet.first()? {
            0x45 => {
                let header = packet.first_chunk::<IPV4_HEADER>()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]);
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let is_whole = fragment & !DONT_FRAGMENT == 0 && length == packet.len();
                if !is_whole || !Sum::of(header).is_right() {
                    return None;
                }
                let id = u16::from_be_bytes([header[4], header[5]]);
                (header[9], IPV4_HEADER, Some(Identification { id, is_atomic: fragment != 0 }))
            }
            0x60..=0x6f => {
                let header = packet.first_chunk::<IPV6_HEADER>()?;
                let behind = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if behind + IPV6_HEADER != packet.len() {
                    return None;
                }
                (header[6], IPV6_HEADER, None)
            }
            _ => return None,
        };
        let transport = packet.get(start..)?;
        let (kind, header, sequence, pushed) = match protocol {
            TCP => {
                let fixed = transport.first_chunk::<TCP_HEADER>()?;
                let header = usize::from(fixed[12] >> 4) * 4;
                if header < TCP_HEADER || fixed[13] & !PSH != ACK {
                    return None;
                }
                let kind = if v4.is_some() { Kind::TcpV4 } else { Kind::TcpV6 };
                (kind, header, u32::from_be_bytes(field(fixed, 4)?), fixed[13] & PSH != 0)
            }
            UDP if offload == TunOffload::TcpAndUdp => {
                let fixed = transport.first_chunk::<UDP_HEADER>()?;
                let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
                if length != transport.len() || fixed[6..] == [0; 2] {
                    return None;
                }
                (Kind::Udp, UDP_HEADER, 0, false)
            }
            _ => return None,
        };
        let payload = transport.len().checked_sub(header).filter(|&length| length > 0)?;
        let addresses = if v4.is_some() { packet.get(12..20)? } else { packet.get(8..40)? };
        let length = u16::try_from(transport.len()).ok()?;
        let sum =
            Sum::of(addresses) + Sum::word(u16::from(protocol)) + Sum::word(length) + Sum::of(transport);
        if !sum.is_right() {
            return None;
        }
        Some(Self { kind, start, headers: start + header, payload, v4, sequence, pushed })
    }

    /// The sequence number of the packet after it.
    fn next_sequence(&self) -> u32 {
        match (self.kind, u32::try_from(self.payload)) {
            (Kind::TcpV4 | Kind::TcpV6, Ok(payload)) => self.sequence.wrapping_add(payload),
            _ => 0,
        }
    }

    /// Whether its IPv4 identification is the one it would get as the packet number `count`.
    fn follows(&self, first: &Self, count: usize) -> bool {
        let (Some(own), Some(first)) = (self.v4, first.v4) else { return true };
        #[expect(clippy::cast_possible_truncation, reason = "it wraps as it must")]
        let expected = first.id.wrapping_add(count as u16);
        own.is_atomic || own.id == expected
    }

    /// What is the same in all packets of a super-packet: all but lengths, checksums, identification, sequence
    /// number and flags.
    fn constant(&self) -> [Range<usize>; 7] {
        let (start, end) = (self.start, self.headers);
        let [class, lifetime, addresses] =
            if self.v4.is_some() { [0..2, 6..10, 12..20] } else { [0..4, 6..8, 8..40] };
        let ports = start..start + 4;
        let [acknowledged, window, options] = match self.kind {
            Kind::Udp => [0..0, 0..0, 0..0],
            Kind::TcpV4 | Kind::TcpV6 => [start + 8..start + 13, start + 14..start + 16, start + 18..end],
        };
        [class, lifetime, addresses, ports, acknowledged, window, options]
    }
}

#[cfg(test)]
mod tests;
