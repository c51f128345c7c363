//! Role `floor`: the reference server, the least that anything can do that brings one message to N sockets: encode it
//! once and call `send` N times. No event loop, no registry, no parser, no slow client.
//!
//! It does join what is pending: k publications that wait on the control connection leave as k frames in one `send` a
//! socket, because any server that is worth comparing does that under load.
//!
//! A subscriber's connection opens with the bytes of a WebSocket handshake here too, answered by rote. What a delivery
//! costs depends on what a connection has seen (when the kernel acknowledges, for one), so all candidates' connections
//! have to have seen the same.
//!
//! Promises that no byte is lost: the sockets are blocking, a full one is waited for. With a client that reads
//! everything at once that never happens, and it costs nothing to be right.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::message::{self, TAG_BYTES, Tag};
use crate::proc;

/// The hidden first argument that makes this executable the floor.
pub(crate) const ROLE: &str = "role:floor";

/// What the floor is told: how many subscribers come, and how long a payload is.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    /// Subscribers to accept; the connection after them is the control connection.
    pub(crate) subscribers: usize,
    /// Payload of a message, in bytes.
    pub(crate) payload: usize,
}

/// Serves until the control connection ends. Says on stdout where it listens, in the words that hydrant uses.
pub(crate) fn run(task: &str) -> io::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    proc::raise_open_files()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("listening on {}", listener.local_addr()?);

    let mut subscribers = Vec::with_capacity(task.subscribers);
    for _ in 0..task.subscribers {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        greet(&mut socket)?;
        subscribers.push(socket);
    }
    let (mut control, _) = listener.accept()?;

    let mut records = [0; 1024 * TAG_BYTES];
    let mut held = 0;
    let mut batch = Vec::new();
    loop {
        let read = control.read(&mut records[held..])?;
        if read == 0 {
            return Ok(());
        }
        held += read;
        batch.clear();
        let (whole, rest) = records[..held].as_chunks();
        for record in whole {
            encode(&mut batch, record, task.payload);
        }
        // A record may arrive in two pieces; its first piece waits at the front for the second.
        let rest = held - rest.len()..held;
        held = rest.len();
        records.copy_within(rest, 0);

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
    socket.read_exact(&mut message::client_control(message::PING, &[]))?;
    socket.write_all(&[message::PONG, 0])
}

/// Appends the message as wire bytes.
fn encode(batch: &mut Vec<u8>, tag: &Tag, payload: usize) {
    message::write_header(batch, payload);
    message::write_payload(batch, tag, payload);
}
