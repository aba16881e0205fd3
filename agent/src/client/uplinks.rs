//! By which of this machine's networks the gateway could be reached now, and by which it is. What decides is pure.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::kernel::{KernelError, Link, RouteSocket, Way};

/// A network of this machine that leads to the gateway, by one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    /// The device, as Linux names it.
    pub interface: String,
    /// `Wired`, `Wireless`, `Cellular`, `Tunnel` (another VPN) or `Other`.
    pub kind: String,
    /// The address that packets leave from, where one is chosen by the routes.
    pub source: Option<IpAddr>,
    /// The address of the gateway that it leads to.
    pub endpoint: SocketAddr,
    /// Whether the tunnel's packets leave by it.
    pub in_use: bool,
}

/// The uplinks of now, for packets with this mark. `tunnel` is the tunnel's own device, and `endpoints` where gateways are: the
/// one in use first.
pub(super) fn look(tunnel: u32, endpoints: &[SocketAddr], mark: u32) -> Result<Vec<Uplink>, KernelError> {
    let mut socket = RouteSocket::open()?;
    let links = socket.links()?;
    let used = match endpoints.first() {
        Some(endpoint) => socket.way(*endpoint, None, mark)?,
        None => None,
    };
    uplinks(&links, tunnel, endpoints, used.map(|way| way.device), |endpoint, device| {
        socket.way_by(endpoint, device, mark)
    })
}

/// One for each device and family that has a way to an endpoint, by the first that it has one to.
fn uplinks(
    links: &[Link],
    tunnel: u32,
    endpoints: &[SocketAddr],
    used: Option<u32>,
    mut way: impl FnMut(SocketAddr, u32) -> Result<Option<Way>, KernelError>,
) -> Result<Vec<Uplink>, KernelError> {
    let mut found = Vec::new();
    for link in links.iter().filter(|link| link.is_up && link.index != tunnel) {
        for is_v4 in [true, false] {
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_ipv4() == is_v4) {
                let Some(way) = way(*endpoint, link.index)? else { continue };
                found.push(Uplink {
                    interface: link.name.clone(),
                    kind: link.kind.name().to_owned(),
                    source: way.source,
                    endpoint: *endpoint,
                    in_use: used == Some(link.index) && endpoints.first() == Some(endpoint),
                });
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::LinkKind;

    const TUNNEL: u32 = 9;

    fn link(index: u32, name: &str, kind: LinkKind, is_up: bool) -> Link {
        Link { index, name: name.to_owned(), kind, is_up }
    }

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// `device family` of each, with a star where it is used.
    fn told(endpoints: &[SocketAddr], used: Option<u32>, reached: &[(u32, bool)]) -> Vec<String> {
        let links = [
            link(2, "eth0", LinkKind::Wired, true),
            link(3, "wlan0", LinkKind::Wireless, true),
            link(4, "eth1", LinkKind::Wired, false),
            link(TUNNEL, "pinhole0", LinkKind::Tunnel, true),
        ];
        let way = |to: SocketAddr, device| {
            let is_there = reached.contains(&(device, to.is_ipv4()));
            Ok(is_there.then_some(Way { device, gateway: None, source: None }))
        };
        let found = uplinks(&links, TUNNEL, endpoints, used, way).unwrap();
        let star = |uplink: &Uplink| if uplink.in_use { "*" } else { "" };
        found
            .iter()
            .map(|uplink| format!("{} {}{}", uplink.interface, uplink.endpoint, star(uplink)))
            .collect()
    }

    #[test]
    fn each_device_and_family_with_a_way_is_an_uplink_and_the_first_endpoint_is_the_one_in_use() {
        let [v4, other, v6] = [endpoint("192.0.2.1:1"), endpoint("192.0.2.2:1"), endpoint("[2001:db8::1]:1")];
        let all = [(2, true), (2, false), (3, true), (4, true), (TUNNEL, true)];
        assert_eq!(
            told(&[v4, other, v6], Some(3), &all),
            ["eth0 192.0.2.1:1", "eth0 [2001:db8::1]:1", "wlan0 192.0.2.1:1*"],
            "not by the tunnel, nor by what has no carrier"
        );
        assert_eq!(
            told(&[v6, v4], Some(2), &all),
            ["eth0 192.0.2.1:1", "eth0 [2001:db8::1]:1*", "wlan0 192.0.2.1:1"],
            "the device in use has another family beside"
        );
    }

    #[test]
    fn without_a_way_or_an_endpoint_there_is_no_uplink() {
        assert!(told(&[endpoint("192.0.2.1:1")], None, &[]).is_empty());
        assert!(told(&[], None, &[(2, true)]).is_empty());
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        look(u32::MAX, &[endpoint("192.0.2.1:1"), endpoint("[2001:db8::1]:1")], 0).unwrap();
    }
}
