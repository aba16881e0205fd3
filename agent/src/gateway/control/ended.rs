//! An end bites in the whole of the loop, with no operator to say so.

use super::{
    hostile::{CLIENTS, Gateway, desired, key},
    *,
};
use crate::gateway::desired::tests::client;

const END: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_client_that_comes_to_its_end_while_the_operator_is_away_is_out_of_everything() {
    let mut gateway = Gateway::new(1);
    let (now, wall, control) = (gateway.now, SystemTime::now(), &mut gateway.control);
    let served = control.setup.served.subscribe();
    let mut wire = desired();
    wire.peers[0].not_after = Some((wall + END).into());
    let told = control.ends.take(now, wall, Desired::parse(wire).unwrap().0);
    control.adopt(now, &told);
    control.serve(&told);
    control.handle_command(now, Command::LinkDown);

    let is_in = |control: &Control| {
        let served = served.borrow().desired.clone().unwrap();
        let everywhere = [
            control.desired.as_ref().unwrap().peers.contains_key(&key(1)),
            control.nat_states.contains_key(&key(1)),
            control.observations().iter().any(|(peer, _)| *peer == key(1)),
            served.tunnel_peers(&[]).iter().any(|peer| peer.public_key == key(1)),
            served.peer_of(&client("client-1")).is_some(),
        ];
        assert!(everywhere.iter().all(|is_in| *is_in == everywhere[0]), "{everywhere:?}");
        everywhere[0]
    };
    assert!(control.next_timeout() <= Instant::now() + END);
    control.handle_ends(now + END / 2, wall + END / 2);
    assert!(is_in(control));
    control.handle_ends(now + END, wall + END);
    assert!(!is_in(control));
    assert_eq!(control.desired.as_ref().unwrap().peers.len(), usize::from(CLIENTS) - 1);
    // A clock that was wrong, and is right again.
    control.handle_ends(now + END * 2, wall);
    assert!(is_in(control));
}
