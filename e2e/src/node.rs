//! The node: a machine within the machine, with process ids, mounts, a network and a host name of its own.
//! Its first process takes everything else with it when it ends, and it ends with the lab.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::signal::Signal,
    unistd::sethostname,
};

use crate::{
    cluster::{SERVICES_V4, SERVICES_V6},
    error::{Doing, Error, Result},
    netns::{Netns, Plug, cable},
    process::{Command, Process, Spawner},
    segment::{self, Layout, Segment},
    state,
};

/// Name of the one node, in Kubernetes as in its own eyes.
pub const NAME: &str = "lab";
/// The public segment, which is the node's own network, too (RFC 5737).
pub const PUBLIC_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24);
/// The same for IPv6 (RFC 3849).
pub const PUBLIC_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0), 64);
/// The node's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The node's IPv6 address.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// The node's address for the machine itself (from the range for benchmarks, RFC 2544, that no network uses).
pub const MANAGEMENT: Ipv4Addr = Ipv4Addr::new(198, 19, 254, 2);
const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 19, 254, 1);

/// The bridge that is the public segment.
pub(crate) const BRIDGE: &str = "eth0";
/// Where programs have fixed paths, the node has a blank of its own.
pub(crate) const BLANK: [&str; 4] = ["/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet"];
/// Below it the node has its TUN device once more, on a mount where no device can be opened.
pub const NO_DEVICES: &str = "/run/no-devices";
const NETNS: &str = "node";
/// Numbers of hosts and NATs on the public segment; load balancers have those above.
const NUMBERS: std::ops::Range<u8> = 32..200;

/// The node, as its owner holds it.
#[derive(Debug)]
pub struct Node {
    netns: Netns,
    public: Segment,
    spawner: Option<Spawner>,
    init: Process,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts the node, with nothing on it yet.
    pub(crate) async fn start(init: &Path) -> Result<Self> {
        let netns = network().await?;
        let inside = netns.clone();
        let enter = move || enter(&inside);
        let (spawner, (), thread) = Spawner::entered("lab-node", enter).await?;
        let command = Command::new(init).arg("pause").with_own_proc();
        let init = spawner.spawn("init", &command, &log_path("init")).await?;
        let public = public_segment(&netns);
        Ok(Self { netns, public, spawner: Some(spawner), init, thread: Some(thread) })
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The public segment.
    pub fn public(&self) -> &Segment {
        &self.public
    }

    /// Starts a process of the node.
    pub(crate) async fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        let gone = || Error::Invalid("the node is going down".to_owned());
        self.spawner.as_ref().ok_or_else(gone)?.spawn(name, command, &log_path(name)).await
    }

    /// Says that the node is gone, if it is.
    pub(crate) fn must_run(&self) -> Result<()> {
        self.init.must_run()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.init.signal(Signal::SIGKILL);
        drop(self.spawner.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The public segment of a node that runs already, perhaps started by another process.
pub(crate) fn public_segment(netns: &Netns) -> Segment {
    Segment::over(Layout {
        netns,
        bridge: BRIDGE,
        v4: PUBLIC_V4,
        v6: Some(PUBLIC_V6),
        // No way on from here: what is not on this segment (pods, Services) is out of a client's reach.
        gateways: Vec::new(),
        numbers: NUMBERS,
    })
}

/// The network namespace of a node that runs already.
pub(crate) fn open_netns() -> Result<Netns> {
    Netns::open(NETNS)
}

pub(crate) fn log_path(name: &str) -> PathBuf {
    state::directory().join("logs").join(format!("{name}.log"))
}

async fn network() -> Result<Netns> {
    let netns = Netns::create(NETNS).await?;
    // Frames that only cross the public segment are none of the node's packet filter's business.
    for family in ["iptables", "ip6tables", "arptables"] {
        let key = format!("net/bridge/bridge-nf-call-{family}");
        if netns.read_sysctl(&key).is_ok() {
            netns.sysctl(&key, 0)?;
        }
    }
    netns.sysctl("net/ipv4/ip_forward", 1)?;
    netns.sysctl("net/ipv6/conf/all/forwarding", 1)?;
    netns
        .ip([
            segment::bridge(BRIDGE),
            format!("address add {ADDRESS}/{} dev {BRIDGE}", PUBLIC_V4.prefix_len()),
            format!("address add {ADDRESS_V6}/{} dev {BRIDGE} nodad", PUBLIC_V6.prefix_len()),
            format!("link set {BRIDGE} up"),
            // The node's own packets to Services must be routed somewhere before they are redirected.
            format!("route add {SERVICES_V4} dev {BRIDGE}"),
            format!("route add {SERVICES_V6} dev {BRIDGE}"),
        ])
        .await?;
    let machine = Netns::machine()?;
    let link = |address: Ipv4Addr| [IpNet::new_assert(IpAddr::V4(address), 30)];
    let plug =
        |netns, interface, addresses| Plug { netns, interface, bridge: None, addresses, gateways: &[] };
    cable(&plug(&machine, state::MACHINE_LINK, &link(MACHINE)), &plug(&netns, "machine0", &link(MANAGEMENT)))
        .await?;
    Ok(netns)
}

/// Turns the calling thread into one of the node: what it starts from now on lives there.
fn enter(netns: &Netns) -> Result<()> {
    use std::os::fd::AsFd;
    for dir in BLANK {
        state::make_outside(Path::new(dir))?;
    }
    let doing = || "making the node's namespaces".to_owned();
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).doing(doing)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS).doing(doing)?;
    sethostname(NAME).doing(doing)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).doing(doing)?;
    for dir in BLANK {
        mount(Some("pinhole-lab"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .doing(|| format!("mounting the node's {dir}"))?;
    }
    forbid_tun().doing(|| format!("mounting a TUN device that cannot be opened at {NO_DEVICES}"))
}

fn forbid_tun() -> std::io::Result<()> {
    let place = Path::new(NO_DEVICES).join("dev/net/tun");
    place.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::File::create(&place)?;
    let none = None::<&str>;
    mount(Some("/dev/net/tun"), &place, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV;
    mount(none, &place, none, flags, none)?;
    Ok(())
}
