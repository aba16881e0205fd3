//! The mappings a NAT holds, as the kernel lists them: the truth to check learnt lifetimes against.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// One UDP mapping in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpMapping {
    /// The client as seen inside.
    pub inside: SocketAddr,
    /// The client as seen outside.
    pub outside: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// How long it still lasts without traffic.
    pub left: Duration,
    /// Whether it saw traffic both ways.
    pub replied: bool,
    /// Whether it counts as a stream, with the longer lifetime.
    pub stream: bool,
}

/// Reads the output of `conntrack -L -p udp`; lines that are not UDP flows are left out.
pub(crate) fn parse(listing: &str) -> Vec<UdpMapping> {
    listing.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<UdpMapping> {
    let mut words = line.split_whitespace();
    if words.next()? != "udp" {
        return None;
    }
    let left = Duration::from_secs(words.nth(1)?.parse().ok()?);
    let values = |name: &str| -> Vec<&str> {
        line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).collect()
    };
    let (sources, targets) = (values("src"), values("dst"));
    let (source_ports, target_ports) = (values("sport"), values("dport"));
    let end = |addresses: &[&str], ports: &[&str], n: usize| -> Option<SocketAddr> {
        let address: IpAddr = addresses.get(n)?.parse().ok()?;
        Some(SocketAddr::new(address, ports.get(n)?.parse().ok()?))
    };
    Some(UdpMapping {
        inside: end(&sources, &source_ports, 0)?,
        remote: end(&targets, &target_ports, 0)?,
        outside: end(&targets, &target_ports, 1)?,
        left,
        replied: !line.contains("[UNREPLIED]"),
        stream: line.contains("[ASSURED]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_from_both_directions_of_a_flow() {
        let listing = "\
udp      17 27 src=192.168.1.2 dst=203.0.113.10 sport=4000 dport=51820 [UNREPLIED] src=203.0.113.10 dst=203.0.113.32 sport=51820 dport=50007 mark=0 use=1
tcp      6 100 ESTABLISHED src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2 src=2.2.2.2 dst=1.1.1.1 sport=2 dport=1
udp      17 119 src=192.168.1.3 dst=203.0.113.10 sport=4000 dport=51820 src=203.0.113.10 dst=203.0.113.32 sport=51820 dport=50008 [ASSURED] mark=0 use=1
";
        let mappings = parse(listing);
        assert_eq!(mappings.len(), 2);
        assert_eq!(
            mappings[0],
            UdpMapping {
                inside: "192.168.1.2:4000".parse().unwrap(),
                outside: "203.0.113.32:50007".parse().unwrap(),
                remote: "203.0.113.10:51820".parse().unwrap(),
                left: Duration::from_secs(27),
                replied: false,
                stream: false,
            }
        );
        assert!(mappings[1].stream && mappings[1].replied);
    }
}
