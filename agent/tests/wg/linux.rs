//! The WireGuard of the Linux kernel as a peer. The kernel that runs these tests may have none, so one that does is booted
//! under emulation, with nothing but a shell and `wg`, at the other end of a cable. What it does is real, its speed is not.

mod machine;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) use machine::is_there;
use machine::{Machine, PATIENCE};

use super::{Device, Namespace, PINHOLE, PrivateKey, Program, Test};

pub(crate) const TESTS: &[Test] = &[
    ("linux_begins_and_answers_over_both_families", linux_begins_and_answers),
    ("linux_with_a_wrong_preshared_key_gets_nothing", linux_with_a_wrong_preshared_key_gets_nothing),
    ("linux_and_pinhole_may_each_start_anew", linux_and_pinhole_may_each_start_anew),
    ("a_linux_that_roams_is_followed_and_follows", a_linux_that_roams_is_followed_and_follows),
    ("persistent_keepalives_of_linux_and_to_it_are_heard", a_persistent_keepalive_of_either_is_heard),
    ("keys_shared_with_linux_are_renewed_after_two_minutes", keys_are_renewed_after_two_minutes),
];

const PORT: u16 = 51820;
/// `REKEY_AFTER_TIME` of WireGuard's paper.
const REKEY: Duration = Duration::from_mins(2);

/// An emulated machine, at the far end of a cable from a namespace.
struct Linux {
    machine: Machine,
    key: PrivateKey,
}

impl Linux {
    /// Boots it, and gives it a device with a key of its own.
    fn boot(namespace: &Namespace) -> Self {
        namespace.ip("tuntap add tap0 mode tap");
        namespace.ip("address add 192.0.2.1/24 dev tap0");
        namespace.ip("address add 2001:db8::1/64 dev tap0 nodad");
        namespace.ip("link set tap0 up");
        let machine = Machine::boot("tap0", |mut command| namespace.run(move || command.spawn()));
        let key = PrivateKey::generate().unwrap();
        let linux = Self { machine, key };
        linux.run("ip address add 192.0.2.2/24 dev eth0");
        linux.run("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad");
        linux.run("ip link set eth0 up");
        linux.run("ip -6 address add 2001:db8::2/64 dev eth0");
        linux.make_device();
        linux
    }

    fn make_device(&self) {
        self.run("ip link add wg0 type wireguard");
        self.run(&format!("echo {} > /tmp/key", self.key.to_base64().as_str()));
        self.run(&format!("wg set wg0 private-key /tmp/key listen-port {PORT}"));
        self.run("ip address add 10.9.0.2/24 dev wg0");
        self.run("ip link set wg0 up");
        self.run("ip -6 address add fd09::2/64 dev wg0");
    }

    /// Runs a command. Its output, or what it said when it failed.
    fn command(&self, line: &str) -> Result<String, String> {
        self.machine.command(line)
    }

    fn run(&self, line: &str) -> String {
        self.command(line).unwrap()
    }

    fn public(&self) -> String {
        self.key.public().to_string()
    }

    /// Knows the device as a peer, with this secret.
    fn knows(&self, device: &Device, secret: &str) {
        self.run(&format!("echo {secret} > /tmp/psk"));
        self.run(&format!(
            "wg set wg0 peer {} preshared-key /tmp/psk allowed-ips 10.9.0.1/32,fd09::1/128",
            device.public()
        ));
    }

    fn endpoint(&self, device: &Device, address: &str) {
        self.run(&format!("wg set wg0 peer {} endpoint {address}:{}", device.public(), device.port()));
    }

    /// What `wg show` has of its one peer.
    fn shown(&self, what: &str) -> String {
        let text = self.run(&format!("wg show wg0 {what}"));
        text.split_once('\t').map_or(String::new(), |(_, value)| value.trim().to_owned())
    }

    fn ping(&self, words: &str) -> Result<String, String> {
        self.command(&format!("ping -W 3 {words}"))
    }
}

fn secret() -> String {
    PrivateKey::generate().unwrap().to_base64().to_string()
}

/// Makes the machine a peer of the device, with this secret.
fn introduce(device: &Device, linux: &Linux, secret: &str) {
    std::fs::write(device.file("psk"), secret).unwrap();
    device
        .wg(&format!(
            "set NAME peer {} preshared-key {} allowed-ips 10.9.0.2/32,fd09::2/128",
            linux.public(),
            device.file("psk")
        ))
        .unwrap();
}

fn tell(device: &Device, linux: &Linux, address: &str) {
    device.wg(&format!("set NAME peer {} endpoint {address}:{PORT}", linux.public())).unwrap();
}

/// Both ends, who share a secret, and of whom neither knows where the other is.
fn both() -> (Device, Linux) {
    let namespace = Namespace::new();
    let linux = Linux::boot(&namespace);
    let device = Device::start(namespace, Program::Pinhole);
    device.up(["10.9.0.1/24", "fd09::1/64"]);
    let secret = secret();
    introduce(&device, &linux, &secret);
    linux.knows(&device, &secret);
    (device, linux)
}

/// Makes both forget each other, so that there is no session.
fn part(device: &Device, linux: &Linux) {
    device.wg(&format!("set NAME peer {} remove", linux.public())).unwrap();
    linux.run(&format!("wg set wg0 peer {} remove", device.public()));
}

fn linux_begins_and_answers() {
    let (device, linux) = both();
    for (here, there) in [("192.0.2.1", "192.0.2.2"), ("[2001:db8::1]", "[2001:db8::2]")] {
        for linux_begins in [true, false] {
            part(&device, &linux);
            let secret = secret();
            introduce(&device, &linux, &secret);
            linux.knows(&device, &secret);
            if linux_begins {
                linux.endpoint(&device, here);
                linux.ping("-c 1 10.9.0.1").unwrap();
            } else {
                tell(&device, &linux, there);
                device.ping("-c 1 10.9.0.2").unwrap();
            }
            // What is padded, and what fills the MTU, and fragments of it; both families inside.
            for size in [0, 1, 17, 1380, 1392, 4000] {
                device.ping(&format!("-c 1 -s {size} 10.9.0.2")).unwrap();
                device.ping(&format!("-c 1 -s {size} fd09::2")).unwrap();
                linux.ping(&format!("-c 1 -s {size} 10.9.0.1")).unwrap();
                linux.ping(&format!("-c 1 -s {size} fd09::1")).unwrap();
            }
            assert_eq!(device.shown("endpoints", &linux.public()), format!("{there}:{PORT}"));
            assert_eq!(linux.shown("endpoints"), format!("{here}:{}", device.port()));
        }
    }
}

fn linux_with_a_wrong_preshared_key_gets_nothing() {
    let (device, linux) = both();
    linux.knows(&device, &secret());
    linux.endpoint(&device, "192.0.2.1");
    linux.ping("-c 2 10.9.0.1").unwrap_err();
    assert_eq!(linux.shown("latest-handshakes"), "0");
    tell(&device, &linux, "192.0.2.2");
    device.ping("-c 2 10.9.0.2").unwrap_err();
    assert_eq!(device.shown("latest-handshakes", &linux.public()), "0");
    part(&device, &linux);
    let secret = secret();
    introduce(&device, &linux, &secret);
    linux.knows(&device, &secret);
    linux.endpoint(&device, "192.0.2.1");
    linux.ping("-c 3 10.9.0.1").unwrap();
}

/// Ends the device's process, and starts another with the same key and port.
fn restart(device: &mut Device) {
    let port = device.port();
    device.running.kill();
    let _ = std::fs::remove_file(super::socket_of(&device.name));
    let mut command = Command::new(PINHOLE);
    command.args(["wg", "--foreground", &device.name]).env("LOG_LEVEL", "error").stdin(Stdio::null());
    device.running =
        super::Running(device.namespace.run(move || command.spawn().expect("the program starts")));
    super::eventually("the device again", || device.wg("show NAME listen-port").is_ok());
    device.wg(&format!("set NAME private-key {} listen-port {port}", device.file("key"))).unwrap();
    device.up(["10.9.0.1/24", "fd09::1/64"]);
}

fn linux_and_pinhole_may_each_start_anew() {
    let (mut device, linux) = both();
    let secret = secret();
    introduce(&device, &linux, &secret);
    linux.knows(&device, &secret);
    linux.endpoint(&device, "192.0.2.1");
    tell(&device, &linux, "192.0.2.2");
    linux.ping("-c 1 10.9.0.1").unwrap();
    // It forgets its sessions, as after a reboot, and speaks first.
    linux.run("ip link del wg0");
    linux.make_device();
    linux.knows(&device, &secret);
    linux.endpoint(&device, "192.0.2.1");
    linux.ping("-c 1 10.9.0.1").unwrap();
    device.ping("-c 1 10.9.0.2").unwrap();
    // So does the other, from a process of its own, and is spoken to over a session that it does not know any more.
    restart(&mut device);
    introduce(&device, &linux, &secret);
    tell(&device, &linux, "192.0.2.2");
    device.ping("-c 1 10.9.0.2").unwrap();
    linux.ping("-c 1 10.9.0.1").unwrap();
}

fn a_linux_that_roams_is_followed_and_follows() {
    let (device, linux) = both();
    linux.endpoint(&device, "192.0.2.1");
    linux.ping("-c 1 10.9.0.1").unwrap();
    linux.run("ip address del 192.0.2.2/24 dev eth0");
    linux.run("ip address add 192.0.2.77/24 dev eth0");
    linux.run("wg set wg0 listen-port 9999");
    linux.ping("-c 1 10.9.0.1").unwrap();
    assert_eq!(device.shown("endpoints", &linux.public()), "192.0.2.77:9999");
    device.ping("-c 1 fd09::2").unwrap();
    linux.endpoint(&device, "[2001:db8::1]");
    linux.ping("-c 1 10.9.0.1").unwrap();
    assert_eq!(device.shown("endpoints", &linux.public()), "[2001:db8::2]:9999");
    device.wg("set NAME listen-port 9998").unwrap();
    device.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!(linux.shown("endpoints"), "[2001:db8::1]:9998");
}

fn a_persistent_keepalive_of_either_is_heard() {
    let (device, linux) = both();
    let received = |shown: String| shown.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    linux.endpoint(&device, "192.0.2.1");
    linux.run(&format!("wg set wg0 peer {} persistent-keepalive 1", device.public()));
    let of_linux = || received(device.shown("transfer", &linux.public()));
    super::eventually("Linux's initiation, and its keepalive", || of_linux() > 148);
    let before = of_linux();
    super::eventually("two more of its keepalives", || of_linux() >= before + 64);
    assert_eq!((of_linux() - before) % 32, 0);
    linux.run(&format!("wg set wg0 peer {} persistent-keepalive 0", device.public()));
    let before = received(linux.shown("transfer"));
    device.wg(&format!("set NAME peer {} persistent-keepalive 1", linux.public())).unwrap();
    super::eventually("two of our keepalives", || received(linux.shown("transfer")) >= before + 64);
}

/// The one that began renews them, without any packet lost.
fn keys_are_renewed_after_two_minutes() {
    let (device, linux) = both();
    linux.endpoint(&device, "192.0.2.1");
    linux.ping("-c 1 10.9.0.1").unwrap();
    let began = Instant::now();
    let first = device.shown("latest-handshakes", &linux.public());
    while device.shown("latest-handshakes", &linux.public()) == first {
        assert!(began.elapsed() < REKEY + PATIENCE, "the same keys after {:?}", began.elapsed());
        device.ping("-c 1 10.9.0.2").unwrap();
        device.ping("-c 10 -i 0.1 fd09::2").unwrap();
    }
    assert!(began.elapsed() + Duration::from_secs(5) > REKEY, "other keys after {:?}", began.elapsed());
    device.ping("-c 1 10.9.0.2").unwrap();
    linux.ping("-c 1 fd09::1").unwrap();
}
