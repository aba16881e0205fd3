//! Health and metrics, over HTTP/1.1.
//!
//! Whoever is new enters at once, and the oldest of the source that has the most goes for it: a probe is answered whatever
//! others hold open, leave half said, or do not read.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use futures::StreamExt as _;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};

use crate::{Capacity, House, Residents, Welcome, receive};

const CALLERS: Capacity = Capacity {
    inside: 64,
    inside_of_one: 16,
    waiting: 64,
    waiting_of_one: 64,
    undisturbed: Duration::ZERO,
    // Prometheus gives a scrape as long.
    longest_stay: Duration::from_secs(10),
    longest_wait: Duration::from_secs(10),
};
/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const HEAD: usize = 8 << 10;

/// Serves until it is dropped, or the listener is gone.
pub async fn serve_pages(listener: TcpListener, router: Router) {
    // Nobody is ever known here.
    let house = House { guests: CALLERS, residents: Residents::new(1, 1) };
    let mut connections = std::pin::pin!(receive(listener, house, Plain));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST).max_buf_size(HEAD);
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(connection) = connections.next().await {
        while under_way.try_join_next().is_some() {}
        let Ok(connection) = connection else { continue };
        let service = TowerToHyperService::new(router.clone());
        let served = http.serve_connection(TokioIo::new(connection), service);
        under_way.spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a request for a page came to nothing");
            }
        });
    }
}

/// No handshake.
#[derive(Clone)]
struct Plain;

impl Welcome for Plain {
    type Stream = TcpStream;

    async fn welcome(&self, stream: TcpStream) -> io::Result<(TcpStream, Option<Arc<str>>)> {
        Ok((stream, None))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        net::{Ipv4Addr, SocketAddr},
    };

    use axum::routing::get;
    use futures::future::{join_all, try_join_all};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
        task::JoinHandle,
        time::{Instant, timeout},
    };

    use super::*;
    use crate::bind;

    const SOON: Duration = Duration::from_secs(1);
    /// More than the kernel takes of a reader that does not read.
    const LARGE: usize = 8 << 20;

    struct Pages(SocketAddr, JoinHandle<()>);

    impl Drop for Pages {
        fn drop(&mut self) {
            self.1.abort();
        }
    }

    impl Pages {
        fn serve() -> Self {
            let large: &'static str = "x".repeat(LARGE).leak();
            let router = Router::new()
                .route("/livez", get(async || "ok\n"))
                .route("/large", get(async move || large))
                .route("/endless", get(async || pending::<String>().await));
            let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            Self(address, tokio::spawn(serve_pages(listener, router)))
        }

        async fn says(&self, request: &str) -> TcpStream {
            let socket = TcpSocket::new_v4().unwrap();
            // What is not read fills little of the kernel's memory, and takes little time to write.
            socket.set_recv_buffer_size(4 << 10).unwrap();
            let mut stream = socket.connect(self.0).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }

        async fn holds(&self, count: usize, request: &str) -> Vec<TcpStream> {
            join_all((0..count).map(|_| self.says(request))).await
        }

        async fn lives(&self) {
            let answer = async {
                let mut stream =
                    self.says("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                answer
            };
            let answer = timeout(SOON, answer).await.expect("within a second");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }

    #[tokio::test]
    async fn liveness_answers_within_a_second_beside_a_thousand_connections_that_say_nothing() {
        let pages = Pages::serve();
        let _held = pages.holds(900, "").await;
        pages.lives().await;
        let _more = pages.holds(100, "GET /livez HTTP/1.1\r\nHo").await;
        pages.lives().await;
    }

    #[tokio::test]
    async fn liveness_answers_within_a_second_beside_scrapes_that_are_not_read_and_such_that_never_end() {
        let pages = Pages::serve();
        let _unread = pages.holds(2 * CALLERS.inside_of_one, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
        pages.lives().await;
        let _endless =
            pages.holds(2 * CALLERS.inside_of_one, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
        pages.lives().await;
    }

    #[tokio::test]
    async fn who_takes_its_time_is_sent_away() {
        let pages = Pages::serve();
        let began = Instant::now();
        let requests = [
            "",
            "GET /livez HTTP/1.1\r\nHo",
            "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        let ended = requests.map(|request| async {
            let mut stream = pages.says(request).await;
            // The end, or a reset.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            Ok::<_, io::Error>(())
        });
        let all = timeout(CALLERS.longest_stay + SOON, try_join_all(ended)).await;
        all.expect("none stays for longer").unwrap();
        assert!(began.elapsed() >= CALLERS.longest_stay, "and one that asked was waited for");
    }
}
