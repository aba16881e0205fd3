//! The stream to the operator: desired state down, reports up. Lost and found again without end; the tunnel does
//! not depend on it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pinhole_proto::{OPERATOR_SERVER_NAME, v1};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};
use v1::gateway_link_client::GatewayLinkClient;
use zeroize::Zeroizing;

use super::{
    GatewayError,
    command::Command,
    tls::{ServerTls, server_config},
};
use crate::{
    entropy,
    identity::{
        IdentityError, SessionKey, Store, certificate,
        dial::{Dialer, Liveness},
    },
    tunnel::PublicKey,
};

const BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A standby operator says so at once; the next connection may reach the leader.
const STANDBY_RETRY: Duration = Duration::from_millis(500);
/// A stream that lived so long was no failed attempt.
const STABLE: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CERTIFICATE_RETRY: Duration = Duration::from_secs(15);
/// A snapshot of 100 000 clients is about 20 MB.
const LARGEST_MESSAGE: usize = 64 << 20;
/// The operator's answer to a relayed call, with a client's configuration and certificate.
const LARGEST_ANSWER: usize = 1 << 20;
/// Messages that wait for the stream.
const OUTBOX: usize = 8;

const SESSION: &str = "session.pem";
/// Between key, chain and CA bundle.
const SEPARATOR: &str = "\n#\n";

/// Where the operator is, and what is shown to it.
#[derive(Debug, Clone)]
pub struct OperatorAccess {
    /// `host:port`.
    pub endpoint: String,
    /// The CA bundle, a file that is read again for each connection.
    pub ca_file: PathBuf,
    /// The projected ServiceAccount token, a file that is read again for each call.
    pub token_file: PathBuf,
}

impl OperatorAccess {
    async fn connect(&self) -> Result<GatewayLinkClient<Channel>, GatewayError> {
        let ca_pem = read(&self.ca_file)?;
        let dialer = Dialer {
            server_name: OPERATOR_SERVER_NAME.to_owned(),
            ca_pem,
            proof: None,
            fwmark: None,
            liveness: Liveness::Pinged,
        };
        let operator = dialer.connect(std::slice::from_ref(&self.endpoint)).await?;
        Ok(GatewayLinkClient::new(operator.channel)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE))
    }

    /// A request that says who is asking.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, GatewayError> {
        let token = read(&self.token_file)?;
        let bearer = format!("Bearer {}", token.trim());
        let mut bearer: MetadataValue<_> = bearer
            .parse()
            .map_err(|_| GatewayError::Setting("the ServiceAccount token is malformed".into()))?;
        bearer.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// The same for a call that must end soon.
    pub(super) fn call<T>(&self, message: T) -> Result<Request<T>, GatewayError> {
        let mut request = self.request(message)?;
        request.set_timeout(CALL_TIMEOUT);
        Ok(request)
    }
}

fn read(path: &PathBuf) -> Result<String, GatewayError> {
    std::fs::read_to_string(path).map_err(|source| IdentityError::Read { path: path.clone(), source }.into())
}

/// A live connection to the leading operator, for relays.
pub(super) type Relay = watch::Receiver<Option<GatewayLinkClient<Channel>>>;

/// Keeps the stream.
pub(super) struct Link {
    /// The operator.
    pub access: OperatorAccess,
    /// What this replica tells of itself.
    pub public_key: PublicKey,
    /// The gateway's control loop.
    pub control: mpsc::Sender<Command>,
    /// The revision that runs, and the client CA of it.
    pub running: watch::Receiver<Running>,
    /// Told when a connection can relay.
    pub relay: watch::Sender<Option<GatewayLinkClient<Channel>>>,
    /// Where the session service takes its TLS from.
    pub tls: Arc<ServerTls>,
    /// Keeps the session certificate.
    pub store: Store,
}

/// What the control loop runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running {
    /// The revision.
    pub revision: u64,
    /// What client certificates chain to.
    pub ca_pem: String,
    /// The gateway's pools: clients inside the cluster know it by a name of their pool.
    pub pools: Vec<v1::ObjectRef>,
    /// Grows when the stream is to be made anew.
    pub lives: u64,
}

impl Link {
    /// Runs until the task is dropped.
    pub(super) async fn run(&self) {
        let mut jitter = entropy::jitter();
        let mut failures = 0;
        let certificate = self.load_certificate();
        let mut certificate = certificate.unwrap_or_else(|error| {
            tracing::warn!(%error, "the kept session certificate is of no use, asking for another");
            None
        });
        self.install(certificate.as_ref());
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.attach(&mut certificate).await;
            self.relay.send_replace(None);
            if self.control.send(Command::LinkDown).await.is_err() {
                return;
            }
            let delay = match &ended {
                Ok(()) => jitter.up_to(STANDBY_RETRY),
                Err(GatewayError::Operator(status)) if status.code() == Code::Unavailable => {
                    jitter.up_to(STANDBY_RETRY)
                }
                Err(_) => {
                    failures = if began.elapsed() > STABLE { 0 } else { failures + 1 };
                    jitter.backoff(BACKOFF, MAX_BACKOFF, failures)
                }
            };
            if let Err(error) = ended {
                tracing::info!(%error, category = error.category(), retry_in = ?delay, "no stream to the operator");
            }
            sleep(delay).await;
        }
    }

    async fn attach(&self, certificate: &mut Option<Certificate>) -> Result<(), GatewayError> {
        let client = self.access.connect().await?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = v1::GatewayHello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.running.borrow().revision,
            public_key: self.public_key.as_bytes().to_vec(),
        };
        let hello = v1::GatewayMessage { message: Some(v1::gateway_message::Message::Hello(hello)) };
        let _ = outbox.try_send(hello);
        let request = self.access.request(ReceiverStream::new(messages))?;
        // The operator answers the head of the stream once it has reviewed the token, or refuses.
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.clone().attach(request)).await;
        let mut stream = answer.map_err(|_| tonic::Status::unavailable("no answer in time"))??.into_inner();
        tracing::info!("attached to the operator");
        self.relay.send_replace(Some(client.clone().max_decoding_message_size(LARGEST_ANSWER)));
        // Before: a control that begins anew from now on does not know this stream.
        let lives = self.running.borrow().lives;
        let _ = self.control.send(Command::LinkUp { outbox }).await;
        let mut running = self.running.clone();
        let renew = |delay| self.renew_after(delay, client.clone());
        let mut renewal = Box::pin(renew(self.renewal_delay(certificate.as_ref())));
        loop {
            tokio::select! {
                message = stream.message() => match message? {
                    Some(v1::OperatorMessage { message: Some(v1::operator_message::Message::Desired(desired)) }) => {
                        if self.control.send(Command::Desired(Box::new(desired))).await.is_err() {
                            return Ok(());
                        }
                    }
                    Some(_) => {}
                    None => return Ok(()),
                },
                Ok(()) = running.changed() => {
                    if running.borrow().lives != lives {
                        return Ok(());
                    }
                    self.install(certificate.as_ref());
                    let pools = running.borrow_and_update().pools.clone();
                    if certificate.as_ref().is_some_and(|certificate| certificate.pools != pools) {
                        renewal.set(renew(Duration::ZERO));
                    }
                }
                issued = &mut renewal => {
                    let delay = match issued {
                        Ok(issued) => {
                            *certificate = Some(issued);
                            self.install(certificate.as_ref());
                            self.renewal_delay(certificate.as_ref())
                        }
                        Err(error) => {
                            tracing::warn!(%error, category = error.category(), "no certificate for client sessions");
                            CERTIFICATE_RETRY
                        }
                    };
                    renewal.set(renew(delay));
                }
            }
        }
    }

    fn renewal_delay(&self, certificate: Option<&Certificate>) -> Duration {
        let Some(certificate) = certificate else { return Duration::ZERO };
        if certificate.pools != self.running.borrow().pools {
            return Duration::ZERO;
        }
        let now = SystemTime::now();
        certificate::validity(&certificate.chain_pem)
            .map_or(Duration::ZERO, |validity| certificate::renewal_delay(now, validity))
            .min(Duration::from_hours(24))
    }

    async fn renew_after(
        &self,
        delay: Duration,
        mut client: GatewayLinkClient<Channel>,
    ) -> Result<Certificate, GatewayError> {
        sleep(delay).await;
        // Before the call: a pool that comes while it is under way asks for another certificate.
        let pools = self.running.borrow().pools.clone();
        let key = SessionKey::generate()?;
        let request = v1::IssueServerCertificateRequest { csr: key.request()? };
        let issued = client.issue_server_certificate(self.access.call(request)?).await?.into_inner();
        // One that cannot be read must not take the place of one that can.
        certificate::validity(&issued.chain_pem)?;
        // One file, so that its parts always match.
        let all = [key.to_pem().as_str(), SEPARATOR, &issued.chain_pem, SEPARATOR, &issued.ca_pem].concat();
        self.store.write(SESSION, Zeroizing::new(all).as_bytes())?;
        let certificate = Certificate { key, chain_pem: issued.chain_pem, ca_pem: issued.ca_pem, pools };
        tracing::info!("got a certificate for client sessions");
        Ok(certificate)
    }

    fn load_certificate(&self) -> Result<Option<Certificate>, GatewayError> {
        let Some(all) = self.store.read_text(SESSION)?.map(Zeroizing::new) else { return Ok(None) };
        let mut parts = all.split(SEPARATOR);
        let (Some(key), Some(chain_pem), Some(ca_pem)) = (parts.next(), parts.next(), parts.next()) else {
            return Ok(None);
        };
        let (_, not_after) = certificate::validity(chain_pem)?;
        if not_after <= SystemTime::now() {
            return Ok(None);
        }
        // For which pools it is good is not kept: with the first stream it is renewed.
        Ok(Some(Certificate {
            key: SessionKey::from_pem(key)?,
            chain_pem: chain_pem.to_owned(),
            ca_pem: ca_pem.to_owned(),
            pools: Vec::new(),
        }))
    }

    fn install(&self, certificate: Option<&Certificate>) {
        let Some(certificate) = certificate else { return };
        let running = self.running.borrow().ca_pem.clone();
        // The desired state's bundle is the newer one; before it came, the certificate's own has to do.
        let ca_pem = if running.is_empty() { &certificate.ca_pem } else { &running };
        match server_config(&certificate.key, &certificate.chain_pem, ca_pem) {
            Ok(config) => self.tls.set(config),
            Err(error) => {
                tracing::error!(%error, category = error.category(), "client sessions keep their old TLS");
            }
        }
    }
}

/// The session service's own.
struct Certificate {
    key: SessionKey,
    chain_pem: String,
    ca_pem: String,
    /// By the names of which pools the gateway can be called.
    pools: Vec<v1::ObjectRef>,
}
