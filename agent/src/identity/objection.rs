//! What the other end of a connection has against our certificate, once it has seen it.
//!
//! With TLS 1.3 a client has shaken hands before the server has judged its certificate: the refusal is an alert that comes after
//! (RFC 8446, section 6.2). What was asked meanwhile fails with whatever the layers above make of an ended connection, which may
//! be no more than that it was cancelled. So the alert is taken down where it is read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use rustls::{AlertDescription, Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is known of it so far. Its copies know the same.
#[derive(Debug, Clone, Default)]
pub struct Objection(Arc<AtomicBool>);

impl Objection {
    /// Whether the certificate is over by the other end's clock.
    pub fn is_expired(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn hear(&self, error: &io::Error) {
        let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        if matches!(error, Some(Error::AlertReceived(AlertDescription::CertificateExpired))) {
            self.0.store(true, Ordering::Release);
        }
    }
}

/// A TLS stream whose alerts are taken down.
pub(super) struct Heeded<S> {
    stream: S,
    objection: Objection,
}

impl<S> Heeded<S> {
    pub(super) fn new(stream: S, objection: Objection) -> Self {
        Self { stream, objection }
    }

    fn heed<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            self.objection.hear(error);
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heeded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heed(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heeded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
