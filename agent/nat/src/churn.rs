//! Why a path moved or fell silent, and the memory of it.

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Why a client's path changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The NAT gave the same socket another ip:port: the mapping before was lost.
    MappingChanged,
    /// The mapping was lost and the very same ip:port came back, as behind a NAT that preserves ports. Nothing but
    /// an inbound packet that did not arrive shows it.
    MappingLost,
    /// The binding was gone earlier than it ever was, twice in a row: its lifetime is shorter now.
    LifetimeShrank,
    /// Several clients behind one public address lost their mappings together: the NAT lost its state.
    NatRestart,
    /// The client's own address or route changed.
    Roam,
    /// UDP is not answered while the session over TCP lives.
    UdpBlocked,
    /// Something on the path rewrites or withholds what it takes for addresses in payloads.
    HelperInterference,
    /// The client talks to another gateway replica, or the replica to be reached is elsewhere now.
    GatewayMoved,
}

impl Cause {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; Self::COUNT] = [
        Self::MappingChanged,
        Self::MappingLost,
        Self::LifetimeShrank,
        Self::NatRestart,
        Self::Roam,
        Self::UdpBlocked,
        Self::HelperInterference,
        Self::GatewayMoved,
    ];

    /// A stable, low-cardinality name for labels, reasons and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MappingChanged => "MappingChanged",
            Self::MappingLost => "MappingLost",
            Self::LifetimeShrank => "LifetimeShrank",
            Self::NatRestart => "NATRestart",
            Self::Roam => "Roam",
            Self::UdpBlocked => "UDPBlocked",
            Self::HelperInterference => "HelperInterference",
            Self::GatewayMoved => "GatewayMoved",
        }
    }

    /// The cause of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }

    /// What was seen has this cause, `None` when nothing changed.
    ///
    /// What explains the others away comes first: a client that moved, or a gateway that did, says nothing about a
    /// binding.
    pub fn of(evidence: &Evidence) -> Option<Self> {
        if evidence.payload == Payload::Altered {
            return Some(Self::HelperInterference);
        }
        let moved = evidence.has_moved();
        let lost = moved || evidence.wake == WakeTest::Unanswered;
        match evidence.ends {
            Ends::Same => {}
            Ends::ClientMoved => return Some(Self::Roam),
            Ends::GatewayMoved => return Some(Self::GatewayMoved),
        }
        if evidence.to.is_none() {
            return (evidence.wake == WakeTest::Unanswered && evidence.session_alive)
                .then_some(Self::UdpBlocked);
        }
        if !lost {
            return None;
        }
        if evidence.neighbours_lost {
            return Some(Self::NatRestart);
        }
        if evidence.is_suspected_loss() && evidence.suspected_losses > 0 {
            return Some(Self::LifetimeShrank);
        }
        Some(if moved { Self::MappingChanged } else { Self::MappingLost })
    }

    /// Whether it is a loss of the NAT's mapping while the client stayed where it was.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::MappingChanged | Self::MappingLost | Self::LifetimeShrank | Self::NatRestart)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a packet that the gateway was to send by itself after the silence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WakeTest {
    /// None was due.
    #[default]
    None,
    /// It arrived.
    Arrived,
    /// None of its copies arrived.
    Unanswered,
}

/// What became of the bytes on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Payload {
    /// Not compared.
    #[default]
    Unknown,
    /// As they were sent.
    Intact,
    /// Changed on the way.
    Altered,
}

/// Which end of a path changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ends {
    /// Neither.
    #[default]
    Same,
    /// The client's own address, or its route to the gateway.
    ClientMoved,
    /// The gateway, or its address.
    GatewayMoved,
}

/// What was seen at the end of a silence. The default is: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Which end of the path is another than before the silence.
    pub ends: Ends,
    /// Where the client was observed before the silence.
    pub from: Option<SocketAddr>,
    /// Where it is observed after it. `None`: it gets no answer.
    pub to: Option<SocketAddr>,
    /// Whether the gateway's own packet arrived.
    pub wake: WakeTest,
    /// How long the binding was without traffic.
    pub idle: Duration,
    /// How long it was believed to live. `None`: nothing is known.
    pub believed: Option<Duration>,
    /// Losses in a row before this one, each after a silence that the binding used to survive.
    pub suspected_losses: u32,
    /// Neighbours behind the same public address lost theirs together with this one.
    pub neighbours_lost: bool,
    /// The session over TCP stands.
    pub session_alive: bool,
    /// Whether payloads pass unchanged.
    pub payload: Payload,
}

impl Evidence {
    /// Whether the NAT's own mapping shows a change.
    fn has_moved(&self) -> bool {
        matches!((self.from, self.to), (Some(from), Some(to)) if from != to)
    }

    /// Whether it speaks against the lifetime that is believed in. A loss does not where the silence was longer
    /// than that anyway, as after a keepalive that had to be resent; nor where client, gateway or NAT moved.
    pub fn is_suspected_loss(&self) -> bool {
        let lost = self.has_moved() || self.wake == WakeTest::Unanswered;
        lost && self.to.is_some()
            && self.ends == Ends::Same
            && !self.neighbours_lost
            && self.believed.is_some_and(|believed| self.idle <= believed)
    }
}

/// One change of a client's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Churn {
    /// When it was noticed.
    pub at: Instant,
    /// Why.
    pub cause: Cause,
    /// Where the client was observed before. `None`: not known.
    pub from: Option<SocketAddr>,
    /// Where it is observed now. `None`: it cannot be reached.
    pub to: Option<SocketAddr>,
    /// How long there had been no traffic.
    pub idle: Duration,
}

/// The latest changes and the count of all.
#[derive(Debug, Clone, Default)]
pub struct ChurnLog {
    latest: VecDeque<Churn>,
    counts: [u64; Cause::COUNT],
}

impl ChurnLog {
    /// So many are kept.
    pub const KEPT: usize = 16;

    /// Takes note of one.
    pub fn push(&mut self, churn: Churn) {
        if self.latest.len() == Self::KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(churn);
        if let Some(count) = self.counts.get_mut(churn.cause as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// The latest one.
    pub fn last(&self) -> Option<&Churn> {
        self.latest.back()
    }

    /// The latest ones, the oldest first: at most [`Self::KEPT`].
    pub fn latest(&self) -> impl Iterator<Item = &Churn> {
        self.latest.iter()
    }

    /// How many there were of this cause, ever.
    pub fn count(&self, cause: Cause) -> u64 {
        self.counts.get(cause as usize).copied().unwrap_or(0)
    }

    /// How many there were, ever.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn steady() -> Evidence {
        Evidence {
            from: Some(address(1000)),
            to: Some(address(1000)),
            wake: WakeTest::Arrived,
            idle: MINUTE,
            believed: Some(MINUTE * 2),
            session_alive: true,
            payload: Payload::Intact,
            ..Evidence::default()
        }
    }

    #[test]
    fn a_path_that_stayed_has_no_cause() {
        assert_eq!(Cause::of(&steady()), None);
        assert_eq!(Cause::of(&Evidence::default()), None);
        assert!(!steady().is_suspected_loss());
    }

    #[test]
    fn another_port_is_a_changed_mapping_and_the_first_strike() {
        let seen = Evidence { to: Some(address(2000)), ..steady() };
        assert_eq!(Cause::of(&seen), Some(Cause::MappingChanged));
        assert!(seen.is_suspected_loss());
    }

    #[test]
    fn the_same_port_after_a_wake_that_never_came_is_a_lost_mapping() {
        let seen = Evidence { wake: WakeTest::Unanswered, ..steady() };
        assert_eq!(Cause::of(&seen), Some(Cause::MappingLost));
        assert!(seen.is_suspected_loss());
    }

    #[test]
    fn the_second_strike_in_a_row_is_a_shrunk_lifetime() {
        let seen = Evidence { wake: WakeTest::Unanswered, suspected_losses: 1, ..steady() };
        assert_eq!(Cause::of(&seen), Some(Cause::LifetimeShrank));
    }

    #[test]
    fn a_loss_after_our_own_late_resend_is_named_but_is_no_strike() {
        let late = Evidence { to: Some(address(2000)), idle: MINUTE * 3, suspected_losses: 1, ..steady() };
        assert!(!late.is_suspected_loss());
        assert_eq!(Cause::of(&late), Some(Cause::MappingChanged));
    }

    #[test]
    fn a_client_that_moved_roamed_whatever_else_is_seen() {
        let roamed =
            Evidence { ends: Ends::ClientMoved, to: Some(address(2000)), suspected_losses: 3, ..steady() };
        assert_eq!(Cause::of(&roamed), Some(Cause::Roam));
        assert!(!roamed.is_suspected_loss());
    }

    #[test]
    fn no_answer_while_the_session_lives_is_blocked_udp_and_otherwise_nothing_is_known() {
        let silent = Evidence { to: None, wake: WakeTest::Unanswered, ..steady() };
        assert_eq!(Cause::of(&silent), Some(Cause::UdpBlocked));
        assert_eq!(Cause::of(&Evidence { session_alive: false, ..silent }), None);
        assert!(!silent.is_suspected_loss());
    }

    #[test]
    fn a_loss_together_with_neighbours_is_the_nat_and_no_strike() {
        let seen =
            Evidence { neighbours_lost: true, wake: WakeTest::Unanswered, suspected_losses: 2, ..steady() };
        assert_eq!(Cause::of(&seen), Some(Cause::NatRestart));
        assert!(!seen.is_suspected_loss());
    }

    #[test]
    fn altered_payload_and_a_moved_gateway_are_named() {
        let altered = Evidence { payload: Payload::Altered, ..steady() };
        assert_eq!(Cause::of(&altered), Some(Cause::HelperInterference));
        assert_eq!(Cause::of(&Evidence { ends: Ends::GatewayMoved, ..steady() }), Some(Cause::GatewayMoved));
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_name(&cause.to_string()), Some(cause));
        }
        assert_eq!(Cause::from_name("Rain"), None);
    }

    proptest! {
        #[test]
        fn the_log_counts_everything_and_keeps_little(causes in proptest::collection::vec(0..Cause::COUNT, 0..80)) {
            let at = Instant::now();
            let mut log = ChurnLog::default();
            for &n in &causes {
                let cause = Cause::ALL[n];
                log.push(Churn { at, cause, from: None, to: None, idle: Duration::ZERO });
            }
            prop_assert_eq!(log.total(), causes.len() as u64);
            prop_assert_eq!(log.latest().count(), causes.len().min(ChurnLog::KEPT));
            prop_assert_eq!(log.last().map(|churn| churn.cause), causes.last().map(|&n| Cause::ALL[n]));
            for cause in Cause::ALL {
                let expected = causes.iter().filter(|&&n| Cause::ALL[n] == cause).count() as u64;
                prop_assert_eq!(log.count(cause), expected);
            }
        }

        #[test]
        fn only_losses_are_strikes(
            ends in 0usize..3, to in proptest::option::of(1u16..4), wake in 0usize..3,
            idle in 0u64..200, suspected_losses in 0u32..3, neighbours_lost: bool, session_alive: bool,
        ) {
            let ends = [Ends::Same, Ends::ClientMoved, Ends::GatewayMoved][ends];
            let wake = [WakeTest::None, WakeTest::Arrived, WakeTest::Unanswered][wake];
            let evidence = Evidence {
                ends, from: Some(address(1)), to: to.map(address), wake,
                idle: Duration::from_secs(idle), suspected_losses, neighbours_lost, session_alive, ..steady()
            };
            if evidence.is_suspected_loss() {
                prop_assert!(Cause::of(&evidence).is_some_and(Cause::is_loss));
            }
        }
    }
}
