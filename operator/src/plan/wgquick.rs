//! The configuration of a client without an agent, as wg-quick and the WireGuard apps read it.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::ResourceExt as _;
use pinhole_crds::{ExposureType, VPNClient, VPNClientPool, VPNGateway};
use pinhole_proto::{HostPort, printable};

use super::{
    endpoint::Replica,
    hash::choose,
    keepalive,
    keys::PrivateKey,
    name::{GATEWAY_LABEL, POOL_OBJECT_LABEL, common, config_secret, labels, owned},
    reach,
    unusable::search_domains,
};
use crate::ipam::gateway_address;

/// Entry of the Secret: the configuration.
pub const CONFIG_ENTRY: &str = "wg0.conf";

/// Entry of the Secret: the private key, base64.
pub const PRIVATE_KEY_ENTRY: &str = "privatekey";

/// Entry of the Secret: the public key, base64.
pub const PUBLIC_KEY_ENTRY: &str = "publickey";

/// Longest comment that says whose the configuration is, characters: three names of objects and a few words.
const TITLE: usize = 3 * 253 + 64;

/// The key of a stock client.
#[derive(Debug)]
pub enum ClientKey {
    /// Made by the operator.
    Ours(PrivateKey),
    /// Made by the user: the public half.
    Theirs([u8; 32]),
}

impl ClientKey {
    /// The public half, base64.
    pub fn public_base64(&self) -> String {
        match self {
            Self::Ours(key) => key.public_base64(),
            Self::Theirs(key) => STANDARD.encode(key),
        }
    }
}

/// What a configuration is made of.
#[derive(Clone, Copy, Debug)]
pub struct ConfigInputs<'a> {
    /// The client.
    pub client: &'a VPNClient,
    /// Its pool.
    pub pool: &'a VPNClientPool,
    /// The gateway.
    pub gateway: &'a VPNGateway,
    /// The gateway's replicas.
    pub replicas: &'a [Replica],
    /// The client's addresses.
    pub addresses: &'a [IpAddr],
}

/// The Secret with the client's configuration. None as long as the client has no address, or its replica no key or
/// endpoint. A replica is chosen for good by the client's UID, since such a client cannot fail over by itself; its key and
/// its endpoint are always of the same one.
pub fn secret(inputs: &ConfigInputs<'_>, key: &ClientKey) -> Option<Secret> {
    let config = render(inputs, key)?;
    let private = if let ClientKey::Ours(key) = key { Some(key) } else { None };
    let mut secret = key_secret(inputs.client, &key.public_base64(), private);
    secret.metadata.labels.get_or_insert_default().extend(labels([
        (GATEWAY_LABEL, inputs.gateway.name_any().as_str()),
        (POOL_OBJECT_LABEL, inputs.pool.name_any().as_str()),
    ]));
    let data = secret.data.get_or_insert_default();
    data.insert(CONFIG_ENTRY.to_owned(), ByteString(config.into_bytes()));
    Some(secret)
}

/// The Secret with the client's key alone, as it is first made.
pub fn key_secret(client: &VPNClient, public: &str, private: Option<&PrivateKey>) -> Secret {
    let mut data = BTreeMap::from([(PUBLIC_KEY_ENTRY.to_owned(), ByteString(public.as_bytes().to_vec()))]);
    if let Some(key) = private {
        data.insert(PRIVATE_KEY_ENTRY.to_owned(), ByteString(key.to_base64().as_bytes().to_vec()));
    }
    Secret {
        metadata: owned(client, config_secret(&client.name_any()), common()),
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    }
}

/// The configuration's text.
pub(crate) fn render(inputs: &ConfigInputs<'_>, key: &ClientKey) -> Option<String> {
    let replica = replica(inputs)?;
    let (public_key, endpoint) = (replica.public_key?, replica.tunnel_endpoints.first()?);
    if inputs.addresses.is_empty() {
        return None;
    }
    let mut text = String::new();
    let lines =
        interface(inputs, key).into_iter().chain(peer(inputs, &STANDARD.encode(public_key), endpoint));
    for line in lines {
        writeln!(text, "{line}").ok()?;
    }
    Some(text)
}

/// Of those that have an address, where that is the load balancer's or the user's choice. The address of a node comes
/// and goes with the pod: that is no reason for a client to get another configuration.
fn replica<'a>(inputs: &ConfigInputs<'a>) -> Option<&'a Replica> {
    let exposure = &inputs.gateway.spec.exposure;
    let is_given = exposure.type_ == ExposureType::LoadBalancer || !exposure.addresses.is_empty();
    let may_be = |replica: &&Replica| !is_given || !replica.tunnel_endpoints.is_empty();
    let uid = inputs.client.uid().unwrap_or_default();
    let chosen = choose(&uid, inputs.replicas.iter().filter(may_be).map(|r| r.name.as_str()))?;
    inputs.replicas.iter().find(|r| r.name == chosen)
}

fn interface(inputs: &ConfigInputs<'_>, key: &ClientKey) -> Vec<String> {
    let (client, pool) = (inputs.client, inputs.pool);
    let namespace = client.namespace().unwrap_or_default();
    let servers = pool.spec.dns.as_ref().map(|dns| dns.servers.as_slice()).unwrap_or_default();
    let search = search_domains(pool).0;
    let resolvers: Vec<String> =
        servers.iter().map(ToString::to_string).chain(search.iter().map(ToString::to_string)).collect();
    let title = format!("VPNClient {} of pool {}, namespace {namespace}", client.name_any(), pool.name_any());
    let mut lines = vec![
        format!("# {}", printable(&title, TITLE)),
        "[Interface]".to_owned(),
        match key {
            ClientKey::Ours(key) => format!("PrivateKey = {}", *key.to_base64()),
            ClientKey::Theirs(_) => {
                format!("# Add here: PrivateKey = (the private key of {})", key.public_base64())
            }
        },
        format!("Address = {}", list(inputs.addresses.iter().map(|a| IpNet::from(*a)))),
        format!("MTU = {}", inputs.gateway.spec.mtu_or_default()),
    ];
    // Search domains without a resolver would leave wg-quick without any.
    if !servers.is_empty() {
        lines.push(format!("DNS = {}", resolvers.join(", ")));
    }
    lines
}

fn peer(inputs: &ConfigInputs<'_>, public_key: &str, endpoint: &HostPort) -> Vec<String> {
    let policy =
        keepalive::in_force(&inputs.gateway.spec, Some(&inputs.pool.spec), Some(&inputs.client.spec));
    let status = inputs.client.status.as_ref();
    let interval: Duration = keepalive::stock_in_force(policy, status.and_then(|s| s.keepalive.as_ref()));
    vec![
        String::new(),
        "[Peer]".to_owned(),
        format!("PublicKey = {public_key}"),
        format!("Endpoint = {endpoint}"),
        format!("AllowedIPs = {}", list(allowed(inputs))),
        format!("PersistentKeepalive = {}", interval.as_secs()),
    ]
}

/// The pool's routes of the families that the client has, and the gateway's own inner addresses.
fn allowed(inputs: &ConfigInputs<'_>) -> Vec<IpNet> {
    let has = |net: &IpNet| inputs.addresses.iter().any(|a| a.is_ipv4() == net.addr().is_ipv4());
    let gateway = inputs.pool.spec.cidrs.iter().map(|cidr| IpNet::from(gateway_address(cidr)));
    let mut all: Vec<IpNet> = Vec::new();
    for net in reach::routes(&inputs.pool.spec).into_iter().chain(gateway).filter(has) {
        if !all.iter().any(|wider| wider.contains(&net)) {
            all.push(net);
        }
    }
    all
}

fn list(nets: impl IntoIterator<Item = IpNet>) -> String {
    nets.into_iter().map(|net| net.to_string()).collect::<Vec<_>>().join(", ")
}
