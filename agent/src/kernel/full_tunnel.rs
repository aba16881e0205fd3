//! Sends what the tunnel is for through the tunnel but the tunnel's own datagrams, the way wg-quick does it: by a routing
//! table of its own and rules that lead there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError, RefusedRoute, RouteSocket, RouteType,
    netlink::{self, CREATE, EXCLUSIVE, Message},
    route::{MAIN_TABLE, family_of, ignore},
};

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
/// Bytes of `struct fib_rule_hdr`.
const HEADER: usize = 12;
const TO_TABLE: u8 = 1;
const INVERT: u32 = 2;
const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Routes in a table of their own: packets without the tunnel's mark look there first. What is [thrown](RouteType::Throw) there is
/// looked up in the main table as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullTunnel {
    /// The mark of the tunnel's datagrams ([`TunnelConfig::fwmark`](crate::tunnel::TunnelConfig::fwmark)).
    pub fwmark: u32,
    /// The number of the routing table, none of the kernel's own (253 to 255).
    pub table: u32,
    /// The place of the first of two rules; the main table's own is at 32766, and lower comes first. A third one comes before
    /// the rules of another tunnel.
    pub priority: u32,
    /// Whether the main table goes first with all that it has but default routes. Only where nobody else can put routes
    /// there: a DHCP server can, by its option 121 (CVE-2024-3661).
    pub main_first: bool,
}

impl FullTunnel {
    /// Makes the table's routes exactly these, of which those into a device are all of this one, and the rules that lead
    /// to it. Repeating it changes nothing. Yields the routes that could not be had.
    ///
    /// Another VPN that takes everything but its own packets would take the tunnel's, and the tunnel its: each would go round
    /// in circles. Where there is one, the tunnel's own packets are left to the main table.
    ///
    /// # Errors
    /// When a rule cannot be had. All others are there, and all routes.
    pub fn install(
        &self,
        socket: &mut RouteSocket,
        device: u32,
        routes: &[(IpNet, RouteType)],
    ) -> Result<Vec<RefusedRoute>, KernelError> {
        let refused = socket.set_ways(device, self.table, routes)?;
        let mut failed = Ok(());
        for family in FAMILIES {
            let used = routes
                .iter()
                .any(|(net, way)| net.addr().is_ipv4() == family.is_ipv4() && *way != RouteType::Throw);
            let [main, own] = self.rules(family);
            for (rule, wanted) in [(main, used && self.main_first), (own, used)] {
                let result = if wanted { add(socket, rule) } else { delete(socket, rule) };
                failed = failed.and(result);
            }
            failed = failed.and(self.leave_out_own(socket, family, used));
        }
        failed.map(|()| refused)
    }

    /// Leaves the tunnel's own packets to the main table, before whoever else takes everything but its own.
    fn leave_out_own(self, socket: &mut RouteSocket, family: IpAddr, used: bool) -> Result<(), KernelError> {
        let all: Vec<Found> =
            rules(socket)?.into_iter().filter(|rule| rule.is_v4 == family.is_ipv4()).collect();
        let wanted = before_others(&all, self.fwmark).filter(|_| used);
        let mut failed = Ok(());
        let present = all.iter().filter(|rule| rule.leaves_out(self.fwmark)).map(|rule| rule.priority);
        for priority in present.filter(|priority| Some(*priority) != wanted) {
            failed = failed.and(delete(socket, Rule::Out { family, priority, fwmark: self.fwmark }));
        }
        let out = wanted.map(|priority| Rule::Out { family, priority, fwmark: self.fwmark });
        failed.and(out.map_or(Ok(()), |out| add(socket, out)))
    }

    /// Takes the rules away, and the table's routes. What is gone already is no error.
    pub fn remove(&self, socket: &mut RouteSocket, device: u32) -> Result<(), KernelError> {
        self.install(socket, device, &[]).map(drop)
    }

    fn rules(self, family: IpAddr) -> [Rule; 2] {
        [Rule::Main { family, priority: self.priority }, Rule::Own { family, tunnel: self }]
    }
}

/// A rule of ours.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// The main table, without its default routes.
    Main { family: IpAddr, priority: u32 },
    /// The table of our own, for all but the tunnel's datagrams.
    Own { family: IpAddr, tunnel: FullTunnel },
    /// The main table, for the tunnel's datagrams.
    Out { family: IpAddr, priority: u32, fwmark: u32 },
}

impl Rule {
    fn message(self, kind: u16, flags: u16) -> Message {
        match self {
            Self::Main { family, priority } => header(kind, flags, family, 0)
                .attribute(FRA_PRIORITY, &priority.to_ne_bytes())
                .attribute(FRA_TABLE, &MAIN_TABLE.to_ne_bytes())
                .attribute(FRA_SUPPRESS_PREFIXLEN, &0_u32.to_ne_bytes()),
            Self::Own { family, tunnel } => header(kind, flags, family, INVERT)
                .attribute(FRA_PRIORITY, &(tunnel.priority + 1).to_ne_bytes())
                .attribute(FRA_TABLE, &tunnel.table.to_ne_bytes())
                .attribute(FRA_FWMARK, &tunnel.fwmark.to_ne_bytes()),
            Self::Out { family, priority, fwmark } => header(kind, flags, family, 0)
                .attribute(FRA_PRIORITY, &priority.to_ne_bytes())
                .attribute(FRA_TABLE, &MAIN_TABLE.to_ne_bytes())
                .attribute(FRA_FWMARK, &fwmark.to_ne_bytes()),
        }
    }
}

/// A rule of the kernel's, as far as it is read here.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) is_v4: bool,
    pub(super) priority: u32,
    pub(super) table: u32,
    /// Whether it leads to the main table without its default routes.
    pub(super) is_deferring: bool,
    /// The mark that it is about, if any.
    fwmark: Option<u32>,
    /// Whether it is about all packets but those.
    is_inverted: bool,
}

impl Found {
    /// Whether it leaves packets with that mark to the main table.
    pub(super) fn leaves_out(&self, fwmark: u32) -> bool {
        self.table == MAIN_TABLE && self.fwmark == Some(fwmark) && !self.is_inverted
    }
}

/// The place before the first rule of another tunnel that takes everything but its own packets. `wg-quick` has one there that
/// it takes back by its table alone, so ours comes after it.
fn before_others(rules: &[Found], fwmark: u32) -> Option<u32> {
    let others = rules.iter().filter(|rule| rule.is_inverted && rule.fwmark.is_some_and(|it| it != fwmark));
    others.map(|rule| rule.priority).min()?.checked_sub(1).filter(|place| *place > 0)
}

/// All rules.
pub(super) fn rules(socket: &mut RouteSocket) -> Result<Vec<Found>, KernelError> {
    let dump = Message::new(libc::RTM_GETRULE, 0, &[0; HEADER]);
    let found = socket.0.dump("list routing rules", &dump)?;
    Ok(found.iter().filter_map(|(_, body)| rule_of(body)).collect())
}

/// Removes a rule that was found.
pub(super) fn remove(socket: &mut RouteSocket, rule: &Found) -> Result<(), KernelError> {
    let family = if rule.is_v4 { FAMILIES[0] } else { FAMILIES[1] };
    let mut message = header(libc::RTM_DELRULE, 0, family, 0)
        .attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes())
        .attribute(FRA_TABLE, &rule.table.to_ne_bytes());
    // Others may have a rule in the same place.
    if let Some(fwmark) = rule.fwmark {
        message = message.attribute(FRA_FWMARK, &fwmark.to_ne_bytes());
    }
    ignore(socket.0.request("remove a routing rule", &message), Errno::ENOENT)
}

fn rule_of(body: &[u8]) -> Option<Found> {
    let family = i32::from(*body.first()?);
    let attributes = body.get(HEADER..)?;
    let number = |kind| netlink::attribute(attributes, kind).and_then(|value| netlink::u32_at(value, 0));
    let table = number(FRA_TABLE)?;
    Some(Found {
        is_v4: [libc::AF_INET, libc::AF_INET6].contains(&family).then_some(family == libc::AF_INET)?,
        priority: number(FRA_PRIORITY).unwrap_or_default(),
        table,
        is_deferring: table == MAIN_TABLE && number(FRA_SUPPRESS_PREFIXLEN) == Some(0),
        fwmark: number(FRA_FWMARK),
        is_inverted: netlink::u32_at(body, 8)? & INVERT != 0,
    })
}

fn add(socket: &mut RouteSocket, rule: Rule) -> Result<(), KernelError> {
    let message = rule.message(libc::RTM_NEWRULE, CREATE | EXCLUSIVE);
    ignore(socket.0.request("add a routing rule", &message), Errno::EEXIST)
}

fn delete(socket: &mut RouteSocket, rule: Rule) -> Result<(), KernelError> {
    let message = rule.message(libc::RTM_DELRULE, 0);
    let result = ignore(socket.0.request("remove a routing rule", &message), Errno::ENOENT);
    // A namespace without IPv6 has no such rules.
    ignore(result, Errno::EAFNOSUPPORT)
}

/// `struct fib_rule_hdr`
fn header(kind: u16, flags: u16, family: IpAddr, rule_flags: u32) -> Message {
    let [a, b, c, d] = rule_flags.to_ne_bytes();
    Message::new(kind, flags, &[family_of(family), 0, 0, 0, 0, 0, 0, TO_TABLE, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 7;

    fn rule(priority: u32, table: u32, fwmark: Option<u32>, is_inverted: bool) -> Found {
        Found { is_v4: true, priority, table, is_deferring: false, fwmark, is_inverted }
    }

    #[test]
    fn the_place_is_before_the_first_rule_that_takes_everything_but_anothers_packets() {
        let own = rule(31_001, 28_777, Some(OURS), true);
        let main = rule(32_766, MAIN_TABLE, None, false);
        let second = rule(32_765, 51_820, Some(51_820), true);
        assert_eq!(before_others(&[own, second, main], OURS), Some(32_764));
        let first = rule(30_999, 51_820, Some(51_820), true);
        let marked = rule(100, 100, Some(9), false);
        assert_eq!(
            before_others(&[marked, first, rule(31_001, 28_777, Some(OURS), true)], OURS),
            Some(30_998)
        );
        assert_eq!(before_others(&[rule(1, 51_820, Some(51_820), true)], OURS), None, "no place is left");
        assert_eq!(before_others(&[rule(31_001, 28_777, Some(OURS), true)], OURS), None);
    }
}
