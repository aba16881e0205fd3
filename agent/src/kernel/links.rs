//! The network devices of this machine: which there are, of which kind, and whether they have a carrier.

use super::{
    KernelError, RouteSocket,
    netlink::{self, Message},
    route::{LINK_HEADER, LINK_UP},
};

const IFLA_IFNAME: u16 = 3;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
/// `IF_OPER_UNKNOWN`: of drivers that do not tell, and TUN devices.
const OPERATION_UNKNOWN: u8 = 0;
const OPERATION_UP: u8 = 6;
/// `<linux/if_arp.h>`; the C library names neither.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;
const DEVICES: &str = "/sys/class/net";

/// A network device that is not the loopback device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name, as Linux gives it.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Whether it is switched on and, as far as it can tell, connected to something.
    pub is_up: bool,
}

/// What a network device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkKind {
    /// Ethernet, or what poses as such: the virtual one of a container, a bridge, a VLAN.
    Wired,
    /// Wi-Fi.
    Wireless,
    /// A modem.
    Cellular,
    /// What packs packets into others: a VPN of ours or of somebody else's.
    Tunnel,
    /// None of these, or not to be told: PPP is spoken over telephone lines, by modems and in tunnels.
    Other,
}

impl LinkKind {
    /// Its name, for status and policy.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wired => "Wired",
            Self::Wireless => "Wireless",
            Self::Cellular => "Cellular",
            Self::Tunnel => "Tunnel",
            Self::Other => "Other",
        }
    }
}

impl RouteSocket {
    /// All network devices but the loopback device.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let dump = Message::new(libc::RTM_GETLINK, 0, &[0; LINK_HEADER]);
        let found = self.0.dump("list the network devices", &dump)?;
        Ok(found.iter().filter_map(|(_, body)| link_of(body)).collect())
    }
}

fn link_of(body: &[u8]) -> Option<Link> {
    let (hardware, index, flags) =
        (netlink::u16_at(body, 2)?, netlink::u32_at(body, 4)?, netlink::u32_at(body, 8)?);
    if hardware == libc::ARPHRD_LOOPBACK {
        return None;
    }
    let attributes = body.get(LINK_HEADER..)?;
    let name = text(netlink::attribute(attributes, IFLA_IFNAME)?);
    let driver = netlink::attribute(attributes, IFLA_LINKINFO)
        .and_then(|info| netlink::attribute(info, IFLA_INFO_KIND))
        .map(text);
    // Of another network namespace, where /sys is that one's: then it is another device, if there is one at all.
    let described = std::fs::read_to_string(format!("{DEVICES}/{name}/uevent")).unwrap_or_default();
    let operation = netlink::attribute(attributes, IFLA_OPERSTATE).and_then(|state| state.first());
    let has_carrier = operation.is_none_or(|state| [OPERATION_UNKNOWN, OPERATION_UP].contains(state));
    Some(Link {
        kind: kind_of(&name, hardware, driver.as_deref(), type_of(&described, index)),
        index,
        name,
        is_up: flags & LINK_UP != 0 && has_carrier,
    })
}

/// What the kernel ends with a zero.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// The type of device that its `uevent` file tells, if the file is about the device of this index.
fn type_of(uevent: &str, index: u32) -> Option<&str> {
    let value = |key| uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    (value("IFINDEX")?.parse() == Ok(index)).then(|| value("DEVTYPE"))?
}

/// What a device is, by its driver if that says so, else by what /sys tells, else by a name of the usual kind (`wlan0`,
/// `wlp3s0`, `wwan0`), else by how its packets are framed.
fn kind_of(name: &str, hardware: u16, driver: Option<&str>, device_type: Option<&str>) -> LinkKind {
    match driver {
        // Those of them that carry Ethernet look like it.
        Some("tun" | "gretap" | "ip6gretap" | "vxlan" | "geneve") => return LinkKind::Tunnel,
        Some("wwan") => return LinkKind::Cellular,
        Some("dummy" | "ifb" | "vrf") => return LinkKind::Other,
        _ => {}
    }
    match device_type {
        Some("wlan") => return LinkKind::Wireless,
        Some("wwan") => return LinkKind::Cellular,
        _ if name.starts_with("wl") => return LinkKind::Wireless,
        _ if name.starts_with("ww") => return LinkKind::Cellular,
        _ => {}
    }
    match hardware {
        libc::ARPHRD_ETHER => LinkKind::Wired,
        ARPHRD_RAWIP => LinkKind::Cellular,
        // WireGuard is among the first.
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE => LinkKind::Tunnel,
        _ => LinkKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use libc::{ARPHRD_ETHER, ARPHRD_NONE, ARPHRD_PPP, ARPHRD_TUNNEL};

    use super::*;

    #[test]
    fn a_device_is_what_its_driver_says_then_what_its_type_then_what_its_name_then_what_its_packets_do() {
        for (name, hardware, driver, device_type, kind) in [
            ("enp0s31f6", ARPHRD_ETHER, None, None, LinkKind::Wired),
            ("eth0", ARPHRD_ETHER, Some("veth"), None, LinkKind::Wired),
            ("br0", ARPHRD_ETHER, Some("bridge"), Some("bridge"), LinkKind::Wired),
            ("internal", ARPHRD_ETHER, None, Some("wlan"), LinkKind::Wireless),
            ("wlp3s0", ARPHRD_ETHER, None, None, LinkKind::Wireless),
            // A modem that speaks IP alone has packets like a tunnel's.
            ("modem", ARPHRD_NONE, None, Some("wwan"), LinkKind::Cellular),
            ("wwp0s20f0u6", ARPHRD_NONE, None, None, LinkKind::Cellular),
            ("mhi0", ARPHRD_NONE, Some("wwan"), None, LinkKind::Cellular),
            ("rmnet0", ARPHRD_RAWIP, None, None, LinkKind::Cellular),
            ("wg0", ARPHRD_NONE, Some("wireguard"), Some("wireguard"), LinkKind::Tunnel),
            ("tap0", ARPHRD_ETHER, Some("tun"), None, LinkKind::Tunnel),
            ("wlan-vpn", ARPHRD_NONE, Some("tun"), None, LinkKind::Tunnel),
            ("ipip1", ARPHRD_TUNNEL, Some("ipip"), None, LinkKind::Tunnel),
            ("flannel.1", ARPHRD_ETHER, Some("vxlan"), Some("vxlan"), LinkKind::Tunnel),
            ("ppp0", ARPHRD_PPP, Some("ppp"), None, LinkKind::Other),
            ("dummy0", ARPHRD_ETHER, Some("dummy"), None, LinkKind::Other),
        ] {
            assert_eq!(kind_of(name, hardware, driver, device_type), kind, "{name}");
        }
    }

    #[test]
    fn what_sys_tells_counts_for_the_device_of_that_index_alone() {
        let uevent = "DEVTYPE=wlan\nOF_NAME=wifi\nINTERFACE=wlp3s0\nIFINDEX=3\n";
        assert_eq!(type_of(uevent, 3), Some("wlan"));
        assert_eq!(type_of(uevent, 33), None);
        assert_eq!(type_of("INTERFACE=eth0\nIFINDEX=2\n", 2), None);
        assert_eq!(type_of("", 0), None);
    }
}
