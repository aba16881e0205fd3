//! A directory that keeps an identity: 0700, its files 0600, each replaced in one step.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::IdentityError;
use crate::tunnel::PrivateKey;

const TUNNEL_KEY: &str = "wireguard.key";
const STICKY: u32 = 0o1000;
/// By the group, and by all.
const WRITTEN_BY_OTHERS: u32 = 0o022;

/// The directory of one tunnel's identity.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, and makes it when it is missing. One that others can write is refused, unless it is empty and can
    /// be closed to them: a volume is often made that way.
    ///
    /// # Errors
    /// [`IdentityError::Exposed`], or what the system says.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let directory = directory.into();
        let failed = |source| IdentityError::Write { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let is_empty = || fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none());
        let closed = fs::Permissions::from_mode(0o700);
        if writers(&directory).map_err(failed)?.is_none() || is_empty() {
            let _ = fs::set_permissions(&directory, closed);
        }
        // Who can write its parent can put another in its place, but for one like /tmp. That of a volume was made by others.
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| writers(parent).is_ok_and(|writers| writers.is_some())) {
            let mode = fs::metadata(parent).map_err(failed)?.permissions().mode();
            if mode & STICKY == 0 {
                let _ = fs::set_permissions(parent, fs::Permissions::from_mode(mode & 0o7755));
            }
        }
        let checked = parent.filter(|parent| !is_sticky(parent)).into_iter().chain([directory.as_path()]);
        for path in checked {
            if let Some(reason) = writers(path).map_err(failed)? {
                return Err(IdentityError::Exposed { path: path.to_owned(), reason });
            }
        }
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

fn is_sticky(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|metadata| metadata.permissions().mode() & STICKY != 0)
}

/// Who else than root and this user can write there.
fn writers(directory: &Path) -> io::Result<Option<String>> {
    let metadata = fs::metadata(directory)?;
    Ok(others(metadata.uid(), metadata.permissions().mode(), nix::unistd::geteuid().as_raw()))
}

/// The same, by owner and mode, for the user `me`.
fn others(owner: u32, mode: u32, me: u32) -> Option<String> {
    if owner != 0 && owner != me {
        return Some(format!("it belongs to user {owner}"));
    }
    (mode & WRITTEN_BY_OTHERS != 0).then(|| format!("its mode {:04o} lets others write it", mode & 0o7777))
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

    fn open_to_all(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }

    #[test]
    fn a_directory_that_others_could_fill_is_refused_and_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pinhole0");
        Store::open(&path).unwrap().tunnel_key().unwrap();
        open_to_all(&path);
        let error = Store::open(&path).unwrap_err();
        assert_eq!(error.category(), "DirectoryExposed");
        let said = error.to_string();
        assert!(said.contains("pinhole0") && said.contains("0777") && said.contains("0700"), "{said}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Store::open(&path).unwrap();
    }

    #[test]
    fn an_empty_volume_that_all_can_write_is_closed_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, nested) = (directory.path().join("volume"), directory.path().join("root/pinhole0"));
        fs::create_dir(&volume).unwrap();
        open_to_all(&volume);
        Store::open(&volume).unwrap();
        fs::create_dir(nested.parent().unwrap()).unwrap();
        open_to_all(nested.parent().unwrap());
        Store::open(&nested).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&volume), mode(nested.parent().unwrap())), (0o700, 0o755));
    }

    #[test]
    fn what_belongs_to_root_or_to_oneself_is_fine_as_long_as_nobody_else_writes_it() {
        assert_eq!((others(0, 0o755, 1000), others(1000, 0o700, 1000)), (None, None));
        assert!(others(1001, 0o700, 1000).is_some_and(|who| who.contains("user 1001")));
        assert!(others(1000, 0o700, 0).is_some());
        assert!(others(0, 0o1777, 0).is_some() && others(0, 0o770, 0).is_some());
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
