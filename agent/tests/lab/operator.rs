//! An operator of a few clients, in the test's own process but in the gateway's namespace.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use futures::Stream;
use nix::sched::{CloneFlags, setns};
use pinhole_agent::{
    identity::{
        JoinString, SessionKey,
        dial::{Dialer, Liveness},
    },
    tunnel::{PrivateKey, PublicKey},
};
use pinhole_proto::{CATEGORY_METADATA, OPERATOR_SERVER_NAME, gateway_server_name, v1};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData as _, SanType,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Identity, Server, ServerTlsConfig},
};
use v1::client_session_client::ClientSessionClient;
use v1::gateway_link_server::{GatewayLink, GatewayLinkServer};

const PORT: u16 = 8443;
const TOKEN: &str = "a-projected-token";
const NAMESPACE: &str = "branch";
const GATEWAY: &str = "edge";
const POOL: &str = "laptops";

pub(crate) struct Operator {
    inner: Arc<Inner>,
    namespace: String,
    directory: PathBuf,
    stop: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Reports = Arc<Mutex<HashMap<String, v1::ClientReport>>>;

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    desired: watch::Sender<v1::DesiredState>,
    reports: Reports,
    impairments: Arc<Mutex<Vec<v1::Impairment>>>,
    enrolments: Mutex<u32>,
    /// Inner addresses of who enrols.
    addresses: Mutex<Vec<String>>,
    /// How long a client's certificate lives, where a test is about that.
    life: Mutex<Option<Duration>>,
    /// Public keys that clients asked certificates for, the first one at the enrolment.
    session_keys: Mutex<Vec<Vec<u8>>>,
    /// Certificates given for the keys of an enrolment before.
    by_keys: Mutex<u32>,
    /// How long a gateway's certificate lives, where a test is about that.
    server_life: Mutex<Option<Duration>>,
    server_certificates: Mutex<u32>,
}

fn object(name: &str) -> v1::ObjectRef {
    v1::ObjectRef { namespace: NAMESPACE.into(), name: name.into(), uid: format!("uid-of-{name}") }
}

impl Operator {
    pub(crate) fn start(namespace: &str, directory: &Path) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);

        let key = PrivateKey::generate().unwrap();
        let keys = directory.join("keys");
        std::fs::create_dir(&keys).unwrap();
        std::fs::write(keys.join("edge-0.key"), key.to_base64().as_bytes()).unwrap();
        std::fs::write(directory.join("ca.crt"), &ca_pem).unwrap();
        std::fs::write(directory.join("token"), TOKEN).unwrap();

        let desired = v1::DesiredState {
            revision: 1,
            gateway: Some(object(GATEWAY)),
            replica: "edge-0".into(),
            replicas: vec![v1::GatewayReplica {
                name: "edge-0".into(),
                public_key: key.public().as_bytes().to_vec(),
                tunnel_endpoints: vec!["192.0.2.1:51820".into()],
                session_endpoints: vec!["192.0.2.1:51821".into()],
                tunnel_addresses: vec!["10.77.0.1".into()],
            }],
            tunnel_addresses: vec!["10.77.0.1/16".into()],
            mtu: 1420,
            access: v1::NetworkAccess::Masquerade.into(),
            pools: vec![v1::Pool {
                pool: Some(object(POOL)),
                cidrs: vec!["10.77.0.0/16".into()],
                routes: vec!["10.50.0.0/24".into()],
                client_to_client: Some(false),
                ..Default::default()
            }],
            ca_pem: ca_pem.clone(),
            ..Default::default()
        };
        let inner = Arc::new(Inner {
            issuer,
            ca_pem,
            desired: watch::channel(desired).0,
            reports: Reports::default(),
            impairments: Arc::default(),
            enrolments: Mutex::default(),
            addresses: Mutex::new(vec!["10.77.0.9/32".into()]),
            life: Mutex::default(),
            session_keys: Mutex::default(),
            by_keys: Mutex::default(),
            server_life: Mutex::default(),
            server_certificates: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let thread = serve(Arc::clone(&inner), namespace, stop.clone());
        Operator {
            inner,
            namespace: namespace.to_owned(),
            directory: directory.to_owned(),
            stop,
            thread: Mutex::new(Some(thread)),
        }
    }

    pub(crate) fn url() -> String {
        format!("https://127.0.0.1:{PORT}")
    }

    pub(crate) fn ca_pem(&self) -> &str {
        &self.inner.ca_pem
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.directory.join("token")
    }

    pub(crate) fn key_directory(&self) -> PathBuf {
        self.directory.join("keys")
    }

    pub(crate) fn join(&self, secret: &str, endpoint: &str) -> String {
        self.join_by(secret, &[endpoint])
    }

    /// The same with more than one way to the gateway.
    pub(crate) fn join_by(&self, secret: &str, endpoints: &[&str]) -> String {
        let join = JoinString {
            v: 1,
            ns: NAMESPACE.into(),
            pool: POOL.into(),
            token: "first".into(),
            secret: secret.into(),
            server_name: gateway_server_name(NAMESPACE, GATEWAY),
            endpoints: endpoints.iter().map(|&endpoint| endpoint.into()).collect(),
            ca: self.inner.ca_pem.clone(),
        };
        join.encode().unwrap().to_string()
    }

    /// Whether the gateway ever told of such an impairment, in these words.
    pub(crate) fn heard_of(&self, category: &str, words: &str) -> bool {
        let heard = self.inner.impairments.lock().unwrap();
        heard.iter().any(|heard| heard.category == category && heard.message.contains(words))
    }

    pub(crate) fn reported(&self, client: &str) -> Option<v1::ClientReport> {
        self.inner.reports.lock().unwrap().get(client).cloned()
    }

    pub(crate) fn enrolments(&self) -> u32 {
        *self.inner.enrolments.lock().unwrap()
    }

    /// Gives who enrols one more inner address, before all others.
    pub(crate) fn give(&self, address: &str) {
        self.inner.addresses.lock().unwrap().insert(0, address.to_owned());
    }

    /// Has clients renew their certificates so often. `None`: never.
    pub(crate) fn certificates_live_for(&self, life: impl Into<Option<Duration>>) {
        *self.inner.life.lock().unwrap() = life.into();
    }

    /// The next certificates of gateways end then.
    pub(crate) fn server_certificates_live_for(&self, life: Duration) {
        *self.inner.server_life.lock().unwrap() = Some(life);
    }

    /// How many certificates were given for the keys of an enrolment before.
    pub(crate) fn certificates_by_keys(&self) -> u32 {
        *self.inner.by_keys.lock().unwrap()
    }

    /// Public keys that clients asked certificates for.
    pub(crate) fn session_keys(&self) -> Vec<Vec<u8>> {
        self.inner.session_keys.lock().unwrap().clone()
    }

    /// Says that the client's right to connect ends then. Yields the revision that says so.
    pub(crate) fn end(&self, client: &str, at: SystemTime) -> u64 {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            for peer in desired.peers.iter_mut().filter(|peer| peer.client == Some(object(client))) {
                peer.not_after = Some(at.into());
            }
        });
        self.inner.desired.borrow().revision
    }

    /// Asks the gateway for a challenge, as anybody can.
    pub(crate) fn challenge(&self) -> v1::EnrolmentChallenge {
        self.call(async |client| client.challenge(v1::ChallengeRequest {}).await).unwrap().into_inner()
    }

    /// Asks the gateway to enrol, and yields the category of its refusal.
    pub(crate) fn refusal(&self, request: v1::EnrolRequest) -> String {
        let refused = self.call(async |client| client.enrol(request).await).unwrap_err();
        refused.metadata().get(CATEGORY_METADATA).unwrap().to_str().unwrap().to_owned()
    }

    /// A request of the holder of a good token, for whatever key.
    pub(crate) fn request(&self, key: PublicKey) -> v1::EnrolRequest {
        let join = v1::JoinCredential { token: "first".into(), secret: "secret".into() };
        let pool = self.inner.desired.borrow().pools[0].pool.clone().unwrap();
        v1::EnrolRequest {
            credential: Some(v1::enrol_request::Credential::Join(join)),
            pool_namespace: pool.namespace,
            pool: pool.name,
            public_key: key.as_bytes().to_vec(),
            csr: SessionKey::generate().unwrap().request().unwrap(),
            hostname: "laptop".into(),
            proof: None,
        }
    }

    fn call<T: Send>(
        &self,
        call: impl AsyncFnOnce(&mut ClientSessionClient<Channel>) -> Result<T, Status> + Send,
    ) -> Result<T, Status> {
        let dialer = Dialer {
            server_name: gateway_server_name(NAMESPACE, GATEWAY),
            ca_pem: self.inner.ca_pem.clone(),
            proof: None,
            fwmark: None,
            liveness: Liveness::Pinged,
        };
        self.in_gateway(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let gateway = dialer.connect(&["192.0.2.1:51821".to_owned()]).await.unwrap();
                call(&mut ClientSessionClient::new(gateway.channel)).await
            })
        })
    }

    pub(crate) fn server_certificates(&self) -> u32 {
        *self.inner.server_certificates.lock().unwrap()
    }

    pub(crate) fn add_pool(&self, name: &str) {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            let cidrs = vec!["10.78.0.0/16".into()];
            desired.pools.push(v1::Pool {
                pool: Some(object(name)),
                cidrs,
                client_to_client: Some(false),
                ..Default::default()
            });
        });
    }

    /// Changes what the gateway is told.
    pub(crate) fn change(&self, change: impl FnOnce(&mut v1::DesiredState)) {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            change(desired);
        });
    }

    /// Lets a client without an agent connect, with this key and these addresses, each with its prefix.
    pub(crate) fn add_stock(&self, name: &str, public_key: &[u8; 32], addresses: &[&str]) {
        self.change(|desired| {
            desired.peers.push(v1::Peer {
                client: Some(object(name)),
                public_key: public_key.to_vec(),
                addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
                stock_keepalive: Some(prost_types::Duration { seconds: 25, nanos: 0 }),
                ..Default::default()
            });
        });
    }

    /// The gateway's public key.
    pub(crate) fn gateway_key(&self) -> String {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.encode(&self.inner.desired.borrow().replicas[0].public_key)
    }

    /// Says that clients reach the gateway's tunnel here.
    pub(crate) fn expose(&self, endpoint: &str) {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            for replica in &mut desired.replicas {
                replica.tunnel_endpoints = vec![endpoint.into()];
            }
        });
    }

    /// A keepalive that learns nothing, and by what idle clients are to be reached.
    pub(crate) fn standby(&self, keepalive: Duration, standby: v1::keepalive_policy::Standby) {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            desired.pools[0].keepalive = Some(v1::KeepalivePolicy {
                mode: v1::keepalive_policy::Mode::Fixed.into(),
                interval: keepalive.try_into().ok(),
                standby: standby.into(),
                ..Default::default()
            });
        });
    }

    pub(crate) fn remove(&self, client: &str) {
        self.inner.desired.send_modify(|desired| {
            desired.revision += 1;
            desired.peers.retain(|peer| peer.client != Some(object(client)));
        });
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }

    /// Makes sockets in the gateway's namespace.
    pub(crate) fn binding_in_gateway(&self) -> Arc<pinhole_reception::hostile::Bind> {
        let namespace = self.namespace.clone();
        Arc::new(move |address| {
            let bind = || {
                enter(&namespace);
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind((address, 0).into()).map(|()| socket)
            };
            std::thread::scope(|scope| scope.spawn(bind).join().unwrap())
        })
    }

    /// Runs something in the gateway's namespace.
    pub(crate) fn in_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace, work)
    }
}

/// Runs something in a namespace.
pub(crate) fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(namespace);
                work()
            })
            .join()
            .unwrap()
    })
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop();
    }
}

fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

fn serve(inner: Arc<Inner>, namespace: &str, stop: CancellationToken) -> JoinHandle<()> {
    let namespace = namespace.to_owned();
    std::thread::spawn(move || {
        enter(&namespace);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![OPERATOR_SERVER_NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &inner.issuer).unwrap().pem();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key.serialize_pem()));
        runtime.block_on(async {
            let service =
                Server::builder().tls_config(tls).unwrap().add_service(GatewayLinkServer::from_arc(inner));
            let address = ([127, 0, 0, 1], PORT).into();
            tokio::select! {
                served = service.serve(address) => served.unwrap(),
                // Streams end at once, as when the process is killed.
                () = stop.cancelled() => {}
            }
        });
    })
}

impl Inner {
    fn sign(
        &self,
        csr: Vec<u8>,
        name: SanType,
        usage: ExtendedKeyUsagePurpose,
        life: Option<Duration>,
    ) -> v1::IssuedCertificate {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        request.params.subject_alt_names = vec![name];
        request.params.extended_key_usages = vec![usage];
        if let Some(life) = life {
            request.params.not_before = SystemTime::now().into();
            request.params.not_after = (SystemTime::now() + life).into();
        }
        let chain_pem = request.signed_by(&self.issuer).unwrap().pem();
        v1::IssuedCertificate { chain_pem, ca_pem: self.ca_pem.clone(), not_after: None }
    }

    /// The answer to a client that may connect.
    fn enrolled(&self, csr: Vec<u8>, client: &v1::ObjectRef) -> v1::EnrolResponse {
        let desired = self.desired.borrow();
        let own = desired.peers.iter().rfind(|peer| peer.client.as_ref() == Some(client));
        let config = v1::ClientConfig {
            revision: desired.revision,
            client: Some(client.clone()),
            addresses: own.map(|peer| peer.addresses.clone()).unwrap_or_default(),
            routes: desired.pools[0].routes.clone(),
            mtu: 1420,
            replicas: desired.replicas.clone(),
            dns_servers: desired.pools[0].dns_servers.clone(),
            dns_search: desired.pools[0].dns_search.clone(),
            ..Default::default()
        };
        let certificate = Some(self.client_certificate(csr, client));
        v1::EnrolResponse { certificate, config: Some(config) }
    }

    /// As the operator has it: both keys are those of the enrolment.
    fn by_keys(&self, request: v1::EnrolRequest) -> Result<Response<v1::EnrolResponse>, Status> {
        let csr = CertificateSigningRequestParams::from_der(&request.csr.clone().into()).unwrap();
        let session_key = csr.public_key.der_bytes().to_vec();
        let peer = |peer: &v1::Peer| peer.public_key == request.public_key;
        if !self.desired.borrow().peers.iter().any(peer) {
            return Err(refuse("ClientDeleted"));
        }
        if !self.session_keys.lock().unwrap().contains(&session_key) {
            return Err(refuse("SessionKeyChanged"));
        }
        *self.by_keys.lock().unwrap() += 1;
        Ok(Response::new(self.enrolled(request.csr, &object("laptop"))))
    }

    fn client_certificate(&self, csr: Vec<u8>, client: &v1::ObjectRef) -> v1::IssuedCertificate {
        let uri = format!("pinhole://{}/{}/{}", client.namespace, client.name, client.uid);
        let request = CertificateSigningRequestParams::from_der(&csr.clone().into()).unwrap();
        self.session_keys.lock().unwrap().push(request.public_key.der_bytes().to_vec());
        let life = *self.life.lock().unwrap();
        self.sign(csr, SanType::URI(uri.try_into().unwrap()), ExtendedKeyUsagePurpose::ClientAuth, life)
    }
}

fn authorised<T>(request: &Request<T>) -> Result<(), Status> {
    let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if bearer == Some(&format!("Bearer {TOKEN}")) { Ok(()) } else { Err(Status::unauthenticated("no")) }
}

fn refuse(category: &'static str) -> Status {
    let mut status = Status::new(Code::FailedPrecondition, "");
    status.metadata_mut().insert(CATEGORY_METADATA, MetadataValue::from_static(category));
    status
}

#[tonic::async_trait]
impl GatewayLink for Inner {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::OperatorMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::GatewayMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        authorised(&request)?;
        let mut incoming = request.into_inner();
        let hello = incoming.message().await?;
        assert!(matches!(
            hello,
            Some(v1::GatewayMessage { message: Some(v1::gateway_message::Message::Hello(_)) })
        ));
        let (sender, messages) = mpsc::channel(4);
        let mut desired = self.desired.subscribe();
        desired.mark_changed();
        tokio::spawn(async move {
            while desired.changed().await.is_ok() {
                let desired = desired.borrow_and_update().clone();
                let message = v1::operator_message::Message::Desired(desired);
                if sender.send(Ok(v1::OperatorMessage { message: Some(message) })).await.is_err() {
                    return;
                }
            }
        });
        let reports = Arc::clone(&self.reports);
        let impairments = Arc::clone(&self.impairments);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(v1::gateway_message::Message::Report(report)) = message.message {
                    impairments.lock().unwrap().extend(report.impairments);
                    let mut reports = reports.lock().unwrap();
                    reports.extend(report.clients.into_iter().map(|c| (c.client.clone().unwrap().name, c)));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn issue_server_certificate(
        &self,
        request: Request<v1::IssueServerCertificateRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        authorised(&request)?;
        *self.server_certificates.lock().unwrap() += 1;
        let name = SanType::DnsName(gateway_server_name(NAMESPACE, GATEWAY).try_into().unwrap());
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let life = *self.server_life.lock().unwrap();
        Ok(Response::new(self.sign(request.into_inner().csr, name, usage, life)))
    }

    async fn relay_enrol(
        &self,
        request: Request<v1::RelayEnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        authorised(&request)?;
        let request = request.into_inner();
        assert!(request.key_proven, "a gateway relays nothing else");
        let request = request.request.unwrap();
        if let Some(v1::enrol_request::Credential::Keys(_)) = request.credential {
            return self.by_keys(request);
        }
        let secret = match request.credential {
            Some(v1::enrol_request::Credential::Join(join)) => join.secret,
            Some(v1::enrol_request::Credential::ServiceAccountToken(token)) if token == TOKEN => {
                "secret".into()
            }
            _ => return Err(refuse("TokenInvalid")),
        };
        match secret.as_str() {
            "secret" => {}
            "expired" => return Err(refuse("TokenExpired")),
            "used-up" => return Err(refuse("TokenUsedUp")),
            "revoked" => return Err(refuse("TokenRevoked")),
            "exhausted" => return Err(refuse("PoolExhausted")),
            _ => return Err(refuse("TokenInvalid")),
        }
        *self.enrolments.lock().unwrap() += 1;
        // The second machine of a test about two.
        let is_twin = request.hostname == "twin";
        let client = object(if is_twin { "twin" } else { "laptop" });
        let addresses =
            if is_twin { vec!["10.77.0.10/32".into()] } else { self.addresses.lock().unwrap().clone() };
        self.desired.send_modify(|desired| {
            desired.revision += 1;
            desired.peers.push(v1::Peer {
                client: Some(client.clone()),
                public_key: request.public_key,
                addresses,
                ..Default::default()
            });
        });
        Ok(Response::new(self.enrolled(request.csr, &client)))
    }

    async fn relay_renew(
        &self,
        request: Request<v1::RelayRenewRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        authorised(&request)?;
        let request = request.into_inner();
        Ok(Response::new(self.client_certificate(request.csr, &request.client.unwrap())))
    }
}
