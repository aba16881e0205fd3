//! Inputs in any order.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Input {
    Attached,
    Detached(Ended),
    Wake(Line, u64),
    Packet,
    ScoutAttached(u32),
    ScoutEnded(u32, Ended),
    Udp(u64, bool),
    Burst,
    Busy,
    Poke,
    Reached,
    Network(u64),
    Policy(Policy),
    Timeout,
    Later(u64),
    LatestWake,
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![Just(Ended::Reset), Just(Ended::TimedOut), Just(Ended::Closed)]
}

fn policy() -> impl Strategy<Value = Policy> {
    let preference =
        prop_oneof![Just(Preference::Auto), Just(Preference::UdpOnly), Just(Preference::Session)];
    (preference, any::<u32>(), proptest::option::of(any::<u32>())).prop_map(|(preference, max, blind)| {
        Policy {
            preference,
            max: seconds(max.into()),
            longest_blind: blind.map(|blind| seconds(blind.into())),
        }
    })
}

fn input() -> impl Strategy<Value = Input> {
    let line = prop_oneof![Just(Line::Live), (0_u32..6).prop_map(Line::Canary)];
    prop_oneof![
        2 => Just(Input::Attached),
        1 => ended().prop_map(Input::Detached),
        1 => (line, 0_u64..30).prop_map(|(line, seq)| Input::Wake(line, seq)),
        1 => Just(Input::Packet),
        2 => (0_u32..6).prop_map(Input::ScoutAttached),
        1 => (0_u32..6, ended()).prop_map(|(canary, ended)| Input::ScoutEnded(canary, ended)),
        2 => (any::<u32>(), any::<bool>()).prop_map(|(interval, learnt)| Input::Udp(u64::from(interval % 500), learnt)),
        2 => Just(Input::Burst),
        1 => Just(Input::Busy),
        1 => Just(Input::Poke),
        1 => Just(Input::Reached),
        1 => any::<u32>().prop_map(|prior| Input::Network(prior.into())),
        1 => policy().prop_map(Input::Policy),
        2 => Just(Input::Timeout),
        4 => (0_u64..4000).prop_map(Input::Later),
        6 => Just(Input::LatestWake),
    ]
}

proptest! {
    #[test]
    fn nothing_panics_spins_or_opens_more_than_two(inputs in proptest::collection::vec(input(), 1..250)) {
        let mut now = Instant::now();
        let mut standby = Standby::new(now, Policy::default(), None, 1);
        let (mut rests, mut open, mut last) = (Vec::new(), std::collections::BTreeSet::new(), 0);
        let mut kept = true;
        for input in inputs {
            match input {
                Input::Attached => standby.handle_attached(now),
                Input::Detached(ended) => standby.handle_detached(now, ended),
                Input::Wake(line, seq) => standby.handle_wake(now, line, seq),
                Input::Packet => standby.handle_session_packet(now),
                Input::ScoutAttached(canary) => standby.handle_canary_attached(now, canary),
                Input::ScoutEnded(canary, ended) => {
                    standby.handle_canary_ended(now, canary, ended);
                    open.remove(&canary);
                }
                Input::Udp(interval, learnt) => {
                    standby.handle_udp(now, UdpCost { interval: seconds(interval), learnt });
                }
                Input::Burst => standby.handle_udp_burst(now),
                Input::Busy => standby.handle_busy(now),
                Input::Poke => standby.handle_poke(now),
                Input::Reached => standby.handle_reached(now),
                Input::Network(prior) => {
                    standby.handle_network(now, Some(Prior { at_least: seconds(prior) }));
                }
                Input::Policy(policy) => standby.handle_policy(now, policy),
                Input::Timeout => standby.handle_timeout(now),
                Input::Later(by) => now += seconds(by),
                Input::LatestWake => if let Some((line, seq, after)) = rests.pop() {
                    now += after;
                    standby.handle_wake(now, line, seq);
                }
            }
            let mut spins = 0;
            while standby.poll_timeout().is_some_and(|at| at <= now) {
                standby.handle_timeout(now);
                spins += 1;
                prop_assert!(spins < 10, "{standby:?}");
            }
            while let Some(action) = standby.poll_action() {
                match action {
                    Action::Rest { line, seq, wake_after } => {
                        prop_assert!(seq > last && wake_after <= LONGEST_WAKE && wake_after >= seconds(1));
                        last = seq;
                        rests.push((line, seq, wake_after));
                    }
                    Action::Open { canary } => prop_assert!(open.insert(canary)),
                    Action::Close { canary } => { open.remove(&canary); }
                    Action::LetUdpGo => prop_assert!(std::mem::replace(&mut kept, false)),
                    Action::KeepUdp => prop_assert!(!std::mem::replace(&mut kept, true)),
                    Action::Ask | Action::Event(_) => {}
                }
            }
            prop_assert!(open.len() <= 2, "{open:?}");
            prop_assert!(kept || standby.live.deadline().is_some(), "it sleeps, and nothing would wake it: {standby:?}");
            prop_assert_eq!(kept, standby.mode() == Mode::Udp);
        }
    }
}
