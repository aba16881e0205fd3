//! Configurations of stock clients.

use super::*;
use crate::plan::wgquick::{CONFIG_ENTRY, ClientKey, ConfigInputs, PRIVATE_KEY_ENTRY, secret};

fn made(gateway: &VPNGateway, pool: &VPNClientPool, key: &ClientKey) -> (String, bool) {
    let phone = client(&json!({}));
    let replicas = balanced(gateway);
    let addresses = [ip("10.77.0.9"), ip("fd77::9")];
    let inputs = ConfigInputs { client: &phone, pool, gateway, replicas: &replicas, addresses: &addresses };
    let data = secret(&inputs, key).unwrap().data.unwrap();
    (String::from_utf8(data[CONFIG_ENTRY].0.clone()).unwrap(), data.contains_key(PRIVATE_KEY_ENTRY))
}

#[test]
fn a_configuration_is_what_wg_quick_reads() {
    let key = PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap();
    let private = key.to_base64().to_string();
    let mut staff = pool("staff", 2, &["10.77.0.0/24", "fd77::/64"]);
    staff.spec.dns = Some(
        serde_json::from_value(json!({ "servers": ["10.96.0.10"], "search": ["cluster.local"] })).unwrap(),
    );
    let (text, has_key) = made(&load_balancer(), &staff, &ClientKey::Ours(key));
    assert!(has_key);
    assert_eq!(
        text,
        format!(
            "# VPNClient laptop of pool staff, namespace vpn\n\
             [Interface]\n\
             PrivateKey = {private}\n\
             Address = 10.77.0.9/32, fd77::9/128\n\
             MTU = 1420\n\
             DNS = 10.96.0.10, cluster.local\n\
             \n\
             [Peer]\n\
             PublicKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\
             Endpoint = 203.0.113.7:51820\n\
             AllowedIPs = 10.96.0.0/12, fd00::/8, 10.77.0.1/32\n\
             PersistentKeepalive = 25\n"
        )
    );
}

#[test]
fn the_users_own_key_stays_the_users() {
    let theirs = ClientKey::Theirs([9; 32]);
    let (text, has_key) = made(&load_balancer(), &pool("staff", 2, &["10.77.0.0/24", "fd77::/64"]), &theirs);
    assert!(!has_key);
    assert!(!text.lines().any(|l| l.starts_with("PrivateKey")));
    assert!(text.contains("# Add here: PrivateKey"));
}

#[test]
fn the_keepalive_is_that_of_the_policy_within_its_bounds() {
    for (keepalive, seconds) in [
        (json!({ "mode": "Fixed", "interval": "50s" }), 50),
        (json!({ "max": "20s" }), 20),
        (json!({ "min": "40s" }), 40),
        (json!({}), 25),
    ] {
        let gateway = gateway(&json!({ "exposure": { "type": "LoadBalancer" }, "keepalive": keepalive }));
        let key = ClientKey::Ours(PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap());
        let (text, _) = made(&gateway, &pool("staff", 2, &["10.77.0.0/24"]), &key);
        assert!(text.contains(&format!("PersistentKeepalive = {seconds}\n")), "{text}");
    }
}

#[test]
fn without_an_endpoint_there_is_no_configuration() {
    let (phone, staff) = (client(&json!({})), pool("staff", 2, &["10.77.0.0/24"]));
    let gateway = gateway(&json!({ "exposure": { "type": "NodePort" } }));
    let replicas = balanced(&gateway);
    let addresses = [ip("10.77.0.9")];
    let inputs = ConfigInputs {
        client: &phone,
        pool: &staff,
        gateway: &gateway,
        replicas: &replicas,
        addresses: &addresses,
    };
    assert!(
        secret(&inputs, &ClientKey::Ours(PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap()))
            .is_none()
    );
}

#[test]
fn what_the_gateway_observed_is_in_the_configuration_and_in_what_the_gateway_expects() {
    let (gateway, pool) = (load_balancer(), pool("staff", 2, &["10.77.0.0/24"]));
    let replicas = balanced(&gateway);
    let addresses = [ip("10.77.0.9")];
    for (interval, expected) in [("1m40s", 100), ("12s", 25)] {
        let mut phone = client(&json!({}));
        let status = json!({
            "addresses": addresses, "publicKey": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
            "keepalive": { "interval": interval, "mode": "Adaptive", "reason": "GatewayObserved" },
        });
        phone.status = Some(serde_json::from_value(status).unwrap());
        let inputs = ConfigInputs {
            client: &phone,
            pool: &pool,
            gateway: &gateway,
            replicas: &replicas,
            addresses: &addresses,
        };
        let key = ClientKey::Ours(PrivateKey::generate(&ring::rand::SystemRandom::new()).unwrap());
        let data = secret(&inputs, &key).unwrap().data.unwrap();
        let text = String::from_utf8(data[CONFIG_ENTRY].0.clone()).unwrap();
        let recommended = phone.status.as_ref().unwrap().keepalive.as_ref().unwrap().interval.0.as_secs();
        assert!(text.contains(&format!("PersistentKeepalive = {recommended}\n")), "{text}");
        // It may run on the configuration that it was given before.
        let peer = peer(&gateway, &pool, &phone, &addresses, at(100)).unwrap();
        assert_eq!(peer.stock_keepalive, Some(Duration::from_secs(expected)));
    }
}

/// A client that nobody can move by hand must get a replica that can be reached, with that one's own key.
#[test]
fn a_configuration_is_of_one_replica_that_has_an_address() {
    let spec = json!({ "exposure": { "type": "LoadBalancer" }, "replicas": 2 });
    let (gateway, staff) = (gateway(&spec), pool("staff", 2, &["10.77.0.0/24"]));
    let replica = |n: u8, host: Option<&str>| Replica {
        name: format!("edge-{n}"),
        public_key: Some([n; 32]),
        tunnel_endpoints: host.map(|host| format!("{host}:51820").parse().unwrap()).into_iter().collect(),
        ..Replica::default()
    };
    let config = |uid: u32, replicas: &[Replica]| {
        let mut phone = client(&json!({}));
        phone.metadata.uid = Some(format!("uid-{uid}"));
        let addresses = [ip("10.77.0.9")];
        let inputs =
            ConfigInputs { client: &phone, pool: &staff, gateway: &gateway, replicas, addresses: &addresses };
        let key = ClientKey::Theirs([9; 32]);
        String::from_utf8(secret(&inputs, &key).unwrap().data.unwrap()[CONFIG_ENTRY].0.clone()).unwrap()
    };
    let one = [replica(1, Some("203.0.113.7")), replica(2, None)];
    let two = [replica(1, Some("203.0.113.7")), replica(2, Some("203.0.113.8"))];
    let key = |n: u8| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [n; 32]);
    let mut seen = std::collections::BTreeSet::new();
    for uid in 0..40 {
        let text = config(uid, &one);
        assert!(text.contains(&key(1)) && text.contains("203.0.113.7:51820"), "{text}");
        let text = config(uid, &two);
        for (n, host) in [(1, "203.0.113.7:51820"), (2, "203.0.113.8:51820")] {
            assert_eq!(text.contains(&key(n)), text.contains(host), "{text}");
            seen.extend(text.contains(host).then_some(n));
        }
    }
    assert_eq!(seen.len(), 2, "both are used");
}
