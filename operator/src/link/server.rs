//! Serves the link to gateways, within bounds for whoever is not known yet.

use std::{future::Future, sync::Arc, time::Duration};

use pinhole_reception::receive;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    attach::Streams,
    authenticate::Authenticator,
    callers::{self, Greeter},
    door::{Door, Keeper},
    service::LinkService,
};
use crate::{
    enrolment::{Enroller, Records},
    fleet::Fleet,
    identity::{CachedReviewer, Identity, IdentityError},
};

const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection takes no new calls after this; its stream ends by itself within eight minutes.
const CONNECTION_AGE: Duration = Duration::from_mins(10);

const STREAMS_PER_CONNECTION: u32 = 64;
const CALLS_PER_CONNECTION: usize = 64;
const CALL_HEADER_BYTES: u32 = 16 << 10;
/// Bytes that a caller may send ahead on a stream, before anybody knows who it is.
const STREAM_WINDOW: u32 = 32 << 10;
/// The same for all streams of a connection: the least that HTTP/2 knows.
const CONNECTION_WINDOW: u32 = 65_535;
/// Bytes of the largest question about health: the name of a service.
const LARGEST_QUESTION: usize = 1 << 10;

/// How long streams may take to end when the operator stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The operator's certificate cannot be served.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The transport failed.
    #[error("serving the link: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl LinkError {
    /// Low-cardinality name for metrics, events and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Identity(error) => error.category(),
            Self::Transport(_) => "LinkTransport",
        }
    }
}

/// The link server.
pub struct Link<R> {
    /// What replicas are told, and what they say.
    pub fleet: Arc<Fleet>,
    /// Issues certificates, and has the link's own.
    pub identity: Arc<Identity>,
    /// Reviews the tokens of callers.
    pub reviewer: Arc<CachedReviewer>,
    /// Enrols clients.
    pub enroller: Arc<Enroller<R>>,
    /// Whether this operator leads; while it does not, every call is answered UNAVAILABLE (`Standby`).
    pub leading: watch::Receiver<bool>,
}

impl<R: Records> Link<R> {
    /// Serves on `listener` until `stop`, then ends the streams and returns within a few seconds.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<(), LinkError> {
        let tls = self.identity.server().tls_config()?;
        let incoming = receive(listener, callers::house(), Greeter::new(tls));
        let authenticator = Authenticator::new(self.reviewer);
        let health = HealthReporter::new();
        let health_service = tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(health.clone()),
        )
        .max_decoding_message_size(LARGEST_QUESTION);
        let reporting = tokio::spawn(report_health(health, self.leading.clone()));
        let keeper = Keeper::new(authenticator.clone(), self.leading.clone(), stop.clone());
        let service = LinkService {
            streams: Streams::new(self.fleet, authenticator, self.leading, stop.clone()),
            identity: self.identity,
            enroller: self.enroller,
        };
        let service = Door::new(keeper, service);
        let served = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(CALL_HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_connection_age(CONNECTION_AGE)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .add_service(health_service)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let result = drained(served, &stop).await;
        reporting.abort();
        result
    }
}

/// Lets connections end by themselves after `stop`, but not for ever.
async fn drained(
    served: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = served => Ok(result?),
        () = overdue => Ok(()),
    }
}

async fn report_health(health: HealthReporter, mut leading: watch::Receiver<bool>) {
    loop {
        let status =
            if *leading.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "pinhole.v1.GatewayLink"] {
            health.set_service_status(service, status).await;
        }
        if leading.changed().await.is_err() {
            return;
        }
    }
}
