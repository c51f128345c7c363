//! Many WebSocket connections in one event loop: opens them, reads them, answers pings, ends them.
//!
//! Owns the sockets and the state of each between two reads: 40 bytes. The [`FrameHandler`] gives
//! messages their meaning. A client is known by its number; its token is `first_token` + that
//! number. Never waits.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use mio::event::Event;
use mio::{Interest, Registry, Token};

use super::connect;
use super::event_loop::Clock;
use super::frame_handler::{FrameHandler, FrameReader};
use super::frames::{self, FrameParser};
use super::latency::Latencies;
use super::options::Options;
use super::stream::Stream;
use super::tls::Tls;

/// Longest wait for each step of a handshake or a close, in nanoseconds.
const ANSWER_TIMEOUT_NS: u64 = 10_000_000_000;
/// One buffer for all reads: it stays in the core's cache. It holds more than is in flight to one
/// subscriber under most loads.
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Longest response to a handshake, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// The code of a connection that ended without a close frame (RFC 6455, section 7.1.5).
pub(crate) const ABNORMAL: u16 = 1006;
/// The code of a close frame without one.
const NO_CODE: u16 = 1005;
/// The code of a normal end.
pub(crate) const NORMAL: u16 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    /// The handshake is complete, the pong has not arrived. A server may answer 101 a moment before
    /// the subscription is active; after the pong it is.
    AwaitingPong,
    Open,
    /// This client has sent its close frame first.
    CloseSent,
    /// The server's close frame has arrived.
    CloseReceived,
}

struct Client {
    stream: Option<Stream>,
    parser: FrameParser,
    state: State,
}

/// A step of a connection that has a time limit.
struct Step {
    since_ns: u64,
    /// The part of the handshake response that has arrived.
    answer: Vec<u8>,
    request_sent: bool,
}

/// See the head of this file.
pub(crate) struct ClientPool {
    server: SocketAddr,
    tls: Option<Tls>,
    sources: Vec<IpAddr>,
    /// The handshake request, by room.
    requests: Vec<Vec<u8>>,
    first_token: usize,
    /// Clients from this number on have a small receive buffer.
    small_buffer_from: usize,
    clock: Clock,
    clients: Vec<Client>,
    /// Clients in a handshake or a close.
    steps: HashMap<usize, Step>,
    /// Bytes that sockets have not taken yet, by client.
    unsent: HashMap<usize, Vec<u8>>,
    buffer: Vec<u8>,
    /// Clients whose socket has closed since the last call of `take_gone`.
    gone: Vec<usize>,
    /// From the start of a connection until its handshake is answered.
    pub(crate) handshakes: Latencies,
    /// Reads that returned data.
    pub(crate) reads: u64,
    /// Clients that are open.
    pub(crate) open: usize,
    /// Connections that were opened, up to the pong.
    pub(crate) opened: u64,
    /// Connections that could not be opened, or did not end.
    pub(crate) failed: u64,
    /// Connections that the server ended, by close code.
    pub(crate) closed: BTreeMap<u16, u64>,
    /// Those among them that the server had no reason to end.
    pub(crate) unexpected_closes: u64,
    /// The first error.
    pub(crate) first_error: Option<String>,
}

impl ClientPool {
    /// A pool without connections. Tokens begin at `first_token`.
    ///
    /// # Errors
    /// When the URL needs TLS and this build has none.
    pub(crate) fn new(
        options: &Options,
        server: SocketAddr,
        clients: usize,
        first_token: usize,
        clock: Clock,
    ) -> io::Result<Self> {
        let client = || Client { stream: None, parser: FrameParser::default(), state: State::Closed };
        let requests = (0..options.room_count()).map(|room| {
            let room = options.room_in_path(room);
            connect::request(&options.url, room)
        });
        Ok(Self {
            server,
            tls: options.url.tls()?,
            sources: options.sources.clone(),
            requests: requests.collect(),
            first_token,
            small_buffer_from: if options.slow_small_buffer { clients - options.slow.min(clients) } else { usize::MAX },
            clock,
            clients: (0..clients).map(|_| client()).collect(),
            steps: HashMap::new(),
            unsent: HashMap::new(),
            buffer: vec![0; READ_BUFFER_BYTES],
            gone: Vec::new(),
            handshakes: Latencies::default(),
            reads: 0,
            open: 0,
            opened: 0,
            failed: 0,
            closed: BTreeMap::new(),
            unexpected_closes: 0,
            first_error: None,
        })
    }

    /// Number of clients, open or not.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// The client with this token, if it is one of this pool.
    pub(crate) fn client(&self, Token(token): Token) -> Option<usize> {
        token.checked_sub(self.first_token).filter(|client| *client < self.clients.len())
    }

    /// Clients whose handshake or close is under way.
    pub(crate) fn in_transition(&self) -> usize {
        self.steps.len()
    }

    /// Clients that are not open, without those that the server had a reason to close.
    pub(crate) fn missing(&self) -> u64 {
        let excused = self.closed.values().sum::<u64>() - self.unexpected_closes;
        (self.clients.len() - self.open) as u64 - excused
    }

    /// Whether a client is open and neither side has begun to close.
    pub(crate) fn is_open(&self, client: usize) -> bool {
        matches!(self.clients[client].state, State::Open | State::AwaitingPong)
    }

    /// Whether a client may connect again.
    pub(crate) fn is_closed(&self, client: usize) -> bool {
        self.clients[client].state == State::Closed
    }

    /// Clients whose socket has closed since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.gone)
    }

    /// Begins the connection of a closed client, which was due at this time.
    ///
    /// # Errors
    /// When the kernel has no socket.
    pub(crate) fn connect(&mut self, client: usize, due_ns: u64, registry: &Registry) -> io::Result<()> {
        let number = self.first_token + client;
        let stream = connect::begin(self.server, number, &self.sources, client >= self.small_buffer_from)
            .and_then(|tcp| Stream::new(tcp, self.tls.as_ref()));
        let mut stream = match stream {
            Err(error) if is_about_the_peer(&error) => {
                self.fail(client, &format!("cannot connect to {}: {error}", self.server));
                return Ok(());
            }
            stream => stream?,
        };
        registry.register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        self.clients[client] =
            Client { stream: Some(stream), parser: FrameParser::default(), state: State::Connecting };
        self.steps.insert(client, Step { since_ns: due_ns, answer: Vec::new(), request_sent: false });
        Ok(())
    }

    /// Sends a close frame. Messages that arrive after it are not counted.
    pub(crate) fn leave(&mut self, client: usize) {
        let mut frame = Vec::new();
        frames::write_client_frame(&mut frame, frames::CLOSE, &NORMAL.to_be_bytes());
        self.send(client, &frame);
        self.open -= 1;
        self.begin_step(client, State::CloseSent);
    }

    /// Stops the events of this client; from now on it is read with [`Self::receive`].
    pub(crate) fn stop_events(&mut self, client: usize, registry: &Registry) -> io::Result<()> {
        self.clients[client].stream.as_mut().map_or(Ok(()), |stream| registry.deregister(stream))
    }

    /// Sends bytes; the rest follows when the socket can take it. A failure shows in the next read.
    pub(crate) fn send(&mut self, client: usize, bytes: &[u8]) {
        let unsent = self.unsent.entry(client).or_default();
        unsent.extend_from_slice(bytes);
        self.flush(client);
    }

    /// Whether the socket of this client has taken all bytes.
    pub(crate) fn has_sent(&self, client: usize) -> bool {
        !self.unsent.contains_key(&client)
    }

    fn flush(&mut self, client: usize) {
        if let Some(stream) = &mut self.clients[client].stream {
            // A failure shows in the next read.
            let _ = stream.flush();
        }
        let Some(unsent) = self.unsent.get_mut(&client) else {
            return;
        };
        while let Some(stream) = self.clients[client].stream.as_mut().filter(|_| !unsent.is_empty()) {
            match stream.write(unsent) {
                Ok(written) => drop(unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.unsent.remove(&client);
    }

    /// Handles an event of a client's socket.
    pub(crate) fn event<H: FrameHandler>(&mut self, client: usize, event: &Event, handler: &mut H) {
        match self.clients[client].state {
            State::Closed => return,
            State::Connecting => self.send_request(client),
            _ if event.is_writable() => self.flush(client),
            _ => {}
        }
        if event.is_readable() || event.is_read_closed() {
            self.receive(client, usize::MAX, event.is_read_closed(), handler);
        }
    }

    /// Sends the request once the socket is connected.
    fn send_request(&mut self, client: usize) {
        let Some(step) = self.steps.get_mut(&client).filter(|step| !step.request_sent) else {
            return;
        };
        let Some(stream) = &self.clients[client].stream else {
            return;
        };
        match stream.tcp().take_error() {
            Ok(None) if stream.tcp().peer_addr().is_err() => return,
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                return self.fail(client, &format!("cannot connect to {}: {error}", self.server));
            }
        }
        step.request_sent = true;
        let request = self.requests[client % self.requests.len()].clone();
        self.send(client, &request);
    }

    /// Reads at most `budget` bytes. A read that does not fill the buffer has emptied the socket
    /// (epoll(7)), which saves a second call. After the end of a stream no further event comes, so
    /// then it reads on.
    pub(crate) fn receive<H: FrameHandler>(&mut self, client: usize, mut budget: usize, ended: bool, handler: &mut H) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(stream) = &mut self.clients[client].stream {
            let room = buffer.len().min(budget);
            match stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.on_socket_end(
                        client,
                        ABNORMAL,
                        "the server ended a connection without a close frame",
                        handler,
                    );
                }
                Ok(read) => {
                    self.reads += 1;
                    budget -= read;
                    self.on_bytes(client, &buffer[..read], handler);
                    if (read < room && !ended) || budget == 0 {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.on_socket_end(client, ABNORMAL, &format!("a connection failed: {error}"), handler),
            }
        }
        self.buffer = buffer;
    }

    fn on_bytes<H: FrameHandler>(&mut self, client: usize, bytes: &[u8], handler: &mut H) {
        let now_ns = self.clock.now_ns();
        if self.clients[client].state == State::Connecting {
            let Some(rest) = self.on_handshake_bytes(client, bytes, now_ns) else {
                return;
            };
            handler.joined(client, now_ns);
            return self.on_bytes(client, &rest, handler);
        }
        let head_bytes = handler.head_bytes();
        let mut reader = FrameReader { handler, client, now_ns, replies: Vec::new(), ponged: false, close: None };
        let parsed = self.clients[client].parser.parse(bytes, head_bytes, &mut reader);
        let FrameReader { replies, ponged, close, .. } = reader;
        if !replies.is_empty() {
            self.send(client, &replies);
        }
        if ponged && self.clients[client].state == State::AwaitingPong {
            self.clients[client].state = State::Open;
            self.opened += 1;
            self.steps.remove(&client);
        }
        match (parsed, close) {
            (Err(violation), _) => {
                self.on_socket_end(client, 1002, &format!("the server broke the protocol: {violation}"), handler)
            }
            (Ok(()), Some(code)) => self.on_close_frame(client, code.unwrap_or(NO_CODE), handler),
            (Ok(()), None) => {}
        }
    }

    /// Reads the handshake response; returns the bytes behind it once it is complete.
    fn on_handshake_bytes(&mut self, client: usize, bytes: &[u8], now_ns: u64) -> Option<Vec<u8>> {
        let step = self.steps.get_mut(&client)?;
        step.answer.extend_from_slice(bytes);
        let since_ns = step.since_ns;
        match connect::answer(&step.answer) {
            Ok(None) if step.answer.len() < ANSWER_BYTES_MAX => None,
            Ok(None) => {
                self.fail(client, "the response to a handshake has no end within 16 KiB");
                None
            }
            Err(reason) => {
                self.fail(client, &reason);
                None
            }
            Ok(Some(end)) => {
                let rest = step.answer.split_off(end);
                self.handshakes.record(now_ns.saturating_sub(since_ns));
                self.open += 1;
                self.begin_step(client, State::AwaitingPong);
                let mut ping = Vec::new();
                frames::write_client_frame(&mut ping, frames::PING, &[]);
                self.send(client, &ping);
                Some(rest)
            }
        }
    }

    fn begin_step(&mut self, client: usize, state: State) {
        self.clients[client].state = state;
        self.steps.insert(client, Step { since_ns: self.clock.now_ns(), answer: Vec::new(), request_sent: true });
    }

    /// Answers the server's close frame; the server then closes the socket.
    fn on_close_frame<H: FrameHandler>(&mut self, client: usize, code: u16, handler: &mut H) {
        match self.clients[client].state {
            State::CloseSent => {}
            State::Open | State::AwaitingPong => {
                self.open -= 1;
                self.note_end(client, code, &format!("the server closed a connection with {code}"), handler);
                let mut frame = Vec::new();
                let payload = code.to_be_bytes();
                let payload = if code == NO_CODE { &[][..] } else { &payload[..] };
                frames::write_client_frame(&mut frame, frames::CLOSE, payload);
                self.send(client, &frame);
            }
            State::Closed | State::Connecting | State::CloseReceived => return,
        }
        self.begin_step(client, State::CloseReceived);
    }

    /// Handles the end of a socket, which is regular only after a close frame.
    fn on_socket_end<H: FrameHandler>(&mut self, client: usize, code: u16, error: &str, handler: &mut H) {
        match self.clients[client].state {
            State::Connecting => return self.fail(client, error),
            State::AwaitingPong | State::Open => {
                self.open -= 1;
                self.note_end(client, code, error, handler);
            }
            State::Closed | State::CloseSent | State::CloseReceived => {}
        }
        self.release(client);
    }

    fn note_end<H: FrameHandler>(&mut self, client: usize, code: u16, error: &str, handler: &mut H) {
        *self.closed.entry(code).or_default() += 1;
        if !handler.ended(client, code, self.clock.now_ns()) {
            self.unexpected_closes += 1;
            self.note_error(error);
        }
    }

    fn fail(&mut self, client: usize, error: &str) {
        self.failed += 1;
        self.note_error(error);
        self.release(client);
    }

    fn note_error(&mut self, error: &str) {
        self.first_error.get_or_insert_with(|| error.to_owned());
    }

    fn release(&mut self, client: usize) {
        self.clients[client] = Client { stream: None, parser: FrameParser::default(), state: State::Closed };
        self.steps.remove(&client);
        self.unsent.remove(&client);
        self.gone.push(client);
    }

    /// Ends every step that has taken too long.
    pub(crate) fn expire<H: FrameHandler>(&mut self, handler: &mut H) {
        let deadline_ns = self.clock.now_ns().saturating_sub(ANSWER_TIMEOUT_NS);
        let late = self.steps.iter().filter(|(_, step)| step.since_ns < deadline_ns);
        for client in late.map(|(client, _)| *client).collect::<Vec<_>>() {
            let error = match self.clients[client].state {
                State::Connecting => "a handshake was not answered within 10 s",
                State::AwaitingPong => "a ping was not answered within 10 s",
                _ => "a socket was not closed within 10 s of the close frame",
            };
            if matches!(self.clients[client].state, State::CloseSent | State::CloseReceived) {
                self.failed += 1;
                self.note_error(error);
            }
            self.on_socket_end(client, ABNORMAL, error, handler);
        }
    }
}

/// Whether a failed connect is the peer's fault and not this machine's.
fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_remembered_in_few_bytes() {
        // In a debug build mio stores more beside the descriptor.
        assert!(size_of::<FrameParser>() + size_of::<State>() <= 32);
    }
}
