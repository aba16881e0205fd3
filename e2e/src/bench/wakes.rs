//! Clients that sleep on their sessions, woken again and again by a real packet once no NAT knows a way in by UDP.

use std::{fmt, time::Duration};

use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Plan, Seat, take_seat, times};
use crate::{
    error::{Error, Result},
    netns::Netns,
    ping::round_trip_of,
    pods, progress,
    vpn::Vpn,
};

/// What a wake may take over two round trips.
const ALLOWANCE: Duration = Duration::from_millis(50);
/// How often a client is asked whether it sleeps.
const LOOK: Duration = Duration::from_secs(2);
/// A client sleeps again within this, or something is wrong with it.
const ASLEEP: Duration = Duration::from_mins(3);
/// The radio sleeps for a random time up to this before the next wake.
const SPREAD: Duration = Duration::from_secs(10);
const POOL: &str = "enrolment: { tokens: [{ name: any }] }
  keepalive: { mode: Fixed, interval: 10s, standby: Session }";

/// How the clients behind one kind of NAT were woken.
#[derive(Debug, Clone)]
pub struct Wakes {
    /// The NAT.
    pub name: &'static str,
    /// From the packet to its answer, and the round trip of the next one, in the order of the first less twice the second.
    pub answered: Vec<(Duration, Duration)>,
    /// Packets that nobody answered.
    pub lost: usize,
}

impl Wakes {
    fn new(name: &'static str, mut all: Vec<Option<(Duration, Duration)>>) -> Self {
        let count = all.len();
        let mut answered: Vec<_> = all.drain(..).flatten().collect();
        answered.sort_unstable_by_key(|&wake| over(wake));
        Self { name, lost: count - answered.len(), answered }
    }

    /// What was taken over two round trips by this share of the answered, in thousandths; nothing where none was.
    pub fn over_two_round_trips(&self, thousandths: usize) -> Option<Duration> {
        let nth = (self.answered.len() * thousandths).div_ceil(1000).max(1);
        self.answered.get(nth - 1).map(|&wake| over(wake))
    }

    /// What is not as promised.
    pub fn fault(&self) -> Option<String> {
        let late = self.over_two_round_trips(990).is_none_or(|late| late > ALLOWANCE);
        (self.lost > 0 || late).then(|| self.to_string())
    }

    /// Milliseconds throughout.
    pub fn json(&self) -> Value {
        let over = |thousandths| self.over_two_round_trips(thousandths).map(|over| over.as_secs_f64() * 1e3);
        json!({
            "name": self.name,
            "wakes": self.answered.len() + self.lost,
            "lost": self.lost,
            "overTwoRoundTrips": { "p50": over(500), "p99": over(990), "max": over(1000) },
        })
    }
}

impl fmt::Display for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = |thousandths| self.over_two_round_trips(thousandths).unwrap_or_default();
        let (name, answered, all) = (self.name, self.answered.len(), self.answered.len() + self.lost);
        let [median, late, last] = [500, 990, 1000].map(over);
        write!(
            f,
            "{name}: {answered} of {all} wakes answered; over two round trips: p50 {median:.1?}, p99 {late:.1?}, max {last:.1?}"
        )
    }
}

fn over((first, next): (Duration, Duration)) -> Duration {
    first.saturating_sub(2 * next)
}

/// Wakes `clients` clients behind each of the plan's NATs for the plan's time, each as soon as it sleeps again, in a VPN
/// that has a gateway and no pools yet; `subnet` is the second byte of their addresses.
///
/// # Errors
/// When a client does not connect or does not sleep, or a part of the lab fails.
pub async fn wake(vpn: &Vpn<'_>, subnet: u8, clients: usize, plan: &Plan) -> Result<Vec<Wakes>> {
    vpn.pool("sleepers", &format!("[10.{subnet}.0.0/24]"), POOL).await?;
    let join = vpn.join("sleepers", "any").await?;
    let (vpn, join) = (&vpn, join.as_str());
    let begin = plan.profiles.iter().flat_map(|profile| {
        (0..clients).map(move |n| async move { take_seat(vpn, profile, &format!("{n}z"), join).await })
    });
    let seats = progress::step("connecting clients that are to sleep", try_join_all(begin)).await?;
    let gateway = pods::netns(vpn.lab(), vpn.namespace(), "edge-0")?;
    let until = Instant::now() + plan.span;
    let woken = seats.iter().enumerate().map(|(n, seat)| seat.wake_until(until, plan, n, &gateway));
    let mut woken = progress::step("waking them", try_join_all(woken)).await?.into_iter();
    let rows = plan
        .profiles
        .iter()
        .map(|profile| Wakes::new(profile.name, woken.by_ref().take(clients).flatten().collect()));
    let rows = rows.collect();
    try_join_all(seats.into_iter().map(|mut seat| async move { seat.device.down().await })).await?;
    Ok(rows)
}

impl Seat {
    async fn wake_until(
        &self,
        until: Instant,
        plan: &Plan,
        n: usize,
        gateway: &Netns,
    ) -> Result<Vec<Option<(Duration, Duration)>>> {
        let mut wakes = Vec::new();
        let mut pauses = times(&Plan { span: SPREAD, ..plan.clone() }, n, 1000).into_iter().cycle();
        loop {
            self.sleeps().await?;
            sleep(pauses.next().unwrap_or_default()).await;
            if Instant::now() >= until {
                return Ok(wakes);
            }
            // It may have had a reason of its own to speak meanwhile.
            if self.way.in_force().await?.is_none() {
                wakes.push(self.woken_by(gateway).await?);
            }
        }
    }

    /// Waits until the client sleeps and its mappings are gone.
    async fn sleeps(&self) -> Result<()> {
        let deadline = Instant::now() + ASLEEP;
        loop {
            let status = self.device.status().await?;
            if status.phase == "Standby" && self.way.in_force().await?.is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let name = self.device.host().name();
                return Err(Error::Invalid(format!("{name} does not sleep again: {status:?}")));
            }
            sleep_until(Instant::now() + LOOK).await;
        }
    }

    /// How long the first packet took, and the second.
    async fn woken_by(&self, gateway: &Netns) -> Result<Option<(Duration, Duration)>> {
        let ping = ["-n", "-c", "2", "-i", "1", "-W", "4", &self.inner.to_string()].map(str::to_owned);
        let said = gateway.command("ping").args(ping).output().await?.stdout;
        Ok(round_trip_of(&said, 1).zip(round_trip_of(&said, 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_wake_is_judged_by_what_it_took_over_two_round_trips_and_lost_ones_are_counted() {
        let quick = vec![Some((ms(25), ms(10))); 99];
        let with = |more: &[Option<(Duration, Duration)>]| Wakes::new("any", [&quick, more].concat());
        let good = with(&[Some((ms(300), ms(10)))]);
        assert_eq!([500, 990, 1000].map(|n| good.over_two_round_trips(n)), [ms(5), ms(5), ms(280)].map(Some));
        assert_eq!(good.fault(), None);
        assert!(with(&[Some((ms(300), ms(10))), Some((ms(400), ms(10)))]).fault().is_some());
        assert!(with(&[None]).fault().is_some());
        assert!(Wakes::new("none", vec![]).fault().is_some());
    }
}
