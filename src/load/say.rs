//! Publishing by the event SAY of clients that are nothing else. Nothing answers a SAY, so only an `ERROR` or the end of a
//! connection says that one was not carried out.

use std::net::SocketAddr;

use mio::event::Event;

use super::audience::Audience;
use super::crowd::Crowd;
use super::event_loop::{Clock, EventLoop};
use super::message::Tags;
use super::options::Options;
use super::{LoadError, frames};

/// The event SAY of clients that are nothing else.
pub(crate) struct Say {
    crowd: Crowd,
    watch: Watch,
    rooms: usize,
    tags: Tags,
    payload: usize,
    scratch: Vec<u8>,
    spoken: Vec<usize>,
}

/// Looks for what the server says to a speaker; the messages themselves are the subscribers' matter.
#[derive(Default)]
struct Watch {
    error: Option<String>,
}

impl Audience for Watch {
    fn head_bytes(&self) -> usize {
        200
    }

    fn joined(&mut self, _: usize, _: u64) {}

    fn head(&mut self, _: usize, head: &[u8]) -> u32 {
        if head.starts_with(br#"{"event":"ERROR""#) {
            self.error.get_or_insert_with(|| String::from_utf8_lossy(head).into_owned());
        }
        0
    }

    fn message(&mut self, _: usize, _: u32, _: u64) {}

    fn ended(&mut self, _: usize, code: u16, _: u64) -> bool {
        self.error.get_or_insert_with(|| format!("close {code}"));
        false
    }
}

impl Say {
    pub(super) fn connect(
        options: &Options,
        server: SocketAddr,
        tags: Tags,
        event_loop: &mut EventLoop,
        first_token: usize,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        let options = Options { slow: 0, ..options.clone() };
        let mut crowd = Crowd::new(&options, server, options.publishers, first_token, clock)?;
        let mut watch = Watch::default();
        for speaker in 0..crowd.len() {
            crowd.dial(speaker, clock.now_ns(), event_loop.registry())?;
        }
        let mut events = EventLoop::events();
        while crowd.busy() > 0 {
            event_loop.wait(&mut events, clock.now_ns() + 100_000_000)?;
            for event in &events {
                if let Some(speaker) = crowd.member(event.token()) {
                    crowd.event(speaker, event, &mut watch);
                }
            }
            crowd.expire(&mut watch);
        }
        if let Some(complaint) = crowd.complaint.take() {
            return Err(LoadError::Handshake(complaint));
        }
        let (rooms, payload) = (options.room_count(), options.payload);
        Ok(Self { spoken: vec![0; rooms], crowd, watch, rooms, tags, payload, scratch: Vec::new() })
    }

    /// Whether the next speaker of this room can speak.
    pub(super) fn is_ready(&self, room: usize) -> bool {
        self.crowd.has_sent(self.speaker(room))
    }

    /// Whether everything has been sent.
    pub(super) fn is_idle(&self) -> bool {
        (0..self.crowd.len()).all(|speaker| self.crowd.has_sent(speaker))
    }

    /// Who speaks next in this room: speaker i is in room i mod rooms, as subscribers are.
    fn speaker(&self, room: usize) -> usize {
        let speakers = (self.crowd.len() - room).div_ceil(self.rooms);
        room + self.rooms * (self.spoken[room] % speakers)
    }

    pub(super) fn publish(&mut self, number: u32, room: usize) {
        let speaker = self.speaker(room);
        self.spoken[room] += 1;
        self.scratch.clear();
        self.scratch.extend_from_slice(br#"{"event":"SAY","message":""#);
        self.tags.write_payload(&mut self.scratch, number, self.payload);
        self.scratch.extend_from_slice(b"\"}");
        let mut frame = Vec::with_capacity(self.scratch.len() + 14);
        frames::write_client_frame(&mut frame, frames::TEXT, &self.scratch);
        self.crowd.send(speaker, &frame);
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), LoadError> {
        if let Some(speaker) = self.crowd.member(event.token()) {
            self.crowd.event(speaker, event, &mut self.watch);
        }
        self.watch
            .error
            .take()
            .map_or(Ok(()), |error| Err(LoadError::Publish(format!("a SAY was answered with {error}"))))
    }
}
