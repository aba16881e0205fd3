//! Statuses of clients.

use pinhole_crds::{
    CLOCK_SKEW, CONNECTED, ClientPhase, DEGRADED, KEY_ON_TWO_MACHINES, PARTIALLY_INVALID, READY, RECONCILING,
    STALLED, Unread, VPNClientStatus,
};
use pinhole_proto::{
    bounds::{NEWER, Word},
    v1::{
        ChurnCause, ChurnEvent, ChurnOfCause, ChurnReport, ClockReport, HandshakeFate, Impairment,
        KeepaliveReason, KeepaliveReport, KeyOnTwoMachines, Phase, StandbyReason, StandbyReport,
        keepalive_policy::{Mode, Standby},
    },
};

use super::*;
use crate::{
    fleet::{ClientKey, ClientView, Place, SharedKey, Sighting},
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
        phase: Word::Known(phase),
        endpoint: Some("198.51.100.9:4500".into()),
        last_handshake: Some(at(90)),
        last_receive: Some(at(95)),
        session: true,
        nat: None,
        binding: None,
        keepalive: None,
        churn: ChurnReport::default(),
        recommended_keepalive: None,
        standby: None,
        last_rest: None,
        reach: None,
        key_on_two_machines: None,
        clock: None,
        hears_nothing: false,
        impairments: Vec::new(),
    }
}

fn churn(count: u64, cause: ChurnCause, second: i64) -> ChurnReport {
    let last = ChurnEvent {
        at: Some(prost_types::Timestamp { seconds: second, nanos: 7 }),
        from: "198.51.100.9:1".into(),
        to: "198.51.100.9:2".into(),
        idle: Some(prost_types::Duration { seconds: 31, nanos: 0 }),
    };
    let causes = vec![ChurnOfCause { cause: cause.into(), count, last: Some(last) }];
    ChurnReport { since: None, count, causes }
}

fn heard(sighting: Sighting) -> ClientView {
    ClientView { sighting: Some(("edge-0".into(), sighting)), hearing: Hearing::Live, shared: None }
}

fn unheard(hearing: Hearing) -> ClientView {
    ClientView { sighting: None, hearing, shared: None }
}

/// A judge with everything as it should be.
struct Case {
    pool: VPNClientPool,
    gateway: VPNGateway,
    addresses: Vec<IpAddr>,
    denied: Option<Denied>,
    moves_seen: Option<u64>,
    written_ago: Option<Duration>,
    now: i64,
}

/// Of a client with its key, of which nothing was heard.
fn inputs_of<'a>(client: &'a VPNClient, backing: Backing<'a>, addresses: &'a [IpAddr]) -> StatusInputs<'a> {
    StatusInputs {
        client,
        backing,
        addresses,
        denied: None,
        public_key: Some(KEY),
        key_error: None,
        key_twin: None,
        config_secret: None,
        view: None,
        moves_seen: None,
        written_ago: None,
        unread: &[],
        now: at(100),
    }
}

impl Case {
    fn new() -> Self {
        Self {
            pool: pool("staff", 2, &["10.77.0.0/24"]),
            gateway: load_balancer(),
            addresses: vec![ip("10.77.0.9")],
            denied: None,
            moves_seen: None,
            written_ago: None,
            now: 100,
        }
    }

    fn judge(&self, client: &VPNClient, view: &ClientView) -> VPNClientStatus {
        let inputs = StatusInputs {
            denied: self.denied.as_ref(),
            view: Some(view),
            moves_seen: self.moves_seen,
            written_ago: self.written_ago,
            now: at(self.now),
            ..inputs_of(client, Backing::Served(&self.pool, &self.gateway), &self.addresses)
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
    let backing = Backing::Served(&case.pool, &case.gateway);
    let inputs = StatusInputs { view: Some(&view), ..inputs_of(&expiring, backing, &case.addresses) };
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
        let inputs = inputs_of(&client, backing, &[]);
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
            churn: churn(count, ChurnCause::MappingChanged, second),
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

#[test]
fn a_cause_that_is_known_better_later_is_corrected_and_not_counted_again() {
    let mut case = Case::new();
    let mut client = connected(&case);
    let moved = |cause| heard(Sighting { churn: churn(1, cause, 200), ..sighting(Phase::Connected) });
    client.status = Some(case.judge(&client, &moved(ChurnCause::Unknown)));
    case.moves_seen = Some(1);
    let made = case.judge(&client, &moved(ChurnCause::NatRestart)).churn.unwrap();
    assert_eq!((made.count, made.last_cause), (1, Some(pinhole_crds::ChurnCause::NATRestart)));
    assert_eq!((made.from.as_deref(), made.to.as_deref()), (Some("198.51.100.9:1"), Some("198.51.100.9:2")));
}

fn learnt(seconds: u64, reason: KeepaliveReason, saved: i64) -> Sighting {
    let keepalive = KeepaliveReport {
        interval: prost_types::Duration::try_from(Duration::from_secs(seconds)).ok(),
        mode: Mode::Adaptive.into(),
        reason: reason.into(),
        wakes_saved: saved,
        ..KeepaliveReport::default()
    };
    Sighting { keepalive: Some(keepalive), ..sighting(Phase::Connected) }
}

fn asleep(interval: u64, wake: u64, rested: i64) -> Sighting {
    let span = |millis| prost_types::Duration::try_from(Duration::from_millis(millis)).ok();
    let standby = StandbyReport {
        reachable_by: Standby::Session.into(),
        reason: StandbyReason::CheaperBySession.into(),
        interval: span(interval * 1000),
        last_wake: span(wake),
        worst_wake: span(wake),
        session_at_least: span(interval * 1020),
        session_less_than: None,
    };
    Sighting { standby: Some(standby), last_rest: Some(at(rested)), ..sighting(Phase::Standby) }
}

#[test]
fn who_sleeps_is_called_so_with_its_last_proof_and_how_long_a_wake_takes() {
    let case = Case::new();
    let mut client = connected(&case);
    client.status = Some(case.judge(&client, &heard(asleep(1700, 140, 200))));
    let status = client.status.clone().unwrap();
    assert_eq!(status.phase, Some(ClientPhase::Standby));
    let connected = status.conditions.iter().find(|c| c.type_ == CONNECTED).unwrap();
    assert_eq!((connected.status.as_str(), connected.reason.as_str()), ("False", "Standby"));
    let standby = status.standby.unwrap();
    assert_eq!(
        (standby.interval.unwrap().to_string().as_str(), standby.reason.as_str()),
        ("28m20s", "CheaperBySession")
    );
    assert_eq!(standby.last_proven.unwrap().0, at(200));
    assert_eq!(standby.worst_wake.unwrap().to_string(), "140ms");
    // A newer proof alone is written now and then only.
    assert_eq!(Some(case.judge(&client, &heard(asleep(1700, 140, 790)))), client.status);
    let later = case.judge(&client, &heard(asleep(1700, 140, 801))).standby.unwrap();
    assert_eq!(later.last_proven.unwrap().0, at(801));
    // A replica of an older version says nothing of it: what was known stays.
    let older = case.judge(&client, &heard(sighting(Phase::Connected)));
    assert_eq!((older.phase, older.standby), (Some(ClientPhase::Connected), client.status.unwrap().standby));
}

#[test]
fn an_interval_that_wobbles_and_savings_that_grow_are_no_reason_to_write() {
    let case = Case::new();
    let mut client = connected(&case);
    client.status = Some(case.judge(&client, &heard(learnt(110, KeepaliveReason::Learnt, 1000))));
    let keepalive = client.status.as_ref().unwrap().keepalive.clone().unwrap();
    assert_eq!((keepalive.interval.to_string().as_str(), keepalive.reason.as_str()), ("1m50s", "Learnt"));
    assert_eq!(keepalive.wakes_saved, Some(1000));
    for (interval, saved) in [(108, 1001), (113, 1500), (112, 1999)] {
        let again = case.judge(&client, &heard(learnt(interval, KeepaliveReason::Learnt, saved)));
        assert_eq!(Some(again), client.status);
    }
    let other = case.judge(&client, &heard(learnt(60, KeepaliveReason::Backoff, 1002))).keepalive.unwrap();
    assert_eq!((other.interval.to_string().as_str(), other.reason.as_str()), ("1m", "Backoff"));
}

#[test]
fn measurements_that_grow_are_written_at_most_every_few_seconds_and_a_reason_at_once() {
    let mut case = Case::new();
    let mut client = connected(&case);
    client.status = Some(case.judge(&client, &heard(learnt(10, KeepaliveReason::Learning, 0))));
    case.written_ago = Some(Duration::from_secs(2));
    let growing = heard(learnt(20, KeepaliveReason::Learning, 0));
    assert_eq!(Some(case.judge(&client, &growing)), client.status);
    let learnt = case.judge(&client, &heard(learnt(20, KeepaliveReason::Learnt, 0)));
    assert_eq!(learnt.keepalive.unwrap().interval.0, Duration::from_secs(20));
    case.written_ago = Some(Duration::from_mins(1));
    assert_ne!(Some(case.judge(&client, &growing)), client.status);
}

#[test]
fn a_policy_that_the_agent_does_not_follow_yet_is_shown_as_configured() {
    let mut case = Case::new();
    case.pool.spec.keepalive = serde_json::from_value(json!({ "mode": "Fixed", "interval": "30s" })).unwrap();
    let made = case.judge(&agent(&json!({})), &heard(learnt(110, KeepaliveReason::Learnt, 9)));
    let keepalive = made.keepalive.unwrap();
    assert_eq!((keepalive.interval.to_string().as_str(), keepalive.reason.as_str()), ("30s", "Policy"));
}

#[test]
fn a_stock_client_is_given_what_its_gateway_observed_within_the_policy_and_with_hysteresis() {
    let case = Case::new();
    let mut stock = client(&json!({}));
    let recommended = |seconds: Option<u64>| {
        heard(Sighting {
            recommended_keepalive: seconds.map(Duration::from_secs),
            ..sighting(Phase::Connected)
        })
    };
    let mut told = |seconds| {
        stock.status = Some(case.judge(&stock, &recommended(seconds)));
        let keepalive = stock.status.as_ref().unwrap().keepalive.clone().unwrap();
        (keepalive.interval.0.as_secs(), keepalive.reason)
    };
    assert_eq!(told(None), (25, "Initial".into()));
    assert_eq!(told(Some(100)), (100, "GatewayObserved".into()));
    assert_eq!(told(Some(120)), (100, "GatewayObserved".into()), "not worth a new configuration");
    assert_eq!(told(Some(92)), (100, "GatewayObserved".into()), "not worth a new configuration");
    assert_eq!(told(Some(80)), (80, "GatewayObserved".into()));
    assert_eq!(told(None), (80, "GatewayObserved".into()), "the replica started anew");
    assert_eq!(told(Some(9000)), (3600, "GatewayObserved".into()), "the policy's own bound");
}

#[test]
fn words_that_are_newer_than_the_operator_are_named_as_that_and_end_nothing() {
    let case = Case::new();
    let mut client = connected(&case);
    let keepalive = KeepaliveReport {
        interval: Some(prost_types::Duration { seconds: 40, nanos: 0 }),
        mode: Mode::Adaptive.into(),
        reason: 99,
        ..KeepaliveReport::default()
    };
    let standby = StandbyReport { reachable_by: 99, reason: 99, ..StandbyReport::default() };
    let newer = Sighting {
        phase: Word::Newer(99),
        keepalive: Some(keepalive),
        standby: Some(standby),
        ..sighting(Phase::Connected)
    };
    client.status = Some(case.judge(&client, &heard(newer)));
    let made = client.status.unwrap();
    assert_eq!(made.phase, Some(ClientPhase::Connected), "it stays what it was");
    assert_eq!(
        (made.keepalive.unwrap().reason.as_str(), made.standby.unwrap().reason.as_str()),
        (NEWER, NEWER)
    );
}

#[test]
fn what_is_not_understood_of_a_client_is_said_and_takes_nothing_from_it() {
    let client = client(&json!({ "publicKey": KEY, "enrolment": { "method": "Token" } }));
    let unread = ["spec.keepalive.mode", "status.phase"].map(|path| Unread {
        path: path.into(),
        why: "unknown variant `Predictive`".into(),
        kept: false,
    });
    let (pool, gateway) = (pool("staff", 2, &["10.77.0.0/24"]), load_balancer());
    let addresses = [ip("10.77.0.9")];
    let backing = Backing::Served(&pool, &gateway);
    let status = status(&StatusInputs { unread: &unread, ..inputs_of(&client, backing, &addresses) }).0;
    assert_eq!(verdict(&status.conditions, READY).0, "True");
    assert_eq!(verdict(&status.conditions, PARTIALLY_INVALID), said("True", "FieldNotUnderstood"));
    let said = status.conditions.iter().find(|c| c.type_ == PARTIALLY_INVALID).unwrap();
    for part in ["spec.keepalive.mode", "Predictive", "is left out", "upgrade the operator"] {
        assert!(said.message.contains(part), "{}", said.message);
    }
    assert!(!said.message.contains("status.phase"), "that is the operator's own to write");
    assert_eq!(status.addresses, addresses);
}

#[test]
fn one_key_on_two_machines_is_named_with_both_places_and_a_remedy_until_it_is_over() {
    let case = Case::new();
    let shared = KeyOnTwoMachines {
        since: Some(prost_types::Timestamp { seconds: 90, nanos: 0 }),
        first: "198.51.100.9:4500".into(),
        second: "203.0.113.5:4501".into(),
    };
    let seen = Sighting { key_on_two_machines: Some(shared), ..sighting(Phase::Connected) };
    let said = |status: &VPNClientStatus| {
        status.conditions.iter().find(|c| c.type_ == KEY_ON_TWO_MACHINES).map(|c| c.message.clone())
    };
    let mut own = agent(&json!({}));
    own.status = Some(case.judge(&own, &heard(sighting(Phase::Connected))));
    assert_eq!(said(own.status.as_ref().unwrap()), None);
    let named = case.judge(&own, &heard(seen.clone()));
    let text = said(&named).unwrap();
    for part in ["198.51.100.9:4500 and 203.0.113.5:4501", "pinhole up --new-key"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(named.phase, Some(ClientPhase::Connected));
    own.status = Some(named.clone());
    let elsewhere = Sighting { endpoint: Some("203.0.113.5:4501".into()), ..seen };
    assert_eq!(case.judge(&own, &heard(elsewhere)), named, "it is not written again for every packet");
    assert_eq!(said(&case.judge(&own, &unheard(Hearing::Silent))), Some(text), "nobody knows any better");
    assert_eq!(said(&case.judge(&own, &heard(sighting(Phase::Connected)))), None);

    let stock = client(&json!({}));
    let anywhere = KeyOnTwoMachines::default();
    let seen = Sighting { key_on_two_machines: Some(anywhere), ..sighting(Phase::Connected) };
    let text = said(&case.judge(&stock, &heard(seen))).unwrap();
    assert!(text.contains("a VPNClient for each machine") && !text.contains(" at ,"), "{text}");
}

#[test]
fn one_key_on_two_machines_at_two_replicas_is_named_with_both_and_written_once() {
    let case = Case::new();
    let mut own = agent(&json!({}));
    own.status = Some(case.judge(&own, &heard(sighting(Phase::Connected))));
    let place =
        |replica: &str, endpoint: &str| Place { replica: replica.into(), endpoint: Some(endpoint.into()) };
    let places = [place("edge-0", "198.51.100.9:4500"), place("edge-1", "203.0.113.5:4501")];
    let by = |replica: &str, endpoint: &str| ClientView {
        sighting: Some((
            replica.into(),
            Sighting { endpoint: Some(endpoint.into()), ..sighting(Phase::Connected) },
        )),
        hearing: Hearing::Live,
        shared: Some(SharedKey { places: places.clone() }),
    };
    let named = case.judge(&own, &by("edge-1", "203.0.113.5:4501"));
    let text = &named.conditions.iter().find(|c| c.type_ == KEY_ON_TWO_MACHINES).unwrap().message;
    for part in [
        "198.51.100.9:4500 with gateway replica edge-0",
        "203.0.113.5:4501 with gateway replica edge-1",
        "--new-key",
    ] {
        assert!(text.contains(part), "{text}");
    }
    own.status = Some(named.clone());
    assert_eq!(case.judge(&own, &by("edge-0", "198.51.100.9:4500")), named);
    let over = case.judge(&own, &heard(sighting(Phase::Connected)));
    assert!(over.conditions.iter().all(|c| c.type_ != KEY_ON_TWO_MACHINES));
}

#[test]
fn a_client_that_hears_nothing_is_told_apart_from_one_that_comes_back() {
    for (hears_nothing, reason) in [(true, "HearsNothing"), (false, "WaitingToReconnect")] {
        let seen = Sighting { hears_nothing, ..sighting(Phase::WaitingToReconnect) };
        let made = Case::new().judge(&agent(&json!({})), &heard(seen));
        assert_eq!(verdict(&made.conditions, CONNECTED), said("False", reason));
    }
}

#[test]
fn a_clock_that_is_wrong_is_said_by_about_how_much_and_what_follows_until_it_is_right() {
    let case = Case::new();
    let clock = |ahead_seconds, handshakes: HandshakeFate| {
        let clock = Some(ClockReport { ahead_seconds, handshakes: handshakes.into() });
        Sighting { clock, ..sighting(Phase::Connected) }
    };
    let shown = |seen| {
        let status = case.judge(&client(&json!({})), &heard(seen));
        let skew = status.conditions.iter().find(|c| c.type_ == CLOCK_SKEW);
        (status.phase, skew.map(|c| (c.reason.clone(), c.message.clone())))
    };
    for (seconds, handshakes, reason, part) in [
        (-1800, HandshakeFate::Unspecified, "Behind", "about 30 minutes behind its gateway's"),
        (-1815, HandshakeFate::Unspecified, "Behind", "about 30 minutes behind its gateway's"),
        (400 * 86_400, HandshakeFate::Unspecified, "Ahead", "about 400 days ahead of its gateway's"),
        (0, HandshakeFate::CalledBack, "WentBack", "calls it instead"),
        (0, HandshakeFate::Dropped, "HandshakesDropped", "`kubectl pinhole resume laptop`"),
        (-7200, HandshakeFate::Dropped, "HandshakesDropped", "Set its clock"),
    ] {
        let (phase, skew) = shown(clock(seconds, handshakes));
        let (said, message) = skew.unwrap();
        assert_eq!((phase, said.as_str()), (Some(ClientPhase::Connected), reason));
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(shown(sighting(Phase::Connected)).1, None);
    let newer = ClockReport { ahead_seconds: 0, handshakes: 99 };
    assert_eq!(shown(Sighting { clock: Some(newer), ..sighting(Phase::Connected) }).1, None);
    let mut own = agent(&json!({}));
    own.status = Some(case.judge(&own, &heard(clock(-1800, HandshakeFate::Unspecified))));
    let silent = case.judge(&own, &unheard(Hearing::Silent));
    assert!(silent.conditions.iter().any(|c| c.type_ == CLOCK_SKEW), "nobody knows any better");
}

#[test]
fn a_client_whose_machine_lacks_what_its_pool_promises_is_degraded_and_says_what() {
    let case = Case::new();
    let message = "172.17.0.0/16 stays with docker0";
    let impairments = vec![Impairment { category: "RouteConflict".into(), message: message.into() }];
    let seen = Sighting { impairments, ..sighting(Phase::Connected) };
    let mut own = agent(&json!({}));
    let degraded = case.judge(&own, &heard(seen.clone()));
    assert_eq!(degraded.phase, Some(ClientPhase::Degraded));
    assert_eq!(verdict(&degraded.conditions, CONNECTED), said("False", "Degraded"));
    assert_eq!(verdict(&degraded.conditions, DEGRADED), said("True", "RouteConflict"));
    assert_eq!(degraded.conditions.iter().find(|c| c.type_ == DEGRADED).unwrap().message, message);
    own.status = Some(degraded.clone());
    let kept = case.judge(&own, &unheard(Hearing::Silent)).conditions;
    assert_eq!(verdict(&kept, DEGRADED), said("True", "RouteConflict"), "nobody knows any better");
    let lost = case.judge(&own, &heard(Sighting { phase: Word::Known(Phase::Dormant), ..seen }));
    assert_eq!(lost.phase, Some(ClientPhase::Dormant));
    let mended = case.judge(&own, &heard(sighting(Phase::Connected)));
    assert_eq!(mended.phase, Some(ClientPhase::Connected));
    assert!([lost, mended].iter().all(|status| status.conditions.iter().all(|c| c.type_ != DEGRADED)));
}
