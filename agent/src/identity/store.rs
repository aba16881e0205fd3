//! A directory that keeps an identity: 0700, its files 0600, each replaced in one step.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::IdentityError;
use crate::tunnel::PrivateKey;

const TUNNEL_KEY: &str = "wireguard.key";

/// The directory of one tunnel's identity.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, and makes it when it is missing.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let directory = directory.into();
        let failed = |source| IdentityError::Write { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        // A volume that somebody else owns keeps its mode; its files are 0600 all the same.
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        Ok(Store { directory })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path of one of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The content of a file, `None` when there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Read { path, source }),
        }
    }

    /// The content of a text file, `None` when there is none.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        let damaged =
            |_| IdentityError::Damaged { path: self.path(name), reason: "it is not text".to_owned() };
        String::from_utf8(content).map(Some).map_err(damaged)
    }

    /// Replaces a file: after a crash it holds the old content or the new, never a part.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), IdentityError> {
        let (path, new) = (self.path(name), self.path(&format!(".{name}.new")));
        let replace = || {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        replace().map_err(|source| IdentityError::Write { path: path.clone(), source })
    }

    /// Removes a file. One that is gone already is no error.
    pub fn remove(&self, name: &str) -> Result<(), IdentityError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(IdentityError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The tunnel's key: the one that was made here before, or a new one.
    pub fn tunnel_key(&self) -> Result<PrivateKey, IdentityError> {
        if let Some(text) = self.read_text(TUNNEL_KEY)? {
            let damaged = |_| IdentityError::Damaged {
                path: self.path(TUNNEL_KEY),
                reason: "it holds no key".to_owned(),
            };
            return text.parse().map_err(damaged);
        }
        let key = Self::new_key()?;
        self.keep_tunnel_key(&key)?;
        Ok(key)
    }

    /// A key that is kept nowhere yet.
    pub fn new_key() -> Result<PrivateKey, IdentityError> {
        PrivateKey::generate().map_err(|error| IdentityError::Key(error.to_string()))
    }

    /// Keeps a key as the tunnel's, in place of the one that there was.
    pub fn keep_tunnel_key(&self, key: &PrivateKey) -> Result<(), IdentityError> {
        self.write(TUNNEL_KEY, key.to_base64().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_key_stays_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("deep/name")).unwrap();
        let key = store.tunnel_key().unwrap();
        assert_eq!(store.tunnel_key().unwrap().public(), key.public());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path(TUNNEL_KEY)), 0o600);
        assert_eq!(mode(store.directory()), 0o700);
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.write(TUNNEL_KEY, b"junk").unwrap();
        assert_eq!(store.tunnel_key().unwrap_err().category(), "FileDamaged");
        assert_eq!(store.read(TUNNEL_KEY).unwrap().unwrap(), b"junk");
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.read("absent").unwrap(), None);
        store.remove("absent").unwrap();
    }
}
