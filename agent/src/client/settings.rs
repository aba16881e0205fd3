//! What the gateway tells a client, checked and in the client's own types. Pure.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use pinhole_proto::v1;

use super::ClientError;
use crate::{
    health::Mode,
    nat::{
        self, Policy,
        standby::{self, Preference},
    },
    tunnel::{PeerConfig, PublicKey},
};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(25);
const DEFAULT_MTU: u16 = 1420;

/// All that a client's tunnel needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The client.
    pub client: v1::ObjectRef,
    /// Own inner addresses, with host prefix.
    pub addresses: Vec<IpNet>,
    /// Reached through the tunnel.
    pub routes: Vec<IpNet>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// The gateway's replicas, the best first.
    pub replicas: Vec<Replica>,
    /// How the path is proven.
    pub mode: Mode,
    /// Keepalive interval.
    pub interval: Duration,
    /// Why it is that.
    pub interval_reason: &'static str,
    /// What the user allows of what is learnt.
    pub policy: Policy,
    /// By what it is reached while it is idle.
    pub standby: standby::Policy,
}

/// One gateway replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    /// Its pod.
    pub name: String,
    /// Its key.
    pub public_key: PublicKey,
    /// `host:port` of its tunnel, the best first.
    pub tunnel_endpoints: Vec<String>,
    /// `host:port` of its session service.
    pub session_endpoints: Vec<String>,
    /// Its inner addresses, which answer probes.
    pub tunnel_addresses: Vec<IpAddr>,
}

impl Settings {
    /// Checks a configuration.
    pub fn parse(wire: v1::ClientConfig) -> Result<Self, ClientError> {
        let client = wire.client.clone().ok_or_else(|| invalid("it names no client"))?;
        let mode = match wire.health() {
            v1::HealthMode::LinkStatus => Mode::LinkStatus,
            v1::HealthMode::Loopback | v1::HealthMode::Unspecified => Mode::Loopback,
        };
        let (interval, interval_reason) = interval(wire.keepalive.as_ref());
        let mtu = match wire.mtu {
            0 => DEFAULT_MTU,
            mtu => u16::try_from(mtu).map_err(|_| invalid(format!("an MTU of {mtu} is too large")))?,
        };
        let settings = Settings {
            client,
            addresses: parse_all(&wire.addresses, "address")?,
            routes: parse_all::<IpNet>(&wire.routes, "route")?
                .into_iter()
                .map(|route| route.trunc())
                .collect(),
            dns_servers: parse_all(&wire.dns_servers, "DNS server")?,
            dns_search: wire.dns_search.into_iter().filter(|domain| is_domain(domain)).collect(),
            mtu,
            replicas: wire.replicas.into_iter().map(Replica::parse).collect::<Result<_, _>>()?,
            mode,
            interval,
            interval_reason,
            policy: policy(wire.keepalive.as_ref(), interval),
            standby: standby(wire.keepalive.as_ref()),
        };
        if settings.addresses.is_empty() {
            return Err(invalid("it gives no address"));
        }
        Ok(settings)
    }

    /// The replica with this key.
    pub fn replica(&self, key: &PublicKey) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.public_key == *key)
    }

    /// What the data plane is told: inner traffic flows to `active`, the others answer probes alone. Replicas share
    /// their inner addresses, so those too lead to one of them only.
    pub fn peers(&self, active: Option<&PublicKey>) -> Vec<PeerConfig> {
        let peer = |replica: &Replica| {
            let mut allowed_ips: Vec<IpNet> = Vec::new();
            if active == Some(&replica.public_key) {
                allowed_ips.extend(replica.tunnel_addresses.iter().copied().map(IpNet::from));
                allowed_ips.extend(&self.routes);
            }
            PeerConfig {
                public_key: replica.public_key,
                preshared_key: None,
                allowed_ips,
                endpoints: Vec::new(),
                destinations: None,
            }
        };
        self.replicas.iter().map(peer).collect()
    }

    /// Own and the replica's address for a probe, of one family.
    pub fn probe_addresses(&self, replica: &PublicKey) -> Option<(IpAddr, IpAddr)> {
        let replica = self.replica(replica)?;
        self.addresses.iter().find_map(|own| {
            let own = own.addr();
            let to = replica.tunnel_addresses.iter().find(|to| to.is_ipv4() == own.is_ipv4())?;
            Some((own, *to))
        })
    }

    /// How the path can be proven: probes need an address that answers them.
    pub fn effective_mode(&self) -> Mode {
        let probed = self.replicas.iter().all(|replica| self.probe_addresses(&replica.public_key).is_some());
        if probed { self.mode } else { Mode::LinkStatus }
    }

    /// What leads into the tunnel, the gateway's own inner addresses included: the routes that would catch the
    /// tunnel's own packets to these addresses, and the others.
    pub fn split_routes(&self, outer: &[SocketAddr]) -> (Vec<IpNet>, Vec<IpNet>) {
        let gateway = self.replicas.iter().flat_map(|replica| &replica.tunnel_addresses);
        let mut routes: Vec<IpNet> = gateway.copied().map(IpNet::from).chain(self.routes.clone()).collect();
        routes.sort_unstable();
        routes.dedup();
        routes.into_iter().partition(|route| outer.iter().any(|address| route.contains(&address.ip())))
    }
}

impl Replica {
    fn parse(wire: v1::GatewayReplica) -> Result<Self, ClientError> {
        let key = <[u8; 32]>::try_from(wire.public_key)
            .map_err(|_| invalid(format!("the key of replica {:?} is not 32 bytes long", wire.name)))?;
        let address = |text: &String| {
            // Also with a prefix length, as the gateway itself is told.
            let host = text.split('/').next().unwrap_or_default();
            host.parse().map_err(|error| invalid(format!("tunnel address {text:?}: {error}")))
        };
        Ok(Replica {
            name: wire.name,
            public_key: PublicKey::from_bytes(key),
            tunnel_endpoints: wire.tunnel_endpoints,
            session_endpoints: wire.session_endpoints,
            tunnel_addresses: wire.tunnel_addresses.iter().map(address).collect::<Result<_, _>>()?,
        })
    }
}

fn duration(wire: Option<prost_types::Duration>) -> Option<Duration> {
    wire.and_then(|wire| Duration::try_from(wire).ok()).filter(|duration| !duration.is_zero())
}

fn policy(wire: Option<&v1::KeepalivePolicy>, interval: Duration) -> Policy {
    let unlimited = Policy { interval, ..Policy::default() };
    let Some(wire) = wire else { return unlimited };
    let mode = match wire.mode() {
        v1::keepalive_policy::Mode::Fixed => nat::Mode::Fixed,
        v1::keepalive_policy::Mode::Adaptive | v1::keepalive_policy::Mode::Unspecified => nat::Mode::Adaptive,
    };
    let min = duration(wire.min).unwrap_or(unlimited.min);
    let max = duration(wire.max).unwrap_or(unlimited.max).max(min);
    Policy { mode, interval, min, max, longest_blind: duration(wire.longest_blind) }
}

fn standby(wire: Option<&v1::KeepalivePolicy>) -> standby::Policy {
    use v1::keepalive_policy::Standby;
    let preference = match wire.map(v1::KeepalivePolicy::standby).unwrap_or_default() {
        Standby::Auto => Preference::Auto,
        Standby::Session => Preference::Session,
        Standby::Udp | Standby::Unspecified => Preference::UdpOnly,
    };
    let longest_blind = wire.and_then(|wire| duration(wire.longest_blind));
    standby::Policy { preference, longest_blind, ..standby::Policy::default() }
}

fn interval(policy: Option<&v1::KeepalivePolicy>) -> (Duration, &'static str) {
    let Some(policy) = policy else { return (DEFAULT_INTERVAL, "default") };
    let Some(interval) = duration(policy.interval) else { return (DEFAULT_INTERVAL, "default") };
    if policy.mode() == v1::keepalive_policy::Mode::Fixed {
        return (interval, "fixed by policy");
    }
    let least = duration(policy.min).unwrap_or(Duration::from_secs(1));
    let most = duration(policy.max).unwrap_or(interval).max(least);
    (interval.clamp(least, most), "policy, nothing learnt yet")
}

/// What may stand in resolv.conf without changing its meaning.
fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

fn parse_all<T: FromStr<Err: Display>>(texts: &[String], what: &str) -> Result<Vec<T>, ClientError> {
    let parse = |text: &String| text.parse().map_err(|error| invalid(format!("{what} {text:?}: {error}")));
    texts.iter().map(parse).collect()
}

fn invalid(why: impl Into<String>) -> ClientError {
    ClientError::Config(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> v1::ClientConfig {
        let replica = |n: u8| v1::GatewayReplica {
            name: format!("edge-{n}"),
            public_key: vec![n; 32],
            tunnel_endpoints: vec![format!("192.0.2.{n}:51820")],
            session_endpoints: vec![format!("192.0.2.{n}:51821")],
            tunnel_addresses: vec![format!("10.77.0.{n}/16")],
        };
        v1::ClientConfig {
            client: Some(v1::ObjectRef::default()),
            addresses: vec!["10.77.0.9/32".into()],
            routes: vec!["10.96.0.1/12".into(), "0.0.0.0/0".into()],
            dns_search: vec!["cluster.local".into(), "evil\nnameserver 6.6.6.6".into()],
            replicas: vec![replica(1), replica(2)],
            ..Default::default()
        }
    }

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    #[test]
    fn routes_lead_to_the_active_replica_alone() {
        let settings = Settings::parse(config()).unwrap();
        let peers = settings.peers(Some(&key(2)));
        assert_eq!(peers[0].allowed_ips, []);
        assert_eq!(peers[1].allowed_ips.len(), 3);
    }

    #[test]
    fn what_could_forge_a_resolver_line_is_dropped() {
        assert_eq!(Settings::parse(config()).unwrap().dns_search, ["cluster.local"]);
    }

    #[test]
    fn routes_that_would_swallow_the_tunnel_are_told_apart() {
        let settings = Settings::parse(config()).unwrap();
        let (covering, others) = settings.split_routes(&["192.0.2.1:51820".parse().unwrap()]);
        assert_eq!(covering, ["0.0.0.0/0".parse::<IpNet>().unwrap()]);
        let others: Vec<_> = others.iter().map(ToString::to_string).collect();
        assert_eq!(others, ["10.77.0.1/32", "10.77.0.2/32", "10.96.0.0/12"]);
    }

    #[test]
    fn without_an_address_that_answers_there_are_no_probes() {
        let mut config = config();
        config.replicas[0].tunnel_addresses = vec!["fd00::1".into()];
        assert_eq!(Settings::parse(config).unwrap().effective_mode(), Mode::LinkStatus);
    }

    #[test]
    fn a_policy_bounds_its_own_interval() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let mut policy =
            v1::KeepalivePolicy { interval: seconds(60), max: seconds(30), ..Default::default() };
        assert_eq!(interval(Some(&policy)).0, Duration::from_secs(30));
        policy.set_mode(v1::keepalive_policy::Mode::Fixed);
        assert_eq!(interval(Some(&policy)).0, Duration::from_mins(1));
        assert_eq!(interval(None).0, DEFAULT_INTERVAL);
        let limited = super::policy(Some(&policy), Duration::from_mins(1));
        assert_eq!((limited.mode, limited.max), (nat::Mode::Fixed, Duration::from_secs(30)));
        assert_eq!(limited.min, Policy::default().min);
        assert_eq!(super::policy(None, DEFAULT_INTERVAL), Policy::default());
    }

    proptest! {
        #[test]
        fn any_configuration_is_parsed_or_refused_without_a_panic(
            addresses in proptest::collection::vec(".{0,30}", 0..3),
            mtu: u32, min: i64, max: i64, interval: i64,
        ) {
            let duration = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
            let keepalive = v1::KeepalivePolicy {
                interval: duration(interval), min: duration(min), max: duration(max), ..Default::default()
            };
            let config = v1::ClientConfig { addresses, mtu, keepalive: Some(keepalive), ..config() };
            let _ = Settings::parse(config);
        }
    }
}
