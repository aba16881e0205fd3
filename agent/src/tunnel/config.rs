//! What a tunnel is told: about itself, and about its peers.

use std::{fmt, net::SocketAddr, num::NonZeroU8, str::FromStr, sync::Arc, thread};

use ipnet::IpNet;

use super::{Destinations, Offloads, PresharedKey, PrivateKey, PublicKey};

/// The tunnel itself. Fixed for its lifetime, but for [`addresses`](super::Tunnel::set_addresses).
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// The own identity.
    pub private_key: PrivateKey,
    /// UDP port to listen on; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Name of the TUN device, 1 to 15 bytes. It is made by [`start`](super::Tunnel::start) and gone with the
    /// tunnel.
    pub tun_name: String,
    /// Addresses of the TUN device, with the length of the on-link prefix.
    pub addresses: Vec<IpNet>,
    /// Largest inner packet in bytes, 1280 to 9200. Path − 60 over IPv4 and path − 80 over IPv6, so 1420 suits
    /// a 1500-byte path of either family.
    pub mtu: u16,
    /// Mark of the tunnel's own datagrams, so that a default route through the tunnel can leave them out
    /// (see [`crate::kernel::FullTunnel`]). Needs `CAP_NET_ADMIN`.
    pub fwmark: Option<u32>,
    /// The offloads to use where the kernel has them: [`Offloads::ALL`], but for tests and comparisons.
    pub offloads: Offloads,
    /// Threads of the data plane. A peer lives at one of them.
    pub threads: Threads,
}

/// How many threads carry a tunnel's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(NonZeroU8);

impl Threads {
    /// One thread, for a tunnel with one peer.
    pub const ONE: Self = Self(NonZeroU8::MIN);
    /// More need more memory than they are worth: each has buffers of some 700 KB.
    pub const MOST: u8 = 8;

    /// One for each two processors that this process may use: the kernel does as much work for a tunnel as the
    /// tunnel itself, on other processors.
    pub fn suited() -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = u8::try_from(processors / 2).unwrap_or(Self::MOST).min(Self::MOST);
        NonZeroU8::new(count).map_or(Self::ONE, Self)
    }

    /// As a number.
    pub const fn count(self) -> NonZeroU8 {
        self.0
    }
}

impl FromStr for Threads {
    type Err = String;

    /// A number within 1 to [`MOST`](Self::MOST).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = text.parse().ok().filter(|count: &NonZeroU8| count.get() <= Self::MOST);
        count.map(Self).ok_or_else(|| format!("not a number of threads from 1 to {}", Self::MOST))
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One peer, as the control plane wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's identity.
    pub public_key: PublicKey,
    /// Mixed into the handshake when present. A change drops the peer's session.
    pub preshared_key: Option<PresharedKey>,
    /// Inner sources accepted from the peer, and destinations routed to it. Where two peers name the same
    /// prefix, the later one in the list has it.
    pub allowed_ips: Vec<IpNet>,
    /// Where the peer may be found, best first. Empty on a gateway, which learns where its clients are from
    /// their authenticated packets. The first is used until a packet or
    /// [`use_endpoint`](super::Tunnel::use_endpoint) says otherwise.
    pub endpoints: Vec<SocketAddr>,
    /// Where the peer's packets may go. Peers with the same rights share it. `None`: anywhere.
    pub destinations: Option<Arc<Destinations>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_from_one_to_eight() {
        for (text, count) in
            [("1", Some(1)), ("8", Some(8)), ("0", None), ("9", None), ("-1", None), ("two", None)]
        {
            assert_eq!(text.parse::<Threads>().ok().map(|threads| threads.count().get()), count, "{text}");
        }
        assert!((1..=Threads::MOST).contains(&Threads::suited().count().get()));
    }
}
