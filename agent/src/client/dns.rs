//! Name servers of the tunnel: handed to whatever manages them on this machine, and taken back.

use std::{
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use crate::identity::Store;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const SAVED: &str = "resolv.conf.saved";
const MARK: &str = "# Written by pinhole; the former content is kept and comes back when the tunnel ends.";

/// Who manages names here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Resolved,
    Resolvconf,
    File,
}

/// What a tunnel wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<String>,
}

/// The name servers of one tunnel.
pub(super) struct Dns {
    device: String,
    store: Store,
    applied: Option<(Manager, Wanted)>,
}

impl Dns {
    /// Also brings back what a process that was killed left behind.
    pub(super) fn new(device: &str, store: Store) -> Self {
        let dns = Dns { device: device.to_owned(), store, applied: None };
        if let Err(error) = dns.restore_file() {
            tracing::warn!(error, "the former name servers could not be restored");
        }
        dns
    }

    /// Makes the tunnel's name servers exactly these.
    pub(super) fn set(&mut self, wanted: &Wanted) -> Result<(), String> {
        if self.applied.as_ref().is_some_and(|(_, applied)| applied == wanted) {
            return Ok(());
        }
        self.remove();
        if wanted.servers.is_empty() {
            return Ok(());
        }
        let manager = manager();
        match manager {
            Manager::Resolved => self.set_resolved(wanted)?,
            Manager::Resolvconf => {
                run(Command::new("resolvconf").args(["-a", &self.device]), &resolv_conf(wanted))?;
            }
            Manager::File => self.set_file(wanted)?,
        }
        self.applied = Some((manager, wanted.clone()));
        Ok(())
    }

    /// Takes them back.
    pub(super) fn remove(&mut self) {
        let Some((manager, _)) = self.applied.take() else { return };
        let removed = match manager {
            Manager::Resolved => run(Command::new("resolvectl").args(["revert", &self.device]), ""),
            Manager::Resolvconf => run(Command::new("resolvconf").args(["-d", &self.device]), ""),
            Manager::File => self.restore_file(),
        };
        if let Err(error) = removed {
            tracing::warn!(error, "the tunnel's name servers stay behind");
        }
    }

    fn set_resolved(&self, wanted: &Wanted) -> Result<(), String> {
        let mut servers = Command::new("resolvectl");
        servers.args(["dns", &self.device]).args(wanted.servers.iter().map(ToString::to_string));
        run(&mut servers, "")?;
        if wanted.search.is_empty() {
            // All names, as there is nothing to tell the tunnel's own by.
            return run(Command::new("resolvectl").args(["domain", &self.device, "~."]), "");
        }
        run(Command::new("resolvectl").args(["domain", &self.device]).args(&wanted.search), "")
    }

    fn set_file(&self, wanted: &Wanted) -> Result<(), String> {
        let former = std::fs::read(RESOLV_CONF).unwrap_or_default();
        self.store.write(SAVED, &former).map_err(|error| error.to_string())?;
        // In place: in a container the file is a mount of its own and cannot be replaced.
        let content = format!("{MARK}\n{}", resolv_conf(wanted));
        std::fs::write(RESOLV_CONF, content).map_err(|error| format!("cannot write {RESOLV_CONF}: {error}"))
    }

    fn restore_file(&self) -> Result<(), String> {
        let Some(former) = self.store.read(SAVED).map_err(|error| error.to_string())? else { return Ok(()) };
        let current = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        // Somebody else has written it since: theirs is the newer one.
        if current.starts_with(MARK) {
            std::fs::write(RESOLV_CONF, former)
                .map_err(|error| format!("cannot write {RESOLV_CONF}: {error}"))?;
        }
        self.store.remove(SAVED).map_err(|error| error.to_string())
    }
}

fn manager() -> Manager {
    if Path::new("/run/systemd/resolve").exists() && on_path("resolvectl") {
        Manager::Resolved
    } else if on_path("resolvconf") {
        Manager::Resolvconf
    } else {
        Manager::File
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn resolv_conf(wanted: &Wanted) -> String {
    let mut lines: Vec<String> =
        wanted.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !wanted.search.is_empty() {
        lines.push(format!("search {}\n", wanted.search.join(" ")));
    }
    lines.concat()
}

fn run(command: &mut Command, input: &str) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("cannot run {program}: {error}");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(format!("{program} failed: {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_come_before_search_domains() {
        let wanted = Wanted {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            search: vec!["cluster.local".into(), "example.com".into()],
        };
        assert_eq!(
            resolv_conf(&wanted),
            "nameserver 10.96.0.10\nnameserver fd00::a\nsearch cluster.local example.com\n"
        );
    }
}
