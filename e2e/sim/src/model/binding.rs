//! The rules by which one mapping lives and ends.

use std::time::Duration;

use super::{Profile, Refresh, Time};

/// The timers in force at one NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    unreplied: Duration,
    replied: Duration,
    promote_after: Duration,
    refresh: Refresh,
    sweep: Option<Sweep>,
    /// No mapping ends earlier by these timers: they did not apply before.
    since: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sweep {
    every: u64,
    first: u64,
}

impl Timers {
    /// The timers that a NAT starts with. Sweeps, where it has them, come at `phase` (from 0 to 1) of their period.
    pub fn new(profile: &Profile, phase: f64) -> Self {
        let every = Time::from_secs_f64(profile.sweep_s).as_nanos();
        let first = Time::from_secs_f64(profile.sweep_s * phase.rem_euclid(1.0)).as_nanos();
        Self {
            unreplied: seconds(profile.timeout_s.unreplied),
            replied: seconds(profile.timeout_s.replied),
            promote_after: seconds(profile.promote_after_s),
            refresh: profile.refresh,
            sweep: (every > 0).then_some(Sweep { every, first }),
            since: Time::ZERO,
        }
    }

    /// The timers of a NAT that keeps all mappings alike.
    pub fn of(lifetime: Duration) -> Self {
        Self {
            unreplied: lifetime,
            replied: lifetime,
            promote_after: Duration::ZERO,
            refresh: Refresh::default(),
            sweep: None,
            since: Time::ZERO,
        }
    }

    /// The lifetime of promoted mappings becomes `to`, that of others at most `to`; at once, for existing ones too.
    ///
    /// Mappings that have ended by then must be removed first: the past is not kept.
    pub fn shrink(&mut self, now: Time, to: Duration) {
        self.replied = to;
        self.unreplied = self.unreplied.min(to);
        self.since = now;
    }

    /// The lifetimes become these, shorter or longer; at once, for existing mappings too.
    ///
    /// Mappings that have ended by then must be removed first: the past is not kept.
    pub fn set(&mut self, now: Time, unreplied: Duration, replied: Duration) {
        (self.unreplied, self.replied, self.since) = (unreplied, replied, now);
    }

    /// How long a promoted mapping stays without traffic, but for the wait until the next sweep.
    pub fn replied(&self) -> Duration {
        self.replied
    }

    /// The same until it is promoted.
    pub fn unreplied(&self) -> Duration {
        self.unreplied
    }

    fn removal(&self, deadline: Time) -> Time {
        let Some(Sweep { every, first }) = self.sweep else { return deadline };
        let late = deadline.as_nanos().saturating_sub(first).div_ceil(every);
        Time::from_nanos(first.saturating_add(late.saturating_mul(every)))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_nanos(Time::from_secs_f64(seconds).as_nanos())
}

/// One mapping's timer. Packets are reported only while it lives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Binding {
    first: Time,
    restarted: Time,
    replied: bool,
    promoted: bool,
    /// Its lifetimes are so many times those of the timers.
    times: Option<f64>,
}

impl Binding {
    /// A packet from the inside made a new mapping.
    pub fn open(now: Time) -> Self {
        Self { first: now, restarted: now, replied: false, promoted: false, times: None }
    }

    /// The same, but its lifetimes are so many times those of others.
    #[must_use]
    pub fn living(self, times: f64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// A packet from the inside passes.
    pub fn outbound(&mut self, now: Time, timers: &Timers) {
        self.promoted |= self.replied && now.since(self.first) >= timers.promote_after;
        if timers.refresh.outbound {
            self.restarted = now;
        }
    }

    /// A packet from the outside passes.
    pub fn inbound(&mut self, now: Time, timers: &Timers) {
        self.replied = true;
        if timers.refresh.inbound {
            self.restarted = now;
        }
    }

    /// When the mapping goes if nothing passes any more.
    pub fn ends(&self, timers: &Timers) -> Time {
        let lifetime = if self.promoted { timers.replied } else { timers.unreplied };
        let lifetime = self.times.map_or(lifetime, |times| lifetime.mul_f64(times));
        timers.removal((self.restarted + lifetime).max(timers.since))
    }

    /// Whether it still passes packets. At its very end it does not.
    pub fn is_alive(&self, now: Time, timers: &Timers) -> bool {
        now < self.ends(timers)
    }

    /// Whether it has the longer lifetime.
    pub fn is_promoted(&self) -> bool {
        self.promoted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    /// Linux, scaled: 5 s until promoted, 15 s after, promoted from 2 s on.
    fn linux() -> Profile {
        let mut profile = Profile::new("linux", 5.0, 15.0);
        profile.promote_after_s = 2.0;
        profile
    }

    fn promoted(timers: &Timers) -> Binding {
        let mut binding = Binding::open(at(0.0));
        binding.inbound(at(0.1), timers);
        binding.outbound(at(2.5), timers);
        binding
    }

    #[test]
    fn unreplied_is_the_lifetime_until_promotion() {
        let timers = Timers::new(&linux(), 0.0);
        let binding = Binding::open(at(1.0));
        assert_eq!(binding.ends(&timers), at(6.0));
        assert!(binding.is_alive(at(5.999), &timers));
        assert!(!binding.is_alive(at(6.0), &timers));
    }

    #[test]
    fn replied_is_the_lifetime_after_promotion() {
        let timers = Timers::new(&linux(), 0.0);
        let binding = promoted(&timers);
        assert!(binding.is_promoted());
        assert_eq!(binding.ends(&timers), at(17.5));
    }

    #[test]
    fn the_reply_itself_does_not_promote() {
        let timers = Timers::new(&linux(), 0.0);
        let mut binding = Binding::open(at(0.0));
        binding.inbound(at(3.0), &timers);
        assert!(!binding.is_promoted());
        assert_eq!(binding.ends(&timers), at(8.0));
    }

    #[test]
    fn outbound_packets_alone_never_promote() {
        let timers = Timers::new(&linux(), 0.0);
        let mut binding = Binding::open(at(0.0));
        for second in [2.5, 5.0, 7.5] {
            binding.outbound(at(second), &timers);
        }
        assert!(!binding.is_promoted());
    }

    #[test]
    fn an_outbound_packet_too_soon_after_the_first_does_not_promote() {
        let timers = Timers::new(&linux(), 0.0);
        let mut binding = Binding::open(at(0.0));
        binding.inbound(at(0.1), &timers);
        binding.outbound(at(1.999), &timers);
        assert!(!binding.is_promoted());
        binding.outbound(at(2.0), &timers);
        assert!(binding.is_promoted());
    }

    #[test]
    fn the_wait_for_promotion_counts_from_the_first_packet_not_from_the_reply() {
        let timers = Timers::new(&linux(), 0.0);
        let mut binding = Binding::open(at(0.0));
        binding.inbound(at(2.4), &timers);
        binding.outbound(at(2.5), &timers);
        assert!(binding.is_promoted());
    }

    #[test]
    fn without_a_wait_the_second_outbound_packet_promotes() {
        let timers = Timers::new(&Profile::new("plain", 5.0, 15.0), 0.0);
        let mut binding = Binding::open(at(0.0));
        binding.inbound(at(0.1), &timers);
        binding.outbound(at(0.2), &timers);
        assert!(binding.is_promoted());
    }

    #[test]
    fn only_the_directions_named_restart_the_timer() {
        for (outbound, inbound, end) in [(true, true, 24.0), (true, false, 23.0), (false, true, 24.0)] {
            let mut profile = linux();
            profile.refresh = Refresh { outbound, inbound };
            let timers = Timers::new(&profile, 0.0);
            let mut binding = promoted(&timers);
            binding.outbound(at(8.0), &timers);
            binding.inbound(at(9.0), &timers);
            assert_eq!(binding.ends(&timers), at(end), "outbound {outbound}, inbound {inbound}");
        }
        let mut profile = linux();
        profile.refresh.outbound = false;
        let timers = Timers::new(&profile, 0.0);
        let mut binding = promoted(&timers);
        binding.outbound(at(8.0), &timers);
        assert_eq!(binding.ends(&timers), at(15.1));
    }

    #[test]
    fn with_sweeps_a_mapping_goes_at_the_first_one_at_or_after_its_deadline() {
        let mut profile = linux();
        profile.sweep_s = 10.0;
        let timers = Timers::new(&profile, 0.3);
        assert_eq!(Binding::open(at(0.0)).ends(&timers), at(13.0));
        assert_eq!(Binding::open(at(8.0)).ends(&timers), at(13.0));
        assert_eq!(Binding::open(at(8.1)).ends(&timers), at(23.0));
    }

    #[test]
    fn a_shrink_holds_at_once_for_existing_mappings() {
        let mut timers = Timers::new(&linux(), 0.0);
        let binding = promoted(&timers);
        timers.shrink(at(4.0), Duration::from_secs(8));
        assert_eq!(binding.ends(&timers), at(10.5));
    }

    #[test]
    fn a_mapping_idle_for_longer_than_the_new_lifetime_goes_with_the_shrink_not_before() {
        let mut profile = linux();
        let mut timers = Timers::new(&profile, 0.0);
        let binding = promoted(&timers);
        timers.shrink(at(12.0), Duration::from_secs(8));
        assert_eq!(binding.ends(&timers), at(12.0));

        profile.sweep_s = 10.0;
        let mut timers = Timers::new(&profile, 0.1);
        timers.shrink(at(12.0), Duration::from_secs(8));
        assert_eq!(binding.ends(&timers), at(21.0));
    }

    #[test]
    fn a_longer_lifetime_holds_at_once_for_existing_mappings() {
        let mut timers = Timers::new(&linux(), 0.0);
        let binding = promoted(&timers);
        timers.set(at(4.0), Duration::from_secs(5), Duration::from_secs(30));
        assert_eq!(binding.ends(&timers), at(32.5));
    }

    #[test]
    fn a_shrink_caps_the_lifetime_before_promotion() {
        let mut timers = Timers::new(&linux(), 0.0);
        timers.shrink(at(0.0), Duration::from_secs(3));
        assert_eq!(Binding::open(at(1.0)).ends(&timers), at(4.0));

        let mut timers = Timers::new(&linux(), 0.0);
        timers.shrink(at(0.0), Duration::from_secs(8));
        assert_eq!(Binding::open(at(1.0)).ends(&timers), at(6.0));
    }

    proptest! {
        #[test]
        fn a_sweep_delays_an_end_by_less_than_its_period(
            open in 0.0..1e6, sweep in 0.1..600.0, phase in 0.0..1.0,
        ) {
            let plain = Timers::new(&linux(), 0.0);
            let mut profile = linux();
            profile.sweep_s = sweep;
            let swept = Timers::new(&profile, phase);
            let binding = Binding::open(at(open));
            let deadline = binding.ends(&plain);
            prop_assert!(binding.ends(&swept) >= deadline);
            prop_assert!(binding.ends(&swept).since(deadline) < Duration::from_secs_f64(sweep));
        }
    }
}
