//! Files of a host's own, and what sets its name servers there.

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use super::{
    Host, INTERFACE,
    floors::{FLOORS, OPENRESOLV, RESOLVED_IN_USE, package, systemd_resolved},
};
use crate::{
    error::{Doing, Error, Result},
    process::{Command, Process},
    state, wait,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Who sets a host's name servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// A DHCP client, which writes `/etc/resolv.conf` anew with each lease.
    DhcpClient,
    /// openresolv, by its `resolvconf`.
    Openresolv,
    /// systemd-resolved, by its D-Bus; `/etc/resolv.conf` names its stub.
    SystemdResolved,
}

impl Resolver {
    /// The Debian package that it takes.
    const fn package(self) -> Option<&'static str> {
        match self {
            Self::DhcpClient => None,
            Self::Openresolv => Some("openresolv"),
            Self::SystemdResolved => Some("systemd-resolved"),
        }
    }

    fn script(self) -> String {
        match self {
            Self::DhcpClient => String::new(),
            Self::Openresolv => OPENRESOLV.to_owned(),
            Self::SystemdResolved => format!("{}\n{RESOLVED_IN_USE}", systemd_resolved(INTERFACE)),
        }
    }
}

/// An /etc, a /usr and a /run of one host. They go with the value, and what runs in them.
#[derive(Debug)]
pub(super) struct Rooms {
    mounts: Arc<File>,
    inhabitant: Process,
    directory: PathBuf,
}

impl Rooms {
    pub(super) async fn build(host: &Host, resolver: Resolver) -> Result<Self> {
        let directory = state::directory().join("rooms").join(host.name());
        let [upper, none, ready] = ["upper", "none", "ready"].map(|name| directory.join(name));
        // Those of an earlier host of this name.
        let _ = std::fs::remove_file(&ready);
        for path in [upper.clone(), none.join("etc"), none.join("usr")] {
            std::fs::create_dir_all(&path).doing(|| format!("making {}", path.display()))?;
        }
        let files = match resolver.package() {
            Some(name) => fetched(name).await?,
            None => none,
        };
        let script = format!("{FLOORS}{}\ntouch \"$3\"\nexec sleep infinity", resolver.script());
        let unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
            .args(["sh", "-c", &script, "sh"])
            .args([&upper, &files, &ready]);
        let inhabitant = host.spawn("rooms", &unshare).await?;
        wait::until(&format!("the files of {}", host.name()), PATIENCE, || async {
            inhabitant.must_run().map_err(|error| error.to_string())?;
            if ready.exists() { Ok(()) } else { Err(inhabitant.tail(15)) }
        })
        .await?;
        let path = mount_namespace(&inhabitant);
        let mounts = Arc::new(File::open(&path).doing(|| format!("opening {}", path.display()))?);
        Ok(Self { mounts, inhabitant, directory })
    }

    pub(super) fn mount_namespace(&self) -> PathBuf {
        mount_namespace(&self.inhabitant)
    }

    /// The command, run in them.
    pub(super) fn within(&self, command: Command) -> Command {
        command.mounts(&self.mounts)
    }
}

fn mount_namespace(inhabitant: &Process) -> PathBuf {
    format!("/proc/{}/ns/mnt", inhabitant.pid()).into()
}

impl Drop for Rooms {
    fn drop(&mut self) {
        // The files themselves are in memory, for those who are in the namespace.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn fetched(name: &'static str) -> Result<PathBuf> {
    let files = tokio::task::spawn_blocking(move || package(name)).await;
    let files = files.map_err(std::io::Error::other).doing(|| format!("fetching {name}"))?;
    files.map_err(|why| Error::Unsupported(format!("the Debian package {name} cannot be had: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::footprint::Footprint, netns::Netns};

    #[tokio::test]
    async fn a_host_with_rooms_has_its_own_resolv_conf_and_a_lease_writes_it_anew() {
        let host = Host::alone("rooms-test").await.unwrap();
        host.keep_files(Resolver::DhcpClient).await.unwrap();
        let read = async || host.exec("cat", ["/etc/resolv.conf"]).await.unwrap();
        assert_eq!(read().await, "nameserver 192.168.50.1\nsearch lan\n");
        let before = Footprint::of(&host).await.unwrap();
        host.renew_lease("192.168.50.2").await.unwrap();
        assert_eq!(read().await, "nameserver 192.168.50.2\nsearch lan\n");
        let after = Footprint::of(&host).await.unwrap();
        assert_eq!(before.differences(&after).len(), 2, "{:?}", before.differences(&after));
        let ours = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert!(!ours.contains("192.168.50."), "the machine's own stays as it is");
        let within = host.exec("ip", ["-brief", "link"]).await.unwrap();
        let beside =
            Netns::open("rooms-test").unwrap().command("ip").args(["-brief", "link"]).run().await.unwrap();
        assert_eq!(within, beside, "it is the host's network all the same");
    }
}
