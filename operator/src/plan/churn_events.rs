//! What Kubernetes Events tell of churn: which news there are, and in what words.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{ChurnCause, Interval};
use pinhole_proto::v1::{ChurnEvent, ChurnReport};

use super::nat;
use crate::fleet::timestamp;

/// A cause may turn out to be another for so long: it is told then.
pub const SETTLE: Duration = Duration::from_secs(5);

/// When the last event of each cause was that was told of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<ChurnCause, Timestamp>);

/// Something to tell of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChurnNews {
    /// Reason of the Event.
    pub reason: &'static str,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// What happened, and what it means.
    pub note: String,
}

/// What is new in `churn` and settled, after `since`; and when to look again.
pub fn churn_news(
    churn: &ChurnReport,
    told: &mut Told,
    since: Timestamp,
    now: Timestamp,
) -> (Vec<(ChurnCause, ChurnNews)>, Option<Duration>) {
    let (mut news, mut wait) = (Vec::new(), None);
    for of_cause in &churn.causes {
        let cause = nat::cause(of_cause.cause.into());
        let Some((at, event)) = of_cause.last.as_ref().and_then(|e| Some((timestamp(e.at?)?, e))) else {
            continue;
        };
        if at <= since.max(told.0.get(&cause).copied().unwrap_or(since)) {
            continue;
        }
        let age = now.as_millisecond() - at.as_millisecond();
        let left = SETTLE.saturating_sub(Duration::from_millis(u64::try_from(age).unwrap_or(0)));
        if !left.is_zero() {
            wait = Some(wait.map_or(left, |w: Duration| w.min(left)));
            continue;
        }
        told.0.insert(cause, at);
        news.extend(news_of(cause, event).map(|tiding| (cause, tiding)));
    }
    (news, wait.map(|wait| wait + Duration::from_millis(50)))
}

/// What a client's Event says. None: the cause is told elsewhere, or means nothing to anybody.
fn news_of(cause: ChurnCause, event: &ChurnEvent) -> Option<ChurnNews> {
    let place = |text: &str| if text.is_empty() { "an unknown place".to_owned() } else { text.to_owned() };
    let (from, to, idle) = (place(&event.from), place(&event.to), silence(event));
    let (reason, warning, note) = match cause {
        ChurnCause::MappingChanged => (
            "MappingChanged",
            false,
            format!(
                "its NAT maps it to {to} in place of {from}{idle}: the mapping before was lost, and the tunnel follows"
            ),
        ),
        ChurnCause::MappingLost => (
            "MappingLost",
            false,
            format!(
                "its NAT forgot the mapping {from}{idle} and made the same one anew: until the client spoke, nothing \
                 reached it"
            ),
        ),
        ChurnCause::LifetimeShrank => (
            "LifetimeShrank",
            false,
            format!(
                "its NAT keeps mappings for a shorter time than it did (from {from} to {to}{idle}): keepalives are \
                 more frequent now, and the lifetime is measured anew"
            ),
        ),
        ChurnCause::Roam => (
            "Roam",
            false,
            format!(
                "it moved to another network: from {from} to {to}{idle}; its address in the tunnel stays"
            ),
        ),
        ChurnCause::UDPBlocked => (
            "UDPBlocked",
            true,
            format!(
                "UDP to the gateway is not answered (last seen at {from}{idle}), while its session over TCP stands: \
                 check the firewalls of its network"
            ),
        ),
        ChurnCause::HelperInterference => (
            "HelperInterference",
            true,
            format!(
                "something between it ({from}) and the gateway rewrites or holds back packets: look for an \
                 application-layer helper (ALG) in its router, and turn it off for the tunnel's port"
            ),
        ),
        // Told once of the gateway, or of no interest to anybody.
        ChurnCause::NATRestart | ChurnCause::GatewayMoved | ChurnCause::Unknown => return None,
    };
    Some(ChurnNews { reason, warning, note })
}

/// What the gateway's Event says of an address translator that lost its state.
pub fn restart_note(address: &str, changed: u32, clients: u32) -> String {
    format!(
        "{changed} of {clients} clients behind {address} changed their mappings together: the NAT there started anew \
         or lost its state; see `kubectl pinhole nat --by-address`"
    )
}

fn silence(event: &ChurnEvent) -> String {
    let idle = event.idle.and_then(nat::duration).filter(|idle| !idle.is_zero());
    idle.map(|idle| format!(" after {} of silence", Interval(Duration::from_secs(idle.as_secs().max(1)))))
        .unwrap_or_default()
}

/// So many clients of a pool are told of one by one within [`CROWD_WINDOW`].
const CROWD: usize = 8;

/// Time in which many clients of a pool become one Event of the pool.
const CROWD_WINDOW: Duration = Duration::from_mins(5);

/// What to do with a client's news among those of the others of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Tell it.
    Client,
    /// Tell it of the pool, in place of this client and those to come.
    Pool,
    /// It is told already.
    Nobody,
}

/// Makes one Event of many.
#[derive(Debug, Default)]
pub struct EventAggregator(HashMap<(String, &'static str), (Instant, usize)>);

impl EventAggregator {
    /// A client of `pool` has news of `reason`.
    pub fn way(&mut self, pool: &str, reason: &'static str, now: Instant) -> Way {
        self.0.retain(|_, (since, _)| now.saturating_duration_since(*since) < CROWD_WINDOW);
        let (_, count) = self.0.entry((pool.to_owned(), reason)).or_insert((now, 0));
        *count += 1;
        match *count {
            ..=CROWD => Way::Client,
            n if n == CROWD + 1 => Way::Pool,
            _ => Way::Nobody,
        }
    }
}

/// What the pool's Event says.
pub fn crowd_note(reason: &str) -> String {
    format!(
        "more than {CROWD} clients within {}: {reason}; further ones are not told one by one: see `kubectl pinhole nat`",
        Interval(CROWD_WINDOW)
    )
}

#[cfg(test)]
mod tests {
    use pinhole_proto::v1::{ChurnCause as Wire, ChurnOfCause};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn churn(events: &[(Wire, i64)]) -> ChurnReport {
        let of_cause = |(cause, second): &(Wire, i64)| ChurnOfCause {
            cause: (*cause).into(),
            count: 1,
            last: Some(ChurnEvent {
                at: Some(prost_types::Timestamp { seconds: *second, nanos: 0 }),
                from: "198.51.100.9:1".into(),
                to: "198.51.100.9:2".into(),
                idle: Some(prost_types::Duration { seconds: 31, nanos: 0 }),
            }),
        };
        ChurnReport { since: None, count: 0, causes: events.iter().map(of_cause).collect() }
    }

    fn reasons(told: &mut Told, events: &[(Wire, i64)], now: i64) -> Vec<&'static str> {
        churn_news(&churn(events), told, at(100), at(now)).0.into_iter().map(|(_, t)| t.reason).collect()
    }

    #[test]
    fn news_are_told_once_settled_and_once() {
        let mut told = Told::default();
        let (news, wait) = churn_news(&churn(&[(Wire::MappingChanged, 200)]), &mut told, at(100), at(202));
        assert!(news.is_empty() && wait.is_some_and(|w| w <= SETTLE), "{news:?} {wait:?}");
        assert_eq!(reasons(&mut told, &[(Wire::MappingChanged, 200)], 206), ["MappingChanged"]);
        assert!(reasons(&mut told, &[(Wire::MappingChanged, 200)], 300).is_empty());
        assert_eq!(reasons(&mut told, &[(Wire::MappingChanged, 290), (Wire::Roam, 291)], 300).len(), 2);
    }

    #[test]
    fn a_new_leader_does_not_tell_of_old_things() {
        assert!(reasons(&mut Told::default(), &[(Wire::Roam, 99)], 300).is_empty());
    }

    #[test]
    fn a_restarted_nat_is_no_event_of_its_clients() {
        assert!(reasons(&mut Told::default(), &[(Wire::NatRestart, 200)], 300).is_empty());
    }

    #[test]
    fn the_note_has_both_endpoints_and_the_silence() {
        let event = churn(&[(Wire::MappingChanged, 200)]).causes[0].last.clone().unwrap();
        for cause in [ChurnCause::MappingChanged, ChurnCause::LifetimeShrank, ChurnCause::Roam] {
            let note = news_of(cause, &event).unwrap().note;
            for part in ["198.51.100.9:1", "198.51.100.9:2", "31s"] {
                assert!(note.contains(part), "{note}");
            }
        }
    }

    #[test]
    fn many_clients_of_a_pool_become_one_event() {
        let (mut crowds, now) = (EventAggregator::default(), Instant::now());
        let ways: Vec<_> = (0..100).map(|_| crowds.way("p", "MappingChanged", now)).collect();
        assert_eq!(ways.iter().filter(|w| **w == Way::Client).count(), CROWD);
        assert_eq!(ways.iter().filter(|w| **w == Way::Pool).count(), 1);
        assert_eq!(crowds.way("q", "MappingChanged", now), Way::Client);
        assert_eq!(crowds.way("p", "MappingChanged", now + CROWD_WINDOW), Way::Client);
    }
}
