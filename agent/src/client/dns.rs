//! Name servers of the tunnel: handed to whatever manages them on this machine, put back when somebody takes them away, and
//! taken back at the end, also at that of a process that was killed.

mod call;
mod file;
mod manager;
mod policy;
mod watch;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use ipnet::IpNet;
use pinhole_proto::DomainName;
use serde::{Deserialize, Serialize};

pub(super) use self::watch::{Watch, changed};
use self::{
    manager::{Manager, Signs},
    policy::Policy,
};
use super::{Impairment, settings::Settings};
use crate::identity::{Names, Store};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What the file was before it was ours.
const SAVED: &str = "resolv.conf.saved";
/// With whom something of ours is.
const KEPT: &str = "resolver.json";

/// What a tunnel wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<DomainName>,
    /// Whether they are asked for all names, where that can be chosen.
    pub(super) all: bool,
}

impl Wanted {
    /// All names are theirs in a full tunnel, and where there is nothing to tell the tunnel's own by.
    pub(super) fn of(settings: &Settings) -> Self {
        Wanted {
            servers: settings.dns_servers.clone(),
            search: settings.dns_search.clone(),
            all: settings.dns_search.is_empty() || is_everything(&settings.routes),
        }
    }
}

/// Whether they lead all addresses of a family into the tunnel, also in parts.
pub(super) fn is_everything(routes: &[IpNet]) -> bool {
    IpNet::aggregate(&routes.to_vec()).iter().any(|net| net.prefix_len() == 0)
}

/// What has to be taken back, on disk for as long as it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    manager: Manager,
}

/// The name servers of one tunnel.
pub(super) struct Dns {
    device: String,
    store: Store,
    /// Those of gateways: they are asked of the network's own servers while ours are in force.
    names: Names,
    wanted: Wanted,
    applied: Option<(Manager, Wanted)>,
    policy: Policy,
    /// Why what is wanted is not in force.
    missing: Option<String>,
}

impl Dns {
    /// After [`mend`] and [`find_network`].
    pub(super) fn new(device: &str, store: Store, names: Names) -> Self {
        Dns {
            device: device.to_owned(),
            store,
            names,
            wanted: Wanted::default(),
            applied: None,
            policy: Policy::default(),
            missing: None,
        }
    }

    /// Makes the tunnel's name servers exactly these, as long as there is a path to them.
    pub(super) fn set(&mut self, now: Instant, wanted: Wanted) {
        self.wanted = wanted;
        self.act(now);
    }

    /// Whether there is a path to the tunnel's name servers.
    pub(super) fn handle_path(&mut self, now: Instant, there: bool) {
        self.policy.handle_path(now, there);
        self.act(now);
    }

    /// Somebody has set the name servers of this machine.
    pub(super) fn handle_changed(&mut self, now: Instant) {
        let manager = self.applied.as_ref().map_or_else(manager, |(manager, _)| *manager);
        self.look_at_network(manager);
        let Some((_, wanted)) = &self.applied else { return };
        if let Some(why) = self.absent(manager, wanted) {
            tracing::warn!(why, "the tunnel's name servers were taken away");
            self.missing = Some(why);
            self.policy.handle_missing(now);
            self.act(now);
        }
    }

    /// When [`Self::handle_path`] is due at the latest.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        (!self.wanted.servers.is_empty()).then(|| self.policy.poll_timeout(now))?
    }

    /// What of the pool's promise does not hold here.
    pub(super) fn missing(&self) -> Option<Impairment> {
        let why = self.missing.as_ref()?;
        let message = format!(
            "the pool's name servers are not in use: {why}; they are set again as soon as that can be"
        );
        Some(Impairment::failed("ResolverNotSet", &message))
    }

    /// Takes them back.
    pub(super) fn remove(&mut self) {
        self.missing = None;
        if self.applied.take().is_none() {
            return;
        }
        self.names.set_asked(false);
        if let Err(error) = mend(&self.device, &self.store) {
            tracing::warn!(error, "the tunnel's name servers stay behind");
        }
    }

    fn act(&mut self, now: Instant) {
        if self.wanted.servers.is_empty() || !self.policy.wants(now) {
            if self.applied.is_some() {
                tracing::info!("names are asked of the network's own name servers");
            }
            return self.remove();
        }
        let is_set = self.applied.as_ref().is_some_and(|(_, applied)| *applied == self.wanted);
        if (is_set && self.missing.is_none()) || !self.policy.may_set(now) {
            return;
        }
        let manager = manager();
        if self.applied.as_ref().is_some_and(|(former, _)| *former != manager) {
            self.remove();
        }
        self.missing = self.apply(manager).err();
        match &self.missing {
            None => self.policy.handle_set(now),
            Some(error) => {
                tracing::warn!(error, "the tunnel's name servers are not in use");
                self.policy.handle_missing(now);
            }
        }
    }

    fn apply(&mut self, manager: Manager) -> Result<(), String> {
        let kept = serde_json::to_vec(&Kept { manager }).map_err(|error| error.to_string())?;
        self.store.write(KEPT, &kept).map_err(|error| error.to_string())?;
        self.look_at_network(manager);
        self.applied = Some((manager, self.wanted.clone()));
        self.names.set_asked(true);
        if manager == Manager::File {
            self.write_file()?;
        }
        for call in manager.set(&self.device, &self.wanted) {
            call::run(&call)?;
        }
        self.absent(manager, &self.wanted).map_or(Ok(()), Err)
    }

    /// What the network's own servers are may have changed. Where nothing names any, those of before are better than none.
    fn look_at_network(&self, manager: Manager) {
        let mut servers = networks(manager, &self.device, &self.store);
        servers.retain(|server| !self.wanted.servers.contains(server));
        if !servers.is_empty() {
            self.names.set_network(servers);
        }
    }

    fn write_file(&self) -> Result<(), String> {
        let former = read_file();
        if !file::is_marked(&former) {
            self.store.write(SAVED, former.as_bytes()).map_err(|error| error.to_string())?;
        }
        write(&file::marked(&self.wanted))
    }

    /// Why what was set is not in force.
    fn absent(&self, manager: Manager, wanted: &Wanted) -> Option<String> {
        let content = read_file();
        let others = || Some(format!("somebody else has set {RESOLV_CONF}"));
        match manager {
            Manager::File => (content != file::marked(wanted)).then(others)?,
            Manager::Openresolv | Manager::DebianResolvconf => {
                let first = file::servers(&content).first().copied();
                // A server of this machine's own asks ours.
                let is_ours = first.is_some_and(|first| first.is_loopback())
                    || (first.is_some() && first == wanted.servers.first().copied());
                if is_ours { None } else { others() }
            }
            Manager::Resolved if self::manager() != Manager::Resolved => others(),
            Manager::Resolved => match manager.list().map(|call| call::ask(&call)) {
                Some(Ok(listed)) if file::of_links(&listed, &self.device, true) == wanted.servers => None,
                Some(Err(error)) => Some(error),
                _ => Some("systemd-resolved does not have them".to_owned()),
            },
        }
    }
}

/// Finds out what the network's own name servers are.
pub(super) fn find_network(device: &str, store: &Store, names: &Names) {
    names.set_network(networks(manager(), device, store));
}

/// The name servers of the networks that this machine is in, without those of a tunnel's device.
fn networks(manager: Manager, device: &str, store: &Store) -> Vec<IpAddr> {
    let listed = manager.list().and_then(|call| call::ask(&call).ok()).unwrap_or_default();
    let listed = match manager {
        Manager::Resolved => return file::of_links(&listed, device, false),
        Manager::Openresolv | Manager::DebianResolvconf => file::of_others(&listed, device),
        Manager::File => Vec::new(),
    };
    if !listed.is_empty() {
        return listed;
    }
    let current = read_file();
    if file::is_marked(&current) {
        let saved = store.read(SAVED).ok().flatten().unwrap_or_default();
        return file::servers(&String::from_utf8_lossy(&saved));
    }
    file::servers(&current)
}

/// Takes back what the tunnel's process left behind, if anything. Whether there was something.
pub(super) fn mend(device: &str, store: &Store) -> Result<bool, String> {
    let failed = |error: crate::identity::IdentityError| error.to_string();
    let kept = store.read(KEPT).map_err(failed)?;
    let saved = store.read(SAVED).map_err(failed)?;
    if kept.is_none() && saved.is_none() {
        return Ok(false);
    }
    let manager = kept.and_then(|kept| serde_json::from_slice::<Kept>(&kept).ok()).map(|kept| kept.manager);
    let mut errors = Vec::new();
    for call in manager.map(|manager| manager.unset(device)).unwrap_or_default() {
        // With its device, systemd-resolved has forgotten it by itself.
        if manager != Some(Manager::Resolved) || Path::new("/sys/class/net").join(device).exists() {
            errors.extend(call::run(&call).err());
        }
    }
    if let Some(saved) = saved {
        // Where somebody else has written it since, theirs is the newer one.
        if file::is_marked(&read_file()) {
            errors.extend(write(&String::from_utf8_lossy(&saved)).err());
        }
    }
    if let Some(error) = errors.pop() {
        return Err(error);
    }
    store.remove(SAVED).and_then(|()| store.remove(KEPT)).map_err(failed)?;
    Ok(true)
}

/// Who manages names now.
fn manager() -> Manager {
    let version = manager::version();
    let resolvconf = call::find(version.program).and_then(|_| call::ask(&version).ok());
    Manager::of(&Signs {
        target: &target(Path::new(RESOLV_CONF)),
        content: &read_file(),
        resolvectl: call::find("resolvectl").is_some(),
        resolvconf: resolvconf.as_deref(),
    })
}

/// Where a file leads, also to where there is nothing.
fn target(path: &Path) -> PathBuf {
    if let Ok(target) = std::fs::canonicalize(path) {
        return target;
    }
    let Ok(link) = std::fs::read_link(path) else { return path.to_owned() };
    let base = path.parent().unwrap_or(Path::new("/"));
    // Those of packages are relative to /etc: `../run/...`.
    let link = link.strip_prefix("..").map(|link| Path::new("/").join(link)).unwrap_or(link.clone());
    base.join(link)
}

/// What the file says; nothing where there is none.
fn read_file() -> String {
    let content = std::fs::read(RESOLV_CONF).unwrap_or_default();
    String::from_utf8_lossy(&content).into_owned()
}

/// In place: in a container the file is a mount of its own and cannot be replaced.
fn write(content: &str) -> Result<(), String> {
    std::fs::write(RESOLV_CONF, content).map_err(|error| format!("cannot write {RESOLV_CONF}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{manager::Call, *};
    use crate::hostile;
    use pinhole_proto::v1;
    use proptest::prelude::*;

    /// What a gateway sends, as far as it comes to be wanted.
    fn wanted(search: &[String]) -> Wanted {
        let config = v1::ClientConfig {
            client: Some(v1::ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() }),
            addresses: vec!["10.77.0.9/32".into()],
            dns_servers: vec!["10.96.0.10".into()],
            dns_search: search.to_vec(),
            ..v1::ClientConfig::default()
        };
        Wanted::of(&Settings::parse(config).unwrap())
    }

    fn assert_harmless(wanted: &Wanted) {
        let text = file::text(wanted);
        let lines: Vec<_> = text.lines().collect();
        assert!((1..=2).contains(&lines.len()) && lines[0] == "nameserver 10.96.0.10", "{text:?}");
        assert!(lines.iter().skip(1).all(|line| line.starts_with("search ")), "{text:?}");
        assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text:?}");
        for Call { arguments, .. } in Manager::Resolved.set("pinhole0", wanted) {
            assert!(arguments.iter().all(|a| !a.is_empty() && !a.starts_with('-')), "{arguments:?}");
            assert!(arguments.iter().all(|a| a.bytes().all(|b| b.is_ascii_graphic())), "{arguments:?}");
        }
    }

    #[test]
    fn nothing_hostile_crosses_into_resolv_conf_or_onto_the_command_line_of_resolvectl() {
        for text in hostile::strings() {
            let wanted = wanted(&[text, "corp.example".to_owned()]);
            assert_harmless(&wanted);
            assert_eq!(file::text(&wanted), "nameserver 10.96.0.10\nsearch corp.example\n");
            let calls = Manager::Resolved.set("pinhole0", &wanted);
            assert_eq!(calls[1].arguments, ["domain", "pinhole0", "corp.example"]);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_gateway_sends_is_words_of_one_line(search in proptest::collection::vec("[a-z.\n -]{0,12}|.*", 0..40)) {
            assert_harmless(&wanted(&search));
        }
    }

    #[test]
    fn a_link_of_a_package_that_leads_nowhere_is_followed_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("resolv.conf");
        std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf.absent", &link).unwrap();
        assert_eq!(target(&link), Path::new("/run/systemd/resolve/stub-resolv.conf.absent"));
        std::fs::remove_file(&link).unwrap();
        assert_eq!(target(&link), link);
    }

    #[test]
    fn a_full_tunnel_is_one_in_halves_too() {
        let all = |routes: &[&str]| {
            is_everything(&routes.iter().map(|route| route.parse().unwrap()).collect::<Vec<IpNet>>())
        };
        assert!(all(&["10.0.0.0/8", "0.0.0.0/0"]) && all(&["::/0"]) && all(&["128.0.0.0/1", "0.0.0.0/1"]));
        assert!(!all(&["0.0.0.0/1"]) && !all(&[]));
    }

    #[test]
    fn nothing_to_mend_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(mend("pinhole0", &Store::open(directory.path()).unwrap()), Ok(false));
    }
}
