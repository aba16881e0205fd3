//! What replicas report of NATs and bindings, as status says it: calm, so that a measurement that wobbles is written
//! once.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use pinhole_crds::{
    BindingConfidence, BindingLifetime, ChurnCause, Finding, Interval, NatBehaviour, NatClass, NatFiltering,
    NatMapping, PortAllocation, Reachability, Vantage,
};
use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, Word},
    v1,
};

use crate::fleet::{Sighting, timestamp, unproven};

/// A figure that moved by less than this part of itself is as it was.
const WOBBLE: f64 = 0.06;

/// And so is one that moved by no more than this.
const GRAIN: Duration = Duration::from_secs(1);

/// The NATs in front of a client that was heard. None: it was not.
pub(super) fn behaviour(before: Option<&NatBehaviour>, sighting: &Sighting) -> Option<NatBehaviour> {
    let seen = sighting.endpoint.as_deref().and_then(public_address);
    let Some(report) = &sighting.nat else {
        let first = seen
            .clone()
            .map(|address| NatBehaviour { public_address: Some(address), ..NatBehaviour::default() });
        return before
            .cloned()
            .map(|before| NatBehaviour { public_address: seen.or(before.public_address), ..before })
            .or(first);
    };
    Some(NatBehaviour {
        class: class(report),
        public_address: Some(report.public_address.clone()).filter(|a| !a.is_empty()).or(seen),
        mapping: mapping(report.mapping.into()),
        filtering: filtering(report.filtering.into()),
        port_allocation: port_allocation(report.port_allocation.into()),
        port_parity: finding(report.port_parity.into()),
        port_delta: Some(report.port_delta).filter(|delta| *delta != 0),
        hairpin: finding(report.hairpin.into()),
        refresh_outbound: finding(report.refresh_outbound.into()),
        refresh_inbound: finding(report.refresh_inbound.into()),
        two_class: finding(report.two_class.into()),
        helper_interference: finding(report.helper_interference.into()),
        double_nat: finding(report.double_nat.into()),
        observed_by: vantage(report.vantage.into()),
    })
}

/// In one word, how the NAT maps. Of a way that is newer than this operator it knows that there is a NAT.
fn class(report: &v1::NatReport) -> NatClass {
    let natted: v1::Finding = Word::from(report.natted).known().unwrap_or_default();
    if natted == v1::Finding::No {
        return NatClass::NoNAT;
    }
    match Word::from(report.mapping) {
        Word::Known(v1::NatMapping::EndpointIndependent) => NatClass::EndpointIndependent,
        Word::Known(v1::NatMapping::NotPortDependent) => NatClass::NotPortDependent,
        Word::Known(v1::NatMapping::EndpointDependent) => NatClass::EndpointDependent,
        Word::Known(v1::NatMapping::AddressDependent) => NatClass::AddressDependent,
        Word::Known(v1::NatMapping::AddressAndPortDependent) => NatClass::AddressAndPortDependent,
        Word::Known(v1::NatMapping::Unknown) | Word::Newer(_) if natted == v1::Finding::Yes => NatClass::NAT,
        Word::Known(v1::NatMapping::Unknown) | Word::Newer(_) => NatClass::Unknown,
    }
}

/// The lifetime of a client's mapping. It stays as it was until it is known better, or differs by more than a
/// measurement does.
pub(super) fn lifetime(before: Option<&BindingLifetime>, sighting: &Sighting) -> Option<BindingLifetime> {
    let Some(report) = &sighting.binding else {
        return before.cloned().or_else(|| sighting.last_receive.map(|_| BindingLifetime::default()));
    };
    let confidence = confidence(report.confidence.into());
    let at_least = report.at_least.and_then(duration).filter(|at_least| !at_least.is_zero());
    let new = BindingLifetime {
        at_least: at_least.map(whole),
        less_than: report.less_than.and_then(duration).map(whole),
        unpromoted: report.unpromoted.and_then(duration).map(whole),
        promoted_after: report.promoted_after.and_then(duration).map(whole),
        confidence,
        since: report.since.and_then(timestamp).map(seconds),
        observed_by: vantage(report.vantage.into()),
    };
    let Some(before) = before.filter(|b| b.confidence == confidence && b.observed_by == new.observed_by)
    else {
        return Some(new);
    };
    let calm = same(before.at_least, new.at_least)
        && same(before.less_than, new.less_than)
        && same(before.unpromoted, new.unpromoted);
    Some(if calm { before.clone() } else { new })
}

/// Its service level. It stays as it was until the missing share is another by a quarter of itself.
pub(super) fn reachability(before: Option<Reachability>, sighting: &Sighting) -> Option<Reachability> {
    /// A difference in percent that nobody would want to know of.
    const LITTLE: f64 = 0.005;
    let Some(report) = &sighting.reach else { return before };
    let Some(unproven) = unproven(report) else { return before };
    let missing = unproven * 100.0;
    let new = Reachability {
        percent: percent(missing),
        longest_gap: report.longest_gap.and_then(duration).filter(|gap| !gap.is_zero()).map(whole),
    };
    let Some(before) = before else { return Some(new) };
    let told = before.percent.parse::<f64>().map_or(f64::INFINITY, |percent| 100.0 - percent);
    // A first gap is always news, and so is a replica that knows of none.
    let calm = (told == 0.0) == (missing == 0.0) && (missing - told).abs() <= LITTLE.max(told * 0.25);
    Some(if calm && same(before.longest_gap, new.longest_gap) { before } else { new })
}

/// What is not missing of a hundred, rounded down to a thousandth: all of it only where nothing is missing.
fn percent(missing: f64) -> String {
    if missing <= 0.0 {
        return "100".to_owned();
    }
    let thousandths = ((100.0 - missing) * 1000.0).floor().clamp(0.0, 99_999.0);
    format!("{:.3}", thousandths / 1000.0)
}

/// `new`, or `before` when the two are the same but for the wobble of a measurement.
pub(super) fn steady(before: Option<Interval>, new: Duration) -> Interval {
    let new = whole(new);
    before.filter(|before| same(Some(*before), Some(new))).unwrap_or(new)
}

/// What counts savings is renewed when it doubled, so that a client that lives long is written ever less often.
pub(super) fn saved(before: Option<i64>, new: i64) -> i64 {
    const LEAST: i64 = 100;
    match before {
        Some(before) if new.abs_diff(before) < before.unsigned_abs().max(LEAST.unsigned_abs()) => before,
        _ => new,
    }
}

fn same(a: Option<Interval>, b: Option<Interval>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.0.abs_diff(b.0) <= GRAIN.max(a.0.mul_f64(WOBBLE)),
        (None, None) => true,
        _ => false,
    }
}

/// Whole seconds; what is shorter, to a tenth.
fn whole(duration: Duration) -> Interval {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let grain = if millis < 1000 { 100 } else { 1000 };
    Interval(Duration::from_millis((millis.saturating_add(grain / 2) / grain).saturating_mul(grain)))
}

/// A span of the wire, at most a week. None when it is negative.
pub(super) fn duration(wire: prost_types::Duration) -> Option<Duration> {
    bounds::span(Some(wire), LONGEST_SPAN)
}

pub(super) fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// The address of a public `ip:port`.
fn public_address(endpoint: &str) -> Option<String> {
    endpoint.parse::<SocketAddr>().ok().map(|e| e.ip().to_canonical().to_string())
}

// The schema of VPNClient has no word for what is newer than this operator: such a thing was not measured as far as
// anybody could read it.

fn finding(wire: Word<v1::Finding>) -> Finding {
    match wire {
        Word::Known(v1::Finding::Unknown) | Word::Newer(_) => Finding::Unknown,
        Word::Known(v1::Finding::Yes) => Finding::True,
        Word::Known(v1::Finding::No) => Finding::False,
    }
}

fn mapping(wire: Word<v1::NatMapping>) -> NatMapping {
    match wire {
        Word::Known(v1::NatMapping::Unknown) | Word::Newer(_) => NatMapping::Unknown,
        Word::Known(v1::NatMapping::EndpointIndependent) => NatMapping::EndpointIndependent,
        Word::Known(v1::NatMapping::NotPortDependent) => NatMapping::NotPortDependent,
        Word::Known(v1::NatMapping::EndpointDependent) => NatMapping::EndpointDependent,
        Word::Known(v1::NatMapping::AddressDependent) => NatMapping::AddressDependent,
        Word::Known(v1::NatMapping::AddressAndPortDependent) => NatMapping::AddressAndPortDependent,
    }
}

fn filtering(wire: Word<v1::NatFiltering>) -> NatFiltering {
    match wire {
        Word::Known(v1::NatFiltering::Unknown) | Word::Newer(_) => NatFiltering::Unknown,
        Word::Known(v1::NatFiltering::EndpointIndependent) => NatFiltering::EndpointIndependent,
        Word::Known(v1::NatFiltering::NotPortDependent) => NatFiltering::NotPortDependent,
        Word::Known(v1::NatFiltering::EndpointDependent) => NatFiltering::EndpointDependent,
        Word::Known(v1::NatFiltering::AddressDependent) => NatFiltering::AddressDependent,
        Word::Known(v1::NatFiltering::AddressAndPortDependent) => NatFiltering::AddressAndPortDependent,
    }
}

fn port_allocation(wire: Word<v1::PortAllocation>) -> PortAllocation {
    match wire {
        Word::Known(v1::PortAllocation::Unknown) | Word::Newer(_) => PortAllocation::Unknown,
        Word::Known(v1::PortAllocation::Preserved) => PortAllocation::Preserved,
        Word::Known(v1::PortAllocation::Sequential) => PortAllocation::Sequential,
        Word::Known(v1::PortAllocation::Random) => PortAllocation::Random,
    }
}

fn vantage(wire: Word<v1::Vantage>) -> Option<Vantage> {
    match wire {
        Word::Known(v1::Vantage::Unspecified) | Word::Newer(_) => None,
        Word::Known(v1::Vantage::Client) => Some(Vantage::Client),
        Word::Known(v1::Vantage::Gateway) => Some(Vantage::Gateway),
    }
}

fn confidence(wire: Word<v1::BindingConfidence>) -> BindingConfidence {
    match wire {
        Word::Known(v1::BindingConfidence::Unknown) | Word::Newer(_) => BindingConfidence::Unknown,
        Word::Known(v1::BindingConfidence::Growing) => BindingConfidence::Growing,
        Word::Known(v1::BindingConfidence::Bracketed) => BindingConfidence::Bracketed,
        Word::Known(v1::BindingConfidence::Confirmed) => BindingConfidence::Confirmed,
    }
}

/// A cause of the wire.
pub(super) fn cause(wire: Word<v1::ChurnCause>) -> ChurnCause {
    match wire {
        Word::Known(v1::ChurnCause::Unknown) | Word::Newer(_) => ChurnCause::Unknown,
        Word::Known(v1::ChurnCause::MappingChanged) => ChurnCause::MappingChanged,
        Word::Known(v1::ChurnCause::MappingLost) => ChurnCause::MappingLost,
        Word::Known(v1::ChurnCause::LifetimeShrank) => ChurnCause::LifetimeShrank,
        Word::Known(v1::ChurnCause::NatRestart) => ChurnCause::NATRestart,
        Word::Known(v1::ChurnCause::Roam) => ChurnCause::Roam,
        Word::Known(v1::ChurnCause::UdpBlocked) => ChurnCause::UDPBlocked,
        Word::Known(v1::ChurnCause::HelperInterference) => ChurnCause::HelperInterference,
        Word::Known(v1::ChurnCause::GatewayMoved) => ChurnCause::GatewayMoved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_least(seconds: u64) -> Option<prost_types::Duration> {
        prost_types::Duration::try_from(Duration::from_secs(seconds)).ok()
    }

    fn sighting() -> Sighting {
        let client = v1::ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() };
        Sighting::new(v1::ClientReport {
            client: Some(client),
            endpoint: "198.51.100.9:4500".into(),
            ..v1::ClientReport::default()
        })
        .unwrap()
    }

    fn kept(proven: u64, unproven: u64, longest_gap: u64) -> Sighting {
        let span = |seconds| Duration::from_secs(seconds).try_into().ok();
        let reach = v1::ReachReport {
            proven: span(proven),
            unproven: span(unproven),
            longest_gap: span(longest_gap),
        };
        Sighting { reach: Some(reach), ..sighting() }
    }

    #[test]
    fn reachability_is_rounded_down_and_written_anew_only_where_it_says_something_else() {
        let first = reachability(None, &kept(1000, 0, 0)).unwrap();
        assert_eq!((first.percent.as_str(), first.longest_gap), ("100", None));
        assert_eq!(reachability(Some(first.clone()), &kept(90_000, 0, 0)), Some(first.clone()));
        let gap = reachability(Some(first), &kept(1_000_000, 1, 1)).unwrap();
        assert_eq!(
            (gap.percent.as_str(), gap.longest_gap),
            ("99.999", Some(Interval(Duration::from_secs(1))))
        );
        let much = reachability(Some(gap), &kept(900, 100, 60)).unwrap();
        assert_eq!(much.percent, "90.000");
        assert_eq!(reachability(Some(much.clone()), &kept(1000, 100, 61)), Some(much.clone()));
        assert_eq!(reachability(Some(much.clone()), &kept(9000, 100, 60)).unwrap().percent, "98.901");
        let silent = Sighting { reach: None, ..kept(0, 0, 0) };
        assert_eq!(reachability(Some(much.clone()), &silent), Some(much.clone()));
        assert_eq!(reachability(Some(much.clone()), &kept(0, 0, 0)), Some(much));
    }

    #[test]
    fn what_nobody_measured_is_unknown_and_the_public_address_is_seen_anyhow() {
        let nat = behaviour(None, &sighting()).unwrap();
        assert_eq!((nat.class, nat.public_address.as_deref()), (NatClass::Unknown, Some("198.51.100.9")));
        assert_eq!(nat.mapping, NatMapping::Unknown);
    }

    #[test]
    fn a_nat_is_named_by_its_mapping_and_no_nat_is_none() {
        let classed = |natted: v1::Finding, mapping: v1::NatMapping| {
            let report =
                v1::NatReport { natted: natted.into(), mapping: mapping.into(), ..v1::NatReport::default() };
            class(&report)
        };
        assert_eq!(classed(v1::Finding::No, v1::NatMapping::EndpointIndependent), NatClass::NoNAT);
        assert_eq!(classed(v1::Finding::Yes, v1::NatMapping::Unknown), NatClass::NAT);
        assert_eq!(
            classed(v1::Finding::Yes, v1::NatMapping::AddressAndPortDependent),
            NatClass::AddressAndPortDependent
        );
    }

    #[test]
    fn a_lifetime_that_wobbles_is_written_once() {
        let measured = |seconds| Sighting {
            binding: Some(v1::BindingReport {
                at_least: at_least(seconds),
                less_than: at_least(seconds + 4),
                confidence: v1::BindingConfidence::Bracketed.into(),
                ..v1::BindingReport::default()
            }),
            ..sighting()
        };
        let first = lifetime(None, &measured(120)).unwrap();
        assert_eq!(lifetime(Some(&first), &measured(124)), Some(first.clone()));
        let shrunk = lifetime(Some(&first), &measured(60)).unwrap();
        assert_eq!(shrunk.at_least, Some(Interval(Duration::from_mins(1))));
    }

    #[test]
    fn an_interval_stays_until_it_differs_by_more_than_a_wobble() {
        let s = Duration::from_secs;
        assert_eq!(steady(Some(Interval(s(110))), s(114)), Interval(s(110)));
        assert_eq!(steady(Some(Interval(s(110))), s(120)), Interval(s(120)));
        assert_eq!(steady(Some(Interval(s(8))), s(9)), Interval(s(8)));
        assert_eq!(steady(None, Duration::from_millis(24_600)), Interval(s(25)));
    }

    #[test]
    fn savings_are_written_ever_less_often() {
        let mut written = Vec::new();
        let mut status = None;
        for total in 0..100_000 {
            let next = saved(status, total);
            if status != Some(next) {
                written.push(next);
            }
            status = Some(next);
        }
        assert!(written.len() < 15, "{written:?}");
    }
}
