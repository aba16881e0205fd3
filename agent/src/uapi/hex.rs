//! Keys in hexadecimal, as this protocol writes them.

use zeroize::Zeroizing;

/// The 32 bytes that 64 digits stand for.
pub(super) fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.as_bytes();
    let mut key = Zeroizing::new([0; 32]);
    if digits.len() != 2 * key.len() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = *pair else { return None };
        *byte = value(high)? << 4 | value(low)?;
    }
    Some(key)
}

/// Appends the digits of a key.
pub(super) fn encode(key: &[u8; 32], into: &mut String) {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    for byte in key {
        into.push(digit(byte >> 4));
        into.push(digit(byte & 15));
    }
}

fn value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_its_digits(key: [u8; 32]) {
            let mut text = String::new();
            encode(&key, &mut text);
            prop_assert_eq!(decode(&text).map(|found| *found), Some(key));
            prop_assert_eq!(decode(&text.to_uppercase()).map(|found| *found), Some(key));
        }

        #[test]
        fn what_is_no_key_is_none(text in "[0-9a-f]{0,63}|[0-9a-f]{65,70}|[g-z+ ]{64}|\\PC{0,70}") {
            prop_assert_eq!(decode(&text).is_some(), text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }
}
