//! One replica's stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::{Stream, StreamExt as _};
use pinhole_proto::v1::{
    DesiredState, GatewayHello, GatewayMessage, OperatorMessage, gateway_message::Message as FromGateway,
    operator_message::Message as ToGateway,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{authenticate::Authenticator, report, status};
use crate::{
    fleet::{Attachment, Fleet, GatewayKey},
    identity::ReplicaIdentity,
};

/// How long a replica may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the token of an open stream is reviewed again: it ends when its pod is gone.
const REVIEW_EVERY: Duration = Duration::from_mins(1);

/// A stream ends, in peace, after between one and two of this; the replica comes back with a fresh token, which
/// otherwise would end after ten minutes, and replicas spread over operators.
const AGE: Duration = Duration::from_mins(4);

/// How long a stream may stay without anything being published for it.
const UNKNOWN_FOR: Duration = Duration::from_mins(1);

/// What a stream needs.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) fleet: Arc<Fleet>,
    pub(super) authenticator: Authenticator,
    pub(super) leading: watch::Receiver<bool>,
    pub(super) stop: CancellationToken,
    /// The stream of each replica, to end an older one when a newer comes.
    current: Arc<Mutex<HashMap<(GatewayKey, String), CancellationToken>>>,
}

/// Who speaks on a stream, and with which token.
pub(super) struct Speaker {
    pub(super) caller: ReplicaIdentity,
    pub(super) token: String,
}

type Outbox = mpsc::Sender<Result<OperatorMessage, Status>>;

impl Streams {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        authenticator: Authenticator,
        leading: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        Self { fleet, authenticator, leading, stop, current: Arc::default() }
    }

    /// Carries one stream to its end.
    pub(super) async fn serve(
        self,
        speaker: Speaker,
        messages: impl Stream<Item = Result<GatewayMessage, Status>> + Send + Unpin,
        outbox: Outbox,
    ) {
        let key = (
            GatewayKey::new(&speaker.caller.namespace, &speaker.caller.gateway),
            speaker.caller.replica.clone(),
        );
        let superseded = CancellationToken::new();
        if let Some(older) = self.lock().insert(key.clone(), superseded.clone()) {
            older.cancel();
        }
        let ended = tokio::select! {
            ended = self.carry(&key.0, &speaker, messages, &outbox) => ended,
            () = superseded.cancelled() =>
                Err(status::status(Code::Aborted, "Superseded", "the replica opened another stream")),
        };
        if !superseded.is_cancelled() {
            self.lock().remove(&key);
        }
        match &ended {
            Ok(()) => tracing::debug!(gateway = %key.0, replica = key.1, "stream ended"),
            Err(error) => {
                tracing::info!(gateway = %key.0, replica = key.1, code = error.code().description(), reason = error.message(), "stream ended");
            }
        }
        if let Err(error) = ended {
            // A replica that does not read cannot be told.
            let _ = timeout(Duration::from_secs(1), outbox.send(Err(error))).await;
        }
    }

    async fn carry(
        &self,
        gateway: &GatewayKey,
        speaker: &Speaker,
        mut messages: impl Stream<Item = Result<GatewayMessage, Status>> + Send + Unpin,
        outbox: &Outbox,
    ) -> Result<(), Status> {
        let hello = hello(&mut messages).await?;
        let replica = &speaker.caller.replica;
        let version = report::printable(&hello.version);
        tracing::info!(%gateway, replica, version, revision = hello.revision, node = speaker.caller.node, "replica attached");
        let mut desired = self.fleet.desired(gateway, replica);
        let attachment = self.fleet.attached(gateway, replica, hello.revision, Instant::now());
        // What was published before this stream is news to it as well.
        desired.mark_changed();
        let mut leading = self.leading.clone();
        let unknown = sleep(UNKNOWN_FOR);
        let age = sleep(spread(AGE));
        // Beside the rest: while the API server takes its time, the replica is heard and told.
        let doubted = self.doubted(speaker);
        tokio::pin!(unknown, age, doubted);
        let mut told = Told { revision: hello.revision, is_fresh: false };
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    None => return Ok(()),
                    Some(message) => hear(&attachment, gateway, message?)?,
                },
                permit = outbox.reserve(), if told.is_fresh => {
                    let permit = permit.map_err(|_| Status::cancelled("the replica is gone"))?;
                    told.is_fresh = false;
                    let state = desired.borrow_and_update().clone();
                    if let Some(state) = state.filter(|s| s.revision != told.revision) {
                        told.revision = state.revision;
                        let message = ToGateway::Desired(DesiredState::clone(&state));
                        permit.send(Ok(OperatorMessage { message: Some(message) }));
                    }
                }
                changed = next_desired(&mut desired, &hello), if !told.is_fresh => {
                    changed?;
                    told.is_fresh = true;
                }
                () = &mut doubted => {
                    return Err(status::status(
                        Code::Unauthenticated,
                        "CredentialInvalid",
                        "the pod is gone or its token ended; connect again with a fresh one",
                    ));
                }
                () = &mut unknown => {
                    if desired.borrow().is_none() {
                        return Err(status::status(
                            Code::NotFound,
                            "GatewayNotFound",
                            format!("there is nothing for replica {replica} of VPNGateway {gateway} to do"),
                        ));
                    }
                    unknown.set(sleep(UNKNOWN_FOR));
                }
                () = &mut age => return Ok(()),
                () = lost_lead(&mut leading) => return Err(status::standby()),
                () = self.stop.cancelled() => return Err(status::stopping()),
            }
        }
    }

    /// Ends once the speaker's token is not good any more.
    async fn doubted(&self, speaker: &Speaker) {
        let mut reviews = interval(REVIEW_EVERY);
        reviews.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reviews.reset();
        loop {
            reviews.tick().await;
            if !self.authenticator.is_current(&speaker.token, &speaker.caller).await {
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(GatewayKey, String), CancellationToken>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the replica was told.
struct Told {
    revision: u64,
    /// There is something newer.
    is_fresh: bool,
}

async fn hello(
    messages: &mut (impl Stream<Item = Result<GatewayMessage, Status>> + Unpin),
) -> Result<GatewayHello, Status> {
    let invalid = |message| status::status(Code::InvalidArgument, "RequestInvalid", message);
    let first = timeout(HELLO_TIMEOUT, messages.next())
        .await
        .map_err(|_| status::status(Code::DeadlineExceeded, "HelloMissing", "no hello within 10 s"))?;
    let Some(message) = first.transpose()? else {
        return Err(invalid("the stream ended before hello"));
    };
    let Some(FromGateway::Hello(hello)) = message.message else {
        return Err(invalid("the first message must be hello"));
    };
    if hello.public_key.len() != 32 {
        return Err(invalid("hello.public_key must be 32 bytes"));
    }
    Ok(hello)
}

pub(super) fn hear(
    attachment: &Attachment,
    gateway: &GatewayKey,
    message: GatewayMessage,
) -> Result<(), Status> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match message.message {
        Some(FromGateway::Report(report)) => {
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            attachment.report(report::accepted(report, &gateway.namespace, now), Instant::now());
        }
        Some(FromGateway::Ack(ack)) => attachment.acked(report::accepted_ack(ack), Instant::now()),
        Some(FromGateway::Hello(_)) => {
            return Err(status::status(Code::InvalidArgument, "RequestInvalid", "hello was said before"));
        }
        // A message of a newer protocol.
        None => {}
    }
    Ok(())
}

/// Waits for something to tell. A replica that runs with another key than the one that its clients know would
/// never hear them.
async fn next_desired(
    desired: &mut watch::Receiver<Option<Arc<DesiredState>>>,
    hello: &GatewayHello,
) -> Result<(), Status> {
    let ended = |_| status::status(Code::NotFound, "GatewayNotFound", "the gateway was deleted");
    desired.changed().await.map_err(ended)?;
    let known = desired.borrow().as_ref().and_then(|d| {
        let own = d.replicas.iter().find(|r| r.name == d.replica)?;
        Some(own.public_key.clone())
    });
    match known {
        Some(known) if !known.is_empty() && known != hello.public_key => Err(status::status(
            Code::FailedPrecondition,
            "KeyMismatch",
            "this replica's WireGuard key is not the one that its clients are told; restart the pod to mount its key anew",
        )),
        _ => Ok(()),
    }
}

async fn lost_lead(leading: &mut watch::Receiver<bool>) {
    // A closed channel says that the operator ends, which `stop` tells.
    if leading.wait_for(|leads| !leads).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Between one and two of `base`.
fn spread(base: Duration) -> Duration {
    let mut random = [0; 1];
    if SystemRandom::new().fill(&mut random).is_err() {
        return base;
    }
    base + base * u32::from(random[0]) / 256
}
