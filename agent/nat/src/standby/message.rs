//! What a shell is told and tells: lines, modes, reasons, events.

use std::{fmt, time::Duration};

/// Which of the client's TCP connections a message travels on. Each has a mapping of its own at the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Line {
    /// The session itself.
    Live,
    /// A connection that exists for one experiment. Numbers are not used twice.
    Canary(u32),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// By RST: the NAT or the gateway does not know it (any more).
    Reset,
    /// What was sent was not acknowledged in time (`TCP_USER_TIMEOUT`), or it could not be dialled.
    TimedOut,
    /// One end closed it. Says nothing about the NAT.
    Closed,
}

/// By what an idle client is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By its UDP binding.
    #[default]
    Udp,
    /// By its session: UDP rests.
    Session,
}

/// Why it is reached by that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Configured.
    Policy,
    /// UDP, as the lifetime of the session's mapping, or that of the binding, is being learnt.
    #[default]
    Learning,
    /// The session's mapping may live longer still, but the binding is no dearer.
    CheaperByUdp,
    /// The session costs clearly fewer wake-ups.
    CheaperBySession,
    /// UDP, as user data flows, or flowed a moment ago.
    Busy,
    /// UDP, as the session's mapping was lost too often, or a moment ago.
    SessionLost,
    /// UDP, as there is no session.
    SessionClosed,
    /// UDP, as the session's mapping does not live long enough to be worth it.
    TooShort,
}

impl Reason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 8] = [
        Self::Policy,
        Self::Learning,
        Self::CheaperByUdp,
        Self::CheaperBySession,
        Self::Busy,
        Self::SessionLost,
        Self::SessionClosed,
        Self::TooShort,
    ];

    /// A stable, low-cardinality name for labels, reasons and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "Policy",
            Self::Learning => "Learning",
            Self::CheaperByUdp => "CheaperByUDP",
            Self::CheaperBySession => "CheaperBySession",
            Self::Busy => "Busy",
            Self::SessionLost => "SessionLost",
            Self::SessionClosed => "SessionClosed",
            Self::TooShort => "TooShort",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a UDP keepalive costs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpCost {
    /// The keeper's interval in force. Not one that a suspected loss has halved for the time being.
    pub interval: Duration,
    /// It follows from a measured lifetime.
    pub learnt: bool,
}

/// What is known of a NAT's TCP mappings before they were measured: from a cache, or from a neighbour behind the same
/// NAT. A hint: nothing rests on it before a connection of one's own lived so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prior {
    /// The lifetime that was proven there.
    pub at_least: Duration,
}

/// Something to tell a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Another way is in force.
    Switched {
        /// Which.
        mode: Mode,
        /// Why.
        reason: Reason,
    },
    /// The session's mapping was gone at an age that was thought safe.
    MappingLost {
        /// How long it had been silent.
        idle: Duration,
    },
    /// A connection of an age that was proven once did not live so long: mappings live shorter than they did.
    LifetimeShrank {
        /// That age.
        from: Duration,
    },
    /// The first authenticated packet after a poke.
    Woken {
        /// Since the poke arrived.
        after: Duration,
    },
}

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tell the gateway over this line: send `Wake { seq }` once the line was silent for `wake_after`. It replaces what
    /// the line's earlier rests asked for.
    Rest {
        /// Over which connection.
        line: Line,
        /// Rises with every rest of a client.
        seq: u64,
        /// At most [`LONGEST_WAKE`](super::LONGEST_WAKE).
        wake_after: Duration,
    },
    /// Dial a connection of its own to where the session goes, and say so when it is there.
    Open {
        /// Its number.
        canary: u32,
    },
    /// Close that connection. Nothing is said about its end.
    Close {
        /// Its number.
        canary: u32,
    },
    /// Let the UDP binding go (`Path::Down` for the keeper), and tell the gateway to hold and to poke.
    LetUdpGo,
    /// Keep the UDP binding (`Path::Up` for the keeper, which sends at once), and tell the gateway.
    KeepUdp,
    /// Send something on the session now that is answered: is it alive? A session that is not ends within
    /// `TCP_USER_TIMEOUT`, and is dialled again.
    Ask,
    /// Something happened.
    Event(Event),
}

/// Counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rests sent on the session.
    pub rests: u64,
    /// Wakes that came in time, on any line.
    pub wakes: u64,
    /// Connections opened for experiments.
    pub canaries: u64,
    /// Wakes that did not come on the session, or ends of it, at an age that was thought safe.
    pub suspected_losses: u64,
    /// Suspected losses after which a connection of the full age lived: the mapping was lost, its lifetime is what it was.
    pub losses: u64,
    /// Times that the lifetime turned out shorter than before.
    pub shrinks: u64,
    /// Times that the gateway poked.
    pub pokes: u64,
    /// Longest time from a poke to the first authenticated packet.
    pub worst_wake: Option<Duration>,
    /// Time of the last one.
    pub last_wake: Option<Duration>,
}
