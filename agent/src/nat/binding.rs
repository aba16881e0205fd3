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

/// The lifetime of a NAT's bindings, as measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Binding {
    /// A promoted binding lived for so long without traffic.
    pub at_least: Duration,
    /// A promoted binding was gone after so long. `None`: none was seen to end.
    pub less_than: Option<Duration>,
    /// How long after its first packet a binding still has to see an outbound packet to be promoted. `None`: it is
    /// not known, or there is but one lifetime.
    pub promoted_after: Option<Duration>,
    /// How well it is known.
    pub confidence: Confidence,
}
