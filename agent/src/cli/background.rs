//! Going to the background: the same command anew, in a session of its own, and somebody who waits until it is
//! ready.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Child, Command},
};

/// Set for the process that stays in the background.
const MARK: &str = "PINHOLE_BACKGROUND";
/// What it says when it is ready.
const READY: &str = "ready";

/// Whether this process is the one that stays.
pub(super) fn is_here() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Marks the process that a command starts as the one that stays.
pub(super) fn mark(command: &mut Command) -> &mut Command {
    command.env(MARK, "1")
}

/// In the process that stays: from now on no terminal can end it.
pub(super) fn leave_session() {
    let _ = nix::unistd::setsid();
}

/// In the process that stays: lets the other one go.
pub(super) fn say_ready() {
    let mut output = io::stdout();
    let _ = writeln!(output, "{READY}");
    let _ = output.flush();
}

/// Waits until the process that stays is ready, and shows what it says until then on its standard output, a pipe.
/// Where it ends instead, so does this one, in the same way.
pub(super) fn await_ready(mut child: Child) -> io::Result<()> {
    let lines = child.stdout.take().map(BufReader::new);
    for line in lines.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        if line == READY {
            return Ok(());
        }
        println!("{line}");
    }
    // It has said on stderr what is wrong.
    let status = child.wait()?;
    std::process::exit(status.code().unwrap_or(1));
}
