//! A stream whose reads and writes somebody is told of.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream. What the layers below do by themselves, such as the kernel's acknowledgements, is not seen here.
pub(super) struct Tapped<S, F> {
    stream: S,
    tell: F,
}

impl<S, F: Fn(Result<(), &io::Error>)> Tapped<S, F> {
    /// Tells how each read, write and shutdown ended.
    pub(super) fn new(stream: S, tell: F) -> Self {
        Self { stream, tell }
    }

    fn told<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(outcome) = &outcome {
            (self.tell)(outcome.as_ref().map(|_| ()));
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin, F: Fn(Result<(), &io::Error>) + Unpin> AsyncRead for Tapped<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.told(outcome)
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(Result<(), &io::Error>) + Unpin> AsyncWrite for Tapped<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.told(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.told(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.told(outcome)
    }
}
