//! `/livez`, `/readyz` and `/metrics` over HTTP. Every answer comes from the control loop, so that a loop which
//! hangs cannot look well, and the page of metrics is made for all who ask at a time, so that scrapes cannot keep it busy.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use pinhole_reception::{Shared, serve_pages};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::command::{Command, Readiness};

/// Less than a probe waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// From one page of metrics to the next.
const PAUSE: Duration = Duration::from_millis(250);

type Control = mpsc::Sender<Command>;
/// `None`: the control loop does not answer.
type Page = Arc<Shared<Option<Arc<str>>>>;

/// Serves until the task is dropped.
pub(super) async fn serve(listener: TcpListener, control: Control) {
    let page = Page::new(Shared::new(PAUSE));
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state((control, page));
    serve_pages(listener, router).await;
}

async fn ask<T>(control: &Control, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let exchange = async {
        control.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER_TIMEOUT, exchange).await.ok()?
}

async fn livez(State((control, _)): State<(Control, Page)>) -> impl IntoResponse {
    match ask(&control, Command::Ready).await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the control loop does not answer\n"),
    }
}

async fn readyz(State((control, _)): State<(Control, Page)>) -> impl IntoResponse {
    match ask(&control, Command::Ready).await {
        Some(Readiness { ready: true, reason }) => (StatusCode::OK, reason + "\n"),
        Some(Readiness { ready: false, reason }) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the control loop does not answer\n".to_owned()),
    }
}

/// However many read it, it is there once.
fn shown(page: Arc<str>) -> Body {
    struct Text(Arc<str>);
    impl AsRef<[u8]> for Text {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    Bytes::from_owner(Text(page)).into()
}

async fn metrics(State((control, page)): State<(Control, Page)>) -> impl IntoResponse {
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    match page.get(async { ask(&control, Command::Metrics).await.map(Arc::from) }).await {
        Some(page) => (StatusCode::OK, content_type, shown(page)),
        None => (StatusCode::INTERNAL_SERVER_ERROR, content_type, Body::empty()),
    }
}
