//! Which routes lead into the tunnel, in which table, and what of the pool's cannot, beside the routes that this machine has.
//! Pure.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::kernel::RouteType;

/// A network of fewer bits than these is no one's own: a route to it leads everywhere, and a device that has it takes
/// what is not its own.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;
/// The metric that the kernel gives to routes of IPv6 that come without one.
const METRIC_V6: u32 = 1024;
/// Link-local addresses of IPv6 mean another machine on each link, never one behind a tunnel.
pub(super) const LINK_LOCAL: IpNet =
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

/// Who has a prefix that is the pool's and the local network's. A route of the pool that is more specific than the local
/// network's leads into the tunnel in any case, as everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// The local network keeps it.
    Local,
    /// The tunnel gets it, and with a route to everywhere all of the local network.
    Tunnel,
    /// Nobody: the tunnel does not come up.
    Refuse,
}

/// Which of the pool's routes are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Accepted {
    /// All.
    #[default]
    All,
    /// What of them lies within these.
    Within(Vec<IpNet>),
    /// None, nor those to the gateway itself: somebody else makes the routes.
    None,
}

/// What the user chose about routes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// Who has what overlaps. None: the local network, and it is not chosen, so that the client does not count as connected.
    pub overlap: Option<Overlap>,
    /// Which routes are wanted.
    pub accepted: Accepted,
    /// Whether others' routes are to be trusted, so that those that are more specific than a route to everywhere go beside
    /// the tunnel: in a pod, where its network alone makes them.
    pub main_first: bool,
}

/// A route of the main table that is not the tunnel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) net: IpNet,
    pub(super) device: String,
    pub(super) metric: u32,
    /// All in it are neighbours.
    pub(super) is_connected: bool,
}

/// What is wanted of the routes.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The tunnel's device.
    pub(super) device: u32,
    /// The pool's.
    pub(super) pool: &'a [IpNet],
    /// The gateway's own inner addresses.
    pub(super) gateway: &'a [IpAddr],
    /// What the tunnel's own packets are sent to.
    pub(super) outer: &'a [IpAddr],
    pub(super) choice: &'a Choice,
    /// Whether the device has IPv6.
    pub(super) has_ipv6: bool,
}

/// The routes to make.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the main table.
    pub(super) main: Vec<IpNet>,
    /// In the tunnel's own table, which is looked at before the main one.
    pub(super) own: Vec<(IpNet, RouteType)>,
    /// What is not as the pool says, or is because the user chose so.
    pub(super) impairments: Vec<Impairment>,
}

/// What of a tunnel is not as its pool says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Impairment {
    /// A stable, low-cardinality name, such as `RouteConflict`.
    pub category: String,
    /// For a person: what is missing, and what to do.
    pub message: String,
    /// Which prefix.
    pub prefix: Option<String>,
    /// Which interface has it.
    pub interface: Option<String>,
    /// Whether it is as the user chose, or takes nothing from anybody. With any other the client is not connected.
    pub accepted: bool,
}

impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.category)
    }
}

impl Impairment {
    fn conflict(route: IpNet, present: &Present, chosen: bool) -> Self {
        let Present { net, device, .. } = present;
        let choose = "choose by --on-overlap local or tunnel, or change spec.routes of the pool";
        let message = match (chosen, net == &route) {
            (true, true) => format!("{route} stays with {device}, as --on-overlap says"),
            (true, false) => {
                format!("{net}, which is part of {route}, stays with {device}, as --on-overlap says")
            }
            (false, true) => format!("{route} does not lead into the tunnel, as {device} has it: {choose}"),
            (false, false) => {
                format!(
                    "{net} does not lead into the tunnel, though part of {route}, as {device} has it: {choose}"
                )
            }
        };
        Self {
            category: "RouteConflict".to_owned(),
            message,
            prefix: Some(route.to_string()),
            interface: Some(device.clone()),
            accepted: chosen,
        }
    }

    /// A rule of somebody else takes what a route of the plan is for.
    pub(super) fn overruled(net: IpNet, device: Option<&str>) -> Self {
        let taken =
            device.map_or_else(|| "keeps it from leaving".to_owned(), |it| format!("leads it to {it}"));
        Self {
            category: "RouteConflict".to_owned(),
            message: format!(
                "{net} does not lead into the tunnel, as another program's routing rule {taken}: end that program (another \
                 VPN?), or have it leave the pool's routes out; `ip rule` shows the rules"
            ),
            prefix: Some(net.to_string()),
            interface: device.map(str::to_owned),
            accepted: false,
        }
    }

    /// The kernel does not take a route of the plan.
    pub(super) fn refused(net: IpNet, error: &impl fmt::Display) -> Self {
        Self {
            category: "RouteRefused".to_owned(),
            message: format!("{net} does not lead into the tunnel: {error}"),
            prefix: Some(net.to_string()),
            interface: None,
            accepted: false,
        }
    }

    /// Something else of the machine's network that the kernel does not take.
    pub(super) fn failed(category: &str, error: &impl fmt::Display) -> Self {
        Self {
            category: category.to_owned(),
            message: error.to_string(),
            prefix: None,
            interface: None,
            accepted: false,
        }
    }

    fn no_ipv6() -> Self {
        Self {
            category: "IPv6Unavailable".to_owned(),
            message: "this machine has no IPv6, so the tunnel carries IPv4 alone: set the sysctl \
                      net.ipv6.conf.all.disable_ipv6=0 to have both"
                .to_owned(),
            prefix: None,
            interface: None,
            // Nothing of IPv6 goes beside the tunnel.
            accepted: true,
        }
    }

    fn no_routes() -> Self {
        Self {
            category: "RoutesNotInstalled".to_owned(),
            message: "no route leads into the tunnel, as --no-routes says".to_owned(),
            prefix: None,
            interface: None,
            accepted: true,
        }
    }
}

/// Whether a network is that of a device, and no one else's.
pub(super) fn is_local(present: &Present) -> bool {
    present.is_connected && !leads_everywhere(present.net)
}

/// Whether a route leads everywhere, or as good as that.
pub(super) fn leads_everywhere(route: IpNet) -> bool {
    match route {
        IpNet::V4(route) => route.prefix_len() < WIDEST_V4,
        IpNet::V6(route) => route.prefix_len() < WIDEST_V6,
    }
}

/// What of the pool's routes is accepted.
pub(super) fn accepted(pool: &[IpNet], accepted: &Accepted) -> Vec<IpNet> {
    match accepted {
        Accepted::All => pool.to_vec(),
        Accepted::None => Vec::new(),
        Accepted::Within(list) => {
            let part = |(route, within): (&IpNet, &IpNet)| {
                let narrower = if within.contains(route) { route } else { within };
                (within.contains(route) || route.contains(within)).then_some(*narrower)
            };
            pool.iter()
                .flat_map(|route| list.iter().map(move |within| (route, within)))
                .filter_map(part)
                .collect()
        }
    }
}

/// Decides where each route goes. Those that cover others come first.
pub(super) fn plan(wanted: &Wanted<'_>, present: &[Present]) -> Plan {
    let Choice { overlap, accepted: which, main_first } = wanted.choice;
    let mut plan = Plan::default();
    if *which == Accepted::None {
        plan.impairments.push(Impairment::no_routes());
        return plan;
    }
    let gateway = wanted.gateway.iter().copied().map(IpNet::from);
    let mut routes: Vec<IpNet> =
        gateway.chain(accepted(wanted.pool, which)).map(|route| route.trunc()).collect();
    routes.sort_unstable();
    routes.dedup();
    routes.sort_by_key(IpNet::prefix_len);
    if !wanted.has_ipv6 && routes.iter().any(|route| route.addr().is_ipv6()) {
        plan.impairments.push(Impairment::no_ipv6());
    }
    for route in routes {
        let covers = leads_everywhere(route) || wanted.outer.iter().any(|outer| route.contains(outer));
        let is_covered = !main_first && plan.own.iter().any(|(own, _)| own.contains(&route));
        let in_own = covers || is_covered;
        if !wanted.has_ipv6 && route.addr().is_ipv6() {
            // By other devices nothing of it gets out either.
            plan.own.extend(covers.then_some((route, RouteType::Unreachable)));
            continue;
        }
        let hits: Vec<&Present> = present.iter().filter(|present| conflict(route, present, in_own)).collect();
        let to_own = in_own || (*overlap == Some(Overlap::Tunnel) && !hits.is_empty());
        if *overlap != Some(Overlap::Tunnel) {
            let chosen = *overlap == Some(Overlap::Local);
            plan.impairments.extend(hits.iter().map(|hit| Impairment::conflict(route, hit, chosen)));
            let is_taken = hits.iter().any(|hit| hit.net == route);
            if is_taken || (*overlap == Some(Overlap::Refuse) && !hits.is_empty()) {
                continue;
            }
        }
        if to_own {
            plan.own.push((route, RouteType::Device(wanted.device)));
        } else {
            plan.main.push(route);
        }
    }
    leave_local(&mut plan, *overlap, present);
    plan
}

/// An address for each network that is to lead into the tunnel, by which to see that it does: one that no other route is for.
pub(super) fn witnesses(plan: &Plan, device: u32, present: &[Present]) -> Vec<(IpNet, IpAddr)> {
    let ours = plan.own.iter().filter(|(_, way)| *way == RouteType::Device(device)).map(|(net, _)| *net);
    let others: Vec<IpNet> = plan.own.iter().map(|(net, _)| *net).chain(plan.main.iter().copied()).collect();
    let theirs = |net: IpNet, address: &IpAddr| {
        let ours =
            others.iter().any(|other| other.prefix_len() > net.prefix_len() && other.contains(address));
        // Who wins where somebody else has a route to the same is not seen here, but to everywhere everybody has one.
        let length = net.prefix_len().max(1);
        let mut present = present.iter().map(|present| present.net.trunc());
        ours || present.any(|other| other.prefix_len() >= length && other.contains(address))
    };
    ours.chain(plan.main.iter().copied())
        .filter_map(|net| Some((net, tries(net).into_iter().find(|address| !theirs(net, address))?)))
        .collect()
}

/// Addresses of a network that one can be sure to find a way to, those that nobody has (RFC 5737, RFC 3849) first.
fn tries(net: IpNet) -> Vec<IpAddr> {
    let nobodys = ["198.51.100.1", "192.0.2.1", "203.0.113.1", "2001:db8:ffff::1"];
    let nobodys = nobodys.iter().filter_map(|address| address.parse().ok());
    let mut hosts = net.hosts();
    let inside = [hosts.next(), hosts.next_back()].into_iter().flatten();
    let is_meant = |address: &IpAddr| net.contains(address) && !address.is_loopback();
    nobodys.chain(inside).filter(is_meant).collect()
}

/// Has the main table decide of what is the local network's.
fn leave_local(plan: &mut Plan, overlap: Option<Overlap>, present: &[Present]) {
    let within = |plan: &Plan, net: &IpNet| plan.own.iter().any(|(own, _)| own.contains(net));
    let mut local: Vec<IpNet> = if overlap == Some(Overlap::Tunnel) {
        Vec::new()
    } else {
        present.iter().filter(|present| is_local(present)).map(|present| present.net.trunc()).collect()
    };
    local.push(LINK_LOCAL);
    local.sort_unstable();
    local.dedup();
    local.retain(|net| within(plan, net));
    plan.own.extend(local.into_iter().map(|net| (net, RouteType::Throw)));
}

/// Whether a route of the pool and one of this machine's are at odds.
fn conflict(route: IpNet, present: &Present, in_own: bool) -> bool {
    let net = present.net.trunc();
    if is_local(present) {
        return net == route || (!leads_everywhere(route) && route.contains(&net));
    }
    // The table of one's own has no others to be at odds with.
    let stronger = if route.addr().is_ipv4() { present.metric == 0 } else { present.metric <= METRIC_V6 };
    !in_own && net == route && stronger
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: u32 = 7;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn connected(text: &str, device: &str) -> Present {
        Present { net: net(text), device: device.to_owned(), metric: 0, is_connected: true }
    }

    fn via(text: &str, metric: u32) -> Present {
        Present { net: net(text), device: "eth0".to_owned(), metric, is_connected: false }
    }

    fn planned(pool: &[&str], choice: &Choice, present: &[Present]) -> Plan {
        let (pool, outer) = (nets(pool), ["192.0.2.1".parse().unwrap()]);
        plan(
            &Wanted { device: TUNNEL, pool: &pool, gateway: &[], outer: &outer, choice, has_ipv6: true },
            present,
        )
    }

    fn overlap(overlap: Overlap) -> Choice {
        Choice { overlap: Some(overlap), ..Choice::default() }
    }

    fn in_tunnel(plan: &Plan) -> Vec<String> {
        let own = plan.own.iter().filter(|(_, way)| *way == RouteType::Device(TUNNEL)).map(|(net, _)| *net);
        own.chain(plan.main.clone()).map(|net| net.to_string()).collect()
    }

    fn thrown(plan: &Plan) -> Vec<String> {
        plan.own.iter().filter(|(_, way)| *way == RouteType::Throw).map(|(net, _)| net.to_string()).collect()
    }

    const REPORTED: &[&str] = &["0.0.0.0/0", "10.96.0.0/12", "172.17.0.0/16", "192.168.50.0/24"];

    #[test]
    fn dockers_bridge_costs_a_full_tunnel_its_own_prefix_and_nothing_else() {
        let present = [connected("172.17.0.0/16", "docker0"), connected("192.0.2.0/24", "eth0")];
        let plan = planned(REPORTED, &Choice::default(), &present);
        assert_eq!(in_tunnel(&plan), ["0.0.0.0/0", "10.96.0.0/12", "192.168.50.0/24"]);
        assert_eq!(thrown(&plan), ["172.17.0.0/16", "192.0.2.0/24"]);
        let [conflict] = plan.impairments.as_slice() else { panic!("{plan:?}") };
        assert_eq!(conflict.category, "RouteConflict");
        assert_eq!(conflict.prefix.as_deref(), Some("172.17.0.0/16"));
        assert_eq!(conflict.interface.as_deref(), Some("docker0"));
        assert!(!conflict.accepted, "nobody chose it");
    }

    #[test]
    fn a_chosen_policy_makes_the_overlap_deliberate() {
        let present = [connected("172.17.0.0/16", "docker0")];
        let local = planned(REPORTED, &overlap(Overlap::Local), &present);
        assert!(local.impairments[0].accepted);
        let tunnel = planned(REPORTED, &overlap(Overlap::Tunnel), &present);
        assert_eq!(in_tunnel(&tunnel).len(), REPORTED.len());
        assert_eq!((thrown(&tunnel), tunnel.impairments), (vec![], vec![]));
        let refused = planned(REPORTED, &overlap(Overlap::Refuse), &present);
        assert!(
            !refused.impairments[0].accepted && !in_tunnel(&refused).contains(&"172.17.0.0/16".to_owned())
        );
    }

    #[test]
    fn a_part_that_the_local_network_has_is_named_and_the_rest_is_in_the_tunnel() {
        let present = [connected("10.100.0.0/24", "eth0"), connected("10.244.3.0/24", "cni0")];
        let plan = planned(&["10.96.0.0/12"], &Choice::default(), &present);
        assert_eq!((in_tunnel(&plan), plan.own), (vec!["10.96.0.0/12".to_owned()], vec![]));
        assert_eq!(plan.impairments.len(), 1);
        let plan = planned(&["10.96.0.0/12"], &overlap(Overlap::Tunnel), &present);
        assert_eq!(plan.own, [(net("10.96.0.0/12"), RouteType::Device(TUNNEL))]);
    }

    #[test]
    fn what_is_more_specific_than_the_local_network_leads_into_the_tunnel() {
        let plan = planned(&["192.168.1.7/32"], &Choice::default(), &[connected("192.168.1.0/24", "eth0")]);
        assert_eq!((in_tunnel(&plan), plan.impairments), (vec!["192.168.1.7/32".to_owned()], vec![]));
    }

    #[test]
    fn a_route_of_somebody_else_costs_its_prefix_where_it_would_win() {
        let present = [via("10.96.0.0/12", 0), via("10.50.0.0/24", 100)];
        let plan = planned(&["10.96.0.0/12", "10.50.0.0/24"], &Choice::default(), &present);
        assert_eq!((in_tunnel(&plan), plan.impairments.len()), (vec!["10.50.0.0/24".to_owned()], 1));
        let plan = planned(&["2001:db8::/32"], &Choice::default(), &[via("2001:db8::/32", 1024)]);
        assert_eq!((in_tunnel(&plan).len(), plan.impairments.len()), (0, 1));
    }

    #[test]
    fn routes_that_a_dhcp_server_pushes_take_nothing_from_a_full_tunnel() {
        let pushed = [via("203.0.113.0/24", 0), via("10.96.0.0/12", 0), via("0.0.0.0/1", 0)];
        let plan = planned(&["0.0.0.0/0", "10.96.0.0/12"], &Choice::default(), &pushed);
        assert_eq!(
            (in_tunnel(&plan), thrown(&plan)),
            (vec!["0.0.0.0/0".into(), "10.96.0.0/12".into()], vec![])
        );
        assert_eq!((plan.main, plan.impairments), (vec![], vec![]));
        // Nor does an address with a prefix length that makes half of the world neighbours.
        let plan = planned(&["0.0.0.0/0"], &Choice::default(), &[connected("0.0.0.0/1", "eth0")]);
        assert_eq!((thrown(&plan), plan.impairments), (vec![], vec![]));
    }

    #[test]
    fn both_families_have_their_route_to_everywhere_in_the_table_of_the_tunnel() {
        let plan = planned(&["0.0.0.0/0", "::/0"], &Choice::default(), &[via("::/0", 1024)]);
        assert_eq!((in_tunnel(&plan).len(), plan.main, plan.impairments), (2, vec![], vec![]));
        assert_eq!(plan.own.last(), Some(&(LINK_LOCAL, RouteType::Throw)));
    }

    #[test]
    fn without_ipv6_the_tunnel_is_one_of_ipv4_and_nothing_of_ipv6_goes_beside_it() {
        let pool = nets(&["0.0.0.0/0", "::/0", "fd00::/8"]);
        let choice = Choice::default();
        let wanted = Wanted {
            device: TUNNEL,
            pool: &pool,
            gateway: &[],
            outer: &[],
            choice: &choice,
            has_ipv6: false,
        };
        let plan = plan(&wanted, &[]);
        assert_eq!(in_tunnel(&plan), ["0.0.0.0/0"]);
        assert!(plan.own.contains(&(net("::/0"), RouteType::Unreachable)));
        let [impairment] = plan.impairments.as_slice() else { panic!("{plan:?}") };
        assert_eq!((impairment.category.as_str(), impairment.accepted), ("IPv6Unavailable", true));
    }

    #[test]
    fn each_network_has_a_witness_that_no_other_route_is_for() {
        let present = [connected("198.51.100.0/24", "eth0"), via("10.96.0.0/16", 0)];
        let plan =
            planned(&["0.0.0.0/0", "::/0", "10.96.0.0/12", "10.50.0.7/32"], &Choice::default(), &present);
        let found = witnesses(&plan, TUNNEL, &present);
        let all: Vec<_> = found.iter().map(|(net, witness)| format!("{net} {witness}")).collect();
        assert_eq!(
            all,
            [
                "0.0.0.0/0 192.0.2.1",
                "::/0 2001:db8:ffff::1",
                "10.96.0.0/12 10.111.255.254",
                "10.50.0.7/32 10.50.0.7"
            ]
        );
        let present = [via("10.96.0.0/12", 0), via("0.0.0.0/0", 0)];
        let pod = Choice { main_first: true, ..Choice::default() };
        let plan = planned(&["0.0.0.0/0", "10.96.0.0/12"], &pod, &present);
        let found = witnesses(&plan, TUNNEL, &present);
        assert_eq!(
            found,
            [(net("0.0.0.0/0"), "198.51.100.1".parse().unwrap())],
            "a pod's network has the other"
        );
        let present = [connected("172.17.0.0/17", "docker0"), connected("172.17.128.0/17", "br0")];
        let plan = planned(&["172.17.0.0/16"], &Choice::default(), &present);
        assert_eq!(witnesses(&plan, TUNNEL, &present), [], "others have all of it, as is said elsewhere");
    }

    #[test]
    fn what_is_not_accepted_is_not_installed() {
        let accept = |accepted| Choice { accepted, ..Choice::default() };
        let within = accept(Accepted::Within(nets(&["10.0.0.0/8", "192.168.50.7/32"])));
        let pool = ["0.0.0.0/0", "10.96.0.0/12", "172.17.0.0/16"];
        let plan = planned(&pool, &within, &[]);
        assert_eq!(in_tunnel(&plan), ["10.0.0.0/8", "10.96.0.0/12", "192.168.50.7/32"]);
        let plan = planned(&pool, &accept(Accepted::None), &[]);
        assert_eq!(
            (in_tunnel(&plan).len(), plan.impairments[0].category.as_str()),
            (0, "RoutesNotInstalled")
        );
    }

    #[test]
    fn in_a_pod_the_main_table_keeps_what_is_more_specific() {
        let choice = Choice { main_first: true, ..overlap(Overlap::Local) };
        let plan = planned(&["0.0.0.0/0", "10.96.0.0/12"], &choice, &[]);
        assert_eq!(plan.main, nets(&["10.96.0.0/12"]));
    }
}
