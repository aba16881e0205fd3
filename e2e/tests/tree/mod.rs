//! The files of the repository.

use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below a folder whose names end so.
pub(crate) fn files(under: &Path, ends: &str) -> Vec<PathBuf> {
    let mut folders = vec![under.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ends) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {ends} below {}", under.display());
    found
}
