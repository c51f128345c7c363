//! Role `floor`: the reference server, the least that anything can do that brings one message to N sockets: encode it
//! once and call `send` N times. No registry, no real parser, no slow client.
//!
//! Publications come by `POST` on as many connections as there are; between two passes the floor takes what has arrived on
//! all of them and answers it. It does join what is pending: k publications leave as k frames in one `send` a socket,
//! because any server that is worth comparing does that under load.
//!
//! A subscriber's connection opens with the bytes of a WebSocket handshake here too, answered by rote. What a delivery
//! costs depends on what a connection has seen (when the kernel acknowledges, for one), so all candidates' connections
//! have to have seen the same.
//!
//! Promises that no byte is lost: the subscribers' sockets are blocking, a full one is waited for. With a client that
//! reads everything at once that never happens, and it costs nothing to be right.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use hydrant::load::process;
use mio::{Events, Interest, Poll, Token};

/// The hidden first argument that makes this executable the floor.
pub(crate) const ROLE: &str = "role:floor";

/// Longest payload, in bytes: what the 16-bit length of a WebSocket header holds.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 65_535;

/// The listener's token; those of the publishers count from 0.
const LISTENER: Token = Token(usize::MAX);

/// The answer to a publication.
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";

/// What the floor is told: how many subscribers come, and how long a payload is.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    /// Subscribers to accept; the connections after them publish.
    pub(crate) subscribers: usize,
    /// Payload of a message, in bytes.
    pub(crate) payload: usize,
}

/// Serves until the process is ended. Says on stdout where it listens, in the words that hydrant uses.
pub(crate) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    process::raise_open_files()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("listening on {}", listener.local_addr()?);

    let mut subscribers = Vec::with_capacity(task.subscribers);
    for _ in 0..task.subscribers {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        greet(&mut socket)?;
        subscribers.push(socket);
    }

    let mut publishers = Publishers::new(listener, task.payload)?;
    let mut batch = Vec::new();
    loop {
        batch.clear();
        publishers.take(&mut batch)?;
        if !batch.is_empty() {
            for socket in &mut subscribers {
                socket.write_all(&batch)?;
            }
        }
    }
}

/// Answers the handshake and the ping behind it, whatever they say.
fn greet(socket: &mut TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let read = socket.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&piece[..read]);
    }
    socket.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )?;
    // A masked ping without a payload, and its pong.
    socket.read_exact(&mut [0; 6])?;
    socket.write_all(&[0x8a, 0])
}

/// The connections that publish.
struct Publishers {
    poll: Poll,
    events: Events,
    listener: mio::net::TcpListener,
    /// By token, with as much of the next request as has arrived.
    connections: Vec<(mio::net::TcpStream, Vec<u8>)>,
    payload: usize,
}

impl Publishers {
    fn new(listener: TcpListener, payload: usize) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(1024), listener, connections: Vec::new(), payload })
    }

    /// Waits until there is something, takes everything that there is, answers it and appends it as frames.
    fn take(&mut self, batch: &mut Vec<u8>) -> io::Result<()> {
        self.poll.poll(&mut self.events, None)?;
        for event in &self.events {
            let Some((stream, request)) = self.connections.get_mut(event.token().0) else {
                continue;
            };
            read_all(stream, request)?;
            while let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
                let body = end + 4..end + 4 + self.payload;
                let Some(payload) = request.get(body.clone()) else {
                    break;
                };
                write_header(batch, payload.len());
                batch.extend_from_slice(payload);
                request.drain(..body.end);
                stream.write_all(ACCEPTED)?;
            }
        }
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nodelay(true)?;
                    let token = Token(self.connections.len());
                    self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    self.connections.push((stream, Vec::new()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Appends what has arrived on a connection; one that has ended brings nothing more.
fn read_all(stream: &mut mio::net::TcpStream, request: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                request.extend_from_slice(&piece[..read]);
                if read < piece.len() {
                    return Ok(());
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Appends the header of an unfragmented, unmasked text frame (RFC 6455, section 5.2).
fn write_header(out: &mut Vec<u8>, payload: usize) {
    debug_assert!(payload <= PAYLOAD_BYTES_MAX);
    out.push(0x81);
    if payload < 126 {
        out.push(payload as u8);
    } else {
        out.push(126);
        out.extend_from_slice(&(payload as u16).to_be_bytes());
    }
}
