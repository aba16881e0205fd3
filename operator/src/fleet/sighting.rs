//! What one replica last said of a client.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, LONGEST_SUM, Word},
    v1::{
        BindingReport, ChurnCause, ChurnEvent, ChurnOfCause, ChurnReport, ClientReport, ClockReport,
        Impairment, KeepaliveReport, KeyOnTwoMachines, NatReport, Phase, ReachReport, StandbyReport,
    },
};

/// A handshake time is news only when the last one that was told is this much older: sessions re-key every two
/// minutes, and the API server need not hear of each.
pub const HANDSHAKE_GRAIN_SECONDS: i64 = 600;

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

    /// Whether a person, or the object's status, would want to know of the step from `old` to `self`.
    pub(super) fn is_news(&self, old: &Self) -> bool {
        self.phase != old.phase
            || (self.endpoint != old.endpoint && self.key_on_two_machines.is_none())
            || self.key_on_two_machines != old.key_on_two_machines
            || self.clock != old.clock
            || self.impairments != old.impairments
            || self.session != old.session
            || self.nat != old.nat
            || self.churn != old.churn
            || measured(self) != measured(old)
            || self.last_receive.is_some() != old.last_receive.is_some()
            || grain(self.last_handshake) != grain(old.last_handshake)
    }
}

/// What was measured, on a scale with steps of an eighth: about where it is worth a look whether status still holds.
fn measured(sighting: &Sighting) -> impl PartialEq {
    let step = |wire: Option<prost_types::Duration>| {
        bounds::span(wire, LONGEST_SPAN).map(|d| (d.as_secs_f64().max(0.1).ln() * 8.0).round().to_bits())
    };
    let binding =
        sighting.binding.map(|b| (b.confidence, step(b.at_least), step(b.less_than), step(b.unpromoted)));
    let keepalive = sighting
        .keepalive
        .map(|k| (k.mode, k.reason, step(k.interval), k.wakes_saved.unsigned_abs().checked_ilog2()));
    let recommended = sighting.recommended_keepalive.map(|d| d.as_secs());
    let reach = sighting.reach.map(|r| {
        (unproven(&r).map(|share| (share.max(1e-6).ln() * 4.0).round().to_bits()), step(r.longest_gap))
    });
    let standby = sighting.standby.map(|s| {
        let wakes = (step(s.last_wake), step(s.worst_wake));
        (
            s.reachable_by,
            s.reason,
            step(s.interval),
            wakes,
            step(s.session_at_least),
            step(s.session_less_than),
        )
    });
    (binding, keepalive, recommended, reach, standby, grain(sighting.last_rest))
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
