//! A host's way to the world: an interface with a lease, the NATs behind it, and what happens to it while the host runs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    error::{Error, Result},
    nat::{Behaviour, Nat},
    netns::Netns,
    passage::Moment,
    segment::Attachment,
};

/// Which families of addresses an uplink has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Both,
}

impl Families {
    const fn has_v4(self) -> bool {
        matches!(self, Self::V4 | Self::Both)
    }

    const fn has_v6(self) -> bool {
        matches!(self, Self::V6 | Self::Both)
    }
}

/// How an uplink is to be.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// Name of the interface.
    pub interface: &'static str,
    /// Metric of its default routes: the least is preferred.
    pub metric: u32,
    /// What it has.
    pub families: Families,
    /// The NAT behind it, which is its own.
    pub behind: Behaviour,
}

impl Wiring {
    /// A cable, as network managers prefer it.
    pub fn wired(behind: impl Into<Behaviour>) -> Self {
        Self { interface: "eth0", metric: 100, families: Families::V4, behind: behind.into() }
    }

    /// Wi-Fi, which network managers prefer less.
    pub fn wireless(behind: impl Into<Behaviour>) -> Self {
        Self { interface: "wlan0", metric: 600, families: Families::V4, behind: behind.into() }
    }

    /// With these families.
    #[must_use]
    pub const fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }
}

/// What a DHCP client has from its server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lease {
    addresses: Vec<IpNet>,
    routers: Vec<IpAddr>,
    metric: Option<u32>,
}

impl Lease {
    /// The lines of `ip` that give the addresses.
    fn addressing(&self, interface: &str) -> Vec<String> {
        let line = |address: &IpNet| {
            // Without duplicate address detection the address is usable at once.
            let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
            format!("address replace {address} dev {interface}{nodad}")
        };
        self.addresses.iter().map(line).collect()
    }

    /// The lines of `ip` that lead to the world.
    fn routing(&self, interface: &str) -> Vec<String> {
        let metric = self.metric.map(|metric| format!(" metric {metric}")).unwrap_or_default();
        let line = |router: &IpAddr| format!("route add default via {router} dev {interface}{metric}");
        self.routers.iter().map(line).collect()
    }

    /// The same ways with another metric: the new ones first, so that there is a way all the time.
    fn rerouting(&mut self, interface: &str, metric: u32) -> Vec<String> {
        let old: Vec<_> =
            self.routing(interface).iter().map(|line| line.replacen(" add ", " del ", 1)).collect();
        self.metric = Some(metric);
        self.routing(interface).into_iter().chain(old).collect()
    }

    /// For the machine of this number behind a NAT.
    fn behind(wiring: &Wiring, network: Ipv4Net, own: Ipv4Addr, v6: Option<Ipv6Net>) -> Self {
        let mut lease = Self { metric: Some(wiring.metric), ..Self::default() };
        if wiring.families.has_v4() {
            lease.addresses.push(Ipv4Net::new_assert(own, network.prefix_len()).into());
            lease.routers.extend(network.hosts().next().map(IpAddr::V4));
        }
        if let Some(v6) = v6 {
            let (address, router) = numbered(v6, own);
            lease.addresses.push(address.into());
            lease.routers.push(router.into());
        }
        lease
    }
}

/// The address of the machine with this IPv4 address in a network of IPv6, and the network's router.
pub(super) fn numbered(network: Ipv6Net, own: Ipv4Addr) -> (Ipv6Net, Ipv6Addr) {
    let first = u128::from(network.network());
    let [.., number] = own.octets();
    let address = Ipv6Addr::from(first + u128::from(number));
    (Ipv6Net::new_assert(address, network.prefix_len()), Ipv6Addr::from(first + 1))
}

/// One of a host's ways to the world.
#[derive(Debug)]
pub struct Uplink {
    interface: &'static str,
    host: Netns,
    nats: Vec<Nat>,
    lease: Mutex<Lease>,
    attachment: Attachment,
}

impl Uplink {
    /// The only one of a host whose interface is set up.
    pub(super) fn only(
        interface: &'static str,
        host: &Netns,
        nats: Vec<Nat>,
        attachment: Attachment,
    ) -> Self {
        let (addresses, routers) = attachment.lease();
        let lease = Mutex::new(Lease { addresses, routers, metric: None });
        Self { interface, host: host.clone(), nats, lease, attachment }
    }

    /// One of several.
    pub(super) async fn plugged_into(nat: Nat, host: &Netns, wiring: &Wiring) -> Result<Self> {
        let attachment = nat.plug_in(host, wiring.interface).await?;
        let v6 = if wiring.families.has_v6() { Some(nat.serve_ipv6().await?) } else { None };
        let lease = Lease::behind(wiring, nat.inside(), attachment.address(), v6);
        let nats = std::iter::successors(Some(&nat), |nat| nat.behind()).cloned().collect();
        let lease = Mutex::new(lease);
        let uplink = Self { interface: wiring.interface, host: host.clone(), nats, lease, attachment };
        uplink.unplug().await?;
        uplink.plug_in().await?;
        Ok(uplink)
    }

    /// Name of its interface.
    pub const fn interface(&self) -> &'static str {
        self.interface
    }

    /// The NATs behind it, nearest first.
    pub fn nats(&self) -> &[Nat] {
        &self.nats
    }

    /// The NAT nearest to the host.
    ///
    /// # Errors
    /// When there is none.
    pub fn nat(&self) -> Result<&Nat> {
        let none = || Error::Invalid(format!("there is no NAT behind {} of {}", self.interface, self.host));
        self.nats.first().ok_or_else(none)
    }

    pub(super) const fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Pulls the plug: its addresses and routes are gone. Yields a moment just before.
    ///
    /// # Errors
    /// What `ip` says.
    pub async fn unplug(&self) -> Result<Moment> {
        let interface = self.interface;
        let lines = [format!("link set {interface} down"), format!("address flush dev {interface}")];
        let before = Moment::now();
        self.host.ip(lines).await?;
        Ok(before)
    }

    /// Plugs it in again, and gives it the same addresses and routes, as a DHCP client does with a lease that it has, which it
    /// announces. Yields a moment just before the routes.
    ///
    /// # Errors
    /// What `ip` says, or when the link does not come up.
    pub async fn plug_in(&self) -> Result<Moment> {
        let interface = self.interface;
        self.host.ip([format!("link set {interface} up")]).await?;
        self.attachment.carries(&self.host, interface).await?;
        let (addresses, addressing, routing) = {
            let lease = self.lease();
            (lease.addresses.clone(), lease.addressing(interface), lease.routing(interface))
        };
        self.host.ip(addressing).await?;
        self.attachment.announce(&self.host, interface, &addresses).await?;
        let before = Moment::now();
        self.host.ip(routing).await?;
        Ok(before)
    }

    /// Takes the carrier from it, as somebody at the other end of the cable does: addresses stay, for those who look at nothing
    /// else. Yields a moment just before.
    ///
    /// # Errors
    /// What `ip` says.
    pub async fn lose_carrier(&self) -> Result<Moment> {
        let before = Moment::now();
        self.attachment.set_port("down").await?;
        Ok(before)
    }

    /// Gives it its carrier again. Yields a moment just before.
    ///
    /// # Errors
    /// What `ip` says, or when the link does not come up.
    pub async fn regain_carrier(&self) -> Result<Moment> {
        let before = Moment::now();
        self.attachment.set_port("up").await?;
        self.attachment.carries(&self.host, self.interface).await?;
        Ok(before)
    }

    /// Has it be preferred differently from now on, as a network manager does; the link stays. Yields a moment just before.
    ///
    /// # Errors
    /// What `ip` says.
    pub async fn set_metric(&self, metric: u32) -> Result<Moment> {
        let lines = self.lease().rerouting(self.interface, metric);
        let before = Moment::now();
        self.host.ip(lines).await?;
        Ok(before)
    }

    /// Takes IPv4 from it, and gives it this address of IPv6 by this router.
    pub(super) async fn live_by_ipv6(&self, address: Ipv6Net, router: Ipv6Addr) -> Result<()> {
        let interface = self.interface;
        let lines = {
            let mut lease = self.lease();
            (lease.addresses, lease.routers) = (vec![address.into()], vec![router.into()]);
            let lines = [lease.addressing(interface), lease.routing(interface)].into_iter().flatten();
            std::iter::once(format!("address flush dev {interface} scope global"))
                .chain(lines)
                .collect::<Vec<_>>()
        };
        self.host.ip(lines).await
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        host::Host,
        nat::{Faults, Loss, NatProfile, OwnedNetns},
        segment::{self, WORLD_V4, WORLD_V6},
        wait,
    };

    const PATIENCE: Duration = Duration::from_secs(15);

    fn lease() -> Lease {
        let wiring = Wiring::wireless(NatProfile::home()).families(Families::Both);
        let (network, v6) = ("192.168.1.0/24".parse().unwrap(), "2001:db8:114:9::/64".parse().unwrap());
        Lease::behind(&wiring, network, "192.168.1.7".parse().unwrap(), Some(v6))
    }

    #[test]
    fn a_lease_of_both_families_has_a_router_in_each() {
        assert_eq!(
            lease().addressing("wlan0"),
            [
                "address replace 192.168.1.7/24 dev wlan0",
                "address replace 2001:db8:114:9::7/64 dev wlan0 nodad"
            ]
        );
        assert_eq!(
            lease().routing("wlan0"),
            [
                "route add default via 192.168.1.1 dev wlan0 metric 600",
                "route add default via 2001:db8:114:9::1 dev wlan0 metric 600"
            ]
        );
    }

    #[test]
    fn another_metric_leaves_no_moment_without_a_way() {
        let mut lease = lease();
        lease.routers.truncate(1);
        assert_eq!(
            lease.rerouting("wlan0", 50),
            [
                "route add default via 192.168.1.1 dev wlan0 metric 50",
                "route del default via 192.168.1.1 dev wlan0 metric 600"
            ]
        );
        assert_eq!(lease.metric, Some(50));
    }

    /// A host with two uplinks and a world of one machine.
    async fn roamer(name: &str, wireless: Families) -> (OwnedNetns, Host) {
        let (world, outside) = segment::world(name).await;
        let wirings =
            [Wiring::wired(NatProfile::home()), Wiring::wireless(NatProfile::carrier()).families(wireless)];
        let host = Host::roaming(name, &outside, &wirings).await.unwrap();
        (world, host)
    }

    async fn reaches(host: &Host, target: &str) -> bool {
        let args = ["-n", "-c", "1", "-W", "1", target];
        host.command("ping").args(args).output().await.unwrap().status.success()
    }

    async fn way(host: &Host, target: &str) -> String {
        host.command("ip").args(["route", "get", target]).output().await.unwrap().stdout
    }

    #[tokio::test]
    async fn the_preferred_uplink_carries_and_the_other_one_once_it_is_unplugged() {
        let (_world, host) = roamer("uplinks", Families::V4).await;
        assert!(way(&host, WORLD_V4).await.contains("dev eth0"));
        assert!(reaches(&host, WORLD_V4).await);
        let [wired, wireless] = ["eth0", "wlan0"].map(|interface| host.uplink(interface).unwrap());
        wired.unplug().await.unwrap();
        assert!(way(&host, WORLD_V4).await.contains("dev wlan0"));
        assert!(!host.exec("ip", ["address", "show", "eth0"]).await.unwrap().contains("inet "));
        assert!(reaches(&host, WORLD_V4).await);
        wireless.unplug().await.unwrap();
        assert_eq!(way(&host, WORLD_V4).await, "", "no way at all");
        let before = Moment::now();
        let moment = wired.plug_in().await.unwrap();
        assert!(moment > before && moment.elapsed() < before.elapsed());
        assert!(way(&host, WORLD_V4).await.contains("dev eth0"));
        assert!(reaches(&host, WORLD_V4).await);
        wireless.plug_in().await.unwrap();
        wireless.set_metric(50).await.unwrap();
        assert!(way(&host, WORLD_V4).await.contains("dev wlan0"));
        assert!(host.uplink("eth1").is_err());
    }

    #[tokio::test]
    async fn a_router_that_asked_in_vain_knows_at_once_who_is_back() {
        let (_world, host) = roamer("announced", Families::V4).await;
        let wired = host.uplink("eth0").unwrap();
        let router = wired.nat().unwrap().netns();
        wired.unplug().await.unwrap();
        let known = async || {
            router.command("ip").args(["neighbor", "show", &host.address().to_string()]).run().await.unwrap()
        };
        router.ip([format!("neighbor del {} dev lan0", host.address())]).await.unwrap();
        let ping = router.command("ping").args(["-n", "-c", "1", "-W", "1", &host.address().to_string()]);
        assert!(!ping.output().await.unwrap().status.success());
        assert!(!known().await.contains("lladdr"), "{}", known().await);
        wired.plug_in().await.unwrap();
        assert!(known().await.contains("lladdr"), "{}", known().await);
    }

    #[tokio::test]
    async fn without_a_carrier_the_address_stays_and_nothing_passes() {
        let (_world, host) = roamer("carrier", Families::V4).await;
        let wired = host.uplink("eth0").unwrap();
        wired.lose_carrier().await.unwrap();
        // The kernel shows it a moment later.
        let shown = async || {
            let shown =
                host.exec("ip", ["address", "show", "eth0"]).await.map_err(|error| error.to_string())?;
            if shown.contains("NO-CARRIER") { Ok(shown) } else { Err(shown) }
        };
        let shown = wait::until("no carrier", Duration::from_secs(5), shown).await.unwrap();
        assert!(shown.contains("inet "), "{shown}");
        assert!(!reaches(&host, WORLD_V4).await);
        wired.regain_carrier().await.unwrap();
        assert!(reaches(&host, WORLD_V4).await);
    }

    #[tokio::test]
    async fn in_silence_packets_vanish_beyond_a_router_that_answers_and_are_counted() {
        let (_world, host) = roamer("silence", Families::V4).await;
        let nat = host.uplink("eth0").unwrap().nat().unwrap();
        assert!(reaches(&host, WORLD_V4).await);
        nat.meter().await.unwrap();
        nat.set_faults(Faults::SILENCE).await.unwrap();
        assert!(!reaches(&host, WORLD_V4).await);
        assert!(reaches(&host, "192.168.1.1").await);
        assert_eq!(nat.count().await.unwrap(), 1);
        nat.set_faults(Faults { inbound: Loss::percent(100), ..Faults::NONE }).await.unwrap();
        assert!(!reaches(&host, WORLD_V4).await);
        nat.set_faults(Faults::NONE).await.unwrap();
        assert!(reaches(&host, WORLD_V4).await);
        assert_eq!(nat.count().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn an_uplink_has_the_families_that_it_was_given_also_after_it_was_unplugged() {
        let (_world, host) = roamer("families", Families::V6).await;
        let wireless = host.uplink("wlan0").unwrap();
        let answers = || async { if reaches(&host, WORLD_V6).await { Ok(()) } else { Err("no") } };
        wait::until("IPv6", PATIENCE, answers).await.unwrap();
        assert!(way(&host, WORLD_V4).await.contains("dev eth0"));
        host.uplink("eth0").unwrap().unplug().await.unwrap();
        assert_eq!(way(&host, WORLD_V4).await, "", "an uplink of IPv6 alone has no IPv4");
        wireless.unplug().await.unwrap();
        assert!(!reaches(&host, WORLD_V6).await);
        wireless.plug_in().await.unwrap();
        wait::until("IPv6 again", PATIENCE, answers).await.unwrap();
    }
}
