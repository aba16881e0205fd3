//! What replicas report of clients that sleep, as status says it.

use std::time::Duration;

use pinhole_crds::{Interval, ReachableBy, StandbyInForce};
use pinhole_proto::{
    bounds::{NEWER, Word},
    v1::{StandbyReason, keepalive_policy::Standby},
};

use super::nat;
use crate::fleet::Sighting;

/// A newer proof alone is no reason to write sooner.
const GRAIN_SECONDS: i64 = 600;

/// By what a client is reached. None: its agent does not know of it, and never did.
pub(super) fn in_force(before: Option<&StandbyInForce>, sighting: &Sighting) -> Option<StandbyInForce> {
    let Some(report) = &sighting.standby else { return before.cloned() };
    let Some(reason) = reason(report.reason.into()) else { return before.cloned() };
    let span =
        |wire: Option<prost_types::Duration>| wire.and_then(nat::duration).filter(|span| !span.is_zero());
    let steady = |before: Option<Interval>, wire| span(wire).map(|span| nat::steady(before, span));
    let known = before.cloned().unwrap_or_default();
    let new = StandbyInForce {
        reachable_by: match report.reachable_by.into() {
            Word::Known(Standby::Session) => ReachableBy::Session,
            Word::Known(Standby::Udp | Standby::Auto | Standby::Unspecified) => ReachableBy::UDP,
            Word::Newer(_) => known.reachable_by,
        },
        reason: reason.to_owned(),
        interval: steady(known.interval, report.interval),
        last_proven: sighting.last_rest.map(nat::seconds),
        last_wake: span(report.last_wake).map(milliseconds),
        worst_wake: span(report.worst_wake).map(milliseconds),
        session_at_least: steady(known.session_at_least, report.session_at_least),
        session_less_than: steady(known.session_less_than, report.session_less_than),
    };
    let older = known.last_proven.as_ref().zip(new.last_proven.as_ref());
    let is_calm = older.is_some_and(|(old, new)| new.0.as_second() - old.0.as_second() < GRAIN_SECONDS);
    let unproven = StandbyInForce { last_proven: known.last_proven.clone(), ..new.clone() };
    Some(if is_calm && unproven == known { known } else { new })
}

fn milliseconds(span: Duration) -> Interval {
    Interval(Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)))
}

fn reason(reason: Word<StandbyReason>) -> Option<&'static str> {
    let Word::Known(reason) = reason else { return Some(NEWER) };
    Some(match reason {
        StandbyReason::Unspecified => return None,
        StandbyReason::Policy => "Policy",
        StandbyReason::Learning => "Learning",
        StandbyReason::CheaperByUdp => "CheaperByUDP",
        StandbyReason::CheaperBySession => "CheaperBySession",
        StandbyReason::Busy => "Busy",
        StandbyReason::SessionLost => "SessionLost",
        StandbyReason::SessionClosed => "SessionClosed",
        StandbyReason::TooShort => "TooShort",
    })
}
