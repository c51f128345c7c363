//! The reference: a loop of `send` over the same sockets, and nothing else.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hydrant::conn::Socket;
use hydrant::wire::Frame;

use crate::sink::{Sink, Total};
use crate::stage::dispatches;

/// Sockets in a row.
pub(crate) struct Bare {
    sockets: Vec<Sink>,
    total: Total,
}

impl Bare {
    /// So many sockets.
    pub(crate) fn new(subscribers: usize) -> Self {
        let total = Rc::new(Cell::default());
        Self { sockets: (0..subscribers).map(|_| Sink::new(&total)).collect(), total }
    }

    /// Delivers the messages to every socket, `times` over; the time that it took. What is pending
    /// is joined, as the engine joins it, up to the same length.
    pub(crate) fn deliver(&self, messages: &[Frame], times: u64) -> Duration {
        let dispatches = dispatches(messages);
        let wire_bytes: u64 = messages.iter().map(|frame| frame.wire().len() as u64).sum();
        let due = self.total.get() + times * wire_bytes * self.sockets.len() as u64;
        let begun = Instant::now();
        for _ in 0..times {
            for frames in &dispatches {
                let mut joined = Vec::with_capacity(frames.iter().map(|frame| frame.wire().len()).sum());
                frames.iter().for_each(|frame| joined.extend_from_slice(frame.wire()));
                for socket in &self.sockets {
                    let sent = socket.send(&joined).expect("a sink takes everything");
                    assert_eq!(sent, joined.len());
                }
            }
        }
        let took = begun.elapsed();
        assert_eq!(self.total.get(), due);
        took
    }
}
