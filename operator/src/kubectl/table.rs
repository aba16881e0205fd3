//! Columns for people. Pure.

use pinhole_proto::printable;

/// Longest cell, characters: an object's name.
const CELL: usize = 253;

/// A table: a head and rows of as many cells; columns as wide as their widest cell, three blanks apart. What cells
/// hold was written by others: nothing in them acts on the terminal.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |row: &Vec<String>| row.iter().map(|cell| printable(cell, CELL)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean).collect();
    let width = |n: usize| {
        let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
        cells.chain(head.get(n).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in &rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A span of time in its two largest units, as kubectl writes ages.
pub(super) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (8.., _, _) | (1.., 0, _) => format!("{days}d"),
        (1.., _, _) => format!("{days}d{hours}h"),
        (0, 1.., 0) => format!("{hours}h"),
        (0, 1.., _) => format!("{hours}h{minutes}m"),
        (_, _, 10..) => format!("{minutes}m"),
        (_, _, 1..) if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        (_, _, 1..) => format!("{minutes}m"),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn a_hostile_cell_is_one_cell_of_one_line() {
        for text in hostile::strings() {
            let shown = table(&["NAME", "PHASE"], &[vec![text.clone(), "x".into()]]);
            assert_eq!(shown.lines().count(), 2, "{text:?}");
            assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert!(!shown.contains(['\u{202e}', '\u{200b}', '\u{2028}']), "{text:?}");
            assert!(shown.lines().all(|line| line.chars().count() < CELL + 20), "{text:?}");
        }
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a-long-name".into(), String::new()], vec!["b".into(), "x".into()]];
        assert_eq!(table(&["NAME", "PHASE"], &rows), "NAME          PHASE\na-long-name\nb             x\n");
    }

    #[test]
    fn ages_read_as_kubectls() {
        for (seconds, text) in [
            (-3, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (120, "2m"),
            (3600, "1h"),
            (3720, "1h2m"),
            (90_000, "1d1h"),
            (864_000, "10d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
