//! Enrolments over records in memory: uses, ends, keys, crashes and crowds.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::join_all;
use kube::ResourceExt as _;
use pinhole_crds::{JoinToken, Sidecars};
use pinhole_proto::{
    GATEWAY_AUDIENCE,
    v1::{
        EnrolRequest, EnrolResponse, JoinCredential, KeysCredential, ObjectRef, RelayEnrolRequest,
        RelayRenewRequest, enrol_request::Credential,
    },
};
use proptest::prelude::*;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::*;
use crate::enrolment::{
    PublicKey, SESSION_ANNOTATION, TOKENS_ANNOTATION, USED_ANNOTATION,
    memory::{self, GATEWAY, Lost, Memory, NAMESPACE, REPLICA, csr, token_secret},
};

type TestEnroller = Enroller<Arc<Memory>>;

fn token(uses: Option<i64>) -> JoinToken {
    JoinToken { name: "first".into(), uses, expires_at: None, revoked: None, group: Some("staff".into()) }
}

fn set_up(uses: Option<i64>) -> (Arc<Memory>, TestEnroller) {
    let pool = memory::pool("staff", vec![token(uses)]);
    let secret = token_secret(&pool, "first", "right");
    let memory = Memory::new(vec![pool]);
    memory.lock().secrets.insert(secret.name_any(), secret);
    (Arc::clone(&memory), enroller(&memory))
}

/// A new operator over what is written down.
fn enroller(memory: &Arc<Memory>) -> TestEnroller {
    let reviewer = memory.cached_reviewer();
    Enroller::new(Arc::clone(memory), Arc::clone(&memory.fleet), Arc::clone(&memory.identity), reviewer)
}

fn caller() -> ReplicaIdentity {
    ReplicaIdentity {
        namespace: NAMESPACE.into(),
        gateway: GATEWAY.into(),
        replica: REPLICA.into(),
        pod_uid: "pod".into(),
        node: None,
    }
}

fn request(key: u8) -> EnrolRequest {
    EnrolRequest {
        credential: Some(Credential::Join(JoinCredential { token: "first".into(), secret: "right".into() })),
        pool_namespace: NAMESPACE.into(),
        pool: "staff".into(),
        public_key: vec![key; 32],
        csr: csr(),
        hostname: "laptop".into(),
        proof: None,
    }
}

/// As a gateway relays it.
fn proven(request: EnrolRequest) -> RelayEnrolRequest {
    RelayEnrolRequest { request: Some(request), key_proven: true }
}

/// The request, by another token.
fn by(token: &str, request: EnrolRequest) -> EnrolRequest {
    let credential = Some(Credential::Join(JoinCredential { token: token.into(), secret: "right".into() }));
    EnrolRequest { credential, ..request }
}

/// The request of a client whose certificate is over, by its keys.
fn by_keys(key: u8) -> EnrolRequest {
    EnrolRequest { credential: Some(Credential::Keys(KeysCredential {})), ..request(key) }
}

/// Gives the pool another token of any number of uses.
fn add_token(memory: &Memory, name: &str) {
    let mut state = memory.lock();
    let pool = state.pools.get_mut("staff").unwrap();
    let secret = token_secret(pool, name, "right");
    let token = JoinToken { name: name.into(), ..token(None) };
    pool.spec.enrolment.as_mut().unwrap().tokens.push(token);
    state.secrets.insert(secret.name_any(), secret);
}

/// Changes all clients, and the gateway is told.
fn change(memory: &Memory, change: impl Fn(&mut VPNClient)) {
    memory.lock().clients.values_mut().for_each(change);
    memory.reconcile();
}

/// Enrols, and yields the client.
async fn enrolled(enroller: &TestEnroller, request: EnrolRequest) -> ObjectRef {
    enroller.enrol(&caller(), proven(request)).await.unwrap().config.unwrap().client.unwrap()
}

async fn renewal(enroller: &TestEnroller, client: &ObjectRef, csr: &[u8]) -> &'static str {
    let request = RelayRenewRequest { client: Some(client.clone()), csr: csr.to_vec() };
    enroller.renew(&caller(), request).await.err().map_or("renewed", |e| e.category())
}

fn sidecar_request(key: u8) -> EnrolRequest {
    EnrolRequest { credential: Some(Credential::ServiceAccountToken("pod-token".into())), ..request(key) }
}

fn with_sidecar(memory: &Memory, pod: &str) {
    let (identity, pod) = memory::sidecar(NAMESPACE, pod, "staff");
    let mut state = memory.lock();
    state.pools.get_mut("staff").unwrap().spec.enrolment.as_mut().unwrap().sidecars =
        Some(Sidecars::default());
    state.pods.insert((NAMESPACE.into(), pod.name_any()), pod);
    memory.reviewer.pods.lock().unwrap().insert(("pod-token".into(), GATEWAY_AUDIENCE), identity);
}

fn used(memory: &Memory) -> String {
    memory.lock().secrets["staff-token-first"].annotations().get(USED_ANNOTATION).cloned().unwrap_or_default()
}

fn clients(memory: &Memory) -> BTreeMap<String, VPNClient> {
    memory.lock().clients.clone()
}

fn category<T>(result: Result<T, EnrolmentError>) -> &'static str {
    result.err().map_or("enrolled", |e| e.category())
}

fn uri(response: &EnrolResponse) -> String {
    let pem = &response.certificate.as_ref().unwrap().chain_pem;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    match x509.subject_alternative_name().unwrap().unwrap().value.general_names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_client_with_address_and_certificate() {
    let (memory, enroller) = set_up(Some(1));
    let response = enroller.enrol(&caller(), proven(request(1))).await.unwrap();
    let clients = clients(&memory);
    let (name, client) = clients.first_key_value().unwrap();
    assert!(name.starts_with("laptop-"), "{name}");
    assert_eq!(client.spec.group.as_deref(), Some("staff"));
    assert_eq!(client.owner_references()[0].uid, "uid-of-staff");
    assert_eq!(client.owner_references()[0].block_owner_deletion, Some(false));
    assert_eq!(uri(&response), format!("pinhole://vpn/{name}/{}", client.uid().unwrap()));
    let config = response.config.unwrap();
    assert_eq!(config.addresses, ["10.77.0.2/32"]);
    assert_eq!(config.client.unwrap().name, *name);
    assert_eq!(used(&memory), "1");
}

#[tokio::test]
async fn the_same_key_is_the_same_client_even_when_the_token_is_used_up() {
    let (memory, enroller) = set_up(Some(1));
    let first = enroller.enrol(&caller(), proven(request(1))).await.unwrap();
    let renamed = EnrolRequest { hostname: "another-name".into(), ..request(1) };
    let again = enroller.enrol(&caller(), proven(renamed)).await.unwrap();
    assert_eq!(first.config, again.config);
    assert_eq!((clients(&memory).len(), used(&memory).as_str()), (1, "1"));
    assert_eq!(category(enroller.enrol(&caller(), proven(request(2))).await), "TokenUsedUp");
}

#[tokio::test]
async fn a_deleted_client_does_not_come_back_with_a_token_that_is_used_up() {
    let (memory, enroller) = set_up(Some(1));
    enroller.enrol(&caller(), proven(request(1))).await.unwrap();
    memory.lock().clients.clear();
    memory.reconcile();
    assert_eq!(category(enroller.enrol(&caller(), proven(request(1))).await), "TokenUsedUp");
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_dies_at_any_write_strands_nobody_and_admits_nobody_twice() {
    for lost in [Lost::Request, Lost::Answer] {
        for at in 0..4 {
            let (memory, enroller_that_dies) = set_up(Some(1));
            memory.fail_at(Some((at, lost)));
            let first = enroller_that_dies.enrol(&caller(), proven(request(1))).await;
            memory.fail_at(None);
            let enroller = enroller(&memory);
            let again = enroller.enrol(&caller(), proven(request(1))).await;
            assert_eq!(category(again), "enrolled", "{lost:?} {at}, first {:?}", first.err());
            assert_eq!(
                category(enroller.enrol(&caller(), proven(request(2))).await),
                "TokenUsedUp",
                "{lost:?} {at}"
            );
            assert_eq!((clients(&memory).len(), used(&memory).as_str()), (1, "1"), "{lost:?} {at}");
        }
    }
}

#[tokio::test]
async fn of_many_machines_at_once_as_many_get_in_as_there_are_uses() {
    let (memory, enroller) = set_up(Some(5));
    let enroller = &enroller;
    let ask = |key| async move { enroller.enrol(&caller(), proven(request(key))).await };
    let results = join_all((1..=20).map(ask)).await;
    let refused = |r: &Result<_, EnrolmentError>| r.as_ref().err().map(EnrolmentError::category);
    assert_eq!(
        results.iter().filter(|r| r.is_ok()).count(),
        5,
        "{:?}",
        results.iter().map(refused).collect::<Vec<_>>()
    );
    assert_eq!((clients(&memory).len(), used(&memory).as_str()), (5, "5"));
}

#[tokio::test]
async fn one_machine_that_asks_many_times_at_once_takes_one_use() {
    let (memory, enroller) = set_up(Some(5));
    let results =
        join_all((0..8).map(|_| async { enroller.enrol(&caller(), proven(request(1))).await })).await;
    assert!(results.iter().any(Result::is_ok));
    assert_eq!(category(enroller.enrol(&caller(), proven(request(1))).await), "enrolled");
    assert_eq!((clients(&memory).len(), used(&memory).as_str()), (1, "1"));
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_pool_leaves_no_client_and_the_use_stays_with_the_machine() {
    let (memory, enroller) = set_up(Some(1));
    memory.lock().addresses = 0;
    assert_eq!(category(enroller.enrol(&caller(), proven(request(1))).await), "PoolExhausted");
    assert_eq!(clients(&memory).len(), 0);
    memory.lock().addresses = 1;
    assert_eq!(category(enroller.enrol(&caller(), proven(request(1))).await), "enrolled");
    assert_eq!(used(&memory), "1");
}

#[tokio::test]
async fn a_suspended_client_is_told_so() {
    let (memory, enroller) = set_up(Some(1));
    enroller.enrol(&caller(), proven(request(1))).await.unwrap();
    memory.lock().clients.values_mut().for_each(|c| c.spec.suspended = Some(true));
    memory.reconcile();
    assert_eq!(category(enroller.enrol(&caller(), proven(request(1))).await), "ClientSuspended");
}

#[tokio::test]
async fn a_gateway_enrols_for_its_own_pools_only() {
    let (memory, enroller) = set_up(None);
    let stranger = ReplicaIdentity { gateway: "other".into(), replica: "other-0".into(), ..caller() };
    assert_eq!(category(enroller.enrol(&stranger, proven(request(1))).await), "PoolNotFound");
    let far = ReplicaIdentity { namespace: "elsewhere".into(), ..caller() };
    assert_eq!(category(enroller.enrol(&far, proven(request(1))).await), "PoolNotFound");
    let unknown = EnrolRequest { pool: "nobody".into(), ..request(1) };
    assert_eq!(category(enroller.enrol(&caller(), proven(unknown)).await), "PoolNotFound");
    assert_eq!(clients(&memory).len(), 0);
}

#[tokio::test]
async fn a_wrong_secret_changes_nothing() {
    let (memory, enroller) = set_up(Some(1));
    let credential = Some(Credential::Join(JoinCredential { token: "first".into(), secret: "wrong".into() }));
    let wrong = EnrolRequest { credential, ..request(1) };
    assert_eq!(category(enroller.enrol(&caller(), proven(wrong)).await), "TokenInvalid");
    assert_eq!((clients(&memory).len(), used(&memory).as_str()), (0, ""));
}

#[tokio::test]
async fn a_pods_sidecar_becomes_a_client_with_the_record_of_its_pod() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    enroller.enrol(&caller(), proven(sidecar_request(1))).await.unwrap();
    let clients = clients(&memory);
    let (name, client) = clients.first_key_value().unwrap();
    assert!(name.starts_with("web-0-"), "{name}");
    let pod = client.spec.enrolment.as_ref().unwrap().pod.as_ref().unwrap();
    assert_eq!((pod.name.as_str(), pod.uid.as_str()), ("web-0", "uid-of-vpn-web-0"));
    assert_eq!(used(&memory), "");
}

#[tokio::test]
async fn a_sidecar_that_lost_its_key_stays_the_same_client_with_another_key() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    let first = enroller.enrol(&caller(), proven(sidecar_request(1))).await.unwrap();
    let again = enroller.enrol(&caller(), proven(sidecar_request(2))).await.unwrap();
    assert_eq!(first.config.unwrap().client, again.config.unwrap().client);
    let clients = clients(&memory);
    let client = clients.values().next().unwrap();
    assert_eq!(client.spec.public_key, PublicKey::new(&[2; 32]).map(|k| k.to_string()));
}

#[tokio::test]
async fn a_sidecar_cannot_take_the_key_of_another_client() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    enroller.enrol(&caller(), proven(request(1))).await.unwrap();
    assert_eq!(category(enroller.enrol(&caller(), proven(sidecar_request(1))).await), "RequestInvalid");
    assert_eq!(clients(&memory).len(), 1);
}

#[tokio::test]
async fn a_sidecar_whose_pod_is_gone_or_whose_token_is_refused_is_no_client() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    memory.lock().pods.clear();
    assert_eq!(category(enroller.enrol(&caller(), proven(sidecar_request(1))).await), "PodNotSelected");
    let credential = Some(Credential::ServiceAccountToken("other-token".into()));
    let refused = EnrolRequest { credential, ..request(1) };
    assert_eq!(category(enroller.enrol(&caller(), proven(refused)).await), "CredentialInvalid");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_who_may_connect_and_nobody_else() {
    let (memory, enroller) = set_up(None);
    let request = request(1);
    let csr = request.csr.clone();
    let client = enrolled(&enroller, request).await;
    let renewal = |client| RelayRenewRequest { client: Some(client), csr: csr.clone() };
    let renewed = enroller.renew(&caller(), renewal(client.clone())).await.unwrap();
    let days = renewed.not_after.unwrap().seconds - Timestamp::now().as_second();
    assert!((29 * 86400..=30 * 86400).contains(&days), "{days}");
    let mut anew = client.clone();
    anew.uid = "another".into();
    assert_eq!(category(enroller.renew(&caller(), renewal(anew)).await), "ClientDeleted");
    let far = ReplicaIdentity { namespace: "elsewhere".into(), ..caller() };
    assert_eq!(category(enroller.renew(&far, renewal(client.clone())).await), "ClientDeleted");
    change(&memory, |c| c.spec.suspended = Some(true));
    assert_eq!(category(enroller.renew(&caller(), renewal(client)).await), "ClientSuspended");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_session_key_that_the_client_enrolled_with() {
    let (_memory, enroller) = set_up(None);
    let (one, two) = (request(1), request(2));
    let (key_of_one, key_of_two) = (one.csr.clone(), two.csr.clone());
    let (one, two) = (enrolled(&enroller, one).await, enrolled(&enroller, two).await);
    assert_eq!(renewal(&enroller, &one, &key_of_one).await, "renewed");
    assert_eq!(renewal(&enroller, &one, &key_of_one).await, "renewed");
    // With one client's certificate another's key, with another's the first one's, and with either a key of nobody.
    assert_eq!(renewal(&enroller, &one, &key_of_two).await, "SessionKeyChanged");
    assert_eq!(renewal(&enroller, &two, &key_of_one).await, "SessionKeyChanged");
    assert_eq!(renewal(&enroller, &one, &csr()).await, "SessionKeyChanged");
    assert_eq!(renewal(&enroller, &two, &key_of_two).await, "renewed");
}

#[tokio::test]
async fn both_keys_of_an_enrolment_get_another_certificate_and_one_alone_gets_none() {
    let (memory, enroller) = set_up(None);
    let (one, two) = (request(1), request(2));
    let (key_of_one, key_of_two) = (one.csr.clone(), two.csr.clone());
    let client = enrolled(&enroller, one).await;
    enrolled(&enroller, two).await;
    let asks = |key, csr: &[u8]| proven(EnrolRequest { csr: csr.to_vec(), ..by_keys(key) });
    let response = enroller.enrol(&caller(), asks(1, &key_of_one)).await.unwrap();
    assert_eq!(response.config.unwrap().client, Some(client));
    for csr in [&key_of_two, &csr()] {
        assert_eq!(category(enroller.enrol(&caller(), asks(1, csr)).await), "SessionKeyChanged");
    }
    assert_eq!(category(enroller.enrol(&caller(), asks(3, &key_of_one)).await), "ClientDeleted");
    let unproven = RelayEnrolRequest { key_proven: false, ..asks(1, &key_of_one) };
    assert_eq!(category(enroller.enrol(&caller(), unproven).await), "GatewayOutdated");
    assert_eq!(clients(&memory).len(), 2);
}

#[tokio::test]
async fn who_asks_by_its_keys_without_end_is_limited_as_renewals_are() {
    let (_memory, enroller) = set_up(None);
    let request = request(1);
    let asks = proven(EnrolRequest { csr: request.csr.clone(), ..by_keys(1) });
    enrolled(&enroller, request).await;
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(category(enroller.enrol(&caller(), asks.clone()).await));
    }
    assert_eq!((answers[0], answers[11]), ("enrolled", "RateLimited"));
}

#[tokio::test]
async fn who_enrols_anew_ends_the_renewals_of_certificates_from_before() {
    let (_memory, enroller) = set_up(None);
    let (before, after) = (request(1), request(1));
    let (key_before, key_after) = (before.csr.clone(), after.csr.clone());
    let client = enrolled(&enroller, before).await;
    assert_eq!(enrolled(&enroller, after).await, client);
    assert_eq!(renewal(&enroller, &client, &key_before).await, "SessionKeyChanged");
    assert_eq!(renewal(&enroller, &client, &key_after).await, "renewed");
}

#[tokio::test]
async fn a_client_whose_wireguard_key_was_changed_has_to_enrol_with_the_new_one() {
    let (memory, enroller) = set_up(None);
    let request = request(1);
    let key = request.csr.clone();
    let client = enrolled(&enroller, request).await;
    change(&memory, |c| c.spec.public_key = PublicKey::new(&[9; 32]).map(|k| k.to_string()));
    assert_eq!(renewal(&enroller, &client, &key).await, "SessionKeyChanged");
}

#[tokio::test]
async fn a_sidecar_that_made_another_key_renews_for_that_one_only() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    let (first, again) = (sidecar_request(1), sidecar_request(2));
    let (key_before, key_after) = (first.csr.clone(), again.csr.clone());
    enrolled(&enroller, first).await;
    let client = enrolled(&enroller, again).await;
    assert_eq!(renewal(&enroller, &client, &key_before).await, "SessionKeyChanged");
    assert_eq!(renewal(&enroller, &client, &key_after).await, "renewed");
}

#[tokio::test]
async fn a_certificate_from_before_renewals_were_bound_is_not_renewed() {
    let (memory, enroller) = set_up(None);
    let request = request(1);
    let key = request.csr.clone();
    let client = enrolled(&enroller, request).await;
    change(&memory, |c| drop(c.annotations_mut().remove(SESSION_ANNOTATION)));
    assert_eq!(renewal(&enroller, &client, &key).await, "SessionKeyChanged");
    change(&memory, |c| drop(c.annotations_mut().insert(SESSION_ANNOTATION.into(), String::new())));
    assert_eq!(renewal(&enroller, &client, &key).await, "SessionKeyChanged");
}

#[tokio::test]
async fn a_gateway_that_does_not_vouch_for_the_key_enrols_nobody() {
    let (memory, enroller) = set_up(Some(1));
    let unproven = RelayEnrolRequest { key_proven: false, ..proven(request(1)) };
    assert_eq!(category(enroller.enrol(&caller(), unproven).await), "GatewayOutdated");
    assert_eq!((clients(&memory).len(), used(&memory).as_str()), (0, ""));
}

#[tokio::test]
async fn every_token_that_a_suspended_client_used_is_held_and_no_other() {
    let (memory, enroller) = set_up(None);
    for token in ["second", "third"] {
        add_token(&memory, token);
    }
    let client = enrolled(&enroller, request(1)).await;
    assert_eq!(enrolled(&enroller, by("second", request(1))).await, client);
    let other = enrolled(&enroller, request(2)).await;
    memory.lock().clients.get_mut(&client.name).unwrap().spec.suspended = Some(true);
    memory.reconcile();
    for held in ["first", "second"] {
        let newcomer = proven(by(held, request(3)));
        assert_eq!(category(enroller.enrol(&caller(), newcomer).await), "TokenSuspended", "{held}");
    }
    // Who enrolled with it before is not made to pay.
    assert_eq!(enrolled(&enroller, request(2)).await, other);
    assert_ne!(enrolled(&enroller, by("third", request(3))).await, client);
    change(&memory, |c| c.spec.suspended = None);
    assert_eq!(category(enroller.enrol(&caller(), proven(request(4))).await), "enrolled");
}

#[tokio::test]
async fn what_is_remembered_of_tokens_is_bounded_by_those_that_the_pool_has() {
    let (memory, enroller) = set_up(None);
    enrolled(&enroller, request(1)).await;
    for n in 0..12 {
        let name = format!("token-{n}");
        add_token(&memory, &name);
        enrolled(&enroller, by(&name, request(1))).await;
        enrolled(&enroller, by(&name, request(1))).await;
        if let Some(tokens) = memory.lock().pools.get_mut("staff").unwrap().spec.enrolment.as_mut() {
            let over = tokens.tokens.len().saturating_sub(4);
            tokens.tokens.drain(1..=over);
        }
    }
    let clients = clients(&memory);
    let client = clients.values().next().unwrap();
    let tokens = client.annotations().get(TOKENS_ANNOTATION).unwrap();
    assert!(tokens.split(',').count() <= 5 && tokens.ends_with("token-11"), "{tokens}");
}

/// What an administrator, or a machine, does.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Enrol { key: u8, token: usize },
    Suspend(usize),
    Resume(usize),
    Delete(usize),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        4 => (1u8..6, 0usize..2).prop_map(|(key, token)| Deed::Enrol { key, token }),
        2 => (0usize..5).prop_map(Deed::Suspend),
        1 => (0usize..5).prop_map(Deed::Resume),
        1 => (0usize..5).prop_map(Deed::Delete),
    ];
    proptest::collection::vec(deed, 1..40)
}

/// While a client is suspended, whatever is tried in whatever order, no token that it used makes another client, and it is
/// no peer.
async fn nothing_gets_around_a_suspension(deeds: Vec<Deed>) {
    const TOKENS: [&str; 2] = ["first", "second"];
    let (memory, enroller) = set_up(None);
    add_token(&memory, "second");
    // By the client's name.
    let mut used: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for deed in deeds {
        let before = clients(&memory);
        let suspended =
            || before.values().filter(|c| c.spec.suspended == Some(true)).map(kube::ResourceExt::name_any);
        let nth = |n: usize| before.keys().nth(n).cloned();
        match deed {
            Deed::Enrol { key, token } => {
                let token = TOKENS[token];
                let result = enroller.enrol(&caller(), proven(by(token, request(key)))).await;
                let held = suspended().any(|name| used[&name].contains(&token));
                assert!(!held || clients(&memory).len() == before.len(), "{deed:?}");
                if let Ok(response) = result {
                    let name = response.config.unwrap().client.unwrap().name;
                    assert!(!suspended().any(|suspended| suspended == name), "{deed:?}");
                    used.entry(name).or_default().push(token);
                }
            }
            Deed::Suspend(n) | Deed::Resume(n) => {
                let suspend = matches!(deed, Deed::Suspend(_));
                let mut state = memory.lock();
                if let Some(client) = nth(n).and_then(|n| state.clients.get_mut(&n)) {
                    client.spec.suspended = Some(suspend);
                }
            }
            Deed::Delete(n) => {
                if let Some(name) = nth(n) {
                    memory.lock().clients.remove(&name);
                    used.remove(&name);
                }
            }
        }
        memory.reconcile();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_suspension_cannot_be_walked_around(deeds in deeds()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(nothing_gets_around_a_suspension(deeds));
    }
}

/// A request with a secret part that nobody has.
fn guess(n: u32) -> EnrolRequest {
    let join = JoinCredential { token: "first".into(), secret: format!("guess-{n}") };
    EnrolRequest { credential: Some(Credential::Join(join)), ..request(1) }
}

#[tokio::test]
async fn however_many_guess_at_a_token_who_holds_it_enrols() {
    let (memory, enroller) = set_up(Some(1));
    let (enroller, caller, template) = (&enroller, caller(), guess(0));
    for round in 0..5 {
        let guesses = (0..200).map(|_| enroller.enrol(&caller, proven(template.clone())));
        let mut refused = join_all(guesses).await.into_iter().map(category);
        assert!(refused.all(|category| category == "TokenInvalid"), "round {round}");
    }
    assert_eq!(category(enroller.enrol(&caller, proven(request(1))).await), "enrolled");
    assert_eq!(clients(&memory).len(), 1);
}

#[tokio::test]
async fn however_many_name_pools_that_are_none_or_show_tokens_of_no_pod_others_enrol() {
    let (memory, enroller) = set_up(None);
    with_sidecar(&memory, "web-0");
    let (enroller, caller, template) = (&enroller, caller(), sidecar_request(1));
    let limited = async |make: &dyn Fn(String) -> EnrolRequest| {
        let asked = (0..200).map(|n| enroller.enrol(&caller, proven(make(format!("none-{n}")))));
        join_all(asked).await.into_iter().any(|result| category(result) == "RateLimited")
    };
    let pool = |pool| EnrolRequest { pool, ..template.clone() };
    assert!(limited(&pool).await, "what nobody knows costs the API server");
    let pod = |token| {
        let credential = Some(Credential::ServiceAccountToken(token));
        EnrolRequest { credential, ..template.clone() }
    };
    assert!(limited(&pod).await, "what nobody knows costs the API server");
    assert_eq!(category(enroller.enrol(&caller, proven(request(2))).await), "enrolled");
}

#[tokio::test]
async fn one_who_holds_a_token_and_enrols_without_end_is_limited_and_holders_of_others_are_not() {
    let (memory, enroller) = set_up(None);
    let second = JoinToken { name: "second".into(), ..token(None) };
    {
        let mut state = memory.lock();
        state.pools.get_mut("staff").unwrap().spec.enrolment.as_mut().unwrap().tokens.push(second);
        let secret = token_secret(&state.pools["staff"], "second", "right");
        state.secrets.insert(secret.name_any(), secret);
    }
    let (enroller, caller, template) = (&enroller, caller(), request(1));
    assert_eq!(category(enroller.enrol(&caller, proven(template.clone())).await), "enrolled");
    let asked = join_all((0..200).map(|_| enroller.enrol(&caller, proven(template.clone())))).await;
    assert!(asked.into_iter().any(|result| category(result) == "RateLimited"));
    let join = JoinCredential { token: "second".into(), secret: "right".into() };
    let other = EnrolRequest { credential: Some(Credential::Join(join)), ..request(2) };
    assert_eq!(category(enroller.enrol(&caller, proven(other)).await), "enrolled");
}

#[tokio::test]
async fn a_client_that_renews_without_end_is_limited_and_another_is_not() {
    let (_memory, enroller) = set_up(None);
    let (first, second) = (request(1), request(2));
    let (key, other_key) = (first.csr.clone(), second.csr.clone());
    let (one, other) = (enrolled(&enroller, first).await, enrolled(&enroller, second).await);
    let mut results = vec![];
    for _ in 0..10 {
        results.push(renewal(&enroller, &one, &key).await);
    }
    assert_eq!((results[0], results[9]), ("renewed", "RateLimited"));
    assert_eq!(renewal(&enroller, &other, &other_key).await, "renewed");
}

#[path = "cutting_off_tests.rs"]
mod cutting_off;
