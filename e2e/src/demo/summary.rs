//! What the demo says at its end, for people and for machines.

use std::time::Duration;

use serde::Serialize;

use super::{
    script::Move,
    table::{BOLD, GREEN, Style, align, milliseconds},
    view::Client,
};

/// Results and figures.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    clients: Vec<Connected>,
    moved: Moved,
    figures: Figures,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connected {
    name: &'static str,
    behind: &'static str,
    address: Option<std::net::IpAddr>,
    endpoint: Option<String>,
    /// From `kubectl apply` of gateway and pool to the first answer.
    first_ping_seconds: Option<f64>,
    median_rtt_seconds: Option<f64>,
    answered: usize,
    lost: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Moved {
    client: &'static str,
    from: String,
    to: String,
    outage_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    first_ping_seconds: Option<f64>,
    every_first_ping_seconds: Option<f64>,
    memory_bytes: Memory,
    image_bytes: Option<Images>,
}

/// Resident memory in bytes; none where the pod runs on another machine.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    pub(crate) operator_leader: Option<u64>,
    pub(crate) operator_standby: Option<u64>,
    pub(crate) gateway: Option<u64>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Images {
    pub(crate) operator: u64,
    pub(crate) agent: u64,
}

impl Summary {
    pub(crate) fn new(clients: &[Client], moved: Move, memory: Memory, images: Option<Images>) -> Self {
        let connected = |client: &Client| Connected {
            name: client.name,
            behind: client.behind,
            address: client.address,
            endpoint: client.endpoint.clone(),
            first_ping_seconds: client.pings.first().map(seconds),
            median_rtt_seconds: client.pings.median().map(seconds),
            answered: client.pings.answered_since(Duration::ZERO),
            lost: client.pings.lost(),
        };
        let firsts = || clients.iter().filter_map(|client| client.pings.first());
        Self {
            clients: clients.iter().map(connected).collect(),
            moved: Moved {
                client: moved.client,
                from: moved.from,
                to: moved.to,
                outage_seconds: seconds(moved.outage),
            },
            figures: Figures {
                first_ping_seconds: firsts().min().map(seconds),
                every_first_ping_seconds: firsts().max().map(seconds),
                memory_bytes: memory,
                image_bytes: images,
            },
        }
    }

    /// For machines.
    ///
    /// # Errors
    /// Never, as far as JSON is concerned.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// For people.
    pub(crate) fn text(&self, style: Style) -> Vec<String> {
        let mut lines: Vec<String> = self.headlines().map(|line| style.paint(GREEN, &line)).into();
        lines.push(String::new());
        lines.extend(self.table(style));
        lines.push(String::new());
        lines.extend(self.figures(style));
        lines
    }

    fn headlines(&self) -> [String; 2] {
        let Moved { client, from, to, outage_seconds } = &self.moved;
        [
            format!("All {} clients connected and stayed connected.", self.clients.len()),
            format!(
                "When {client}'s NAT restarted, {client} moved from {from} to {to}; a ping was answered {outage_seconds:.2} s later."
            ),
        ]
    }

    fn table(&self, style: Style) -> Vec<String> {
        let headings = ["CLIENT", "BEHIND", "FIRST PING", "MEDIAN RTT", "PINGS ANSWERED", "LOST"];
        let mut rows = vec![headings.map(|heading| (heading.to_owned(), BOLD))];
        rows.extend(self.clients.iter().map(|client| {
            let rtt = client.median_rtt_seconds.and_then(|rtt| Duration::try_from_secs_f64(rtt).ok());
            [
                (client.name.to_owned(), BOLD),
                (client.behind.to_owned(), ""),
                (in_seconds(client.first_ping_seconds), ""),
                (rtt.map_or_else(|| "-".to_owned(), milliseconds), ""),
                (client.answered.to_string(), ""),
                (client.lost.to_string(), ""),
            ]
        }));
        align(&rows, style)
    }

    fn figures(&self, style: Style) -> Vec<String> {
        let Figures { memory_bytes: memory, image_bytes: images, .. } = &self.figures;
        let times = format!(
            "{}, of all clients {}",
            in_seconds(self.figures.first_ping_seconds),
            in_seconds(self.figures.every_first_ping_seconds)
        );
        let resident = format!(
            "operator {} (leader), {} (standby), gateway {}",
            megabytes(memory.operator_leader),
            megabytes(memory.operator_standby),
            megabytes(memory.gateway)
        );
        let sizes = images.map_or_else(
            || "not built here".to_owned(),
            |images| {
                let (operator, agent) = (Some(images.operator), Some(images.agent));
                format!("operator {}, agent {}", megabytes(operator), megabytes(agent))
            },
        );
        let row = |name: &str, value: String, aim: &str| {
            [(name.to_owned(), BOLD), (value, ""), (format!("aim: under {aim}"), super::table::DIM)]
        };
        align(
            &[
                row("kubectl apply to the first ping", times, "15 s"),
                row("resident memory", resident, "30 MB each"),
                row("image sizes", sizes, "25 MB each"),
            ],
            style,
        )
    }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

fn in_seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} s"))
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "not on this machine".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::view::Ping;

    fn summary(images: Option<Images>) -> Summary {
        let clients = [("home", 4100), ("office", 4300)].map(|(name, first)| {
            let mut client = Client::new(name, "a NAT");
            let rtt = Some(Duration::from_micros(900));
            client.pings.note(Ping { sent: Duration::from_millis(first), rtt });
            client
        });
        let moved = Move {
            client: "home",
            from: "192.0.2.1:1".into(),
            to: "192.0.2.1:2".into(),
            outage: Duration::from_millis(210),
        };
        let memory =
            Memory { operator_leader: Some(21_340_000), operator_standby: Some(18_000_000), gateway: None };
        Summary::new(&clients, moved, memory, images)
    }

    #[test]
    fn people_read_the_move_the_clients_and_the_figures() {
        let images = Images { operator: 14_200_000, agent: 9_000_000 };
        let text = summary(Some(images)).text(Style { colour: false });
        assert_eq!(
            text,
            [
                "All 2 clients connected and stayed connected.",
                "When home's NAT restarted, home moved from 192.0.2.1:1 to 192.0.2.1:2; a ping was answered 0.21 s later.",
                "",
                "CLIENT  BEHIND  FIRST PING  MEDIAN RTT  PINGS ANSWERED  LOST",
                "home    a NAT   4.1 s       0.9 ms      1               0",
                "office  a NAT   4.3 s       0.9 ms      1               0",
                "",
                "kubectl apply to the first ping  4.1 s, of all clients 4.3 s                                                aim: under 15 s",
                "resident memory                  operator 21.3 MB (leader), 18.0 MB (standby), gateway not on this machine  aim: under 30 MB each",
                "image sizes                      operator 14.2 MB, agent 9.0 MB                                             aim: under 25 MB each",
            ]
        );
    }

    #[test]
    fn machines_read_the_same_in_base_units() {
        let json: serde_json::Value = serde_json::from_str(&summary(None).json().unwrap()).unwrap();
        assert_eq!(json["figures"]["firstPingSeconds"], 4.1009);
        assert_eq!(json["figures"]["everyFirstPingSeconds"], 4.3009);
        assert_eq!(json["figures"]["memoryBytes"]["operatorLeader"], 21_340_000);
        assert_eq!(json["figures"]["imageBytes"], serde_json::Value::Null);
        assert_eq!(json["moved"]["outageSeconds"], 0.21);
        assert_eq!(json["clients"][1]["lost"], 0);
    }
}
