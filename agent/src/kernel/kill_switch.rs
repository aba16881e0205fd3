//! Keeps what the tunnel is for out of the clear while there is no tunnel, by an nftables table of our own.

use ipnet::IpNet;

use super::{
    KernelError,
    netlink::Attributes,
    nftables::{self, Chain, Hook, Is, Written},
};

/// `NF_INET_LOCAL_OUT` and `NF_INET_FORWARD` at `NF_IP_PRI_FILTER`.
const OUTPUT: Hook = Hook { number: 3, priority: 0, kind: "filter" };
const FORWARD: Hook = Hook { number: 2, priority: 0, kind: "filter" };
const LOOPBACK: &str = "lo";
const UDP: u8 = 17;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;
/// DHCP and DHCPv6 servers (RFC 2131, RFC 8415).
const DHCP: [u16; 2] = [67, 547];
const DNS: u16 = 53;
/// Router and neighbour discovery (RFC 4861), and what a host joins its groups by (RFC 3810).
const NEIGHBOURS: [u8; 5] = [133, 134, 135, 136, 143];
const ROOT: u32 = 0;

/// What is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// All that leaves this machine.
    Everything,
    /// What is sent to these.
    Only(Vec<IpNet>),
}

/// Drops what is to go through the tunnel and would leave by another device, whether this machine sends or forwards it. Not the
/// tunnel's own packets, nor what a machine needs to have a network at all: DHCP, and router and neighbour discovery.
///
/// It stays when the process that made it ends, however that ends: that is what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillSwitch {
    /// Name of the nftables table, of family `inet`.
    pub table: String,
    /// The tunnel's device, which need not be there.
    pub tunnel_device: String,
    /// The mark of the tunnel's own packets.
    pub fwmark: u32,
    /// What is kept in.
    pub kept: Kept,
    /// What may be reached all the same: the local network.
    pub open: Vec<IpNet>,
    /// Whether root may ask name servers: the gateway has a name, and the agent asks for it by the system's resolver.
    pub root_resolves: bool,
}

impl KillSwitch {
    /// Makes the table exactly this, in one step.
    pub fn install(&self) -> Result<Written, KernelError> {
        let output = Chain { name: "output", hook: OUTPUT, rules: self.output() };
        let forward = Chain { name: "forward", hook: FORWARD, rules: self.forward() };
        nftables::write("keep everything in the tunnel (nftables)", &self.table, &[output, forward])
    }

    fn output(&self) -> Vec<Vec<Attributes>> {
        let mut rules = vec![
            accepting(nftables::output_device(Is::The, LOOPBACK)),
            accepting(nftables::mark_is(self.fwmark)),
        ];
        rules.extend(DHCP.map(|port| accepting(nftables::destination_port(UDP, port))));
        rules.extend(NEIGHBOURS.map(|kind| accepting(nftables::message_kind(ICMP_V6, kind))));
        if self.root_resolves {
            let asking = |protocol| {
                let to = nftables::destination_port(protocol, DNS);
                accepting([&nftables::sent_by(ROOT)[..], &to].concat())
            };
            rules.extend([UDP, TCP].map(asking));
        }
        rules.extend(self.forward());
        rules
    }

    fn forward(&self) -> Vec<Vec<Attributes>> {
        let mut rules = vec![accepting(nftables::output_device(Is::The, &self.tunnel_device))];
        rules.extend(self.open.iter().map(|net| accepting(nftables::destination(*net))));
        match &self.kept {
            Kept::Everything => rules.push(nftables::drop_counted().into()),
            Kept::Only(nets) => {
                let dropping =
                    |net| [Vec::from(nftables::destination(net)), nftables::drop_counted().into()].concat();
                rules.extend(nets.iter().copied().map(dropping));
            }
        }
        rules
    }
}

fn accepting(what: impl Into<Vec<Attributes>>) -> Vec<Attributes> {
    let mut rule = what.into();
    rule.push(nftables::accept());
    rule
}
