//! Links, addresses and routes, over one rtnetlink socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    KernelError,
    netlink::{self, Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Socket},
};

const IFLA_MTU: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
pub(super) const ROUTE_HEADER: usize = 12;
const ADDRESS_HEADER: usize = 8;
pub(super) const LINK_HEADER: usize = 16;
pub(super) const LINK_UP: u32 = 1;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
pub(super) const UNICAST: u8 = 1;
const UNREACHABLE: u8 = 7;
const THROW: u8 = 9;
/// `RTPROT_KERNEL`: what the kernel itself makes of an address and its prefix length.
const BY_KERNEL: u8 = 2;
/// Of a cached or cloned route (`RTM_F_CLONED`), which is no entry of a table.
const CLONED: u32 = 0x200;
/// Marks the routes of the tunnel as its own (`ip route` shows `proto 112`).
const PROTOCOL: u8 = 112;
/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

/// Where a route of the tunnel's own leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteType {
    /// Into the device of this index.
    Device(u32),
    /// On to the next rule, as if its table had none: what it names is left to the tables behind.
    Throw,
    /// Nowhere: who sends there is told so.
    Unreachable,
}

/// A route of the main table, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainRoute {
    /// Its destination.
    pub net: IpNet,
    /// Index of the device that it leads to, 0 for none or several.
    pub device: u32,
    /// The next router, where it has one of its own family.
    pub gateway: Option<IpAddr>,
    /// Lower ones win. The kernel's own default is 0 for IPv4 and 1024 for IPv6.
    pub metric: u32,
    /// Whether the kernel made it of an address of the device: all in it are neighbours.
    pub is_connected: bool,
}

/// A route that could not be had.
#[derive(Debug)]
pub struct RefusedRoute {
    /// Its destination.
    pub net: IpNet,
    /// Why.
    pub error: KernelError,
}

/// Changes links, addresses, routes and rules in the network namespace in which it was opened. Every change
/// needs `CAP_NET_ADMIN`.
#[derive(Debug)]
pub struct RouteSocket(pub(super) Socket);

impl RouteSocket {
    /// Opens the socket.
    pub fn open() -> Result<Self, KernelError> {
        Socket::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// The index of a device.
    pub fn index_of(name: &str) -> Result<u32, KernelError> {
        nix::net::if_::if_nametoindex(name).map_err(|_| KernelError::NoSuchDevice(name.to_owned()))
    }

    /// Brings a device up, without a link-local address of its own making.
    pub fn set_up(&mut self, device: u32) -> Result<(), KernelError> {
        self.leave_out_link_local(device)?;
        self.0.request("bring the tunnel's device up", &link(device, LINK_UP, LINK_UP))
    }

    /// Keeps a device from making itself a link-local address once it is up: nobody in a tunnel answers to it.
    pub fn leave_out_link_local(&mut self, device: u32) -> Result<(), KernelError> {
        let spec = Attributes::default().with(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        let family = Attributes::default().nested(address_family(libc::AF_INET6), &spec);
        let quiet = link(device, 0, 0).nested(IFLA_AF_SPEC, &family);
        match self.0.request("leave out the link-local address of the tunnel's device", &quiet) {
            // No IPv6 at all in this kernel or namespace.
            Err(error)
                if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL)) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Sets the largest packet of a device, in bytes.
    pub fn set_mtu(&mut self, device: u32, mtu: u32) -> Result<(), KernelError> {
        let message = link(device, 0, 0).attribute(IFLA_MTU, &mtu.to_ne_bytes());
        self.0.request(&format!("set the MTU to {mtu}"), &message)
    }

    /// Switches IPv4 forwarding of what comes in by one device. Needs no writable /proc/sys, unlike the sysctl
    /// of the same name.
    pub fn set_forwarding_v4(&mut self, device: u32, on: bool) -> Result<(), KernelError> {
        let value = Attributes::default().with(IPV4_DEVCONF_FORWARDING, &u32::from(on).to_ne_bytes());
        let conf = Attributes::default().nested(IFLA_INET_CONF, &value);
        let spec = Attributes::default().nested(address_family(libc::AF_INET), &conf);
        self.0.request("switch IPv4 forwarding", &link(device, 0, 0).nested(IFLA_AF_SPEC, &spec))
    }

    /// Whether IPv4 packets that come in by a device are forwarded.
    pub fn forwarding_v4(&mut self, device: u32) -> Result<bool, KernelError> {
        let what = "read whether IPv4 is forwarded";
        let message = Message::new(libc::RTM_GETLINK, 0, &link_header(device, 0, 0));
        let answer = self.0.get(what, &message)?;
        let conf = answer
            .get(LINK_HEADER..)
            .and_then(|body| netlink::attribute(body, IFLA_AF_SPEC))
            .and_then(|spec| netlink::attribute(spec, address_family(libc::AF_INET)))
            .and_then(|inet| netlink::attribute(inet, IFLA_INET_CONF))
            .ok_or_else(|| KernelError::Malformed { what: what.to_owned() })?;
        Ok(netlink::u32_at(conf, usize::from(IPV4_DEVCONF_FORWARDING - 1) * 4) == Some(1))
    }

    /// The addresses of a device, without link-local ones.
    pub fn addresses(&mut self, device: u32) -> Result<Vec<IpNet>, KernelError> {
        let dump = Message::new(libc::RTM_GETADDR, 0, &[0; ADDRESS_HEADER]);
        let found = self.0.dump("list the addresses of the tunnel's device", &dump)?;
        Ok(found.iter().filter_map(|(_, body)| address_of(body, device)).collect())
    }

    /// Makes the addresses of a device exactly these, without touching those that are right. Yields those of IPv6
    /// that the device cannot have because this machine, or the device, is without IPv6.
    pub fn set_addresses(&mut self, device: u32, wanted: &[IpNet]) -> Result<Vec<IpNet>, KernelError> {
        let present = self.addresses(device)?;
        for net in present.iter().filter(|net| !wanted.contains(net)) {
            let message = Message::new(libc::RTM_DELADDR, 0, &address_header(device, *net));
            ignore(
                self.0.request(&format!("remove the address {net}"), &with_address(message, net.addr())),
                Errno::EADDRNOTAVAIL,
            )?;
        }
        let mut without = Vec::new();
        for net in wanted.iter().filter(|net| !present.contains(net)) {
            let message = Message::new(libc::RTM_NEWADDR, CREATE | REPLACE, &address_header(device, *net));
            match self.0.request(&format!("add the address {net}"), &with_address(message, net.addr())) {
                Err(error) if is_without(*net, &error) => without.push(*net),
                result => result?,
            }
        }
        Ok(without)
    }

    /// Whether a device is up.
    pub fn is_up(&mut self, device: u32) -> Result<bool, KernelError> {
        let what = "read whether the tunnel's device is up";
        let answer = self.0.get(what, &Message::new(libc::RTM_GETLINK, 0, &link_header(device, 0, 0)))?;
        let flags =
            netlink::u32_at(&answer, 8).ok_or_else(|| KernelError::Malformed { what: what.to_owned() })?;
        Ok(flags & LINK_UP != 0)
    }

    /// The destinations that the tunnel itself has routed through a device in a table.
    pub fn routes(&mut self, device: u32, table: u32) -> Result<Vec<IpNet>, KernelError> {
        let ways = self.ways(device, table)?.into_iter();
        Ok(ways.filter(|(_, way)| *way == RouteType::Device(device)).map(|(net, _)| net).collect())
    }

    /// All routes of the main table.
    pub fn main_routes(&mut self) -> Result<Vec<MainRoute>, KernelError> {
        let found = self.list()?;
        Ok(found.iter().filter_map(|(_, body)| main_route_of(body)).collect())
    }

    /// Makes the tunnel's own routes through a device in a table exactly these, without touching those that
    /// are right. One that cannot be had keeps no other from being made: those are handed back.
    pub fn set_routes(
        &mut self,
        device: u32,
        table: u32,
        wanted: &[IpNet],
    ) -> Result<Vec<RefusedRoute>, KernelError> {
        let wanted: Vec<_> = wanted.iter().map(|net| (*net, RouteType::Device(device))).collect();
        self.set_ways(device, table, &wanted)
    }

    /// The same with ways of all kinds. Those that cover others are made first.
    pub fn set_ways(
        &mut self,
        device: u32,
        table: u32,
        wanted: &[(IpNet, RouteType)],
    ) -> Result<Vec<RefusedRoute>, KernelError> {
        let mut wanted: Vec<_> = wanted.iter().map(|(net, way)| (net.trunc(), *way)).collect();
        wanted.sort_by_key(|(net, _)| net.prefix_len());
        let present = self.ways(device, table)?;
        for (net, way) in present.iter().filter(|present| !wanted.contains(present)) {
            let message = route(libc::RTM_DELROUTE, 0, *way, table, *net);
            ignore(self.0.request(&format!("remove the route to {net}"), &message), Errno::ESRCH)?;
        }
        let mut refused = Vec::new();
        for (net, way) in wanted.iter().filter(|wanted| !present.contains(wanted)) {
            let message = route(libc::RTM_NEWROUTE, CREATE | EXCLUSIVE, *way, table, *net);
            if let Err(error) = self.0.request(&format!("add a route to {net}"), &message) {
                refused.push(RefusedRoute { net: *net, error });
            }
        }
        Ok(refused)
    }

    /// The tunnels' own routes without a device, in tables of such numbers.
    pub(super) fn own_routes(
        &mut self,
        is_meant: impl Fn(u32) -> bool,
    ) -> Result<Vec<(IpNet, RouteType, u32)>, KernelError> {
        let found = self.list()?;
        let own = |(_, body): &(u16, Vec<u8>)| {
            let table = Entry::of(body)?.table;
            let (net, way) = way_of(body, 0, table)?;
            is_meant(table).then_some((net, way, table))
        };
        Ok(found.iter().filter_map(own).collect())
    }

    /// All routes of all tables, as the kernel tells them.
    fn list(&mut self) -> Result<Vec<(u16, Vec<u8>)>, KernelError> {
        self.0.dump("list routes", &Message::new(libc::RTM_GETROUTE, 0, &[0; ROUTE_HEADER]))
    }

    fn ways(&mut self, device: u32, table: u32) -> Result<Vec<(IpNet, RouteType)>, KernelError> {
        let found = self.list()?;
        Ok(found.iter().filter_map(|(_, body)| way_of(body, device, table)).collect())
    }
}

/// Switches IPv6 forwarding on for the whole network namespace. IPv6 has no other way, so this needs a writable
/// /proc/sys; a container without one gets the sysctl `net.ipv6.conf.all.forwarding=1` from its pod.
pub fn forward_v6() -> Result<(), KernelError> {
    const PATH: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
    let what = "switch IPv6 forwarding on (set the pod's sysctl net.ipv6.conf.all.forwarding=1)";
    let refused = |error: std::io::Error| KernelError::Refused { what: what.to_owned(), source: error };
    if std::fs::read_to_string(PATH).map_err(refused)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(PATH, "1").map_err(refused)
}

pub(super) fn ignore(result: Result<(), KernelError>, harmless: Errno) -> Result<(), KernelError> {
    match result {
        Err(error) if error.errno() == Some(harmless) => Ok(()),
        result => result,
    }
}

fn address_family(family: i32) -> u16 {
    u16::try_from(family).unwrap_or_default()
}

pub(super) fn family_of(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or_default()
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// `struct ifinfomsg`
fn link_header(device: u32, flags: u32, change: u32) -> Vec<u8> {
    [[0; 4], device.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat()
}

fn link(device: u32, flags: u32, change: u32) -> Message {
    Message::new(libc::RTM_SETLINK, 0, &link_header(device, flags, change))
}

/// `struct ifaddrmsg`
fn address_header(device: u32, net: IpNet) -> Vec<u8> {
    let scope = SCOPE_UNIVERSE;
    [[family_of(net.addr()), net.prefix_len(), 0, scope], device.to_ne_bytes()].concat()
}

fn with_address(message: Message, address: IpAddr) -> Message {
    let octets = octets(address);
    message.attribute(IFA_LOCAL, &octets).attribute(IFA_ADDRESS, &octets)
}

fn address_of(body: &[u8], device: u32) -> Option<IpNet> {
    let length = *body.get(1)?;
    let here = *body.get(3)? != SCOPE_LINK && netlink::u32_at(body, 4)? == device;
    let attributes = body.get(ADDRESS_HEADER..)?;
    let octets =
        netlink::attribute(attributes, IFA_LOCAL).or_else(|| netlink::attribute(attributes, IFA_ADDRESS))?;
    here.then(|| IpNet::new(address(octets)?, length).ok()).flatten()
}

/// Whether an address or a route is refused because there is no IPv6: it is switched off (`disable_ipv6`), or the
/// kernel was made or started without it.
fn is_without(net: IpNet, error: &KernelError) -> bool {
    let off = [Errno::EACCES, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    net.addr().is_ipv6() && error.errno().is_some_and(|errno| off.contains(&errno))
}

/// `struct rtmsg` and the attributes that every route here has.
pub(super) fn route(kind: u16, flags: u16, way: RouteType, table: u32, net: IpNet) -> Message {
    let (to, scope) = match way {
        RouteType::Device(_) if net.addr().is_ipv4() => (UNICAST, SCOPE_LINK),
        RouteType::Device(_) => (UNICAST, SCOPE_UNIVERSE),
        RouteType::Throw => (THROW, SCOPE_UNIVERSE),
        RouteType::Unreachable => (UNREACHABLE, SCOPE_UNIVERSE),
    };
    // The table goes into an attribute, where it may be larger than a byte.
    let header = [family_of(net.addr()), net.prefix_len(), 0, 0, 0, PROTOCOL, scope, to, 0, 0, 0, 0];
    let message = Message::new(kind, flags, &header)
        .attribute(RTA_DST, &octets(net.addr()))
        .attribute(RTA_TABLE, &table.to_ne_bytes());
    match way {
        RouteType::Device(device) => message.attribute(RTA_OIF, &device.to_ne_bytes()),
        RouteType::Throw | RouteType::Unreachable => message,
    }
}

/// A route as far as it is read here.
struct Entry<'a> {
    net: IpNet,
    table: u32,
    protocol: u8,
    kind: u8,
    attributes: &'a [u8],
}

impl<'a> Entry<'a> {
    fn of(body: &'a [u8]) -> Option<Self> {
        let (family, length, protocol, kind) = (*body.first()?, *body.get(1)?, *body.get(5)?, *body.get(7)?);
        if netlink::u32_at(body, 8)? & CLONED != 0 {
            return None;
        }
        let attributes = body.get(ROUTE_HEADER..)?;
        let table = netlink::attribute(attributes, RTA_TABLE).and_then(|value| netlink::u32_at(value, 0))?;
        let destination = match netlink::attribute(attributes, RTA_DST) {
            Some(octets) => address(octets)?,
            None if i32::from(family) == libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            None => Ipv6Addr::UNSPECIFIED.into(),
        };
        let net = IpNet::new(destination, length).ok()?;
        Some(Self { net, table, protocol, kind, attributes })
    }

    fn number(&self, kind: u16) -> Option<u32> {
        netlink::attribute(self.attributes, kind).and_then(|value| netlink::u32_at(value, 0))
    }
}

/// A route of ours through the device, or through none.
fn way_of(body: &[u8], device: u32, table: u32) -> Option<(IpNet, RouteType)> {
    let entry = Entry::of(body).filter(|entry| entry.protocol == PROTOCOL && entry.table == table)?;
    let way = match entry.kind {
        THROW => RouteType::Throw,
        UNREACHABLE => RouteType::Unreachable,
        _ => RouteType::Device(entry.number(RTA_OIF).filter(|to| *to == device)?),
    };
    Some((entry.net, way))
}

fn main_route_of(body: &[u8]) -> Option<MainRoute> {
    let entry = Entry::of(body).filter(|entry| entry.table == MAIN_TABLE)?;
    let direct =
        [RTA_GATEWAY, RTA_VIA].iter().all(|kind| netlink::attribute(entry.attributes, *kind).is_none());
    Some(MainRoute {
        net: entry.net,
        device: entry.number(RTA_OIF).unwrap_or_default(),
        gateway: netlink::attribute(entry.attributes, RTA_GATEWAY).and_then(address),
        metric: entry.number(RTA_PRIORITY).unwrap_or_default(),
        is_connected: direct && entry.protocol == BY_KERNEL && entry.kind == UNICAST,
    })
}
