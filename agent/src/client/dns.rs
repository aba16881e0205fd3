//! Name servers of the tunnel: handed to whatever manages them on this machine, and taken back.

use std::{
    io::Write,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use pinhole_proto::DomainName;

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
    pub(super) search: Vec<DomainName>,
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
        for arguments in resolvectl(&self.device, wanted) {
            run(Command::new("resolvectl").args(arguments), "")?;
        }
        Ok(())
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

/// The arguments of the calls of resolvectl that set what is wanted. None can be an option: the device's name is checked,
/// and the others are addresses and names.
fn resolvectl(device: &str, wanted: &Wanted) -> [Vec<String>; 2] {
    let mut servers = vec!["dns".to_owned(), device.to_owned()];
    servers.extend(wanted.servers.iter().map(ToString::to_string));
    let mut domains = vec!["domain".to_owned(), device.to_owned()];
    domains.extend(wanted.search.iter().map(ToString::to_string));
    if wanted.search.is_empty() {
        // All names, as there is nothing to tell the tunnel's own by.
        domains.push("~.".to_owned());
    }
    [servers, domains]
}

fn resolv_conf(wanted: &Wanted) -> String {
    let mut lines: Vec<String> =
        wanted.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !wanted.search.is_empty() {
        let search: Vec<&str> = wanted.search.iter().map(DomainName::as_str).collect();
        lines.push(format!("search {}\n", search.join(" ")));
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
    use crate::{client::settings::Settings, hostile};
    use pinhole_proto::v1;
    use proptest::prelude::*;

    #[test]
    fn servers_come_before_search_domains() {
        let wanted = Wanted {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            search: vec!["cluster.local".parse().unwrap(), "example.com".parse().unwrap()],
        };
        assert_eq!(
            resolv_conf(&wanted),
            "nameserver 10.96.0.10\nnameserver fd00::a\nsearch cluster.local example.com\n"
        );
        let arguments = [
            vec!["dns", "pinhole0", "10.96.0.10", "fd00::a"],
            vec!["domain", "pinhole0", "cluster.local", "example.com"],
        ];
        assert_eq!(resolvectl("pinhole0", &wanted), arguments);
        let all = Wanted { search: vec![], ..wanted };
        assert_eq!(resolvectl("pinhole0", &all)[1], ["domain", "pinhole0", "~."]);
    }

    /// What a gateway sends, as far as it comes to be wanted.
    fn wanted(search: &[String]) -> Wanted {
        let config = v1::ClientConfig {
            client: Some(v1::ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() }),
            addresses: vec!["10.77.0.9/32".into()],
            dns_servers: vec!["10.96.0.10".into()],
            dns_search: search.to_vec(),
            ..v1::ClientConfig::default()
        };
        let settings = Settings::parse(config).unwrap();
        Wanted { servers: settings.dns_servers, search: settings.dns_search }
    }

    fn assert_harmless(wanted: &Wanted) {
        let text = resolv_conf(wanted);
        let lines: Vec<_> = text.lines().collect();
        assert!((1..=2).contains(&lines.len()) && lines[0] == "nameserver 10.96.0.10", "{text:?}");
        assert!(lines.iter().skip(1).all(|line| line.starts_with("search ")), "{text:?}");
        assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text:?}");
        for arguments in resolvectl("pinhole0", wanted) {
            assert!(arguments.iter().all(|a| !a.is_empty() && !a.starts_with('-')), "{arguments:?}");
            assert!(arguments.iter().all(|a| a.bytes().all(|b| b.is_ascii_graphic())), "{arguments:?}");
        }
    }

    #[test]
    fn nothing_hostile_crosses_into_resolv_conf_or_onto_the_command_line_of_resolvectl() {
        for text in hostile::strings() {
            let wanted = wanted(&[text, "corp.example".to_owned()]);
            assert_harmless(&wanted);
            assert_eq!(resolv_conf(&wanted), "nameserver 10.96.0.10\nsearch corp.example\n");
            assert_eq!(resolvectl("pinhole0", &wanted)[1], ["domain", "pinhole0", "corp.example"]);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_gateway_sends_is_words_of_one_line(search in proptest::collection::vec("[a-z.\n -]{0,12}|.*", 0..40)) {
            assert_harmless(&wanted(&search));
        }
    }
}
