//! The requests of a connection that need no hyper: small whole publications, as publishers send
//! them one after another.
//!
//! Reads by way of memory that all connections of a thread share, so that an idle connection owns
//! none. Leaves the beginning of anything else to hyper.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::conn_table::{HttpConn, Progress};
use super::deadline::{deadline_timer, last_words, time_is_up};
use super::fast_path::HeadLimits;
use super::{Answer, HttpListener, answer, fast_path, router};

/// Largest publication, head and body together, that is read without hyper, in bytes.
const FAST_REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The next step after the requests that need no hyper.
pub(super) enum Next {
    /// The buffer holds the beginning of something else.
    Hyper,
    /// The connection ends, maybe with a last response.
    End(Option<Answer>),
}

/// Answers small whole publications, as publishers send them one after another, without hyper.
/// Leaves anything else in `buffer`.
pub(super) async fn fast_requests<I>(
    listener: &Arc<HttpListener>,
    conn: &Arc<HttpConn>,
    stream: &mut I,
    buffer: &mut BytesMut,
) -> io::Result<Next>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut timer = pin!(deadline_timer(listener));
    loop {
        let limits = HeadLimits::of(&listener.engine.live());
        match fast_path::publication(buffer, listener.engine.config.message_bytes_max, limits) {
            fast_path::Found::Publication { request, body, length } => {
                conn.set(Progress::Busy);
                buffer.advance(length);
                let closes = !router::client_keeps(&request) || conn.ends_soon();
                let answer = router::publish_directly(listener, conn, request, body, closes).await;
                let closes = closes || conn.ends_soon();
                conn.set(Progress::Idle);
                let answer = answer::whole(answer);
                tokio::select! {
                    biased;
                    sent = send(stream, conn, &answer) => sent?,
                    _ = time_is_up(listener, conn, timer.as_mut()) => return Err(io::ErrorKind::TimedOut.into()),
                }
                if closes {
                    return Ok(Next::End(None));
                }
                continue;
            }
            // A rejection does not wait for the body.
            fast_path::Found::Head(request)
                if buffer.len() < FAST_REQUEST_BYTES_MAX && router::may_publish(listener, conn, &request) => {}
            fast_path::Found::Part if buffer.len() < FAST_REQUEST_BYTES_MAX => {}
            _ => return Ok(Next::Hyper),
        }
        if buffer.is_empty() {
            // The memory of an idle connection goes back.
            *buffer = BytesMut::new();
        } else if conn.progress() == Progress::Idle {
            // The next request has begun.
            conn.note_input();
        }
        let over = tokio::select! {
            biased;
            read = read_more(stream, buffer) => match read? {
                0 if buffer.is_empty() => return Ok(Next::End(None)),
                0 => return Ok(Next::Hyper),
                _ => {
                    conn.note_input();
                    continue;
                }
            },
            over = time_is_up(listener, conn, timer.as_mut()) => over,
        };
        match conn.progress() {
            Progress::Idle if conn.has_unread() => {
                conn.end_soon();
                conn.set(Progress::Head);
            }
            // Every earlier response has left. Between the look above and the end of the sending
            // side there is no await: a request that arrives in between is lost.
            _ => return Ok(Next::End(last_words(listener, conn, over))),
        }
    }
}

/// Sends a whole response.
async fn send<I: AsyncWrite + Unpin>(stream: &mut I, conn: &HttpConn, bytes: &[u8]) -> io::Result<()> {
    let mut write = pin!(stream.write_all(bytes));
    poll_fn(|context| {
        let sent = write.as_mut().poll(context);
        conn.note_output(sent.is_pending());
        sent
    })
    .await
}

/// Reads once, by way of memory that all connections of the thread share: a request arrives in one
/// call, and an idle connection owns none of it. Returns the number of bytes, 0 at the end of the
/// stream.
async fn read_more<I: AsyncRead + Unpin>(stream: &mut I, buffer: &mut BytesMut) -> io::Result<usize> {
    thread_local! {
        static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; FAST_REQUEST_BYTES_MAX].into());
    }
    poll_fn(|context| {
        SHARED.with_borrow_mut(|shared| {
            let mut read = ReadBuf::new(shared);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
            buffer.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        })
    })
    .await
}
