//! The name servers of this machine, whoever manages them: what the networks have, and what a tunnel left behind.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    RESOLV_CONF, call, file,
    manager::{self, Manager, Signs},
};
use crate::identity::{Names, Store};

/// What the file was before it was ours.
const SAVED: &str = "resolv.conf.saved";
/// With whom something of ours is.
const KEPT: &str = "resolver.json";

/// What has to be taken back, on disk for as long as it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    manager: Manager,
}

/// Has [`mend`] know that something of ours is with this manager from now on.
pub(super) fn keep(store: &Store, manager: Manager) -> Result<(), String> {
    let kept = serde_json::to_vec(&Kept { manager }).map_err(|error| error.to_string())?;
    store.write(KEPT, &kept).map_err(|error| error.to_string())
}

/// The same for what a file says that is not ours.
pub(super) fn save(store: &Store, content: &str) -> Result<(), String> {
    store.write(SAVED, content.as_bytes()).map_err(|error| error.to_string())
}

/// Finds out what the network's own name servers are.
pub(in crate::client) fn find_network(device: &str, store: &Store, names: &Names) {
    names.set_network(networks(manager(), device, store));
}

/// The name servers of the networks that this machine is in, without those of a tunnel's device.
pub(super) fn networks(manager: Manager, device: &str, store: &Store) -> Vec<IpAddr> {
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
pub(in crate::client) fn mend(device: &str, store: &Store) -> Result<bool, String> {
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
pub(super) fn manager() -> Manager {
    let version = manager::version();
    let resolvconf = call::find(version.program).and_then(|_| call::ask(&version).ok());
    manager_beside(resolvconf.as_deref())
}

/// Whether each name server is asked over the link that it came with, whatever the routes say, as systemd-resolved does. Runs no
/// program.
pub(in crate::client) fn is_asked_by_link() -> bool {
    manager_beside(None) == Manager::Resolved
}

fn manager_beside(resolvconf: Option<&str>) -> Manager {
    Manager::of(&Signs {
        target: &target(Path::new(RESOLV_CONF)),
        content: &read_file(),
        resolvectl: call::find("resolvectl").is_some(),
        resolvconf,
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
pub(super) fn read_file() -> String {
    let content = std::fs::read(RESOLV_CONF).unwrap_or_default();
    String::from_utf8_lossy(&content).into_owned()
}

/// In place: in a container the file is a mount of its own and cannot be replaced.
pub(super) fn write(content: &str) -> Result<(), String> {
    std::fs::write(RESOLV_CONF, content).map_err(|error| format!("cannot write {RESOLV_CONF}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn nothing_to_mend_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(mend("pinhole0", &Store::open(directory.path()).unwrap()), Ok(false));
    }
}
