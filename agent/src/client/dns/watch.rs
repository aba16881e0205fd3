//! Tells when somebody has set the machine's name servers.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use super::RESOLV_CONF;

/// Where the file itself is, among many.
const ETC: &str = "/etc";
/// Where systemd-resolved says that something changed, and where either resolvconf keeps what it was given. The files beside
/// those are written by the listing of them.
const RECORDS: [&str; 3] =
    ["/run/systemd/resolve", "/run/resolvconf/interface", "/run/resolvconf/interfaces"];

/// Tells when the file, what it leads to or what it is made of was written or replaced.
pub(in crate::client) struct Watch {
    notify: AsyncFd<Notify>,
    etc: Option<WatchDescriptor>,
}

struct Notify(Inotify);

impl AsRawFd for Notify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    fn open() -> io::Result<Self> {
        let notify = Notify(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
        // SAFETY: an `Inotify` is one open descriptor for as long as it lives, and `AsyncFd` keeps it.
        let notify = unsafe { AsyncFd::register(notify) }?;
        let etc = notify.get_ref().0.add_watch(Path::new(ETC), replaced()).ok();
        let watch = Watch { notify, etc };
        watch.arm();
        Ok(watch)
    }

    /// The same for who goes on without.
    pub(in crate::client) fn open_or_say() -> Option<Self> {
        Self::open()
            .inspect_err(|error| tracing::warn!(%error, "who else sets name servers is not noticed"))
            .ok()
    }

    /// Waits for the next change. What it was does not matter: who asks looks at the result.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.notify.readable().await?;
            let Ok(read) = ready.try_io(|notify| Ok(notify.get_ref().0.read_events()?)) else { continue };
            let events = read?;
            // What was replaced is another file now.
            self.arm();
            if events.iter().any(|event| self.concerns(event)) {
                return Ok(());
            }
        }
    }

    /// Watches what there is. Watching it twice changes nothing.
    fn arm(&self) {
        let notify = &self.notify.get_ref().0;
        for directory in RECORDS {
            // Not each is there.
            let _ = notify.add_watch(Path::new(directory), replaced());
        }
        // In a container it is a mount of its own, and no event of a directory's.
        let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let _ = notify.add_watch(Path::new(RESOLV_CONF), written);
    }

    fn concerns(&self, event: &InotifyEvent) -> bool {
        let is_named = event.name.as_deref().and_then(|name| name.to_str()) == Some("resolv.conf");
        is_named || self.etc != Some(event.wd)
    }
}

fn replaced() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
}

/// Waits for the next change; for ever where none can be noticed.
pub(in crate::client) async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) if watch.changed().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}
