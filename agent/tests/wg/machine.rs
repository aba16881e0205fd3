//! A Linux with a WireGuard of its own, under emulation, at the far end of a tap, with nothing but a shell and `wg`. The lab
//! boots it too.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

const EMULATOR: &str = "qemu-system-x86_64";
/// How long it may take for anything, beside other tests.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PINHOLE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|directory| directory.join("pinhole")))
        .or_else(|| set("HOME").map(|directory| directory.join(".cache/pinhole")))
        .map(|directory| directory.join("linux"))
}

/// Whether there is an emulator, and what it boots.
pub(crate) fn is_there() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(EMULATOR).is_file())
        && cache().is_some_and(|place| place.join("initrd").is_file())
}

/// The machine. Its only interface is `eth0`.
pub(crate) struct Machine {
    process: Child,
    terminal: Mutex<(ChildStdin, mpsc::Receiver<String>)>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Machine {
    /// Boots it at a tap, which the namespace has that `spawn` starts the emulator in.
    pub(crate) fn boot(tap: &str, spawn: impl FnOnce(Command) -> std::io::Result<Child>) -> Self {
        let place = cache().unwrap();
        let mut command = Command::new(EMULATOR);
        command.args(["-accel", "tcg", "-m", "256", "-smp", "1", "-nodefaults", "-no-reboot"]);
        command.arg("-kernel").arg(place.join("vmlinuz")).arg("-initrd").arg(place.join("initrd"));
        command.args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-netdev").arg(format!("tap,id=cable,ifname={tap},script=no,downscript=no"));
        command.args(["-device", "virtio-net-pci,netdev=cable,romfile="]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn(command).expect("an emulator");
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let machine = Self { process, terminal: Mutex::new((input, lines)) };
        machine.until(|line| line == "READY");
        machine
    }

    fn until(&self, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let terminal = self.terminal.lock().unwrap();
        let (end, mut lines) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            let line = terminal.1.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("the emulated machine says no more than {lines:?}"));
            if is_last(&line) {
                lines.push(line);
                return lines;
            }
            lines.push(line);
        }
    }

    /// Runs a command. Its output, or what it said when it failed.
    pub(crate) fn command(&self, line: &str) -> Result<String, String> {
        writeln!(self.terminal.lock().unwrap().0, "{line}").unwrap();
        let mut lines = self.until(|line| line.starts_with("DONE "));
        let done = lines.pop().unwrap();
        let text = lines.join("\n");
        if done == "DONE 0" { Ok(text) } else { Err(format!("{line}: {text}")) }
    }
}
