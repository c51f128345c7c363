//! The publisher, in its two forms: records on the floor's control connection, or `POST /publish/bench` to hydrant.
//! Lives in the client's event loop and never waits.
//!
//! Both forms write one publication with one system call, also when several become due together, so that the server
//! meets the same bursts from both: it wakes up with the first and finds the others while it works.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::client::Task;
use crate::message;
use crate::{http, subscribe};

/// One connection that publishes, with at most one request on its way.
struct Exchange {
    stream: TcpStream,
    /// As much of the response as has arrived.
    response: Vec<u8>,
}

/// See the head of this file.
pub(crate) struct Publisher {
    exchanges: Vec<Exchange>,
    /// Indices of the exchanges without a request on its way. A record wants no answer: the floor's only exchange is
    /// always in here.
    free: Vec<usize>,
    /// Start of every request, up to the payload; `None` towards the floor.
    request_head: Option<Vec<u8>>,
    payload: usize,
    scratch: Vec<u8>,
}

impl Publisher {
    /// Connects and registers with the event loop, the connections as tokens from `first_token` on.
    pub(crate) fn connect(task: &Task, registry: &Registry, first_token: usize) -> io::Result<Self> {
        let count = if task.floor { 1 } else { task.in_flight };
        let mut exchanges = Vec::with_capacity(count);
        for index in 0..count {
            let stream = subscribe::open(task.server, task.subscribers + index)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            registry.register(&mut stream, Token(first_token + index), Interest::READABLE)?;
            exchanges.push(Exchange { stream, response: Vec::new() });
        }
        Ok(Self {
            exchanges,
            free: (0..count).rev().collect(),
            request_head: (!task.floor).then(|| request_head(task.server, task.payload)),
            payload: task.payload,
            scratch: Vec::new(),
        })
    }

    /// Whether there is a connection to publish on.
    pub(crate) fn is_ready(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether every response has been read.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.exchanges.len()
    }

    /// Publishes the message with this number. To be called when [`Self::is_ready`].
    pub(crate) fn publish(&mut self, number: u32) -> io::Result<()> {
        let index = self.free.last().copied().ok_or_else(|| io::Error::other("every publishing connection is busy"))?;
        let tag = message::tag(number);
        self.scratch.clear();
        match &self.request_head {
            None => self.scratch.extend_from_slice(&tag),
            Some(head) => {
                self.scratch.extend_from_slice(head);
                message::write_payload(&mut self.scratch, &tag, self.payload);
                self.free.pop();
            }
        }
        // Nothing else is in the socket's buffer, or next to nothing, so this takes all or something is broken.
        self.exchanges[index].stream.write_all(&self.scratch)
    }

    /// Takes in what has arrived on the connection `index`.
    pub(crate) fn receive(&mut self, index: usize) -> io::Result<()> {
        let exchange = &mut self.exchanges[index];
        let mut piece = [0; 1024];
        loop {
            match exchange.stream.read(&mut piece) {
                Ok(0) => {
                    return Err(io::Error::other("the server closed a publishing connection"));
                }
                Ok(read) => exchange.response.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if is_accepted(&exchange.response)? {
            exchange.response.clear();
            self.free.push(index);
        }
        Ok(())
    }
}

/// Everything of a publish request that stays the same.
fn request_head(server: SocketAddr, payload: usize) -> Vec<u8> {
    let channel = subscribe::CHANNEL;
    format!(
        "POST /publish/{channel} HTTP/1.1\r\nHost: {server}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {payload}\r\n\r\n"
    )
    .into_bytes()
}

/// Whether `response` is a whole `202`; an error if it is, or is going to be, anything else.
fn is_accepted(response: &[u8]) -> io::Result<bool> {
    let refuse = |reason: &str| {
        let text = String::from_utf8_lossy(response);
        Err(io::Error::other(format!("a publication was answered with {reason}: {text:?}")))
    };
    let Some(head) = http::head(response)? else {
        return Ok(false);
    };
    if head.status != 202 {
        return refuse("another status than 202");
    }
    let Some(body_bytes) = head.body_bytes else {
        return refuse("no Content-Length");
    };
    if response.len() > head.bytes + body_bytes {
        return refuse("more than one response");
    }
    Ok(response.len() == head.bytes + body_bytes)
}
