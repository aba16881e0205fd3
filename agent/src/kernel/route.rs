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
const RTA_TABLE: u16 = 15;
pub(super) const ROUTE_HEADER: usize = 12;
const ADDRESS_HEADER: usize = 8;
const LINK_HEADER: usize = 16;
const LINK_UP: u32 = 1;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
pub(super) const UNICAST: u8 = 1;
/// Marks the routes of the tunnel as its own (`ip route` shows `proto 112`).
const PROTOCOL: u8 = 112;
/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

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

    /// Makes the addresses of a device exactly these, without touching those that are right.
    pub fn set_addresses(&mut self, device: u32, wanted: &[IpNet]) -> Result<(), KernelError> {
        let present = self.addresses(device)?;
        for net in present.iter().filter(|net| !wanted.contains(net)) {
            let message = Message::new(libc::RTM_DELADDR, 0, &address_header(device, *net));
            ignore(
                self.0.request(&format!("remove the address {net}"), &with_address(message, net.addr())),
                Errno::EADDRNOTAVAIL,
            )?;
        }
        for net in wanted.iter().filter(|net| !present.contains(net)) {
            let message = Message::new(libc::RTM_NEWADDR, CREATE | REPLACE, &address_header(device, *net));
            self.0.request(&format!("add the address {net}"), &with_address(message, net.addr()))?;
        }
        Ok(())
    }

    /// The destinations that the tunnel itself has routed through a device in a table.
    pub fn routes(&mut self, device: u32, table: u32) -> Result<Vec<IpNet>, KernelError> {
        let dump = Message::new(libc::RTM_GETROUTE, 0, &[0; ROUTE_HEADER]);
        let found = self.0.dump("list routes", &dump)?;
        Ok(found.iter().filter_map(|(_, body)| route_of(body, device, table)).collect())
    }

    /// Makes the tunnel's own routes through a device in a table exactly these, without touching those that
    /// are right.
    pub fn set_routes(&mut self, device: u32, table: u32, wanted: &[IpNet]) -> Result<(), KernelError> {
        let wanted: Vec<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        let present = self.routes(device, table)?;
        for net in present.iter().filter(|net| !wanted.contains(net)) {
            let message = route(libc::RTM_DELROUTE, 0, device, table, *net);
            ignore(self.0.request(&format!("remove the route to {net}"), &message), Errno::ESRCH)?;
        }
        for net in wanted.iter().filter(|net| !present.contains(net)) {
            let message = route(libc::RTM_NEWROUTE, CREATE | EXCLUSIVE, device, table, *net);
            self.0.request(&format!("add a route to {net}"), &message)?;
        }
        Ok(())
    }

    /// Removes a device. One that is gone already is no error.
    pub fn delete_link(&mut self, device: u32) -> Result<(), KernelError> {
        let message = Message::new(libc::RTM_DELLINK, 0, &link_header(device, 0, 0));
        ignore(self.0.request("remove the tunnel's device", &message), Errno::ENODEV)
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

/// `struct rtmsg` and the attributes that every route here has.
fn route(kind: u16, flags: u16, device: u32, table: u32, net: IpNet) -> Message {
    let scope = if net.addr().is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    // The table goes into an attribute, where it may be larger than a byte.
    let header = [family_of(net.addr()), net.prefix_len(), 0, 0, 0, PROTOCOL, scope, UNICAST, 0, 0, 0, 0];
    Message::new(kind, flags, &header)
        .attribute(RTA_DST, &octets(net.addr()))
        .attribute(RTA_OIF, &device.to_ne_bytes())
        .attribute(RTA_TABLE, &table.to_ne_bytes())
}

fn route_of(body: &[u8], device: u32, table: u32) -> Option<IpNet> {
    let (family, length, protocol) = (*body.first()?, *body.get(1)?, *body.get(5)?);
    let attributes = body.get(ROUTE_HEADER..)?;
    let number = |kind| netlink::attribute(attributes, kind).and_then(|value| netlink::u32_at(value, 0));
    if protocol != PROTOCOL || number(RTA_OIF) != Some(device) || number(RTA_TABLE) != Some(table) {
        return None;
    }
    let destination = match netlink::attribute(attributes, RTA_DST) {
        Some(octets) => address(octets)?,
        None if i32::from(family) == libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(destination, length).ok()
}
