//! Text of others, as a terminal, a log or a condition can show it.

/// `text`, cut to `longest` characters, of which none moves a terminal's cursor, ends a line, or changes the order
/// or the look of what stands beside it: each of those becomes a blank.
pub fn printable(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|c| if is_unseen(c) { ' ' } else { c }).collect()
}

/// Control characters; and of Unicode, what separates lines, sets the direction of writing (UAX #9) or has no width.
fn is_unseen(c: char) -> bool {
    let unseen = [
        '\u{ad}'..='\u{ad}',
        '\u{61c}'..='\u{61c}',
        '\u{180e}'..='\u{180e}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{fff9}'..='\u{fffb}',
        '\u{e0000}'..='\u{e007f}',
    ];
    c.is_control() || unseen.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_be_seen_stays_and_what_acts_becomes_a_blank() {
        assert_eq!(printable("Zoë's laptop: 5 %", 100), "Zoë's laptop: 5 %");
        assert_eq!(printable("\u{1b}[2Ja\nb\u{9b}1mc\u{202e}d", 100), " [2Ja b 1mc d");
        assert_eq!(printable("abc", 2), "ab");
        assert_eq!(printable(&"ä".repeat(900), 512).chars().count(), 512);
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in any::<String>(), longest in 0_usize..200) {
            let shown = printable(&text, longest);
            prop_assert!(shown.chars().count() <= longest && !shown.chars().any(char::is_control));
        }
    }
}
