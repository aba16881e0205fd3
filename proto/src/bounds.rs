//! What is believed of a value that another process says, whatever it says. Pure.
//!
//! A span, a time, a count or a text is cut to what can be meant before anybody computes with it or shows it. What is only
//! too large is clamped, so that a peer whose clock or limits differ is still heard; what cannot be meant at all is left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{printable, v1::Impairment};

/// The longest span of a lifetime, an interval or a silence: 7 days. No keepalive is less frequent.
pub const LONGEST_SPAN: Duration = Duration::from_hours(24 * 7);

/// The longest that an answer takes and is still one: a minute.
pub const LONGEST_TRIP: Duration = Duration::from_mins(1);

/// The longest sum of spans: 100 years.
pub const LONGEST_SUM: Duration = Duration::from_hours(24 * 36_525);

/// The largest count of things that happen one after the other, 2⁴⁰: one each millisecond for 35 years. The counts of a
/// million clients add up without an overflow.
pub const MOST_COUNTED: u64 = 1 << 40;

/// Characters of a text for people.
pub const LONGEST_TEXT: usize = 512;

/// Characters of a category.
const LONGEST_CATEGORY: usize = 64;

/// Impairments of one client: with [`LONGEST_IMPAIRMENT`] they bound what a crowd of clients adds to one report.
pub const MOST_OF_CLIENT: usize = 1;

/// Characters of what is said of a client's impairment.
pub const LONGEST_IMPAIRMENT: usize = 140;

/// How a word is called that the other process has learnt and this one has not.
pub const NEWER: &str = "NewerThanMe";

/// The last second of the year 9999, which is the last that a `google.protobuf.Timestamp` may have.
const LAST_SECOND: u64 = 253_402_300_799;
const NANOS: u32 = 999_999_999;

/// A span, at most `longest`. `None`: there is none, or it is negative.
pub fn span(wire: Option<prost_types::Duration>, longest: Duration) -> Option<Duration> {
    let wire = wire?;
    let seconds = u64::try_from(wire.seconds).ok()?;
    let nanos = u32::try_from(wire.nanos).ok()?.min(NANOS);
    Some(Duration::new(seconds.min(longest.as_secs()), nanos).min(longest))
}

/// A time between 1970 and 9999. `None`: there is none, or it is another.
pub fn time(wire: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    let wire = wire?;
    let seconds = u64::try_from(wire.seconds).ok().filter(|seconds| *seconds <= LAST_SECOND)?;
    let nanos = u32::try_from(wire.nanos).ok().filter(|nanos| *nanos <= NANOS)?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// A count, at most [`MOST_COUNTED`].
pub fn count(wire: u64) -> u64 {
    wire.min(MOST_COUNTED)
}

/// A difference of two counts, at most [`MOST_COUNTED`] either way.
pub fn difference(wire: i64) -> i64 {
    const MOST: i64 = MOST_COUNTED.cast_signed();
    wire.clamp(-MOST, MOST)
}

/// Whether a text can be a category: up to 64 letters and digits.
pub fn is_category(text: &str) -> bool {
    (1..=LONGEST_CATEGORY).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The first `most` impairments that have a category, each in at most `longest` characters.
pub fn impairments(wire: Vec<Impairment>, most: usize, longest: usize) -> Vec<Impairment> {
    let clean = |it: Impairment| Impairment { message: printable(&it.message, longest), ..it };
    wire.into_iter().filter(|it| is_category(&it.category)).take(most).map(clean).collect()
}

/// A number that stands for one of `E`, or for a word that came after this program was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Word<E> {
    /// One that is known here.
    Known(E),
    /// Another. Whoever is told of it may know it.
    Newer(i32),
}

impl<E: TryFrom<i32>> From<i32> for Word<E> {
    fn from(number: i32) -> Self {
        E::try_from(number).map_or(Self::Newer(number), Self::Known)
    }
}

impl<E> Word<E> {
    /// The word, where it is known.
    pub fn known(self) -> Option<E> {
        match self {
            Self::Known(word) => Some(word),
            Self::Newer(_) => None,
        }
    }
}

impl<E: Into<i32>> Word<E> {
    /// The number on the wire.
    pub fn number(self) -> i32 {
        match self {
            Self::Known(word) => word.into(),
            Self::Newer(number) => number,
        }
    }
}

impl<E: Default> Default for Word<E> {
    fn default() -> Self {
        Self::Known(E::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::NatMapping;

    fn believed(seconds: i64, nanos: i32) -> Option<Duration> {
        span(Some(prost_types::Duration { seconds, nanos }), LONGEST_SPAN)
    }

    #[test]
    fn a_span_is_never_longer_than_it_may_be_nor_negative() {
        assert_eq!(believed(30, 5), Some(Duration::new(30, 5)));
        for (seconds, nanos) in [(i64::MAX, i32::MAX), (i64::MAX, 0), (604_800, 1)] {
            assert_eq!(believed(seconds, nanos), Some(LONGEST_SPAN));
        }
        for (seconds, nanos) in [(-1, 0), (i64::MIN, i32::MIN), (0, -1)] {
            assert_eq!(believed(seconds, nanos), None);
        }
        assert_eq!(span(None, LONGEST_SPAN), None);
    }

    #[test]
    fn a_time_is_one_of_the_calendar() {
        let at = |seconds, nanos| time(Some(prost_types::Timestamp { seconds, nanos }));
        assert_eq!(at(1, 0), Some(UNIX_EPOCH + Duration::from_secs(1)));
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (-1, 0), (1, -1), (1, 1_000_000_000)] {
            assert_eq!(at(seconds, nanos), None);
        }
    }

    #[test]
    fn a_word_that_is_not_known_keeps_its_number() {
        assert_eq!(Word::from(5), Word::Known(NatMapping::EndpointDependent));
        let newer = Word::<NatMapping>::from(77);
        assert_eq!((newer.known(), newer.number()), (None, 77));
    }
}
