//! Lets what comes out of the tunnel go on in the name of this host, by an nftables table of our own.

use ipnet::IpNet;

use super::{
    KernelError,
    netlink::Attributes,
    nftables::{self, Chain, Hook, Is},
};

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NF_INET_POST_ROUTING` at `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT: Hook = Hook { number: 4, priority: 100, kind: "nat" };

/// The sources to masquerade. The table holds nothing else, and replacing or removing it touches nobody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Name of the nftables table, of family `inet`.
    pub table: String,
    /// Whose packets: the address ranges of the tunnel's clients.
    pub sources: Vec<IpNet>,
    /// The tunnel's device. What goes out by it keeps its source.
    pub tunnel_device: String,
}

impl Masquerade {
    /// Makes the table exactly this, in one step: no packet sees it half done, and flows in progress go on.
    pub fn install(&self) -> Result<(), KernelError> {
        let rules = self.sources.iter().map(|&source| self.rule(source)).collect();
        let chain = Chain { name: "postrouting", hook: SOURCE_NAT, rules };
        nftables::replace("masquerade the tunnel's clients (nftables)", &self.table, &[chain])
    }

    /// Removes the table. One that is gone already is no error.
    pub fn remove(&self) -> Result<(), KernelError> {
        nftables::remove("remove the tunnel's masquerading (nftables)", &self.table)
    }

    fn rule(&self, source: IpNet) -> Vec<Attributes> {
        let (family, offset, address, mask) = match source.trunc() {
            IpNet::V4(net) => (IPV4, 12, net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
            IpNet::V6(net) => (IPV6, 8, net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
        };
        let mut rule = Vec::from(nftables::family(family));
        rule.extend(nftables::header_field(offset, &mask, &address));
        rule.extend(nftables::output_device(Is::Not, &self.tunnel_device));
        rule.push(nftables::masquerade());
        rule
    }
}
