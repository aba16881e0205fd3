//! The table of README.md under "Cutting off", line by line against what decides.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

const README: &str = include_str!("../../../README.md");

/// The heads of the table's columns.
const COLUMNS: [&str; 6] = [
    "what was done",
    "the client is",
    "its renewal",
    "same key, its token",
    "same key, another token",
    "new key, its token",
];

/// A client that enrolled with the first of two tokens, and what is done to it.
struct World {
    memory: Arc<Memory>,
    enroller: TestEnroller,
    client: ObjectRef,
    csr: Vec<u8>,
}

impl World {
    /// `deeds` as the table's first column has them.
    async fn after(deeds: &str) -> Self {
        let (memory, enroller) = set_up(None);
        add_token(&memory, "second");
        let request = request(1);
        let csr = request.csr.clone();
        let client = enrolled(&enroller, request).await;
        let world = Self { memory, enroller, client, csr };
        deeds.split(", ").for_each(|deed| world.suffers(deed));
        world.memory.reconcile();
        world
    }

    fn suffers(&self, deed: &str) {
        let past = || Some(Time(Timestamp::now() - Duration::from_secs(1)));
        let client = |change: fn(&mut VPNClient)| self.memory.lock().clients.values_mut().for_each(change);
        match deed {
            "nothing" => {}
            "client suspended" => client(|c| c.spec.suspended = Some(true)),
            "client resumed" => client(|c| c.spec.suspended = None),
            "client expired" => {
                self.memory.lock().clients.values_mut().for_each(|c| c.spec.expires_at = past());
            }
            "client deleted" => self.memory.lock().clients.clear(),
            "token revoked" => self.token(|t| t.revoked = Some(true), true),
            "token removed" => {
                self.token(|_| {}, true);
                let mut state = self.memory.lock();
                let pool = state.pools.get_mut("staff").unwrap();
                pool.spec.enrolment.as_mut().unwrap().tokens.retain(|t| t.name != "first");
            }
            "token expired" => self.token(|t| t.expires_at = past(), false),
            "token used up" => self.token(|t| t.uses = Some(1), false),
            other => panic!("README.md names {other:?}, of which nothing is known here"),
        }
    }

    /// Changes the client's token. The operator removes the Secret of one that is over for good.
    fn token(&self, change: impl FnOnce(&mut JoinToken), is_over: bool) {
        let mut state = self.memory.lock();
        let tokens = &mut state.pools.get_mut("staff").unwrap().spec.enrolment.as_mut().unwrap().tokens;
        change(tokens.iter_mut().find(|t| t.name == "first").unwrap());
        if is_over {
            state.secrets.remove("staff-token-first");
        }
    }

    fn is_peer(&self) -> &'static str {
        let desired = self.memory.fleet.desired(&GatewayKey::new(NAMESPACE, GATEWAY), REPLICA);
        let desired = desired.borrow();
        if find_peer(desired.as_ref().unwrap(), &self.client.uid).is_some() { "let in" } else { "cut" }
    }

    /// Asks for another certificate when its own is over, by both its keys.
    async fn returns(&self) -> &'static str {
        let request = EnrolRequest { csr: self.csr.clone(), ..by_keys(1) };
        match self.enroller.enrol(&caller(), proven(request)).await {
            Ok(response)
                if response.config.as_ref().and_then(|c| c.client.as_ref()) == Some(&self.client) =>
            {
                "renewed"
            }
            Ok(_) => "another client",
            Err(error) => error.category(),
        }
    }

    async fn enrols(&self, key: u8, token: &str) -> &'static str {
        match self.enroller.enrol(&caller(), proven(by(token, request(key)))).await {
            Ok(response) => match response.config.and_then(|config| config.client) {
                Some(client) if client == self.client => "same client",
                _ => "new client",
            },
            Err(error) => error.category(),
        }
    }
}

fn cells(line: &str) -> Vec<String> {
    let cells = line.trim_matches('|').split('|');
    cells.map(|cell| cell.replace('`', "").trim().to_owned()).collect()
}

/// The lines of the table, without its head.
fn table() -> Vec<Vec<String>> {
    let lines = README.lines().skip_while(|line| cells(line) != COLUMNS);
    lines.skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_documentation_says_of_cutting_off_is_what_happens() {
    for line in table() {
        let deeds = line[0].as_str();
        let outcome = [
            World::after(deeds).await.is_peer(),
            {
                let world = World::after(deeds).await;
                renewal(&world.enroller, &world.client, &world.csr).await
            },
            World::after(deeds).await.enrols(1, "first").await,
            World::after(deeds).await.enrols(1, "second").await,
            World::after(deeds).await.enrols(2, "first").await,
        ];
        assert_eq!(line[1..], outcome, "{deeds}");
        assert_eq!(World::after(deeds).await.returns().await, line[2], "by its keys: {deeds}");
        // As the text below the table has it.
        assert_eq!(World::after(deeds).await.enrols(2, "second").await, "new client", "{deeds}");
    }
}

#[test]
fn the_table_has_every_deed_alone_and_what_deeds_mean_together() {
    let deeds: Vec<String> = table().into_iter().map(|mut line| line.swap_remove(0)).collect();
    for client in ["suspended", "expired", "deleted"] {
        assert!(deeds.contains(&format!("client {client}")), "{client}");
        for token in ["revoked", "removed", "expired", "used up"] {
            assert!(deeds.contains(&format!("token {token}")), "{token}");
            assert!(deeds.contains(&format!("client {client}, token {token}")), "{client}, {token}");
        }
    }
    assert!(deeds.contains(&"client suspended, client resumed".to_owned()));
    assert!(deeds.contains(&"client suspended, client deleted".to_owned()));
}
