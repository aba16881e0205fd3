//! Spans of time for people.

use std::{fmt, time::Duration};

/// A span in the largest unit of which there are two.
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(24 * 3600, "days"), (3600, "hours"), (60, "minutes")];
        let seconds = self.0.as_secs();
        let unit = UNITS.into_iter().find(|(size, _)| seconds >= size * 2);
        let (size, name) = unit.unwrap_or((1, "seconds"));
        write!(f, "{} {name}", (seconds + size / 2) / size)
    }
}
