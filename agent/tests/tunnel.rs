//! Tunnels between network namespaces, with all real parts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::socket::{setsockopt, sockopt};
use pinhole_agent::kernel::TunOffload;
use pinhole_agent::tunnel::{
    Offloads, PeerConfig, PeerStats, PrivateKey, Probe, PublicKey, SendFailure, Threads, Tunnel,
    TunnelConfig, TunnelEvent,
};
use tokio::sync::mpsc::{Receiver, channel};

#[path = "namespace/mod.rs"]
mod namespace;
use namespace::Namespace;

const TESTS: &[(&str, fn())] = &[
    ("packets_of_all_sizes_cross_a_tunnel_both_ways", packets_of_all_sizes_cross_a_tunnel_both_ways),
    ("a_tunnel_runs_over_ipv6", a_tunnel_runs_over_ipv6),
    ("a_bulk_transfer_arrives_whole", a_bulk_transfer_arrives_whole),
    ("the_last_of_a_batch_is_not_held_back", the_last_of_a_batch_is_not_held_back),
    ("each_offload_may_be_missing", each_offload_may_be_missing),
    (
        "ends_with_different_offloads_understand_each_other",
        ends_with_different_offloads_understand_each_other,
    ),
    (
        "a_path_that_does_not_split_datagrams_still_carries_all",
        a_path_that_does_not_split_datagrams_still_carries_all,
    ),
    ("a_client_that_rebinds_is_followed_at_once", a_client_that_rebinds_is_followed_at_once),
    ("a_probe_is_answered_and_its_answer_stays_inside", a_probe_is_answered_and_its_answer_stays_inside),
    ("a_removed_peer_is_cut_off_and_a_kept_one_keeps_its_session", a_removed_peer_is_cut_off),
    ("a_network_that_is_gone_is_told", a_network_that_is_gone_is_told),
    ("threads_share_their_peers_and_bring_everything_to_the_right_one", threads_share_their_peers),
    ("threads_go_on_with_new_sockets_together", threads_go_on_with_new_sockets),
    ("a_port_of_several_threads_is_nobody_elses", a_port_of_several_threads_is_nobody_elses),
    ("nothing_is_left_after_shutdown", nothing_is_left_after_shutdown),
];

fn main() {
    let root = nix::unistd::geteuid().is_root();
    let trial = |name: &str, test: fn(), lacking: &str| {
        let run = move || {
            test();
            Ok::<(), Failed>(())
        };
        Trial::test(name, run).with_ignored_flag(!lacking.is_empty()).with_kind(lacking)
    };
    let rights = if root { "" } else { "needs root" };
    let mut trials: Vec<_> = TESTS.iter().map(|&(name, test)| trial(name, test, rights)).collect();
    let interop =
        if wireguard_go().is_some() { rights } else { "needs wireguard-go in ~/.cache/pinhole/tools" };
    trials.push(trial(
        "wireguard_go_is_a_peer_like_any_other",
        wireguard_go_is_a_peer_like_any_other,
        interop,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// One end of a tunnel, and the namespace around it.
struct End {
    tunnel: Tunnel,
    events: Receiver<TunnelEvent>,
    key: PublicKey,
    namespace: Arc<Namespace>,
}

impl End {
    fn start(namespace: Namespace, private_key: PrivateKey, addresses: [&str; 2]) -> Self {
        Self::start_with(namespace, config(private_key, &addresses))
    }

    fn start_with(namespace: impl Into<Arc<Namespace>>, config: TunnelConfig) -> Self {
        let namespace = namespace.into();
        let (sender, events) = channel(1024);
        let (key, device) = (config.private_key.public(), config.tun_name.clone());
        let tunnel = namespace.run(move || Tunnel::start(config, sender).unwrap());
        namespace.await_addresses(&device);
        Self { tunnel, events, key, namespace }
    }

    /// Waits for an event that fits, past all that do not.
    fn await_event<T>(&mut self, what: &str, fits: impl Fn(&TunnelEvent) -> Option<T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut seen = Vec::new();
        let found = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(10), async {
                loop {
                    let event = self.events.recv().await.expect("the tunnel runs");
                    if let Some(found) = fits(&event) {
                        return found;
                    }
                    seen.push(event);
                }
            })
            .await
        });
        found.unwrap_or_else(|_| panic!("no event: {what}; but {seen:?}"))
    }

    fn stats(&self, peer: PublicKey) -> PeerStats {
        self.tunnel.stats().into_iter().find(|stats| stats.public_key == peer).expect("the peer is known")
    }

    fn ping(&self, words: &str) -> Result<String, String> {
        self.namespace.command(&format!("ping -W 3 {words}"))
    }
}

fn config(private_key: PrivateKey, addresses: &[&str]) -> TunnelConfig {
    TunnelConfig {
        private_key,
        listen_port: 0,
        tun_name: "pin0".to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mtu: 1420,
        fwmark: None,
        offloads: Offloads::ALL,
        threads: Threads::ONE,
    }
}

const CLIENT: [&str; 2] = ["10.9.0.2/24", "fd09::2/64"];
const GATEWAY: [&str; 2] = ["10.9.0.1/24", "fd09::1/64"];

fn peer(public_key: PublicKey, allowed_ips: &[&str], endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        public_key,
        preshared_key: None,
        allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
        endpoints: endpoint.into_iter().collect(),
        destinations: None,
    }
}

fn cable() -> (Namespace, Namespace) {
    let (client, gateway) = (Namespace::new(), Namespace::new());
    client.join(("eth0", "192.0.2.2/24"), &gateway, ("eth0", "192.0.2.1/24"));
    for (namespace, address) in [(&client, "2001:db8::2/64"), (&gateway, "2001:db8::1/64")] {
        namespace.ip(&format!("address add {address} dev eth0 nodad"));
        namespace.await_addresses("eth0");
    }
    (client, gateway)
}

/// A client that knows its gateway's address, and a gateway that does not know its client's.
fn pair_over(gateway_address: &str) -> (End, End) {
    pair_with(gateway_address, [Offloads::ALL; 2])
}

fn pair_with(gateway_address: &str, offloads: [Offloads; 2]) -> (End, End) {
    let (client, gateway) = cable();
    let config =
        |addresses, offloads| TunnelConfig { offloads, ..config(PrivateKey::generate().unwrap(), addresses) };
    let client = End::start_with(client, config(&CLIENT, offloads[0]));
    let gateway = End::start_with(gateway, config(&GATEWAY, offloads[1]));
    let endpoint = (gateway_address.parse::<IpAddr>().unwrap(), gateway.tunnel.local_port()).into();
    gateway.tunnel.set_peers(vec![peer(client.key, &["10.9.0.2/32", "fd09::2/128"], None)]);
    client.tunnel.set_peers(vec![peer(gateway.key, &["10.9.0.0/24", "fd09::/64"], Some(endpoint))]);
    (client, gateway)
}

fn await_until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}

fn pair() -> (End, End) {
    pair_over("192.0.2.1")
}

fn packets_of_all_sizes_cross_a_tunnel_both_ways() {
    let (client, gateway) = pair();
    for size in [0, 1, 56, 1391, 1392, 4000] {
        client.ping(&format!("-c 1 -s {size} 10.9.0.1")).unwrap();
        gateway.ping(&format!("-c 1 -s {size} fd09::2")).unwrap();
    }
    // Figures come out after the packets that they count.
    await_until("both ends count the same packets", || {
        gateway.stats(client.key).received == client.stats(gateway.key).sent
    });
    let seen = gateway.stats(client.key);
    assert!(seen.received.packets >= 12);
    assert!(seen.has_session && seen.last_handshake.is_some() && seen.last_receive.is_some());
    assert_eq!(seen.endpoint.map(|endpoint| endpoint.ip()), Some("192.0.2.2".parse().unwrap()));
    assert_eq!((seen.endpoint_changes, seen.dropped), (0, 0));
}

fn a_tunnel_runs_over_ipv6() {
    let (client, gateway) = pair_over("2001:db8::1");
    client.ping("-c 1 10.9.0.1").unwrap();
    let endpoint = gateway.stats(client.key).endpoint;
    assert_eq!(endpoint.map(|endpoint| endpoint.ip()), Some("2001:db8::2".parse().unwrap()));
}

fn a_bulk_transfer_arrives_whole() {
    let (client, gateway) = pair();
    let started = Instant::now();
    transfer(&client, &gateway, "10.9.0.1", 64 << 20);
    eprintln!("64 MiB in {:?}", started.elapsed());
}

/// Sends `size` bytes over TCP, and expects each to arrive in its place.
fn transfer(from: &End, to: &End, address: &str, size: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.namespace.run(move || TcpListener::bind((address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut buffer, mut total, mut right) = (vec![0; 1 << 20], 0, true);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return (total, right),
                length => {
                    right &= buffer[..length].iter().zip(total..).all(|(&byte, n)| byte == byte_at(n));
                    total += length;
                }
            }
        }
    });
    from.namespace.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let chunk: Vec<u8> = (0..251 << 12).map(byte_at).collect();
        let mut left = size;
        while left > 0 {
            let length = left.min(chunk.len());
            stream.write_all(&chunk[..length]).unwrap();
            left -= length;
        }
    });
    assert_eq!(receiver.join().unwrap(), (size, true));
}

/// The largest frame there can be: more than is read in one go, and nothing comes after it.
fn the_last_of_a_batch_is_not_held_back() {
    let (client, gateway) = pair();
    client.ping("-c 1 10.9.0.1").unwrap();
    for _ in 0..20 {
        scatter_in(1100, 65_507, &client, &gateway, "10.9.0.1");
    }
}

fn scatter(from: &End, to: &End, address: &str) {
    scatter_in(1000, 40_077, from, to, address);
}

/// Sends datagrams of this size that the kernel holds together as long as it can, and expects each as it was.
fn scatter_in(size: usize, total: usize, from: &End, to: &End, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let receiver = to.namespace.run(move || UdpSocket::bind((address, 0)).unwrap());
    // Sooner than WireGuard's next message by itself, which would push out what is held back.
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = receiver.local_addr().unwrap();
    let sent: Vec<u8> = (0..total).map(byte_at).collect();
    let bytes = sent.clone();
    from.namespace.run(move || {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let sender = UdpSocket::bind((any, 0)).unwrap();
        setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(size).unwrap()).unwrap();
        assert_eq!(sender.send_to(&bytes, to).unwrap(), bytes.len());
    });
    let mut buffer = vec![0; 2 * size];
    for expected in sent.chunks(size) {
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected);
    }
}

/// All ways that traffic can go.
fn exercise(client: &End, gateway: &End) {
    const SIZE: usize = 6 << 20;
    client.ping("-c 1 10.9.0.1").unwrap();
    for (client_address, gateway_address) in [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")] {
        transfer(client, gateway, gateway_address, SIZE);
        transfer(gateway, client, client_address, SIZE);
        scatter(client, gateway, gateway_address);
        scatter(gateway, client, client_address);
    }
}

fn each_offload_may_be_missing() {
    let all = Offloads::ALL;
    let some = [
        all,
        Offloads { tun: TunOffload::Tcp, ..all },
        Offloads { tun: TunOffload::None, ..all },
        Offloads { udp_gso: false, ..all },
        Offloads { udp_gro: false, ..all },
        Offloads::NONE,
    ];
    for offloads in some {
        let (client, gateway) = pair_with("192.0.2.1", [offloads, offloads]);
        let used = client.tunnel.offloads();
        assert!(used.tun <= offloads.tun && used.udp_gso <= offloads.udp_gso, "{used} of {offloads}");
        exercise(&client, &gateway);
    }
}

fn ends_with_different_offloads_understand_each_other() {
    for offloads in [[Offloads::ALL, Offloads::NONE], [Offloads::NONE, Offloads::ALL]] {
        let (client, gateway) = pair_with("2001:db8::1", offloads);
        exercise(&client, &gateway);
    }
}

fn a_path_that_does_not_split_datagrams_still_carries_all() {
    for (address, change) in [
        ("192.0.2.1", "ethtool -K eth0 tx off tx-udp-segmentation off gro off"),
        ("192.0.2.1", "ip link set eth0 mtu 1400"),
        ("2001:db8::1", "ip link set eth0 mtu 1400"),
    ] {
        let (client, gateway) = pair_over(address);
        client.ping("-c 1 10.9.0.1").unwrap();
        for end in [&client, &gateway] {
            end.namespace.command(change).unwrap();
        }
        exercise(&client, &gateway);
    }
}

fn byte_at(n: usize) -> u8 {
    // A prime, so that no two packets are alike.
    u8::try_from(n % 251).unwrap()
}

fn a_client_that_rebinds_is_followed_at_once() {
    let (client, mut gateway) = pair();
    client.ping("-c 1 10.9.0.1").unwrap();
    let before = client.tunnel.local_port();
    let after = client.tunnel.rebind().unwrap();
    assert_ne!(before, after);
    assert_eq!(client.tunnel.local_port(), after);
    let handshake = client.stats(gateway.key).last_handshake;
    client.tunnel.keepalive(&gateway.key);
    let peer = client.key;
    let (from, to) = gateway.await_event("the endpoint moves", |event| match event {
        TunnelEvent::EndpointChanged { peer: key, from: Some(from), to, .. } if *key == peer => {
            Some((*from, *to))
        }
        _ => None,
    });
    assert_eq!((from.port(), to.port()), (before, after));
    gateway.ping("-c 1 10.9.0.2").unwrap();
    assert_eq!(gateway.stats(client.key).endpoint_changes, 1);
    assert_eq!(client.stats(gateway.key).last_handshake, handshake, "the session went on");
}

fn a_probe_is_answered_and_its_answer_stays_inside() {
    let (mut client, gateway) = pair();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let pairs = [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")];
    for (id, (from, to)) in (7..).zip(pairs) {
        // The first has no session yet, and waits for it.
        client.tunnel.probe(&gateway.key, Probe { from: address(from), to: address(to), id });
        let rtt = client.await_event("an answered probe", |event| match event {
            TunnelEvent::ProbeAnswered { id: answered, rtt, .. } if *answered == id => Some(*rtt),
            _ => None,
        });
        assert!(rtt < Duration::from_secs(5), "{rtt:?}");
    }
    assert_eq!(client.stats(gateway.key).received.packets, 0, "the answers are not for the host");
}

fn a_removed_peer_is_cut_off() {
    let (client, gateway) = pair();
    client.ping("-c 1 10.9.0.1").unwrap();
    let endpoint = gateway.stats(client.key).endpoint;
    let other = PrivateKey::generate().unwrap().public();
    let config = peer(client.key, &["10.9.0.2/32", "fd09::2/128"], None);

    gateway.tunnel.set_peers(vec![peer(other, &["10.9.0.3/32"], None), config.clone()]);
    client.ping("-c 1 10.9.0.1").unwrap();
    let stats = gateway.stats(client.key);
    assert_eq!((stats.endpoint, stats.endpoint_changes), (endpoint, 0), "a reconcile forgot the endpoint");
    assert!(stats.received.packets >= 2, "the figures go on");

    gateway.tunnel.set_peers(vec![peer(other, &["10.9.0.3/32"], None)]);
    assert!(client.ping("-c 1 -W 1 10.9.0.1").is_err());
    assert!(gateway.tunnel.discards().unknown_peer > 0);

    gateway.tunnel.set_peers(vec![config]);
    // An initiation that comes before the peer is back is repeated after 5 s only.
    await_until("the peer is back", || {
        gateway.tunnel.stats().iter().any(|stats| stats.public_key == client.key)
    });
    client.tunnel.handshake(&gateway.key);
    // Until then the client sends by the old session, which nobody knows any more.
    await_until("there is a session", || gateway.stats(client.key).has_session);
    client.ping("-c 1 10.9.0.1").unwrap();
}

fn a_network_that_is_gone_is_told() {
    let (mut client, gateway) = pair();
    client.ping("-c 1 10.9.0.1").unwrap();
    client.namespace.ip("link set eth0 down");
    client.tunnel.keepalive(&gateway.key);
    let category = client.await_event("a failed send", |event| match event {
        TunnelEvent::SendFailed { category, .. } => Some(*category),
        _ => None,
    });
    assert_eq!(category, SendFailure::Unreachable);
    client.namespace.ip("link set eth0 up");
    client.ping("-c 1 10.9.0.1").unwrap();
}

const THREADS: u8 = 3;

/// A gateway of several threads that knows so many clients, and the clients, all in one namespace: `pin0` and so on.
fn several(clients: u8) -> (Vec<End>, End) {
    let (namespace, gateway) = cable();
    let namespace = Arc::new(namespace);
    let threads = THREADS.to_string().parse().unwrap();
    let config_of_gateway = config(PrivateKey::generate().unwrap(), &GATEWAY);
    let gateway = End::start_with(gateway, TunnelConfig { threads, ..config_of_gateway });
    let endpoint = SocketAddr::from(([192, 0, 2, 1], gateway.tunnel.local_port()));
    let clients: Vec<_> = (0..clients)
        .map(|n| {
            // All threads have some.
            let mut keys = std::iter::repeat_with(|| PrivateKey::generate().unwrap());
            let key = keys.find(|key| key.public().as_bytes()[0] % THREADS == n % THREADS).unwrap();
            let address = format!("10.9.0.{}/32", n + 2);
            let tun_name = format!("pin{n}");
            let client = End::start_with(
                Arc::clone(&namespace),
                TunnelConfig { tun_name, ..config(key, &[&address]) },
            );
            namespace.ip(&format!("route add 10.9.0.1 dev pin{n} table {}", 100 + n));
            namespace.ip(&format!("rule add from {address} lookup {}", 100 + n));
            client.tunnel.set_peers(vec![peer(gateway.key, &["10.9.0.1/32"], Some(endpoint))]);
            client
        })
        .collect();
    let peer_of = |(n, client): (u8, &End)| peer(client.key, &[&format!("10.9.0.{}/32", n + 2)], None);
    gateway.tunnel.set_peers((0..).zip(&clients).map(peer_of).collect());
    (clients, gateway)
}

fn threads_share_their_peers() {
    let (clients, gateway) = several(2 * THREADS);
    let pings = |count: u32| {
        for (n, client) in clients.iter().enumerate() {
            client.ping(&format!("-c {count} -i 0.002 -I pin{n} 10.9.0.1")).unwrap();
        }
    };
    pings(1);
    for n in 0..clients.len() {
        gateway.ping(&format!("-c 1 10.9.0.{}", n + 2)).unwrap();
    }
    // Figures come out after the packets that they count.
    await_until("each client is known to one thread", || {
        clients
            .iter()
            .map(|client| gateway.stats(client.key))
            .all(|stats| stats.has_session && stats.received.packets >= 2 && stats.dropped == 0)
    });
    assert_eq!(gateway.tunnel.stats().len(), clients.len());

    // What belongs to a session comes to the right thread, both ways, and nothing is handed over any more.
    let before = gateway.tunnel.work();
    pings(100);
    await_until("the pings are counted", || {
        gateway.tunnel.work().datagrams_received >= before.datagrams_received + 100 * clients.len() as u64
    });
    let work = gateway.tunnel.work();
    // The kernel gives the first packet of a flow to any queue.
    assert!(work.handed_over - before.handed_over <= clients.len() as u64, "{before:?}, then {work:?}");
    assert_eq!(work.lost_between, 0);
    for (n, client) in clients.iter().enumerate() {
        let address = format!("10.9.0.{}", n + 2);
        transfer(&gateway, client, &address, 8 << 20);
    }
    assert_eq!(gateway.tunnel.work().lost_between, 0);
}

fn threads_go_on_with_new_sockets() {
    let (clients, gateway) = several(THREADS);
    let ping_all = || {
        for (n, client) in clients.iter().enumerate() {
            client.ping(&format!("-c 1 -I pin{n} 10.9.0.1")).unwrap();
        }
    };
    ping_all();
    let port = gateway.tunnel.local_port();
    // The same port again.
    assert_eq!(gateway.tunnel.listen(port).unwrap(), port);
    assert_eq!(gateway.tunnel.rebind().unwrap(), port);
    ping_all();
    let other = gateway.tunnel.listen(0).unwrap();
    assert_ne!(other, port);
    let endpoint = SocketAddr::from(([192, 0, 2, 1], other));
    for client in &clients {
        client.tunnel.set_endpoint(&gateway.key, endpoint);
    }
    ping_all();
    let before = gateway.tunnel.work().handed_over;
    ping_all();
    assert_eq!(gateway.tunnel.work().handed_over, before, "new sockets are steered as the old ones were");
}

fn a_port_of_several_threads_is_nobody_elses() {
    let namespace = Arc::new(Namespace::new());
    let threads = THREADS.to_string().parse().unwrap();
    let several = |device: &str, listen_port| TunnelConfig {
        threads,
        listen_port,
        tun_name: device.to_owned(),
        ..config(PrivateKey::generate().unwrap(), &[])
    };
    let first = End::start_with(Arc::clone(&namespace), several("pin0", 0));
    let port = first.tunnel.local_port();
    let second = several("pin1", port);
    let category = namespace.run(move || Tunnel::start(second, channel(1).0).unwrap_err().category());
    assert_eq!(category, "PortInUse");
    // It has left nothing.
    drop(End::start_with(Arc::clone(&namespace), several("pin1", 0)));
    drop(first);
    drop(End::start_with(namespace, several("pin1", port)));
}

fn nothing_is_left_after_shutdown() {
    let (client, _gateway) = pair();
    client.ping("-c 1 10.9.0.1").unwrap();
    let port = client.tunnel.local_port();
    client.tunnel.shutdown();
    assert!(client.namespace.command("ip link show pin0").is_err());
    client.namespace.run(move || std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap());
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    fn start(namespace: &Namespace, mut command: Command) -> Self {
        Self(namespace.run(move || command.spawn().expect("the command starts")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wireguard_go() -> Option<PathBuf> {
    let tools = PathBuf::from(std::env::var_os("HOME")?).join(".cache/pinhole/tools");
    let cached =
        std::fs::read_dir(tools).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    cached.chain(std::env::split_paths(&path)).map(|dir| dir.join("wireguard-go")).find(|file| file.is_file())
}

/// Sets a wireguard-go up by its configuration protocol.
fn configure(socket: &str, settings: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > end => panic!("{socket}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.write_all(format!("set=1\n{settings}\n\n").as_bytes()).unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"errno=0\n\n");
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn wireguard_go_is_a_peer_like_any_other() {
    use base64::{Engine, engine::general_purpose::STANDARD};

    let (stock, gateway) = cable();
    let gateway = End::start(gateway, PrivateKey::generate().unwrap(), GATEWAY);
    // Its configuration socket has its place by name in a directory that all namespaces share.
    let name = format!("wgt{}", std::process::id());
    let mut command = Command::new(wireguard_go().unwrap());
    command.args(["-f", &name]).env("LOG_LEVEL", "error").stdin(Stdio::null()).stdout(Stdio::null());
    let _running = Running::start(&stock, command);
    let private = PrivateKey::generate().unwrap();
    let secret = STANDARD.decode(private.to_base64().as_str()).unwrap();
    configure(
        &format!("/var/run/wireguard/{name}.sock"),
        &format!(
            "private_key={}\npublic_key={}\nendpoint=192.0.2.1:{}\nallowed_ip=10.9.0.0/24\nallowed_ip=fd09::/64",
            hex(&secret),
            hex(gateway.key.as_bytes()),
            gateway.tunnel.local_port()
        ),
    );
    stock.ip(&format!("address add 10.9.0.2/24 dev {name}"));
    stock.ip(&format!("address add fd09::2/64 dev {name}"));
    stock.ip(&format!("link set {name} mtu 1420 up"));
    stock.await_addresses(&name);
    gateway.tunnel.set_peers(vec![peer(private.public(), &["10.9.0.2/32", "fd09::2/128"], None)]);

    for size in [0, 56, 1392, 4000] {
        stock.command(&format!("ping -W 3 -c 1 -s {size} 10.9.0.1")).unwrap();
        gateway.ping(&format!("-c 1 -s {size} fd09::2")).unwrap();
    }
    // Either side may begin a handshake.
    let first = gateway.stats(private.public()).last_handshake;
    gateway.tunnel.handshake(&private.public());
    let end = Instant::now() + Duration::from_secs(10);
    while gateway.stats(private.public()).last_handshake == first {
        assert!(Instant::now() < end, "no second handshake");
        std::thread::sleep(Duration::from_millis(20));
    }
    stock.command("ping -W 3 -c 1 10.9.0.1").unwrap();
}
