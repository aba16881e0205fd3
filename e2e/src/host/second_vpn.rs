//! Another VPN on a host, beside Pinhole's: wireguard-go, set up as `wg-quick` does it, to an office that leads on to the world.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{Host, INTERFACE};
use crate::{
    error::Result,
    process::{Command, Process},
    wait,
};

const PATIENCE: Duration = Duration::from_secs(15);
/// `wg-quick` takes this as the mark of the VPN's own packets and as the number of its table.
const MARK: u32 = 51_820;
const PORT: &str = "51999";
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

/// It takes all that the host sends to the world. It ends with the value.
#[derive(Debug)]
pub struct SecondVpn {
    device: String,
    _ends: [Process; 2],
}

impl SecondVpn {
    /// Between a host and an office, which is another host with a way to the world.
    ///
    /// # Errors
    /// When it cannot be set up, or the office is not reached through it.
    pub async fn between(host: &Host, office: &Host, wireguard_go: &Path) -> Result<Self> {
        let [near, far] = [device(), device()];
        let ends = [
            host.spawn("second-vpn", &Command::new(wireguard_go).args(["-f", &near])).await?,
            office.spawn("second-vpn", &Command::new(wireguard_go).args(["-f", &far])).await?,
        ];
        let (near_key, far_key) = (key(host).await?, key(office).await?);
        let (near_public, far_public) = (public(host, &near_key).await?, public(office, &far_key).await?);
        let (mark, endpoint) = (MARK.to_string(), format!("{}:{PORT}", office.address()));
        let mut to_office = vec!["fwmark", &mark, "peer", &far_public, "endpoint", &endpoint];
        to_office.extend(["allowed-ips", "0.0.0.0/0"]);
        set(host, &near, &near_key, &to_office).await?;
        let allowed = format!("{NEAR}/32");
        let to_host = ["listen-port", PORT, "peer", &near_public, "allowed-ips", &allowed];
        set(office, &far, &far_key, &to_host).await?;
        lead_on(office, &far).await?;
        take_everything(host, &near).await?;
        let reached = || host.ping(IpAddr::from(FAR));
        wait::until("the office behind the second VPN to answer", PATIENCE, reached).await?;
        Ok(Self { device: near, _ends: ends })
    }

    /// Its device on the host.
    pub fn device(&self) -> &str {
        &self.device
    }
}

/// A name that no other process of the machine takes: sockets of WireGuard's are one machine's.
fn device() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("vpn{}-{}", std::process::id() % 1_000_000, NEXT.fetch_add(1, Ordering::Relaxed) % 1000)
}

async fn key(host: &Host) -> Result<String> {
    host.exec("wg", ["genkey"]).await
}

async fn public(host: &Host, key: &str) -> Result<String> {
    Ok(host.command("wg").arg("pubkey").stdin(key).run().await?.trim().to_owned())
}

async fn set(host: &Host, device: &str, key: &str, words: &[&str]) -> Result<()> {
    let set = host.command("wg").args(["set", device, "private-key", "/dev/stdin"]).args(words).stdin(key);
    wait::until(&format!("{device} to be set up"), PATIENCE, || set.run()).await.map(drop)
}

/// Has the office forward what comes, in its own name.
async fn lead_on(office: &Host, device: &str) -> Result<()> {
    office
        .netns()
        .ip([format!("address add {FAR}/24 dev {device}"), format!("link set {device} up mtu 1420")])
        .await?;
    office.netns().sysctl("net/ipv4/ip_forward", 1)?;
    let rules = format!(
        "table ip exit {{
            chain out {{
                type nat hook postrouting priority srcnat;
                oifname {INTERFACE} masquerade
            }}
        }}"
    );
    office.command("nft").args(["-f", "-"]).stdin(rules).run().await.map(drop)
}

/// What `wg-quick up` does for `AllowedIPs = 0.0.0.0/0`.
async fn take_everything(host: &Host, device: &str) -> Result<()> {
    host.netns()
        .ip([
            format!("address add {NEAR}/32 dev {device}"),
            format!("link set {device} up mtu 1420"),
            format!("route add 0.0.0.0/0 dev {device} table {MARK}"),
            format!("rule add not fwmark {MARK} table {MARK}"),
            "rule add table main suppress_prefixlength 0".to_owned(),
        ])
        .await?;
    host.netns().sysctl("net/ipv4/conf/all/src_valid_mark", 1)?;
    let rules = format!(
        "table ip wg-quick-{device} {{
            chain preraw {{
                type filter hook prerouting priority raw;
                iifname != \"{device}\" ip daddr {NEAR} fib saddr type != local drop
            }}
            chain premangle {{
                type filter hook prerouting priority mangle;
                meta l4proto udp meta mark set ct mark
            }}
            chain postmangle {{
                type filter hook postrouting priority mangle;
                meta l4proto udp meta mark {MARK} ct mark set meta mark
            }}
        }}"
    );
    host.command("nft").args(["-f", "-"]).stdin(rules).run().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nat::OwnedNetns,
        netns::Netns,
        segment::{Segment, bridge},
        setup::tools::Tools,
    };

    #[tokio::test]
    async fn all_that_a_host_sends_goes_through_its_office_but_the_vpns_own_packets() {
        let wan = OwnedNetns(Netns::create("second-vpn-wan").await.unwrap());
        wan.0.ip([bridge("lan0"), "link set lan0 up".to_owned()]).await.unwrap();
        let network = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 78, 0), 24);
        let segment = Segment::of_nat(&wan.0, "lan0", network).await.unwrap();
        // The world.
        wan.0.ip(["address add 198.51.100.7/32 dev lo"]).await.unwrap();
        let host = Host::create("second-vpn-test", &segment, Vec::new()).await.unwrap();
        let office = Host::create("second-vpn-office", &segment, Vec::new()).await.unwrap();
        let tools = Tools::build_module("wireguard-go").await.unwrap();
        let vpn = SecondVpn::between(&host, &office, tools.path("wireguard-go").unwrap()).await.unwrap();
        let way = async |to: &str| {
            let words = ["route", "get"].into_iter().chain(to.split(' '));
            host.exec("ip", words).await.unwrap()
        };
        assert!(way("198.51.100.7").await.contains(vpn.device()));
        assert!(way(&format!("198.51.100.7 mark {MARK}")).await.contains(INTERFACE));
        assert!(way("192.168.78.1").await.contains(INTERFACE), "the local network");
        host.ping(IpAddr::from([198, 51, 100, 7])).await.unwrap();
    }
}
