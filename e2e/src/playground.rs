//! What `pinhole-lab up` leaves open to play in: Pinhole with a gateway and a pool, and three hosts to play client on.

use std::{os::unix::fs::PermissionsExt, path::Path};

use crate::{
    Lab,
    error::{Doing, Error, Result},
    host::{Host, Resolver},
    installation::Installation,
    nat::NatProfile,
    progress,
    setup::{crate_dir, rust},
    state,
    vpn::Vpn,
};

const NAMESPACE: &str = "vpn";
/// What README has a new user apply.
const MANIFESTS: [&str; 2] = ["gateway-loadbalancer.yaml", "pool.yaml"];

/// The hosts; they go with the value, and all that runs on them.
#[derive(Debug)]
pub struct Playground {
    hosts: [Host; 3],
}

impl Drop for Playground {
    fn drop(&mut self) {
        // A person has started things there, tunnels for one.
        let names: Vec<_> =
            self.hosts.iter().filter_map(|host| host.netns().name()).map(str::to_owned).collect();
        if let Err(error) = state::end_processes(&names) {
            progress::say(&format!("something still runs on the lab's hosts: {error}"));
        }
    }
}

impl Playground {
    /// Makes the hosts, installs Pinhole, applies a gateway and a pool, and waits until the gateway is ready.
    ///
    /// # Errors
    /// When something of it cannot be made, or the gateway does not get ready in time.
    pub async fn open(lab: &Lab) -> Result<Self> {
        let hosts = [
            lab.nat_host("home", NatProfile::home()).await?,
            lab.nat_host("office", NatProfile::symmetric()).await?,
            lab.carrier_host("mobile", NatProfile::carrier(), NatProfile::home()).await?,
        ];
        for host in &hosts {
            host.keep_files(Resolver::DhcpClient).await?;
            write_commands(host)?;
        }
        Installation::install(lab, &[]).await?;
        let binaries = rust::binaries().await?;
        link("pinhole", &binaries.agent)?;
        link("kubectl-pinhole", &binaries.kubectl)?;
        lab.kubectl(["create", "namespace", NAMESPACE]).await?;
        for manifest in MANIFESTS {
            let path = crate_dir().join("../charts/pinhole/examples").join(manifest);
            lab.kubectl(["apply".as_ref(), "-f".as_ref(), path.as_os_str()]).await?;
        }
        let vpn = Vpn::declared(lab, NAMESPACE);
        progress::step("the gateway is ready", vpn.condition("vgw/edge", "Ready", "True", "*")).await?;
        Ok(Self { hosts })
    }
}

/// Scripts that do something as on this host, or to the NAT in front of it.
fn write_commands(host: &Host) -> Result<()> {
    let name = host.name();
    let [bin, home] = ["bin", "devices"].map(|part| state::directory().join(part));
    let not_made = || Error::Invalid(format!("{name} has no files or no NAT of its own"));
    let (mounts, nat) = (host.mount_namespace().ok_or_else(not_made)?, host.nat().ok_or_else(not_made)?);
    let keeps = home.join(name);
    std::fs::create_dir_all(&keeps).doing(|| format!("making {}", keeps.display()))?;
    write_command(
        &bin.join(format!("at-{name}")),
        &format!(
            "exec nsenter --net=/run/netns/{} --mount={} env PINHOLE_STATE_DIR={} PINHOLE_HOSTNAME={name} \"$@\"",
            host.netns().name().ok_or_else(not_made)?,
            mounts.display(),
            keeps.display(),
        ),
    )?;
    write_command(
        &bin.join(format!("forget-{name}")),
        &format!("exec ip netns exec {} conntrack -F", nat.netns().name().ok_or_else(not_made)?),
    )
}

fn write_command(path: &Path, line: &str) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    std::fs::write(path, format!("#!/bin/sh\n{line}\n")).doing(doing)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).doing(doing)
}

fn link(name: &str, to: &Path) -> Result<()> {
    let link = state::directory().join("bin").join(name);
    std::os::unix::fs::symlink(to, &link).doing(|| format!("linking {}", link.display()))
}

/// What there is, and the next line to type for each thing to try.
pub fn guide() -> String {
    let directory = state::directory();
    format!(
        "The lab is up: a cluster with Pinhole, in namespace {NAMESPACE} the gateway `edge` of two replicas and the pool `staff`, and \
three hosts:
`home` behind a port-preserving NAT, `office` behind a symmetric one, `mobile` behind a home router behind a carrier's NAT.

  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH

What is in the cluster, and why it is as it is
  kubectl -n {NAMESPACE} get vgw,vcp,vc
  kubectl -n {NAMESPACE} describe vgw edge

Connect a host, and see what it says of itself
  kubectl pinhole -n {NAMESPACE} token staff laptops | at-home pinhole up -d --token-file -
  at-home pinhole status

Reach the cluster through the tunnel: the gateway, and a Service by its name
  at-home ping -c 3 10.77.0.1
  at-home getent hosts kubernetes.default.svc.cluster.local

Watch keepalives adapt (minutes), and every move of a mapping with its cause
  kubectl pinhole -n {NAMESPACE} nat
  forget-home                                  # its NAT loses all mappings
  kubectl -n {NAMESPACE} get events --field-selector involvedObject.kind=VPNClient

Cut a client off, and let it come back
  kubectl pinhole -n {NAMESPACE} suspend NAME         # as `get vc` has it
  kubectl pinhole -n {NAMESPACE} resume NAME && at-home pinhole up -d

Lose the replica that it is connected to
  kubectl -n {NAMESPACE} delete pod REPLICA           # as `get vc -o wide` has it; at-home pinhole status

A stock WireGuard client
  kubectl apply -f charts/pinhole/examples/client-stock.yaml
  kubectl pinhole -n {NAMESPACE} config phone

The node is 203.0.113.10 for the hosts; `at-office bash` is a shell on one. Logs are in {logs}.
`make lab-down` ends it all.",
        kubeconfig = state::kubeconfig().display(),
        bin = directory.join("bin").display(),
        logs = directory.join("logs").display(),
    )
}
