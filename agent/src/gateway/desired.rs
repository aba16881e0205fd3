//! What the operator wants, checked and in the gateway's own types. Pure.

use std::{
    collections::HashMap,
    fmt::Display,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, Word},
    v1,
};

use super::GatewayError;
use crate::{
    health::{Mode, gateway::Expectation},
    tunnel::{Destinations, Inside, PeerConfig, PresharedKey, PublicKey},
};

/// Characters of a text that is not what it should be, when it is shown.
const LONGEST_QUOTE: usize = 64;
/// Until an operator says otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(25);

/// A full snapshot of what one replica needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Counts up with every change.
    pub revision: u64,
    /// The gateway.
    pub gateway: v1::ObjectRef,
    /// This replica's entry.
    pub replica: String,
    /// All replicas, as clients outside the cluster reach them.
    pub replicas: Vec<v1::GatewayReplica>,
    /// All replicas, as clients inside the cluster reach them.
    pub cluster_replicas: Vec<v1::GatewayReplica>,
    /// Own inner addresses.
    pub tunnel_addresses: Vec<IpNet>,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// How clients appear to the cluster.
    pub access: Access,
    /// The pools.
    pub pools: Vec<Pool>,
    /// The clients that may connect.
    pub peers: HashMap<PublicKey, Peer>,
    /// What client certificates chain to, PEM.
    pub ca_pem: String,
    /// The peers by their client's UID.
    by_uid: HashMap<String, PublicKey>,
}

/// How clients appear to what they reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With the gateway's address.
    Masquerade,
    /// With their own inner address.
    Routed,
}

/// A pool of clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Address ranges of its clients.
    pub cidrs: Vec<IpNet>,
    /// What its clients reach beside the gateway. `None`: anything, as the operator is too old to say.
    pub reach: Option<PoolReach>,
    /// As the operator wrote it: what its clients get.
    pub wire: v1::Pool,
    /// How its clients prove their path.
    pub mode: Mode,
    /// Their keepalive interval until something was learnt.
    pub interval: Duration,
}

/// What the clients of a pool reach beside the gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolReach {
    /// Prefixes that the gateway forwards to.
    pub routes: Vec<IpNet>,
    /// Addresses that are reached for DNS.
    pub resolvers: Vec<IpAddr>,
    /// Whether they reach one another.
    pub client_to_client: bool,
}

/// What is known of a client's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// It has told no interval: the policy's is in force.
    Silent,
    /// It keeps this interval.
    Keeps(Duration),
}

/// A client that may connect.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// The client.
    pub client: v1::ObjectRef,
    /// Index of its pool.
    pub pool: usize,
    /// Mixed into the handshake when present.
    pub preshared_key: Option<PresharedKey>,
    /// Its inner addresses.
    pub addresses: Vec<IpNet>,
    /// Whether it runs inside the cluster.
    pub in_cluster: bool,
    /// Keepalive that a client without an agent was configured with.
    pub stock_keepalive: Option<Duration>,
    /// Its own keepalive policy, in place of the pool's.
    pub keepalive: Option<v1::KeepalivePolicy>,
    /// When its right to connect ends. `None`: never.
    pub not_after: Option<SystemTime>,
    /// Two machines use its key, each with a replica of its own, as the operator sees.
    pub key_shared: bool,
}

impl Desired {
    /// Checks a snapshot. A client that makes no sense is left out and named in the second part; anything else
    /// makes the whole of no use.
    pub fn parse(wire: v1::DesiredState) -> Result<(Self, Option<GatewayError>), GatewayError> {
        let gateway = wire.gateway.ok_or_else(|| invalid("it names no gateway"))?;
        let mtu = match wire.mtu {
            0 => 1420,
            mtu => u16::try_from(mtu).map_err(|_| invalid(format!("an MTU of {mtu} is too large")))?,
        };
        let access = match Word::from(wire.access) {
            Word::Known(v1::NetworkAccess::Routed) => Access::Routed,
            Word::Known(v1::NetworkAccess::Masquerade | v1::NetworkAccess::Unspecified)
            // Answers find the way back whatever a newer operator has in mind.
            | Word::Newer(_) => Access::Masquerade,
        };
        let pools = wire.pools.into_iter().map(Pool::parse).collect::<Result<Vec<_>, _>>()?;
        let (peers, problem) = parse_peers(wire.peers, pools.len());
        let desired = Desired {
            revision: wire.revision,
            gateway,
            replica: wire.replica,
            replicas: wire.replicas,
            cluster_replicas: wire.cluster_replicas,
            tunnel_addresses: parse_all(&wire.tunnel_addresses, "tunnel address")?,
            mtu,
            access,
            pools,
            by_uid: peers.iter().map(|(key, peer)| (peer.client.uid.clone(), *key)).collect(),
            peers,
            ca_pem: wire.ca_pem,
        };
        Ok((desired, problem))
    }

    /// The peer of this very incarnation of a client.
    pub fn peer_of(&self, client: &v1::ObjectRef) -> Option<(&PublicKey, &Peer)> {
        let key = self.by_uid.get(&client.uid)?;
        self.peers.get_key_value(key).filter(|(_, peer)| peer.client == *client)
    }

    /// Whether a client with this UID may connect.
    pub fn knows(&self, uid: &str) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// The clients of which the operator says that two machines use their key.
    pub(super) fn shared_keys(&self) -> impl Iterator<Item = PublicKey> {
        self.peers.iter().filter(|(_, peer)| peer.key_shared).map(|(key, _)| *key)
    }

    /// The same but for some clients.
    pub(super) fn without(&self, is_out: impl Fn(&PublicKey) -> bool) -> Self {
        let mut rest = self.clone();
        rest.peers.retain(|key, _| !is_out(key));
        rest.by_uid.retain(|_, key| !is_out(key));
        rest
    }

    /// UIDs of the clients that may connect here and not by the other snapshot.
    pub fn missing_from(&self, other: &Self) -> Vec<String> {
        self.by_uid.keys().filter(|uid| !other.knows(uid)).cloned().collect()
    }

    /// What the data plane is told. Clients have no endpoint here: it is learnt from them alone. `own` are this host's
    /// addresses beside the inner ones.
    pub fn tunnel_peers(&self, own: &[IpAddr]) -> Vec<PeerConfig> {
        let destinations = self.destinations(own);
        let config = |(key, peer): (&PublicKey, &Peer)| PeerConfig {
            public_key: *key,
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: peer.addresses.clone(),
            endpoints: Vec::new(),
            destinations: destinations.get(peer.pool).cloned().flatten(),
        };
        self.peers.iter().map(config).collect()
    }

    /// What the clients of each pool reach.
    fn destinations(&self, own: &[IpAddr]) -> Vec<Option<Arc<Destinations>>> {
        let inner = self.tunnel_addresses.iter().map(IpNet::addr);
        let addresses = inner.chain(own.iter().copied()).collect();
        let inside = Arc::new(Inside { addresses, clients: self.client_ranges() });
        let of = |pool: &Pool| {
            let reach = pool.reach.as_ref()?;
            let clients = pool.cidrs.iter().copied().filter(|_| reach.client_to_client);
            let destinations = Destinations::new(Arc::clone(&inside))
                .with_routes(reach.routes.iter().copied())
                .with_resolvers(reach.resolvers.iter().copied())
                .with_clients(clients);
            Some(Arc::new(destinations))
        };
        self.pools.iter().map(of).collect()
    }

    /// Name of a peer's pool.
    pub fn pool_name(&self, key: &PublicKey) -> Option<&str> {
        self.pools.get(self.peers.get(key)?.pool).map(Pool::name)
    }

    /// Names of the pools whose clients reach anything, as the operator is too old to say what they may.
    pub fn unlimited_pools(&self) -> impl Iterator<Item = &str> {
        let unlimited = self.pools.iter().filter(|pool| pool.reach.is_none());
        unlimited.map(Pool::name)
    }

    /// The ranges of all clients.
    pub fn client_ranges(&self) -> Vec<IpNet> {
        self.pools.iter().flat_map(|pool| pool.cidrs.iter().copied()).collect()
    }

    /// What each client is expected to do while idle. Only of those in `agents` it is known that they run an
    /// agent, which keeps the interval that it told, or else the policy's.
    pub fn expectations(&self, agents: &HashMap<PublicKey, Agent>) -> HashMap<PublicKey, Expectation> {
        let expect = |(key, peer): (&PublicKey, &Peer)| (*key, self.expect(peer, agents.get(key).copied()));
        self.peers.iter().map(expect).collect()
    }

    /// The same for one client: `agent` where it runs one.
    pub fn expectation(&self, key: &PublicKey, agent: Option<Agent>) -> Expectation {
        self.peers.get(key).map_or(Expectation::Nothing, |peer| self.expect(peer, agent))
    }

    fn expect(&self, peer: &Peer, agent: Option<Agent>) -> Expectation {
        match (peer.stock_keepalive, self.pools.get(peer.pool), agent) {
            (Some(interval), ..) => Expectation::Every(interval),
            (None, Some(pool), Some(agent)) if pool.mode == Mode::Loopback => match agent {
                Agent::Keeps(interval) => Expectation::Every(interval),
                Agent::Silent => {
                    Expectation::Every(peer.keepalive.and_then(interval_of).unwrap_or(pool.interval))
                }
            },
            _ => Expectation::Nothing,
        }
    }

    /// What a client needs to run its tunnel.
    pub fn client_config(&self, peer: &Peer) -> v1::ClientConfig {
        let pool = self.pools.get(peer.pool).map(|pool| pool.wire.clone()).unwrap_or_default();
        let replicas = if peer.in_cluster && !self.cluster_replicas.is_empty() {
            &self.cluster_replicas
        } else {
            &self.replicas
        };
        v1::ClientConfig {
            revision: self.revision,
            client: Some(peer.client.clone()),
            addresses: peer.addresses.iter().map(ToString::to_string).collect(),
            routes: pool.routes,
            dns_servers: pool.dns_servers,
            dns_search: pool.dns_search,
            mtu: self.mtu.into(),
            replicas: replicas.clone(),
            keepalive: peer.keepalive.or(pool.keepalive),
            health: pool.health,
        }
    }

    /// Where clients reach this replica's tunnel, `host:port`.
    pub fn own_endpoints(&self) -> Vec<String> {
        let own = self.replicas.iter().filter(|replica| replica.name == self.replica);
        own.flat_map(|replica| replica.tunnel_endpoints.iter().cloned()).collect()
    }
}

impl Pool {
    fn name(&self) -> &str {
        self.wire.pool.as_ref().map_or("?", |pool| pool.name.as_str())
    }

    fn parse(wire: v1::Pool) -> Result<Self, GatewayError> {
        let interval = wire.keepalive.and_then(interval_of);
        let mode = match Word::from(wire.health) {
            Word::Known(v1::HealthMode::LinkStatus) => Mode::LinkStatus,
            Word::Known(v1::HealthMode::Loopback | v1::HealthMode::Unspecified) | Word::Newer(_) => {
                Mode::Loopback
            }
        };
        Ok(Pool {
            cidrs: parse_all(&wire.cidrs, "pool range")?,
            reach: PoolReach::parse(&wire)?,
            mode,
            interval: interval.unwrap_or(DEFAULT_INTERVAL),
            wire,
        })
    }
}

impl PoolReach {
    fn parse(wire: &v1::Pool) -> Result<Option<Self>, GatewayError> {
        let Some(client_to_client) = wire.client_to_client else { return Ok(None) };
        Ok(Some(Self {
            routes: parse_all(&wire.routes, "route")?,
            resolvers: parse_all(&wire.dns_servers, "DNS server")?,
            client_to_client,
        }))
    }
}

fn parse_peers(peers: Vec<v1::Peer>, pools: usize) -> (HashMap<PublicKey, Peer>, Option<GatewayError>) {
    let mut good = HashMap::with_capacity(peers.len());
    let mut problems = Vec::new();
    for wire in peers {
        let name = wire.client.as_ref().map_or("?".to_owned(), |c| format!("{}/{}", c.namespace, c.name));
        match Peer::parse(wire, pools) {
            Ok((key, _)) if good.contains_key(&key) => {
                problems.push(format!("client {name}: another client has the same public key"));
            }
            Ok((key, peer)) => {
                good.insert(key, peer);
            }
            Err(why) => problems.push(format!("client {name}: {why}")),
        }
    }
    let more = problems.len().saturating_sub(3);
    problems.truncate(3);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    (good, (!problems.is_empty()).then(|| GatewayError::Peers(problems.join("; "))))
}

impl Peer {
    fn parse(wire: v1::Peer, pools: usize) -> Result<(PublicKey, Self), String> {
        let client = wire.client.ok_or("it has no name")?;
        let key = <[u8; 32]>::try_from(wire.public_key).map_err(|_| "its public key is not 32 bytes long")?;
        let preshared_key = match wire.preshared_key.len() {
            0 => None,
            _ => Some(
                <[u8; 32]>::try_from(wire.preshared_key)
                    .map(PresharedKey::from_bytes)
                    .map_err(|_| "its preshared key is not 32 bytes long")?,
            ),
        };
        let pool =
            usize::try_from(wire.pool).ok().filter(|pool| *pool < pools).ok_or("its pool is unknown")?;
        let addresses = wire.addresses.iter().map(|text| text.parse::<IpNet>());
        let addresses = addresses.collect::<Result<Vec<_>, _>>().map_err(|_| "an address is malformed")?;
        if addresses.is_empty() {
            return Err("it has no address".into());
        }
        let stock_keepalive = wire.stock_keepalive.and_then(positive);
        let (in_cluster, keepalive) = (wire.in_cluster, wire.keepalive);
        let not_after = bounds::time(wire.not_after);
        if not_after.is_none() && wire.not_after.is_some() {
            // It would never end.
            return Err("its end is no time".into());
        }
        let peer = Peer {
            client,
            pool,
            preshared_key,
            addresses,
            in_cluster,
            stock_keepalive,
            keepalive,
            not_after,
            key_shared: wire.key_shared,
        };
        Ok((PublicKey::from_bytes(key), peer))
    }
}

fn interval_of(policy: v1::KeepalivePolicy) -> Option<Duration> {
    policy.interval.and_then(positive)
}

/// An interval, at most [`LONGEST_SPAN`].
fn positive(duration: prost_types::Duration) -> Option<Duration> {
    bounds::span(Some(duration), LONGEST_SPAN).filter(|duration| !duration.is_zero())
}

fn parse_all<T: FromStr<Err: Display>>(texts: &[String], what: &str) -> Result<Vec<T>, GatewayError> {
    let parse = |text: &String| {
        let quoted = pinhole_proto::printable(text, LONGEST_QUOTE);
        text.parse().map_err(|error| invalid(format!("{what} `{quoted}`: {error}")))
    };
    texts.iter().map(parse).collect()
}

fn invalid(why: impl Into<String>) -> GatewayError {
    GatewayError::DesiredState(why.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::gateway) fn client(name: &str) -> v1::ObjectRef {
        v1::ObjectRef { namespace: "branch".into(), name: name.into(), uid: format!("uid-{name}") }
    }

    pub(in crate::gateway) fn peer(name: &str, n: u8) -> v1::Peer {
        v1::Peer {
            client: Some(client(name)),
            public_key: vec![n; 32],
            addresses: vec![format!("10.77.0.{n}/32")],
            ..Default::default()
        }
    }

    pub(in crate::gateway) fn state(peers: Vec<v1::Peer>) -> v1::DesiredState {
        v1::DesiredState {
            revision: 1,
            gateway: Some(client("edge")),
            replica: "edge-0".into(),
            tunnel_addresses: vec!["10.77.0.1/16".into()],
            mtu: 1420,
            pools: vec![v1::Pool { cidrs: vec!["10.77.0.0/16".into()], ..Default::default() }],
            peers,
            ..Default::default()
        }
    }

    #[test]
    fn a_client_that_makes_no_sense_does_not_keep_the_others_out() {
        let broken = v1::Peer { public_key: vec![1; 31], ..peer("broken", 1) };
        let (desired, problem) = Desired::parse(state(vec![broken, peer("fine", 2)])).unwrap();
        assert_eq!(desired.peers.len(), 1);
        let problem = problem.unwrap();
        assert_eq!(problem.category(), "PeerInvalid");
        assert!(problem.to_string().contains("branch/broken"));
    }

    #[test]
    fn an_end_that_is_no_time_is_not_taken_for_no_end() {
        for (seconds, nanos) in [(i64::MAX, 0), (-1, 0), (1, -1)] {
            let not_after = Some(prost_types::Timestamp { seconds, nanos });
            let broken = v1::Peer { not_after, ..peer("broken", 1) };
            let (desired, problem) = Desired::parse(state(vec![broken, peer("fine", 2)])).unwrap();
            assert_eq!(desired.peers.len(), 1);
            assert!(problem.unwrap().to_string().contains("its end is no time"));
        }
    }

    #[test]
    fn two_clients_with_one_key_are_not_mixed_up() {
        let (desired, problem) = Desired::parse(state(vec![peer("older", 2), peer("younger", 2)])).unwrap();
        assert_eq!(desired.peers.values().next().unwrap().client.name, "older");
        assert!(problem.unwrap().to_string().contains("younger"));
    }

    #[test]
    fn a_broken_address_of_the_gateway_makes_the_whole_invalid() {
        let broken = v1::DesiredState { tunnel_addresses: vec!["10.77.0.1/99".into()], ..state(vec![]) };
        assert_eq!(Desired::parse(broken).unwrap_err().category(), "DesiredStateInvalid");
    }

    #[test]
    fn clients_inside_the_cluster_see_its_inner_endpoints() {
        let replica = |endpoint: &str| v1::GatewayReplica {
            name: "edge-0".into(),
            tunnel_endpoints: vec![endpoint.into()],
            ..Default::default()
        };
        let inside = v1::Peer { in_cluster: true, ..peer("inside", 2) };
        let mut state = state(vec![inside, peer("outside", 3)]);
        state.replicas = vec![replica("192.0.2.1:51820")];
        state.cluster_replicas = vec![replica("10.0.0.1:51820")];
        let (desired, _) = Desired::parse(state).unwrap();
        let endpoint = |name| {
            let (_, peer) = desired.peer_of(&client(name)).unwrap();
            desired.client_config(peer).replicas[0].tunnel_endpoints[0].clone()
        };
        assert_eq!(
            (endpoint("inside"), endpoint("outside")),
            ("10.0.0.1:51820".into(), "192.0.2.1:51820".into())
        );
    }

    #[test]
    fn another_incarnation_of_a_client_is_another_client() {
        let (desired, _) = Desired::parse(state(vec![peer("laptop", 2)])).unwrap();
        let old = v1::ObjectRef { uid: "older".into(), ..client("laptop") };
        assert!(desired.peer_of(&old).is_none());
    }

    #[test]
    fn only_a_known_agent_is_expected_to_probe() {
        let stock = v1::Peer {
            stock_keepalive: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
            ..peer("stock", 2)
        };
        let (desired, _) = Desired::parse(state(vec![stock, peer("agent", 3), peer("unknown", 4)])).unwrap();
        let key = |n| PublicKey::from_bytes([n; 32]);
        let expected = desired.expectations(&HashMap::from([(key(3), Agent::Silent)]));
        assert_eq!(expected[&key(2)], Expectation::Every(Duration::from_secs(20)));
        assert_eq!(expected[&key(3)], Expectation::Every(DEFAULT_INTERVAL));
        assert_eq!(expected[&key(4)], Expectation::Nothing);
        let told = Duration::from_secs(110);
        let expected = desired.expectations(&HashMap::from([(key(3), Agent::Keeps(told))]));
        assert_eq!(expected[&key(3)], Expectation::Every(told));
    }

    fn pool(name: &str, cidr: &str, client_to_client: Option<bool>) -> v1::Pool {
        v1::Pool {
            pool: Some(client(name)),
            cidrs: vec![cidr.into()],
            routes: vec!["10.96.0.0/12".into(), "fd00:96::/112".into()],
            dns_servers: vec!["10.96.0.10".into()],
            client_to_client,
            ..Default::default()
        }
    }

    #[test]
    fn the_clients_of_a_pool_share_its_destinations_and_those_of_an_older_operator_have_no_limits() {
        let pools = vec![
            pool("staff", "10.77.0.0/16", Some(false)),
            pool("devices", "10.78.0.0/16", Some(true)),
            pool("older", "10.79.0.0/16", None),
        ];
        let of = |pool, n| v1::Peer { pool, ..peer(&format!("client-{n}"), n) };
        let peers = vec![of(0, 2), of(0, 3), of(1, 4), of(2, 5)];
        let (desired, _) = Desired::parse(v1::DesiredState { pools, ..state(peers) }).unwrap();
        let own: IpAddr = "10.244.0.7".parse().unwrap();
        let configs = desired.tunnel_peers(&[own]);
        let of = |n| {
            let config = configs.iter().find(|config| config.public_key == PublicKey::from_bytes([n; 32]));
            config.unwrap().destinations.clone()
        };
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let inside = Inside {
            addresses: vec!["10.77.0.1".parse().unwrap(), own],
            clients: ["10.77.0.0/16", "10.78.0.0/16", "10.79.0.0/16"].map(net).to_vec(),
        };
        let routed = Destinations::new(Arc::new(inside))
            .with_routes(["10.96.0.0/12", "fd00:96::/112"].map(net))
            .with_resolvers(["10.96.0.10".parse().unwrap()]);
        assert_eq!(of(2).as_deref(), Some(&routed));
        assert!(Arc::ptr_eq(&of(2).unwrap(), &of(3).unwrap()));
        assert_eq!(of(4).as_deref(), Some(&routed.with_clients([net("10.78.0.0/16")])));
        assert_eq!(of(5), None);
        assert_eq!(desired.unlimited_pools().collect::<Vec<_>>(), ["older"]);
        assert_eq!(desired.pool_name(&PublicKey::from_bytes([4; 32])), Some("devices"));
    }

    #[test]
    fn a_route_that_makes_no_sense_is_not_taken_for_none() {
        let broken =
            v1::Pool { routes: vec!["10.96.0.0".into()], ..pool("staff", "10.77.0.0/16", Some(false)) };
        let state = v1::DesiredState { pools: vec![broken], ..state(vec![]) };
        assert_eq!(Desired::parse(state).unwrap_err().category(), "DesiredStateInvalid");
    }
}
