//! The cluster is a real one, and reachable as clients of the product will reach it.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use pinhole_e2e::{
    Lab,
    cluster::{DNS_V4, NODE_ADDRESS},
    nat::NatProfile,
    setup::rust,
    wait,
};

use crate::{Outcome, tests};

tests![
    a_pod_resolves_names_and_reaches_the_api_server,
    a_pod_with_net_admin_gets_the_tun_device,
    mutating_admission_policies_are_served,
    every_exposure_carries_udp_from_behind_a_nat_with_the_nats_address,
    a_load_balancer_service_gets_an_address_of_each_family,
    clients_reach_no_pod_and_no_service_by_themselves,
];

const PATIENCE: Duration = Duration::from_mins(1);

/// A pod of the toolbox image in a namespace of its own, which goes with it.
async fn pod(lab: &Lab, namespace: &str, args: &[&str], ports: &str) -> Outcome {
    lab.apply(&format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{ name: {namespace} }}
---
apiVersion: v1
kind: Pod
metadata: {{ name: toolbox, namespace: {namespace}, labels: {{ app: toolbox }} }}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: toolbox
    image: pinhole/toolbox:lab
    imagePullPolicy: Never
    args: {args:?}
    ports: {ports}
    securityContext: {{ runAsUser: 0, runAsGroup: 0, capabilities: {{ add: [NET_ADMIN] }} }}
    volumeMounts: [{{ name: tun, mountPath: /dev/net/tun }}]
  volumes: [{{ name: tun, hostPath: {{ path: /dev/net/tun, type: CharDevice }} }}]
"
    ))
    .await?;
    lab.kubectl(["wait", "-n", namespace, "pod/toolbox", "--for=condition=Ready", "--timeout=60s"]).await?;
    Ok(())
}

async fn in_pod(lab: &Lab, namespace: &str, args: &[&str]) -> anyhow::Result<String> {
    let exec = ["exec", "-n", namespace, "toolbox", "--", "/toolbox"];
    Ok(lab.kubectl(exec.iter().chain(args)).await?)
}

async fn delete(lab: &Lab, namespace: &str) -> Outcome {
    lab.kubectl(["delete", "namespace", namespace, "--timeout=60s"]).await?;
    Ok(())
}

async fn a_pod_resolves_names_and_reaches_the_api_server(lab: &Lab) -> Outcome {
    pod(lab, "resolves", &["pause"], "[]").await?;
    let name = "kubernetes.default.svc.cluster.local";
    ensure!(in_pod(lab, "resolves", &["resolve", name]).await?.trim() == "10.96.0.1");
    in_pod(lab, "resolves", &["connect", "kubernetes.default:443"]).await?;
    delete(lab, "resolves").await
}

async fn a_pod_with_net_admin_gets_the_tun_device(lab: &Lab) -> Outcome {
    pod(lab, "has-tun", &["pause"], "[]").await?;
    in_pod(lab, "has-tun", &["tun"]).await?;
    delete(lab, "has-tun").await
}

async fn mutating_admission_policies_are_served(lab: &Lab) -> Outcome {
    let served =
        lab.kubectl(["api-resources", "--api-group=admissionregistration.k8s.io", "-o", "name"]).await?;
    ensure!(served.contains("mutatingadmissionpolicybindings.admissionregistration.k8s.io"), "{served}");
    Ok(())
}

/// A `udp-ask` from a host, by the toolbox outside of any container.
async fn ask(
    host: &pinhole_e2e::host::Host,
    toolbox: &PathBuf,
    to: SocketAddr,
) -> anyhow::Result<SocketAddr> {
    let answer = host.exec(toolbox, ["udp-ask", &to.to_string(), "hello"]).await?;
    let seen = answer.split_whitespace().next().context("an empty answer")?;
    Ok(seen.parse()?)
}

async fn every_exposure_carries_udp_from_behind_a_nat_with_the_nats_address(lab: &Lab) -> Outcome {
    let namespace = "exposed";
    pod(lab, namespace, &["udp-echo", "9000"], "[{ containerPort: 9000, hostPort: 9100, protocol: UDP }]")
        .await?;
    lab.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: toolbox, namespace: {namespace} }}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {{ app: toolbox }}
  ports: [{{ port: 9000, protocol: UDP, nodePort: 30900 }}]
"
    ))
    .await?;
    let balancer = balancer_addresses(lab, namespace, 1).await?;
    let balancer = balancer.first().context("no address")?.parse()?;
    let toolbox = rust::toolbox().await?;
    let behind = [
        lab.nat_host("exposed-home", NatProfile::home()).await?,
        lab.nat_host("exposed-office", NatProfile::symmetric()).await?,
        lab.carrier_host("exposed-mobile", NatProfile::carrier(), NatProfile::home()).await?,
    ];
    for host in &behind {
        let public = host.outermost_nat().context("no NAT")?.address();
        for to in [
            SocketAddr::new(NODE_ADDRESS.into(), 9100),
            SocketAddr::new(NODE_ADDRESS.into(), 30900),
            SocketAddr::new(balancer, 9000),
        ] {
            let seen = ask(host, &toolbox, to).await?;
            ensure!(seen.ip() == public, "{} by way of {to} is seen as {seen}, not {public}", host.name());
        }
    }
    delete(lab, namespace).await
}

async fn balancer_addresses(lab: &Lab, namespace: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let path = "jsonpath={.status.loadBalancer.ingress[*].ip}";
    let get = ["get", "-n", namespace, "service/toolbox", "-o", path];
    let addresses = wait::until("an address of the load balancer", PATIENCE, || async {
        let given = lab.kubectl(get).await.map_err(|error| error.to_string())?;
        let given: Vec<String> = given.split_whitespace().map(ToOwned::to_owned).collect();
        if given.len() == count { Ok(given) } else { Err(format!("it has {given:?}")) }
    });
    Ok(addresses.await?)
}

async fn a_load_balancer_service_gets_an_address_of_each_family(lab: &Lab) -> Outcome {
    let namespace = "balanced";
    pod(lab, namespace, &["tcp-echo", "9001"], "[]").await?;
    lab.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: toolbox, namespace: {namespace} }}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {{ app: toolbox }}
  ports: [{{ port: 9001 }}]
"
    ))
    .await?;
    let addresses = balancer_addresses(lab, namespace, 2).await?;
    let host = lab.public_host("balanced").await?;
    let (v4, v6) = (host.address().to_string(), host.address_v6().context("no IPv6")?.to_string());
    let toolbox = rust::toolbox().await?;
    let mut seen = BTreeSet::new();
    for address in &addresses {
        let to = SocketAddr::new(address.parse()?, 9001).to_string();
        let answer = wait::until("an answer by way of the load balancer", PATIENCE, || {
            host.exec(&toolbox, ["tcp-ask", to.as_str(), "hello"])
        });
        let peer: SocketAddr = answer.await?.split_whitespace().next().context("no answer")?.parse()?;
        seen.insert(peer.ip().to_string());
    }
    ensure!(seen == BTreeSet::from([v4, v6]), "{seen:?}");

    lab.kubectl(["delete", "-n", namespace, "service/toolbox"]).await?;
    let node = pinhole_e2e::netns::Netns::open("node")?;
    wait::until("the addresses to be given back", PATIENCE, || async {
        let there = node.command("ip").args(["address"]).run().await.map_err(|error| error.to_string())?;
        let kept: Vec<_> = addresses.iter().filter(|given| there.contains(given.as_str())).collect();
        if kept.is_empty() { Ok(()) } else { Err(format!("the node still has {kept:?}")) }
    })
    .await?;
    delete(lab, namespace).await
}

async fn clients_reach_no_pod_and_no_service_by_themselves(lab: &Lab) -> Outcome {
    let host = lab.public_host("outsider").await?;
    let behind = lab.nat_host("insider", NatProfile::home()).await?;
    ensure!(host.ping(DNS_V4.into()).await.is_err());
    ensure!(behind.ping(DNS_V4.into()).await.is_err());
    behind.ping(NODE_ADDRESS.into()).await?;
    Ok(())
}
