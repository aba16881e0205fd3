//! Radios that have to be paged.

use std::time::Duration;

use crate::{
    metrics::LTE,
    model::{Paging, Time},
    rng::Rng,
};

/// A radio that sleeps once its tail is over, and hears the next packet for it only after it was paged.
#[derive(Debug)]
pub(super) struct Pager {
    paging: Paging,
    rng: Rng,
    /// When something last passed, or it woke.
    awake: Time,
    /// When those that it is paged for now reach it.
    paged: Time,
}

impl Pager {
    pub(super) fn new(paging: Paging, rng: Rng) -> Self {
        Self { paging, rng, awake: Time::ZERO, paged: Time::ZERO }
    }

    /// Something passed.
    pub(super) fn note(&mut self, now: Time) {
        self.awake = self.awake.max(now);
    }

    /// When a packet that is for the client now reaches it. `None`: at once.
    pub(super) fn delays(&mut self, now: Time) -> Option<Time> {
        if self.paged <= now {
            let since = now.since(self.awake.max(self.paged));
            if since <= LTE.tail {
                return None;
            }
            let (least, most) = (self.paging.least_s, self.paging.most_s);
            self.paged = now + Duration::from_secs_f64(self.rng.between(least, most));
        }
        Some(self.paged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_radio_is_paged_once_for_all_that_come_meanwhile() {
        let mut pager = Pager::new(Paging { least_s: 1.0, most_s: 1.0 }, Rng::new(1));
        let at = |seconds| Time::from_secs_f64(seconds);
        pager.note(at(100.0));
        assert_eq!(pager.delays(at(105.0)), None);
        assert_eq!(pager.delays(at(120.0)), Some(at(121.0)));
        assert_eq!(pager.delays(at(120.5)), Some(at(121.0)));
        assert_eq!(pager.delays(at(121.0)), None, "what is delivered then passes");
        assert_eq!(pager.delays(at(133.0)), Some(at(134.0)));
    }
}
