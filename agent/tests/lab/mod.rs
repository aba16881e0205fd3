//! Three namespaces in a row: a client, a gateway, and a host that only the gateway reaches.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod house;
mod http2;
mod nat;
mod operator;
pub(crate) mod second_vpn;
pub(crate) mod twin;

use std::{
    fmt,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

pub(crate) use http2::Http2;
pub(crate) use nat::Nat;
pub(crate) use operator::Operator;
use pinhole_agent::tunnel::PrivateKey;
use pinhole_reception::hostile::{Conduct, Strangers};

const PINHOLE: &str = env!("CARGO_BIN_EXE_pinhole");

/// Waits for a condition, and fails when it does not come true.
#[track_caller]
pub(crate) fn eventually(within: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(50));
    }
}

/// The namespaces, with the operator in the gateway's. The fields go in their order.
pub(crate) struct Lab {
    pub(crate) operator: Operator,
    directory: tempfile::TempDir,
    gateway: Namespace,
    client: Namespace,
    nat: Option<Nat>,
    host: Namespace,
}

/// A network namespace, gone with it.
struct Namespace(String);

impl Namespace {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        let namespace = Namespace(name);
        ip(&format!("-n {namespace} link set lo up"));
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Traffic that ends by itself.
pub(crate) struct Load {
    client: std::cell::RefCell<Running>,
    _server: Running,
}

impl Load {
    pub(crate) fn is_running(&self) -> bool {
        self.client.borrow_mut().0.try_wait().unwrap().is_none()
    }
}

/// How a client without an agent is set up, by hand.
pub(crate) struct Stock<'a> {
    pub(crate) addresses: &'a [&'a str],
    pub(crate) endpoint: &'a str,
    pub(crate) allowed: &'a str,
    pub(crate) routes: &'a [&'a str],
}

/// Pings that are under way.
pub(crate) struct Pings {
    child: Child,
    count: u32,
}

impl Pings {
    fn begin(namespace: &Namespace, address: &str, count: u32) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace.0, "ping", "-q", "-i", "0.02", "-W", "2", "-c"]);
        command.arg(count.to_string()).arg(address).stdout(Stdio::piped());
        Pings { child: command.spawn().expect("`ping` runs"), count }
    }

    /// Ends them before their time.
    pub(crate) fn stop(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the last one. How many were not answered.
    pub(crate) fn lost(self) -> u32 {
        let output = self.child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let received = told.split(", ").find_map(|part| part.strip_suffix(" received")?.parse::<u32>().ok());
        self.count - received.unwrap_or_else(|| panic!("no figures: {told}"))
    }
}

/// A process that is killed with it.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Bytes of memory that it has now.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Asks it to end, as the kubelet does, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.wait()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ping(namespace: &Namespace, address: &str) -> bool {
    let ping = Command::new("ip")
        .args(["netns", "exec", &namespace.0, "ping", "-n", "-c", "1", "-W", "1", address])
        .stdout(Stdio::null())
        .status();
    ping.expect("`ping` runs").success()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("`ip` runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |gateway, client| {
            ip(&format!("-n {gateway} link add out type veth peer name wan netns {client}"));
            ip(&format!("-n {client} address add 192.0.2.2/24 dev wan"));
            None
        })
    }

    /// The client is a machine of its own, at a tap of this name.
    pub(crate) fn beside_a_machine(name: &str, tap: &str) -> Self {
        Self::with(name, |gateway, client| {
            ip(&format!("-n {gateway} link add out type veth peer name wan netns {client}"));
            ip(&format!("-n {client} link add cable type bridge"));
            ip(&format!("-n {client} tuntap add {tap} mode tap"));
            for port in ["wan", tap] {
                ip(&format!("-n {client} link set {port} up master cable"));
            }
            ip(&format!("-n {client} link set cable up"));
            None
        })
    }

    /// The client is behind a NAT that forgets after these seconds: a mapping that is new, and one in use.
    pub(crate) fn behind_a_nat(name: &str, timeouts: (u32, u32)) -> Self {
        Self::with(name, |gateway, client| Some(Nat::between(gateway, client, timeouts)))
    }

    /// A client that is connected from behind such a NAT, and whose beats are answered. The gateway runs as long as the second.
    pub(crate) fn connected_behind_a_nat(name: &str, timeouts: (u32, u32)) -> (Self, Running) {
        const SOON: Duration = Duration::from_secs(15);
        let lab = Self::behind_a_nat(name, timeouts);
        let gateway = lab.gateway();
        eventually(SOON, "the gateway is ready", || lab.readyz());
        lab.up(&[]);
        eventually(SOON, "beats are answered", || {
            lab.status().is_some_and(|it| it["keepalive"]["beats"] == true)
        });
        (lab, gateway)
    }

    /// The client enrols, and is connected.
    pub(crate) fn up(&self, more: &[&str]) -> Output {
        let arguments = [&["up", "--detach", "--no-dns", "--token-file", "-"], more].concat();
        let up = self.client(&arguments, &self.join("secret"));
        assert!(up.status.success(), "{up:?}");
        up
    }

    fn with(name: &str, connect: impl FnOnce(&Namespace, &Namespace) -> Option<Nat>) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        let directory = tempfile::tempdir().unwrap();
        let prefix = format!("ph{}{name}", std::process::id());
        let namespace = |role: &str| Namespace::new(format!("{prefix}{role}"));
        let (gateway, client, host) = (namespace("g"), namespace("c"), namespace("h"));
        let nat = connect(&gateway, &client);
        ip(&format!("-n {gateway} link add in type veth peer name wan netns {host}"));
        ip(&format!("-n {gateway} address add 192.0.2.1/24 dev out"));
        ip(&format!("-n {gateway} address add 10.50.0.1/24 dev in"));
        ip(&format!("-n {host} address add 10.50.0.2/24 dev wan"));
        for (namespace, device) in [(&gateway, "out"), (&gateway, "in"), (&client, "wan"), (&host, "wan")] {
            ip(&format!("-n {namespace} link set {device} up"));
        }
        if nat.is_some() {
            ip(&format!("-n {client} route add default via 10.0.0.1"));
        }
        let operator = Operator::start(&gateway.0, directory.path());
        Lab { operator, directory, gateway, client, nat, host }
    }

    /// The NAT of a client that is behind one.
    pub(crate) fn nat(&self) -> &Nat {
        self.nat.as_ref().unwrap()
    }

    /// Whether the gateway reaches the client through the tunnel: the test that a mapping lives.
    pub(crate) fn gateway_pings(&self, address: &str) -> bool {
        ping(&self.gateway, address)
    }

    /// Signals the agent in the client's namespace.
    pub(crate) fn signal_client(&self, signal: nix::sys::signal::Signal) {
        let pids = Command::new("ip").args(["netns", "pids", &self.client.0]).output().unwrap();
        let pids = String::from_utf8(pids.stdout).unwrap();
        // Another VPN of this machine may be `pinhole wg`.
        let is_agent = |words: &str| {
            let mut words = words.split('\0');
            words.next().is_some_and(|program| program.ends_with("pinhole")) && words.next() != Some("wg")
        };
        let mut agents = pids.lines().filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| is_agent(&words))
        });
        let agent = agents.next().expect("an agent runs").parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), signal).unwrap();
    }

    /// Sends TCP both ways between the client and the host behind the gateway, as much as there is room for.
    pub(crate) fn saturate(&self, time: Duration) -> Load {
        let iperf = |namespace: &Namespace, arguments: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &namespace.0, "iperf3"]).args(arguments).stdout(Stdio::null());
            Running(command.spawn().expect("`iperf3` runs"))
        };
        let server = iperf(&self.host, &["-s", "-1"]);
        eventually(Duration::from_secs(5), "iperf3 listens", || {
            let listening = Command::new("ip").args(["netns", "exec", &self.host.0, "ss", "-ltn"]).output();
            String::from_utf8_lossy(&listening.unwrap().stdout).contains(":5201")
        });
        let seconds = time.as_secs().to_string();
        let client = iperf(&self.client, &["-c", "10.50.0.2", "-t", &seconds, "--bidir"]);
        Load { client: std::cell::RefCell::new(client), _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the gateway.
    pub(crate) fn gateway(&self) -> Running {
        self.gateway_on("pinhole0")
    }

    /// Starts the gateway with a device of this name.
    pub(crate) fn gateway_on(&self, device: &str) -> Running {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.gateway.0, PINHOLE, "gateway"])
            .env("PINHOLE_OPERATOR", Operator::url())
            .env("PINHOLE_OPERATOR_CA", self.operator.ca_file())
            .env("PINHOLE_TOKEN_FILE", self.operator.token_file())
            .env("PINHOLE_KEYS", self.operator.key_directory())
            .env("POD_NAME", "edge-0")
            .env("POD_IP", "192.0.2.1")
            .env("PINHOLE_STATE_DIR", self.path("gateway"))
            // More than this machine would get, so that most of what comes in is another thread's.
            .env("PINHOLE_THREADS", "3")
            .env("PINHOLE_UPLINK", "in")
            .env("PINHOLE_TUN", device)
            .env("PINHOLE_LOG", "pinhole_agent=debug,info")
            .stdin(Stdio::null())
            .spawn()
            .expect("the gateway starts");
        Running(child)
    }

    /// Starts a sidecar in the client's namespace.
    pub(crate) fn sidecar(&self) -> Running {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.client.0, PINHOLE, "sidecar"])
            .env("PINHOLE_POOL", "laptops")
            .env("PINHOLE_POOL_NAMESPACE", "branch")
            .env("PINHOLE_GATEWAY_SESSION", "192.0.2.1:51821")
            .env("PINHOLE_SERVER_NAME", "edge.branch.gateway.pinhole.dev")
            .env("PINHOLE_CA", self.operator.ca_pem())
            .env("PINHOLE_SA_TOKEN_FILE", self.operator.token_file())
            .env("PINHOLE_STATE_DIR", self.path("client"))
            .stdin(Stdio::null())
            .spawn()
            .expect("the sidecar starts");
        Running(child)
    }

    /// Starts a stock client in a namespace: its device `name` has these addresses, and it sends all of `allowed` to the gateway
    /// at `endpoint`, whatever its pool says.
    fn stock(&self, namespace: &Namespace, name: &str, stock: &Stock<'_>) -> Running {
        let key = PrivateKey::generate().unwrap();
        self.operator.add_stock(name, key.public().as_bytes(), stock.addresses);
        self.stock_of(&key, namespace, name, stock)
    }

    /// The same of one that the gateway knows, with its key.
    fn stock_of(&self, key: &PrivateKey, namespace: &Namespace, name: &str, stock: &Stock<'_>) -> Running {
        let mut wg = Command::new("ip");
        wg.args(["netns", "exec", &namespace.0, PINHOLE, "wg", "-f", name]);
        self.stock_by(wg, key, (namespace, name), stock)
    }

    /// One that the gateway knows, by the clock of [`Self::set_clock`].
    pub(crate) fn stock_with_clock(&self, key: &PrivateKey, name: &str, stock: &Stock<'_>) -> Running {
        let mut wg = self.clocked();
        wg.args(["wg", "-f", name]);
        self.stock_by(wg, key, (&self.client, name), stock)
    }

    fn stock_by(
        &self,
        mut wg: Command,
        key: &PrivateKey,
        (namespace, name): (&Namespace, &str),
        stock: &Stock<'_>,
    ) -> Running {
        let file = self.path(name);
        std::fs::write(&file, key.to_base64().as_bytes()).unwrap();
        let wg = Running(wg.spawn().expect("`pinhole wg` runs"));
        let (file, gateway) = (file.to_str().unwrap().to_owned(), self.operator.gateway_key());
        let set = ["set", name, "private-key", &file, "peer", &gateway, "endpoint", stock.endpoint];
        let allowed = ["allowed-ips", stock.allowed, "persistent-keepalive", "5"];
        eventually(Duration::from_secs(10), "wg sets the stock client up", || {
            let output = Command::new("wg").args(set).args(allowed).output().expect("`wg` runs");
            output.status.success()
        });
        for address in stock.addresses {
            ip(&format!("-n {namespace} address add {address} dev {name}"));
        }
        ip(&format!("-n {namespace} link set {name} up mtu 1420"));
        for route in stock.routes {
            ip(&format!("-n {namespace} route replace {route} dev {name}"));
        }
        wg
    }

    pub(crate) fn stock_client(&self, name: &str, stock: &Stock<'_>) -> Running {
        self.stock(&self.client, name, stock)
    }

    pub(crate) fn stock_host(&self, name: &str, stock: &Stock<'_>) -> Running {
        self.stock(&self.host, name, stock)
    }

    /// Leads what the host sends to a client to the gateway, outside of any tunnel.
    pub(crate) fn host_knows_the_way_to(&self, client: &str) {
        ip(&format!("-n {} route replace {client} via 10.50.0.1", self.host));
    }

    /// Runs `ip` in the gateway's namespace.
    pub(crate) fn gateway_ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.gateway));
    }

    /// Starts the client as a service manager does that listens there.
    pub(crate) fn service(&self, notify: &Path, join: &str) -> Running {
        let token = self.path("join");
        std::fs::write(&token, join).unwrap();
        let mut command = Command::new("ip");
        // No more than the unit leaves it.
        let bounds = "-all,+net_admin,+net_bind_service";
        command.args([
            "netns",
            "exec",
            &self.client.0,
            "setpriv",
            "--no-new-privs",
            "--bounding-set",
            bounds,
        ]);
        command.args([PINHOLE, "up", "--no-dns", "--token-file"]).arg(token);
        command
            .env("PINHOLE_STATE_DIR", self.path("client"))
            .env("PINHOLE_LOG", "pinhole_agent=debug,warn")
            .env("NOTIFY_SOCKET", notify)
            .env_remove("PINHOLE_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Running(command.spawn().expect("the client starts"))
    }

    pub(crate) fn within_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        operator::within(&self.client.0, work)
    }

    pub(crate) fn within_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        operator::within(&self.host.0, work)
    }

    /// A join string with this secret.
    pub(crate) fn join(&self, secret: &str) -> String {
        self.join_at(secret, "192.0.2.1:51821")
    }

    pub(crate) fn join_at(&self, secret: &str, endpoint: &str) -> String {
        self.operator.join(secret, endpoint)
    }

    /// Runs the command in the client's namespace.
    pub(crate) fn client(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client.0, PINHOLE]).args(arguments);
        self.run(command, input)
    }

    /// The same on a machine whose clock is as [`set_clock`](Self::set_clock) says, also when that changes.
    pub(crate) fn client_with_clock(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.clocked();
        command.args(arguments);
        self.run(command, input)
    }

    /// `pinhole` on the client's host, by a clock of its own.
    fn clocked(&self) -> Command {
        const LIBRARY: &str = "libfaketime.so.1";
        let library = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime"]
            .into_iter()
            .map(|directory| Path::new(directory).join(LIBRARY))
            .find(|library| library.exists())
            .expect("clocks need libfaketime: `apt-get install libfaketime`");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client.0, PINHOLE]);
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.path("clock"));
        // Read at each look at the clock, and only the wall clock is wrong.
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }

    /// How far the client's clock is from everybody else's: `-30m`, `+400d`.
    pub(crate) fn set_clock(&self, offset: &str) {
        let new = self.path("clock.new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, self.path("clock")).unwrap();
    }

    pub(crate) fn unprivileged_client(&self, arguments: &[&str], input: &str) -> Output {
        // A copy, as nobody but root may look into where it was built.
        let copy = Path::new("/tmp").join(format!("{}-pinhole", self.client));
        std::fs::copy(PINHOLE, &copy).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client.0, "setpriv", "--reuid=65534", "--clear-groups"]);
        command.arg(&copy).args(arguments);
        let output = self.run(command, input);
        std::fs::remove_file(copy).unwrap();
        output
    }

    pub(crate) fn client_without_tun(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new("ip");
        let script = "mount -t tmpfs none /dev/net && exec \"$@\"";
        command.args([
            "netns",
            "exec",
            &self.client.0,
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            PINHOLE,
        ]);
        command.args(arguments);
        self.run(command, input)
    }

    fn run(&self, command: Command, input: &str) -> Output {
        self.run_on("client", command, input)
    }

    /// Runs a command of the machine that keeps its state in this directory.
    fn run_on(&self, state: &str, mut command: Command, input: &str) -> Output {
        let mut child = command
            .env("PINHOLE_STATE_DIR", self.path(state))
            .env("PINHOLE_NAME", "pinhole0")
            .env("PINHOLE_LOG", "pinhole_agent=debug,warn")
            .env_remove("PINHOLE_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(std::fs::File::create(self.path("stderr")).unwrap()))
            .spawn()
            .expect("the client starts");
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let status = child.wait().unwrap();
        let stderr = std::fs::read_to_string(self.path("stderr")).unwrap();
        Output { status, stdout, stderr }
    }

    /// `pinhole status -o json`, `None` when the tunnel is not up.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let output = self.client(&["status", "--name", "pinhole0", "-o", "json"], "");
        let statuses: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
        statuses.get(0).cloned()
    }

    /// What the agent in the background wrote.
    pub(crate) fn client_log(&self) -> String {
        std::fs::read_to_string(self.path("client/pinhole0/log")).unwrap_or_default()
    }

    /// The configuration that the client keeps.
    pub(crate) fn client_config(&self) -> String {
        let kept = std::fs::read(self.path("client/pinhole0/config.bin")).unwrap_or_default();
        String::from_utf8_lossy(&kept).into_owned()
    }

    pub(crate) fn client_pings(&self, address: &str) -> bool {
        ping(&self.client, address)
    }

    /// Whether the gateway's host, which shares a network with the client, gets an answer from there and not by the tunnel.
    pub(crate) fn neighbour_pings(&self, address: &str) -> bool {
        let ping =
            ["netns", "exec", &self.gateway.0, "ping", "-n", "-c", "1", "-W", "1", "-I", "out", address];
        Command::new("ip").args(ping).stdout(Stdio::null()).status().expect("`ping` runs").success()
    }

    pub(crate) fn client_ruleset(&self) -> String {
        let rules =
            Command::new("ip").args(["netns", "exec", &self.client.0, "nft", "list", "ruleset"]).output();
        String::from_utf8(rules.expect("`nft` runs").stdout).unwrap()
    }

    /// Begins to ping from the client, every 20 ms.
    pub(crate) fn steady_pings(&self, address: &str, count: u32) -> Pings {
        Pings::begin(&self.client, address, count)
    }

    /// Whether a client has begun, connected or not.
    pub(crate) fn client_waits(&self) -> bool {
        self.path("client/pinhole0/wireguard.key").exists()
    }

    pub(crate) fn client_links(&self) -> String {
        let links = Command::new("ip").args(["-n", &self.client.0, "-o", "link"]).output().unwrap();
        String::from_utf8(links.stdout).unwrap()
    }

    /// Runs `ip` in the client's namespace. What it printed.
    pub(crate) fn client_ip(&self, words: &str) -> String {
        self.try_client_ip(words).unwrap_or_else(|complaint| panic!("ip {words}: {complaint}"))
    }

    pub(crate) fn try_client_ip(&self, words: &str) -> Result<String, String> {
        let output = Command::new("ip").args(["-n", &self.client.0]).args(words.split(' ')).output().unwrap();
        let told = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(told(output.stdout)) } else { Err(told(output.stderr)) }
    }

    pub(crate) fn renumber_client(&self, from: &str, to: &str) {
        ip(&format!("-n {} address del {from} dev wan", self.client));
        ip(&format!("-n {} address add {to} dev wan", self.client));
    }

    fn get(&self, path: &str) -> Option<String> {
        self.operator.in_gateway(move || {
            let mut stream = TcpStream::connect("127.0.0.1:9090").ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    }

    /// Connections from the gateway's own address to its session port that say nothing.
    pub(crate) fn strangers(&self, count: usize) -> Vec<TcpStream> {
        self.operator.in_gateway(move || {
            (0..count).map(|_| TcpStream::connect("192.0.2.1:51821").expect("the port is open")).collect()
        })
    }

    /// A stranger that speaks HTTP/2 to the gateway's session port, for calls of this method.
    pub(crate) fn http2(&self, method: &str) -> Http2 {
        let tcp =
            self.operator.in_gateway(|| TcpStream::connect("192.0.2.1:51821").expect("the port is open"));
        Http2::over(tcp, self.operator.ca_pem(), "edge.branch.gateway.pinhole.dev", method)
    }

    /// Connections from sixteen addresses to the gateway's session port, with so many half-sent enrolments each.
    pub(crate) fn half_sent(&self, connections: usize, calls: usize) -> Strangers {
        let to = ([127, 0, 0, 1], 51_821).into();
        let conduct = Conduct { to, path: "/pinhole.v1.ClientSession/Enrol", calls };
        let from: Vec<_> = (2..18).map(|n| [127, 0, 0, n].into()).collect();
        let bind = self.operator.binding_in_gateway();
        Strangers::come(&bind, &from, connections, conduct).unwrap()
    }

    pub(crate) fn readyz(&self) -> bool {
        self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// How many packets of the pool's clients were refused for a reason.
    pub(crate) fn refused(&self, reason: &str) -> u64 {
        let sample =
            format!("pinhole_gateway_refused_packets_total{{pool=\"laptops\",reason=\"{reason}\"}} ");
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(&sample));
        line.unwrap_or("0").parse().unwrap()
    }

    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics").unwrap_or_default()
    }

    /// A counter of the gateway that has no labels.
    pub(crate) fn counted(&self, name: &str) -> u32 {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("0").parse().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.client(&["down"], "");
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("client/pinhole0/log")).unwrap_or_default();
            eprintln!("the client's log:\n{log}");
        }
    }
}
