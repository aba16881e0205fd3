//! The machine's own namespace as the public segment, for a cluster that is not the lab's.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{
    error::Result,
    netns::Netns,
    process::Command,
    segment::{self, Layout, Segment},
    state::{self, MACHINE_BRIDGE, MACHINE_TABLE},
};

const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 253, 0), 24);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 253, 1);

/// Makes a bridge whose hosts reach what the machine reaches, with the machine's address. The sweep removes
/// the bridge and the rules and puts forwarding back.
pub(crate) async fn public_segment() -> Result<Segment> {
    let machine = Netns::machine()?;
    machine
        .ip([
            segment::bridge(MACHINE_BRIDGE),
            format!("address add {GATEWAY}/{} dev {MACHINE_BRIDGE}", NETWORK.prefix_len()),
            format!("link set {MACHINE_BRIDGE} up"),
        ])
        .await?;
    Command::new("nft").args(["-f", "-"]).stdin(rules()).run().await?;
    state::set_machine("net/ipv4/ip_forward", "1")?;
    Ok(Segment::over(Layout {
        netns: &machine,
        bridge: MACHINE_BRIDGE,
        v4: NETWORK,
        v6: None,
        gateways: vec![IpAddr::V4(GATEWAY)],
        numbers: 32..250,
    }))
}

fn rules() -> String {
    // Forwarding goes on for the lab's hosts alone: the machine does not become anybody else's router.
    format!(
        "table {MACHINE_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {NETWORK} ip daddr != {NETWORK} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
    iifname \"{MACHINE_BRIDGE}\" accept
    oifname \"{MACHINE_BRIDGE}\" ct state established,related accept
    oifname \"{MACHINE_BRIDGE}\" drop
  }}
}}
"
    )
}
