//! The subscribers' connections: opens all of them and takes each through the WebSocket handshake into the room of the
//! bench. A connection that this file hands out is ready: the next byte on it is a message.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::client::Task;
use crate::{http, message};

/// The channel of the bench: a room of its own, so that nothing but the publications of the bench is sent in it.
pub(crate) const CHANNEL: &str = "bench";

/// Longest wait for one answer while connecting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes in flight at once: enough to keep a server busy, and below any sensible accept backlog.
const HANDSHAKES_IN_FLIGHT: usize = 64;

/// Connections from one source address. Linux hands out about 28,000 ports an address; the next 127.0.0.x takes over
/// well before that.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// Opens all subscribers, in the order of their numbers; those who are never to read are the last.
pub(crate) fn subscribe_all(task: &Task) -> io::Result<Vec<TcpStream>> {
    let all = task.subscribers + task.stalled;
    let mut subscribers = Vec::with_capacity(all);
    while subscribers.len() < all {
        let first = subscribers.len();
        let end = all.min(first + HANDSHAKES_IN_FLIGHT);
        for number in first..end {
            subscribers.push(open(task.server, number)?);
        }
        handshake(&subscribers[first..], task.server)?;
    }
    Ok(subscribers)
}

/// One connection. It is set to reset on close: when a cell ends, the server is stopped first and then the client, and
/// the reset leaves no 10,000 ports in TIME_WAIT to the next cell.
pub(crate) fn open(server: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    let group = number / CONNECTIONS_PER_SOURCE;
    if group > 0 && server.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + group as u32);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&server.into(), ANSWER_TIMEOUT)?;
    Ok(socket.into())
}

/// Upgrades these connections together: all requests, then all answers. A ping and its pong follow, because a server
/// may answer 101 a moment before the subscription stands; whoever reads frames on the connection has it in place.
fn handshake(mut subscribers: &[TcpStream], server: SocketAddr) -> io::Result<()> {
    let request = format!(
        "GET /ws/{CHANNEL} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    for mut subscriber in subscribers {
        subscriber.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        subscriber.write_all(request.as_bytes())?;
    }
    for mut subscriber in subscribers {
        upgraded(subscriber)?;
        subscriber.write_all(&message::client_control(message::PING, &[]))?;
    }
    while let Some((mut subscriber, rest)) = subscribers.split_first() {
        let mut pong = [0; 2];
        subscriber.read_exact(&mut pong)?;
        if pong != [message::PONG, 0] {
            return Err(io::Error::other(format!("a ping was answered with {pong:02x?} in place of a pong")));
        }
        subscribers = rest;
    }
    Ok(())
}

/// Reads the answer to an upgrade request, to its end.
fn upgraded(mut subscriber: &TcpStream) -> io::Result<()> {
    let mut answer = [0; 2048];
    let mut held = 0;
    loop {
        let read = subscriber.read(&mut answer[held..])?;
        if read == 0 {
            return Err(io::Error::other("the server closed a connection during the WebSocket handshake"));
        }
        held += read;
        let Some(head) = http::head(&answer[..held])? else {
            continue;
        };
        if head.status != 101 || head.bytes != held {
            let text = String::from_utf8_lossy(&answer[..held]);
            return Err(io::Error::other(format!("not a clean WebSocket handshake: {text:?}")));
        }
        return Ok(());
    }
}
