//! Sends datagrams at a steady rate, until it is dropped.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
};

/// Forged addresses lie in 198.18.0.0/15, less its own.
const FORGED: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const TICK: Duration = Duration::from_millis(1);

/// What is sent, and from where.
pub(super) enum Ammunition {
    /// From addresses that are not the sender's.
    Forged(Vec<Vec<u8>>),
    /// From this socket.
    Honest(Vec<Vec<u8>>, UdpSocket),
}

/// A flood that goes on.
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    begun: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Begins with so many datagrams per second.
    pub(super) fn begin(netns: &Netns, ammunition: Ammunition, to: SocketAddr, rate: u32) -> Result<Self> {
        let mut gun = Gun::load(netns, ammunition, to)?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let begun = Instant::now();
        let thread = thread::Builder::new().name("flood".to_owned()).spawn(move || {
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_secs_f64() * f64::from(rate);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive and small"
                )]
                let due = due as u64;
                // Where it falls behind, it does not catch up: that would be another rate.
                for _ in 0..due.saturating_sub(number).min(u64::from(rate) / 100 + 1) {
                    gun.fire(number);
                    number += 1;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(TICK);
            }
        });
        let thread = thread.doing(|| "starting a thread".to_owned())?;
        Ok(Self { stop, sent, begun, thread: Some(thread) })
    }

    /// Datagrams per second so far.
    pub(super) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let sent = self.sent.load(Ordering::Relaxed) as f64;
        sent / self.begun.elapsed().as_secs_f64().max(0.001)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

enum Gun {
    Forged { packets: Vec<Vec<u8>>, raw: OwnedFd, to: SockaddrIn },
    Honest { datagrams: Vec<Vec<u8>>, socket: UdpSocket, to: SocketAddr },
}

impl Gun {
    fn load(netns: &Netns, ammunition: Ammunition, to: SocketAddr) -> Result<Self> {
        let SocketAddr::V4(target) = to else {
            return Err(Error::Unsupported(format!("it forges no addresses of the family of {to}")));
        };
        match ammunition {
            Ammunition::Honest(datagrams, socket) => {
                socket.set_nonblocking(true).doing(|| "setting up a socket".to_owned())?;
                Ok(Self::Honest { datagrams, socket, to })
            }
            Ammunition::Forged(datagrams) => {
                let open = || {
                    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                    socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
                };
                let raw = netns.within(open)?.map_err(std::io::Error::from);
                let raw = raw.doing(|| "opening a raw socket".to_owned())?;
                let packets =
                    datagrams.iter().map(|datagram| packet(datagram, target.port(), *target.ip())).collect();
                Ok(Self::Forged { packets, raw, to: SockaddrIn::from(target) })
            }
        }
    }

    /// What does not go out is lost, as on any wire.
    fn fire(&mut self, number: u64) {
        match self {
            Self::Honest { datagrams, socket, to } => {
                let _ = choose(datagrams, number).map(|datagram| socket.send_to(datagram, *to));
            }
            Self::Forged { packets, raw, to } => {
                let Some(packet) = choose(packets, number) else { return };
                let source = Ipv4Addr::from(FORGED | (scatter(number) & 0xffff));
                if let Some(field) = packet.get_mut(12..16) {
                    field.copy_from_slice(&source.octets());
                }
                let _ = sendto(raw.as_raw_fd(), packet, to, MsgFlags::empty());
            }
        }
    }
}

/// One after the other, again and again.
fn choose(of: &mut [Vec<u8>], number: u64) -> Option<&mut Vec<u8>> {
    let place = usize::try_from(number).unwrap_or_default().checked_rem(of.len())?;
    of.get_mut(place)
}

/// Spreads consecutive numbers: a multiplication by an odd number is a bijection.
const fn scatter(number: u64) -> u32 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// IPv4 and UDP around a datagram. The kernel adds the length, the identification and the header's checksum; UDP has
/// none.
fn packet(datagram: &[u8], port: u16, to: Ipv4Addr) -> Vec<u8> {
    let length = u16::try_from(8 + datagram.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0];
    packet.extend(to.octets());
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(length);
    packet.extend([0, 0]);
    packet.extend(datagram);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_packet_is_ipv4_and_udp() {
        let packet = packet(b"abc", 51820, Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!((packet.len(), packet[0], packet[9]), (31, 0x45, 17));
        assert_eq!(packet[16..20], [192, 0, 2, 2]);
        assert_eq!(packet[22..24], 51820_u16.to_be_bytes());
        assert_eq!(packet[24..26], 11_u16.to_be_bytes());
        assert_eq!(&packet[28..], b"abc");
    }

    #[test]
    fn forged_sources_are_many() {
        let sources: std::collections::BTreeSet<u32> = (0..1000).map(|n| scatter(n) & 0xffff).collect();
        assert!(sources.len() > 900);
    }
}
