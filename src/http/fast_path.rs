//! WebSocket handshakes that have arrived as a whole when their socket is taken: nearly all of them.
//!
//! They need neither hyper nor a task nor a registration with the runtime: one look, one read, one write. The checks and the
//! answer are those of every other handshake (`upgrade`). Whatever is not exactly that (another request, half a
//! head, a handshake to be refused) is left in the socket, unread, for hyper.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::Empty;
use httparse::{EMPTY_HEADER, Status};
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Method, Request, StatusCode, Version};

use super::route::Route;
use super::{HEADERS_MAX, answer, upgrade};
use crate::engine::AcceptedSocket;
use crate::engine::shard::Shard;

/// Longest head that is answered at once, in bytes; a browser with many cookies has a longer one.
const PEEK_BYTES: usize = 4096;

/// What became of a socket.
pub(super) enum Attempt {
    /// It is a WebSocket.
    Done,
    /// It is as it was.
    Left(AcceptedSocket),
    /// It has failed and is closed.
    Failed(io::Error),
}

/// Answers the handshake that waits in a socket, if one does. With TLS, none does.
pub(super) fn upgrade(shard: &Rc<Shard>, socket: AcceptedSocket) -> Attempt {
    if socket.listener_config.secure || !socket.listener_config.websockets {
        return Attempt::Left(socket);
    }
    let AcceptedSocket { mut stream, listener_config, permit } = socket;
    let mut buffer = [0; PEEK_BYTES];
    let asked = RefCell::default();
    // An error shows again to whoever reads next.
    let arrived = stream.peek(&mut buffer).unwrap_or_default();
    let granted = parse(&buffer[..arrived]).and_then(|(mut request, head_bytes)| {
        let path = request.uri().path().to_owned();
        let answer = match Route::of(&path)? {
            Route::Events(channel) => upgrade::events(shard, &asked, &mut request, channel),
            Route::Echo => upgrade::echo(shard, &asked, &mut request),
            _ => return None,
        };
        (answer.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| (head_bytes, answer::wire(&answer)))
    });
    let (Some((head_bytes, answer)), Some(granted)) = (granted, asked.take()) else {
        return Attempt::Left(AcceptedSocket { stream, listener_config, permit });
    };
    // The head has been seen, and a socket that has sent nothing yet has room for one answer.
    let sent = stream.read_exact(&mut buffer[..head_bytes]).and_then(|()| stream.write_all(&answer));
    let registered =
        sent.and_then(|()| shard.register(stream, None, Bytes::new(), granted.role, granted.pending, permit));
    registered.map_or_else(Attempt::Failed, |()| Attempt::Done)
}

/// A whole request head without a body, and its length in bytes.
fn parse(bytes: &[u8]) -> Option<(Request<Empty<Bytes>>, usize)> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let Ok(Status::Complete(head_bytes)) = head.parse(bytes) else { return None };
    if head.method != Some("GET") || head.version != Some(1) {
        return None;
    }
    let mut request = Request::builder().method(Method::GET).version(Version::HTTP_11).uri(head.path?);
    for header in head.headers {
        request = request.header(header.name, header.value);
    }
    let request = request.body(Empty::new()).ok()?;
    let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| request.headers().contains_key(name));
    (!has_body).then_some((request, head_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_head_without_a_body_is_taken() {
        let head = b"GET /ws?channel=a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n";
        let (request, head_bytes) = parse(&[&head[..], b"\x81\x80"].concat()).unwrap();
        assert_eq!((head_bytes, request.uri().query()), (head.len(), Some("channel=a")));
        assert_eq!(request.headers()["upgrade"], "websocket");
        assert!((0..head.len()).all(|length| parse(&head[..length]).is_none()));
        for other in [
            "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET  HTTP/1.1\r\n\r\n",
            "\r\n",
        ] {
            assert!(parse(other.as_bytes()).is_none(), "{other:?}");
        }
    }
}
