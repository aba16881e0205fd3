//! What a client is called, and how it is found again by its key. Pure.

use std::fmt;

use ring::digest::{SHA256, digest};

use super::PublicKey;

/// Label of a VPNClient: the [`KeyHash`] of its public key, by which an enrolment finds it again.
pub const KEY_LABEL: &str = "pinhole.dev/key";

/// Longest name of a VPNClient, as its schema says.
const MAX_NAME: usize = 63;

/// SHA-256 of a public key, cut to 160 bits: fits in a label and does not collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 20]);

impl KeyHash {
    /// That of `key`.
    pub fn of(key: &PublicKey) -> Self {
        let mut hash = [0; 20];
        hash.iter_mut().zip(digest(&SHA256, key.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
        Self(hash)
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 20];
        if text.len() != 40 || !text.is_ascii() {
            return None;
        }
        for (n, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(n * 2..n * 2 + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Longest host name (RFC 1123, section 2.1), as the schema of a VPNClient says.
const MAX_HOSTNAME: usize = 253;

/// What a machine calls itself, cut and cleaned, never refused: letters, digits, `-`, `.` and `_`, of which the first
/// and the last are letters or digits. Empty where nothing is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hostname(String);

impl Hostname {
    /// What is left of `text`: control characters go, and each run of others that may not stay becomes one dash.
    pub fn new(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars().filter(|c| !c.is_control()) {
            if name.len() >= MAX_HOSTNAME {
                break;
            }
            match c {
                c if c.is_ascii_alphanumeric() => name.push(c),
                '-' | '.' | '_' if !name.is_empty() => name.push(c),
                _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
                _ => {}
            }
        }
        Self(name.trim_end_matches(['-', '.', '_']).to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is a word such as the value of a label: what a group is called. A pool that is older than its schema
/// may hold another, with which no client could be made.
pub(super) fn is_word(text: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Name of a machine's VPNClient: what it calls itself, and a part of its key's hash.
pub(super) fn machine_name(hostname: &str, key: KeyHash) -> String {
    with_suffix(hostname, &key.to_string())
}

/// Name of a sidecar's VPNClient: its pod's, and a part of the hash of the pod's UID.
pub(super) fn sidecar_name(pod: &str, pod_uid: &str) -> String {
    let hash = digest(&SHA256, pod_uid.as_bytes());
    let hex: Vec<String> = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    with_suffix(pod, &hex.concat())
}

fn with_suffix(text: &str, hex: &str) -> String {
    let suffix: String = hex.chars().take(8).collect();
    let label = as_label(text, MAX_NAME - 1 - suffix.len());
    format!("{}-{suffix}", if label.is_empty() { "client" } else { &label })
}

/// `text` as a DNS label: small letters, digits, and single dashes in between.
fn as_label(text: &str, longest: usize) -> String {
    let mut label = String::new();
    for c in text.chars() {
        if label.len() >= longest {
            break;
        }
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    label.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hostile;

    fn hash() -> KeyHash {
        KeyHash([0xab; 20])
    }

    #[test]
    fn a_machine_is_named_after_its_host_and_its_key() {
        assert_eq!(machine_name("Anna's MacBook.local", hash()), "anna-s-macbook-local-abababab");
        assert_eq!(machine_name("", hash()), "client-abababab");
        assert_eq!(machine_name("--", hash()), "client-abababab");
    }

    #[test]
    fn what_a_machine_calls_itself_is_kept_as_far_as_it_can_be() {
        for (text, kept) in [
            ("laptop-1.corp_x", "laptop-1.corp_x"),
            ("Anna's MacBook.local", "Anna-s-MacBook.local"),
            ("-x-", "x"),
            ("é", ""),
            ("", ""),
        ] {
            assert_eq!(Hostname::new(text).as_str(), kept);
        }
    }

    #[test]
    fn a_hostile_host_name_is_made_one_that_the_schema_takes() {
        for text in hostile::strings() {
            let name = Hostname::new(&text);
            assert!(name.as_str().len() <= 253);
            let form = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            assert!(name.as_str().bytes().all(form), "{name:?}");
            assert!(!is_word(&text), "{text:?}");
        }
    }

    #[test]
    fn pods_of_one_name_and_different_uids_are_different_clients() {
        assert_ne!(sidecar_name("web-0", "a"), sidecar_name("web-0", "b"));
        assert!(sidecar_name("web-0", "a").starts_with("web-0-"));
    }

    #[test]
    fn a_key_hash_survives_being_written_and_read() {
        let key = PublicKey::new(&[7; 32]).unwrap();
        let hash = KeyHash::of(&key);
        assert_eq!(KeyHash::parse(&hash.to_string()), Some(hash));
        for text in ["", "zz", &"z".repeat(40), &"é".repeat(20)] {
            assert_eq!(KeyHash::parse(text), None);
        }
    }

    proptest! {
        #[test]
        fn a_host_name_begins_and_ends_with_a_letter_or_digit(text in any::<String>()) {
            let name = Hostname::new(&text);
            let name = name.as_str();
            prop_assert!(name.len() <= 253);
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')));
            let is_end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
            prop_assert!(is_end(name.chars().next()) && is_end(name.chars().next_back()));
        }

        #[test]
        fn every_name_is_a_dns_label(hostname in ".{0,100}") {
            let name = machine_name(&hostname, hash());
            prop_assert!(name.len() <= 63);
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'));
        }
    }
}
