//! The HTTP part of the server: every request on a socket that is not a WebSocket, or not yet.
//!
//! Owns the listeners' routes and HTTP connections, on threads of its own. Shards get upgraded
//! sockets and publications from here, and nothing else. Only this module parses requests, never on
//! a shard's thread. The effect of each route is in `router` and the modules beside it.

mod answer;
pub mod body_kind;
mod conn;
mod conn_table;
pub mod cors;
mod deadline;
mod debug;
mod fast_conn;
mod fast_path;
pub mod origin;
mod peer;
mod profile;
mod publish;
pub mod query;
mod request_body;
mod router;
mod stream;
pub mod subprotocol;
mod transport;
mod upgrade;
pub(crate) mod wakes;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;

use self::conn::FirstAnswer;
use self::conn_table::{Entry, HttpConn, HttpConnTable, Peer};
use self::fast_path::HeadLimits;
use self::origin::OriginPolicy;
use self::router::Routes;
use crate::admission::{AddressPermit, Rejection};
use crate::engine::Engine;
use crate::log_throttle::LogThrottle;
use crate::settings::ListenerConfig;

type Answer = Response<Full<Bytes>>;

/// Longest handshake that is answered without hyper, in bytes; a browser with many cookies sends a
/// longer one.
const FIRST_READ_BYTES: usize = 4096;

/// Reads of a socket that is rejected, of so many bytes each: of a longer request the answer may be
/// lost.
const REJECT_READS: usize = 4;

/// The state that the HTTP connections of one port share.
pub struct HttpListener {
    engine: Arc<Engine>,
    config: ListenerConfig,
    /// Where the admin routes are, without a path.
    admin_url: Option<String>,
    table: Arc<HttpConnTable>,
    /// The lines about rejected pages, by origin.
    rejected_origins: LogThrottle,
    /// The lines about all other rejections, by reason.
    rejections: LogThrottle,
    routes: OnceLock<Routes>,
}

impl HttpListener {
    /// A port without connections; `admin_url` is where the admin routes are, without a path.
    #[must_use]
    pub fn new(engine: Arc<Engine>, config: ListenerConfig, admin_url: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            engine,
            config,
            admin_url,
            table: Arc::default(),
            rejected_origins: LogThrottle::default(),
            rejections: LogThrottle::default(),
            routes: OnceLock::new(),
        })
    }

    /// Which pages may do what, by the settings in effect.
    fn with_origin_policy<T>(&self, peer: Peer, ask: impl FnOnce(&OriginPolicy<'_>) -> T) -> T {
        let live = self.engine.live();
        let (is_local, trusted_proxy) = (self.config.is_local, peer.is_trusted_proxy);
        let local_peer = peer.is_local();
        ask(&OriginPolicy { allowed: &live.allow_origin, is_local, trusted_proxy, local_peer })
    }

    fn routes(self: &Arc<Self>) -> &Routes {
        self.routes.get_or_init(|| router::routes(self))
    }

    /// Adds a connection, maybe in place of others.
    fn admit(&self, conn: HttpConn) -> Option<Entry> {
        let (entry, evicted) = self.table.insert(conn, self.engine.live().handshakes_max)?;
        for _ in 0..evicted {
            self.engine.rejections.count(Rejection::Handshakes);
        }
        Some(entry)
    }

    /// Closes the connections with the least progress, because no file can be opened; whether there
    /// were any.
    #[must_use]
    pub fn make_room(&self) -> bool {
        self.table.make_room() > 0
    }

    /// Number of HTTP connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len()
    }
}

/// Takes an accepted socket, which does not block: a WebSocket handshake that has arrived whole is
/// answered at once, and anything else in a task of its own. Waits only for a shard that has no
/// room for a WebSocket.
pub async fn take(listener: &Arc<HttpListener>, mut stream: TcpStream, address: Option<IpAddr>) {
    let (is_trusted_proxy, has_proxy_header) = {
        let live = listener.engine.live();
        let is_trusted = peer::is_trusted(address, &live.trusted_proxy);
        // Publishers and scrapers on the proxy's own machine connect to an admin-only listener.
        (is_trusted, is_trusted && live.proxy_protocol && listener.config.websockets)
    };
    let peer = Peer { address, is_trusted_proxy };
    if has_proxy_header {
        tokio::spawn(conn::serve_proxied(listener.clone(), stream, peer));
        return;
    }
    let mut of_address = match permit_address(listener, peer) {
        Ok(of_address) => of_address,
        Err(rejection) => return reject(listener, stream, address, rejection),
    };
    let mut buffer = [0; FIRST_READ_BYTES];
    let (mut ahead, mut first) = (&[][..], None);
    if !listener.config.secure {
        // An error shows again at the next read.
        let length = stream.read(&mut buffer).unwrap_or_default();
        ahead = &buffer[..length];
        if listener.config.websockets
            && let Some((mut request, head_bytes)) =
                fast_path::handshake(ahead, HeadLimits::of(&listener.engine.live()))
            && let Some(role) = upgrade::role(request.uri().path())
        {
            let conn = HttpConn::new(-1, peer, of_address.take());
            let answer = upgrade::upgrade(listener, &conn, &mut request, role);
            if let Some(granted) = conn.take_grant() {
                let (head, leftover) = (answer::head(&answer).into(), Bytes::copy_from_slice(&ahead[head_bytes..]));
                return conn::hand_over(listener, stream, None, head, leftover, granted).await;
            }
            of_address = conn.take_address_permit();
            // Rejected: hyper gets what follows, so that nothing is checked or counted twice.
            ahead = &ahead[head_bytes..];
            first = Some(Box::new(FirstAnswer { answer, keeps: router::client_keeps(&request) }));
        }
    }
    // The runtime ends with the front, and every task with it; none outlives its socket.
    tokio::spawn(conn::serve(listener.clone(), stream, peer, of_address, Bytes::copy_from_slice(ahead), first));
}

/// Counts a connection of its address. Behind a trusted proxy, each WebSocket is counted by the
/// address in its request, or by the proxy's if the request names none.
fn permit_address(listener: &HttpListener, peer: Peer) -> Result<Option<AddressPermit>, Rejection> {
    match peer {
        Peer { address: Some(address), is_trusted_proxy: false } => listener.engine.permit_address(address),
        _ => Ok(None),
    }
}

/// Answers a socket that gets no HTTP connection, without waiting for anything. With TLS, the
/// socket is closed without an answer, which would cost a handshake.
pub fn reject(listener: &HttpListener, mut stream: TcpStream, client: Option<IpAddr>, rejection: Rejection) {
    let answer = answer::last(listener, client, answer::rejected(rejection));
    if listener.config.secure {
        return;
    }
    let mut request = [0; FIRST_READ_BYTES];
    // Closing a socket with unread input resets it, and the client may lose the answer. An error
    // here concerns only this client, which is being rejected.
    for _ in 0..REJECT_READS {
        if !matches!(stream.read(&mut request), Ok(FIRST_READ_BYTES)) {
            break;
        }
    }
    let _ = stream.write_all(&answer::whole(answer));
    let _ = stream.shutdown(Shutdown::Write);
}

/// An HTTP connection over any stream, for `tests/fuzz`; an upgraded stream gets its response head
/// and is dropped.
#[cfg(fuzzing)]
pub async fn serve_alone(
    listener: &Arc<HttpListener>,
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) {
    let conn = Arc::new(HttpConn::new(-1, Peer::default(), None));
    // Errors mean that the client has gone.
    if let Ok(Some(mut upgrade)) = conn::serve_stream(listener, &conn, stream, Bytes::new()).await {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut upgrade.stream, &upgrade.head).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;
    use crate::jwt::TokenKey;
    use crate::settings::Config;

    /// The responses to `request`, which arrives whole at a socket of `listener`.
    async fn take_whole(listener: &Arc<HttpListener>, request: &str) -> String {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = tokio::net::TcpStream::connect(port.local_addr().unwrap()).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (stream, peer) = port.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        take(listener, stream, Some(peer.ip())).await;
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        output
    }

    #[test]
    fn a_rejected_handshake_is_checked_and_counted_once() {
        let config = Config { subscriber_key: Some(TokenKey::from_secret("secret")), ..Config::default() };
        let (_, served) = config.listeners().remove(0);
        let engine = Engine::new(config, mpsc::channel(1).0);
        let listener = HttpListener::new(engine.clone(), served, None);
        let handshake = |header: &str| {
            format!(
                "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n\r\n"
            )
        };
        let next = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let origin = "https://evil.example";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (header, status) in [(&*format!("Origin: {origin}"), "403"), ("Authorization: Bearer x", "401")] {
                for _ in 0..3 {
                    let output = take_whole(&listener, &[&handshake(header), next].concat()).await;
                    assert!(output.starts_with(&format!("HTTP/1.1 {status} ")), "{output}");
                    assert!(output.contains("keep-alive: timeout=75\r\n"), "{output}");
                    assert!(output.contains("HTTP/1.1 200 ") && output.ends_with("ok\n"), "{output}");
                    let last = take_whole(&listener, &handshake(&format!("{header}\r\nConnection: close"))).await;
                    assert_eq!(last.matches("HTTP/1.1 ").count(), 1, "{last}");
                    assert!(last.contains("connection: close\r\n"), "{last}");
                }
            }
        });
        let counted = |rejection| engine.rejections.get(rejection);
        assert_eq!([Rejection::Origin, Rejection::Unauthorized].map(counted), [6, 6]);
        let errors: Vec<_> = engine.http_errors.series().filter(|&(_, number)| number > 0).collect();
        assert_eq!(errors, [("401", 6), ("403", 6)]);
        // The log has one line for the first rejection, and none for the five that followed.
        let later = Instant::now() + Duration::from_secs(100);
        assert_eq!(listener.rejected_origins.count(origin, later), Some(5));
    }
}
