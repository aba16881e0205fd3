//! The NetworkPolicy of a gateway's pods. Pure.
//!
//! What comes in is named by port alone, for clients are anywhere. What goes out is left alone unless asked: most of it can only
//! be named by address, and what a prefix means for pods, Services and nodes differs from one network plugin to another.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt as _;
use pinhole_crds::{VPNClientPool, VPNGateway};

use super::{
    name::{gateway_labels, labels, match_labels, network_policy_name, owned, selector},
    object::Object,
    settings::Settings,
    workload::{POD_HEALTH_PORT, POD_SESSION_PORT, POD_TUNNEL_PORT},
};

/// Label that the API server puts on each namespace: its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
/// Name of the link's port in the operator's pods.
const LINK_PORT: &str = "link";
const DNS_PORT: i32 = 53;

/// What no gateway sends to: link-local addresses with the metadata services of most clouds, and those elsewhere.
const NEVER: [IpNet; 7] = [
    v4(Ipv4Addr::new(169, 254, 0, 0), 16),
    v4(Ipv4Addr::new(100, 100, 100, 200), 32),
    v4(Ipv4Addr::new(168, 63, 129, 16), 32),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23), 128),
    v6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128),
];
const EVERYTHING: [IpNet; 2] = [v4(Ipv4Addr::UNSPECIFIED, 0), v6(Ipv6Addr::UNSPECIFIED, 0)];

const fn v4(address: Ipv4Addr, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, length))
}

const fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// What the NetworkPolicies of gateways let out. What they let in is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum GatewayEgress {
    /// Everything.
    Any,
    /// Everything but to link-local addresses and metadata services, where only UDP and DNS go.
    NotLinkLocal,
    /// Only the operator, the routes and name servers of the gateway's pools, UDP and DNS.
    Routes,
}

/// The policy of the gateway's pods, unless `settings` want none. `pools` are those that name the gateway.
pub fn network_policy<'a>(
    gateway: &VPNGateway,
    pools: impl IntoIterator<Item = &'a VPNClientPool>,
    settings: &Settings,
) -> Option<Object> {
    let let_out = settings.gateway_policy?;
    let name = gateway.name_any();
    let egress = match let_out {
        GatewayEgress::Any => None,
        GatewayEgress::NotLinkLocal => Some(not_link_local()),
        GatewayEgress::Routes => Some(routes(pools, settings)),
    };
    let types = ["Ingress"].into_iter().chain(egress.is_some().then_some("Egress"));
    Some(Object::NetworkPolicy(NetworkPolicy {
        metadata: owned(gateway, network_policy_name(&name), gateway_labels(&name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(match_labels(selector(&name))),
            policy_types: Some(types.map(str::to_owned).collect()),
            ingress: Some(ingress(&settings.metrics_from)),
            egress,
        }),
    }))
}

fn ingress(metrics_from: &[NetworkPolicyPeer]) -> Vec<NetworkPolicyIngressRule> {
    let clients = NetworkPolicyIngressRule {
        from: None,
        ports: Some(vec![port("UDP", Some(POD_TUNNEL_PORT)), port("TCP", Some(POD_SESSION_PORT))]),
    };
    // A rule without peers would let everybody in. The kubelet needs none: a pod's own node always reaches it.
    let scrapers = (!metrics_from.is_empty()).then(|| NetworkPolicyIngressRule {
        from: Some(metrics_from.to_vec()),
        ports: Some(vec![port("TCP", Some(POD_HEALTH_PORT))]),
    });
    [clients].into_iter().chain(scrapers).collect()
}

fn not_link_local() -> Vec<NetworkPolicyEgressRule> {
    // Plugins for which a prefix means no pods need them named.
    let to = EVERYTHING.into_iter().map(block).chain([NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }]);
    always().into_iter().chain([NetworkPolicyEgressRule { to: Some(to.collect()), ports: None }]).collect()
}

fn routes<'a>(
    pools: impl IntoIterator<Item = &'a VPNClientPool>,
    settings: &Settings,
) -> Vec<NetworkPolicyEgressRule> {
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(match_labels(labels([(NAMESPACE_LABEL, &settings.namespace)]))),
        pod_selector: Some(match_labels(labels([("app.kubernetes.io/name", "pinhole-operator")]))),
        ..NetworkPolicyPeer::default()
    };
    let link = NetworkPolicyPort {
        protocol: Some("TCP".into()),
        port: Some(IntOrString::String(LINK_PORT.into())),
        ..NetworkPolicyPort::default()
    };
    let link = NetworkPolicyEgressRule { to: Some(vec![operator]), ports: Some(vec![link]) };
    // Ordered and each once, so that the policy changes only when what it says does.
    let mut reachable: BTreeSet<IpNet> = BTreeSet::new();
    for spec in pools.into_iter().map(|pool| &pool.spec) {
        let servers = spec.dns.iter().flat_map(|dns| &dns.servers).map(|server| IpNet::from(*server));
        let named = spec.routes.iter().map(IpNet::trunc).chain(servers);
        reachable.extend(named.filter(|net| !NEVER.iter().any(|never| never.contains(net))));
    }
    let reachable: Vec<NetworkPolicyPeer> = reachable.into_iter().map(block).collect();
    // A rule without peers would let everything out.
    let reachable =
        (!reachable.is_empty()).then_some(NetworkPolicyEgressRule { to: Some(reachable), ports: None });
    always().into_iter().chain([link]).chain(reachable).collect()
}

/// Clients are at any address and port, and plugins forget who began a conversation over UDP. DNS may be on the node,
/// at a link-local address.
fn always() -> [NetworkPolicyEgressRule; 1] {
    [NetworkPolicyEgressRule { to: None, ports: Some(vec![port("UDP", None), port("TCP", Some(DNS_PORT))]) }]
}

fn port(protocol: &str, number: Option<i32>) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: number.map(IntOrString::Int),
        ..NetworkPolicyPort::default()
    }
}

/// A prefix but for what nobody sends to, where that is strictly within it, as the API wants.
fn block(net: IpNet) -> NetworkPolicyPeer {
    let within = |never: &&IpNet| net.contains(*never) && net.prefix_len() < never.prefix_len();
    let except: Vec<String> = NEVER.iter().filter(within).map(ToString::to_string).collect();
    NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: net.to_string(), except: Some(except).filter(|e| !e.is_empty()) }),
        ..NetworkPolicyPeer::default()
    }
}
