//! One shard's worth of the engine without its sockets: a runtime, connections over [`Sink`]s, one
//! channel that all are subscribed to, and the loop of `engine::shard` around it.
//!
//! # What counts as time
//! Work, never a wait. The engine waits on purpose in two places: a channel lingers before a pass
//! that may grow, and gives subscribers that are behind time to catch up (`engine::channel`). In
//! the bench nothing more can arrive and nobody is ever blocked, so these waits would measure the
//! bench. The clock therefore adds up turns, and a turn counts only if a subscriber was visited or
//! a socket took something in it. While the channel is paced, writer tasks run until they have
//! nothing left before the channel is asked again; the shard, which sleeps for a millisecond there,
//! does the same.
//!
//! # What is promised
//! [`Stage::deliver`] returns when every byte is in its socket and the counters say so too, and
//! panics if that cannot come any more: a strategy that loses a message fails the bench.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use hydrant::admission::Load;
use hydrant::conn::{Connection, Role};
use hydrant::engine::PASS_CHUNK;
use hydrant::engine::channel::{ChannelContext, Channels};
use hydrant::engine::publication::{ChannelName, Charge, Dispatch};
use hydrant::fanout::Fanout;
use hydrant::metrics::DeliveryCounters;
use hydrant::outbox::BATCH_BYTES_MAX;
use hydrant::outbox::Bound;
use hydrant::pages::PagePool;
use hydrant::registry::{ConnHandle, Registry};
use hydrant::settings::{SlowPolicy, Strategy};
use hydrant::wire::Frame;
use slab::Slab;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::task::yield_now;

use crate::sink::{Sink, Total};

/// A backlog that nothing here fills: `mailbox` and its like queue a whole batch before the first
/// task runs.
const BOUND: Bound = Bound { bytes_max: 64 * 1024 * 1024, policy: SlowPolicy::Disconnect };
/// How long a channel waits for subscribers that are behind.
const PACE_MAX: Duration = Duration::from_millis(50);
/// No progress for so long, with something still to come, is a loss.
const STALL_MAX: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Stage {
    // Dropped first: it owns the writer tasks, which own connections.
    runtime: LocalRuntime,
    shard: Shard,
}

struct Shard {
    fanout: Box<dyn Fanout<Sink>>,
    connections: Slab<Rc<Connection<Sink>>>,
    registry: Registry,
    channels: Channels<Sink>,
    channel: ChannelName,
    counters: Rc<DeliveryCounters>,
    pages: PagePool,
    total: Total,
}

impl Stage {
    /// `subscribers` connections, attached as the strategy wants them.
    pub(crate) fn new(strategy: Strategy, subscribers: usize) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = runtime.expect("a runtime needs a few descriptors");
        let counters = Rc::new(DeliveryCounters::default());
        let mut shard = Shard {
            fanout: strategy.build(BOUND),
            connections: Slab::with_capacity(subscribers),
            registry: Registry::default(),
            channels: Channels::new(&counters),
            channel: ChannelName::all(),
            counters,
            // A `Sink` cannot refer to pages: it would copy them out of the file.
            pages: PagePool::new(usize::MAX),
            total: Rc::new(Cell::default()),
        };
        runtime.block_on(async { (0..subscribers).for_each(|_| shard.connect()) });
        Self { runtime, shard }
    }

    /// Delivers the messages to everybody, `times` over; the time that it took, waits excluded.
    pub(crate) fn deliver(&mut self, messages: &[Frame], times: u64) -> Duration {
        let dispatches = dispatches(messages);
        let wire_bytes: u64 = messages.iter().map(|frame| frame.wire().len() as u64).sum();
        let before: Vec<_> = self.shard.connections.iter().map(|(_, c)| c.socket().taken()).collect();
        let worked = self.runtime.block_on(async {
            let mut worked = Duration::ZERO;
            for _ in 0..times {
                worked += self.shard.deliver(&dispatches, wire_bytes).await;
            }
            worked
        });
        for ((_, connection), before) in self.shard.connections.iter().zip(before) {
            assert_eq!(connection.socket().taken() - before, times * wire_bytes, "everybody gets everything, once");
            assert!(!connection.has_backlog());
        }
        worked
    }
}

/// The messages as the sequencer of a channel forwards them: no dispatch longer than a batch may
/// be.
pub(crate) fn dispatches(messages: &[Frame]) -> Vec<Vec<Frame>> {
    let mut all = vec![Vec::new()];
    let mut bytes = 0;
    for frame in messages {
        let length = frame.wire().len();
        if bytes + length > BATCH_BYTES_MAX {
            all.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        all.last_mut().expect("it starts with one").push(frame.clone());
    }
    all
}

impl Shard {
    fn connect(&mut self) {
        let entry = self.connections.vacant_entry();
        let slot = entry.key() as u32;
        let id = self.registry.register(ConnHandle { shard: 0, slot });
        let socket = Sink::new(&self.total);
        let connection = Rc::new(Connection::new(id, slot, Role::Events, socket, Load::default().permit()));
        entry.insert(connection.clone());
        self.fanout.attach(&connection);
        self.channels.join(&self.channel, &connection);
    }

    /// Delivers once; the time of the turns that did something.
    async fn deliver(&mut self, dispatches: &[Vec<Frame>], wire_bytes: u64) -> Duration {
        let due = self.total.get() + wire_bytes * self.connections.len() as u64;
        for frames in dispatches {
            let charge = Charge::new(&Arc::new(AtomicUsize::new(0)), 0);
            let dispatch = Dispatch { channel: self.channel.clone(), frames: frames.clone(), receipts: vec![], charge };
            self.channels.enqueue(Arc::new(dispatch));
        }
        let mut worked = Duration::ZERO;
        let mut last_progress = Instant::now();
        while self.total.get() < due || !self.channels.is_idle() {
            let before = self.progress();
            let begun = Instant::now();
            self.turn().await;
            let ended = Instant::now();
            if self.progress() != before {
                worked += ended - begun;
                last_progress = ended;
                continue;
            }
            let idle = self.channels.is_idle() && self.counters.totals().outstanding() == 0;
            assert!(
                !idle && ended - last_progress < STALL_MAX,
                "{} bytes were not delivered: {:?}",
                due - self.total.get(),
                self.counters.totals()
            );
        }
        let totals = self.counters.totals();
        assert_eq!((self.total.get(), totals.delivered), (due, totals.matched), "the counters: {totals:?}");
        worked
    }

    /// One turn of the shard's loop: the runtime first, then a chunk of the pass.
    async fn turn(&mut self) {
        let before = self.total.get();
        yield_now().await;
        let tasks_are_busy = self.total.get() != before;
        if self.channels.is_paced() && tasks_are_busy {
            return;
        }
        let context = ChannelContext {
            fanout: &*self.fanout,
            connections: &self.connections,
            registry: &self.registry,
            shard: 0,
            bound: BOUND,
            pages: &self.pages,
            pace_max: PACE_MAX,
        };
        let ended = self.channels.step(&context, PASS_CHUNK);
        assert!(ended.is_empty(), "nobody is slow here: {ended:?}");
    }

    /// Changes whenever something is done: bytes taken, frames offered.
    fn progress(&self) -> (u64, u64) {
        (self.total.get(), self.counters.totals().matched)
    }
}
