//! Messages of nftables as far as they are needed here (linux/netfilter/nf_tables.h). A table is replaced as a whole, in one step.

use ipnet::IpNet;
use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{
    KernelError,
    netlink::{APPEND, Attributes, CREATE, Message, Socket, attribute},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const GET_GENERATION: u16 = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
/// Attributes by which objects are told apart: `NFTA_*_HANDLE`.
const TABLE_HANDLE: u16 = 4;
const CHAIN_HANDLE: u16 = 2;
const RULE_HANDLE: u16 = 3;
/// `NFPROTO_INET`: both families.
const INET: u8 = 1;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const META_MARK: u32 = 3;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
const META_SOCKET_UID: u32 = 10;
const META_PROTOCOL_FAMILY: u32 = 15;
const META_LAYER_4_PROTOCOL: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const CONNTRACK_STATE: u32 = 0;
const CONNTRACK_MARK: u32 = 3;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Of a flow that both sides know of, or belonging to one: `NF_CT_STATE_BIT` of established and related.
const KNOWN: u32 = 0b110;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Whether a value is to be the one given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    The,
    Not,
}

impl Is {
    const fn code(self) -> u32 {
        match self {
            Self::The => 0,
            Self::Not => 1,
        }
    }
}

/// Where a chain stands in a packet's way (linux/netfilter.h, linux/netfilter_ipv4.h).
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    pub(super) number: u32,
    pub(super) priority: i32,
    /// `filter` or `nat`.
    pub(super) kind: &'static str,
}

/// A chain that lets through what no rule of it says otherwise of.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Hook,
    pub(super) rules: Vec<Vec<Attributes>>,
}

/// A table as this process wrote it, to be known again.
#[derive(Debug, Clone)]
pub struct Written {
    table: String,
    chains: Vec<&'static str>,
    /// Where it could not be read, it is taken for another's in any case.
    known: Option<Known>,
}

/// By what a table is known: any that is made again has other handles.
#[derive(Debug, Clone)]
struct Known {
    /// Of all tables of the namespace.
    generation: Vec<u8>,
    handles: Vec<Vec<u8>>,
}

impl Written {
    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Whether the table still consists of what was written. What is cheap to see is looked at first: whether any table here
    /// was changed since.
    pub fn stands(&mut self) -> bool {
        let Some(known) = &mut self.known else { return false };
        let Ok(now) = generation() else { return false };
        if now == known.generation {
            return true;
        }
        let stands = handles(&self.table, &self.chains).is_ok_and(|handles| handles == known.handles);
        if stands {
            known.generation = now;
        }
        stands
    }
}

fn generation() -> Result<Vec<u8>, KernelError> {
    let what = "see whether rules were changed (nftables)";
    let answer = Socket::open(SockProtocol::NetlinkNetFilter)?.get(what, &nftables(GET_GENERATION, 0))?;
    value_of(what, &answer, 1)
}

fn handles(table: &str, chains: &[&str]) -> Result<Vec<Vec<u8>>, KernelError> {
    let what = "look at a table of ours (nftables)";
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let answer = socket.get(what, &named(GET_TABLE, 0, table))?;
    let mut handles = vec![value_of(what, &answer, TABLE_HANDLE)?];
    for chain in chains {
        let answer = socket.get(what, &named(GET_CHAIN, 0, table).attribute(3, &text(chain)))?;
        handles.push(value_of(what, &answer, CHAIN_HANDLE)?);
    }
    for (_, rule) in socket.dump(what, &named(GET_RULE, 0, table))? {
        handles.push(value_of(what, &rule, RULE_HANDLE)?);
    }
    Ok(handles)
}

fn value_of(what: &str, message: &[u8], kind: u16) -> Result<Vec<u8>, KernelError> {
    let value = message.get(FAMILY_HEADER..).and_then(|attributes| attribute(attributes, kind));
    value.map(<[u8]>::to_vec).ok_or_else(|| KernelError::Malformed { what: what.to_owned() })
}

/// The table that a message of nftables is about, if it is about one.
pub(super) fn table_of(message: &[u8]) -> Option<String> {
    let name = attribute(message.get(FAMILY_HEADER..)?, 1)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    String::from_utf8(name.to_vec()).ok()
}

/// The same as [`replace`], to be known again.
pub(super) fn write(what: &str, table: &str, chains: &[Chain]) -> Result<Written, KernelError> {
    replace(what, table, chains)?;
    let names: Vec<_> = chains.iter().map(|chain| chain.name).collect();
    // Before the handles: what somebody else does in between is seen later.
    let known = generation()
        .and_then(|generation| Ok(Known { generation, handles: handles(table, &names)? }))
        .inspect_err(|error| tracing::debug!(%error, table, "is written again with each look"));
    Ok(Written { table: table.to_owned(), chains: names, known: known.ok() })
}

/// Makes the table exactly these chains: no packet sees it half done, and flows in progress go on. `what` completes "cannot …".
pub(super) fn replace(what: &str, table: &str, chains: &[Chain]) -> Result<(), KernelError> {
    // Making it first lets the removal succeed in any case.
    let mut messages = vec![
        begin(),
        named(NEW_TABLE, CREATE, table),
        named(DELETE_TABLE, 0, table),
        named(NEW_TABLE, CREATE, table),
    ];
    for chain in chains {
        messages.push(new_chain(table, chain));
        messages.extend(chain.rules.iter().map(|rule| new_rule(table, chain.name, rule)));
    }
    messages.push(end());
    Socket::open(SockProtocol::NetlinkNetFilter)?.batch(what, &messages)
}

/// Removes the table. One that is gone already is no error.
pub(super) fn remove(what: &str, table: &str) -> Result<(), KernelError> {
    let messages = [begin(), named(NEW_TABLE, CREATE, table), named(DELETE_TABLE, 0, table), end()];
    Socket::open(SockProtocol::NetlinkNetFilter)?.batch(what, &messages)
}

/// Whether there is such a table.
pub(super) fn exists(what: &str, table: &str) -> Result<bool, KernelError> {
    match Socket::open(SockProtocol::NetlinkNetFilter)?.get(what, &named(GET_TABLE, 0, table)) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        result => result.map(|_| true),
    }
}

fn named(kind: u16, flags: u16, table: &str) -> Message {
    nftables(kind, flags).attribute(1, &text(table))
}

fn new_chain(table: &str, chain: &Chain) -> Message {
    let hook = Attributes::default()
        .with(1, &chain.hook.number.to_be_bytes())
        .with(2, &chain.hook.priority.to_be_bytes());
    named(NEW_CHAIN, CREATE, table)
        .attribute(3, &text(chain.name))
        .nested(4, &hook)
        .attribute(7, &text(chain.hook.kind))
}

fn new_rule(table: &str, chain: &str, rule: &[Attributes]) -> Message {
    let list = rule.iter().fold(Attributes::default(), |list, one| list.nested(1, one));
    named(NEW_RULE, CREATE | APPEND, table).attribute(2, &text(chain)).nested(4, &list)
}

/// Came in by the device, or did not.
pub(super) fn input_device(is: Is, name: &str) -> [Attributes; 2] {
    [meta(META_INPUT_NAME), compare(is, &device(name))]
}

/// Goes out by the device, or does not.
pub(super) fn output_device(is: Is, name: &str) -> [Attributes; 2] {
    [meta(META_OUTPUT_NAME), compare(is, &device(name))]
}

/// Is of this family: `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) fn family(family: u8) -> [Attributes; 2] {
    [meta(META_PROTOCOL_FAMILY), compare(Is::The, &[family])]
}

/// Has these bytes at an offset of its IP header, where the mask is set.
pub(super) fn header_field(offset: u32, mask: &[u8], bytes: &[u8]) -> [Attributes; 3] {
    [payload(NETWORK_HEADER, offset, bytes.len()), mask_with(mask), compare(Is::The, bytes)]
}

/// Goes to an address of this prefix.
pub(super) fn destination(net: IpNet) -> [Attributes; 5] {
    let (is, offset, mask, address) = match net.trunc() {
        IpNet::V4(net) => (IPV4, 16, net.netmask().octets().to_vec(), net.addr().octets().to_vec()),
        IpNet::V6(net) => (IPV6, 24, net.netmask().octets().to_vec(), net.addr().octets().to_vec()),
    };
    let ([load, same], [field, masked, equal]) = (family(is), header_field(offset, &mask, &address));
    [load, same, field, masked, equal]
}

/// Goes to this port of this protocol.
pub(super) fn destination_port(protocol: u8, port: u16) -> [Attributes; 4] {
    [
        meta(META_LAYER_4_PROTOCOL),
        compare(Is::The, &[protocol]),
        payload(TRANSPORT_HEADER, 2, 2),
        compare(Is::The, &port.to_be_bytes()),
    ]
}

/// Was sent by a process of this user.
pub(super) fn sent_by(user: u32) -> [Attributes; 2] {
    [meta(META_SOCKET_UID), compare(Is::The, &user.to_ne_bytes())]
}

/// Bears this mark, which is in the register then.
pub(super) fn mark_is(mark: u32) -> [Attributes; 2] {
    [meta(META_MARK), compare(Is::The, &mark.to_ne_bytes())]
}

/// Has its connection remember the mark in the register.
pub(super) fn remember_mark() -> [Attributes; 1] {
    let set = Attributes::default().with(2, &CONNTRACK_MARK.to_be_bytes()).with(4, &REGISTER.to_be_bytes());
    [expression("ct", &set)]
}

/// Belongs to a connection that remembers this mark, which is in the register then.
pub(super) fn remembered_mark_is(mark: u32) -> [Attributes; 2] {
    let load = Attributes::default().with(1, &REGISTER.to_be_bytes()).with(2, &CONNTRACK_MARK.to_be_bytes());
    [expression("ct", &load), compare(Is::The, &mark.to_ne_bytes())]
}

/// Gives the packet the mark in the register.
pub(super) fn mark_as_compared() -> Attributes {
    let set = Attributes::default().with(2, &META_MARK.to_be_bytes()).with(3, &REGISTER.to_be_bytes());
    expression("meta", &set)
}

/// Is a message of this protocol whose first byte is this.
pub(super) fn message_kind(protocol: u8, kind: u8) -> [Attributes; 4] {
    [
        meta(META_LAYER_4_PROTOCOL),
        compare(Is::The, &[protocol]),
        payload(TRANSPORT_HEADER, 0, 1),
        compare(Is::The, &[kind]),
    ]
}

/// Is, or is not, an answer, more of what was answered, or an error about it.
pub(super) fn of_known_flow(is: Is) -> [Attributes; 3] {
    let state =
        Attributes::default().with(1, &REGISTER.to_be_bytes()).with(2, &CONNTRACK_STATE.to_be_bytes());
    let is_none = match is {
        Is::The => Is::Not,
        Is::Not => Is::The,
    };
    // The kernel keeps this one in its own byte order.
    [expression("ct", &state), mask_with(&KNOWN.to_ne_bytes()), compare(is_none, &[0; 4])]
}

/// Lets the packet through.
pub(super) fn accept() -> Attributes {
    verdict(ACCEPT)
}

/// Drops the packet, and counts it.
pub(super) fn drop_counted() -> [Attributes; 2] {
    [expression("counter", &Attributes::default()), verdict(DROP)]
}

/// Gives the packet this host's address.
pub(super) fn masquerade() -> Attributes {
    expression("masq", &Attributes::default())
}

fn verdict(code: u32) -> Attributes {
    let verdict = Attributes::default().with(1, &code.to_be_bytes());
    let data = Attributes::default()
        .with(1, &REGISTER_VERDICT.to_be_bytes())
        .nested(2, &Attributes::default().nested(2, &verdict));
    expression("immediate", &data)
}

fn device(name: &str) -> Vec<u8> {
    let mut name = name.as_bytes().to_vec();
    name.resize(16, 0);
    name
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

fn compare(is: Is, with: &[u8]) -> Attributes {
    let data = Attributes::default().with(1, &REGISTER.to_be_bytes()).with(2, &is.code().to_be_bytes());
    expression("cmp", &data.nested(3, &value(with)))
}

fn payload(header: u32, offset: u32, length: usize) -> Attributes {
    let data = Attributes::default()
        .with(1, &REGISTER.to_be_bytes())
        .with(2, &header.to_be_bytes())
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
