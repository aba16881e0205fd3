//! Spans of time as users write them.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A span of time as users write it: `25s`, `2m30s`, `1h`, `500ms` (the subset of Go's notation that GEP-2257
/// defines, so that CEL's `duration()` reads it too).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(pub Duration);

/// Why a text is no [`Interval`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a span of time: write it like 25s, 2m30s or 1h")]
pub struct IntervalError(String);

const UNITS_MS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

impl FromStr for Interval {
    type Err = IntervalError;

    fn from_str(text: &str) -> Result<Self, IntervalError> {
        let error = || IntervalError(text.chars().take(32).collect());
        let mut rest = text;
        let mut total = 0_u64;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 5 {
                return Err(error());
            }
            let (number, unit) = rest.split_at(digits);
            let (name, scale) = UNITS_MS.iter().find(|(name, _)| unit.starts_with(name)).ok_or_else(error)?;
            total += number.parse::<u64>().map_err(|_| error())? * scale;
            rest = unit.get(name.len()..).ok_or_else(error)?;
        }
        if text.is_empty() { Err(error()) } else { Ok(Self(Duration::from_millis(total))) }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        let parts = [
            ("h", total / 3_600_000),
            ("m", total / 60_000 % 60),
            ("s", total / 1_000 % 60),
            ("ms", total % 1_000),
        ];
        if total == 0 {
            return f.write_str("0s");
        }
        parts.iter().filter(|(_, n)| *n > 0).try_for_each(|(unit, n)| write!(f, "{n}{unit}"))
    }
}

impl From<Duration> for Interval {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Interval {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Interval".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 24, "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_reads_what_go_would_write() {
        for (text, ms) in
            [("25s", 25_000), ("2m30s", 150_000), ("1h", 3_600_000), ("500ms", 500), ("1m5ms", 60_005)]
        {
            assert_eq!(text.parse(), Ok(Interval(Duration::from_millis(ms))), "{text}");
            assert_eq!(Interval(Duration::from_millis(ms)).to_string(), text);
        }
    }

    #[test]
    fn an_interval_refuses_what_is_none() {
        for text in ["", "5", "s", "-5s", "1.5s", "5 s", "5d", "123456s", "5sx"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }
}
