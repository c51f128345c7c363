//! The backlog of one connection: the frames that wait because its socket was full.
//!
//! # The treatment of slow clients
//! - An outbox exists only while something waits; the connection frees it when
//!   [`Outbox::is_empty`].
//! - Data waits in the order in which it was published, as references into shared batches, and is
//!   bounded in bytes.
//! - A partly written frame is always finished, whatever the policy; nothing is inserted into it.
//! - Control frames have a slot each, ahead of data: at most one pong (the newest: RFC 6455,
//!   section 5.5.3) and one close. After a close frame nothing else is sent.
//! - At the bound, `disconnect` queues nothing and reports [`Offered::overflow`]; `drop-newest`
//!   queues the frames that still fit, from the front; `drop-oldest` drops the frames that have
//!   waited longest until the rest fits.
//! - An answer to a client's own message is never dropped while the client is connected: it has
//!   room beyond the bound, and the connection ends when answers alone fill that
//!   ([`Bound::of_answers`]).
//! - Every offered frame is counted in its channel's counters: as delivered when the kernel has
//!   taken its last byte, or as dropped with a reason.
//!
//! Pure: no I/O, no clock.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;

use bytes::{Buf, Bytes};

use crate::metrics::DropReason;
use crate::pages::Pages;
use crate::settings::SlowPolicy;
use crate::wire::{Batch, Frame, Piece};

/// Most bytes that one pass joins into one write, unless a single frame is longer, and never more
/// than a backlog may hold. Larger joins save nothing per byte (the copy dominates), and a single
/// write could overflow the backlog of a healthy client; `benches/delivery` would show a better
/// value.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The unsent part of a batch; `start` may lie inside a frame, `end` never does.
#[derive(Debug)]
struct Entry {
    batch: Rc<Batch>,
    start: usize,
    end: usize,
}

impl Entry {
    fn frames(&self) -> u64 {
        (self.batch.frames_before(self.end) - self.batch.frames_before(self.start)) as u64
    }

    /// The end of the first frame, if that is partly written.
    fn started_frame_end(&self) -> Option<usize> {
        (!self.batch.is_boundary(self.start)).then(|| self.batch.end_of_frame_at(self.start))
    }
}

/// The outcome of an offered batch; frames that are neither delivered nor pending were dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// Frames at the front that the socket had taken completely before the offer.
    pub delivered: usize,
    /// Whether the next frame is partly written; its rest waits.
    pub started: bool,
    /// The other frames that wait now.
    pub queued: Range<usize>,
    /// The policy is `disconnect` and the bound is reached: close the connection.
    pub overflow: bool,
}

impl Offered {
    /// The outcome when the socket took all frames at once.
    #[must_use]
    pub fn all_delivered(frames: usize) -> Self {
        Self { delivered: frames, started: false, queued: frames..frames, overflow: false }
    }

    /// Number of frames that wait now.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queued.len() + usize::from(self.started)
    }
}

/// The bound of an outbox, and the policy at the bound.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Most bytes that may wait.
    pub bytes_max: usize,
    /// The policy for a frame that exceeds the bound.
    pub policy: SlowPolicy,
}

/// Bytes of answers that may wait for a client beyond its bound, under a policy that drops: a few
/// hundred of them.
pub const ANSWERS_BYTES_MAX: usize = 64 * 1024;

impl Bound {
    /// The bound for answers; at it, the server closes the client. Only a client that sends and
    /// does not read gets there.
    #[must_use]
    pub fn of_answers(self) -> Self {
        match self.policy {
            SlowPolicy::Disconnect => self,
            SlowPolicy::DropNewest | SlowPolicy::DropOldest => {
                let bytes_max = self.bytes_max.saturating_add(ANSWERS_BYTES_MAX);
                Self { bytes_max, policy: SlowPolicy::Disconnect }
            }
        }
    }

    /// Most bytes of one batch: never more than an empty backlog holds, so that a burst closes no
    /// client that reads.
    #[must_use]
    pub fn batch_bytes_max(self) -> usize {
        BATCH_BYTES_MAX.min(self.bytes_max.saturating_sub(ENTRY_BYTES))
    }
}

/// The next write, as [`Outbox::fill`] returns it.
#[derive(Debug)]
pub enum Write {
    /// Write this many of the slices, from the first.
    Slices(usize),
    /// Send this range of these pages.
    Pages(Rc<Pages>, Range<usize>),
}

/// The backlog of one connection.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The rest of a partly written control frame.
    started_control: Bytes,
    pong: Option<Frame>,
    close: Option<Frame>,
    data: VecDeque<Entry>,
    data_bytes: usize,
    data_frames: u64,
}

/// Bytes that an entry costs beside its data, counted against the bound: its slot in the queue,
/// whose capacity doubles as it grows, and a share of its batch. Without this charge a backlog of
/// tiny frames would take many times its bound.
pub const ENTRY_BYTES: usize = 64;

impl Outbox {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.started_control.is_empty() && self.pong.is_none() && self.close.is_none()
    }

    /// Data bytes that wait, counted as if this connection had a copy of its own, and `ENTRY_BYTES`
    /// for each entry.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data_bytes + self.data.len() * ENTRY_BYTES
    }

    /// Data frames that wait.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.data_frames
    }

    /// Queues the rest of `batch` after its first `written` bytes, within `bound`.
    ///
    /// `written` is 0 unless nothing else waits: a connection with an outbox offers to it before it
    /// writes, which keeps the order.
    pub fn offer(&mut self, batch: &Rc<Batch>, written: usize, bound: Bound) -> Offered {
        let whole = batch.len();
        let delivered = batch.frames_before(written);
        let started = !batch.is_boundary(written);
        // The rest of a partly written frame is queued even beyond the bound.
        let unfinished_end = if started { batch.end_of_frame_at(written) } else { written };
        let room = bound.bytes_max.saturating_sub(self.bytes() + ENTRY_BYTES);
        let overflow = whole - written > room;
        let last = batch.frames();
        let mut queued = delivered + usize::from(started)..last;
        if !overflow {
            self.queue(batch, written, whole);
        } else {
            match bound.policy {
                SlowPolicy::Disconnect => {
                    self.queue_part(batch, written, unfinished_end);
                    queued.end = queued.start;
                }
                SlowPolicy::DropNewest => {
                    let end = batch.boundary_before(written + room).max(unfinished_end);
                    self.queue_part(batch, written, end);
                    queued.end = batch.frames_before(end);
                }
                SlowPolicy::DropOldest => {
                    self.queue(batch, written, whole);
                    self.drop_oldest(bound.bytes_max);
                    // The oldest frames were dropped first: the rest of this batch, but for a
                    // partly written frame, is its end.
                    let kept = self.data.iter().rev().take_while(|entry| Rc::ptr_eq(&entry.batch, batch));
                    queued.start = last - (kept.map(Entry::frames).sum::<u64>() as usize - usize::from(started));
                }
            }
        }
        let counters = batch.counters();
        counters.delivered(delivered as u64);
        if bound.policy != SlowPolicy::DropOldest {
            counters.dropped(DropReason::Slow, (last - queued.end) as u64);
        }
        Offered { delivered, started, queued, overflow: overflow && bound.policy == SlowPolicy::Disconnect }
    }

    /// As [`Outbox::queue`], for a part of a batch whose rest is dropped. A part below half of the
    /// batch is copied, so that it does not keep the whole batch in memory.
    fn queue_part(&mut self, batch: &Rc<Batch>, start: usize, end: usize) {
        let base = batch.boundary_before(start);
        let part = (start < end && 2 * (end - base) < batch.len()).then(|| batch.part(base..end)).flatten();
        match part {
            Some(part) => self.queue(&Rc::new(part), start - base, end - base),
            None => self.queue(batch, start, end),
        }
    }

    fn queue(&mut self, batch: &Rc<Batch>, start: usize, end: usize) {
        if start < end {
            let entry = Entry { batch: batch.clone(), start, end };
            self.data_bytes += end - start;
            self.data_frames += entry.frames();
            self.data.push_back(entry);
        }
    }

    /// Drops whole frames from the front, except answers and a partly written one, until at most
    /// `bytes_max` bytes wait.
    fn drop_oldest(&mut self, bytes_max: usize) {
        let mut oldest = self.split_started_frame();
        while self.bytes() > bytes_max {
            let Some(entry) = self.data.get_mut(oldest) else { break };
            if entry.batch.is_answer() {
                oldest += 1;
                continue;
            }
            let next = entry.batch.end_of_frame_at(entry.start);
            entry.batch.counters().dropped(DropReason::Slow, 1);
            self.data_bytes -= next - entry.start;
            self.data_frames -= 1;
            entry.start = next;
            if entry.start == entry.end {
                self.data.remove(oldest);
            }
        }
    }

    /// Splits a partly written frame into an entry of its own; returns the number of such entries,
    /// 0 or 1.
    fn split_started_frame(&mut self) -> usize {
        let Some(first) = self.data.front_mut() else { return 0 };
        let Some(frame_end) = first.started_frame_end() else { return 0 };
        if frame_end < first.end {
            let rest = Entry { batch: first.batch.clone(), start: frame_end, end: first.end };
            first.end = frame_end;
            self.data.insert(1, rest);
        }
        1
    }

    /// Drops all data but the rest of a partly written frame.
    pub fn clear_data(&mut self, reason: DropReason) {
        let started = self.split_started_frame();
        for entry in self.data.drain(started..) {
            entry.batch.counters().dropped(reason, entry.frames());
            self.data_bytes -= entry.end - entry.start;
            self.data_frames -= entry.frames();
        }
    }

    /// Drops all data, even a partly written frame: for a connection that is gone.
    pub fn abandon(&mut self, reason: DropReason) {
        for entry in self.data.drain(..) {
            entry.batch.counters().dropped(reason, entry.frames());
        }
        self.data_bytes = 0;
        self.data_frames = 0;
    }

    /// Queues `pong` for the next frame boundary; it replaces a pong that waits.
    pub fn put_pong(&mut self, pong: Frame) {
        self.pong = Some(pong);
    }

    /// Queues `close` for the next frame boundary, and drops the data for `reason`. Nothing is sent
    /// after it.
    pub fn put_close(&mut self, close: Frame, reason: DropReason) {
        self.clear_data(reason);
        self.close = Some(close);
    }

    /// Queues the rest of `control` after its first `sent` bytes, ahead of everything else.
    pub fn start_control(&mut self, control: Frame, sent: usize) {
        debug_assert!(self.started_control.is_empty() && self.data.is_empty());
        self.started_control = control.into_wire().slice(sent..);
    }

    /// The next write: pages, or as many slices as come before any pages and as `slices` has room
    /// for.
    pub fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> Write {
        let mut data = self.data.iter();
        let started = self.data.front().and_then(|entry| entry.started_frame_end().map(|frame_end| (entry, frame_end)));
        let control = [&self.pong, &self.close].into_iter().flatten().map(|frame| &frame.wire()[..]);
        let mut split_rest = None;
        if let Some((entry, frame_end)) = started {
            split_rest = (frame_end < entry.end).then(|| entry.batch.piece(frame_end..entry.end));
            data.next();
        }
        let started_control = (!self.started_control.is_empty()).then_some(&self.started_control[..]);
        let pieces = started_control
            .map(Piece::Bytes)
            .into_iter()
            .chain(started.map(|(entry, frame_end)| entry.batch.piece(entry.start..frame_end)))
            .chain(control.map(Piece::Bytes))
            .chain(split_rest)
            .chain(data.map(|entry| entry.batch.piece(entry.start..entry.end)));
        let mut filled = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            match piece {
                Piece::Bytes(bytes) => *slot = IoSlice::new(bytes),
                Piece::Pages(pages, range) if filled == 0 => return Write::Pages(pages, range),
                Piece::Pages(..) => break,
            }
            filled += 1;
        }
        Write::Slices(filled)
    }

    /// Removes the first `sent` bytes of the last [`Outbox::fill`], which the socket has taken.
    pub fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            if self.started_control.has_remaining() {
                let now = sent.min(self.started_control.len());
                self.started_control.advance(now);
                sent -= now;
            } else if let Some(frame_end) = self.data.front().and_then(Entry::started_frame_end) {
                sent -= self.advance_data(sent, frame_end);
            } else if let Some(control) = self.pong.take().or_else(|| self.close.take()) {
                self.started_control = control.into_wire();
            } else {
                let end = self.data.front().expect("only bytes that fill() returned were sent").end;
                sent -= self.advance_data(sent, end);
            }
        }
    }

    /// Advances the first entry by at most `sent` bytes, not beyond `end`; returns the number of
    /// bytes.
    fn advance_data(&mut self, sent: usize, end: usize) -> usize {
        let entry = self.data.front_mut().expect("the caller saw it");
        let next = end.min(entry.start + sent);
        let advanced = next - entry.start;
        let batch = &entry.batch;
        let finished = (batch.frames_before(next) - batch.frames_before(entry.start)) as u64;
        batch.counters().delivered(finished);
        entry.start = next;
        self.data_bytes -= advanced;
        self.data_frames -= finished;
        if entry.start == entry.end {
            self.data.pop_front();
        }
        advanced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{DeliveryCounters, Totals};

    fn batch(counters: &Rc<DeliveryCounters>, payloads: &[&str]) -> Rc<Batch> {
        let frames: Vec<_> = payloads.iter().map(|payload| Frame::text(payload)).collect();
        counters.matched(frames.len() as u64);
        Rc::new(Batch::new(&frames, counters.clone()))
    }

    fn bound(bytes_max: usize, policy: SlowPolicy) -> Bound {
        Bound { bytes_max, policy }
    }

    /// All waiting bytes in the order of the writes, each of at most `step` bytes.
    fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let Write::Slices(filled) = outbox.fill(&mut slices) else { panic!("this batch is not in pages") };
            let mut now: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            now.truncate(step);
            assert!(!now.is_empty(), "an outbox that is not empty has bytes to write");
            outbox.advance(now.len());
            sent.extend(now);
        }
        sent
    }

    fn final_totals(counters: &DeliveryCounters) -> Totals {
        assert_eq!(counters.totals().outstanding(), 0, "the conservation law: {:?}", counters.totals());
        counters.totals()
    }

    #[test]
    fn order_is_kept_and_control_frames_go_between_frames() {
        for step in 1..12 {
            let counters = Rc::default();
            let mut outbox = Outbox::default();
            let generous = bound(1000, SlowPolicy::Disconnect);
            // The socket took "abc" up to its second payload byte.
            let offered = outbox.offer(&batch(&counters, &["abc", "d"]), 4, generous);
            assert_eq!(offered, Offered { delivered: 0, started: true, queued: 1..2, overflow: false });
            outbox.offer(&batch(&counters, &["e"]), 0, generous);
            assert_eq!((outbox.bytes(), outbox.frames()), (7 + 2 * ENTRY_BYTES, 3));
            outbox.put_pong(Frame::pong(b"1"));
            outbox.put_pong(Frame::pong(b"2"));
            assert_eq!(drain(&mut outbox, step), b"c\x8a\x012\x81\x01d\x81\x01e");
            assert_eq!(outbox.bytes(), 0);
            assert_eq!(final_totals(&counters).delivered, 3);
        }
    }

    #[test]
    fn a_close_is_last_and_a_partly_written_frame_is_finished() {
        for step in 1..9 {
            let counters = Rc::default();
            let mut outbox = Outbox::default();
            outbox.offer(&batch(&counters, &["abc", "d"]), 1, bound(1000, SlowPolicy::Disconnect));
            outbox.put_close(Frame::close_with(1000, ""), DropReason::Closed);
            assert_eq!(drain(&mut outbox, step), b"\x03abc\x88\x02\x03\xe8");
            let totals = final_totals(&counters);
            assert_eq!((totals.delivered, totals.dropped_closed), (1, 1));
        }
    }

    #[test]
    fn a_started_control_frame_is_finished_first() {
        let counters = Rc::default();
        let mut outbox = Outbox::default();
        outbox.start_control(Frame::pong(b"xy"), 1);
        outbox.offer(&batch(&counters, &["a"]), 0, bound(1000, SlowPolicy::Disconnect));
        outbox.put_close(Frame::close_with(1001, ""), DropReason::Closed);
        assert_eq!(drain(&mut outbox, 2), b"\x02xy\x88\x02\x03\xe9");
    }

    #[test]
    fn disconnect_queues_only_the_partly_written_frame() {
        let counters = Rc::default();
        let mut outbox = Outbox::default();
        let tight = bound(6 + ENTRY_BYTES, SlowPolicy::Disconnect);
        let offered = outbox.offer(&batch(&counters, &["a", "b", "c", "d"]), 4, tight);
        assert_eq!(offered, Offered { delivered: 1, started: true, queued: 2..2, overflow: true });
        assert_eq!(drain(&mut outbox, 100), b"\x01b");
        assert_eq!(final_totals(&counters).dropped_slow, 2);
    }

    #[test]
    fn drop_newest_keeps_waiting_frames() {
        let counters = Rc::default();
        let mut outbox = Outbox::default();
        let tight = bound(7 + ENTRY_BYTES, SlowPolicy::DropNewest);
        let offered = outbox.offer(&batch(&counters, &["a", "b", "c"]), 0, tight);
        assert_eq!(offered, Offered { delivered: 0, started: false, queued: 0..2, overflow: false });
        let offered = outbox.offer(&batch(&counters, &["d"]), 0, tight);
        assert_eq!(offered, Offered { delivered: 0, started: false, queued: 0..0, overflow: false });
        assert_eq!(drain(&mut outbox, 2), b"\x81\x01a\x81\x01b");
        assert_eq!(final_totals(&counters).dropped_slow, 2);
    }

    #[test]
    fn a_few_frames_do_not_keep_their_batch_in_memory() {
        for (policy, written) in [(SlowPolicy::DropNewest, 0), (SlowPolicy::DropNewest, 4), (SlowPolicy::Disconnect, 4)]
        {
            let counters = Rc::default();
            let mut outbox = Outbox::default();
            let large = batch(&counters, &["a", "b", "c", "d", "e", "f", "g"]);
            let offered = outbox.offer(&large, written, bound(6 + ENTRY_BYTES, policy));
            assert!(offered.pending() > 0 && Rc::strong_count(&large) == 1, "{policy:?}");
            let sent = drain(&mut outbox, 100);
            let all = b"\x81\x01a\x81\x01b\x81\x01c";
            assert_eq!(sent, all[written..written + sent.len()], "{policy:?}");
            let totals = final_totals(&counters);
            assert_eq!(totals.delivered + totals.dropped_slow, 7);
            assert_eq!(totals.delivered as usize, offered.delivered + offered.pending());
        }
    }

    #[test]
    fn drop_oldest_keeps_the_newest_and_the_partly_written_frame() {
        let counters = Rc::default();
        let mut outbox = Outbox::default();
        // Frames of 100 bytes; the partly written frame and the kept ones are an entry each.
        let [a, b, c, d, e, f] = ["a", "b", "c", "d", "e", "f"].map(|text| text.repeat(98));
        let tight = bound(50 + 2 * 100 + 2 * ENTRY_BYTES, SlowPolicy::DropOldest);
        let offered = outbox.offer(&batch(&counters, &[&a, &b, &c, &d, &e]), 50, tight);
        // Half of the first must still be sent; of the others only the last two fit beside it.
        assert_eq!(offered, Offered { delivered: 0, started: true, queued: 3..5, overflow: false });
        let offered = outbox.offer(&batch(&counters, &[&f]), 0, tight);
        assert_eq!(offered, Offered { delivered: 0, started: false, queued: 0..1, overflow: false });
        assert_eq!(drain(&mut outbox, 100), [&a.as_bytes()[48..], b"\x81\x62", f.as_bytes()].concat());
        let totals = final_totals(&counters);
        assert_eq!((totals.delivered, totals.dropped_slow), (2, 4));
    }

    #[test]
    fn no_policy_drops_an_answer() {
        for (policy, right) in [(SlowPolicy::DropNewest, "abcXY"), (SlowPolicy::DropOldest, "XYf")] {
            let counters = Rc::default();
            let mut outbox = Outbox::default();
            let tight = bound(3 * (3 + ENTRY_BYTES), policy);
            for message in ["a", "b", "c"] {
                outbox.offer(&batch(&counters, &[message]), 0, tight);
            }
            for text in ["X", "Y"] {
                counters.matched(1);
                let answer = Rc::new(Batch::answer(Frame::text(text), counters.clone()));
                let offered = outbox.offer(&answer, 0, tight.of_answers());
                assert_eq!((offered.queued, offered.overflow), (0..1, false), "{policy:?}");
            }
            for message in ["d", "e", "f"] {
                outbox.offer(&batch(&counters, &[message]), 0, tight);
            }
            let sent = drain(&mut outbox, 100);
            let texts: String = sent.chunks(3).map(|frame| char::from(frame[2])).collect();
            assert_eq!(texts, right, "{policy:?}");
            assert_eq!(final_totals(&counters).delivered as usize, right.len());
        }
        let tight = bound(0, SlowPolicy::DropOldest);
        let long = Frame::text(&"x".repeat(ANSWERS_BYTES_MAX));
        let answer = Rc::new(Batch::answer(long, Rc::default()));
        assert!(
            Outbox::default().offer(&answer, 0, tight.of_answers()).overflow,
            "beyond its room, it ends the client"
        );
    }

    #[test]
    fn abandon_counts_every_frame() {
        let counters = Rc::default();
        let mut outbox = Outbox::default();
        outbox.offer(&batch(&counters, &["abc", "d"]), 1, bound(1000, SlowPolicy::Disconnect));
        outbox.abandon(DropReason::Closed);
        assert!(outbox.is_empty());
        assert_eq!(final_totals(&counters).dropped_closed, 2);
    }
}
