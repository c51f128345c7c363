//! A client's connection: what it owns, and how it sends, flushes and reads.
//!
//! Owns the socket, the decoder, the backlog and the memberships of one client. A send never
//! blocks: what the socket does not take waits in the outbox, within the bound. Control frames go
//! between data frames, and a partly written frame is finished before anything else.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::socket::{Socket, retry};
use super::writer_kind::WriterKind;
use super::{Membership, Phase, Role};
use crate::admission::Permit;
use crate::close::CloseReason;
use crate::metrics::DropReason;
use crate::outbox::{Bound, Offered, Outbox, Write};
use crate::registry::ConnId;
use crate::wire::inbound::{Decoder, Inbound, Input, Limits};
use crate::wire::{Batch, Frame, Piece};

/// The outcome of a send.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel has taken all of it.
    All,
    /// Part of it waits or was dropped; the counters include it already.
    Part(Offered),
    /// The socket has failed, or the connection is closing; the caller has to count the frames as
    /// dropped.
    Gone,
}

/// Whether a client that is silent needs a ping, or has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It has not been silent for the ping interval.
    Alive,
    /// It was silent for the ping interval: it needs a ping.
    PingDue,
    /// It has not answered a ping in time.
    TimedOut,
}

/// The outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits.
    Idle,
    /// The socket is full.
    Blocked,
    /// The socket has failed.
    Gone,
}

/// Most slices of one write of a flush.
const FLUSH_SLICES: usize = 32;

/// One client.
pub struct Connection<S> {
    /// Its number in the registry.
    pub id: ConnId,
    /// Its slot in the shard's slab.
    pub slot: u32,
    /// The meaning of its messages.
    pub role: Role,
    pub(super) socket: S,
    phase: Cell<Phase>,
    /// Whether a writer task is inside a frame: nothing else may write then.
    pub(super) writing: Cell<bool>,
    /// Whether there may be more to read; then the connection waits for its next turn.
    pub unread: Cell<bool>,
    /// The keepalive sweep of the last input or ping.
    last_seen: Cell<u16>,
    /// Whether a ping was sent and no input has arrived since.
    ping_pending: Cell<bool>,
    pub(super) outbox: Cell<Option<Box<Outbox>>>,
    /// The state of its writer task, if it has one. A pointer, so that connections without a task
    /// spend only 8 bytes on it.
    writer: OnceCell<Box<WriterKind>>,
    decoder: Cell<Decoder>,
    /// The channels it is subscribed to.
    pub memberships: RefCell<SmallVec<[Membership; 2]>>,
    /// The name that SET_NAME gave it. Behind two pointers, so that connections without a name
    /// spend only 8 bytes on it.
    pub name: Cell<Option<Box<Box<str>>>>,
    /// Released when the connection is freed.
    _permit: Permit,
}

/// The connection and the two counts of its `Rc` take 128 bytes; jemalloc's next size class is 160.
/// mio's sockets are larger in debug builds.
const _: () = assert!(cfg!(debug_assertions) || size_of::<Connection<super::Stream>>() <= 112);

impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("id", &self.id).field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl<S: Socket> Connection<S> {
    /// A new connection after its upgrade.
    pub fn new(id: ConnId, slot: u32, role: Role, socket: S, permit: Permit) -> Self {
        Self {
            id,
            slot,
            role,
            socket,
            phase: Cell::new(Phase::Open),
            writing: Cell::new(false),
            unread: Cell::new(false),
            last_seen: Cell::default(),
            ping_pending: Cell::default(),
            outbox: Cell::default(),
            writer: OnceCell::new(),
            decoder: Cell::default(),
            memberships: RefCell::default(),
            name: Cell::default(),
            _permit: permit,
        }
    }

    /// The socket, to register it or to read its options.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The state of the closing handshake.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Reads once; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when no bytes are available; anything else when the socket has failed.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| self.socket.receive(buffer))
    }

    /// Sends `batch` after all earlier frames. The part that the socket does not take waits, within
    /// `bound`.
    pub fn send(&self, batch: &Rc<Batch>, bound: Bound) -> Sent {
        if self.phase.get() != Phase::Open {
            return Sent::Gone;
        }
        if let Some(mut outbox) = self.outbox.take() {
            let offered = outbox.offer(batch, 0, bound);
            self.outbox.set(Some(outbox));
            return Sent::Part(offered);
        }
        let whole = batch.len();
        let written = match self.write(batch.piece(0..whole)) {
            Ok(written) if written == whole => return Sent::All,
            Ok(written) => written,
            Err(_) => return Sent::Gone,
        };
        let mut outbox = Box::<Outbox>::default();
        let offered = outbox.offer(batch, written, bound);
        self.keep(outbox);
        if batch.has_pages() {
            // `sendfile` may write less than the socket has room for, for example at a signal. Only
            // `WouldBlock` promises a readiness event when there is room again, so the rest is
            // tried now. The readiness loop reports a failed socket.
            self.flush_outbox();
        }
        Sent::Part(offered)
    }

    /// Sends the response head of its request, before anything else; false when the socket has
    /// failed.
    pub fn send_head(&self, head: Bytes) -> bool {
        self.control(Frame::from_wire(head), |outbox, head| outbox.start_control(head, 0))
    }

    /// Sends a ping; false when the socket has failed.
    pub fn send_ping(&self, sweep: u16) -> bool {
        self.last_seen.set(sweep);
        self.ping_pending.set(true);
        // A waiting ping uses the slot of the pong. A pong that replaces it answers a later input
        // of the client, so the ping is not needed any more.
        self.control(Frame::ping(), Outbox::put_pong)
    }

    /// Answers a ping, ahead of data; false when the socket has failed.
    pub fn pong(&self, payload: &[u8]) -> bool {
        let pong = Frame::pong(payload);
        self.control(pong, Outbox::put_pong)
    }

    /// Sends `close` ahead of data, drops the data for `reason`, and enters `phase`; false when the
    /// socket has failed.
    pub fn close(&self, close: Frame, reason: DropReason, phase: Phase) -> bool {
        self.phase.set(phase);
        if let Some(writer) = self.writer.get() {
            writer.clear(reason);
        }
        self.control(close, |outbox, close| outbox.put_close(close, reason))
    }

    /// Advances a closing handshake that has begun.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    fn control(&self, frame: Frame, wait: impl FnOnce(&mut Outbox, Frame)) -> bool {
        if let Some(mut outbox) = self.outbox.take() {
            wait(&mut outbox, frame);
            self.outbox.set(Some(outbox));
            return true;
        }
        let written = match self.write(Piece::Bytes(frame.wire())) {
            Ok(written) if written == frame.wire().len() => return true,
            Ok(written) => written,
            Err(_) => return false,
        };
        let mut outbox = Box::<Outbox>::default();
        match written {
            0 => wait(&mut outbox, frame),
            _ => outbox.start_control(frame, written),
        }
        self.outbox.set(Some(outbox));
        true
    }

    /// Writes as much as the socket takes now: 0 bytes when it is full, or when a writer task is
    /// inside a frame.
    fn write(&self, piece: Piece<'_>) -> io::Result<usize> {
        if self.writing.get() {
            return Ok(0);
        }
        let written = match piece {
            Piece::Bytes(bytes) => retry(|| self.socket.send(bytes)),
            Piece::Pages(pages, range) => retry(|| self.socket.send_pages(&pages, range.clone())),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Writes waiting frames until none is left or the socket is full.
    pub fn flush(&self) -> Flushed {
        match self.socket.flush() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
            Err(_) => return Flushed::Gone,
        }
        loop {
            let flushed = self.flush_outbox();
            if flushed != Flushed::Idle {
                return flushed;
            }
            match self.writer() {
                Some(WriterKind::Mailbox(mailbox)) if mailbox.frames() > 0 => return Flushed::Blocked,
                Some(WriterKind::Ring(cursor)) => {
                    if let Some(flushed) = self.write_next(cursor) {
                        return flushed;
                    }
                }
                _ => return Flushed::Idle,
            }
        }
    }

    fn flush_outbox(&self) -> Flushed {
        if let Some(mut outbox) = self.outbox.take() {
            if self.writing.get() {
                self.outbox.set(Some(outbox));
                return Flushed::Blocked;
            }
            while !outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); FLUSH_SLICES];
                let written = match outbox.fill(&mut slices) {
                    Write::Slices(filled) => retry(|| self.socket.send_vectored(&slices[..filled])),
                    Write::Pages(pages, range) => retry(|| self.socket.send_pages(&pages, range.clone())),
                };
                match written {
                    Ok(sent) => outbox.advance(sent),
                    Err(error) => {
                        self.outbox.set(Some(outbox));
                        let full = error.kind() == io::ErrorKind::WouldBlock;
                        return if full { Flushed::Blocked } else { Flushed::Gone };
                    }
                }
            }
        }
        Flushed::Idle
    }

    /// Whether anything waits to be written.
    pub fn has_backlog(&self) -> bool {
        self.with_outbox(|outbox| !outbox.is_empty()).unwrap_or(false)
            || self.writer_backlog().1 > 0
            || self.socket.unsent_bytes() > 0
    }

    /// Bytes and data frames that wait.
    pub fn backlog(&self) -> (usize, u64) {
        let (bytes, frames) = self.with_outbox(|outbox| (outbox.bytes(), outbox.frames())).unwrap_or_default();
        let (more_bytes, more_frames) = self.writer_backlog();
        (bytes + more_bytes + self.socket.unsent_bytes(), frames + more_frames)
    }

    /// Ends the sending side: the client reads to the end of what was sent, then sees the end of
    /// the stream.
    pub fn shutdown_write(&self) {
        self.socket.shutdown_write();
    }

    /// Drops all waiting frames and ends the writer task, because the connection is gone.
    pub fn abandon(&self, reason: DropReason) {
        self.catch_up();
        if let Some(mut outbox) = self.outbox.take() {
            outbox.abandon(reason);
        }
        if let Some(writer) = self.writer.get() {
            writer.end(reason);
        }
    }
}

impl<S> Connection<S> {
    /// The next message or control frame of the input and of a partly received one before it.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn decode<'a>(&self, input: &mut Input<'a>, limits: &Limits) -> Result<Option<Inbound<'a>>, CloseReason> {
        self.with_decoder(|decoder| decoder.next(input, limits))
    }

    /// Payload bytes that are still missing of a partly received frame.
    pub fn missing_bytes(&self) -> usize {
        self.with_decoder(|decoder| decoder.missing_bytes())
    }

    fn with_decoder<T>(&self, with: impl FnOnce(&mut Decoder) -> T) -> T {
        let mut decoder = self.decoder.take();
        let result = with(&mut decoder);
        self.decoder.set(decoder);
        result
    }

    /// Records that input has arrived in this keepalive sweep.
    pub fn note_input(&self, sweep: u16) {
        self.last_seen.set(sweep);
        self.ping_pending.set(false);
    }

    /// Its liveness: a ping is due after `ping_after` silent sweeps; without an answer, the end is
    /// due `end_after` sweeps later.
    pub fn liveness(&self, sweep: u16, ping_after: u16, end_after: u16) -> Liveness {
        let silent = sweep.wrapping_sub(self.last_seen.get());
        match self.ping_pending.get() {
            true if silent >= end_after => Liveness::TimedOut,
            false if silent >= ping_after => Liveness::PingDue,
            _ => Liveness::Alive,
        }
    }

    /// Its index in the list of `channel`, if it is subscribed.
    pub fn position(&self, channel: u32) -> Option<u32> {
        self.memberships
            .borrow()
            .iter()
            .find(|membership| membership.channel == channel)
            .map(|membership| membership.position)
    }

    fn writer_backlog(&self) -> (usize, u64) {
        match self.writer() {
            None | Some(WriterKind::Outbox(_)) => (0, 0),
            Some(WriterKind::Mailbox(mailbox)) => mailbox.backlog(),
            Some(WriterKind::Ring(cursor)) => self.ring_backlog(cursor),
        }
    }

    pub(super) fn writer(&self) -> Option<&WriterKind> {
        self.writer.get().map(Box::as_ref)
    }

    pub(super) fn set_writer(&self, writer: WriterKind) {
        let first = self.writer.set(Box::new(writer)).is_ok();
        debug_assert!(first, "a connection has one task");
    }

    pub(super) fn with_outbox<T>(&self, with: impl FnOnce(&Outbox) -> T) -> Option<T> {
        let outbox = self.outbox.take()?;
        let result = with(&outbox);
        self.keep(outbox);
        Some(result)
    }

    /// Stores the outbox, unless it is empty.
    pub(super) fn keep(&self, outbox: Box<Outbox>) {
        self.outbox.set((!outbox.is_empty()).then_some(outbox));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::admission::Load;
    use crate::conn::mailbox;
    use crate::metrics::DeliveryCounters;
    use crate::settings::SlowPolicy;

    /// A stream in memory with a bounded buffer: it takes no more bytes until the other end reads.
    struct Pipe(RefCell<DuplexStream>);

    fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
        match poll {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    impl Socket for Pipe {
        fn send(&self, bytes: &[u8]) -> io::Result<usize> {
            now(Pin::new(&mut *self.0.borrow_mut()).poll_write(&mut Context::from_waker(Waker::noop()), bytes))
        }
        fn send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            self.send(&pieces.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>())
        }
        fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut buffer = ReadBuf::new(buffer);
            let context = &mut Context::from_waker(Waker::noop());
            now(Pin::new(&mut *self.0.borrow_mut()).poll_read(context, &mut buffer))?;
            Ok(buffer.filled().len())
        }
        fn shutdown_write(&self) {
            now(Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(&mut Context::from_waker(Waker::noop()))).unwrap();
        }
    }

    /// A connection over a pipe of `capacity` bytes, and the other end.
    fn pair(capacity: usize) -> (Rc<Connection<Pipe>>, Pipe) {
        let (ours, theirs) = duplex(capacity);
        let pipe = Pipe(RefCell::new(ours));
        let connection = Connection::new(ConnId(1), 0, Role::Events, pipe, Load::default().permit());
        (Rc::new(connection), Pipe(RefCell::new(theirs)))
    }

    fn batch(counters: &Rc<DeliveryCounters>, texts: &[&str]) -> Rc<Batch> {
        let frames: Vec<_> = texts.iter().map(|text| Frame::text(text)).collect();
        counters.matched(frames.len() as u64);
        Rc::new(Batch::new(&frames, counters.clone()))
    }

    /// Reads everything that is in the pipe.
    fn read(pipe: &Pipe) -> Vec<u8> {
        let mut buffer = [0; 1000];
        let length = pipe.receive(&mut buffer).unwrap_or(0);
        buffer[..length].to_vec()
    }

    const BOUND: Bound = Bound { bytes_max: 100, policy: SlowPolicy::Disconnect };

    #[test]
    fn only_bytes_that_the_socket_did_not_take_wait() {
        let counters = Rc::default();
        let (connection, peer) = pair(8);
        assert_eq!(connection.send(&batch(&counters, &["ab"]), BOUND), Sent::All);
        assert!(!connection.has_backlog());
        let sent = connection.send(&batch(&counters, &["cd", "e"]), BOUND);
        counters.delivered(1);
        assert_eq!(sent, Sent::Part(Offered { delivered: 1, started: false, queued: 1..2, overflow: false }));
        assert_eq!(connection.backlog().1, 1);
        assert!(connection.pong(b"!"));
        assert_eq!(connection.flush(), Flushed::Blocked);
        assert_eq!(read(&peer), b"\x81\x02ab\x81\x02cd");
        assert_eq!(connection.flush(), Flushed::Idle);
        assert_eq!(read(&peer), b"\x8a\x01!\x81\x01e");
        assert!(connection.outbox.take().is_none(), "an empty outbox is freed");
        assert_eq!(counters.totals().outstanding(), 0);
    }

    #[test]
    fn a_close_is_last_and_a_partly_written_frame_is_finished() {
        let counters = Rc::default();
        let (connection, peer) = pair(5);
        connection.send(&batch(&counters, &["abcd", "e"]), BOUND);
        assert!(connection.close(Frame::close_with(1000, ""), DropReason::Closed, Phase::Closing));
        assert_eq!(connection.send(&batch(&counters, &["late"]), BOUND), Sent::Gone);
        let mut seen = read(&peer);
        while connection.flush() == Flushed::Blocked {
            seen.extend(read(&peer));
        }
        seen.extend(read(&peer));
        assert_eq!(seen, b"\x81\x04abcd\x88\x02\x03\xe8");
        let totals = counters.totals();
        // The caller of a send that returned `Gone` counts the drop: here, of one frame.
        assert_eq!((totals.delivered, totals.dropped_closed, totals.outstanding()), (1, 1, 1));
    }

    #[test]
    fn a_disconnected_peer_is_detected() {
        let counters = Rc::default();
        let (connection, peer) = pair(8);
        drop(peer);
        assert_eq!(connection.send(&batch(&counters, &["a"]), BOUND), Sent::Gone);
        assert!(!connection.pong(b""));
        assert_eq!(connection.receive(&mut [0; 8]).unwrap(), 0);
    }

    /// Polls a writer task once.
    fn poll(task: &mut Pin<Box<impl Future<Output = ()>>>) -> bool {
        task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn control_frames_go_between_the_frames_of_a_writer_task() {
        let counters = Rc::default();
        let (connection, peer) = pair(4);
        let mut task = Box::pin(mailbox::open(&connection));
        let mailbox = connection.mailbox().unwrap();
        mailbox.offer(&batch(&counters, &["abcdef", "g"]), BOUND);
        assert!(!poll(&mut task));
        assert!(connection.pong(b"!"), "it waits: the task is inside a frame");
        let mut seen = Vec::new();
        for _ in 0..10 {
            seen.extend(read(&peer));
            connection.flush();
            assert!(!poll(&mut task));
        }
        assert_eq!(seen, b"\x81\x06abcdef\x8a\x01!\x81\x01g");
        assert_eq!((counters.totals().delivered, counters.totals().outstanding()), (2, 0));
        connection.abandon(DropReason::Closed);
        assert!(poll(&mut task), "it ends with its connection");
    }

    #[test]
    fn a_writer_task_that_ends_counts_every_frame() {
        let counters = Rc::default();
        let (connection, _peer) = pair(4);
        let mut task = Box::pin(mailbox::open(&connection));
        connection.mailbox().unwrap().offer(&batch(&counters, &["abcdef", "g"]), BOUND);
        assert!(!poll(&mut task));
        connection.abandon(DropReason::Closed);
        assert!(poll(&mut task));
        assert_eq!((counters.totals().dropped_closed, counters.totals().outstanding()), (2, 0));
    }
}
