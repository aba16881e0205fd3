//! Debian packages the lab needs; installed when missing.

use std::path::Path;

use crate::{
    error::{Doing, Error, Result},
    process::Command,
    progress,
};

/// A package, and a file that proves it is there (whoever installed it).
struct Package {
    name: &'static str,
    proof: &'static [&'static str],
}

const PACKAGES: &[Package] = &[
    Package { name: "ca-certificates", proof: &["/etc/ssl/certs/ca-certificates.crt"] },
    Package { name: "conntrack", proof: &["/usr/sbin/conntrack"] },
    Package { name: "containerd", proof: &["/usr/bin/containerd"] },
    Package { name: "containernetworking-plugins", proof: &["/usr/lib/cni/portmap", "/opt/cni/bin/portmap"] },
    Package { name: "coturn", proof: &["/usr/bin/turnutils_natdiscovery"] },
    Package { name: "ethtool", proof: &["/usr/sbin/ethtool", "/sbin/ethtool"] },
    Package { name: "iperf3", proof: &["/usr/bin/iperf3"] },
    Package { name: "iproute2", proof: &["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"] },
    Package { name: "iptables", proof: &["/usr/sbin/iptables", "/sbin/iptables"] },
    Package { name: "iputils-ping", proof: &["/usr/bin/ping", "/bin/ping"] },
    Package {
        name: "libfaketime",
        proof: &[
            "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
            "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
        ],
    },
    Package { name: "lua5.1", proof: &["/usr/bin/lua5.1"] },
    Package { name: "nftables", proof: &["/usr/sbin/nft", "/sbin/nft"] },
    Package { name: "runc", proof: &["/usr/sbin/runc", "/usr/bin/runc"] },
    Package { name: "tcpdump", proof: &["/usr/bin/tcpdump", "/usr/sbin/tcpdump"] },
    Package { name: "wireguard-tools", proof: &["/usr/bin/wg"] },
];

/// Installs what is missing.
///
/// # Errors
/// [`Error::NotRoot`], or [`Error::Unsupported`] off Debian with the list to install by hand.
pub async fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Error::Unsupported(format!(
            "it is not a Debian, and these Debian packages (or what they hold) are missing: {list}"
        )));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let _no_services = NoServices::begin()?;
    let apt = || Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    progress::step("apt-get update", apt().args(["-q", "update"]).run()).await?;
    let install = apt().args(["-q", "-y", "install", "--no-install-recommends"]).args(&missing);
    progress::step(&format!("apt-get install {list}"), install.run()).await?;
    Ok(())
}

fn missing() -> Vec<&'static str> {
    let there = |package: &&Package| package.proof.iter().any(|file| Path::new(file).exists());
    PACKAGES.iter().filter(|package| !there(package)).map(|package| package.name).collect()
}

/// Directory of the CNI plugins.
pub(crate) fn cni_plugins() -> &'static str {
    let debian = "/usr/lib/cni";
    if Path::new(debian).join("portmap").exists() { debian } else { "/opt/cni/bin" }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Keeps packages from starting their daemons while they are installed: the lab runs its own.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let what = || format!("writing {POLICY}");
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").doing(what)?;
        let policy = Self { ours: true };
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)).doing(what)?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
