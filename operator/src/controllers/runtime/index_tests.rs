//! The index against a simple model: after any order of changes it is what a new one is that is shown the result, and who is
//! concerned by a change is told of it.

use std::collections::{BTreeMap, BTreeSet};

use pinhole_crds::VPNClient;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    index::{Effects, Index},
    request::Request,
};
use crate::fleet::{ClientKey, GatewayKey, PoolKey};

/// What may be shown of the cluster, by kind and number.
#[derive(Debug, Clone)]
enum Change {
    Gateway(u8, Option<Value>),
    Pool(u8, Option<Value>),
    Client(u8, Option<Value>),
    /// A pod that asks for a sidecar is there, or not any more.
    Sidecar(u8, bool),
}

fn object(kind: &str, (name, life): (String, u8), spec: &Value) -> Value {
    json!({
        "apiVersion": "pinhole.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {
            "namespace": "vpn", "uid": format!("uid-{name}-{life}"), "name": name,
            // Who was made anew is younger.
            "creationTimestamp": format!("2026-01-0{}T00:00:00Z", life + 1),
        },
    })
}

fn gateway_key(n: u8) -> GatewayKey {
    GatewayKey::new("vpn", format!("gateway{n}").as_str())
}

fn pool_key(n: u8) -> PoolKey {
    PoolKey::new("vpn", format!("pool{n}").as_str())
}

fn client_key(n: u8) -> ClientKey {
    ClientKey::new("vpn", format!("client{n}").as_str())
}

fn pod_uid(n: u8) -> String {
    format!("pod-{n}")
}

fn gateways() -> impl Strategy<Value = Change> {
    let spec = prop_oneof![Just("NodePort"), Just("LoadBalancer")];
    (0..2_u8, proptest::option::of((0..2_u8, spec))).prop_map(|(n, new)| {
        let new = new.map(|(life, exposure)| {
            object("VPNGateway", (format!("gateway{n}"), life), &json!({ "exposure": { "type": exposure } }))
        });
        Change::Gateway(n, new)
    })
}

fn pools() -> impl Strategy<Value = Change> {
    (0..3_u8, proptest::option::of((0..2_u8, any::<bool>()))).prop_map(|(n, new)| {
        let new = new.map(|(life, odd)| {
            // It cannot be changed.
            let gateway = (n + life) % 2;
            let cidr = if odd { json!({ "v4": "10.0.0.0/24" }) } else { json!(format!("10.{n}.0.0/24")) };
            let spec = json!({ "gatewayRef": { "name": format!("gateway{gateway}") }, "cidrs": [cidr], "routes": [] });
            object("VPNClientPool", (format!("pool{n}"), life), &spec)
        });
        Change::Pool(n, new)
    })
}

fn clients() -> impl Strategy<Value = Change> {
    let made = (0..2_u8, proptest::option::of(0..2_u8), proptest::option::of(0..3_u8), 0..4_u8);
    (0..4_u8, proptest::option::of(made)).prop_map(|(n, new)| {
        let new = new.map(|(life, key, pod, seen)| {
            let pool = (n + life) % 3;
            let mut spec = json!({ "poolRef": { "name": format!("pool{pool}") } });
            if let Some(key) = key {
                spec["publicKey"] = json!(format!("key{key}"));
            }
            if let Some(pod) = pod {
                let pod = json!({ "namespace": "web", "name": "web-0", "uid": pod_uid(pod) });
                spec["enrolment"] = json!({ "method": "ServiceAccount", "pod": pod });
            }
            let mut client = object("VPNClient", (format!("client{n}"), life), &spec);
            if seen > 0 {
                let phases = ["Pending", "Connected", "Dormant"];
                client["status"] = json!({
                    "phase": phases[usize::from(seen) - 1],
                    "addresses": if seen > 1 { json!([format!("10.{pool}.0.{}", n + 2)]) } else { json!([]) },
                });
            }
            client
        });
        Change::Client(n, new)
    })
}

fn changes() -> impl Strategy<Value = Change> {
    let sidecars = (0..3_u8, any::<bool>()).prop_map(|(n, there)| Change::Sidecar(n, there));
    prop_oneof![1 => gateways(), 2 => pools(), 6 => clients(), 1 => sidecars]
}

fn show(index: &mut Index, change: &Change) -> Effects {
    fn raw<T: serde::de::DeserializeOwned>(new: Option<&Value>) -> Option<T> {
        new.map(|new| serde_json::from_value(new.clone()).unwrap())
    }
    match change {
        Change::Gateway(n, new) => index.gateway_read(&gateway_key(*n), raw(new.as_ref())),
        Change::Pool(n, new) => index.pool_read(&pool_key(*n), raw(new.as_ref())),
        Change::Client(n, new) => index.client_read(client_key(*n), raw(new.as_ref())),
        Change::Sidecar(n, there) => index.sidecar_changed(&pod_uid(*n), *there),
    }
}

/// What reconcilers read of clients and of whose they are.
#[derive(Debug, PartialEq)]
struct Read {
    clients: BTreeMap<u8, (Vec<String>, BTreeSet<ClientKey>, String)>,
    pools: BTreeMap<u8, BTreeSet<String>>,
    uids: BTreeMap<String, Option<ClientKey>>,
    twins: BTreeMap<(u8, u8), Option<ClientKey>>,
    sidecars: BTreeSet<String>,
    below: BTreeMap<u8, BTreeSet<Request>>,
}

fn read(index: &Index) -> Read {
    let name = |client: &VPNClient| client.metadata.name.clone().unwrap_or_default();
    let of_pool = |n: u8| {
        let key = pool_key(n);
        let clients = index.clients_of(&key).iter().map(|client| name(client)).collect();
        (n, (clients, index.waiting_of(&key).collect(), format!("{:?}", index.count(&key))))
    };
    let pools_of = |n: u8| {
        let pools = index.pools_of(&gateway_key(n));
        (n, pools.iter().filter_map(|pool| pool.metadata.name.clone()).collect())
    };
    let uids = (0..4_u8).flat_map(|n| (0..2_u8).map(move |life| format!("uid-client{n}-{life}")));
    let twin = |(n, g): (u8, u8)| {
        let client = index.client(&client_key(n));
        ((n, g), client.and_then(|client| index.key_twin(&client, &gateway_key(g))))
    };
    Read {
        clients: (0..3).map(of_pool).collect(),
        pools: (0..2).map(pools_of).collect(),
        uids: uids.map(|uid| (uid.clone(), index.client_key(&uid).cloned())).collect(),
        twins: (0..4).flat_map(|n| [(n, 0), (n, 1)]).map(twin).collect(),
        sidecars: (0..3).map(pod_uid).filter(|uid| index.has_sidecar_pod(uid)).collect(),
        below: (0..2).map(|n| (n, index.below(&gateway_key(n)))).collect(),
    }
}

/// What a gateway's replicas would be told of clients: whose keys, at which addresses.
fn peers(index: &Index, gateway: &GatewayKey) -> Vec<String> {
    let pools = index.pools_of(gateway);
    let clients = pools.iter().flat_map(|pool| index.clients_of(&PoolKey::from(pool.as_ref())));
    let peer = |client: &VPNClient| {
        let addresses = client.status.as_ref().map(|status| status.addresses.clone());
        format!("{:?} {:?} {addresses:?}", client.metadata.uid, client.spec)
    };
    let mut peers: Vec<_> = clients.map(|client| peer(&client)).collect();
    peers.sort();
    peers
}

proptest! {
    #[test]
    fn any_order_of_changes_ends_as_if_only_the_result_had_been_shown(shown in prop::collection::vec(changes(), 1..40)) {
        let mut index = Index::default();
        let mut last: BTreeMap<(u8, u8), &Change> = BTreeMap::new();
        for change in &shown {
            show(&mut index, change);
            let (kind, n) = match change {
                Change::Gateway(n, _) => (0, *n),
                Change::Pool(n, _) => (1, *n),
                Change::Client(n, _) => (2, *n),
                Change::Sidecar(n, _) => (3, *n),
            };
            last.insert((kind, n), change);
        }
        // What is not understood any more stays as it was known, which nobody can tell who sees the end alone.
        prop_assume!((0..3).all(|n| index.unread_pool(&pool_key(n)).is_empty()));
        let mut anew = Index::default();
        for change in last.values() {
            show(&mut anew, change);
        }
        prop_assert_eq!(read(&index), read(&anew));
        prop_assert_eq!(index.all(), anew.all());
    }

    #[test]
    fn whoever_is_concerned_by_a_change_is_asked_to_reconcile(shown in prop::collection::vec(changes(), 1..40)) {
        let mut index = Index::default();
        for change in &shown {
            let told = [0, 1].map(|n| peers(&index, &gateway_key(n)));
            let counted = read(&index).clients;
            let holders: Vec<_> = (0..4).filter_map(|n| index.client(&client_key(n))).collect();
            let effects = show(&mut index, change);
            prop_assert!((0..4).all(|n| index.unread_client(&client_key(n)).is_empty()), "clients are sound here");
            for n in [0, 1] {
                let is_told = effects.request.contains(&Request::Peers(gateway_key(n)));
                prop_assert!(is_told || peers(&index, &gateway_key(n)) == told[usize::from(n)], "gateway{} {:?}", n, change);
            }
            for (n, of_pool) in &read(&index).clients {
                let is_told = effects.request.contains(&Request::Pool(pool_key(*n)));
                prop_assert!(is_told || counted[n].2 == of_pool.2, "pool{} {:?}", n, change);
            }
            if let Change::Sidecar(n, false) = change {
                let of_pod = |client: &VPNClient| {
                    let pod = client.spec.enrolment.as_ref().and_then(|enrolment| enrolment.pod.as_ref());
                    pod.is_some_and(|pod| pod.uid == pod_uid(*n))
                };
                let asked = holders.iter().filter(|client| of_pod(client)).all(|client| {
                    effects.request.contains(&Request::Client(ClientKey::from(client.as_ref())))
                });
                prop_assert!(asked, "the clients of {}: {:?}", pod_uid(*n), effects);
            }
            for before in holders {
                let uid = before.metadata.uid.clone().unwrap_or_default();
                let is_gone = effects.gone.iter().any(|(pool, gone)| *gone == uid && *pool == super::pool_of(&before));
                prop_assert_eq!(is_gone, !index.has_client(&uid), "its address is free: {:?}", change);
            }
        }
    }
}
