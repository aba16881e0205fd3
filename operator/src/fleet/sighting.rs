//! What one replica last said of a client.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, LONGEST_SUM, Word},
    news::{Account, Grain, Scale, Seen, Weight},
    v1::{
        BindingReport, ChurnCause, ChurnEvent, ChurnOfCause, ChurnReport, ClientReport, ClockReport,
        Impairment, KeepaliveReport, KeyOnTwoMachines, NatReport, Phase, ReachReport, StandbyReport,
    },
};

/// A handshake time is news only when the last one that was told is this much older: sessions re-key every two
/// minutes, and the API server need not hear of each.
pub const HANDSHAKE_GRAIN_SECONDS: i64 = 600;

/// About where it is worth a look whether status still holds, which has a tolerance of its own.
const GRAIN: Grain = Grain { interval: Scale::Eighths, lifetime: Scale::Eighths, wake: Scale::Eighths };

/// What one replica last said of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// Namespace and name of the client.
    pub client: super::ClientKey,
    /// Its phase.
    pub phase: Word<Phase>,
    /// Public `ip:port` that its packets come from.
    pub endpoint: Option<String>,
    /// Last completed handshake.
    pub last_handshake: Option<Timestamp>,
    /// Last authenticated receive.
    pub last_receive: Option<Timestamp>,
    /// Whether its agent holds a session stream to the replica.
    pub session: bool,
    /// The NATs in front of it.
    pub nat: Option<NatReport>,
    /// The lifetime of its mapping.
    pub binding: Option<BindingReport>,
    /// The keepalive in force, and what it costs.
    pub keepalive: Option<KeepaliveReport>,
    /// Moves and losses of its mapping since the replica started.
    pub churn: ChurnReport,
    /// Keepalive that a client without an agent seems to need.
    pub recommended_keepalive: Option<Duration>,
    /// By what it is reached while it is idle.
    pub standby: Option<StandbyReport>,
    /// When it last spoke on its session, where it sleeps.
    pub last_rest: Option<Timestamp>,
    /// For how long it was proven reachable.
    pub reach: Option<ReachReport>,
    /// Two machines use its key.
    pub key_on_two_machines: Option<KeyOnTwoMachines>,
    /// What is wrong with its clock.
    pub clock: Option<ClockReport>,
    /// What the replica sends does not reach it.
    pub hears_nothing: bool,
    /// What of its pool's promise does not hold on its machine.
    pub impairments: Vec<Impairment>,
}

impl Sighting {
    pub(crate) fn new(report: ClientReport) -> Option<Self> {
        let phase = report.phase.into();
        let churn = churn(&report);
        Some(Self {
            client: super::ClientKey::from(report.client.as_ref()?),
            phase,
            endpoint: Some(report.endpoint).filter(|e| !e.is_empty()),
            last_handshake: report.last_handshake.and_then(timestamp),
            last_receive: report.last_receive.and_then(timestamp),
            session: report.session,
            nat: report.nat,
            binding: report.binding,
            keepalive: report.keepalive,
            churn,
            recommended_keepalive: bounds::span(report.recommended_keepalive, LONGEST_SPAN),
            standby: report.standby,
            last_rest: report.last_rest.and_then(timestamp),
            reach: report.reach,
            key_on_two_machines: report.key_on_two_machines,
            clock: report.clock,
            hears_nothing: report.hears_nothing,
            impairments: report.impairments,
        })
    }

    /// The last move or loss of its mapping, with its cause.
    pub fn last_churn(&self) -> Option<(Word<ChurnCause>, &ChurnEvent)> {
        let events = self.churn.causes.iter().filter_map(|c| Some((c.cause.into(), c.last.as_ref()?)));
        events.max_by_key(|(_, event)| event.at.map(|at| (at.seconds, at.nanos)))
    }

    /// Orders sightings of one client by different replicas: the most recent receive wins.
    pub(super) fn recency(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (self.last_receive, self.last_handshake)
    }

    /// Whether the object's status should be looked at again for the step from `old` to `self`.
    pub(super) fn is_news(&self, old: &Self) -> bool {
        self.seen() != old.seen()
            || self.account().weigh(&old.account(), GRAIN) > Weight::Nothing
            || self.rarely() != old.rarely()
    }

    fn seen(&self) -> Seen<Option<&str>, &KeyOnTwoMachines> {
        Seen {
            phase: self.phase,
            session: self.session,
            endpoint: self.endpoint.as_deref(),
            key_on_two_machines: self.key_on_two_machines.as_ref(),
            clock: self.clock,
            hears_nothing: self.hears_nothing,
        }
    }

    fn account(&self) -> Account<'_> {
        Account {
            nat: self.nat.as_ref(),
            churn: Some(&self.churn),
            impairments: &self.impairments,
            binding: self.binding.as_ref(),
            keepalive: self.keepalive.as_ref(),
            standby: self.standby.as_ref(),
        }
    }

    /// What goes on by itself, and is in status all the same: so coarsely that it seldom changes. A figure that only a gateway
    /// makes is here too.
    fn rarely(&self) -> impl PartialEq + use<> {
        let reach = self.reach.map(|reach| {
            let share = unproven(&reach).map(|share| (share.max(1e-6).ln() * 4.0).round().to_bits());
            (share, GRAIN.lifetime.step(reach.longest_gap))
        });
        (
            self.last_receive.is_some(),
            grain(self.last_handshake),
            grain(self.last_rest),
            self.keepalive.map(|keepalive| keepalive.wakes_saved.unsigned_abs().checked_ilog2()),
            self.recommended_keepalive.map(|interval| interval.as_secs()),
            reach,
        )
    }
}

/// Share of the time in which a client was not proven reachable although it should have been. `None`: no time counted.
pub(crate) fn unproven(report: &ReachReport) -> Option<f64> {
    let seconds = |wire| bounds::span(wire, LONGEST_SUM).unwrap_or_default().as_secs_f64();
    let (proven, unproven) = (seconds(report.proven), seconds(report.unproven));
    (proven + unproven > 0.0).then(|| unproven / (proven + unproven))
}

/// Its moves and losses. A replica of an older version speaks of moves only, and not of causes.
fn churn(report: &ClientReport) -> ChurnReport {
    if let Some(churn) = &report.churn {
        return churn.clone();
    }
    let last = report.last_change.as_ref().map(|change| ChurnEvent {
        at: change.at,
        from: change.from.clone(),
        to: change.to.clone(),
        idle: change.idle,
    });
    let count = report.endpoint_changes;
    let causes = last.map(|last| ChurnOfCause { cause: ChurnCause::Unknown.into(), count, last: Some(last) });
    ChurnReport { since: None, count, causes: causes.into_iter().collect() }
}

fn grain(time: Option<Timestamp>) -> Option<i64> {
    time.map(|t| t.as_second().div_euclid(HANDSHAKE_GRAIN_SECONDS))
}

/// A time of the wire. None when it is out of range, as a hostile or broken replica could send.
pub fn timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting() -> Sighting {
        let client = Some(pinhole_proto::v1::ObjectRef::default());
        let clients =
            ClientReport { client, phase: Phase::WaitingToReconnect.into(), ..ClientReport::default() };
        Sighting::new(clients).unwrap()
    }

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    #[test]
    fn a_client_that_is_deaf_is_news_though_it_was_missed_before() {
        let deaf = Sighting { hears_nothing: true, ..sighting() };
        assert!(deaf.is_news(&sighting()) && sighting().is_news(&deaf));
    }

    #[test]
    fn a_measurement_is_news_where_status_may_not_hold_any_more() {
        let lives = |seconds| Sighting {
            binding: Some(BindingReport {
                at_least: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..BindingReport::default()
            }),
            ..sighting()
        };
        assert!(lives(30).is_news(&sighting()));
        assert!(!lives(31).is_news(&lives(30)));
        assert!(lives(36).is_news(&lives(30)));
    }

    #[test]
    fn what_goes_on_by_itself_is_news_once_in_a_while() {
        let saved = |wakes_saved| Sighting {
            keepalive: Some(KeepaliveReport { wakes_saved, wakes: 9, ..KeepaliveReport::default() }),
            ..sighting()
        };
        assert!(!saved(1500).is_news(&saved(1100)) && saved(2100).is_news(&saved(1100)));
        let shaken = |second| Sighting { last_handshake: at(second), ..sighting() };
        assert!(!shaken(599).is_news(&shaken(1)) && shaken(600).is_news(&shaken(1)));
        let rested = |second| Sighting { last_rest: at(second), ..sighting() };
        assert!(!rested(599).is_news(&rested(1)) && rested(600).is_news(&rested(1)));
        let heard = |second| Sighting { last_receive: at(second), ..sighting() };
        assert!(!heard(900).is_news(&heard(1)) && heard(1).is_news(&sighting()));
    }
}
