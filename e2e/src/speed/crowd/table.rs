//! The figures as a table.

use std::fmt::Write;

use super::{Gateway, Results, Storm};
use crate::speed::summary::Spread;

/// One row for each gateway.
pub(super) fn render(results: &Results) -> String {
    let mut text = format!(
        "Linux {}, {} processors for the gateway and all peers together.\n\n\
         {:<14}{:>7}{:>9}{:>9}{:>10}{:>8}{:>30}{:>30}{:>16}{:>11}\n",
        results.machine.kernel,
        results.machine.processors,
        "gateway",
        "peers",
        "taken in",
        "B each",
        "+ session",
        "idle",
        "storm: back, half, last, CPU",
        "behind one address",
        "one at work",
        "CPU-s/GB",
    );
    for gateway in &results.gateways {
        row(&mut text, gateway);
    }
    text
}

fn row(text: &mut String, gateway: &Gateway) {
    let bytes = |bytes: Option<f64>| bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{bytes:.0}"));
    let spread = |spread: Option<Spread>, unit: &str| {
        spread.map_or_else(|| "–".to_owned(), |it| format!("{:.2}{unit}", it.median))
    };
    let _ = writeln!(
        text,
        "{:<14}{:>7}{:>7.2} s{:>9}{:>10}{:>6.2} %{:>30}{:>30}{:>16}{:>11}",
        gateway.contender.to_string(),
        gateway.peers,
        gateway.configured,
        bytes(gateway.bytes),
        bytes(gateway.bytes_with_session),
        gateway.idle,
        storm(&gateway.storm),
        storm(&gateway.storm_behind_one_address),
        spread(gateway.throughput, " Gbit/s"),
        spread(gateway.cpu_per_gigabyte, ""),
    );
}

fn storm(storm: &Storm) -> String {
    format!("{} {:.2} {:.2} {:.2} s", storm.sessions, storm.half, storm.last, storm.cpu)
}
