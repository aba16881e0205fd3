//! How the NATs between a client and its gateway behave, in the words of RFC 4787 and RFC 5780.
//!
//! What a client can find out depends on whom it may ask. *One* ip:port of a gateway tells whether there is a NAT, how
//! it chooses ports, whether it hairpins and whether payloads pass unchanged. It cannot tell how a mapping
//! depends on the destination: a NAT that preserves ports looks the same towards the first destination whether it
//! would do so towards a second or not. *Another port* of the same address tells whether the port counts, *another
//! address* whether the address does. Filtering needs a gateway that answers from where it was not asked.
//! What was not measured is `Unknown`, never guessed.

mod classifier;
mod ports;

use std::{fmt, net::IpAddr};

pub use classifier::{Answer, Classifier, Experiment, Timers, Vantage};

/// Whether something is so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Finding {
    /// It was not measured, or could not be.
    #[default]
    Unknown,
    /// It is.
    Yes,
    /// It is not.
    No,
}

impl Finding {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Yes => "Yes",
            Self::No => "No",
        }
    }
}

impl From<bool> for Finding {
    fn from(found: bool) -> Self {
        if found { Self::Yes } else { Self::No }
    }
}

/// How the public side of a mapping is chosen (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Not measured: there was nobody else to ask.
    #[default]
    Unknown,
    /// The same towards everybody.
    EndpointIndependent,
    /// The same towards two ports of one address; no second address was there to ask.
    NotPortDependent,
    /// Another towards a second address; whether the port counts too could not be asked.
    EndpointDependent,
    /// Another towards each address.
    AddressDependent,
    /// Another towards each address and port.
    AddressAndPortDependent,
}

impl Mapping {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::EndpointIndependent => "EndpointIndependent",
            Self::NotPortDependent => "NotPortDependent",
            Self::EndpointDependent => "EndpointDependent",
            Self::AddressDependent => "AddressDependent",
            Self::AddressAndPortDependent => "AddressAndPortDependent",
        }
    }
}

/// Whose packets get in through a mapping (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Filtering {
    /// Not measured: nobody could answer from elsewhere.
    #[default]
    Unknown,
    /// Everybody's.
    EndpointIndependent,
    /// Those of another port of a known address; no second address was there to try.
    NotPortDependent,
    /// Not those of a second address; whether the port counts too could not be tried.
    EndpointDependent,
    /// Those of addresses that were sent to.
    AddressDependent,
    /// Those of addresses and ports that were sent to.
    AddressAndPortDependent,
}

impl Filtering {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::EndpointIndependent => "EndpointIndependent",
            Self::NotPortDependent => "NotPortDependent",
            Self::EndpointDependent => "EndpointDependent",
            Self::AddressDependent => "AddressDependent",
            Self::AddressAndPortDependent => "AddressAndPortDependent",
        }
    }
}

/// How public ports are chosen (RFC 4787, section 4.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PortAllocation {
    /// Not measured.
    #[default]
    Unknown,
    /// The client's own port, unless it is taken.
    Preserved,
    /// One after the other.
    Sequential,
    /// Without a pattern.
    Random,
}

impl PortAllocation {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Preserved => "Preserved",
            Self::Sequential => "Sequential",
            Self::Random => "Random",
        }
    }
}

/// The NATs between a client and its gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Behaviour {
    /// Whether there is a NAT at all.
    pub natted: Finding,
    /// Public address as the gateway sees it.
    pub public_address: Option<IpAddr>,
    /// How the public side of a mapping is chosen.
    pub mapping: Mapping,
    /// Whose packets get in.
    pub filtering: Filtering,
    /// How public ports are chosen.
    pub port_allocation: PortAllocation,
    /// Whether odd ports stay odd and even ones even.
    pub port_parity: Finding,
    /// Sequential ports: the step between them.
    pub port_delta: Option<i32>,
    /// Whether two sockets behind it reach each other by their public addresses.
    pub hairpin: Finding,
    /// Whether the client's packets keep a mapping alive.
    pub refresh_outbound: Finding,
    /// Whether packets to the client keep a mapping alive.
    pub refresh_inbound: Finding,
    /// Whether mappings that saw traffic both ways for a while live longer than new ones.
    pub two_class: Finding,
    /// Whether something on the path rewrites payloads, or drops by port.
    pub helper_interference: Finding,
    /// Whether there is more than one NAT.
    pub double_nat: Finding,
}

/// A behaviour in one word, for columns and labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Nothing was measured.
    #[default]
    Unknown,
    /// There is no NAT.
    NoNat,
    /// There is one; how it maps is not known.
    Nat,
    /// See [`Mapping::EndpointIndependent`].
    EndpointIndependent,
    /// See [`Mapping::NotPortDependent`].
    NotPortDependent,
    /// See [`Mapping::EndpointDependent`].
    EndpointDependent,
    /// See [`Mapping::AddressDependent`].
    AddressDependent,
    /// See [`Mapping::AddressAndPortDependent`]: what RFC 3489 called symmetric.
    AddressAndPortDependent,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::NoNat,
        Self::Nat,
        Self::EndpointIndependent,
        Self::NotPortDependent,
        Self::EndpointDependent,
        Self::AddressDependent,
        Self::AddressAndPortDependent,
    ];

    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::NoNat => "NoNAT",
            Self::Nat => "NAT",
            Self::EndpointIndependent => "EndpointIndependent",
            Self::NotPortDependent => "NotPortDependent",
            Self::EndpointDependent => "EndpointDependent",
            Self::AddressDependent => "AddressDependent",
            Self::AddressAndPortDependent => "AddressAndPortDependent",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Behaviour {
    /// In one word: how it maps.
    pub fn class(&self) -> Class {
        match (self.natted, self.mapping) {
            (Finding::No, _) => Class::NoNat,
            (Finding::Unknown, _) => Class::Unknown,
            (Finding::Yes, Mapping::Unknown) => Class::Nat,
            (Finding::Yes, Mapping::EndpointIndependent) => Class::EndpointIndependent,
            (Finding::Yes, Mapping::NotPortDependent) => Class::NotPortDependent,
            (Finding::Yes, Mapping::EndpointDependent) => Class::EndpointDependent,
            (Finding::Yes, Mapping::AddressDependent) => Class::AddressDependent,
            (Finding::Yes, Mapping::AddressAndPortDependent) => Class::AddressAndPortDependent,
        }
    }
}
