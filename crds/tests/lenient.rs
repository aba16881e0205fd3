//! Objects that are newer than this version, or odd, are read as far as they are understood.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed expectation is a failed test")]

use pinhole_crds::{Lenient, Raw, Reading, Unread, Unreadable, VPNClient, VPNClientPool, VPNGateway};
use proptest::prelude::*;
use serde_json::{Value, json};

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const OTHER_KEY: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

fn client() -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
        "metadata": { "name": "laptop", "namespace": "vpn", "uid": "1", "generation": 3 },
        "spec": {
            "poolRef": { "name": "staff" }, "publicKey": KEY, "suspended": false,
            "keepalive": { "mode": "Fixed", "interval": "25s" }, "addresses": ["10.77.0.9"], "group": "a",
            "expiresAt": "2030-01-01T00:00:00Z",
            "enrolment": { "method": "Token", "token": "t", "hostname": "laptop" },
        },
        "status": {
            "phase": "Connected", "publicKey": KEY, "addresses": ["10.77.0.9", "fd77::9"], "endpoint": "198.51.100.7:1",
            "conditions": [{ "type": "Ready", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            "nat": { "class": "NAT", "mapping": "Unknown", "filtering": "Unknown", "portAllocation": "Unknown",
                "portParity": "Unknown", "hairpin": "Unknown", "refreshOutbound": "Unknown", "refreshInbound": "Unknown",
                "twoClass": "Unknown", "helperInterference": "Unknown", "doubleNat": "Unknown" },
            "keepalive": { "interval": "25s", "mode": "Fixed", "reason": "Policy" },
        },
    })
}

fn pool() -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool", "metadata": { "name": "staff", "uid": "2" },
        "spec": {
            "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/16"], "reserved": ["10.77.0.2"],
            "routes": ["10.96.0.0/12", "10.50.0.0/24"], "healthMode": "Loopback", "maxClients": 9,
            "enrolment": { "tokens": [{ "name": "t" }], "sidecars": { "namespaceSelector": { "matchLabels": { "a": "b" } } } },
        },
    })
}

fn gateway() -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNGateway", "metadata": { "name": "edge", "uid": "3" },
        "spec": { "exposure": { "type": "NodePort" }, "replicas": 2, "mtu": 1380, "healthMode": "LinkStatus",
            "pod": { "nodeSelector": { "a": "b" } } },
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    *object.pointer_mut(pointer).unwrap() = value;
    object
}

fn read<K: Lenient>(object: &Value, last: Option<&Value>) -> Result<Reading<K>, Unreadable> {
    let last: Option<K> = last.map(|last| serde_json::from_value(last.clone()).unwrap());
    serde_json::from_value::<Raw<K>>(object.clone()).unwrap().read(last.as_ref())
}

fn paths(unread: &[Unread]) -> Vec<&str> {
    unread.iter().map(|unread| unread.path.as_str()).collect()
}

#[test]
fn what_is_understood_is_read_as_it_is() {
    let reading = read::<VPNClient>(&client(), None).unwrap();
    assert!(reading.unread.is_empty());
    assert_eq!(reading.object, serde_json::from_value(client()).unwrap());
}

#[test]
fn a_newer_word_leaves_its_field_out_and_names_it() {
    let newer = with(client(), "/spec/keepalive/mode", json!("Predictive"));
    let Reading { object, unread } = read::<VPNClient>(&newer, None).unwrap();
    assert_eq!(paths(&unread), ["spec.keepalive.mode"]);
    assert!(unread[0].why.contains("Predictive") && !unread[0].kept, "{unread:?}");
    assert_eq!(object.spec.public_key.as_deref(), Some(KEY));
    assert_eq!(object.status.unwrap().addresses.len(), 2);
    assert_eq!(object.metadata.name.as_deref(), Some("laptop"));
}

#[test]
fn a_field_that_was_known_before_stays_as_it_was() {
    let newer = with(client(), "/spec/keepalive/mode", json!("Predictive"));
    let newer = with(newer, "/spec/suspended", json!(true));
    let Reading { object, unread } = read::<VPNClient>(&newer, Some(&client())).unwrap();
    assert_eq!(object.spec.keepalive.unwrap().mode, Some(pinhole_crds::KeepaliveMode::Fixed));
    assert_eq!(object.spec.suspended, Some(true), "and what is understood is in force");
    assert!(unread[0].kept);
}

#[test]
fn a_client_that_was_not_known_before_keeps_what_its_status_says() {
    let odd = with(client(), "/spec/publicKey", json!({ "new": "form" }));
    let odd = with(odd, "/status/publicKey", json!(OTHER_KEY));
    let odd = with(odd, "/spec/addresses", json!({ "v4": "10.77.0.9" }));
    let odd = with(odd, "/spec/enrolment/method", json!("Passkey"));
    let Reading { object, unread } = read::<VPNClient>(&odd, None).unwrap();
    assert_eq!(object.spec.public_key.as_deref(), Some(OTHER_KEY));
    assert_eq!(object.spec.addresses.len(), 2);
    assert!(!object.spec.is_stock(), "who has an agent gets no key of the operator");
    assert_eq!(unread.len(), 3);
    assert!(unread.iter().all(Unread::is_of_spec));
}

#[test]
fn who_was_suspended_stays_so_when_nobody_can_read_why() {
    let suspended = with(client(), "/status/phase", json!("Suspended"));
    for (field, value) in
        [("/spec/suspended", json!("until-monday")), ("/spec/expiresAt", json!({ "in": "1h" }))]
    {
        let object = read::<VPNClient>(&with(suspended.clone(), field, value.clone()), None).unwrap().object;
        let ended = object.spec.expires_at.is_some_and(|end| end.0.as_second() == 0);
        assert!(object.spec.suspended == Some(true) || ended, "{field}");
        let object = read::<VPNClient>(&with(client(), field, value), None).unwrap().object;
        assert!(object.spec.suspended.is_none() || object.spec.expires_at.is_none(), "{field}");
    }
}

#[test]
fn an_odd_status_loses_what_is_odd_and_nothing_else() {
    let odd = with(client(), "/status/nat/mapping", json!("Quantum"));
    let odd = with(odd, "/status/addresses/1", json!("ten"));
    let Reading { object, unread } = read::<VPNClient>(&odd, Some(&client())).unwrap();
    let status = object.status.unwrap();
    assert!(status.nat.is_none(), "it is written anew");
    assert_eq!(status.addresses.len(), 1);
    assert_eq!(status.phase, Some(pinhole_crds::ClientPhase::Connected));
    assert!(!unread.iter().any(Unread::is_of_spec), "{unread:?}");
}

#[test]
fn a_pool_grants_nothing_by_half() {
    let odd = with(pool(), "/spec/enrolment/sidecars/namespaceSelector/matchLabels", json!("a=b"));
    let Reading { object, unread } = read::<VPNClientPool>(&odd, None).unwrap();
    assert_eq!(object.spec.enrolment, None, "an empty selector would be all namespaces");
    assert_eq!(paths(&unread), ["spec.enrolment"]);
    let odd = with(pool(), "/spec/routes/0", json!({ "cidr": "10.96.0.0/12", "ports": [443] }));
    let object = read::<VPNClientPool>(&odd, None).unwrap().object;
    assert_eq!(object.spec.routes, ["10.50.0.0/24".parse().unwrap()]);
    assert_eq!(read::<VPNClientPool>(&odd, Some(&pool())).unwrap().object.spec.routes.len(), 2);
}

#[test]
fn without_what_it_is_about_an_object_is_not_guessed_at() {
    for (pointer, value) in [
        ("/spec/cidrs/0", json!("10.77.0.0/16 and more")),
        ("/spec/cidrs", json!({ "v4": "10.77.0.0/16" })),
        ("/spec/reserved/0", json!(7)),
        ("/spec/gatewayRef/name", json!(["edge"])),
    ] {
        let odd = with(pool(), pointer, value);
        let error = read::<VPNClientPool>(&odd, None).unwrap_err();
        assert!(pointer.replace('/', ".").contains(&error.path), "{pointer} {error}");
        assert!(read::<VPNClientPool>(&odd, Some(&pool())).is_ok(), "{pointer}: known from before");
    }
    for (pointer, value) in [
        ("/spec/exposure/type", json!("GatewayAPI")),
        ("/spec/replicas", json!("auto")),
        ("/spec/mtu", json!("path")),
    ] {
        let odd = with(gateway(), pointer, value);
        assert!(read::<VPNGateway>(&odd, None).is_err(), "{pointer}");
        let object = read::<VPNGateway>(&odd, Some(&gateway())).unwrap().object;
        assert_eq!(object.spec, serde_json::from_value::<VPNGateway>(gateway()).unwrap().spec, "{pointer}");
    }
    assert!(read::<VPNGateway>(&with(gateway(), "/spec/healthMode", json!("New")), None).is_ok());
}

/// With what an operator that understood it wrote.
fn served(pool: Value) -> Value {
    let status = json!({ "inForce": {
        "gateway": "edge", "cidrs": ["10.77.0.0/16"], "reserved": ["10.77.0.2"],
        "routes": ["10.96.0.0/12", "10.50.0.0/24"], "clientToClient": true, "dns": { "servers": ["10.96.0.10"] },
    } });
    let Value::Object(mut pool) = pool else { return pool };
    pool.insert("status".into(), status);
    Value::Object(pool)
}

#[test]
fn a_pool_that_was_not_known_before_keeps_what_its_status_says() {
    let sound: VPNClientPool = serde_json::from_value(pool()).unwrap();
    for (pointer, value) in [
        ("/spec/cidrs/0", json!("10.77.0.0/16 and more")),
        ("/spec/cidrs", json!({ "v4": "10.77.0.0/16" })),
        ("/spec/reserved/0", json!(7)),
        ("/spec/gatewayRef/name", json!(["edge"])),
        ("/spec/gatewayRef", json!("edge")),
        ("/spec/routes/1", json!({ "cidr": "10.50.0.0/24", "ports": [443] })),
        ("/spec/routes", json!("10.50.0.0/24")),
    ] {
        let Reading { object, unread } =
            read::<VPNClientPool>(&served(with(pool(), pointer, value)), None).unwrap();
        assert_eq!(object.spec, sound.spec, "{pointer}");
        assert!(unread.iter().all(|unread| unread.kept), "{pointer}: {unread:?}");
        assert!(unread.iter().any(|unread| pointer.replace('/', ".").contains(&unread.path)), "{unread:?}");
    }
}

#[test]
fn a_field_that_a_newer_version_calls_otherwise_keeps_what_the_status_says() {
    let mut newer = served(pool());
    let spec = newer["spec"].as_object_mut().unwrap();
    spec.remove("cidrs");
    spec.remove("reserved");
    let routes = spec.remove("routes").unwrap();
    spec.insert("ranges".into(), json!([{ "v4": "10.77.0.0/16" }]));
    let Reading { object, unread } = read::<VPNClientPool>(&newer, None).unwrap();
    assert!(object.spec.routes.is_empty(), "what it can do without was left out by whoever wrote it");
    newer["spec"]["routes"] = routes;
    let known = read::<VPNClientPool>(&newer, None).unwrap().object.spec;
    assert_eq!(known, serde_json::from_value::<VPNClientPool>(pool()).unwrap().spec);
    assert_eq!(paths(&unread), ["spec.cidrs", "spec.reserved"]);
    newer["status"]["inForce"]["reserved"] = json!([]);
    assert_eq!(paths(&read::<VPNClientPool>(&newer, None).unwrap().unread), ["spec.cidrs"]);
    newer["status"] = json!({});
    assert!(read::<VPNClientPool>(&newer, None).is_err(), "nothing says what it was");
}

#[test]
fn a_status_that_is_odd_itself_is_no_ground_to_go_by() {
    let odd = served(with(pool(), "/spec/cidrs", json!(7)));
    for cidrs in [json!(["ten"]), json!("10.77.0.0/16"), json!(null)] {
        assert!(read::<VPNClientPool>(&with(odd.clone(), "/status/inForce/cidrs", cidrs), None).is_err());
    }
}

/// Places of all that is in the object below `at`.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), all)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, value)| places(value, &format!("{at}/{n}"), all));
        }
        _ => {}
    }
}

fn all_places(object: &Value, roots: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    roots
        .iter()
        .filter_map(|root| Some((root, object.pointer(root)?)))
        .for_each(|(root, value)| places(value, root, &mut all));
    all
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[A-Z][a-z]{1,9}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,6}", inner, 0..4).prop_map(Value::from_iter),
        ]
    })
}

fn odd(object: &Value, places: &[String], changes: &[(prop::sample::Index, Value)]) -> Value {
    let mut odd = object.clone();
    for (at, value) in changes {
        if let Some(place) = odd.pointer_mut(at.get::<String>(places)) {
            *place = value.clone();
        }
    }
    odd
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Value)>> {
    prop::collection::vec((any::<prop::sample::Index>(), anything()), 1..6)
}

proptest! {
    /// Whatever is odd beside them, a client keeps pool, key and addresses.
    #[test]
    fn a_client_keeps_its_pool_its_key_and_its_addresses(changes in changes(), known in any::<bool>()) {
        let held = ["/status/publicKey", "/status/addresses", "/spec/poolRef", "/spec/publicKey"];
        let places: Vec<String> = all_places(&client(), &["/spec", "/status"])
            .into_iter()
            .filter(|place| place != "/spec" && place != "/status")
            .filter(|place| !held.iter().any(|held| place.starts_with(held)))
            .collect();
        let odd = odd(&client(), &places, &changes);
        let last = client();
        let Reading { object, .. } = read::<VPNClient>(&odd, known.then_some(&last)).unwrap();
        let status = object.status.unwrap();
        prop_assert_eq!(status.public_key.as_deref(), Some(KEY));
        prop_assert_eq!(status.addresses.len(), 2);
        prop_assert_eq!(object.spec.public_key.as_deref(), Some(KEY));
        prop_assert_eq!(object.spec.pool_ref.name.as_str(), "staff");
        prop_assert_eq!(object.metadata.uid.as_deref(), Some("1"));
    }

    /// What was understood once is never lost to an odd spec, and nothing that is read wants mending again.
    #[test]
    fn known_objects_of_every_kind_stay_readable(changes in changes()) {
        fn check<K: Lenient>(object: &Value, changes: &[(prop::sample::Index, Value)]) -> Result<(), TestCaseError> {
            let places: Vec<String> =
                all_places(object, &["/spec", "/status"]).into_iter().filter(|place| place != "/spec").collect();
            let odd = odd(object, &places, changes);
            let reading = read::<K>(&odd, Some(object)).unwrap();
            let again = read::<K>(&serde_json::to_value(&reading.object).unwrap(), None).unwrap();
            prop_assert!(again.unread.is_empty());
            // Without anything known it may be too little, and that is said.
            if let Err(error) = read::<K>(&odd, None) {
                prop_assert!(!error.path.is_empty() && !error.why.is_empty());
            }
            Ok(())
        }
        check::<VPNClient>(&client(), &changes)?;
        check::<VPNClientPool>(&pool(), &changes)?;
        check::<VPNGateway>(&gateway(), &changes)?;
    }
}
