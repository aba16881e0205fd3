//! When UDP that gets no answer, beside a session that has one, is said to be blocked. Pure.

use std::time::{Duration, Instant};

/// How long UDP gets no answer, while the session stands, until it is said to be blocked.
const BLOCKED: Duration = Duration::from_secs(20);
/// Once said, it is not said again for so long.
const SAID: Duration = Duration::from_hours(1);

/// Since when a client looks for a way while its session stands.
#[derive(Debug, Default)]
pub(super) struct UdpBlock {
    /// In the future where it was said already.
    since: Option<Instant>,
}

impl UdpBlock {
    /// Whether it is to be said now. `is_searching`: the session stands, and no way of the tunnel is proven any more.
    pub(super) fn handle_search(&mut self, now: Instant, is_searching: bool) -> bool {
        if !is_searching {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_blocked = now.saturating_duration_since(since) >= BLOCKED;
        if is_blocked {
            self.since = Some(now + SAID);
        }
        is_blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// At which seconds of a search, looked at each second, it is said.
    fn said(block: &mut UdpBlock, from: Instant, seconds: u32) -> Vec<u32> {
        (0..=seconds).filter(|second| block.handle_search(from + SECOND * *second, true)).collect()
    }

    #[test]
    fn a_search_of_twenty_seconds_is_said_once_an_hour() {
        assert_eq!(said(&mut UdpBlock::default(), Instant::now(), 7300), [20, 3640, 7260]);
    }

    #[test]
    fn an_answer_begins_anew() {
        let (mut block, start) = (UdpBlock::default(), Instant::now());
        assert!(said(&mut block, start, 19).is_empty());
        assert!(!block.handle_search(start + SECOND * 20, false));
        assert_eq!(said(&mut block, start + SECOND * 21, 25), [20]);
        assert!(!block.handle_search(start + SECOND * 60, false));
        assert_eq!(
            said(&mut block, start + SECOND * 61, 25),
            [20],
            "another search is said though it is soon"
        );
    }
}
