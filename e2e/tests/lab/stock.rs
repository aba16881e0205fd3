//! Stock WireGuard clients, without an agent: wireguard-go behind a NAT.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    host::Host,
    nat::NatProfile,
    pods,
    process::Process,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, first_tunnel::pod_address, product, tests};

tests![
    wireguard_go_behind_a_nat_works_from_the_configuration_secret,
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
    let process = host
        .spawn("wireguard-go", &pinhole_e2e::process::Command::new(wireguard_go).args(["-f", &device]))
        .await?;
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
    let echo =
        host.spawn("echo", &pinhole_e2e::process::Command::new(&toolbox).args(["tcp-echo", "7000"])).await?;
    wait::until("the gateway to reach the phone", PATIENCE, || async {
        pods::exec(lab, vpn.namespace(), "edge-0", &toolbox, &["connect", &format!("{address}:7000")]).await
    })
    .await?;
    echo.kill().await?;
    process.kill().await?;
    vpn.client("phone", "to be seen leaving", PATIENCE, |client| {
        client.status.as_ref().and_then(|status| status.phase) != Some(ClientPhase::Connected)
    })
    .await?;
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
