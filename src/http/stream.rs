//! The byte stream under an HTTP connection, so that a socket can leave HTTP at any response.
//!
//! Owns the bytes that were read ahead of hyper, and the bytes that hyper writes once a request has
//! been granted a hand-over: the shard sends those, after it has registered the connection. hyper
//! gets no byte of a request before it has answered the one in front, so that a request that has
//! begun is seen. Never ends the sending side: `conn` does that after the last response. hyper's
//! shutdown only flushes, so hyper is not done while a part of a response still waits for the
//! socket.

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
    division: Division,
    /// Written by hyper behind a granted hand-over.
    head: BytesMut,
    /// hyper has begun to write a response that has not left whole.
    has_unsent: bool,
}

/// The parts of an [`HttpStream`].
pub(super) struct Parts<I> {
    pub(super) inner: I,
    /// The response head that the shard has to send.
    pub(super) head: Bytes,
    /// Bytes that hyper has not got.
    pub(super) ahead: Bytes,
    /// A response of hyper's has not left whole.
    pub(super) has_unsent: bool,
}

/// Finds the place where the bytes of one request end, at the latest.
#[derive(Default)]
struct Division {
    /// Bytes of [`EMPTY_LINE`] that were the last ones.
    matched: usize,
    /// Something else than line ends has come since the last end. hyper looks at its whole buffer
    /// again for each piece that it gets, so line ends alone are no piece.
    has_begun: bool,
}

/// Behind the head of a request, and behind a chunked body.
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

impl<I> HttpStream<I> {
    pub(super) fn new(inner: I, conn: Arc<HttpConn>, ahead: Bytes) -> Self {
        Self { inner, conn, ahead, division: Division::default(), head: BytesMut::new(), has_unsent: false }
    }

    pub(super) fn into_parts(self) -> Parts<I> {
        let Self { inner, head, ahead, has_unsent, .. } = self;
        Parts { inner, head: head.freeze(), ahead, has_unsent }
    }
}

impl Division {
    /// How many of the next `bytes` belong to the same request for sure: up to the end of a body of
    /// known length, else up to an empty line. An empty line inside a chunked body divides a read,
    /// no more. Nothing divides a request whose lines end without a carriage return.
    fn of_one_request(&mut self, bytes: &[u8], conn: &HttpConn) -> usize {
        let length = conn.take_body_bytes(bytes.len());
        if length > 0 {
            *self = Self::default();
            return length;
        }
        for (index, &byte) in bytes.iter().enumerate() {
            self.matched = match byte == EMPTY_LINE[self.matched] {
                true => self.matched + 1,
                false => usize::from(byte == EMPTY_LINE[0]),
            };
            self.has_begun |= self.matched == 0;
            if self.matched == EMPTY_LINE.len() {
                self.matched = 0;
                if std::mem::take(&mut self.has_begun) {
                    return index + 1;
                }
            }
        }
        bytes.len()
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for HttpStream<I> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, conn, ahead, division, .. } = self.get_mut();
        if ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(inner).poll_read(context, buffer))?;
            let read = &buffer.filled()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let length = division.of_one_request(read, conn);
            *ahead = Bytes::copy_from_slice(&read[length..]);
            buffer.set_filled(before + length);
        } else {
            let most = ahead.len().min(buffer.remaining());
            let length = division.of_one_request(&ahead[..most], conn);
            buffer.put_slice(&ahead.split_to(length));
        }
        conn.note_input();
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for HttpStream<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { inner, conn, head, has_unsent, .. } = self.get_mut();
        if conn.is_granted() {
            head.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        *has_unsent = true;
        let written = Pin::new(inner).poll_write(context, bytes);
        conn.note_output(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        // hyper calls this when it has written its buffer, and each response is in there whole.
        self.has_unsent = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::conn_table::Peer;

    /// The pieces that hyper gets of `bytes`.
    fn pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
        let conn = HttpConn::new(-1, Peer::default(), None);
        let mut division = Division::default();
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(division.of_one_request(bytes, &conn));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }

    #[test]
    fn each_request_is_a_piece() {
        let (first, second) = (&b"GET / HTTP/1.1\r\nA: b\r\n\r\n"[..], &b"GET /x HTTP/1.1\r\n\r\n"[..]);
        assert_eq!(pieces(&[first, second, b"GET"].concat()), [first, second, b"GET"]);
        assert_eq!(pieces(b"a\r\r\n\r\nb"), [&b"a\r\r\n\r\n"[..], b"b"]);
        assert_eq!(pieces(b"a\n\nb"), [&b"a\n\nb"[..]]);
    }

    #[test]
    fn line_ends_alone_are_no_piece() {
        let line_ends = b"\r\n".repeat(5_000);
        assert_eq!(pieces(&line_ends), [&line_ends[..]]);
        let behind = [&b"\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
        assert_eq!(pieces(&behind), [&behind[..]]);
    }
}
