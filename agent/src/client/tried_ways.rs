//! Ways that were tried while another was looked for, of which some may have failed for their port alone. Pure.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{health::client::Candidate, tunnel::PublicKey};

/// Ways that are remembered while another is looked for.
const MAX_TRIED: usize = 16;
/// A way that was tried longer ago may have failed for any reason.
const TRIED_TIMEOUT: Duration = Duration::from_secs(30);

/// The ways that were tried lately, each with when it first was.
#[derive(Debug, Default)]
pub(super) struct TriedWays(Vec<(Instant, Candidate<PublicKey>)>);

impl TriedWays {
    /// A way is being tried.
    pub(super) fn handle_try(&mut self, now: Instant, candidate: Candidate<PublicKey>) {
        let is_known = self.0.iter().any(|(_, tried)| *tried == candidate);
        if !is_known && self.0.len() < MAX_TRIED {
            self.0.push((now, candidate));
        }
    }

    /// A way works that leads to `endpoint`: `ask` is given those to other ports of the same address, each until it can ask it
    /// or it is too late. Others are forgotten.
    pub(super) fn handle_working(
        &mut self,
        now: Instant,
        endpoint: SocketAddr,
        mut ask: impl FnMut(Candidate<PublicKey>) -> bool,
    ) {
        self.0.retain(|(at, tried)| {
            let is_other_port =
                tried.endpoint.ip() == endpoint.ip() && tried.endpoint.port() != endpoint.port();
            let is_late = now.saturating_duration_since(*at) > TRIED_TIMEOUT;
            is_other_port && !is_late && !ask(*tried)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(port: u16) -> Candidate<PublicKey> {
        let replica = PublicKey::from_bytes([1; 32]);
        Candidate { replica, endpoint: SocketAddr::from(([192, 0, 2, 1], port)) }
    }

    /// The ports that are asked about beside this one.
    fn asked(ways: &mut TriedWays, now: Instant, port: u16, can_ask: bool) -> Vec<u16> {
        let mut asked = Vec::new();
        ways.handle_working(now, way(port).endpoint, |other| {
            asked.push(other.endpoint.port());
            can_ask
        });
        asked
    }

    fn tried(now: Instant, ports: impl IntoIterator<Item = u16>) -> TriedWays {
        let mut ways = TriedWays::default();
        ports.into_iter().for_each(|port| ways.handle_try(now, way(port)));
        ways
    }

    #[test]
    fn another_port_of_the_address_that_works_is_asked_once_it_can_be() {
        let now = Instant::now();
        let mut ways = tried(now, [500, 4500]);
        let elsewhere = SocketAddr::from(([203, 0, 113, 5], 500));
        ways.handle_try(now, Candidate { endpoint: elsewhere, ..way(500) });
        assert_eq!(asked(&mut ways, now, 4500, false), [500]);
        assert_eq!(asked(&mut ways, now, 4500, true), [500], "there was no key before");
        assert!(asked(&mut ways, now, 4500, true).is_empty());
    }

    #[test]
    fn what_was_tried_long_ago_tells_nothing() {
        let now = Instant::now();
        let mut ways = tried(now, [500]);
        ways.handle_try(now + TRIED_TIMEOUT, way(500));
        assert_eq!(asked(&mut ways, now + TRIED_TIMEOUT, 4500, false), [500]);
        let later = now + TRIED_TIMEOUT + Duration::from_millis(1);
        assert!(asked(&mut ways, later, 4500, false).is_empty(), "it counts from the first time");
        assert!(asked(&mut ways, now, 4500, false).is_empty(), "and is forgotten");
    }

    #[test]
    fn as_many_are_remembered_as_are_allowed_and_each_once() {
        let now = Instant::now();
        let mut ways = tried(now, (1..=20).chain(1..=20));
        assert_eq!(asked(&mut ways, now, 4500, true), (1..=16).collect::<Vec<_>>());
    }
}
