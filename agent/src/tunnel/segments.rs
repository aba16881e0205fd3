//! Splits what the TUN device hands over in one piece: TCP and UDP super-packets, and packets whose checksum is
//! left to us.

use super::{
    checksum::Sum,
    ip::{IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER, UDP, UDP_HEADER, field, set_field},
    virtio::{FrameHeader, Kind, Unfinished},
};

/// The longest headers of a super-packet: IPv4 and TCP with all options take 120, IPv6 may have extensions.
const LONGEST_HEADERS: usize = 256;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Offsets of the checksum field.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// The packets of one frame, made one after the other in its own bytes: the header of each goes right in front
/// of its payload, over the end of the one before. So each is good until the next.
pub(super) struct Segments<'a> {
    packet: &'a mut [u8],
    rest: Rest,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
enum Rest {
    Whole,
    Split(Split),
    Nothing,
}

impl<'a> Segments<'a> {
    /// `None` where the header and the packet contradict each other.
    pub(super) fn new(header: FrameHeader, packet: &'a mut [u8]) -> Option<Self> {
        let rest = match (header.split, header.unfinished) {
            (Some((kind, size)), Some(unfinished)) => {
                Rest::Split(Split::new(kind, size, unfinished, packet)?)
            }
            (Some(_), None) => return None,
            (None, Some(unfinished)) => {
                finish(packet, unfinished)?;
                Rest::Whole
            }
            (None, None) => Rest::Whole,
        };
        Some(Self { packet, rest })
    }

    /// One packet that is as it should be.
    pub(super) const fn whole(packet: &'a mut [u8]) -> Self {
        Self { packet, rest: Rest::Whole }
    }

    /// What all of them have in common: IP header and so on. Only before the first is made.
    pub(super) const fn head(&self) -> &[u8] {
        self.packet
    }

    /// The next packet, of which nothing else knows, so that it may be changed.
    pub(super) fn make_next(&mut self) -> Option<&mut [u8]> {
        match &mut self.rest {
            Rest::Whole => {
                self.rest = Rest::Nothing;
                Some(self.packet)
            }
            Rest::Split(split) => split.make_next(self.packet),
            Rest::Nothing => None,
        }
    }
}

/// Finishes the checksum of a packet, whose field holds the sum of the pseudo header.
fn finish(packet: &mut [u8], unfinished: Unfinished) -> Option<()> {
    let (start, offset) = (usize::from(unfinished.start), usize::from(unfinished.offset));
    let covered = packet.get_mut(start..)?;
    field::<2>(covered, offset)?;
    let sum = Sum::of(covered).checksum();
    set_field(covered, offset, as_sent(sum, offset == UDP_CHECKSUM).to_be_bytes());
    Some(())
}

/// In UDP 0 says that there is no checksum; its other form is sent instead.
const fn as_sent(checksum: u16, udp: bool) -> u16 {
    if udp && checksum == 0 { 0xffff } else { checksum }
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

struct Split {
    headers: [u8; LONGEST_HEADERS],
    /// Bytes of all headers.
    length: usize,
    /// Where the transport's header begins.
    start: usize,
    /// Identification of the first packet, where it is IPv4.
    v4: Option<u16>,
    transport: Transport,
    /// Payload of each packet but the last.
    size: usize,
    /// Payload that was made into packets.
    done: usize,
    /// Of the IPv4 header, but for what differs from packet to packet.
    network_sum: Sum,
    /// Of the pseudo header and the transport's header, but for what differs.
    transport_sum: Sum,
}

impl Split {
    fn new(kind: Kind, size: u16, unfinished: Unfinished, packet: &[u8]) -> Option<Self> {
        let start = usize::from(unfinished.start);
        let v4 = match packet.first()? >> 4 {
            4 => Some(field::<2>(packet, 4).map(u16::from_be_bytes)?),
            6 => None,
            _ => return None,
        };
        let fits = match kind {
            Kind::TcpV4 => v4.is_some(),
            Kind::TcpV6 => v4.is_none(),
            Kind::Udp => true,
        };
        let network = if v4.is_some() { usize::from(packet.first()? & 0xf) * 4 } else { IPV6_HEADER };
        // Extension headers of IPv6 come between.
        if !fits
            || size == 0
            || network < IPV4_HEADER
            || start < network
            || (v4.is_some() && start != network)
        {
            return None;
        }
        let (transport, length, checksum_at) = match kind {
            Kind::TcpV4 | Kind::TcpV6 => {
                let length = usize::from(packet.get(start + 12)? >> 4) * 4;
                let sequence = field::<4>(packet, start + 4).map(u32::from_be_bytes)?;
                let flags = *packet.get(start + 13)?;
                (Transport::Tcp { sequence, flags }, length.max(TCP_HEADER), TCP_CHECKSUM)
            }
            Kind::Udp => (Transport::Udp, UDP_HEADER, UDP_CHECKSUM),
        };
        let length = start + length;
        if usize::from(unfinished.offset) != checksum_at || packet.len() <= length {
            return None;
        }
        let mut headers = [0; LONGEST_HEADERS];
        headers.get_mut(..length)?.copy_from_slice(packet.get(..length)?);
        let mut split = Self {
            headers,
            length,
            start,
            v4,
            transport,
            size: usize::from(size),
            done: 0,
            network_sum: Sum::default(),
            transport_sum: Sum::default(),
        };
        split.sum_up()?;
        Some(split)
    }

    /// Clears what differs from packet to packet, and sums the rest.
    fn sum_up(&mut self) -> Option<()> {
        let (network, transport) = self.headers.get_mut(..self.length)?.split_at_mut_checked(self.start)?;
        let protocol = match self.transport {
            Transport::Tcp { .. } => {
                set_field(transport, 4, [0; 4]);
                set_field(transport, 13, [0]);
                set_field(transport, TCP_CHECKSUM, [0; 2]);
                TCP
            }
            Transport::Udp => {
                set_field(transport, 4, [0; 4]);
                UDP
            }
        };
        let addresses = if self.v4.is_some() {
            set_field(network, 2, [0; 4]);
            set_field(network, 10, [0; 2]);
            self.network_sum = Sum::of(network);
            network.get(12..20)?
        } else {
            set_field(network, 4, [0; 2]);
            network.get(8..40)?
        };
        self.transport_sum = Sum::of(addresses) + Sum::word(u16::from(protocol)) + Sum::of(transport);
        Some(())
    }

    fn make_next<'p>(&mut self, packet: &'p mut [u8]) -> Option<&'p mut [u8]> {
        let left = packet.len().checked_sub(self.length + self.done)?;
        let size = self.size.min(left);
        if size == 0 {
            return None;
        }
        let segment = packet.get_mut(self.done..self.done + self.length + size)?;
        let (headers, payload) = segment.split_at_mut_checked(self.length)?;
        headers.copy_from_slice(self.headers.get(..self.length)?);
        let (network, transport) = headers.split_at_mut_checked(self.start)?;

        let behind_network = u16::try_from(transport.len() + size).ok()?;
        let mut sum = self.transport_sum + Sum::word(behind_network) + Sum::of(payload);
        match self.transport {
            Transport::Tcp { sequence, flags } => {
                #[expect(clippy::cast_possible_truncation, reason = "within 64 KB; it wraps as it must")]
                let sequence = sequence.wrapping_add(self.done as u32);
                let first = if self.done == 0 { 0 } else { CWR };
                let last = if size == left { 0 } else { FIN | PSH };
                let flags = flags & !(first | last);
                sum += Sum::double_word(sequence) + Sum::word(u16::from(flags));
                set_field(transport, 4, sequence.to_be_bytes());
                set_field(transport, 13, [flags]);
                set_field(transport, TCP_CHECKSUM, sum.checksum().to_be_bytes());
            }
            Transport::Udp => {
                // The length counts in the pseudo header and in the header.
                sum += Sum::word(behind_network);
                set_field(transport, 4, behind_network.to_be_bytes());
                set_field(transport, UDP_CHECKSUM, as_sent(sum.checksum(), true).to_be_bytes());
            }
        }
        let total = u16::try_from(self.length + size).ok()?;
        if let Some(id) = self.v4 {
            #[expect(clippy::cast_possible_truncation, reason = "fewer than 64 K; it wraps as it must")]
            let id = id.wrapping_add((self.done / self.size) as u16);
            let sum = self.network_sum + Sum::word(total) + Sum::word(id);
            set_field(network, 2, total.to_be_bytes());
            set_field(network, 4, id.to_be_bytes());
            set_field(network, 10, sum.checksum().to_be_bytes());
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "40 bytes")]
            let behind = total - IPV6_HEADER as u16;
            set_field(network, 4, behind.to_be_bytes());
        }
        self.done += size;
        Some(segment)
    }
}
