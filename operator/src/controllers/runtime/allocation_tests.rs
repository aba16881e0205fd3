//! Allocators over a change of leaders, of pools and of minds: what somebody holds is never given to another.

use serde_json::{Value, json};

use super::*;
use crate::fleet::ClientKey;

fn pool(uid: &str, cidr: &str) -> VPNClientPool {
    serde_json::from_value(json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool",
        "metadata": { "name": "staff", "namespace": "vpn", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "gatewayRef": { "name": "edge" }, "cidrs": [cidr], "routes": [] },
    }))
    .unwrap()
}

/// Made on this day of January, with these addresses in its status.
fn client(name: &str, day: u8, held: &[&str]) -> VPNClient {
    let object: Value = json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
        "metadata": {
            "name": name, "namespace": "vpn", "uid": format!("uid-{name}"),
            "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z"),
        },
        "spec": { "poolRef": { "name": "staff" } }, "status": { "addresses": held },
    });
    serde_json::from_value(object).unwrap()
}

fn index(clients: &[&VPNClient]) -> Index {
    let mut index = Index::default();
    for client in clients {
        let raw = serde_json::from_value(serde_json::to_value(client).unwrap()).unwrap();
        index.client_read(ClientKey::from(*client), Some(raw));
    }
    index
}

fn staff() -> PoolKey {
    PoolKey::new("vpn", "staff")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_new_leader_gives_nobody_what_another_holds_also_where_its_watch_has_not_shown_that_one() {
    let (old, pool) = (client("old", 1, &["10.0.0.2"]), pool("a", "10.0.0.0/29"));
    let (seen, listed) = (Allocations::default(), Allocations::default());
    listed.load(std::slice::from_ref(&old));
    for (allocations, index) in [(seen, index(&[&old])), (listed, index(&[]))] {
        let given = allocations.assign(&index, &pool, &client("new", 2, &[]));
        assert_eq!(given.addresses, [ip("10.0.0.3")]);
        assert_eq!(allocations.held(&staff(), "uid-old"), [ip("10.0.0.2")]);
        assert_eq!(allocations.assign(&index, &pool, &old).addresses, [ip("10.0.0.2")]);
    }
}

#[test]
fn of_two_that_claim_one_address_the_older_has_it_and_the_younger_hears_so() {
    let (old, young) = (client("old", 1, &["10.0.0.2"]), client("young", 2, &["10.0.0.2"]));
    let (pool, index) = (pool("a", "10.0.0.0/29"), index(&[]));
    let allocations = Allocations::default();
    assert_eq!(allocations.assign(&index, &pool, &young).addresses, [ip("10.0.0.2")], "nobody else is known");
    let given = allocations.assign(&index, &pool, &old);
    assert_eq!((given.addresses, given.displaced), (vec![ip("10.0.0.2")], vec!["uid-young".to_owned()]));
    let given = allocations.assign(&index, &pool, &young);
    assert_eq!((given.addresses, given.refused), (vec![ip("10.0.0.3")], vec![ip("10.0.0.2")]));
}

#[test]
fn who_does_not_exist_is_released_by_the_second_sweep_and_not_before() {
    let (pool, index) = (pool("a", "10.0.0.0/29"), index(&[]));
    let allocations = Allocations::default();
    allocations.assign(&index, &pool, &client("gone", 1, &[]));
    allocations.assign(&index, &pool, &client("late", 1, &[]));
    allocations.sweep(|_| false);
    allocations.sweep(|uid| uid == "uid-late");
    assert_eq!(allocations.held(&staff(), "uid-gone"), Vec::<IpAddr>::new());
    assert_eq!(allocations.held(&staff(), "uid-late"), [ip("10.0.0.3")], "its watch was late");
    allocations.sweep(|_| false);
    assert_eq!(allocations.held(&staff(), "uid-late"), [ip("10.0.0.3")], "it was there in between");
}

#[test]
fn a_pool_that_is_full_says_so_until_somebody_leaves() {
    let (pool, index) = (pool("a", "10.0.0.0/30"), index(&[]));
    let allocations = Allocations::default();
    assert_eq!(allocations.assign(&index, &pool, &client("one", 1, &[])).addresses, [ip("10.0.0.2")]);
    let two = client("two", 2, &[]);
    let denied = allocations.assign(&index, &pool, &two);
    assert!(denied.addresses.is_empty() && denied.denied.is_some(), "{denied:?}");
    assert!(allocations.capacity(&index, &pool).1.is_some());
    allocations.release(&staff(), "uid-one");
    assert_eq!(allocations.assign(&index, &pool, &two).addresses, [ip("10.0.0.2")]);
}

#[test]
fn a_pool_that_was_made_anew_begins_with_what_its_clients_still_hold() {
    let kept = client("kept", 2, &["10.9.0.7"]);
    let (index, allocations) = (index(&[&kept]), Allocations::default());
    allocations.assign(&index, &pool("a", "10.0.0.0/29"), &client("other", 1, &[]));
    let anew = pool("b", "10.9.0.0/29");
    assert_eq!(allocations.assign(&index, &anew, &client("new", 3, &[])).addresses, [ip("10.9.0.2")]);
    assert_eq!(allocations.held(&staff(), "uid-kept"), Vec::<IpAddr>::new(), "that one is no host of it");
    let wider = pool("b", "10.9.0.0/28");
    assert_eq!(allocations.assign(&index, &wider, &kept).addresses, [ip("10.9.0.7")]);
    allocations.remove(&staff());
    assert_eq!(allocations.held(&staff(), "uid-kept"), Vec::<IpAddr>::new());
}
