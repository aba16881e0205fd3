//! What a device is set to, and what a change of that means for its tunnel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    tunnel::{PeerConfig, PresharedKey, PrivateKey, PublicKey},
    uapi::{AllowedIp, Change, Device, Peer, PeerChange},
};

/// The settings of a device and its peers.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    private_key: Option<PrivateKey>,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Settings>,
    /// Which peer has a prefix: only one can.
    owners: HashMap<IpNet, PublicKey>,
}

#[derive(Debug, Default)]
struct Settings {
    preshared_key: Option<PresharedKey>,
    endpoint: Option<SocketAddr>,
    persistent_keepalive: u16,
    allowed_ips: BTreeSet<IpNet>,
}

/// What to tell the tunnel, in the order of the fields.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// A mark that is new.
    pub(super) fwmark: Option<u32>,
    /// An identity that is new.
    pub(super) identity: Option<PrivateKey>,
    /// Peers that begin anew: they were removed, and came again.
    pub(super) renewed: BTreeSet<PublicKey>,
    /// Endpoints that are new.
    pub(super) endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// Intervals that are new.
    pub(super) keepalives: BTreeMap<PublicKey, Option<Duration>>,
}

impl Configuration {
    /// Takes a change in. The UDP port is not its business.
    pub(super) fn apply(&mut self, change: Change) -> Plan {
        let mut plan = Plan::default();
        let before: BTreeSet<PublicKey> = self.peers.keys().copied().collect();
        if let Some(mark) = change.fwmark.filter(|&mark| mark != self.fwmark) {
            self.fwmark = mark;
            plan.fwmark = Some(mark);
        }
        if let Some(key) = change.private_key {
            self.identify(key, &mut plan);
        }
        let mut removed = BTreeSet::new();
        if change.replace_peers {
            removed.clone_from(&before);
            self.peers.clear();
            self.owners.clear();
        }
        let own = self.private_key.as_ref().map(PrivateKey::public);
        for peer in change.peers {
            // A device is no peer of its own.
            if own == Some(peer.public_key) {
                continue;
            }
            if peer.remove {
                self.remove(&peer.public_key);
                plan.endpoints.remove(&peer.public_key);
                plan.keepalives.remove(&peer.public_key);
                removed.insert(peer.public_key);
            } else {
                self.change(peer, &mut plan);
            }
        }
        let known = |key: &PublicKey| before.contains(key) && self.peers.contains_key(key);
        plan.renewed = removed.into_iter().filter(known).collect();
        plan
    }

    fn identify(&mut self, key: Option<PrivateKey>, plan: &mut Plan) {
        let public = key.as_ref().map(PrivateKey::public);
        let before = self.private_key.as_ref().map(PrivateKey::public);
        if public == before {
            return;
        }
        if let Some(public) = public {
            self.remove(&public);
        }
        if before.is_none() {
            // The tunnel had no peers until now.
            let endpoints = self.peers.iter().filter_map(|(key, peer)| Some((*key, peer.endpoint?)));
            plan.endpoints = endpoints.collect();
            let keepalives = self.peers.iter().map(|(key, peer)| (*key, interval(peer.persistent_keepalive)));
            plan.keepalives = keepalives.filter(|(_, interval)| interval.is_some()).collect();
        }
        plan.identity.clone_from(&key);
        self.private_key = key;
    }

    fn change(&mut self, change: PeerChange, plan: &mut Plan) {
        let key = change.public_key;
        if change.update_only && !self.peers.contains_key(&key) {
            return;
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(preshared) = change.preshared_key {
            peer.preshared_key = preshared;
        }
        if let Some(endpoint) = change.endpoint {
            peer.endpoint = Some(endpoint);
            plan.endpoints.insert(key, endpoint);
        }
        if let Some(seconds) = change.persistent_keepalive {
            peer.persistent_keepalive = seconds;
            plan.keepalives.insert(key, interval(seconds));
        }
        if change.replace_allowed_ips {
            for net in std::mem::take(&mut peer.allowed_ips) {
                self.owners.remove(&net);
            }
        }
        for net in change.allowed_ips {
            match net {
                AllowedIp::Add(net) => self.give(net, key),
                AllowedIp::Remove(net) => self.take(net, key),
            }
        }
    }

    fn give(&mut self, net: IpNet, key: PublicKey) {
        if let Some(owner) = self.owners.insert(net, key).and_then(|owner| self.peers.get_mut(&owner)) {
            owner.allowed_ips.remove(&net);
        }
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.allowed_ips.insert(net);
        }
    }

    fn take(&mut self, net: IpNet, key: PublicKey) {
        if self.peers.get_mut(&key).is_some_and(|peer| peer.allowed_ips.remove(&net)) {
            self.owners.remove(&net);
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        for net in self.peers.remove(key).into_iter().flat_map(|peer| peer.allowed_ips) {
            self.owners.remove(&net);
        }
    }

    /// The peers that the tunnel is to have. Without an own identity it can have none.
    pub(super) fn tunnel_peers(&self) -> Vec<PeerConfig> {
        let config = |(key, peer): (&PublicKey, &Settings)| PeerConfig {
            public_key: *key,
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            // The tunnel is told of these apart: a new one counts for more than what it has learnt.
            endpoints: Vec::new(),
            destinations: None,
        };
        self.private_key.iter().flat_map(|_| self.peers.iter().map(config)).collect()
    }

    /// How all is set.
    pub(super) fn device(&self, listen_port: u16) -> Device {
        let peer = |(key, peer): (&PublicKey, &Settings)| Peer {
            preshared_key: peer.preshared_key.clone(),
            endpoint: peer.endpoint,
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            ..Peer::new(*key)
        };
        Device {
            private_key: self.private_key.clone(),
            listen_port,
            fwmark: self.fwmark,
            peers: self.peers.iter().map(peer).collect(),
        }
    }
}

fn interval(seconds: u16) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn peers(peers: Vec<PeerChange>) -> Change {
        Change { peers, ..Change::default() }
    }

    fn nets(names: &[&str]) -> Vec<AllowedIp> {
        names.iter().map(|name| AllowedIp::Add(name.parse().unwrap())).collect()
    }

    fn with_identity() -> Configuration {
        let mut configuration = Configuration::default();
        let private_key = Some(Some(PrivateKey::generate().unwrap()));
        configuration.apply(Change { private_key, ..Change::default() });
        configuration
    }

    #[test]
    fn a_prefix_has_one_peer_the_last_that_asked_for_it() {
        let mut configuration = with_identity();
        let both = ["10.0.0.0/24", "fd00::/64"];
        configuration.apply(peers(vec![
            PeerChange { allowed_ips: nets(&both), ..PeerChange::new(key(1)) },
            PeerChange { allowed_ips: nets(&both[..1]), ..PeerChange::new(key(2)) },
        ]));
        let allowed = |configuration: &Configuration| -> Vec<Vec<String>> {
            let peers = configuration.tunnel_peers();
            peers.iter().map(|peer| peer.allowed_ips.iter().map(ToString::to_string).collect()).collect()
        };
        assert_eq!(allowed(&configuration), [["fd00::/64"], ["10.0.0.0/24"]]);
        let foreign = AllowedIp::Remove("10.0.0.0/24".parse().unwrap());
        let own = AllowedIp::Remove("fd00::/64".parse().unwrap());
        configuration
            .apply(peers(vec![PeerChange { allowed_ips: vec![foreign, own], ..PeerChange::new(key(1)) }]));
        assert_eq!(allowed(&configuration), [vec![], vec!["10.0.0.0/24"]]);
        let replace = PeerChange { replace_allowed_ips: true, ..PeerChange::new(key(2)) };
        configuration.apply(peers(vec![replace]));
        assert_eq!(allowed(&configuration), [[] as [&str; 0], []]);
    }

    #[test]
    fn what_is_replaced_begins_anew_and_what_is_only_told_again_does_not() {
        let mut configuration = with_identity();
        let endpoint = "192.0.2.1:1".parse().unwrap();
        let change = || PeerChange {
            endpoint: Some(endpoint),
            persistent_keepalive: Some(25),
            ..PeerChange::new(key(1))
        };
        let plan = configuration.apply(peers(vec![change()]));
        assert!(plan.renewed.is_empty(), "it is new");
        assert_eq!(plan.endpoints, BTreeMap::from([(key(1), endpoint)]));
        assert_eq!(plan.keepalives, BTreeMap::from([(key(1), Some(Duration::from_secs(25)))]));
        assert!(configuration.apply(peers(vec![change()])).renewed.is_empty());

        let replaced = Change { replace_peers: true, ..peers(vec![PeerChange::new(key(1))]) };
        let plan = configuration.apply(replaced);
        assert_eq!(plan.renewed, BTreeSet::from([key(1)]));
        assert!(plan.endpoints.is_empty());
        let remove = PeerChange { remove: true, ..PeerChange::new(key(1)) };
        let plan = configuration.apply(peers(vec![remove, PeerChange::new(key(1))]));
        assert_eq!(plan.renewed, BTreeSet::from([key(1)]));
    }

    #[test]
    fn removal_and_update_only_make_no_peer() {
        let mut configuration = with_identity();
        let update = PeerChange { update_only: true, ..PeerChange::new(key(1)) };
        let remove = PeerChange { remove: true, ..PeerChange::new(key(2)) };
        let plan = configuration.apply(peers(vec![update, remove]));
        assert!(plan.renewed.is_empty() && configuration.tunnel_peers().is_empty());
    }

    #[test]
    fn without_an_identity_there_are_settings_and_no_peers_of_the_tunnel() {
        let mut configuration = Configuration::default();
        let peer = PeerChange {
            endpoint: Some("192.0.2.1:1".parse().unwrap()),
            persistent_keepalive: Some(5),
            ..PeerChange::new(key(1))
        };
        configuration.apply(peers(vec![peer]));
        assert!(configuration.tunnel_peers().is_empty());
        assert_eq!(configuration.device(7).peers.len(), 1);
        let private = PrivateKey::generate().unwrap();
        let set = |key: &PrivateKey| Change { private_key: Some(Some(key.clone())), ..Change::default() };
        let plan = configuration.apply(set(&private));
        assert!(plan.identity.is_some() && plan.endpoints.len() == 1 && plan.keepalives.len() == 1);
        assert_eq!(configuration.tunnel_peers().len(), 1);
        let again = configuration.apply(set(&private));
        assert!(again.identity.is_none() && again.endpoints.is_empty(), "nothing is new");
        configuration.apply(Change { private_key: Some(None), ..Change::default() });
        assert!(configuration.tunnel_peers().is_empty());
    }

    #[test]
    fn a_device_is_no_peer_of_its_own() {
        let mut configuration = with_identity();
        let private = PrivateKey::generate().unwrap();
        configuration.apply(peers(vec![PeerChange::new(private.public()), PeerChange::new(key(1))]));
        assert_eq!(configuration.tunnel_peers().len(), 2);
        let own = private.public();
        configuration.apply(Change { private_key: Some(Some(private)), ..peers(vec![PeerChange::new(own)]) });
        assert_eq!(
            configuration.device(0).peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(),
            [key(1)]
        );
    }

    fn changes() -> impl Strategy<Value = Change> {
        let net = (0_u8..4, 30_u8..=32, any::<bool>()).prop_map(|(last, length, add)| {
            let net = IpNet::new([10, 0, 0, last].into(), length).unwrap().trunc();
            if add { AllowedIp::Add(net) } else { AllowedIp::Remove(net) }
        });
        let peer = (0_u8..4, any::<[bool; 3]>(), prop::collection::vec(net, 0..4)).prop_map(
            |(n, [remove, update_only, replace_allowed_ips], allowed_ips)| PeerChange {
                remove,
                update_only,
                replace_allowed_ips,
                allowed_ips,
                ..PeerChange::new(key(n))
            },
        );
        (prop::bool::weighted(0.1), prop::collection::vec(peer, 0..4))
            .prop_map(|(replace_peers, peers)| Change { replace_peers, peers, ..Change::default() })
    }

    proptest! {
        #[test]
        fn every_prefix_has_the_one_owner_that_is_remembered(changes in prop::collection::vec(changes(), 1..8)) {
            let mut configuration = with_identity();
            for change in changes {
                let before: BTreeSet<_> = configuration.peers.keys().copied().collect();
                let plan = configuration.apply(change);
                prop_assert!(plan.renewed.iter().all(|key| before.contains(key) && configuration.peers.contains_key(key)));
                let found: Vec<(IpNet, PublicKey)> = configuration.peers.iter()
                    .flat_map(|(key, peer)| peer.allowed_ips.iter().map(|net| (*net, *key)))
                    .collect();
                prop_assert_eq!(found.len(), configuration.owners.len());
                prop_assert!(found.iter().all(|(net, key)| configuration.owners.get(net) == Some(key)));
            }
        }
    }
}
