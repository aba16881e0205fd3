//! Which changes of what is told of a client are news. Pure.
//!
//! The same things travel from an agent to its gateway, from there to the operator, and from there into a status. At each hop
//! somebody compares what is with what was told, and asks whether the step between them is worth a message of its own. What
//! is said is of three sorts, which are the same everywhere:
//!
//! * *Facts* are news however little of them changes: what a replica [sees](Seen) of a client, what its NATs do, what became of
//!   its mapping, what does not work. Nobody waits for the next regular message to pass one on.
//! * *Measurements* wobble. They are news where they moved by a step of the teller's [`Grain`].
//! * *Counts* and *times* go on by themselves, and are never news. They go along.
//!
//! Each field of a message is sorted here, and a new one does not compile until it is. How long news is held is no part of
//! this, as each hop spares something else: an agent its radio, a gateway messages to the operator, the operator writes of
//! a status, which stays as it is near what it says.

use crate::{
    bounds::{self, LONGEST_SPAN, Word},
    v1::{
        BindingReport, ChurnReport, ClientReport, ClientState, ClockReport, Impairment, KeepaliveReport,
        NatReport, Phase, StandbyReport,
    },
};

/// How finely a span is looked at. Spans are believed as in [`bounds::span`], up to [`LONGEST_SPAN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// To the nanosecond.
    Exact,
    /// To the whole second below.
    Seconds,
    /// To the nearest of steps that are about an eighth of the span apart; all below 0.1 s are one.
    Eighths,
}

impl Scale {
    /// The number of the step that a span is at. `None`: there is no span, or it is negative.
    pub fn step(self, wire: Option<prost_types::Duration>) -> Option<u128> {
        let span = bounds::span(wire, LONGEST_SPAN)?;
        Some(match self {
            Self::Exact => span.as_nanos(),
            Self::Seconds => span.as_secs().into(),
            Self::Eighths => (span.as_secs_f64().max(0.1).ln() * 8.0).round().to_bits().into(),
        })
    }
}

/// How finely one teller looks at what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// Of intervals in force, which are a promise as much as a measurement: who hears nothing for longer takes the client to be gone.
    pub interval: Scale,
    /// Of how long mappings live.
    pub lifetime: Scale,
    /// Of how long it took to wake a client that sleeps.
    pub wake: Scale,
}

/// What a step is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// No message: at most counts and times went on.
    Nothing,
    /// A measurement moved.
    Measurement,
    /// A fact is another one.
    Fact,
}

/// What is said of the NATs in front of a client and of its mapping: by its agent, and passed on from hop to hop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account<'a> {
    /// What the NATs do: facts.
    pub nat: Option<&'a NatReport>,
    /// What became of the mapping: facts.
    pub churn: Option<&'a ChurnReport>,
    /// What does not work there: facts.
    pub impairments: &'a [Impairment],
    /// How long a mapping lives: measurements.
    pub binding: Option<&'a BindingReport>,
    /// What keeps it: measurements, and counts.
    pub keepalive: Option<&'a KeepaliveReport>,
    /// By what the client is reached: measurements.
    pub standby: Option<&'a StandbyReport>,
}

impl<'a> From<&'a ClientState> for Account<'a> {
    fn from(state: &'a ClientState) -> Self {
        Self {
            nat: state.nat.as_ref(),
            churn: state.churn.as_ref(),
            impairments: &state.impairments,
            binding: state.binding.as_ref(),
            keepalive: state.keepalive.as_ref(),
            standby: state.standby.as_ref(),
        }
    }
}

impl<'a> From<&'a ClientReport> for Account<'a> {
    fn from(report: &'a ClientReport) -> Self {
        Self {
            nat: report.nat.as_ref(),
            churn: report.churn.as_ref(),
            impairments: &report.impairments,
            binding: report.binding.as_ref(),
            keepalive: report.keepalive.as_ref(),
            standby: report.standby.as_ref(),
        }
    }
}

impl Account<'_> {
    /// What the step from `old` to this is worth to who looks at measurements as finely as `grain`.
    pub fn weigh(&self, old: &Account<'_>, grain: Grain) -> Weight {
        let measured = |account: &Account<'_>| {
            let binding = account.binding.map(|report| binding(report, grain));
            let keepalive = account.keepalive.map(|report| keepalive(report, grain));
            (binding, keepalive, account.standby.map(|report| standby(report, grain)))
        };
        if (self.nat, self.churn, self.impairments) != (old.nat, old.churn, old.impairments) {
            Weight::Fact
        } else if measured(self) != measured(old) {
            Weight::Measurement
        } else {
            Weight::Nothing
        }
    }
}

fn binding(report: &BindingReport, grain: Grain) -> impl PartialEq + use<> {
    // Since when it is known so well is another time only where it is known otherwise.
    let BindingReport { at_least, less_than, unpromoted, promoted_after, confidence, since: _, vantage } =
        *report;
    let lifetimes = [at_least, less_than, unpromoted, promoted_after].map(|span| grain.lifetime.step(span));
    (lifetimes, confidence, vantage)
}

fn keepalive(report: &KeepaliveReport, grain: Grain) -> impl PartialEq + use<> {
    let KeepaliveReport { interval, mode, reason, since: _, wakes: _, wakes_saved: _, beats: _, probes: _ } =
        *report;
    (grain.interval.step(interval), mode, reason)
}

fn standby(report: &StandbyReport, grain: Grain) -> impl PartialEq + use<> {
    let StandbyReport {
        reachable_by,
        reason,
        interval,
        last_wake,
        worst_wake,
        session_at_least,
        session_less_than,
    } = *report;
    let wakes = [last_wake, worst_wake].map(|span| grain.wake.step(span));
    let lifetimes = [session_at_least, session_less_than].map(|span| grain.lifetime.step(span));
    (reachable_by, reason, grain.interval.step(interval), wakes, lifetimes)
}

/// What a gateway's replica sees of a client, all of it facts. Two are equal where the step from one to the other is no news.
///
/// `Endpoint` is where its packets come from, as the teller holds it; `Shared` is what it knows of two machines with its key.
#[derive(Debug, Clone)]
pub struct Seen<Endpoint, Shared> {
    /// Its phase.
    pub phase: Word<Phase>,
    /// Whether its agent holds a session.
    pub session: bool,
    /// Where its packets come from. With its key on two machines that goes to and fro between them, which is no news.
    pub endpoint: Endpoint,
    /// Two machines use its key.
    pub key_on_two_machines: Option<Shared>,
    /// What is wrong with its clock.
    pub clock: Option<ClockReport>,
    /// What is sent to it does not arrive, which is why it is not connected.
    pub hears_nothing: bool,
}

impl<Endpoint: PartialEq, Shared: PartialEq> PartialEq for Seen<Endpoint, Shared> {
    fn eq(&self, other: &Self) -> bool {
        let Self { phase, session, endpoint, key_on_two_machines, clock, hears_nothing } = self;
        *phase == other.phase
            && *session == other.session
            && (key_on_two_machines.is_some() || *endpoint == other.endpoint)
            && *key_on_two_machines == other.key_on_two_machines
            && *clock == other.clock
            && *hears_nothing == other.hears_nothing
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Duration, Timestamp};

    use super::*;
    use crate::v1::ChurnOfCause;

    const EXACT: Grain = Grain { interval: Scale::Exact, lifetime: Scale::Exact, wake: Scale::Exact };
    const COARSE: Grain = Grain { interval: Scale::Eighths, lifetime: Scale::Eighths, wake: Scale::Eighths };

    #[expect(clippy::unnecessary_wraps, reason = "as in the messages")]
    fn span(millis: i64) -> Option<Duration> {
        let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
        Some(Duration { seconds: millis / 1000, nanos })
    }

    fn state() -> ClientState {
        ClientState {
            nat: Some(NatReport::default()),
            churn: Some(ChurnReport::default()),
            binding: Some(BindingReport { at_least: span(30_000), ..BindingReport::default() }),
            keepalive: Some(KeepaliveReport { interval: span(25_000), ..KeepaliveReport::default() }),
            standby: Some(StandbyReport { interval: span(900_000), ..StandbyReport::default() }),
            ..ClientState::default()
        }
    }

    fn weight(change: impl FnOnce(&mut ClientState), grain: Grain) -> Weight {
        let (old, mut new) = (state(), state());
        change(&mut new);
        let there = Account::from(&new).weigh(&Account::from(&old), grain);
        let back = Account::from(&old).weigh(&Account::from(&new), grain);
        assert_eq!(there, back, "news in one direction only");
        there
    }

    #[test]
    fn facts_are_news_to_whoever_looks_however_coarsely() {
        let facts: [fn(&mut ClientState); 5] = [
            |state| state.nat.as_mut().unwrap().port_delta = 1,
            |state| state.nat = None,
            |state| state.churn.as_mut().unwrap().count = 1,
            |state| state.churn.as_mut().unwrap().causes.push(ChurnOfCause::default()),
            |state| state.impairments.push(Impairment::default()),
        ];
        for fact in facts {
            assert_eq!((weight(fact, EXACT), weight(fact, COARSE)), (Weight::Fact, Weight::Fact));
        }
    }

    #[test]
    fn what_was_decided_of_a_measurement_is_news_on_any_scale() {
        let decided: [fn(&mut ClientState); 7] = [
            |state| state.binding.as_mut().unwrap().confidence = 1,
            |state| state.binding.as_mut().unwrap().vantage = 2,
            |state| state.binding.as_mut().unwrap().less_than = span(31_000),
            |state| state.keepalive.as_mut().unwrap().reason = 1,
            |state| state.keepalive.as_mut().unwrap().mode = 1,
            |state| state.standby.as_mut().unwrap().reachable_by = 2,
            |state| state.standby = None,
        ];
        for step in decided {
            assert_eq!(
                (weight(step, EXACT), weight(step, COARSE)),
                (Weight::Measurement, Weight::Measurement)
            );
        }
    }

    #[test]
    fn counts_and_times_are_news_to_nobody() {
        let at = Some(Timestamp { seconds: 1, nanos: 0 });
        let went_on = |state: &mut ClientState| {
            let keepalive = state.keepalive.as_mut().unwrap();
            (keepalive.wakes, keepalive.wakes_saved, keepalive.beats, keepalive.probes) = (1, -1, 2, 3);
            keepalive.since = at;
            state.binding.as_mut().unwrap().since = at;
            state.rtt = span(40);
        };
        assert_eq!(weight(went_on, EXACT), Weight::Nothing);
    }

    #[test]
    fn each_sort_of_span_is_looked_at_on_the_scale_of_its_own() {
        type Of = fn(&mut ClientState) -> &mut Option<Duration>;
        let intervals: [Of; 2] = [
            |state| &mut state.keepalive.as_mut().unwrap().interval,
            |state| &mut state.standby.as_mut().unwrap().interval,
        ];
        let lifetimes: [Of; 6] = [
            |state| &mut state.binding.as_mut().unwrap().at_least,
            |state| &mut state.binding.as_mut().unwrap().less_than,
            |state| &mut state.binding.as_mut().unwrap().unpromoted,
            |state| &mut state.binding.as_mut().unwrap().promoted_after,
            |state| &mut state.standby.as_mut().unwrap().session_at_least,
            |state| &mut state.standby.as_mut().unwrap().session_less_than,
        ];
        let wakes: [Of; 2] = [
            |state| &mut state.standby.as_mut().unwrap().last_wake,
            |state| &mut state.standby.as_mut().unwrap().worst_wake,
        ];
        let finely = |of: &str| Grain {
            interval: if of == "interval" { Scale::Exact } else { Scale::Seconds },
            lifetime: if of == "lifetime" { Scale::Exact } else { Scale::Seconds },
            wake: if of == "wake" { Scale::Exact } else { Scale::Seconds },
        };
        let sorts = [("interval", intervals.as_slice()), ("lifetime", &lifetimes), ("wake", &wakes)];
        for (sort, spans) in sorts {
            for of in spans {
                let (mut old, mut new) = (state(), state());
                (*of(&mut old), *of(&mut new)) = (span(7_000), span(7_001));
                for (grain, _) in sorts {
                    let weight = Account::from(&new).weigh(&Account::from(&old), finely(grain));
                    let expected = if grain == sort { Weight::Measurement } else { Weight::Nothing };
                    assert_eq!(weight, expected, "{sort} looked at as {grain}");
                }
            }
        }
    }

    #[test]
    fn a_scale_tells_apart_what_its_steps_do() {
        for (scale, same, other) in [
            (Scale::Exact, 30_000, 30_001),
            (Scale::Seconds, 30_999, 31_000),
            (Scale::Eighths, 31_000, 34_000),
        ] {
            assert_eq!(scale.step(span(30_000)), scale.step(span(same)), "{scale:?}");
            assert_ne!(scale.step(span(30_000)), scale.step(span(other)), "{scale:?}");
        }
        assert_eq!(Scale::Eighths.step(span(1)), Scale::Eighths.step(span(90)));
        assert_eq!(Scale::Exact.step(Some(Duration { seconds: -1, nanos: 0 })), None);
        let (longest, longer) =
            (Duration { seconds: 604_800, nanos: 0 }, Duration { seconds: i64::MAX, nanos: 0 });
        assert_eq!(Scale::Exact.step(Some(longest)), Scale::Exact.step(Some(longer)));
    }

    #[test]
    fn what_a_report_passes_on_weighs_as_what_the_agent_said() {
        let said = state();
        let report = ClientReport {
            nat: said.nat.clone(),
            churn: said.churn.clone(),
            impairments: said.impairments.clone(),
            binding: said.binding,
            keepalive: said.keepalive,
            standby: said.standby,
            ..ClientReport::default()
        };
        assert_eq!(Account::from(&report).weigh(&Account::from(&said), EXACT), Weight::Nothing);
        assert_eq!(Account::from(&report).weigh(&Account::default(), EXACT), Weight::Fact);
    }

    fn seen() -> Seen<&'static str, u8> {
        Seen {
            phase: Word::Known(Phase::Connected),
            session: true,
            endpoint: "192.0.2.1:1",
            key_on_two_machines: None,
            clock: None,
            hears_nothing: false,
        }
    }

    #[test]
    fn whatever_a_replica_sees_is_news() {
        let clock = Some(ClockReport { ahead_seconds: 90, handshakes: 0 });
        let others = [
            Seen { phase: Word::Known(Phase::Dormant), ..seen() },
            Seen { phase: Word::Newer(77), ..seen() },
            Seen { session: false, ..seen() },
            Seen { endpoint: "192.0.2.1:2", ..seen() },
            Seen { key_on_two_machines: Some(1), ..seen() },
            Seen { clock, ..seen() },
            Seen { hears_nothing: true, ..seen() },
        ];
        assert_eq!(seen(), seen());
        for other in others {
            assert_ne!(seen(), other);
            assert_ne!(other, seen());
        }
    }

    #[test]
    fn between_two_machines_with_one_key_going_to_and_fro_is_no_news_and_all_else_is() {
        let here = Seen { key_on_two_machines: Some(1), ..seen() };
        let there = Seen { endpoint: "203.0.113.5:9", ..here.clone() };
        assert_eq!(here, there);
        assert_ne!(here, Seen { key_on_two_machines: Some(2), ..there.clone() });
        assert_ne!(here, Seen { session: false, ..there.clone() });
        assert_ne!(there, Seen { key_on_two_machines: None, ..there.clone() }, "it is over");
    }
}
