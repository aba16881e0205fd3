//! Container images made straight from static binaries, as `FROM scratch` would, without a container engine.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::{
    error::{Doing, Error, Result},
    setup::sha256_hex,
};

/// A file in an image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Where it comes from.
    pub source: PathBuf,
    /// Where it is in the image, absolute.
    pub target: String,
}

/// A recipe for an image of one layer.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full reference, such as `docker.io/pinhole/agent:lab`.
    pub reference: String,
    /// What it holds; all files are executable and belong to root.
    pub files: Vec<ImageFile>,
    /// Program that runs, with its first arguments.
    pub entrypoint: Vec<String>,
    /// `user:group`, numeric.
    pub user: String,
}

impl Image {
    /// An image that runs one static binary, at `/NAME`, as an unprivileged user.
    ///
    /// # Errors
    /// When the path has no file name.
    pub fn of_binary(reference: &str, binary: &Path) -> Result<Self> {
        let name = binary.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::Invalid(format!("{} is no file", binary.display())))?;
        let target = format!("/{name}");
        Ok(Self {
            reference: full_reference(reference),
            files: vec![ImageFile { source: binary.to_owned(), target: target.clone() }],
            entrypoint: vec![target],
            user: "65532:65532".to_owned(),
        })
    }

    /// The image as an archive that `docker load`, `ctr images import` and `skopeo` read. The same content
    /// makes the same bytes.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256_hex(&layer))] },
            "history": [{ "created_by": "pinhole-lab" }],
        })
        .to_string();
        let config_name = format!("{}.json", sha256_hex(config.as_bytes()));
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.reference],
            "Layers": ["layer.tar"],
        }])
        .to_string();
        pack([
            ("layer.tar", layer.as_slice()),
            (config_name.as_str(), config.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ])
        .doing(|| format!("packing the image {}", self.reference))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut files = Vec::new();
        for file in &self.files {
            let content =
                std::fs::read(&file.source).doing(|| format!("reading {}", file.source.display()))?;
            files.push((file.target.trim_start_matches('/'), content));
        }
        pack(files.iter().map(|(target, content)| (*target, content.as_slice())))
            .doing(|| format!("packing the layer of {}", self.reference))
    }
}

/// The reference as container runtimes write it out: with registry and tag.
pub fn full_reference(reference: &str) -> String {
    let (first, rest) = reference.split_once('/').unwrap_or(("", reference));
    let has_registry = first.contains(['.', ':']) || first == "localhost";
    let mut full = if has_registry {
        reference.to_owned()
    } else if first.is_empty() {
        format!("docker.io/library/{rest}")
    } else {
        format!("docker.io/{reference}")
    };
    if !full.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        full.push_str(":latest");
    }
    full
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn pack<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn references_are_written_out_in_full() {
        for (short, full) in [
            ("pinhole/agent:lab", "docker.io/pinhole/agent:lab"),
            ("pinhole/agent", "docker.io/pinhole/agent:latest"),
            ("busybox", "docker.io/library/busybox:latest"),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
        ] {
            assert_eq!(full_reference(short), full);
        }
    }

    #[test]
    fn an_archive_holds_the_binary_and_is_reproducible() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("program");
        std::fs::write(&binary, b"not really a program").unwrap();
        let image = Image::of_binary("pinhole/test:lab", &binary).unwrap();
        let packed = image.archive().unwrap();
        assert_eq!(packed, image.archive().unwrap());

        let mut archive = tar::Archive::new(packed.as_slice());
        let mut layer = Vec::new();
        let mut manifest = String::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            match entry.path().unwrap().to_str().unwrap() {
                "layer.tar" => drop(entry.read_to_end(&mut layer).unwrap()),
                "manifest.json" => drop(entry.read_to_string(&mut manifest).unwrap()),
                _ => {}
            }
        }
        assert!(manifest.contains("docker.io/pinhole/test:lab"), "{manifest}");
        let mut layer = tar::Archive::new(layer.as_slice());
        let entry = layer.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("program"));
        assert_eq!(entry.header().mode().unwrap(), 0o755);
    }
}
