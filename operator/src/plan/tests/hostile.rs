//! Objects that hold what the schema forbids, as those may that are older than it: nothing of it crosses into what is
//! rendered, and the rest is rendered.

use pinhole_crds::{ClientCounts, PARTIALLY_INVALID};

use super::{pool::judged, *};
use crate::{
    fleet::GatewayView,
    hostile,
    plan::{
        self,
        wgquick::{ClientKey, ConfigInputs, render},
    },
};

/// The keys that a configuration may have, in their order; a line of a comment or of a section counts as it is.
const LINES: [&str; 11] = [
    "# VPNClient",
    "[Interface]",
    "# Add here",
    "Address",
    "MTU",
    "DNS",
    "",
    "[Peer]",
    "PublicKey",
    "Endpoint",
    "AllowedIPs",
];

fn searching(domains: &[&str]) -> VPNClientPool {
    let mut staff = super::pool("staff", 2, &["10.77.0.0/24"]);
    let dns = json!({ "servers": ["10.96.0.10"], "search": domains });
    staff.spec.dns = Some(serde_json::from_value(dns).unwrap());
    staff
}

fn config(client: &VPNClient, pool: &VPNClientPool, gateway: &VPNGateway) -> Option<String> {
    let replicas = balanced(gateway);
    let addresses = [ip("10.77.0.9")];
    let inputs = ConfigInputs { client, pool, gateway, replicas: &replicas, addresses: &addresses };
    render(&inputs, &ClientKey::Theirs([9; 32]))
}

#[track_caller]
fn assert_plain(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), LINES.len() + 1, "{text}");
    for (line, start) in lines.iter().zip(LINES) {
        assert!(line.starts_with(start), "{line:?} does not start with {start}");
    }
    assert!(lines[11].starts_with("PersistentKeepalive = "));
    assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text:?}");
    assert!(text.len() < 2000, "{} bytes", text.len());
}

#[test]
fn a_hostile_search_domain_is_left_out_of_every_configuration_and_the_others_stay() {
    let (gateway, phone) = (load_balancer(), client(&json!({})));
    for text in hostile::strings() {
        let staff = searching(&["cluster.local", &text, "corp.example"]);
        let config = config(&phone, &staff, &gateway).unwrap();
        assert_plain(&config);
        assert!(config.contains("\nDNS = 10.96.0.10, cluster.local, corp.example\n"), "{config}");
        let pools = [PoolInputs { pool: &staff, peers: &[] }];
        let replicas = balanced(&gateway);
        let inputs = DesiredInputs {
            gateway: &gateway,
            replicas: &replicas,
            pools: &pools,
            shared_keys: &BTreeSet::new(),
            ca_pem: "",
        };
        let wire = &desired_states(&inputs)["edge-0"].pools[0];
        assert_eq!(wire.dns_search, ["cluster.local", "corp.example"], "{text:?}");
    }
}

#[test]
fn a_pool_says_which_search_domains_it_leaves_out_and_is_as_ready_as_before() {
    let gateway = load_balancer();
    let judged = |pool: &VPNClientPool| judged(pool, Some(&gateway), None, None).conditions;
    let good = judged(&searching(&["cluster.local"]));
    assert!(good.iter().all(|c| c.type_ != PARTIALLY_INVALID), "{good:?}");
    for text in hostile::strings() {
        let conditions = judged(&searching(&["cluster.local", &text]));
        let ready = |all: &[Condition]| verdict(all, pinhole_crds::READY);
        assert_eq!(ready(&conditions), ready(&good));
        assert_eq!(verdict(&conditions, PARTIALLY_INVALID), said("True", "SearchDomainInvalid"));
        let message = &find(&conditions, PARTIALLY_INVALID).message;
        assert!(message.starts_with("spec.dns.search: ") && message.contains("is left out"), "{message}");
        assert!(message.len() < 400 && !message.chars().any(char::is_control), "{message:?}");
    }
}

#[test]
fn a_hostile_address_of_a_gateway_is_told_to_nobody_and_the_others_are() {
    for text in hostile::strings() {
        let spec = json!({ "exposure": { "type": "LoadBalancer", "addresses": [text, "vpn.example.org"] } });
        let gateway = gateway(&spec);
        assert_eq!(texts(&balanced(&gateway)[0].session_endpoints), ["vpn.example.org:51821"], "{text:?}");
        let config = config(&client(&json!({})), &searching(&[]), &gateway).unwrap();
        assert_plain(&config);
        assert!(config.contains("\nEndpoint = vpn.example.org:51820\n"), "{config}");
        let view = GatewayView::default();
        let (status, _) = plan::gateway::status(&plan::gateway::StatusInputs {
            gateway: &gateway,
            replicas: &balanced(&gateway),
            pods: &running("n1"),
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
        });
        assert_eq!(status.addresses, ["vpn.example.org"]);
        assert_eq!(
            verdict(&status.conditions, PARTIALLY_INVALID),
            said("True", "ExposureAddressInvalid"),
            "{text:?}"
        );
    }
}

#[test]
fn a_hostile_answer_of_a_load_balancer_is_no_endpoint() {
    for text in hostile::strings() {
        for field in ["ip", "hostname"] {
            let status = json!({ "loadBalancer": { "ingress": [{ field: text }] } });
            let services = service("edge-0", &json!({ "clusterIPs": [text] }), &status);
            let observed = Observed {
                services: &services,
                pods: &running("n1"),
                nodes: &BTreeMap::new(),
                public_keys: &super::key(),
            };
            let replica = replicas(&load_balancer(), &observed).remove(0);
            assert!(replica.tunnel_endpoints.is_empty(), "{text:?}");
            assert_eq!(texts(&replica.cluster_session_endpoints), ["edge-0.vpn.svc:51821"]);
        }
    }
}

#[test]
fn a_hostile_name_stays_in_the_comment_that_it_is_in() {
    for text in hostile::strings() {
        let (mut phone, mut staff) = (client(&json!({})), searching(&["cluster.local"]));
        phone.metadata.name = Some(text.clone());
        phone.metadata.namespace = Some(text.clone());
        staff.metadata.name = Some(text.clone());
        let config = config(&phone, &staff, &load_balancer()).unwrap();
        assert_eq!(config.lines().count(), LINES.len() + 1, "{text:?}");
        assert!(!config.lines().any(|line| line.starts_with("PostUp")) && config.len() < 4000, "{text:?}");
    }
}

#[test]
fn a_hostile_public_key_is_no_key() {
    for text in hostile::strings() {
        assert_eq!(parse_public(&text), None, "{text:?}");
    }
    assert_eq!(parse_public("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=").map(|key| key[0]), Some(0x85));
    // The bits that base64 leaves over would make two texts of one key.
    assert_eq!(parse_public("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp="), None);
}

#[test]
fn a_condition_quotes_others_without_what_acts_on_a_terminal() {
    for text in hostile::strings() {
        let mut conditions = Conditions::new(&[], Some(1), at(1));
        conditions.stalled("OverlappingPool", &text);
        let message = conditions.finish().remove(0).message;
        assert!(message.chars().count() <= 2048 && !message.chars().any(char::is_control), "{message:?}");
    }
}

#[test]
fn a_reference_that_names_nothing_is_said_in_one_line() {
    for text in hostile::strings() {
        let mut staff = searching(&[]);
        staff.spec.gateway_ref.name.clone_from(&text);
        let conditions = judged(&staff, None, None, None).conditions;
        let ready = find(&conditions, pinhole_crds::READY);
        assert_eq!(ready.reason, "GatewayNotFound");
        assert!(!ready.message.chars().any(char::is_control), "{:?}", ready.message);
    }
}
