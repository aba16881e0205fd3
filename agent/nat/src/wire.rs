//! Beats, replies and wakes as datagrams on the tunnel's own port.
//!
//! The messages of WireGuard begin with 1 to 4, these with [`BEAT`], [`REPLY`], [`WAKE`] or [`RECALL`]. Numbers are
//! big-endian, addresses 16 bytes of IPv6 (IPv4 in its mapped form) and a port. A recall looks like a wake; it says that
//! the gateway could not tell the client something over its session, and that another connection will do.
//!
//! ```text
//!  beat                    reply                       wake
//!   0  type                type                        type
//!   1  flags               flags                       flags
//!   2  zero                zero                        zero
//!   4  key                 key                         key
//!   8  seq                 seq                         seq
//!  16  probe number        probe number                probe number
//!  20  wake delay, ms      XOR-MAPPED   (18)           MAC  (16)
//!  24  cookie     (8)
//!  32  zero      (22)      38 cookie    (8)
//!                          46 bait hash (8)
//!  54  MAC       (16)      54 MAC       (16)
//!  70  bait      (18)      70 MAPPED    (18)
//! ```
//!
//! The MAC is HMAC-SHA256 over all that stands before it, cut to 16 bytes. What stands behind it is there for
//! a NAT's "helper" to meddle with: the client's own address on the way out, its public one on the way back. The
//! bait's hash and the address under the MAC (masked as in RFC 8489, section 14.2) tell whether one did.
//!
//! An answer is never larger than its request, and a wake goes only to an address where a cookie was seen to
//! arrive. A wake asked for with another cookie is not sent; the reply tells by its own cookie.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use super::{Beat, Channel, Reply, Wake};

/// First byte of every message: at least this.
pub const FIRST: u8 = 0x80;
/// First byte of a beat.
pub const BEAT: u8 = 0x80;
/// First byte of a reply.
pub const REPLY: u8 = 0x81;
/// First byte of a wake.
pub const WAKE: u8 = 0x82;
/// First byte of a recall.
pub const RECALL: u8 = 0x83;
/// Bytes of a beat and of a reply.
pub const EXCHANGE: usize = 88;
/// Bytes of a wake and of a recall.
pub const WAKE_SIZE: usize = 36;

const MAC: usize = 16;
const ADDRESS: usize = 18;
const LIVE: u8 = 1;
/// In a beat: a wake is asked for.
const WANTS_WAKE: u8 = 2;
/// In a reply: the source is the tunnel's endpoint.
const IS_ENDPOINT: u8 = 4;
/// Hides an address from who looks for it; not from who knows this ("PINHOLE-XOR-MAPPED").
const MASK: [u8; ADDRESS] = *b"PINHOLE-XOR-MAPPED";

/// Tells keys apart. Made by the gateway, unique there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// The secret that a client's session with a gateway is given, for the MAC of its beats and their answers. Cannot
/// be printed.
#[derive(Clone)]
pub struct BeatKey {
    id: KeyId,
    mac: hmac::Key,
}

impl BeatKey {
    /// Bytes of the secret.
    pub const SECRET: usize = 32;

    /// The key with this secret, which is random and known to both ends alone.
    pub fn new(id: KeyId, secret: &[u8; Self::SECRET]) -> Self {
        Self { id, mac: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// Its number.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    fn sign(&self, message: &mut Vec<u8>) {
        let tag = hmac::sign(&self.mac, message);
        message.extend(tag.as_ref().iter().take(MAC));
    }

    /// What the MAC covers, where it is right.
    fn open<'a>(&self, datagram: &'a [u8], covered: usize) -> Option<(Reader<'a>, &'a [u8])> {
        let (message, rest) = datagram.split_at_checked(covered)?;
        let (mac, rest) = rest.split_at_checked(MAC)?;
        let tag = hmac::sign(&self.mac, message);
        let genuine: bool = tag.as_ref().get(..MAC)?.ct_eq(mac).into();
        genuine.then_some((Reader(message), rest))
    }
}

impl fmt::Debug for BeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BeatKey({}, ..)", self.id.0)
    }
}

/// Proof that its holder received something at an address. Eight bytes that only the gateway can make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cookie([u8; 8]);

/// Makes the cookies of one gateway, and knows them again.
pub struct CookieMint(hmac::Key);

impl CookieMint {
    /// One with this secret, which is random and told to nobody.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The cookie of a client (by its key) at a public address. The port does not count: a client's sockets
    /// have one each, and a binding that is to be tested young has no time for an exchange before.
    pub fn cookie(&self, client: &[u8; 32], at: IpAddr) -> Cookie {
        let tag = hmac::sign(&self.0, &[client.as_slice(), &to_bytes(SocketAddr::new(at, 0))].concat());
        Cookie(tag.as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// Whether the cookie is that one.
    pub fn accepts(&self, cookie: Cookie, client: &[u8; 32], at: IpAddr) -> bool {
        self.cookie(client, at).0.ct_eq(&cookie.0).into()
    }
}

/// What was received where a beat carried its bait: hashed, so that no helper finds it again in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaitHash([u8; 8]);

impl BaitHash {
    /// Of a bait that nobody changed.
    pub fn of(bait: SocketAddr) -> Self {
        Self::of_bytes(&to_bytes(bait))
    }

    fn of_bytes(bait: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, bait);
        Self(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

/// What a message claims to be, before its MAC was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's request.
    Beat,
    /// A gateway's answer to it.
    Reply,
    /// What a gateway sends by itself.
    Wake,
    /// The same, when a session does not carry what it has to say.
    Recall,
}

/// Type and key of a message, `None` for what is none by its type or length.
pub fn peek(datagram: &[u8]) -> Option<(Kind, KeyId)> {
    let kind = match (datagram.first()?, datagram.len()) {
        (&BEAT, EXCHANGE) => Kind::Beat,
        (&REPLY, EXCHANGE) => Kind::Reply,
        (&WAKE, WAKE_SIZE) => Kind::Wake,
        (&RECALL, WAKE_SIZE) => Kind::Recall,
        _ => return None,
    };
    let mut reader = Reader(datagram.get(4..)?);
    Some((kind, KeyId(u32::from_be_bytes(reader.take()?))))
}

/// A beat as the gateway reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub beat: Beat,
    /// What the client was given for its address, if this is its address.
    pub cookie: Cookie,
    /// The bait as it arrived.
    pub bait: BaitHash,
}

/// An answer as the client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// To a beat.
    Reply(Echo),
    /// Sent by the gateway itself.
    Wake(Wake),
    /// The session is to be made anew.
    Recall,
}

/// A reply, and what came with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The reply.
    pub reply: Reply,
    /// To be shown with further beats from the same socket.
    pub cookie: Cookie,
    /// The bait as the gateway got it.
    pub bait: BaitHash,
    /// Whether the address outside the MAC arrived as the one under it says.
    pub mapped_intact: bool,
}

impl Echo {
    /// Whether somebody on the way changed an address in the payload, given the bait that was sent.
    pub fn is_meddled_with(&self, bait: SocketAddr) -> bool {
        !self.mapped_intact || self.bait != BaitHash::of(bait)
    }
}

/// Writes a beat. `bait` is the client's own address; `cookie` the last one it was given on this channel.
pub fn encode_beat(key: &BeatKey, beat: &Beat, cookie: Cookie, bait: SocketAddr) -> Vec<u8> {
    let wants_wake = if beat.wake.is_some() { WANTS_WAKE } else { 0 };
    let delay = beat.wake.unwrap_or_default().as_millis();
    let delay = u32::try_from(delay).unwrap_or(u32::MAX);
    let mut message = header(BEAT, wants_wake, key.id, beat.channel, beat.seq);
    message.extend(delay.to_be_bytes());
    message.extend(cookie.0);
    message.extend([0; 22]);
    key.sign(&mut message);
    message.extend(to_bytes(bait));
    message
}

/// Reads a beat. `None` where it is not one, or its MAC is not the key's.
pub fn decode_beat(key: &BeatKey, datagram: &[u8]) -> Option<Request> {
    if peek(datagram)? != (Kind::Beat, key.id) {
        return None;
    }
    let (mut reader, bait) = key.open(datagram, EXCHANGE - MAC - ADDRESS)?;
    let (flags, channel, seq) = reader.header()?;
    let delay = u32::from_be_bytes(reader.take()?);
    let wake = (flags & WANTS_WAKE != 0).then(|| Duration::from_millis(delay.into()));
    let cookie = Cookie(reader.take()?);
    Some(Request { beat: Beat { channel, seq, wake }, cookie, bait: BaitHash::of_bytes(bait) })
}

/// Writes a reply.
pub fn encode_reply(key: &BeatKey, reply: &Reply, cookie: Cookie, bait: BaitHash) -> Vec<u8> {
    let is_endpoint = if reply.is_endpoint { IS_ENDPOINT } else { 0 };
    let mapped = to_bytes(reply.observed);
    let mut message = header(REPLY, is_endpoint, key.id, reply.channel, reply.seq);
    message.extend(masked(mapped));
    message.extend(cookie.0);
    message.extend(bait.0);
    key.sign(&mut message);
    message.extend(mapped);
    message
}

/// Writes a wake.
pub fn encode_wake(key: &BeatKey, wake: Wake) -> Vec<u8> {
    let mut message = header(WAKE, 0, key.id, wake.channel, wake.seq);
    key.sign(&mut message);
    message
}

/// Writes a recall; `number` counts up.
pub fn encode_recall(key: &BeatKey, number: u64) -> Vec<u8> {
    let mut message = header(RECALL, 0, key.id, Channel::Live, number);
    key.sign(&mut message);
    message
}

/// Reads a reply, a wake or a recall. `None` where it is none of them, or its MAC is not the key's.
pub fn decode_answer(key: &BeatKey, datagram: &[u8]) -> Option<Answer> {
    let (kind, id) = peek(datagram)?;
    if id != key.id {
        return None;
    }
    match kind {
        Kind::Beat => None,
        Kind::Wake => {
            let (mut reader, _) = key.open(datagram, WAKE_SIZE - MAC)?;
            let (_, channel, seq) = reader.header()?;
            Some(Answer::Wake(Wake { channel, seq }))
        }
        Kind::Recall => {
            let (mut reader, _) = key.open(datagram, WAKE_SIZE - MAC)?;
            reader.header()?;
            Some(Answer::Recall)
        }
        Kind::Reply => {
            let (mut reader, in_clear) = key.open(datagram, EXCHANGE - MAC - ADDRESS)?;
            let (flags, channel, seq) = reader.header()?;
            let mapped = masked(reader.take()?);
            let (cookie, bait) = (Cookie(reader.take()?), BaitHash(reader.take()?));
            let reply =
                Reply { channel, seq, observed: from_bytes(mapped), is_endpoint: flags & IS_ENDPOINT != 0 };
            Some(Answer::Reply(Echo { reply, cookie, bait, mapped_intact: in_clear == mapped }))
        }
    }
}

/// Which numbers of a key were seen: each passes once, unless it is older than the newest by more than a
/// thousand (RFC 6479).
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    newest: u64,
    seen: [u64; Self::BLOCKS],
}

impl ReplayWindow {
    const BLOCKS: usize = 17;

    /// Whether this number is new.
    pub fn admit(&mut self, seq: u64) -> bool {
        let (block, newest) = (seq / 64, self.newest / 64);
        if newest.saturating_sub(block) >= Self::BLOCKS as u64 {
            return false;
        }
        if block.saturating_sub(newest) >= Self::BLOCKS as u64 {
            self.seen = Default::default();
        } else {
            for passed in newest..block {
                *self.word(passed + 1) = 0;
            }
        }
        self.newest = self.newest.max(seq);
        let (word, bit) = (self.word(block), 1 << (seq % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder")]
    fn word(&mut self, block: u64) -> &mut u64 {
        let at = usize::try_from(block % Self::BLOCKS as u64).unwrap_or_default();
        &mut self.seen[at % Self::BLOCKS]
    }
}

fn header(kind: u8, flags: u8, key: KeyId, channel: Channel, seq: u64) -> Vec<u8> {
    let (live, number) = match channel {
        Channel::Live => (LIVE, 0),
        Channel::Probe(number) => (0, number),
    };
    let mut message = Vec::with_capacity(EXCHANGE);
    message.extend([kind, flags | live, 0, 0]);
    message.extend(key.0.to_be_bytes());
    message.extend(seq.to_be_bytes());
    message.extend(number.to_be_bytes());
    message
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn header(&mut self) -> Option<(u8, Channel, u64)> {
        let [_, flags, _, _, _, _, _, _] = self.take()?;
        let seq = u64::from_be_bytes(self.take()?);
        let number = u32::from_be_bytes(self.take()?);
        let channel = if flags & LIVE == 0 { Channel::Probe(number) } else { Channel::Live };
        Some((flags, channel, seq))
    }
}

fn to_bytes(address: SocketAddr) -> [u8; ADDRESS] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS];
    for (byte, value) in bytes.iter_mut().zip(ip.octets().into_iter().chain(address.port().to_be_bytes())) {
        *byte = value;
    }
    bytes
}

fn from_bytes(bytes: [u8; ADDRESS]) -> SocketAddr {
    let [ip @ .., high, low] = bytes;
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), u16::from_be_bytes([high, low]))
}

fn masked(mut address: [u8; ADDRESS]) -> [u8; ADDRESS] {
    for (byte, mask) in address.iter_mut().zip(MASK) {
        *byte ^= mask;
    }
    address
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn key(secret: u8) -> BeatKey {
        BeatKey::new(KeyId(7), &[secret; 32])
    }

    fn channels() -> impl Strategy<Value = Channel> {
        prop_oneof![Just(Channel::Live), any::<u32>().prop_map(Channel::Probe)]
    }

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<(u32, u16)>().prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into());
        let v6 = any::<(u128, u16)>()
            .prop_map(|(ip, port)| SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), port));
        prop_oneof![v4, v6]
    }

    fn beats() -> impl Strategy<Value = Beat> {
        let wake = proptest::option::of(any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())));
        (channels(), any::<u64>(), wake).prop_map(|(channel, seq, wake)| Beat { channel, seq, wake })
    }

    proptest! {
        #[test]
        fn a_beat_is_read_as_it_was_written(beat in beats(), cookie: [u8; 8], bait in addresses()) {
            let datagram = encode_beat(&key(1), &beat, Cookie(cookie), bait);
            prop_assert_eq!(datagram.len(), EXCHANGE);
            prop_assert!(datagram[0] >= FIRST);
            let request = Request { beat, cookie: Cookie(cookie), bait: BaitHash::of(bait) };
            prop_assert_eq!(decode_beat(&key(1), &datagram), Some(request));
            prop_assert_eq!(decode_beat(&key(2), &datagram), None);
            prop_assert_eq!(decode_answer(&key(1), &datagram), None);
        }

        #[test]
        fn an_answer_is_read_as_it_was_written(
            channel in channels(), seq: u64, observed in addresses(), is_endpoint: bool, cookie: [u8; 8],
            bait in addresses(),
        ) {
            let reply = Reply { channel, seq, observed, is_endpoint };
            let datagram = encode_reply(&key(1), &reply, Cookie(cookie), BaitHash::of(bait));
            prop_assert!(datagram.len() <= EXCHANGE);
            let Some(Answer::Reply(echo)) = decode_answer(&key(1), &datagram) else { panic!("no reply") };
            prop_assert_eq!((echo.reply, echo.cookie), (reply, Cookie(cookie)));
            prop_assert!(!echo.is_meddled_with(bait));
            prop_assert_eq!(decode_answer(&key(2), &datagram), None);
            prop_assert_eq!(decode_beat(&key(1), &datagram), None);

            let datagram = encode_wake(&key(1), Wake { channel, seq });
            prop_assert!(datagram.len() <= EXCHANGE);
            prop_assert_eq!(decode_answer(&key(1), &datagram), Some(Answer::Wake(Wake { channel, seq })));
        }

        #[test]
        fn any_changed_bit_under_the_mac_is_refused(
            beat in beats(), observed in addresses(), bit in 0..EXCHANGE * 8,
        ) {
            let reply = Reply { channel: beat.channel, seq: beat.seq, observed, is_endpoint: true };
            let wake = Wake { channel: beat.channel, seq: beat.seq };
            let flip = |mut datagram: Vec<u8>| {
                let bit = bit % (datagram.len() * 8);
                datagram[bit / 8] ^= 1 << (bit % 8);
                (datagram, bit / 8)
            };
            let outside = EXCHANGE - ADDRESS;
            let (datagram, at) = flip(encode_beat(&key(1), &beat, Cookie([9; 8]), observed));
            let read = decode_beat(&key(1), &datagram);
            prop_assert_eq!(read.is_some(), at >= outside);
            prop_assert!(read.is_none_or(|request| request.bait != BaitHash::of(observed)));
            let (datagram, at) =
                flip(encode_reply(&key(1), &reply, Cookie([9; 8]), BaitHash::of(observed)));
            match decode_answer(&key(1), &datagram) {
                Some(Answer::Reply(echo)) => {
                    prop_assert!(at >= outside && echo.is_meddled_with(observed));
                }
                read => prop_assert!(read.is_none() && at < outside),
            }
            let (datagram, _) = flip(encode_wake(&key(1), wake));
            prop_assert_eq!(decode_answer(&key(1), &datagram), None);
        }

        #[test]
        fn any_bytes_are_survived(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (peek(&datagram), decode_beat(&key(1), &datagram), decode_answer(&key(1), &datagram));
        }

        #[test]
        fn every_number_passes_once_and_only_while_it_is_not_too_old(
            steps in proptest::collection::vec(-1500i64..1500, 1..300), start in 0u64..5000,
        ) {
            let (mut window, mut seen, mut at, mut newest) =
                (ReplayWindow::default(), HashSet::new(), start, 0);
            for step in steps {
                at = at.saturating_add_signed(step);
                let admitted = window.admit(at);
                let fresh = seen.insert(at);
                prop_assert!(!admitted || fresh, "{at} passed twice");
                prop_assert!(admitted || !fresh || newest - at > 1000, "{at} after {newest}");
                newest = newest.max(at);
            }
        }
    }

    #[test]
    fn a_number_at_the_end_of_all_numbers_is_survived() {
        let mut window = ReplayWindow::default();
        assert!(window.admit(u64::MAX) && !window.admit(u64::MAX) && !window.admit(0));
        assert!(window.admit(u64::MAX - 1));
    }

    #[test]
    fn an_address_under_the_mac_cannot_be_found_by_who_looks_for_it() {
        let observed: SocketAddr = "203.0.113.9:40000".parse().unwrap();
        let reply = Reply { channel: Channel::Live, seq: 1, observed, is_endpoint: true };
        let datagram = encode_reply(&key(1), &reply, Cookie::default(), BaitHash::of(observed));
        let found: Vec<_> =
            datagram.windows(4).enumerate().filter(|(_, at)| *at == [203, 0, 113, 9]).collect();
        assert_eq!(found.len(), 1, "once, in clear");
        assert!(found[0].0 >= EXCHANGE - ADDRESS);
    }

    #[test]
    fn a_cookie_is_good_for_one_client_at_one_address_of_one_gateway() {
        let (mint, other) = (CookieMint::new(&[1; 32]), CookieMint::new(&[2; 32]));
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let cookie = mint.cookie(&[1; 32], here);
        assert!(mint.accepts(cookie, &[1; 32], here));
        assert!(!mint.accepts(cookie, &[2; 32], here));
        assert!(!mint.accepts(cookie, &[1; 32], "192.0.2.2".parse().unwrap()));
        assert!(!other.accepts(cookie, &[1; 32], here));
        assert!(!mint.accepts(Cookie::default(), &[1; 32], here));
    }

    #[test]
    fn a_key_is_not_printed() {
        let secret = [99; BeatKey::SECRET];
        let key = BeatKey::new(KeyId(3), &secret);
        assert_eq!(format!("{key:?}"), "BeatKey(3, ..)");
    }
}
