//! The local network: what changes in it, which way an endpoint is reached, and which routes lead into the
//! tunnel.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use super::{
    kill_switch,
    routes::{Impairment, Plan, Present, Wanted, plan, witnesses},
    runner::FWMARK,
};
use crate::kernel::{
    FullTunnel, InnerAddresses, KernelError, KillSwitch, MAIN_TABLE, MainRoute, MarkedAnswers, RefusedRoute,
    RouteChanges, RouteSocket, TableChanges, Written, let_marks_count, remove_table, sweep_rules,
};

/// First of the routing tables that tunnels use; the device's index is added.
const TABLES: u32 = 0x7069_0000;
/// First of the rules that tunnels use: well before the main table's own.
const PRIORITIES: u32 = 31_000;
const PRIORITY_SLOTS: u32 = 400;

/// Tells when an address, a route or a link of this machine changed, or a table of the tunnel's.
pub(super) struct Watch {
    routes: AsyncFd<RouteChanges>,
    /// Where the kernel has nftables.
    tables: Option<AsyncFd<TableChanges>>,
}

impl Watch {
    pub(super) fn open(tunnel: &str) -> io::Result<Self> {
        // SAFETY: it is one open descriptor for as long as it lives, and `AsyncFd` keeps it.
        let routes = unsafe { AsyncFd::register(RouteChanges::open()?) }?;
        let tables = [inner_table(tunnel), mark_table(tunnel), kill_switch::table(tunnel)];
        let tables = TableChanges::open(tables.into())
            // SAFETY: the same.
            .and_then(|changes| unsafe { AsyncFd::register(changes) }.map_err(io::Error::from))
            .inspect_err(
                |error| tracing::debug!(%error, "who else changes the tunnel's tables is not noticed"),
            );
        Ok(Watch { routes, tables: tables.ok() })
    }

    /// Waits for the next change. What it was does not matter: who asks looks at the result.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            tokio::select! {
                ready = self.routes.readable() => {
                    let mut ready = ready?;
                    self.routes.get_ref().drain()?;
                    ready.clear_ready();
                    return Ok(());
                }
                changed = table_changed(self.tables.as_ref()) => if changed? {
                    return Ok(());
                },
            }
        }
    }
}

/// Whether it was one of the tunnel's.
async fn table_changed(tables: Option<&AsyncFd<TableChanges>>) -> io::Result<bool> {
    let Some(tables) = tables else { return std::future::pending().await };
    let mut ready = tables.readable().await?;
    let is_ours = tables.get_ref().drain()?;
    ready.clear_ready();
    Ok(is_ours)
}

/// An nftables table of ours, written where it is to be another, or somebody else has changed it.
struct Standing<T>(Option<(T, Written)>);

impl<T: PartialEq> Standing<T> {
    fn keep(
        &mut self,
        wanted: T,
        install: impl FnOnce(&T) -> Result<Written, KernelError>,
    ) -> Result<(), KernelError> {
        if let Some((_, written)) = self.0.as_mut().filter(|(had, _)| *had == wanted) {
            if written.stands() {
                return Ok(());
            }
            tracing::warn!(
                table = written.table(),
                "somebody else has changed a table of ours: it is made again"
            );
        }
        self.0 = None;
        let written = install(&wanted)?;
        self.0 = Some((wanted, written));
        Ok(())
    }
}

/// The local address from which the tunnel's packets to an endpoint would leave, `None` without a route.
pub(super) fn source_towards(endpoint: SocketAddr, fwmark: Option<u32>) -> Option<IpAddr> {
    let unspecified: SocketAddr = match endpoint {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(unspecified).ok()?;
    if let Some(mark) = fwmark {
        setsockopt(&socket, sockopt::Mark, &mark).ok()?;
    }
    // Connecting a datagram socket looks up the route and sends nothing.
    socket.connect(endpoint).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Which network this machine is in, by what is stable about it: the source's prefix, and the default route's device
/// and router. Public addresses tell networks apart that look alike.
pub(super) fn local_network(source: IpAddr) -> String {
    let (default, prefix) = match source {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            (default_v4(&read_v4()), format!("{a}.{b}.{c}.0/24"))
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            (default_v6(), format!("{a:x}:{b:x}:{c:x}:{d:x}::/64"))
        }
    };
    let (device, router) = default.unwrap_or_default();
    format!("{prefix} {router}%{device}")
}

/// The router of the default route, for who has something to ask it.
pub(super) fn default_router() -> Option<Ipv4Addr> {
    default_v4(&read_v4())?.1.parse().ok()
}

/// The main table of IPv4.
fn read_v4() -> String {
    std::fs::read_to_string("/proc/net/route").unwrap_or_default()
}

/// Device and router of the IPv4 default route with the least metric.
fn default_v4(text: &str) -> Option<(String, String)> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [device, "00000000", router, _, _, _, metric, "00000000", ..] = fields.as_slice() else {
            return None;
        };
        let router = Ipv4Addr::from(u32::from_str_radix(router, 16).ok()?.to_ne_bytes());
        Some((metric.parse::<u32>().ok()?, (*device).to_owned(), router.to_string()))
    };
    let best = text.lines().filter_map(parse).min_by_key(|(metric, ..)| *metric)?;
    Some((best.1, best.2))
}

/// The same of IPv6. `/proc/net/ipv6_route` would mix in the tables of tunnels, of which each leads everywhere.
fn default_v6() -> Option<(String, String)> {
    let routes = RouteSocket::open().and_then(|mut socket| socket.main_routes()).unwrap_or_default();
    best_v6(routes.into_iter().map(|route| (name_of(route.device), route)))
}

fn best_v6(routes: impl Iterator<Item = (String, MainRoute)>) -> Option<(String, String)> {
    let everywhere = routes.filter(|(device, route)| {
        route.net.addr().is_ipv6() && route.net.prefix_len() == 0 && device != "lo"
    });
    let (device, best) = everywhere.min_by_key(|(_, route)| route.metric)?;
    Some((device, best.gateway.unwrap_or(Ipv6Addr::UNSPECIFIED.into()).to_string()))
}

/// Keeps the addresses of one tunnel for it.
pub(super) struct AddressKeeper {
    wanted: InnerAddresses,
    standing: Standing<InnerAddresses>,
    /// What was said of a kernel that does not take it.
    failed: bool,
}

impl AddressKeeper {
    /// For the tunnel's device of that name.
    pub(super) fn new(device: &str) -> Self {
        let (table, tunnel_device) = (inner_table(device), device.to_owned());
        let wanted = InnerAddresses { table, addresses: Vec::new(), tunnel_device };
        Self { wanted, standing: Standing(None), failed: false }
    }

    /// Keeps exactly these, whoever changed something. A kernel without nftables carries the tunnel all the same.
    pub(super) fn keep(&mut self, addresses: &[IpNet]) {
        self.wanted.addresses = addresses.iter().map(IpNet::addr).collect();
        let kept = self.standing.keep(self.wanted.clone(), InnerAddresses::install);
        let had_failed = std::mem::replace(&mut self.failed, kept.is_err());
        if let Some(error) = kept.err().filter(|_| !had_failed) {
            tracing::warn!(%error, category = error.category(),
                "who shares a network with this machine can reach its address in the tunnel");
        }
    }

    /// Takes everything back.
    pub(super) fn remove(&mut self) {
        if let Err(error) = self.wanted.remove() {
            tracing::debug!(%error, category = error.category(), "the filter of the tunnel's address stays behind");
        }
    }
}

/// Keeps what is the tunnel's in it. It stays when the process ends.
pub(super) struct Switch(Standing<KillSwitch>);

impl Switch {
    pub(super) fn new() -> Self {
        Self(Standing(None))
    }

    /// Keeps exactly this in, whoever changed something.
    pub(super) fn keep(&mut self, wanted: KillSwitch) -> Result<(), KernelError> {
        self.0.keep(wanted, KillSwitch::install)
    }
}

/// The routes into one tunnel's device.
pub(super) struct Routes {
    device: u32,
    full: FullTunnel,
    marked: MarkedAnswers,
    standing: Standing<MarkedAnswers>,
    /// Whether the own table and its rules are in use.
    covering: bool,
}

impl Routes {
    /// For a device by name and index. `main_first` as [`FullTunnel`] has it.
    pub(super) fn new(name: &str, device: u32, fwmark: u32, main_first: bool) -> Self {
        let full = FullTunnel {
            fwmark,
            table: TABLES | (device & 0xffff),
            priority: PRIORITIES + 2 * (device % PRIORITY_SLOTS),
            main_first,
        };
        let marked = MarkedAnswers { table: mark_table(name), fwmark, tunnel_device: name.to_owned() };
        Routes { device, full, marked, standing: Standing(None), covering: false }
    }

    /// Makes the device up, and the routes what the pool and the user want of them beside those of others, whoever changed
    /// something. Yields what is not as the pool says.
    pub(super) fn set(&mut self, wanted: &Wanted<'_>, present: &[Present]) -> Vec<Impairment> {
        let mut socket = match RouteSocket::open() {
            Ok(socket) => socket,
            Err(error) => return vec![Impairment::failed("RoutesMissing", &error)],
        };
        let mut impairments = Vec::new();
        // Without it nothing leads there. Its routes went with it.
        if !socket.is_up(self.device).unwrap_or(true)
            && let Err(error) = socket.set_up(self.device)
        {
            impairments.push(Impairment::failed("DeviceDown", &error));
        }
        let planned = plan(wanted, present);
        let refused = self.install(&mut socket, &planned, &mut impairments);
        let tries = witnesses(&planned, self.device, present);
        let there = tries.iter().filter(|(net, _)| refused.iter().all(|refused| refused.net != *net));
        impairments.extend(there.filter_map(|(net, witness)| self.overruled(&mut socket, *net, *witness)));
        impairments.extend(planned.impairments);
        impairments.extend(refused.iter().map(|refused| Impairment::refused(refused.net, &refused.error)));
        impairments
    }

    fn install(
        &mut self,
        socket: &mut RouteSocket,
        plan: &Plan,
        impairments: &mut Vec<Impairment>,
    ) -> Vec<RefusedRoute> {
        let mut refused = Vec::new();
        let mut take = |result: Result<Vec<RefusedRoute>, KernelError>| match result {
            Ok(some) => refused.extend(some),
            Err(error) => impairments.push(Impairment::failed("RoutesMissing", &error)),
        };
        // The covering ones first: what the others name is in the tunnel meanwhile.
        if !plan.own.is_empty() || self.covering {
            self.mark(plan);
            take(self.full.install(socket, self.device, &plan.own));
            self.covering = true;
        }
        take(socket.set_routes(self.device, MAIN_TABLE, &plan.main));
        refused
    }

    /// Somebody else's rule may come before all that is ours: the kernel is asked which way it takes.
    fn overruled(&self, socket: &mut RouteSocket, net: IpNet, witness: IpAddr) -> Option<Impairment> {
        let way = match socket.way((witness, 0).into(), None, 0) {
            Ok(way) => way,
            Err(error) => return Some(Impairment::failed("RoutesMissing", &error)),
        };
        let device = way.map(|way| way.device).filter(|device| *device != 0);
        // An address of this machine says nothing of others.
        if device.is_some_and(|device| RouteSocket::index_of("lo").is_ok_and(|loopback| loopback == device)) {
            return None;
        }
        (device != Some(self.device)).then(|| Impairment::overruled(net, device.map(name_of).as_deref()))
    }

    /// The tunnel's own packets get their answers also where the way back is looked at.
    fn mark(&mut self, plan: &Plan) {
        let marked = if !plan.own.is_empty() {
            let kept = self.standing.keep(self.marked.clone(), MarkedAnswers::install);
            let_marks_count().and(kept)
        } else if self.standing.0.take().is_some() {
            self.marked.remove()
        } else {
            Ok(())
        };
        if let Err(error) = marked {
            // Most hosts are not that strict, and those that are do not connect without.
            tracing::warn!(%error, category = error.category(), "a host with rp_filter=1 drops the tunnel's packets");
        }
    }

    /// Takes the rules back; the routes go with the device.
    pub(super) fn remove(&mut self) {
        if !std::mem::take(&mut self.covering) {
            return;
        }
        let removed = RouteSocket::open().and_then(|mut socket| self.full.remove(&mut socket, self.device));
        if let Err(error) = removed.and(self.marked.remove()) {
            tracing::warn!(%error, category = error.category(), "routing rules stay behind");
        }
    }
}

fn inner_table(tunnel: &str) -> String {
    format!("{tunnel}-inner")
}

fn mark_table(tunnel: &str) -> String {
    format!("{tunnel}-mark")
}

/// Removes what a process that was killed left of this tunnel: rules and routes that lead to a device that is gone, and
/// nftables tables. Not its kill switch. Whether there was anything.
pub(super) fn sweep(tunnel: &str) -> Result<bool, KernelError> {
    let rules = sweep_rules(TABLES, FWMARK)?;
    let mut swept = rules > 0;
    for table in [inner_table(tunnel), mark_table(tunnel)] {
        match remove_table(&table) {
            Ok(was_there) => swept |= was_there,
            // A kernel without nftables has no tables.
            Err(error) => tracing::debug!(%error, table, "is not looked for"),
        }
    }
    Ok(swept)
}

/// The routes of others, each with the name of its device.
pub(super) fn present(tunnel: u32) -> Vec<Present> {
    let routes = RouteSocket::open().and_then(|mut socket| socket.main_routes());
    let routes = routes.unwrap_or_else(|error| {
        tracing::warn!(%error, category = error.category(), "what overlaps with the local network is not seen");
        Vec::new()
    });
    let present = |MainRoute { net, device, metric, is_connected, .. }| Present {
        net,
        device: name_of(device),
        metric,
        is_connected,
    };
    routes.into_iter().filter(|route| route.device != tunnel).map(present).collect()
}

fn name_of(device: u32) -> String {
    let name = nix::net::if_::if_indextoname(device).ok();
    name.map_or_else(|| "another route".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_the_network_is_noticed() {
        let watch = Watch::open("ph-watch-test").unwrap();
        let device = crate::kernel::TunDevice::create("ph-watch-test").unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        drop(device);
    }

    #[test]
    fn the_default_route_with_the_least_metric_is_the_one() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                    eth0\t00000000\tFE00000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_v4(text), Some(("eth0".into(), "10.0.0.254".into())));
        assert_eq!(default_v4(""), None);
        let route = |metric, gateway: Option<&str>| MainRoute {
            net: "::/0".parse().unwrap(),
            device: 2,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            metric,
            is_connected: false,
        };
        let all = [
            ("lo", route(0, None)),
            ("wlan0", route(2048, Some("fe80::2"))),
            ("eth0", route(1024, Some("fe80::1"))),
        ];
        let named = || all.iter().map(|(device, route)| ((*device).to_owned(), route.clone()));
        assert_eq!(best_v6(named()), Some(("eth0".into(), "fe80::1".into())));
        assert_eq!(best_v6(named().take(1)), None);
    }

    #[test]
    fn the_way_to_oneself_leaves_from_oneself() {
        assert_eq!(source_towards("127.0.0.1:9".parse().unwrap(), None), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
