//! A queue and a writer task per connection: the common design, kept as the baseline of the
//! benchmarks.
//!
//! Owns a bounded mpsc of messages. A task takes them one by one and writes each with
//! fastwebsockets' `write_frame`, header included. Bound and policies are those of `outbox`, with a
//! second bound in frames: the capacity of the mpsc.
//!
//! The task shares the socket with control frames and with the answers of an echo connection, which
//! go through the connection's outbox. Nothing else writes while the task is inside a frame, and
//! the task starts no frame while something waits in the outbox.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use fastwebsockets::{Payload, Role};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use super::socket::retry;
use super::writer_kind::WriterKind;
use super::{Connection, Phase, Socket};
use crate::metrics::DropReason;
use crate::outbox::{Bound, Offered};
use crate::settings::SlowPolicy;
use crate::wire::Batch;

/// Frames that a `mailbox` connection's queue holds, beside the bound in bytes.
pub const MAILBOX_FRAMES_MAX: usize = 1024;
/// Answers for which it has room when it holds so many; see [`Bound::of_answers`].
const ANSWERS_MAX: usize = 256;

/// One waiting message.
#[derive(Debug)]
struct QueuedFrame {
    batch: Rc<Batch>,
    index: usize,
}

impl QueuedFrame {
    fn bytes(&self) -> usize {
        self.batch.wire_bytes(self.index)
    }
}

/// The queue of one connection.
pub struct Mailbox {
    sender: mpsc::Sender<QueuedFrame>,
    receiver: RefCell<mpsc::Receiver<QueuedFrame>>,
    /// An answer in front of the queue: it was the oldest when room was needed, and is not dropped.
    front: Cell<Option<QueuedFrame>>,
    bytes: Cell<usize>,
    /// Whether the task has taken a message that it has not finished.
    in_flight: Cell<bool>,
    ended: Cell<bool>,
    /// The waker of the task while it waits for the socket or for a message.
    waker: Cell<Option<Waker>>,
}

impl Mailbox {
    /// Queues the messages of `batch`, within `bound`.
    pub fn offer(&self, batch: &Rc<Batch>, bound: Bound) -> Offered {
        let mut offered = Offered::default();
        let kept_free = if batch.is_answer() { 0 } else { ANSWERS_MAX };
        for index in 0..batch.frames() {
            let bytes = batch.wire_bytes(index);
            while self.bytes.get() + bytes > bound.bytes_max || self.sender.capacity() <= kept_free {
                let oldest = (bound.policy == SlowPolicy::DropOldest).then(|| self.take_message()).flatten();
                let Some(oldest) = oldest else {
                    if bound.policy == SlowPolicy::DropOldest && !self.has_front() {
                        // Nothing is left to drop.
                        break;
                    }
                    // Behind an answer in front, the newest are dropped under either policy.
                    batch.counters().dropped(DropReason::Slow, (batch.frames() - index) as u64);
                    offered.overflow = bound.policy == SlowPolicy::Disconnect;
                    return offered;
                };
                oldest.batch.counters().dropped(DropReason::Slow, 1);
                if Rc::ptr_eq(&oldest.batch, batch) {
                    offered.queued.start += 1;
                }
            }
            if self.sender.try_send(QueuedFrame { batch: batch.clone(), index }).is_err() {
                // After the checks above, only a mailbox that has ended rejects a message.
                batch.counters().dropped(DropReason::Closed, (batch.frames() - index) as u64);
                return offered;
            }
            self.bytes.set(self.bytes.get() + bytes);
            offered.queued.end = index + 1;
        }
        offered
    }

    /// Drops all messages that the task has not taken.
    pub fn clear(&self, reason: DropReason) {
        while let Some(queued) = self.take() {
            queued.batch.counters().dropped(reason, 1);
        }
    }

    /// Ends the task and drops the waiting messages.
    pub fn end(&self, reason: DropReason) {
        self.clear(reason);
        self.receiver.borrow_mut().close();
        self.ended.set(true);
        self.wake();
    }

    /// Number of messages that wait or are being written.
    pub fn frames(&self) -> u64 {
        self.receiver.borrow().len() as u64 + u64::from(self.in_flight.get()) + u64::from(self.has_front())
    }

    /// Bytes and messages that wait; a message that is being written counts as a message, not in
    /// bytes.
    pub fn backlog(&self) -> (usize, u64) {
        (self.bytes.get(), self.frames())
    }

    /// Whether a message waits for the task itself: no frame of the task waits for the socket.
    pub(super) fn is_due(&self) -> bool {
        !self.in_flight.get() && (self.has_front() || !self.receiver.borrow().is_empty())
    }

    /// Wakes the task: the socket may have room.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn take(&self) -> Option<QueuedFrame> {
        let queued = self.front.take().or_else(|| self.receiver.borrow_mut().try_recv().ok())?;
        self.bytes.set(self.bytes.get() - queued.bytes());
        Some(queued)
    }

    /// As [`Mailbox::take`], unless it is an answer.
    fn take_message(&self) -> Option<QueuedFrame> {
        let queued = self.take()?;
        if !queued.batch.is_answer() {
            return Some(queued);
        }
        self.bytes.set(self.bytes.get() + queued.bytes());
        self.front.set(Some(queued));
        None
    }

    fn has_front(&self) -> bool {
        let front = self.front.take();
        let has_front = front.is_some();
        self.front.set(front);
        has_front
    }

    async fn receive(&self) -> Option<QueuedFrame> {
        let queued = poll_fn(|context| {
            if let Some(front) = self.front.take() {
                return Poll::Ready(Some(front));
            }
            let polled = self.receiver.borrow_mut().poll_recv(context);
            if polled.is_pending() {
                // Closing the receiver does not wake its task.
                self.waker.set(Some(context.waker().clone()));
            }
            polled
        })
        .await?;
        self.bytes.set(self.bytes.get() - queued.bytes());
        Some(queued)
    }
}

/// Adds a mailbox to `connection`; the returned future writes its messages until the connection is
/// abandoned.
pub fn open<S: Socket + 'static>(connection: &Rc<Connection<S>>) -> impl Future<Output = ()> + use<S> {
    let (sender, receiver) = mpsc::channel(MAILBOX_FRAMES_MAX + ANSWERS_MAX);
    connection.set_writer(WriterKind::Mailbox(Mailbox {
        sender,
        receiver: RefCell::new(receiver),
        front: Cell::default(),
        bytes: Cell::default(),
        in_flight: Cell::default(),
        ended: Cell::default(),
        waker: Cell::default(),
    }));
    write_messages(connection.clone())
}

impl<S> Connection<S> {
    /// The connection's mailbox, if it has one.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self.writer() {
            Some(WriterKind::Mailbox(mailbox)) => Some(mailbox),
            _ => None,
        }
    }
}

/// A message that is being written. Its drop counts it, however the task ends.
struct InFlight<'a> {
    queued: QueuedFrame,
    mailbox: &'a Mailbox,
    written: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.mailbox.in_flight.set(false);
        match self.written {
            true => self.queued.batch.counters().delivered(1),
            false => self.queued.batch.counters().dropped(DropReason::Closed, 1),
        }
    }
}

async fn write_messages<S: Socket + 'static>(connection: Rc<Connection<S>>) {
    let Some(mailbox) = connection.mailbox() else { return };
    let stream = Stream { connection: connection.clone() };
    let (_, mut websocket) = fastwebsockets::after_handshake_split(tokio::io::empty(), stream, Role::Server);
    while let Some(queued) = mailbox.receive().await {
        mailbox.in_flight.set(true);
        let mut in_flight = InFlight { queued, mailbox, written: false };
        let (opcode, payload) = in_flight.queued.batch.message(in_flight.queued.index);
        let frame = fastwebsockets::Frame::new(true, opcode, None, Payload::Borrowed(payload));
        let result = websocket.write_frame(frame).await;
        in_flight.written = result.is_ok();
        drop(in_flight);
        connection.writing.set(false);
        connection.flush_in_task();
        if result.is_err() {
            // The connection is closing or gone, or the socket has failed, which the readiness loop
            // reports to its owner.
            return;
        }
    }
}

/// The socket as the `AsyncWrite` that fastwebsockets needs.
struct Stream<S> {
    connection: Rc<Connection<S>>,
}

impl<S: Socket> Stream<S> {
    fn poll(&self, context: &Context<'_>, mut send: impl FnMut(&S) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        let connection = &self.connection;
        let mailbox = connection.mailbox().expect("only its own task has this stream");
        let closing = !connection.writing.get() && connection.phase() != Phase::Open;
        if mailbox.ended.get() || closing {
            // No frame follows a close frame, and a connection that is gone has no socket to write
            // to.
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // A waiting outbox is written before the next frame. Inside a frame, it waits for the end
        // of the frame.
        let blocked = !connection.writing.get() && connection.with_outbox(|outbox| !outbox.is_empty()).unwrap_or(false);
        if !blocked {
            match retry(|| send(&connection.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    connection.writing.set(result.is_ok());
                    return Poll::Ready(result);
                }
            }
        }
        mailbox.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl<S: Socket> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(context, |socket| socket.send(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(context, |socket| socket.send_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
