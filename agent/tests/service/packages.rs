//! The packages, made of the program that the tests run.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::machine::Machine;

const PINHOLE: &str = env!("CARGO_BIN_EXE_pinhole");
/// As `make packages` has it.
const NFPM: &str = "nfpm-2.43.0/nfpm";
/// What a package has: mode, owner and place.
const FILES: &[&str] = &[
    "755 root:root /usr/bin/pinhole",
    "644 root:root /usr/lib/systemd/system/pinhole@.service",
    "644 root:root /usr/share/doc/pinhole/copyright",
    "700 root:root /var/lib/pinhole",
];

fn nfpm() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("PINHOLE_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("pinhole")))
        .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache/pinhole"));
    cache.join(NFPM)
}

/// Why no packages can be made, if so.
pub(crate) fn lacks() -> Option<&'static str> {
    (!nfpm().is_file()).then_some("needs nfpm in ~/.cache/pinhole: `make lab-ready`")
}

/// The packages, in a directory of their own.
pub(crate) struct Packages(tempfile::TempDir);

/// Makes them.
pub(crate) fn build() -> Packages {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("pinhole");
    // What is of use to debuggers is most of it.
    let stripped = Command::new("strip").arg("-o").arg(&program).arg(PINHOLE).status();
    assert!(stripped.expect("`strip` runs").success());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut build = Command::new("packaging/build.sh");
    build.current_dir(root).arg(nfpm()).arg(&program).arg(directory.path());
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Packages(directory)
}

impl Packages {
    fn with_end(&self, end: &str) -> PathBuf {
        let mut files = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|it| it == end)).expect("it was made")
    }

    pub(crate) fn deb(&self) -> PathBuf {
        self.with_end("deb")
    }

    fn rpm(&self) -> PathBuf {
        self.with_end("rpm")
    }
}

fn stat() -> String {
    let places: Vec<_> = FILES.iter().filter_map(|line| line.rsplit(' ').next()).collect();
    format!("stat -c '%a %U:%G %n' {}", places.join(" "))
}

/// The packages that a machine knows to be installed: dpkg reads what it has of each of them.
pub(crate) fn know_libc(over: &Path) {
    let place = over.join("var/lib/dpkg");
    std::fs::create_dir_all(place.join("info")).unwrap();
    std::fs::create_dir_all(place.join("updates")).unwrap();
    let libc = Command::new("dpkg").args(["-s", "libc6"]).output().expect("`dpkg` runs");
    std::fs::write(place.join("status"), libc.stdout).unwrap();
    std::fs::write(place.join("info/libc6:amd64.list"), "/usr\n").unwrap();
}

/// Installs the package in a machine.
pub(crate) fn check_installed_deb(machine: &Machine) {
    machine.command("dpkg -i /root/pinhole.deb").unwrap();
    assert_eq!(machine.command(&stat()).unwrap(), FILES.join("\n"));
    let version = machine.command("pinhole --version").unwrap();
    let shown = machine.command("dpkg-query -W -f '${Package} ${Version} ${Status}\\n' pinhole").unwrap();
    assert_eq!(shown, format!("{version} install ok installed"));
}

/// Removes it, and purges what it left.
pub(crate) fn check_removed_deb(machine: &Machine) {
    machine.command("dpkg -r pinhole").unwrap();
    let kept = "ls /var/lib/pinhole/pinhole0/wireguard.key && ! ls /usr/bin/pinhole /usr/lib/systemd/system/pinhole@.service";
    machine.command(kept).expect("keys stay until they are purged");
    machine.command("dpkg -P pinhole").unwrap();
    machine.command("! ls -d /var/lib/pinhole /usr/share/doc/pinhole").unwrap();
}

/// Installs the other package where rpm is there, and removes it.
pub(crate) fn check_rpm(rpm: &[PathBuf]) {
    let packages = build();
    let machine = Machine::in_namespaces(rpm, "", |mut command| command.spawn());
    let run = |line: &str| machine.command(line).unwrap();
    let file = packages.rpm();
    let requires = run(&format!("rpm -qp --requires {}", file.display()));
    assert!(requires.contains("glibc >= 2."), "{requires}");
    // Its requirements are no packages of Debian.
    run(&format!("rpm -i --nodeps {}", file.display()));
    assert_eq!(run(&stat()), FILES.join("\n"));
    assert_eq!(run("rpm -q --qf '%{NAME} %{VERSION}\\n' pinhole"), run("pinhole --version"));
    assert_eq!(run("rpm -V --nodeps pinhole"), "", "all is as the package has it");
    run("pinhole install-service --init systemd --root / --program /usr/bin/pinhole");
    run("! ls /etc/systemd/system/pinhole@.service");
    // An update, and the end.
    run(&format!("mkdir -m 700 /var/lib/pinhole/pinhole0 && rpm -U --nodeps --force {}", file.display()));
    assert_eq!(run(&stat()), FILES.join("\n"));
    run("rpm -e pinhole");
    run("! ls /usr/bin/pinhole /usr/lib/systemd/system/pinhole@.service /usr/share/doc/pinhole");
    run("ls -d /var/lib/pinhole/pinhole0");
}
