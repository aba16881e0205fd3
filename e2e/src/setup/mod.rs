//! What a fresh Debian machine is missing: packages, Go-built Kubernetes parts, static binaries.

pub mod linux;
pub mod packages;
pub mod rust;
pub mod tools;

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{
    error::{Doing, Error, Result},
    progress,
};

/// Where things that are expensive to make are kept, outside of the source tree:
/// `$PINHOLE_CACHE`, or `pinhole` in the user's cache directory.
///
/// # Errors
/// When the environment names no home at all.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PINHOLE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("pinhole")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/pinhole")))
        .ok_or_else(|| {
            Error::Unsupported("set PINHOLE_CACHE (or HOME) to a directory to keep builds in".into())
        })
}

/// Directory of this crate's sources; the tools' go.mod files and the workspace lie around it.
pub(crate) fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file lock held while something is built: two runs never build the same thing at once.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, and tells who waits for what when it is not free.
    pub(crate) async fn take(path: &Path, what: &str) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))?;
        }
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .doing(|| format!("opening {}", path.display()))?;
        if file.try_lock().is_err() {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let name = format!("waiting for process {} that is {what}", holder.trim());
            file = progress::step(&name, block_for(file)).await?;
        }
        let _ = file.set_len(0);
        let _ = file.rewind().and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

async fn block_for(file: File) -> Result<File> {
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(std::io::Error::other).and_then(|result| result).doing(|| "waiting for a lock".to_owned())
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256_hex(data: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, data);
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
