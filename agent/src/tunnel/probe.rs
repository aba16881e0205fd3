//! Echo requests made inside the tunnel, whose answers prove that it carries traffic both ways.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::{
    checksum::checksum,
    handle::Probe,
    ip::{self, IPV4_HEADER},
};

const ICMP: u8 = 1;
const ICMP_ECHO: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6: u8 = 58;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;
const HOPS: u8 = 64;
/// ICMP header, magic and number.
const MESSAGE: usize = 24;
/// Unanswered probes remembered for a peer.
const PENDING: usize = 16;

/// Tells the tunnel's own probes from other echo traffic; nobody else can know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Magic(pub(super) [u8; 8]);

impl Magic {
    /// The echo request, or `None` when the addresses are of different families.
    pub(super) fn request(self, probe: &Probe) -> Option<Vec<u8>> {
        match (probe.from, probe.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(self.request_v4(from, to, probe.id)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(self.request_v6(from, to, probe.id)),
            _ => None,
        }
    }

    fn message(self, kind: u8, id: u64) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&[kind, 0, 0, 0, self.0[0], self.0[1], 0, 0]);
        message[8..16].copy_from_slice(&self.0);
        message[16..].copy_from_slice(&id.to_be_bytes());
        message
    }

    fn request_v4(self, from: Ipv4Addr, to: Ipv4Addr, id: u64) -> Vec<u8> {
        let mut message = self.message(ICMP_ECHO, id);
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "44 bytes")]
        let length = (IPV4_HEADER + MESSAGE) as u8;
        let mut header = [0; IPV4_HEADER];
        header[..12].copy_from_slice(&[0x45, 0, 0, length, 0, 0, 0, 0, HOPS, ICMP, 0, 0]);
        header[12..16].copy_from_slice(&from.octets());
        header[16..].copy_from_slice(&to.octets());
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header.as_slice(), &message].concat()
    }

    fn request_v6(self, from: Ipv6Addr, to: Ipv6Addr, id: u64) -> Vec<u8> {
        #[expect(clippy::cast_possible_truncation, reason = "24 bytes")]
        let length = MESSAGE as u8;
        let mut message = self.message(ICMPV6_ECHO, id);
        let (from, to) = (from.octets(), to.octets());
        // The pseudo header of RFC 8200, section 8.1.
        let sum = checksum(&[&from, &to, &[0, 0, 0, length, 0, 0, 0, ICMPV6], &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let header = [0x60, 0, 0, 0, 0, length, ICMPV6, HOPS];
        [header.as_slice(), &from, &to, &message].concat()
    }

    /// The number of the probe that a packet answers.
    pub(super) fn answer(self, packet: &[u8]) -> Option<u64> {
        let (protocol, start) = ip::payload(packet)?;
        let reply = match protocol {
            ICMP => ICMP_ECHO_REPLY,
            ICMPV6 => ICMPV6_ECHO_REPLY,
            _ => return None,
        };
        let message = packet.get(start..)?.first_chunk::<MESSAGE>()?;
        let ours = message[0] == reply && message[8..16] == self.0;
        if !ours {
            return None;
        }
        ip::field::<8>(message, 16).map(u64::from_be_bytes)
    }
}

/// The probes of one peer that wait for their answer.
#[derive(Debug, Default)]
pub(super) struct Pending(VecDeque<(u64, Instant)>);

impl Pending {
    pub(super) fn sent(&mut self, id: u64, now: Instant) {
        if self.0.len() == PENDING {
            self.0.pop_front();
        }
        self.0.push_back((id, now));
    }

    /// The round-trip time, unless the probe was answered before or is forgotten.
    pub(super) fn answered(&mut self, id: u64, now: Instant) -> Option<Duration> {
        let at = self.0.iter().position(|&(pending, _)| pending == id)?;
        self.0.remove(at).map(|(_, sent)| now.saturating_duration_since(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: Magic = Magic(*b"pinhole!");

    fn answer_to(mut request: Vec<u8>, start: usize, reply: u8) -> Vec<u8> {
        request[start] = reply;
        request
    }

    #[test]
    fn checksums_are_right() {
        let v4 = Probe { from: [10, 0, 0, 2].into(), to: [10, 0, 0, 1].into(), id: 77 };
        let packet = MAGIC.request(&v4).unwrap();
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(checksum(&[&packet[20..]]), 0);
        let v6 = Probe { from: "fd00::2".parse().unwrap(), to: "fd00::1".parse().unwrap(), id: 77 };
        let packet = MAGIC.request(&v6).unwrap();
        assert_eq!(checksum(&[&packet[8..40], &[0, 0, 0, 24, 0, 0, 0, 58], &packet[40..]]), 0);
    }

    #[test]
    fn only_the_reply_with_our_magic_is_an_answer() {
        let probe = Probe { from: [10, 0, 0, 2].into(), to: [10, 0, 0, 1].into(), id: 0xfeed };
        let request = MAGIC.request(&probe).unwrap();
        assert_eq!(MAGIC.answer(&request), None);
        let reply = answer_to(request, 20, 0);
        assert_eq!(MAGIC.answer(&reply), Some(0xfeed));
        assert_eq!(Magic([0; 8]).answer(&reply), None);
        assert_eq!(MAGIC.answer(&reply[..43]), None);
    }

    #[test]
    fn families_do_not_mix() {
        let probe = Probe { from: [10, 0, 0, 2].into(), to: "fd00::1".parse().unwrap(), id: 1 };
        assert_eq!(MAGIC.request(&probe), None);
    }

    #[test]
    fn an_answer_counts_once_and_the_oldest_are_forgotten() {
        let start = Instant::now();
        let mut pending = Pending::default();
        for id in 0..20 {
            pending.sent(id, start);
        }
        assert_eq!(pending.answered(3, start), None);
        assert_eq!(pending.answered(4, start + Duration::from_millis(9)), Some(Duration::from_millis(9)));
        assert_eq!(pending.answered(4, start), None);
    }
}
