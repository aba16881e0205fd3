//! What a lab leaves traces of on the machine: the lock, the directory, and the sweep that removes it all.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    error::{Doing, Error, Result},
    netns,
};

/// One lab at a time on a machine, wherever its directory is: its namespaces are the machine's.
const LOCK: &str = "/run/pinhole-lab.lock";
/// Name of the cgroup that pods live under, in every hierarchy.
pub(crate) const CGROUP: &str = "pinhole-lab";
/// Machine's end of the cable to the node.
pub(crate) const MACHINE_LINK: &str = "pinhole-node0";
/// Bridge in the machine's own namespace, when the cluster is not the lab's.
pub(crate) const MACHINE_BRIDGE: &str = "pinhole-pub0";
/// Rules in the machine's own namespace, when the cluster is not the lab's.
pub(crate) const MACHINE_TABLE: &str = "inet pinhole_lab";
/// File with settings of the machine to put back: `path=value` lines.
const RESTORE: &str = "restore";
/// File with directories outside of the lab's own that were made for it.
const MADE: &str = "made";

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How long the kernel may take to let go of what was ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the lab keeps everything: `$PINHOLE_LAB_DIR`, or `/var/lib/pinhole-lab`.
pub fn directory() -> PathBuf {
    match std::env::var_os("PINHOLE_LAB_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from("/var/lib/pinhole-lab"),
    }
}

/// The kubeconfig of the lab's own cluster.
pub fn kubeconfig() -> PathBuf {
    directory().join("kubeconfig")
}

static MINE: AtomicBool = AtomicBool::new(false);

/// Whether this process has the right to the lab.
pub(crate) fn is_mine() -> bool {
    MINE.load(Ordering::SeqCst)
}

/// The right to run a lab on this machine.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, and writes who holds it.
    ///
    /// # Errors
    /// [`Error::AlreadyUp`] when another process holds it.
    pub(crate) fn take() -> Result<Self> {
        loop {
            let mut file = open_lock()?;
            if file.try_lock().is_err() {
                return Err(Error::AlreadyUp {
                    pid: holder().map_or("unknown".into(), |pid| pid.to_string()),
                });
            }
            if !is_current(&file) {
                // The one before removed the file between our opening and locking it.
                continue;
            }
            let write = file.set_len(0).and_then(|()| file.rewind());
            write
                .and_then(|()| write!(file, "{}", std::process::id()))
                .doing(|| format!("writing {LOCK}"))?;
            MINE.store(true, Ordering::SeqCst);
            return Ok(Self { _file: file });
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        MINE.store(false, Ordering::SeqCst);
        // While still held, so that nobody can have locked the file that goes.
        let _ = std::fs::remove_file(LOCK);
    }
}

fn open_lock() -> Result<File> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    options.open(LOCK).doing(|| format!("opening {LOCK}"))
}

fn is_current(file: &File) -> bool {
    match (file.metadata(), std::fs::metadata(LOCK)) {
        (Ok(ours), Ok(current)) => ours.ino() == current.ino(),
        _ => false,
    }
}

/// Process that holds the lock now, if a lab is up.
pub fn holder() -> Option<i32> {
    let mut file = File::open(LOCK).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let mut pid = String::new();
    file.read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok().filter(|pid| *pid > 1)
}

/// Notes a directory outside of the lab's own, made if missing, to be removed when the lab goes.
pub(crate) fn make_outside(dir: &Path) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    note(MADE, &dir.display().to_string())?;
    std::fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))
}

/// Notes the value of a setting of the machine, below `/proc/sys`, to be put back when the lab goes.
pub(crate) fn set_machine(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    let before = std::fs::read_to_string(&path).doing(|| format!("reading {key}"))?;
    if before.trim() == value {
        return Ok(());
    }
    note(RESTORE, &format!("{}={}", path.display(), before.trim()))?;
    std::fs::write(&path, value).doing(|| format!("setting {key}={value}"))
}

fn note(file: &str, line: &str) -> Result<()> {
    let path = directory().join(file);
    let mut notes = File::options();
    let mut notes =
        notes.create(true).append(true).open(&path).doing(|| format!("opening {}", path.display()))?;
    writeln!(notes, "{line}").doing(|| format!("writing {}", path.display()))
}

/// Removes everything that a lab made: processes in its namespaces, the namespaces, cgroups, mounts, the
/// directory. Works from names and notes alone, so it also cleans up after a lab that was killed. The caller
/// holds the lock. Done twice, the second time does nothing.
///
/// # Errors
/// What could not be removed.
pub(crate) fn sweep() -> Result<()> {
    sweep_namespaces(&netns::ours())?;
    // Both are gone with the node already, when it was the lab's own.
    for link in [MACHINE_LINK, MACHINE_BRIDGE] {
        if Path::new("/sys/class/net").join(link).exists() {
            quietly("ip", &["link", "del", link]);
        }
    }
    let directory = directory();
    if !directory.exists() {
        let _ = std::fs::remove_dir(netns::DIRECTORY);
        return Ok(());
    }
    put_back(&directory.join(RESTORE))?;
    unmount_below(&directory)?;
    cgroups().iter().try_for_each(|group| remove_cgroup(group))?;
    remove_made(&directory.join(MADE));
    std::fs::remove_dir_all(&directory).doing(|| format!("removing {}", directory.display()))?;
    // Only when it is empty: others have namespaces, too.
    let _ = std::fs::remove_dir(netns::DIRECTORY);
    Ok(())
}

/// Ends what runs in these namespaces, and removes them.
///
/// # Errors
/// What could not be removed.
pub(crate) fn sweep_namespaces(names: &[String]) -> Result<()> {
    end_processes(names)?;
    names.iter().try_for_each(|name| netns::unpin_named(name))
}

/// What a lab would leave behind if it ended now: names of namespaces, mounts, links, cgroups, directories.
/// Empty when no lab is up and the last one was swept clean.
pub fn traces() -> Vec<String> {
    let mut traces = netns::ours();
    traces.extend(members_of(&traces).iter().map(|pid| format!("process {pid}")));
    let links = [MACHINE_LINK, MACHINE_BRIDGE].map(|link| Path::new("/sys/class/net").join(link));
    let there = links.into_iter().chain(cgroups()).chain([directory()]).filter(|path| path.exists());
    traces.extend(there.map(|path| path.display().to_string()));
    let mounts = mounts_below(&directory()).unwrap_or_default();
    traces.extend(mounts.iter().map(|point| format!("mount {}", point.display())));
    traces
}

fn quietly(program: &str, args: &[&str]) {
    let _ = std::process::Command::new(program).args(args).output();
}

/// Ends whatever runs in a namespace of the lab. The node's first process is among them, and with it goes
/// every process of its process-id namespace: containerd, shims, pods.
pub(crate) fn end_processes(namespaces: &[String]) -> Result<()> {
    let begun = Instant::now();
    let mut asked = BTreeSet::new();
    loop {
        let members = members_of(namespaces);
        if members.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            let left = members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            return Err(Error::Timeout {
                what: "the lab's processes to end".to_owned(),
                waited: PATIENCE,
                last: format!("still there: {left}"),
            });
        }
        for pid in members {
            // First politely: a tunnel may want to say good-bye. Then for good.
            if asked.insert(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            } else if begun.elapsed() > GRACE {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn members_of(namespaces: &[String]) -> Vec<i32> {
    let identity = |path: PathBuf| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let ours: BTreeSet<_> = namespaces.iter().filter_map(|name| identity(netns::path_of(name))).collect();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let inside = |pid: &i32| {
        let namespace = identity(PathBuf::from(format!("/proc/{pid}/ns/net")));
        *pid > 1 && *pid != own && namespace.is_some_and(|namespace| ours.contains(&namespace))
    };
    pids.filter(inside).collect()
}

fn put_back(notes: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(notes) else { return Ok(()) };
    let table: Vec<&str> = MACHINE_TABLE.split(' ').collect();
    quietly("nft", &[&["delete", "table"], table.as_slice()].concat());
    // The first note of a setting is the machine's own value, so it comes last.
    for (path, value) in text.lines().rev().filter_map(|line| line.split_once('=')) {
        std::fs::write(path, value).doing(|| format!("putting {path}={value} back"))?;
    }
    Ok(())
}

fn unmount_below(directory: &Path) -> Result<()> {
    for point in mounts_below(directory)? {
        umount2(point.as_path(), MntFlags::MNT_DETACH).doing(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

/// Mount points below a directory, the innermost first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").doing(|| "reading the mounts".to_owned())?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    Ok(below)
}

/// The kernel writes blanks in mount points as octal escapes.
fn unescape(field: &str) -> PathBuf {
    PathBuf::from(field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
}

/// The lab's cgroup in every hierarchy that has it.
fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let hierarchies = entries.flatten().map(|entry| entry.path()).chain([root.to_owned()]);
    hierarchies.map(|hierarchy| hierarchy.join(CGROUP)).filter(|group| group.is_dir()).collect()
}

/// Removes a cgroup and those below. A process that just ended may hold its cgroup for a moment.
fn remove_cgroup(group: &Path) -> Result<()> {
    let entries = std::fs::read_dir(group).doing(|| format!("reading {}", group.display()))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    let begun = Instant::now();
    loop {
        match std::fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error).doing(|| format!("removing the cgroup {}", group.display())),
        }
    }
}

fn remove_made(notes: &Path) {
    let Ok(text) = std::fs::read_to_string(notes) else { return };
    for dir in text.lines().rev() {
        // Not when somebody else has put something into it meanwhile.
        let _ = std::fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(unescape("/a\\040b"), PathBuf::from("/a b"));
    }
}
