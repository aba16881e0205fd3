//! A Linux kernel with a WireGuard of its own, to boot beside this one's: Debian's stock cloud kernel, and a file system of a
//! few megabytes in memory with a shell and `wg`, or one that goes on with a whole Debian's files. The agent's tests boot it
//! under emulation, and are skipped without it.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{Lock, cache_dir};
use crate::{
    error::{Doing, Error, Result},
    process::Command,
    progress,
};

const EMULATOR: &str = "qemu-system-x86_64";
/// The metapackage of the newest one.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What a guest under an emulator needs for its network, and what it is for.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "wireguard"];
/// What one needs that has files and a service manager besides.
const WHOLE_MODULES: &[&str] =
    &["virtio_pci", "virtio_net", "virtio_blk", "virtiofs", "overlay", "tun", "nf_tables", "nft_ct"];
/// Reads commands from its terminal, one a line, and says how each ended.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
ip link set lo up
stty -echo raw
echo READY
while read -r line; do eval \"$line\"; echo \"DONE $?\"; done
poweroff -f
";

/// Goes on as the service manager of the files that the emulator shares as `root`, with what is written on the disk.
const WHOLE_INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mkdir -p /files /disk /root
mount -t virtiofs root /files && mount -t ext4 /dev/vda /disk || poweroff -f
mkdir -p /disk/upper /disk/work
mount -t overlay -o lowerdir=/files,upperdir=/disk/upper,workdir=/disk/work root /root || poweroff -f
mount -t tmpfs tmp /root/tmp
for name in proc sys dev; do mount --move /$name /root/$name; done
exec switch_root /root /lib/systemd/systemd
";

/// Puts the kernel (`vmlinuz`) and its file systems (`initrd`, `initrd-whole`) into `linux` in the cache, where they are not there yet.
///
/// # Errors
/// Where this is no Debian on x86-64, or its packages cannot be had.
pub async fn prepare() -> Result<PathBuf> {
    let place = cache_dir()?.join("linux");
    if place.join("initrd").exists()
        && place.join("initrd-whole").exists()
        && Path::new("/usr/bin").join(EMULATOR).exists()
    {
        return Ok(place);
    }
    if !(cfg!(target_arch = "x86_64") && Path::new("/usr/bin/apt-get").exists()) {
        return Err(Error::Unsupported("only a Debian on x86-64 has the kernel for it".to_owned()));
    }
    let _lock = Lock::take(&place.with_extension("lock"), "preparing a Linux kernel to boot").await?;
    progress::step("preparing a Linux kernel to boot", make(&place)).await?;
    Ok(place)
}

async fn make(place: &Path) -> Result<()> {
    let apt = || Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().args(["-q", "update"]).run().await?;
    if !Path::new("/usr/bin").join(EMULATOR).exists() {
        apt().args(["-q", "-y", "install", "--no-install-recommends", "qemu-system-x86"]).run().await?;
    }
    let work = tempfile::tempdir().doing(|| "making a directory for a kernel".to_owned())?;
    let tree = work.path().join("tree");
    let depends = Command::new("apt-cache").args(["depends", "--important", KERNEL]).run().await?;
    let image = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or_else(|| Error::Unsupported(format!("{KERNEL} names no kernel: {}", depends.trim())))?;
    // Unpacked, not installed: this machine keeps its own kernel.
    apt().args(["-q", "download", image, "busybox-static"]).dir(work.path()).run().await?;
    for package in files(work.path())?.iter().filter(|path| path.extension().is_some_and(|end| end == "deb"))
    {
        Command::new("dpkg").arg("-x").arg(package).arg(&tree).run().await?;
    }
    let kernel = files(&tree.join("boot"))?.into_iter().find(|path| name(path).starts_with("vmlinuz"));
    let kernel = kernel.ok_or_else(|| Error::Unsupported(format!("{image} has no kernel in it")))?;
    fs::create_dir_all(place).doing(|| format!("making {}", place.display()))?;
    // One of another kernel is of no use, and the last to be there again.
    let _ = fs::remove_file(place.join("initrd"));
    copy(&kernel, &place.join("vmlinuz"))?;
    let whole = work.path().join("whole");
    add_shell(&tree, &whole, WHOLE_INIT, WHOLE_MODULES)?;
    pack(&whole, &place.join("initrd-whole")).await?;
    let root = work.path().join("root");
    add_shell(&tree, &root, INIT, MODULES)?;
    add_program(Path::new("/usr/bin/wg"), &root).await?;
    pack(&root, &place.join("initrd")).await
}

/// A shell that runs this first, once these modules are there.
fn add_shell(tree: &Path, root: &Path, first: &str, modules: &[&str]) -> Result<()> {
    for directory in ["bin", "modules", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory)).doing(|| format!("making {directory} of a guest"))?;
    }
    copy(&tree.join("bin/busybox"), &root.join("bin/busybox"))?;
    add_modules(tree, &root.join("modules"), modules)?;
    let init = root.join("init");
    fs::write(&init, first).doing(|| "writing a guest's init".to_owned())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .doing(|| "writing a guest's init".to_owned())
}

/// Makes a file system in memory of it. What is there is whole.
async fn pack(root: &Path, to: &Path) -> Result<()> {
    let packed = root.with_extension("cpio");
    let pack = r#"find . | ./bin/busybox cpio -o -H newc > "$1""#;
    Command::new("sh").args(["-ec", pack, "sh"]).arg(&packed).dir(root).run().await?;
    let part = to.with_extension("part");
    copy(&packed, &part)?;
    fs::rename(part, to).doing(|| "keeping a guest's files".to_owned())
}

/// Copies the modules that the guest needs, named in the order in which they are to be loaded.
fn add_modules(tree: &Path, to: &Path, wanted: &[&str]) -> Result<()> {
    let mut modules = HashMap::new();
    collect(&tree.join("lib/modules"), &mut modules)?;
    let mut needs = HashMap::new();
    for (name, path) in &modules {
        let bytes = fs::read(path).doing(|| format!("reading {}", path.display()))?;
        needs.insert(name.clone(), dependencies(&bytes));
    }
    let mut order = Vec::new();
    for module in wanted {
        line_up(module, &needs, &mut order, &mut BTreeSet::new());
    }
    for (number, module) in (10..).zip(&order) {
        let path = modules.get(module).ok_or_else(|| {
            Error::Unsupported(format!("the kernel's package has no plain module {module}"))
        })?;
        copy(path, &to.join(format!("{number}-{module}.ko")))?;
    }
    Ok(())
}

/// All modules below a directory, by name.
fn collect(directory: &Path, into: &mut HashMap<String, PathBuf>) -> Result<()> {
    for path in files(directory)? {
        if path.is_dir() {
            collect(&path, into)?;
        } else if let Some(module) = name(&path).strip_suffix(".ko") {
            into.insert(module.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// The modules that a module names in its information section, as `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let list = module.iter().skip(start + KEY.len()).take_while(|&&byte| byte != 0).copied().collect();
    let list = String::from_utf8(list).unwrap_or_default();
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// Puts a module behind all that it needs.
fn line_up(
    module: &str,
    needs: &HashMap<String, Vec<String>>,
    order: &mut Vec<String>,
    seen: &mut BTreeSet<String>,
) {
    if order.iter().any(|known| known == module) || !seen.insert(module.to_owned()) {
        return;
    }
    for needed in needs.get(module).into_iter().flatten() {
        line_up(needed, needs, order, seen);
    }
    order.push(module.to_owned());
}

/// Copies a program of this machine, with the libraries that it is linked with.
async fn add_program(program: &Path, root: &Path) -> Result<()> {
    let linked = Command::new("ldd").arg(program).run().await?;
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain([program.to_owned()]) {
        let place = root.join(file.strip_prefix("/").unwrap_or(&file));
        let directory = place.parent().unwrap_or(root);
        fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
        copy(&file, &place)?;
    }
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("listing {}", directory.display());
    let entries = fs::read_dir(directory).doing(doing)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<std::io::Result<_>>().doing(doing)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).doing(|| format!("copying {}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_needs() {
        assert_eq!(
            dependencies(b"ELF\0alias=x\0depends=udp_tunnel,ip6-tunnel\0name=y\0"),
            ["udp_tunnel", "ip6_tunnel"]
        );
        assert_eq!(dependencies(b"ELF\0depends=\0name=y\0"), [""; 0]);
        assert_eq!(dependencies(b"ELF"), [""; 0]);
    }

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let needs: HashMap<String, Vec<String>> = [("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec!["a"])]
            .map(|(name, needs)| (name.to_owned(), needs.into_iter().map(str::to_owned).collect()))
            .into();
        let mut order = Vec::new();
        for module in ["a", "b"] {
            line_up(module, &needs, &mut order, &mut BTreeSet::new());
        }
        assert_eq!(order, ["c", "b", "a"]);
    }
}
