//! Finds the port for publishing and memory statistics where it is not the clients' port: follows
//! the `Link` header of a 404, and reads `/debug/mem`.
//!
//! It follows a URL of the same host only, so that no server can send a load, and its token,
//! elsewhere. Servers without such a header work as before.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use serde::Deserialize;
use socket2::{Domain, Socket, Type};

use super::http::{self, Head};
use super::options::Options;
use super::stream::Stream;
use super::target::Target;

/// Longest wait for a response. No figure depends on it: without one there are none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The URL in a `Link` header with `rel="alternate"` (RFC 8288, section 3).
fn alternate(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_alternate = |parameter: &str| {
            let value = parameter.trim().strip_prefix("rel=");
            value.is_some_and(|value| value.trim_matches('"').split(' ').any(|rel| rel == "alternate"))
        };
        parameters.split(';').any(is_alternate).then_some(url)
    })
}

/// The place that a 404 names for a request to `target`: scheme, host and port of its `Link`
/// header, with the path of `target`. `None` if it names none.
///
/// # Errors
/// A sentence if it names another host than that of `target`.
pub(super) fn moved(target: &Target, head: &Head<'_>) -> Result<Option<Target>, String> {
    let Some(url) = head.header("link").filter(|_| head.status == 404).and_then(alternate) else {
        return Ok(None);
    };
    let Ok(named) = Target::parse(url, "http") else {
        return Ok(None);
    };
    if !named.is_on_host_of(target) {
        return Err(format!(
            "{target} was answered with 404, which names {url}: give that as --publish-url if it is right"
        ));
    }
    Ok((named.address != target.address).then(|| target.moved_to(&named)))
}

/// Memory figures of a server, in bytes.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct MemoryFigures {
    /// Not every allocator tells it.
    pub(super) allocated_bytes: Option<u64>,
    pub(super) rss_bytes: u64,
}

/// The figures of `/debug/mem`, if the server has it.
pub(super) fn memory(options: &Options) -> Option<MemoryFigures> {
    let mut target = options.publish_url.with_path("/debug/mem");
    for _ in 0..2 {
        let response = get(&target, options.token.as_deref()).ok()?;
        let head = http::head(&response).ok()??;
        if head.status == 200 {
            return serde_json::from_slice(&response[head.bytes..]).ok();
        }
        target = moved(&target, &head).ok()??;
    }
    None
}

/// The response to one `GET`.
fn get(target: &Target, token: Option<&str>) -> io::Result<Vec<u8>> {
    let until = Instant::now() + TIMEOUT;
    let server = target.resolve()?;
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.connect_timeout(&server.into(), TIMEOUT)?;
    socket.set_nonblocking(true)?;
    let mut stream = Stream::new(mio::net::TcpStream::from_std(socket.into()), target.tls()?.as_ref())?;
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(8));
    poll.registry().register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE)?;
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let (path, host) = (target.request(None), &target.authority);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n");
    let mut unsent = request.as_bytes();
    let (mut response, mut piece, mut ended) = (Vec::new(), [0; 4096], false);
    loop {
        stream.flush()?;
        if !unsent.is_empty() {
            match stream.write(unsent) {
                Ok(written) => unsent = &unsent[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        match stream.read(&mut piece) {
            Ok(read) => {
                ended = read == 0;
                response.extend_from_slice(&piece[..read]);
                if let Some(end) = http::response_bytes(&response, ended)? {
                    response.truncate(end);
                    return Ok(response);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                match poll.poll(&mut events, Some(left)) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
        if ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved_by(url: &str, status: u16, link: &str) -> Result<Option<String>, String> {
        let response = format!("HTTP/1.1 {status} x\r\nLink: {link}\r\nContent-Length: 0\r\n\r\n");
        let head = http::head(response.as_bytes()).unwrap().unwrap();
        moved(&Target::parse(url, "http").unwrap(), &head).map(|target| target.map(|target| target.to_string()))
    }

    #[test]
    fn a_404_may_name_another_port_of_the_same_host() {
        let link = "<http://127.0.0.1:3001/publish>; rel=\"alternate\"";
        let named = Ok(Some("http://127.0.0.1:3001/publish/room".to_owned()));
        assert_eq!(moved_by("http://127.0.0.1:3000/publish/room", 404, link), named);
        assert_eq!(moved_by("http://localhost:3000/publish/room", 404, link), named);
        assert_eq!(moved_by("http://[::1]:3000/publish/room", 404, link), named);
        assert_eq!(moved_by("http://127.0.0.1:3000/publish", 405, link), Ok(None));
        assert_eq!(moved_by("http://127.0.0.1:3001/publish", 404, link), Ok(None), "no circle");
        assert_eq!(moved_by("http://127.0.0.1:3000/publish", 404, "<http://127.0.0.1:1/>; rel=next"), Ok(None));
        let two = "<x>; rel=next, <http://h:3001/publish>; rel=alternate";
        assert_eq!(moved_by("http://H:3000/publish", 404, two), Ok(Some("http://h:3001/publish".to_owned())));
    }

    #[test]
    fn no_server_sends_a_load_to_another_host() {
        for url in ["http://10.0.0.1:3001/publish", "http://evil.example/publish"] {
            assert!(
                moved_by("http://h:3000/publish", 404, &format!("<{url}>; rel=alternate")).unwrap_err().contains(url)
            );
        }
        // A remote server's loopback is not this machine's.
        assert!(moved_by("http://h:3000/publish", 404, "<http://127.0.0.1:3001/>; rel=alternate").is_err());
    }
}
