//! Requests that are answered without hyper: WebSocket handshakes that arrive whole, as nearly all
//! do, and small whole publications.
//!
//! The checks and the responses are those of every other request. Anything that is not exactly such
//! a request (half a head, another route, an unusual header) is left to hyper, unread.

use bytes::Bytes;
use http_body_util::Empty;
use httparse::{EMPTY_HEADER, Status};
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, Request, Version};

use crate::settings::Config;

/// Most headers of a request that is answered here.
const HEADERS_MAX: usize = 64;

/// The limits of a request head by the settings in effect. A head beyond them is left to hyper,
/// which answers 431.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    headers: usize,
    bytes: usize,
}

impl HeadLimits {
    pub(super) fn of(config: &Config) -> Self {
        Self { headers: config.headers_max, bytes: config.header_bytes_max }
    }
}

/// The head of a request, without its body.
type Head = Request<Empty<Bytes>>;

/// A whole request head of HTTP/1.1, and its length in bytes, if it is whole. `None` if it cannot
/// be read, or is beyond `limits`.
fn head(bytes: &[u8], expected: &Method, limits: HeadLimits) -> Option<Status<(Head, usize)>> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers[..limits.headers.min(HEADERS_MAX)]);
    let Status::Complete(length) = head.parse(bytes).ok()? else {
        return (bytes.len() < limits.bytes).then_some(Status::Partial);
    };
    if length > limits.bytes || head.method != Some(expected.as_str()) || head.version != Some(1) {
        return None;
    }
    let mut request = Request::builder().method(expected).version(Version::HTTP_11).uri(head.path?);
    for header in head.headers {
        request = request.header(header.name, header.value);
    }
    Some(Status::Complete((request.body(Empty::new()).ok()?, length)))
}

/// The handshake that `bytes` begin with, without a body, and the length of its head in bytes.
pub(super) fn handshake(bytes: &[u8], limits: HeadLimits) -> Option<(Head, usize)> {
    let Status::Complete((request, length)) = head(bytes, &Method::GET, limits)? else { return None };
    let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| request.headers().contains_key(name));
    (!has_body && request.headers().contains_key(UPGRADE)).then_some((request, length))
}

/// The kind of request that a connection's bytes begin with.
pub(super) enum Found {
    /// A whole publication, and its length in bytes.
    Publication { request: Head, body: Bytes, length: usize },
    /// A publication whose body is not whole.
    Head(Head),
    /// Maybe the beginning of one.
    Part,
    /// Something else.
    Other,
}

/// Looks for a publication of at most `body_bytes_max` at the beginning of `bytes`.
pub(super) fn publication(bytes: &[u8], body_bytes_max: usize, limits: HeadLimits) -> Found {
    const BEGIN: &[u8] = b"POST /publish";
    let common = bytes.len().min(BEGIN.len());
    if bytes[..common] != BEGIN[..common] {
        return Found::Other;
    }
    let (request, head_bytes) = match head(bytes, &Method::POST, limits) {
        Some(Status::Complete(whole)) => whole,
        Some(Status::Partial) => return Found::Part,
        None => return Found::Other,
    };
    let channel = request.uri().path().strip_prefix("/publish").unwrap_or("?");
    if !(channel.is_empty() || channel.len() > 1 && channel.rfind('/') == Some(0)) {
        return Found::Other;
    }
    let headers = request.headers();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())),
        _ => None,
    };
    let unusual = [TRANSFER_ENCODING, EXPECT, UPGRADE].iter().any(|name| headers.contains_key(name))
        || headers.get_all(CONNECTION).iter().any(|value| {
            !(value.as_bytes().eq_ignore_ascii_case(b"close") || value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
        });
    let Some(body_bytes) =
        length.and_then(|text| text.parse::<usize>().ok()).filter(|&bytes| !unusual && bytes <= body_bytes_max)
    else {
        return Found::Other;
    };
    let Some(length) = head_bytes.checked_add(body_bytes) else { return Found::Other };
    match bytes.get(head_bytes..length) {
        Some(body) => Found::Publication { body: Bytes::copy_from_slice(body), request, length },
        None => Found::Head(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HeadLimits {
        HeadLimits::of(&Config::default())
    }

    fn handshake(bytes: &[u8]) -> Option<(Request<Empty<Bytes>>, usize)> {
        super::handshake(bytes, limits())
    }

    fn publication(bytes: &[u8], body_bytes_max: usize) -> Found {
        super::publication(bytes, body_bytes_max, limits())
    }

    #[test]
    fn a_head_beyond_the_limits_is_left_to_hyper() {
        let wanted = "Upgrade: websocket\r\nA: b\r\n\r\n";
        let handshake = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{wanted}");
        let publication = "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nA: b\r\n\r\n";
        for (headers, bytes, fits) in [(3, 100, true), (2, 100, false), (100, 60, false), (64, 100, true)] {
            let limits = HeadLimits { headers, bytes };
            assert_eq!(super::handshake(handshake.as_bytes(), limits).is_some(), fits, "{limits:?}");
            let found = super::publication(publication.as_bytes(), 0, limits);
            assert_eq!(matches!(found, Found::Publication { .. }), fits, "{limits:?}");
            assert_eq!(matches!(found, Found::Other), !fits, "{limits:?}");
        }
        let (exact, begun) = (publication.len(), &publication.as_bytes()[..50]);
        let with = |bytes| HeadLimits { headers: 3, bytes };
        assert!(matches!(super::publication(publication.as_bytes(), 0, with(exact)), Found::Publication { .. }));
        assert!(matches!(super::publication(publication.as_bytes(), 0, with(exact - 1)), Found::Other));
        assert!(matches!(super::publication(begun, 0, with(51)), Found::Part));
        assert!(matches!(super::publication(begun, 0, with(50)), Found::Other));
    }

    #[test]
    fn only_a_whole_handshake_without_a_body_is_taken() {
        let head = b"GET /ws?channel=a HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n";
        let (request, length) = handshake(&[&head[..], b"\x81\x80"].concat()).unwrap();
        assert_eq!((length, request.uri().query()), (head.len(), Some("channel=a")));
        assert_eq!(request.headers()["upgrade"], "websocket");
        assert!((0..head.len()).all(|length| handshake(&head[..length]).is_none()));
        for other in [
            "POST / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET  HTTP/1.1\r\n\r\n",
            "\r\n",
        ] {
            assert!(handshake(other.as_bytes()).is_none(), "{other:?}");
        }
    }

    #[test]
    fn only_a_whole_plain_publication_is_taken() {
        let whole = b"POST /publish/a?receipt=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
        match publication(&[&whole[..], b"POST"].concat(), 3) {
            Found::Publication { request, body, length } => {
                assert_eq!((request.uri().path(), &body[..], length), ("/publish/a", &b"abc"[..], whole.len()));
            }
            _ => panic!("it is whole"),
        }
        let begun = |length| publication(&whole[..length], 3);
        assert!((0..whole.len() - 3).all(|length| matches!(begun(length), Found::Part)));
        assert!((whole.len() - 3..whole.len()).all(|length| matches!(begun(length), Found::Head(_))));
        for other in [
            "GET /publish HTTP/1.1\r\n\r\n",
            "POST /publish HTTP/9.9\r\n",
            "POST /publish\0",
            "POST /publish HTTP/1.1\r\nnot a header\r\n",
            "POST /other HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            "POST /publishx HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            "POST /publish/ HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            "POST /publish/a/b HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
            "POST /publish HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
            "POST /publish HTTP/1.1\r\n\r\n",
            "POST /publish HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx",
            "POST /publish HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: \r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx",
            "POST /publish HTTP/1.1\r\nContent-Length: 1\r\nConnection: upgrade\r\n\r\nx",
        ] {
            assert!(matches!(publication(other.as_bytes(), 1), Found::Other), "{other:?}");
        }
    }
}
