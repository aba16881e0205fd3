//! The link's door: whoever calls is known by its token before anything that it sends is read, and what is read is bounded for
//! each call.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use pinhole_proto::v1::gateway_link_server::GatewayLinkServer;
use pinhole_reception::{Allowance, Caller, Rates, place};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, metadata::MetadataMap, server::NamedService};
use tower::Service;

use super::{authenticate::Authenticator, service::LinkService, status};
use crate::{enrolment::Records, identity::ReplicaIdentity};

/// Bytes of the largest message of a replica's stream: a report of 10 000 clients, with all that can be said of each.
pub const LARGEST_REPORT: usize = 24 << 20;

/// Bytes of the largest other call: twice what a gateway takes of a client, which it relays.
pub const LARGEST_CALL: usize = 32 << 10;

/// Bytes of the largest snapshot that a replica is sent: one of 100 000 clients has about 20 MB.
pub const LARGEST_SNAPSHOT: usize = 64 << 20;

/// Of the one call that is a stream.
const STREAM: &str = "/pinhole.v1.GatewayLink/Attach";

/// Calls under way on a connection that has proven no token yet: each holds its headers. A replica makes one, and then others.
const CALLS_OF_STRANGER: usize = 4;

/// Tokens that nobody knows, from one source: each costs the API server a review. A replica has one every few minutes.
const REVIEWS: Allowance = Allowance { every: Duration::from_secs(1), burst: 16 };
/// Sources that are remembered.
const SOURCES: usize = 16_384;

/// Who may come in.
#[derive(Clone)]
pub(super) struct Keeper {
    authenticator: Authenticator,
    leading: watch::Receiver<bool>,
    stop: CancellationToken,
    reviews: Arc<Mutex<Rates<IpAddr>>>,
}

impl Keeper {
    /// One that lets in while the operator leads and does not stop.
    pub(super) fn new(
        authenticator: Authenticator,
        leading: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        let reviews = Arc::new(Mutex::new(Rates::new(REVIEWS, SOURCES)));
        Self { authenticator, leading, stop, reviews }
    }

    async fn caller(&self, metadata: &MetadataMap, connection: &Caller) -> Result<ReplicaIdentity, Status> {
        if self.stop.is_cancelled() {
            return Err(status::stopping());
        }
        if !*self.leading.borrow() {
            return Err(status::standby());
        }
        let Some(_call) = connection.begin(CALLS_OF_STRANGER) else {
            let message = "this connection has proven no token yet, and has enough calls under way";
            return Err(status::status(Code::ResourceExhausted, "RateLimited", message));
        };
        let source = place(connection.source().ip());
        let is_new = !self.authenticator.remembers(metadata);
        if is_new && !self.with(|reviews| reviews.take(Instant::now(), &source)) {
            let message = "too many tokens from this address were refused; try again in a moment";
            return Err(status::status(Code::ResourceExhausted, "RateLimited", message));
        }
        let caller = self.authenticator.caller(metadata).await?;
        if is_new {
            self.with(|reviews| reviews.give_back(&source));
        }
        connection.is_known_as(caller.pod_uid.as_str().into());
        Ok(caller)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Rates<IpAddr>) -> T) -> T {
        act(&mut self.reviews.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The service behind the door.
pub(super) struct Door<R> {
    keeper: Keeper,
    stream: GatewayLinkServer<LinkService<R>>,
    calls: GatewayLinkServer<LinkService<R>>,
}

impl<R> Clone for Door<R> {
    fn clone(&self) -> Self {
        Self { keeper: self.keeper.clone(), stream: self.stream.clone(), calls: self.calls.clone() }
    }
}

impl<R: Records> Door<R> {
    /// Lets in whom `keeper` knows.
    pub(super) fn new(keeper: Keeper, service: LinkService<R>) -> Self {
        let service = Arc::new(service);
        let bounded = |bytes| {
            GatewayLinkServer::from_arc(Arc::clone(&service))
                .max_decoding_message_size(bytes)
                .max_encoding_message_size(LARGEST_SNAPSHOT)
        };
        Self { keeper, stream: bounded(LARGEST_REPORT), calls: bounded(LARGEST_CALL) }
    }
}

impl<R> NamedService for Door<R> {
    const NAME: &'static str = "pinhole.v1.GatewayLink";
}

impl<R: Records> Service<Request<Body>> for Door<R> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let is_stream = request.uri().path() == STREAM;
        let mut service = if is_stream { self.stream.clone() } else { self.calls.clone() };
        let keeper = self.keeper.clone();
        Box::pin(async move {
            let metadata = MetadataMap::from_headers(request.headers().clone());
            let Some(connection) = request.extensions().get::<Caller>().cloned() else {
                return Ok(status::of_credential(&crate::identity::CredentialError::Missing).into_http());
            };
            match keeper.caller(&metadata, &connection).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    service.call(request).await
                }
                Err(refused) => Ok(refused.into_http()),
            }
        })
    }
}

/// Who was let in.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<ReplicaIdentity, Status> {
    let caller = request.extensions().get::<ReplicaIdentity>().cloned();
    caller.ok_or_else(|| status::of_credential(&crate::identity::CredentialError::Missing))
}
