//! What a process that was killed leaves in the kernel: its device and what leads there goes with it, rules, routes without a
//! device and nftables tables stay.

use std::collections::HashSet;

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    full_tunnel::{self, Found},
    nftables,
    route::{self, ignore},
};

/// Removes the rules and routes of [full tunnels](super::FullTunnel) whose table is one of the 65536 from `first` on, and of
/// whose number there is no device any more; with the last of them the rule that leaves out their packets, which have this
/// mark. How many.
pub fn sweep_rules(first: u32, fwmark: u32) -> Result<usize, KernelError> {
    let mut socket = RouteSocket::open()?;
    let alive = alive()?;
    let is_ours = |table: u32| table & 0xffff_0000 == first;
    let is_left = |table: u32| is_ours(table) && !alive.contains(&(table & 0xffff));
    let all = full_tunnel::rules(&mut socket)?;
    let is_last = all.iter().all(|rule| !is_ours(rule.table) || is_left(rule.table));
    let out = all.iter().filter(|rule| is_last && rule.leaves_out(fwmark));
    let left: Vec<&Found> = all.iter().filter(|rule| is_left(rule.table)).collect();
    // The one before leads to the main table, as ever: it is known by its neighbour.
    let before = |rule: &&Found| {
        rule.is_deferring
            && left.iter().any(|own| own.is_v4 == rule.is_v4 && own.priority == rule.priority + 1)
    };
    let mut swept = 0;
    for rule in all.iter().filter(before).chain(left.iter().copied()).chain(out) {
        full_tunnel::remove(&mut socket, rule)?;
        swept += 1;
    }
    let routes: Vec<(IpNet, route::RouteType, u32)> = socket.own_routes(is_left)?;
    for (net, way, table) in routes {
        let message = route::route(libc::RTM_DELROUTE, 0, way, table, net);
        ignore(socket.0.request(&format!("remove the route to {net}"), &message), Errno::ESRCH)?;
        swept += 1;
    }
    Ok(swept)
}

/// Removes an nftables table of ours. Whether there was one.
pub fn remove_table(table: &str) -> Result<bool, KernelError> {
    let there = nftables::exists("look for a table of ours (nftables)", table)?;
    if there {
        nftables::remove("remove a table of ours (nftables)", table)?;
    }
    Ok(there)
}

/// The lower halves of the indices of all devices.
fn alive() -> Result<HashSet<u32>, KernelError> {
    let all =
        nix::net::if_::if_nameindex().map_err(|errno| KernelError::new("list the network devices", errno))?;
    Ok(all.iter().map(|device| device.index() & 0xffff).collect())
}
