//! `/livez`, `/readyz` and `/metrics` over HTTP. Every answer comes from the control loop, so that a loop which
//! hangs cannot look well.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::command::{Command, Readiness};

const ANSWER: Duration = Duration::from_secs(2);

type Control = mpsc::Sender<Command>;

/// Serves until the task is dropped.
pub(super) async fn serve(listener: TcpListener, control: Control) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(control);
    axum::serve(listener, router).await
}

async fn ask<T>(control: &Control, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let exchange = async {
        control.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    timeout(ANSWER, exchange).await.ok()?
}

async fn livez(State(control): State<Control>) -> impl IntoResponse {
    match ask(&control, Command::Ready).await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the control loop does not answer\n"),
    }
}

async fn readyz(State(control): State<Control>) -> impl IntoResponse {
    match ask(&control, Command::Ready).await {
        Some(Readiness { ready: true, reason }) => (StatusCode::OK, reason + "\n"),
        Some(Readiness { ready: false, reason }) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the control loop does not answer\n".to_owned()),
    }
}

async fn metrics(State(control): State<Control>) -> impl IntoResponse {
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    match ask(&control, Command::Metrics).await {
        Some(page) => (StatusCode::OK, content_type, page),
        None => (StatusCode::INTERNAL_SERVER_ERROR, content_type, String::new()),
    }
}
