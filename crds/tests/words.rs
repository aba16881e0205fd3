//! Every string of a `spec` is bounded, and of a form that what it ends in cannot be talked into anything by. A field
//! that is added later fails here until it has a form, or stands among the exceptions with its reason.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../proto/tests/hostile/mod.rs"]
mod hostile;

use kube::core::cel::validate_cel_schema;
use pinhole_crds::{SidecarTrustSpec, VPNClientPoolSpec, VPNClientSpec, VPNGatewaySpec};
use regex::Regex;
use serde_json::{Value, json};

/// Fields, each with a text that it takes: `[]` is an item of a list, `{}` a value of a map.
const FIELDS: [(&str, &str, &[&str]); 30] = [
    (
        "VPNGateway",
        "exposure.addresses[]",
        &["vpn.example.org", "VPN.example.org.", "2001:db8::1", "192.0.2.1"],
    ),
    ("VPNGateway", "exposure.loadBalancerClass", &["internal-vip", "example.com/internal-vip"]),
    ("VPNGateway", "keepalive.interval", &["25s"]),
    ("VPNGateway", "keepalive.min", &["25s"]),
    ("VPNGateway", "keepalive.max", &["1m30s"]),
    ("VPNGateway", "keepalive.longestBlind", &["25s"]),
    (
        "VPNGateway",
        "pod.image",
        &[
            "a",
            "nginx:1.25",
            "my_image",
            "ghcr.io/pinhole-vpn/agent:v0.1.0",
            "registry.example:5000/team/agent_x",
            "[2001:db8::1]:5000/agent@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ],
    ),
    ("VPNGateway", "pod.nodeSelector{}", &["", "zone-a", "a_B.c"]),
    ("VPNGateway", "pod.labels{}", &["", "team-a"]),
    ("VPNGateway", "pod.removeAfterNodeLoss", &["10m"]),
    ("VPNGateway", "pod.priorityClassName", &["system-node-critical", "a.b"]),
    ("VPNClientPool", "gatewayRef.name", &["edge"]),
    ("VPNClientPool", "cidrs[]", &["10.77.0.0/16"]),
    ("VPNClientPool", "reserved[]", &["10.77.0.1-10.77.0.9"]),
    ("VPNClientPool", "routes[]", &["0.0.0.0/0"]),
    ("VPNClientPool", "dns.servers[]", &["10.96.0.10"]),
    (
        "VPNClientPool",
        "dns.search[]",
        &["svc.cluster.local", "local", "Corp.Example.", "_x.example", "xn--e1afmkfd.rf"],
    ),
    ("VPNClientPool", "enrolment.tokens[].name", &["first"]),
    ("VPNClientPool", "enrolment.tokens[].group", &["Field_team.2"]),
    ("VPNClientPool", "enrolment.sidecars.namespaceSelector.names[]", &["shop"]),
    ("VPNClientPool", "enrolment.sidecars.namespaceSelector.matchLabels{}", &["", "a"]),
    ("VPNClient", "poolRef.name", &["staff"]),
    ("VPNClient", "publicKey", &["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="]),
    ("VPNClient", "addresses[]", &["10.77.0.9"]),
    ("VPNClient", "group", &["Field_team.2"]),
    ("VPNClient", "enrolment.token", &["first"]),
    ("VPNClient", "enrolment.pod.namespace", &["shop"]),
    ("VPNClient", "enrolment.pod.name", &["web-0.x"]),
    ("VPNClient", "enrolment.pod.uid", &["7d3b0c1e-0a4c-4d55-9f57-1f5d1b5f0f5e"]),
    ("VPNClient", "enrolment.hostname", &["Anna-s-MacBook.local", "laptop_1"]),
];

/// Fields that have no form here, by the beginning of their paths.
const EXCEPTIONS: [&str; 7] = [
    // Free text by the API's own rules, and only ever annotations of a Service and a pod.
    "exposure.annotations",
    "pod.annotations",
    // Kubernetes' own types, which the API server checks where the operator puts them.
    "pod.affinity",
    "pod.resources",
    "pod.tolerations",
    // PEM, which the operator alone writes.
    "caBundle",
    // One type in all three places: tested on the gateway's.
    "keepalive.",
];

fn is_text(schema: &Value) -> bool {
    schema["type"] == "string" || schema["x-kubernetes-int-or-string"] == true
}

/// The paths of all texts below `schema`.
fn texts(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    if is_text(schema) {
        found.push((path.to_owned(), schema.clone()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        texts(property, &format!("{path}{dot}{name}"), found);
    }
    if schema["items"].is_object() {
        texts(&schema["items"], &format!("{path}[]"), found);
    }
    if schema["additionalProperties"].is_object() {
        texts(&schema["additionalProperties"], &format!("{path}{{}}"), found);
    }
}

fn specs() -> Vec<(String, Value)> {
    let of = |definition: Value| {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        (kind, schema.clone())
    };
    pinhole_crds::definitions().unwrap().into_iter().map(of).collect()
}

/// `text` at `path`, with all that lies on the way there.
fn nested(path: &str, text: &str) -> Value {
    if path.is_empty() {
        return json!(text);
    }
    if let Some(rest) = path.strip_prefix("[]") {
        return json!([nested(rest, text)]);
    }
    if let Some(rest) = path.strip_prefix("{}") {
        return json!({ "key": nested(rest, text) });
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    let end = path.find(['.', '[', '{']).unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    json!({ name: nested(rest, text) })
}

/// What the schema of one text says, as the API server reads it.
fn fits(schema: &Value, text: &str) -> bool {
    let length = text.chars().count() as u64;
    schema["maxLength"].as_u64().is_none_or(|most| length <= most)
        && schema["minLength"].as_u64().is_none_or(|least| length >= least)
        && schema["pattern"].as_str().is_none_or(|form| Regex::new(form).unwrap().is_match(text))
}

/// What the rules of the whole spec say.
fn is_allowed(kind: &str, spec: &Value) -> bool {
    match kind {
        "VPNGateway" => {
            let mut spec = spec.clone();
            spec["exposure"]["type"] = json!("LoadBalancer");
            validate_cel_schema::<VPNGatewaySpec>(&spec, None)
        }
        "VPNClientPool" => validate_cel_schema::<VPNClientPoolSpec>(spec, None),
        "VPNClient" => validate_cel_schema::<VPNClientSpec>(spec, None),
        _ => validate_cel_schema::<SidecarTrustSpec>(spec, None),
    }
    .is_ok()
}

#[test]
fn every_text_of_a_spec_has_a_form_or_is_a_known_exception() {
    for (kind, schema) in specs() {
        let mut found = Vec::new();
        texts(&schema, "", &mut found);
        for (path, schema) in found {
            let is_excepted = EXCEPTIONS.iter().any(|exception| path.starts_with(exception));
            let is_known = FIELDS.iter().any(|(k, p, _)| *k == kind && *p == path);
            let is_closed = schema["enum"].is_array() || schema["format"] == "date-time";
            assert!(
                is_known || is_closed || is_excepted,
                "{kind}.spec.{path}: give it a form, and a line here"
            );
        }
    }
}

#[test]
fn nothing_hostile_is_taken_by_any_field_and_all_that_is_meant_is() {
    let specs = specs();
    for (kind, path, good) in &FIELDS {
        let mut found = Vec::new();
        texts(&specs.iter().find(|(k, _)| k == kind).unwrap().1, "", &mut found);
        let (_, schema) = found.iter().find(|(p, _)| p == path).unwrap_or_else(|| panic!("no {kind} {path}"));
        let takes = |text: &str| fits(schema, text) && is_allowed(kind, &nested(path, text));
        for text in *good {
            assert!(takes(text), "{kind}.spec.{path} refuses {text:?}");
        }
        for text in hostile::strings() {
            assert!(!takes(&text), "{kind}.spec.{path} takes {text:?}");
        }
    }
}

#[test]
fn a_search_domain_is_a_domain_name() {
    let search = |domain: &str| is_allowed("VPNClientPool", &json!({ "dns": { "search": [domain] } }));
    let (label, long_label) = ("a".repeat(63), "a".repeat(64));
    for domain in ["a", "1a", "10.in-addr.arpa", "a-b.c_d", "_tcp.x", &label, &format!("{label}.{label}")] {
        assert!(search(domain), "{domain}");
    }
    for domain in
        [".", "a..b", ".a", "-a", "a-", "a.-b", "a-.b", "10.0.0.1", "1", "a.1", "a.1.", "::1", &long_label]
    {
        assert!(!search(domain), "{domain}");
    }
}
