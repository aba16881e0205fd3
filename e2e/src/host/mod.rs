//! Client hosts: a laptop, an edge box, a phone, each in a namespace of its own.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    error::{Doing, Result},
    nat::{Nat, OwnedNetns},
    netns::Netns,
    process::{Command, Process, Spawner},
    segment::{Attachment, Segment},
    state,
};

/// The only interface of a host, besides the loopback.
const INTERFACE: &str = "eth0";

/// A host, behind NATs or on the public segment. Clones are the same host; the last one dropped removes it.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    nats: Vec<Nat>,
    attachment: Attachment,
    netns: OwnedNetns,
}

impl Host {
    pub(crate) async fn create(name: &str, segment: &Segment, nats: Vec<Nat>) -> Result<Self> {
        let netns = OwnedNetns(Netns::create(name).await?);
        let attachment = segment.attach(&netns.0, INTERFACE).await?;
        Ok(Self { inner: Arc::new(Inner { name: name.to_owned(), nats, attachment, netns }) })
    }

    /// Name in the lab.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its namespace; `netns().name()` is what `ip netns exec` takes.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns.0
    }

    /// Its own address, as it sees it.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.attachment.address()
    }

    /// Its own IPv6 address, where its segment has IPv6.
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.inner.attachment.address_v6()
    }

    /// Gives it one more IPv4 address; yields that.
    ///
    /// # Errors
    /// When its network is full.
    pub async fn add_address(&self) -> Result<Ipv4Addr> {
        let address = self.inner.attachment.one_more()?;
        self.netns().ip([format!("address add {address} dev {INTERFACE}")]).await?;
        Ok(address.addr())
    }

    /// The NATs in front of it, nearest first.
    pub fn nats(&self) -> &[Nat] {
        &self.inner.nats
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
        self.netns().command(program)
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
        Spawner::machine().spawn(name, &command.clone().netns(self.netns()), &log).await
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
