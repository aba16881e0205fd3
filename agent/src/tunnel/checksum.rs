//! The Internet checksum (RFC 1071).

use std::ops::{Add, AddAssign};

/// A sum that grows piece by piece. Words count in the machine's own byte order, which spares swapping each of
/// them: the sum comes out swapped as well (RFC 1071, section 2 B).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum(u64);

impl Sum {
    /// Of bytes that begin at an even offset of what is summed.
    pub(super) fn of(bytes: &[u8]) -> Self {
        // Eight sums side by side, in two groups of what a vector register holds: the compiler makes vectors of
        // them, and no addition waits for the one before.
        let (blocks, rest) = bytes.as_chunks::<32>();
        let (mut low, mut high) = ([0_u64; 4], [0_u64; 4]);
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            let (first, second) = words.split_at(4);
            for (((low, high), &first), &second) in low.iter_mut().zip(&mut high).zip(first).zip(second) {
                *low += u64::from(u32::from_ne_bytes(first));
                *high += u64::from(u32::from_ne_bytes(second));
            }
        }
        let (words, odd) = rest.as_chunks::<2>();
        let tail: u64 = words.iter().map(|&word| u64::from(u16::from_ne_bytes(word))).sum();
        let odd = odd.first().map_or(0, |&byte| u64::from(u16::from_ne_bytes([byte, 0])));
        Self(low.iter().chain(&high).sum::<u64>() + tail + odd)
    }

    /// Of one 16-bit field.
    pub(super) fn word(value: u16) -> Self {
        Self(u64::from(value.to_be()))
    }

    /// Of one 32-bit field.
    pub(super) fn double_word(value: u32) -> Self {
        Self(u64::from(value.to_be()))
    }

    /// The sum in 16 bits, with end-around carry: what the checksum field of a packet holds whose checksum is
    /// left to somebody else to finish.
    pub(super) fn folded(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// The checksum: what makes the sum over everything, with it, all ones.
    pub(super) fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether this, the sum over everything including the checksum, says that it is right.
    pub(super) fn is_right(self) -> bool {
        self.folded() == 0xffff
    }
}

impl Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// The Internet checksum over several pieces, of which all but the last have an even length.
pub(super) fn checksum(pieces: &[&[u8]]) -> u16 {
    pieces.iter().fold(Sum::default(), |sum, piece| sum + Sum::of(piece)).checksum()
}

/// Folds a sum into 16 bits with end-around carry.
pub(super) const fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the loop leaves 16 bits")]
    let folded = sum as u16;
    folded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071, section 4.1 writes it.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_the_one_of_the_book_however_the_bytes_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), cut: prop::sample::Index,
        ) {
            let (one, two) = bytes.split_at(cut.index(bytes.len() + 1) & !1);
            prop_assert_eq!(checksum(&[one, two]), by_the_book(&bytes));
        }

        #[test]
        fn fields_count_as_their_bytes_do(word: u16, double: u32) {
            let bytes = [&word.to_be_bytes()[..], &double.to_be_bytes()].concat();
            let sum = Sum::word(word) + Sum::double_word(double);
            prop_assert_eq!(sum.checksum(), Sum::of(&bytes).checksum());
        }
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).folded(), 0xddf2);
        assert!((Sum::of(&bytes) + Sum::word(!0xddf2)).is_right());
    }
}
