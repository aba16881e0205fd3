//! Objects and statuses of gateways.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Service};
use pinhole_crds::{ClientCounts, READY, RECONCILING, STALLED, VPNGatewayStatus};

use super::*;
use crate::{
    fleet::GatewayView,
    plan::gateway::{StatusInputs, objects, status},
};

fn settings() -> Settings {
    Settings {
        namespace: "pinhole-system".into(),
        service_name: "pinhole-operator".into(),
        service_port: 8443,
        gateway_image: "pinhole/agent:1".into(),
        gateway_policy: None,
        metrics_from: Vec::new(),
    }
}

fn planned(gateway: &VPNGateway) -> Vec<Object> {
    objects(gateway, &settings(), "PEM")
}

fn stateful_set(gateway: &VPNGateway) -> StatefulSet {
    let found = planned(gateway).into_iter().find_map(|o| match o {
        Object::StatefulSet(s) => Some(*s),
        _ => None,
    });
    found.unwrap()
}

fn services(gateway: &VPNGateway) -> BTreeMap<String, Service> {
    let all = planned(gateway).into_iter().filter_map(|o| match o {
        Object::Service(s) => Some((s.metadata.name.clone().unwrap(), *s)),
        _ => None,
    });
    all.collect()
}

fn judge(
    gateway: &VPNGateway,
    view: Option<ReplicaView>,
    pods: &BTreeMap<String, PodFacts>,
) -> VPNGatewayStatus {
    let view = GatewayView { replicas: view.map(|v| ("edge-0".to_owned(), v)).into_iter().collect() };
    let inputs = StatusInputs {
        gateway,
        replicas: &balanced(gateway),
        pods,
        refused: &BTreeMap::new(),
        unbalanced: &BTreeMap::new(),
        evicted: &BTreeMap::new(),
        view: &view,
        clients: ClientCounts::default(),
        nat: None,
        obstacle: None,
        unread: &[],
        frozen_pool: None,
        now: at(100),
    };
    status(&inputs).0
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn everything_of_a_gateway_is_owned_by_it_and_blocks_no_deletion() {
    for object in planned(&load_balancer()) {
        let owners = object.meta().owner_references.clone().unwrap();
        assert_eq!(owners.len(), 1);
        assert_eq!((owners[0].uid.as_str(), owners[0].block_owner_deletion), ("uid-edge", Some(false)));
        assert_eq!(object.meta().labels.as_ref().unwrap()[GATEWAY_LABEL], "edge");
        assert!(object.meta().finalizers.is_none());
    }
}

#[test]
fn the_same_gateway_is_always_the_same_bytes() {
    let bytes =
        || planned(&load_balancer()).iter().map(|o| o.to_value().unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(bytes(), bytes());
}

#[test]
fn pods_have_net_admin_alone_and_no_api_token() {
    let pod = stateful_set(&load_balancer()).spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false));
    let context = pod.containers[0].security_context.clone().unwrap();
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN"]);
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    assert_eq!(
        (context.privileged, context.allow_privilege_escalation, context.read_only_root_filesystem),
        (None, Some(false), Some(true))
    );
}

#[test]
fn every_place_that_the_agent_writes_to_is_a_volume() {
    let pod = stateful_set(&load_balancer()).spec.unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.clone().unwrap();
    let writable = |path: &str| {
        let mount = mounts.iter().find(|mount| mount.mount_path == path && mount.read_only.is_none());
        let volume = pod.volumes.iter().flatten().find(|volume| Some(&volume.name) == mount.map(|m| &m.name));
        volume.is_some_and(|volume| volume.empty_dir.is_some())
    };
    assert!(writable("/var/lib/pinhole"));
    assert!(writable("/var/run/wireguard"), "sockets for `wg`");
}

#[test]
fn users_labels_cannot_break_the_selector() {
    let spec = json!({
        "exposure": { "type": "LoadBalancer" },
        "pod": { "labels": { "app.kubernetes.io/instance": "other", "team": "net" } },
    });
    let set = stateful_set(&gateway(&spec)).spec.unwrap();
    let labels = set.template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels["team"], "net");
    assert!(set.selector.match_labels.unwrap().iter().all(|(k, v)| labels[k] == *v));
}

#[test]
fn each_exposure_has_its_services_and_ports() {
    for (type_, service_type, policy, host_port) in [
        ("LoadBalancer", "LoadBalancer", Some("Local"), None),
        ("NodePort", "NodePort", Some("Local"), None),
        ("HostPort", "ClusterIP", None, Some(51820)),
    ] {
        let gateway = gateway(&json!({ "exposure": { "type": type_ }, "replicas": 2 }));
        let services = services(&gateway);
        assert_eq!(services.keys().collect::<Vec<_>>(), ["edge", "edge-0", "edge-1"]);
        let spec = services["edge-1"].spec.clone().unwrap();
        assert_eq!(spec.type_.as_deref(), Some(service_type));
        assert_eq!(spec.external_traffic_policy.as_deref(), policy);
        assert_eq!(spec.publish_not_ready_addresses, Some(true));
        assert_eq!(spec.selector.unwrap()["statefulset.kubernetes.io/pod-name"], "edge-1");
        let pod = stateful_set(&gateway).spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.containers[0].ports.as_ref().unwrap()[0].host_port, host_port);
        let anti = pod.affinity.unwrap().pod_anti_affinity.unwrap();
        let required = anti.required_during_scheduling_ignored_during_execution;
        assert_eq!(required.is_some(), type_ == "HostPort", "two cannot share a host port");
    }
}

#[test]
fn a_load_balancer_may_give_an_address_or_a_name() {
    let gateway = load_balancer();
    let hosts = |ingress: Value| {
        let services = service("edge-0", &json!({}), &json!({ "loadBalancer": { "ingress": ingress } }));
        let observed = Observed {
            services: &services,
            pods: &BTreeMap::new(),
            nodes: &BTreeMap::new(),
            public_keys: &BTreeMap::new(),
        };
        texts(&replicas(&gateway, &observed)[0].tunnel_endpoints)
    };
    assert_eq!(hosts(json!([{ "ip": "203.0.113.7" }])), ["203.0.113.7:51820"]);
    assert_eq!(hosts(json!([{ "hostname": "lb.example.com" }])), ["lb.example.com:51820"]);
    assert_eq!(hosts(json!([{ "ip": "2001:db8::7" }])), ["[2001:db8::7]:51820"]);
    assert!(hosts(json!([])).is_empty());
}

/// What a load balancer that has given these addresses makes of a gateway with two replicas.
fn two_behind(exposure: &Value, given: [&[&str]; 2]) -> (VPNGateway, Vec<Replica>) {
    let mut exposure = exposure.clone();
    exposure["type"] = json!("LoadBalancer");
    let gateway = gateway(&json!({ "exposure": exposure, "replicas": 2 }));
    let mut services = BTreeMap::new();
    for (n, given) in given.into_iter().enumerate() {
        let ingress: Vec<Value> = given.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "loadBalancer": { "ingress": ingress } });
        services.extend(service(&format!("edge-{n}"), &json!({}), &status));
    }
    let keys = BTreeMap::from([("edge-0".to_owned(), [7; 32]), ("edge-1".to_owned(), [8; 32])]);
    let observed =
        Observed { services: &services, pods: &BTreeMap::new(), nodes: &BTreeMap::new(), public_keys: &keys };
    let replicas = replicas(&gateway, &observed);
    (gateway, replicas)
}

/// Both run and are heard.
fn judge_both(gateway: &VPNGateway, replicas: &[Replica]) -> VPNGatewayStatus {
    let names = || replicas.iter().map(|replica| replica.name.clone());
    let pods = names().map(|name| (name, running("n1").remove("edge-0").unwrap())).collect();
    let proven = replica_view(Some(seconds(1)), Some((PathProof::PodAddress, seconds(1))));
    let inputs = StatusInputs {
        gateway,
        replicas,
        pods: &pods,
        refused: &BTreeMap::new(),
        unbalanced: &BTreeMap::new(),
        evicted: &BTreeMap::new(),
        view: &GatewayView { replicas: names().map(|name| (name, proven.clone())).collect() },
        clients: ClientCounts::default(),
        nat: None,
        obstacle: None,
        unread: &[],
        frozen_pool: None,
        now: at(100),
    };
    status(&inputs).0
}

#[test]
fn a_second_replica_that_gets_no_load_balancer_is_named() {
    let (gateway, replicas) = two_behind(&json!({}), [&["203.0.113.7"], &[]]);
    let status = judge_both(&gateway, &replicas);
    assert_eq!(verdict(&status.conditions, READY).0, "True");
    assert_eq!(verdict(&status.conditions, RECONCILING), said("True", "ReplicasWithoutAddress"));
    let message = &find(&status.conditions, RECONCILING).message;
    assert!(message.starts_with("edge-1 got no address") && message.contains("replicas to 1"), "{message}");
    let (gateway, replicas) = two_behind(&json!({}), [&["203.0.113.7"], &["203.0.113.8"]]);
    let status = judge_both(&gateway, &replicas);
    assert!(status.conditions.iter().all(|c| c.type_ != RECONCILING), "both have one");
}

#[test]
fn one_address_leads_to_one_replica_alone() {
    let (gateway, replicas) = two_behind(&json!({}), [&["203.0.113.7"], &["203.0.113.7"]]);
    assert_eq!(texts(&replicas[0].tunnel_endpoints), ["203.0.113.7:51820"]);
    assert!(replicas[1].tunnel_endpoints.is_empty() && replicas[1].session_endpoints.is_empty());
    assert!(replicas[1].hosts.is_empty());
    let status = judge_both(&gateway, &replicas);
    assert_eq!(verdict(&status.conditions, RECONCILING), said("True", "ReplicasWithoutAddress"));
}

/// As it may stand in a cluster from before the schema forbade it.
#[test]
fn one_name_for_two_replicas_is_the_firsts_and_said_to_be_wrong() {
    let (gateway, replicas) = two_behind(&json!({ "addresses": ["vpn.example.org"] }), [&[], &[]]);
    assert_eq!(texts(&replicas[0].tunnel_endpoints), ["vpn.example.org:51820"]);
    assert!(replicas[1].tunnel_endpoints.is_empty());
    let status = judge_both(&gateway, &replicas);
    let wrong = verdict(&status.conditions, pinhole_crds::PARTIALLY_INVALID);
    assert_eq!(wrong, said("True", "ExposureAddressShared"));
}

#[test]
fn a_service_for_each_protocol_gives_each_its_address() {
    let spec = json!({ "exposure": { "type": "LoadBalancer", "servicePerProtocol": true } });
    let gateway = gateway(&spec);
    let made = services(&gateway);
    assert_eq!(made.keys().collect::<Vec<_>>(), ["edge", "edge-0", "edge-0-session"]);
    for (name, protocol) in [("edge-0", "UDP"), ("edge-0-session", "TCP")] {
        let spec = made[name].spec.clone().unwrap();
        let ports = spec.ports.unwrap();
        assert_eq!((ports.len(), ports[0].protocol.as_deref()), (1, Some(protocol)));
        assert_eq!(spec.type_.as_deref(), Some("LoadBalancer"));
        assert_eq!(spec.selector.unwrap()["statefulset.kubernetes.io/pod-name"], "edge-0");
    }
    assert_eq!(replica_services(&gateway), ["edge-0", "edge-0-session"], "neither is surplus");
    let given = |ip: &str| json!({ "loadBalancer": { "ingress": [{ "ip": ip }] } });
    let mut seen = service("edge-0", &json!({ "clusterIPs": ["10.96.0.7"] }), &given("203.0.113.7"));
    seen.extend(service("edge-0-session", &json!({ "clusterIPs": ["10.96.0.8"] }), &given("203.0.113.8")));
    let nothing = (BTreeMap::new(), BTreeMap::new());
    let observed =
        Observed { services: &seen, pods: &nothing.0, nodes: &nothing.1, public_keys: &BTreeMap::new() };
    let replica = replicas(&gateway, &observed).remove(0);
    assert_eq!(texts(&replica.tunnel_endpoints), ["203.0.113.7:51820"]);
    assert_eq!(texts(&replica.session_endpoints), ["203.0.113.8:51821"]);
    assert_eq!(texts(&replica.cluster_tunnel_endpoints), ["10.96.0.7:51820"]);
    assert_eq!(texts(&replica.cluster_session_endpoints), ["10.96.0.8:51821"]);
}

#[test]
fn a_node_port_is_reached_at_the_node_that_runs_the_replica() {
    let gateway = gateway(&json!({ "exposure": { "type": "NodePort" } }));
    let ports = json!({ "ports": [
        { "name": "tunnel", "port": 51820, "nodePort": 31000 }, { "name": "session", "port": 51821, "nodePort": 31001 },
    ]});
    let services = service("edge-0", &ports, &json!({}));
    let node = |external: &[&str], internal: &[&str]| NodeFacts {
        external: external.iter().map(|a| ip(a)).collect(),
        internal: internal.iter().map(|a| ip(a)).collect(),
        lost: None,
    };
    let endpoints = |nodes: &BTreeMap<String, NodeFacts>| {
        let observed =
            Observed { services: &services, pods: &running("n1"), nodes, public_keys: &BTreeMap::new() };
        let replica = replicas(&gateway, &observed).remove(0);
        (texts(&replica.tunnel_endpoints), texts(&replica.session_endpoints))
    };
    let nodes = BTreeMap::from([
        ("n1".to_owned(), node(&["198.51.100.4"], &["10.0.0.4"])),
        ("n2".to_owned(), node(&["198.51.100.5"], &[])),
    ]);
    assert_eq!(endpoints(&nodes), (vec!["198.51.100.4:31000".into()], vec!["198.51.100.4:31001".into()]));
    let nodes = BTreeMap::from([("n1".to_owned(), node(&[], &["10.0.0.4"]))]);
    assert_eq!(endpoints(&nodes).0, ["10.0.0.4:31000"]);
}

#[test]
fn the_users_own_addresses_come_before_what_the_cluster_says() {
    let spec = json!({ "exposure": { "type": "LoadBalancer", "addresses": ["vpn.example.com"] } });
    assert_eq!(texts(&balanced(&gateway(&spec))[0].tunnel_endpoints), ["vpn.example.com:51820"]);
}

#[test]
fn a_gateway_is_ready_only_after_a_fresh_proof() {
    let gateway = load_balancer();
    let pods = running("n1");
    let outside = PathProof::PublishedEndpoint;
    for (silent, proof, expected) in [
        (None, None, said("False", "AwaitingReports")),
        (Some(1), None, said("False", "PathNotProven")),
        (Some(1), Some((outside, 5)), said("True", "PathProven")),
        (Some(1), Some((PathProof::ClientTraffic, 5)), said("True", "PathProven")),
        (Some(1), Some((PathProof::PodAddress, 5)), said("True", "PathProvenInsideCluster")),
        (Some(1), Some((outside, 90)), said("False", "PathNotProven")),
        (Some(29), Some((outside, 34)), said("True", "PathProven")),
        (Some(30), Some((outside, 35)), said("Unknown", "ReportsStopped")),
    ] {
        let view = replica_view(silent.map(seconds), proof.map(|(kind, age)| (kind, seconds(age))));
        let status = judge(&gateway, Some(view), &pods);
        assert_eq!(verdict(&status.conditions, READY), expected, "{silent:?} {proof:?}");
        assert_eq!(status.ready_replicas, Some(i32::from(expected.0 == "True")));
        assert_eq!(status.replicas[0].path_proof.is_some(), expected.0 == "True");
    }
}

#[test]
fn a_proof_of_a_pod_that_does_not_run_counts_for_nothing() {
    let view = replica_view(Some(seconds(2)), Some((PathProof::ClientTraffic, seconds(2))));
    let pods = BTreeMap::from([("edge-0".to_owned(), PodFacts::default())]);
    let status = judge(&load_balancer(), Some(view), &pods);
    assert_eq!(verdict(&status.conditions, READY), said("False", "PodsNotRunning"));
}

#[test]
fn a_gateway_without_an_address_is_not_ready_though_it_answers() {
    let gateway = gateway(&json!({ "exposure": { "type": "NodePort" } }));
    let view = replica_view(Some(seconds(2)), Some((PathProof::PodAddress, seconds(2))));
    let status = judge(&gateway, Some(view), &running("n1"));
    assert_eq!(verdict(&status.conditions, READY), said("False", "AddressPending"));
    assert_eq!(verdict(&status.conditions, RECONCILING).0, "True");
}

#[test]
fn a_new_leader_keeps_what_was_known_until_it_has_listened() {
    let mut gateway = load_balancer();
    let proven = replica_view(Some(seconds(1)), Some((PathProof::ClientTraffic, seconds(1))));
    gateway.status = Some(judge(&gateway, Some(proven), &running("n1")));
    let waiting = ReplicaView { hearing: Hearing::Waiting, ..replica_view(None, None) };
    let status = judge(&gateway, Some(waiting), &running("n1"));
    assert_eq!(verdict(&status.conditions, READY), said("True", "PathProven"));
}

#[test]
fn an_obstacle_stalls_and_is_gone_when_it_is() {
    let gateway = load_balancer();
    let inputs = StatusInputs {
        gateway: &gateway,
        replicas: &balanced(&gateway),
        pods: &running("n1"),
        refused: &BTreeMap::new(),
        unbalanced: &BTreeMap::new(),
        evicted: &BTreeMap::new(),
        view: &GatewayView::default(),
        clients: ClientCounts::default(),
        nat: None,
        obstacle: Some(("KeyUnreadable", "entry edge-0.key is not a key")),
        unread: &[],
        frozen_pool: None,
        now: at(100),
    };
    let (stalled, _) = status(&inputs);
    assert_eq!(verdict(&stalled.conditions, STALLED), said("True", "KeyUnreadable"));
    let mut gateway = gateway.clone();
    gateway.status = Some(stalled);
    let later = status(&StatusInputs { gateway: &gateway, obstacle: None, ..inputs }).0;
    assert!(later.conditions.iter().all(|c| c.type_ != STALLED));
    let eviction = json!({ "phase": "Failed", "reason": "Evicted", "message": "too much ephemeral storage" });
    let pod =
        serde_json::from_value(json!({ "metadata": { "name": "edge-0" }, "status": eviction })).unwrap();
    let evicted = BTreeMap::from([("edge-0".to_owned(), Refusal::of_pod(&pod).unwrap())]);
    let proven = replica_view(Some(seconds(1)), Some((PathProof::ClientTraffic, seconds(1))));
    let view = GatewayView { replicas: BTreeMap::from([("edge-0".to_owned(), proven)]) };
    let again = StatusInputs { obstacle: None, evicted: &evicted, view: &view, ..inputs };
    let served = status(&again).0.conditions;
    assert_eq!(verdict(&served, READY).0, "True");
    assert_eq!(verdict(&served, RECONCILING), said("True", "Evicted"), "it may be evicted again");
    let gone = status(&StatusInputs { pods: &BTreeMap::new(), ..again }).0.conditions;
    assert_eq!(verdict(&gone, READY), said("False", "Evicted"));
    let held = status(&StatusInputs { obstacle: None, frozen_pool: Some("staff"), ..inputs }).0;
    assert_eq!(verdict(&held.conditions, pinhole_crds::PARTIALLY_INVALID), said("True", "PoolNotUnderstood"));
    let message = &find(&held.conditions, pinhole_crds::PARTIALLY_INVALID).message;
    assert!(message.contains("VPNClientPool staff") && message.contains("upgrade the operator"), "{message}");
}

#[test]
fn every_replica_is_told_of_all_and_of_the_pools_clients() {
    let gateway = load_balancer();
    let staff = pool("staff", 2, &["10.77.0.0/24", "fd77::/64"]);
    let guests = pool("guests", 3, &["10.78.0.0/24"]);
    let mut laptop = client(
        &json!({ "publicKey": PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap().public_base64() }),
    );
    laptop.status = Some(serde_json::from_value(json!({ "addresses": ["10.77.0.2", "fd77::2"] })).unwrap());
    let held = [ip("10.77.0.2"), ip("fd77::2")];
    let peers = [peer(&gateway, &staff, &laptop, &held, at(9)).unwrap()];
    let pools = [PoolInputs { pool: &guests, peers: &[] }, PoolInputs { pool: &staff, peers: &peers }];
    let replicas = balanced(&gateway);
    let shared_keys = BTreeSet::new();
    let inputs = DesiredInputs {
        gateway: &gateway,
        replicas: &replicas,
        pools: &pools,
        shared_keys: &shared_keys,
        ca_pem: "PEM",
    };
    let state = desired_states(&inputs).remove("edge-0").unwrap();
    assert_eq!(state.tunnel_addresses, ["10.78.0.1/24", "10.77.0.1/24", "fd77::1/64"]);
    assert_eq!(state.replicas[0].tunnel_endpoints, ["203.0.113.7:51820"]);
    assert_eq!(state.cluster_replicas[0].tunnel_endpoints, ["10.96.0.7:51820", "[fd96::7]:51820"]);
    assert_eq!(state.replicas[0].tunnel_addresses, ["10.78.0.1", "10.77.0.1", "fd77::1"]);
    assert_eq!((state.peers[0].pool, state.peers.len()), (1, 1));
    assert_eq!(state.peers[0].addresses, ["10.77.0.2/32", "fd77::2/128"]);
    assert_eq!(state.peers[0].stock_keepalive.map(|d| d.seconds), Some(25));
    assert!(!state.peers[0].key_shared);
    for (uid, told) in [("uid-laptop", true), ("uid-other", false)] {
        let shared_keys = BTreeSet::from([uid.to_owned()]);
        let states = desired_states(&DesiredInputs { shared_keys: &shared_keys, ..inputs });
        assert!(states.values().all(|state| state.peers[0].key_shared == told), "{uid}");
    }
}

#[test]
fn who_may_not_connect_is_no_peer() {
    let (gateway, staff) = (load_balancer(), pool("staff", 2, &["10.77.0.0/24"]));
    let public = PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap().public_base64();
    let made = |mut spec: Value, held: &[IpAddr]| {
        spec["publicKey"] = json!(public);
        let mut laptop = client(&spec);
        laptop.status = Some(serde_json::from_value(json!({ "addresses": ["10.77.0.2"] })).unwrap());
        peer(&gateway, &staff, &laptop, held, at(9)).is_some()
    };
    let held = [ip("10.77.0.2")];
    assert!(made(json!({}), &held));
    assert!(made(json!({ "expiresAt": Time(at(10)) }), &held));
    assert!(!made(json!({ "expiresAt": Time(at(9)) }), &held));
    assert!(!made(json!({ "suspended": true }), &held));
    assert!(!made(json!({}), &[ip("10.77.0.3")]), "another client holds the address");
}
