//! What can go wrong in the lab, in words that say what to do about it.

use std::{path::PathBuf, process::ExitStatus, time::Duration};

/// Everything that can keep the lab from doing what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not started by root.
    #[error(
        "the lab needs root: it makes network namespaces and runs containers; start it as root (`sudo -E`)"
    )]
    NotRoot,
    /// The machine cannot run a lab at all.
    #[error("this machine cannot run the lab: {0}")]
    Unsupported(String),
    /// Another lab holds the lock.
    #[error("a lab is up already (process {pid}); `pinhole-lab down` or `make lab-down` ends it")]
    AlreadyUp {
        /// Process that holds the lock.
        pid: String,
    },
    /// No lab to work on.
    #[error("no lab is up; `pinhole-lab up` or `make lab-up` starts one")]
    NotUp,
    /// A file, socket or system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A command ended with a failure.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// Command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// End of what it wrote.
        output: String,
    },
    /// A program that should stay up ended by itself.
    #[error("{name} ended by itself ({status}); the end of its log {log}:\n{tail}", log = log.display())]
    Ended {
        /// Name in the lab.
        name: String,
        /// How it ended.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// A condition did not come true in time.
    #[error("waited {waited:.0?} in vain for {what}: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen last.
        last: String,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {source}")]
    Kube {
        /// What was attempted.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// A certificate could not be made.
    #[error("making the cluster's certificates: {0}")]
    Pki(#[from] rcgen::Error),
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// Result of the lab's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Stable, low-cardinality name of the kind of failure.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::NotRoot => "NotRoot",
            Self::Unsupported(_) => "Unsupported",
            Self::AlreadyUp { .. } => "AlreadyUp",
            Self::NotUp => "NotUp",
            Self::Io { .. } => "Io",
            Self::Command { .. } => "CommandFailed",
            Self::Ended { .. } => "ProcessEnded",
            Self::Timeout { .. } => "Timeout",
            Self::Kube { .. } => "ApiServer",
            Self::Pki(_) => "Pki",
            Self::Invalid(_) => "Invalid",
        }
    }
}

/// Says what was attempted when it fails.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io { what: what(), source: errno.into() })
    }
}

impl<T> Doing<T> for kube::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Kube { what: what(), source: Box::new(source) })
    }
}
