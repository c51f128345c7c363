//! A shard: one thread that owns its connections, its subscriber lists and its counters. It shares
//! none of them.
//!
//! Owns the loop that drains the inbox and continues the passes. Frames that arrive during a pass
//! become the next batch. Between two chunks of a pass, the other tasks of the thread run. The life
//! of a connection is in `connections`, the meaning of its messages in `events`.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::channel::{ChannelContext, Channels};
use super::publication::{Origin, Publication};
use super::rate_limiter::RateLimiters;
use super::sequencer::{Bounds, Sequencer};
use super::{Engine, Inbox, Item, ShardStats, readiness};
use crate::close::CloseReason;
use crate::conn::mailbox::MAILBOX_FRAMES_MAX;
use crate::conn::{Connection, Stream};
use crate::engine::connections::MESSAGES_PER_ROUND;
use crate::engine::scheduler::PASS_CHUNK;
use crate::fanout::Fanout;
use crate::jwt::Grant;
use crate::mem::{self, Queues};
use crate::metrics::DeliveryCounters;
use crate::outbox::Bound;
use crate::pages::PagePool;
use crate::registry::ConnId;
use crate::settings::Config;
use crate::wire::event::EventError;

/// Upgraded sockets that a shard registers before it returns to messages: a tenth of a millisecond.
pub const UPGRADED_CHUNK: usize = 8;
/// Inbox items that a shard takes before it continues its passes.
const INBOX_CHUNK: usize = 4096;

/// A connection over TCP, with TLS or without.
pub type Conn = Connection<Stream>;

/// Time between two checks whether subscribers that are behind have caught up.
const PACE_INTERVAL: Duration = Duration::from_millis(1);
/// Connections that a request for statistics visits before the shard's other tasks run.
const STATS_CHUNK: usize = 512;

/// One thread's part of the node.
pub struct Shard {
    /// The state that all shards share.
    pub engine: Arc<Engine>,
    pub(super) index: u16,
    pub(super) fanout: Box<dyn Fanout<Stream>>,
    /// The epoll set of the shard's sockets, see `readiness`.
    pub(super) set: mio::Registry,
    pub(super) connections: RefCell<Slab<Rc<Conn>>>,
    pub(super) channels: RefCell<Channels<Stream>>,
    sequencer: RefCell<Sequencer>,
    pages: PagePool,
    counters: Rc<DeliveryCounters>,
    /// Counters of the frames that answer a single client; they are included in `counters`.
    pub(super) answers: Rc<DeliveryCounters>,
    pub(super) closed: [Cell<u64>; CloseReason::ALL.len()],
    pub(super) aborted: Cell<u64>,
    pub(super) says: Cell<u64>,
    /// The work for connections since the last pause, in messages.
    round: Cell<u32>,
    /// The grants of the connections' tokens, by slot, if the server requires tokens.
    pub(super) grants: RefCell<HashMap<u32, Grant>>,
    /// The rate limiter of each connection, by slot, if there is a limit.
    pub(super) rate_limiters: RateLimiters,
    /// Messages that came too fast and were dropped.
    pub(super) ignored: Cell<u64>,
    /// Number of `keepalive` sweeps, which wraps around: the clock of the connections.
    pub(super) sweep: Cell<u16>,
    /// Slots of connections that have more to read.
    pub(super) unread: RefCell<VecDeque<u32>>,
    /// Closing handshakes, by their deadline.
    pub(super) closing: RefCell<VecDeque<(Instant, u32, ConnId)>>,
    pub(super) closing_added: Notify,
    pub(super) drain_deadline: Cell<Option<Instant>>,
    pub(super) drain_started: Notify,
}

impl Shard {
    /// Creates the shard with this index, and the epoll set of its sockets.
    ///
    /// # Errors
    /// When the kernel cannot create an epoll set.
    pub fn new(engine: Arc<Engine>, index: u16) -> io::Result<(Rc<Self>, mio::Poll)> {
        let set = mio::Poll::new()?;
        let config = &engine.config;
        let bounds = Bounds {
            pending_bytes_max: config.pending_bytes_max,
            dispatch_bytes_max: bound(config).batch_bytes_max(),
            dispatch_frames_max: MAILBOX_FRAMES_MAX,
        };
        let counters = Rc::new(DeliveryCounters::default());
        let shard = Self {
            index,
            fanout: config.fanout.build(bound(config)),
            set: set.registry().try_clone()?,
            connections: RefCell::default(),
            channels: RefCell::new(Channels::new(&counters)),
            sequencer: RefCell::new(Sequencer::new(config.shards.get(), bounds)),
            pages: PagePool::new(config.pages_bytes_min),
            answers: DeliveryCounters::within(&counters),
            counters,
            closed: std::array::from_fn(|_| Cell::default()),
            aborted: Cell::default(),
            says: Cell::default(),
            round: Cell::default(),
            grants: RefCell::default(),
            rate_limiters: RateLimiters::default(),
            ignored: Cell::default(),
            sweep: Cell::default(),
            unread: RefCell::default(),
            closing: RefCell::default(),
            closing_added: Notify::new(),
            drain_deadline: Cell::default(),
            drain_started: Notify::new(),
            engine,
        };
        Ok((Rc::new(shard), set))
    }

    /// Runs until a drain is over; returns the last statistics.
    ///
    /// # Errors
    /// When the epoll set fails.
    pub async fn run(self: Rc<Self>, set: mio::Poll) -> io::Result<ShardStats> {
        let ready = readiness::run(self.clone(), set);
        tokio::select! {
            // The order of polling: messages first, then ready sockets, then connections that end.
            biased;
            never = self.work() => match never {},
            result = ready => match result? {},
            never = self.abort_late_closes() => match never {},
            never = self.keep_alive() => match never {},
            never = self.end_expired() => match never {},
            () = self.drain() => {}
        }
        self.inbox().close();
        while self.engine.take_upgraded(self.index).is_some() {}
        Ok(self.report())
    }

    pub(super) fn inbox(&self) -> &Inbox<Item> {
        &self.engine.inboxes[usize::from(self.index)]
    }

    /// Drains the inbox and makes the passes; never returns.
    async fn work(self: &Rc<Self>) -> std::convert::Infallible {
        let mut more = false;
        loop {
            let mut has_waited = false;
            if !more {
                let (idle, paced) = (self.channels.borrow().is_idle(), self.channels.borrow().is_paced());
                if idle {
                    has_waited = self.inbox().pushed().await;
                } else if paced {
                    // After a push or the interval, the loop checks again; a timeout is no error.
                    let _ = timeout(PACE_INTERVAL, self.inbox().pushed()).await;
                }
            }
            // The thread's other tasks run first, unless they ran while the shard waited.
            if !has_waited {
                yield_now().await;
            }
            more = self.take_items();
            self.step();
            more |= self.take_upgraded();
        }
    }

    /// Registers some of the sockets that the front has handed over; returns whether there are
    /// more.
    fn take_upgraded(&self) -> bool {
        for upgraded in std::iter::from_fn(|| self.engine.take_upgraded(self.index)).take(UPGRADED_CHUNK) {
            if let Err(error) = self.register(upgraded) {
                tracing::debug!("an upgraded socket was not registered: {error}");
            }
        }
        self.engine.has_upgraded(self.index)
    }

    /// Takes the items of the inbox; returns whether some may be left.
    fn take_items(self: &Rc<Self>) -> bool {
        self.inbox().clear_signal();
        let mut barriers = Vec::new();
        let mut taken = 0;
        while taken < INBOX_CHUNK {
            let Some(item) = self.inbox().pop() else { break };
            taken += 1;
            match item {
                Item::Publish(publication) => self.sequence(publication),
                Item::Deliver(dispatch) => self.channels.borrow_mut().enqueue(dispatch),
                Item::Count { channel, shard, joined } => self.sequencer.borrow_mut().count(&channel, shard, joined),
                Item::Answer { slot, id, frame } => {
                    if let Some(connection) = self.holder(slot, id) {
                        self.answer(&connection, frame);
                    }
                }
                Item::Barrier(done) => barriers.push(done),
                // The receiver may have gone.
                Item::StatsRequest(answer) => drop(answer.send(self.report())),
                Item::SocketStatsRequest(answer) => drop(tokio::task::spawn_local(self.clone().socket_stats(answer))),
                Item::Drain(deadline) => {
                    self.drain_deadline.set(Some(deadline));
                    self.drain_started.notify_waiters();
                }
                #[cfg(debug_assertions)]
                Item::Panic => panic!("shard {} was told to panic", self.index),
            }
        }
        self.forward();
        for done in barriers {
            // The receiver may have gone.
            let _ = done.send(());
        }
        taken >= INBOX_CHUNK
    }

    /// Gives a publication its offset, and tells its origin.
    fn sequence(&self, mut publication: Publication) {
        self.inbox().release(publication.frame.wire().len());
        let result = self.sequencer.borrow_mut().sequence(&mut publication);
        self.engine.count_publication(result);
        match (publication.origin, result) {
            (Origin::Request(reply), result) => reply.send(result),
            (_, Ok(_)) => {}
            (Origin::Connection { id }, Err(_)) => {
                self.engine.answer(id, EventError::Overloaded(publication.channel.to_string()).frame());
            }
            (Origin::Server, Err(rejected)) => tracing::warn!("the server's own message was not sent: {rejected}"),
        }
    }

    /// Forwards the sequenced frames, one item for each shard and channel.
    fn forward(&self) {
        self.sequencer.borrow_mut().dispatch(|shard, dispatch| {
            if shard == self.index {
                self.channels.borrow_mut().enqueue(dispatch);
            } else {
                self.engine.inboxes[usize::from(shard)].push(Item::Deliver(dispatch));
            }
        });
    }

    /// Continues the passes for one chunk.
    fn step(&self) {
        let ended = self.channels.borrow_mut().step(
            &ChannelContext {
                fanout: &*self.fanout,
                connections: &self.connections.borrow(),
                registry: &self.engine.registry,
                shard: self.index,
                bound: self.bound(),
                pages: &self.pages,
                pace_max: self.engine.config.pace_max,
            },
            PASS_CHUNK,
        );
        for (connection, reason) in ended {
            self.end(&connection, reason);
        }
    }

    /// The bound of every backlog.
    pub(super) fn bound(&self) -> Bound {
        bound(&self.engine.config)
    }

    /// Counts work for a connection, as the number of messages that cost the same.
    pub(super) fn spend(&self, messages: u32) {
        self.round.set(self.round.get() + messages);
    }

    /// Lets the thread's other tasks run after [`MESSAGES_PER_ROUND`] of work.
    pub(super) async fn pause_if_due(&self) {
        if self.round.get() >= MESSAGES_PER_ROUND {
            self.round.set(0);
            yield_now().await;
        }
    }

    async fn socket_stats(self: Rc<Self>, answer: oneshot::Sender<ShardStats>) {
        let mut kernel_bytes = 0;
        let slots = self.connections.borrow().capacity();
        for slot in 0..slots {
            if slot % STATS_CHUNK == STATS_CHUNK - 1 {
                yield_now().await;
            }
            if let Some(connection) = self.connections.borrow().get(slot) {
                kernel_bytes += mem::socket_bytes(connection.socket().as_fd().as_raw_fd());
            }
        }
        let mut report = self.report();
        report.queues.kernel_socket_bytes = kernel_bytes;
        // The receiver may have gone.
        let _ = answer.send(report);
    }

    /// The present statistics, without those of the kernel.
    fn report(&self) -> ShardStats {
        let (mut outbox_bytes, mut pending) = (0, 0);
        for (_, connection) in &*self.connections.borrow() {
            let (bytes, frames) = connection.backlog();
            outbox_bytes += bytes as u64;
            pending += frames;
        }
        ShardStats {
            totals: self.counters.totals(),
            channels: self
                .channels
                .borrow()
                .counters()
                .map(|(name, counters)| (name.clone(), counters.totals()))
                .collect(),
            pending,
            queues: Queues { outbox_bytes, kernel_socket_bytes: 0 },
            pages_open: self.pages.open() as u64,
            pages_rejected: self.pages.rejected(),
            says: self.says.get(),
            ignored: self.ignored.get(),
            closed: std::array::from_fn(|reason| self.closed[reason].get()),
            aborted: self.aborted.get(),
        }
    }
}

/// The bound of every backlog.
fn bound(config: &Config) -> Bound {
    Bound { bytes_max: config.outbox_bytes_max, policy: config.slow }
}
