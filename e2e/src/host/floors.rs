//! What files of a machine's own are made of: an /etc, a /usr and a /run in a mount namespace, with Debian packages in them. The
//! agent's own tests are built with this file as well.

use std::{path::PathBuf, process::Command};

/// Shell that makes them, with a directory to be theirs and the files of packages as its arguments: packages over what is here,
/// and nothing running.
pub(crate) const FLOORS: &str = r#"
set -e
mount -t tmpfs none "$1"
for name in etc usr; do
    mkdir -p "$1/$name/upper" "$1/$name/work"
    mount -t overlay none -o "lowerdir=$2/$name:/$name,upperdir=$1/$name/upper,workdir=$1/$name/work" "/$name"
done
mount -t tmpfs none /run
rm -f /etc/resolv.conf
printf 'nameserver 192.168.50.1\nsearch lan\n' > /etc/resolv.conf
"#;

/// The files of a Debian package, fetched once. `Err` says why it cannot be had.
pub(crate) fn package(name: &str) -> Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = set("PINHOLE_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("pinhole")))
        .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache/pinhole"));
    let files = cache.join("debs").join(name);
    if files.is_dir() {
        return Ok(files);
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let script = r#"
set -e
apt-get -q download "$1" || { apt-get -q update; apt-get -q download "$1"; }
dpkg-deb -x ./*.deb files
mkdir -p files/usr files/etc
for name in bin sbin lib; do
    if [ -d "files/$name" ]; then mkdir -p "files/usr/$name"; cp -a "files/$name/." "files/usr/$name/"; rm -r "files/$name"; fi
done
mkdir -p "$2"
cp -a files "$2/$1.part.$$" && mv -T "$2/$1.part.$$" "$2/$1" || test -d "$2/$1"
"#;
    let output = Command::new("sh")
        .args(["-c", script, "sh", name])
        .arg(cache.join("debs"))
        .current_dir(directory.path())
        .output()
        .map_err(|error| error.to_string())?;
    if files.is_dir() {
        return Ok(files);
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Shell that starts a bus and systemd-resolved, which has the network's name server for a device.
pub(crate) fn systemd_resolved(device: &str) -> String {
    format!(
        r"
echo 'systemd-resolve:x:993:993::/:/usr/sbin/nologin' >> /etc/passwd
echo 'systemd-resolve:x:993:' >> /etc/group
mkdir -p /run/dbus /run/systemd/resolve
chown 993:993 /run/systemd/resolve
dbus-daemon --system --nofork --nopidfile &
until test -S /run/dbus/system_bus_socket; do :; done
/lib/systemd/systemd-resolved 2>/dev/null &
until resolvectl dns {device} 192.168.50.1 2>/dev/null; do :; done
resolvectl domain {device} lan
"
    )
}

/// Shell that has systemd-resolved answer this machine's programs.
pub(crate) const RESOLVED_IN_USE: &str = "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf";

/// Shell that gives openresolv what a DHCP client heard on eth0.
pub(crate) const OPENRESOLV: &str =
    "printf 'nameserver 192.168.50.1\\nsearch lan\\n' | resolvconf -a eth0.dhcp";
