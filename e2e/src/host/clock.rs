//! A clock of a host's own, by libfaketime. What is linked statically keeps the machine's.

use std::path::{Path, PathBuf};

use crate::{
    error::{Doing, Error, Result},
    process::Command,
    state,
};

const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// A wall clock that is wrong; the monotonic one goes as ever.
#[derive(Debug)]
pub(super) struct Clock {
    library: &'static str,
    file: PathBuf,
}

impl Clock {
    /// For the host of that name.
    pub(super) fn new(host: &str) -> Result<Self> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
        let missing = || Error::Unsupported("a clock of a host's own needs libfaketime".to_owned());
        let directory = state::directory().join("clocks");
        std::fs::create_dir_all(&directory).doing(|| format!("making {}", directory.display()))?;
        Ok(Self { library: library.ok_or_else(missing)?, file: directory.join(host) })
    }

    /// How far it is from everybody else's, as libfaketime reads it: `-30m`, `+400d`.
    pub(super) fn set(&self, offset: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset)
            .and_then(|()| std::fs::rename(&new, &self.file))
            .doing(|| format!("setting the clock {}", self.file.display()))
    }

    /// The command, with this clock also when it changes.
    pub(super) fn within(&self, command: Command) -> Command {
        command
            .env("LD_PRELOAD", self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // The lab's directory goes with it in any case.
        let _ = std::fs::remove_file(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use crate::host::Host;

    #[tokio::test]
    async fn a_hosts_clock_is_its_own_and_can_be_corrected() {
        let host = Host::alone("clock-test").await.unwrap();
        let behind = async || {
            let theirs: u64 = host.exec("date", ["+%s"]).await.unwrap().trim().parse().unwrap();
            let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            ours.as_secs().saturating_sub(theirs)
        };
        host.set_clock("-30m").unwrap();
        assert!((1795..=1805).contains(&behind().await));
        host.set_clock("+0").unwrap();
        assert!(behind().await < 5);
    }
}
