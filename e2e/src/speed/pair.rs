//! Two namespaces, a cable between them, and a contender at both ends.

use std::{fmt, net::IpAddr, path::Path, time::Duration};

use boringtun::x25519;
use clap::ValueEnum;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    Contender,
    keys::{Key, key_text},
    usage::{self, Usage},
};
use crate::{
    error::{Error, Result},
    netns::{self, Netns, Plug, cable},
    process::{Command, Process, Spawner},
    progress, state, wait,
};

/// All namespaces of a run begin with this. They are not the lab's.
const PREFIX: &str = "phbench-";
/// Where implementations put the sockets that `wg` talks to.
const SOCKETS: &str = "/var/run/wireguard";
const CABLE: &str = "eth0";
const PATIENCE: Duration = Duration::from_secs(15);
/// Where handshakes of a storm come from: any address of it is the near end's.
const STORM: &str = "198.18.0.0/16";
/// The tunnel's MTU but where a scenario says another, in bytes.
pub(super) const TUNNEL_MTU: u32 = 1420;
const PORT: u16 = 51820;

/// What the cable does for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// Splits and merges runs of datagrams, as good network cards do.
    #[value(name = "on")]
    Offloads,
    /// Does not, as the worst do.
    #[value(name = "off")]
    Plain,
}

impl Link {
    const fn features(self) -> [&'static str; 6] {
        match self {
            Self::Offloads => ["gro", "on", "rx-udp-gro-forwarding", "on", "tx-udp-segmentation", "on"],
            Self::Plain => ["gro", "off", "rx-udp-gro-forwarding", "off", "tx-udp-segmentation", "off"],
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Offloads => "offloads on",
            Self::Plain => "offloads off",
        })
    }
}

/// One of both ends.
#[derive(Debug)]
pub(super) struct End {
    netns: Netns,
    device: String,
    process: Option<Process>,
}

impl End {
    /// Its namespace.
    pub(super) const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its WireGuard device.
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// What its process has used so far; none where there is no process.
    pub(super) fn usage(&self) -> Result<Option<Usage>> {
        self.process.as_ref().map(|process| usage::of(process.pid())).transpose()
    }
}

/// A contender that is set up.
#[derive(Debug)]
pub(super) struct Pair {
    contender: Contender,
    /// Where traffic is asked for.
    pub(super) near: End,
    /// Where it is served.
    pub(super) far: End,
    /// What traffic is sent to, and pinged.
    target: IpAddr,
    /// The far end's identity, where it has one.
    identity: Option<x25519::PublicKey>,
    _server: Process,
}

impl Pair {
    pub(super) const fn contender(&self) -> Contender {
        self.contender
    }

    /// The far end's address, inside the tunnel where there is one.
    pub(super) fn target(&self) -> String {
        self.target.to_string()
    }

    /// The far end's identity; none where there is no WireGuard.
    pub(super) const fn identity(&self) -> Option<x25519::PublicKey> {
        self.identity
    }

    /// What the far end's process has used.
    ///
    /// # Errors
    /// Where it has none.
    pub(super) fn gateway(&self) -> Result<Usage> {
        self.far.usage()?.ok_or_else(|| Error::Invalid("a cable has no process".to_owned()))
    }

    /// Where the far end's WireGuard listens.
    pub(super) fn endpoint() -> std::net::SocketAddr {
        (outer(2), PORT).into()
    }

    /// Sets everything up, and waits until a packet goes through.
    pub(super) async fn set_up(
        contender: Contender,
        program: Option<&Path>,
        number: usize,
        logs: &Path,
    ) -> Result<Self> {
        let ends = [("a", 1), ("b", 2)].map(|(end, host)| {
            let name = format!("{PREFIX}{number}-{}-{end}", contender.short());
            (name, format!("pb{number}{}{end}", contender.short()), outer(host))
        });
        let [(near_name, near_device, near_address), (far_name, far_device, far_address)] = ends;
        let mut near =
            End { netns: Netns::create_named(&near_name).await?, device: near_device, process: None };
        let mut far = End { netns: Netns::create_named(&far_name).await?, device: far_device, process: None };
        let plug =
            |netns, addresses| Plug { netns, interface: CABLE, bridge: None, addresses, gateways: &[] };
        let (near_net, far_net) = ([net(near_address, 24)?], [net(far_address, 24)?]);
        cable(&plug(&near.netns, &near_net), &plug(&far.netns, &far_net)).await?;
        near.netns.ip([format!("route add local {STORM} dev lo")]).await?;
        far.netns.ip([format!("route add {STORM} via {near_address}")]).await?;

        let (mut target, mut identity) = (far_address, None);
        if let Some(program) = program {
            for end in [&mut near, &mut far] {
                end.start(contender, program, logs).await?;
            }
            identity = Some(configure(&near, &far).await?);
            target = inner(2);
        }
        let server = far.netns.command("iperf3").args(["-s"]);
        let log = logs.join(format!("{number}-{}-iperf3.log", contender.short()));
        let server = Spawner::machine().spawn("iperf3", &server, &log).await?;
        let ping = near.netns.command("ping").args(["-n", "-c", "1", "-W", "1", &target.to_string()]);
        wait::until(&format!("a ping through {contender}"), PATIENCE, || ping.run()).await?;
        Ok(Self { contender, near, far, target, identity, _server: server })
    }

    /// Sets the tunnel's MTU, in bytes. A cable keeps its own.
    pub(super) async fn set_mtu(&self, mtu: u32) -> Result<()> {
        for end in [&self.near, &self.far].into_iter().filter(|end| end.process.is_some()) {
            end.netns.ip([format!("link set {} mtu {mtu}", end.device)]).await?;
        }
        Ok(())
    }

    /// Switches what the cable does.
    pub(super) async fn set_link(&self, link: Link) -> Result<()> {
        for end in [&self.near, &self.far] {
            end.netns.command("ethtool").args(["-K", CABLE]).args(link.features()).run().await?;
        }
        Ok(())
    }
}

impl End {
    async fn start(&mut self, contender: Contender, program: &Path, logs: &Path) -> Result<()> {
        // What a killed process leaves goes with its log.
        let command = contender.device_command(program, &self.device).env("TMPDIR", logs).netns(&self.netns);
        let log = logs.join(format!("{}.log", self.device));
        let process = Spawner::machine().spawn(&self.device, &command, &log).await?;
        wait::until(&format!("{contender} to make {}", self.device), PATIENCE, || async {
            process.must_run().map_err(|error| error.to_string())?;
            let ready = self.wg(["show", &self.device]).run().await;
            ready.map_err(|error| format!("{error}; {}", process.tail(5)))
        })
        .await?;
        self.process = Some(process);
        Ok(())
    }

    /// A `wg` for the device.
    pub(super) fn wg<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        self.netns.command("wg").args(args)
    }

    /// Adds sections of a configuration to the device.
    pub(super) async fn add_configuration(&self, text: String) -> Result<()> {
        self.wg(["addconf", &self.device, "/dev/stdin"]).stdin(text).run().await.map(drop)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Its end is the end of its device; the namespace goes with the last process in it.
        drop(self.process.take());
        // A killed process leaves it.
        let _ = std::fs::remove_file(Path::new(SOCKETS).join(format!("{}.sock", self.device)));
        if let Err(error) = self.netns.remove() {
            progress::say(&format!("{} stays behind: {error}", self.netns));
        }
    }
}

/// Gives both devices keys, addresses and each other. Only the near one knows where the other is. Yields the far
/// one's identity, which not every implementation tells.
async fn configure(near: &End, far: &End) -> Result<x25519::PublicKey> {
    let (near_key, far_key) = (Key::generate()?, Key::generate()?);
    let endpoint = format!("Endpoint = {}\n", Pair::endpoint());
    let ends =
        [(near, &near_key, &far_key, [1, 2], endpoint), (far, &far_key, &near_key, [2, 1], String::new())];
    for (end, key, peer, [own, other], endpoint) in ends {
        let conf = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n{endpoint}",
            key.secret_text(),
            key_text(&peer.public()),
            inner(other),
        );
        end.wg(["setconf", &end.device, "/dev/stdin"]).stdin(conf).run().await?;
        let device = &end.device;
        let address = format!("address add {}/24 dev {device}", inner(own));
        end.netns.ip([address, format!("link set {device} mtu {TUNNEL_MTU} up")]).await?;
    }
    Ok(far_key.public())
}

/// Removes what a killed run left.
pub(super) fn sweep() -> Result<()> {
    let entries = std::fs::read_dir(netns::DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let left: Vec<String> = names.filter(|name| name.starts_with(PREFIX)).collect();
    state::sweep_namespaces(&left)
}

fn outer(host: u8) -> IpAddr {
    [192, 0, 2, host].into()
}

fn inner(host: u8) -> IpAddr {
    [10, 9, 0, host].into()
}

fn net(address: IpAddr, length: u8) -> Result<IpNet> {
    IpNet::new(address, length).map_err(|error| Error::Invalid(error.to_string()))
}
