//! Ranges of addresses as users write them.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Addresses that a pool does not give out: one address, a prefix, or `first-last` (both included).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is no [`AddressRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a range of addresses: write an address, a CIDR prefix, or FIRST-LAST of one family in ascending order"
)]
pub struct AddressRangeError(String);

impl AddressRange {
    /// The lowest address of the range.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address of the range, included.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in the range. An address of the other family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }
}

impl From<IpNet> for AddressRange {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, AddressRangeError> {
        let error = || AddressRangeError(text.chars().take(96).collect());
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(net.into());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.parse().map_err(|_| error())?;
        let last: IpAddr = last.parse().map_err(|_| error())?;
        if first.is_ipv4() != last.is_ipv4() || last < first {
            return Err(error());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for AddressRange {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AddressRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 79, "minLength": 2 })
    }
}

/// Schema of a prefix: bounds only, its form is checked by CEL, which says what is wrong with it.
pub(crate) fn cidr_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 43, "minLength": 4 })
}

/// Schema of a list of prefixes.
pub(crate) fn cidrs_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 64, "items": cidr_schema(generator) })
}

/// Schema of a pool's own prefixes.
pub(crate) fn pool_cidrs_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "minItems": 1, "maxItems": 8, "items": cidr_schema(generator) })
}

/// Schema of a list of plain addresses.
pub(crate) fn addresses_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 8, "items": { "type": "string", "maxLength": 39, "minLength": 2 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_an_address_a_prefix_or_two_ends() {
        for (text, first, last) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.0", "10.0.0.3"),
            ("10.0.0.5-10.0.0.9", "10.0.0.5", "10.0.0.9"),
            ("fd00::1-fd00::f", "fd00::1", "fd00::f"),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!((range.first().to_string(), range.last().to_string()), (first.into(), last.into()));
        }
    }

    #[test]
    fn a_range_that_runs_backwards_or_mixes_families_is_refused() {
        for text in ["10.0.0.9-10.0.0.5", "10.0.0.1-fd00::1", "", "ten", "10.0.0.1-"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
    }
}
