//! What passes a host's interface, as tcpdump sees it, and how often that would wake a radio.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pinhole_sim::metrics::BURST;

use crate::{
    error::{Doing, Result},
    host::Host,
    nat::{LAN, Nat},
    netns::Netns,
    process::{Command, Process, Spawner},
    state,
};

/// How long tcpdump may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// Enough for the headers of anything.
const SNAPLEN: &str = "128";
/// All of IP but what hosts of a link say among themselves.
const FILTER: &str = "(ip or ip6) and not ether multicast and not icmp6";

/// Of what kind a packet is, to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// UDP, but name look-ups: the tunnel and its experiments.
    Udp,
    /// The session.
    Tcp,
    /// Name look-ups.
    Dns,
    /// Anything else.
    Other,
}

/// A packet on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Since 1970.
    pub at: Duration,
    /// Of what kind.
    pub kind: Kind,
}

/// A burst: the packets within 3 s of the first. Bursts do not chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// When it began, since 1970.
    pub at: Duration,
    /// With what kind of packet.
    pub begun_by: Kind,
    /// How many packets it has.
    pub packets: u32,
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} begun by {:?}, {} packets", self.at.as_secs_f64(), self.begun_by, self.packets)
    }
}

/// A capture that is under way, on one interface. It ends when it is dropped.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    _tcpdump: Process,
}

impl Capture {
    /// Begins at a host; from the return on nothing is missed.
    ///
    /// # Errors
    /// When tcpdump does not run.
    pub async fn begin(host: &Host) -> Result<Self> {
        Self::begin_at(host.netns(), host.name(), "eth0").await
    }

    /// Begins on the inside of a NAT, which stays when hosts are unplugged.
    ///
    /// # Errors
    /// When tcpdump does not run.
    pub async fn begin_inside(nat: &Nat) -> Result<Self> {
        Self::begin_at(nat.netns(), nat.name(), LAN).await
    }

    async fn begin_at(netns: &Netns, name: &str, interface: &str) -> Result<Self> {
        let directory = state::directory().join("logs").join(name);
        std::fs::create_dir_all(&directory).doing(|| format!("making {}", directory.display()))?;
        let file = directory.join(format!("{interface}.pcap"));
        let command = Command::new("tcpdump")
            .args(["-i", interface, "-n", "-U", "--immediate-mode", "-Z", "root", "-s", SNAPLEN, "-w"])
            .arg(&file)
            .arg(FILTER)
            .netns(netns);
        let tcpdump = Spawner::machine().spawn("tcpdump", &command, &directory.join("tcpdump.log")).await?;
        tcpdump.wait_for_line("listening on", PATIENCE).await?;
        Ok(Self { file, _tcpdump: tcpdump })
    }

    /// All packets until now, in order.
    ///
    /// # Errors
    /// When there is no file.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        let file = std::fs::read(&self.file).doing(|| format!("reading {}", self.file.display()))?;
        Ok(packets(&file))
    }

    /// The bursts that began within these times.
    ///
    /// # Errors
    /// When there is no file.
    pub fn bursts(&self, from: SystemTime, until: SystemTime) -> Result<Vec<Burst>> {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let within = since(from)..since(until);
        let all = bursts(self.packets()?.into_iter());
        Ok(all.into_iter().filter(|burst| within.contains(&burst.at)).collect())
    }
}

/// How often a radio wakes for these packets, which are in order.
pub fn bursts(packets: impl Iterator<Item = Packet>) -> Vec<Burst> {
    let mut bursts: Vec<Burst> = Vec::new();
    for packet in packets {
        match bursts.last_mut() {
            Some(burst) if packet.at.saturating_sub(burst.at) <= BURST => burst.packets += 1,
            _ => bursts.push(Burst { at: packet.at, begun_by: packet.kind, packets: 1 }),
        }
    }
    bursts
}

/// The packets of a capture file with microseconds, of an Ethernet interface of this machine (pcap, version 2.4). The last one
/// may be half written.
fn packets(file: &[u8]) -> Vec<Packet> {
    const HEADER: usize = 24;
    let mut rest = file.get(HEADER..).unwrap_or_default();
    let mut packets = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let field = |at: usize| {
            record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let length = usize::try_from(field(8)).unwrap_or(usize::MAX);
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        let at = Duration::from_secs(field(0).into()) + Duration::from_micros(field(4).into());
        packets.push(Packet { at, kind: kind(frame) });
        rest = after;
    }
    packets
}

/// The kind of an Ethernet frame.
fn kind(frame: &[u8]) -> Kind {
    let ip = frame.get(14..).unwrap_or_default();
    let (protocol, payload) = match ip.first().map(|byte| byte >> 4) {
        Some(4) => (ip.get(9), usize::from(ip.first().map_or(0, |byte| byte & 0xf)) * 4),
        Some(6) => (ip.get(6), 40),
        _ => return Kind::Other,
    };
    let port = |at: usize| {
        ip.get(payload + at..payload + at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
    };
    let is_dns = [port(0), port(2)].contains(&Some(53));
    match protocol {
        Some(6 | 17) if is_dns => Kind::Dns,
        Some(6) => Kind::Tcp,
        Some(17) => Kind::Udp,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seconds: u32, micros: u32, frame: &[u8]) -> Vec<u8> {
        let length = u32::try_from(frame.len()).unwrap();
        let header = [seconds, micros, length, length].map(u32::to_ne_bytes).concat();
        [header.as_slice(), frame].concat()
    }

    fn ipv4(protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 24];
        (frame[14], frame[14 + 9]) = (0x46, protocol);
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    fn ipv6(protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 40];
        (frame[14], frame[14 + 6]) = (0x60, protocol);
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame
    }

    #[test]
    fn packets_of_a_file_have_their_time_and_kind_and_a_torn_one_is_left_out() {
        let frames = [
            ipv4(17, [51820, 30820]),
            ipv4(6, [40000, 443]),
            ipv6(17, [40000, 53]),
            ipv6(6, [53, 40000]),
            ipv4(1, [0, 0]),
            vec![0; 20],
            Vec::new(),
        ];
        let mut file = vec![0; 24];
        for (n, frame) in (0_u32..).zip(&frames) {
            file.extend(record(100 + n, 500_000, frame));
        }
        file.extend(&record(900, 0, &frames[0])[..20]);
        let packets = packets(&file);
        let kinds: Vec<_> = packets.iter().map(|packet| packet.kind).collect();
        assert_eq!(
            kinds,
            [Kind::Udp, Kind::Tcp, Kind::Dns, Kind::Dns, Kind::Other, Kind::Other, Kind::Other]
        );
        assert_eq!(packets[1].at, Duration::from_millis(101_500));
        assert!(super::packets(&[]).is_empty());
    }

    #[test]
    fn a_burst_is_what_lies_within_three_seconds_of_its_first_packet() {
        let at = |millis, kind| Packet { at: Duration::from_millis(millis), kind };
        let packets = [
            at(0, Kind::Udp),
            at(100, Kind::Tcp),
            at(3000, Kind::Udp),
            at(3001, Kind::Tcp),
            at(9000, Kind::Dns),
        ];
        let bursts: Vec<_> =
            bursts(packets.into_iter()).iter().map(|burst| (burst.begun_by, burst.packets)).collect();
        assert_eq!(bursts, [(Kind::Udp, 3), (Kind::Tcp, 1), (Kind::Dns, 1)]);
    }
}
