//! Publishes by `POST` on keep-alive connections, each with at most one request in flight. It does
//! not wait, except for a connection that has to be opened again. A publication that is rejected
//! with 503 is sent again.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Socket, Type};

use super::event_loop::Clock;
use super::message::Tags;
use super::options::Options;
use super::stream::Stream;
use super::target::Target;
use super::tls::Tls;
use super::{LoadError, admin, http};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a rejected publication is sent again, in nanoseconds.
const RETRY_NS: u64 = 20_000_000;
/// Idle time after which a connection is replaced before its next request, in nanoseconds: servers
/// close idle connections, and a request that meets the close is lost.
const IDLE_NS: u64 = 2_000_000_000;

/// One connection that publishes, with at most one request in flight.
struct Exchange {
    stream: Option<Stream>,
    /// The publication without a response.
    number: Option<u32>,
    /// The part of the response that has arrived.
    answer: Vec<u8>,
    /// The part of the request that the socket has not taken.
    unsent: Vec<u8>,
    free_since_ns: u64,
}

/// `POST` on keep-alive connections.
pub(crate) struct HttpPublisher {
    options: Options,
    /// Where messages are published.
    url: Target,
    /// Whether the server may still name another port.
    may_move: bool,
    server: SocketAddr,
    tls: Option<Tls>,
    first_token: usize,
    exchanges: Vec<Exchange>,
    /// Indices of the connections without a request in flight.
    free: Vec<usize>,
    /// Start of every request, up to the payload, by room.
    heads: Vec<Vec<u8>>,
    /// Rejected publications, with their next due time.
    rejected: VecDeque<(u64, u32)>,
    rejections: u64,
    tags: Tags,
    payload: usize,
    scratch: Vec<u8>,
    clock: Clock,
}

/// The start of every request to `url`, up to the payload, by room.
fn heads(options: &Options, url: &Target) -> Vec<Vec<u8>> {
    let head = |room| {
        let (host, path) = (&url.authority, url.request(options.room_in_path(room)));
        let token = options.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
        let (token, payload) = (token.unwrap_or_default(), options.payload);
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain; charset=utf-8\r\n{token}\
             Content-Length: {payload}\r\n\r\n"
        )
    };
    (0..options.room_count()).map(|room| head(room).into_bytes()).collect()
}

impl HttpPublisher {
    /// Whether a connection is free and no rejected publication waits for it.
    pub(super) fn is_ready(&self) -> bool {
        !self.free.is_empty() && self.rejected.is_empty()
    }

    /// Whether every response has arrived and no rejected publication waits.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.exchanges.len() && self.rejected.is_empty()
    }

    /// Publications rejected so far.
    pub(super) fn rejections(&self) -> u64 {
        self.rejections
    }

    /// When the next rejected publication is due.
    pub(super) fn retry_ns(&self) -> u64 {
        self.rejected.front().map_or(u64::MAX, |(due_ns, _)| *due_ns)
    }

    /// Sends rejected publications that are due again.
    pub(super) fn retry(&mut self, now_ns: u64, registry: &Registry) -> Result<(), LoadError> {
        while let Some((_, number)) = self.rejected.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            if self.free.is_empty() {
                break;
            }
            self.rejected.pop_front();
            self.publish(number, registry)?;
        }
        Ok(())
    }

    pub(super) fn connect(
        options: &Options,
        server: SocketAddr,
        tags: Tags,
        registry: &Registry,
        first_token: usize,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        let mut http = Self {
            options: options.clone(),
            url: options.publish_url.clone(),
            may_move: options.publish_url_derived,
            server,
            tls: options.publish_url.tls()?,
            first_token,
            exchanges: Vec::new(),
            free: (0..options.publishers).rev().collect(),
            heads: heads(options, &options.publish_url),
            rejected: VecDeque::new(),
            rejections: 0,
            tags,
            payload: options.payload,
            scratch: Vec::new(),
            clock,
        };
        for index in 0..options.publishers {
            let (answer, unsent) = (Vec::new(), Vec::new());
            http.exchanges.push(Exchange { stream: None, number: None, answer, unsent, free_since_ns: 0 });
            http.open(index, registry)?;
        }
        Ok(http)
    }

    /// Opens a new connection. Waits for it: the kernel answers, not the server.
    fn open(&mut self, index: usize, registry: &Registry) -> Result<(), LoadError> {
        let server = self.server;
        let open = || {
            let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.set_tcp_nodelay(true)?;
            socket.connect_timeout(&server.into(), CONNECT_TIMEOUT)?;
            socket.set_nonblocking(true)?;
            let mut stream = Stream::new(mio::net::TcpStream::from_std(socket.into()), self.tls.as_ref())?;
            let token = Token(self.first_token + index);
            registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            Ok(stream)
        };
        let stream = open().map_err(|source| LoadError::Connect { address: server.to_string(), source })?;
        let exchange = &mut self.exchanges[index];
        exchange.stream = Some(stream);
        exchange.free_since_ns = self.clock.now_ns();
        Ok(())
    }

    pub(super) fn publish(&mut self, number: u32, registry: &Registry) -> Result<(), LoadError> {
        let Some(index) = self.free.pop() else {
            return Err(LoadError::Publish("all publishing connections are busy".to_owned()));
        };
        let idle_ns = self.clock.now_ns() - self.exchanges[index].free_since_ns;
        if self.exchanges[index].stream.is_none() || idle_ns > IDLE_NS {
            self.open(index, registry)?;
        }
        self.scratch.clear();
        // As in the tracker, message n belongs to room n mod rooms.
        self.scratch.extend_from_slice(&self.heads[number as usize % self.heads.len()]);
        self.tags.write_payload(&mut self.scratch, number, self.payload);
        let exchange = &mut self.exchanges[index];
        exchange.number = Some(number);
        let Some(stream) = &mut exchange.stream else {
            return Ok(());
        };
        let written = match stream.write(&self.scratch) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(LoadError::Publish(format!("a publishing connection failed: {error}"))),
        };
        exchange.unsent.extend_from_slice(&self.scratch[written..]);
        Ok(())
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), LoadError> {
        let Token(token) = event.token();
        let index = token - self.first_token;
        let failed = |error: io::Error| LoadError::Publish(format!("a publishing connection failed: {error}"));
        let exchange = &mut self.exchanges[index];
        let Some(stream) = &mut exchange.stream else {
            return Ok(());
        };
        // A failure shows in the read below.
        let _ = stream.flush();
        while !exchange.unsent.is_empty() {
            match stream.write(&exchange.unsent) {
                Ok(written) => drop(exchange.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The server may have sent the reason.
                Err(_) => exchange.unsent.clear(),
            }
        }
        let mut piece = [0; 4096];
        let ended = loop {
            match stream.read(&mut piece) {
                Ok(0) => break true,
                Ok(read) => {
                    exchange.answer.extend_from_slice(&piece[..read]);
                    if exchange.answer.len() > http::RESPONSE_BYTES_MAX {
                        break false;
                    }
                    if read < piece.len() && !event.is_read_closed() {
                        break false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        let Some(end) = http::response_bytes(&exchange.answer, ended).map_err(failed)? else {
            if ended {
                exchange.stream = None;
                if exchange.number.is_some() {
                    let sentence = "the server closed a publishing connection before it answered the request";
                    return Err(LoadError::Publish(sentence.to_owned()));
                }
            }
            return Ok(());
        };
        self.answered(index, end, ended)
    }

    /// Publishes at another port from now on. Connections without a request in flight are closed;
    /// the others get a 404 as well, and their publication is sent again.
    fn move_to(&mut self, url: Target) -> Result<(), LoadError> {
        let failed = |source| LoadError::Connect { address: url.address.clone(), source };
        self.server = url.resolve().map_err(failed)?;
        self.tls = url.tls()?;
        self.heads = heads(&self.options, &url);
        for index in &self.free {
            self.exchanges[*index].stream = None;
        }
        (self.url, self.may_move) = (url, false);
        Ok(())
    }

    /// Handles a complete response.
    fn answered(&mut self, index: usize, end: usize, ended: bool) -> Result<(), LoadError> {
        let exchange = &mut self.exchanges[index];
        let quote = || {
            LoadError::Publish(format!(
                "a publication was answered with {:?}",
                String::from_utf8_lossy(&exchange.answer)
            ))
        };
        let head = http::head(&exchange.answer).ok().flatten().ok_or_else(quote)?;
        let (status, closes) = (head.status, head.closes() || ended);
        let moved = admin::moved(&self.url, &head).map_err(LoadError::Publish)?.filter(|_| self.may_move);
        let number = exchange.number.filter(|_| end == exchange.answer.len()).ok_or_else(quote)?;
        match status {
            200..=299 => {}
            503 => {
                self.rejections += 1;
                self.rejected.push_back((self.clock.now_ns() + RETRY_NS, number));
            }
            404 if moved.is_some() || self.url.address != self.options.publish_url.address => {
                self.rejected.push_back((self.clock.now_ns(), number));
            }
            _ => return Err(quote()),
        }
        exchange.answer.clear();
        exchange.number = None;
        exchange.free_since_ns = self.clock.now_ns();
        if closes || status == 404 {
            exchange.stream = None;
        }
        self.free.push(index);
        moved.map_or(Ok(()), |url| self.move_to(url))
    }
}
