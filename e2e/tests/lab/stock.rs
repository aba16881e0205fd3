//! Stock WireGuard clients, without an agent: wireguard-go behind a NAT.

use std::net::IpAddr;

use anyhow::{Context, anyhow, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    host::Host,
    nat::NatProfile,
    pods,
    process::{Command, Process},
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{
    CannotRun, Outcome,
    first_tunnel::pod_address,
    machine::{self, Machine},
    product, tests,
};

tests![
    wireguard_go_behind_a_nat_works_from_the_configuration_secret,
    the_wireguard_of_linux_behind_two_nats_works_from_the_configuration_secret,
    a_client_with_its_own_key_gets_all_but_the_key
];

/// The parts of a wg-quick file that `wg setconf` does not take, and the rest.
fn split(config: &str) -> (Vec<(String, String)>, String) {
    let is_quick =
        |line: &str| ["Address", "DNS", "MTU"].iter().any(|key| line.trim_start().starts_with(key));
    let quick = config.lines().filter(|line| is_quick(line)).filter_map(|line| line.split_once('='));
    let quick = quick.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
    let rest = config.lines().filter(|line| !is_quick(line)).collect::<Vec<_>>().join("\n");
    (quick, rest)
}

/// What `wg-quick up` does, by hand: it would change the machine's own /etc.
pub(crate) async fn wg_up(lab: &Lab, host: &Host, config: &str) -> anyhow::Result<Process> {
    let (quick, rest) = split(config);
    let path = pinhole_e2e::state::directory().join(format!("{}.conf", host.name()));
    std::fs::write(&path, rest)?;
    let wireguard_go = lab.cluster().tools().path("wireguard-go")?;
    // The interface's name is the machine's: wireguard-go's socket lies in /var/run/wireguard.
    let device = format!("wg{}", host.name().bytes().map(u32::from).sum::<u32>());
    let process = host.spawn("wireguard-go", &Command::new(wireguard_go).args(["-f", &device])).await?;
    wait::until("wireguard-go", PATIENCE, || host.exec("wg", ["show", &device])).await?;
    host.exec("wg", ["setconf", &device, &path.display().to_string()]).await?;
    for (key, value) in &quick {
        for address in value.split(',').map(str::trim).filter(|_| key == "Address") {
            host.exec("ip", ["address", "add", address, "dev", &device]).await?;
        }
    }
    host.exec("ip", ["link", "set", &device, "up", "mtu", "1420"]).await?;
    for line in config.lines().filter(|line| line.trim_start().starts_with("AllowedIPs")) {
        let (_, routes) = line.split_once('=').context("no routes")?;
        for route in routes.split(',').map(str::trim) {
            host.exec("ip", ["route", "replace", route, "dev", &device]).await?;
        }
    }
    Ok(process)
}

pub(crate) async fn configuration(vpn: &Vpn<'_>, client: &str) -> anyhow::Result<String> {
    let secret = format!("{client}-wireguard");
    let args = ["get", "secret", &secret, "-o", "go-template={{ index .data \"wg0.conf\" | base64decode }}"];
    let text = wait::until("the configuration", PATIENCE, || async {
        let text = vpn.kubectl(&args).await.map_err(|error| error.to_string())?;
        if text.contains("Endpoint") {
            Ok(text)
        } else {
            Err(format!("{} lines without an endpoint", text.lines().count()))
        }
    });
    Ok(text.await?)
}

async fn wireguard_go_behind_a_nat_works_from_the_configuration_secret(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "stock", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.86.0.0/24]", "routes: [10.244.0.0/24]").await?;
    let pod = pod_address(&vpn).await?;
    vpn.apply("kind: VPNClient\nmetadata: { name: phone, namespace: stock }\nspec: { poolRef: { name: staff }, keepalive: { mode: Fixed, interval: 5s } }")
        .await?;
    let config = configuration(&vpn, "phone").await?;
    ensure!(config.contains("PersistentKeepalive = 5"), "no keepalive in the configuration");
    let printed = vpn.plugin(&["config", "phone"]).await?;
    ensure!(printed.trim() == config.trim(), "kubectl pinhole config prints something else");
    let code = vpn.plugin(&["config", "phone", "--qr"]).await?;
    ensure!(code.lines().count() > 20 && code.contains('█'), "no QR code: {code}");
    let host = lab.nat_host("stock", NatProfile::symmetric()).await?;
    let process = wg_up(lab, &host, &config).await?;
    wait::until("a pod to answer the phone", PATIENCE, || host.ping(pod)).await?;
    let client = vpn.client_in("phone", ClientPhase::Connected, PATIENCE).await?;
    let status = client.status.context("no status")?;
    let endpoint: std::net::SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
    ensure!(endpoint.ip() == IpAddr::from(host.nat().context("no NAT")?.address()), "{endpoint}");
    // The other way: something behind the gateway asks the phone.
    let address = status.addresses.first().context("no address")?.to_string();
    let toolbox = pinhole_e2e::setup::rust::toolbox().await?;
    let echo = host.spawn("echo", &Command::new(&toolbox).args(["tcp-echo", "7000"])).await?;
    wait::until("the gateway to reach the phone", PATIENCE, || async {
        pods::exec(lab, vpn.namespace(), "edge-0", &toolbox, &["connect", &format!("{address}:7000")]).await
    })
    .await?;
    echo.kill().await?;
    hears_nothing_and_again(&vpn, &host, pod).await?;
    process.kill().await?;
    vpn.client("phone", "to be seen leaving", PATIENCE, |client| {
        client.status.as_ref().and_then(|status| status.phase) != Some(ClientPhase::Connected)
    })
    .await?;
    vpn.delete().await?;
    Ok(())
}

/// Nothing that comes in reaches the phone, and all that it sends goes out: its gateway says so until that is over.
async fn hears_nothing_and_again(vpn: &Vpn<'_>, host: &Host, pod: IpAddr) -> Outcome {
    let nat = host.nat().context("no NAT")?;
    nat.set_deaf(true).await?;
    // It doubts its session only when it misses an answer.
    let asking = host.spawn("ping", &Command::new("ping").args(["-q", &pod.to_string()])).await?;
    vpn.condition("vc/phone", "Connected", "False", "HearsNothing").await?;
    nat.set_deaf(false).await?;
    vpn.client_in("phone", ClientPhase::Connected, PATIENCE).await?;
    asking.kill().await?;
    Ok(())
}

/// A machine of its own behind a host, which translates for it as a router at home does.
struct Linux {
    machine: Machine,
    host: Host,
}

impl Linux {
    async fn boot(lab: &Lab, name: &str) -> anyhow::Result<Self> {
        let host = lab.nat_host(name, NatProfile::symmetric()).await?;
        host.netns()
            .ip(["tuntap add tap0 mode tap", "address add 192.168.200.1/24 dev tap0", "link set tap0 up"])
            .await?;
        host.netns().sysctl("net/ipv4/ip_forward", 1)?;
        let rules = "add table ip router; add chain ip router out { type nat hook postrouting priority srcnat; }; \
                     add rule ip router out oifname eth0 masquerade";
        host.exec("nft", [rules]).await?;
        let netns = host.netns().clone();
        let boot = move || {
            Machine::boot("tap0", |mut command| {
                netns.within(|| command.spawn()).map_err(std::io::Error::other).flatten()
            })
        };
        let machine = tokio::task::spawn_blocking(boot).await?;
        let linux = Self { machine, host };
        for line in [
            "ip address add 192.168.200.2/24 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 192.168.200.1",
            "ip link add wg0 type wireguard",
        ] {
            linux.run(line)?;
        }
        Ok(linux)
    }

    fn run(&self, line: &str) -> anyhow::Result<String> {
        tokio::task::block_in_place(|| self.machine.command(line)).map_err(|error| anyhow!(error))
    }

    /// What `wg-quick up` does.
    fn up(&self, config: &str) -> Outcome {
        let (quick, rest) = split(config);
        for line in rest.lines() {
            self.run(&format!("echo '{line}' >> /tmp/conf"))?;
        }
        self.run("wg setconf wg0 /tmp/conf")?;
        for (key, value) in &quick {
            for address in value.split(',').map(str::trim).filter(|_| key == "Address") {
                self.run(&format!("ip address add {address} dev wg0"))?;
            }
        }
        self.run("ip link set wg0 up mtu 1420")?;
        for line in rest.lines().filter(|line| line.trim_start().starts_with("AllowedIPs")) {
            let (_, routes) = line.split_once('=').context("no routes")?;
            for route in routes.split(',').map(str::trim) {
                self.run(&format!("ip route replace {route} dev wg0"))?;
            }
        }
        Ok(())
    }

    async fn reaches(&self, what: &str, ping: &str) -> Outcome {
        let answered = || async { self.run(&format!("ping -c 1 -W 2 {ping}")) };
        Ok(wait::until(what, PATIENCE, answered).await.map(drop)?)
    }
}

async fn the_wireguard_of_linux_behind_two_nats_works_from_the_configuration_secret(lab: &Lab) -> Outcome {
    if !machine::is_there() {
        return Err(CannotRun("needs an emulator, and a Linux to boot in it").into());
    }
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "stock-linux", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.85.0.0/24]", "routes: [10.244.0.0/24]").await?;
    let pod = pod_address(&vpn).await?;
    vpn.apply(
        "kind: VPNClient\nmetadata: { name: desktop, namespace: stock-linux }\nspec: { poolRef: { name: staff }, \
         keepalive: { mode: Fixed, interval: 5s } }",
    )
    .await?;
    let linux = Linux::boot(lab, "stock-linux").await?;
    linux.up(&configuration(&vpn, "desktop").await?)?;
    linux.reaches("a pod to answer", &pod.to_string()).await?;
    for size in [0, 1, 17, 1392, 4000] {
        linux.reaches("a pod to answer all lengths", &format!("-s {size} {pod}")).await?;
    }
    let client = vpn.client_in("desktop", ClientPhase::Connected, PATIENCE).await?;
    let status = client.status.context("no status")?;
    let nat = linux.host.nat().context("no NAT")?;
    let endpoint: std::net::SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
    ensure!(endpoint.ip() == IpAddr::from(nat.address()), "{endpoint}");
    // The other way, to somebody who has been silent.
    let address = status.addresses.first().context("no address")?.to_string();
    linux.run("nc -ll -p 7000 -e cat > /dev/null 2>&1 &")?;
    let toolbox = pinhole_e2e::setup::rust::toolbox().await?;
    wait::until("the gateway to reach it", PATIENCE, || async {
        pods::exec(lab, vpn.namespace(), "edge-0", &toolbox, &["connect", &format!("{address}:7000")]).await
    })
    .await?;
    // Its path changes under it, then its gateway.
    nat.rebind().await?;
    linux.reaches("a pod to answer by the new mapping", &pod.to_string()).await?;
    pods::kill(lab, vpn.namespace(), "edge-0")?;
    linux.reaches("a pod to answer by the gateway that was restarted", &pod.to_string()).await?;
    vpn.delete().await?;
    Ok(())
}

async fn a_client_with_its_own_key_gets_all_but_the_key(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "stock-own", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.87.0.0/24]", "").await?;
    vpn.apply(
        "kind: VPNClient\nmetadata: { name: router, namespace: stock-own }\nspec: { poolRef: { name: staff }, \
         publicKey: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=, addresses: [10.87.0.77] }",
    )
    .await?;
    let config = configuration(&vpn, "router").await?;
    ensure!(config.contains("10.87.0.77/32"), "not its fixed address");
    let has_key = config.lines().any(|line| line.trim_start().starts_with("PrivateKey"));
    ensure!(!has_key, "there is a private key that nobody but the router can know");
    vpn.delete().await?;
    Ok(())
}
