//! Reports of a replica, cut down to what it may say. Pure.
//!
//! A gateway pod is exposed to the internet: what it reports ends in the status of objects and in people's
//! terminals, so nothing passes that has not the form it should have.

use std::net::SocketAddr;

use pinhole_proto::v1::{Ack, ClientReport, EndpointChange, GatewayReport, Impairment};
use prost_types::Timestamp;

/// Impairments in one report.
const MOST_IMPAIRMENTS: usize = 32;

/// Characters of a category and of a text.
const CATEGORY_CHARS: usize = 64;
const TEXT_CHARS: usize = 512;

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
    text.chars().take(TEXT_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
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
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&name.len())
        && name.bytes().all(allowed)
        && (1..=64).contains(&uid.len())
        && uid.is_ascii()
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
