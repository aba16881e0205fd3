//! Texts of others, of which some may not be what they should be: those are left out and shown.

use std::str::FromStr;

use crate::printable;

/// Texts that are quoted in a message, and the longest part of one that is, characters.
const QUOTES: usize = 3;
const QUOTE: usize = 48;

/// Those of `texts` that are what they should be, and the others as they came. `None`: there are no others.
pub fn parted<T: FromStr>(texts: &[String]) -> (Vec<T>, Option<Vec<String>>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for text in texts {
        match text.parse() {
            Ok(parsed) => good.push(parsed),
            Err(_) => bad.push(text.clone()),
        }
    }
    (good, Some(bad).filter(|bad| !bad.is_empty()))
}

/// The first of such texts, as a message can show them, and how many more there are.
pub fn quoted(texts: &[String]) -> String {
    let quotes: Vec<String> =
        texts.iter().take(QUOTES).map(|text| format!("'{}'", printable(text, QUOTE))).collect();
    let more = texts.len().saturating_sub(QUOTES);
    let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
    format!("{}{more}", quotes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainName, hostile_texts};

    #[test]
    fn the_good_stay_and_of_the_others_three_are_shown() {
        let texts = ["a.example", "-x", "b.example", "y z", "~.", "*", "%n"].map(str::to_owned);
        let (good, bad) = parted::<DomainName>(&texts);
        assert_eq!(good.iter().map(DomainName::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!(quoted(&bad.unwrap()), "'-x', 'y z', '~.' (and 2 more)");
        assert_eq!(parted::<DomainName>(&texts[..1]).1, None);
    }

    #[test]
    fn what_is_shown_of_hostile_texts_is_short_and_can_be_printed() {
        let shown = quoted(&hostile_texts::strings());
        assert!(shown.len() < 400 && !shown.chars().any(char::is_control), "{shown:?}");
        for text in hostile_texts::strings() {
            assert!(!quoted(&[text]).chars().any(char::is_control));
        }
    }
}
