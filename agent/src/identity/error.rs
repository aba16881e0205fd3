//! Why an identity could not be used.

use std::{io, path::PathBuf};

/// Why a join string, key, certificate or file of an identity is of no use. The messages are for people.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What was given as a token is none.
    #[error("the join token is not valid: {0}; copy it again, from `pinhole:` to its end")]
    TokenMalformed(String),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}; check that the directory exists, is writable and has space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} is damaged: {reason}; remove it to start anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Somebody else can write where an identity is kept.
    #[error(
        "{} cannot keep keys: {reason}, who could put theirs there; see what it holds, remove it or give it to root \
         with mode 0700, and start again", path.display()
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Who can.
        reason: String,
    },
    /// A key could not be made or used.
    #[error("cannot use the session key: {0}")]
    Key(String),
    /// A certificate does not say what it must.
    #[error("the certificate is of no use: {0}")]
    Certificate(String),
}

impl IdentityError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub fn category(&self) -> &'static str {
        match self {
            Self::TokenMalformed(_) => "TokenInvalid",
            Self::Read { source, .. } | Self::Write { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "NotPermitted"
            }
            Self::Read { .. } => "FileUnreadable",
            Self::Write { .. } => "FileUnwritable",
            Self::Damaged { .. } => "FileDamaged",
            Self::Exposed { .. } => "DirectoryExposed",
            Self::Key(_) => "KeyInvalid",
            Self::Certificate(_) => "CertificateInvalid",
        }
    }
}
