//! The HTTP phase of a socket, and the way to a WebSocket. The only place that parses a request; what a request gets is in `route`.
//!
//! hyper reads and writes; an upgraded socket leaves this module with nothing of it attached, so that an idle WebSocket
//! costs none of the ~17 KiB that its HTTP phase did.

mod answer;
pub mod body_kind;
pub mod cors;
mod debug;
mod fast_path;
mod no_shutdown;
pub mod origin;
mod profile;
mod publish;
pub mod query;
mod route;
pub mod subprotocol;
mod transport;
mod upgrade;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use hyper::server::conn::http1::{self, Parts};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

use self::answer::with;
use self::fast_path::Attempt;
use self::no_shutdown::NoShutdown;
use self::route::{RequestContext, respond};
use self::transport::Transport;
use self::upgrade::Upgrade;
use crate::admission::Rejection;
use crate::config::ListenerConfig;
use crate::engine::phases::{HttpPhase, Phases};
use crate::engine::shard::Shard;
use crate::engine::turns::Newcomer;
use crate::engine::{AcceptedSocket, Engine};
use crate::mem;

type Answer = Response<Full<Bytes>>;

/// Most headers of a request; more are answered with 431.
const HEADERS_MAX: usize = 64;
/// Longest head of a request in bytes; a longer one is answered with 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// HTTP phases in a row, without a moment in which there is none, after which the memory that the thread keeps is given back.
const FLUSH_AFTER: u64 = 64;
/// How long the rest of a request that was answered early is read and thrown away, so that the answer is not lost to a
/// reset.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);

/// Takes a socket through its HTTP phase: at once if it begins with a WebSocket handshake that has arrived, else in a task
/// of its own that ends with it.
pub fn serve(shard: &Rc<Shard>, socket: AcceptedSocket) {
    let socket = match fast_path::upgrade(shard, socket) {
        Attempt::Left(socket) => socket,
        Attempt::Done => return,
        Attempt::Failed(error) => return tracing::debug!("handshake: {error}"),
    };
    let Some(place) = Place::take(shard, socket.listener_config) else {
        return refuse(&shard.engine, socket.stream, socket.listener_config, Rejection::Handshakes);
    };
    let (inside, phases, known) = (shard.clone(), place.phases.clone(), place.phase.clone());
    let task = async move {
        if let Err(error) = phase(&inside, socket, place).await {
            tracing::debug!("HTTP phase: {error}");
        }
    };
    // The runtime ends with the shard, and every task with it; none outlives its socket.
    tokio::task::spawn_local(Newcomer::new(shard.clone(), phases, known, task));
}

/// A place among the HTTP phases at one port of a shard; given back on drop.
struct Place {
    phases: Rc<Phases>,
    phase: Rc<HttpPhase>,
}

impl Place {
    /// A place, maybe in place of another; nothing when everybody who has one is being answered.
    fn take(shard: &Shard, listener_config: ListenerConfig) -> Option<Self> {
        let config = &shard.engine.config;
        let most = config.handshakes_max.div_ceil(config.shards.get());
        let phases = shard.http_phases[listener_config.port].clone();
        let (phase, instead) = phases.take(most)?;
        if instead {
            shard.engine.rejections.count(Rejection::Handshakes);
        }
        Some(Self { phases, phase })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After so many, what the thread keeps of their buffers is worth the call.
        let happened = self.phases.give_back(&self.phase);
        if happened.is_some_and(|happened| happened >= FLUSH_AFTER) {
            mem::flush();
        }
    }
}

/// Answers a socket that is not worth an HTTP phase, without waiting for anything. With TLS, the end of the stream has to do:
/// an answer would cost a handshake.
pub fn refuse(engine: &Engine, mut stream: TcpStream, listener_config: ListenerConfig, rejection: Rejection) {
    engine.rejections.count(rejection);
    if listener_config.secure {
        return;
    }
    engine.count_answer(rejection.status());
    let body = format!("{}\n", rejection.sentence());
    let answer = with(answer::refused(rejection), CONTENT_LENGTH, HeaderValue::from(body.len()));
    let head = answer::wire(&with(answer, CONNECTION, HeaderValue::from_static("close")));
    let mut request = [0; HEAD_BYTES_MAX];
    // What has come is read, so that closing the socket does not reset it before the client has the answer. Whatever
    // fails here concerns this client only, and it is being turned away.
    let _ = stream.set_nonblocking(true);
    let _ = stream.read(&mut request);
    let _ = stream.write_all(&[&head, body.as_bytes()].concat());
    let _ = stream.shutdown(Shutdown::Write);
}

async fn phase(shard: &Rc<Shard>, socket: AcceptedSocket, place: Place) -> io::Result<()> {
    let AcceptedSocket { stream, listener_config, permit } = socket;
    let tls = shard.engine.config.tls.as_deref().filter(|_| listener_config.secure);
    let Conversation { done, mut stream, leftover, upgrade } =
        converse(shard, Transport::new(stream, tls)?, listener_config, &place.phase).await;
    let (phases, phase) = (place.phases.clone(), place.phase.clone());
    match (done, upgrade) {
        _ if phase.is_evicted() => Ok(()),
        // From here to the registration nothing is awaited: who has seen the 101 is subscribed.
        (Ok(()), Some(Upgrade { role, pending })) => {
            drop(place);
            let (stream, session) = stream.into_parts()?;
            shard.register(stream, session, leftover, role, pending, permit)
        }
        (done, _) => {
            // It has had its answer, and its place is anybody's.
            phases.forget(&phase);
            stream.shutdown().await?;
            let mut thrown_away = [0; 4096];
            let linger = async { while matches!(stream.read(&mut thrown_away).await, Ok(1..)) {} };
            // The client ends it, or the time does, or who comes.
            tokio::select! {
                () = linger => {}
                () = sleep(LINGER_TIMEOUT) => {}
                () = phase.evicted() => {}
            }
            done.map_err(io::Error::other)
        }
    }
}

/// How an HTTP phase has ended.
struct Conversation<I> {
    done: hyper::Result<()>,
    stream: I,
    /// What the client has sent behind its last request.
    leftover: Bytes,
    /// What the last request asked for and was granted.
    upgrade: Option<Upgrade>,
}

/// Answers requests until one asks for a WebSocket, the client ends, its time is over, or the server drains.
async fn converse<I>(
    shard: &Rc<Shard>,
    stream: I,
    listener_config: ListenerConfig,
    phase: &Rc<HttpPhase>,
) -> Conversation<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let upgrade = RefCell::default();
    let context = Rc::new(RequestContext { shard: shard.clone(), listener_config, phase: phase.clone(), upgrade });
    let visitor = context.clone();
    let service = service_fn(move |request| {
        let context = visitor.clone();
        // hyper wants a future that it can move.
        Box::pin(async move { Ok::<_, Infallible>(respond(&context, request).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shard.engine.config.handshake_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(NoShutdown(stream)), service);
    let done = tokio::select! {
        biased;
        () = phase.evicted() => Ok(()),
        done = finish(&mut connection) => done,
        () = shard.draining() => {
            // Whose request is not whole has waited long enough.
            if phase.is_busy() {
                pin::Pin::new(&mut connection).graceful_shutdown();
                finish(&mut connection).await
            } else {
                Ok(())
            }
        }
    };
    // hyper answers a request that it cannot read by itself.
    if let Err(error) = &done
        && error.is_parse()
    {
        shard.engine.count_answer(if error.is_parse_too_large() { 431 } else { 400 });
    }
    let Parts { io, read_buf, .. } = connection.into_parts();
    Conversation { done, stream: io.into_inner().0, leftover: read_buf, upgrade: context.upgrade.take() }
}

/// Until a connection of hyper's is done and its last byte has left. Behind a request for an upgrade hyper does not wait for
/// that; asked again, it does.
async fn finish(connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin)) -> hyper::Result<()> {
    match (&mut *connection).await {
        // Only of a request that cannot be read is there an answer that may still wait.
        Err(error) if !error.is_parse() => Err(error),
        done => done.and(connection.await),
    }
}

/// An HTTP phase over any stream, for `tests/fuzz`; what it ends with is dropped.
#[cfg(fuzzing)]
pub async fn converse_alone(shard: &Rc<Shard>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let (_, listener_config) = shard.engine.config.listeners()[0];
    drop(converse(shard, stream, listener_config, &Rc::default()).await);
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Config;

    fn converse_with<F: Future<Output = DuplexStream>>(client: impl FnOnce(DuplexStream) -> F) -> (String, Duration) {
        converse_through(64 * 1024, client)
    }

    /// Runs an HTTP phase against `client`, through a pipe of so many bytes each way, with a clock that moves only while both sides wait. The whole output of the
    /// server, and how long it took.
    fn converse_through<F: Future<Output = DuplexStream>>(
        pipe_bytes: usize,
        client: impl FnOnce(DuplexStream) -> F,
    ) -> (String, Duration) {
        let runtime =
            Builder::new_current_thread().enable_all().start_paused(true).build_local(LocalOptions::default());
        runtime.unwrap().block_on(async {
            let (shard, _set) = Shard::new(Engine::new(Config::default(), mpsc::channel(1).0), 0).unwrap();
            let (ours, theirs) = duplex(pipe_bytes);
            let begun = Instant::now();
            let server = async {
                let (_, listener_config) = shard.engine.config.listeners()[0];
                drop(converse(&shard, ours, listener_config, &Rc::default()).await);
            };
            let client = async {
                let mut stream = client(theirs).await;
                let mut output = String::new();
                stream.read_to_string(&mut output).await.unwrap();
                output
            };
            let (output, ()) = tokio::join!(client, server);
            (output, begun.elapsed())
        })
    }

    fn in_time() -> std::ops::Range<Duration> {
        let Config { handshake_timeout, .. } = Config::default();
        handshake_timeout..handshake_timeout * 2
    }

    #[test]
    fn a_head_that_does_not_come_ends_the_phase() {
        let (output, took) = converse_with(|mut stream| async move {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHos").await.unwrap();
            stream
        });
        assert!(in_time().contains(&took), "{took:?}: {output}");
    }

    #[test]
    fn a_body_that_does_not_come_is_answered_with_408() {
        let (output, took) = converse_with(|mut stream| async move {
            let head =
                b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabc";
            stream.write_all(head).await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 408 "), "{output}");
        assert!(in_time().contains(&took), "{took:?}");
    }

    #[test]
    fn an_idle_connection_ends() {
        let (output, took) = converse_with(|mut stream| async move {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 200 ") && output.ends_with("ok\n"), "{output}");
        assert!(in_time().contains(&took), "{took:?}");
    }

    #[test]
    fn once_the_admin_thread_has_ended_nobody_waits_for_it() {
        for path in ["/metrics", "/debug/mem", "/debug/pprof/heap"] {
            let (output, took) = converse_with(|mut stream| async move {
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
        let (output, _) = converse_with(|mut stream| async move {
            let head = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(HEAD_BYTES_MAX));
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        });
        assert!(output.starts_with("HTTP/1.1 431 "), "{output}");
    }

    #[test]
    fn the_last_answer_leaves_whole_however_little_the_socket_takes() {
        let handshake = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let refused = "GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nnot HTTP\r\n\r\n";
        // Pipes of one byte, or that hold the request and not the answer.
        let cases = [
            (64, "POST /publish HTTP/1.1\r\nContent-Length: 99999\r\n\r\nabc", "HTTP/1.1 413 ", "-bytes)\n"),
            (1, "not HTTP\r\n\r\n", "HTTP/1.1 400 ", "\r\n\r\n"),
            (1, handshake, "HTTP/1.1 101 ", "\r\n\r\n"),
            (256, refused, "HTTP/1.1 426 ", "\r\n\r\n"),
        ];
        for (pipe_bytes, request, begins, ends) in cases {
            let (output, _) = converse_through(pipe_bytes, |mut stream| async move {
                stream.write_all(request.as_bytes()).await.unwrap();
                stream
            });
            assert!(output.starts_with(begins) && output.ends_with(ends), "{request}: {output}");
        }
    }
}
