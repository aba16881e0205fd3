//! Accepts client sessions: TCP, TLS, and a bound on both.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::tls::ServerTls;
use crate::identity::dial::end_unacknowledged;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// TLS handshakes under way at once.
const HANDSHAKES: usize = 256;
/// After an error such as running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that have shaken hands. Before there is a certificate they are closed at once.
pub(super) fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(HANDSHAKES);
    tokio::spawn(accept_all(listener, tls, ready));
    ReceiverStream::new(connections)
}

async fn accept_all(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    ready: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let Ok((stream, source)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(config) = tls.current() else { continue };
        let ready = ready.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(stream) = shake_hands(stream, source, TlsAcceptor::from(config)).await {
                let _ = ready.send(Ok(stream)).await;
            }
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    source: SocketAddr,
    acceptor: TlsAcceptor,
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    // Nothing asks whether an idle session lives. One that takes nothing any more ends, so that what it was told and
    // did not hear can be told otherwise.
    if let Err(error) = end_unacknowledged(&stream) {
        tracing::debug!(%source, %error, "a session that is gone is noticed late");
    }
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%source, %error, "no TLS handshake");
            None
        }
        Err(_) => {
            tracing::debug!(%source, "no TLS handshake in time");
            None
        }
    }
}
