//! The life of a connection on its shard: registered, read and flushed when its socket is ready,
//! ended with a reason, and removed once both sides are done or the time is up.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use socket2::SockRef;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::publication::ChannelName;
use super::rate_limiter::Rates;
use super::shard::{Conn, Shard};
use super::{Upgraded, readiness};
use crate::close::CloseReason;
use crate::conn::{Connection, Flushed, Phase, Role, Socket, Stream};
use crate::engine::scheduler::PASS_CHUNK;
use crate::jwt::Grant;
use crate::mem;
use crate::metrics::DropReason;
use crate::registry::{ConnHandle, ConnId};
use crate::settings::TooFastPolicy;
use crate::wire::Frame;
use crate::wire::inbound::{Inbound, Input, Limits};

/// Time between two checks for expired tokens: the longest delay until such a connection ends.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two checks of a drain for open connections.
const DRAIN_INTERVAL: Duration = Duration::from_millis(5);
/// Most bytes read in one turn of a connection, beside the missing rest of a message. They bound
/// the work of a turn: a ping has 6 bytes, and each is answered by a system call.
pub const TURN_BYTES: usize = 1024;
/// The work that a shard does for its connections before its other tasks run, in messages: half a
/// millisecond.
pub const MESSAGES_PER_ROUND: u32 = 128;
/// The cost of a system call on a socket, in messages, whatever its result.
pub const MESSAGES_PER_CALL: u32 = 1;
/// The cost of the end of a connection, in messages, and again when its socket is closed.
pub const MESSAGES_PER_END: u32 = 8;

impl Shard {
    /// Registers an upgraded connection, subscribes it, and only then sends the response head: a
    /// client that has seen the head misses nothing that is published afterwards.
    ///
    /// # Errors
    /// When the socket cannot be added to the epoll set.
    pub(super) fn register(&self, upgraded: Upgraded) -> io::Result<()> {
        let Upgraded { stream, session, head, leftover, role, mut pending, permit } = upgraded;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let slot = entry.key() as u32;
        readiness::watch(&self.set, &mut stream, slot)?;
        pending.reserved = false;
        let id = self.engine.registry.register(ConnHandle { shard: self.index, slot });
        let connection = Rc::new(Connection::new(id, slot, role, Stream::new(stream, session), permit));
        connection.note_input(self.sweep.get());
        if let Some(grant) = pending.grant.take() {
            self.grants.borrow_mut().insert(slot, grant);
        }
        if let Some(rates) = Rates::of(&self.engine.live()) {
            self.rate_limiters.reset(slot, Instant::now(), &rates);
        }
        entry.insert(connection.clone());
        drop(connections);
        let sent = connection.send_head(head);
        self.fanout.attach(&connection);
        for channel in pending.channels.drain(..) {
            self.channels.borrow_mut().join(&channel, &connection);
        }
        tracing::debug!(id = id.0, "registered");
        if !sent {
            self.end(&connection, CloseReason::Disconnected);
            return Ok(());
        }
        if !leftover.is_empty() {
            self.decode(&connection, &mut Vec::from(leftover));
        }
        if connection.socket().has_more() {
            self.read_later(&connection);
        }
        Ok(())
    }

    /// Subscribes a connection to another channel; false if it was subscribed already.
    pub(super) fn subscribe(&self, connection: &Rc<Conn>, channel: ChannelName) -> bool {
        let joined = self.channels.borrow_mut().join(&channel, connection);
        if joined {
            self.engine.count(channel, self.index, true);
        }
        joined
    }

    /// Unsubscribes a connection from a channel; false if it was not subscribed.
    pub(super) fn unsubscribe(&self, connection: &Conn, channel: ChannelName) -> bool {
        let left = self.channels.borrow_mut().leave(&channel, connection);
        if left {
            self.engine.count(channel, self.index, false);
        }
        left
    }

    /// The connection in `slot`, if it is still the one with this number.
    pub(super) fn holder(&self, slot: u32, id: ConnId) -> Option<Rc<Conn>> {
        self.connections.borrow().get(slot as usize).filter(|connection| connection.id == id).cloned()
    }

    /// Handles a socket that has become writable or readable. `readable` is `Some` if it can be
    /// read, with whether the stream may have ended.
    pub(super) fn on_ready(&self, slot: usize, readable: Option<bool>, writable: bool, scratch: &mut [u8]) {
        // The slot may be empty by now. If it has a new connection, the event does no harm.
        let Some(connection) = self.connections.borrow().get(slot).cloned() else { return };
        if writable {
            if let Some(mailbox) = connection.mailbox() {
                mailbox.wake();
            }
            self.spend(MESSAGES_PER_CALL);
            match connection.flush() {
                Flushed::Blocked => {}
                Flushed::Gone => return self.end_or_remove(&connection, CloseReason::Disconnected),
                Flushed::Idle => {
                    self.advance_close(&connection);
                    // An echo connection is not read while its answers wait.
                    if connection.role == Role::Echo {
                        return self.read(&connection, true, scratch);
                    }
                }
            }
        }
        if let Some(ends) = readable {
            self.read(&connection, ends, scratch);
        }
    }

    /// Whether some connections have more to read.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.borrow().is_empty()
    }

    /// Reads the connections that have more to read, one turn each.
    pub(super) async fn read_on(&self, scratch: &mut [u8]) {
        let turns = self.unread.borrow().len();
        for _ in 0..turns {
            let slot = self.unread.borrow_mut().pop_front();
            let Some(slot) = slot else { break };
            let connection = self.connections.borrow().get(slot as usize).cloned();
            if let Some(connection) = connection {
                connection.unread.set(false);
                self.read(&connection, true, scratch);
            }
            self.pause_if_due().await;
        }
    }

    /// Reads once: the missing rest of a message, and at most [`TURN_BYTES`] more. A connection
    /// with more to read waits for another turn. So does one that may have ended: the epoll set
    /// reports an end once, perhaps together with the last bytes.
    fn read(&self, connection: &Rc<Conn>, may_end: bool, scratch: &mut [u8]) {
        if connection.role == Role::Echo && connection.has_backlog() {
            // Reading continues when its answers have left.
            return;
        }
        self.spend(MESSAGES_PER_CALL);
        let most = (connection.missing_bytes() + TURN_BYTES).min(scratch.len());
        match connection.receive(&mut scratch[..most]) {
            Ok(0) => return self.end_or_remove(connection, CloseReason::Disconnected),
            Ok(length) => {
                connection.note_input(self.sweep.get());
                self.decode(connection, &mut scratch[..length]);
                if length < most && !may_end && !connection.socket().has_more() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // TLS records without content cost a whole round. The connection waits for its next
                // turn.
                if !connection.socket().has_more() {
                    return;
                }
                self.spend(MESSAGES_PER_ROUND);
            }
            Err(_) => return self.end_or_remove(connection, CloseReason::Disconnected),
        }
        self.read_later(connection);
    }

    /// Queues a connection for another turn. The flag keeps each connection in the queue once,
    /// however many events it gets.
    fn read_later(&self, connection: &Conn) {
        if !connection.unread.replace(true) {
            self.unread.borrow_mut().push_back(connection.slot);
        }
    }

    /// Decodes the received bytes in place and handles each message.
    fn decode(&self, connection: &Rc<Conn>, bytes: &mut [u8]) {
        let limits = Limits {
            message_bytes_max: self.engine.config.message_bytes_max,
            fragments_max: self.engine.config.message_fragments_max,
        };
        let rates = Rates::of(&self.engine.live());
        if let Some(rates) = &rates {
            let now = Instant::now();
            self.rate_limiters.of(connection.slot, now, rates).read(bytes.len(), now, rates);
        }
        let mut input = Input::new(bytes);
        while matches!(connection.phase(), Phase::Open | Phase::Closing) {
            let Some(decoded) = connection.decode(&mut input, &limits).transpose() else { return };
            self.spend(1);
            match decoded {
                Ok(inbound) if rates.is_none() || self.may_send(connection, &inbound) => {
                    self.on_inbound(connection, inbound)
                }
                Ok(_) if self.engine.live().too_fast == TooFastPolicy::Drop => {
                    self.ignored.set(self.ignored.get() + 1);
                }
                Ok(_) => return self.end(connection, CloseReason::TooFast),
                Err(reason) if connection.phase() == Phase::Open => return self.end(connection, reason),
                Err(_) => {
                    connection.set_phase(Phase::Broken);
                    return self.advance_close(connection);
                }
            }
        }
    }

    /// Whether the client's rate limit allows this message; a close frame is always allowed.
    fn may_send(&self, connection: &Conn, inbound: &Inbound<'_>) -> bool {
        matches!(inbound, Inbound::Close(_)) || self.rate_limiters.take(connection.slot)
    }

    fn is_here(&self, connection: &Rc<Conn>) -> bool {
        let connections = self.connections.borrow();
        connections.get(connection.slot as usize).is_some_and(|holder| Rc::ptr_eq(holder, connection))
    }

    /// Ends an open connection; removes one whose closing handshake has begun.
    fn end_or_remove(&self, connection: &Rc<Conn>, reason: CloseReason) {
        match connection.phase() {
            Phase::Open => self.end(connection, reason),
            Phase::Closing | Phase::Closed | Phase::Broken => self.remove(connection),
        }
    }

    /// Begins the end of a connection, unless it has begun. The connection leaves its channels and
    /// the registry, and gets the close frame of `reason`.
    pub(super) fn end(&self, connection: &Rc<Conn>, reason: CloseReason) {
        self.end_with(connection, reason, Frame::close(reason));
    }

    /// As [`Shard::end`], with another close frame.
    pub(super) fn end_with(&self, connection: &Rc<Conn>, reason: CloseReason, close: Frame) {
        if connection.phase() != Phase::Open || !self.is_here(connection) {
            return;
        }
        let row = reason.row();
        self.closed[reason as usize].set(self.closed[reason as usize].get() + 1);
        if row.level == tracing::Level::INFO {
            tracing::info!(id = connection.id.0, reason = row.label, "closing");
        } else {
            tracing::debug!(id = connection.id.0, reason = row.label, "closing");
        }
        let channels = self.channels.borrow().of(connection);
        for channel in channels {
            self.unsubscribe(connection, channel);
        }
        self.engine.registry.deregister(connection.id);
        let (dropped, phase) = match reason {
            CloseReason::Disconnected => return self.remove(connection),
            CloseReason::ByClient => (DropReason::Closed, Phase::Closed),
            CloseReason::Slow => (DropReason::Slow, Phase::Closing),
            CloseReason::Left | CloseReason::Drain | CloseReason::PingTimeout | CloseReason::Expired => {
                (DropReason::Closed, Phase::Closing)
            }
            _ => (DropReason::Closed, Phase::Broken),
        };
        self.spend(MESSAGES_PER_END);
        if !connection.close(close, dropped, phase) {
            return self.remove(connection);
        }
        let deadline = Instant::now() + self.engine.config.close_timeout;
        self.closing.borrow_mut().push_back((deadline, connection.slot, connection.id));
        self.closing_added.notify_one();
        self.advance_close(connection);
    }

    /// Handles the client's close frame.
    pub(super) fn on_close(&self, connection: &Rc<Conn>, code: Option<u16>) {
        if connection.phase() == Phase::Open {
            let close = code.map_or_else(|| Frame::close(CloseReason::ByClient), |code| Frame::close_with(code, ""));
            self.end_with(connection, CloseReason::ByClient, close);
        } else {
            connection.set_phase(Phase::Closed);
            self.advance_close(connection);
        }
    }

    /// Advances a closing handshake when no bytes wait to be written.
    fn advance_close(&self, connection: &Rc<Conn>) {
        match connection.phase() {
            Phase::Open | Phase::Closing => {}
            _ if connection.has_backlog() => {}
            Phase::Closed => self.remove(connection),
            // Closing a socket with unread input resets it, and the reset may overtake the close
            // frame. So only the sending side ends; the rest of the input is discarded until the
            // client disconnects.
            Phase::Broken => connection.socket().shutdown_write(),
        }
    }

    /// Frees a connection; its socket is closed when the last reference is dropped.
    fn remove(&self, connection: &Rc<Conn>) {
        if !self.is_here(connection) {
            return;
        }
        self.spend(MESSAGES_PER_END);
        let mut connections = self.connections.borrow_mut();
        connections.remove(connection.slot as usize);
        self.grants.borrow_mut().remove(&connection.slot);
        // Later input of the client is ignored: the connection may not join a channel any more.
        connection.set_phase(Phase::Closed);
        connection.abandon(DropReason::Closed);
        if connections.is_empty() {
            connections.shrink_to_fit();
            self.rate_limiters.clear();
            self.grants.take();
            self.engine.registry.shrink();
            mem::flush();
        }
    }

    /// Frees a connection whose peer does not end it, and discards the kernel's unsent bytes.
    fn abort(&self, connection: &Rc<Conn>) {
        // Without this option the kernel would continue to send. The call fails only if the socket
        // has already failed.
        let _ = SockRef::from(connection.socket()).set_linger(Some(Duration::ZERO));
        self.remove(connection);
    }

    /// Ends connections whose token has expired; never returns.
    pub(super) async fn end_expired(&self) -> Infallible {
        loop {
            sleep(EXPIRY_INTERVAL).await;
            let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            let is_over = |(&slot, grant): (&u32, &Grant)| (grant.expires <= now).then_some(slot);
            let slots: Vec<_> = self.grants.borrow().iter().filter_map(is_over).collect();
            for chunk in slots.chunks(PASS_CHUNK) {
                for &slot in chunk {
                    let connection = self.connections.borrow().get(slot as usize).cloned();
                    // The slot may have a new connection by now.
                    let is_over = self.grants.borrow().get(&slot).is_some_and(|grant| grant.expires <= now);
                    if let Some(connection) = connection.filter(|_| is_over) {
                        self.end(&connection, CloseReason::Expired);
                        self.pause_if_due().await;
                    }
                }
                yield_now().await;
            }
        }
    }

    /// Aborts closing handshakes that exceed `close_timeout`; never returns.
    pub(super) async fn abort_late_closes(&self) -> Infallible {
        loop {
            let first = self.closing.borrow().front().copied();
            let Some((deadline, slot, id)) = first else {
                self.closing.borrow_mut().shrink_to_fit();
                self.closing_added.notified().await;
                continue;
            };
            sleep_until(deadline).await;
            self.closing.borrow_mut().pop_front();
            if let Some(connection) = self.holder(slot, id) {
                self.abort(&connection);
            }
        }
    }

    /// Waits for a drain and carries it out. Each connection is closed with 1001 after its backlog
    /// is flushed: `drain_rate` per second, in random order, so that clients that connected
    /// together do not reconnect together. At the deadline, the connections that are left are
    /// aborted.
    pub(super) async fn drain(&self) {
        if self.drain_deadline.get().is_none() {
            self.drain_started.notified().await;
        }
        let config = &self.engine.config;
        let per_second = f64::from(config.drain_rate.get()) / config.shards.get() as f64;
        let begun = Instant::now();
        // Leaves time for the last closing handshakes.
        let most = config.drain_timeout.saturating_sub(config.close_timeout.min(config.drain_timeout / 2));
        let span = Duration::from_secs_f64(self.connections.borrow().len() as f64 / per_second).min(most);
        while let Some(deadline) = self.drain_deadline.get()
            && self.engine.loads[usize::from(self.index)].get() > 0
        {
            let late = Instant::now() >= deadline;
            let slots = self.connections.borrow().capacity();
            for slot in 0..slots {
                let connection = self.connections.borrow().get(slot).cloned();
                let Some(connection) = connection else { continue };
                let idle = self.channels.borrow().is_idle() && !connection.has_backlog();
                let is_its_turn = self.engine.scatter(slot, span) <= begun.elapsed();
                if late || idle && is_its_turn && connection.phase() == Phase::Open {
                    self.end(&connection, CloseReason::Drain);
                }
                if late && self.is_here(&connection) {
                    self.aborted.set(self.aborted.get() + 1);
                    self.abort(&connection);
                }
                // After the deadline the loop pauses only between chunks.
                if !late {
                    self.pause_if_due().await;
                }
                if slot % PASS_CHUNK == PASS_CHUNK - 1 {
                    yield_now().await;
                }
            }
            if late {
                break;
            }
            sleep_until(deadline.min(Instant::now() + DRAIN_INTERVAL)).await;
        }
    }
}
