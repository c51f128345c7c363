//! The byte stream under an HTTP connection, so that a socket can leave HTTP at any response.
//!
//! Owns the bytes that were read ahead of hyper, and the bytes that hyper writes once a request has
//! been granted a hand-over: the shard sends those, after it has registered the connection. Never
//! ends the sending side: hyper would be done while the rest of a response still waits for the
//! socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn_table::HttpConn;

/// See the module.
pub(super) struct HttpStream<I> {
    inner: I,
    conn: Arc<HttpConn>,
    /// Read already, and not taken by hyper.
    ahead: Bytes,
    /// Written by hyper behind a granted hand-over.
    head: BytesMut,
}

impl<I> HttpStream<I> {
    pub(super) fn new(inner: I, conn: Arc<HttpConn>, ahead: Bytes) -> Self {
        Self { inner, conn, ahead, head: BytesMut::new() }
    }

    /// The stream, the response head that the shard has to send, and what hyper has not taken of
    /// the bytes that were read ahead.
    pub(super) fn into_parts(self) -> (I, Bytes, Bytes) {
        (self.inner, self.head.freeze(), self.ahead)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for HttpStream<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, conn, ahead, .. } = self.get_mut();
        let before = buffer.filled().len();
        if ahead.is_empty() {
            let read = Pin::new(inner).poll_read(context, buffer);
            if read.is_pending() {
                return read;
            }
            if buffer.filled().len() > before {
                conn.note_input();
            }
            return read;
        }
        let length = ahead.len().min(buffer.remaining());
        buffer.put_slice(&ahead[..length]);
        ahead.advance(length);
        conn.note_input();
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for HttpStream<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { inner, conn, head, .. } = self.get_mut();
        if conn.is_granted() {
            head.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
