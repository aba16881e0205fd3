//! Which of the kernel's offloads a tunnel uses.

use std::fmt;

use crate::kernel::TunOffload;

/// What the kernel does for a tunnel: many packets and datagrams in one call, and checksums. A tunnel is right
/// without any of it, but slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Super-packets to and from the TUN device.
    pub tun: TunOffload,
    /// Sent datagrams are split by the kernel (UDP GSO, Linux 4.18). A path that refuses goes without.
    pub udp_gso: bool,
    /// Received datagrams are merged by the kernel (UDP GRO, Linux 5.0).
    pub udp_gro: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self { tun: TunOffload::TcpAndUdp, udp_gso: true, udp_gro: true };
    /// Nothing.
    pub const NONE: Self = Self { tun: TunOffload::None, udp_gso: false, udp_gro: false };

    /// Each by its short name, and whether it is used.
    pub fn list(self) -> [(&'static str, bool); 4] {
        [
            ("tun-tso", self.tun >= TunOffload::Tcp),
            ("tun-uso", self.tun >= TunOffload::TcpAndUdp),
            ("udp-gso", self.udp_gso),
            ("udp-gro", self.udp_gro),
        ]
    }

    /// The short names of those used.
    pub fn used(self) -> impl Iterator<Item = &'static str> {
        self.list().into_iter().filter(|(_, used)| *used).map(|(name, _)| name)
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

/// The short names of those used, or `none`.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: Vec<_> = self.used().collect();
        f.write_str(if used.is_empty() { "none" } else { "" })?;
        f.write_str(&used.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_named() {
        assert_eq!(Offloads::ALL.to_string(), "tun-tso tun-uso udp-gso udp-gro");
        assert_eq!(Offloads::NONE.to_string(), "none");
        assert_eq!(Offloads { tun: TunOffload::Tcp, ..Offloads::NONE }.to_string(), "tun-tso");
    }
}
