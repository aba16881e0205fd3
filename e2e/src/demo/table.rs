//! The table of clients as text: drawn in place on a terminal, a line for each change elsewhere.

use std::{fmt::Write, time::Duration};

use pinhole_crds::ClientPhase;

use super::{script::spelled, view::Client};

/// Whether colours are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) colour: bool,
}

impl Style {
    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub(crate) const BOLD: &str = "1";
pub(crate) const DIM: &str = "2";
const RED: &str = "31";
pub(crate) const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Text with the colour it is painted in.
type Cell = (String, &'static str);

const HEADINGS: [&str; 6] = ["CLIENT", "BEHIND", "PHASE", "PUBLIC ENDPOINT", "ADDRESS", "RTT TO POD"];

/// Columns of cells, as wide as their widest.
pub(crate) fn align<const N: usize>(rows: &[[Cell; N]], style: Style) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, (text, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let line = |row: &[Cell; N]| {
        let mut line = String::new();
        for ((text, code), width) in row.iter().zip(widths) {
            let blanks = width.saturating_sub(text.chars().count()) + 2;
            let _ = write!(line, "{}{:blanks$}", style.paint(code, text), "");
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The complete picture: what is going on, and a row for each client.
pub(crate) fn frame(title: &str, clients: &[Client], now: Duration, style: Style) -> Vec<String> {
    let mut rows = vec![HEADINGS.map(|heading| (heading.to_owned(), BOLD))];
    rows.extend(clients.iter().map(row));
    let mut lines = vec![String::new(), clock(title, now), String::new()];
    lines.extend(align(&rows, style));
    lines.push(String::new());
    lines
}

fn clock(title: &str, now: Duration) -> String {
    format!("{:5.1} s  {title}", now.as_secs_f32())
}

fn row(client: &Client) -> [Cell; 6] {
    let dash = || ("-".to_owned(), DIM);
    let rtt = match (client.pings.first(), client.pings.last()) {
        (None, _) => dash(),
        (_, None) => ("lost".to_owned(), RED),
        (_, Some(rtt)) => (milliseconds(rtt), ""),
    };
    [
        (client.name.to_owned(), BOLD),
        (client.behind.to_owned(), ""),
        phase(client),
        endpoint(client).unwrap_or_else(dash),
        client.address.map_or_else(dash, |address| (address.to_string(), "")),
        rtt,
    ]
}

fn phase(client: &Client) -> Cell {
    let Some(phase) = client.phase else { return ("starting".to_owned(), DIM) };
    let colour = match phase {
        ClientPhase::Connected | ClientPhase::Standby => GREEN,
        ClientPhase::Pending | ClientPhase::Degraded | ClientPhase::WaitingToReconnect => YELLOW,
        ClientPhase::Dormant | ClientPhase::Disconnected | ClientPhase::Suspended | ClientPhase::Unknown => {
            RED
        }
    };
    (spelled(phase), colour)
}

fn endpoint(client: &Client) -> Option<Cell> {
    let now = client.endpoint.clone()?;
    let Some(before) = client.before.as_ref().filter(|before| **before != now) else {
        return Some((now, ""));
    };
    let host =
        |endpoint: &str| endpoint.rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned()));
    let was = match (host(before), host(&now)) {
        (Some((old, port)), Some((new, _))) if old == new => format!(":{port}"),
        _ => before.clone(),
    };
    Some((format!("{now} (was {was})"), YELLOW))
}

pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// What replaces a picture of `height` lines on the terminal. Lines that are too long are cut at its edge: a
/// wrapped one would break the count.
pub(crate) fn redraw(height: usize, lines: &[String]) -> String {
    let mut text = String::from("\x1b[?7l");
    if height > 0 {
        let _ = write!(text, "\x1b[{height}A");
    }
    for line in lines {
        let _ = write!(text, "\r{line}\x1b[K\n");
    }
    text.push_str("\x1b[J\x1b[?7h");
    text
}

/// The lines for what changed since the last time.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    title: String,
    rows: Vec<String>,
}

impl Changes {
    /// Notes what is, and yields what is new.
    pub(crate) fn since_last(&mut self, title: &str, clients: &[Client], now: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        self.rows.resize(clients.len(), String::new());
        for (client, seen) in clients.iter().zip(&mut self.rows) {
            // Every round trip is another one; only that they come, and that they stop, is news.
            let state = format!("{} {}", sentence(client), answers(client));
            if *seen != state {
                *seen = state;
                let rtt = client.pings.last().map(milliseconds);
                let rtt = rtt.map(|rtt| format!(" in {rtt}")).unwrap_or_default();
                lines.push(clock(&format!("{}, {}{rtt}", sentence(client), answers(client)), now));
            }
        }
        if self.title != title {
            title.clone_into(&mut self.title);
            lines.push(clock(title, now));
        }
        lines
    }
}

fn sentence(client: &Client) -> String {
    let mut text = format!("{} is {}", client.name, phase(client).0);
    if let Some(address) = client.address {
        let _ = write!(text, " as {address}");
    }
    if let Some((endpoint, _)) = endpoint(client) {
        let _ = write!(text, " from {endpoint}");
    }
    text
}

fn answers(client: &Client) -> &'static str {
    match (client.pings.first(), client.pings.last()) {
        (None, _) => "no ping answered yet",
        (Some(_), None) => "a ping was lost",
        (Some(_), Some(_)) => "pings answered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::view::Ping;

    const PLAIN: Style = Style { colour: false };

    fn clients() -> Vec<Client> {
        let mut home = Client::new("home", "port-preserving NAT");
        home.phase = Some(ClientPhase::Connected);
        home.endpoint = Some("203.0.113.32:20000".to_owned());
        home.before = Some("203.0.113.32:41000".to_owned());
        home.address = Some([10, 77, 0, 2].into());
        home.pings.note(Ping { sent: Duration::ZERO, rtt: Some(Duration::from_micros(840)) });
        vec![home, Client::new("office", "symmetric NAT")]
    }

    #[test]
    fn the_table_has_a_row_for_each_client_and_shows_where_one_moved_from() {
        let lines = frame("here they are", &clients(), Duration::from_millis(3210), PLAIN);
        assert_eq!(
            lines,
            [
                "",
                "  3.2 s  here they are",
                "",
                "CLIENT  BEHIND               PHASE      PUBLIC ENDPOINT                  ADDRESS    RTT TO POD",
                "home    port-preserving NAT  Connected  203.0.113.32:20000 (was :41000)  10.77.0.2  0.8 ms",
                "office  symmetric NAT        starting   -                                -          -",
                "",
            ]
        );
    }

    #[test]
    fn a_lost_ping_shows() {
        let mut clients = clients();
        clients[0].pings.note(Ping { sent: Duration::from_secs(1), rtt: None });
        assert!(frame("", &clients, Duration::ZERO, PLAIN)[4].ends_with("lost"));
    }

    #[test]
    fn colours_do_not_move_columns() {
        let painted = frame("", &clients(), Duration::ZERO, Style { colour: true }).join("\n");
        assert!(painted.contains("\x1b[32mConnected\x1b[0m  \x1b[33m203.0.113.32:20000"), "{painted:?}");
        let mut bare = painted;
        for code in [BOLD, DIM, RED, GREEN, YELLOW, "0"] {
            bare = bare.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(bare, frame("", &clients(), Duration::ZERO, PLAIN).join("\n"));
    }

    #[test]
    fn a_picture_takes_the_place_of_the_one_before() {
        let text = redraw(2, &["a".to_owned(), "b".to_owned()]);
        assert_eq!(text, "\x1b[?7l\x1b[2A\ra\x1b[K\n\rb\x1b[K\n\x1b[J\x1b[?7h");
        assert!(!redraw(0, &[]).contains('A'));
    }

    #[test]
    fn off_a_terminal_only_news_makes_a_line() {
        let mut changes = Changes::default();
        let mut clients = clients();
        let first = changes.since_last("a", &clients, Duration::from_secs(1));
        assert_eq!(
            first,
            [
                "  1.0 s  home is Connected as 10.77.0.2 from 203.0.113.32:20000 (was :41000), pings answered in 0.8 ms",
                "  1.0 s  office is starting, no ping answered yet",
                "  1.0 s  a",
            ]
        );
        clients[0].pings.note(Ping { sent: Duration::from_secs(1), rtt: Some(Duration::from_micros(900)) });
        assert_eq!(changes.since_last("a", &clients, Duration::from_secs(2)), Vec::<String>::new());
        clients[1].phase = Some(ClientPhase::Pending);
        assert_eq!(changes.since_last("b", &clients, Duration::from_secs(3)).len(), 2);
    }
}
