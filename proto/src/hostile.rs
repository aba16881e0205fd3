//! Messages as somebody would write them who means no good: for tests of everything that reads the protocol.
//!
//! They follow the protocol's own description, so that a field that is added to it is tried without anybody thinking of it.

use std::collections::BTreeMap;

use prost::{Message as _, encoding::encode_varint as varint};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use crate::FILE_DESCRIPTOR_SET;

/// Numbers at which something might break: the ends of types, what spans are bounded by, and all small words.
const NUMBERS: [i64; 26] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    20,
    25,
    30,
    180,
    3_600,
    86_400,
    604_800,
    999_999_999,
    1_700_000_000,
    315_576_000_001,
    i32::MAX as i64,
    i32::MIN as i64,
    u32::MAX as i64,
    i64::MAX,
    i64::MIN,
    -1,
];

const TEXTS: [&str; 14] = [
    "",
    "192.0.2.1:4500",
    "192.0.2.1:4501",
    "198.51.100.7:1",
    "[2001:db8::1]:65535",
    "192.0.2.1",
    "10.77.0.9/32",
    "::/0",
    "10.77.0.1/99",
    "vpn",
    "laptop-1",
    "\x1b[2J\r\n\0",
    "\u{202e}txt.exe\u{2028}",
    "\"} 1\npinhole_forged{x=\"",
];

/// Lengths of bytes: keys, one less, a handshake initiation, nothing, and much.
const LENGTHS: [usize; 6] = [0, 31, 32, 33, 148, 3_000];
const DEEPEST: usize = 8;

/// Writes them, the same ones for the same seed.
#[derive(Debug)]
pub struct Hostile {
    messages: BTreeMap<String, DescriptorProto>,
    random: u64,
}

impl Hostile {
    /// A writer.
    pub fn new(seed: u64) -> Self {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default().file;
        let messages = files.into_iter().flat_map(|file| {
            let package = file.package().to_owned();
            file.message_type
                .into_iter()
                .map(move |message| (format!(".{package}.{}", message.name()), message))
        });
        Self { messages: messages.collect(), random: seed | 1 }
    }

    /// A random number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = usize::try_from((z ^ (z >> 31)) >> 32).unwrap_or_default();
        z.checked_rem(end).unwrap_or_default()
    }

    /// The bytes of a message such as `ClientState`: extreme, odd or plausible, now and then cut short or damaged.
    pub fn bytes(&mut self, message: &str) -> Vec<u8> {
        let mut bytes = self.message(&format!(".pinhole.v1.{message}"), 0);
        match self.below(12) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let at = self.below(bytes.len());
                let bit = 1 << self.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bit;
                }
            }
            _ => {}
        }
        bytes
    }

    /// The next one that can be read at all.
    pub fn readable<M: prost::Message + Default>(&mut self, message: &str) -> M {
        loop {
            if let Ok(message) = M::decode(self.bytes(message).as_slice()) {
                return message;
            }
        }
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let Some(fields) = self.messages.get(name).map(|message| message.field.clone()) else {
            return Vec::new();
        };
        let (full, mut bytes) = (self.below(2) == 0, Vec::new());
        for field in &fields {
            let times = match (field.label(), self.below(10)) {
                (Label::Repeated, 0) => 40,
                (Label::Repeated, _) => self.below(4),
                (_, 0..5) if !full => 0,
                _ => 1,
            };
            for _ in 0..times {
                self.field(field, depth, &mut bytes);
            }
        }
        bytes
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: usize, bytes: &mut Vec<u8>) {
        let key = |kind: u64| u64::from(field.number().unsigned_abs()) << 3 | kind;
        let content = match field.r#type() {
            Type::Message if depth < DEEPEST => self.message(field.type_name(), depth + 1),
            Type::Message => return,
            Type::String => self.text().into_bytes(),
            Type::Bytes => {
                let (length, byte) = (self.pick(&LENGTHS), self.below(9));
                vec![u8::try_from(byte).unwrap_or_default(); length]
            }
            _ => {
                varint(key(0), bytes);
                return varint(self.number().cast_unsigned(), bytes);
            }
        };
        varint(key(2), bytes);
        varint(content.len() as u64, bytes);
        bytes.extend(content);
    }

    fn number(&mut self) -> i64 {
        // Mostly what gets past the first look.
        if self.below(3) > 0 { self.pick(&NUMBERS[..18]) } else { self.pick(&NUMBERS) }
    }

    fn text(&mut self) -> String {
        match self.below(20) {
            0 => "x".repeat(5_000),
            1 => "\u{7f}ö".repeat(self.below(400)),
            2 => format!("192.0.2.{}:{}", self.below(256), self.below(65_536)),
            _ => self.pick(&TEXTS).to_owned(),
        }
    }

    fn pick<T: Copy + Default>(&mut self, from: &[T]) -> T {
        from.get(self.below(from.len())).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn every_field_is_tried_the_inner_ones_too() {
        let mut hostile = Hostile::new(1);
        let states: Vec<v1::ClientState> = (0..2_000).map(|_| hostile.readable("ClientState")).collect();
        let longest = |state: &v1::ClientState| state.churn.as_ref().map_or(0, |churn| churn.causes.len());
        assert!(states.iter().any(|state| longest(state) >= 40));
        let idles = states.iter().filter_map(|state| state.churn.as_ref()).flat_map(|churn| &churn.causes);
        let idles = idles.filter_map(|cause| cause.last.as_ref()?.idle);
        assert!(
            idles.clone().any(|idle| idle.seconds == i64::MAX)
                && idles.clone().any(|idle| idle.seconds == 25)
        );
        assert!(states.iter().any(|state| v1::Phase::try_from(state.phase).is_err()));
        assert!(
            (0..2_000).any(|_| v1::ClientState::decode(hostile.bytes("ClientState").as_slice()).is_err())
        );
    }
}
