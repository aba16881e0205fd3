//! Real NATs, in network namespaces, plugged into the public segment or into one another: netfilter, and a
//! userspace NAT for what netfilter lacks.

mod behaviour;
mod conntrack;
mod faults;
mod profile;
mod ready_made;
mod truth;
pub mod userspace;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
/// NATs as pure models, which the userspace NAT and the simulator share.
pub use pinhole_sim::model;

pub(crate) use self::profile::LAN;
pub use self::{
    behaviour::Behaviour,
    conntrack::UdpMapping,
    faults::Faults,
    profile::{Loss, Mapping, NatProfile, UdpFilter},
    ready_made::{LabProfile, lab_profiles, stock_profiles},
    truth::Truth,
    userspace::UserspaceProfile,
};
use self::{
    model::Time,
    profile::{WAN, ruleset},
    userspace::{Oracle, Running, Translator},
};
use crate::{
    error::{Error, Result},
    host::Host,
    netns::Netns,
    segment::{self, Attachment, Segment},
    state,
};

/// A NAT in a namespace of its own. Clones are the same NAT; the last one dropped removes it.
#[derive(Debug, Clone)]
pub struct Nat {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // A userspace NAT ends before its namespace goes.
    engine: Engine,
    name: String,
    behind: Option<Nat>,
    netns: OwnedNetns,
    network: Ipv4Net,
    inside: Segment,
    outside: Attachment,
}

/// What translates.
#[derive(Debug)]
enum Engine {
    Netfilter(Mutex<Netfilter>),
    Userspace(Running),
}

/// What the rules of a netfilter NAT are made from.
#[derive(Debug, Clone)]
struct Netfilter {
    profile: NatProfile,
    reboots: u32,
}

/// A namespace that goes when its owner goes.
#[derive(Debug)]
pub(crate) struct OwnedNetns(pub(crate) Netns);

impl Drop for OwnedNetns {
    fn drop(&mut self) {
        // What cannot be removed now is swept by name when the lab goes down.
        let _ = self.0.remove();
    }
}

impl Nat {
    /// Makes the NAT `pinhole-NAME-nat` on a segment.
    pub(crate) async fn create(
        name: &str,
        outside: &Segment,
        behind: Option<Self>,
        behaviour: Behaviour,
    ) -> Result<Self> {
        let network = behaviour.inside();
        let netns = OwnedNetns(Netns::create(&format!("{name}-nat")).await?);
        let ns = &netns.0;
        ns.ip([segment::bridge(LAN), format!("link set {LAN} up")]).await?;
        let outside = outside.attach(ns, WAN).await?;
        let inside = Segment::of_nat(ns, LAN, network).await?;
        ns.sysctl("net/ipv4/ip_forward", 1)?;
        let engine = Engine::start(name, ns, behaviour, outside.address()).await?;
        Ok(Self {
            inner: Arc::new(Inner { engine, name: name.to_owned(), behind, netns, network, inside, outside }),
        })
    }

    /// Name in the lab.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns.0
    }

    /// The NAT that this one is behind, if any.
    pub fn behind(&self) -> Option<&Self> {
        self.inner.behind.as_ref()
    }

    /// Its network on the inside.
    pub fn inside(&self) -> Ipv4Net {
        self.inner.network
    }

    /// Its address on the outside.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.outside.address()
    }

    /// How it behaves now.
    pub fn behaviour(&self) -> Behaviour {
        match &self.inner.engine {
            Engine::Netfilter(netfilter) => lock(netfilter).profile.clone().into(),
            Engine::Userspace(running) => running.change(|nat, _| nat.profile().clone()).into(),
        }
    }

    /// The userspace NAT at work, for what netfilter lacks.
    ///
    /// # Errors
    /// When it is a netfilter NAT.
    pub fn userspace(&self) -> Result<&Running> {
        match &self.inner.engine {
            Engine::Userspace(running) => Ok(running),
            Engine::Netfilter(_) => Err(Error::Invalid(format!(
                "{} is a netfilter NAT; make it from a UserspaceProfile for this",
                self.name()
            ))),
        }
    }

    /// The truth about its mappings, until now.
    ///
    /// # Errors
    /// When it is a netfilter NAT, which keeps no log; [`Nat::mappings`] says what is now.
    pub fn oracle(&self) -> Result<Oracle> {
        Ok(self.userspace()?.oracle())
    }

    /// Adds a host on the inside.
    ///
    /// # Errors
    /// When the name is taken, or the network is full.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let nats = std::iter::successors(Some(self), |nat| nat.behind()).cloned().collect();
        Host::create(name, &self.inner.inside, nats).await
    }

    /// Adds a host on the inside that has IPv6 alone. Nothing of it is translated, but this is a stateful firewall to it, whose
    /// states go as mappings do.
    ///
    /// # Errors
    /// As [`Nat::host`], and when the segment outside has no IPv6.
    pub async fn ipv6_host(&self, name: &str) -> Result<Host> {
        let network = self.serve_ipv6().await?;
        let host = self.host(name).await?;
        host.live_by_ipv6(network).await?;
        Ok(host)
    }

    /// Routes a network of IPv6 of its own (RFC 3849) to the inside. Who has the bridge of the segment outside knows the way.
    pub(crate) async fn serve_ipv6(&self) -> Result<Ipv6Net> {
        let [.., number] = self.address().octets();
        let network = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0x114, number.into(), 0, 0, 0, 0), 64);
        self.inner.outside.lead_here(network).await?;
        let router = Ipv6Addr::from(u128::from(network.network()) + 1);
        self.netns().sysctl("net/ipv6/conf/all/forwarding", 1)?;
        self.netns().ip([format!("address replace {router}/64 dev {LAN} nodad")]).await?;
        Ok(network)
    }

    /// Adds another NAT on the inside.
    ///
    /// # Errors
    /// When the name is taken, or both would have the same inside network.
    pub async fn nat(&self, name: &str, behaviour: impl Into<Behaviour>) -> Result<Self> {
        let behaviour = behaviour.into();
        if behaviour.inside() == self.inner.network {
            return Err(Error::Invalid(format!(
                "{name} and {} both have {} inside; a NAT behind a NAT needs another network",
                self.name(),
                self.inner.network
            )));
        }
        Self::create(name, &self.inner.inside, Some(self.clone()), behaviour).await
    }

    /// Forgets every mapping, as an eviction does: flows go on, and a port-preserving NAT may give the same
    /// port again.
    ///
    /// # Errors
    /// What `conntrack` says.
    pub async fn flush(&self) -> Result<()> {
        match &self.inner.engine {
            Engine::Netfilter(_) => self.netns().command("conntrack").arg("-F").run().await.map(drop),
            Engine::Userspace(running) => {
                running.change(Translator::flush);
                Ok(())
            }
        }
    }

    /// Restarts with other public ports: every flow comes back from another port than before.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn rebind(&self) -> Result<()> {
        match &self.inner.engine {
            Engine::Netfilter(netfilter) => {
                lock(netfilter).reboots += 1;
                self.apply(netfilter).await?;
                self.flush().await
            }
            Engine::Userspace(running) => {
                running.change(Translator::rebind);
                Ok(())
            }
        }
    }

    /// Gets another address on the outside, as after a new dial-in; yields it.
    ///
    /// # Errors
    /// When the segment is full or the change fails.
    pub async fn change_address(&self) -> Result<Ipv4Addr> {
        let (old, new) = self.inner.outside.renumber()?;
        // In this order: with its primary address an interface loses the secondary ones of that network.
        let mut lines = vec![format!("address del {old} dev {WAN}"), format!("address add {new} dev {WAN}")];
        if let Some(gateway) = self.inner.outside.gateway() {
            // The route went with the address.
            lines.push(format!("route replace default via {gateway} dev {WAN}"));
        }
        self.netns().ip(lines).await?;
        match &self.inner.engine {
            Engine::Netfilter(netfilter) => {
                self.apply(netfilter).await?;
                self.flush().await?;
            }
            Engine::Userspace(running) => running.change(|nat, now| nat.set_address(now, new.addr())),
        }
        Ok(self.address())
    }

    /// Changes the lifetime of bindings, for flows to come and those in force. With netfilter, a flow in force gets
    /// it by its next packet.
    ///
    /// # Errors
    /// When the kernel refuses the values.
    pub async fn set_timeouts(&self, udp: Duration, stream: Duration) -> Result<()> {
        self.change(
            |profile| (profile.udp_timeout, profile.udp_stream_timeout) = (udp, stream),
            |nat, now| nat.set_timeouts(now, udp, stream),
        )
        .await
    }

    /// The lifetime of promoted bindings becomes `to`, that of others at most `to`.
    ///
    /// # Errors
    /// When the kernel refuses the values.
    pub async fn shrink(&self, to: Duration) -> Result<()> {
        self.change(
            |profile| {
                (profile.udp_timeout, profile.udp_stream_timeout) = (profile.udp_timeout.min(to), to);
            },
            |nat, now| nat.shrink(now, to),
        )
        .await
    }

    /// Changes which UDP gets out.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_udp(&self, udp: UdpFilter) -> Result<()> {
        let same = udp.clone();
        self.change(|profile| profile.udp = udp, |nat, _| nat.set_udp(same)).await
    }

    /// Lets no UDP in any more, or again; what leaves, leaves all the same, and keeps its mapping.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_deaf(&self, deaf: bool) -> Result<()> {
        let ports = if deaf { (0..=u16::MAX).collect() } else { BTreeSet::new() };
        self.change(|profile| profile.deaf = deaf, |nat, _| nat.set_deaf(ports)).await
    }

    /// Changes how much UDP gets lost.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_loss(&self, loss: Loss) -> Result<()> {
        self.change(|profile| profile.loss = loss, |nat, _| nat.set_loss(loss.into())).await
    }

    /// Changes what is lost beyond it, of any kind of packet, each way by itself.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_faults(&self, faults: Faults) -> Result<()> {
        self.nft(faults::ruleset(faults)).await
    }

    /// Begins to count what hosts inside send to the world: [`Nat::count`] yields how many packets that are since.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn meter(&self) -> Result<()> {
        self.nft(faults::meter()).await
    }

    /// How many packets hosts inside have sent to the world since [`Nat::meter`].
    ///
    /// # Errors
    /// When nobody counts.
    pub async fn count(&self) -> Result<u64> {
        let list = ["-j", "list", "counter", "inet", faults::METER, "outbound"];
        let text = self.netns().command("nft").args(list).run().await?;
        faults::packets(&text).ok_or_else(|| Error::Invalid(format!("no count in {text}")))
    }

    /// Changes how long a round trip through it takes, for packets to come: those on their way stay in order.
    ///
    /// # Errors
    /// When it is a netfilter NAT, which delays nothing.
    pub fn set_round_trip(&self, round_trip: Duration) -> Result<()> {
        self.userspace()?.change(|nat, _| nat.set_round_trip(round_trip));
        Ok(())
    }

    /// Plugs a host in.
    pub(crate) async fn plug_in(&self, host: &Netns, interface: &'static str) -> Result<Attachment> {
        self.inner.inside.attach(host, interface).await
    }

    async fn nft(&self, rules: String) -> Result<()> {
        self.netns().command("nft").args(["-f", "-"]).stdin(rules).run().await.map(drop)
    }

    /// Changes how public ports are picked; flows in force keep theirs with netfilter.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_mapping(&self, mapping: Mapping) -> Result<()> {
        match &self.inner.engine {
            Engine::Netfilter(netfilter) => {
                {
                    let mut netfilter = lock(netfilter);
                    (netfilter.profile.mapping, netfilter.reboots) = (mapping, 0);
                }
                self.apply(netfilter).await
            }
            Engine::Userspace(running) => {
                running.change(|nat, _| nat.set_mapping(&mapping));
                Ok(())
            }
        }
    }

    /// The UDP mappings in force.
    ///
    /// # Errors
    /// What `conntrack` says.
    pub async fn mappings(&self) -> Result<Vec<UdpMapping>> {
        match &self.inner.engine {
            Engine::Netfilter(_) => {
                let listing = self.netns().command("conntrack").args(["-L", "-p", "udp"]).run().await?;
                Ok(conntrack::parse(&listing))
            }
            Engine::Userspace(running) => Ok(running.change(|nat, now| nat.mappings(now))),
        }
    }

    /// Makes the same change to a NAT of either kind.
    async fn change(
        &self,
        netfilter: impl FnOnce(&mut NatProfile),
        userspace: impl FnOnce(&mut Translator, Time),
    ) -> Result<()> {
        match &self.inner.engine {
            Engine::Netfilter(state) => {
                netfilter(&mut lock(state).profile);
                self.apply(state).await
            }
            Engine::Userspace(running) => {
                running.change(userspace);
                Ok(())
            }
        }
    }

    async fn apply(&self, netfilter: &Mutex<Netfilter>) -> Result<()> {
        let netfilter = lock(netfilter).clone();
        netfilter.apply(self.netns()).await
    }
}

impl Engine {
    async fn start(name: &str, netns: &Netns, behaviour: Behaviour, address: Ipv4Addr) -> Result<Self> {
        match behaviour {
            Behaviour::Netfilter(profile) => {
                let netfilter = Netfilter { profile, reboots: 0 };
                netfilter.apply(netns).await?;
                Ok(Self::Netfilter(Mutex::new(netfilter)))
            }
            Behaviour::Userspace(profile) => {
                let log = state::directory().join("logs").join(format!("{name}-nat")).join("oracle.jsonl");
                Ok(Self::Userspace(Running::start(netns, *profile, address, &log).await?))
            }
        }
    }
}

impl Netfilter {
    async fn apply(&self, netns: &Netns) -> Result<()> {
        let Self { profile, reboots } = self;
        let rules = ruleset(profile, *reboots);
        netns.command("nft").args(["-f", "-"]).stdin(rules).run().await?;
        // These exist once the rules above have switched connection tracking on in this namespace.
        netns.sysctl("net/netfilter/nf_conntrack_udp_timeout", profile.udp_timeout.as_secs())?;
        netns.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", profile.udp_stream_timeout.as_secs())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The inside end of a NAT's network: its first address.
pub(crate) fn first_address(network: ipnet::Ipv4Net) -> Option<IpNet> {
    let first = network.hosts().next()?;
    ipnet::Ipv4Net::new(first, network.prefix_len()).ok().map(IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{self, WORLD_V6};

    #[tokio::test]
    async fn a_host_with_ipv6_alone_is_reached_as_long_as_its_firewall_remembers_it() {
        let (world, outside) = segment::world("six").await;
        let own: Ipv6Addr = WORLD_V6.parse().unwrap();
        let firewall = Nat::create("six-test", &outside, None, NatProfile::home().into()).await.unwrap();
        let host = firewall.ipv6_host("six-test").await.unwrap();
        let other = firewall.ipv6_host("six-other").await.unwrap();
        for host in [&host, &other] {
            assert!(host.exec("ip", ["-4", "route"]).await.unwrap().is_empty());
            // The kernel takes addresses of IPv6 into use when it gets round to it.
            let reached = || host.ping(own.into());
            crate::wait::until("the world to answer", Duration::from_secs(15), reached).await.unwrap();
        }
        let bind = || std::net::UdpSocket::bind("[::]:0");
        let [near, far] =
            [host.netns(), &world.0].map(|netns| tokio_socket(netns.within(bind).unwrap().unwrap()));
        let to = std::net::SocketAddr::from((own, far.local_addr().unwrap().port()));
        let mut buffer = [0; 8];
        near.send_to(b"out", to).await.unwrap();
        let (_, from) = far.recv_from(&mut buffer).await.unwrap();
        let answered = async |buffer: &mut [u8]| {
            far.send_to(b"in", from).await.unwrap();
            tokio::time::timeout(Duration::from_millis(500), near.recv_from(buffer)).await.is_ok()
        };
        assert!(answered(&mut buffer).await);
        firewall.flush().await.unwrap();
        assert!(!answered(&mut buffer).await, "it is forgotten");
    }

    fn tokio_socket(socket: std::net::UdpSocket) -> tokio::net::UdpSocket {
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    }
}
