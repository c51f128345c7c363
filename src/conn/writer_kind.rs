//! The writer task of a connection, for the strategies that have one; `direct` has none.
//!
//! Owns the choice between the kinds of writer, and the task that `wake` and `ring` share. The task
//! flushes whenever it is woken, holds only its connection, and ends when the connection is
//! abandoned. It never waits for the socket: when the socket is full, the readiness loop calls
//! [`Connection::flush`] as well, and the task does nothing until it is woken again.

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

/// The source from which a writer task writes.
pub(super) enum WriterKind {
    /// `mailbox`: a queue of its own.
    Mailbox(Mailbox),
    /// `wake`: the outbox.
    Outbox(Writer),
    /// `ring`: its shard's ring, from its position on.
    Ring(Cursor),
}

impl WriterKind {
    /// Drops the waiting frames for `reason`. The items of a ring were taken already, when the
    /// connection left its channels.
    pub(super) fn clear(&self, reason: DropReason) {
        if let Self::Mailbox(mailbox) = self {
            mailbox.clear(reason);
        }
    }

    /// Ends the task and drops the waiting frames.
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

/// The state of the task of `wake` and `ring`.
#[derive(Default)]
pub(super) struct Writer {
    /// The waker of a waiting task; none while the task is scheduled to run.
    waker: Cell<Option<Waker>>,
    ended: Cell<bool>,
}

impl Writer {
    /// Wakes the task; further calls do nothing until it has run.
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

/// Adds a writer task to `connection`, which writes from its outbox; the returned future is that
/// task.
pub fn open<S: Socket + 'static>(connection: &Rc<Connection<S>>) -> impl Future<Output = ()> + use<S> {
    connection.set_writer(WriterKind::Outbox(Writer::default()));
    write_when_woken(connection.clone())
}

/// The task: one pointer, so that it fits in 128 bytes together with tokio's header, the alignment
/// of tokio's tasks.
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
    /// Whether its writer task has something to write and has not run yet; then the client does not
    /// cause the delay.
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
    /// Queues `batch` behind everything that waits, within `bound`, and wakes the writer task.
    pub fn queue(&self, batch: &Rc<Batch>, bound: Bound) -> Sent {
        if self.phase() != Phase::Open {
            return Sent::Gone;
        }
        let waiting = self.outbox.take();
        let wake = waiting.is_none();
        let mut outbox = waiting.unwrap_or_default();
        let offered = outbox.offer(batch, 0, bound);
        self.keep(outbox);
        // If frames waited already, the task will run, or the socket is full and the readiness loop
        // will flush.
        if wake && let Some(WriterKind::Outbox(writer)) = self.writer() {
            writer.wake();
        }
        Sent::Part(offered)
    }

    /// As [`Connection::flush`], for a task: the readiness loop reports a failed socket to its
    /// owner.
    pub(super) fn flush_in_task(&self) {
        if self.flush() == Flushed::Idle && matches!(self.phase(), Phase::Closed | Phase::Broken) {
            // The close frame waited for the task, and was the last frame. Ending the stream makes
            // the client end its side, which the shard notices.
            self.shutdown_write();
        }
    }
}
