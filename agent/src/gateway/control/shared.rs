//! One key on two machines, in the whole of the loop: it is said to both and to the operator, and spoils nothing.

use super::{
    hostile::{Gateway, desired, key},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn place(last: u8) -> SocketAddr {
    ([198, 51, 100, last], 4500).into()
}

fn attach(gateway: &mut Gateway, process: u8) -> mpsc::Receiver<Word> {
    let (words, said) = mpsc::channel(4);
    let (source, instance) = (Some(place(process)), Some(Instance([process; Instance::LENGTH])));
    let opened = Opened { peer: key(1), session: process.into(), key: None, source, instance, words };
    gateway.control.handle_command(gateway.now, Command::SessionOpened(Box::new(opened)));
    gateway.control.take_shared_keys(gateway.now);
    said
}

fn observed(control: &Control) -> Observation {
    control.observations().into_iter().find(|(peer, _)| *peer == key(1)).unwrap().1
}

/// What an agent tells that takes another machine's packets for losses.
fn misled(count: u64) -> Box<Told> {
    let last = v1::ChurnEvent { at: Some(SystemTime::now().into()), ..v1::ChurnEvent::default() };
    let cause = v1::ChurnOfCause { cause: v1::ChurnCause::MappingLost.into(), count, last: Some(last) };
    let churn = v1::ChurnReport { since: Some(SystemTime::now().into()), count, causes: vec![cause] };
    let binding = v1::BindingReport {
        at_least: Some(prost_types::Duration { seconds: 6, nanos: 0 }),
        confidence: v1::BindingConfidence::Growing.into(),
        ..v1::BindingReport::default()
    };
    let state = v1::ClientState { binding: Some(binding), churn: Some(churn), ..v1::ClientState::default() };
    Box::new(state.into())
}

#[tokio::test]
async fn two_agents_with_one_key_are_both_told_and_what_they_measure_counts_for_nothing_until_it_is_over() {
    let mut gateway = Gateway::new(1);
    let mut words = Vec::new();
    for process in [1, 2, 1, 2] {
        assert!(observed(&gateway.control).shared.is_none());
        words = vec![attach(&mut gateway, process)];
        gateway.now += SECOND;
    }
    assert!(matches!(words[0].try_recv(), Ok(Word::KeyShared(true))));
    let mut other = attach(&mut gateway, 1);
    assert!(matches!(other.try_recv(), Ok(Word::KeyShared(true))), "the other one hears it as well");
    let known = observed(&gateway.control).nat_state.unwrap();
    assert_eq!(observed(&gateway.control).shared.unwrap().1.places.map(|(first, _)| first), Some(place(2)));

    let told = |told| Command::SessionTold { peer: key(1), told };
    gateway.control.handle_command(gateway.now, told(misled(40)));
    for n in 0..40 {
        let (from, to) = (Some(place(1 + n % 2)), place(2 - n % 2));
        let moved =
            TunnelEvent::EndpointChanged { peer: key(1), from, to, idle: Some(SECOND), session: None };
        gateway.control.handle_event(gateway.now, &moved);
    }
    let now = observed(&gateway.control);
    assert_eq!((now.nat_state.as_deref(), now.last_change), (Some(&*known), None));

    gateway.now = gateway.control.shared_keys.poll_timeout().unwrap();
    gateway.control.shared_keys.handle_timeout(gateway.now);
    gateway.control.take_shared_keys(gateway.now);
    assert!(matches!(other.try_recv(), Ok(Word::KeyShared(false))));
    assert!(observed(&gateway.control).shared.is_none());
    gateway.control.handle_command(gateway.now, told(misled(41)));
    let nat_state = observed(&gateway.control).nat_state.unwrap();
    assert!(nat_state.binding().is_some(), "it is believed again");
}

/// What the operator says: whether the first client's other machine is at another replica.
fn operator_says(gateway: &mut Gateway, key_shared: bool) {
    let mut desired = desired();
    desired.peers[0].key_shared = key_shared;
    gateway.control.adopt(gateway.now, &Arc::new(Desired::parse(desired).unwrap().0));
    gateway.control.take_shared_keys(gateway.now);
}

#[tokio::test]
async fn an_agent_whose_other_machine_is_at_another_replica_is_told_as_the_operator_says() {
    let mut gateway = Gateway::new(1);
    let mut before = attach(&mut gateway, 1);
    operator_says(&mut gateway, false);
    assert!(before.try_recv().is_err());
    operator_says(&mut gateway, true);
    assert!(matches!(before.try_recv(), Ok(Word::KeyShared(true))));
    assert!(observed(&gateway.control).shared.is_none(), "what was not seen here is not reported");
    gateway.now += SECOND;
    let mut after = attach(&mut gateway, 1);
    assert!(matches!(after.try_recv(), Ok(Word::KeyShared(true))), "whoever attaches later hears it as well");
    gateway.now = gateway.control.shared_keys.poll_timeout().unwrap();
    gateway.control.shared_keys.handle_timeout(gateway.now);
    gateway.control.take_shared_keys(gateway.now);
    assert!(matches!(after.try_recv(), Ok(Word::KeyShared(true))));
    operator_says(&mut gateway, false);
    assert!(matches!(after.try_recv(), Ok(Word::KeyShared(false))));
}

#[tokio::test]
async fn the_operator_hears_which_process_holds_a_session_until_two_hold_it_in_turn() {
    let mut gateway = Gateway::new(1);
    let reported = |gateway: &Gateway| {
        let all = [(key(1), observed(&gateway.control))];
        Reporter::new(gateway.now).take(gateway.now, &all)[0].0[0].instance.clone()
    };
    assert!(reported(&gateway).is_empty());
    for process in [1, 2, 1] {
        attach(&mut gateway, process);
        assert_eq!(reported(&gateway), [process; Instance::LENGTH]);
        gateway.now += SECOND;
    }
    attach(&mut gateway, 2);
    assert!(reported(&gateway).is_empty());
}

#[tokio::test]
async fn a_move_to_and_fro_within_seconds_is_counted_once_and_one_within_minutes_each_time() {
    let mut gateway = Gateway::new(1);
    let mut counted = |pause: Duration| {
        gateway.now += SECOND * 60;
        let before = observed(&gateway.control).nat_state.unwrap().churn_count();
        for n in 0..6 {
            gateway.now += pause;
            let (from, to) = (Some(place(1 + n % 2)), place(2 - n % 2));
            let moved =
                TunnelEvent::EndpointChanged { peer: key(1), from, to, idle: Some(pause), session: Some(7) };
            gateway.control.handle_event(gateway.now, &moved);
        }
        observed(&gateway.control).nat_state.unwrap().churn_count() - before
    };
    assert_eq!(counted(SECOND * 60), 6);
    assert_eq!(counted(SECOND), 1);
    let report = observed(&gateway.control).nat_state.unwrap().report(v1::ClientReport::default());
    let causes = report.churn.unwrap().causes;
    assert!(causes.iter().all(|it| it.cause() == v1::ChurnCause::Roam), "{causes:?}");
}
