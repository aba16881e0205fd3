//! Reports of a replica, cut down to what it may say. Pure.
//!
//! A gateway pod is exposed to the internet: what it reports ends in the status of objects and in people's
//! terminals, so nothing passes that has not the form it should have.

use std::net::{IpAddr, SocketAddr};

use pinhole_proto::{
    is_object_name,
    v1::{
        Ack, BindingReport, ChurnEvent, ChurnReport, ClientReport, EndpointChange, GatewayReport, Impairment,
        KeepaliveReport, NatReport, ReachReport, StandbyReport,
    },
};
use prost_types::{Duration, Timestamp};

/// Impairments in one report.
const MOST_IMPAIRMENTS: usize = 32;

/// Characters of a category and of a text.
const CATEGORY_CHARS: usize = 64;
const TEXT_CHARS: usize = 512;

/// Address translators that started anew, in one report.
const MOST_RESTARTS: usize = 64;

/// Causes of churn of one client: there are fewer.
const MOST_CAUSES: usize = 16;

/// The longest span that makes sense of a binding or a keepalive, seconds.
const LONGEST_SPAN: i64 = 86_400;

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
    report.impairments.truncate(MOST_IMPAIRMENTS);
    report.impairments.retain_mut(clean_impairment);
    report.nat_restarts.truncate(MOST_RESTARTS);
    report.nat_restarts.retain_mut(|restart| {
        restart.public_address = address(&restart.public_address);
        !restart.public_address.is_empty() && restart.at.is_some_and(|at| is_past(at, now))
    });
    report.path_proof_age = report.path_proof_age.filter(|age| age.seconds >= 0 && age.nanos >= 0);
    report
}

/// An acknowledgement that can be shown.
pub(super) fn accepted_ack(ack: Ack) -> Ack {
    let category =
        if is_category(&ack.category) || ack.category.is_empty() { ack.category } else { "Other".into() };
    Ack { error: printable(&ack.error), category, ..ack }
}

/// At most [`TEXT_CHARS`] characters, none of which moves a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    pinhole_proto::printable(text, TEXT_CHARS)
}

fn clean_client(client: &mut ClientReport, now: i64) {
    client.endpoint = endpoint(&client.endpoint);
    client.last_handshake = client.last_handshake.filter(|t| is_past(*t, now));
    client.last_receive = client.last_receive.filter(|t| is_past(*t, now));
    client.last_change = client.last_change.take().map(|change| EndpointChange {
        at: change.at.filter(|t| is_past(*t, now)),
        from: endpoint(&change.from),
        to: endpoint(&change.to),
        idle: change.idle.filter(|idle| idle.seconds >= 0 && idle.nanos >= 0),
    });
    clean_measurements(client, now);
}

fn clean_measurements(client: &mut ClientReport, now: i64) {
    client.nat =
        client.nat.take().map(|nat| NatReport { public_address: address(&nat.public_address), ..nat });
    client.binding = client.binding.map(|binding| BindingReport {
        at_least: binding.at_least.filter(is_span),
        less_than: binding.less_than.filter(is_span),
        unpromoted: binding.unpromoted.filter(is_span),
        promoted_after: binding.promoted_after.filter(is_span),
        since: binding.since.filter(|t| is_past(*t, now)),
        ..binding
    });
    client.keepalive = client.keepalive.map(|keepalive| KeepaliveReport {
        interval: keepalive.interval.filter(is_span),
        since: keepalive.since.filter(|t| is_past(*t, now)),
        ..keepalive
    });
    client.recommended_keepalive = client.recommended_keepalive.filter(is_span).filter(|d| d.seconds > 0);
    client.churn = client.churn.take().map(|churn| clean_churn(churn, now));
    client.last_rest = client.last_rest.filter(|t| is_past(*t, now));
    client.standby = client.standby.map(|standby| StandbyReport {
        interval: standby.interval.filter(is_span),
        last_wake: standby.last_wake.filter(is_span),
        worst_wake: standby.worst_wake.filter(is_span),
        session_at_least: standby.session_at_least.filter(is_span),
        session_less_than: standby.session_less_than.filter(is_span),
        ..standby
    });
    client.reach = client.reach.map(|reach| ReachReport {
        proven: reach.proven.filter(is_whole),
        unproven: reach.unproven.filter(is_whole),
        longest_gap: reach.longest_gap.filter(is_span),
    });
}

/// A sum of time, which may be that of years.
fn is_whole(duration: &Duration) -> bool {
    duration.seconds >= 0 && duration.nanos >= 0
}

fn clean_churn(mut churn: ChurnReport, now: i64) -> ChurnReport {
    churn.since = churn.since.filter(|t| is_past(*t, now));
    churn.causes.truncate(MOST_CAUSES);
    for cause in &mut churn.causes {
        cause.last = cause.last.take().map(|event| ChurnEvent {
            at: event.at.filter(|t| is_past(*t, now)),
            from: endpoint(&event.from),
            to: endpoint(&event.to),
            idle: event.idle.filter(|idle| idle.seconds >= 0 && idle.nanos >= 0),
        });
    }
    churn
}

fn is_span(span: &Duration) -> bool {
    (0..=LONGEST_SPAN).contains(&span.seconds) && (0..1_000_000_000).contains(&span.nanos)
}

fn address(text: &str) -> String {
    text.parse::<IpAddr>().map(|a| a.to_string()).unwrap_or_default()
}

fn clean_impairment(impairment: &mut Impairment) -> bool {
    impairment.message = printable(&impairment.message);
    is_category(&impairment.category)
}

fn endpoint(text: &str) -> String {
    text.parse::<SocketAddr>().map(|a| a.to_string()).unwrap_or_default()
}

fn is_past(time: Timestamp, now: i64) -> bool {
    time.seconds >= 0
        && time.seconds <= now.saturating_add(AHEAD_SECONDS)
        && (0..1_000_000_000).contains(&time.nanos)
}

fn is_category(text: &str) -> bool {
    (1..=CATEGORY_CHARS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_reference(name: &str, uid: &str) -> bool {
    let is_uid = |uid: &str| uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_object_name(name) && (1..=64).contains(&uid.len()) && is_uid(uid)
}

#[cfg(test)]
mod tests {
    use pinhole_proto::v1::ObjectRef;
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
    fn a_measurement_that_cannot_be_is_left_out() {
        let span = |seconds| Some(Duration { seconds, nanos: 0 });
        let binding = BindingReport {
            at_least: span(-1),
            less_than: span(LONGEST_SPAN + 1),
            ..BindingReport::default()
        };
        let nat = NatReport { public_address: "\x1b[2J".into(), ..NatReport::default() };
        let report = ClientReport {
            binding: Some(binding),
            nat: Some(nat),
            recommended_keepalive: span(0),
            ..client("vpn", "")
        };
        let report = accepted(GatewayReport { clients: vec![report], ..GatewayReport::default() }, "vpn", 0);
        let client = &report.clients[0];
        assert_eq!((client.binding, client.recommended_keepalive), (Some(BindingReport::default()), None));
        assert_eq!(client.nat, Some(NatReport::default()));
    }

    proptest! {
        #[test]
        fn nothing_unprintable_passes(category in ".{0,80}", message in any::<String>(), endpoint in any::<String>()) {
            let impairments = vec![Impairment { category, message }; 40];
            let report = GatewayReport { clients: vec![client("vpn", &endpoint)], impairments, ..GatewayReport::default() };
            let report = accepted(report, "vpn", 0);
            prop_assert!(report.impairments.len() <= MOST_IMPAIRMENTS);
            for i in &report.impairments {
                prop_assert!(i.category.bytes().all(|b| b.is_ascii_alphanumeric()));
                prop_assert!(!i.message.chars().any(char::is_control) && i.message.chars().count() <= TEXT_CHARS);
            }
            prop_assert!(!report.clients[0].endpoint.chars().any(char::is_control));
        }
    }
}
