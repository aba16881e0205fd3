//! Statuses of pools.

use pinhole_crds::{
    ClientCounts, Dns, PoolCapacity, READY, RECONCILING, Raw, ReachableScope, STALLED, VPNClientPoolStatus,
};

use super::*;
use crate::{
    ipam::{Denied, Family},
    plan::pool::{ADDRESSES_AVAILABLE, StatusInputs, objects, status},
};

pub(super) fn judged(
    pool: &VPNClientPool,
    gateway: Option<&VPNGateway>,
    overlap: Option<&Overlap>,
    shortage: Option<Denied>,
) -> VPNClientPoolStatus {
    status(StatusInputs { gateway, overlap, shortage, ..inputs(pool) })
}

/// Of a pool of which there is nothing to say.
fn inputs(pool: &VPNClientPool) -> StatusInputs<'_> {
    StatusInputs {
        pool,
        gateway: None,
        overlap: None,
        capacity: PoolCapacity::default(),
        shortage: None,
        clients: ClientCounts::default(),
        nat: None,
        tokens: vec![],
        foreign: &[],
        sidecar_trust: None,
        unread: &[],
        now: at(100),
    }
}

/// Beside an older pool that has 10.77.0.0/16.
fn judge(
    pool: &VPNClientPool,
    gateway: Option<&VPNGateway>,
    shortage: Option<Denied>,
) -> VPNClientPoolStatus {
    let older = super::pool("older", 0, &["10.77.0.0/16"]);
    let overlaps = overlaps(&[&older, pool]);
    let overlap = overlaps.iter().find(|(p, _)| p.metadata.uid == pool.metadata.uid).unwrap().1.as_ref();
    judged(pool, gateway, overlap, shortage)
}

fn ready(gateway: &VPNGateway, ready: &str) -> VPNGateway {
    let mut gateway = gateway.clone();
    let condition = json!({
        "type": "Ready", "status": ready, "reason": "X", "message": "", "lastTransitionTime": Time(at(1)),
    });
    gateway.status = Some(serde_json::from_value(json!({ "conditions": [condition] })).unwrap());
    gateway
}

#[test]
fn a_pool_is_as_ready_as_its_gateway() {
    let staff = pool("staff", 5, &["10.99.0.0/24"]);
    let gateway = load_balancer();
    let of = |gateway: Option<&VPNGateway>| judge(&staff, gateway, None).conditions;
    assert_eq!(verdict(&of(Some(&ready(&gateway, "True"))), READY), said("True", "Serving"));
    assert_eq!(verdict(&of(Some(&ready(&gateway, "Unknown"))), READY), said("Unknown", "GatewayNotReady"));
    assert_eq!(verdict(&of(None), READY), said("False", "GatewayNotFound"));
    assert_eq!(verdict(&of(None), RECONCILING).0, "True", "the gateway may come a moment later");
}

#[test]
fn what_is_in_force_is_written_down_and_is_what_an_older_operator_goes_by() {
    let mut staff = pool("staff", 5, &["10.99.0.0/24", "fd99::/64"]);
    staff.spec.reserved = vec!["10.99.0.7".parse().unwrap()];
    staff.spec.client_to_client = Some(true);
    staff.spec.dns = Some(Dns { servers: vec![ip("10.96.0.10")], search: vec!["local".into()] });
    let mut newer = serde_json::to_value(&staff).unwrap();
    newer["status"] = serde_json::to_value(judge(&staff, None, None)).unwrap();
    for field in ["gatewayRef", "cidrs", "reserved", "routes", "clientToClient", "dns"] {
        newer["spec"][field] = json!(7);
    }
    let newer: Raw<VPNClientPool> = serde_json::from_value(newer).unwrap();
    assert_eq!(newer.read(None).unwrap().object.spec, staff.spec);
}

#[test]
fn the_younger_of_two_overlapping_pools_stalls_with_both_prefixes_named() {
    let gateway = ready(&load_balancer(), "True");
    let younger = pool("younger", 5, &["10.88.0.0/16", "10.77.3.0/24"]);
    let conditions = judge(&younger, Some(&gateway), None).conditions;
    assert_eq!(verdict(&conditions, STALLED), said("True", "OverlappingPool"));
    let message = &find(&conditions, STALLED).message;
    assert!(["10.77.3.0/24", "10.77.0.0/16", "older"].iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn age_decides_between_pools_and_then_the_uid() {
    let verdicts = |pools: &[&VPNClientPool]| {
        let all = overlaps(pools).into_iter();
        all.map(|(p, o)| (p.metadata.name.clone().unwrap(), o.map(|o| o.with))).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (pool("a", 9, &["10.0.0.0/16"]), pool("b", 3, &["10.0.1.0/24"]));
    let expected = BTreeMap::from([("a".to_owned(), Some("b".to_owned())), ("b".to_owned(), None)]);
    assert_eq!(verdicts(&[&a, &b]), expected);
    assert_eq!(verdicts(&[&b, &a]), expected);
    let (c, d) = (pool("c", 3, &["10.0.0.0/16"]), pool("d", 3, &["10.0.0.0/16"]));
    assert_eq!(verdicts(&[&d, &c])["c"], None);
    let apart = pool("e", 1, &["fd00::/48"]);
    assert!(verdicts(&[&apart, &a]).values().all(Option::is_none), "families do not overlap");
}

#[test]
fn a_pool_on_its_way_out_holds_nobody_up() {
    let mut older = pool("older", 1, &["10.0.0.0/16"]);
    older.metadata.deletion_timestamp = Some(Time(at(50)));
    let younger = pool("younger", 5, &["10.0.0.0/16"]);
    assert_eq!(overlaps(&[&older, &younger]), [(&younger, None)]);
}

#[test]
fn a_shortage_is_a_condition_of_its_own_and_leaves_the_pool_ready() {
    let gateway = ready(&load_balancer(), "True");
    let staff = pool("staff", 5, &["10.99.0.0/24"]);
    let conditions = judge(&staff, Some(&gateway), Some(Denied::Exhausted(Family::V4))).conditions;
    assert_eq!(verdict(&conditions, ADDRESSES_AVAILABLE), said("False", "PoolExhausted"));
    assert_eq!(verdict(&conditions, READY).0, "True");
    let conditions = judge(&staff, Some(&gateway), None).conditions;
    assert_eq!(verdict(&conditions, ADDRESSES_AVAILABLE), said("True", "AddressesFree"));
}

#[test]
fn sidecars_find_the_pool_at_port_443_of_its_join_service() {
    let Object::Service(service) = objects(&pool("staff", 5, &["10.99.0.0/24"])).remove(0) else { panic!() };
    assert_eq!(service.metadata.name.as_deref(), Some("staff-join"));
    assert_eq!(service.metadata.owner_references.unwrap()[0].kind, "VPNClientPool");
    let spec = service.spec.unwrap();
    assert_eq!((spec.ports.unwrap()[0].port, spec.publish_not_ready_addresses), (443, Some(true)));
    assert_eq!(spec.selector.unwrap()["app.kubernetes.io/instance"], "edge");
}

#[test]
fn a_service_of_somebody_else_in_its_way_is_named_while_the_pool_serves() {
    let (staff, gateway) = (pool("staff", 5, &["10.99.0.0/24"]), ready(&load_balancer(), "True"));
    let foreign = [Foreign { kind: ObjectKind::Service, name: "staff-join".into(), controller: None }];
    let status = status(StatusInputs { gateway: Some(&gateway), foreign: &foreign, ..inputs(&staff) });
    assert_eq!(verdict(&status.conditions, READY), said("True", "Serving"));
    assert_eq!(verdict(&status.conditions, STALLED), said("True", "ObjectTaken"));
    let stalled = status.conditions.iter().find(|c| c.type_ == STALLED).unwrap();
    assert!(stalled.message.contains("Service staff-join"), "{}", stalled.message);
}

#[test]
fn a_sidecar_trust_of_somebody_else_is_named_at_pools_that_take_sidecars_until_it_is_out_of_the_way() {
    let gateway = ready(&load_balancer(), "True");
    let mut staff = pool("staff", 5, &["10.99.0.0/24"]);
    let conditions = |pool: &VPNClientPool, obstacle: Option<&SidecarTrustObstacle>| {
        status(StatusInputs { gateway: Some(&gateway), sidecar_trust: obstacle, ..inputs(pool) }).conditions
    };
    let foreign = Foreign { kind: ObjectKind::SidecarTrust, name: "pinhole".into(), controller: None };
    let taken = SidecarTrustObstacle::Taken { foreign, namespace: "ops".into() };
    let refused = SidecarTrustObstacle::Refused {
        reason: "Forbidden",
        said: "may not create sidecartrusts".into(),
        namespace: "ops".into(),
    };
    let none = |conditions: &[Condition]| conditions.iter().all(|c| c.type_ != STALLED);
    assert!(none(&conditions(&staff, Some(&taken))), "none of its clients comes by it");
    staff.spec.enrolment = Some(serde_json::from_value(json!({ "sidecars": {} })).unwrap());
    for (obstacle, reason, parts) in [
        (&taken, "ObjectTaken", ["SidecarTrust pinhole", "namespace ops", "delete"]),
        (&refused, "Forbidden", ["namespace ops", "may not create sidecartrusts", "roles"]),
    ] {
        let conditions = conditions(&staff, Some(obstacle));
        assert_eq!(verdict(&conditions, READY), said("True", "Serving"), "those who are in stay");
        assert_eq!(verdict(&conditions, STALLED), said("True", reason));
        let message = &find(&conditions, STALLED).message;
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(none(&conditions(&staff, None)));
}

#[test]
fn the_status_lists_all_that_is_reachable_and_for_what() {
    use ReachableScope::{All, Clients, Gateway};
    let mut staff = pool("staff", 5, &["10.77.0.0/16", "fd77::/64"]);
    let listed = |pool: &VPNClientPool| {
        let reachable = judge(pool, None, None).reachable.into_iter();
        reachable.map(|one| (one.destination.to_string(), one.scope)).collect::<Vec<_>>()
    };
    let of = |list: &[(&str, ReachableScope)]| {
        list.iter().map(|&(destination, scope)| (destination.to_owned(), scope)).collect::<Vec<_>>()
    };
    let gateway = [("10.77.0.1/32", Gateway), ("fd77::1/128", Gateway)];
    let routes = [("10.96.0.0/12", All), ("fd00::/8", All)];
    assert_eq!(listed(&staff), of(&[gateway, routes].concat()));

    staff.spec.client_to_client = Some(true);
    let clients = [("10.77.0.0/16", Clients), ("fd77::/64", Clients)];
    assert_eq!(listed(&staff), of(&[gateway, clients, routes].concat()));

    staff.spec.client_to_client = Some(false);
    // Some of it nobody reaches, whatever the pool names.
    staff.spec.routes = ["10.77.0.0/24", "169.254.0.0/16", "fe80::/64", "10.96.0.0/12"].map(net).to_vec();
    let servers = ["10.96.0.10", "192.0.2.53", "169.254.20.10"].map(ip).to_vec();
    staff.spec.dns = Some(Dns { servers, search: vec![] });
    let rest = [("10.96.0.0/12", All), ("192.0.2.53/32", ReachableScope::Dns)];
    assert_eq!(listed(&staff), of(&[gateway, rest].concat()));

    staff.spec.routes.clear();
    staff.spec.dns = None;
    assert_eq!(listed(&staff), of(&gateway));
}

#[test]
fn gateways_and_clients_are_told_of_other_clients_where_the_pool_grants_them() {
    let gateway = load_balancer();
    let mut staff = pool("staff", 5, &["10.77.0.0/16", "fd77::/64"]);
    let told = |pool: &VPNClientPool| {
        let replicas = [Replica { name: "edge-0".into(), ..Replica::default() }];
        let pools = [PoolInputs { pool, peers: &[] }];
        let inputs = DesiredInputs {
            gateway: &gateway,
            replicas: &replicas,
            pools: &pools,
            shared_keys: &BTreeSet::new(),
            ca_pem: "",
        };
        let pool = desired_states(&inputs).remove("edge-0").unwrap().pools.remove(0);
        (pool.client_to_client, pool.routes)
    };
    let routes = ["10.96.0.0/12", "fd00::/8"].map(str::to_owned);
    let ranges = ["10.77.0.0/16", "fd77::/64"].map(str::to_owned);
    assert_eq!(told(&staff), (Some(false), routes.to_vec()), "it is said, also where it is not granted");
    staff.spec.client_to_client = Some(true);
    assert_eq!(told(&staff), (Some(true), [routes, ranges].concat()));
}
