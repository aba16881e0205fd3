//! The link as a gateway's replica meets it: real gRPC over TLS on loopback. Only the API server is missing.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use pinhole_proto::{
    CATEGORY_METADATA, OPERATOR_AUDIENCE, OPERATOR_SERVER_NAME,
    v1::{
        Ack, ClientReport, DesiredState, EnrolRequest, GatewayHello, GatewayMessage, GatewayReplica,
        GatewayReport, IssueServerCertificateRequest, JoinCredential, ObjectRef, OperatorMessage, Phase,
        RelayEnrolRequest, enrol_request::Credential, gateway_link_client::GatewayLinkClient,
        gateway_message, operator_message,
    },
};
use pinhole_reception::hostile::{Bind, Conduct, Strangers};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::{
    attach::{Speaker, Streams},
    authenticate::Authenticator,
    server::{Link, LinkError},
};
use crate::{
    enrolment::{
        Enroller,
        memory::{self, GATEWAY, Memory, NAMESPACE, REPLICA, csr, token_secret},
    },
    fleet::{Fleet, GatewayKey, Hearing},
    identity::{CachedReviewer, PodIdentity},
};

const TOKEN: &str = "token-of-edge-0";
const SOON: Duration = Duration::from_secs(10);
const KEY: [u8; 32] = [9; 32];

struct Operator {
    memory: Arc<Memory>,
    leading: watch::Sender<bool>,
    stop: CancellationToken,
    port: u16,
    served: JoinHandle<Result<(), LinkError>>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Operator {
    async fn start() -> Self {
        let pool = memory::pool(
            "staff",
            vec![pinhole_crds::JoinToken {
                name: "first".into(),
                uses: None,
                expires_at: None,
                revoked: None,
                group: None,
            }],
        );
        let secret = token_secret(&pool, "first", "right");
        let memory = Memory::new(vec![pool]);
        memory.lock().secrets.insert("staff-token-first".into(), secret);
        know(&memory, TOKEN, GATEWAY, REPLICA);
        let (leading, leads) = watch::channel(true);
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reviewer = memory.cached_reviewer();
        let enroller = Enroller::new(
            Arc::clone(&memory),
            Arc::clone(&memory.fleet),
            Arc::clone(&memory.identity),
            Arc::clone(&reviewer),
        );
        let link = Link {
            fleet: Arc::clone(&memory.fleet),
            identity: Arc::clone(&memory.identity),
            reviewer,
            enroller: Arc::new(enroller),
            leading: leads,
        };
        let served = tokio::spawn(link.serve(listener, stop.clone()));
        Self { memory, leading, stop, port, served }
    }

    async fn channel(&self) -> Channel {
        let ca = self.memory.identity.authorities().bundle_pem().to_owned();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name(OPERATOR_SERVER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", self.port)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> GatewayLinkClient<Channel> {
        GatewayLinkClient::new(self.channel().await)
    }

    async fn attach(&self, token: &str) -> Result<Attached, Status> {
        self.attach_as(token, hello(0)).await
    }

    async fn attach_as(&self, token: &str, hello: GatewayMessage) -> Result<Attached, Status> {
        let (outbox, messages) = mpsc::channel(8);
        outbox.send(hello).await.unwrap();
        let request = with_token(token, ReceiverStream::new(messages));
        let stream = self.client().await.attach(request).await?.into_inner();
        Ok(Attached { outbox, stream })
    }

    fn publish(&self, mtu: u32) {
        let replicas =
            vec![GatewayReplica { name: REPLICA.into(), public_key: KEY.into(), ..Default::default() }];
        let desired = DesiredState { mtu, replica: REPLICA.into(), replicas, ..DesiredState::default() };
        self.memory.fleet.publish(std::time::SystemTime::now(), &gateway(), REPLICA, desired);
    }
}

struct Attached {
    outbox: mpsc::Sender<GatewayMessage>,
    stream: Streaming<OperatorMessage>,
}

impl Attached {
    async fn desired(&mut self) -> Result<DesiredState, Status> {
        let message = timeout(SOON, self.stream.message()).await.expect("in time")?;
        match message.and_then(|m| m.message) {
            Some(operator_message::Message::Desired(desired)) => Ok(desired),
            None => Err(Status::ok("the end")),
        }
    }

    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.desired().await {
                return status;
            }
        }
    }

    async fn say(&self, message: gateway_message::Message) {
        self.outbox.send(GatewayMessage { message: Some(message) }).await.unwrap();
    }
}

fn gateway() -> GatewayKey {
    GatewayKey::new(NAMESPACE, GATEWAY)
}

fn know(memory: &Memory, token: &str, service_account: &str, pod: &str) {
    let identity = PodIdentity {
        namespace: NAMESPACE.into(),
        service_account: service_account.into(),
        pod: pod.into(),
        pod_uid: format!("uid-of-{pod}"),
        node: Some("node-a".into()),
    };
    memory.reviewer.pods.lock().unwrap().insert((token.into(), OPERATOR_AUDIENCE), identity);
}

fn hello(revision: u64) -> GatewayMessage {
    let hello = GatewayHello { version: "test".into(), revision, public_key: KEY.into() };
    GatewayMessage { message: Some(gateway_message::Message::Hello(hello)) }
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn category(status: &Status) -> &str {
    status.metadata().get(CATEGORY_METADATA).map_or("", |c| c.to_str().unwrap())
}

/// Waits for what a reader of the fleet would be woken for.
async fn fleet_shows(fleet: &Fleet, what: impl Fn(&Fleet) -> bool) {
    timeout(SOON, async {
        while !what(fleet) {
            fleet.changes().await;
        }
    })
    .await
    .expect("in time");
}

#[tokio::test]
async fn a_replica_gets_its_snapshot_and_then_the_newest() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut attached = operator.attach(TOKEN).await.unwrap();
    let first = attached.desired().await.unwrap();
    assert_eq!(first.mtu, 1300);
    operator.publish(1301);
    let second = attached.desired().await.unwrap();
    assert_eq!(second.mtu, 1301);
    assert!(second.revision > first.revision);
}

#[tokio::test]
async fn a_replica_that_runs_the_newest_is_told_nothing_until_it_changes() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let revision = operator.attach(TOKEN).await.unwrap().desired().await.unwrap().revision;
    let mut attached = operator.attach_as(TOKEN, hello(revision)).await.unwrap();
    // Once the operator heard it, it decided what to tell.
    attached.say(gateway_message::Message::Ack(Ack { revision, ..Ack::default() })).await;
    fleet_shows(&operator.memory.fleet, |f| {
        f.view(&gateway(), std::time::Instant::now()).replicas[REPLICA].applied == revision
    })
    .await;
    operator.publish(1301);
    assert_eq!(attached.desired().await.unwrap().mtu, 1301);
}

#[tokio::test]
async fn what_a_replica_reports_is_in_the_fleet() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let attached = operator.attach(TOKEN).await.unwrap();
    let client = |namespace: &str, uid: &str| ClientReport {
        client: Some(ObjectRef { namespace: namespace.into(), name: "laptop-1".into(), uid: uid.into() }),
        phase: Phase::Connected.into(),
        endpoint: "198.51.100.7:40000".into(),
        ..ClientReport::default()
    };
    let clients = vec![client(NAMESPACE, "u1"), client("elsewhere", "u2")];
    attached
        .say(gateway_message::Message::Report(GatewayReport { clients, ..GatewayReport::default() }))
        .await;
    let seen = |f: &Fleet, uid: &str| f.client(&gateway(), uid, None, std::time::Instant::now());
    fleet_shows(&operator.memory.fleet, |f| seen(f, "u1").sighting.is_some()).await;
    let view = seen(&operator.memory.fleet, "u1");
    assert_eq!(view.hearing, Hearing::Live);
    assert_eq!(view.sighting.unwrap().1.endpoint.as_deref(), Some("198.51.100.7:40000"));
    assert!(seen(&operator.memory.fleet, "u2").sighting.is_none());
}

#[tokio::test]
async fn callers_without_a_good_token_are_turned_away_with_a_category() {
    let operator = Operator::start().await;
    know(&operator.memory, "token-of-web", "default", "web-0");
    for (token, code, expected) in [
        ("", Code::Unauthenticated, "CredentialMissing"),
        ("unknown", Code::Unauthenticated, "CredentialInvalid"),
        ("token-of-web", Code::PermissionDenied, "CredentialNotOfGateway"),
    ] {
        let status = operator.attach(token).await.err().unwrap();
        assert_eq!((status.code(), category(&status)), (code, expected));
        let request = IssueServerCertificateRequest { csr: csr() };
        let status =
            operator.client().await.issue_server_certificate(with_token(token, request)).await.unwrap_err();
        assert_eq!((status.code(), category(&status)), (code, expected));
    }
}

#[tokio::test]
async fn a_standby_says_so_and_a_leader_that_loses_the_lead_lets_go() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut attached = operator.attach(TOKEN).await.unwrap();
    attached.desired().await.unwrap();
    operator.leading.send_replace(false);
    let status = attached.end().await;
    assert_eq!((status.code(), category(&status)), (Code::Unavailable, "Standby"));
    let status = operator.attach(TOKEN).await.err().unwrap();
    assert_eq!((status.code(), category(&status)), (Code::Unavailable, "Standby"));
    operator.leading.send_replace(true);
    assert!(operator.attach(TOKEN).await.unwrap().desired().await.is_ok());
}

#[tokio::test]
async fn health_tells_who_leads() {
    let operator = Operator::start().await;
    let mut health = HealthClient::new(operator.channel().await);
    let request = HealthCheckRequest { service: "pinhole.v1.GatewayLink".into() };
    let mut watched = health.watch(request).await.unwrap().into_inner();
    let mut until = async |wanted: ServingStatus| {
        timeout(SOON, async { while watched.message().await.unwrap().unwrap().status() != wanted {} })
            .await
            .unwrap();
    };
    until(ServingStatus::Serving).await;
    operator.leading.send_replace(false);
    until(ServingStatus::NotServing).await;
}

#[tokio::test]
async fn a_newer_stream_of_a_replica_ends_the_older() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut older = operator.attach(TOKEN).await.unwrap();
    older.desired().await.unwrap();
    let mut newer = operator.attach(TOKEN).await.unwrap();
    newer.desired().await.unwrap();
    let status = older.end().await;
    assert_eq!((status.code(), category(&status)), (Code::Aborted, "Superseded"));
    operator.publish(1301);
    assert_eq!(newer.desired().await.unwrap().mtu, 1301);
    assert!(operator.memory.fleet.view(&gateway(), std::time::Instant::now()).replicas[REPLICA].attached);
}

#[tokio::test]
async fn a_stream_must_begin_with_a_whole_hello() {
    let operator = Operator::start().await;
    let ack = GatewayMessage { message: Some(gateway_message::Message::Ack(Ack::default())) };
    let short = GatewayHello { public_key: vec![1; 31], ..GatewayHello::default() };
    let short = GatewayMessage { message: Some(gateway_message::Message::Hello(short)) };
    for message in [ack, short, GatewayMessage { message: None }] {
        let status = operator.attach_as(TOKEN, message).await.unwrap().end().await;
        assert_eq!((status.code(), category(&status)), (Code::InvalidArgument, "RequestInvalid"));
    }
}

#[tokio::test]
async fn a_replica_with_another_key_than_clients_know_is_told() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let other = GatewayHello { public_key: vec![1; 32], ..GatewayHello::default() };
    let other = GatewayMessage { message: Some(gateway_message::Message::Hello(other)) };
    let status = operator.attach_as(TOKEN, other).await.unwrap().end().await;
    assert_eq!((status.code(), category(&status)), (Code::FailedPrecondition, "KeyMismatch"));
}

#[tokio::test]
async fn a_server_certificate_names_the_gateway_and_its_pools_whatever_the_request_says() {
    let operator = Operator::start().await;
    let params = CertificateParams::new(vec![OPERATOR_SERVER_NAME.to_owned()]).unwrap();
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let request = with_token(TOKEN, IssueServerCertificateRequest { csr });
    let issued = operator.client().await.issue_server_certificate(request).await.unwrap().into_inner();
    let der = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let (_, x509) = X509Certificate::from_der(&der).unwrap();
    let names = &x509.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(
        names.as_slice(),
        [
            GeneralName::DNSName("edge.vpn.gateway.pinhole.dev"),
            GeneralName::DNSName("staff.vpn.pool.pinhole.dev")
        ]
    );
    assert_eq!(issued.ca_pem, operator.memory.identity.authorities().bundle_pem());
}

#[tokio::test]
async fn an_enrolment_is_relayed_and_a_refusal_has_its_category() {
    let operator = Operator::start().await;
    let mut client = operator.client().await;
    let request = |secret: &str| RelayEnrolRequest {
        request: Some(EnrolRequest {
            credential: Some(Credential::Join(JoinCredential {
                token: "first".into(),
                secret: secret.into(),
            })),
            pool_namespace: NAMESPACE.into(),
            pool: "staff".into(),
            public_key: vec![7; 32],
            csr: csr(),
            hostname: "laptop".into(),
            proof: None,
        }),
        key_proven: true,
    };
    let status = client.relay_enrol(with_token(TOKEN, request("wrong"))).await.unwrap_err();
    assert_eq!((status.code(), category(&status)), (Code::Unauthenticated, "TokenInvalid"));
    let status = client.relay_enrol(with_token(TOKEN, RelayEnrolRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), category(&status)), (Code::InvalidArgument, "RequestInvalid"));
    let unproven = RelayEnrolRequest { key_proven: false, ..request("right") };
    let status = client.relay_enrol(with_token(TOKEN, unproven)).await.unwrap_err();
    assert_eq!((status.code(), category(&status)), (Code::FailedPrecondition, "GatewayOutdated"));
    let response = client.relay_enrol(with_token(TOKEN, request("right"))).await.unwrap().into_inner();
    assert_eq!(response.config.unwrap().addresses, ["10.77.0.2/32"]);
}

#[tokio::test]
async fn strangers_on_the_port_disturb_nobody() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut silent = vec![];
    for _ in 0..16 {
        silent.push(TcpStream::connect(("127.0.0.1", operator.port)).await.unwrap());
    }
    let mut noisy = TcpStream::connect(("127.0.0.1", operator.port)).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(operator.attach(TOKEN).await.unwrap().desired().await.is_ok());
}

#[tokio::test]
async fn a_thousand_connections_of_one_stranger_keep_no_replica_of_another_address_out() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let from = |address: &'static str| {
        let port = operator.port;
        async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(address.parse().unwrap()).unwrap();
            socket.connect(([127, 0, 0, 1], port).into()).await.unwrap()
        }
    };
    let held = futures::future::join_all((0..1000).map(|_| from("127.0.0.2:0"))).await;
    let attached = timeout(Duration::from_secs(2), operator.attach(TOKEN)).await.expect("within 2 s");
    attached.unwrap().desired().await.unwrap();
    drop(held);
}

#[tokio::test]
async fn who_proves_no_token_is_sent_away_and_who_does_stays() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut attached = operator.attach(TOKEN).await.unwrap();
    attached.desired().await.unwrap();
    let mut stranger = TcpStream::connect(("127.0.0.1", operator.port)).await.unwrap();
    let end = timeout(Duration::from_secs(20), stranger.read(&mut [0; 1])).await;
    assert_eq!(end.expect("within 20 s").unwrap_or_default(), 0);
    operator.publish(1301);
    assert_eq!(attached.desired().await.unwrap().mtu, 1301);
}

#[tokio::test]
async fn tokens_of_nobody_are_reviewed_now_and_then_and_one_that_is_known_is_let_in_meanwhile() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut client = operator.client().await;
    operator.attach(TOKEN).await.unwrap();
    let call = |token: &str| with_token(token, IssueServerCertificateRequest { csr: csr() });
    let mut answers = vec![];
    for n in 0..40 {
        let status = client.issue_server_certificate(call(&format!("nobody-{n}"))).await.unwrap_err();
        answers.push((status.code(), category(&status).to_owned()));
    }
    assert_eq!(answers[0].0, Code::Unauthenticated);
    assert!(answers.contains(&(Code::ResourceExhausted, "RateLimited".into())), "{answers:?}");
    client.issue_server_certificate(call(TOKEN)).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_connects_again_and_again_loses_its_oldest_connection() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut oldest = operator.attach(TOKEN).await.unwrap();
    oldest.desired().await.unwrap();
    let mut clients = vec![];
    for n in 1..=4 {
        let mut client = operator.client().await;
        let request = with_token(TOKEN, IssueServerCertificateRequest { csr: csr() });
        client.issue_server_certificate(request).await.unwrap();
        clients.push(client);
        if n < 4 {
            operator.publish(1300 + n);
            assert_eq!(oldest.desired().await.unwrap().mtu, 1300 + n);
        }
    }
    assert_ne!(oldest.end().await.code(), Code::Ok);
    operator.attach(TOKEN).await.unwrap().desired().await.unwrap();
}

/// Serves until its standard input ends: memory is that of the operator alone then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the test below runs it"]
async fn in_a_process_of_its_own() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let ca = operator.memory.identity.authorities().bundle_pem().to_owned();
    println!("SERVING {} {}", operator.port, ca.replace('\n', "|"));
    let mut end = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut end)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_with_half_sent_calls_cost_little_and_a_replica_is_served_meanwhile() {
    const GROWTH: u64 = 32 << 20;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "link::tests::in_a_process_of_its_own", "--ignored", "--nocapture"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut lines = lines.map_while(Result::ok);
    let (port, ca) = lines
        .find_map(|line| {
            let (port, ca) = line.split_once("SERVING ")?.1.split_once(' ')?;
            Some((port.parse::<u16>().unwrap(), ca.replace('|', "\n")))
        })
        .unwrap();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    let client = async || {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&ca))
            .domain_name(OPERATOR_SERVER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
        GatewayLinkClient::new(endpoint.tls_config(tls).unwrap().connect().await.unwrap())
    };
    let enrol = async |client: &mut GatewayLinkClient<Channel>| {
        let join = JoinCredential { token: "first".into(), secret: "right".into() };
        let request = EnrolRequest {
            proof: None,
            credential: Some(Credential::Join(join)),
            pool_namespace: NAMESPACE.into(),
            pool: "staff".into(),
            public_key: vec![7; 32],
            csr: csr(),
            hostname: "laptop".into(),
        };
        let request = RelayEnrolRequest { request: Some(request), key_proven: true };
        client.relay_enrol(with_token(TOKEN, request)).await
    };
    let mut replica = client().await;
    enrol(&mut replica).await.unwrap();
    let before = resident();
    let conduct =
        Conduct { to: ([127, 0, 0, 1], port).into(), path: "/pinhole.v1.GatewayLink/RelayEnrol", calls: 16 };
    let bind: Arc<Bind> = Arc::new(|address| {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((address, 0).into()).map(|()| socket)
    });
    // As from as many pods.
    let from: Vec<_> = (2..18).map(|n| [127, 0, 0, n].into()).collect();
    let strangers = Strangers::come(&bind, &from, 1000, conduct).unwrap();
    let (mut most, mut slowest, began) = (0, Duration::ZERO, std::time::Instant::now());
    while began.elapsed() < SOON {
        let asked = std::time::Instant::now();
        timeout(Duration::from_secs(2), enrol(&mut replica)).await.expect("within 2 s").unwrap();
        slowest = slowest.max(asked.elapsed());
        most = most.max(resident());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let grown = most.saturating_sub(before);
    let asked = std::time::Instant::now();
    let anew = async { enrol(&mut client().await).await };
    timeout(SOON, anew).await.expect("a replica comes in anew").unwrap();
    let anew = asked.elapsed();
    eprintln!(
        "{:?} begun; grown by {} kB of {} kB; a replica came in after {anew:?}; enrolled within {slowest:?}",
        strangers.begun(),
        grown / 1000,
        before / 1000
    );
    assert!(strangers.begun().1 >= 64, "{:?}", strangers.begun());
    assert!(grown < GROWTH, "memory grew by {} kB", grown / 1000);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn the_operators_certificate_is_replaced_without_ending_streams() {
    let operator = Operator::start().await;
    operator.publish(1300);
    let mut attached = operator.attach(TOKEN).await.unwrap();
    attached.desired().await.unwrap();
    let before = served_certificate(&operator).await;
    let authorities = operator.memory.identity.authorities();
    let names = [OPERATOR_SERVER_NAME.to_owned()];
    operator.memory.identity.server().renew(&authorities, &names, std::time::SystemTime::now()).unwrap();
    assert_ne!(served_certificate(&operator).await, before);
    operator.publish(1301);
    assert_eq!(attached.desired().await.unwrap().mtu, 1301);
}

async fn served_certificate(operator: &Operator) -> CertificateDer<'static> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = operator.memory.identity.authorities().bundle_pem().to_owned();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", operator.port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(OPERATOR_SERVER_NAME.try_into().unwrap(), stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn an_operator_that_stops_says_so_and_is_gone_soon() {
    let mut operator = Operator::start().await;
    operator.publish(1300);
    let mut attached = operator.attach(TOKEN).await.unwrap();
    attached.desired().await.unwrap();
    operator.stop.cancel();
    let status = attached.end().await;
    assert_eq!((status.code(), category(&status)), (Code::Unavailable, "Stopping"));
    timeout(SOON, &mut operator.served).await.expect("in time").unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", operator.port)).await.is_err());
}

/// A stream without a socket, on virtual time.
struct Bare {
    say: mpsc::Sender<Result<GatewayMessage, Status>>,
    hear: mpsc::Receiver<Result<OperatorMessage, Status>>,
    memory: Arc<Memory>,
    _leading: watch::Sender<bool>,
}

async fn bare() -> Bare {
    let memory = Memory::new(vec![]);
    know(&memory, TOKEN, GATEWAY, REPLICA);
    let reviewer = Arc::new(CachedReviewer::new(Arc::clone(&memory.reviewer)));
    let caller = reviewer.review(TOKEN, OPERATOR_AUDIENCE).await.unwrap().into_replica().unwrap();
    let (leading, leads) = watch::channel(true);
    let streams = Streams::new(
        Arc::clone(&memory.fleet),
        Authenticator::new(reviewer),
        leads,
        CancellationToken::new(),
    );
    let (say, messages) = mpsc::channel(8);
    let (outbox, hear) = mpsc::channel(1);
    let speaker = Speaker { caller, token: TOKEN.into() };
    tokio::spawn(streams.serve(speaker, ReceiverStream::new(messages).boxed(), outbox));
    Bare { say, hear, memory, _leading: leading }
}

#[tokio::test(start_paused = true)]
async fn a_stream_dies_with_its_pod() {
    let mut bare = bare().await;
    bare.say.send(Ok(hello(0))).await.unwrap();
    assert!(bare.hear.recv().await.unwrap().is_ok());
    bare.memory.reviewer.pods.lock().unwrap().clear();
    let began = tokio::time::Instant::now();
    let status = bare.hear.recv().await.unwrap().unwrap_err();
    assert_eq!((status.code(), category(&status)), (Code::Unauthenticated, "CredentialInvalid"));
    assert!(began.elapsed() <= Duration::from_secs(61), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_in_peace_before_its_token_does() {
    let mut bare = bare().await;
    bare.say.send(Ok(hello(0))).await.unwrap();
    assert!(bare.hear.recv().await.unwrap().is_ok());
    let began = tokio::time::Instant::now();
    assert!(bare.hear.recv().await.is_none());
    assert!((240..=481).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for() {
    let mut bare = bare().await;
    let status = bare.hear.recv().await.unwrap().unwrap_err();
    assert_eq!((status.code(), category(&status)), (Code::DeadlineExceeded, "HelloMissing"));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_read_gets_the_newest_snapshot_when_it_does() {
    let mut bare = bare().await;
    bare.say.send(Ok(hello(0))).await.unwrap();
    let publish = |mtu| {
        let desired = DesiredState { mtu, replica: REPLICA.into(), ..DesiredState::default() };
        bare.memory.fleet.publish(std::time::SystemTime::now(), &gateway(), REPLICA, desired);
    };
    for mtu in 1300..1400 {
        publish(mtu);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut heard = vec![];
    while let Ok(Some(message)) = timeout(Duration::from_secs(1), bare.hear.recv()).await {
        let Some(operator_message::Message::Desired(desired)) = message.unwrap().message else { panic!() };
        heard.push(desired.mtu);
    }
    assert_eq!(heard.last(), Some(&1399));
    assert!(heard.len() <= 3, "{heard:?}");
}

#[tokio::test]
async fn a_caller_is_known_before_its_message_is_read_and_a_call_is_small() {
    let operator = Operator::start().await;
    operator.publish(1400);
    let code = |token: &'static str, bytes: usize| {
        let request = with_token(token, IssueServerCertificateRequest { csr: vec![0; bytes] });
        let operator = &operator;
        async move { operator.client().await.issue_server_certificate(request).await.unwrap_err().code() }
    };
    assert_eq!(code("token-of-nobody", super::LARGEST_CALL * 4).await, Code::Unauthenticated);
    assert_eq!(code(TOKEN, super::LARGEST_CALL * 4).await, Code::OutOfRange);
    assert_eq!(code(TOKEN, 9).await, Code::InvalidArgument);
}
