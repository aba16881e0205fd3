//! Client hosts: a laptop, an edge box, a phone, each in a namespace of its own.
//!
//! They are clean machines at first. Real ones are not, so each can be given quirks, also several:
//!
//! | quirk | |
//! |---|---|
//! | Docker's bridge, packet filter and a container | [`Docker::on`] |
//! | a second VPN that takes everything, as `wg-quick` sets it up | [`SecondVpn::between`] |
//! | `rp_filter=1` | [`Host::be_strict`] |
//! | no IPv6 (`disable_ipv6=1`) | [`Host::forgo_ipv6`] |
//! | IPv6 alone, behind a stateful firewall | [`Lab::ipv6_host`](crate::Lab::ipv6_host) |
//! | a DHCP client that rewrites `resolv.conf`, systemd-resolved, openresolv | [`Host::keep_files`], [`Host::renew_lease`] |
//! | a clock of its own | [`Host::set_clock`] |
//! | several uplinks, each behind a NAT of its own | [`Lab::roaming_host`](crate::Lab::roaming_host), [`Host::uplink`] |
//!
//! What a VPN has to give back on such a host is its [`Footprint`].

mod clock;
mod docker;
mod floors;
mod footprint;
mod rooms;
mod second_vpn;
mod uplink;

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ipnet::Ipv6Net;

use self::{clock::Clock, rooms::Rooms};
pub use self::{
    docker::Docker,
    footprint::Footprint,
    rooms::Resolver,
    second_vpn::SecondVpn,
    uplink::{Families, Uplink, Wiring},
};
use crate::{
    error::{Doing, Error, Result},
    nat::{Nat, OwnedNetns},
    netns::Netns,
    process::{Command, Process, Spawner},
    segment::Segment,
    state, wait,
};

/// The interface of a host, besides the loopback, unless it has several.
const INTERFACE: &str = "eth0";

/// A host, behind NATs or on the public segment. Clones are the same host; the last one dropped removes it.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    // What runs in them ends before the namespace goes.
    rooms: OnceLock<Rooms>,
    clock: OnceLock<Clock>,
    first: Uplink,
    more: Vec<Uplink>,
    netns: OwnedNetns,
}

impl Host {
    pub(crate) async fn create(name: &str, segment: &Segment, nats: Vec<Nat>) -> Result<Self> {
        let netns = OwnedNetns(Netns::create(name).await?);
        let attachment = segment.attach(&netns.0, INTERFACE).await?;
        let first = Uplink::only(INTERFACE, &netns.0, nats, attachment);
        Ok(Self::with(name, netns, first, Vec::new()))
    }

    /// One with several uplinks, each behind a NAT of its own on this segment.
    pub(crate) async fn roaming(name: &str, segment: &Segment, wirings: &[Wiring]) -> Result<Self> {
        let netns = OwnedNetns(Netns::create(name).await?);
        let mut uplinks: Vec<Uplink> = Vec::new();
        for wiring in wirings {
            let nat = format!("{name}-{}", wiring.interface);
            let nat = Nat::create(&nat, segment, None, wiring.behind.clone()).await?;
            uplinks.push(Uplink::plugged_into(nat, &netns.0, wiring).await?);
        }
        if uplinks.is_empty() {
            return Err(Error::Invalid(format!("{name} is to have no uplink at all")));
        }
        let first = uplinks.remove(0);
        Ok(Self::with(name, netns, first, uplinks))
    }

    fn with(name: &str, netns: OwnedNetns, first: Uplink, more: Vec<Uplink>) -> Self {
        let (rooms, clock) = (OnceLock::new(), OnceLock::new());
        Self { inner: Arc::new(Inner { name: name.to_owned(), rooms, clock, first, more, netns }) }
    }

    /// One on a segment that nobody else is on.
    #[cfg(test)]
    async fn alone(name: &str) -> Result<Self> {
        use crate::segment::bridge;
        let lan = OwnedNetns(Netns::create(&format!("{name}-lan")).await?);
        lan.0.ip([bridge("lan0"), "link set lan0 up".to_owned()]).await?;
        let network = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 77, 0), 24);
        Self::create(name, &Segment::of_nat(&lan.0, "lan0", network).await?, Vec::new()).await
    }

    /// Name in the lab.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its namespace; `netns().name()` is what `ip netns exec` takes.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns.0
    }

    /// Its own address, as it sees it, unless it lives by IPv6 alone.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.first.attachment().address()
    }

    /// Its own IPv6 address, where its segment has IPv6.
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.inner.first.attachment().address_v6()
    }

    /// Gives it one more IPv4 address; yields that.
    ///
    /// # Errors
    /// When its network is full.
    pub async fn add_address(&self) -> Result<Ipv4Addr> {
        let address = self.inner.first.attachment().one_more()?;
        self.netns().ip([format!("address add {address} dev {INTERFACE}")]).await?;
        Ok(address.addr())
    }

    /// Its ways to the world. It has at least one.
    pub fn uplinks(&self) -> impl Iterator<Item = &Uplink> {
        std::iter::once(&self.inner.first).chain(&self.inner.more)
    }

    /// The uplink of this interface.
    ///
    /// # Errors
    /// When it has none.
    pub fn uplink(&self, interface: &str) -> Result<&Uplink> {
        let found = self.uplinks().find(|uplink| uplink.interface() == interface);
        found.ok_or_else(|| Error::Invalid(format!("{} has no uplink {interface}", self.name())))
    }

    /// The NATs in front of it, by its first uplink; nearest first.
    pub fn nats(&self) -> &[Nat] {
        self.inner.first.nats()
    }

    /// The NAT nearest to it, if any.
    pub fn nat(&self) -> Option<&Nat> {
        self.nats().first()
    }

    /// The NAT farthest from it, whose address the world sees.
    pub fn outermost_nat(&self) -> Option<&Nat> {
        self.nats().last()
    }

    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.at_home(Command::new(program))
    }

    /// The command, with this host's network, files and clock.
    fn at_home(&self, command: Command) -> Command {
        let command = command.netns(self.netns());
        let command = self.inner.rooms.get().map_or(command.clone(), |rooms| rooms.within(command));
        self.inner.clock.get().map_or(command.clone(), |clock| clock.within(command))
    }

    /// Gives it files of its own (/etc, /usr and /run), where its name servers are set by this. What was started before does not
    /// see them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the Debian package cannot be had; when it has such files already, or they cannot be made.
    pub async fn keep_files(&self, resolver: Resolver) -> Result<()> {
        let rooms = Rooms::build(self, resolver).await?;
        let taken = self.inner.rooms.set(rooms);
        taken.map_err(|_| Error::Invalid(format!("{} has files of its own already", self.name())))
    }

    /// Where `nsenter` finds its files, where it has some of its own.
    pub fn mount_namespace(&self) -> Option<PathBuf> {
        self.inner.rooms.get().map(Rooms::mount_namespace)
    }

    /// Whether it has files of its own; else it shares the machine's `resolv.conf`.
    pub fn has_own_files(&self) -> bool {
        self.inner.rooms.get().is_some()
    }

    /// What its DHCP client does with a lease that names this name server: it puts another `/etc/resolv.conf` in the place of the
    /// one that is there, as `dhclient-script` does.
    ///
    /// # Errors
    /// When it has no files of its own.
    pub async fn renew_lease(&self, name_server: &str) -> Result<()> {
        if !self.has_own_files() {
            return Err(Error::Invalid(format!("{} shares the machine's resolv.conf", self.name())));
        }
        let script = "printf 'nameserver %s\nsearch lan\n' \"$1\" > /etc/resolv.conf.dhclient-new && \
                      mv -f /etc/resolv.conf.dhclient-new /etc/resolv.conf";
        self.exec("sh", ["-c", script, "sh", name_server]).await.map(drop)
    }

    /// Sets the wall clock of what is linked dynamically, and gives it one of its own first: how far it is from everybody
    /// else's, as `-30m` or `+400d`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no libfaketime.
    pub fn set_clock(&self, offset: &str) -> Result<()> {
        if self.inner.clock.get().is_none() {
            // Somebody else's is as good.
            let _ = self.inner.clock.set(Clock::new(self.name())?);
        }
        self.inner.clock.get().map_or(Ok(()), |clock| clock.set(offset))
    }

    /// Whether it has a clock of its own, which what is linked statically does not see.
    pub fn has_own_clock(&self) -> bool {
        self.inner.clock.get().is_some()
    }

    /// Has it drop what comes in by another device than an answer would leave by (`rp_filter=1`, RFC 3704).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn be_strict(&self) -> Result<()> {
        let set = |which: &str| self.netns().sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), 1);
        ["all", "default", INTERFACE].into_iter().try_for_each(set)
    }

    /// Takes IPv6 from it (`disable_ipv6=1`), also on devices to come.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forgo_ipv6(&self) -> Result<()> {
        let set = |which: &str| self.netns().sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), 1);
        ["all", "default"].into_iter().try_for_each(set)
    }

    /// Takes IPv4 from it, and gives it an address of this network, whose first one is its router.
    pub(crate) async fn live_by_ipv6(&self, network: Ipv6Net) -> Result<()> {
        let (own, router) = uplink::numbered(network, self.address());
        self.inner.first.live_by_ipv6(own, router).await?;
        let what = format!("{} to reach its router", self.name());
        wait::until(&what, Duration::from_secs(15), || self.ping(router.into())).await
    }

    /// Runs a program here to a successful end; yields what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub async fn exec<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.command(program).args(args).run().await
    }

    /// Starts a program here that ends with the lab; `name` names its log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        let log = self.log_path(name);
        Spawner::machine().spawn(name, &self.at_home(command.clone()), &log).await
    }

    /// A UDP socket on this host, bound to `port` (0 for any) of IPv4.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn udp_socket(&self, port: u16) -> Result<UdpSocket> {
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        self.netns().within(bind)?.doing(|| format!("binding UDP port {port} on {}", self.name()))
    }

    /// Pings once, with two seconds of patience.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ping(&self, target: IpAddr) -> Result<()> {
        self.exec("ping", ["-n", "-c", "1", "-W", "2", &target.to_string()]).await.map(drop)
    }

    fn log_path(&self, name: &str) -> PathBuf {
        state::directory().join("logs").join(self.name()).join(format!("{name}.log"))
    }
}
