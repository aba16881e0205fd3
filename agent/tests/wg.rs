//! `pinhole wg` as others use it: with `wg` and `wg-quick`, and with wireguard-go at the other end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use pinhole_agent::tunnel::PrivateKey;

#[path = "namespace/mod.rs"]
#[allow(dead_code)]
mod namespace;
use namespace::Namespace;
#[path = "wg/ground.rs"]
mod ground;
#[path = "wg/linux.rs"]
mod linux;

const PINHOLE: &str = env!("CARGO_BIN_EXE_pinhole");

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("every_setting_of_wg_is_taken_and_shown", every_setting_of_wg_is_taken_and_shown),
    ("what_showconf_writes_setconf_and_syncconf_read", what_showconf_writes_setconf_and_syncconf_read),
    ("a_very_large_configuration_is_taken_and_shown", a_very_large_configuration_is_taken_and_shown),
    ("a_peer_with_all_there_is_is_taken_and_shown", a_peer_with_all_there_is_is_taken_and_shown),
    ("what_is_refused_changes_nothing", what_is_refused_changes_nothing),
    (
        "setconf_cuts_a_peer_off_and_syncconf_keeps_a_session",
        setconf_cuts_a_peer_off_and_syncconf_keeps_a_session,
    ),
    ("a_roaming_end_is_followed_over_both_families", a_roaming_end_is_followed_over_both_families),
    (
        "a_persistent_keepalive_is_sent_without_any_traffic",
        a_persistent_keepalive_is_sent_without_any_traffic,
    ),
    ("a_device_and_its_socket_go_together", a_device_and_its_socket_go_together),
    ("wg_quick_brings_it_up_and_down", wg_quick_brings_it_up_and_down),
];

const INTEROP: &[Test] = &[
    ("wireguard_go_begins_over_ipv4", || interop(Program::WireguardGo, "192.0.2")),
    ("wireguard_go_begins_over_ipv6", || interop(Program::WireguardGo, "2001:db8:")),
    ("wireguard_go_answers_over_ipv4", || interop(Program::Pinhole, "192.0.2")),
    ("wireguard_go_answers_over_ipv6", || interop(Program::Pinhole, "2001:db8:")),
    ("a_roaming_wireguard_go_is_followed", a_roaming_wireguard_go_is_followed),
];

fn main() {
    let root = nix::unistd::geteuid().is_root();
    let wg = find("wg").is_some() && find("wg-quick").is_some();
    let lacking = match (root, wg) {
        (false, _) => "needs root",
        (_, false) => "needs wg and wg-quick",
        _ => "",
    };
    let lacking_go = match (lacking, wireguard_go()) {
        ("", None) => "needs wireguard-go in ~/.cache/pinhole/tools",
        (lacking, _) => lacking,
    };
    let trial = |&(name, test): &Test, lacking: &str| {
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(!lacking.is_empty()).with_kind(lacking)
    };
    let trials = TESTS.iter().chain(ground::TESTS).map(|test| trial(test, lacking));
    let trials = trials.chain(INTEROP.iter().map(|test| trial(test, lacking_go)));
    let lacking_linux = match (lacking, linux::is_there()) {
        ("", false) => "needs qemu-system-x86_64, and a Linux kernel in ~/.cache/pinhole/linux",
        (lacking, _) => lacking,
    };
    let trials = trials.chain(linux::TESTS.iter().map(|test| trial(test, lacking_linux))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn wireguard_go() -> Option<PathBuf> {
    let tools = PathBuf::from(std::env::var_os("HOME")?).join(".cache/pinhole/tools");
    let cached = std::fs::read_dir(tools).into_iter().flatten().flatten();
    let mut cached = cached.map(|entry| entry.path().join("bin/wireguard-go"));
    cached.find(|file| file.is_file()).or_else(|| find("wireguard-go"))
}

/// Sockets have their place by name in a directory that all namespaces share.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("w{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn socket_of(name: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Pinhole,
    WireguardGo,
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Running {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A WireGuard device in a namespace, in the foreground.
struct Device {
    name: String,
    key: PrivateKey,
    files: tempfile::TempDir,
    running: Running,
    namespace: Namespace,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.running.kill();
        // Who is killed leaves it.
        let _ = std::fs::remove_file(socket_of(&self.name));
    }
}

impl Device {
    fn start(namespace: Namespace, program: Program) -> Self {
        let name = unique_name();
        let mut command = match program {
            Program::Pinhole => Command::new(PINHOLE),
            Program::WireguardGo => Command::new(wireguard_go().unwrap()),
        };
        if program == Program::Pinhole {
            command.arg("wg");
        }
        command.args(["--foreground", &name]).env("LOG_LEVEL", "error").stdin(Stdio::null());
        let running = Running(namespace.run(move || command.spawn().expect("the program starts")));
        let files = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate().unwrap();
        std::fs::write(files.path().join("key"), key.to_base64().as_bytes()).unwrap();
        let device = Self { name, key, files, running, namespace };
        eventually("a device to configure", || device.wg("show NAME listen-port").is_ok());
        device.wg(&format!("set NAME private-key {}", device.file("key"))).unwrap();
        device
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    fn public(&self) -> String {
        self.key.public().to_string()
    }

    /// Runs `wg` with these words, among which NAME is the device.
    fn wg(&self, words: &str) -> Result<String, String> {
        self.namespace.command(&format!("wg {}", words.replace("NAME", &self.name)))
    }

    /// The one line that `wg show NAME WHAT` has of a peer, without its key.
    fn shown(&self, what: &str, peer: &str) -> String {
        let all = self.wg(&format!("show NAME {what}")).unwrap();
        let line = all.lines().find_map(|line| line.strip_prefix(peer));
        line.unwrap_or_else(|| panic!("no peer {peer} in {all:?}")).trim().to_owned()
    }

    fn up(&self, addresses: [&str; 2]) {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.namespace.ip(&format!("address add {address} dev {}{nodad}", self.name));
        }
        self.namespace.ip(&format!("link set {} up", self.name));
        self.namespace.await_addresses(&self.name);
    }

    fn ping(&self, words: &str) -> Result<String, String> {
        self.namespace.command(&format!("ping -n -W 3 {words}"))
    }

    fn port(&self) -> String {
        self.wg("show NAME listen-port").unwrap().trim().to_owned()
    }
}

fn cable() -> (Namespace, Namespace) {
    let (one, two) = (Namespace::new(), Namespace::new());
    one.join(("eth0", "192.0.2.1/24"), &two, ("eth0", "192.0.2.2/24"));
    one.ip("address add 2001:db8::1/64 dev eth0 nodad");
    two.ip("address add 2001:db8::2/64 dev eth0 nodad");
    for namespace in [&one, &two] {
        namespace.await_addresses("eth0");
    }
    (one, two)
}

/// Two devices that may talk to each other, of which the first knows where the second is.
fn pair(programs: [Program; 2], network: &str) -> (Device, Device) {
    let (one, two) = cable();
    let (one, two) = (Device::start(one, programs[0]), Device::start(two, programs[1]));
    one.up(["10.9.0.1/24", "fd09::1/64"]);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    let psk = one.file("psk");
    std::fs::write(&psk, PrivateKey::generate().unwrap().to_base64().as_bytes()).unwrap();
    two.wg(&format!(
        "set NAME listen-port 0 peer {} preshared-key {psk} allowed-ips 10.9.0.1/32,fd09::1/128",
        one.public()
    ))
    .unwrap();
    let host = if network.contains(':') { format!("[{network}:2]") } else { format!("{network}.2") };
    one.wg(&format!(
        "set NAME peer {} preshared-key {psk} endpoint {host}:{} allowed-ips 10.9.0.2/32,fd09::2/128",
        two.public(),
        two.port()
    ))
    .unwrap();
    (one, two)
}

fn interop(first: Program, network: &str) {
    let second = if first == Program::Pinhole { Program::WireguardGo } else { Program::Pinhole };
    let (one, two) = pair([first, second], network);
    for size in [0, 56, 1392, 4000] {
        one.ping(&format!("-c 1 -s {size} 10.9.0.2")).unwrap();
        two.ping(&format!("-c 1 -s {size} fd09::1")).unwrap();
    }
    let endpoint = two.shown("endpoints", &one.public());
    let expected = if network.contains(':') { format!("[{network}:1]:") } else { format!("{network}.1:") };
    assert_eq!(endpoint, expected + &one.port());
    // Both count alike.
    let counts = |device: &Device, peer: &Device| -> Vec<u64> {
        let shown = device.shown("transfer", &peer.public());
        shown.split_whitespace().map(|count| count.parse().unwrap()).collect()
    };
    let (mut here, there) = (counts(&one, &two), counts(&two, &one));
    here.reverse();
    assert_eq!(here, there);
}

fn every_setting_of_wg_is_taken_and_shown() {
    let device = Device::start(Namespace::new(), Program::Pinhole);
    let peers = [(); 2].map(|()| PrivateKey::generate().unwrap().public().to_string());
    let psk = device.file("psk");
    let secret = PrivateKey::generate().unwrap().to_base64().to_string();
    std::fs::write(&psk, &secret).unwrap();
    assert_eq!(device.wg("show NAME public-key").unwrap().trim(), device.public());
    device
        .wg(&format!(
            "set NAME listen-port 12345 fwmark 0x1f peer {} preshared-key {psk} endpoint [2001:db8::7]:77 \
             persistent-keepalive 111 allowed-ips 10.0.0.0/8,fd00::/8 peer {} allowed-ips 10.1.0.0/16",
            peers[0], peers[1]
        ))
        .unwrap();
    assert_eq!((device.port().as_str(), device.wg("show NAME fwmark").unwrap().trim()), ("12345", "0x1f"));
    assert_eq!(device.shown("preshared-keys", &peers[0]), secret);
    assert_eq!(device.shown("endpoints", &peers[0]), "[2001:db8::7]:77");
    assert_eq!(device.shown("persistent-keepalive", &peers[0]), "111");
    assert_eq!(device.shown("allowed-ips", &peers[0]), "10.0.0.0/8 fd00::/8");
    assert_eq!(device.shown("latest-handshakes", &peers[0]), "0");

    // A prefix moves to the last who asked for it; an empty file removes a key.
    std::fs::write(&psk, "").unwrap();
    device
        .wg(&format!(
            "set NAME fwmark off peer {} preshared-key {psk} persistent-keepalive off peer {} allowed-ips 10.0.0.0/8",
            peers[0], peers[1]
        ))
        .unwrap();
    assert_eq!(device.wg("show NAME fwmark").unwrap().trim(), "off");
    assert_eq!(device.shown("preshared-keys", &peers[0]), "(none)");
    assert_eq!(device.shown("persistent-keepalive", &peers[0]), "off");
    assert_eq!(device.shown("allowed-ips", &peers[0]), "fd00::/8");
    assert_eq!(device.shown("allowed-ips", &peers[1]), "10.0.0.0/8");
    device.wg(&format!("set NAME private-key {psk} peer {} remove", peers[0])).unwrap();
    assert_eq!(device.wg("show NAME peers").unwrap().trim(), peers[1]);
    assert_eq!(device.wg("show NAME private-key").unwrap().trim(), "(none)");
}

fn what_showconf_writes_setconf_and_syncconf_read() {
    let device = Device::start(Namespace::new(), Program::Pinhole);
    let peer = PrivateKey::generate().unwrap().public();
    device
        .wg(&format!(
            "set NAME listen-port 12346 fwmark 7 peer {peer} endpoint 192.0.2.9:1 allowed-ips 10.0.0.0/8 \
             persistent-keepalive 25"
        ))
        .unwrap();
    let conf = device.wg("showconf NAME").unwrap();
    assert!(conf.contains(device.key.to_base64().as_str()));
    std::fs::write(device.file("conf"), &conf).unwrap();
    for verb in ["setconf", "syncconf"] {
        device.wg(&format!("{verb} NAME {}", device.file("conf"))).unwrap();
        assert_eq!(device.wg("showconf NAME").unwrap(), conf, "{verb}");
    }
}

fn a_very_large_configuration_is_taken_and_shown() {
    use std::fmt::Write;

    let device = Device::start(Namespace::new(), Program::Pinhole);
    let mut conf = format!("[Interface]\nPrivateKey = {}\n", device.key.to_base64().as_str());
    for peer in 0..500 {
        let key = PrivateKey::generate().unwrap().public();
        let _ = write!(conf, "[Peer]\nPublicKey = {key}\nAllowedIPs = ");
        let nets: Vec<String> =
            (0..40).map(|n| format!("10.{}.{}.0/24", peer / 6, peer % 6 * 40 + n)).collect();
        let _ = writeln!(conf, "{}", nets.join(", "));
    }
    std::fs::write(device.file("conf"), conf).unwrap();
    for verb in ["setconf", "syncconf"] {
        device.wg(&format!("{verb} NAME {}", device.file("conf"))).unwrap();
        let shown = device.wg("show NAME allowed-ips").unwrap();
        assert_eq!(shown.lines().count(), 500, "{verb}");
        assert!(shown.lines().all(|line| line.split_whitespace().count() == 41), "{verb}");
    }
}

fn a_peer_with_all_there_is_is_taken_and_shown() {
    use std::fmt::Write;

    const PREFIXES: usize = 255 * 256 * 2;
    let device = Device::start(Namespace::new(), Program::Pinhole);
    let key = PrivateKey::generate().unwrap().public();
    let mut conf = format!("[Interface]\nPrivateKey = {}\n", device.key.to_base64().as_str());
    let _ = writeln!(conf, "[Peer]\nPublicKey = {key}");
    for (a, b) in (1..256).flat_map(|a| (0..256).map(move |b| (a, b))) {
        let _ = writeln!(conf, "AllowedIPs = {a}.{b}.0.0/16, {a}::{b}/128");
    }
    std::fs::write(device.file("conf"), conf).unwrap();
    for verb in ["setconf", "syncconf"] {
        device.wg(&format!("{verb} NAME {}", device.file("conf"))).unwrap();
        let shown = device.wg("show NAME allowed-ips").unwrap();
        assert_eq!(shown.split_whitespace().count(), 1 + PREFIXES, "{verb}");
    }
    // And peers of a device that has no key yet.
    let device = Device::start(Namespace::new(), Program::Pinhole);
    std::fs::write(device.file("none"), "").unwrap();
    device.wg(&format!("set NAME private-key {}", device.file("none"))).unwrap();
    let mut conf = String::new();
    for _ in 0..30 {
        let _ = writeln!(conf, "[Peer]\nPublicKey = {}", PrivateKey::generate().unwrap().public());
    }
    conf.push_str("AllowedIPs = 255.2.3.4/32, abcd::255/128\n");
    std::fs::write(device.file("conf"), conf).unwrap();
    device.wg(&format!("setconf NAME {}", device.file("conf"))).unwrap();
    assert_eq!(device.wg("showconf NAME").unwrap().matches("[Peer]").count(), 30);
}

fn what_is_refused_changes_nothing() {
    let device = Device::start(Namespace::new(), Program::Pinhole);
    let (port, peer) = (device.port(), PrivateKey::generate().unwrap().public());
    let taken = device.namespace.run(|| std::net::UdpSocket::bind("[::]:0").unwrap());
    let taken_port = taken.local_addr().unwrap().port();
    let error = device.wg(&format!("set NAME listen-port {taken_port} peer {peer}")).unwrap_err();
    assert!(error.contains("Address already in use"), "{error}");
    assert_eq!((device.port(), device.wg("show NAME peers").unwrap().trim()), (port, ""));
    drop(taken);
    device.wg(&format!("set NAME listen-port {taken_port}")).unwrap();
    assert_eq!(device.port(), taken_port.to_string());
}

fn setconf_cuts_a_peer_off_and_syncconf_keeps_a_session() {
    let (one, two) = pair([Program::Pinhole; 2], "192.0.2");
    one.ping("-c 1 10.9.0.2").unwrap();
    let handshake = || two.shown("latest-handshakes", &one.public());
    let (first, endpoint) = (handshake(), two.shown("endpoints", &one.public()));
    assert_ne!(first, "0");
    std::fs::write(two.file("conf"), two.wg("showconf NAME").unwrap()).unwrap();
    two.wg(&format!("syncconf NAME {}", two.file("conf"))).unwrap();
    one.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!((handshake(), two.shown("endpoints", &one.public())), (first, endpoint));

    // The same peers as before, but anew.
    two.wg(&format!("setconf NAME {}", two.file("conf"))).unwrap();
    assert_eq!((handshake(), two.shown("transfer", &one.public())), ("0".to_owned(), "0\t0".to_owned()));
    two.ping("-c 1 10.9.0.1").unwrap();
    assert_ne!(handshake(), "0");

    let other = PrivateKey::generate().unwrap().public();
    let conf = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {}\n[Peer]\nPublicKey = {other}\nAllowedIPs = 10.9.0.3/32\n",
        two.key.to_base64().as_str(),
        two.port()
    );
    std::fs::write(two.file("conf"), conf).unwrap();
    two.wg(&format!("setconf NAME {}", two.file("conf"))).unwrap();
    assert_eq!(two.wg("show NAME peers").unwrap().trim(), other.to_string());
    assert!(one.ping("-c 1 -W 1 10.9.0.2").is_err());
}

fn a_roaming_end_is_followed_over_both_families() {
    let (one, two) = pair([Program::Pinhole; 2], "192.0.2");
    roam(&one, &two);
    one.wg(&format!("set NAME peer {} endpoint [2001:db8::2]:{}", two.public(), two.port())).unwrap();
    one.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!(two.shown("endpoints", &one.public()), "[2001:db8::1]:9999");
    two.ping("-c 1 fd09::1").unwrap();
}

/// It cannot be made to change the family: it then often sends to an address cut short.
fn a_roaming_wireguard_go_is_followed() {
    let (one, two) = pair([Program::WireguardGo, Program::Pinhole], "192.0.2");
    roam(&one, &two);
}

/// The first end changes its port and its address.
fn roam(one: &Device, two: &Device) {
    one.ping("-c 1 10.9.0.2").unwrap();
    one.wg("set NAME listen-port 9999").unwrap();
    one.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!(two.shown("endpoints", &one.public()), "192.0.2.1:9999");
    one.namespace.ip("address del 192.0.2.1/24 dev eth0");
    one.namespace.ip("address add 192.0.2.77/24 dev eth0");
    one.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!(two.shown("endpoints", &one.public()), "192.0.2.77:9999");
}

fn a_persistent_keepalive_is_sent_without_any_traffic() {
    let (one, two) = pair([Program::Pinhole; 2], "192.0.2");
    assert_eq!(two.shown("endpoints", &one.public()), "(none)");
    one.wg(&format!("set NAME peer {} persistent-keepalive 1", two.public())).unwrap();
    let received = || {
        let transfer = two.shown("transfer", &one.public());
        transfer.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // An initiation, and then nothing but keepalives of 32 bytes.
    eventually("a keepalive", || received() > 148);
    let first = received();
    eventually("two more keepalives", || received() >= first + 64);
    assert_eq!((received() - 148) % 32, 0);
    two.ping("-c 1 10.9.0.1").unwrap();
}

fn a_device_and_its_socket_go_together() {
    let mut device = Device::start(Namespace::new(), Program::Pinhole);
    let socket = std::fs::symlink_metadata(socket_of(&device.name)).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    device.namespace.ip(&format!("link del {}", device.name));
    eventually("the end of the process", || device.running.has_ended());
    assert!(!socket_of(&device.name).exists());

    let mut device = Device::start(Namespace::new(), Program::Pinhole);
    let pid = nix::unistd::Pid::from_raw(device.running.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually("the end of the process", || device.running.has_ended());
    assert!(!socket_of(&device.name).exists());
    assert!(device.namespace.command(&format!("ip link show {}", device.name)).is_err());

    let mut device = Device::start(Namespace::new(), Program::Pinhole);
    std::fs::remove_file(socket_of(&device.name)).unwrap();
    eventually("the end of the process", || device.running.has_ended());
    assert!(device.namespace.command(&format!("ip link show {}", device.name)).is_err());
}

fn wg_quick_brings_it_up_and_down() {
    let (one, two) = cable();
    let two = Device::start(two, Program::Pinhole);
    two.up(["10.9.0.2/24", "fd09::2/64"]);
    let key = PrivateKey::generate().unwrap();
    two.wg(&format!("set NAME peer {} allowed-ips 10.9.0.1/32,fd09::1/128", key.public())).unwrap();

    let (files, name) = (tempfile::tempdir().unwrap(), unique_name());
    let conf = files.path().join(format!("{name}.conf"));
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.9.0.1/24, fd09::1/64\nMTU = 1400\n[Peer]\nPublicKey = {}\n\
         Endpoint = 192.0.2.2:{}\nAllowedIPs = 10.9.0.0/24, fd09::/64, 10.77.0.0/16\nPersistentKeepalive = 5\n",
        key.to_base64().as_str(),
        two.public(),
        two.port()
    );
    std::fs::write(&conf, text).unwrap();
    std::fs::set_permissions(&conf, std::fs::Permissions::from_mode(0o600)).unwrap();
    // As the program's other name.
    std::os::unix::fs::symlink(PINHOLE, files.path().join("pinhole-wg")).unwrap();
    let path = format!("{}:{}", files.path().display(), std::env::var("PATH").unwrap());
    let quick = |verb: &'static str, conf: &Path| {
        let (path, conf) = (path.clone(), conf.to_owned());
        let output = one.run(move || {
            let mut command = Command::new("wg-quick");
            command.arg(verb).arg(conf).env("PATH", path);
            command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", "pinhole-wg").output().unwrap()
        });
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    };
    quick("up", &conf);
    one.command("ping -n -W 3 -c 1 10.9.0.2").unwrap();
    one.command("ping -n -W 3 -c 1 fd09::2").unwrap();
    assert!(one.ip("route").contains(&format!("10.77.0.0/16 dev {name}")));
    assert!(one.ip(&format!("link show {name}")).contains("mtu 1400"));
    quick("down", &conf);
    eventually("the socket to go", || !socket_of(&name).exists());
    assert!(one.command(&format!("ip link show {name}")).is_err());
}
