//! What is shown of the NATs that clients are behind. Pure.

use std::{
    cmp::Ordering,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use pinhole_crds::{
    BindingLifetime, Churn, KeepaliveInForce, NatBehaviour, NatClass, Reachability, ReachableBy,
    StandbyInForce, VPNClient,
};
use serde::Serialize;

use super::table::{age, table};

/// One client and its NAT, as they are printed: one object of the JSON list.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NatRow {
    namespace: String,
    name: String,
    pool: String,
    phase: String,
    /// Public address that it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_address: Option<IpAddr>,
    /// Public port of the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    class: NatClass,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<NatBehaviour>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binding: Option<BindingLifetime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keepalive: Option<KeepaliveInForce>,
    #[serde(skip_serializing_if = "Option::is_none")]
    churn: Option<Churn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reachability: Option<Reachability>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standby: Option<StandbyInForce>,
    #[serde(skip)]
    moved_seconds_ago: Option<i64>,
}

/// The clients behind one public address: one object of the JSON list of `--by-address`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AddressGroup<'a> {
    public_address: IpAddr,
    clients: Vec<&'a NatRow>,
}

impl NatRow {
    pub(super) fn new(client: &VPNClient, now: Timestamp) -> Self {
        let status = client.status.clone().unwrap_or_default();
        let endpoint = status.endpoint.as_ref().and_then(|e| e.parse::<SocketAddr>().ok());
        let moved = status.churn.as_ref().and_then(|c| c.last_change.as_ref());
        Self {
            namespace: client.namespace().unwrap_or_default(),
            name: client.name_any(),
            pool: client.spec.pool_ref.name.clone(),
            phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| phase.name().to_owned()),
            public_address: endpoint.map(|e| e.ip().to_canonical()),
            port: endpoint.map(|e| e.port()),
            class: status.nat.as_ref().map(|n| n.class).unwrap_or_default(),
            moved_seconds_ago: moved.map(|t| now.as_second() - t.0.as_second()),
            nat: status.nat,
            binding: status.binding,
            keepalive: status.keepalive,
            churn: status.churn,
            reachability: status.reachability,
            standby: status.standby,
        }
    }

    /// By namespace, then by name.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        (&self.namespace, &self.name).cmp(&(&other.namespace, &other.name))
    }

    fn place(&self) -> (Option<IpAddr>, Option<u16>) {
        (self.public_address, self.port)
    }

    fn cells(&self) -> Vec<String> {
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let keepalive = self.keepalive.as_ref();
        let churn = self.churn.as_ref();
        // Who sleeps keeps its session alone.
        let asleep = self.standby.as_ref().filter(|s| s.reachable_by == ReachableBy::Session);
        vec![
            self.class.name().to_owned(),
            dash(self.binding.as_ref().and_then(bracket)),
            dash(asleep.and_then(|s| s.interval).or(keepalive.map(|k| k.interval)).map(|i| i.to_string())),
            dash(asleep.map(|s| s.reason.clone()).or(keepalive.map(|k| k.reason.clone()))),
            dash(keepalive.and_then(|k| k.wakes_saved).map(|saved| saved.to_string())),
            churn.map_or(0, |c| c.count).to_string(),
            dash(churn.and_then(|c| c.last_cause).map(|cause| cause.name().to_owned())),
            dash(self.moved_seconds_ago.map(|s| format!("{} ago", age(s)))),
            dash(self.reachability.as_ref().map(|r| r.percent.clone())),
            dash(self.reachability.as_ref().and_then(|r| r.longest_gap).map(|gap| gap.to_string())),
            dash(self.standby.as_ref().and_then(|s| s.worst_wake).map(|wake| wake.to_string())),
        ]
    }
}

/// A lifetime as a bracket: `1m50s..2m`, `>=5m`, `<10s`.
fn bracket(binding: &BindingLifetime) -> Option<String> {
    match (binding.at_least, binding.less_than) {
        (Some(low), Some(high)) => Some(format!("{low}..{high}")),
        (Some(low), None) => Some(format!(">={low}")),
        (None, Some(high)) => Some(format!("<{high}")),
        (None, None) => None,
    }
}

const HEAD: [&str; 11] = [
    "NAT",
    "LIFETIME",
    "KEEPALIVE",
    "WHY",
    "SAVED",
    "CHURN",
    "CAUSE",
    "MOVED",
    "REACHABLE%",
    "GAP",
    "WORST-WAKE",
];

/// The table of `nat`; with a column for the namespace where there may be several.
pub(super) fn nat_table(rows: &[NatRow], with_namespace: bool) -> String {
    let mut head = vec!["NAME", "POOL", "PHASE", "PUBLIC-ADDRESS", "PORT"];
    if with_namespace {
        head.insert(0, "NAMESPACE");
    }
    head.extend(HEAD);
    let cells = |row: &NatRow| {
        let mut cells = vec![row.name.clone(), row.pool.clone(), row.phase.clone()];
        if with_namespace {
            cells.insert(0, row.namespace.clone());
        }
        cells.extend(place_cells(row));
        cells.extend(row.cells());
        cells
    };
    table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// The table of `nat --by-address`: one line for each client, by address and port.
pub(super) fn address_table(groups: &[AddressGroup<'_>]) -> String {
    let mut head = vec!["PUBLIC-ADDRESS", "PORT", "CLIENTS", "NAMESPACE", "NAME", "POOL", "PHASE"];
    head.extend(HEAD);
    let cells = |group: &AddressGroup<'_>, row: &NatRow| {
        let [address, port] = place_cells(row);
        let mut cells = vec![address, port, group.clients.len().to_string()];
        cells.extend([&row.namespace, &row.name, &row.pool, &row.phase].map(Clone::clone));
        cells.extend(row.cells());
        cells
    };
    let rows: Vec<_> =
        groups.iter().flat_map(|group| group.clients.iter().map(|row| cells(group, row))).collect();
    table(&head, &rows)
}

/// The clients by the public address that they come from, each group by port. Those of which none is known are left
/// out.
pub(super) fn by_address(rows: &[NatRow]) -> Vec<AddressGroup<'_>> {
    let mut sorted: Vec<&NatRow> = rows.iter().filter(|row| row.public_address.is_some()).collect();
    sorted.sort_by(|a, b| a.place().cmp(&b.place()).then_with(|| a.order(b)));
    let mut groups: Vec<AddressGroup<'_>> = Vec::new();
    for row in sorted {
        let Some(public_address) = row.public_address else { continue };
        match groups.last_mut().filter(|group| group.public_address == public_address) {
            Some(group) => group.clients.push(row),
            None => groups.push(AddressGroup { public_address, clients: vec![row] }),
        }
    }
    groups
}

fn place_cells(row: &NatRow) -> [String; 2] {
    let dash = || "-".to_owned();
    [row.public_address.map_or_else(dash, |a| a.to_string()), row.port.map_or_else(dash, |p| p.to_string())]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(name: &str, endpoint: Option<&str>) -> NatRow {
        let client: VPNClient = serde_json::from_value(json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
            "metadata": { "name": name, "namespace": "vpn" },
            "spec": { "poolRef": { "name": "staff" } },
            "status": {
                "phase": "Connected", "endpoint": endpoint,
                "nat": {
                    "class": "EndpointIndependent", "mapping": "EndpointIndependent", "filtering": "Unknown",
                    "portAllocation": "Random", "portParity": "Unknown", "hairpin": "Unknown",
                    "refreshOutbound": "True", "refreshInbound": "Unknown", "twoClass": "True",
                    "helperInterference": "False", "doubleNat": "Unknown",
                },
                "binding": { "atLeast": "1m50s", "lessThan": "2m", "confidence": "Confirmed" },
                "keepalive": { "interval": "1m46s", "mode": "Adaptive", "reason": "Learnt", "wakesSaved": 2640 },
                "churn": { "count": 3, "lastCause": "NATRestart", "lastChange": "2027-01-15T07:58:30Z" },
                "reachability": { "percent": "99.950", "longestGap": "38s" },
            },
        }))
        .unwrap();
        NatRow::new(&client, Timestamp::from_second(1_800_000_000).unwrap())
    }

    #[test]
    fn one_line_says_what_nat_which_lifetime_which_keepalive_and_what_happened_last() {
        let text = nat_table(&[row("laptop", Some("[::ffff:198.51.100.7]:40000"))], false);
        let line: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            line,
            [
                "laptop",
                "staff",
                "Connected",
                "198.51.100.7",
                "40000",
                "EndpointIndependent",
                "1m50s..2m",
                "1m46s",
                "Learnt",
                "2640",
                "3",
                "NATRestart",
                "1m30s",
                "ago",
                "99.950",
                "38s",
                "-",
            ]
        );
        assert!(nat_table(&[], true).starts_with("NAMESPACE"));
    }

    #[test]
    fn of_a_sleeper_it_is_the_session_that_is_kept_and_how_long_a_wake_took_at_worst() {
        let mut asleep = row("laptop", Some("198.51.100.7:40000"));
        asleep.standby = Some(StandbyInForce {
            reachable_by: ReachableBy::Session,
            reason: "CheaperBySession".to_owned(),
            interval: "28m20s".parse().ok(),
            worst_wake: "140ms".parse().ok(),
            ..StandbyInForce::default()
        });
        let text = nat_table(&[asleep], false);
        assert!(text.contains(" 28m20s ") && text.contains(" CheaperBySession "), "{text}");
        assert!(text.trim_end().ends_with(" 140ms"), "{text}");
    }

    #[test]
    fn every_peer_behind_an_address_is_listed_with_its_port() {
        let rows = [
            row("c", Some("198.51.100.7:50000")),
            row("other", Some("198.51.100.70:40000")),
            row("a", Some("198.51.100.7:9")),
            row("unseen", None),
        ];
        let groups = by_address(&rows);
        let text = address_table(&groups);
        let lines: Vec<Vec<&str>> =
            text.lines().skip(1).map(|l| l.split_whitespace().take(5).collect()).collect();
        assert_eq!(
            lines,
            [
                ["198.51.100.7", "9", "2", "vpn", "a"],
                ["198.51.100.7", "50000", "2", "vpn", "c"],
                ["198.51.100.70", "40000", "1", "vpn", "other"],
            ]
        );
        let json = serde_json::to_value(&groups).unwrap();
        assert_eq!(json[0]["publicAddress"], "198.51.100.7");
        assert_eq!(json[0]["clients"][1]["port"], 50000);
    }

    #[test]
    fn a_bracket_that_is_open_says_so() {
        let binding = |json| bracket(&serde_json::from_value(json).unwrap());
        assert_eq!(binding(json!({ "atLeast": "5m", "confidence": "Growing" })).as_deref(), Some(">=5m"));
        assert_eq!(binding(json!({ "lessThan": "10s", "confidence": "Unknown" })).as_deref(), Some("<10s"));
        assert_eq!(binding(json!({ "confidence": "Unknown" })), None);
    }
}
