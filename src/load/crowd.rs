//! Many WebSocket connections in one event loop: opens them, reads them, answers pings, ends them.
//!
//! Owns the sockets and what is remembered of each between two reads: 40 bytes. What messages mean is the [`Audience`]'s
//! matter. A member is known by its number, which is also its token from `first_token` on. Never waits.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use mio::event::Event;
use mio::{Interest, Registry, Token};

use super::audience::{Audience, Reader};
use super::connect;
use super::event_loop::Clock;
use super::frames::{self, Walker};
use super::latency::Latencies;
use super::options::Options;
use super::stream::Stream;
use super::tls::Tls;

/// Longest wait for each step of a handshake or a close, in nanoseconds.
const ANSWER_TIMEOUT_NS: u64 = 10_000_000_000;
/// One buffer for all reads: nobody looks at a payload, and it stays in the core's cache. Holds more than what is in flight to
/// one subscriber under most loads.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Longest answer to a handshake, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// The code of a connection that ended without a close frame (RFC 6455, section 7.1.5).
pub(crate) const ABNORMAL: u16 = 1006;
/// The code of a close frame without one.
const NO_CODE: u16 = 1005;
/// The code of a normal end.
pub(crate) const NORMAL: u16 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Dialling,
    /// The handshake is through, the pong is still to come. A server may answer 101 a moment before the subscription stands; who
    /// reads a pong has it in place.
    Greeting,
    Open,
    /// Our close frame has left first.
    Leaving,
    /// The server's close frame has arrived.
    Closing,
}

struct Member {
    stream: Option<Stream>,
    walker: Walker,
    state: State,
}

/// A step that has a time limit.
struct Step {
    since_ns: u64,
    /// As much of the answer to the handshake as has arrived.
    answer: Vec<u8>,
    asked: bool,
}

/// See the head of this file.
pub(crate) struct Crowd {
    server: SocketAddr,
    tls: Option<Tls>,
    sources: Vec<IpAddr>,
    /// The handshake's request, by room.
    requests: Vec<Vec<u8>>,
    first_token: usize,
    /// Members from this number on have a small receive buffer.
    narrow_from: usize,
    clock: Clock,
    members: Vec<Member>,
    /// Members in a handshake or an end.
    steps: HashMap<usize, Step>,
    /// What sockets did not take, by member.
    unsent: HashMap<usize, Vec<u8>>,
    scratch: Vec<u8>,
    /// Members whose socket is closed since the last look.
    gone: Vec<usize>,
    /// Beginning of a connection until its handshake is answered.
    pub(crate) handshakes: Latencies,
    /// Reads that returned data.
    pub(crate) reads: u64,
    /// Members that are there.
    pub(crate) open: usize,
    /// Connections that did not come about.
    pub(crate) failed: u64,
    /// Connections that the server ended, by code.
    pub(crate) closed: BTreeMap<u16, u64>,
    /// Those among them that it had no reason to end.
    pub(crate) unexpected: u64,
    /// What went wrong first.
    pub(crate) complaint: Option<String>,
}

impl Crowd {
    /// Nobody is there. Tokens begin at `first_token`; `sources_from` counts them for the choice of source addresses.
    ///
    /// # Errors
    /// When the URL asks for TLS that is not to be had.
    pub(crate) fn new(
        options: &Options,
        server: SocketAddr,
        members: usize,
        first_token: usize,
        clock: Clock,
    ) -> io::Result<Self> {
        let member = || Member { stream: None, walker: Walker::default(), state: State::Absent };
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
            narrow_from: if options.slow_narrow { members - options.slow.min(members) } else { usize::MAX },
            clock,
            members: (0..members).map(|_| member()).collect(),
            steps: HashMap::new(),
            unsent: HashMap::new(),
            scratch: vec![0; SCRATCH_BYTES],
            gone: Vec::new(),
            handshakes: Latencies::default(),
            reads: 0,
            open: 0,
            failed: 0,
            closed: BTreeMap::new(),
            unexpected: 0,
            complaint: None,
        })
    }

    /// How many there can be.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether this token is that of a member, and which.
    pub(crate) fn member(&self, Token(token): Token) -> Option<usize> {
        token.checked_sub(self.first_token).filter(|member| *member < self.members.len())
    }

    /// Members whose handshake or end is under way.
    pub(crate) fn busy(&self) -> usize {
        self.steps.len()
    }

    /// Members that are not there, other than those whom the server had a reason to end.
    pub(crate) fn absent(&self) -> u64 {
        let excused = self.closed.values().sum::<u64>() - self.unexpected;
        (self.members.len() - self.open) as u64 - excused
    }

    /// Whether a member is there, and neither side ends.
    pub(crate) fn is_open(&self, member: usize) -> bool {
        matches!(self.members[member].state, State::Open | State::Greeting)
    }

    /// Whether a member may begin anew.
    pub(crate) fn is_absent(&self, member: usize) -> bool {
        self.members[member].state == State::Absent
    }

    /// Members whose socket is closed since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.gone)
    }

    /// Begins the connection of an absent member, which was due at this time.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(crate) fn dial(&mut self, member: usize, due_ns: u64, registry: &Registry) -> io::Result<()> {
        let number = self.first_token + member;
        let stream = connect::begin(self.server, number, &self.sources, member >= self.narrow_from)
            .and_then(|tcp| Stream::new(tcp, self.tls.as_ref()));
        let mut stream = match stream {
            Err(error) if is_about_the_peer(&error) => {
                self.fail(member, &format!("cannot connect to {}: {error}", self.server));
                return Ok(());
            }
            stream => stream?,
        };
        registry.register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        self.members[member] = Member { stream: Some(stream), walker: Walker::default(), state: State::Dialling };
        self.steps.insert(member, Step { since_ns: due_ns, answer: Vec::new(), asked: false });
        Ok(())
    }

    /// Sends a close frame; the messages that still come belong to nobody.
    pub(crate) fn leave(&mut self, member: usize) {
        let mut frame = Vec::new();
        frames::write_client_frame(&mut frame, frames::CLOSE, &NORMAL.to_be_bytes());
        self.send(member, &frame);
        self.open -= 1;
        self.step(member, State::Leaving);
    }

    /// No events come from this member any more; it is read with [`Self::receive`].
    pub(crate) fn silence(&mut self, member: usize, registry: &Registry) -> io::Result<()> {
        self.members[member].stream.as_mut().map_or(Ok(()), |stream| registry.deregister(stream))
    }

    /// Sends bytes; what the socket does not take follows when it does. A failure shows in the next read.
    pub(crate) fn send(&mut self, member: usize, bytes: &[u8]) {
        let unsent = self.unsent.entry(member).or_default();
        unsent.extend_from_slice(bytes);
        self.flush(member);
    }

    /// Whether everything sent to this member's socket has been taken.
    pub(crate) fn has_sent(&self, member: usize) -> bool {
        !self.unsent.contains_key(&member)
    }

    fn flush(&mut self, member: usize) {
        if let Some(stream) = &mut self.members[member].stream {
            // A failure shows in the next read.
            let _ = stream.flush();
        }
        let Some(unsent) = self.unsent.get_mut(&member) else {
            return;
        };
        while let Some(stream) = self.members[member].stream.as_mut().filter(|_| !unsent.is_empty()) {
            match stream.write(unsent) {
                Ok(written) => drop(unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.unsent.remove(&member);
    }

    /// Takes in what has happened to a member.
    pub(crate) fn event<A: Audience>(&mut self, member: usize, event: &Event, audience: &mut A) {
        match self.members[member].state {
            State::Absent => return,
            State::Dialling => self.ask(member),
            _ if event.is_writable() => self.flush(member),
            _ => {}
        }
        if event.is_readable() || event.is_read_closed() {
            self.receive(member, usize::MAX, event.is_read_closed(), audience);
        }
    }

    /// Sends the request once there is a connection.
    fn ask(&mut self, member: usize) {
        let Some(step) = self.steps.get_mut(&member).filter(|step| !step.asked) else {
            return;
        };
        let Some(stream) = &self.members[member].stream else {
            return;
        };
        match stream.tcp().take_error() {
            Ok(None) if stream.tcp().peer_addr().is_err() => return,
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                return self.fail(member, &format!("cannot connect to {}: {error}", self.server));
            }
        }
        step.asked = true;
        let request = self.requests[member % self.requests.len()].clone();
        self.send(member, &request);
    }

    /// Reads at most `budget` bytes. A read that does not fill the buffer has emptied the socket (epoll(7)), which saves the
    /// second call that would only say so; after the end of a stream no further event comes, so then it reads on.
    pub(crate) fn receive<A: Audience>(&mut self, member: usize, mut budget: usize, ended: bool, audience: &mut A) {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(stream) = &mut self.members[member].stream {
            let room = scratch.len().min(budget);
            match stream.read(&mut scratch[..room]) {
                Ok(0) => {
                    self.end(member, ABNORMAL, "the server ended a connection without a close frame", audience);
                }
                Ok(read) => {
                    self.reads += 1;
                    budget -= read;
                    self.take_in(member, &scratch[..read], audience);
                    if (read < room && !ended) || budget == 0 {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.end(member, ABNORMAL, &format!("a connection failed: {error}"), audience),
            }
        }
        self.scratch = scratch;
    }

    fn take_in<A: Audience>(&mut self, member: usize, bytes: &[u8], audience: &mut A) {
        let now_ns = self.clock.now_ns();
        if self.members[member].state == State::Dialling {
            let Some(rest) = self.answered(member, bytes, now_ns) else {
                return;
            };
            audience.joined(member, now_ns);
            return self.take_in(member, &rest, audience);
        }
        let head_bytes = audience.head_bytes();
        let mut reader = Reader { audience, member, now_ns, replies: Vec::new(), ponged: false, close: None };
        let walked = self.members[member].walker.walk(bytes, head_bytes, &mut reader);
        let Reader { replies, ponged, close, .. } = reader;
        if !replies.is_empty() {
            self.send(member, &replies);
        }
        if ponged && self.members[member].state == State::Greeting {
            self.members[member].state = State::Open;
            self.steps.remove(&member);
        }
        match (walked, close) {
            (Err(violation), _) => {
                self.end(member, 1002, &format!("what the server sent is wrong: {violation}"), audience)
            }
            (Ok(()), Some(code)) => self.closing(member, code.unwrap_or(NO_CODE), audience),
            (Ok(()), None) => {}
        }
    }

    /// Takes in the answer to a handshake; the bytes behind it, once it is complete.
    fn answered(&mut self, member: usize, bytes: &[u8], now_ns: u64) -> Option<Vec<u8>> {
        let step = self.steps.get_mut(&member)?;
        step.answer.extend_from_slice(bytes);
        let since_ns = step.since_ns;
        match connect::answer(&step.answer) {
            Ok(None) if step.answer.len() < ANSWER_BYTES_MAX => None,
            Ok(None) => {
                self.fail(member, "the answer to a handshake has no end");
                None
            }
            Err(reason) => {
                self.fail(member, &reason);
                None
            }
            Ok(Some(end)) => {
                let rest = step.answer.split_off(end);
                self.handshakes.record(now_ns.saturating_sub(since_ns));
                self.open += 1;
                self.step(member, State::Greeting);
                let mut ping = Vec::new();
                frames::write_client_frame(&mut ping, frames::PING, &[]);
                self.send(member, &ping);
                Some(rest)
            }
        }
    }

    fn step(&mut self, member: usize, state: State) {
        self.members[member].state = state;
        self.steps.insert(member, Step { since_ns: self.clock.now_ns(), answer: Vec::new(), asked: true });
    }

    /// The server's close frame: answered, and the server closes the socket.
    fn closing<A: Audience>(&mut self, member: usize, code: u16, audience: &mut A) {
        match self.members[member].state {
            State::Leaving => {}
            State::Open | State::Greeting => {
                self.open -= 1;
                self.note_end(member, code, &format!("the server closed a connection with {code}"), audience);
                let mut frame = Vec::new();
                let payload = code.to_be_bytes();
                let payload = if code == NO_CODE { &[][..] } else { &payload[..] };
                frames::write_client_frame(&mut frame, frames::CLOSE, payload);
                self.send(member, &frame);
            }
            State::Absent | State::Dialling | State::Closing => return,
        }
        self.step(member, State::Closing);
    }

    /// The end of the socket, which is in order only behind a close frame.
    fn end<A: Audience>(&mut self, member: usize, code: u16, complaint: &str, audience: &mut A) {
        match self.members[member].state {
            State::Dialling => return self.fail(member, complaint),
            State::Greeting | State::Open => {
                self.open -= 1;
                self.note_end(member, code, complaint, audience);
            }
            State::Absent | State::Leaving | State::Closing => {}
        }
        self.release(member);
    }

    fn note_end<A: Audience>(&mut self, member: usize, code: u16, complaint: &str, audience: &mut A) {
        *self.closed.entry(code).or_default() += 1;
        if !audience.ended(member, code, self.clock.now_ns()) {
            self.unexpected += 1;
            self.complain(complaint);
        }
    }

    fn fail(&mut self, member: usize, complaint: &str) {
        self.failed += 1;
        self.complain(complaint);
        self.release(member);
    }

    fn complain(&mut self, complaint: &str) {
        self.complaint.get_or_insert_with(|| complaint.to_owned());
    }

    fn release(&mut self, member: usize) {
        self.members[member] = Member { stream: None, walker: Walker::default(), state: State::Absent };
        self.steps.remove(&member);
        self.unsent.remove(&member);
        self.gone.push(member);
    }

    /// Ends every step that has taken too long.
    pub(crate) fn expire<A: Audience>(&mut self, audience: &mut A) {
        let deadline_ns = self.clock.now_ns().saturating_sub(ANSWER_TIMEOUT_NS);
        let late = self.steps.iter().filter(|(_, step)| step.since_ns < deadline_ns);
        for member in late.map(|(member, _)| *member).collect::<Vec<_>>() {
            let complaint = match self.members[member].state {
                State::Dialling => "a handshake was not answered within 10 s",
                State::Greeting => "a ping was not answered within 10 s",
                _ => "a socket was not closed within 10 s of the close frame",
            };
            if matches!(self.members[member].state, State::Leaving | State::Closing) {
                self.failed += 1;
                self.complain(complaint);
            }
            self.end(member, ABNORMAL, complaint, audience);
        }
    }
}

/// Whether the peer is to blame for a failed connect, and not this machine.
fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_remembered_in_few_bytes() {
        // In a debug build mio keeps more beside the descriptor.
        assert!(size_of::<Walker>() + size_of::<State>() <= 32);
    }
}
