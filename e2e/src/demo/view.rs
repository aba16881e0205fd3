//! What is known of the demo's clients. All times count from `kubectl apply`.

use std::{net::IpAddr, time::Duration};

use pinhole_crds::{ClientPhase, VPNClient};

/// A ping through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ping {
    /// When it was sent.
    pub(crate) sent: Duration,
    /// How long the answer took; none when it did not come.
    pub(crate) rtt: Option<Duration>,
}

/// All pings of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pings {
    answered: Vec<(Duration, Duration)>,
    lost: u32,
    last: Option<Duration>,
}

impl Pings {
    pub(crate) fn note(&mut self, ping: Ping) {
        self.last = ping.rtt;
        match ping.rtt {
            Some(rtt) => self.answered.push((ping.sent, rtt)),
            // Before the first answer there was no tunnel to lose anything in.
            None if self.answered.is_empty() => {}
            None => self.lost += 1,
        }
    }

    /// Arrival of the first answer.
    pub(crate) fn first(&self) -> Option<Duration> {
        self.first_after(Duration::ZERO)
    }

    /// Arrival of the first answer to a ping that was sent at `moment` or later.
    pub(crate) fn first_after(&self, moment: Duration) -> Option<Duration> {
        let mut later = self.answered.iter().filter(|(sent, _)| *sent >= moment);
        later.next().map(|(sent, rtt)| *sent + *rtt)
    }

    /// How many were answered of those sent at `moment` or later.
    pub(crate) fn answered_since(&self, moment: Duration) -> usize {
        self.answered.iter().filter(|(sent, _)| *sent >= moment).count()
    }

    /// How many were lost after the first answer.
    pub(crate) fn lost(&self) -> u32 {
        self.lost
    }

    /// Round trip of the last ping; none when it was lost.
    pub(crate) fn last(&self) -> Option<Duration> {
        self.last
    }

    /// The median round trip.
    pub(crate) fn median(&self) -> Option<Duration> {
        let mut rtts: Vec<Duration> = self.answered.iter().map(|(_, rtt)| *rtt).collect();
        rtts.sort_unstable();
        rtts.get(rtts.len() / 2).copied()
    }
}

/// A client as the API server and the pings show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    /// What kind of NAT it is behind, in words.
    pub(crate) behind: &'static str,
    pub(crate) phase: Option<ClientPhase>,
    /// Public `ip:port` that the gateway sees.
    pub(crate) endpoint: Option<String>,
    /// The one before, if it moved.
    pub(crate) before: Option<String>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) pings: Pings,
}

impl Client {
    pub(crate) fn new(name: &'static str, behind: &'static str) -> Self {
        Self {
            name,
            behind,
            phase: None,
            endpoint: None,
            before: None,
            address: None,
            pings: Pings::default(),
        }
    }

    /// Takes over what the status of its `VPNClient` says.
    pub(crate) fn see(&mut self, object: &VPNClient) {
        let Some(status) = &object.status else { return };
        self.phase = status.phase;
        self.endpoint.clone_from(&status.endpoint);
        self.before = status.churn.as_ref().and_then(|churn| churn.from.clone());
        self.address = status.addresses.first().copied();
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.phase == Some(ClientPhase::Connected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pings(answers: &[(u32, Option<u32>)]) -> Pings {
        let mut pings = Pings::default();
        for (sent, rtt) in answers {
            pings.note(Ping { sent: MS * *sent, rtt: rtt.map(|rtt| MS * rtt) });
        }
        pings
    }

    #[test]
    fn pings_before_the_first_answer_are_not_lost() {
        let pings = pings(&[(0, None), (100, None), (200, Some(5)), (300, None), (400, Some(7))]);
        assert_eq!((pings.first(), pings.lost()), (Some(MS * 205), 1));
        assert_eq!(pings.last(), Some(MS * 7));
    }

    #[test]
    fn an_answer_counts_by_the_moment_its_ping_was_sent() {
        let pings = pings(&[(100, Some(300)), (200, None), (300, Some(2))]);
        assert_eq!(pings.first_after(MS * 150), Some(MS * 302));
        assert_eq!(pings.answered_since(MS * 150), 1);
        assert_eq!(pings.first_after(MS * 301), None);
    }

    #[test]
    fn the_median_is_that_of_the_answers() {
        assert_eq!(pings(&[(0, Some(9)), (1, Some(1)), (2, None), (3, Some(2))]).median(), Some(MS * 2));
        assert_eq!(Pings::default().median(), None);
    }
}
