//! What is shown of a client. Pure.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use pinhole_crds::{CONNECTED, VPNClient};
use serde::Serialize;

use super::table::{age, table};

/// One client, as it is printed: one object of the JSON list.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientRow {
    namespace: String,
    name: String,
    pool: String,
    phase: String,
    /// Why the client is connected or is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Public `ip:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    addresses: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keepalive: Option<String>,
    /// How often the NAT mapping moved.
    moves: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_handshake: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<String>,
    #[serde(skip)]
    moved_seconds_ago: Option<i64>,
}

impl ClientRow {
    pub(super) fn new(client: &VPNClient, now: Timestamp) -> Self {
        let status = client.status.clone().unwrap_or_default();
        let churn = status.churn.unwrap_or_default();
        let connected = status.conditions.into_iter().find(|c| c.type_ == CONNECTED);
        Self {
            namespace: client.namespace().unwrap_or_default(),
            name: client.name_any(),
            pool: client.spec.pool_ref.name.clone(),
            phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| phase.name().to_owned()),
            reason: connected.map(|c| c.reason),
            endpoint: status.endpoint,
            addresses: status.addresses,
            keepalive: status.keepalive.map(|k| k.interval.to_string()),
            moves: churn.count,
            moved_at: churn.last_change.as_ref().map(|t| t.0.to_string()),
            last_handshake: status.last_handshake.map(|t| t.0.to_string()),
            replica: status.replica,
            moved_seconds_ago: churn.last_change.map(|t| now.as_second() - t.0.as_second()),
        }
    }

    /// By namespace, then by name.
    pub(super) fn order(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// The public address and port.
    pub(super) fn public(&self) -> Option<SocketAddr> {
        self.endpoint.as_ref()?.parse().ok()
    }
}

/// The table of `clients`; with a column for the namespace where there may be several.
pub(super) fn clients_table(rows: &[ClientRow], with_namespace: bool) -> String {
    let mut head =
        vec!["NAME", "POOL", "PHASE", "ENDPOINT", "ADDRESS", "KEEPALIVE", "MOVES", "MOVED", "GATEWAY"];
    if with_namespace {
        head.insert(0, "NAMESPACE");
    }
    let cells = |row: &ClientRow| {
        let mut cells = vec![
            row.name.clone(),
            row.pool.clone(),
            row.phase.clone(),
            or_dash(row.endpoint.as_deref()),
            or_dash(Some(addresses(row).as_str()).filter(|a| !a.is_empty())),
            or_dash(row.keepalive.as_deref()),
            row.moves.to_string(),
            or_dash(row.moved_seconds_ago.map(|s| format!("{} ago", age(s))).as_deref()),
            or_dash(row.replica.as_deref()),
        ];
        if with_namespace {
            cells.insert(0, row.namespace.clone());
        }
        cells
    };
    table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// Those of `rows` that come from `address`, by port.
pub(super) fn behind(rows: Vec<ClientRow>, address: IpAddr) -> Vec<ClientRow> {
    let address = address.to_canonical();
    let mut rows: Vec<_> =
        rows.into_iter().filter(|r| r.public().is_some_and(|p| p.ip().to_canonical() == address)).collect();
    rows.sort_by_key(|row| row.public().map(|p| p.port()));
    rows
}

/// The table of `peers`.
pub(super) fn peers_table(rows: &[ClientRow]) -> String {
    let cells = |row: &ClientRow| {
        vec![
            or_dash(row.public().map(|p| p.port().to_string()).as_deref()),
            row.namespace.clone(),
            row.name.clone(),
            row.pool.clone(),
            row.phase.clone(),
            or_dash(Some(addresses(row).as_str()).filter(|a| !a.is_empty())),
        ]
    };
    let head = ["PORT", "NAMESPACE", "NAME", "POOL", "PHASE", "ADDRESS"];
    table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn addresses(row: &ClientRow) -> String {
    row.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use pinhole_crds::{Churn, ClientPhase, VPNClientStatus};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn row(name: &str, endpoint: Option<&str>) -> ClientRow {
        let mut client: VPNClient = serde_json::from_value(serde_json::json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
            "metadata": { "name": name, "namespace": "vpn" },
            "spec": { "poolRef": { "name": "staff" } },
        }))
        .unwrap();
        client.status = Some(VPNClientStatus {
            phase: Some(ClientPhase::WaitingToReconnect),
            endpoint: endpoint.map(Into::into),
            addresses: vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()],
            churn: Some(Churn {
                count: 3,
                last_change: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    Timestamp::from_second(1_800_000_000 - 90).unwrap(),
                )),
                ..Churn::default()
            }),
            ..VPNClientStatus::default()
        });
        ClientRow::new(&client, now())
    }

    #[test]
    fn the_table_answers_who_is_up_from_where() {
        let text = clients_table(&[row("laptop-1", Some("198.51.100.7:40000"))], false);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("NAME"));
        for cell in [
            "laptop-1",
            "staff",
            "WaitingToReconnect",
            "198.51.100.7:40000",
            "10.77.0.2,fd77::2",
            "1m30s ago",
        ] {
            assert!(lines[1].contains(cell), "{cell} in {text}");
        }
        assert!(clients_table(&[row("laptop-1", None)], true).starts_with("NAMESPACE"));
    }

    #[test]
    fn peers_behind_an_address_are_found_by_address_and_sorted_by_port() {
        let rows = vec![
            row("c", Some("198.51.100.7:50000")),
            row("other", Some("198.51.100.70:40000")),
            row("mapped", Some("[::ffff:198.51.100.7]:100")),
            row("a", Some("198.51.100.7:9")),
            row("unseen", None),
        ];
        let found = behind(rows, "198.51.100.7".parse().unwrap());
        assert_eq!(found.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "mapped", "c"]);
        assert!(peers_table(&found).lines().nth(1).unwrap().starts_with("9 "));
    }

    #[test]
    fn a_client_that_nobody_knows_of_yet_is_pending() {
        let client: VPNClient = serde_json::from_value(serde_json::json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
            "metadata": { "name": "new", "namespace": "vpn" },
            "spec": { "poolRef": { "name": "staff" } },
        }))
        .unwrap();
        let json = serde_json::to_value(ClientRow::new(&client, now())).unwrap();
        assert_eq!(json["phase"], "Pending");
        assert!(json.get("endpoint").is_none());
    }
}
