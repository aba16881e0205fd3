//! Leads connections in, and out again: thin, around [`Guests`] and [`Residents`].

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{Action, Capacity, Guests, Id, Residents};

/// Connections that the kernel keeps until they are led in; it has a bound of its own. Where these are too few, those who
/// come in a burst try again a second later.
const BACKLOG: u32 = 4096;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that have shaken hands and wait for the service.
const READY: usize = 256;
/// After an error such as running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener for crowds. Is to be called on a runtime.
///
/// # Errors
/// As the kernel has them, such as an address that is taken.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How a connection begins.
pub trait Welcome: Clone + Send + Sync + 'static {
    /// What it is then.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Shakes hands; yields also under which name the other end is known by that, if it is. It is given 10 seconds.
    fn welcome(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<(Self::Stream, Option<Arc<str>>)>> + Send;
}

/// How many there may be of whom.
#[derive(Debug)]
pub struct House {
    /// Who is not known.
    pub guests: Capacity,
    /// Who is.
    pub residents: Residents,
}

/// Connections that have shaken hands, out of a listener, until the stream is dropped. Those who are known then stay until
/// they end.
pub fn receive<W: Welcome>(
    listener: TcpListener,
    house: House,
    welcome: W,
) -> impl Stream<Item = io::Result<Connection<W::Stream>>> {
    let (ready, connections) = mpsc::channel(READY);
    tokio::spawn(Reception::new(listener, house, welcome, ready).run());
    ReceiverStream::new(connections)
}

/// What a connection tells of itself.
enum News {
    /// It is known now.
    Known(Id, Arc<str>),
    /// It has ended.
    Left(Id),
}

/// A connection that entered.
struct Inside {
    from: IpAddr,
    /// As whom it is known.
    name: Option<Arc<str>>,
    /// Ends it.
    end: oneshot::Sender<()>,
}

struct Reception<W: Welcome> {
    listener: TcpListener,
    welcome: W,
    ready: mpsc::Sender<io::Result<Connection<W::Stream>>>,
    guests: Guests,
    residents: Residents,
    waiting: HashMap<Id, (TcpStream, SocketAddr)>,
    inside: HashMap<Id, Inside>,
    tell: mpsc::UnboundedSender<News>,
    /// Two of each connection, at most.
    told: mpsc::UnboundedReceiver<News>,
    arrived: Id,
}

impl<W: Welcome> Reception<W> {
    fn new(
        listener: TcpListener,
        house: House,
        welcome: W,
        ready: mpsc::Sender<io::Result<Connection<W::Stream>>>,
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self {
            listener,
            welcome,
            ready,
            guests: Guests::new(house.guests),
            residents: house.residents,
            waiting: HashMap::new(),
            inside: HashMap::new(),
            tell,
            told,
            arrived: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let next = self.guests.next();
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, source)) => self.arrive(stream, source),
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be accepted for a moment");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(news) = self.told.recv() => self.hear(news),
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
                () = self.ready.closed() => break,
            }
            for action in self.guests.settle(Instant::now()) {
                match action {
                    Action::Enter(id) => self.enter(id),
                    Action::End(id) => self.end(id),
                    Action::Refuse(id) => drop(self.waiting.remove(&id)),
                }
            }
        }
        for (_, guest) in self.inside.drain().filter(|(_, inside)| inside.name.is_none()) {
            let _ = guest.end.send(());
        }
    }

    fn arrive(&mut self, stream: TcpStream, source: SocketAddr) {
        self.arrived += 1;
        if self.guests.arrive(Instant::now(), self.arrived, source.ip()) {
            self.waiting.insert(self.arrived, (stream, source));
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Known(id, name) => {
                let Some(inside) = self.inside.get_mut(&id) else { return };
                if inside.name.replace(Arc::clone(&name)).is_some() {
                    return;
                }
                self.guests.leave(id, inside.from);
                if let Some(gone) = self.residents.arrive(id, &name) {
                    tracing::debug!(name = &*name, "has more connections than it may, and loses its oldest");
                    self.end(gone);
                }
            }
            News::Left(id) => match self.inside.remove(&id) {
                Some(Inside { name: Some(name), .. }) => self.residents.leave(id, &name),
                Some(guest) => self.guests.leave(id, guest.from),
                None => {}
            },
        }
    }

    fn end(&mut self, id: Id) {
        if let Some(inside) = self.inside.remove(&id) {
            let _ = inside.end.send(());
        }
    }

    fn enter(&mut self, id: Id) {
        let Some((stream, source)) = self.waiting.remove(&id) else { return };
        let (end, ends) = oneshot::channel();
        self.inside.insert(id, Inside { from: source.ip(), name: None, end });
        let pass = Pass {
            id,
            tell: self.tell.clone(),
            is_known: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
        };
        let caller = Caller { source, certificates: Arc::default(), pass: Arc::new(pass) };
        let (ready, welcome) = (self.ready.clone(), self.welcome.clone());
        tokio::spawn(async move {
            if let Some(connection) = shake_hands(&welcome, stream, caller, ends).await {
                let _ = ready.send(Ok(connection)).await;
            }
        });
    }
}

async fn shake_hands<W: Welcome>(
    welcome: &W,
    stream: TcpStream,
    caller: Caller,
    mut ends: oneshot::Receiver<()>,
) -> Option<Connection<W::Stream>> {
    let source = caller.source;
    let _ = stream.set_nodelay(true);
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE, welcome.welcome(stream)) => shaken,
        _ = &mut ends => {
            tracing::debug!(%source, "no handshake while others waited");
            return None;
        }
    };
    match shaken {
        Ok(Ok((stream, name))) => {
            if let Some(name) = name {
                caller.is_known_as(name);
            }
            Some(Connection { stream, caller, ends: Some(ends) })
        }
        Ok(Err(error)) => {
            tracing::debug!(%source, %error, "no handshake");
            None
        }
        Err(_) => {
            tracing::debug!(%source, "no handshake in time");
            None
        }
    }
}

/// Is given back when it is dropped.
#[derive(Debug)]
struct Pass {
    id: Id,
    tell: mpsc::UnboundedSender<News>,
    is_known: AtomicBool,
    under_way: AtomicUsize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let _ = self.tell.send(News::Left(self.id));
    }
}

/// Who is at the other end. It is among the extensions of each request.
#[derive(Debug, Clone)]
pub struct Caller {
    source: SocketAddr,
    certificates: Arc<[CertificateDer<'static>]>,
    pass: Arc<Pass>,
}

impl Caller {
    /// Where the connection comes from.
    pub const fn source(&self) -> SocketAddr {
        self.source
    }

    /// The certificates that it has shown, its own first; none where it has shown none.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// It has proven that it is this one, and is a guest no more.
    pub fn is_known_as(&self, name: Arc<str>) {
        if !self.pass.is_known.swap(true, Ordering::Relaxed) {
            let _ = self.pass.tell.send(News::Known(self.pass.id, name));
        }
    }

    /// A call of a guest begins, which ends with what is yielded. `None`: it has `most` under way. Who is known has no bound
    /// here.
    pub fn begin(&self, most: usize) -> Option<Call> {
        let before = self.pass.under_way.fetch_add(1, Ordering::Relaxed);
        let call = Call(Arc::clone(&self.pass));
        (before < most || self.pass.is_known.load(Ordering::Relaxed)).then_some(call)
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Call(Arc<Pass>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that has shaken hands, and may have to go at any time.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    caller: Caller,
    ends: Option<oneshot::Receiver<()>>,
}

impl<S> Connection<S> {
    /// Whoever waits to read or to write is told as soon as the connection has to go.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ends.as_mut().map(|ends| ends.poll_unpin(cx)) {
            Some(Poll::Ready(Ok(()))) => {
                self.ends = None;
                Err(io::ErrorKind::TimedOut.into())
            }
            // Nobody is at the door any more, and it may stay.
            Some(Poll::Ready(Err(_))) => {
                self.ends = None;
                Ok(())
            }
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

impl Connected for Connection<TlsStream<TcpStream>> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let shown = self.stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Caller { certificates, ..self.caller.clone() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
