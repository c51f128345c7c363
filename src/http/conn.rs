//! The life of one HTTP connection: whole small publications first, then hyper and the router,
//! until a request is granted a hand-over to a shard, the client ends, or the time is up.
//!
//! Owns the socket and its TLS session meanwhile. It promises an answer to every request that has
//! arrived, also to one that arrives while an idle connection is being closed. An upgraded socket
//! keeps nothing of HTTP: an idle WebSocket costs none of the ~17 KiB that its HTTP connection
//! took.

use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::conn_table::{Entry, HttpConn, Peer, Progress};
use super::deadline::{Over, deadline_timer, last_words, time_is_up};
use super::fast_conn::{Next, fast_requests};
use super::stream::{self, HttpStream};
use super::transport::Transport;
use super::upgrade::Granted;
use super::{Answer, HttpListener, answer, peer, router, wakes};
use crate::admission::{AddressPermit, Rejection};
use crate::conn::PlainHttp;
use crate::engine::Upgraded;

/// How long the rest of a request that was answered early is read and thrown away, so that the
/// answer is not lost to a reset.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two tries to give a socket to a shard that has no room for it.
const HAND_OVER_WAIT: Duration = Duration::from_millis(1);

/// The response to a first request that needed no hyper.
pub(super) struct FirstAnswer {
    pub(super) answer: Answer,
    /// The client lets the connection go on.
    pub(super) keeps: bool,
}

/// Serves a socket that has been accepted; `ahead` was read from it already, behind the request of
/// `first` if there is one.
pub(super) async fn serve(
    listener: Arc<HttpListener>,
    stream: std::net::TcpStream,
    peer: Peer,
    of_address: Option<AddressPermit>,
    ahead: Bytes,
    first: Option<Box<FirstAnswer>>,
) {
    let conn = HttpConn::new(stream.as_raw_fd(), peer, of_address);
    let Some(entry) = listener.admit(conn) else {
        return super::reject(&listener, stream, peer.address, Rejection::Handshakes);
    };
    if let Err(error) = run(&listener, stream, entry, ahead, first).await {
        tracing::debug!("HTTP connection: {error}");
    }
}

/// Serves a socket that begins with a header of the PROXY protocol.
pub(super) async fn serve_proxied(listener: Arc<HttpListener>, stream: std::net::TcpStream, proxy: Peer) {
    let Some(entry) = listener.admit(HttpConn::new(stream.as_raw_fd(), proxy, None)) else {
        return super::reject(&listener, stream, proxy.address, Rejection::Handshakes);
    };
    let header = async {
        let mut stream = TcpStream::from_std(stream)?;
        let address = peer::proxy_header(&mut stream).await?;
        // In a chain of proxies, the header names the one before, and that one's headers count.
        let is_trusted_proxy = address.is_some() && peer::is_trusted(address, &listener.engine.live().trusted_proxy);
        let peer = Peer { address, is_trusted_proxy };
        let permitted = super::permit_address(&listener, peer);
        if permitted.is_err() {
            // A proxy connects before its client has sent anything. An answer to nothing would
            // confuse the client.
            stream.peek(&mut [0]).await?;
        }
        Ok::<_, io::Error>((stream.into_std()?, peer, permitted))
    };
    let timer = pin!(deadline_timer(&listener));
    let read = tokio::select! {
        biased;
        read = header => read,
        over = time_is_up(&listener, &entry.conn, timer) => match over {
            Over::Timeout => Err(io::ErrorKind::TimedOut.into()),
            Over::Evicted | Over::Draining => return,
        },
    };
    // Admitted again below, as a connection of the client.
    drop(entry);
    match read {
        Ok((stream, peer, Ok(of_address))) => serve(listener, stream, peer, of_address, Bytes::new(), None).await,
        Ok((stream, peer, Err(rejection))) => super::reject(&listener, stream, peer.address, rejection),
        Err(error) => tracing::warn!(
            "a trusted proxy's connection does not begin with a PROXY header (--proxy-protocol): {error}"
        ),
    }
}

async fn run(
    listener: &Arc<HttpListener>,
    stream: std::net::TcpStream,
    entry: Entry,
    ahead: Bytes,
    first: Option<Box<FirstAnswer>>,
) -> io::Result<()> {
    let tls = listener.engine.config.tls.as_deref().filter(|_| listener.config.secure);
    let mut stream = Transport::new(stream, tls)?;
    if tls.is_some()
        && let ControlFlow::Break(last) = begin_tls(listener, &entry.conn, &mut stream).await?
    {
        return end(stream, &entry.conn, last).await;
    }
    if let Some(first) = first {
        let FirstAnswer { mut answer, keeps } = *first;
        entry.conn.set(Progress::Busy);
        let closes = router::finish(listener, &entry.conn, &mut answer, !keeps);
        stream.write_all(&answer::whole(answer)).await?;
        if closes {
            return end(stream, &entry.conn, None).await;
        }
        entry.conn.set(Progress::Idle);
    }
    if let Some(upgrade) = serve_stream(listener, &entry.conn, stream, ahead).await? {
        drop(entry);
        let (stream, session) = upgrade.stream.into_parts()?;
        hand_over(listener, stream, session, upgrade.head, upgrade.leftover, upgrade.granted).await;
        wakes::flush(&listener.engine);
    }
    Ok(())
}

/// Waits until a TLS session begins. A client that begins with plain HTTP gets its answer without
/// TLS. Breaks with the last response, if the client gets one.
async fn begin_tls(
    listener: &HttpListener,
    conn: &HttpConn,
    stream: &mut Transport,
) -> io::Result<ControlFlow<Option<Answer>>> {
    let timer = pin!(deadline_timer(listener));
    let begun = tokio::select! {
        biased;
        begun = stream.begin() => begun,
        _ = time_is_up(listener, conn, timer) => return Ok(ControlFlow::Break(None)),
    };
    let Err(error) = begun else { return Ok(ControlFlow::Continue(())) };
    let Some(PlainHttp { begin }) = error.get_ref().and_then(|error| error.downcast_ref()) else { return Err(error) };
    let sentence = match answer::secure_url(begin, stream.local_address()) {
        Some(url) => format!("this port needs TLS: connect to {url}"),
        None => "this port needs TLS: connect with https or wss".to_owned(),
    };
    stream.end_tls();
    Ok(ControlFlow::Break(Some(answer::last(
        listener,
        conn.peer.address,
        answer::text(StatusCode::BAD_REQUEST, &sentence),
    ))))
}

/// A stream that leaves HTTP.
pub(super) struct Upgrade<I> {
    pub(super) stream: I,
    /// The response head, which has not been sent.
    pub(super) head: Bytes,
    /// Bytes that the client has sent behind its request.
    pub(super) leftover: Bytes,
    pub(super) granted: Granted,
}

/// Serves any stream; `ahead` was read from it already. Returns it if it leaves HTTP.
pub(super) async fn serve_stream<I>(
    listener: &Arc<HttpListener>,
    conn: &Arc<HttpConn>,
    mut stream: I,
    ahead: Bytes,
) -> io::Result<Option<Upgrade<I>>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::from(&ahead[..]);
    drop(ahead);
    if !buffer.is_empty() {
        conn.note_input();
    }
    loop {
        if let Next::End(last) = fast_requests(listener, conn, &mut stream, &mut buffer).await? {
            return end(stream, conn, last).await.map(|()| None);
        }
        let begun = HttpStream::new(stream, conn.clone(), buffer.freeze());
        let conversation = converse(listener, conn, begun).await;
        let Conversation { done, head, leftover, was_idle, last, .. } = conversation;
        stream = conversation.stream;
        match (done, conn.take_grant()) {
            (Ok(()), Some(granted)) => return Ok(Some(Upgrade { stream, head, leftover, granted })),
            (Ok(()), None) if was_idle && conn.has_unread() => {
                // The next request has arrived while hyper ended: it is the last one.
                conn.set(Progress::Head);
                buffer = BytesMut::from(leftover);
            }
            (done, _) => {
                end(stream, conn, last).await?;
                return done.map_err(io::Error::other).map(|()| None);
            }
        }
    }
}

/// Gives an upgraded socket to its shard, as soon as that has room. A [`wakes::flush`] has to
/// follow.
pub(super) async fn hand_over(
    listener: &HttpListener,
    stream: std::net::TcpStream,
    session: Option<Box<crate::conn::Session>>,
    head: Bytes,
    leftover: Bytes,
    granted: Granted,
) {
    let Granted { role, pending, permit } = granted;
    let mut upgraded = Upgraded { stream, session, head, leftover, role, pending, permit };
    loop {
        match listener.engine.hand_over(upgraded) {
            Ok(shard) => return wakes::note(shard),
            Err(back) => upgraded = back,
        }
        wakes::flush(&listener.engine);
        sleep(HAND_OVER_WAIT).await;
    }
}

/// Ends a connection: what has to be said last, the end of the sending side, and the rest of the
/// input unread.
async fn end<I: AsyncRead + AsyncWrite + Unpin>(
    mut stream: I,
    conn: &HttpConn,
    last: Option<Answer>,
) -> io::Result<()> {
    conn.set(Progress::Done);
    let end_output = async {
        if let Some(last) = last {
            stream.write_all(&answer::whole(last)).await?;
        }
        stream.shutdown().await
    };
    tokio::select! {
        biased;
        ended = end_output => ended?,
        // An evicted connection does not wait for its client.
        () = conn.evicted() => return Ok(()),
    }
    let mut thrown_away = [0; 4096];
    let linger = async { while matches!(stream.read(&mut thrown_away).await, Ok(1..)) {} };
    tokio::select! {
        // First: input that is left unread resets the connection, and the answer may be lost.
        biased;
        () = linger => {}
        () = sleep(LINGER_TIMEOUT) => {}
        () = conn.evicted() => {}
    }
    Ok(())
}

/// How a conversation has ended.
struct Conversation<I> {
    done: hyper::Result<()>,
    stream: I,
    /// The response head of a hand-over.
    head: Bytes,
    /// Bytes that the client has sent behind its last request.
    leftover: Bytes,
    /// It was idle for too long, and no request has come.
    was_idle: bool,
    /// The last response, if one is still to be sent.
    last: Option<Answer>,
}

/// Answers requests with hyper until one is granted a hand-over, the client ends, or the time is
/// up.
async fn converse<I>(listener: &Arc<HttpListener>, conn: &Arc<HttpConn>, stream: HttpStream<I>) -> Conversation<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: hyper::Request<Incoming>| {
        // At once: hyper may read the body before the response is begun.
        let body = request.body();
        conn.note_head(!body.is_end_stream(), body.size_hint().exact().unwrap_or_default());
        async move { Ok::<_, Infallible>(router::respond(listener, conn, request).await) }
    });
    let mut connection = http1::Builder::new()
        .half_close(true)
        .max_headers(listener.engine.live().headers_max)
        .max_buf_size(listener.engine.live().header_bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    let (mut unfinished, mut was_idle) = (None, false);
    let mut timer = pin!(deadline_timer(listener));
    let done = loop {
        let over = tokio::select! {
            biased;
            done = finish(&mut connection) => break done,
            over = time_is_up(listener, conn, timer.as_mut()) => over,
        };
        match (conn.progress(), over) {
            (Progress::Idle, _) if conn.has_unread() => {
                conn.end_soon();
                conn.set(Progress::Head);
            }
            (Progress::Idle, _) => {
                conn.end_soon();
                was_idle = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            (Progress::Busy, _) => conn.end_soon(),
            _ => {
                unfinished = Some(over);
                break Ok(());
            }
        }
    };
    if let Err(error) = &done {
        answer::count_unread(listener, error);
    }
    let Parts { io, read_buf, .. } = connection.into_parts();
    let stream::Parts { inner, head, ahead, has_unsent } = io.into_inner().into_parts();
    // Nothing may follow a part of a response.
    let last = unfinished.filter(|_| !has_unsent).and_then(|over| last_words(listener, conn, over));
    let leftover = if ahead.is_empty() { read_buf } else { [read_buf, ahead].concat().into() };
    Conversation { done, stream: inner, head, leftover, was_idle, last }
}

/// Until a connection of hyper's is done and its last byte has left. Behind a request for an
/// upgrade hyper does not wait for that; asked again, it does.
async fn finish(connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin)) -> hyper::Result<()> {
    match (&mut *connection).await {
        // Only of a request that cannot be read is there an answer that may still wait.
        Err(error) if !error.is_parse() => Err(error),
        done => done.and(connection.await),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::runtime::Builder;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::engine::Engine;
    use crate::http::deadline::KEEP_ALIVE_GRACE;
    use crate::settings::Config;

    fn serve_with<F: Future<Output = DuplexStream>>(client: impl FnOnce(DuplexStream) -> F) -> (String, Duration) {
        serve_through(64 * 1024, client)
    }

    /// Runs an HTTP connection against `client`, through a pipe of so many bytes each way, with a
    /// clock that moves only while both sides wait. Returns the whole output of the server, and how
    /// long it took.
    fn serve_through<F: Future<Output = DuplexStream>>(
        pipe_bytes: usize,
        client: impl FnOnce(DuplexStream) -> F,
    ) -> (String, Duration) {
        serve_conn(pipe_bytes, |stream, _, _| client(stream))
    }

    /// As [`serve_through`], for a client that knows its connection at the server.
    fn serve_conn<F: Future<Output = DuplexStream>>(
        pipe_bytes: usize,
        client: impl FnOnce(DuplexStream, Arc<HttpConn>, Arc<HttpListener>) -> F,
    ) -> (String, Duration) {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let listener = listener();
            let (ours, theirs) = duplex(pipe_bytes);
            let begun = Instant::now();
            let conn = Arc::new(HttpConn::new(-1, Peer::default(), None));
            let server = async {
                // An error means that the client has gone.
                if let Ok(Some(mut upgrade)) = serve_stream(&listener, &conn, ours, Bytes::new()).await {
                    upgrade.stream.write_all(&upgrade.head).await.unwrap();
                }
            };
            let client = async {
                let mut stream = client(theirs, conn.clone(), listener.clone()).await;
                let mut output = String::new();
                stream.read_to_string(&mut output).await.unwrap();
                output
            };
            let (output, ()) = tokio::join!(client, server);
            (output, begun.elapsed())
        })
    }

    /// A listener that serves every route to every client.
    fn listener() -> Arc<HttpListener> {
        let config = Config { admin_listen: Config::default().listen.pop(), open: true, ..Config::default() };
        let (_, served) = config.listeners().remove(0);
        HttpListener::new(Engine::new(config, mpsc::channel(1).0), served, None)
    }

    fn in_time() -> std::ops::Range<Duration> {
        let Config { handshake_timeout, .. } = Config::default();
        handshake_timeout..handshake_timeout * 2
    }

    #[test]
    fn a_head_that_does_not_come_ends_the_phase() {
        let (output, took) = serve_with(|mut stream| async move {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHos").await.unwrap();
            stream
        });
        assert!(in_time().contains(&took), "{took:?}: {output}");
    }

    #[test]
    fn a_body_that_does_not_come_is_answered_with_408() {
        let (output, took) = serve_with(|mut stream| async move {
            let head =
                b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabc";
            stream.write_all(head).await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 408 "), "{output}");
        assert!(in_time().contains(&took), "{took:?}");
    }

    #[test]
    fn half_a_request_behind_a_response_is_answered_with_408() {
        let (output, took) = serve_with(|mut stream| async move {
            let both = b"POST /publish?x=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST /publish HTTP/1.1\r\nHos";
            stream.write_all(both).await.unwrap();
            stream
        });
        let answers: Vec<_> = output.matches("HTTP/1.1 400 ").chain(output.matches("HTTP/1.1 408 ")).collect();
        assert_eq!(answers.len(), 2, "{output}");
        assert!(in_time().contains(&took), "{took:?}");
    }

    /// Beginnings of a request, and how far the connection is then.
    fn beginnings() -> [(String, Progress); 4] {
        let upload = "POST /publish HTTP/1.1\r\nHost: localhost\r\n";
        [
            ("GET /healthz HTTP/1.1\r\nHos".to_owned(), Progress::Head),
            (upload.to_owned(), Progress::Head),
            (format!("{upload}Content-Length: 20000\r\n\r\n{}", "x".repeat(17_000)), Progress::Body),
            (format!("{upload}Transfer-Encoding: chunked\r\n\r\n5\r\nab"), Progress::Body),
        ]
    }

    /// Requests that are answered whole: none, one without hyper, one of hyper's.
    const BEFORE: [&str; 3] = [
        "",
        "POST /publish?x=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];

    async fn reaches(conn: &HttpConn, progress: Progress) {
        while conn.progress() != progress {
            tokio::task::yield_now().await;
        }
    }

    /// The number of responses, and the last one.
    fn responses(output: &str) -> (usize, &str) {
        (output.matches("HTTP/1.1 ").count(), output.rsplit_once("HTTP/1.1 ").map_or("", |(_, last)| last))
    }

    #[test]
    fn a_request_that_has_begun_is_answered_when_its_connection_is_evicted() {
        for before in BEFORE {
            for (begun, progress) in beginnings() {
                let (output, _) = serve_conn(64 * 1024, |mut stream, conn, _| async move {
                    stream.write_all(before.as_bytes()).await.unwrap();
                    if !before.is_empty() {
                        reaches(&conn, Progress::Idle).await;
                    }
                    stream.write_all(begun.as_bytes()).await.unwrap();
                    reaches(&conn, progress).await;
                    conn.evict();
                    stream
                });
                let (number, last) = responses(&output);
                assert_eq!(number, 1 + usize::from(!before.is_empty()), "{output}");
                assert!(last.starts_with("503 ") && last.contains("connection: close\r\n"), "{output}");
                assert!(last.contains("retry-after: 1\r\n") && last.ends_with("try again later\n"), "{output}");
            }
        }
    }

    #[test]
    fn without_a_request_or_room_for_its_answer_an_evicted_connection_just_ends() {
        for (pipe_bytes, begun, progress) in [(64, "", Progress::New), (8, "POST /pu", Progress::Head)] {
            let (output, took) = serve_conn(pipe_bytes, |mut stream, conn, _| async move {
                stream.write_all(begun.as_bytes()).await.unwrap();
                reaches(&conn, progress).await;
                conn.evict();
                reaches(&conn, Progress::Done).await;
                stream
            });
            assert!(output.len() <= 8 && took.is_zero(), "{took:?} {output}");
        }
    }

    #[test]
    fn half_a_request_on_a_kept_connection_is_answered_when_its_time_is_up() {
        for before in BEFORE {
            for (begun, progress) in beginnings() {
                for drains in [false, true] {
                    let (output, took) = serve_conn(64 * 1024, |mut stream, conn, listener| {
                        let both = [before, &begun].concat();
                        async move {
                            stream.write_all(both.as_bytes()).await.unwrap();
                            reaches(&conn, progress).await;
                            if drains {
                                listener.engine.begin_drain();
                            }
                            stream
                        }
                    });
                    let (number, last) = responses(&output);
                    assert_eq!(number, 1 + usize::from(!before.is_empty()), "{drains} {output}");
                    assert!(last.starts_with(if drains { "503 " } else { "408 " }), "{drains} {output}");
                    assert!(last.contains("connection: close\r\n"), "{drains} {output}");
                    assert!(drains && took < Duration::from_secs(2) || in_time().contains(&took), "{took:?}");
                }
            }
        }
    }

    #[test]
    fn an_idle_connection_ends() {
        let (output, took) = serve_with(|mut stream| async move {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 200 ") && output.ends_with("ok\n"), "{output}");
        assert!(output.contains("keep-alive: timeout=75\r\n"), "{output}");
        // Later than announced, so that a request that was sent in time is answered.
        let announced = Config::default().keep_alive_timeout;
        assert!((announced + KEEP_ALIVE_GRACE..announced + 2 * KEEP_ALIVE_GRACE).contains(&took), "{took:?}");
    }

    #[test]
    fn a_request_that_has_begun_behind_another_has_the_time_of_a_head() {
        let purge = "POST /debug/mem/purge HTTP/1.1\r\nHost: localhost\r\n";
        for first in [
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &format!("{purge}Content-Length: 6\r\n\r\n\r\n\r\nab"),
            &format!("{purge}Transfer-Encoding: chunked\r\n\r\n6\r\n\r\n\r\nab\r\n0\r\n\r\n"),
        ] {
            for (times, pieces) in [(1, 1), (3, 1), (1, 2), (2, 7)] {
                let (output, took) = serve_with(|mut stream| async move {
                    let begun = [&first.repeat(times), "GET /healthz HTTP/1.1\r\nHos"].concat();
                    for piece in begun.as_bytes().chunks(begun.len().div_ceil(pieces)) {
                        stream.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    stream
                });
                assert_eq!(output.matches("keep-alive: timeout=75\r\n").count(), times, "{first}: {output}");
                assert!(in_time().contains(&took), "{took:?}, {first} {times} {pieces}: {output}");
            }
        }
    }

    #[test]
    fn once_the_admin_thread_has_ended_nobody_waits_for_it() {
        for path in ["/metrics", "/debug/mem", "/debug/pprof/heap"] {
            let (output, took) = serve_with(|mut stream| async move {
                let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream
            });
            assert!(output.starts_with("HTTP/1.1 503 "), "{output}");
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    }

    #[test]
    fn a_head_that_is_too_long_is_answered_with_431() {
        let (output, _) = serve_with(|mut stream| async move {
            let head =
                format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(Config::default().header_bytes_max));
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 431 "), "{output}");
    }

    #[test]
    fn what_follows_a_handshake_leaves_http_whole() {
        let handshake = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let messages: Vec<u8> = (0..60_000_u32).flat_map(u32::to_be_bytes).collect();
        let all = Bytes::from([handshake.as_bytes(), &messages].concat());
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        // Read ahead of HTTP, or read by it.
        for ahead in [0, 1, handshake.len(), handshake.len() + 9_000, all.len()] {
            let listener = listener();
            let (ours, mut theirs) = duplex(all.len());
            let left = runtime.block_on(async {
                theirs.write_all(&all[ahead..]).await.unwrap();
                theirs.shutdown().await.unwrap();
                let conn = Arc::new(HttpConn::new(-1, Peer::default(), None));
                let upgrade = serve_stream(&listener, &conn, ours, all.slice(..ahead)).await.unwrap();
                let Upgrade { mut stream, leftover, .. } = upgrade.expect("it is granted");
                let mut left = leftover.to_vec();
                stream.read_to_end(&mut left).await.unwrap();
                left
            });
            assert!(left == messages, "{ahead}: {} of {} bytes", left.len(), messages.len());
        }
    }

    #[test]
    fn the_last_answer_leaves_whole_however_little_the_socket_takes() {
        let handshake = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let rejected = "GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nnot HTTP\r\n\r\n";
        // Pipes of one byte, or that hold the request and not the answer.
        let cases = [
            (64, "POST /publish HTTP/1.1\r\nContent-Length: 99999\r\n\r\nabc", "HTTP/1.1 413 ", "-bytes)\n"),
            (1, "not HTTP\r\n\r\n", "HTTP/1.1 400 ", "\r\n\r\n"),
            (1, handshake, "HTTP/1.1 101 ", "\r\n\r\n"),
            (256, rejected, "HTTP/1.1 426 ", "\r\n\r\n"),
        ];
        for (pipe_bytes, request, begins, ends) in cases {
            let (output, _) = serve_through(pipe_bytes, |mut stream| async move {
                stream.write_all(request.as_bytes()).await.unwrap();
                stream
            });
            assert!(output.starts_with(begins) && output.ends_with(ends), "{request}: {output}");
        }
    }
}
