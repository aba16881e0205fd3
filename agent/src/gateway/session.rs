//! The service that client agents call: enrolment, renewal, and a stream of configuration.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures::Stream;
use pinhole_proto::{CATEGORY_METADATA, v1};
use pinhole_reception::Caller;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataValue};
use v1::client_session_server::ClientSession;

use super::{
    admission::Admission,
    command::{Command, Opened, Word},
    desired::Desired,
    link::{OperatorAccess, Relay},
    rest::Rest,
    told::{Asked, Instance, Said},
};
use crate::{
    clock::Skew,
    entropy,
    identity::{
        certificate,
        possession::{Challenger, PossessionError},
    },
    nat::wire::{BeatKey, KeyId},
    tunnel::PublicKey,
};

/// How long a first message may take.
const HELLO: Duration = Duration::from_secs(10);
/// How long a client that just enrolled may take to appear in the desired state.
const APPEARANCE: Duration = Duration::from_secs(5);
/// How long a relayed call may take, the wait for a connection to the operator included.
const RELAY: Duration = Duration::from_secs(8);
/// Connections under way at once that clients try for how long they live; each is but a timer.
const SCOUTS: usize = 16_384;
/// Messages that wait for a slow client.
const OUTBOX: usize = 4;
/// How long a client may take to say that it heard: longer than TCP needs to repeat a packet, short enough for another
/// connection within the five seconds that a change may take.
const HEARD: Duration = Duration::from_millis(800);
/// Clients that lost their right and are remembered, so that they are told at once.
const REMEMBERED: usize = 4096;

/// What the control loop runs on, for sessions.
#[derive(Debug, Clone, Default)]
pub(super) struct Served {
    /// The latest snapshot, `None` before there was one.
    pub desired: Option<Arc<Desired>>,
    /// Since when there is a stream to the operator, which keeps the snapshot as new as can be.
    pub attached: Option<Instant>,
    /// Clients that a former snapshot had and this one has not, by their UIDs, the latest last.
    removed: VecDeque<String>,
}

impl Served {
    /// A newer snapshot is in force, without those of its clients that have come to their end.
    pub(super) fn take(&mut self, desired: Arc<Desired>, ended: Vec<String>) {
        self.removed.retain(|uid| !desired.knows(uid));
        let former = self.desired.as_ref().map(|former| former.missing_from(&desired)).unwrap_or_default();
        self.removed.extend(former);
        let ended: Vec<String> = ended.into_iter().filter(|uid| !self.removed.contains(uid)).collect();
        self.removed.extend(ended);
        self.removed.drain(..self.removed.len().saturating_sub(REMEMBERED));
        self.desired = Some(desired);
    }

    fn was_removed(&self, client: &v1::ObjectRef) -> bool {
        self.removed.contains(&client.uid)
    }

    fn is_fresh(&self) -> bool {
        self.attached.is_some_and(|since| since.elapsed() >= APPEARANCE)
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    access: OperatorAccess,
    relay: Relay,
    served: watch::Receiver<Served>,
    control: mpsc::Sender<Command>,
    draining: CancellationToken,
    admission: Admission,
    canaries: Semaphore,
    counter: AtomicU64,
    keys: AtomicU32,
    challenger: Challenger,
}

impl Sessions {
    /// A service over what the control loop publishes.
    pub(super) fn new(
        access: OperatorAccess,
        relay: Relay,
        served: watch::Receiver<Served>,
        control: mpsc::Sender<Command>,
        draining: CancellationToken,
        challenger: Challenger,
    ) -> Self {
        let admission = Admission::default();
        // From where chance has it, so that the numbers of two replicas hardly ever meet at a client.
        let keys = AtomicU32::new((entropy::jitter().next_u64() >> 32) as u32);
        let counter = AtomicU64::new(1);
        let canaries = Semaphore::new(SCOUTS);
        let inner = Inner {
            access,
            relay,
            served,
            control,
            draining,
            admission,
            canaries,
            counter,
            keys,
            challenger,
        };
        Sessions { inner: Arc::new(inner) }
    }
}

/// An error with its category.
pub(super) fn refuse(code: Code, category: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(CATEGORY_METADATA, MetadataValue::from_static(category));
    status
}

impl Inner {
    fn key_id(&self) -> KeyId {
        KeyId(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// A call to the operator in this gateway's name.
    fn authorised<T>(&self, message: T) -> Result<Request<T>, Status> {
        let call = self.access.call(message);
        call.map_err(|error| refuse(Code::Unavailable, "OperatorUnreachable", error.to_string()))
    }

    /// The operator, as soon as one is connected.
    async fn operator(
        &self,
    ) -> Result<v1::gateway_link_client::GatewayLinkClient<tonic::transport::Channel>, Status> {
        let mut relay = self.relay.clone();
        let connected = timeout(RELAY, relay.wait_for(Option::is_some)).await;
        let client = connected.ok().and_then(Result::ok).and_then(|client| client.clone());
        client.ok_or_else(|| {
            refuse(
                Code::Unavailable,
                "OperatorUnreachable",
                "the gateway has no connection to the operator now",
            )
        })
    }

    /// The client's key, once the desired state has it.
    async fn peer_of(&self, client: &v1::ObjectRef) -> Result<PublicKey, Status> {
        let mut served = self.served.clone();
        let find = |served: &Served| {
            served.desired.as_ref().and_then(|desired| desired.peer_of(client).map(|(key, _)| *key))
        };
        let is_settled = |served: &Served| find(served).is_some() || served.was_removed(client);
        let appeared = timeout(APPEARANCE, served.wait_for(is_settled)).await;
        if let Some(key) = appeared.ok().and_then(Result::ok).and_then(|served| find(&served)) {
            return Ok(key);
        }
        let served = self.served.borrow();
        if served.is_fresh() || served.was_removed(client) {
            let message = "this client was deleted or suspended, or it expired";
            return Err(refuse(Code::PermissionDenied, "ClientRemoved", message));
        }
        let message = "the gateway does not know this client yet, and cannot ask the operator now";
        Err(refuse(Code::Unavailable, "OperatorUnreachable", message))
    }

    /// Something passes on a session: a silence that was agreed on begins anew.
    async fn stir(&self, peer: PublicKey, rest: &mut Rest) {
        if let Some(wake_after) = rest.passed(Instant::now()) {
            let _ = self.control.send(Command::SessionStirred { peer, wake_after }).await;
        }
    }

    async fn serve(
        self: Arc<Self>,
        peer: PublicKey,
        client: v1::ObjectRef,
        source: Option<SocketAddr>,
        (hears, instance): (bool, Option<Instance>),
        mut incoming: Streaming<v1::ClientMessage>,
        outbox: mpsc::Sender<Result<v1::SessionMessage, Status>>,
    ) {
        let session = self.counter.fetch_add(1, Ordering::Relaxed);
        let (words, mut said) = mpsc::channel(OUTBOX);
        let id = self.key_id();
        let (key, secret) = entropy::secret().map(|secret| (BeatKey::new(id, &secret), secret)).unzip();
        let opened = Opened { peer, session, key: key.clone(), source, instance, words };
        let _ = self.control.send(Command::SessionOpened(Box::new(opened))).await;
        if let (Some(key), Some(secret)) = (key, secret) {
            let message = v1::BeatKey { id: key.id().0, secret: secret.to_vec() };
            let message = v1::session_message::Message::BeatKey(message);
            let _ = outbox.send(Ok(v1::SessionMessage { message: Some(message) })).await;
        }
        let mut served = self.served.clone();
        let mut sent: Option<v1::ClientConfig> = None;
        // Nothing asks whether the connection lives while there is nothing to say, so a NAT may have forgotten it.
        let mut unheard: Option<(u64, tokio::time::Instant)> = None;
        let mut patience = HEARD;
        let mut rest = Rest::default();
        loop {
            let message = next_message(&served.borrow_and_update(), &client, sent.as_ref());
            match message {
                Next::Nothing => {}
                Next::Config(config) => {
                    sent = Some((*config).clone());
                    patience = HEARD;
                    unheard = hears.then(|| (config.revision, tokio::time::Instant::now() + patience));
                    self.stir(peer, &mut rest).await;
                    let message = v1::session_message::Message::Config(*config);
                    if outbox.send(Ok(v1::SessionMessage { message: Some(message) })).await.is_err() {
                        break;
                    }
                }
                Next::Cut(cut) => {
                    let message = v1::session_message::Message::Cut(cut);
                    let _ = outbox.send(Ok(v1::SessionMessage { message: Some(message) })).await;
                    break;
                }
            }
            tokio::select! {
                changed = served.changed() => if changed.is_err() { break },
                message = incoming.message() => match message {
                    Ok(Some(message)) => {
                        self.stir(peer, &mut rest).await;
                        match Said::from(message) {
                            Said::Heard(told) => {
                                unheard = unheard.filter(|(revision, _)| told < *revision);
                            }
                            Said::Rest(asked) => {
                                rest.take(Instant::now(), asked);
                                let rests = Command::SessionRests { peer, session, asked };
                                let _ = self.control.send(rests).await;
                            }
                            Said::Told(told) => {
                                let _ = self.control.send(Command::SessionTold { peer, told }).await;
                            }
                            Said::Clock(theirs) => {
                                let skew = Skew::between(theirs, SystemTime::now());
                                let clock = Command::SessionClock { peer, session, skew };
                                let _ = self.control.send(clock).await;
                            }
                            Said::Anew => {
                                let _ = self.control.send(Command::SessionAnew { peer, session }).await;
                            }
                            Said::Hello { .. } | Said::Newer => {}
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                () = sleep_until(unheard.map_or_else(tokio::time::Instant::now, |(_, at)| at)), if unheard.is_some() => {
                    patience *= 2;
                    unheard = unheard.map(|(revision, at)| (revision, at + patience));
                    let _ = self.control.send(Command::SessionDoubtful { peer, session }).await;
                }
                () = sleep_until(rest.due().unwrap_or_else(Instant::now).into()), if rest.due().is_some() => {
                    if let Some(seq) = rest.wake(Instant::now()) {
                        let message = v1::session_message::Message::Wake(v1::Wake { seq });
                        let _ = outbox.try_send(Ok(v1::SessionMessage { message: Some(message) }));
                    }
                }
                word = said.recv() => {
                    // The control has another session of this client, or began anew and knows of none.
                    let Some(word) = word else { break };
                    self.stir(peer, &mut rest).await;
                    let message = match word {
                        Word::Poke(initiation) => {
                            let initiation = initiation.unwrap_or_default().into_vec();
                            v1::session_message::Message::Poke(v1::Poke { initiation })
                        }
                        Word::Guidance(guidance) => v1::session_message::Message::Guidance(guidance),
                        Word::KeyShared(shared) => {
                            v1::session_message::Message::KeyShared(v1::KeyShared { shared })
                        }
                        Word::Clock { stale } => {
                            let now = Some(SystemTime::now().into());
                            v1::session_message::Message::Clock(v1::Clock { now, stale })
                        }
                    };
                    // A client that takes nothing is told with the next one.
                    let _ = outbox.try_send(Ok(v1::SessionMessage { message: Some(message) }));
                }
                () = self.draining.cancelled() => {
                    let draining = refuse(Code::Unavailable, "GatewayDraining", "this gateway replica is going away");
                    let _ = outbox.send(Err(draining)).await;
                    break;
                }
                () = outbox.closed() => break,
            }
        }
        let _ = self.control.send(Command::SessionClosed { peer, session }).await;
    }
}

enum Next {
    Nothing,
    Config(Box<v1::ClientConfig>),
    Cut(v1::Cut),
}

/// What a client has to be told, after what it was told last.
fn next_message(served: &Served, client: &v1::ObjectRef, sent: Option<&v1::ClientConfig>) -> Next {
    let Some(desired) = &served.desired else { return Next::Nothing };
    let Some((_, peer)) = desired.peer_of(client) else {
        let message = "this client was deleted or suspended, or it expired".to_owned();
        return Next::Cut(v1::Cut { category: "ClientRemoved".to_owned(), message });
    };
    let config = desired.client_config(peer);
    let same =
        sent.is_some_and(|sent| v1::ClientConfig { revision: config.revision, ..sent.clone() } == config);
    if same { Next::Nothing } else { Next::Config(Box::new(config)) }
}

fn caller<T>(request: &Request<T>) -> Result<v1::ObjectRef, Status> {
    let certificates = request.extensions().get::<Caller>().map(Caller::certificates).unwrap_or_default();
    let leaf = certificates.first().ok_or_else(|| {
        refuse(Code::Unauthenticated, "CertificateMissing", "this call needs the client's certificate")
    })?;
    certificate::client_of(leaf)
        .map_err(|error| refuse(Code::Unauthenticated, "CertificateInvalid", error.to_string()))
}

/// Where a call comes from.
fn source<T>(request: &Request<T>) -> Option<SocketAddr> {
    request.extensions().get::<Caller>().map(Caller::source)
}

#[tonic::async_trait]
impl ClientSession for Sessions {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::SessionMessage, Status>> + Send>>;

    async fn challenge(
        &self,
        _: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::EnrolmentChallenge>, Status> {
        Ok(Response::new(self.inner.challenger.challenge(Instant::now())))
    }

    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let from = source(&request).map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |source| source.ip());
        let request = request.into_inner();
        self.inner.challenger.check(Instant::now(), &request).map_err(unproven)?;
        let mut turn = self.inner.admission.enrols(from, &request).await?;
        let relayed = v1::RelayEnrolRequest { request: Some(request), key_proven: true };
        let mut operator = self.inner.operator().await?;
        let relayed = self.inner.authorised(relayed)?;
        let response =
            turn.answered(operator.relay_enrol(relayed).await).map_err(|status| relayed_error(&status))?;
        let client = response.get_ref().config.as_ref().and_then(|config| config.client.clone());
        // The client's first handshake comes within a round trip of this answer.
        if let Some(client) = client {
            let _ = self.inner.peer_of(&client).await;
        }
        Ok(Response::new(response.into_inner()))
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let client = caller(&request)?;
        let peer = self.inner.peer_of(&client).await?;
        let source = source(&request);
        let mut incoming = request.into_inner();
        let hello = timeout(HELLO, incoming.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(Said::Hello { hears, instance }) = hello.map(Said::from) else {
            return Err(Status::invalid_argument("a session begins with a hello"));
        };
        let (outbox, messages) = mpsc::channel(OUTBOX);
        tokio::spawn(Arc::clone(&self.inner).serve(
            peer,
            client,
            source,
            (hears, instance),
            incoming,
            outbox,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn scout(&self, request: Request<v1::Rest>) -> Result<Response<v1::Wake>, Status> {
        let client = caller(&request)?;
        let Ok(_permit) = self.inner.canaries.try_acquire() else {
            let message = "too many connections are being tried now";
            return Err(refuse(Code::ResourceExhausted, "ScoutsBusy", message));
        };
        self.inner.peer_of(&client).await?;
        let asked = Asked::from(&request.into_inner());
        tokio::select! {
            () = sleep(asked.wake_after) => Ok(Response::new(v1::Wake { seq: asked.seq })),
            () = self.inner.draining.cancelled() => {
                Err(refuse(Code::Unavailable, "GatewayDraining", "this gateway replica is going away"))
            }
        }
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        let client = caller(&request)?;
        self.inner.admission.renews(&client.uid)?;
        let relayed = v1::RelayRenewRequest { client: Some(client), csr: request.into_inner().csr };
        let mut operator = self.inner.operator().await?;
        let relayed = self.inner.authorised(relayed)?;
        let issued = operator.relay_renew(relayed).await.map_err(|status| relayed_error(&status))?;
        Ok(Response::new(issued.into_inner()))
    }
}

/// Nobody is enrolled under a key that may be somebody else's.
fn unproven(error: PossessionError) -> Status {
    let code = match error {
        PossessionError::Missing => Code::FailedPrecondition,
        PossessionError::Expired => Code::Aborted,
        PossessionError::Refuted => Code::Unauthenticated,
    };
    refuse(code, error.category(), error.to_string())
}

/// The operator's refusal, with its category and nothing else of its metadata.
fn relayed_error(status: &Status) -> Status {
    let mut relayed = Status::new(status.code(), status.message());
    let category = status.metadata().get(CATEGORY_METADATA).cloned();
    let unreachable = MetadataValue::from_static("OperatorUnreachable");
    let category = category.or_else(|| (status.code() == Code::Unavailable).then_some(unreachable));
    if let Some(category) = category {
        relayed.metadata_mut().insert(CATEGORY_METADATA, category);
    }
    relayed
}
