//! Frames joined in one buffer, so that one write carries all of them.
//!
//! A [`Batch`] is made once per pass, whatever the number of subscribers. Its bytes never change,
//! so the backlogs of a thousand slow clients share one copy. It knows where each frame ends,
//! because a backlog drops whole frames only, and which counters its frames count in. It never
//! writes to a socket.

use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use fastwebsockets::OpCode;

use super::frame::{self, Frame};
use crate::metrics::DeliveryCounters;
use crate::pages::Pages;

/// One or more whole frames, in the order in which they are to be sent.
#[derive(Debug)]
pub struct Batch {
    /// The bytes, unless they are in pages.
    bytes: OnceCell<Bytes>,
    /// The bytes, in pages that sockets share.
    pages: RefCell<Option<Rc<Pages>>>,
    /// Where each frame ends; the last one is the length of the batch.
    ends: Box<[u32]>,
    counters: Rc<DeliveryCounters>,
    is_answer: bool,
}

impl Batch {
    /// Joins `frames`; a single one is shared, not copied.
    ///
    /// # Panics
    /// Without a frame, or beyond 4 GiB (`settings::Config::check` keeps every bound below that).
    #[must_use]
    pub fn new(frames: &[Frame], counters: Rc<DeliveryCounters>) -> Self {
        let length: usize = frames.iter().map(|frame| frame.wire().len()).sum();
        assert!(!frames.is_empty() && u32::try_from(length).is_ok(), "a batch is not empty and below 4 GiB");
        let mut end = 0;
        let ends = frames
            .iter()
            .map(|frame| {
                end += frame.wire().len() as u32;
                end
            })
            .collect();
        let bytes = if let [frame] = frames {
            frame.wire().clone()
        } else {
            let mut joined = BytesMut::with_capacity(length);
            frames.iter().for_each(|frame| joined.extend_from_slice(frame.wire()));
            joined.freeze()
        };
        Self::of(bytes, ends, counters)
    }

    /// The answer to a message of one client, which no policy drops.
    #[must_use]
    pub fn answer(frame: Frame, counters: Rc<DeliveryCounters>) -> Self {
        Self { is_answer: true, ..Self::new(&[frame], counters) }
    }

    fn of(bytes: Bytes, ends: Box<[u32]>, counters: Rc<DeliveryCounters>) -> Self {
        Self { bytes: bytes.into(), pages: RefCell::default(), ends, counters, is_answer: false }
    }

    /// Whether it answers a message of one client.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.is_answer
    }

    /// Moves the bytes into the pages that `hold` returns for them; with `None` they stay on the
    /// heap.
    pub fn move_to_pages(&mut self, hold: impl FnOnce(&[u8]) -> Option<Pages>) {
        let pages = self.bytes.get().and_then(|bytes| hold(bytes));
        if let Some(pages) = pages {
            self.bytes = OnceCell::new();
            self.pages = RefCell::new(Some(Rc::new(pages)));
        }
    }

    /// Copies the bytes back to the heap and releases the pages, for a batch that few subscribers
    /// still wait for. Does nothing when the pages cannot be read.
    pub fn leave_pages(&self) {
        let whole = self.pages.borrow().as_ref().and_then(|pages| pages.bytes().map(Bytes::copy_from_slice).ok());
        if let Some(bytes) = whole {
            self.bytes.get_or_init(|| bytes);
            self.pages.replace(None);
        }
    }

    /// Whether the bytes are in pages.
    #[must_use]
    pub fn has_pages(&self) -> bool {
        self.bytes.get().is_none()
    }

    /// Part of the wire bytes, in the form that costs a socket the least.
    #[must_use]
    pub fn piece(&self, range: Range<usize>) -> Piece<'_> {
        match self.bytes.get() {
            Some(bytes) => Piece::Bytes(&bytes[range]),
            None => Piece::Pages(self.pages.borrow().clone().expect("bytes are in pages or on the heap"), range),
        }
    }

    /// A copy of some whole frames, so that a few frames do not keep the whole batch in memory;
    /// `None` when the pages cannot be read. `range` starts and ends between frames.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let inside = |end: &&u32| (range.start + 1..=range.end).contains(&(**end as usize));
        let ends = self.ends.iter().filter(inside).map(|end| end - range.start as u32).collect();
        let bytes = match self.piece(range) {
            Piece::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            Piece::Pages(pages, range) => Bytes::copy_from_slice(&pages.bytes().ok()?[range]),
        };
        Some(Self::of(bytes, ends, self.counters.clone()))
    }

    /// Length of all frames on the wire, in bytes; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no batch is empty")]
    pub fn len(&self) -> usize {
        self.ends[self.ends.len() - 1] as usize
    }

    /// Number of frames, at least 1.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.ends.len()
    }

    /// The counters of this batch's frames.
    #[must_use]
    pub fn counters(&self) -> &DeliveryCounters {
        &self.counters
    }

    /// Number of frames that end within the first `position` bytes.
    #[must_use]
    pub fn frames_before(&self, position: usize) -> usize {
        self.ends.partition_point(|&end| end as usize <= position)
    }

    /// Where the frame that covers the byte at `position` ends.
    #[must_use]
    pub fn end_of_frame_at(&self, position: usize) -> usize {
        self.ends[self.frames_before(position)] as usize
    }

    /// Whether `position` lies between two frames (or at either end).
    #[must_use]
    pub fn is_boundary(&self, position: usize) -> bool {
        position == 0 || self.ends.binary_search(&(position as u32)).is_ok()
    }

    /// The last boundary at or before `position`.
    #[must_use]
    pub fn boundary_before(&self, position: usize) -> usize {
        match self.frames_before(position) {
            0 => 0,
            frames => self.ends[frames - 1] as usize,
        }
    }

    /// Opcode and payload of frame `index`.
    ///
    /// # Panics
    /// When the bytes are in pages: a strategy that takes single messages uses no pages.
    #[must_use]
    pub fn message(&self, index: usize) -> (OpCode, &[u8]) {
        let bytes = self.bytes.get().expect("the caller's strategy uses no pages");
        let wire = &bytes[self.range(index)];
        let opcode = if wire[0] & 0x0f == OpCode::Binary as u8 { OpCode::Binary } else { OpCode::Text };
        (opcode, &wire[frame::header_bytes(wire)..])
    }

    /// Length in bytes of frame `index` on the wire.
    #[must_use]
    pub fn wire_bytes(&self, index: usize) -> usize {
        self.range(index).len()
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        start..self.ends[index] as usize
    }
}

/// Part of a batch, or a control frame, for a socket to write.
#[derive(Debug)]
pub enum Piece<'a> {
    /// The kernel copies these bytes.
    Bytes(&'a [u8]),
    /// The socket refers to this range of these pages.
    Pages(Rc<Pages>, Range<usize>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PAGES_SUBSCRIBERS_MIN;
    use crate::pages::PagePool;

    fn batch(payloads: &[&str]) -> Batch {
        let frames: Vec<_> = payloads.iter().map(|payload| Frame::text(payload)).collect();
        Batch::new(&frames, Rc::default())
    }

    fn wire(batch: &Batch) -> &[u8] {
        let Piece::Bytes(bytes) = batch.piece(0..batch.len()) else { panic!("no pages were given") };
        bytes
    }

    #[test]
    fn bytes_are_on_the_heap_or_in_pages() {
        let mut batch = batch(&["a", "bc", ""]);
        batch.move_to_pages(|_| None);
        assert!(!batch.has_pages());
        batch.move_to_pages(|bytes| PagePool::new(0).hold(bytes, PAGES_SUBSCRIBERS_MIN));
        let Piece::Pages(pages, range) = batch.piece(3..9) else { panic!("they are in pages") };
        assert_eq!((&pages.bytes().unwrap()[range], batch.len()), (&b"\x81\x02bc\x81\x00"[..], 9));
        batch.move_to_pages(|_| panic!("they are there already"));
        batch.leave_pages();
        assert_eq!((wire(&batch), batch.has_pages()), (&b"\x81\x01a\x81\x02bc\x81\x00"[..], false));
        let part = batch.part(3..9).unwrap();
        assert_eq!(
            (wire(&part), part.frames(), part.message(0)),
            (&b"\x81\x02bc\x81\x00"[..], 2, (OpCode::Text, &b"bc"[..]))
        );
    }

    #[test]
    fn frames_are_found_by_position() {
        let batch = batch(&["a", "bc", ""]);
        assert_eq!(wire(&batch), b"\x81\x01a\x81\x02bc\x81\x00");
        assert_eq!(batch.len(), 9);
        assert_eq!((0..=9).map(|at| batch.frames_before(at)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]);
        assert_eq!(batch.end_of_frame_at(0), 3);
        assert_eq!(batch.end_of_frame_at(3), 7);
        assert_eq!([0, 2, 3, 6, 7, 9].map(|at| batch.boundary_before(at)), [0, 0, 3, 3, 7, 9]);
        assert_eq!(
            [0, 1, 3, 4, 7, 8, 9].map(|at| batch.is_boundary(at)),
            [true, false, true, false, true, false, true]
        );
        assert_eq!(batch.message(1), (OpCode::Text, &b"bc"[..]));
        assert_eq!(batch.message(2), (OpCode::Text, &b""[..]));
        assert_eq!(batch.wire_bytes(1), 4);
    }

    #[test]
    fn a_single_frame_is_shared() {
        let frame = Frame::binary(&[7; 300]);
        let batch = Batch::new(std::slice::from_ref(&frame), Rc::default());
        assert_eq!(wire(&batch).as_ptr(), frame.wire().as_ptr());
        assert_eq!(batch.message(0), (OpCode::Binary, &[7; 300][..]));
    }
}
