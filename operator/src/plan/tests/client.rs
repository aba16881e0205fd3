use pinhole_crds::{CONNECTED, ClientPhase, READY, RECONCILING, STALLED, VPNClientStatus};
use pinhole_proto::v1::{EndpointChange, Phase};

use super::*;
use crate::{
    fleet::{ClientKey, ClientView, Sighting},
    ipam::Denied,
    plan::client::{Backing, StatusInputs, status},
};

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn agent(extra: &Value) -> VPNClient {
    let mut spec = json!({ "publicKey": KEY, "enrolment": { "method": "Token", "token": "first" } });
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    client(&spec)
}

fn sighting(phase: Phase) -> Sighting {
    Sighting {
        client: ClientKey::new("vpn", "laptop"),
        phase,
        endpoint: Some("198.51.100.9:4500".into()),
        last_handshake: Some(at(90)),
        last_receive: Some(at(95)),
        session: true,
        endpoint_changes: 0,
        last_change: None,
    }
}

fn heard(sighting: Sighting) -> ClientView {
    ClientView { sighting: Some(("edge-0".into(), sighting)), hearing: Hearing::Live }
}

fn unheard(hearing: Hearing) -> ClientView {
    ClientView { sighting: None, hearing }
}

/// A judge with everything as it should be.
struct Case {
    pool: VPNClientPool,
    gateway: VPNGateway,
    addresses: Vec<IpAddr>,
    denied: Option<Denied>,
    moves_seen: Option<u64>,
    now: i64,
}

impl Case {
    fn new() -> Self {
        Self {
            pool: pool("staff", 2, &["10.77.0.0/24"]),
            gateway: load_balancer(),
            addresses: vec![ip("10.77.0.9")],
            denied: None,
            moves_seen: None,
            now: 100,
        }
    }

    fn judge(&self, client: &VPNClient, view: &ClientView) -> VPNClientStatus {
        let inputs = StatusInputs {
            client,
            backing: Backing::Served(&self.pool, &self.gateway),
            addresses: &self.addresses,
            denied: self.denied.as_ref(),
            public_key: Some(KEY),
            key_error: None,
            key_twin: None,
            config_secret: None,
            view: Some(view),
            moves_seen: self.moves_seen,
            now: at(self.now),
        };
        status(&inputs).0
    }
}

fn connected(case: &Case) -> VPNClient {
    let mut client = agent(&json!({}));
    client.status = Some(case.judge(&client, &heard(sighting(Phase::Connected))));
    client
}

#[test]
fn a_client_is_what_a_gateway_that_can_be_heard_says() {
    for (phase, expected, reason, status) in [
        (Phase::Connected, ClientPhase::Connected, "ExchangeConfirmed", "True"),
        (Phase::Dormant, ClientPhase::Dormant, "Dormant", "False"),
        (Phase::WaitingToReconnect, ClientPhase::WaitingToReconnect, "WaitingToReconnect", "False"),
        (Phase::Disconnected, ClientPhase::Disconnected, "NeverConnected", "False"),
        (Phase::Unspecified, ClientPhase::Disconnected, "NeverConnected", "False"),
    ] {
        let made = Case::new().judge(&agent(&json!({})), &heard(sighting(phase)));
        assert_eq!(made.phase, Some(expected));
        assert_eq!(verdict(&made.conditions, CONNECTED), said(status, reason));
        assert_eq!(verdict(&made.conditions, READY), said("True", "Provisioned"));
    }
}

#[test]
fn when_reports_stop_nobody_knows_and_what_was_seen_stays() {
    let case = Case::new();
    let made = case.judge(&connected(&case), &unheard(Hearing::Silent));
    assert_eq!(made.phase, Some(ClientPhase::Unknown));
    assert_eq!(verdict(&made.conditions, CONNECTED), said("Unknown", "GatewaySilent"));
    assert_eq!(made.endpoint.as_deref(), Some("198.51.100.9:4500"));
    assert_eq!(made.replica.as_deref(), Some("edge-0"));
}

#[test]
fn a_new_leader_changes_nothing_before_it_has_listened() {
    let case = Case::new();
    let client = connected(&case);
    assert_eq!(Some(case.judge(&client, &unheard(Hearing::Waiting))), client.status);
}

#[test]
fn a_client_of_a_gateway_that_never_served_is_pending() {
    let made = Case::new().judge(&agent(&json!({})), &unheard(Hearing::Silent));
    assert_eq!(made.phase, Some(ClientPhase::Pending));
}

#[test]
fn a_new_client_is_pending_until_a_gateway_speaks_of_it_and_one_that_was_connected_is_disconnected() {
    let case = Case::new();
    let new = agent(&json!({}));
    let made = case.judge(&new, &unheard(Hearing::Live));
    assert_eq!(made.phase, Some(ClientPhase::Pending));
    assert_eq!(verdict(&made.conditions, CONNECTED), said("False", "Pending"));
    let never = Sighting {
        endpoint: None,
        last_handshake: None,
        last_receive: None,
        ..sighting(Phase::Disconnected)
    };
    let made = case.judge(&new, &heard(never));
    assert_eq!(made.phase, Some(ClientPhase::Disconnected));
    assert_eq!(verdict(&made.conditions, CONNECTED), said("False", "NeverConnected"));
    let made = case.judge(&connected(&case), &unheard(Hearing::Live));
    assert_eq!(made.phase, Some(ClientPhase::Disconnected));
}

#[test]
fn a_suspended_client_keeps_its_address_and_is_suspended_whatever_is_reported() {
    let made = Case::new().judge(&agent(&json!({ "suspended": true })), &heard(sighting(Phase::Connected)));
    assert_eq!(made.phase, Some(ClientPhase::Suspended));
    assert_eq!(made.addresses, [ip("10.77.0.9")]);
    assert_eq!(verdict(&made.conditions, CONNECTED), said("False", "Suspended"));
    assert_eq!(verdict(&made.conditions, READY), said("True", "Suspended"));
}

#[test]
fn an_expired_client_stalls_and_one_that_will_expire_is_looked_at_in_time() {
    let case = Case::new();
    let expired = agent(&json!({ "expiresAt": Time(at(100)) }));
    let made = case.judge(&expired, &heard(sighting(Phase::Connected)));
    assert_eq!(made.phase, Some(ClientPhase::Suspended));
    assert_eq!(verdict(&made.conditions, STALLED), said("True", "Expired"));
    let expiring = agent(&json!({ "expiresAt": Time(at(130)) }));
    let view = heard(sighting(Phase::Connected));
    let inputs = StatusInputs {
        client: &expiring,
        backing: Backing::Served(&case.pool, &case.gateway),
        addresses: &case.addresses,
        denied: None,
        public_key: Some(KEY),
        key_error: None,
        key_twin: None,
        config_secret: None,
        view: Some(&view),
        moves_seen: None,
        now: at(100),
    };
    let wait = status(&inputs).1.unwrap();
    assert!((30.0..31.0).contains(&wait.as_secs_f64()), "{wait:?}");
}

#[test]
fn a_denied_client_says_why_in_the_words_of_the_allocator() {
    let case = Case { addresses: vec![], denied: Some(Denied::Taken(ip("10.77.0.9"))), ..Case::new() };
    let made = case.judge(&agent(&json!({})), &unheard(Hearing::Live));
    assert_eq!(made.phase, Some(ClientPhase::Pending));
    assert_eq!(verdict(&made.conditions, STALLED), said("True", "AddressConflict"));
}

#[test]
fn what_is_missing_has_its_own_reason() {
    let pool = pool("staff", 2, &["10.77.0.0/24"]);
    for (backing, reason) in
        [(Backing::PoolNotFound, "PoolNotFound"), (Backing::GatewayNotFound(&pool), "GatewayNotFound")]
    {
        let client = agent(&json!({}));
        let inputs = StatusInputs {
            client: &client,
            backing,
            addresses: &[],
            denied: None,
            public_key: Some(KEY),
            key_error: None,
            key_twin: None,
            config_secret: None,
            view: None,
            moves_seen: None,
            now: at(100),
        };
        let made = status(&inputs).0;
        assert_eq!(verdict(&made.conditions, RECONCILING), said("True", reason));
        assert_eq!(made.phase, Some(ClientPhase::Pending));
    }
}

#[test]
fn a_rekey_is_no_reason_to_write_and_ten_minutes_are() {
    let case = Case::new();
    let client = connected(&case);
    let later =
        |handshake| heard(Sighting { last_handshake: Some(at(handshake)), ..sighting(Phase::Connected) });
    assert_eq!(Some(case.judge(&client, &later(210))), client.status);
    let coarse = case.judge(&client, &later(90 + 600));
    assert_eq!(coarse.last_handshake.unwrap().0, at(690));
}

#[test]
fn a_handshake_time_goes_along_when_something_else_is_written() {
    let case = Case::new();
    let client = connected(&case);
    let moved = Sighting {
        last_handshake: Some(at(99)),
        endpoint: Some("198.51.100.9:4501".into()),
        ..sighting(Phase::Connected)
    };
    assert_eq!(case.judge(&client, &heard(moved)).last_handshake.unwrap().0, at(99));
}

#[test]
fn moves_are_counted_across_restarts_of_gateway_and_operator() {
    let mut case = Case::new();
    let mut client = connected(&case);
    let moved = |count, second| {
        heard(Sighting {
            endpoint_changes: count,
            last_change: Some(EndpointChange {
                at: Some(prost_types::Timestamp { seconds: second, nanos: 7 }),
                from: "198.51.100.9:1".into(),
                to: "198.51.100.9:2".into(),
                idle: Some(prost_types::Duration { seconds: 31, nanos: 0 }),
            }),
            ..sighting(Phase::Connected)
        })
    };
    let mut count = |case: &Case, view: &ClientView| {
        client.status = Some(case.judge(&client, view));
        client.status.as_ref().unwrap().churn.clone().unwrap().count
    };
    assert_eq!(count(&case, &moved(1, 200)), 1);
    assert_eq!(count(&case, &moved(1, 200)), 1, "the same move again");
    case.moves_seen = Some(1);
    assert_eq!(count(&case, &moved(4, 210)), 4);
    case.moves_seen = Some(4);
    assert_eq!(count(&case, &moved(2, 220)), 6, "the replica started anew");
    case.moves_seen = None;
    assert_eq!(count(&case, &moved(3, 230)), 7, "the operator started anew");
}

#[test]
fn the_same_inputs_later_make_the_same_status() {
    let mut case = Case::new();
    let client = connected(&case);
    case.now = 5000;
    assert_eq!(Some(case.judge(&client, &heard(sighting(Phase::Connected)))), client.status);
}
