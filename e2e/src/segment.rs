//! A network that hosts and NATs plug into: a bridge in some namespace, with addresses to lease.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    error::{Doing, Error, Result},
    nat::first_address,
    netns::{self, Netns, Plug, cable},
    state,
};

/// Link address of every segment's bridge. No two are on one link.
const BRIDGE_ADDRESS: &str = "02:00:00:00:00:01";

/// The line of `ip` that makes a bridge whose hosts can rely on its link address.
///
/// Left to itself the kernel gives a bridge the lowest link address of its ports, anew whenever one is plugged in.
/// Then the hosts plugged in before send to an address that nobody has, until they ask again seconds later.
pub(crate) fn bridge(name: &str) -> String {
    format!("link add {name} address {BRIDGE_ADDRESS} type bridge")
}

/// A bridge and its networks. Clones share the leases.
#[derive(Debug, Clone)]
pub struct Segment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    netns: Netns,
    bridge: String,
    v4: Ipv4Net,
    v6: Option<Ipv6Net>,
    gateways: Vec<IpAddr>,
    /// Host numbers to lease.
    numbers: std::ops::Range<u8>,
    /// Directory with a file for each leased number: several processes may plug into one segment.
    leases: PathBuf,
}

/// What a segment is made from.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) bridge: &'a str,
    pub(crate) v4: Ipv4Net,
    pub(crate) v6: Option<Ipv6Net>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) numbers: std::ops::Range<u8>,
}

impl Segment {
    /// A segment over a bridge that exists.
    pub(crate) fn over(layout: Layout<'_>) -> Self {
        Self {
            inner: Arc::new(Inner {
                netns: layout.netns.clone(),
                bridge: layout.bridge.to_owned(),
                v4: layout.v4,
                v6: layout.v6,
                gateways: layout.gateways,
                numbers: layout.numbers,
                leases: state::directory().join("leases").join(format!("{}-{}", layout.netns, layout.bridge)),
            }),
        }
    }

    /// The inside of a NAT: its first address goes to the bridge and is the gateway of all.
    pub(crate) async fn of_nat(netns: &Netns, bridge: &str, network: Ipv4Net) -> Result<Self> {
        let gateway = first_address(network)
            .ok_or_else(|| Error::Invalid(format!("{network} has no room for a NAT and hosts")))?;
        netns.ip([format!("address add {gateway} dev {bridge}")]).await?;
        Ok(Self::over(Layout {
            netns,
            bridge,
            v4: network,
            v6: None,
            gateways: vec![gateway.addr()],
            numbers: 2..250,
        }))
    }

    /// Plugs a namespace in, with an interface of this name and the segment's gateways as default routes.
    pub(crate) async fn attach(&self, netns: &Netns, interface: &str) -> Result<Attachment> {
        let number = self.lease()?;
        let attachment = Attachment {
            segment: self.clone(),
            number: Mutex::new(number),
            more: Mutex::default(),
            port: next_port(),
        };
        let mut addresses = vec![IpNet::V4(self.v4(number))];
        addresses.extend(self.v6(number).map(IpNet::V6));
        let near = Plug {
            netns: &self.inner.netns,
            interface: &attachment.port,
            bridge: Some(&self.inner.bridge),
            addresses: &[],
            gateways: &[],
        };
        let gateways = &self.inner.gateways;
        cable(&near, &Plug { netns, interface, bridge: None, addresses: &addresses, gateways }).await?;
        Ok(attachment)
    }

    fn lease(&self) -> Result<u8> {
        let Inner { numbers, v4, leases, .. } = &*self.inner;
        std::fs::create_dir_all(leases).doing(|| format!("making {}", leases.display()))?;
        let free = |number: &u8| File::create_new(leases.join(number.to_string())).is_ok();
        numbers.clone().find(free).ok_or_else(|| Error::Invalid(format!("{v4} has no free address left")))
    }

    fn release(&self, number: u8) {
        // The whole directory may be gone with the lab.
        let _ = std::fs::remove_file(self.inner.leases.join(number.to_string()));
    }

    fn v4(&self, number: u8) -> Ipv4Net {
        let address = u32::from(self.inner.v4.network()) + u32::from(number);
        Ipv4Net::new_assert(Ipv4Addr::from(address), self.inner.v4.prefix_len())
    }

    fn v6(&self, number: u8) -> Option<Ipv6Net> {
        let network = self.inner.v6?;
        let address = u128::from(network.network()) + u128::from(number);
        Some(Ipv6Net::new_assert(Ipv6Addr::from(address), network.prefix_len()))
    }
}

/// A place on a segment. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Attachment {
    segment: Segment,
    number: Mutex<u8>,
    /// Numbers of further addresses.
    more: Mutex<Vec<u8>>,
    port: String,
}

/// A name for a bridge's port, of at most 15 bytes, that no other process of the machine takes.
fn next_port() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed) % 1_000_000)
}

impl Attachment {
    /// The IPv4 address here.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.segment.v4(self.number()).addr()
    }

    /// The IPv6 address here, where the segment has IPv6.
    pub(crate) fn address_v6(&self) -> Option<Ipv6Addr> {
        self.segment.v6(self.number()).map(|net| net.addr())
    }

    /// The IPv4 default gateway, if the segment has one.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.segment.inner.gateways.iter().copied().find(IpAddr::is_ipv4)
    }

    /// What whoever is here is told: addresses, and the default routers.
    pub(crate) fn lease(&self) -> (Vec<IpNet>, Vec<IpAddr>) {
        let number = self.number();
        let v6 = self.segment.v6(number).map(IpNet::V6);
        let addresses = std::iter::once(IpNet::V4(self.segment.v4(number))).chain(v6).collect();
        (addresses, self.segment.inner.gateways.clone())
    }

    /// Sets the segment's end of the cable `up` or `down`.
    pub(crate) async fn set_port(&self, state: &str) -> Result<()> {
        self.segment.inner.netns.ip([format!("link set {} {state}", self.port)]).await
    }

    /// Waits until frames pass between the segment and this interface, which is the cable's other end.
    pub(crate) async fn carries(&self, netns: &Netns, interface: &str) -> Result<()> {
        netns::carry([(netns, interface, false), (&self.segment.inner.netns, &self.port, true)]).await
    }

    /// Has the segment's bridge know who has these addresses, as an announcement does (RFC 5227, section 2.3): a router that asked
    /// while nobody answered asks again once a second only, and loses what comes meanwhile.
    pub(crate) async fn announce(&self, netns: &Netns, interface: &str, addresses: &[IpNet]) -> Result<()> {
        let shown = netns.command("ip").args(["-json", "link", "show", interface]).run().await?;
        let unknown = || Error::Invalid(format!("{interface} of {netns} has no link address: {shown}"));
        let links: serde_json::Value = serde_json::from_str(&shown).map_err(|_| unknown())?;
        let own = links.get(0).and_then(|link| link.get("address")?.as_str()).ok_or_else(unknown)?;
        let Inner { netns: segment, bridge, .. } = &*self.segment.inner;
        let line = |address: &IpNet| {
            format!("neighbor replace {} lladdr {own} dev {bridge} nud stale", address.addr())
        };
        segment.ip(addresses.iter().map(line)).await
    }

    /// Leases another number; yields the IPv4 address before and the one from now on.
    pub(crate) fn renumber(&self) -> Result<(Ipv4Net, Ipv4Net)> {
        let new = self.segment.lease()?;
        let old = std::mem::replace(&mut *self.number.lock().unwrap_or_else(PoisonError::into_inner), new);
        self.segment.release(old);
        Ok((self.segment.v4(old), self.segment.v4(new)))
    }

    /// Has the segment's bridge send what is for a network to this place.
    pub(crate) async fn lead_here(&self, network: Ipv6Net) -> Result<()> {
        let Inner { netns, bridge, v4, .. } = &*self.segment.inner;
        let here = self.address_v6().ok_or_else(|| Error::Invalid(format!("{v4} has no IPv6 beside it")))?;
        netns.ip([format!("route replace {network} via {here} dev {bridge}")]).await
    }

    /// Leases one more number; yields its IPv4 address.
    pub(crate) fn one_more(&self) -> Result<Ipv4Net> {
        let number = self.segment.lease()?;
        self.more.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        Ok(self.segment.v4(number))
    }

    fn number(&self) -> u8 {
        *self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let unplug = || std::process::Command::new("ip").args(["link", "del", &self.port]).output();
        // Gone already when the namespace at either end went first.
        let _ = self.segment.inner.netns.within(unplug);
        self.segment.release(self.number());
        let more = self.more.lock().unwrap_or_else(PoisonError::into_inner);
        more.iter().for_each(|number| self.segment.release(*number));
    }
}

/// The one machine of [`world`].
#[cfg(test)]
pub(crate) const WORLD_V4: &str = "203.0.113.10";
#[cfg(test)]
pub(crate) const WORLD_V6: &str = "2001:db8:113::10";

/// A world of one machine, for tests without a cluster, and its segment for NATs to plug into.
#[cfg(test)]
pub(crate) async fn world(name: &str) -> (crate::nat::OwnedNetns, Segment) {
    let world = crate::nat::OwnedNetns(Netns::create(&format!("{name}-world")).await.unwrap());
    let lines = [
        bridge("eth0"),
        format!("address add {WORLD_V4}/24 dev eth0"),
        format!("address add {WORLD_V6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
    ];
    world.0.ip(lines).await.unwrap();
    let outside = Segment::over(Layout {
        netns: &world.0,
        bridge: "eth0",
        v4: "203.0.113.0/24".parse().unwrap(),
        v6: Some("2001:db8:113::/64".parse().unwrap()),
        gateways: Vec::new(),
        numbers: 32..64,
    });
    (world, outside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::OwnedNetns;

    const GATEWAY: &str = "192.168.1.1";

    /// Plugs in a host, by a port with this link address.
    async fn plug(lan: &Netns, n: u8, port_address: &str) -> OwnedNetns {
        let host = OwnedNetns(Netns::create(&format!("plugged-{n}")).await.unwrap());
        let port = format!("port{n}");
        let addresses = [format!("192.168.1.{n}/24").parse().unwrap()];
        let near = Plug { netns: lan, interface: &port, bridge: Some("lan0"), addresses: &[], gateways: &[] };
        let far =
            Plug { netns: &host.0, interface: "eth0", bridge: None, addresses: &addresses, gateways: &[] };
        cable(&near, &far).await.unwrap();
        lan.ip([format!("link set {port} address {port_address}")]).await.unwrap();
        host
    }

    async fn reaches(host: &OwnedNetns) -> bool {
        host.0.command("ping").args(["-n", "-c", "1", "-W", "1", GATEWAY]).run().await.is_ok()
    }

    #[tokio::test]
    async fn who_is_plugged_in_later_disturbs_nobody() {
        let lan = OwnedNetns(Netns::create("plugged").await.unwrap());
        let lines = [bridge("lan0"), format!("address add {GATEWAY}/24 dev lan0"), "link set lan0 up".into()];
        lan.0.ip(lines).await.unwrap();
        let first = plug(&lan.0, 2, "02:00:00:00:00:09").await;
        let _second = plug(&lan.0, 3, "02:00:00:00:00:05").await;
        assert!(reaches(&first).await);
        let _third = plug(&lan.0, 4, "02:00:00:00:00:00").await;
        assert!(reaches(&first).await);
    }
}
