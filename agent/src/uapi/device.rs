//! What is answered: a device and its peers, as text.

use std::{
    fmt::Write,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{HandshakeClock, hex};
use crate::tunnel::{PeerConfig, PeerStats, PresharedKey, PrivateKey, PublicKey};

/// A WireGuard device.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// The own identity, where it may be told.
    pub private_key: Option<PrivateKey>,
    /// UDP port, 0 where there is none.
    pub listen_port: u16,
    /// Mark of the device's own datagrams, 0 for none.
    pub fwmark: u32,
    /// Its peers.
    pub peers: Vec<Peer>,
}

/// One peer of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub public_key: PublicKey,
    /// Mixed into handshakes, where it may be told.
    pub preshared_key: Option<PresharedKey>,
    /// Where its datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake ended with a session.
    pub last_handshake: Option<SystemTime>,
    /// Bytes of messages sent.
    pub tx_bytes: u64,
    /// Bytes of messages received.
    pub rx_bytes: u64,
    /// Seconds, 0 for none.
    pub persistent_keepalive: u16,
    /// What is routed to it and accepted from it.
    pub allowed_ips: Vec<IpNet>,
}

impl Peer {
    /// A peer that was never heard.
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }

    /// Adds what the tunnel knows.
    #[must_use]
    pub fn with_stats(self, stats: &PeerStats, clock: &mut HandshakeClock) -> Self {
        Self {
            endpoint: stats.endpoint.or(self.endpoint),
            last_handshake: stats.last_handshake.map(|at| clock.date(self.public_key, at)),
            tx_bytes: stats.sent_messages.bytes,
            rx_bytes: stats.received_messages.bytes,
            ..self
        }
    }
}

impl Device {
    /// What everybody on the machine's side may know of a tunnel with these peers: no secrets.
    pub fn without_secrets(
        listen_port: u16,
        peers: Vec<PeerConfig>,
        stats: &[PeerStats],
        clock: &mut HandshakeClock,
    ) -> Self {
        let stats: std::collections::HashMap<_, _> =
            stats.iter().map(|stats| (stats.public_key, stats)).collect();
        clock.retain(|peer| stats.contains_key(peer));
        let peer = |config: PeerConfig| {
            let peer = Peer { allowed_ips: config.allowed_ips, ..Peer::new(config.public_key) };
            match stats.get(&config.public_key) {
                Some(stats) => peer.with_stats(stats, clock),
                None => peer,
            }
        };
        Self { private_key: None, listen_port, fwmark: 0, peers: peers.into_iter().map(peer).collect() }
    }

    /// The answer to `get=1`, but for the error number that ends it.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        if let Some(key) = &self.private_key {
            put_key(&mut text, "private_key", &key.to_bytes());
        }
        if self.listen_port != 0 {
            put(&mut text, "listen_port", self.listen_port);
        }
        if self.fwmark != 0 {
            put(&mut text, "fwmark", self.fwmark);
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text
    }
}

impl Peer {
    fn write(&self, text: &mut String) {
        put_key(text, "public_key", self.public_key.as_bytes());
        if let Some(key) = &self.preshared_key {
            put_key(text, "preshared_key", &Zeroizing::new(key.to_bytes()));
        }
        put(text, "protocol_version", 1);
        if let Some(endpoint) = self.endpoint {
            put(text, "endpoint", endpoint);
        }
        let handshake = self.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let handshake = handshake.unwrap_or_default();
        put(text, "last_handshake_time_sec", handshake.as_secs());
        put(text, "last_handshake_time_nsec", handshake.subsec_nanos());
        put(text, "tx_bytes", self.tx_bytes);
        put(text, "rx_bytes", self.rx_bytes);
        put(text, "persistent_keepalive_interval", self.persistent_keepalive);
        for net in &self.allowed_ips {
            put(text, "allowed_ip", net);
        }
    }
}

fn put(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{key}={value}");
}

fn put_key(text: &mut String, name: &str, key: &[u8; 32]) {
    text.push_str(name);
    text.push('=');
    hex::encode(key, text);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::uapi::{AllowedIp, Request};

    fn addresses() -> impl Strategy<Value = std::net::IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(Into::into), any::<[u16; 8]>().prop_map(Into::into)]
    }

    fn peers() -> impl Strategy<Value = Peer> {
        let secrets = (any::<[u8; 32]>(), prop::option::of(any::<[u8; 32]>()));
        let endpoint = prop::option::of((addresses(), any::<u16>()));
        let nets = prop::collection::vec((addresses(), 0_u8..=32), 0..4);
        let counts = (any::<u64>(), any::<u64>(), any::<u16>(), prop::option::of(1_u32..));
        (secrets, endpoint, nets, counts).prop_map(
            |((key, preshared), endpoint, nets, (tx, rx, keepalive, at))| Peer {
                public_key: PublicKey::from_bytes(key),
                preshared_key: preshared.filter(|key| *key != [0; 32]).map(PresharedKey::from_bytes),
                endpoint: endpoint.map(Into::into),
                last_handshake: at.map(|at| UNIX_EPOCH + Duration::from_millis(at.into())),
                tx_bytes: tx,
                rx_bytes: rx,
                persistent_keepalive: keepalive,
                allowed_ips: nets
                    .into_iter()
                    .map(|(ip, bits)| IpNet::new(ip, bits).unwrap().trunc())
                    .collect(),
            },
        )
    }

    const COUNTS: [&str; 4] =
        ["last_handshake_time_sec=", "last_handshake_time_nsec=", "tx_bytes=", "rx_bytes="];

    proptest! {
        /// What one device tells sets another one up the same, but for what is only counted.
        #[test]
        fn what_get_tells_set_understands(
            secret: [u8; 32],
            listen_port: u16,
            fwmark: u32,
            peers in prop::collection::vec(peers(), 0..5),
        ) {
            let private_key = (secret != [0; 32]).then(|| PrivateKey::from_bytes(secret));
            let device = Device { private_key, listen_port, fwmark, peers };
            let text = device.to_text();
            let (counted, settings): (Vec<&str>, Vec<&str>) =
                text.lines().partition(|line| COUNTS.iter().any(|count| line.starts_with(count)));
            let Ok(Request::Set(change)) = Request::parse(format!("set=1\n{}", settings.join("\n")).as_bytes(), &|_| None)
            else {
                return Err(TestCaseError::fail(text.to_string()));
            };
            let bytes = |key: &PrivateKey| *key.to_bytes();
            prop_assert_eq!(change.private_key.flatten().as_ref().map(bytes), device.private_key.as_ref().map(bytes));
            prop_assert_eq!(change.listen_port.unwrap_or_default(), listen_port);
            prop_assert_eq!(change.fwmark.unwrap_or_default(), fwmark);
            prop_assert_eq!(change.peers.len(), device.peers.len());
            for (found, peer) in change.peers.iter().zip(&device.peers) {
                prop_assert_eq!(found.public_key, peer.public_key);
                prop_assert_eq!(found.preshared_key.clone().flatten(), peer.preshared_key.clone());
                prop_assert_eq!(found.endpoint, peer.endpoint);
                prop_assert_eq!(found.persistent_keepalive, Some(peer.persistent_keepalive));
                let nets: Vec<_> = peer.allowed_ips.iter().copied().map(AllowedIp::Add).collect();
                prop_assert_eq!(&found.allowed_ips, &nets);
            }
            let expected: Vec<String> = device.peers.iter().flat_map(|peer| {
                let at = peer.last_handshake.map_or(Duration::ZERO, |at| at.duration_since(UNIX_EPOCH).unwrap());
                let counts = [at.as_secs(), at.subsec_nanos().into(), peer.tx_bytes, peer.rx_bytes];
                COUNTS.iter().zip(counts).map(|(key, count)| format!("{key}{count}")).collect::<Vec<_>>()
            }).collect();
            prop_assert_eq!(counted, expected);
        }
    }

    #[test]
    fn what_is_told_without_secrets_has_none() {
        let key = PublicKey::from_bytes([1; 32]);
        let config = PeerConfig {
            public_key: key,
            preshared_key: Some(PresharedKey::from_bytes([7; 32])),
            allowed_ips: vec!["10.0.0.2/32".parse().unwrap()],
            endpoints: Vec::new(),
            destinations: None,
        };
        let device = Device::without_secrets(51820, vec![config], &[], &mut HandshakeClock::default());
        let text = device.to_text();
        assert!(!text.contains("private_key") && !text.contains("preshared_key"), "{}", *text);
        assert!(text.starts_with("listen_port=51820\npublic_key=0101"), "{}", *text);
        assert!(text.contains("allowed_ip=10.0.0.2/32\n"), "{}", *text);
    }
}
