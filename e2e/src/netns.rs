//! Network namespaces: made, entered, plugged together, removed.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs::File,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    error::{Doing, Error, Result},
    process::Command,
    wait,
};

/// A link comes up in milliseconds; the kernel's own rate limit for such events is one second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where iproute2 looks for named namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";
/// Every namespace of the lab is named with this prefix; what carries it is the lab's, to sweep.
pub const PREFIX: &str = "pinhole-";

/// A network namespace. Clones share it; it stays until [`Netns::remove`].
#[derive(Debug, Clone)]
pub struct Netns {
    name: Option<Arc<str>>,
    handle: Arc<File>,
}

impl Netns {
    /// The machine's own namespace.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn machine() -> Result<Self> {
        let handle =
            File::open("/proc/self/ns/net").doing(|| "opening the machine's namespace".to_owned())?;
        Ok(Self { name: None, handle: Arc::new(handle) })
    }

    /// Makes a namespace `pinhole-NAME`, with its loopback up.
    ///
    /// # Errors
    /// When the name is taken, or the machine does not allow namespaces.
    pub async fn create(short: &str) -> Result<Self> {
        Self::create_named(&full_name(short)?).await
    }

    /// Makes a namespace of this very name, with its loopback up. Where it lacks the lab's prefix it is not the
    /// lab's to sweep.
    ///
    /// # Errors
    /// When the name is taken, or the machine does not allow namespaces.
    pub(crate) async fn create_named(name: &str) -> Result<Self> {
        let path = path_of(name);
        std::fs::create_dir_all(DIRECTORY).doing(|| format!("making {DIRECTORY}"))?;
        File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .doing(|| format!("making the namespace {name} (is there one of that name?)"))?;
        let made = pin_new_namespace(&path);
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        made?;
        made_here().insert(name.to_owned());
        let netns = Self::open_named(name)?;
        netns.ip(["link set lo up"]).await?;
        Ok(netns)
    }

    /// Opens the namespace `pinhole-NAME`, which exists.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(short: &str) -> Result<Self> {
        Self::open_named(&full_name(short)?)
    }

    fn open_named(name: &str) -> Result<Self> {
        let handle = File::open(path_of(name)).doing(|| format!("opening the network namespace {name}"))?;
        Ok(Self { name: Some(name.into()), handle: Arc::new(handle) })
    }

    /// The namespace that a process is in.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: nix::unistd::Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let handle = File::open(&path).doing(|| format!("opening {path}"))?;
        Ok(Self { name: None, handle: Arc::new(handle) })
    }

    /// Name for `ip netns`; none for the machine's own, and for a process's.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Runs `work` on a thread inside this namespace: a socket made there stays there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
        .map_err(|errno: nix::Error| errno)
        .doing(|| format!("entering the network namespace {self}"))
    }

    /// A command that runs in this namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Command::new(program).netns(self)
    }

    /// Runs lines of `ip`, all or none.
    ///
    /// # Errors
    /// What `ip` says.
    pub async fn ip<L: Display>(&self, lines: impl IntoIterator<Item = L>) -> Result<()> {
        let mut script = String::new();
        for line in lines {
            script.push_str(&line.to_string());
            script.push('\n');
        }
        let outcome = self.command("ip").args(["-batch", "-"]).stdin(script.clone()).run().await;
        match outcome {
            Err(Error::Command { status, output, .. }) => Err(Error::Command {
                command: format!("ip ({self}): {}", script.trim_end().replace('\n', "; ")),
                status,
                output,
            }),
            other => other.map(drop),
        }
    }

    /// Sets a sysctl of this namespace, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the kernel has no such setting, or refuses the value.
    pub fn sysctl(&self, key: &str, value: impl Display) -> Result<()> {
        let (path, value) = (Path::new("/proc/sys").join(key), value.to_string());
        self.within(|| std::fs::write(&path, &value))?.doing(|| format!("setting {key}={value} in {self}"))
    }

    /// Reads a sysctl of this namespace.
    ///
    /// # Errors
    /// When the kernel has no such setting.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let read = self.within(|| std::fs::read_to_string(&path))?;
        Ok(read.doing(|| format!("reading {key} in {self}"))?.trim().to_owned())
    }

    /// Removes the name: the namespace is gone once its last process has ended.
    ///
    /// # Errors
    /// When the name cannot be removed.
    pub fn remove(&self) -> Result<()> {
        match self.name() {
            Some(name) => unpin_named(name),
            None => Ok(()),
        }
    }
}

/// Full names of the namespaces that this process made and did not remove yet.
pub(crate) fn made_here() -> MutexGuard<'static, BTreeSet<String>> {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name().unwrap_or("machine"))
    }
}

/// One end of a cable between two namespaces.
#[derive(Debug)]
pub struct Plug<'a> {
    /// Namespace of this end.
    pub netns: &'a Netns,
    /// Interface name of this end (at most 15 bytes).
    pub interface: &'a str,
    /// Bridge of that namespace to attach to.
    pub bridge: Option<&'a str>,
    /// Addresses to give to this end.
    pub addresses: &'a [IpNet],
    /// Default gateways behind this end.
    pub gateways: &'a [IpAddr],
}

/// Lays a cable (a veth pair) between two namespaces. The `far` end must be in a named one.
///
/// # Errors
/// What `ip` says.
pub async fn cable(near: &Plug<'_>, far: &Plug<'_>) -> Result<()> {
    let Some(far_name) = far.netns.name() else {
        return Err(Error::Invalid("a cable's far end must be in a named namespace".to_owned()));
    };
    near.netns
        .ip([format!("link add {} type veth peer name {} netns {far_name}", near.interface, far.interface)])
        .await?;
    for end in [far, near] {
        end.netns.ip(end.lines()).await?;
    }
    carry([far, near].map(|end| (end.netns, end.interface, end.bridge.is_some()))).await
}

/// Waits until frames pass at these interfaces, some of which are a bridge's ports: the kernel lets them through only some time
/// after a link was set up.
pub(crate) async fn carry(ends: [(&Netns, &str, bool); 2]) -> Result<()> {
    for (netns, interface, is_port) in ends {
        wait::until(&format!("{interface} of {netns} to carry"), PATIENCE, || async {
            let show = netns.command("ip").args(["-details", "-oneline", "link", "show", interface]);
            let shown = show.run().await.map_err(|error| error.to_string())?;
            let forwards = !is_port || shown.contains(" state forwarding ");
            if forwards && shown.contains(" state UP ") { Ok(()) } else { Err(shown) }
        })
        .await?;
    }
    Ok(())
}

impl Plug<'_> {
    fn lines(&self) -> Vec<String> {
        let Self { interface, .. } = self;
        let mut lines = Vec::new();
        for address in self.addresses {
            // Without duplicate address detection the address is usable at once.
            let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
            lines.push(format!("address add {address} dev {interface}{nodad}"));
        }
        if let Some(bridge) = self.bridge {
            lines.push(format!("link set {interface} master {bridge}"));
        }
        lines.push(format!("link set {interface} up"));
        lines.extend(self.gateways.iter().map(|via| format!("route add default via {via} dev {interface}")));
        lines
    }
}

/// Names of all namespaces that are the lab's.
pub(crate) fn ours() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

/// Removes the pin of a namespace by its full name.
pub(crate) fn unpin_named(name: &str) -> Result<()> {
    made_here().remove(name);
    unpin(&path_of(name))
}

pub(crate) fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn full_name(short: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if short.is_empty() || short.len() > 40 || !short.chars().all(fits) {
        return Err(Error::Invalid(format!(
            "\"{short}\" cannot name a part of the lab: use up to 40 of a-z, 0-9 and -"
        )));
    }
    Ok(format!("{PREFIX}{short}"))
}

/// Makes a namespace on a thread of its own and pins it to `path`, as `ip netns add` does, but without
/// turning the directory into a shared mount that would stay behind.
fn pin_new_namespace(path: &Path) -> Result<()> {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let source = "/proc/thread-self/ns/net";
        mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    let outcome = std::thread::scope(|scope| scope.spawn(work).join());
    match outcome {
        Ok(outcome) => outcome.doing(|| format!("making the network namespace {}", path.display())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn unpin(path: &Path) -> Result<()> {
    // Not mounted any more is as good as unmounted: a crash may have come between the two steps.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_not_fit_are_refused() {
        assert_eq!(full_name("home").unwrap(), "pinhole-home");
        for bad in ["", "Home", "../x", "a b", "a/b"] {
            assert!(full_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plug_gives_addresses_before_routes() {
        let machine = Netns::machine().unwrap();
        let plug = Plug {
            netns: &machine,
            interface: "eth0",
            bridge: None,
            addresses: &["192.168.1.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            gateways: &["192.168.1.1".parse().unwrap()],
        };
        assert_eq!(
            plug.lines(),
            [
                "address add 192.168.1.2/24 dev eth0",
                "address add fd00::2/64 dev eth0 nodad",
                "link set eth0 up",
                "route add default via 192.168.1.1 dev eth0",
            ]
        );
    }
}
