//! Holds the TCP connections that are routed through the tunnel to segments that fit it.

use super::{
    checksum::fold,
    ip::{self, IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER},
};

const SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the maximum segment size (RFC 9293, section 3.7.1) that a SYN announces to what fits `mtu`, and
/// corrects the checksum. Leaves everything else as it is.
pub(super) fn clamp_mss(packet: &mut [u8], mtu: u16) {
    let Some((TCP, start)) = ip::payload(packet) else { return };
    let ip_header = if start == IPV6_HEADER && packet.first().is_some_and(|&b| b >> 4 == 6) {
        IPV6_HEADER
    } else {
        IPV4_HEADER
    };
    let Some(most) = usize::from(mtu).checked_sub(ip_header + TCP_HEADER).and_then(|n| u16::try_from(n).ok())
    else {
        return;
    };
    let Some(segment) = packet.get_mut(start..) else { return };
    let Some(at) = mss_option(segment) else { return };
    let Some(old) = ip::field::<2>(segment, at).map(u16::from_be_bytes) else { return };
    if old <= most {
        return;
    }
    let Some(sum) = ip::field::<2>(segment, 16).map(u16::from_be_bytes) else { return };
    // Where the option sits at an odd offset, its bytes count swapped.
    let swap = |word: u16| if at % 2 == 0 { word } else { word.swap_bytes() };
    // RFC 1624, equation 3.
    let updated = !fold(u64::from(!sum) + u64::from(!swap(old)) + u64::from(swap(most)));
    ip::set_field(segment, at, most.to_be_bytes());
    ip::set_field(segment, 16, updated.to_be_bytes());
}

/// Offset of the value of a SYN's MSS option.
fn mss_option(segment: &[u8]) -> Option<usize> {
    if segment.get(13)? & SYN == 0 {
        return None;
    }
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let mut at = TCP_HEADER;
    while at < header {
        match *segment.get(at)? {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            kind => {
                let length = usize::from(*segment.get(at + 1)?);
                if kind == OPTION_MSS && length == 4 && at + 4 <= header {
                    return Some(at + 2);
                }
                at += length.max(2);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::checksum::checksum;

    /// A SYN with `nops` one-byte options before the MSS option.
    fn syn(v6: bool, nops: usize, mss: u16, flags: u8) -> Vec<u8> {
        let options = (nops + 4).next_multiple_of(4);
        let length = TCP_HEADER + options;
        let mut packet = if v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, u8::try_from(length).unwrap(), TCP, 64];
            header.extend([0xfd; 16]);
            header.extend([0xfe; 16]);
            header
        } else {
            let mut header = vec![0x45, 0, 0, u8::try_from(20 + length).unwrap(), 0, 0, 0, 0, 64, TCP, 0, 0];
            header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            header
        };
        let start = packet.len();
        packet.extend([0, 80, 0x80, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        packet.extend([u8::try_from(length / 4).unwrap() << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(std::iter::repeat_n(OPTION_NOP, nops));
        packet.extend([OPTION_MSS, 4]);
        packet.extend(mss.to_be_bytes());
        packet.resize(start + length, OPTION_END);
        let sum = tcp_sum(&packet, start);
        packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn tcp_sum(packet: &[u8], start: usize) -> u16 {
        let addresses = if start == 40 { &packet[8..40] } else { &packet[12..20] };
        let length = u16::try_from(packet.len() - start).unwrap().to_be_bytes();
        checksum(&[addresses, &[0, TCP], &length, &packet[start..]])
    }

    proptest! {
        #[test]
        fn a_syn_announces_no_more_than_fits_and_its_checksum_stays_right(
            v6: bool, nops in 0_usize..9, mss: u16, mtu in 1280_u16..9200,
        ) {
            let mut packet = syn(v6, nops, mss, SYN);
            let start = if v6 { 40 } else { 20 };
            clamp_mss(&mut packet, mtu);
            let most = mtu - u16::try_from(start).unwrap() - 20;
            let at = start + TCP_HEADER + nops + 2;
            prop_assert_eq!(&packet[at..at + 2], mss.min(most).to_be_bytes());
            // A sum over a segment with its own checksum in place is 0.
            prop_assert_eq!(tcp_sum(&packet, start), 0);
        }

        #[test]
        fn whatever_is_not_a_syn_stays_as_it_is(nops in 0_usize..9, mss: u16, flags: u8) {
            let packet = syn(false, nops, mss, flags & !SYN);
            let mut clamped = packet.clone();
            clamp_mss(&mut clamped, 1280);
            prop_assert_eq!(packet, clamped);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..100), v6: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(protocol) = bytes.get_mut(if v6 { 6 } else { 9 }) {
                *protocol = TCP;
            }
            clamp_mss(&mut bytes, 1280);
        }
    }
}
