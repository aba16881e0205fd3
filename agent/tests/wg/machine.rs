//! A Linux with a WireGuard of its own, under emulation, at the far end of a tap, with nothing but a shell and `wg`; or one with
//! a service manager and this machine's files. The lab boots it too.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
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
    has("initrd")
}

fn has(initrd: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(EMULATOR).is_file())
        && cache().is_some_and(|place| place.join(initrd).is_file())
}

/// Why no machine can be booted with this one's files, if none can.
pub(crate) fn lacks_for_files() -> Option<&'static str> {
    match () {
        () if !has(WHOLE) => {
            Some("needs qemu-system-x86_64, and a Linux kernel and initrd-whole in ~/.cache/pinhole/linux")
        }
        () if SHARERS.iter().all(|path| !Path::new(path).exists()) => Some("needs virtiofsd"),
        () if !Path::new("/lib/systemd/systemd").exists() => Some("needs Debian's systemd on this machine"),
        () => None,
    }
}

const WHOLE: &str = "initrd-whole";
/// What shares files with an emulated machine: qemu's own, and the one that came after it.
const SHARERS: &[&str] = &["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// Of a machine's services those that are of no use in a short life.
const MASKED: &[&str] = &[
    "getty.target",
    "systemd-logind.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-journal-flush.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
];
/// Each has a socket of its own: the last one's may be in use for a moment longer.
static BOOTS: AtomicU32 = AtomicU32::new(0);
/// Shares this machine's root, read-only, with `$1` over it and `$1`'s units and packages alone, and runs the emulator.
const SHARE: &str = r#"
set -e
over=$1 socket=$2 virtiofsd=$3
shift 3
floors=$over.floors
mkdir -p "$floors"
mount -t tmpfs none "$floors"
mkdir "$floors/this" "$floors/over" "$floors/root"
mount --bind / "$floors/this"
cp -a "$over/." "$floors/over"
# A machine is no container, whatever this one is.
mknod "$floors/over/.dockerenv" c 0 0
mount -t overlay none -o "lowerdir=$floors/over:$floors/this" "$floors/root"
for name in etc/systemd/system usr/lib/systemd/system-generators var/lib/dpkg; do
    mkdir -p "$floors/over/$name"
    mount --bind "$floors/over/$name" "$floors/root/$name"
done
"$virtiofsd" --socket-path="$socket" -o "source=$floors/root" -o cache=always -o sandbox=chroot > "$over.log" 2>&1 &
until test -S "$socket"; do sleep 0.1; done
exec "$@"
"#;
/// Packages over what is here, and nothing of what was kept here or runs here.
const FLOORS: &str = r#"
set -e
mount -t tmpfs none /mnt
for layers in "$1" "$2"; do
    name=${layers##*/}
    mkdir -p "/mnt/$name/upper" "/mnt/$name/work"
    mount -t overlay none -o "lowerdir=$layers,upperdir=/mnt/$name/upper,workdir=/mnt/$name/work" "/$name"
done
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
set +e
"#;
/// A terminal's commands, one a line.
const TERMINAL: &str = r#"
test ! -t 0 || stty -echo raw
echo READY
while read -r line; do (eval "$line") 2>&1 < /dev/null | cat; echo "DONE ${PIPESTATUS[0]}"; done
"#;
const TERMINAL_UNIT: &str = "[Unit]
Description=Commands of a test
[Service]
ExecStart=/bin/bash /etc/systemd/system/terminal.sh
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS1
[Install]
WantedBy=multi-user.target
";

/// The machine. Its only interface is `eth0`.
pub(crate) struct Machine {
    process: Child,
    terminal: Mutex<(ChildStdin, mpsc::Receiver<String>)>,
    /// What its kernel and its service manager say.
    console: Option<PathBuf>,
}

/// What all of them have.
fn emulate(command: &mut Command, initrd: &str, line: &str, tap: &str) {
    let place = cache().unwrap();
    command.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    command.arg("-kernel").arg(place.join("vmlinuz")).arg("-initrd").arg(place.join(initrd));
    command.args(["-append", line]);
    command.arg("-netdev").arg(format!("tap,id=cable,ifname={tap},script=no,downscript=no"));
    command.args(["-device", "virtio-net-pci,netdev=cable,romfile="]);
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // What it started ends as well: a disk is free once it has.
        let end = Instant::now() + PATIENCE;
        if let Ok(terminal) = self.terminal.lock() {
            while terminal.1.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
        }
    }
}

impl Machine {
    /// Boots it at a tap, which the namespace has that `spawn` starts the emulator in.
    pub(crate) fn boot(tap: &str, spawn: impl FnOnce(Command) -> std::io::Result<Child>) -> Self {
        let mut command = Command::new(EMULATOR);
        command.args(["-accel", "tcg", "-m", "256", "-smp", "1"]);
        emulate(&mut command, "initrd", "console=ttyS0 quiet loglevel=1 panic=-1", tap);
        Self::start(command, None, spawn)
    }

    /// Boots it with this machine's files, as far as `over` has no others, and a service manager whose units are those in
    /// `over` and those of packages. Of installed packages it knows those that `over` names. What it writes stays on the disk,
    /// a file with an ext4 file system.
    pub(crate) fn boot_with_files(
        (tap, over, disk): (&str, &Path, &Path),
        spawn: impl FnOnce(Command) -> std::io::Result<Child>,
    ) -> Self {
        let units = over.join("etc/systemd/system");
        std::fs::create_dir_all(units.join("multi-user.target.wants")).unwrap();
        for unit in MASKED {
            let _ = std::os::unix::fs::symlink("/dev/null", units.join(unit));
        }
        std::fs::write(units.join("terminal.sh"), TERMINAL).unwrap();
        std::fs::write(units.join("terminal.service"), TERMINAL_UNIT).unwrap();
        let wanted = units.join("multi-user.target.wants/terminal.service");
        let _ = std::os::unix::fs::symlink("../terminal.service", wanted);
        let socket = over.with_extension(format!("socket{}", BOOTS.fetch_add(1, Ordering::Relaxed)));
        let sharer = SHARERS.iter().find(|path| Path::new(path).exists()).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        command.args(["sh", "-c", SHARE, "sh"]).arg(over).arg(&socket).args([sharer, EMULATOR]);
        command.args(["-accel", "tcg,thread=multi", "-m", "512", "-smp", "2"]);
        command.args(["-object", "memory-backend-memfd,id=memory,size=512M,share=on"]);
        command.args(["-numa", "node,memdev=memory"]);
        command.arg("-chardev").arg(format!("socket,id=files,path={}", socket.display()));
        command.args(["-device", "vhost-user-fs-pci,chardev=files,tag=root"]);
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        let line = "console=ttyS0 quiet loglevel=1 panic=-1 systemd.unit=multi-user.target";
        emulate(&mut command, WHOLE, line, tap);
        Self::start(command, Some(over.with_extension("console")), spawn)
    }

    /// Not one, but the like of one in namespaces: of this machine's files, with those of packages over them, and what is
    /// written ends with it. It has no other network than where `spawn` starts it.
    pub(crate) fn in_namespaces(
        packages: &[PathBuf],
        begin: &str,
        spawn: impl FnOnce(Command) -> std::io::Result<Child>,
    ) -> Self {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--propagation",
            "private",
        ]);
        command.args(["bash", "-c", &format!("{FLOORS}{begin}\n{TERMINAL}"), "bash"]);
        for name in ["etc", "usr"] {
            let files = packages.iter().map(|package| package.join(name)).filter(|files| files.is_dir());
            let here = std::iter::once(Path::new("/").join(name));
            let layers: Vec<_> = files.chain(here).map(|files| files.display().to_string()).collect();
            command.arg(layers.join(":"));
        }
        Self::start(command, None, spawn)
    }

    fn start(
        mut command: Command,
        console: Option<PathBuf>,
        spawn: impl FnOnce(Command) -> std::io::Result<Child>,
    ) -> Self {
        if let Some(file) = &console {
            command.arg("-serial").arg(format!("file:{}", file.display()));
        }
        command.args(["-serial", "stdio"]);
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
        let machine = Self { process, terminal: Mutex::new((input, lines)), console };
        machine.until(|line| line == "READY");
        machine
    }

    fn until(&self, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let terminal = self.terminal.lock().unwrap();
        let (end, mut lines) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            let line = terminal.1.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| {
                let console =
                    self.console.as_ref().map(std::fs::read).and_then(Result::ok).unwrap_or_default();
                let console = String::from_utf8_lossy(&console);
                panic!("the emulated machine says no more than {lines:?}\n{console}")
            });
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
