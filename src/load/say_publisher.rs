//! Publishes by the event SAY of clients that do nothing else. A server does not acknowledge a SAY,
//! so only an `ERROR` or the end of a connection shows that one failed.

use std::net::SocketAddr;

use mio::event::Event;

use super::client_pool::ClientPool;
use super::event_loop::{Clock, EventLoop};
use super::frame_handler::FrameHandler;
use super::message::Tags;
use super::options::Options;
use super::{LoadError, frames};

/// Clients that send the event SAY.
pub(crate) struct SayPublisher {
    pool: ClientPool,
    replies: SenderReplies,
    rooms: usize,
    tags: Tags,
    payload: usize,
    scratch: Vec<u8>,
    sent: Vec<usize>,
}

/// The [`FrameHandler`] of the senders: looks for errors. Messages are the subscribers' task.
#[derive(Default)]
struct SenderReplies {
    error: Option<String>,
}

impl FrameHandler for SenderReplies {
    fn head_bytes(&self) -> usize {
        200
    }

    fn joined(&mut self, _: usize, _: u64) {}

    fn head(&mut self, _: usize, head: &[u8]) -> u32 {
        if head.starts_with(br#"{"event":"ERROR""#) {
            self.error.get_or_insert_with(|| format!("a SAY was answered with {}", String::from_utf8_lossy(head)));
        } else if head.starts_with(br#"{"event":"SAY""#) {
            let sentence = "a SAY came back to its sender: this is an echo server, which sends nothing to others";
            self.error.get_or_insert_with(|| sentence.to_owned());
        }
        0
    }

    fn message(&mut self, _: usize, _: u32, _: u32, _: u64) {}

    fn ended(&mut self, _: usize, code: u16, _: u64) -> bool {
        self.error.get_or_insert_with(|| format!("the server closed a sender with {code}"));
        false
    }
}

impl SayPublisher {
    pub(super) fn connect(
        options: &Options,
        server: SocketAddr,
        tags: Tags,
        event_loop: &mut EventLoop,
        first_token: usize,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        let options = Options { slow: 0, ..options.clone() };
        let mut pool = ClientPool::new(&options, server, options.publishers, first_token, clock)?;
        let mut replies = SenderReplies::default();
        for sender in 0..pool.len() {
            pool.connect(sender, clock.now_ns(), event_loop.registry())?;
        }
        let mut events = EventLoop::events();
        while pool.in_transition() > 0 {
            event_loop.wait(&mut events, clock.now_ns() + 100_000_000)?;
            for event in &events {
                if let Some(sender) = pool.client(event.token()) {
                    pool.event(sender, event, &mut replies);
                }
            }
            pool.expire(&mut replies);
        }
        if let Some(first_error) = pool.first_error.take() {
            return Err(LoadError::Handshake(first_error));
        }
        let (rooms, payload) = (options.room_count(), options.payload);
        Ok(Self { sent: vec![0; rooms], pool, replies, rooms, tags, payload, scratch: Vec::new() })
    }

    /// Whether the next sender of this room can send.
    pub(super) fn is_ready(&self, room: usize) -> bool {
        self.pool.has_sent(self.sender(room))
    }

    /// Whether everything has been sent.
    pub(super) fn is_idle(&self) -> bool {
        (0..self.pool.len()).all(|sender| self.pool.has_sent(sender))
    }

    /// The next sender of this room: sender i is in room i mod rooms, as subscribers are.
    fn sender(&self, room: usize) -> usize {
        let senders = (self.pool.len() - room).div_ceil(self.rooms);
        room + self.rooms * (self.sent[room] % senders)
    }

    pub(super) fn publish(&mut self, number: u32, room: usize) {
        let sender = self.sender(room);
        self.sent[room] += 1;
        self.scratch.clear();
        self.scratch.extend_from_slice(br#"{"event":"SAY","message":""#);
        self.tags.write_payload(&mut self.scratch, number, self.payload);
        self.scratch.extend_from_slice(b"\"}");
        let mut frame = Vec::with_capacity(self.scratch.len() + 14);
        frames::write_client_frame(&mut frame, frames::TEXT, &self.scratch);
        self.pool.send(sender, &frame);
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), LoadError> {
        if let Some(sender) = self.pool.client(event.token()) {
            self.pool.event(sender, event, &mut self.replies);
        }
        self.replies.error.take().map_or(Ok(()), |error| Err(LoadError::Publish(error)))
    }
}
