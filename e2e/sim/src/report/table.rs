//! The comparison as text.

use std::fmt::Write;

use crate::metrics::{Blind, ByProfile, Summary};

/// How to paint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether colours are wanted.
    pub colour: bool,
}

const BOLD: &str = "1";

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What a column shows of a row.
type Column<T> = (&'static str, fn(&T) -> String);

/// So many profiles are shown.
const WORST: usize = 20;

const COST: [Column<Summary>; 9] = [
    ("algorithm", |row| row.name.clone()),
    ("wake success", |row| percent(row.wake_success)),
    ("wakes/day", |row| format!("{:.0}", row.wakes_per_client_day)),
    ("sent only", |row| format!("{:.0}", row.sent_wakes_per_client_day)),
    ("x oracle", |row| format!("{:.3}", row.oracle_ratio)),
    ("converged", |row| ratio(row.oracle_ratio_converged)),
    ("packets/day", |row| format!("{:.0}", row.packets_per_client_day)),
    ("kB/day", |row| format!("{:.0}", row.bytes_per_client_day / 1e3)),
    ("worst profile", worst),
];

const TIME: [Column<Summary>; 8] = [
    ("algorithm", |row| row.name.clone()),
    ("converged after", |row| pair(row.converge_s_p50, row.converge_s_p99)),
    ("first verdict", |row| pair(row.verdict_s_p50, row.verdict_s_p99)),
    ("in 1.3 T + 30 s", |row| {
        if row.verdict_s_p50.is_none() && row.verdict_in_time == 0.0 {
            dash()
        } else {
            share(row.verdict_in_time)
        }
    }),
    ("blind", |row| pair(row.blind_s_p50, row.blind_s_p99)),
    ("recovery: invisible flush", |row| recovery(&row.faults.invisible_flush)),
    ("visible flush", |row| recovery(&row.faults.visible_flush)),
    ("faults", |row| {
        let Blind { count: invisible, .. } = row.faults.invisible_flush;
        format!("{invisible} + {} + {}", row.faults.visible_flush.count, row.faults.shrink.count)
    }),
];

const PROFILE: [Column<ByProfile>; 6] = [
    ("profile", |row| row.name.clone()),
    ("clients", |row| row.clients.to_string()),
    ("wake success", |row| percent(row.wake_success)),
    ("wakes/day", |row| format!("{:.0}", row.wakes_per_client_day)),
    ("x oracle", |row| format!("{:.3}", row.oracle_ratio)),
    ("converged", |row| ratio(row.oracle_ratio_converged)),
];

/// Three tables: what it costs and brings, what that is to a radio, and how long things take. Times are seconds, median /
/// 99th percentile.
pub fn table(rows: &[Summary], style: Style) -> String {
    let ours = |row: &Summary| row.name == "pinhole";
    let [cost, energy, time] = [
        columns(&COST, rows, ours, style),
        columns(&ENERGY, rows, ours, style),
        columns(&TIME, rows, ours, style),
    ];
    format!("{cost}\n{energy}\n{time}")
}

const ENERGY: [Column<Summary>; 7] = [
    ("algorithm", |row| row.name.clone()),
    ("LTE on, s/day", |row| format!("{:.0}", row.lte.on_s)),
    ("J/day", |row| format!("{:.0}", row.lte.joules)),
    ("saved of 25 s", |row| row.lte.saved_of_static_25s.map_or_else(dash, share)),
    ("Wi-Fi on, s/day", |row| format!("{:.0}", row.wifi.on_s)),
    ("J/day", |row| format!("{:.1}", row.wifi.joules)),
    ("saved of 25 s", |row| row.wifi.saved_of_static_25s.map_or_else(dash, share)),
];

/// The profiles on which one algorithm succeeded least.
pub fn worst_profiles(row: &Summary, style: Style) -> String {
    let mut profiles = row.profiles.clone();
    profiles.sort_by(|left, right| left.wake_success.total_cmp(&right.wake_success));
    profiles.truncate(WORST);
    format!("{}, where it went worst\n{}", row.name, columns(&PROFILE, &profiles, |_| false, style))
}

fn columns<T>(columns: &[Column<T>], rows: &[T], highlit: fn(&T) -> bool, style: Style) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, show)| show(row)).collect()).collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(column, (heading, _))| {
            let widest =
                cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
            widest.unwrap_or_default().max(heading.len())
        })
        .collect();
    let line = |texts: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, (text, width)) in texts.zip(&widths).enumerate() {
            // Names are read from the left, figures from the right.
            let _ = if column == 0 || column + 1 == columns.len() {
                write!(line, "{text:<width$}  ")
            } else {
                write!(line, "{text:>width$}  ")
            };
        }
        line.trim_end().to_owned()
    };
    let mut text = style.paint(BOLD, &line(&mut columns.iter().map(|(heading, _)| *heading)));
    text.push('\n');
    for (row, summary) in cells.iter().zip(rows) {
        let row = line(&mut row.iter().map(String::as_str));
        let row = if highlit(summary) { style.paint(BOLD, &row) } else { row };
        let _ = writeln!(text, "{row}");
    }
    text
}

fn dash() -> String {
    "-".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.4} %", share * 100.0)
}

fn share(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(dash, |ratio| format!("{ratio:.3}"))
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(dash, |seconds| format!("{seconds:.0}"))
}

fn pair(p50: Option<f64>, p99: Option<f64>) -> String {
    format!("{} / {}", seconds(p50), seconds(p99))
}

fn recovery(blind: &Blind) -> String {
    pair(blind.recovery_s_p50, blind.recovery_s_p99)
}

fn worst(row: &Summary) -> String {
    let Some(worst) = &row.worst else { return dash() };
    format!("{}: {}, x {:.2}", worst.name, percent(worst.wake_success), worst.oracle_ratio)
}
