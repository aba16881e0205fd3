//! Inside the pods of the lab's own cluster, as somebody on the node sees them.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::{
    error::{Error, Result},
    lab::Lab,
    netns::{Netns, Plug, cable},
    process::{Command, Process, Spawner},
    state,
};

/// The first process of the pod's container that was told its name (`POD_NAMESPACE`, `POD_NAME`), by the
/// machine's process ids.
///
/// # Errors
/// When there is none, or the cluster is not the lab's own.
pub fn process(lab: &Lab, namespace: &str, pod: &str) -> Result<Pid> {
    if !lab.is_own() {
        return Err(Error::Unsupported("another cluster's pods cannot be entered from here".to_owned()));
    }
    let told = [format!("POD_NAMESPACE={namespace}"), format!("POD_NAME={pod}")];
    let mut pids = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let has = |text: &String| environment.split(|byte| *byte == 0).any(|entry| entry == text.as_bytes());
        told.iter().all(has).then_some(Pid::from_raw(pid))
    });
    pids.next().ok_or_else(|| Error::Invalid(format!("no process runs in pod {namespace}/{pod}")))
}

/// The pod's network namespace.
///
/// # Errors
/// As [`process`].
pub fn netns(lab: &Lab, namespace: &str, pod: &str) -> Result<Netns> {
    Netns::of_process(process(lab, namespace, pod)?)
}

/// Runs a program of this machine in the pod's network namespace to a successful end.
///
/// # Errors
/// As [`process`], and when the program fails.
pub async fn exec(lab: &Lab, namespace: &str, pod: &str, program: &Path, args: &[&str]) -> Result<String> {
    netns(lab, namespace, pod)?.command(program).args(args).run().await
}

/// Kills the pod's process, as the kernel does when memory runs out: the kubelet restarts the container in place.
///
/// # Errors
/// As [`process`].
pub fn kill(lab: &Lab, namespace: &str, pod: &str) -> Result<()> {
    let pid = process(lab, namespace, pod)?;
    nix::sys::signal::kill(pid, Signal::SIGKILL).map_err(|errno| {
        Error::Invalid(format!("process {pid} of pod {namespace}/{pod} cannot be killed: {errno}"))
    })
}

/// A network whose only door leads into a pod, with one host in it.
#[derive(Debug)]
pub struct HiddenNetwork {
    netns: Netns,
    name: String,
}

impl HiddenNetwork {
    /// Plugs a /24 with the host `address` (not its first) into the pod; the pod is the first address.
    ///
    /// # Errors
    /// As [`process`], and when the network cannot be made.
    pub async fn behind(
        lab: &Lab,
        namespace: &str,
        pod: &str,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let inside = netns(lab, namespace, pod)?;
        let hidden = Self { netns: Netns::create(name).await?, name: name.to_owned() };
        let net = Ipv4Net::new(address, 24).map_err(|error| Error::Invalid(error.to_string()))?;
        let door = IpAddr::from(Ipv4Addr::from(u32::from(net.network()) + 1));
        let near = Plug {
            netns: &inside,
            interface: "hidden0",
            bridge: None,
            addresses: &[IpNet::new_assert(door, 24)],
            gateways: &[],
        };
        let far = Plug {
            netns: &hidden.netns,
            interface: "eth0",
            bridge: None,
            addresses: &[IpNet::from(net)],
            gateways: &[],
        };
        cable(&near, &far).await?;
        // As whoever adds an interface to a router does.
        inside.sysctl("net/ipv4/conf/hidden0/forwarding", 1)?;
        Ok(hidden)
    }

    /// Its host's namespace.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A program to run on the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.netns.command(program)
    }

    /// Starts a program on the host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        let log = state::directory().join("logs").join(&self.name).join(format!("{name}.log"));
        Spawner::machine().spawn(name, &command.clone().netns(&self.netns), &log).await
    }
}

impl Drop for HiddenNetwork {
    fn drop(&mut self) {
        // What cannot be removed now is swept by name when the lab goes down.
        let _ = self.netns.remove();
    }
}
