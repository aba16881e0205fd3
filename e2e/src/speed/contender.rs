//! Who is measured.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    error::Result,
    process::Command,
    setup::{cache_dir, tools::Tools},
};

/// The directories in the cache that the Makefile installs published crates to.
const BORINGTUN: &str = "boringtun-cli-0.7.1";
const GOTATUN: &str = "gotatun-cli-0.10.2";

/// Somebody to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// `pinhole wg`.
    Pinhole,
    /// wireguard-go.
    WireguardGo,
    /// boringtun-cli.
    Boringtun,
    /// gotatun-cli.
    Gotatun,
    /// No WireGuard at all: the cable itself, as the limit.
    Veth,
}

impl Contender {
    /// Short name, for namespaces and devices.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::Pinhole => "ph",
            Self::WireguardGo => "go",
            Self::Boringtun => "bt",
            Self::Gotatun => "gt",
            Self::Veth => "veth",
        }
    }

    /// Where its program should be; none for the cable.
    pub(super) fn program(self, pinhole: &Path, tools: &Tools) -> Result<Option<PathBuf>> {
        let crates =
            |directory: &str, program: &str| Ok(cache_dir()?.join(directory).join("bin").join(program));
        match self {
            Self::Pinhole => Ok(Some(pinhole.to_owned())),
            Self::WireguardGo => tools.path("wireguard-go").map(|path| Some(path.to_owned())),
            Self::Boringtun => crates(BORINGTUN, "boringtun-cli").map(Some),
            Self::Gotatun => crates(GOTATUN, "gotatun").map(Some),
            Self::Veth => Ok(None),
        }
    }

    /// What makes a device of this name, in the foreground.
    pub(super) fn device_command(self, program: &Path, device: &str) -> Command {
        let command = Command::new(program);
        match self {
            Self::Pinhole => command.args(["wg", "--foreground", device]),
            // With one thread boringtun is at its best on few cores.
            Self::Boringtun => {
                command.args(["--foreground", "--threads", "1", "--disable-drop-privileges", device])
            }
            Self::Gotatun => command.args(["--foreground", "--disable-drop-privileges", device]),
            Self::WireguardGo | Self::Veth => command.args(["--foreground", device]),
        }
        .env("LOG_LEVEL", "error")
    }

    /// Colour in pictures.
    pub(super) const fn colour(self) -> &'static str {
        match self {
            Self::Pinhole => "#c2185b",
            Self::WireguardGo => "#1565c0",
            Self::Boringtun => "#ef6c00",
            Self::Gotatun => "#2e7d32",
            Self::Veth => "#777",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pinhole => "pinhole",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Gotatun => "gotatun",
            Self::Veth => "raw veth",
        })
    }
}
