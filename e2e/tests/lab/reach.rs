//! A client reaches what its pool names, whatever it believes.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    cluster::API_V4,
    host::Host,
    installation::NAMESPACE,
    nat::NatProfile,
    pods::{self, HiddenNetwork},
    process::Command,
    setup::rust,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{
    Outcome,
    first_tunnel::pod_address,
    product,
    stock::{configuration, wg_up},
    tests,
};

tests![
    a_stock_client_that_widens_its_allowed_ips_reaches_no_more_than_its_pool_names,
    describing_a_pool_says_what_is_reachable
];

/// The kubelet, by the address that pods have for their node.
const KUBELET: &str = "10.244.0.1:10250";
const METADATA: &str = "169.254.169.254:80";
/// Where a client listens.
const PORT: u16 = 7000;

/// A client whose configuration leads all of the cluster and all other clients into the tunnel.
fn widened(config: &str) -> String {
    let everything = "AllowedIPs = 10.0.0.0/8, 169.254.169.254/32";
    let line = |line: &str| {
        if line.trim_start().starts_with("AllowedIPs") { everything.to_owned() } else { line.to_owned() }
    };
    config.lines().map(line).collect::<Vec<_>>().join("\n")
}

async fn declare_stock(vpn: &Vpn<'_>, name: &str) -> Outcome {
    let namespace = vpn.namespace();
    let spec = "{ poolRef: { name: staff }, keepalive: { mode: Fixed, interval: 5s } }";
    let object =
        format!("kind: VPNClient\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}");
    Ok(vpn.apply(&object).await?)
}

async fn reaches(host: &Host, to: &str) -> anyhow::Result<bool> {
    Ok(host.exec(&rust::toolbox().await?, ["connect", to]).await.is_ok())
}

/// How many packets of the pool's clients the gateway says that it refused for a reason.
async fn refused(vpn: &Vpn<'_>, reason: &str) -> anyhow::Result<u64> {
    let curl = pods::netns(vpn.lab(), vpn.namespace(), "edge-0")?.command("curl");
    let page = curl.args(["-sS", "http://127.0.0.1:9090/metrics"]).run().await?;
    let sample = format!("pinhole_gateway_refused_packets_total{{pool=\"staff\",reason=\"{reason}\"}} ");
    let count = page.lines().find_map(|line| line.strip_prefix(&sample));
    Ok(count.map(str::parse).transpose()?.unwrap_or_default())
}

async fn set_routes(vpn: &Vpn<'_>, routes: &str) -> Outcome {
    let patch = format!(r#"{{"spec":{{"routes":{routes}}}}}"#);
    vpn.kubectl(&["patch", "vcp/staff", "--type=merge", "-p", &patch]).await?;
    Ok(())
}

async fn pod_ip(lab: &Lab, args: &[&str]) -> anyhow::Result<IpAddr> {
    let text = lab.kubectl(["get", "pod"].iter().chain(args)).await?;
    text.split_whitespace().next().context("no pod")?.parse().context("no address")
}

async fn a_stock_client_that_widens_its_allowed_ips_reaches_no_more_than_its_pool_names(
    lab: &Lab,
) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "reach", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.107.0.0/24]", "").await?;
    let pod = pod_address(&vpn).await?;
    for name in ["greedy", "other"] {
        declare_stock(&vpn, name).await?;
    }
    let host = lab.nat_host("reach-greedy", NatProfile::home()).await?;
    let process = wg_up(lab, &host, &widened(&configuration(&vpn, "greedy").await?)).await?;
    let other_host = lab.nat_host("reach-other", NatProfile::home()).await?;
    let other_process = wg_up(lab, &other_host, &widened(&configuration(&vpn, "other").await?)).await?;
    let toolbox = rust::toolbox().await?;
    let echo =
        other_host.spawn("echo", &Command::new(&toolbox).args(["tcp-echo", &PORT.to_string()])).await?;

    let gateway = vpn.gateway_address("staff").await?;
    wait::until("the gateway to answer pings", PATIENCE, || host.ping(gateway)).await?;
    let mut addresses = Vec::new();
    for name in ["greedy", "other"] {
        let client = vpn.client_in(name, ClientPhase::Connected, PATIENCE).await?;
        addresses.extend(client.status.and_then(|status| status.addresses.first().copied()));
    }
    let [own, other] = *addresses else { anyhow::bail!("no addresses: {addresses:?}") };
    let gateway_pod =
        pod_ip(lab, &["-n", vpn.namespace(), "edge-0", "-o", "jsonpath={.status.podIP}"]).await?;
    let labelled =
        ["-l", "app.kubernetes.io/name=pinhole-operator", "-o", "jsonpath={.items[*].status.podIP}"];
    let operator = pod_ip(lab, &[&["-n", NAMESPACE][..], &labelled].concat()).await?;

    let routed =
        [format!("{API_V4}:443"), KUBELET.to_owned(), format!("{operator}:8080"), format!("{pod}:9000")];
    let kept = [
        format!("{gateway}:9090"),
        format!("{gateway_pod}:9090"),
        format!("{other}:{PORT}"),
        METADATA.to_owned(),
    ];
    // All of it is there, for the gateway.
    for to in routed.iter().chain(&kept).filter(|to| *to != METADATA) {
        pods::exec(lab, vpn.namespace(), "edge-0", &toolbox, &["connect", to])
            .await
            .with_context(|| to.clone())?;
    }
    for to in routed.iter().chain(&kept) {
        ensure!(!reaches(&host, to).await?, "{to} is reached without a route");
    }
    for reason in ["no-route", "gateway", "other-client", "metadata"] {
        ensure!(refused(&vpn, reason).await? > 0, "nothing was refused for {reason}");
    }

    set_routes(&vpn, r#"["10.96.0.0/16", "10.244.0.0/24"]"#).await?;
    for to in &routed {
        let try_it =
            || async { if reaches(&host, to).await.is_ok_and(|is| is) { Ok(()) } else { Err("no") } };
        wait::until(&format!("{to} to be reached, as a route names it"), PATIENCE, try_it).await?;
    }
    for to in &kept {
        ensure!(!reaches(&host, to).await?, "{to} is reached by a route");
    }
    host.ping(gateway).await?;

    // Who knows the way does not get in, as nobody asked.
    let greedy_echo =
        host.spawn("echo", &Command::new(&toolbox).args(["tcp-echo", &PORT.to_string()])).await?;
    let target = format!("{own}:{PORT}");
    pods::exec(lab, vpn.namespace(), "edge-0", &toolbox, &["connect", &target])
        .await
        .context("the gateway itself")?;
    let outside = Ipv4Addr::new(198, 51, 100, 2);
    let outside = HiddenNetwork::behind(lab, vpn.namespace(), "edge-0", "reach-outside", outside).await?;
    outside.command("ip").args(["route", "add", "10.107.0.0/24", "via", "198.51.100.1"]).run().await?;
    let asked = outside.command(&toolbox).args(["connect", &target]).run().await;
    ensure!(asked.is_err(), "a client is reached that did not ask");

    set_routes(&vpn, "[]").await?;
    for to in &routed {
        let try_it =
            || async { if reaches(&host, to).await.is_ok_and(|is| !is) { Ok(()) } else { Err("it is") } };
        wait::until(&format!("{to} to be reached no longer"), PATIENCE, try_it).await?;
    }

    vpn.kubectl(&["patch", "vcp/staff", "--type=merge", "-p", r#"{"spec":{"clientToClient":true}}"#]).await?;
    let target = format!("{other}:{PORT}");
    let meet = || async { if reaches(&host, &target).await.is_ok_and(|is| is) { Ok(()) } else { Err("no") } };
    wait::until("clients to reach one another", PATIENCE, meet).await?;
    ensure!(!reaches(&host, &format!("{gateway}:9090")).await?, "the gateway's port is open to clients");
    for process in [process, other_process, echo, greedy_echo] {
        process.kill().await?;
    }
    vpn.delete().await?;
    Ok(())
}

async fn describing_a_pool_says_what_is_reachable(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "reach-told", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.108.0.0/24]", "routes: [10.96.0.0/16]\n  dns: { servers: [192.0.2.53] }").await?;
    wait::until("the pool's description to say what is reachable", PATIENCE, || async {
        let text = vpn.kubectl(&["describe", "vcp/staff"]).await.map_err(|error| error.to_string())?;
        let said = |what: &str| text.contains(what);
        if ["Reachable", "10.108.0.1/32", "10.96.0.0/16", "192.0.2.53/32"].into_iter().all(said) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await?;
    vpn.delete().await?;
    Ok(())
}
