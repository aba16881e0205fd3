//! What a tunnel is told: about itself, and about its peers.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::{Offloads, PresharedKey, PrivateKey, PublicKey};

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
}
