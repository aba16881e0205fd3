//! Lets what comes out of the tunnel go on in the name of this host, by an nftables table of our own
//! (linux/netfilter/nf_tables.h).

use std::net::IpAddr;

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use super::{
    KernelError,
    netlink::{APPEND, Attributes, CREATE, Message, Socket},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const POSTROUTING: u32 = 4;
/// `NF_IP_PRI_NAT_SRC`
const SOURCE_NAT_PRIORITY: u32 = 100;
const REGISTER: u32 = 1;
const META_OUTPUT_NAME: u32 = 7;
const META_PROTOCOL_FAMILY: u32 = 15;
const NETWORK_HEADER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const CHAIN: &[u8] = b"postrouting\0";

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
        let mut messages = vec![begin()];
        // Making it first lets the removal succeed in any case.
        messages.push(self.table(NEW_TABLE, CREATE));
        messages.push(self.table(DELETE_TABLE, 0));
        messages.push(self.table(NEW_TABLE, CREATE));
        messages.push(self.chain());
        messages.extend(self.sources.iter().map(|&source| self.rule(source)));
        messages.push(end());
        Socket::open(SockProtocol::NetlinkNetFilter)?
            .batch("masquerade the tunnel's clients (nftables)", &messages)
    }

    /// Removes the table. One that is gone already is no error.
    pub fn remove(&self) -> Result<(), KernelError> {
        let messages = [begin(), self.table(NEW_TABLE, CREATE), self.table(DELETE_TABLE, 0), end()];
        Socket::open(SockProtocol::NetlinkNetFilter)?
            .batch("remove the tunnel's masquerading (nftables)", &messages)
    }

    fn table_name(&self) -> Vec<u8> {
        text(&self.table)
    }

    fn table(&self, kind: u16, flags: u16) -> Message {
        nftables(kind, flags).attribute(1, &self.table_name())
    }

    fn chain(&self) -> Message {
        let hook = Attributes::default()
            .with(1, &POSTROUTING.to_be_bytes())
            .with(2, &SOURCE_NAT_PRIORITY.to_be_bytes());
        nftables(NEW_CHAIN, CREATE)
            .attribute(1, &self.table_name())
            .attribute(3, CHAIN)
            .nested(4, &hook)
            .attribute(7, b"nat\0")
    }

    fn rule(&self, source: IpNet) -> Message {
        let (family, offset, address, mask) = match source.trunc() {
            IpNet::V4(net) => (IPV4, 12, net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
            IpNet::V6(net) => (IPV6, 8, net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
        };
        debug_assert_eq!(IpAddr::is_ipv4(&source.addr()), family == IPV4);
        let mut device = self.tunnel_device.clone().into_bytes();
        device.resize(16, 0);
        let expressions = [
            meta(META_PROTOCOL_FAMILY),
            compare(EQUAL, &[family]),
            network_header(offset, address.len()),
            mask_with(&mask),
            compare(EQUAL, &address),
            meta(META_OUTPUT_NAME),
            compare(NOT_EQUAL, &device),
            expression("masq", &Attributes::default()),
        ];
        let list = expressions.into_iter().fold(Attributes::default(), |list, one| list.nested(1, &one));
        nftables(NEW_RULE, CREATE | APPEND)
            .attribute(1, &self.table_name())
            .attribute(2, CHAIN)
            .nested(4, &list)
    }
}

fn begin() -> Message {
    batch_edge(BATCH_BEGIN)
}

fn end() -> Message {
    batch_edge(BATCH_END)
}

/// `struct nfgenmsg`, whose last field names the subsystem here.
fn batch_edge(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

fn nftables(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[INET, 0, 0, 0])
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().with(1, &text(name)).nested(2, data)
}

fn meta(key: u32) -> Attributes {
    expression("meta", &Attributes::default().with(1, &REGISTER.to_be_bytes()).with(2, &key.to_be_bytes()))
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().with(1, bytes)
}

fn compare(how: u32, with: &[u8]) -> Attributes {
    let data = Attributes::default().with(1, &REGISTER.to_be_bytes()).with(2, &how.to_be_bytes());
    expression("cmp", &data.nested(3, &value(with)))
}

fn network_header(offset: u32, length: usize) -> Attributes {
    let data = Attributes::default()
        .with(1, &REGISTER.to_be_bytes())
        .with(2, &NETWORK_HEADER.to_be_bytes())
        .with(3, &offset.to_be_bytes())
        .with(4, &bytes_of(length));
    expression("payload", &data)
}

fn mask_with(mask: &[u8]) -> Attributes {
    let data = Attributes::default()
        .with(1, &REGISTER.to_be_bytes())
        .with(2, &REGISTER.to_be_bytes())
        .with(3, &bytes_of(mask.len()))
        .nested(4, &value(mask))
        .nested(5, &value(&vec![0; mask.len()]));
    expression("bitwise", &data)
}

fn bytes_of(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or_default().to_be_bytes()
}
