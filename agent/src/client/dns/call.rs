//! Runs the programs that manage names.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::manager::Call;

/// How long one may take: systemd-resolved is asked over a bus, which may be dead.
const LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
/// Bytes that are read of what one prints.
const MAX_OUTPUT: u64 = 64 * 1024;
/// Where they are beside `PATH`, which services may have without the administrator's directories.
const ADMINISTRATORS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Runs it.
pub(super) fn run(call: &Call) -> Result<(), String> {
    // What it starts may keep what it was given open, and must not keep us.
    carry_out(call, Stdio::null()).map(|_| ())
}

/// Runs it, and gives back what it prints.
pub(super) fn ask(call: &Call) -> Result<String, String> {
    carry_out(call, Stdio::piped())
}

fn carry_out(call: &Call, stdout: Stdio) -> Result<String, String> {
    let program = find(call.program).ok_or_else(|| format!("there is no {}", call.program))?;
    let failed = |error: io::Error| format!("cannot run {}: {error}", call.program);
    let mut child = Command::new(program)
        .args(&call.arguments)
        // Lines that are not folded.
        .env("COLUMNS", "4096")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(call.input.as_bytes());
    }
    let status = wait(&mut child).map_err(failed)?;
    let mut printed = String::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = stdout.take(MAX_OUTPUT).read_to_string(&mut printed);
    }
    match status {
        Some(status) if status.success() || call.optional => Ok(printed),
        Some(status) => Err(format!("{} {} failed: {status}", call.program, call.arguments.join(" "))),
        None => Err(format!("{} does not answer", call.program)),
    }
}

/// Waits for its end, and ends it after [`LIMIT`]. None of them prints more than a pipe holds.
fn wait(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Where a program is.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ADMINISTRATORS.map(|directory| Path::new(directory).to_owned());
    let mut files =
        std::env::split_paths(&path).chain(administrators).map(|directory| directory.join(program));
    files.find(|file| file.is_file())
}
