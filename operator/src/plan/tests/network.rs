//! What a gateway's NetworkPolicy lets through, by every reading of it.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};

use super::{
    traffic::{Direction, Flow, Labels, Peer, Prefixes, admits},
    *,
};

const READINGS: [Prefixes; 2] = [Prefixes::Addresses, Prefixes::Outside];
const METADATA: [&str; 4] = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"];

fn settings(traffic: Option<GatewayEgress>, metrics_from: &Value) -> Settings {
    Settings {
        namespace: "pinhole-system".into(),
        service_name: "pinhole-operator".into(),
        service_port: 8443,
        gateway_image: "pinhole/agent:1".into(),
        gateway_policy: traffic,
        metrics_from: serde_json::from_value::<Vec<NetworkPolicyPeer>>(metrics_from.clone()).unwrap(),
    }
}

fn policy_for(pools: &[VPNClientPool], traffic: GatewayEgress, metrics_from: &Value) -> NetworkPolicy {
    match network_policy(&load_balancer(), pools, &settings(Some(traffic), metrics_from)) {
        Some(Object::NetworkPolicy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

fn policy(traffic: GatewayEgress) -> NetworkPolicy {
    policy_for(&[], traffic, &json!([{ "namespaceSelector": {} }]))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(namespace: &str, app: &str) -> Peer {
    Peer::Pod {
        address: address("10.244.0.9"),
        labels: labels(&[("app.kubernetes.io/name", app)]),
        namespace: labels(&[("kubernetes.io/metadata.name", namespace)]),
        ports: [("link".to_owned(), 8443)].into(),
    }
}

fn outside(text: &str) -> Peer {
    Peer::Outside(address(text))
}

fn node() -> Peer {
    Peer::Node(address("10.0.0.7"))
}

fn passes(
    policy: &NetworkPolicy,
    direction: Direction,
    peer: &Peer,
    protocol: &'static str,
    port: u16,
) -> [bool; 2] {
    let flow = Flow { direction, peer: peer.clone(), protocol, port };
    READINGS.map(|reading| admits(policy, &BTreeMap::new(), &flow, reading))
}

fn comes_in(policy: &NetworkPolicy, peer: &Peer, protocol: &'static str, port: u16) -> [bool; 2] {
    passes(policy, Direction::Ingress, peer, protocol, port)
}

fn goes_out(policy: &NetworkPolicy, peer: &Peer, protocol: &'static str, port: u16) -> [bool; 2] {
    passes(policy, Direction::Egress, peer, protocol, port)
}

#[test]
fn clients_reach_tunnel_and_session_from_anywhere_and_nothing_else() {
    let policy = policy(GatewayEgress::Any);
    for peer in [outside("198.51.100.7"), outside("2001:db8::7"), node(), pod("web", "shop")] {
        assert_eq!(comes_in(&policy, &peer, "UDP", 51820), [true; 2], "{peer:?}");
        assert_eq!(comes_in(&policy, &peer, "TCP", 51821), [true; 2], "{peer:?}");
        assert_eq!(comes_in(&policy, &peer, "UDP", 51821), [false; 2], "{peer:?}");
        assert_eq!(comes_in(&policy, &peer, "TCP", 22), [false; 2], "{peer:?}");
    }
}

#[test]
fn metrics_are_for_those_that_the_setting_names() {
    let scraper = pod("monitoring", "prometheus");
    let open = policy(GatewayEgress::Any);
    assert_eq!(comes_in(&open, &scraper, "TCP", 9090), [true; 2]);
    assert_eq!(comes_in(&open, &outside("198.51.100.7"), "TCP", 9090), [false; 2]);
    let named =
        json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } }]);
    let narrow = policy_for(&[], GatewayEgress::Any, &named);
    assert_eq!(comes_in(&narrow, &scraper, "TCP", 9090), [true; 2]);
    assert_eq!(comes_in(&narrow, &pod("web", "prometheus"), "TCP", 9090), [false; 2]);
    let closed = policy_for(&[], GatewayEgress::Any, &json!([]));
    assert_eq!(comes_in(&closed, &scraper, "TCP", 9090), [false; 2]);
}

#[test]
fn by_default_everything_goes_out_whatever_a_plugin_takes_a_prefix_for() {
    let policy = policy(GatewayEgress::Any);
    for peer in [outside("192.0.2.1"), node(), pod("web", "shop")] {
        assert_eq!(goes_out(&policy, &peer, "TCP", 443), [true; 2]);
    }
}

#[test]
fn no_metadata_service_is_reached_where_link_local_addresses_are_shut() {
    let mut wide = pool("staff", 1, &["10.8.0.0/24"]);
    wide.spec.routes =
        ["0.0.0.0/0", "::/0", "169.254.0.0/16", "169.254.169.254/32"].map(|r| r.parse().unwrap()).into();
    for traffic in [GatewayEgress::NotLinkLocal, GatewayEgress::Routes] {
        let policy = policy_for(std::slice::from_ref(&wide), traffic, &json!([]));
        for metadata in METADATA {
            assert_eq!(goes_out(&policy, &outside(metadata), "TCP", 80), [false; 2], "{metadata}");
        }
        // A node's own cache of DNS.
        assert_eq!(goes_out(&policy, &outside("169.254.20.10"), "UDP", 53), [true; 2]);
        assert_eq!(goes_out(&policy, &outside("169.254.20.10"), "TCP", 53), [true; 2]);
        for elsewhere in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(goes_out(&policy, &outside(elsewhere), "TCP", 443), [true; 2], "{elsewhere}");
        }
    }
}

/// Why it is not the default.
#[test]
fn shutting_link_local_addresses_also_shuts_nodes_where_a_prefix_is_for_what_is_outside() {
    let policy = policy(GatewayEgress::NotLinkLocal);
    assert_eq!(goes_out(&policy, &pod("web", "shop"), "TCP", 443), [true; 2]);
    assert_eq!(goes_out(&policy, &node(), "TCP", 6443), [true, false]);
    assert_eq!(goes_out(&policy, &node(), "UDP", 31820), [true; 2]);
}

#[test]
fn strict_gateways_reach_their_operator_their_routes_and_clients_anywhere() {
    let mut staff = pool("staff", 1, &["10.8.0.0/24"]);
    staff.spec.dns = serde_json::from_value(json!({ "servers": ["192.0.2.53"] })).unwrap();
    let policy = policy_for(&[staff, pool("ops", 2, &["10.9.0.0/24"])], GatewayEgress::Routes, &json!([]));
    let operator = pod("pinhole-system", "pinhole-operator");
    assert_eq!(goes_out(&policy, &operator, "TCP", 8443), [true; 2]);
    assert_eq!(goes_out(&policy, &operator, "TCP", 8080), [false; 2]);
    assert_eq!(goes_out(&policy, &pod("web", "pinhole-operator"), "TCP", 8443), [false; 2]);
    assert_eq!(goes_out(&policy, &outside("10.100.0.1"), "TCP", 443), [true; 2]);
    assert_eq!(goes_out(&policy, &outside("fd00::1"), "TCP", 443), [true; 2]);
    assert_eq!(goes_out(&policy, &outside("192.0.2.53"), "TCP", 853), [true; 2]);
    assert_eq!(goes_out(&policy, &outside("192.0.2.54"), "TCP", 443), [false; 2]);
    for client in [outside("203.0.113.5"), node(), pod("web", "sidecar")] {
        assert_eq!(goes_out(&policy, &client, "UDP", 40404), [true; 2]);
    }
}

#[test]
fn without_pools_a_strict_gateway_reaches_no_more_than_its_operator() {
    let policy = policy(GatewayEgress::Routes);
    assert_eq!(goes_out(&policy, &outside("192.0.2.1"), "TCP", 443), [false; 2]);
    assert_eq!(goes_out(&policy, &pod("pinhole-system", "pinhole-operator"), "TCP", 8443), [true; 2]);
}

#[test]
fn the_policy_is_the_gateways_and_selects_its_pods_alone() {
    let policy = policy(GatewayEgress::Routes);
    let owner = &policy.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("VPNGateway", "uid-edge"));
    let selected = policy.spec.unwrap().pod_selector.unwrap().match_labels.unwrap();
    assert_eq!(
        selected,
        labels(&[("app.kubernetes.io/name", "pinhole-gateway"), ("app.kubernetes.io/instance", "edge")])
    );
}

#[test]
fn pools_in_another_order_make_the_same_policy() {
    let (a, b) = (pool("a", 1, &["10.8.0.0/24"]), pool("b", 2, &["10.9.0.0/24"]));
    let planned = |pools: &[VPNClientPool]| policy_for(pools, GatewayEgress::Routes, &json!([]));
    assert_eq!(planned(&[a.clone(), b.clone()]), planned(&[b, a]));
}

#[test]
fn without_the_setting_there_is_no_policy() {
    assert_eq!(network_policy(&load_balancer(), [], &settings(None, &json!([]))), None);
}
