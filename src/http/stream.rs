//! The byte stream under an HTTP connection, so that a socket can leave HTTP at any response.
//!
//! Owns the bytes that were read ahead of hyper, and the bytes that hyper writes once a request has
//! been granted a hand-over: the shard sends those, after it has registered the connection. hyper
//! gets no byte of a request before it has answered the one in front, so that a request that has
//! begun is seen. Never ends the sending side: hyper would be done while the rest of a response
//! still waits for the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn_table::HttpConn;

/// See the module.
pub(super) struct HttpStream<I> {
    inner: I,
    conn: Arc<HttpConn>,
    /// Read already, and not taken by hyper.
    ahead: Bytes,
    /// Bytes of [`EMPTY_LINE`] that hyper has got last.
    matched: usize,
    /// Written by hyper behind a granted hand-over.
    head: BytesMut,
}

/// Behind the head of a request, and behind a chunked body.
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

impl<I> HttpStream<I> {
    pub(super) fn new(inner: I, conn: Arc<HttpConn>, ahead: Bytes) -> Self {
        Self { inner, conn, ahead, matched: 0, head: BytesMut::new() }
    }

    /// The stream, the response head that the shard has to send, and what hyper has not got.
    pub(super) fn into_parts(self) -> (I, Bytes, Bytes) {
        (self.inner, self.head.freeze(), self.ahead)
    }
}

/// How many of the next `bytes` belong to the same request for sure: up to the end of a body of
/// known length, else up to an empty line. An empty line inside a chunked body divides a read, no
/// more. Nothing divides a request whose lines end without a carriage return.
fn of_one_request(bytes: &[u8], matched: &mut usize, conn: &HttpConn) -> usize {
    let length = conn.take_body_bytes(bytes.len());
    if length > 0 {
        *matched = 0;
        return length;
    }
    for (index, &byte) in bytes.iter().enumerate() {
        *matched = match byte == EMPTY_LINE[*matched] {
            true => *matched + 1,
            false => usize::from(byte == EMPTY_LINE[0]),
        };
        if *matched == EMPTY_LINE.len() {
            *matched = 0;
            return index + 1;
        }
    }
    bytes.len()
}

impl<I: AsyncRead + Unpin> AsyncRead for HttpStream<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, conn, ahead, matched, .. } = self.get_mut();
        if ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(inner).poll_read(context, buffer))?;
            let read = &buffer.filled()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let length = of_one_request(read, matched, conn);
            *ahead = Bytes::copy_from_slice(&read[length..]);
            buffer.set_filled(before + length);
        } else {
            let most = ahead.len().min(buffer.remaining());
            let length = of_one_request(&ahead[..most], matched, conn);
            buffer.put_slice(&ahead.split_to(length));
        }
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
