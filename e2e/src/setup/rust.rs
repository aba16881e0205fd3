//! Static binaries for images built `FROM scratch`.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use crate::{
    error::{Doing, Result},
    process::Command,
    progress,
    setup::{Lock, cache_dir, crate_dir, sha256_hex},
};

const STATIC: &str = "-C target-feature=+crt-static";
/// What the variables begin with that cargo sets for what it runs.
const OF_A_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];
const TOOLBOX: &str = include_str!("../bin/pinhole-toolbox.rs");

/// The program that pods of the lab run when they only need to be there, to answer, or to ask. It uses the
/// standard library alone, so that `rustc` builds it in a second.
///
/// # Errors
/// When the compiler fails.
pub async fn toolbox() -> Result<PathBuf> {
    let key = sha256_hex(TOOLBOX.as_bytes());
    let dir = cache_dir()?.join("toolbox").join(key.get(..16).unwrap_or(&key));
    let program = dir.join("toolbox");
    if program.exists() {
        return Ok(program);
    }
    let _lock = Lock::take(&dir.join("lock"), "building the toolbox").await?;
    let (source, part) = (dir.join("toolbox.rs"), dir.join("toolbox.part"));
    std::fs::write(&source, TOOLBOX).doing(|| format!("writing {}", source.display()))?;
    let build = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "strip=symbols"])
        .args(STATIC.split_whitespace())
        .args(["--target", &host_triple().await?])
        .args([source.as_path(), Path::new("-o"), &part]);
    progress::step("building the toolbox image's program", build.run()).await?;
    std::fs::rename(&part, &program).doing(|| format!("keeping {}", program.display()))?;
    Ok(program)
}

/// The project's own static binaries.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The agent: `pinhole`.
    pub agent: PathBuf,
    /// The operator: `pinhole-operator`.
    pub operator: PathBuf,
    /// The plugin behind `kubectl pinhole`.
    pub kubectl: PathBuf,
}

/// The project's binaries, built once in the life of this process; cargo knows what is up to date.
/// `$PINHOLE_PROFILE` names the cargo profile, `release` when unset.
///
/// # Errors
/// When the build fails, with the end of cargo's output.
pub async fn binaries() -> Result<Binaries> {
    static BUILT: OnceCell<Binaries> = OnceCell::const_new();
    BUILT.get_or_try_init(build).await.cloned()
}

/// The agent as it is linked by default, which libfaketime works on: the one that the agent's own tests run, so that it is there
/// already after `cargo test --workspace`.
///
/// # Errors
/// When the build fails, with the end of cargo's output.
pub async fn linked_agent() -> Result<PathBuf> {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = async || {
        let build = cargo().args(["test", "--workspace", "--locked", "--no-run", "--test", "clocks"]);
        progress::step("building the agent for a clock of its own", build.run()).await?;
        Ok(target().join("debug").join("pinhole"))
    };
    BUILT.get_or_try_init(build).await.cloned()
}

/// Cargo, in the workspace, without its word on the package that this program is of: build scripts that look at it would build
/// everything anew.
fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo).env_remove("CARGO_ENCODED_RUSTFLAGS").dir(crate_dir().join(".."));
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| OF_A_PACKAGE.iter().any(|of| name.starts_with(of)));
        command = if told { command.env_remove(name) } else { command };
    }
    command
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate_dir().join("../target"), PathBuf::from)
}

async fn build() -> Result<Binaries> {
    let profile = std::env::var("PINHOLE_PROFILE").ok().filter(|name| !name.is_empty());
    let profile = profile.unwrap_or_else(|| "release".to_owned());
    let triple = host_triple().await?;
    let build = cargo()
        .args(["build", "--locked", "--profile", &profile, "--target", &triple])
        .args(["-p", "pinhole-agent", "--bin", "pinhole"])
        .args(["-p", "pinhole-operator", "--bin", "pinhole-operator", "--bin", "kubectl-pinhole"])
        .env("RUSTFLAGS", STATIC);
    progress::step("building the static binaries of operator and agent", build.run()).await?;
    let dir = target().join(triple).join(if profile == "dev" { "debug" } else { profile.as_str() });
    Ok(Binaries {
        agent: dir.join("pinhole"),
        operator: dir.join("pinhole-operator"),
        kubectl: dir.join("kubectl-pinhole"),
    })
}

/// The GNU target of this machine. Naming it keeps build scripts out of the static flags.
async fn host_triple() -> Result<String> {
    let said = Command::new("rustc").args(["--print", "host-tuple"]).run().await?;
    Ok(said.trim().to_owned())
}
