//! The figures as a picture: bars, as multiples of the reference.

use std::fmt::Write;

use super::{Contender, Link, Metric, Results, summary::Figure};

const LEFT: f64 = 210.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
const PANEL: f64 = 430.0;
/// Room right of a bar for its figure.
const LABEL: f64 = 130.0;
const TOP: f64 = 96.0;

/// A panel of throughput and one of CPU time, with a group of bars for each work and cable.
pub(super) fn render(results: &Results) -> String {
    let panels = [
        (Metric::Throughput, "throughput (more is better)"),
        (Metric::CpuPerGigabyte, "CPU time per byte, both ends (less is better)"),
    ];
    let panels = panels.map(|(metric, title)| (Panel::of(results, metric), title));
    let height = panels.iter().map(|(panel, _)| panel.height()).fold(0.0, f64::max) + TOP + 20.0;
    let width = (LEFT + PANEL) * 2.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"16\" font-weight=\"bold\">As multiples of {} in the same round</text>\n\
         <text x=\"20\" y=\"47\" fill=\"#555\">medians of {} rounds of {} s, with least and most; {} processors for all</text>\n",
        results.reference, results.rounds, results.seconds, results.machine.processors
    );
    for ((panel, title), left) in panels.iter().zip([0.0, LEFT + PANEL]) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>",
            left + LEFT,
            TOP - 20.0
        );
        panel.draw(&mut svg, left + LEFT);
    }
    svg.push_str("</svg>\n");
    svg
}

struct Panel<'a> {
    groups: Vec<((Link, &'a str), Vec<&'a Figure>)>,
    most: f64,
}

impl<'a> Panel<'a> {
    fn of(results: &'a Results, metric: Metric) -> Self {
        let mut groups: Vec<((Link, &str), Vec<&Figure>)> = Vec::new();
        // The cable itself would make all others look alike.
        let figures = results.figures.iter().filter(|figure| figure.metric == metric);
        for figure in figures.filter(|figure| figure.contender != Contender::Veth && figure.ratio.is_some()) {
            let name = (figure.link, figure.scenario.as_str());
            match groups.last_mut() {
                Some((last, group)) if *last == name => group.push(figure),
                _ => groups.push((name, vec![figure])),
            }
        }
        let all = groups.iter().flat_map(|(_, group)| group).filter_map(|figure| figure.ratio);
        let most = all.map(|ratio| ratio.most).fold(1.0, f64::max);
        Self { groups, most }
    }

    fn height(&self) -> f64 {
        self.groups.iter().map(|(_, group)| group.iter().map(|_| BAR).sum::<f64>() + GAP).sum()
    }

    fn draw(&self, svg: &mut String, left: f64) {
        let scale = (PANEL - LABEL) / self.most;
        let (one, bottom) = (left + scale, TOP + self.height());
        let _ = writeln!(
            svg,
            "<line x1=\"{one:.1}\" y1=\"{TOP}\" x2=\"{one:.1}\" y2=\"{bottom:.1}\" stroke=\"#999\" stroke-dasharray=\"3\"/>"
        );
        let mut y = TOP;
        for ((link, scenario), group) in &self.groups {
            let first = y;
            for figure in group {
                let Some(ratio) = figure.ratio else { continue };
                let (end, colour) = (left + ratio.median * scale, figure.contender.colour());
                let middle = y + BAR / 2.0;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{left}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                     <line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"black\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\">×{:.2} {}</text>",
                    end - left,
                    BAR - 2.0,
                    left + ratio.least * scale,
                    left + ratio.most * scale,
                    (left + ratio.most * scale).max(end) + 5.0,
                    middle + 4.0,
                    ratio.median,
                    figure.contender
                );
                y += BAR;
            }
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">{scenario}, {link}</text>",
                left - 8.0,
                f64::midpoint(first, y) + 3.0
            );
            y += GAP;
        }
    }
}
