//! Netlink as far as it is needed here: requests that are acknowledged, dumps, and atomic batches (RFC 3549;
//! linux/netlink.h).

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

use super::KernelError;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel's own limit for what it puts into one answer.
const MAX_ANSWER: usize = 64 * 1024;

/// `NLM_F_REQUEST`, part of every message.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub(super) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

/// A message under construction: the family's own header, then attributes.
#[derive(Debug, Clone)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        Self { kind, flags, body: header.to_vec() }
    }

    /// Appends an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// Appends an attribute that holds attributes.
    pub(super) fn nested(mut self, kind: u16, inner: &Attributes) -> Self {
        self.put(kind | NESTED, &inner.0);
        self
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        put(&mut self.body, kind, value);
    }

    fn write(&self, into: &mut Vec<u8>, sequence: u32, flags: u16) {
        #[expect(clippy::cast_possible_truncation, reason = "messages are made here, and short")]
        let length = (HEADER + self.body.len()) as u32;
        into.extend(length.to_ne_bytes());
        into.extend(self.kind.to_ne_bytes());
        into.extend((self.flags | flags | REQUEST).to_ne_bytes());
        into.extend(sequence.to_ne_bytes());
        into.extend(0_u32.to_ne_bytes());
        into.extend(&self.body);
        into.resize(into.len().next_multiple_of(4), 0);
    }
}

/// Attributes to nest.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.0, kind, value);
        self
    }

    pub(super) fn nested(mut self, kind: u16, inner: &Self) -> Self {
        put(&mut self.0, kind | NESTED, &inner.0);
        self
    }
}

fn put(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    #[expect(clippy::cast_possible_truncation, reason = "attributes are made here, and short")]
    let length = (ATTRIBUTE_HEADER + value.len()) as u16;
    into.extend(length.to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

/// Reads attributes; ends at the first that is broken.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|&chunk| u16::from_ne_bytes(chunk))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|&chunk| u32::from_ne_bytes(chunk))
}

/// A message of the kernel's.
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of a datagram; `None` ends them where one is broken.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Option<Received<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let received = received(bytes);
        let size = received.as_ref().map_or(bytes.len(), |received| HEADER + received.body.len());
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

fn received(bytes: &[u8]) -> Option<Received<'_>> {
    let size = usize::try_from(u32_at(bytes, 0)?).ok()?;
    Some(Received { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, body: bytes.get(HEADER..size)? })
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(super) fn open(protocol: SockProtocol) -> Result<Self, KernelError> {
        let open = || {
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            // The kernel answers at once, so this is never waited for in earnest.
            setsockopt(&fd, ReceiveTimeout, &TimeVal::new(5, 0))?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| KernelError::new("open a netlink socket", errno))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends a request, and waits until it is done. `what` completes "cannot …".
    pub(super) fn request(&mut self, what: &str, message: &Message) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        message.write(&mut bytes, self.sequence, ACK);
        self.exchange(what, &bytes, self.sequence, |_, _| ())
    }

    /// Asks for all objects of a kind. Each comes as its message's type and body.
    pub(super) fn dump(&mut self, what: &str, message: &Message) -> Result<Vec<(u16, Vec<u8>)>, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        message.write(&mut bytes, self.sequence, DUMP);
        let mut found = Vec::new();
        self.exchange(what, &bytes, self.sequence, |kind, body| found.push((kind, body.to_vec())))?;
        Ok(found)
    }

    /// Asks for one object.
    pub(super) fn get(&mut self, what: &str, message: &Message) -> Result<Vec<u8>, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        message.write(&mut bytes, self.sequence, ACK);
        let mut found = None;
        self.exchange(what, &bytes, self.sequence, |_, body| found = Some(body.to_vec()))?;
        found.ok_or_else(|| KernelError::Malformed { what: what.to_owned() })
    }

    /// Sends several messages at once, of which the one before the last is acknowledged: an nfnetlink batch
    /// takes effect as a whole or not at all, and each of its errors is answered by itself.
    pub(super) fn batch(&mut self, what: &str, messages: &[Message]) -> Result<(), KernelError> {
        let mut bytes = Vec::new();
        let mut acknowledged = self.sequence;
        for (n, message) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let last = n + 2 == messages.len();
            if last {
                acknowledged = self.sequence;
            }
            message.write(&mut bytes, self.sequence, if last { ACK } else { 0 });
        }
        self.exchange(what, &bytes, acknowledged, |_, _| ())
    }

    /// Sends, and reads answers until the one with this sequence number ends it, or any is an error.
    fn exchange(
        &self,
        what: &str,
        bytes: &[u8],
        last: u32,
        mut found: impl FnMut(u16, &[u8]),
    ) -> Result<(), KernelError> {
        let failed = |errno| KernelError::new(what, errno);
        let malformed = || KernelError::Malformed { what: what.to_owned() };
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map_err(failed)?;
        let mut buffer = vec![0; MAX_ANSWER];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => result.map_err(failed)?,
            };
            for message in messages(buffer.get(..length).unwrap_or_default()) {
                let Received { kind, sequence, body } = message.ok_or_else(malformed)?;
                match kind {
                    ERROR | DONE => {
                        let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                        if code < 0 {
                            return Err(failed(Errno::from_raw(-code)));
                        }
                        if sequence == last {
                            return Ok(());
                        }
                    }
                    _ => found(kind, body),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let inner = Attributes::default().with(7, b"abc").with(8, &[]);
        let message = Message::new(1, 0, &[]).attribute(1, b"x").nested(2, &inner);
        let outer: Vec<_> = attributes(&message.body).collect();
        assert_eq!(outer[0], (1, b"x".as_slice()));
        assert_eq!(attributes(outer[1].1).collect::<Vec<_>>(), [(7, b"abc".as_slice()), (8, &[])]);
        assert_eq!(message.body.len() % 4, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_end_as_attributes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER + 1);
        }
    }
}
