//! A ring of batches per shard, and each connection's position in it. A client that is behind costs
//! a position, not a queue.
//!
//! # What it promises
//! - Every connection sees every item, in order, and keeps those of the channels that it is
//!   subscribed to when it takes them. It takes everything before its subscriptions change
//!   ([`Connection::catch_up`]), so it keeps the items of the channels to which it was subscribed
//!   when they were sent.
//! - The backlog of a connection is its outbox and the items that it has not taken; both count
//!   against one bound. A connection takes an item when it can write it, or at the bound, where
//!   [`Outbox::offer`](crate::outbox::Outbox::offer) applies the policy.
//! - A receipt may count a subscriber as pending although its frame was dropped before the pass
//!   reached it. This happens at the bound, when memberships change or the ring needs room. The
//!   counters are exact.
//! - No item is overwritten before every connection has taken it: at [`Ring::is_full`] the strategy
//!   calls [`Connection::make_room`] on the connections that are furthest behind.
//!
//! The receivers are never awaited: a pending `recv` borrows its receiver, and the shard has to
//! take items for a connection whose task waits. So the strategy wakes the tasks, and the ring
//! keeps and frees the items.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::broadcast::{Receiver, Sender};

use super::writer_kind::{Writer, WriterKind, write_when_woken};
use super::{Connection, Flushed, Sent, Socket};
use crate::metrics::DropReason;
use crate::outbox::{Bound, ENTRY_BYTES, Offered};
use crate::wire::Batch;

/// A batch for the subscribers of one channel.
#[derive(Clone)]
struct Item {
    channel: u32,
    batch: Rc<Batch>,
}

/// The size of an item, which is known before the item is taken.
#[derive(Clone, Copy, Debug)]
struct Note {
    channel: u32,
    frames: u32,
    /// Bytes as an outbox counts them.
    bytes: usize,
    /// Bytes of all items ever sent before it.
    before: u64,
}

/// The ring of one shard.
pub struct Ring {
    sender: Sender<Item>,
    items_max: usize,
    /// Notes of the last `items_max` items.
    notes: RefCell<VecDeque<Note>>,
    /// Bytes of all items that were ever sent.
    bytes: Cell<u64>,
    bound: Bound,
}

impl Ring {
    /// An empty ring that holds `items_max` items, a power of two, for connections whose backlogs
    /// obey `bound`.
    #[must_use]
    pub fn new(items_max: usize, bound: Bound) -> Rc<Self> {
        assert!(items_max.is_power_of_two(), "the ring would hold more items than it has notes for");
        let notes = RefCell::new(VecDeque::with_capacity(items_max));
        Rc::new(Self { sender: Sender::new(items_max), items_max, notes, bytes: Cell::new(0), bound })
    }

    /// Whether the next item would overwrite one that some connection has not taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.sender.len() == self.items_max
    }

    /// Adds an item. The caller makes room before, counts the item, and wakes the tasks.
    pub fn send(&self, channel: u32, batch: &Rc<Batch>) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() == self.items_max {
            notes.pop_front();
        }
        let (bytes, before) = (batch.len() + ENTRY_BYTES, self.bytes.get());
        notes.push_back(Note { channel, frames: batch.frames() as u32, bytes, before });
        self.bytes.set(before + bytes as u64);
        // It fails when the ring has no connection: then the item has no receiver.
        let _ = self.sender.send(Item { channel, batch: batch.clone() });
    }
}

/// The position of one connection in its ring.
pub(super) struct Cursor {
    ring: Rc<Ring>,
    receiver: RefCell<Receiver<Item>>,
    /// Whether the bound was reached under `disconnect`. From then on every item is dropped, so
    /// that the client sees no gap, and the connection ends.
    overflowed: Cell<bool>,
    pub(super) writer: Writer,
}

impl Cursor {
    /// Number of items not yet taken, of any channel.
    fn waiting(&self) -> usize {
        self.receiver.borrow().len()
    }

    /// Bytes of the items not yet taken, of any channel.
    fn bytes_at_most(&self) -> usize {
        let notes = self.ring.notes.borrow();
        let first = notes.len() - self.waiting();
        notes.get(first).map_or(0, |note| (self.ring.bytes.get() - note.before) as usize)
    }

    fn note_overflow(&self, offered: &Offered) {
        self.overflowed.set(self.overflowed.get() || offered.overflow);
    }

    fn take(&self) -> Option<Item> {
        match self.receiver.borrow_mut().try_recv() {
            Ok(item) => Some(item),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
            Err(TryRecvError::Lagged(_)) => unreachable!("an item was overwritten before it was taken"),
        }
    }
}

/// Adds a position at the end of `ring` to `connection`; the returned future writes the later items
/// until the connection is abandoned.
pub fn open<S: Socket + 'static>(connection: &Rc<Connection<S>>, ring: &Rc<Ring>) -> impl Future<Output = ()> + use<S> {
    connection.set_writer(WriterKind::Ring(Cursor {
        ring: ring.clone(),
        receiver: RefCell::new(ring.sender.subscribe()),
        overflowed: Cell::new(false),
        writer: Writer::default(),
    }));
    write_when_woken(connection.clone())
}

impl<S> Connection<S> {
    /// Takes all items of its ring, within the bound. The caller does this before the connection's
    /// memberships change, and before it sends anything that is not an item of the ring.
    pub fn catch_up(&self) {
        if let Some(WriterKind::Ring(cursor)) = self.writer() {
            self.take_all(cursor, |_, _| {});
        }
    }

    /// As [`Connection::catch_up`], if the ring has no room for another item; returns whether the
    /// connection has to end as slow.
    pub fn make_room(&self) -> bool {
        let Some(WriterKind::Ring(cursor)) = self.writer() else { return false };
        if cursor.waiting() == cursor.ring.items_max {
            self.take_all(cursor, |_, _| {});
        }
        cursor.overflowed.get()
    }

    /// Tells the connection of a new item: wakes its task, or takes all items if they exceed the
    /// bound.
    pub fn notice(&self, batch: &Rc<Batch>) -> Noticed {
        let Some(WriterKind::Ring(cursor)) = self.writer() else { return Noticed { offered: None, overflow: false } };
        let mut outcome = None;
        let outbox_bytes = self.with_outbox(|outbox| outbox.bytes());
        if outbox_bytes.unwrap_or(0) + cursor.bytes_at_most() > cursor.ring.bound.bytes_max {
            self.take_all(cursor, |taken, offered| {
                if Rc::ptr_eq(taken, batch) {
                    outcome = Some(Offered { overflow: false, ..offered });
                }
            });
        } else if outbox_bytes.is_none() {
            // Otherwise the task will run, or the socket is full and the readiness loop flushes.
            cursor.writer.wake();
        }
        Noticed { offered: outcome, overflow: cursor.overflowed.get() }
    }

    fn take_all(&self, cursor: &Cursor, mut taken: impl FnMut(&Rc<Batch>, Offered)) {
        if cursor.waiting() == 0 {
            return;
        }
        let waiting = self.outbox.take();
        let wake = waiting.is_none();
        let mut outbox = waiting.unwrap_or_default();
        while let Some(Item { channel, batch }) = cursor.take() {
            if self.position(channel).is_none() {
                continue;
            }
            let offered = if cursor.overflowed.get() {
                batch.counters().dropped(DropReason::Slow, batch.frames() as u64);
                Offered::default()
            } else {
                outbox.offer(&batch, 0, cursor.ring.bound)
            };
            cursor.note_overflow(&offered);
            taken(&batch, offered);
        }
        self.keep(outbox);
        // As in `queue`: otherwise the task will run, or the socket is full.
        if wake {
            cursor.writer.wake();
        }
    }

    /// Data bytes and frames of the items not yet taken, of the channels that it is subscribed to.
    pub(super) fn ring_backlog(&self, cursor: &Cursor) -> (usize, u64) {
        let notes = cursor.ring.notes.borrow();
        let waiting = notes.range(notes.len() - cursor.waiting()..);
        let subscribed = waiting.filter(|note| self.position(note.channel).is_some());
        subscribed.fold((0, 0), |(bytes, frames), note| (bytes + note.bytes, frames + u64::from(note.frames)))
    }
}

/// The outcome of [`Connection::notice`].
#[derive(Debug)]
pub struct Noticed {
    /// The outcome of the batch, if it was taken.
    pub offered: Option<Offered>,
    /// Whether the connection has to end as slow.
    pub overflow: bool,
}

impl<S: Socket> Connection<S> {
    /// With an empty outbox: writes the next item; or, if several wait, moves those that fit to the
    /// outbox, so that one write carries them. Returns `Idle` when nothing waits, `None` when the
    /// caller has to call again.
    pub(super) fn write_next(&self, cursor: &Cursor) -> Option<Flushed> {
        let mut waiting = cursor.waiting();
        if waiting == 0 {
            return Some(Flushed::Idle);
        }
        if cursor.overflowed.get() {
            self.take_all(cursor, |_, _| {});
            return None;
        }
        if waiting > 1 {
            let mut outbox = self.outbox.take().unwrap_or_default();
            while waiting > 0 {
                let notes = cursor.ring.notes.borrow();
                let next = notes[notes.len() - waiting];
                drop(notes);
                if !outbox.is_empty() && outbox.bytes() + next.bytes > cursor.ring.bound.bytes_max {
                    break;
                }
                waiting -= 1;
                let Some(Item { batch, .. }) = cursor.take().filter(|_| self.position(next.channel).is_some()) else {
                    continue;
                };
                cursor.note_overflow(&outbox.offer(&batch, 0, cursor.ring.bound));
            }
            self.keep(outbox);
            return None;
        }
        let Item { batch, .. } = cursor.take().filter(|item| self.position(item.channel).is_some())?;
        match self.send(&batch, cursor.ring.bound) {
            Sent::All => batch.counters().delivered(batch.frames() as u64),
            Sent::Part(offered) => {
                cursor.note_overflow(&offered);
                return Some(Flushed::Blocked);
            }
            Sent::Gone => {
                batch.counters().dropped(DropReason::Closed, batch.frames() as u64);
                return Some(Flushed::Gone);
            }
        }
        None
    }
}
