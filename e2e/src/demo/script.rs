//! What happens in the demo, and when: decided from what is seen of the clients.

use std::time::Duration;

use pinhole_crds::ClientPhase;

use super::view::Client;

/// How long all clients may take to connect.
const CONNECT: Duration = Duration::from_secs(90);
/// How long a scene between may take.
const SCENE: Duration = Duration::from_secs(45);
/// Answered pings of every client that make a scene worth seeing.
const ENOUGH: usize = 15;

/// Where the demo stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scene {
    /// Clients are on their way.
    Connecting,
    /// All are connected, since then.
    Steady { since: Duration },
    /// The NAT of this client is being restarted.
    Restarting { client: &'static str, from: String },
    /// It was restarted at `at`, when the client came from `from`.
    Moving { client: &'static str, at: Duration, from: String },
    /// That client came back from another endpoint.
    Moved(Move),
}

/// What a client's move looked like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) client: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
    /// From the restart of the NAT to the first answer.
    pub(crate) outage: Duration,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cue {
    /// Restart the NAT of the client at [`Script::MOVES`] with other ports.
    Restart,
    /// All was shown.
    End(Move),
}

/// Why the demo cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stuck {
    /// A client did not connect.
    #[error("{client} is {phase} {limit:.0?} after `kubectl apply`, not Connected with its pings answered")]
    NotConnected { client: &'static str, phase: String, limit: Duration },
    /// A client that was connected is not any more.
    #[error("{client} did not stay Connected: it is {phase}")]
    Left { client: &'static str, phase: String },
    /// Pings do not get answered any more.
    #[error("{client} is Connected, but its pings are not answered: {answered} in {limit:.0?}")]
    Silent { client: &'static str, answered: usize, limit: Duration },
    /// The client's endpoint did not move with its NAT.
    #[error("{client} is still shown at {endpoint} {limit:.0?} after its NAT restarted with other ports")]
    NotMoved { client: &'static str, endpoint: String, limit: Duration },
}

/// The demo's course.
#[derive(Debug)]
pub(crate) struct Script {
    scene: Scene,
}

impl Script {
    /// The client, by its place, whose NAT restarts.
    pub(crate) const MOVES: usize = 0;

    pub(crate) fn new() -> Self {
        Self { scene: Scene::Connecting }
    }

    /// What is going on, for the audience.
    pub(crate) fn title(&self) -> String {
        match &self.scene {
            Scene::Connecting => "the clients enrol and connect".to_owned(),
            Scene::Steady { .. } => "all ping a pod through their tunnels".to_owned(),
            Scene::Restarting { client, .. } => format!("{client}'s NAT restarts with other ports"),
            Scene::Moving { client, from, .. } => {
                format!(
                    "{client}'s NAT has restarted: {from} leads nowhere now, and the gateway is to follow"
                )
            }
            Scene::Moved(moved) => format!("the gateway followed {} to {}", moved.client, moved.to),
        }
    }

    /// The NAT was restarted at `now`.
    pub(crate) fn restarted(&mut self, now: Duration) {
        if let Scene::Restarting { client, from } = &self.scene {
            self.scene = Scene::Moving { client, at: now, from: from.clone() };
        }
    }

    /// Goes on as far as what is seen allows.
    pub(crate) fn next(&mut self, clients: &[Client], now: Duration) -> Result<Option<Cue>, Stuck> {
        match self.scene.clone() {
            Scene::Connecting => self.connecting(clients, now).map(|()| None),
            Scene::Steady { since } => self.steady(clients, since, now),
            Scene::Restarting { .. } => Ok(None),
            Scene::Moving { at, from, .. } => self.moving(clients, at, &from, now).map(|()| None),
            Scene::Moved(moved) => Ok(Some(Cue::End(moved))),
        }
    }

    fn connecting(&mut self, clients: &[Client], now: Duration) -> Result<(), Stuck> {
        let there = |client: &Client| {
            client.is_connected() && client.endpoint.is_some() && client.pings.first().is_some()
        };
        match clients.iter().find(|client| !there(client)) {
            None => self.scene = Scene::Steady { since: now },
            Some(client) if now > CONNECT => {
                let phase = phase(client);
                return Err(Stuck::NotConnected { client: client.name, phase, limit: CONNECT });
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn steady(&mut self, clients: &[Client], since: Duration, now: Duration) -> Result<Option<Cue>, Stuck> {
        all_connected(clients)?;
        if !enough(clients, since, now)? {
            return Ok(None);
        }
        let Some(mover) = clients.get(Self::MOVES) else { return Ok(None) };
        let Some(from) = mover.endpoint.clone() else { return Ok(None) };
        self.scene = Scene::Restarting { client: mover.name, from };
        Ok(Some(Cue::Restart))
    }

    fn moving(&mut self, clients: &[Client], at: Duration, from: &str, now: Duration) -> Result<(), Stuck> {
        all_connected(clients)?;
        let Some(client) = clients.get(Self::MOVES) else { return Ok(()) };
        let enough = enough(clients, at, now)?;
        let endpoint = client.endpoint.clone().unwrap_or_default();
        let moved = endpoint != from && !endpoint.is_empty();
        match client.pings.first_after(at) {
            Some(answer) if moved && enough => {
                let outage = answer.saturating_sub(at);
                self.scene =
                    Scene::Moved(Move { client: client.name, from: from.to_owned(), to: endpoint, outage });
                Ok(())
            }
            _ if !moved && now > at + SCENE => {
                Err(Stuck::NotMoved { client: client.name, endpoint, limit: SCENE })
            }
            _ => Ok(()),
        }
    }
}

fn all_connected(clients: &[Client]) -> Result<(), Stuck> {
    match clients.iter().find(|client| !client.is_connected()) {
        Some(client) => Err(Stuck::Left { client: client.name, phase: phase(client) }),
        None => Ok(()),
    }
}

/// Whether the audience has seen enough answers of everybody since then.
fn enough(clients: &[Client], since: Duration, now: Duration) -> Result<bool, Stuck> {
    let few = clients.iter().find(|client| client.pings.answered_since(since) < ENOUGH);
    match few {
        Some(client) if now > since + SCENE => {
            let answered = client.pings.answered_since(since);
            Err(Stuck::Silent { client: client.name, answered, limit: SCENE })
        }
        few => Ok(few.is_none()),
    }
}

fn phase(client: &Client) -> String {
    client.phase.map_or_else(|| "not known to the operator".to_owned(), spelled)
}

/// A phase as the API spells it.
pub(crate) fn spelled(phase: ClientPhase) -> String {
    format!("{phase:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::view::Ping;

    const S: Duration = Duration::from_secs(1);

    fn connected(endpoint: &str) -> Client {
        let mut client = Client::new("home", "a NAT");
        client.phase = Some(ClientPhase::Connected);
        client.endpoint = Some(endpoint.to_owned());
        client
    }

    fn answer(client: &mut Client, from: Duration, count: usize) {
        for n in 0..count {
            let sent = from + Duration::from_millis(200) * u32::try_from(n).unwrap();
            client.pings.note(Ping { sent, rtt: Some(Duration::from_millis(2)) });
        }
    }

    #[test]
    fn the_demo_goes_from_connecting_by_a_moved_nat_to_its_end() {
        let mut script = Script::new();
        let mut clients = vec![Client::new("home", "a NAT")];
        assert_eq!(script.next(&clients, S), Ok(None));
        clients = vec![connected("192.0.2.1:1000")];
        assert_eq!(script.next(&clients, 2 * S), Ok(None), "no ping was answered yet");
        answer(&mut clients[0], 2 * S, 1);
        assert_eq!(script.next(&clients, 3 * S), Ok(None));
        answer(&mut clients[0], 3 * S, ENOUGH);
        assert_eq!(script.next(&clients, 7 * S), Ok(Some(Cue::Restart)));
        script.restarted(8 * S);
        answer(&mut clients[0], 8 * S + S / 2, ENOUGH);
        assert_eq!(script.next(&clients, 12 * S), Ok(None), "the endpoint is still the old one");
        clients[0].endpoint = Some("192.0.2.1:2000".to_owned());
        assert_eq!(script.next(&clients, 13 * S), Ok(None));
        let moved = Move {
            client: "home",
            from: "192.0.2.1:1000".to_owned(),
            to: "192.0.2.1:2000".to_owned(),
            outage: Duration::from_millis(502),
        };
        assert_eq!(script.next(&clients, 14 * S), Ok(Some(Cue::End(moved))));
    }

    #[test]
    fn a_client_that_does_not_connect_ends_the_demo() {
        let error = Script::new().next(&[Client::new("home", "a NAT")], CONNECT + S).unwrap_err();
        assert_eq!(
            error.to_string(),
            "home is not known to the operator 90s after `kubectl apply`, not Connected with its pings answered"
        );
    }

    #[test]
    fn a_client_that_leaves_connected_ends_the_demo() {
        let mut script =
            Script { scene: Scene::Moving { client: "home", at: S, from: "192.0.2.1:1000".to_owned() } };
        let mut client = connected("192.0.2.1:1000");
        client.phase = Some(ClientPhase::WaitingToReconnect);
        let error = script.next(&[client], 2 * S).unwrap_err();
        assert_eq!(error.to_string(), "home did not stay Connected: it is WaitingToReconnect");
    }

    #[test]
    fn a_client_that_does_not_move_or_falls_silent_ends_the_demo() {
        let moving =
            || Script { scene: Scene::Moving { client: "home", at: S, from: "192.0.2.1:1000".to_owned() } };
        let mut client = connected("192.0.2.1:1000");
        let silent = moving().next(std::slice::from_ref(&client), S + SCENE + S);
        assert!(matches!(silent, Err(Stuck::Silent { answered: 0, .. })), "{silent:?}");
        answer(&mut client, 2 * S, ENOUGH);
        let stays = moving().next(&[client], S + SCENE + S);
        assert!(matches!(stays, Err(Stuck::NotMoved { .. })), "{stays:?}");
    }
}
