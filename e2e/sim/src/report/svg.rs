//! The comparison as a picture: success against wake-ups.

use std::fmt::Write;

use crate::metrics::Summary;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 70.0;
/// Failures below this are drawn at the top.
const LEAST_FAILURE: f64 = 1e-6;
/// Height of a line of text, and about the width of a letter.
const LINE: f64 = 16.0;
const LETTER: f64 = 7.0;

/// Draws all rows: wake-ups per client and day to the right, on a logarithmic scale; wake success upwards, in nines.
/// What lies further up and further left is better.
pub fn svg(rows: &[Summary], title: &str) -> String {
    let plot = Plot::around(rows);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"16\" font-weight=\"bold\">Wake success against wake-ups</text>\n\
         <text x=\"{LEFT}\" y=\"47\" fill=\"#555\">{}</text>\n",
        escaped(title)
    );
    plot.grid(&mut svg);
    plot.points(&mut svg, rows);
    svg.push_str("</svg>\n");
    svg
}

struct Plot {
    fewest: f64,
    most: f64,
    worst: f64,
}

impl Plot {
    fn around(rows: &[Summary]) -> Self {
        let wakes = || rows.iter().map(|row| row.wakes_per_client_day.max(1.0));
        let worst = rows.iter().map(|row| failure(row.wake_success)).fold(0.01, f64::max);
        Self {
            fewest: wakes().fold(f64::INFINITY, f64::min).min(1e6) / 1.5,
            most: wakes().fold(0.0, f64::max).max(2.0) * 2.0,
            worst: (worst * 1.5).min(1.0),
        }
    }

    fn x(&self, wakes: f64) -> f64 {
        let share = (wakes.max(1.0) / self.fewest).ln() / (self.most / self.fewest).ln();
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, failure: f64) -> f64 {
        let share = (failure.max(LEAST_FAILURE) / LEAST_FAILURE).ln() / (self.worst / LEAST_FAILURE).ln();
        TOP + share * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (failure, label) in [
            (1e-6, "99.9999 %"),
            (1e-5, "99.999 %"),
            (1e-4, "99.99 %"),
            (1e-3, "99.9 %"),
            (1e-2, "99 %"),
            (1e-1, "90 %"),
        ] {
            if failure > self.worst {
                continue;
            }
            let y = self.y(failure);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let steps = (0..7).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
        for wakes in steps.filter(|wakes| (self.fewest..self.most).contains(wakes)) {
            let x = self.x(wakes);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#eee\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{wakes}</text>",
                bottom + 20.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">wake-ups per client and day</text>",
            f64::midpoint(LEFT, right),
            bottom + 45.0
        );
    }

    fn points(&self, svg: &mut String, rows: &[Summary]) {
        let at = |row: &Summary| (self.x(row.wakes_per_client_day), self.y(failure(row.wake_success)));
        let mut taken: Vec<Area> = rows.iter().map(|row| Area::around_point(at(row))).collect();
        for row in rows {
            let (x, y) = at(row);
            let colour = match row.name.as_str() {
                "pinhole" => "#c2185b",
                "oracle" => "#777",
                _ => "#1565c0",
            };
            let text = format!("{} (x {:.2})", row.name, row.oracle_ratio);
            let label = Area::label((x, y), &text, &taken);
            taken.push(label);
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
                label.left,
                label.top + LINE - 4.0,
                escaped(&text),
            );
        }
    }
}

/// A part of the picture that is in use.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    top: f64,
    width: f64,
}

impl Area {
    fn around_point((x, y): (f64, f64)) -> Self {
        Self { left: x - 7.0, top: y - LINE / 2.0, width: 14.0 }
    }

    /// Where a label fits beside, below or above its point.
    fn label((x, y): (f64, f64), text: &str, taken: &[Self]) -> Self {
        let width = text.chars().map(|_| LETTER).sum();
        let (beside, centred) = (y - LINE / 2.0, x - width / 2.0);
        let places = [
            (x + 9.0, beside),
            (x - 9.0 - width, beside),
            (centred, y + LINE / 2.0),
            (centred, y - LINE * 1.5),
            (x + 9.0, beside + LINE),
            (x - 9.0 - width, beside + LINE),
            (x + 9.0, beside - LINE),
        ];
        let areas = places.map(|(left, top)| Self { left, top, width });
        let fits = |area: &&Self| {
            area.left > LEFT
                && area.left + width < WIDTH - RIGHT / 2.0
                && !taken.iter().any(|other| area.overlaps(*other))
        };
        let first = Self { left: x + 9.0, top: beside, width };
        areas.iter().find(fits).copied().unwrap_or(first)
    }

    fn overlaps(self, other: Self) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && (self.top - other.top).abs() < LINE
    }
}

fn failure(success: f64) -> f64 {
    (1.0 - success).clamp(0.0, 1.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_points_in_one_place_do_not_overlap() {
        let point = (300.0, 200.0);
        let mut taken = vec![Area::around_point(point)];
        for name in ["first", "second", "third", "fourth"] {
            let label = Area::label(point, name, &taken);
            assert!(!taken.iter().any(|other| label.overlaps(*other)), "{name}: {label:?}");
            taken.push(label);
        }
    }

    #[test]
    fn text_cannot_break_the_picture() {
        let picture = svg(&[], "a < b & c");
        assert!(picture.contains("a &lt; b &amp; c"));
    }
}
