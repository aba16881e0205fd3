//! The figures as a table: the reference in its units, all others as multiples of it.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    Contender, Link, Metric, Results,
    summary::{Figure, Spread},
};

const FIRST: usize = 24;
const COLUMN: usize = 22;

/// One block for each kind of cable, one row for each figure.
pub(super) fn render(results: &Results) -> String {
    let mut rows: BTreeMap<(Link, &str, Metric), BTreeMap<Contender, &Figure>> = BTreeMap::new();
    for figure in &results.figures {
        let row = rows.entry((figure.link, figure.scenario.as_str(), figure.metric)).or_default();
        row.insert(figure.contender, figure);
    }
    let mut contenders: Vec<Contender> = results.figures.iter().map(|figure| figure.contender).collect();
    contenders.sort();
    contenders.dedup();
    let mut text = format!(
        "Median of {} rounds of {} s each, least and most; × is a multiple of {} in the same round.\n\
         Linux {}, {} processors for all ends and the load together.\n",
        results.rounds,
        results.seconds,
        results.reference,
        results.machine.kernel,
        results.machine.processors
    );
    let mut link = None;
    for ((of, scenario, metric), row) in rows {
        if link != Some(of) {
            link = Some(of);
            let _ = write!(text, "\n{:FIRST$}", of.to_string());
            for contender in &contenders {
                let _ = write!(text, "{contender:>COLUMN$}");
            }
            text.push('\n');
        }
        let _ = write!(text, "{:FIRST$}", format!("{scenario} {}", metric.title()));
        for contender in &contenders {
            let cell =
                row.get(contender).map_or_else(|| "–".to_owned(), |figure| cell(figure, results.reference));
            let _ = write!(text, "{cell:>COLUMN$}");
        }
        text.push('\n');
    }
    text
}

fn cell(figure: &Figure, reference: Contender) -> String {
    if let Some(Spread { median, least, most }) = figure.ratio.filter(|_| figure.contender != reference) {
        return format!("×{median:.2} ({least:.2}–{most:.2})");
    }
    let Spread { median, least, most } = figure.value;
    format!("{} ({}–{})", short(median), short(least), short(most))
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!([1234.4, 99.94, 9.994, 0.5].map(short), ["1234", "99.9", "9.99", "0.50"]);
    }
}
