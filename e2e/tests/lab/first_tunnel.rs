//! `kubectl apply` to a ping through real NATs, by every exposure.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, ensure};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{
    Lab,
    cluster::{DNS_V4, NODE_ADDRESS},
    device::Device,
    nat::NatProfile,
    vpn::{Exposure, PATIENCE, Vpn},
    wait,
};

use crate::{Outcome, product, tests};

tests![
    clients_behind_three_kinds_of_nat_reach_pods_services_and_dns,
    host_ports_and_load_balancers_carry_the_tunnel_too,
    the_same_machine_gets_the_same_client_and_address_again,
    both_families_work_inside_the_tunnel,
];

const ROUTES: &str = "routes: [10.244.0.0/24, 10.96.0.0/16]\n  enrolment: { tokens: [{ name: any }] }";

/// Address of the CoreDNS Service, which answers TCP and UDP behind the gateway.
fn dns() -> IpAddr {
    DNS_V4.into()
}

async fn clients_behind_three_kinds_of_nat_reach_pods_services_and_dns(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "first", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.71.0.0/16]", ROUTES).await?;
    let pod = pod_address(&vpn).await?;
    let join = vpn.join("staff", "any").await?;
    let hosts = [
        lab.nat_host("first-home", NatProfile::home()).await?,
        lab.nat_host("first-office", NatProfile::symmetric()).await?,
        lab.carrier_host("first-mobile", NatProfile::carrier(), NatProfile::home()).await?,
    ];
    for host in hosts {
        let public = host.outermost_nat().context("no NAT")?.address();
        ensure!(host.ping(pod).await.is_err(), "{} reaches the pod without a tunnel", host.name());
        let mut device = Device::new(host).await?;
        device.up(&join).await?;
        device.reaches(pod, PATIENCE).await?;
        let toolbox = pinhole_e2e::setup::rust::toolbox().await?;
        device
            .host()
            .exec(&toolbox, ["connect", &format!("{}:53", dns())])
            .await
            .context("the DNS Service")?;
        let client = vpn.client_in(device.host().name(), ClientPhase::Connected, PATIENCE).await?;
        let status = client.status.context("no status")?;
        let endpoint: std::net::SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
        ensure!(endpoint.ip() == IpAddr::from(public), "{endpoint} is not the NAT's {public}");
        device.down().await?;
        vpn.client(device.host().name(), "to be seen leaving", PATIENCE, |client| {
            client.status.as_ref().and_then(|status| status.phase) != Some(ClientPhase::Connected)
        })
        .await?;
    }
    vpn.condition("vgw/edge", "Ready", "True", "*").await?;
    vpn.delete().await?;
    Ok(())
}

async fn host_ports_and_load_balancers_carry_the_tunnel_too(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for (name, exposure, cidr) in [
        ("by-host-port", Exposure::HostPort(4500, 4501), "[10.72.0.0/24]"),
        ("by-balancer", Exposure::LoadBalancer, "[10.72.1.0/24]"),
    ] {
        let vpn = Vpn::declare(lab, name, exposure, "").await?;
        vpn.pool("staff", cidr, "enrolment: { tokens: [{ name: any }] }").await?;
        let join = vpn.join("staff", "any").await?;
        let mut device = Device::new(lab.nat_host(name, NatProfile::home()).await?).await?;
        let status = device.up(&join).await?;
        device.reaches(vpn.gateway_address("staff").await?, PATIENCE).await?;
        let endpoint: std::net::SocketAddr = status.endpoint.context("no endpoint")?.parse()?;
        if let Exposure::HostPort(port, _) = exposure {
            ensure!(endpoint == (NODE_ADDRESS, port).into(), "the endpoint is {endpoint}");
        }
        device.down().await?;
        vpn.delete().await?;
    }
    Ok(())
}

async fn the_same_machine_gets_the_same_client_and_address_again(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let vpn = Vpn::declare(lab, "again", Exposure::NodePort, "").await?;
    vpn.pool("staff", "[10.73.0.0/24]", "enrolment: { tokens: [{ name: any, uses: 1 }] }").await?;
    let join = vpn.join("staff", "any").await?;
    let mut device = Device::new(lab.nat_host("again", NatProfile::home()).await?).await?;
    let first = device.up(&join).await?;
    device.down().await?;
    let second = device.up(&join).await?;
    ensure!(first.addresses == second.addresses, "{first:?} then {second:?}");
    let clients = vpn.kubectl(&["get", "vc", "-o", "name"]).await?;
    ensure!(clients.lines().count() == 1, "{clients}");
    device.down().await?;
    vpn.delete().await?;
    Ok(())
}

async fn both_families_work_inside_the_tunnel(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for (name, cidrs) in [("dual", "[10.74.0.0/24, 'fd74::/64']"), ("six", "['fd75::/64']")] {
        let vpn = Vpn::declare(lab, name, Exposure::NodePort, "").await?;
        vpn.pool("staff", cidrs, "enrolment: { tokens: [{ name: any }] }").await?;
        let join = vpn.join("staff", "any").await?;
        let mut device = Device::new(lab.nat_host(name, NatProfile::home()).await?).await?;
        device.up(&join).await?;
        for cidr in vpn.pools().get("staff").await?.spec.cidrs {
            let gateway = cidr.hosts().find(|host| *host != cidr.network()).context("an empty prefix")?;
            device.reaches(gateway, PATIENCE).await?;
        }
        device.down().await?;
        vpn.delete().await?;
    }
    Ok(())
}

/// A pod that answers pings, in the VPN's namespace.
pub(crate) async fn pod_address(vpn: &Vpn<'_>) -> anyhow::Result<IpAddr> {
    vpn.lab()
        .apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{ name: target, namespace: {} }}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{ name: toolbox, image: "pinhole/toolbox:lab", imagePullPolicy: Never, args: [tcp-echo, "9000"] }}
"#,
            vpn.namespace()
        ))
        .await?;
    let address = wait::until("the address of the target pod", Duration::from_mins(1), || async {
        let text = vpn.kubectl(&["get", "pod", "target", "-o", "jsonpath={.status.podIP}"]).await;
        text.map_err(|error| error.to_string())?.parse::<IpAddr>().map_err(|_| "none yet".to_owned())
    });
    Ok(address.await?)
}
