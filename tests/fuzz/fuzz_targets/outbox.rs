//! `outbox`: a sequence of steps on one backlog, with any policy and bound, compared with a model
//! that copies every byte: the waiting bytes and their order, the outcome of each offer, the bound,
//! and the conservation law after every step. At the end the sent bytes are decoded as a client
//! would: whole frames, rising numbers, nothing after a close frame.

#![no_main]

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::take;
use std::rc::Rc;

use arbitrary::Arbitrary;
use hydrant::metrics::{DeliveryCounters, DropReason, Totals};
use hydrant::outbox::{Bound, ENTRY_BYTES, Offered, Outbox, Write};
use hydrant::pages::PAGES_SUBSCRIBERS_MIN;
use hydrant::pages::PagePool;
use hydrant::settings::SlowPolicy;
use hydrant::wire::frame::header_bytes;
use hydrant::wire::{Batch, Frame};
use libfuzzer_sys::fuzz_target;

/// Bytes of a frame for each of its `sizes`, so that a few make a batch that is larger than the
/// bound.
const STEP_BYTES: usize = 5;
const SLICES_MAX: usize = 5;

#[derive(Arbitrary, Debug)]
struct Scenario {
    bytes_max: u16,
    policy: Policy,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Policy {
    Disconnect,
    DropNewest,
    DropOldest,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Offers a batch with a frame for each size; the socket took `written` bytes of it if nothing
    /// waited.
    Offer { sizes: Vec<u8>, written: u16, in_pages: bool },
    /// The socket takes at most `bytes` bytes of at most `slices` slices.
    Take { slices: u8, bytes: u16 },
    /// A pong, of which the socket took `written` bytes if nothing waited.
    Pong { payload: u8, written: u8 },
    /// The close frame, in the same way.
    Close { written: u8, slow: bool },
    /// Drops the data.
    Clear,
    /// Moves the bytes of the n-th last batch from their pages to the heap.
    LeavePages(u8),
    /// The connection is gone, and a new one follows.
    Abandon,
}

/// The model: the waiting bytes.
#[derive(Default)]
struct Model {
    /// The rest of a partly written control frame.
    control: Vec<u8>,
    pong: Vec<u8>,
    close: Vec<u8>,
    /// The waiting rest of each offer, frame by frame.
    entries: VecDeque<VecDeque<Waiting>>,
    totals: Totals,
}

#[derive(Clone)]
struct Waiting {
    rest: Vec<u8>,
    started: bool,
}

impl Model {
    fn frames(&self) -> u64 {
        self.entries.iter().map(|entry| entry.len() as u64).sum()
    }

    fn bytes(&self) -> usize {
        let data: usize = self.entries.iter().flatten().map(|frame| frame.rest.len()).sum();
        data + self.entries.len() * ENTRY_BYTES
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty() && [&self.control, &self.pong, &self.close].iter().all(|control| control.is_empty())
    }

    fn has_started(&self) -> bool {
        self.entries.front().is_some_and(|entry| entry[0].started)
    }

    /// All waiting bytes, in the order of sending.
    fn stream(&self) -> Vec<u8> {
        let mut frames = self.entries.iter().flatten().map(|frame| &frame.rest);
        let started = if self.has_started() { frames.next() } else { None };
        let before = [&self.control].into_iter().chain(started).chain([&self.pong, &self.close]);
        before.chain(frames).flatten().copied().collect()
    }

    fn offer(&mut self, frames: &[Frame], mut written: usize, bound: Bound) -> Offered {
        let mut waiting = VecDeque::new();
        for frame in frames {
            let now = written.min(frame.wire().len());
            written -= now;
            if now < frame.wire().len() {
                waiting.push_back(Waiting { rest: frame.wire()[now..].to_vec(), started: now > 0 });
            }
        }
        let delivered = frames.len() - waiting.len();
        let started = waiting[0].started;
        let before = waiting.len();
        let room = bound.bytes_max.saturating_sub(self.bytes() + ENTRY_BYTES);
        let overflow = sum(&waiting) > room;
        let mut queued = delivered + usize::from(started)..frames.len();
        if overflow && bound.policy != SlowPolicy::DropOldest {
            let fits = if bound.policy == SlowPolicy::Disconnect { 0 } else { room };
            // A partly written frame is always finished.
            while waiting.len() > usize::from(started) && sum(&waiting) > fits {
                waiting.pop_back();
            }
            self.totals.dropped_slow += (before - waiting.len()) as u64;
            queued.end -= before - waiting.len();
        }
        if !waiting.is_empty() {
            self.entries.push_back(waiting);
        }
        if overflow && bound.policy == SlowPolicy::DropOldest {
            let mut dropped = 0;
            self.split_started();
            let first = usize::from(self.has_started());
            while self.bytes() > bound.bytes_max && self.entries.len() > first {
                self.entries[first].pop_front();
                dropped += 1;
                if self.entries[first].is_empty() {
                    self.entries.remove(first);
                }
            }
            self.totals.dropped_slow += dropped;
            // All other frames waited longer.
            let kept = self.frames() - u64::from(self.has_started());
            queued.start = frames.len() - queued.len().min(kept as usize);
        }
        self.totals.delivered += delivered as u64;
        Offered { delivered, started, queued, overflow: overflow && bound.policy == SlowPolicy::Disconnect }
    }

    /// A partly written frame becomes an entry of its own before other frames of its entry are
    /// dropped.
    fn split_started(&mut self) {
        if self.has_started() && self.entries[0].len() > 1 {
            let rest = self.entries[0].split_off(1);
            self.entries.insert(1, rest);
        }
    }

    fn clear(&mut self, reason: DropReason) {
        self.split_started();
        let kept = usize::from(self.has_started());
        let dropped = self.entries.drain(kept..).map(|entry| entry.len() as u64).sum();
        self.count_dropped(reason, dropped);
    }

    fn count_dropped(&mut self, reason: DropReason, frames: u64) {
        match reason {
            DropReason::Slow => self.totals.dropped_slow += frames,
            DropReason::Closed => self.totals.dropped_closed += frames,
        }
    }

    /// Removes the first `bytes` bytes, which were sent.
    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            if !self.control.is_empty() {
                bytes -= remove(&mut self.control, bytes);
            } else if self.has_started() || self.pong.is_empty() && self.close.is_empty() {
                let entry = &mut self.entries[0];
                entry[0].started = true;
                bytes -= remove(&mut entry[0].rest, bytes);
                if entry[0].rest.is_empty() {
                    self.totals.delivered += 1;
                    entry.pop_front();
                }
                if self.entries[0].is_empty() {
                    self.entries.pop_front();
                }
            } else {
                self.control = take(if self.pong.is_empty() { &mut self.close } else { &mut self.pong });
            }
        }
    }
}

/// Removes at most `bytes` bytes from the front; returns how many.
fn remove(rest: &mut Vec<u8>, bytes: usize) -> usize {
    rest.drain(..bytes.min(rest.len())).len()
}

fn sum(frames: &VecDeque<Waiting>) -> usize {
    frames.iter().map(|frame| frame.rest.len()).sum()
}

/// The parts of a connection that an outbox needs.
struct Connection {
    outbox: Outbox,
    model: Model,
    bound: Bound,
    counters: Rc<DeliveryCounters>,
    pool: PagePool,
    batches: Vec<Rc<Batch>>,
    next_number: usize,
    closing: bool,
    /// The sent bytes.
    wire: Vec<u8>,
}

impl Connection {
    fn new(bound: Bound) -> Self {
        Self {
            outbox: Outbox::default(),
            model: Model::default(),
            bound,
            counters: Rc::default(),
            pool: PagePool::new(0),
            batches: Vec::new(),
            next_number: 0,
            closing: false,
            wire: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer { .. } | Step::Pong { .. } | Step::Close { .. } if self.closing => {}
            Step::Offer { ref sizes, written, in_pages } => self.offer(sizes, written.into(), in_pages),
            Step::Take { slices, bytes } => self.take(1 + usize::from(slices) % SLICES_MAX, bytes.into()),
            Step::Pong { payload, written } => {
                let pong = Frame::pong(&vec![payload; usize::from(payload) % 126]);
                match self.part(&pong, written) {
                    0 => {
                        self.model.pong = pong.wire().to_vec();
                        self.outbox.put_pong(pong);
                    }
                    part => self.start_control(pong, part),
                }
            }
            Step::Close { written, slow } => {
                self.close(written, if slow { DropReason::Slow } else { DropReason::Closed })
            }
            Step::Clear => {
                self.model.clear(DropReason::Closed);
                self.outbox.clear_data(DropReason::Closed);
            }
            Step::LeavePages(back) => {
                if let Some(batch) = self.batches.iter().rev().nth(back.into()) {
                    batch.leave_pages();
                }
            }
            Step::Abandon => self.abandon(),
        }
    }

    fn offer(&mut self, sizes: &[u8], written: usize, in_pages: bool) {
        let frame = |(index, &size): (usize, &u8)| {
            let mut payload = format!("{} ", self.next_number + index);
            payload.extend(std::iter::repeat_n('.', usize::from(size) * STEP_BYTES));
            if size % 2 == 0 { Frame::text(&payload) } else { Frame::binary(payload.as_bytes()) }
        };
        let frames: Vec<_> = sizes.iter().take(20).enumerate().map(frame).collect();
        if frames.is_empty() {
            return;
        }
        self.next_number += frames.len();
        let mut batch = Batch::new(&frames, self.counters.clone());
        if in_pages {
            batch.move_to_pages(|bytes| self.pool.hold(bytes, PAGES_SUBSCRIBERS_MIN));
        }
        let batch = Rc::new(batch);
        let written = if self.outbox.is_empty() { written % batch.len() } else { 0 };
        let whole: Vec<u8> = frames.iter().flat_map(|frame| frame.wire().to_vec()).collect();
        self.wire.extend(&whole[..written]);
        self.counters.matched(frames.len() as u64);
        self.model.totals.matched += frames.len() as u64;
        let expected = self.model.offer(&frames, written, self.bound);
        let offered = self.outbox.offer(&batch, written, self.bound);
        assert_eq!(offered, expected);
        self.batches.push(batch);
        let only_started = self.model.has_started() && self.outbox.frames() == 1;
        assert!(self.outbox.bytes() <= self.bound.bytes_max || only_started, "{} bytes wait", self.outbox.bytes());
        if offered.overflow {
            self.close(0, DropReason::Slow);
        }
    }

    fn take(&mut self, slices: usize, bytes: usize) {
        let mut slots = [IoSlice::new(&[]); SLICES_MAX];
        let offered = match self.outbox.fill(&mut slots[..slices]) {
            Write::Slices(filled) => slots[..filled].iter().flat_map(|slice| slice.to_vec()).collect(),
            Write::Pages(pages, range) => pages.bytes().expect("pages can be read")[range].to_vec(),
        };
        let expected = self.model.stream();
        assert!(expected.starts_with(&offered), "fill() returns other bytes than those that wait");
        assert_eq!(offered.is_empty(), expected.is_empty(), "something waits and fill() returns nothing");
        let sent = bytes.min(offered.len());
        self.wire.extend(&offered[..sent]);
        self.outbox.advance(sent);
        self.model.advance(sent);
    }

    /// The bytes of a control frame that the socket takes: none if something waits, and never all.
    fn part(&self, control: &Frame, written: u8) -> usize {
        if self.outbox.is_empty() { usize::from(written) % control.wire().len() } else { 0 }
    }

    fn start_control(&mut self, control: Frame, part: usize) {
        self.wire.extend(&control.wire()[..part]);
        self.model.control = control.wire()[part..].to_vec();
        self.outbox.start_control(control, part);
    }

    fn close(&mut self, written: u8, reason: DropReason) {
        self.closing = true;
        let close = Frame::close_with(1000, "bye");
        match self.part(&close, written) {
            0 => {
                self.model.clear(reason);
                self.model.close = close.wire().to_vec();
                self.outbox.put_close(close, reason);
            }
            part => self.start_control(close, part),
        }
    }

    fn abandon(&mut self) {
        self.model.count_dropped(DropReason::Closed, self.model.frames());
        self.model.entries.clear();
        self.outbox.abandon(DropReason::Closed);
        self.check();
        self.read(false);
        self.outbox = Outbox::default();
        self.model = Model { totals: self.model.totals, ..Model::default() };
        self.closing = false;
    }

    fn check(&self) {
        let totals = self.counters.totals();
        assert_eq!(totals, self.model.totals);
        assert_eq!((self.outbox.frames(), self.outbox.bytes()), (self.model.frames(), self.model.bytes()));
        assert_eq!(totals.matched, totals.delivered + totals.dropped() + self.outbox.frames(), "the conservation law");
        assert_eq!(self.outbox.is_empty(), self.model.is_empty());
    }

    /// Decodes the sent bytes, as a client does; `whole` if the last frame has to be complete.
    fn read(&mut self, whole: bool) {
        let wire = take(&mut self.wire);
        let mut rest = &wire[..];
        let mut last = None;
        while rest.len() >= 2 {
            let opcode = rest[0];
            let header = header_bytes(rest);
            let Some(long) = rest.get(2..header) else { break };
            let length = match header {
                2 => usize::from(rest[1]),
                _ => long.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)),
            };
            let Some(payload) = rest.get(header..header + length) else { break };
            match opcode {
                0x81 | 0x82 => {
                    let text = str::from_utf8(payload).expect("it was text");
                    let (number, filling) = text.split_once(' ').expect("a number comes first");
                    let number: usize = number.parse().expect("a number");
                    assert!(last.is_none_or(|last| last < number), "{number} after {last:?}");
                    assert!(filling.bytes().all(|byte| byte == b'.'));
                    last = Some(number);
                }
                0x8a => assert!(payload.iter().all(|&byte| usize::from(byte) % 126 == length)),
                0x88 => assert!(payload == b"\x03\xe8bye" && rest.len() == header + length, "after a close"),
                other => panic!("no frame begins with {other:x}"),
            }
            rest = &rest[header + length..];
        }
        assert!(!whole || rest.is_empty(), "a frame is incomplete");
    }
}

fuzz_target!(|scenario: Scenario| {
    let policy = match scenario.policy {
        Policy::Disconnect => SlowPolicy::Disconnect,
        Policy::DropNewest => SlowPolicy::DropNewest,
        Policy::DropOldest => SlowPolicy::DropOldest,
    };
    let mut connection = Connection::new(Bound { bytes_max: usize::from(scenario.bytes_max) % 4096, policy });
    for step in scenario.steps.iter().take(64) {
        connection.step(step);
        connection.check();
    }
    while !connection.outbox.is_empty() {
        connection.take(SLICES_MAX, usize::MAX);
        connection.check();
    }
    assert_eq!(connection.counters.totals().outstanding(), 0);
    connection.read(true);
});
