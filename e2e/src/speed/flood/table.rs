//! The figures as a table.

use std::fmt::Write;

use super::Results;
use crate::speed::summary::Spread;

/// One row for each gateway and attack.
pub(super) fn render(results: &Results) -> String {
    let mut text = format!(
        "Median of {} rounds of {} s each, least and most; up to {} datagrams a second.\n\
         Linux {}, {} processors for the gateway, the attacker and the load together.\n\n\
         {:<20}{:<14}{:>10}{:>24}{:>26}{:>12}\n",
        results.rounds,
        results.seconds,
        results.rate,
        results.machine.kernel,
        results.machine.processors,
        "attack",
        "gateway",
        "sent / s",
        "throughput kept %",
        "newcomer's answer, s",
        "grown, kB",
    );
    for figure in &results.figures {
        let kept = figure.kept;
        let percent =
            Spread { median: kept.median * 100.0, least: kept.least * 100.0, most: kept.most * 100.0 };
        let _ = writeln!(
            text,
            "{:<20}{:<14}{:>10.0}{:>24}{:>26}{:>12}",
            figure.attack.to_string(),
            figure.contender.to_string(),
            figure.sent.median,
            spread(percent, 0),
            spread(figure.newcomer, 3),
            figure.grown / 1000,
        );
    }
    text
}

fn spread(it: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", it.median, it.least, it.most)
}
