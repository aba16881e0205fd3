//! Tells the service manager that started this process how it is, as of `sd_notify(3)`.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

use pinhole_proto::printable;

/// Where it listens: a path, or an abstract name after `@`.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Characters of a status.
const LONGEST_STATUS: usize = 256;

/// Who is told, if anybody.
pub(super) struct Notify(Option<(UnixDatagram, SocketAddr)>);

/// Whether a service manager waits to be told.
pub(super) fn is_expected() -> bool {
    std::env::var_os(SOCKET).is_some_and(|socket| !socket.is_empty())
}

impl Notify {
    /// Whoever the environment names.
    pub(super) fn from_env() -> Self {
        let address = std::env::var(SOCKET).ok().and_then(|name| address(&name));
        Notify(address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address))))
    }

    /// The service does what it is there for, or waits until it can.
    pub(super) fn ready(&self) {
        self.say("READY=1");
    }

    /// How it is, for a person.
    pub(super) fn status(&self, text: &str) {
        self.say(&format!("STATUS={}", printable(text, LONGEST_STATUS)));
    }

    fn say(&self, message: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::debug!(%error, "the service manager is not told");
        }
    }
}

fn address(name: &str) -> Option<SocketAddr> {
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).ok(),
        None if Path::new(name).is_absolute() => SocketAddr::from_pathname(name).ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(address: &SocketAddr, name: &str) -> Vec<String> {
        let manager = UnixDatagram::bind_addr(address).unwrap();
        let notify = Notify(Some((UnixDatagram::unbound().unwrap(), super::address(name).unwrap())));
        notify.ready();
        notify.status("connected to edge-0\nREADY=0");
        let hear = || {
            let mut message = [0; 512];
            let length = manager.recv(&mut message).unwrap();
            String::from_utf8(message[..length].to_vec()).unwrap()
        };
        vec![hear(), hear()]
    }

    #[test]
    fn a_manager_hears_at_a_path_and_at_an_abstract_name_and_a_status_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = heard(&SocketAddr::from_pathname(&path).unwrap(), path.to_str().unwrap());
        assert_eq!(by_path[0], "READY=1");
        assert!(
            by_path[1].starts_with("STATUS=connected to edge-0") && !by_path[1].contains('\n'),
            "{by_path:?}"
        );
        let name = format!("pinhole-notify-{}", std::process::id());
        let abstractly = heard(&SocketAddr::from_abstract_name(&name).unwrap(), &format!("@{name}"));
        assert_eq!(abstractly, by_path);
    }

    #[test]
    fn without_a_manager_nobody_is_told() {
        assert!(address("").is_none() && address("relative").is_none());
        Notify(None).ready();
    }
}
