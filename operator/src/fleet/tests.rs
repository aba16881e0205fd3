//! Revisions, silence, and whose word counts.

use pinhole_proto::v1::{ClientReport, NatRestart, ObjectRef, Peer, Phase};

use super::*;

fn gateway() -> GatewayKey {
    GatewayKey::new("vpn", "edge")
}

fn report(uid: &str, phase: Phase, received: Option<i64>) -> GatewayReport {
    GatewayReport {
        clients: vec![ClientReport {
            client: Some(ObjectRef { namespace: "vpn".into(), name: format!("c-{uid}"), uid: uid.into() }),
            phase: phase.into(),
            last_receive: received.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
            ..ClientReport::default()
        }],
        ..GatewayReport::default()
    }
}

fn taken(fleet: &Fleet) -> BTreeSet<Change> {
    std::mem::take(&mut fleet.lock().changes)
}

#[test]
fn a_revision_grows_only_when_the_content_changes() {
    let fleet = Fleet::new(Instant::now());
    let seen = fleet.desired(&gateway(), "edge-0");
    let revision = || seen.borrow().as_ref().map(|d| d.revision).unwrap();
    fleet.publish(
        std::time::SystemTime::now(),
        &gateway(),
        "edge-0",
        DesiredState { mtu: 1420, ..DesiredState::default() },
    );
    let first = revision();
    fleet.publish(
        std::time::SystemTime::now(),
        &gateway(),
        "edge-0",
        DesiredState { mtu: 1420, ..DesiredState::default() },
    );
    assert_eq!(revision(), first);
    let peers = vec![Peer::default()];
    fleet.publish(
        std::time::SystemTime::now(),
        &gateway(),
        "edge-0",
        DesiredState { mtu: 1420, peers, ..DesiredState::default() },
    );
    assert_eq!(revision(), first + 1);
}

#[test]
fn a_replica_that_ran_a_later_revision_is_given_a_still_later_one() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    fleet.publish(std::time::SystemTime::now(), &gateway(), "edge-0", DesiredState::default());
    let _attachment = fleet.attached(&gateway(), "edge-0", 1 << 60, now);
    assert_eq!(fleet.desired(&gateway(), "edge-0").borrow().as_ref().unwrap().revision, (1 << 60) + 1);
}

#[test]
fn the_most_recent_receive_wins_among_replicas() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let (a, b) = (fleet.attached(&gateway(), "edge-0", 0, now), fleet.attached(&gateway(), "edge-1", 0, now));
    a.report(report("1", Phase::Connected, Some(100)), now);
    b.report(report("1", Phase::Disconnected, None), now);
    assert_eq!(fleet.client(&gateway(), "1", None, now).sighting.unwrap().0, "edge-0");
    b.report(report("1", Phase::Connected, Some(101)), now);
    assert_eq!(fleet.client(&gateway(), "1", None, now).sighting.unwrap().0, "edge-1");
}

#[test]
fn silence_means_nothing_until_the_operator_listened_long_enough() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    assert_eq!(fleet.client(&gateway(), "1", Some("edge-0"), now).hearing, Hearing::Waiting);
    assert_eq!(fleet.client(&gateway(), "1", Some("edge-0"), now + SILENT_AFTER).hearing, Hearing::Silent);
}

#[test]
fn a_live_replica_does_not_speak_for_a_silent_one() {
    let start = Instant::now();
    let fleet = Fleet::new(start);
    let later = start + SILENT_AFTER * 2;
    fleet.publish(std::time::SystemTime::now(), &gateway(), "edge-0", DesiredState::default());
    let live = fleet.attached(&gateway(), "edge-1", 0, later);
    live.report(report("1", Phase::Disconnected, None), later);
    let view = fleet.client(&gateway(), "1", Some("edge-0"), later);
    assert_eq!(view, ClientView { sighting: None, hearing: Hearing::Silent, shared: None });
}

#[test]
fn a_replica_that_falls_silent_is_told_once_with_all_its_clients() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let attachment = fleet.attached(&gateway(), "edge-0", 0, now);
    attachment.report(report("1", Phase::Connected, Some(1)), now);
    taken(&fleet);
    fleet.handle_timeout(now + SILENT_AFTER / 2);
    assert!(taken(&fleet).is_empty());
    fleet.handle_timeout(now + SILENT_AFTER);
    let all = BTreeSet::from([Change::Gateway(gateway()), Change::Client(ClientKey::new("vpn", "c-1"))]);
    assert_eq!(taken(&fleet), all);
    fleet.handle_timeout(now + SILENT_AFTER * 2);
    assert!(taken(&fleet).is_empty());
    attachment.report(GatewayReport::default(), now + SILENT_AFTER * 3);
    assert_eq!(taken(&fleet), all, "and once when it speaks again");
}

#[test]
fn a_report_without_news_changes_nothing() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let attachment = fleet.attached(&gateway(), "edge-0", 0, now);
    attachment.report(report("1", Phase::Connected, Some(1)), now);
    taken(&fleet);
    attachment.report(report("1", Phase::Connected, Some(2)), now);
    assert!(taken(&fleet).is_empty());
    attachment.report(report("1", Phase::Dormant, Some(2)), now);
    assert_eq!(taken(&fleet).len(), 1);
}

#[test]
fn an_older_stream_of_a_replica_cannot_speak_over_a_newer_one() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let old = fleet.attached(&gateway(), "edge-0", 0, now);
    let new = fleet.attached(&gateway(), "edge-0", 0, now);
    new.report(report("1", Phase::Connected, Some(5)), now);
    old.report(report("1", Phase::Disconnected, Some(9)), now);
    drop(old);
    let view = fleet.client(&gateway(), "1", None, now);
    assert_eq!(view.sighting.unwrap().1.phase.known(), Some(Phase::Connected));
    assert!(fleet.view(&gateway(), now).replicas["edge-0"].attached);
}

#[test]
fn a_full_report_forgets_clients_that_it_does_not_name() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let attachment = fleet.attached(&gateway(), "edge-0", 0, now);
    attachment.report(report("1", Phase::Connected, Some(1)), now);
    taken(&fleet);
    attachment.report(GatewayReport { full: true, ..GatewayReport::default() }, now);
    assert_eq!(fleet.client(&gateway(), "1", None, now).sighting, None);
    assert_eq!(taken(&fleet).len(), 1);
}

#[test]
fn a_time_out_of_range_is_no_time() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let attachment = fleet.attached(&gateway(), "edge-0", 0, now);
    attachment.report(report("1", Phase::Connected, Some(i64::MAX)), now);
    assert_eq!(fleet.client(&gateway(), "1", None, now).sighting.unwrap().1.last_receive, None);
}

#[test]
fn a_stronger_proof_counts_as_long_as_it_is_fresh() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let attachment = fleet.attached(&gateway(), "edge-0", 0, now);
    let proven = |kind: pinhole_proto::v1::PathProof| GatewayReport {
        path_proof: kind.into(),
        path_proof_age: Some(prost_types::Duration::default()),
        ..GatewayReport::default()
    };
    let kind = |at| fleet.view(&gateway(), at).replicas["edge-0"].proof.unwrap().kind;
    attachment.report(proven(pinhole_proto::v1::PathProof::ClientTraffic), now);
    let later = now + PROOF_FRESH / 2;
    attachment.report(proven(pinhole_proto::v1::PathProof::PodAddress), later);
    assert_eq!(kind(later), pinhole_crds::PathProof::ClientTraffic);
    assert_eq!(kind(now + PROOF_FRESH), pinhole_crds::PathProof::PodAddress);
}

#[test]
fn a_client_that_no_replica_has_seen_is_known_to_be_unseen_while_one_reports() {
    let start = Instant::now();
    let fleet = Fleet::new(start);
    let later = start + SILENT_AFTER;
    assert_eq!(fleet.client(&gateway(), "1", None, later).hearing, Hearing::Silent);
    let _live = fleet.attached(&gateway(), "edge-0", 0, later);
    assert_eq!(fleet.client(&gateway(), "1", None, later).hearing, Hearing::Live);
    assert_eq!(fleet.client(&gateway(), "1", Some("edge-7"), later).hearing, Hearing::Live);
}

#[test]
fn a_restarted_nat_is_news_once_however_its_date_wobbles() {
    let now = Instant::now();
    let fleet = Fleet::new(now);
    let replica = fleet.attached(&gateway(), "edge-0", 0, now);
    taken(&fleet);
    let restarted = |seconds, nanos| {
        let at = Some(prost_types::Timestamp { seconds, nanos });
        let restart = NatRestart { public_address: "198.51.100.7".into(), at, changed: 3, clients: 4 };
        replica.report(GatewayReport { nat_restarts: vec![restart], ..GatewayReport::default() }, now);
        taken(&fleet).contains(&Change::Gateway(gateway()))
    };
    assert!(restarted(1000, 999_999_990));
    assert!(!restarted(1001, 20));
    assert!(restarted(1500, 0));
}
