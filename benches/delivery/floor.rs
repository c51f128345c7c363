//! Role `floor`: the reference server. It does the least that brings one message to N sockets: it
//! encodes the message once and calls `send` N times. It has no registry, no real parser and no
//! slow clients.
//!
//! Publications come by `POST` on any number of connections. Between two passes the floor reads
//! what has arrived on all of them and answers it. It joins what is pending: k publications leave
//! as k frames in one `send` per socket, because every server that is worth a comparison does that
//! under load.
//!
//! A subscriber's connection starts with the bytes of a WebSocket handshake, which the floor
//! answers with a fixed text. The cost of a delivery depends on what the connection has carried
//! before (for example, on when the kernel acknowledges), so the connections of all candidates must
//! have carried the same.
//!
//! Promises that no byte is lost: the subscribers' sockets are blocking, and the floor waits for a
//! full one. The client reads everything at once, so that wait never happens in a measurement.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use hydrant::load::process;
use mio::{Events, Interest, Poll, Token};

/// The hidden first argument that makes this executable the floor.
pub(crate) const ROLE: &str = "role:floor";

/// Longest payload, in bytes: the most that the 16-bit length of a WebSocket header can say.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 65_535;

/// The listener's token; the publishers' tokens count from 0.
const LISTENER: Token = Token(usize::MAX);

/// The answer to a publication.
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";

/// The floor's task, as JSON in its second argument.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    /// Subscribers to accept; the connections after them publish.
    pub(crate) subscribers: usize,
    /// Payload of a message, in bytes.
    pub(crate) payload: usize,
}

/// Serves until the process is ended. Prints its address on stdout, in the same form as hydrant.
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

/// Answers the handshake and the ping behind it, without a look at their content.
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

    /// Waits until something has arrived, then reads and answers all of it and appends it as
    /// frames.
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

/// Appends what has arrived on a connection; nothing more arrives on one that has ended.
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
