//! Accepts client sessions: TCP, TLS, and bounds on both.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    faults::{Faults, lasting},
    guests::{Action, Guests, Id},
    tls::ServerTls,
};
use crate::identity::dial::end_unacknowledged;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that have shaken hands and wait for the service.
const READY: usize = 256;
/// After an error such as running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that have shaken hands. Before there is a certificate they are closed at once.
pub(super) fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    faults: Faults,
) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    let listener = Arc::new(listener);
    let reception = move || Reception::new(Arc::clone(&listener), Arc::clone(&tls), ready.clone());
    tokio::spawn(lasting("the session port", faults, async move || reception().run().await));
    ReceiverStream::new(connections)
}

/// Leads connections in, and out again.
struct Reception {
    listener: Arc<TcpListener>,
    tls: Arc<ServerTls>,
    ready: mpsc::Sender<io::Result<Connection>>,
    guests: Guests,
    waiting: HashMap<Id, (TcpStream, SocketAddr)>,
    /// Ends the connection when it is dropped.
    inside: HashMap<Id, oneshot::Sender<()>>,
    left: mpsc::UnboundedSender<(Id, IpAddr)>,
    leaving: mpsc::UnboundedReceiver<(Id, IpAddr)>,
    arrived: Id,
}

impl Reception {
    fn new(
        listener: Arc<TcpListener>,
        tls: Arc<ServerTls>,
        ready: mpsc::Sender<io::Result<Connection>>,
    ) -> Self {
        let (left, leaving) = mpsc::unbounded_channel();
        Self {
            listener,
            tls,
            ready,
            guests: Guests::default(),
            waiting: HashMap::new(),
            inside: HashMap::new(),
            left,
            leaving,
            arrived: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let next = self.guests.next();
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, source)) => self.arrive(stream, source),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Some((id, from)) = self.leaving.recv() => {
                    self.inside.remove(&id);
                    self.guests.leave(id, from);
                }
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
                () = self.ready.closed() => return,
            }
            for action in self.guests.settle(Instant::now()) {
                match action {
                    Action::Enter(id) => self.enter(id),
                    Action::End(id) => drop(self.inside.remove(&id)),
                    Action::Refuse(id) => drop(self.waiting.remove(&id)),
                }
            }
        }
    }

    fn arrive(&mut self, stream: TcpStream, source: SocketAddr) {
        self.arrived += 1;
        if self.guests.arrive(Instant::now(), self.arrived, source.ip()) {
            self.waiting.insert(self.arrived, (stream, source));
        }
    }

    fn enter(&mut self, id: Id) {
        let Some((stream, source)) = self.waiting.remove(&id) else { return };
        let (end, ends) = oneshot::channel();
        self.inside.insert(id, end);
        let place = Place { id, from: source.ip(), left: self.left.clone() };
        let Some(config) = self.tls.current() else { return };
        let ready = self.ready.clone();
        tokio::spawn(async move {
            let guest = Guest { ends, _place: place };
            if let Some(connection) = shake_hands(stream, source, TlsAcceptor::from(config), guest).await {
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

/// Is given back when it is dropped.
struct Place {
    id: Id,
    from: IpAddr,
    left: mpsc::UnboundedSender<(Id, IpAddr)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.left.send((self.id, self.from));
    }
}

/// A connection without a certificate, which may have to go at any time.
struct Guest {
    ends: oneshot::Receiver<()>,
    _place: Place,
}

/// A connection that has shaken hands.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    guest: Option<Guest>,
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(guest) = &mut self.guest
            && guest.ends.poll_unpin(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn shake_hands(
    stream: TcpStream,
    source: SocketAddr,
    acceptor: TlsAcceptor,
    mut guest: Guest,
) -> Option<Connection> {
    let _ = stream.set_nodelay(true);
    // Nothing asks whether an idle session lives. One that takes nothing any more ends, so that what it was told and
    // did not hear can be told otherwise.
    if let Err(error) = end_unacknowledged(&stream) {
        tracing::debug!(%source, %error, "a session that is gone is noticed late");
    }
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, acceptor.accept(stream)) => shaken,
        _ = &mut guest.ends => {
            tracing::debug!(%source, "no TLS handshake while others waited");
            return None;
        }
    };
    match shaken {
        Ok(Ok(stream)) => {
            let has_certificate = stream.get_ref().1.peer_certificates().is_some();
            Some(Connection { stream, guest: (!has_certificate).then_some(guest) })
        }
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
