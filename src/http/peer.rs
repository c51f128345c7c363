//! The address of a client behind a proxy: from the PROXY protocol, `Forwarded` (RFC 7239) or
//! `X-Forwarded-For`.
//!
//! Owns the rule of trust: only a proxy in `--trusted-proxy` may name a client's address. In a
//! chain of proxies, the client's address is the nearest one that is no trusted proxy: the client
//! may have invented every address before it. Promises that a header of the client's own never
//! overrides the proxy's: two headers that contradict each other are an error.

use std::io;
use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{FORWARDED, HeaderName};
use ppp::{HeaderResult, PartialResult};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;

use crate::settings::TrustedProxy;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Longest header of the PROXY protocol that is read, in bytes: version 2 with a few extensions.
const PROXY_HEADER_BYTES_MAX: usize = 1024;

/// Whether a peer at `address`, or at a Unix socket, is a trusted proxy.
pub(super) fn is_trusted(address: Option<IpAddr>, trusted: &[TrustedProxy]) -> bool {
    trusted.iter().any(|proxy| proxy.is(address))
}

/// Two headers of a trusted proxy's request contradict each other: 400. The client has sent one of
/// them, and it is unknown which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForwardedError {
    /// They name different clients.
    #[error("Forwarded and X-Forwarded-For name different clients: let the proxy set one of them and remove the other")]
    Clients,
    /// They name different hosts.
    #[error("Forwarded and X-Forwarded-Host name different hosts: let the proxy set one of them and remove the other")]
    Hosts,
}

/// The client's address by the headers of a trusted proxy; `None` if they name none.
///
/// # Errors
/// When two headers contradict each other.
pub(super) fn forwarded_for(headers: &HeaderMap, trusted: &[TrustedProxy]) -> Result<Option<IpAddr>, ForwardedError> {
    check_hosts(headers)?;
    let forwarded = elements(headers, &FORWARDED);
    let names_client = forwarded.iter().any(|element| pair(element, "for").is_some());
    let forwarded = forwarded.iter().map(|element| pair(element, "for").and_then(address)).collect();
    let forwarded = names_client.then(|| nearest(forwarded, trusted));
    let x_forwarded = elements(headers, &FORWARDED_FOR);
    let names_client = x_forwarded.iter().any(|element| !element.trim().is_empty());
    let x_forwarded = names_client.then(|| nearest(x_forwarded.iter().map(|text| address(text)).collect(), trusted));
    match (forwarded, x_forwarded) {
        (Some(one), Some(other)) if one != other => Err(ForwardedError::Clients),
        (one, other) => Ok(one.or(other).flatten()),
    }
}

/// The client of a chain of addresses, of which each proxy has added one at the end. An element
/// that is no address hides everything before it.
fn nearest(chain: Vec<Option<IpAddr>>, trusted: &[TrustedProxy]) -> Option<IpAddr> {
    let mut nearest = None;
    for hop in chain.into_iter().rev() {
        let Some(hop) = hop else { break };
        nearest = Some(hop);
        if !is_trusted(nearest, trusted) {
            break;
        }
    }
    nearest
}

/// Only [`super::origin`] uses a host, and only that of `X-Forwarded-Host`.
fn check_hosts(headers: &HeaderMap) -> Result<(), ForwardedError> {
    let forwarded = elements(headers, &FORWARDED);
    let host = forwarded.iter().find_map(|element| pair(element, "host"));
    let x_forwarded = elements(headers, &FORWARDED_HOST);
    match (host, x_forwarded.first()) {
        (Some(one), Some(other)) if !one.eq_ignore_ascii_case(other.trim()) => Err(ForwardedError::Hosts),
        _ => Ok(()),
    }
}

/// The elements of a header that is a list. A byte that is no text spoils its own element only.
fn elements(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.flat_map(|value| value.split(',').map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The value of `name=` in one element of `Forwarded`, without quotation marks.
fn pair<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    Some(value.trim().trim_matches('"'))
}

/// An address with or without a port, quotation marks and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// Reads the header of the PROXY protocol, version 1 or 2, and nothing behind it: the client's
/// address, or `None` if the proxy itself connects (`LOCAL`, `UNKNOWN`).
///
/// # Errors
/// `InvalidData` for anything else.
pub(super) async fn proxy_header(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut buffer = [0; PROXY_HEADER_BYTES_MAX];
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let length = stream.peek(&mut buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = HeaderResult::parse(&buffer[..length]);
        if header.is_complete() {
            let (header_bytes, address) = complete(&header)?;
            stream.read_exact(&mut [0; PROXY_HEADER_BYTES_MAX][..header_bytes]).await?;
            return Ok(address);
        }
        if length == buffer.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if ready.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Bytes that stay in the socket keep it ready. Without this readiness, the next peek waits
        // for more of them. Nothing arrives unnoticed in between: this thread reports it.
        let unready = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        debug_assert!(unready.is_err());
    }
}

/// The length of a whole header in bytes, and its source address.
fn complete(header: &HeaderResult<'_>) -> io::Result<(usize, Option<IpAddr>)> {
    let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    match header {
        HeaderResult::V1(header) => {
            let header = header.as_ref().map_err(|error| invalid(error))?;
            let address = match &header.addresses {
                ppp::v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
                ppp::v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
                ppp::v1::Addresses::Unknown => None,
            };
            Ok((header.header.len(), address))
        }
        HeaderResult::V2(header) => {
            let header = header.as_ref().map_err(|error| invalid(error))?;
            let address = match (header.command, &header.addresses) {
                (ppp::v2::Command::Local, _) => None,
                (_, ppp::v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
                (_, ppp::v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
                _ => None,
            };
            Ok((header.header.len(), address))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use hyper::header::HeaderValue;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<TrustedProxy> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn of(headers: &[(HeaderName, &str)]) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let trusted = networks(&["10.0.0.0/8", "::1"]);
        forwarded_for(&headers, &trusted).unwrap().map(|address| address.to_string())
    }

    fn error_of(headers: &[(HeaderName, &str)]) -> Option<ForwardedError> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        forwarded_for(&headers, &networks(&["10.0.0.0/8"])).err()
    }

    #[test]
    fn the_nearest_address_that_is_no_proxy_counts() {
        for (value, right) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("1.1.1.1, 192.0.2.1", Some("192.0.2.1")),
            ("1.1.1.1, 192.0.2.1, 10.0.0.2", Some("192.0.2.1")),
            ("10.0.0.3,10.0.0.2", Some("10.0.0.3")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("1.1.1.1, unknown", None),
            ("1.1.1.1, unknown, 10.0.0.2", Some("10.0.0.2")),
            ("", None),
        ] {
            assert_eq!(of(&[(FORWARDED_FOR, value)]).as_deref(), right, "{value}");
        }
        let two = [(FORWARDED_FOR, "1.1.1.1"), (FORWARDED_FOR, "192.0.2.1")];
        assert_eq!(of(&two).as_deref(), Some("192.0.2.1"));
        let forwarded = (FORWARDED, "for=1.1.1.1, For=\"[2001:db8::1]:80\";proto=https");
        assert_eq!(of(&[forwarded]).as_deref(), Some("2001:db8::1"));
        assert_eq!(of(&[(FORWARDED, "for=_hidden, for=10.0.0.9")]).as_deref(), Some("10.0.0.9"));
        assert_eq!(of(&[]), None);
        let bytes = HeaderValue::from_bytes(b"\xff, 192.0.2.1").unwrap();
        let headers = HeaderMap::from_iter([(FORWARDED_FOR, bytes)]);
        assert_eq!(forwarded_for(&headers, &[]), Ok(Some("192.0.2.1".parse().unwrap())), "the proxy's element counts");
    }

    #[test]
    fn two_headers_have_to_name_the_same_client_and_host() {
        let clients = |forwarded, x_forwarded| error_of(&[(FORWARDED, forwarded), (FORWARDED_FOR, x_forwarded)]);
        for (forwarded, x_forwarded) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("for=\"192.0.2.1:80\"", "1.1.1.1, 192.0.2.1, 10.0.0.2"),
            ("proto=https", "192.0.2.1"),
            ("for=192.0.2.1", ""),
            ("for=unknown", "unknown"),
        ] {
            assert_eq!(clients(forwarded, x_forwarded), None, "{forwarded} {x_forwarded}");
        }
        for (forwarded, x_forwarded) in
            [("for=192.0.2.1", "192.0.2.2"), ("for=_hidden", "192.0.2.2"), ("for=192.0.2.1", "unix:")]
        {
            assert_eq!(clients(forwarded, x_forwarded), Some(ForwardedError::Clients), "{forwarded} {x_forwarded}");
        }
        let only_one = [(FORWARDED, "proto=https"), (FORWARDED_FOR, "192.0.2.1")];
        assert_eq!(of(&only_one).as_deref(), Some("192.0.2.1"));
        let hosts = |forwarded, x_forwarded| error_of(&[(FORWARDED, forwarded), (FORWARDED_HOST, x_forwarded)]);
        assert_eq!(hosts("for=192.0.2.1;host=\"a.example:1\"", "A.example:1, proxy"), None);
        assert_eq!(hosts("for=192.0.2.1", "a.example"), None);
        assert_eq!(hosts("host=a.example", "b.example"), Some(ForwardedError::Hosts));
    }

    fn read(pieces: &[&[u8]]) -> (io::Result<Option<IpAddr>>, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream).unwrap();
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.to_vec()).collect();
            let writer = std::thread::spawn(move || pieces.iter().try_for_each(|piece| client.write_all(piece)));
            let address = proxy_header(&mut stream).await;
            writer.join().unwrap().unwrap();
            let mut rest = String::new();
            if address.is_ok() {
                stream.read_to_string(&mut rest).await.unwrap();
            }
            (address, rest)
        })
    }

    #[test]
    fn a_header_of_either_version_is_read_and_nothing_behind_it() {
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let (found, rest) = read(&[b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1"]);
        assert_eq!((found.unwrap(), &*rest), (address("192.0.2.1"), "GET / HTTP/1.1"));
        let (found, rest) = read(&[b"PRO", b"XY TCP6 2001:db8::1 ::1 1 2\r", b"\nGET"]);
        assert_eq!((found.unwrap(), &*rest), (address("2001:db8::1"), "GET"));
        assert_eq!(read(&[b"PROXY UNKNOWN\r\nGET"]).0.unwrap(), None);
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let v2 = [&signature[..], &[0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2], b"GET"].concat();
        let (found, rest) = read(&[&v2]);
        assert_eq!((found.unwrap(), &*rest), (address("192.0.2.1"), "GET"));
        let local = [&signature[..], &[0x20, 0x00, 0, 0]].concat();
        assert_eq!(read(&[&local]).0.unwrap(), None);
        for wrong in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 x y 1 2\r\n"] {
            assert_eq!(read(&[wrong]).0.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        for in_part in [&[][..], &[&b"PROXY TCP4 192."[..]], &[&b"PROXY"[..], &b" TCP4 192."[..]]] {
            assert_eq!(read(in_part).0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
