//! A tunnel as a service of a machine that boots: Debian's kernel, its systemd and the package, under emulation, as systemd has
//! to be the first process of a kernel to be what it is. Needs root, `qemu-system-x86_64`, virtiofsd, systemd on this machine,
//! and nfpm in the cache; what is missing is said, and its tests are told as ignored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod lab;
#[path = "wg/machine.rs"]
mod machine;
#[path = "service/packages.rs"]
mod packages;

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lab::{Lab, Running, eventually, house::package_and_needs};
use libtest_mimic::{Arguments, Failed, Trial};
use machine::Machine;

/// Everything there takes longer than here.
const SOON: Duration = Duration::from_mins(1);
const TAP: &str = "tap0";
const UNIT: &str = "pinhole@pinhole0.service";
const LAN: &str = "nameserver 192.168.50.1\nsearch lan\n";
const OURS: &str = "nameserver 10.96.0.10";

type Test = fn(&[PathBuf]);

const SYSTEMD: &str =
    "a_service_waits_for_a_network_comes_back_after_a_kill_and_a_power_cut_and_goes_without_a_trace";
const OPENRC: &str = "openrc_starts_a_service_without_a_network_brings_it_back_and_stops_it";
const RPM: &str = "an_rpm_installs_what_the_deb_does_and_leaves_keys_alone";

fn main() {
    let no_root = (!nix::unistd::geteuid().is_root()).then_some("needs root");
    let no_packages = no_root.or_else(packages::lacks);
    let no_machine = no_packages.or_else(machine::lacks_for_files);
    let trials = vec![
        trial(SYSTEMD, no_machine, None, systemd),
        trial(OPENRC, no_root, Some("openrc"), openrc),
        trial(RPM, no_packages, Some("rpm"), packages::check_rpm),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test that needs a package of Debian, or is not run because of what is missing.
fn trial(name: &str, lacking: Option<&str>, needs: Option<&str>, test: Test) -> Trial {
    let lacking = lacking.map(str::to_owned);
    let files = match (&lacking, needs) {
        (None, Some(package)) => package_and_needs(package),
        _ => Ok(Vec::new()),
    };
    let lacking = lacking.or_else(|| files.as_ref().err().cloned());
    if let Some(why) = &lacking {
        eprintln!("ignored: {name}: {why}");
    }
    let run = move || {
        test(&files.unwrap_or_default());
        Ok::<(), Failed>(())
    };
    Trial::test(name, run).with_ignored_flag(lacking.is_some())
}

/// A machine beside a gateway, with a package in `/root`.
struct Place {
    lab: Lab,
    _gateway: Running,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let lab = Lab::beside_a_machine("boot", TAP);
        let gateway = lab.gateway();
        let directory = tempfile::tempdir().unwrap();
        let over = directory.path().join("over");
        std::fs::create_dir_all(over.join("root")).unwrap();
        std::fs::create_dir_all(over.join("etc")).unwrap();
        std::fs::write(over.join("etc/resolv.conf"), LAN).unwrap();
        std::fs::write(over.join("root/join"), lab.join("secret")).unwrap();
        packages::know_libc(&over);
        std::fs::copy(packages::build().deb(), over.join("root/pinhole.deb")).unwrap();
        let disk = std::fs::File::create(directory.path().join("disk")).unwrap();
        disk.set_len(512 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(directory.path().join("disk")).status();
        assert!(made.expect("`mkfs.ext4` runs").success());
        eventually(SOON, "the gateway is ready", || lab.readyz());
        lab.operator.change(|desired| desired.pools[0].dns_servers = vec!["10.96.0.10".into()]);
        Place { lab, _gateway: gateway, directory }
    }

    fn boot(&self) -> Booted {
        let path = |name| self.directory.path().join(name);
        let (over, disk) = (path("over"), path("disk"));
        let machine = Machine::boot_with_files((TAP, &over, &disk), |mut command| {
            self.lab.within_client(move || command.spawn())
        });
        Booted(machine)
    }
}

struct Booted(Machine);

impl Booted {
    #[track_caller]
    fn run(&self, line: &str) -> String {
        self.0.command(line).unwrap_or_else(|complaint| panic!("{complaint}\n{}", self.journal()))
    }

    fn journal(&self) -> String {
        self.0.command("journalctl --no-pager -n 60; systemctl list-jobs").unwrap_or_else(|error| error)
    }

    fn cable(&self) {
        self.run("ip address add 192.0.2.2/24 dev eth0 && ip link set eth0 up");
    }

    /// A property of the unit.
    fn shows(&self, property: &str) -> String {
        self.run(&format!("systemctl show --value -p {property} {UNIT}"))
    }

    #[track_caller]
    fn becomes(&self, what: &str, status: &str) {
        let end = Instant::now() + SOON;
        loop {
            let shown = self.run(&format!("systemctl show -p ActiveState -p StatusText {UNIT}"));
            if shown.contains("ActiveState=active") && shown.contains(status) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {shown}\n{}", self.journal());
        }
    }

    fn is_connected(&self) {
        self.becomes("it connects", "connected to edge-0 at 192.0.2.1:51820 as 10.77.0.9");
        self.run("ping -c 1 -W 5 10.50.0.2");
        assert!(self.run("cat /etc/resolv.conf").contains(OURS));
    }

    /// What a tunnel changes of a machine.
    fn network(&self) -> String {
        self.run("cat /etc/resolv.conf; ip rule; ip -6 rule; ip route show table all; nft list ruleset; ip -o link | cut -d: -f2")
    }
}

fn systemd(_: &[PathBuf]) {
    let place = Place::new();
    let lab = &place.lab;
    let machine = place.boot();
    packages::check_installed_deb(&machine.0);
    let before = machine.network();
    let installed = machine.run("pinhole install-service --token-file /root/join");
    assert!(installed.contains("pinhole0 is a service"), "{installed}");
    assert_eq!(machine.run(&format!("systemctl is-enabled {UNIT}")), "enabled");
    machine.becomes("it waits for a network", "not yet: ");

    machine.cable();
    machine.is_connected();
    let journal = machine.run(&format!("journalctl -o json -u {UNIT}"));
    let entries: Vec<serde_json::Value> =
        journal.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let has = |field: &str, value: &str| entries.iter().any(|entry| entry[field] == value);
    assert!(has("F_PHASE", "Connected"), "{journal}");
    assert!(
        has("SYSLOG_IDENTIFIER", "pinhole") && has("TARGET", "pinhole_agent::client::runner"),
        "{journal}"
    );

    flows_survive_a_restart(lab, &machine);
    assert_eq!(lab.operator.enrolments(), 1);

    // Between the end of the one and the start of the next.
    let between = machine.run(&format!(
        "systemctl kill -s KILL --kill-whom=main {UNIT}; \
         until systemctl show -p SubState {UNIT} | grep -q auto-restart; do :; done; \
         cat /etc/resolv.conf; ip rule; nft list ruleset"
    ));
    assert!(between.contains("192.168.50.1") && !between.contains(OURS), "{between}");
    assert!(!between.contains("pinhole"), "{between}");
    machine.is_connected();
    assert_eq!(machine.shows("NRestarts"), "1");

    // As it is written on the disk when the power fails.
    machine.run("sync");
    drop(machine);
    let machine = place.boot();
    machine.becomes("it was started before there is a network", "no network");
    assert_eq!(machine.run("cat /etc/resolv.conf") + "\n", LAN);
    assert_eq!(machine.shows("NRestarts"), "0");
    machine.cable();
    machine.is_connected();
    assert_eq!(lab.operator.enrolments(), 1);

    machine.run(&format!("systemctl stop {UNIT}"));
    machine.run("ip address flush dev eth0; ip link set eth0 down");
    assert_eq!(machine.network(), before, "it leaves the machine as it was");
    machine.run("pinhole uninstall-service");
    assert_ne!(machine.0.command(&format!("systemctl is-enabled {UNIT}")), Ok("enabled".to_owned()));

    machine.run(&format!("systemctl enable --now {UNIT}"));
    packages::check_removed_deb(&machine.0);
    assert_eq!(machine.network(), before, "no tunnel outlives its package");
    assert_eq!(
        machine.run("find /etc/systemd /var/lib/pinhole /run/pinhole* -name '*pinhole*' 2> /dev/null | cat"),
        ""
    );
}

/// A connection through the tunnel goes on after a restart.
fn flows_survive_a_restart(lab: &Lab, machine: &Booted) {
    let listener = lab.within_host(|| TcpListener::bind("10.50.0.2:7000").unwrap());
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|read| read > 0) {
            stream.write_all(&byte).unwrap();
        }
    });
    let invocation = machine.shows("InvocationID");
    let talk = "exec 3<>/dev/tcp/10.50.0.2/7000; echo before >&3; read -r -t 10 one <&3; ";
    let again = "echo after >&3; read -r -t 20 two <&3; echo $one $two";
    let said = machine.run(&format!("{talk} systemctl restart {UNIT}; {again}"));
    assert_eq!(said, "before after");
    assert_ne!(machine.shows("InvocationID"), invocation);
    machine.is_connected();
    echo.join().unwrap();
}

/// A machine as OpenRC has started it, with no other service.
const STARTED: &str = r"
rm -f /etc/init.d/*.sh /etc/resolv.conf
printf 'nameserver 192.168.50.1\nsearch lan\n' > /etc/resolv.conf
mkdir -p /run/openrc/{daemons,exclusive,failed,inactive,options,scheduled,started,starting,stopping,wasinactive}
touch /run/openrc/softlevel
";

fn openrc(files: &[PathBuf]) {
    let lab = Lab::new("openrc");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.operator.change(|desired| desired.pools[0].dns_servers = vec!["10.96.0.10".into()]);
    let directory = tempfile::tempdir().unwrap();
    let join = directory.path().join("join");
    std::fs::write(&join, lab.join("secret")).unwrap();
    lab.client_ip("link set wan down");
    let machine =
        Machine::in_namespaces(files, STARTED, |mut command| lab.within_client(move || command.spawn()));
    let run = |line: &str| machine.command(line).unwrap();
    let pinhole = env!("CARGO_BIN_EXE_pinhole");
    let install = format!("{pinhole} install-service --init openrc --token-file {}", join.display());
    assert!(run(&install).contains("pinhole0 is a service"));
    assert!(run("rc-update show default").contains("pinhole.pinhole0"));
    let status = |phase: &str| {
        let status = machine.command(&format!("{pinhole} status -o json")).unwrap_or_default();
        let statuses: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        statuses[0]["phase"] == phase
    };
    eventually(SOON, "it waits for a network", || status("Disconnected"));
    assert!(run("rc-service pinhole.pinhole0 status").contains("started"));

    lab.client_ip("link set wan up");
    eventually(SOON, "it connects", || status("Connected"));
    assert!(lab.client_pings("10.50.0.2") && run("cat /etc/resolv.conf").contains(OURS));
    run("pkill -KILL -x pinhole");
    eventually(SOON, "it is started again", || status("Connected"));
    assert!(lab.client_pings("10.50.0.2"));
    run("rc-service pinhole.pinhole0 restart");
    eventually(SOON, "it is started anew", || status("Connected"));
    assert_eq!(lab.operator.enrolments(), 1);

    let is_as_before = || {
        assert_eq!(run("cat /etc/resolv.conf") + "\n", LAN);
        assert!(!lab.client_links().contains("pinhole0") && !lab.client_ruleset().contains("pinhole"));
        assert_eq!(run("pgrep -x pinhole; pgrep supervise | cat"), "");
    };
    run("rc-service pinhole.pinhole0 stop");
    is_as_before();
    run("rc-service pinhole.pinhole0 start");
    eventually(SOON, "it connects again", || status("Connected"));
    run(&format!("{pinhole} uninstall-service --init openrc"));
    is_as_before();
    assert_eq!(run("ls /etc/init.d /etc/runlevels/default | grep pinhole | cat"), "");
}
