//! What a kill switch keeps in, and what it lets out. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::routes::{Accepted, Choice, LINK_LOCAL, Overlap, Present, accepted, is_local, leads_everywhere};
use crate::kernel::{Kept, KillSwitch};

/// Networks that never go further than the local one: its broadcast address, its groups (RFC 5771, RFC 4291), and its link.
const LINK: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 24)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16)),
    LINK_LOCAL,
];

/// The name of a tunnel's table.
pub(super) fn table(tunnel: &str) -> String {
    format!("{tunnel}-killswitch")
}

/// What is to be kept in for these routes, in a network of these. The gateway's endpoints are `host:port`.
pub(super) fn plan(
    tunnel: &str,
    fwmark: u32,
    (pool, choice): (&[IpNet], &Choice),
    present: &[Present],
    endpoints: impl IntoIterator<Item = String>,
) -> KillSwitch {
    // Who makes the routes otherwise wants them kept in as well.
    let all = Accepted::All;
    let which = if choice.accepted == Accepted::None { &all } else { &choice.accepted };
    let routes = accepted(pool, which);
    let kept = if routes.iter().any(|route| leads_everywhere(*route)) {
        Kept::Everything
    } else {
        Kept::Only(IpNet::aggregate(&routes))
    };
    let local = present.iter().filter(|present| is_local(present)).map(|present| present.net.trunc());
    let mut open: Vec<IpNet> = local.chain(LINK).collect();
    open.sort_unstable();
    open.dedup();
    if choice.overlap == Some(Overlap::Tunnel) {
        open.clear();
    }
    let is_name = |endpoint: String| endpoint.parse::<SocketAddr>().is_err();
    KillSwitch {
        table: table(tunnel),
        tunnel_device: tunnel.to_owned(),
        fwmark,
        kept,
        open,
        root_resolves: endpoints.into_iter().any(is_name),
    }
}

/// Whether this lets nothing out to any of these name servers of the network, asked past the tunnel.
pub(super) fn shuts_off(switch: &KillSwitch, servers: &[IpAddr]) -> bool {
    let is_open =
        |server: &IpAddr| server.is_loopback() || switch.open.iter().any(|net| net.contains(server));
    switch.kept == Kept::Everything && !servers.is_empty() && !servers.iter().any(is_open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(pool: &[&str], choice: &Choice, endpoint: &str) -> KillSwitch {
        let pool: Vec<IpNet> = pool.iter().map(|net| net.parse().unwrap()).collect();
        let net = "192.168.1.0/24".parse().unwrap();
        let present = [Present { net, device: "eth0".into(), metric: 0, is_connected: true }];
        plan("pinhole0", 1, (&pool, choice), &present, [endpoint.to_owned()])
    }

    #[test]
    fn a_full_tunnel_keeps_everything_in_but_for_the_local_network() {
        let switch = planned(&["0.0.0.0/0"], &Choice::default(), "192.0.2.1:51820");
        assert_eq!(switch.kept, Kept::Everything);
        assert!(switch.open.contains(&"192.168.1.0/24".parse().unwrap()));
        assert!(!switch.root_resolves);
    }

    #[test]
    fn a_split_tunnel_keeps_in_what_it_leads_to() {
        let switch = planned(&["10.96.0.0/13", "10.104.0.0/13"], &Choice::default(), "vpn.example:51820");
        assert_eq!(switch.kept, Kept::Only(vec!["10.96.0.0/12".parse().unwrap()]));
        assert!(switch.root_resolves, "the gateway has a name");
    }

    #[test]
    fn a_public_name_server_is_shut_off_and_the_routers_is_not() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let full = planned(&["0.0.0.0/0"], &Choice::default(), "192.0.2.1:51820");
        for (servers, shut) in [
            (&["9.9.9.9"][..], true),
            (&["9.9.9.9", "2620:fe::fe"], true),
            (&["9.9.9.9", "192.168.1.1"], false),
            (&["127.0.0.1"], false),
            (&[], false),
        ] {
            assert_eq!(shuts_off(&full, &ips(servers)), shut, "{servers:?}");
        }
        let split = planned(&["10.96.0.0/12"], &Choice::default(), "192.0.2.1:51820");
        assert!(!shuts_off(&split, &ips(&["9.9.9.9"])));
    }

    #[test]
    fn where_the_tunnel_wins_the_local_network_is_shut_as_well() {
        let choice = Choice { overlap: Some(Overlap::Tunnel), ..Choice::default() };
        assert_eq!(planned(&["0.0.0.0/0"], &choice, "192.0.2.1:51820").open, []);
    }
}
