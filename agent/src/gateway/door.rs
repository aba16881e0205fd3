//! In front of the session service: who has shown no certificate has few calls under way, as each may hold the beginning of a
//! message and room for all of it.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use pinhole_reception::Caller;
use tonic::{
    Code,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use super::session::refuse;

/// Calls of a stranger under way on a connection. An enrolment makes one after the other.
const CALLS: usize = 2;

/// The service behind the door.
#[derive(Debug, Clone)]
pub(super) struct Door<S>(pub(super) S);

impl<S: NamedService> NamedService for Door<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Door<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = request.extensions().get::<Caller>().and_then(|caller| caller.begin(CALLS));
        let Some(call) = call else {
            let message = "this connection has shown no certificate, and has enough calls under way";
            let refused = refuse(Code::ResourceExhausted, "EnrolmentBusy", message).into_http();
            return Box::pin(async { Ok(refused) });
        };
        let answered = self.0.call(request);
        Box::pin(async move {
            let answer = answered.await;
            drop(call);
            answer
        })
    }
}
