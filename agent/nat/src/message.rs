//! What client and gateway say to each other about a binding.

use std::{net::SocketAddr, time::Duration};

/// Which of the client's UDP sockets a message travels on. Each has a mapping of its own at the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The tunnel's own socket, whose binding is to be kept.
    Live,
    /// A socket that exists for one experiment. Numbers are not used twice.
    Probe(u32),
}

/// A request of the client. The gateway answers it at once with a [`Reply`].
///
/// It also replaces what the channel's earlier beats asked for: at most one wake is pending on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// On which socket.
    pub channel: Channel,
    /// Rises with every beat of a client.
    pub seq: u64,
    /// Send a [`Wake`] so long after this beat arrived, unless another beat of the channel comes first. At most
    /// [`Beat::LONGEST_WAKE`].
    pub wake: Option<Duration>,
}

impl Beat {
    /// The longest delay that a gateway takes on.
    pub const LONGEST_WAKE: Duration = Duration::from_mins(75);
    /// When a wake is sent, and sent again where no beat of the channel followed, after the delay asked for.
    pub const WAKES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(500)];
}

/// The gateway's immediate answer to a [`Beat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The beat's channel.
    pub channel: Channel,
    /// The beat's number.
    pub seq: u64,
    /// Where the beat came from, as the gateway saw it.
    pub observed: SocketAddr,
    /// Whether the gateway sends the client's tunnel traffic to that very address.
    pub is_endpoint: bool,
}

/// A packet that the gateway sent by itself, as a [`Beat`] had asked for: proof that the binding still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    /// The beat's channel.
    pub channel: Channel,
    /// The beat's number.
    pub seq: u64,
}
