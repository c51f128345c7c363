//! A shard's ring and each connection's position in it: a client that is behind costs a position, not a queue.
//!
//! # The contract
//! - Every connection sees every item, in order, and keeps those of the channels that it is subscribed to when it takes
//!   them. It takes everything before that changes ([`Connection::catch_up`]), so this is who was subscribed when the
//!   item was sent.
//! - What waits for a connection is its outbox and what lies behind its position, and both count against one bound. An
//!   item is taken when it can be written, or at the bound, where [`Outbox::offer`](crate::outbox::Outbox::offer)
//!   applies the policy.
//! - A receipt may count a subscriber as pending whose frame was dropped before the pass came to it: one whose
//!   memberships changed meanwhile, or that was made room of, and was at its bound. The counters are exact.
//! - Nothing is overwritten before everybody has taken it: at [`Ring::is_full`] the strategy lets who is last catch up.
//!
//! The receivers are never awaited: a pending `recv` borrows its receiver, and the shard has to take for a connection
//! whose task waits. So the strategy wakes the tasks, and the ring holds and frees the items.

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

/// A batch for the subscribers of a channel.
#[derive(Clone)]
struct Item {
    channel: u32,
    batch: Rc<Batch>,
}

/// What is known of an item without taking it.
#[derive(Clone, Copy, Debug)]
struct Note {
    channel: u32,
    frames: u32,
    /// As an outbox would count it.
    bytes: usize,
    /// Bytes of all items before it.
    before: u64,
}

/// The ring of one shard.
pub struct Ring {
    sender: Sender<Item>,
    items_max: usize,
    /// Of the last `items_max` items.
    notes: RefCell<VecDeque<Note>>,
    /// Bytes of all items that were ever sent.
    bytes: Cell<u64>,
    bound: Bound,
}

impl Ring {
    /// An empty ring that holds `items_max` items, a power of two, for connections whose backlogs obey `bound`.
    #[must_use]
    pub fn new(items_max: usize, bound: Bound) -> Rc<Self> {
        assert!(items_max.is_power_of_two(), "the ring would hold more than it knows of");
        let notes = RefCell::new(VecDeque::with_capacity(items_max));
        Rc::new(Self { sender: Sender::new(items_max), items_max, notes, bytes: Cell::new(0), bound })
    }

    /// Whether the next item would overwrite one that somebody has not taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.sender.len() == self.items_max
    }

    /// Adds an item; the caller has made room, counts it in the counters, and wakes the tasks.
    pub fn send(&self, channel: u32, batch: &Rc<Batch>) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() == self.items_max {
            notes.pop_front();
        }
        let (bytes, before) = (batch.len() + ENTRY_BYTES, self.bytes.get());
        notes.push_back(Note { channel, frames: batch.frames() as u32, bytes, before });
        self.bytes.set(before + bytes as u64);
        // Without a connection there is nobody to see it.
        let _ = self.sender.send(Item { channel, batch: batch.clone() });
    }
}

/// The position of one connection.
pub(super) struct Cursor {
    ring: Rc<Ring>,
    receiver: RefCell<Receiver<Item>>,
    /// It had to drop something under `disconnect`: nothing more is kept, so that no gap is seen, and it ends.
    overflowed: Cell<bool>,
    pub(super) writer: Writer,
}

impl Cursor {
    /// Items behind the position, whatever their channel.
    fn waiting(&self) -> usize {
        self.receiver.borrow().len()
    }

    /// Bytes behind the position, whatever their channel.
    fn bytes_at_most(&self) -> usize {
        let notes = self.ring.notes.borrow();
        let first = notes.len() - self.waiting();
        notes.get(first).map_or(0, |note| (self.ring.bytes.get() - note.before) as usize)
    }

    fn look_at(&self, offered: &Offered) {
        self.overflowed.set(self.overflowed.get() || offered.overflow);
    }

    fn take(&self) -> Option<Item> {
        match self.receiver.borrow_mut().try_recv() {
            Ok(item) => Some(item),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
            Err(TryRecvError::Lagged(_)) => unreachable!("an item was overwritten that somebody had not taken"),
        }
    }
}

/// Gives `connection` a position at the end of `ring`; the future writes what comes until the connection is abandoned.
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
    /// Takes everything behind its position in a ring, within the bound. Due before its memberships
    /// change, and before anything is sent past the ring.
    pub fn catch_up(&self) {
        if let Some(WriterKind::Ring(cursor)) = self.writer() {
            self.take_all(cursor, |_, _| {});
        }
    }

    /// As [`Connection::catch_up`], if there is no room for another item; whether the connection has to end as slow.
    pub fn make_room(&self) -> bool {
        let Some(WriterKind::Ring(cursor)) = self.writer() else { return false };
        if cursor.waiting() == cursor.ring.items_max {
            self.take_all(cursor, |_, _| {});
        }
        cursor.overflowed.get()
    }

    /// Tells a connection that something was sent: its task is woken, or, at the bound, everything is taken.
    pub fn notice(&self, batch: &Rc<Batch>) -> Noticed {
        let Some(WriterKind::Ring(cursor)) = self.writer() else { return Noticed { offered: None, overflow: false } };
        let mut mine = None;
        let outbox_bytes = self.with_outbox(|outbox| outbox.bytes());
        if outbox_bytes.unwrap_or(0) + cursor.bytes_at_most() > cursor.ring.bound.bytes_max {
            self.take_all(cursor, |taken, offered| {
                if Rc::ptr_eq(taken, batch) {
                    mine = Some(Offered { overflow: false, ..offered });
                }
            });
        } else if outbox_bytes.is_none() {
            // Otherwise the task is due, or the socket is full and the readiness loop flushes.
            cursor.writer.wake();
        }
        Noticed { offered: mine, overflow: cursor.overflowed.get() }
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
            cursor.look_at(&offered);
            taken(&batch, offered);
        }
        self.keep(outbox);
        // As in `queue`: otherwise the task is due, or the socket is full.
        if wake {
            cursor.writer.wake();
        }
    }

    /// Data bytes and frames behind its position, of the channels that it is subscribed to.
    pub(super) fn ring_backlog(&self, cursor: &Cursor) -> (usize, u64) {
        let notes = cursor.ring.notes.borrow();
        let waiting = notes.range(notes.len() - cursor.waiting()..);
        let mine = waiting.filter(|note| self.position(note.channel).is_some());
        mine.fold((0, 0), |(bytes, frames), note| (bytes + note.bytes, frames + u64::from(note.frames)))
    }
}

/// What [`Connection::notice`] found.
#[derive(Debug)]
pub struct Noticed {
    /// What became of the batch, if it was taken.
    pub offered: Option<Offered>,
    /// The connection has to end as slow.
    pub overflow: bool,
}

impl<S: Socket> Connection<S> {
    /// With an empty outbox: writes the next item, or moves what waits to the outbox, as far as it fits, to be written at
    /// once. `Idle` when nothing waits, `None` to go on.
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
                cursor.look_at(&outbox.offer(&batch, 0, cursor.ring.bound));
            }
            self.keep(outbox);
            return None;
        }
        let Item { batch, .. } = cursor.take().filter(|item| self.position(item.channel).is_some())?;
        match self.send(&batch, cursor.ring.bound) {
            Sent::All => batch.counters().delivered(batch.frames() as u64),
            Sent::Part(offered) => {
                cursor.look_at(&offered);
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
