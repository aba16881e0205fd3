//! Docker on a host: its bridge, its packet filter and one container.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::Host;
use crate::{
    error::Result,
    nat::OwnedNetns,
    netns::{Netns, Plug, cable},
};

/// Docker's bridge.
const BRIDGE: &str = "docker0";
/// Its network, the same on every machine with Docker.
const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 0), 16);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 2);

/// As Docker writes it by iptables, by the names of tables and chains that those have in nftables.
const RULES: &str = "
table ip nat {
    chain DOCKER { iifname docker0 return; }
    chain PREROUTING { type nat hook prerouting priority dstnat; fib daddr type local jump DOCKER; }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat;
        ip saddr 172.17.0.0/16 oifname != docker0 masquerade
    }
}
table ip filter {
    chain DOCKER { }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        oifname docker0 ct state related,established accept
        oifname docker0 jump DOCKER
        iifname docker0 oifname != docker0 accept
        iifname docker0 oifname docker0 accept
    }
}
";

/// Docker, with a container that runs. The container goes with the value; the bridge stays with the host.
#[derive(Debug)]
pub struct Docker {
    container: OwnedNetns,
}

impl Docker {
    /// Starts it on a host.
    ///
    /// # Errors
    /// When the host has one already.
    pub async fn on(host: &Host) -> Result<Self> {
        let container = OwnedNetns(Netns::create(&format!("{}-docker", host.name())).await?);
        let bridge = [
            format!("link add {BRIDGE} type bridge"),
            format!("address add {GATEWAY}/{} dev {BRIDGE}", NETWORK.prefix_len()),
            format!("link set {BRIDGE} up"),
        ];
        host.netns().ip(bridge).await?;
        host.netns().sysctl("net/ipv4/ip_forward", 1)?;
        host.command("nft").args(["-f", "-"]).stdin(RULES).run().await?;
        let address = [IpNet::new_assert(CONTAINER.into(), NETWORK.prefix_len())];
        let port = Plug {
            netns: host.netns(),
            interface: "veth-docker",
            bridge: Some(BRIDGE),
            addresses: &[],
            gateways: &[],
        };
        let eth0 = Plug {
            netns: &container.0,
            interface: "eth0",
            bridge: None,
            addresses: &address,
            gateways: &[GATEWAY.into()],
        };
        cable(&port, &eth0).await?;
        Ok(Self { container })
    }

    /// The container's address, which the host reaches by the bridge.
    pub const fn address(&self) -> IpAddr {
        IpAddr::V4(CONTAINER)
    }

    /// Pings once from within the container, with two seconds of patience.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ping(&self, target: IpAddr) -> Result<()> {
        let args = ["-n", "-c", "1", "-W", "2", &target.to_string()];
        self.container.0.command("ping").args(args).run().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_is_reached_and_goes_out_in_the_name_of_its_host() {
        let host = Host::alone("docker-test").await.unwrap();
        let docker = Docker::on(&host).await.unwrap();
        host.ping(docker.address()).await.unwrap();
        host.netns().ip(["link add far type veth peer name farther", "link set far up"]).await.unwrap();
        let neighbour = OwnedNetns(Netns::create("docker-far").await.unwrap());
        host.netns()
            .ip(["link set farther netns pinhole-docker-far", "address add 192.0.2.1/24 dev far"])
            .await
            .unwrap();
        neighbour.0.ip(["address add 192.0.2.2/24 dev farther", "link set farther up"]).await.unwrap();
        // Without a way back to 172.17.0.0/16 it answers the host alone.
        docker.ping("192.0.2.2".parse().unwrap()).await.unwrap();
    }
}
