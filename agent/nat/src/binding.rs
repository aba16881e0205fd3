//! What is known of a NAT's bindings.

use std::time::Duration;

/// How well a lifetime is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Nothing was measured here.
    #[default]
    Unknown,
    /// Bindings were seen to live for `at_least`; the end was not seen yet.
    Growing,
    /// The lifetime lies between two measured values.
    Bracketed,
    /// The bracket is narrow, and holds under use.
    Confirmed,
}

impl Confidence {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Growing => "Growing",
            Self::Bracketed => "Bracketed",
            Self::Confirmed => "Confirmed",
        }
    }
}

/// What it takes until a NAT gives a binding its longer lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Promotion {
    /// Not known yet: assume the worst.
    #[default]
    Unknown,
    /// Nothing: there is but one lifetime, or one exchange is enough.
    None,
    /// A second exchange 2.5 s later, as in Linux.
    Short,
    /// More than that: several exchanges, over up to twelve seconds.
    Long,
}

impl Promotion {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::None => "None",
            Self::Short => "Short",
            Self::Long => "Long",
        }
    }
}

/// The lifetime of a NAT's bindings, as measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Binding {
    /// A promoted binding lived for so long without traffic.
    pub at_least: Duration,
    /// A promoted binding was gone after so long. `None`: none was seen to end.
    pub less_than: Option<Duration>,
    /// What promotes a binding to this lifetime.
    pub promotion: Promotion,
    /// How well it is known.
    pub confidence: Confidence,
}
