//! Serves metrics and probes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use pinhole_reception::{Shared, serve_pages};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Health, Metrics};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From one page of metrics to the next.
const PAUSE: Duration = Duration::from_millis(250);

/// Serves `/metrics`, `/livez` and `/readyz` until `stop`.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    // However many scrape at a time, the page is made and there once.
    let page = Arc::new(Shared::new(PAUSE));
    let router = Router::new()
        .route(
            "/livez",
            get(|State(health): State<Arc<Health>>| async move { verdict(health.illness(Instant::now())) }),
        )
        .route("/readyz", get(|State(health): State<Arc<Health>>| async move { verdict(health.unready()) }))
        .with_state(health)
        .route(
            "/metrics",
            get(async move || exposition(page.get(async { metrics.text().ok().map(Bytes::from) }).await)),
        );
    stop.run_until_cancelled(serve_pages(listener, router)).await;
}

fn verdict(problem: Option<String>) -> Response {
    match problem {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

fn exposition(page: Option<Bytes>) -> Response {
    match page {
        Some(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
