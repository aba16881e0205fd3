//! Sends everything through the tunnel but the tunnel's own datagrams, the way wg-quick does it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    netlink::{CREATE, EXCLUSIVE, Message},
    route::{MAIN_TABLE, family_of, ignore},
};

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const TO_TABLE: u8 = 1;
const INVERT: u32 = 2;

/// Routes that cover the tunnel's own endpoints, in a table of their own: packets without the tunnel's mark look
/// there, unless the main table has something better than a default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullTunnel {
    /// The mark of the tunnel's datagrams ([`TunnelConfig::fwmark`](crate::tunnel::TunnelConfig::fwmark)).
    pub fwmark: u32,
    /// The number of the routing table, none of the kernel's own (253 to 255).
    pub table: u32,
    /// The place of the first of two rules; the main table's own is at 32766, and lower comes first.
    pub priority: u32,
}

impl FullTunnel {
    /// Makes the table's routes through the device exactly these, and the rules that lead to it. Repeating it
    /// changes nothing.
    pub fn install(
        &self,
        socket: &mut RouteSocket,
        device: u32,
        routes: &[IpNet],
    ) -> Result<(), KernelError> {
        socket.set_routes(device, self.table, routes)?;
        for family in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let used = routes.iter().any(|route| route.addr().is_ipv4() == family.is_ipv4());
            for rule in self.rules(family) {
                if used {
                    let message = rule(libc::RTM_NEWRULE, CREATE | EXCLUSIVE);
                    ignore(socket.0.request("add a routing rule", &message), Errno::EEXIST)?;
                } else {
                    delete(socket, &rule(libc::RTM_DELRULE, 0))?;
                }
            }
        }
        Ok(())
    }

    /// Takes the rules away, and the table's routes through the device. What is gone already is no error.
    pub fn remove(&self, socket: &mut RouteSocket, device: u32) -> Result<(), KernelError> {
        for family in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            for rule in self.rules(family) {
                delete(socket, &rule(libc::RTM_DELRULE, 0))?;
            }
        }
        socket.set_routes(device, self.table, &[])
    }

    fn rules(self, family: IpAddr) -> [Box<dyn Fn(u16, u16) -> Message>; 2] {
        let main = move |kind, flags| {
            header(kind, flags, family, 0)
                .attribute(FRA_PRIORITY, &self.priority.to_ne_bytes())
                .attribute(FRA_TABLE, &MAIN_TABLE.to_ne_bytes())
                .attribute(FRA_SUPPRESS_PREFIXLEN, &0_u32.to_ne_bytes())
        };
        let unmarked = move |kind, flags| {
            header(kind, flags, family, INVERT)
                .attribute(FRA_PRIORITY, &(self.priority + 1).to_ne_bytes())
                .attribute(FRA_TABLE, &self.table.to_ne_bytes())
                .attribute(FRA_FWMARK, &self.fwmark.to_ne_bytes())
        };
        [Box::new(main), Box::new(unmarked)]
    }
}

fn delete(socket: &mut RouteSocket, rule: &Message) -> Result<(), KernelError> {
    let result = ignore(socket.0.request("remove a routing rule", rule), Errno::ENOENT);
    // A namespace without IPv6 has no such rules.
    ignore(result, Errno::EAFNOSUPPORT)
}

/// `struct fib_rule_hdr`
fn header(kind: u16, flags: u16, family: IpAddr, rule_flags: u32) -> Message {
    let [a, b, c, d] = rule_flags.to_ne_bytes();
    Message::new(kind, flags, &[family_of(family), 0, 0, 0, 0, 0, 0, TO_TABLE, a, b, c, d])
}
