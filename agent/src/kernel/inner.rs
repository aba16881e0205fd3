//! Keeps an address of the tunnel for the tunnel, by an nftables table of our own.

use std::net::IpAddr;

use super::{
    KernelError,
    netlink::Attributes,
    nftables::{self, Chain, Hook, Is, Written},
};

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NF_INET_PRE_ROUTING` at `NF_IP_PRI_RAW`: before anything is remembered of the packet.
const BEFORE_ALL: Hook = Hook { number: 0, priority: -300, kind: "filter" };
const LOOPBACK: &str = "lo";

/// Linux takes a packet for any of its addresses by whichever device it comes. Whoever shares a network with this host could so
/// find out its address in the tunnel, and speak into the connections there (CVE-2019-14899): what comes for these addresses by
/// another device is dropped. This host itself reaches them as ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerAddresses {
    /// Name of the nftables table, of family `inet`.
    pub table: String,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// The tunnel's device.
    pub tunnel_device: String,
}

impl InnerAddresses {
    /// Makes the table exactly this, in one step.
    pub fn install(&self) -> Result<Written, KernelError> {
        let rules = self.addresses.iter().map(|&address| self.rule(address)).collect();
        let chain = Chain { name: "prerouting", hook: BEFORE_ALL, rules };
        nftables::write("keep the tunnel's address for the tunnel (nftables)", &self.table, &[chain])
    }

    /// Removes the table. One that is gone already is no error.
    pub fn remove(&self) -> Result<(), KernelError> {
        nftables::remove("remove what keeps the tunnel's address (nftables)", &self.table)
    }

    fn rule(&self, address: IpAddr) -> Vec<Attributes> {
        let (family, offset, bytes) = match address {
            IpAddr::V4(address) => (IPV4, 16, address.octets().to_vec()),
            IpAddr::V6(address) => (IPV6, 24, address.octets().to_vec()),
        };
        let mut rule = Vec::from(nftables::family(family));
        rule.extend(nftables::header_field(offset, &vec![0xff; bytes.len()], &bytes));
        rule.extend(nftables::input_device(Is::Not, &self.tunnel_device));
        rule.extend(nftables::input_device(Is::Not, LOOPBACK));
        rule.extend(nftables::drop_counted());
        rule
    }
}
