//! Real NATs: netfilter in network namespaces, plugged into the public segment or into one another.

mod conntrack;
mod profile;
pub mod userspace;

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
/// NATs as pure models, which the userspace NAT and the simulator share.
pub use pinhole_sim::model;

use self::profile::{LAN, WAN, ruleset};
pub use self::{
    conntrack::UdpMapping,
    profile::{Loss, Mapping, NatProfile, UdpFilter},
};
use crate::{
    error::{Error, Result},
    host::Host,
    netns::Netns,
    segment::{self, Attachment, Segment},
};

/// A NAT in a namespace of its own. Clones are the same NAT; the last one dropped removes it.
#[derive(Debug, Clone)]
pub struct Nat {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    behind: Option<Nat>,
    netns: OwnedNetns,
    inside: Segment,
    outside: Attachment,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    profile: NatProfile,
    address: Ipv4Addr,
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
        profile: NatProfile,
    ) -> Result<Self> {
        let netns = OwnedNetns(Netns::create(&format!("{name}-nat")).await?);
        let ns = &netns.0;
        ns.ip([segment::bridge(LAN), format!("link set {LAN} up")]).await?;
        let outside = outside.attach(ns, WAN).await?;
        let inside = Segment::of_nat(ns, LAN, profile.inside).await?;
        ns.sysctl("net/ipv4/ip_forward", 1)?;
        let state = State { profile, address: outside.address(), reboots: 0 };
        let nat = Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                behind,
                inside,
                outside,
                state: Mutex::new(state),
                netns,
            }),
        };
        nat.apply().await?;
        Ok(nat)
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

    /// Its address on the outside.
    pub fn address(&self) -> Ipv4Addr {
        self.state().address
    }

    /// How it behaves now.
    pub fn profile(&self) -> NatProfile {
        self.state().profile
    }

    /// Adds a host on the inside.
    ///
    /// # Errors
    /// When the name is taken, or the network is full.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let nats = std::iter::successors(Some(self), |nat| nat.behind()).cloned().collect();
        Host::create(name, &self.inner.inside, nats).await
    }

    /// Adds another NAT on the inside.
    ///
    /// # Errors
    /// When the name is taken, or both would have the same inside network.
    pub async fn nat(&self, name: &str, profile: NatProfile) -> Result<Self> {
        if profile.inside == self.profile().inside {
            return Err(Error::Invalid(format!(
                "{name} and {} both have {} inside; a NAT behind a NAT needs another network",
                self.name(),
                profile.inside
            )));
        }
        Self::create(name, &self.inner.inside, Some(self.clone()), profile).await
    }

    /// Forgets every mapping, as an eviction does: flows go on, and a port-preserving NAT may give the same
    /// port again.
    ///
    /// # Errors
    /// What `conntrack` says.
    pub async fn flush(&self) -> Result<()> {
        self.netns().command("conntrack").arg("-F").run().await.map(drop)
    }

    /// Restarts with other public ports: every flow comes back from another port than before.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn rebind(&self) -> Result<()> {
        self.change(|state| state.reboots += 1).await?;
        self.flush().await
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
        self.change(|state| state.address = self.inner.outside.address()).await?;
        self.flush().await?;
        Ok(self.address())
    }

    /// Changes the lifetime of bindings, for flows to come and those in force.
    ///
    /// # Errors
    /// When the kernel refuses the values.
    pub async fn set_timeouts(&self, udp: Duration, stream: Duration) -> Result<()> {
        self.change(|state| (state.profile.udp_timeout, state.profile.udp_stream_timeout) = (udp, stream))
            .await
    }

    /// Changes which UDP gets out.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_udp(&self, udp: UdpFilter) -> Result<()> {
        self.change(|state| state.profile.udp = udp).await
    }

    /// Changes how much UDP gets lost.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_loss(&self, loss: Loss) -> Result<()> {
        self.change(|state| state.profile.loss = loss).await
    }

    /// Changes how public ports are picked; flows in force keep theirs.
    ///
    /// # Errors
    /// When the rules cannot be replaced.
    pub async fn set_mapping(&self, mapping: Mapping) -> Result<()> {
        self.change(|state| (state.profile.mapping, state.reboots) = (mapping, 0)).await
    }

    /// The UDP mappings in force, from the kernel.
    ///
    /// # Errors
    /// What `conntrack` says.
    pub async fn mappings(&self) -> Result<Vec<UdpMapping>> {
        let listing = self.netns().command("conntrack").args(["-L", "-p", "udp"]).run().await?;
        Ok(conntrack::parse(&listing))
    }

    async fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        change(&mut self.inner.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.apply().await
    }

    async fn apply(&self) -> Result<()> {
        let State { profile, reboots, .. } = self.state();
        let ns = self.netns();
        let rules = ruleset(&profile, reboots);
        ns.command("nft").args(["-f", "-"]).stdin(rules).run().await?;
        // These exist once the rules above have switched connection tracking on in this namespace.
        ns.sysctl("net/netfilter/nf_conntrack_udp_timeout", profile.udp_timeout.as_secs())?;
        ns.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", profile.udp_stream_timeout.as_secs())
    }

    fn state(&self) -> State {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The inside end of a NAT's network: its first address.
pub(crate) fn first_address(network: ipnet::Ipv4Net) -> Option<IpNet> {
    let first = network.hosts().next()?;
    ipnet::Ipv4Net::new(first, network.prefix_len()).ok().map(IpNet::V4)
}
