//! Whatever a replica says, the operator goes on, its memory has a bound, and what it writes can be read again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{ClientCounts, VPNClient, VPNClientPool, VPNClientStatus, VPNGateway};
use pinhole_proto::{
    hostile::Hostile,
    v1::{
        ClientReport, DesiredState, GatewayMessage, GatewayReport, ObjectRef, Peer, gateway_message::Message,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::attach::hear;
use crate::{
    fleet::{Attachment, Fleet, GatewayKey, JUST_GONE},
    plan::{
        churn_events::{Told, churn_news},
        client::{self, Backing},
        gateway,
        summary::{Tally, summary},
    },
};

const CLIENTS: usize = 6;
const REPLICA: &str = "edge-0";

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> T {
    let meta = json!({ "name": name, "namespace": "vpn", "uid": format!("uid-{name}"), "generation": 1 });
    let object =
        json!({ "apiVersion": "pinhole.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec });
    serde_json::from_value(object).unwrap()
}

fn client_of(n: usize) -> ObjectRef {
    ObjectRef { namespace: "vpn".into(), name: format!("laptop-{n}"), uid: format!("uid-laptop-{n}") }
}

struct Operator {
    fleet: Arc<Fleet>,
    attachment: Attachment,
    hostile: Hostile,
    now: Instant,
    gateway: VPNGateway,
    pool: VPNClientPool,
    clients: Vec<VPNClient>,
    told: Told,
}

impl Operator {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let fleet = Fleet::new(now);
        let peers = (0..CLIENTS).map(|n| Peer { client: Some(client_of(n)), ..Peer::default() });
        fleet.publish(
            std::time::SystemTime::now(),
            &key(),
            REPLICA,
            DesiredState { peers: peers.collect(), ..DesiredState::default() },
        );
        let agent =
            json!({ "poolRef": { "name": "staff" }, "enrolment": { "method": "Token", "token": "t" } });
        let stock = json!({ "poolRef": { "name": "staff" } });
        let spec = |n: usize| if n.is_multiple_of(2) { &agent } else { &stock };
        let client = |n: usize| object("VPNClient", &client_of(n).name, spec(n));
        Self {
            attachment: fleet.attached(&key(), REPLICA, 0, now),
            fleet,
            hostile: Hostile::new(seed),
            now,
            gateway: object("VPNGateway", "edge", &json!({ "exposure": { "type": "LoadBalancer" } })),
            pool: object(
                "VPNClientPool",
                "staff",
                &json!({ "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/24"] }),
            ),
            clients: (0..CLIENTS).map(client).collect(),
            told: Told::default(),
        }
    }

    fn step(&mut self) {
        let mut message: GatewayMessage = self.hostile.readable("GatewayMessage");
        if let Some(Message::Report(report)) = &mut message.message {
            // What is not of a client that could be its own is not looked at.
            for client in &mut report.clients {
                client.client = Some(client_of(self.hostile.below(CLIENTS)));
            }
        }
        if self.hostile.below(50) == 0 {
            let revision = [0, 1, u64::MAX, u64::MAX - 1][self.hostile.below(4)];
            self.attachment = self.fleet.attached(&key(), REPLICA, revision, self.now);
            let mtu = u32::try_from(self.hostile.below(9_000)).unwrap();
            let state = self.fleet.desired(&key(), REPLICA).borrow().clone().unwrap();
            self.fleet.publish(
                std::time::SystemTime::now(),
                &key(),
                REPLICA,
                DesiredState { mtu, ..DesiredState::clone(&state) },
            );
        }
        // A second hello ends a stream.
        let _ = hear(&self.attachment, &key(), message);
        self.now += Duration::from_millis([0, 1, 1_000, 30_000][self.hostile.below(4)]);
        self.fleet.handle_timeout(self.now);
        self.look();
    }

    /// What the controllers make of it.
    fn look(&mut self) {
        let n = self.hostile.below(CLIENTS);
        let uid = client_of(n).uid;
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let last = (self.hostile.below(2) == 0).then_some(REPLICA);
        let view = self.fleet.client(&key(), &uid, last, self.now);
        let inputs = client::StatusInputs {
            client: &self.clients[n],
            backing: Backing::Served(&self.pool, &self.gateway),
            addresses: &["10.77.0.9".parse().unwrap()],
            denied: None,
            public_key: Some("key"),
            key_error: None,
            key_twin: None,
            config_secret: Some("secret"),
            view: Some(&view),
            moves_seen: [None, Some(0), Some(u64::MAX)][self.hostile.below(3)],
            written_ago: None,
            unread: &[],
            now,
        };
        let status = client::status(&inputs).0;
        if let Some((_, sighting)) = &view.sighting {
            let (news, _) = churn_news(&sighting.churn, &mut self.told, Timestamp::UNIX_EPOCH, now);
            for (_, tiding) in news {
                assert!(!tiding.note.chars().any(char::is_control), "{}", tiding.note);
            }
        }
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.len() < 8_192, "{text}");
        assert!(
            serde_json::from_str::<VPNClientStatus>(&text).unwrap() == status,
            "it is not what is read: {status:?}"
        );
        let tally = Tally::of([&status]);
        let nat = summary(None, &tally, status.churn.as_ref().map_or(0, |churn| churn.count.unsigned_abs()));
        self.clients[n].status = Some(status);
        let view = self.fleet.view(&key(), self.now);
        let inputs = gateway::StatusInputs {
            gateway: &self.gateway,
            replicas: &[],
            pods: &BTreeMap::new(),
            refused: &BTreeMap::new(),
            unbalanced: &BTreeMap::new(),
            evicted: &BTreeMap::new(),
            view: &view,
            clients: ClientCounts::default(),
            nat: nat.as_ref(),
            obstacle: None,
            unread: &[],
            frozen_pool: None,
            now,
        };
        let status = gateway::status(&inputs).0;
        serde_json::to_string(&status).unwrap();
        assert!(
            view.replicas[REPLICA].impairments.len() <= 32 && view.replicas[REPLICA].nat_restarts.len() <= 64
        );
    }
}

fn key() -> GatewayKey {
    GatewayKey::new("vpn", "edge")
}

fn run(seed: u64, steps: usize) {
    let mut operator = Operator::new(seed);
    for _ in 0..steps {
        operator.step();
    }
    assert!(operator.fleet.sightings(&key()) <= CLIENTS);
}

#[test]
fn ten_thousand_hostile_reports_in_a_row_do_not_end_an_operator() {
    run(5, 10_000);
}

#[test]
fn a_replica_that_makes_clients_up_does_not_fill_the_memory() {
    let operator = Operator::new(1);
    for round in 0..20 {
        let made_up =
            |n: usize| ClientReport { client: Some(client_of(round * 1_000 + n)), ..ClientReport::default() };
        let report = GatewayReport { clients: (0..1_000).map(made_up).collect(), ..GatewayReport::default() };
        hear(&operator.attachment, &key(), GatewayMessage { message: Some(Message::Report(report)) })
            .unwrap();
    }
    assert_eq!(operator.fleet.sightings(&key()), CLIENTS + JUST_GONE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_order_of_hostile_reports_ends_an_operator(seed: u64) {
        run(seed, 400);
    }
}
