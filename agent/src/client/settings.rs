//! What the gateway tells a client, checked and in the client's own types. Pure.

use std::{fmt::Display, net::IpAddr, str::FromStr, time::Duration};

use ipnet::IpNet;
use pinhole_proto::{
    DomainName, HostPort,
    bounds::{self, LONGEST_SPAN, Word},
    is_object_name, parted, printable, v1,
};

use super::{ClientError, LeftOut, error::said, left_out::limited};
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
/// What every IPv4 host takes.
const SMALLEST_MTU: u16 = 576;
/// Nothing is done more often, whatever a policy says.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Characters of a UID.
const LONGEST_UID: usize = 64;
/// Characters of a text that is quoted because it is wrong.
const LONGEST_QUOTE: usize = 64;
/// Search domains and name servers that are used: as many as a pool may have. C libraries use fewer of them.
const MOST_SEARCH: usize = 32;
const MOST_SERVERS: usize = 8;
/// Own addresses, routes, replicas, and endpoints and inner addresses of one: far more than an operator gives. What came
/// without one of them would be another tunnel than was meant, so that more are refused.
const MOST_ADDRESSES: usize = 16;
const MOST_ROUTES: usize = 16_384;
const MOST_REPLICAS: usize = 64;
const MOST_ENDPOINTS: usize = 64;

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
    pub dns_search: Vec<DomainName>,
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
    /// What else was sent, and cannot be used.
    pub left_out: Vec<LeftOut>,
}

/// One gateway replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    /// Its pod.
    pub name: String,
    /// Its key.
    pub public_key: PublicKey,
    /// Where its tunnel is, the best first.
    pub tunnel_endpoints: Vec<HostPort>,
    /// Where its session service is.
    pub session_endpoints: Vec<HostPort>,
    /// Its inner addresses, which answer probes.
    pub tunnel_addresses: Vec<IpAddr>,
}

impl Settings {
    /// Checks a configuration. The gateway is not trusted with more than the tunnel: what would end in the resolver's
    /// configuration or on its command line is a name or an address, or is left out.
    ///
    /// # Errors
    /// When it makes no sense as a whole.
    pub fn parse(mut wire: v1::ClientConfig) -> Result<Self, ClientError> {
        let client = wire.client.clone().ok_or_else(|| invalid("it names no client"))?;
        if !is_object_name(&client.namespace) || !is_object_name(&client.name) {
            return Err(invalid("the client's name is none"));
        }
        let client = v1::ObjectRef { uid: printable(&client.uid, LONGEST_UID), ..client };
        few(wire.addresses.len(), MOST_ADDRESSES, "addresses")?;
        few(wire.routes.len(), MOST_ROUTES, "routes")?;
        few(wire.replicas.len(), MOST_REPLICAS, "replicas")?;
        let (dns_search, no_domains) = parted::<DomainName>(&wire.dns_search);
        let (dns_search, more_domains) = limited(dns_search, "search domains", MOST_SEARCH);
        let dns_servers = parse_all(&wire.dns_servers, "DNS server")?;
        let (dns_servers, more_servers) = limited(dns_servers, "name servers", MOST_SERVERS);
        let no_domains = no_domains.map(|texts| LeftOut::SearchDomains(pinhole_proto::quoted(&texts)));
        let mut left_out: Vec<LeftOut> = no_domains.into_iter().collect();
        left_out.extend(more_domains.into_iter().chain(more_servers));
        let replica = |wire| Replica::parse(wire, &mut left_out);
        let replicas =
            std::mem::take(&mut wire.replicas).into_iter().map(replica).collect::<Result<_, _>>()?;
        let mode = match Word::from(wire.health) {
            Word::Known(v1::HealthMode::LinkStatus) => Mode::LinkStatus,
            // Where a path need not be proven, proving it does no harm.
            Word::Known(v1::HealthMode::Loopback | v1::HealthMode::Unspecified) | Word::Newer(_) => {
                Mode::Loopback
            }
        };
        let (interval, interval_reason) = interval(wire.keepalive.as_ref());
        let mtu = match wire.mtu {
            0 => DEFAULT_MTU,
            mtu => u16::try_from(mtu)
                .map_err(|_| invalid(format!("an MTU of {mtu} is too large")))?
                .max(SMALLEST_MTU),
        };
        let settings = Settings {
            client,
            addresses: parse_all(&wire.addresses, "address")?,
            routes: parse_all::<IpNet>(&wire.routes, "route")?
                .into_iter()
                .map(|route| route.trunc())
                .collect(),
            dns_servers,
            dns_search,
            mtu,
            replicas,
            mode,
            interval,
            interval_reason,
            policy: policy(wire.keepalive.as_ref(), interval),
            standby: standby(wire.keepalive.as_ref()),
            left_out,
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

    /// Puts the replicas into an order of this client's own: a fleet spreads over them.
    pub(super) fn spread(&mut self, own: &PublicKey) {
        let [first, second, ..] = *own.as_bytes();
        let start = usize::from(u16::from_be_bytes([first, second])).checked_rem(self.replicas.len());
        self.replicas.rotate_left(start.unwrap_or_default());
    }

    /// Where each replica's sessions are, those of `first` first.
    pub(super) fn session_ways(&self, first: Option<&PublicKey>) -> Vec<(Option<PublicKey>, Vec<String>)> {
        let mut replicas: Vec<&Replica> =
            self.replicas.iter().filter(|replica| !replica.session_endpoints.is_empty()).collect();
        replicas.sort_by_key(|replica| first != Some(&replica.public_key));
        let texts = |replica: &Replica| replica.session_endpoints.iter().map(ToString::to_string).collect();
        replicas.into_iter().map(|replica| (Some(replica.public_key), texts(replica))).collect()
    }

    /// With which replica the session is to be held, that with `held` now, where the traffic goes to `active`: with that one,
    /// but where both are behind one address, which is where nobody can choose, it stays where it is.
    pub(super) fn session_with(
        &self,
        held: Option<PublicKey>,
        active: Option<PublicKey>,
    ) -> Option<PublicKey> {
        let ways = |key: Option<PublicKey>| {
            key.and_then(|key| self.replica(&key)).map(|replica| &replica.session_endpoints)
        };
        if held.is_some() && ways(held) == ways(active) { held } else { active }
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

    /// Own and the replica's address for a probe, of one family. IPv4 where there is a choice: either machine may be
    /// without IPv6.
    pub fn probe_addresses(&self, replica: &PublicKey) -> Option<(IpAddr, IpAddr)> {
        let replica = self.replica(replica)?;
        let pair = |own: &IpNet| {
            let own = own.addr();
            let to = replica.tunnel_addresses.iter().find(|to| to.is_ipv4() == own.is_ipv4())?;
            Some((own, *to))
        };
        self.addresses.iter().filter_map(pair).min_by_key(|(own, _)| own.is_ipv6())
    }

    /// How the path can be proven: probes need an address that answers them.
    pub fn effective_mode(&self) -> Mode {
        let probed = self.replicas.iter().all(|replica| self.probe_addresses(&replica.public_key).is_some());
        if probed { self.mode } else { Mode::LinkStatus }
    }

    /// The gateway's own inner addresses.
    pub fn gateway_addresses(&self) -> Vec<IpAddr> {
        self.replicas.iter().flat_map(|replica| replica.tunnel_addresses.iter().copied()).collect()
    }
}

impl Replica {
    fn parse(wire: v1::GatewayReplica, left_out: &mut Vec<LeftOut>) -> Result<Self, ClientError> {
        if !is_object_name(&wire.name) {
            return Err(invalid(format!("the replica's name {} is none", quoted(&wire.name))));
        }
        let endpoints = wire.tunnel_endpoints.len().max(wire.session_endpoints.len());
        few(endpoints, MOST_ENDPOINTS, "endpoints of a replica")?;
        few(wire.tunnel_addresses.len(), MOST_ADDRESSES, "inner addresses of a replica")?;
        let key = <[u8; 32]>::try_from(wire.public_key).map_err(|_| {
            invalid(format!("the key of replica {} is not 32 bytes long", quoted(&wire.name)))
        })?;
        let address = |text: &String| {
            // Also with a prefix length, as the gateway itself is told.
            let host = text.split('/').next().unwrap_or_default();
            host.parse().map_err(|error| invalid(format!("tunnel address {}: {error}", quoted(text))))
        };
        let (tunnel_endpoints, no_tunnel) = parted(&wire.tunnel_endpoints);
        let (session_endpoints, no_session) = parted(&wire.session_endpoints);
        let none = no_tunnel.into_iter().chain(no_session);
        left_out.extend(none.map(|texts| {
            let endpoints = pinhole_proto::quoted(&texts);
            LeftOut::Endpoints { replica: wire.name.clone(), endpoints }
        }));
        Ok(Replica {
            name: wire.name,
            public_key: PublicKey::from_bytes(key),
            tunnel_endpoints,
            session_endpoints,
            tunnel_addresses: wire.tunnel_addresses.iter().map(address).collect::<Result<_, _>>()?,
        })
    }
}

/// An interval between [`SHORTEST_INTERVAL`] and [`LONGEST_SPAN`].
fn duration(wire: Option<prost_types::Duration>) -> Option<Duration> {
    let duration = bounds::span(wire, LONGEST_SPAN).filter(|duration| !duration.is_zero());
    duration.map(|duration| duration.max(SHORTEST_INTERVAL))
}

/// A list that is longer is no configuration: cut short, it would be another one.
fn few(length: usize, most: usize, what: &str) -> Result<(), ClientError> {
    if length > most {
        return Err(invalid(format!("it has {length} {what}, and at most {most} are taken")));
    }
    Ok(())
}

fn policy(wire: Option<&v1::KeepalivePolicy>, interval: Duration) -> Policy {
    let unlimited = Policy { interval, ..Policy::default() };
    let Some(wire) = wire else { return unlimited };
    let mode = match Word::from(wire.mode) {
        Word::Known(v1::keepalive_policy::Mode::Fixed) => nat::Mode::Fixed,
        Word::Known(v1::keepalive_policy::Mode::Adaptive | v1::keepalive_policy::Mode::Unspecified)
        | Word::Newer(_) => nat::Mode::Adaptive,
    };
    let min = duration(wire.min).unwrap_or(unlimited.min);
    let max = duration(wire.max).unwrap_or(unlimited.max).max(min);
    Policy { mode, interval, min, max, longest_blind: duration(wire.longest_blind) }
}

fn standby(wire: Option<&v1::KeepalivePolicy>) -> standby::Policy {
    use v1::keepalive_policy::Standby;
    let preference = match wire.map(|wire| Word::from(wire.standby)).unwrap_or_default() {
        Word::Known(Standby::Auto) => Preference::Auto,
        Word::Known(Standby::Session) => Preference::Session,
        // A way that is newer than this client is none that it could be reached by.
        Word::Known(Standby::Udp | Standby::Unspecified) | Word::Newer(_) => Preference::UdpOnly,
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

fn parse_all<T: FromStr<Err: Display>>(texts: &[String], what: &str) -> Result<Vec<T>, ClientError> {
    let parse =
        |text: &String| text.parse().map_err(|error| invalid(format!("{what} {}: {error}", quoted(text))));
    texts.iter().map(parse).collect()
}

/// A text that is not what it should be, as far as it is worth showing.
fn quoted(text: &str) -> String {
    format!("`{}`", printable(text, LONGEST_QUOTE))
}

fn invalid(why: impl Into<String>) -> ClientError {
    ClientError::Config(said(&why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    fn client(namespace: &str, name: &str) -> v1::ObjectRef {
        v1::ObjectRef { namespace: namespace.into(), name: name.into(), uid: "u".into() }
    }

    fn config() -> v1::ClientConfig {
        let replica = |n: u8| v1::GatewayReplica {
            name: format!("edge-{n}"),
            public_key: vec![n; 32],
            tunnel_endpoints: vec![format!("192.0.2.{n}:51820")],
            session_endpoints: vec![format!("192.0.2.{n}:51821")],
            tunnel_addresses: vec![format!("10.77.0.{n}/16")],
        };
        v1::ClientConfig {
            client: Some(client("vpn", "laptop")),
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
    fn each_client_begins_with_another_replica_and_keeps_the_order_of_the_others() {
        let order = |own: [u8; 32]| {
            let mut settings = Settings::parse(config()).unwrap();
            settings.spread(&PublicKey::from_bytes(own));
            settings.replicas.iter().map(|replica| replica.public_key).collect::<Vec<_>>()
        };
        let own = |second| {
            let mut own = [0; 32];
            own[1] = second;
            own
        };
        assert_eq!(order(own(0)), [key(1), key(2)]);
        assert_eq!(order(own(1)), [key(2), key(1)]);
        assert_eq!(order(own(2)), order(own(0)));
        let mut none = Settings::parse(v1::ClientConfig { replicas: Vec::new(), ..config() }).unwrap();
        none.spread(&key(9));
        assert!(none.replicas.is_empty());
    }

    #[test]
    fn sessions_are_tried_where_the_traffic_goes_first_and_not_where_there_are_none() {
        let mut config = config();
        let settings = Settings::parse(config.clone()).unwrap();
        let at = |n: u8| (Some(key(n)), vec![format!("192.0.2.{n}:51821")]);
        assert_eq!(settings.session_ways(None), [at(1), at(2)]);
        assert_eq!(settings.session_ways(Some(&key(2))), [at(2), at(1)]);
        config.replicas[0].session_endpoints.clear();
        assert_eq!(Settings::parse(config).unwrap().session_ways(Some(&key(1))), [at(2)]);
    }

    #[test]
    fn a_session_follows_the_traffic_and_stays_behind_an_address_where_nobody_can_choose() {
        let apart = Settings::parse(config()).unwrap();
        assert_eq!(apart.session_with(Some(key(1)), Some(key(2))), Some(key(2)));
        assert_eq!(apart.session_with(None, Some(key(2))), Some(key(2)));
        assert_eq!(apart.session_with(Some(key(1)), None), None);
        let mut config = config();
        config.replicas[1].session_endpoints = config.replicas[0].session_endpoints.clone();
        let behind_one = Settings::parse(config).unwrap();
        assert_eq!(behind_one.session_with(Some(key(1)), Some(key(2))), Some(key(1)));
        assert_eq!(behind_one.session_with(None, Some(key(2))), Some(key(2)));
    }

    #[test]
    fn what_could_forge_a_resolver_line_is_dropped() {
        let settings = Settings::parse(config()).unwrap();
        assert_eq!(searched(&settings), ["cluster.local"]);
        assert_eq!(
            settings.left_out.iter().map(LeftOut::category).collect::<Vec<_>>(),
            ["SearchDomainInvalid"]
        );
    }

    fn searched(settings: &Settings) -> Vec<&str> {
        settings.dns_search.iter().map(DomainName::as_str).collect()
    }

    #[test]
    fn a_hostile_search_domain_or_endpoint_is_left_out_and_said_and_the_rest_is_in_force() {
        for text in hostile::strings() {
            let mut config = config();
            config.dns_search = vec![text.clone(), "corp.example".into()];
            config.replicas[0].tunnel_endpoints.insert(0, text.clone());
            config.replicas[1].session_endpoints.insert(0, format!("{text}:51821"));
            let settings = Settings::parse(config).unwrap();
            assert_eq!(searched(&settings), ["corp.example"], "{text:?}");
            assert_eq!(settings.replicas[0].tunnel_endpoints[0].to_string(), "192.0.2.1:51820");
            assert_eq!(settings.replicas[1].session_endpoints[0].to_string(), "192.0.2.2:51821");
            let said: Vec<_> = settings.left_out.iter().map(|l| (l.category(), l.to_string())).collect();
            let categories: Vec<_> = said.iter().map(|(category, _)| *category).collect();
            assert_eq!(categories, ["SearchDomainInvalid", "EndpointInvalid", "EndpointInvalid"]);
            assert!(said.iter().all(|(_, text)| text.len() < 400 && !text.chars().any(char::is_control)));
        }
    }

    #[test]
    fn a_hostile_name_address_or_route_makes_the_whole_of_no_use_and_is_shown_in_one_line() {
        let changes: [fn(&mut v1::ClientConfig, String); 6] = [
            |config, text| config.client = Some(client("vpn", &text)),
            |config, text| config.client = Some(client(&text, "laptop")),
            |config, text| config.replicas[0].name = text,
            |config, text| config.addresses.push(text),
            |config, text| config.routes.push(text),
            |config, text| config.dns_servers.push(text),
        ];
        for text in hostile::strings() {
            for change in changes {
                let mut config = config();
                change(&mut config, text.clone());
                let error = Settings::parse(config).unwrap_err();
                assert_eq!(error.category(), "ConfigInvalid");
                let shown = error.to_string();
                assert!(shown.chars().count() < 600 && !shown.chars().any(char::is_control), "{shown:?}");
            }
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_or_refused() {
        let with = |change: fn(&mut v1::ClientConfig)| {
            let mut config = v1::ClientConfig { dns_search: vec![], ..config() };
            change(&mut config);
            Settings::parse(config)
        };
        let settings = with(|c| c.dns_search = (0..40).map(|n| format!("d{n}.example")).collect()).unwrap();
        assert_eq!((settings.dns_search.len(), settings.left_out[0].category()), (MOST_SEARCH, "DnsTooLong"));
        let settings = with(|c| c.dns_servers = (0..40).map(|n| format!("10.0.0.{n}")).collect()).unwrap();
        assert_eq!(
            (settings.dns_servers.len(), settings.left_out[0].category()),
            (MOST_SERVERS, "DnsTooLong")
        );
        assert!(with(|c| c.routes = vec!["10.0.0.0/8".into(); MOST_ROUTES]).is_ok());
        assert!(with(|c| c.routes = vec!["10.0.0.0/8".into(); MOST_ROUTES + 1]).is_err());
        assert!(with(|c| c.addresses = vec!["10.0.0.1/32".into(); MOST_ADDRESSES + 1]).is_err());
        assert!(with(|c| c.replicas = vec![c.replicas[0].clone(); MOST_REPLICAS + 1]).is_err());
        let endpoints = |c: &mut v1::ClientConfig| {
            c.replicas[0].tunnel_endpoints = vec!["192.0.2.1:1".into(); MOST_ENDPOINTS + 1];
        };
        assert!(with(endpoints).is_err());
    }

    #[test]
    fn probes_are_of_ipv4_where_there_is_a_choice() {
        let mut config = config();
        config.addresses.insert(0, "fd77::9/128".into());
        config.replicas[0].tunnel_addresses.insert(0, "fd77::1".into());
        let (from, to) = Settings::parse(config).unwrap().probe_addresses(&key(1)).unwrap();
        assert!(from.is_ipv4() && to.is_ipv4(), "{from} {to}");
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
        fn whatever_is_configured_is_within_bounds(seed: u64) {
            let config = pinhole_proto::hostile::Hostile::new(seed).readable::<v1::ClientConfig>("ClientConfig");
            if let Ok(settings) = Settings::parse(v1::ClientConfig { mtu: 1, ..config }) {
                let policy = settings.policy;
                for span in [settings.interval, policy.interval, policy.min, policy.max] {
                    prop_assert!((SHORTEST_INTERVAL..=LONGEST_SPAN).contains(&span));
                }
                prop_assert!(settings.replicas.len() <= MOST_REPLICAS && settings.mtu == SMALLEST_MTU);
            }
        }

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
