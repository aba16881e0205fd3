//! Reports of a replica, cut down to what it may say. Pure.
//!
//! A gateway pod is exposed to the internet: what it reports ends in the status of objects and in people's
//! terminals, so nothing passes that has not the form it should have.

use std::net::{IpAddr, SocketAddr};

use pinhole_proto::{
    bounds::{
        self, LONGEST_IMPAIRMENT, LONGEST_SPAN, LONGEST_SUM, LONGEST_TEXT, LONGEST_TRIP, MOST_OF_CLIENT,
    },
    is_object_name,
    v1::{
        Ack, BindingReport, ChurnEvent, ChurnOfCause, ChurnReport, ClientReport, ClockReport, EndpointChange,
        GatewayReport, KeepaliveReport, KeyOnTwoMachines, NatReport, ReachReport, StandbyReport,
    },
};
use prost_types::{Duration, Timestamp};

/// Impairments in one report.
const MOST_IMPAIRMENTS: usize = 32;

/// Address translators that started anew, in one report.
const MOST_RESTARTS: usize = 64;

/// Causes of churn of one client: there are fewer.
const MOST_CAUSES: usize = 16;

/// Seconds that a clock can be wrong by: a machine that begins at 1970 is no farther off.
const MOST_SKEW: i64 = 100 * 366 * 86_400;

/// Bytes of the number of an agent's process.
const INSTANCE: usize = 16;

/// The farthest that one port is from another.
const PORTS: i32 = u16::MAX as i32;

/// Seconds that a replica's clock may be ahead.
const AHEAD_SECONDS: i64 = 300;

/// The report of a replica in `namespace`, at `now` (seconds since 1970).
pub(super) fn accepted(mut report: GatewayReport, namespace: &str, now: i64) -> GatewayReport {
    report.clients.retain_mut(|client| {
        let own =
            client.client.as_ref().is_some_and(|c| c.namespace == namespace && is_reference(&c.name, &c.uid));
        if own {
            clean_client(client, now);
        }
        own
    });
    report.impairments =
        bounds::impairments(std::mem::take(&mut report.impairments), MOST_IMPAIRMENTS, LONGEST_TEXT);
    report.nat_restarts.truncate(MOST_RESTARTS);
    report.nat_restarts.retain_mut(|restart| {
        restart.public_address = address(&restart.public_address);
        !restart.public_address.is_empty() && restart.at.is_some_and(|at| is_past(at, now))
    });
    report.path_proof_age = span(report.path_proof_age);
    report.sent_at = report.sent_at.filter(|at| is_past(*at, now));
    report
}

/// An acknowledgement that can be shown.
pub(super) fn accepted_ack(ack: Ack) -> Ack {
    let category = if bounds::is_category(&ack.category) || ack.category.is_empty() {
        ack.category
    } else {
        "Other".into()
    };
    Ack { error: printable(&ack.error), category, ..ack }
}

/// A text for people.
pub(super) fn printable(text: &str) -> String {
    pinhole_proto::printable(text, LONGEST_TEXT)
}

fn clean_client(client: &mut ClientReport, now: i64) {
    client.endpoint = endpoint(&client.endpoint);
    if client.instance.len() != INSTANCE {
        client.instance.clear();
    }
    client.last_handshake = client.last_handshake.filter(|t| is_past(*t, now));
    client.last_receive = client.last_receive.filter(|t| is_past(*t, now));
    client.endpoint_changes = bounds::count(client.endpoint_changes);
    client.last_change = client.last_change.take().map(|change| EndpointChange {
        at: change.at.filter(|t| is_past(*t, now)),
        from: endpoint(&change.from),
        to: endpoint(&change.to),
        idle: span(change.idle),
    });
    client.key_on_two_machines = client.key_on_two_machines.take().map(|shared| KeyOnTwoMachines {
        since: shared.since.filter(|t| is_past(*t, now)),
        first: endpoint(&shared.first),
        second: endpoint(&shared.second),
    });
    client.clock = client.clock.map(|clock| ClockReport {
        ahead_seconds: clock.ahead_seconds.clamp(-MOST_SKEW, MOST_SKEW),
        ..clock
    });
    client.impairments =
        bounds::impairments(std::mem::take(&mut client.impairments), MOST_OF_CLIENT, LONGEST_IMPAIRMENT);
    clean_measurements(client, now);
}

/// What was measured. Numbers of words stay as they are: whoever reads one names what is newer.
fn clean_measurements(client: &mut ClientReport, now: i64) {
    client.nat = client.nat.take().map(|nat| NatReport {
        public_address: address(&nat.public_address),
        port_delta: nat.port_delta.clamp(-PORTS, PORTS),
        ..nat
    });
    client.binding = client.binding.map(|binding| BindingReport {
        at_least: span(binding.at_least),
        less_than: span(binding.less_than),
        unpromoted: span(binding.unpromoted),
        promoted_after: span(binding.promoted_after),
        since: binding.since.filter(|t| is_past(*t, now)),
        ..binding
    });
    client.keepalive = client.keepalive.map(|keepalive| KeepaliveReport {
        interval: span(keepalive.interval),
        since: keepalive.since.filter(|t| is_past(*t, now)),
        wakes: bounds::count(keepalive.wakes),
        wakes_saved: bounds::difference(keepalive.wakes_saved),
        beats: bounds::count(keepalive.beats),
        probes: bounds::count(keepalive.probes),
        ..keepalive
    });
    client.recommended_keepalive = span(client.recommended_keepalive).filter(|d| d.seconds > 0);
    client.churn = client.churn.take().map(|churn| clean_churn(churn, now));
    client.last_rest = client.last_rest.filter(|t| is_past(*t, now));
    client.standby = client.standby.map(|standby| StandbyReport {
        interval: span(standby.interval),
        last_wake: within(standby.last_wake, LONGEST_TRIP),
        worst_wake: within(standby.worst_wake, LONGEST_TRIP),
        session_at_least: span(standby.session_at_least),
        session_less_than: span(standby.session_less_than),
        ..standby
    });
    client.reach = client.reach.map(|reach| ReachReport {
        proven: within(reach.proven, LONGEST_SUM),
        unproven: within(reach.unproven, LONGEST_SUM),
        longest_gap: span(reach.longest_gap),
    });
}

fn clean_churn(mut churn: ChurnReport, now: i64) -> ChurnReport {
    churn.causes.truncate(MOST_CAUSES);
    let causes = churn.causes.into_iter().map(|cause| ChurnOfCause {
        cause: cause.cause,
        count: bounds::count(cause.count),
        last: cause.last.map(|event| ChurnEvent {
            at: event.at.filter(|t| is_past(*t, now)),
            from: endpoint(&event.from),
            to: endpoint(&event.to),
            idle: span(event.idle),
        }),
    });
    ChurnReport {
        since: churn.since.filter(|t| is_past(*t, now)),
        count: bounds::count(churn.count),
        causes: causes.collect(),
    }
}

/// At most a week.
fn span(span: Option<Duration>) -> Option<Duration> {
    within(span, LONGEST_SPAN)
}

fn within(span: Option<Duration>, longest: std::time::Duration) -> Option<Duration> {
    bounds::span(span, longest).and_then(|span| span.try_into().ok())
}

fn address(text: &str) -> String {
    text.parse::<IpAddr>().map(|a| a.to_string()).unwrap_or_default()
}

fn endpoint(text: &str) -> String {
    text.parse::<SocketAddr>().map(|a| a.to_string()).unwrap_or_default()
}

fn is_past(time: Timestamp, now: i64) -> bool {
    time.seconds >= 0
        && time.seconds <= now.saturating_add(AHEAD_SECONDS)
        && (0..1_000_000_000).contains(&time.nanos)
}

fn is_reference(name: &str, uid: &str) -> bool {
    let is_uid = |uid: &str| uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_object_name(name) && (1..=64).contains(&uid.len()) && is_uid(uid)
}

#[cfg(test)]
mod tests {
    use pinhole_proto::v1::{Impairment, ObjectRef};
    use proptest::prelude::*;

    use super::*;

    fn client(namespace: &str, endpoint: &str) -> ClientReport {
        let client = ObjectRef { namespace: namespace.into(), name: "laptop-1".into(), uid: "u".into() };
        ClientReport { client: Some(client), endpoint: endpoint.into(), ..ClientReport::default() }
    }

    #[test]
    fn a_replica_speaks_of_clients_of_its_own_namespace_only() {
        let clients = vec![client("vpn", "192.0.2.1:40000"), client("other", ""), ClientReport::default()];
        let report = accepted(GatewayReport { clients, ..GatewayReport::default() }, "vpn", 0);
        assert_eq!(report.clients, [client("vpn", "192.0.2.1:40000")]);
    }

    #[test]
    fn what_is_no_endpoint_is_left_out() {
        let clients = vec![client("vpn", "\x1b[31mhello"), client("vpn", "[2001:db8::1]:1")];
        let report = accepted(GatewayReport { clients, ..GatewayReport::default() }, "vpn", 0);
        let endpoints: Vec<_> = report.clients.iter().map(|c| c.endpoint.as_str()).collect();
        assert_eq!(endpoints, ["", "[2001:db8::1]:1"]);
    }

    #[test]
    fn a_time_in_the_future_is_no_proof_of_a_receive() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let receive = |seconds| {
            let clients = vec![ClientReport { last_receive: at(seconds), ..client("vpn", "") }];
            accepted(GatewayReport { clients, ..GatewayReport::default() }, "vpn", 1000).clients[0]
                .last_receive
        };
        assert_eq!(receive(1000), at(1000));
        assert_eq!(receive(1000 + AHEAD_SECONDS + 1), None);
        assert_eq!(receive(-1), None);
    }

    #[test]
    fn no_clock_is_wrong_by_more_than_a_clock_can_be() {
        let skew = |ahead_seconds| {
            let clock = Some(ClockReport { ahead_seconds, handshakes: 0 });
            let clients = vec![ClientReport { clock, ..client("vpn", "") }];
            let report = accepted(GatewayReport { clients, ..GatewayReport::default() }, "vpn", 1000);
            report.clients[0].clock.unwrap().ahead_seconds
        };
        assert_eq!([-1800, i64::MIN, i64::MAX].map(skew), [-1800, -MOST_SKEW, MOST_SKEW]);
    }

    #[test]
    fn a_measurement_that_cannot_be_is_left_out_and_one_that_is_too_long_is_a_week() {
        let span = |seconds| Some(Duration { seconds, nanos: 0 });
        let binding =
            BindingReport { at_least: span(-1), less_than: span(i64::MAX), ..BindingReport::default() };
        let nat = NatReport { public_address: "\x1b[2J".into(), ..NatReport::default() };
        let report = ClientReport {
            binding: Some(binding),
            nat: Some(nat),
            recommended_keepalive: span(0),
            ..client("vpn", "")
        };
        let report = accepted(GatewayReport { clients: vec![report], ..GatewayReport::default() }, "vpn", 0);
        let client = &report.clients[0];
        let week = BindingReport { less_than: span(7 * 86_400), ..BindingReport::default() };
        assert_eq!((client.binding, client.recommended_keepalive), (Some(week), None));
        assert_eq!(client.nat, Some(NatReport::default()));
    }

    #[test]
    fn a_report_of_ten_thousand_clients_of_which_all_is_known_can_be_read() {
        let place = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".to_owned();
        let (at, idle) = (
            Some(Timestamp { seconds: 1 << 34, nanos: 999_999_999 }),
            Some(Duration { seconds: 1 << 19, nanos: 999_999_999 }),
        );
        let last = ChurnEvent { at, from: place.clone(), to: place.clone(), idle };
        let cause = ChurnOfCause { cause: 8, count: 1 << 40, last: Some(last) };
        let binding = BindingReport {
            at_least: idle,
            less_than: idle,
            unpromoted: idle,
            promoted_after: idle,
            confidence: 3,
            since: at,
            vantage: 1,
        };
        let standby = StandbyReport {
            reachable_by: 3,
            reason: 8,
            interval: idle,
            last_wake: idle,
            worst_wake: idle,
            session_at_least: idle,
            session_less_than: idle,
        };
        let report = ClientReport {
            client: Some(ObjectRef { namespace: "n".repeat(63), name: "c".repeat(63), uid: "u".repeat(36) }),
            last_handshake: at,
            last_receive: at,
            rx_bytes: u64::MAX,
            tx_bytes: u64::MAX,
            session: true,
            endpoint_changes: u64::MAX,
            last_change: Some(EndpointChange { at, from: place.clone(), to: place.clone(), idle }),
            nat: Some(NatReport { public_address: place.clone(), ..NatReport::default() }),
            binding: Some(binding),
            churn: Some(ChurnReport { since: at, count: u64::MAX, causes: vec![cause; 8] }),
            reach: Some(ReachReport { proven: idle, unproven: idle, longest_gap: idle }),
            standby: Some(standby),
            last_rest: at,
            key_on_two_machines: Some(KeyOnTwoMachines {
                since: at,
                first: place.clone(),
                second: place.clone(),
            }),
            impairments: vec![
                Impairment {
                    category: "C".repeat(64), message: "🕳".repeat(LONGEST_IMPAIRMENT)
                };
                MOST_OF_CLIENT
            ],
            ..client("vpn", &place)
        };
        let of_process = ClientReport {
            key_on_two_machines: None,
            instance: vec![1; INSTANCE],
            clock: Some(ClockReport { ahead_seconds: -MOST_SKEW, handshakes: 2 }),
            ..report.clone()
        };
        for client in [report, of_process] {
            let report = GatewayReport { clients: vec![client], ..GatewayReport::default() };
            let bytes = prost::Message::encoded_len(&report);
            assert!(bytes * 10_000 < crate::link::LARGEST_REPORT, "{bytes} a client");
        }
    }

    proptest! {
        #[test]
        fn nothing_unprintable_passes(category in ".{0,80}", message in any::<String>(), endpoint in any::<String>()) {
            let impairments = vec![Impairment { category, message }; 40];
            let key_on_two_machines =
                Some(KeyOnTwoMachines { first: endpoint.clone(), second: endpoint.clone(), since: None });
            let own = ClientReport { key_on_two_machines, ..client("vpn", &endpoint) };
            let clients = vec![ClientReport { impairments: impairments.clone(), ..own }];
            let report = GatewayReport { clients, impairments, ..GatewayReport::default() };
            let report = accepted(report, "vpn", 0);
            prop_assert!(report.impairments.len() <= MOST_IMPAIRMENTS);
            prop_assert!(report.clients[0].impairments.len() <= MOST_OF_CLIENT);
            for i in report.impairments.iter().chain(&report.clients[0].impairments) {
                prop_assert!(i.category.bytes().all(|b| b.is_ascii_alphanumeric()));
                prop_assert!(!i.message.chars().any(char::is_control) && i.message.chars().count() <= LONGEST_TEXT);
            }
            prop_assert!(!report.clients[0].endpoint.chars().any(char::is_control));
            let shared = report.clients[0].key_on_two_machines.clone().unwrap();
            prop_assert_eq!([&shared.first, &shared.second], [&report.clients[0].endpoint; 2]);
        }
    }
}
