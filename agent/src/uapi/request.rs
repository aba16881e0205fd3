//! What is asked: `get=1`, or `set=1` with what to change. Bytes from outside, read strictly; nothing is done
//! before all of it was understood.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    str,
};

use ipnet::IpNet;

use super::{Refusal, hex};
use crate::tunnel::{PresharedKey, PrivateKey, PublicKey};

/// The number of the network device of a name, `None` where there is none.
pub(super) type Zones<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// A request.
#[derive(Debug)]
pub enum Request {
    /// How everything is.
    Get,
    /// To change something.
    Set(Change),
}

/// What to change of a device. What is `None` stays as it is.
#[derive(Debug, Default)]
pub struct Change {
    /// The own identity; `Some(None)` removes it.
    pub private_key: Option<Option<PrivateKey>>,
    /// UDP port, 0 for any.
    pub listen_port: Option<u16>,
    /// Mark of the device's own datagrams, 0 for none.
    pub fwmark: Option<u32>,
    /// Whether all peers go first.
    pub replace_peers: bool,
    /// Peers to add, change and remove, in this order.
    pub peers: Vec<PeerChange>,
}

/// What to change of a peer. What is `None` stays as it is.
#[derive(Debug)]
pub struct PeerChange {
    /// Which peer. It is added where there is none.
    pub public_key: PublicKey,
    /// Whether it goes.
    pub remove: bool,
    /// Whether it is left out where there is none.
    pub update_only: bool,
    /// Mixed into handshakes; `Some(None)` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds, 0 for none.
    pub persistent_keepalive: Option<u16>,
    /// Whether its allowed IPs go first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs to add and remove, in this order.
    pub allowed_ips: Vec<AllowedIp>,
}

/// A change of a peer's allowed IPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIp {
    /// The peer has it, whoever had it before.
    Add(IpNet),
    /// The peer has it no more.
    Remove(IpNet),
}

impl PeerChange {
    /// No change of a peer, but that it exists.
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    fn take(&mut self, key: &str, value: &str, index_of: Zones<'_>) -> Result<(), Refusal> {
        match key {
            "remove" => self.remove = yes(value)?,
            "update_only" => self.update_only = yes(value)?,
            "preshared_key" => self.preshared_key = Some(secret(value)?.map(PresharedKey::from_bytes)),
            "endpoint" => self.endpoint = Some(endpoint(value, index_of)?),
            "persistent_keepalive_interval" => {
                // `wg` itself takes the word, too.
                self.persistent_keepalive = Some(if value == "off" { 0 } else { number(value)? });
            }
            "replace_allowed_ips" => {
                self.replace_allowed_ips = yes(value)?;
                self.allowed_ips.clear();
            }
            "allowed_ip" => self.allowed_ips.push(match value.strip_prefix('-') {
                Some(value) => AllowedIp::Remove(net(value)?),
                None => AllowedIp::Add(net(value)?),
            }),
            "protocol_version" if value == "1" => {}
            _ => return Err(Refusal::Invalid),
        }
        Ok(())
    }
}

impl Request {
    /// Reads one request: its lines, without the empty one that ends it. `index_of` tells the number of a network device.
    pub fn parse(bytes: &[u8], index_of: Zones<'_>) -> Result<Self, Refusal> {
        let text = str::from_utf8(bytes).map_err(|_| Refusal::Protocol)?;
        let mut lines = text.lines();
        match lines.next() {
            Some("get=1") if lines.next().is_none() => Ok(Self::Get),
            Some("get=1") => Err(Refusal::Invalid),
            Some("set=1") => Change::parse(lines, index_of).map(Self::Set),
            _ => Err(Refusal::Protocol),
        }
    }
}

impl Change {
    fn parse<'a>(lines: impl Iterator<Item = &'a str>, index_of: Zones<'_>) -> Result<Self, Refusal> {
        let mut change = Self::default();
        for line in lines {
            let (key, value) = line.split_once('=').ok_or(Refusal::Protocol)?;
            if key == "public_key" {
                let key = hex::decode(value).ok_or(Refusal::Invalid)?;
                change.peers.push(PeerChange::new(PublicKey::from_bytes(*key)));
            } else if let Some(peer) = change.peers.last_mut() {
                peer.take(key, value, index_of)?;
            } else {
                change.take(key, value)?;
            }
        }
        Ok(change)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        match key {
            "private_key" => self.private_key = Some(secret(value)?.map(PrivateKey::from_bytes)),
            "listen_port" => self.listen_port = Some(number(value)?),
            "fwmark" => self.fwmark = Some(number(value)?),
            "replace_peers" => self.replace_peers = yes(value)?,
            _ => return Err(Refusal::Invalid),
        }
        Ok(())
    }
}

/// A secret; all zeros are none.
fn secret(value: &str) -> Result<Option<[u8; 32]>, Refusal> {
    let key = hex::decode(value).ok_or(Refusal::Invalid)?;
    Ok((*key != [0; 32]).then_some(*key))
}

fn yes(value: &str) -> Result<bool, Refusal> {
    if value == "true" { Ok(true) } else { Err(Refusal::Invalid) }
}

fn number<N: str::FromStr>(value: &str) -> Result<N, Refusal> {
    // A sign is more than the protocol allows.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(Refusal::Invalid)
}

/// An `ip:port`. A link-local address has a zone (RFC 4007): a network device, by name or number.
fn endpoint(value: &str, index_of: Zones<'_>) -> Result<SocketAddr, Refusal> {
    let Some((address, rest)) = value.split_once('%') else {
        return value.parse().map_err(|_| Refusal::Invalid);
    };
    let zoned = || {
        let address: Ipv6Addr = address.strip_prefix('[')?.parse().ok()?;
        let (zone, port) = rest.split_once("]:")?;
        let zone = index_of(zone).or_else(|| number(zone).ok()).filter(|index| *index > 0)?;
        // Of any other address the kernel tells none either.
        let zone = if address.is_unicast_link_local() { zone } else { 0 };
        Some(SocketAddrV6::new(address, number(port).ok()?, 0, zone).into())
    };
    zoned().ok_or(Refusal::Invalid)
}

/// An allowed IP. Bits beyond the prefix do not count.
fn net(value: &str) -> Result<IpNet, Refusal> {
    value.parse().map(|net: IpNet| net.trunc()).map_err(|_| Refusal::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    /// A machine with two devices.
    fn index_of(name: &str) -> Option<u32> {
        Some(match name {
            "eth0" => 2,
            "7" => 3,
            _ => return None,
        })
    }

    fn set(lines: &[&str]) -> Result<Change, Refusal> {
        let text = std::iter::once("set=1").chain(lines.iter().copied()).collect::<Vec<_>>().join("\n");
        match Request::parse(text.as_bytes(), &index_of)? {
            Request::Set(change) => Ok(change),
            Request::Get => panic!("{text} is no get"),
        }
    }

    #[test]
    fn all_keys_of_the_protocol_are_understood() {
        let change = set(&[
            &format!("private_key={KEY}"),
            "listen_port=12912",
            "fwmark=0",
            "replace_peers=true",
            &format!("public_key={KEY}"),
            "preshared_key=0000000000000000000000000000000000000000000000000000000000000000",
            "endpoint=[abcd:23::33]:51820",
            "persistent_keepalive_interval=111",
            "protocol_version=1",
            "replace_allowed_ips=true",
            "allowed_ip=192.168.4.4/32",
            "allowed_ip=-fd00::9/64",
            &format!("public_key={}", "ab".repeat(32)),
            "update_only=true",
            "remove=true",
        ])
        .unwrap();
        assert_eq!(*change.private_key.unwrap().unwrap().to_bytes(), *hex::decode(KEY).unwrap());
        assert_eq!((change.listen_port, change.fwmark, change.replace_peers), (Some(12912), Some(0), true));
        let [first, second] = &change.peers[..] else { panic!("two peers") };
        assert_eq!(first.preshared_key, Some(None), "all zeros remove it");
        assert_eq!(first.endpoint, Some("[abcd:23::33]:51820".parse().unwrap()));
        assert_eq!(first.persistent_keepalive, Some(111));
        assert!(first.replace_allowed_ips && !first.remove && !first.update_only);
        assert_eq!(
            first.allowed_ips,
            [
                AllowedIp::Add("192.168.4.4/32".parse().unwrap()),
                AllowedIp::Remove("fd00::/64".parse().unwrap())
            ]
        );
        assert!(second.remove && second.update_only && second.preshared_key.is_none());
    }

    #[test]
    fn a_link_local_peer_is_at_a_device_by_name_or_number() {
        let peer = format!("public_key={KEY}");
        let parsed = |endpoint: &str| {
            let change = set(&[&peer, &format!("endpoint={endpoint}")])?;
            Ok(change.peers[0].endpoint.unwrap())
        };
        for (text, zone) in [("fe80::9%eth0", 2), ("fe80::9%7", 3), ("fe80::9%41", 41), ("fd00::9%eth0", 0)] {
            let at = SocketAddrV6::new(text.split('%').next().unwrap().parse().unwrap(), 51_820, 0, zone);
            let shown = SocketAddr::from(at).to_string();
            assert_eq!(parsed(&format!("[{text}]:51820")), Ok(at.into()));
            assert_eq!(parsed(&shown), Ok(at.into()), "what is shown can be set");
        }
        for text in [
            "[fe80::9%eth1]:1",
            "[fe80::9%0]:1",
            "[fe80::9%]:1",
            "[fe80::9%eth0]",
            "fe80::9%eth0:1",
            "1.2.3.4%eth0:1",
        ] {
            assert_eq!(parsed(text), Err(Refusal::Invalid), "{text}");
        }
    }

    #[test]
    fn a_get_is_a_get_and_nothing_more() {
        assert!(matches!(Request::parse(b"get=1\n", &index_of), Ok(Request::Get)));
        assert_eq!(Request::parse(b"get=1\nfwmark=1\n", &index_of).unwrap_err(), Refusal::Invalid);
        for bytes in [&b""[..], b"get=2\n", b"hello\n", b"\xff\n", b"set=1\nlisten_port\n"] {
            assert_eq!(Request::parse(bytes, &index_of).unwrap_err(), Refusal::Protocol, "{bytes:?}");
        }
    }

    #[test]
    fn keys_and_values_that_make_no_sense_are_invalid() {
        let peer = format!("public_key={KEY}");
        let device =
            ["public_key=abc", "listen_port=65536", "listen_port=+1", "fwmark=-1", "fwmark=", "mtu=1"];
        let peers = [
            "private_key=00",
            "listen_port=1",
            "remove=false",
            "replace_allowed_ips=1",
            "endpoint=192.0.2.1",
            "endpoint=host:1",
            "allowed_ip=10.0.0.0",
            "allowed_ip=10.0.0.0/33",
            "protocol_version=2",
            "persistent_keepalive_interval=65536",
        ];
        for line in device {
            assert_eq!(set(&[line]).unwrap_err(), Refusal::Invalid, "{line}");
        }
        for line in peers {
            assert_eq!(set(&[&peer, line]).unwrap_err(), Refusal::Invalid, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Request::parse(&bytes, &index_of);
        }

        #[test]
        fn any_lines_are_survived(lines in prop::collection::vec(
            ("(private_key|public_key|preshared_key|endpoint|allowed_ip|remove|listen_port|[a-z_]*)", "[-0-9a-f:./\\[\\]%]{0,70}|true|\\PC*"),
            0..12,
        )) {
            let text = lines.iter().fold("set=1\n".to_owned(), |text, (key, value)| text + key + "=" + value + "\n");
            let _ = Request::parse(text.as_bytes(), &index_of);
        }
    }
}
