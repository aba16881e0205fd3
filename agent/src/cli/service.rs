//! `pinhole install-service` and `pinhole uninstall-service`.

mod text;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Args, ValueEnum};

use super::{Failure, up::TokenFile};
use crate::client::{self, ClientError};

/// Who starts services here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Init {
    Systemd,
    #[value(name = "openrc")]
    OpenRc,
}

const STATE: &str = "/var/lib/pinhole";
/// Where packages have the program and its unit.
const PACKAGED: &str = "/usr/bin/pinhole";
const PACKAGED_UNIT: &str = "/usr/lib/systemd/system/pinhole@.service";

#[derive(Args, Debug)]
struct Service {
    /// Name of the tunnel and of its network device
    #[arg(long, env = "PINHOLE_NAME", default_value = "pinhole0")]
    name: String,
    /// Who starts services; whoever runs here otherwise
    #[arg(long, value_enum)]
    init: Option<Init>,
    /// Do it in the files of another machine, and start and stop nothing
    #[arg(long, value_name = "DIRECTORY")]
    root: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct Install {
    #[command(flatten)]
    service: Service,
    /// The program that the service runs; this one otherwise
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// The join token with which the tunnel enrols when it first can, kept until then
    #[command(flatten)]
    token: TokenFile,
}

#[derive(Args, Debug)]
pub(super) struct Uninstall {
    #[command(flatten)]
    service: Service,
}

impl Install {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Service { name, .. } = &self.service;
        let init = self.service.init()?;
        client::check_name(name)?;
        if let Some(token) = self.token.read()? {
            client::keep_token(name, &self.service.path(STATE), &token)?;
        }
        let program = self.program.map_or_else(std::env::current_exe, Ok).map_err(|error| failed(&error))?;
        match init {
            // A package's own is updated with it.
            Init::Systemd if program == Path::new(PACKAGED) && self.service.path(PACKAGED_UNIT).exists() => {}
            Init::Systemd => write(&self.service.unit(), &text::unit(&program), 0o644)?,
            Init::OpenRc => write(&self.service.script(), &text::openrc(&program, name), 0o755)?,
        }
        match (&self.service.root, init) {
            (Some(_), _) => return Ok(()),
            (None, Init::Systemd) => {
                call("systemctl", &["daemon-reload"])?;
                call("systemctl", &["enable", "--now", &self.service.instance()])?;
            }
            (None, Init::OpenRc) => {
                call("rc-update", &["add", &self.service.openrc_name(), "default"])?;
                call("rc-service", &[&self.service.openrc_name(), "start"])?;
            }
        }
        println!("{name} is a service: it is up from now on, and after each start of this machine");
        Ok(())
    }
}

impl Uninstall {
    pub(super) fn run(self) -> Result<(), Failure> {
        let service = &self.service;
        let init = service.init()?;
        client::check_name(&service.name)?;
        match (&service.root, init) {
            (Some(_), _) => {}
            (None, Init::Systemd) => call("systemctl", &["disable", "--now", &service.instance()])?,
            (None, Init::OpenRc) => {
                call("rc-service", &[&service.openrc_name(), "stop"])?;
                // Of the runlevel that it was added to, whichever the machine is in.
                call("rc-update", &["delete", &service.openrc_name(), "default"])?;
            }
        }
        match init {
            // Others may be its instances.
            Init::Systemd if service.has_instances() => {}
            Init::Systemd => remove(&service.unit())?,
            Init::OpenRc => remove(&service.script())?,
        }
        if service.root.is_none() && init == Init::Systemd {
            call("systemctl", &["daemon-reload"])?;
        }
        println!("{} is no service any more; what it was enrolled with stays in {STATE}", service.name);
        Ok(())
    }
}

impl Service {
    fn init(&self) -> Result<Init, ClientError> {
        let runs = |path: &str| Path::new(path).exists();
        let found = match self.init {
            Some(init) => Some(init),
            None if runs("/run/systemd/system") => Some(Init::Systemd),
            None if runs("/sbin/openrc-run") => Some(Init::OpenRc),
            None => None,
        };
        let neither =
            "neither systemd nor OpenRC starts services here: have yours run `pinhole up --timeout 0`";
        found.ok_or_else(|| ClientError::Setting(neither.to_owned()))
    }

    fn path(&self, path: &str) -> PathBuf {
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        root.join(path.trim_start_matches('/'))
    }

    fn unit(&self) -> PathBuf {
        self.path("/etc/systemd/system").join(text::UNIT)
    }

    fn instance(&self) -> String {
        format!("pinhole@{}.service", self.name)
    }

    /// Whether systemd starts a tunnel by that unit.
    fn has_instances(&self) -> bool {
        let wants = fs::read_dir(self.path("/etc/systemd/system/multi-user.target.wants"));
        wants.into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with("pinhole@") && name.ends_with(".service"))
        })
    }

    fn script(&self) -> PathBuf {
        self.path("/etc/init.d").join(self.openrc_name())
    }

    fn openrc_name(&self) -> String {
        format!("pinhole.{}", self.name)
    }
}

fn failed(error: &io::Error) -> ClientError {
    ClientError::Setting(format!("cannot install the service: {error}"))
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), ClientError> {
    let new = path.with_extension("new");
    let replace = || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    };
    replace().map_err(|error| {
        ClientError::Setting(format!("cannot write {}: {error}; it takes root", path.display()))
    })?;
    println!("{} is written", path.display());
    Ok(())
}

fn remove(path: &Path) -> Result<(), ClientError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ClientError::Setting(format!("cannot remove {}: {error}; it takes root", path.display())))
        }
        _ => Ok(()),
    }
}

fn call(program: &str, arguments: &[&str]) -> Result<(), ClientError> {
    let line = format!("{program} {}", arguments.join(" "));
    match Command::new(program).args(arguments).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(ClientError::Setting(format!("`{line}` failed ({status}): see what it said above")))
        }
        Err(error) => Err(ClientError::Setting(format!("cannot run `{line}`: {error}"))),
    }
}
