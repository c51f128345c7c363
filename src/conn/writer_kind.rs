//! What a connection with a writer task has besides: nothing of this exists with `direct`.
//!
//! Owns the choice of the shape and the one task that `wake` and `ring` share: it flushes whenever it is woken, holds
//! nothing but its connection, waits for nothing but a wake, and ends when the connection is abandoned. What it writes,
//! and from where, is decided by [`Connection::flush`], which the readiness loop calls as well: so a task whose socket
//! is full has nothing to do until it is woken again.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::mailbox::Mailbox;
use super::ring::Cursor;
use super::{Connection, Flushed, Phase, Sent, Socket};
use crate::metrics::DropReason;
use crate::outbox::Bound;
use crate::wire::Batch;

/// Where a writer task finds what it writes.
pub(super) enum WriterKind {
    /// `mailbox`: in a queue of its own.
    Mailbox(Mailbox),
    /// `wake`: in the outbox.
    Outbox(Writer),
    /// `ring`: in its shard's ring, behind its position.
    Ring(Cursor),
}

impl WriterKind {
    /// The client gets nothing more; what waits in the ring has been taken when its channels were left.
    pub(super) fn clear(&self, reason: DropReason) {
        if let Self::Mailbox(mailbox) = self {
            mailbox.clear(reason);
        }
    }

    /// Ends the task; what waits is dropped.
    pub(super) fn end(&self, reason: DropReason) {
        match self {
            Self::Mailbox(mailbox) => mailbox.end(reason),
            Self::Outbox(writer) => writer.end(),
            Self::Ring(cursor) => cursor.writer.end(),
        }
    }

    fn writer(&self) -> Option<&Writer> {
        match self {
            Self::Mailbox(_) => None,
            Self::Outbox(writer) => Some(writer),
            Self::Ring(cursor) => Some(&cursor.writer),
        }
    }
}

/// The task of `wake` and `ring`, as others see it.
#[derive(Default)]
pub(super) struct Writer {
    /// The task, when it waits; none while it is due to run.
    waker: Cell<Option<Waker>>,
    ended: Cell<bool>,
}

impl Writer {
    /// Lets the task run; once is enough until it has.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.wake();
    }

    fn is_due(&self) -> bool {
        let waker = self.waker.take();
        let due = waker.is_none();
        self.waker.set(waker);
        due
    }
}

/// Lets `connection` be written by a task of its own, from its outbox; the future is that task.
pub fn open<S: Socket + 'static>(connection: &Rc<Connection<S>>) -> impl Future<Output = ()> + use<S> {
    connection.set_writer(WriterKind::Outbox(Writer::default()));
    write_when_woken(connection.clone())
}

/// The task: one pointer, so that tokio's part and it fit in 128 bytes, the unit of its tasks.
pub(super) fn write_when_woken<S: Socket>(connection: Rc<Connection<S>>) -> impl Future<Output = ()> + use<S> {
    poll_fn(move |context| {
        let Some(writer) = connection.writer().and_then(WriterKind::writer) else { return Poll::Ready(()) };
        if writer.ended.get() {
            return Poll::Ready(());
        }
        writer.waker.set(Some(context.waker().clone()));
        connection.flush_in_task();
        Poll::Pending
    })
}

impl<S> Connection<S> {
    /// Whether its writer task has something to write and has not had its turn: that it is behind is not the client's
    /// fault.
    pub fn awaits_its_task(&self) -> bool {
        match self.writer() {
            None => false,
            Some(WriterKind::Mailbox(mailbox)) => mailbox.is_due(),
            Some(WriterKind::Outbox(writer)) => writer.is_due(),
            Some(WriterKind::Ring(cursor)) => cursor.writer.is_due(),
        }
    }
}

impl<S: Socket> Connection<S> {
    /// Queues `batch` behind what waits, within `bound`, and wakes the writer task.
    pub fn queue(&self, batch: &Rc<Batch>, bound: Bound) -> Sent {
        if self.phase() != Phase::Open {
            return Sent::Gone;
        }
        let waiting = self.outbox.take();
        let wake = waiting.is_none();
        let mut outbox = waiting.unwrap_or_default();
        let offered = outbox.offer(batch, 0, bound);
        self.keep(outbox);
        // If something waited already, the task is due, or the socket is full and the readiness loop flushes.
        if wake && let Some(WriterKind::Outbox(writer)) = self.writer() {
            writer.wake();
        }
        Sent::Part(offered)
    }

    /// As [`Connection::flush`], for a task: of a socket that has failed, the owner hears from the socket.
    pub(super) fn flush_in_task(&self) {
        if self.flush() == Flushed::Idle && matches!(self.phase(), Phase::Closed | Phase::Broken) {
            // The close frame had waited for the task, and it was the last. The end of the stream tells the client, and
            // the client's own end will tell the shard.
            self.shutdown_write();
        }
    }
}
