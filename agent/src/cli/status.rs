//! `pinhole status` and `pinhole down`.

use std::{fmt::Write, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use pinhole_proto::printable;

use super::{Failure, LONGEST_MESSAGE, Tunnel};
use crate::{
    client::{
        self, ClientError, Question, Status, Uplink,
        control::{self, Binding, Churn},
    },
    tunnel::Offloads,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    #[command(flatten)]
    tunnel: Tunnel,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Print nothing; exit with 0 only if the tunnel is connected (for probes)
    #[arg(long)]
    check: bool,
}

#[derive(Args, Debug)]
pub(super) struct Down {
    #[command(flatten)]
    tunnel: Tunnel,
    /// Only take back what a process that was killed has left on this machine: for who starts another
    #[arg(long)]
    leftovers: bool,
}

impl Show {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let one = std::env::args().any(|argument| argument.starts_with("--name"));
        let running = control::running(&self.tunnel.state_dir);
        let names = if one || self.check || running.is_empty() { vec![self.tunnel.name] } else { running };
        let mut statuses = Vec::new();
        for name in &names {
            match ask(name, &self.tunnel.state_dir, Question::Status) {
                Ok(status) => statuses.push(status),
                // A process that was killed leaves its socket behind.
                Err(error @ ClientError::NotRunning(_)) if names.len() == 1 => return Err(error.into()),
                Err(ClientError::NotRunning(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.check {
            let connected = statuses.iter().all(|status| status.phase == "Connected");
            return Ok(if connected { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        match self.output {
            Output::Table => print!("{}", table(&statuses)),
            Output::Json => {
                let json = serde_json::to_string_pretty(&statuses);
                println!("{}", json.map_err(|error| ClientError::Setting(error.to_string()))?);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Down {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.leftovers {
            client::mend(&self.tunnel.name, &self.tunnel.state_dir)?;
            return Ok(());
        }
        wait_for(client::down(&self.tunnel.name, &self.tunnel.state_dir))?;
        println!("{} is down", self.tunnel.name);
        Ok(())
    }
}

fn ask(name: &str, state_root: &std::path::Path, question: Question) -> Result<Status, ClientError> {
    wait_for(client::ask(name, state_root, question))
}

fn wait_for<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ClientError::Setting(format!("cannot start: {error}")))?;
    runtime.block_on(answer)
}

/// Longest cell, characters: the name of an object.
const CELL: usize = 253;

const HEADINGS: [&str; 12] = [
    "NAME",
    "PHASE",
    "REPLICA",
    "ENDPOINT",
    "ADDRESS",
    "LAST RECEIVE",
    "RTT",
    "KEEPALIVE",
    "NAT",
    "BINDING",
    "CHURN",
    "RX/TX",
];

const WAY_HEADINGS: [&str; 6] = ["NAME", "BY", "KIND", "FROM", "TO", "STATE"];

/// Cells under their headings. A gateway has its say in some of them: nothing in a cell acts on the terminal.
fn columns<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut all = vec![headings.map(str::to_owned)];
    all.extend(rows.into_iter().map(|row| row.map(|cell| printable(&cell, CELL))));
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

fn way(name: &str, uplink: &Uplink) -> [String; WAY_HEADINGS.len()] {
    [
        name.to_owned(),
        uplink.interface.clone(),
        uplink.kind.clone(),
        uplink.source.map_or_else(|| "-".to_owned(), |source| source.to_string()),
        uplink.endpoint.to_string(),
        if uplink.in_use { "in use" } else { "spare" }.to_owned(),
    ]
}

fn table(statuses: &[Status]) -> String {
    let mut text = columns(HEADINGS, statuses.iter().map(row));
    let ways: Vec<_> = statuses
        .iter()
        .flat_map(|status| status.uplinks.iter().map(|uplink| way(&status.name, uplink)))
        .collect();
    if !ways.is_empty() {
        text.push('\n');
        text.push_str(&columns(WAY_HEADINGS, ways));
    }
    for status in statuses {
        if let Some(error) =
            status.last_error.as_ref().filter(|_| !matches!(status.phase.as_str(), "Connected" | "Standby"))
        {
            let _ = writeln!(text, "{}: {}", status.name, printable(error, LONGEST_MESSAGE));
        }
        if status.key_shared {
            let _ = writeln!(text, "{}: {}", status.name, control::KEY_SHARED);
        }
        for left_out in &status.left_out {
            let _ = writeln!(text, "{}: {}", status.name, printable(left_out, LONGEST_MESSAGE));
        }
        for impairment in &status.impairments {
            let _ =
                writeln!(text, "{}: {}", status.name, printable(&impairment.to_string(), LONGEST_MESSAGE));
        }
        let lacking = lacking(status);
        if !lacking.is_empty() {
            let lacking = lacking.join(", ");
            let _ = writeln!(text, "{}: slower than it could be: the kernel lacks {lacking}", status.name);
        }
    }
    text
}

/// The offloads that the tunnel does without.
fn lacking(status: &Status) -> Vec<&'static str> {
    let Some(used) = &status.offloads else { return Vec::new() };
    let all = Offloads::ALL.list().into_iter().map(|(name, _)| name);
    all.filter(|name| !used.iter().any(|used| used == name)).collect()
}

fn row(status: &Status) -> [String; HEADINGS.len()] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let addresses: Vec<&str> =
        status.addresses.iter().map(|address| address.split('/').next().unwrap_or_default()).collect();
    let interval = match status.keepalive.interval_seconds {
        _ if status.standby.interval_seconds.is_some() => {
            let seconds = status.standby.interval_seconds.unwrap_or_default();
            format!("{} by session ({})", span(seconds), status.standby.reason)
        }
        Some(seconds) => format!("{seconds:.0}s ({})", status.keepalive.reason),
        None => format!("none ({})", status.keepalive.mode),
    };
    [
        status.name.clone(),
        status.phase.clone(),
        or_dash(&status.replica),
        or_dash(&status.endpoint),
        addresses.join(","),
        status
            .last_receive_seconds
            .map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", span(seconds))),
        status.rtt_milliseconds.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}ms")),
        interval,
        if status.nat.class.is_empty() { "-".to_owned() } else { status.nat.class.clone() },
        lifetime(&status.binding),
        churn(&status.churn),
        format!("{}/{}", bytes(status.rx_bytes), bytes(status.tx_bytes)),
    ]
}

fn lifetime(binding: &Binding) -> String {
    let least = binding.at_least_seconds;
    let bracket = match binding.less_than_seconds {
        Some(most) => format!("{least:.0}-{most:.0}s"),
        None if least > 0.0 => format!(">{least:.0}s"),
        None => return "-".to_owned(),
    };
    format!("{bracket} ({})", binding.confidence)
}

fn churn(churn: &Churn) -> String {
    match (&churn.last_cause, churn.last_seconds) {
        (Some(cause), Some(seconds)) => format!("{} ({cause} {} ago)", churn.count, span(seconds)),
        _ => churn.count.to_string(),
    }
}

fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match whole {
        0..=119 => format!("{whole}s"),
        120..=7199 => format!("{}m", whole / 60),
        _ => format!("{}h", whole / 3600),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut rest, mut unit) = (count, 0);
    while rest >= 10_240 && unit + 1 < UNITS.len() {
        rest /= 1024;
        unit += 1;
    }
    format!("{rest}{}", UNITS.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn the_table_has_a_row_for_each_tunnel_and_says_what_is_wrong() {
        let status = Status {
            name: "pinhole0".into(),
            phase: "Dormant".into(),
            addresses: vec!["10.77.0.9/32".into()],
            rx_bytes: 20_480,
            binding: Binding {
                at_least_seconds: 28.4,
                less_than_seconds: Some(30.6),
                confidence: "Confirmed".into(),
                ..Binding::default()
            },
            churn: Churn {
                count: 3,
                last_cause: Some("MappingLost".into()),
                last_seconds: Some(70.0),
                ..Churn::default()
            },
            last_error: Some("no route".into()),
            ..Status::default()
        };
        let text = table(&[status]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("NAME"));
        assert!(
            lines[1].contains("10.77.0.9 ") && lines[1].contains("never") && lines[1].contains("20KiB/0B")
        );
        assert!(lines[1].contains("28-31s (Confirmed)") && lines[1].contains("3 (MappingLost 70s ago)"));
        assert_eq!(lines[2], "pinhole0: no route");
    }

    #[test]
    fn the_ways_of_a_tunnel_have_a_table_of_their_own() {
        let uplink = |interface: &str, in_use: bool| Uplink {
            interface: interface.into(),
            kind: "Wired".into(),
            source: in_use.then(|| [192, 0, 2, 7].into()),
            endpoint: ([198, 51, 100, 1], 51820).into(),
            in_use,
        };
        let uplinks = vec![uplink("eth0", true), uplink("eth1", false)];
        let text = table(&[Status { name: "pinhole0".into(), uplinks, ..Status::default() }]);
        let ways: Vec<_> = text.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
        assert_eq!(
            ways,
            [
                "NAME      BY    KIND   FROM       TO                  STATE",
                "pinhole0  eth0  Wired  192.0.2.7  198.51.100.1:51820  in use",
                "pinhole0  eth1  Wired  -          198.51.100.1:51820  spare",
            ]
        );
    }

    #[test]
    fn what_is_hostile_stays_in_its_cell_and_its_line() {
        for text in hostile::strings() {
            let status = Status {
                name: "pinhole0".into(),
                phase: "Dormant".into(),
                replica: Some(text.clone()),
                endpoint: Some(text.clone()),
                left_out: vec![text.clone()],
                last_error: Some(text.clone()),
                ..Status::default()
            };
            let shown = table(&[status]);
            assert_eq!(shown.lines().count(), 4, "{text:?}");
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert!(!shown.contains(['\u{202e}', '\u{200b}', '\u{2028}']), "{text:?}");
            assert!(shown.len() < 4 * LONGEST_MESSAGE, "{text:?}");
        }
    }

    #[test]
    fn offloads_that_are_missing_are_told_and_others_are_not() {
        let with = |offloads: Option<&[&str]>| {
            let offloads = offloads.map(|names| names.iter().map(ToString::to_string).collect());
            table(&[Status { name: "pinhole0".into(), offloads, ..Status::default() }])
        };
        assert_eq!(with(None).lines().count(), 2);
        assert_eq!(with(Some(&["tun-tso", "tun-uso", "udp-gso", "udp-gro"])).lines().count(), 2);
        let text = with(Some(&["tun-tso", "udp-gso"]));
        assert_eq!(
            text.lines().last(),
            Some("pinhole0: slower than it could be: the kernel lacks tun-uso, udp-gro")
        );
    }
}
