//! Who manages names on this machine, and how it is told, as its own manual has it. Pure.

use std::{net::IpAddr, path::Path};

use serde::{Deserialize, Serialize};

use super::{Wanted, file};

/// Who manages names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Manager {
    /// systemd-resolved, by `resolvectl(1)`.
    Resolved,
    /// openresolv, by its `resolvconf(8)`.
    Openresolv,
    /// Debian's resolvconf, by its `resolvconf(8)`.
    DebianResolvconf,
    /// Nobody: whoever comes writes `resolv.conf(5)`.
    File,
}

/// By what it is seen who it is.
#[derive(Debug)]
pub(super) struct Signs<'a> {
    /// Where /etc/resolv.conf leads, links followed, also to where there is nothing.
    pub(super) target: &'a Path,
    /// What it says.
    pub(super) content: &'a str,
    /// Whether there is a resolvectl.
    pub(super) resolvectl: bool,
    /// What `resolvconf --version` prints: three programs have that name.
    pub(super) resolvconf: Option<&'a str>,
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) program: &'static str,
    pub(super) arguments: Vec<String>,
    /// What it reads.
    pub(super) input: String,
    /// Older releases do not know it, and do without.
    pub(super) optional: bool,
}

/// Where systemd-resolved keeps what /etc/resolv.conf leads to, and the static file for the same purpose.
const OF_RESOLVED: [&str; 3] =
    ["/run/systemd/resolve", "/usr/lib/systemd/resolv.conf", "/lib/systemd/resolv.conf"];
/// Where Debian's resolvconf writes.
const OF_DEBIAN: &str = "/run/resolvconf/resolv.conf";
/// The stub of systemd-resolved, and the one without its own answers.
const STUBS: [[u8; 4]; 2] = [[127, 0, 0, 53], [127, 0, 0, 54]];

impl Manager {
    /// One that is installed and not in use is not the one.
    pub(super) fn of(signs: &Signs<'_>) -> Self {
        let servers = file::servers(signs.content);
        let stubs = STUBS.map(IpAddr::from);
        let asks_stub = !servers.is_empty() && servers.iter().all(|server| stubs.contains(server));
        let leads_there = OF_RESOLVED.iter().any(|path| signs.target.starts_with(path));
        if signs.resolvectl && (leads_there || asks_stub) {
            return Self::Resolved;
        }
        match signs.resolvconf {
            Some(version) if version.starts_with("openresolv") => Self::Openresolv,
            Some(version)
                if version.starts_with("Debian resolvconf") && signs.target == Path::new(OF_DEBIAN) =>
            {
                Self::DebianResolvconf
            }
            _ => Self::File,
        }
    }

    /// What sets the name servers of a device. Repeating it puts them back. No argument can be taken for an option: the
    /// device's name is checked, and the others are addresses and names. The file is not among it.
    pub(super) fn set(self, device: &str, wanted: &Wanted) -> Vec<Call> {
        match self {
            Self::Resolved => {
                let servers = wanted.servers.iter().map(ToString::to_string);
                let mut domains: Vec<String> = wanted.search.iter().map(ToString::to_string).collect();
                if wanted.all {
                    domains.push("~.".to_owned());
                }
                let default_route = if wanted.all { "yes" } else { "no" };
                vec![
                    resolvectl("dns", device, servers),
                    resolvectl("domain", device, domains),
                    Call {
                        optional: true,
                        ..resolvectl("default-route", device, [default_route.to_owned()])
                    },
                ]
            }
            Self::Openresolv => vec![
                resolvconf(&["-a", &record(device), "-m", "0", "-x"], file::text(wanted)),
                resolvconf(&["-u"], String::new()),
            ],
            Self::DebianResolvconf => vec![
                resolvconf(&["-a", &record(device)], file::text(wanted)),
                resolvconf(&["-u"], String::new()),
            ],
            Self::File => Vec::new(),
        }
    }

    /// What takes them back.
    pub(super) fn unset(self, device: &str) -> Vec<Call> {
        match self {
            Self::Resolved => vec![resolvectl("revert", device, [])],
            Self::Openresolv => vec![resolvconf(&["-f", "-d", &record(device)], String::new())],
            Self::DebianResolvconf => vec![resolvconf(&["-d", &record(device)], String::new())],
            Self::File => Vec::new(),
        }
    }

    /// What tells which name servers each device has.
    pub(super) fn list(self) -> Option<Call> {
        match self {
            Self::Resolved => Some(Call { arguments: vec!["dns".to_owned()], ..resolvectl("dns", "", []) }),
            Self::Openresolv | Self::DebianResolvconf => Some(resolvconf(&["-l"], String::new())),
            Self::File => None,
        }
    }
}

/// What tells which resolvconf there is. Not all know the question.
pub(super) fn version() -> Call {
    Call { optional: true, ..resolvconf(&["--version"], String::new()) }
}

/// What a device is called there: the interface order of either resolvconf has those of tunnels first.
pub(super) fn record(device: &str) -> String {
    format!("tun.{device}")
}

fn resolvectl(verb: &str, device: &str, arguments: impl IntoIterator<Item = String>) -> Call {
    let arguments = [verb.to_owned(), device.to_owned()].into_iter().chain(arguments).collect();
    Call { program: "resolvectl", arguments, input: String::new(), optional: false }
}

fn resolvconf(arguments: &[&str], input: String) -> Call {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Call { program: "resolvconf", arguments, input, optional: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &str, content: &str, resolvectl: bool, resolvconf: Option<&str>) -> Manager {
        Manager::of(&Signs { target: Path::new(target), content, resolvectl, resolvconf })
    }

    const PLAIN: &str = "/etc/resolv.conf";
    const LAN: &str = "nameserver 192.168.50.1\n";

    #[test]
    fn resolved_counts_where_resolv_conf_points_to_it_alone() {
        let stub = "/run/systemd/resolve/stub-resolv.conf";
        assert_eq!(of(stub, "nameserver 127.0.0.53\n", true, None), Manager::Resolved);
        assert_eq!(of("/run/systemd/resolve/resolv.conf", LAN, true, None), Manager::Resolved);
        assert_eq!(of(PLAIN, "nameserver 127.0.0.53\noptions edns0\n", true, None), Manager::Resolved);
        assert_eq!(of(PLAIN, LAN, true, None), Manager::File, "installed, and not in use");
        assert_eq!(of(PLAIN, LAN, true, Some("systemd 252 (252.39-1~deb12u2)")), Manager::File);
        assert_eq!(of(stub, LAN, false, None), Manager::File, "no way to tell it");
    }

    #[test]
    fn each_resolvconf_is_told_from_the_other_by_its_version() {
        assert_eq!(of(PLAIN, LAN, false, Some("openresolv 3.12.0\n")), Manager::Openresolv);
        let debian = Some("Debian resolvconf 1.91+nmu1\n");
        assert_eq!(of(OF_DEBIAN, LAN, false, debian), Manager::DebianResolvconf);
        assert_eq!(of(PLAIN, LAN, false, debian), Manager::File, "installed, and not in use");
        assert_eq!(of(PLAIN, "", false, None), Manager::File);
    }

    fn line(call: &Call) -> String {
        format!("{} {}", call.program, call.arguments.join(" "))
    }

    fn lines(calls: &[Call]) -> Vec<String> {
        calls.iter().map(line).collect()
    }

    #[test]
    fn each_way_is_used_as_its_manual_has_it() {
        let split = Wanted {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            search: vec!["cluster.local".parse().unwrap()],
            all: false,
        };
        let full = Wanted { all: true, ..split.clone() };
        let [dns, domain, default] = lines(&Manager::Resolved.set("pinhole0", &split)).try_into().unwrap();
        assert_eq!(dns, "resolvectl dns pinhole0 10.96.0.10 fd00::a");
        assert_eq!(domain, "resolvectl domain pinhole0 cluster.local");
        assert_eq!(default, "resolvectl default-route pinhole0 no");
        let all = lines(&Manager::Resolved.set("pinhole0", &full));
        assert_eq!(all[1], "resolvectl domain pinhole0 cluster.local ~.", "search beside a full tunnel");
        assert_eq!(all[2], "resolvectl default-route pinhole0 yes");
        assert_eq!(lines(&Manager::Resolved.unset("pinhole0")), ["resolvectl revert pinhole0"]);

        let openresolv = Manager::Openresolv.set("pinhole0", &full);
        assert_eq!(lines(&openresolv), ["resolvconf -a tun.pinhole0 -m 0 -x", "resolvconf -u"]);
        assert_eq!(openresolv[0].input, "nameserver 10.96.0.10\nnameserver fd00::a\nsearch cluster.local\n");
        assert_eq!(lines(&Manager::Openresolv.unset("pinhole0")), ["resolvconf -f -d tun.pinhole0"]);
        let debian = Manager::DebianResolvconf.set("pinhole0", &full);
        assert_eq!(lines(&debian), ["resolvconf -a tun.pinhole0", "resolvconf -u"]);
        assert_eq!(lines(&Manager::DebianResolvconf.unset("pinhole0")), ["resolvconf -d tun.pinhole0"]);
        assert!(Manager::File.set("pinhole0", &full).is_empty());
    }
}
