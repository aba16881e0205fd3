//! The stream to a gateway: configuration down, the own state up, and the certificate renewed. Lost and found
//! again without end; the tunnel does not depend on it.
//!
//! It is silent unless it has something to say: nothing asks whether the connection lives. What is said is the question,
//! and TCP's acknowledgement the answer; the gateway, whose words may meet a NAT that has forgotten the connection, recalls
//! the client over UDP.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pinhole_proto::{category_of, v1};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, transport::Channel};
use v1::client_session_client::ClientSessionClient;

use super::{
    ClientError,
    heard::{self, Clock, Heard},
};
use crate::{
    clock::{self, Clocks},
    entropy,
    identity::{
        Names, SessionKey, certificate,
        dial::{DialError, Dialed, Dialer, Liveness, Proof},
    },
    nat::{Guidance, Radio, standby::Ended, wire::BeatKey},
    tunnel::PublicKey,
};

const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// A stream that lived so long was no failed attempt.
const STABLE: Duration = Duration::from_secs(5);
/// Beside a tunnel that works, so many failures in a row let further attempts wait for the next wake-up that happens anyway,
/// and come ever less often: the session's port may be closed for good.
const PERSISTENT: u32 = 8;
const RIDING_CAP: Duration = Duration::from_mins(30);
/// After a recall: what the gateway said before may still be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// A session that carried something so lately is asked first, by saying something: a gateway that tells ten thousand clients
/// at once hears some of them late, and must not have them all connect again. The second recall counts.
const LATELY: Duration = Duration::from_secs(10);
/// How soon the gateway ends the stream after a goodbye that it heard.
const GOODBYE_HEARD: Duration = Duration::from_millis(400);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether a renewal is due: the clock may be set, and timers stand still while the machine sleeps.
const RENEWAL_LOOK: Duration = Duration::from_hours(1);
/// How often it is looked whether the clock was set, so that the gateway hears of it. It costs no packet.
const CLOCK_LOOK: Duration = Duration::from_mins(1);
const RENEWAL_RETRY: Duration = Duration::from_mins(1);
const OUTBOX: usize = 4;

/// With whom, and as whom, the session is held.
#[derive(Clone, PartialEq)]
pub(super) struct Target {
    /// TLS name of the gateway.
    pub(super) server_name: String,
    /// What its certificate chains to, PEM.
    pub(super) ca_pem: String,
    /// Where each replica's sessions are, the best first; without a key where it is not known whose.
    pub(super) ways: Vec<(Option<PublicKey>, Vec<String>)>,
    /// Mark of the connection's packets.
    pub(super) fwmark: Option<u32>,
    /// Counts up when the client enrolled anew: the certificate is another.
    pub(super) enrolment: u64,
}

/// What the session tells its owner.
pub(super) enum Event {
    /// The stream stands.
    Attached {
        /// The replica.
        replica: Option<PublicKey>,
        /// Its address.
        address: SocketAddr,
    },
    /// The key of beats to the replica.
    BeatKey(Option<PublicKey>, BeatKey),
    /// The gateway hears nothing on the tunnel; or holds packets, and this initiation for them.
    Poked(Option<PublicKey>, Box<[u8]>),
    /// What this replica says of clocks.
    Clock(Option<PublicKey>, Clock),
    /// The session was silent for as long as the rest of this number asked for.
    Wake(u64),
    /// What this replica advises about experiments.
    Guided(Option<PublicKey>, Guidance),
    /// Whether another machine connects with the same key.
    KeyShared(bool),
    /// A newer configuration.
    Config(Box<v1::ClientConfig>),
    /// The certificate was renewed.
    Renewed(Proof, String),
    /// The right to connect was taken away.
    Cut(ClientError),
    /// The certificate is over: its keys may get another, or who enrols again.
    Expired,
    /// The replica is going away.
    Draining(Option<PublicKey>),
    /// The stream ended, or could not be had: what to say, and how it ended.
    Lost(String, Ended),
}

/// What the gateway is told.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// How the client is.
    pub(super) state: v1::ClientState,
    /// Whether it goes now. A client that has no path yet is disconnected, too, and stays.
    pub(super) is_goodbye: bool,
    /// The tunnel works and wakes the radio by itself: attempts to have a session can wait for that.
    pub(super) rides: bool,
    /// The tunnel works.
    pub(super) is_connected: bool,
}

/// What makes the session act, beside news.
#[derive(Debug, Default)]
pub(super) struct Nudges {
    /// The radio is awake.
    pub(super) awake: Notify,
    /// The gateway says that this session does not carry what it has to say.
    pub(super) recalled: Notify,
}

pub(super) struct Session {
    /// By which the gateway tells this process from one on another machine.
    pub(super) instance: [u8; 16],
    pub(super) nudges: Arc<Nudges>,
    pub(super) radio: Arc<Radio>,
    pub(super) names: Names,
    pub(super) target: watch::Receiver<Target>,
    pub(super) proof: watch::Receiver<Proof>,
    pub(super) told: watch::Receiver<Told>,
    /// What the gateway is to be asked for while there is nothing to say. The latest counts, on the stream that stands then.
    pub(super) rests: watch::Receiver<Option<v1::Rest>>,
    pub(super) events: mpsc::Sender<Event>,
}

/// How a stream ended.
enum End {
    /// Another connection is wanted: at once again.
    Retarget,
    /// The goodbye was not heard.
    Unheard,
    /// It was refused or lost.
    Lost(ClientError, Ended),
    /// Nobody needs it any more.
    Stop,
}

impl Session {
    pub(super) async fn run(mut self) {
        let mut jitter = entropy::jitter();
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let is_skewed = match self.hold().await {
                End::Stop => return,
                End::Retarget => continue,
                // Over a connection that is not forgotten. Who waits for it has its own patience.
                End::Unheard => {
                    self.hold().await;
                    return;
                }
                End::Lost(error, ended) => {
                    let is_skewed = error.category() == "ClockSkew";
                    let said = self.events.send(Event::Lost(error.to_string(), ended)).await;
                    if said.is_err() || self.told.borrow().is_goodbye {
                        return;
                    }
                    is_skewed
                }
            };
            failures = if began.elapsed() > STABLE { 0 } else { failures + 1 };
            let rides = failures > PERSISTENT && self.told.borrow().rides;
            let cap = if rides { RIDING_CAP } else { BACKOFF_CAP };
            let delay = jitter.backoff(BACKOFF, cap, failures);
            let nudges = Arc::clone(&self.nudges);
            let pause = async {
                sleep(delay).await;
                if rides {
                    nudges.awake.notified().await;
                }
            };
            tokio::select! {
                () = pause => {}
                () = nudges.recalled.notified() => {}
                () = clock::until_set(), if is_skewed => {}
                changed = self.target.changed() => if changed.is_err() { return },
                // Only what cannot wait.
                told = self.told.wait_for(|told| told.is_goodbye || (rides && !told.rides)) => {
                    if told.is_err() { return }
                }
            }
        }
    }

    async fn hold(&mut self) -> End {
        let target = self.target.borrow_and_update().clone();
        let proof = self.proof.borrow_and_update().clone();
        let expired = certificate::validity(&proof.chain_pem)
            .is_ok_and(|(_, not_after)| SystemTime::now() >= not_after);
        if expired {
            return self.expired().await;
        }
        let connected = tokio::select! {
            connected = connect(&target, proof, &self.radio, &self.names) => connected,
            changed = self.target.changed() => return if changed.is_ok() { End::Retarget } else { End::Stop },
        };
        let (gateway, replica) = match connected {
            Ok(connected) => connected,
            Err(error) => return End::Lost(error, Ended::TimedOut),
        };
        match self.attached(heard::client(gateway.channel), replica, gateway.address).await {
            Ok(end) => end,
            Err(_) if gateway.objection.is_expired() => self.expired().await,
            Err(status) => self.refused(replica, &status).await,
        }
    }

    /// The certificate is over, by this machine's clock or by the gateway's.
    async fn expired(&mut self) -> End {
        if self.events.send(Event::Expired).await.is_err() {
            return End::Stop;
        }
        // A new certificate comes with a new target. By another time the old one may be good.
        tokio::select! {
            changed = self.target.changed() => if changed.is_ok() { End::Retarget } else { End::Stop },
            () = clock::until_set() => End::Retarget,
        }
    }

    async fn refused(&self, replica: Option<PublicKey>, status: &Status) -> End {
        let error = ClientError::from_status(status);
        if category_of(status) == Some("GatewayDraining") {
            let _ = self.events.send(Event::Draining(replica)).await;
            return End::Lost(error, Ended::Closed);
        }
        let for_good = matches!(error.category(), "ClientRemoved" | "ClientDeleted" | "ClientSuspended");
        if status.code() == Code::PermissionDenied && for_good {
            let cut = heard::cut_off(error.category(), status.message());
            let _ = self.events.send(Event::Cut(cut)).await;
        }
        End::Lost(error, ended(status))
    }

    async fn attached(
        &mut self,
        mut client: ClientSessionClient<Channel>,
        replica: Option<PublicKey>,
        address: SocketAddr,
    ) -> Result<End, Status> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = v1::ClientHello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: 0,
            hears: true,
            instance: self.instance.to_vec(),
        };
        let hello = v1::ClientMessage { message: Some(v1::client_message::Message::Hello(hello)) };
        let _ = outbox.try_send(hello);
        let mut clocks = Clocks::now();
        let _ = outbox.try_send(clock_message(&clocks));
        let answer = timeout(CALL_TIMEOUT, client.attach(Request::new(ReceiverStream::new(messages)))).await;
        let mut stream =
            answer.map_err(|_| Status::deadline_exceeded("the gateway does not answer"))??.into_inner();
        // Those of before were for another connection.
        self.rests.mark_unchanged();
        if self.events.send(Event::Attached { replica, address }).await.is_err() {
            return Ok(End::Stop);
        }
        self.told.mark_changed();
        let mut renewal = Box::pin(sleep(self.renewal_delay().min(RENEWAL_LOOK)));
        let mut clock_look = interval(CLOCK_LOOK);
        let nudges = Arc::clone(&self.nudges);
        let mut doubted: Option<Instant> = None;
        let (mut asked, mut carried) = (false, Instant::now());
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message? else {
                        return Err(Status::unavailable("the gateway ended the session"));
                    };
                    (doubted, asked, carried) = (None, false, Instant::now());
                    let event = match Heard::from(message) {
                        Heard::Config(config) => {
                            let heard = v1::Heard { revision: config.revision };
                            let heard = v1::client_message::Message::Heard(heard);
                            let _ = outbox.send(v1::ClientMessage { message: Some(heard) }).await;
                            Event::Config(config)
                        }
                        Heard::BeatKey(key) => Event::BeatKey(replica, key),
                        Heard::Poke => Event::Poked(replica, Box::default()),
                        Heard::Initiation(initiation) => Event::Poked(replica, initiation),
                        Heard::Clock(clock) => {
                            // Who is connected has handshakes that are taken: somebody plays old ones back.
                            if clock.stale && !self.told.borrow().is_connected {
                                let anew = v1::client_message::Message::Anew(v1::Anew {});
                                let _ = outbox.try_send(v1::ClientMessage { message: Some(anew) });
                            }
                            Event::Clock(replica, clock)
                        }
                        Heard::Wake(seq) => Event::Wake(seq),
                        Heard::Guidance(guidance) => Event::Guided(replica, guidance),
                        Heard::KeyShared(shared) => Event::KeyShared(shared),
                        Heard::Cut(cut) => {
                            let _ = self.events.send(Event::Cut(cut)).await;
                            return Err(Status::permission_denied("cut off"));
                        }
                        Heard::Newer => continue,
                    };
                    if self.events.send(event).await.is_err() {
                        return Ok(End::Stop);
                    }
                }
                changed = self.told.changed() => {
                    if changed.is_err() {
                        return Ok(End::Stop);
                    }
                    let Told { state, is_goodbye, .. } = self.told.borrow_and_update().clone();
                    // Where it cannot be sent, the stream has ended, and says so.
                    let _ = outbox.send(state_message(state)).await;
                    if is_goodbye {
                        // Closing the own side lets the goodbye arrive before the end.
                        drop(outbox);
                        let ended = timeout(GOODBYE_HEARD, async { while let Ok(Some(_)) = stream.message().await {} });
                        return Ok(if ended.await.is_ok() { End::Stop } else { End::Unheard });
                    }
                }
                changed = self.rests.changed() => {
                    if changed.is_err() {
                        return Ok(End::Stop);
                    }
                    let rest = self.rests.borrow_and_update().unwrap_or_default();
                    let rest = v1::client_message::Message::Rest(rest);
                    let _ = outbox.send(v1::ClientMessage { message: Some(rest) }).await;
                }
                () = nudges.recalled.notified(), if doubted.is_none() => {
                    if std::mem::replace(&mut asked, true) || carried.elapsed() >= LATELY {
                        doubted = Some(Instant::now() + ON_ITS_WAY);
                    } else {
                        let state = self.told.borrow().state.clone();
                        let _ = outbox.try_send(state_message(state));
                    }
                }
                () = sleep_until(doubted.unwrap_or_else(Instant::now)), if doubted.is_some() => {
                    tracing::info!("recalled: the gateway is asked again over another connection");
                    return Ok(End::Retarget);
                }
                changed = self.target.changed() => {
                    return Ok(if changed.is_ok() { End::Retarget } else { End::Stop });
                }
                _ = clock_look.tick() => {
                    let now = Clocks::now();
                    if now.was_set_since(&clocks) && outbox.try_send(clock_message(&now)).is_ok() {
                        clocks = now;
                    }
                }
                () = &mut renewal => {
                    let delay = match self.renewal_delay() {
                        Duration::ZERO => self.renew(&mut client).await.map(|()| self.renewal_delay()),
                        left => Ok(left),
                    };
                    let delay = match delay {
                        Ok(delay) => delay,
                        Err(error) => {
                            tracing::warn!(%error, category = error.category(), "the certificate could not be renewed yet");
                            RENEWAL_RETRY
                        }
                    };
                    renewal.set(sleep(delay.min(RENEWAL_LOOK)));
                }
            }
        }
    }

    fn renewal_delay(&self) -> Duration {
        let validity = certificate::validity(&self.proof.borrow().chain_pem);
        validity.map_or(RENEWAL_RETRY, |validity| certificate::renewal_delay(SystemTime::now(), validity))
    }

    async fn renew(&mut self, client: &mut ClientSessionClient<Channel>) -> Result<(), ClientError> {
        // The key of the first certificate, for good: whoever comes with another has to enrol.
        let key = SessionKey::from_pem(&self.proof.borrow().key_pem)?;
        let mut request = Request::new(v1::RenewRequest { csr: key.request()? });
        request.set_timeout(CALL_TIMEOUT);
        let issued = client.renew(request).await.map_err(|status| ClientError::from_status(&status))?;
        let (chain_pem, ca_pem) = heard::issued(issued.into_inner())?;
        let proof = Proof { chain_pem, key_pem: key.to_pem() };
        let _ = self.events.send(Event::Renewed(proof, ca_pem)).await;
        // The owner keeps it and hands it back.
        let _ = self.proof.changed().await;
        Ok(())
    }
}

/// How a connection ended, as far as what it told can be traced back to the kernel.
pub(super) fn ended(status: &Status) -> Ended {
    let mut error: Option<&(dyn Error + 'static)> = Some(status);
    while let Some(source) = error {
        let io = source.downcast_ref::<io::Error>();
        let io = io.or_else(|| source.downcast_ref::<h2::Error>().and_then(h2::Error::get_io));
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => return Ended::TimedOut,
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => return Ended::Reset,
            _ => error = source.source(),
        }
    }
    Ended::Closed
}

fn clock_message(clocks: &Clocks) -> v1::ClientMessage {
    let clock = v1::ClientClock { now: Some(clocks.wall.into()) };
    v1::ClientMessage { message: Some(v1::client_message::Message::Clock(clock)) }
}

fn state_message(state: v1::ClientState) -> v1::ClientMessage {
    v1::ClientMessage { message: Some(v1::client_message::Message::State(state)) }
}

async fn connect(
    target: &Target,
    proof: Proof,
    radio: &Arc<Radio>,
    names: &Names,
) -> Result<(Dialed, Option<PublicKey>), ClientError> {
    let dialer = Dialer {
        server_name: target.server_name.clone(),
        ca_pem: target.ca_pem.clone(),
        proof: Some(proof),
        fwmark: target.fwmark,
        liveness: Liveness::Quiet(Arc::clone(radio)),
    };
    let mut failures = Vec::new();
    for (replica, endpoints) in &target.ways {
        match dialer.connect_by(names, endpoints).await {
            Ok(gateway) => return Ok((gateway, *replica)),
            Err(error) => failures.push(error),
        }
    }
    Err(ClientError::GatewayUnreachable(DialError::of_all(failures)))
}
