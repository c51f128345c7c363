//! The start of a connection: the socket, and both halves of the WebSocket handshake. No state, no
//! waiting.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use super::http;
use super::target::Target;

/// Handshakes in flight when no ramp is given: enough to keep a server busy, and below any sensible
/// accept backlog.
pub(crate) const HANDSHAKES_IN_FLIGHT: usize = 64;
/// Connections from one source address. Linux has about 28,000 ports for each address; the next
/// 127.0.0.x takes over well before that.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// Receive buffer of a connection that stands for one on a poor network, in bytes.
const SMALL_BUFFER_BYTES: usize = 16 * 1024;

/// The key of every handshake, and its answer: the example of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Begins to connect. The socket is set to reset on close, so that a load leaves no 10,000 ports in
/// TIME_WAIT for the next one. An event of the kernel tells when it is connected.
pub(crate) fn begin(
    server: SocketAddr,
    number: usize,
    sources: &[IpAddr],
    small_buffer: bool,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(source) = source(server, number, sources) {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    if small_buffer {
        socket.set_recv_buffer_size(SMALL_BUFFER_BYTES)?;
    }
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// The source address of connection `number`; `None` leaves the choice to the kernel.
fn source(server: SocketAddr, number: usize, sources: &[IpAddr]) -> Option<IpAddr> {
    let group = number / CONNECTIONS_PER_SOURCE;
    match server.ip() {
        _ if !sources.is_empty() => Some(sources[number % sources.len()]),
        IpAddr::V4(ip) if ip.is_loopback() && group > 0 => {
            Some(Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + group as u32).into())
        }
        _ => None,
    }
}

/// The handshake request of a client.
pub(crate) fn request(url: &Target, room: Option<usize>) -> Vec<u8> {
    let (path, host) = (url.request(room), &url.authority);
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads the handshake response. Returns where frames begin in `received`, `None` while it is
/// incomplete, or why it is not a WebSocket.
pub(crate) fn answer(received: &[u8]) -> Result<Option<usize>, String> {
    if received.starts_with(b"GET ") {
        return Err("the server sends the handshake back: it is an echo server without WebSockets".to_owned());
    }
    let Some(head) = http::head(received).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    if head.status != 101 {
        let text = String::from_utf8_lossy(received);
        return Err(format!("the handshake was answered with {:?}", text.trim_end()));
    }
    if head.header("sec-websocket-accept") != Some(ACCEPT) {
        return Err("the handshake was answered with a wrong Sec-WebSocket-Accept".to_owned());
    }
    Ok(Some(head.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_taken_in_turn() {
        let server = SocketAddr::from(([127, 0, 0, 1], 3000));
        let ip = |last| Some(IpAddr::from([127, 0, 0, last]));
        assert_eq!([0, 19_999, 20_000, 40_000].map(|n| source(server, n, &[])), [None, None, ip(2), ip(3)]);
        let two = [IpAddr::from([127, 0, 0, 9]), IpAddr::from([127, 0, 0, 8])];
        assert_eq!([0, 1, 2].map(|number| source(server, number, &two)), [ip(9), ip(8), ip(9)]);
        assert_eq!(source(SocketAddr::from(([10, 0, 0, 1], 80)), 30_000, &[]), None);
    }

    #[test]
    fn only_a_websocket_is_taken() {
        let good = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
        assert_eq!(answer(good.as_bytes()), Ok(Some(good.len())));
        assert_eq!(answer(&good.as_bytes()[..20]), Ok(None));
        assert!(answer(b"GET /ws HTTP/1.1\r\n").unwrap_err().contains("echo"));
        assert!(answer(b"HTTP/1.1 503 Busy\r\n\r\n").unwrap_err().contains("503 Busy"));
        assert!(answer(b"HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: x\r\n\r\n").unwrap_err().contains("Accept"));
    }
}
