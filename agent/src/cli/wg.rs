//! `pinhole wg`, also called as `pinhole-wg`.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use clap::{Args, Parser, builder::BoolishValueParser};

use super::{Failure, Log, background};
use crate::{tunnel::Threads, wg::WgError};

/// The name under which this command is the whole program, as `wg-quick` wants one.
const NAME: &str = "pinhole-wg";
/// As other implementations have it.
const LEVEL: &str = "LOG_LEVEL";

/// A userspace WireGuard: a network device for `wg`, and for `wg-quick` with
/// WG_QUICK_USERSPACE_IMPLEMENTATION=pinhole-wg
#[derive(Parser, Debug)]
#[command(name = NAME, version, about, max_term_width = 100)]
struct Program {
    #[command(flatten)]
    wg: Wg,
}

#[derive(Args, Debug)]
pub(super) struct Wg {
    /// Stay in the foreground
    #[arg(short, long, env = "WG_PROCESS_FOREGROUND", value_parser = BoolishValueParser::new(), default_value = "false", num_args = 0, default_missing_value = "true")]
    foreground: bool,
    /// Threads that carry packets, each with its own peers
    #[arg(long, env = "WG_THREADS", value_name = "1-8", default_value_t = Threads::suited())]
    threads: Threads,
    /// Name of the network device
    #[arg(value_name = "IFNAME")]
    name: String,
    #[command(flatten)]
    log: Log,
}

impl From<WgError> for Failure {
    fn from(error: WgError) -> Self {
        Failure { category: error.category(), message: error.to_string(), code: 1 }
    }
}

impl Wg {
    /// The command line, where this program was called as `pinhole-wg`.
    pub(super) fn by_name() -> Option<Self> {
        let called = std::env::args_os().next()?;
        let called = std::path::Path::new(&called).file_name()?;
        (called == NAME).then(|| Program::parse().wg)
    }

    pub(super) fn run(self) -> Result<(), Failure> {
        let is_background = background::is_here();
        if !self.foreground && !is_background {
            return self.detach();
        }
        let level = std::env::var(LEVEL).ok();
        self.log.start(filter(level.as_deref()));
        if is_background {
            background::leave_session();
        }
        let ready = || {
            if is_background {
                background::say_ready();
                leave_terminal(level.is_some());
            }
        };
        super::end_on_panic();
        super::run(1, async |stop| crate::wg::run(&self.name, self.threads, ready, stop).await)
    }

    fn detach(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure {
            category: "SystemFailed",
            message: format!("cannot go to the background: {error}"),
            code: 1,
        };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        // Whatever its file is called: by the other name it would not know the command.
        command.arg0("pinhole").args(["wg", "--foreground"]);
        if let Some(filter) = &self.log.filter {
            command.args(["--log", filter]);
        }
        if self.log.log_json {
            command.arg("--log-json");
        }
        command.args(["--threads", &self.threads.to_string()]);
        command.args(["--", &self.name]).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
        let child = background::mark(&mut command).spawn().map_err(failed)?;
        background::await_ready(child).map_err(failed)
    }
}

/// The filter for a level as other implementations name it.
fn filter(level: Option<&str>) -> &'static str {
    match level {
        Some("verbose" | "debug") => "pinhole_agent=debug",
        Some("info") => "info",
        Some("silent" | "off") => "off",
        _ => "error",
    }
}

/// Whoever waits for the end of what this writes must not wait for the device's. A log that was asked for goes on.
fn leave_terminal(keep_log: bool) {
    let Ok(null) = File::options().write(true).open("/dev/null") else { return };
    let _ = nix::unistd::dup2_stdout(&null);
    if !keep_log {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_other_implementations() {
        let filters = ["verbose", "debug", "error", "silent", "nonsense"].map(|level| filter(Some(level)));
        assert_eq!(filters, ["pinhole_agent=debug", "pinhole_agent=debug", "error", "off", "error"]);
        assert_eq!(filter(None), "error");
    }

    #[test]
    fn the_command_line_is_that_of_other_implementations() {
        let parse =
            |words: &[&str]| Program::try_parse_from([&[NAME], words].concat()).map(|program| program.wg);
        let wg = parse(&["-f", "wg0"]).unwrap();
        assert!(wg.foreground && wg.name == "wg0");
        assert!(!parse(&["wg0"]).unwrap().foreground);
        assert!(parse(&["--foreground", "wg0"]).unwrap().foreground);
        assert!(parse(&[]).is_err());
    }
}
