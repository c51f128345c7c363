//! The part of HTTP/1.1 that a load needs: the end of a response, its status, and whether its
//! connection may be used again.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// How a body ends (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Bytes(usize),
    Chunked,
    ToTheEnd,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// Status code.
    pub(crate) status: u16,
    /// Length of the head with the empty line that ends it, in bytes.
    pub(crate) bytes: usize,
    text: &'a str,
}

impl Head<'_> {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Whether the server closes the connection after this response.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
            || self.text.starts_with("HTTP/1.0")
            || self.body().is_ok_and(|body| body == Body::ToTheEnd)
    }

    fn body(&self) -> io::Result<Body> {
        if matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Body::Bytes(0));
        }
        if self.header("transfer-encoding").is_some() {
            return Ok(Body::Chunked);
        }
        self.header("content-length")
            .map_or(Ok(Body::ToTheEnd), |length| length.parse().map(Body::Bytes).map_err(io::Error::other))
    }
}

/// The head at the start of `response`; `None` while it is incomplete.
///
/// # Errors
/// When it is not an HTTP/1 response.
pub(crate) fn head(response: &[u8]) -> io::Result<Option<Head<'_>>> {
    let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&response[..end]).map_err(io::Error::other)?;
    let line = text.split("\r\n").next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    let status = status
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no HTTP/1.1 response: {line:?}")))?;
    Ok(Some(Head { status, bytes: end + 4, text }))
}

/// Longest response that is accepted, in bytes.
pub(crate) const RESPONSE_BYTES_MAX: usize = 1 << 20;

fn too_long() -> io::Error {
    io::Error::other(format!("a response is longer than {RESPONSE_BYTES_MAX} bytes"))
}

/// Length of the response at the start of `received`, in bytes; `None` while it is incomplete.
/// `ended` says that nothing more will arrive.
///
/// # Errors
/// When it is not a valid response.
pub(crate) fn response_bytes(received: &[u8], ended: bool) -> io::Result<Option<usize>> {
    let Some(head) = head(received)? else {
        return if received.len() > RESPONSE_BYTES_MAX { Err(too_long()) } else { Ok(None) };
    };
    let end = match head.body()? {
        Body::Bytes(bytes) => Some(head.bytes.checked_add(bytes).ok_or_else(too_long)?),
        Body::Chunked => chunks_bytes(&received[head.bytes..])?.map(|bytes| head.bytes + bytes),
        Body::ToTheEnd => ended.then_some(received.len()),
    };
    if end.unwrap_or(received.len()) > RESPONSE_BYTES_MAX {
        return Err(too_long());
    }
    Ok(end.filter(|end| *end <= received.len()))
}

/// Length of a chunked body without trailers, in bytes (RFC 9112, section 7.1).
fn chunks_bytes(body: &[u8]) -> io::Result<Option<usize>> {
    let mut at = 0;
    loop {
        let Some(line) = body[at..].windows(2).position(|window| window == b"\r\n") else {
            return Ok(None);
        };
        let size = String::from_utf8_lossy(&body[at..at + line]);
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        at = at.checked_add(line + 4).and_then(|at| at.checked_add(size)).ok_or_else(too_long)?;
        if at > body.len() || size == 0 {
            return Ok((at <= body.len()).then_some(at));
        }
    }
}

/// The body of the response to one `GET`.
///
/// # Errors
/// When the server cannot be reached, or its status is not 200.
pub fn get(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    match head(&response)? {
        Some(Head { status: 200, bytes, .. }) => String::from_utf8(response.split_off(bytes)).map_err(io::Error::other),
        _ => Err(io::Error::other(format!("{path} was answered with {:?}", String::from_utf8_lossy(&response)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Length of the response; no shorter part of it may give another.
    fn end(response: &[u8]) -> Option<usize> {
        for cut in 0..response.len() {
            if let Some(early) = response_bytes(&response[..cut], false).unwrap() {
                assert_eq!(response_bytes(response, false).unwrap(), Some(early));
            }
        }
        response_bytes(response, false).unwrap()
    }

    #[test]
    fn the_end_of_a_response_is_found() {
        assert_eq!(end(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}"), Some(46));
        assert_eq!(end(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}HTTP"), Some(46));
        assert_eq!(end(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n";
        assert_eq!(end(chunked), Some(chunked.len()));
        let unending = b"HTTP/1.1 200 OK\r\n\r\nabc";
        assert_eq!(end(unending), None);
        assert_eq!(response_bytes(unending, true).unwrap(), Some(unending.len()));
        assert!(head(unending).unwrap().unwrap().closes());
        assert!(head(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n").unwrap().unwrap().closes());
        assert!(!head(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap().unwrap().closes());
        let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffec\r\n";
        assert!(response_bytes(endless, false).is_err());
        let long = [&unending[..], &[b'x'; RESPONSE_BYTES_MAX]].concat();
        assert!(
            response_bytes(&long, false).is_err() && response_bytes(&[b'x'; RESPONSE_BYTES_MAX + 1], false).is_err()
        );
        assert!(head(b"SSH-2.0-x\r\n\r\n").is_err());
    }
}
