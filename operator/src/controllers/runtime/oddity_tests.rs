//! Objects that this operator does not understand in full: what runs goes on.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{Raw, VPNClient, VPNClientPool, VPNGateway};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    allocation::Allocations,
    index::{Effects, Index},
    request::Request,
};
use crate::{
    fleet::{ClientKey, GatewayKey, PoolKey},
    plan::peer,
};

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {
            "name": name, "namespace": "vpn", "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
    })
}

fn gateway() -> Value {
    object("VPNGateway", "edge", &json!({ "exposure": { "type": "NodePort" } }))
}

fn pool() -> Value {
    let spec =
        json!({ "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/29"], "routes": ["10.96.0.0/12"] });
    object("VPNClientPool", "staff", &spec)
}

/// Connected, at the first address that is given out.
fn client() -> Value {
    let mut client = object(
        "VPNClient",
        "laptop",
        &json!({
            "poolRef": { "name": "staff" }, "publicKey": KEY, "group": "a",
            "keepalive": { "mode": "Fixed", "interval": "25s" },
            "enrolment": { "method": "Token", "token": "t", "hostname": "laptop" },
        }),
    );
    client["status"] = json!({
        "phase": "Connected", "publicKey": KEY, "addresses": ["10.77.0.2"], "replica": "edge-0",
        "keepalive": { "interval": "25s", "mode": "Fixed", "reason": "Policy" },
        "churn": { "count": 1, "lastCause": "Roam" },
    });
    client
}

fn raw<K: pinhole_crds::Lenient>(object: &Value) -> Raw<K> {
    serde_json::from_value(object.clone()).unwrap()
}

fn edge() -> GatewayKey {
    GatewayKey::new("vpn", "edge")
}

fn staff() -> PoolKey {
    PoolKey::new("vpn", "staff")
}

fn laptop() -> ClientKey {
    ClientKey::new("vpn", "laptop")
}

/// As after a restart of the operator: nothing is known but what the API server says.
fn index(client: &Value) -> Index {
    let mut index = Index::default();
    index.gateway_read(&edge(), Some(raw(&gateway())));
    index.pool_read(&staff(), Some(raw(&pool())));
    index.client_read(laptop(), Some(raw(client)));
    index
}

/// The addresses of the client as a peer of its gateway.
fn peer_addresses(index: &Index) -> Vec<IpAddr> {
    let allocations = Allocations::default();
    let (gateway, pool) = (index.gateway(&edge()).unwrap(), index.pool(&staff()).unwrap());
    let Some(client) = index.client(&laptop()) else { return Vec::new() };
    allocations.refresh(index, &pool);
    let held = allocations.held(&staff(), "uid-laptop");
    let peer = peer(&gateway, &pool, &client, &held, Timestamp::UNIX_EPOCH);
    peer.map(|peer| peer.addresses).unwrap_or_default()
}

/// What the next new client is given.
fn next_address(index: &Index) -> Vec<IpAddr> {
    let newcomer = object("VPNClient", "new", &json!({ "poolRef": { "name": "staff" } }));
    let newcomer: VPNClient = serde_json::from_value(newcomer).unwrap();
    Allocations::default().assign(index, &index.pool(&staff()).unwrap(), &newcomer).addresses
}

fn ip(text: &str) -> Vec<IpAddr> {
    vec![text.parse().unwrap()]
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    *object.pointer_mut(pointer).unwrap() = value;
    object
}

#[test]
fn a_client_with_a_newer_word_keeps_its_address_and_its_peer_over_a_restart() {
    for (pointer, value) in [
        ("/spec/keepalive/mode", json!("Predictive")),
        ("/spec/enrolment/method", json!("Passkey")),
        ("/spec/group", json!(["a", "b"])),
        ("/status/churn/lastCause", json!("SolarFlare")),
        ("/status/phase", json!("Levitating")),
    ] {
        let index = index(&with(client(), pointer, value));
        assert_eq!(peer_addresses(&index), ip("10.77.0.2"), "{pointer}");
        assert_eq!(next_address(&index), ip("10.77.0.3"), "{pointer}: its own is not given away");
        assert!(!index.unread_client(&laptop()).is_empty(), "{pointer}");
        let agents = index.client(&laptop()).unwrap();
        assert!(!agents.spec.is_stock(), "{pointer}: no key is made for it");
    }
}

#[test]
fn a_suspended_client_does_not_come_back_with_an_odd_field() {
    let suspended = with(client(), "/status/phase", json!("Suspended"));
    let mut odd = with(suspended, "/spec/group", json!(7));
    odd["spec"]["suspended"] = json!("until-monday");
    assert_eq!(peer_addresses(&index(&odd)), Vec::<IpAddr>::new());
}

#[test]
fn what_was_known_stays_and_what_is_understood_is_followed() {
    let mut index = index(&client());
    let mut odd = with(client(), "/spec/keepalive/mode", json!("Predictive"));
    odd["spec"]["suspended"] = json!(true);
    let effects = index.client_read(laptop(), Some(raw(&odd)));
    assert!(effects.request.contains(&Request::Peers(edge())), "{effects:?}");
    assert!(effects.gone.is_empty());
    assert_eq!(peer_addresses(&index), Vec::<IpAddr>::new(), "suspending works all the same");
    let sound = index.client_read(laptop(), Some(raw(&client())));
    assert!(sound.request.contains(&Request::Client(laptop())));
    assert!(index.unread_client(&laptop()).is_empty());
    assert_eq!(peer_addresses(&index), ip("10.77.0.2"));
}

#[test]
fn a_client_of_which_not_even_the_pool_is_understood_keeps_its_address_until_it_is_gone() {
    let mut index = index(&with(client(), "/spec/poolRef", json!({ "selector": {} })));
    assert!(index.frozen_client(&laptop()).is_some() && index.has_client("uid-laptop"));
    assert_eq!(next_address(&index), ip("10.77.0.3"));
    let effects = index.client_read(laptop(), None);
    assert_eq!(effects.gone, [(staff(), "uid-laptop".to_owned())]);
    assert_eq!(next_address(&index), ip("10.77.0.2"));
    assert!(!index.has_client("uid-laptop"));
}

#[test]
fn a_pool_that_was_known_stays_in_force_when_it_is_not_understood_any_more() {
    let mut index = index(&client());
    for (pointer, value) in [("/spec/cidrs/0", json!({ "v4": "10.77.0.0/29" })), ("/spec/routes/0", json!(9))]
    {
        index.pool_read(&staff(), Some(raw(&with(pool(), pointer, value))));
        assert_eq!(
            index.pool(&staff()).unwrap().spec,
            raw::<VPNClientPool>(&pool()).read(None).unwrap().object.spec
        );
        assert_eq!(peer_addresses(&index), ip("10.77.0.2"));
        assert!(index.unread_pool(&staff())[0].kept);
    }
}

/// A pool of which its addresses are not understood.
fn unreadable_pool() -> Value {
    with(pool(), "/spec/cidrs/0", json!(["10.77.0.0/29"]))
}

/// With what an operator that understood it wrote down.
fn with_in_force(mut pool: Value) -> Value {
    pool["status"] = json!({ "inForce": { "gateway": "edge", "cidrs": ["10.77.0.0/29"] } });
    pool
}

/// As after a restart of the operator, with a second pool, which is understood.
fn index_with_guests(staff_pool: &Value) -> Index {
    let mut index = Index::default();
    index.gateway_read(&edge(), Some(raw(&gateway())));
    index.pool_read(&staff(), Some(raw(staff_pool)));
    index.pool_read(&guests(), Some(raw(&guests_pool("10.78.0.0/29"))));
    index.client_read(laptop(), Some(raw(&client())));
    index
}

fn guests() -> PoolKey {
    PoolKey::new("vpn", "guests")
}

fn guests_pool(cidr: &str) -> Value {
    object("VPNClientPool", "guests", &json!({ "gatewayRef": { "name": "edge" }, "cidrs": [cidr] }))
}

/// A pool is not understood after a restart: it and its clients keep what they have, and the gateway's other pools go on.
#[test]
fn an_unreadable_pool_keeps_what_it_has_and_holds_no_other_pool_of_its_gateway() {
    let unreadable = [
        ("/spec/cidrs/0", json!(["10.77.0.0/29"])),
        ("/spec/cidrs", json!({ "v4": "10.77.0.0/29" })),
        ("/spec/gatewayRef", json!("edge")),
    ];
    for (pointer, value) in unreadable {
        let mut index = index_with_guests(&with_in_force(with(pool(), pointer, value)));
        assert_eq!(index.holding_pool_of(&edge()), None, "{pointer}");
        assert_eq!(index.pools_of(&edge()).len(), 2, "{pointer}");
        assert_eq!(peer_addresses(&index), ip("10.77.0.2"), "{pointer}");
        assert_eq!(next_address(&index), ip("10.77.0.3"), "{pointer}");
        assert!(index.unread_pool(&staff()).iter().all(|unread| unread.kept), "{pointer}");

        let newcomer = object("VPNClient", "guest", &json!({ "poolRef": { "name": "guests" } }));
        let Effects { request, .. } = index.client_read(ClientKey::new("vpn", "guest"), Some(raw(&newcomer)));
        assert!(request.contains(&Request::Peers(edge())), "{request:?}");
        let mut routed = guests_pool("10.78.0.0/29");
        routed["spec"]["routes"] = json!(["10.50.0.0/24"]);
        let Effects { request, .. } = index.pool_read(&guests(), Some(raw(&routed)));
        assert!(request.contains(&Request::Peers(edge())), "{request:?}");
    }
}

#[test]
fn an_unreadable_pool_without_clients_holds_nobody() {
    let mut index = index_with_guests(&unreadable_pool());
    assert_eq!(index.holding_pool_of(&edge()), Some(&staff()), "nothing says how the laptop's pool was");
    let mut waiting = client();
    waiting["status"] = json!({ "phase": "Pending" });
    let Effects { request, .. } = index.client_read(laptop(), Some(raw(&waiting)));
    assert_eq!(index.holding_pool_of(&edge()), None, "it has nothing to lose");
    for told in [Request::Peers(edge()), Request::Gateway(edge())] {
        assert!(request.contains(&told), "{request:?}");
    }
    index.client_read(laptop(), Some(raw(&client())));
    assert_eq!(index.holding_pool_of(&edge()), Some(&staff()));
    let Effects { request, .. } = index.client_read(laptop(), None);
    assert!(request.contains(&Request::Peers(edge())), "{request:?}");
    assert_eq!(index.holding_pool_of(&edge()), None);
}

#[test]
fn addresses_of_an_unreadable_pools_clients_are_given_to_nobody_by_another_pool() {
    let mut index = index_with_guests(&unreadable_pool());
    let overlapping: VPNClientPool = serde_json::from_value(guests_pool("10.77.0.0/29")).unwrap();
    index.pool_read(&guests(), Some(raw(&guests_pool("10.77.0.0/29"))));
    let newcomer = object("VPNClient", "new", &json!({ "poolRef": { "name": "guests" } }));
    let newcomer: VPNClient = serde_json::from_value(newcomer).unwrap();
    let allocations = Allocations::default();
    assert_eq!(allocations.assign(&index, &overlapping, &newcomer).addresses, ip("10.77.0.3"));
}

#[test]
fn a_gateway_is_not_told_of_less_while_a_pool_of_its_own_that_has_clients_is_not_understood() {
    let mut index = Index::default();
    index.gateway_read(&edge(), Some(raw(&gateway())));
    index.client_read(laptop(), Some(raw(&client())));
    let Effects { request, .. } = index.pool_read(&staff(), Some(raw(&unreadable_pool())));
    assert!(request.contains(&Request::Gateway(edge())), "its status says so: {request:?}");
    assert_eq!(index.holding_pool_of(&edge()), Some(&staff()));
    assert_eq!(index.holding_pool_of(&GatewayKey::new("vpn", "other")), None, "another one is");
    let Effects { request, .. } = index.pool_read(&staff(), Some(raw(&pool())));
    for told in [Request::Peers(edge()), Request::Gateway(edge())] {
        assert!(request.contains(&told), "and is told when it is: {request:?}");
    }
    assert_eq!(index.holding_pool_of(&edge()), None);

    index.pool_read(&staff(), Some(raw(&with(pool(), "/spec/gatewayRef", json!("edge")))));
    assert_eq!(index.holding_pool_of(&edge()), None, "known from before");
    index.pool_read(&staff(), None);
    index.pool_read(&staff(), Some(raw(&with(pool(), "/spec/gatewayRef", json!("edge")))));
    assert_eq!(index.holding_pool_of(&edge()), Some(&staff()), "it may be of any gateway");
    let Effects { request, .. } = index.pool_read(&staff(), None);
    assert!(request.contains(&Request::Peers(edge())), "{request:?}");
}

#[test]
fn a_gateway_that_was_made_anew_and_is_not_understood_is_not_the_old_one() {
    let mut index = index(&client());
    let odd = with(gateway(), "/spec/exposure/type", json!("Satellite"));
    index.gateway_read(&edge(), Some(raw(&odd)));
    assert!(index.gateway(&edge()).is_some(), "the same one stays in force");
    let anew = with(odd, "/metadata/uid", json!("another"));
    index.gateway_read(&edge(), Some(raw(&anew)));
    assert!(index.gateway(&edge()).is_none() && index.frozen_gateway(&edge()).is_some());
    assert!(index.all().contains(&Request::Gateway(edge())), "it is looked at, and said");
    index.gateway_read(&edge(), Some(raw::<VPNGateway>(&gateway())));
    assert!(index.frozen_gateway(&edge()).is_none());
}

fn odd_word() -> impl Strategy<Value = Value> {
    prop_oneof![
        "[A-Z][A-Za-z]{0,14}".prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        Just(json!({ "newer": ["than", "me"] })),
        Just(json!([])),
        Just(Value::Null),
    ]
}

proptest! {
    /// Whatever words of its spec and status are newer than this operator, and whether it knew the client before.
    #[test]
    fn no_word_cuts_a_peer_or_frees_its_address(
        words in prop::collection::vec((0..10_usize, odd_word()), 1..6),
        known in any::<bool>(),
    ) {
        let places = [
            "/spec/keepalive/mode", "/spec/keepalive/interval", "/spec/keepalive", "/spec/group",
            "/spec/enrolment/method", "/spec/enrolment", "/status/phase", "/status/churn/lastCause",
            "/status/keepalive/mode", "/status/replica",
        ];
        let mut odd = client();
        for (place, word) in words {
            if let Some(value) = odd.pointer_mut(places[place]) {
                *value = word;
            }
        }
        let mut index = if known { index(&client()) } else { index(&odd) };
        index.client_read(laptop(), Some(raw(&odd)));
        prop_assert_eq!(peer_addresses(&index), ip("10.77.0.2"));
        prop_assert_eq!(next_address(&index), ip("10.77.0.3"));
    }
}
