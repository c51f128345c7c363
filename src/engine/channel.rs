//! The channels that have subscribers on one shard, and the passes over them.
//!
//! Owns the subscriber lists and the dispatches that wait for a pass. One step sends to at most one
//! chunk of sockets; `scheduler` decides which channels it serves. Never blocks, and never reorders
//! the dispatches of a channel.

use std::collections::{HashMap, VecDeque};
use std::iter;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::publication::{ChannelName, Dispatch};
use super::scheduler::Scheduler;
use crate::close::CloseReason;
use crate::conn::mailbox::MAILBOX_FRAMES_MAX;
use crate::conn::{Connection, Socket};
use crate::fanout::{Fanout, Pass, PassContext, Subscribers};
use crate::metrics::DeliveryCounters;
use crate::outbox::Bound;
use crate::pages::PagePool;
use crate::registry::Registry;
use crate::wire::Batch;

/// The longest time that a channel waits for more frames before a pass.
const LINGER_MAX: Duration = Duration::from_millis(1);
/// Size of the sample of subscribers that tells whether more than half are behind.
const PACE_SAMPLE: usize = 64;

/// The channels with subscribers on one shard; the module describes it.
#[derive(Debug)]
pub struct Channels<S> {
    by_name: HashMap<ChannelName, u32>,
    /// Boxed, because the slab keeps its largest size as long as it holds one channel.
    channels: Slab<Box<Channel<S>>>,
    /// Channels with something to send.
    scheduler: Scheduler,
    counters: Rc<DeliveryCounters>,
}

#[derive(Debug)]
struct Channel<S> {
    name: ChannelName,
    subscribers: Subscribers<S>,
    waiting: VecDeque<Arc<Dispatch>>,
    pass: Option<Running<S>>,
    /// Where the next pass starts on the circle of subscribers; a full turn is 2^64.
    start: usize,
    last: LastPass,
    /// When the next pass may begin, once something waits for it.
    begins_at: Option<Instant>,
    /// The next pass waits for subscribers whose sockets are full.
    paced: bool,
    /// The channel waited in vain for most subscribers to catch up. They do not read, so the
    /// bound of their backlog decides.
    gave_up: bool,
    counters: Rc<DeliveryCounters>,
}

/// The facts about the last pass that decide how the next one begins.
#[derive(Clone, Copy, Debug, Default)]
struct LastPass {
    frames: usize,
    /// Time spent in its steps.
    took: Duration,
    /// The pass left more than half of the subscribers with a backlog.
    left_behind: bool,
}

impl LastPass {
    /// How long the next pass waits for more frames to join it: a hundredth of the time of the last
    /// pass, at most [`LINGER_MAX`], and only if that pass carried more than one frame. Without
    /// this a burst that arrives over many sockets is split: its first frame has a pass to itself,
    /// the others share the next. A publisher with one message in flight never waits, except for
    /// the first message after a burst. `benches/delivery`, 16 in flight: 8 → 16 frames a write.
    fn linger(self) -> Duration {
        if self.frames > 1 { (self.took / 100).min(LINGER_MAX) } else { Duration::ZERO }
    }
}

/// Why the next pass of a channel may wait for its subscribers. If only a few are behind, the pass
/// does not wait.
enum Behind {
    /// At most half of them have a backlog.
    Few,
    /// Most have a backlog, mostly because their writer tasks have not run yet. The shard lets
    /// these tasks run, which costs no waiting time.
    Tasks,
    /// Most have a backlog because their sockets are full. They get time to read.
    Sockets,
}

/// A pass in progress, and the dispatches whose frames it carries.
#[derive(Debug)]
struct Running<S> {
    pass: Pass<S>,
    dispatches: Vec<Arc<Dispatch>>,
    took: Duration,
}

/// Connections that have to be closed after a step, each with its reason.
pub type Ended<S> = Vec<(Rc<Connection<S>>, CloseReason)>;

/// The parts of the shard that a step uses.
pub struct ChannelContext<'a, S> {
    /// The strategy.
    pub fanout: &'a dyn Fanout<S>,
    /// The shard's connections by slot.
    pub connections: &'a Slab<Rc<Connection<S>>>,
    /// All connections of the node.
    pub registry: &'a Registry,
    /// The index of this shard.
    pub shard: u16,
    /// The bound of a backlog.
    pub bound: Bound,
    /// Pages for large batches.
    pub pages: &'a PagePool,
    /// The longest time that a channel waits for subscribers that are behind.
    pub pace_max: Duration,
}

impl<S: Socket> Channels<S> {
    /// An empty set of channels. Each channel's counters will write through to `counters`.
    #[must_use]
    pub fn new(counters: &Rc<DeliveryCounters>) -> Self {
        Self {
            by_name: HashMap::new(),
            channels: Slab::new(),
            scheduler: Scheduler::default(),
            counters: counters.clone(),
        }
    }

    /// Subscribes a connection; false if it was subscribed already.
    pub fn join(&mut self, name: &ChannelName, connection: &Rc<Connection<S>>) -> bool {
        let index = *self.by_name.entry(name.clone()).or_insert_with(|| {
            let entry = self.channels.vacant_entry();
            let index = entry.key() as u32;
            entry.insert(Box::new(Channel {
                name: name.clone(),
                subscribers: Subscribers::new(index),
                waiting: VecDeque::new(),
                pass: None,
                start: 0,
                last: LastPass::default(),
                begins_at: None,
                paced: false,
                gave_up: false,
                counters: DeliveryCounters::within(&self.counters),
            }));
            index
        });
        self.channels[index as usize].subscribers.join(connection)
    }

    /// Unsubscribes a connection; false if it was not subscribed.
    pub fn leave(&mut self, name: &ChannelName, connection: &Connection<S>) -> bool {
        let Some(&index) = self.by_name.get(name) else { return false };
        let left = self.channels[index as usize].subscribers.leave(connection);
        self.forget_if_idle(index);
        left
    }

    /// Whether a connection is subscribed to a channel.
    #[must_use]
    pub fn has(&self, name: &ChannelName, connection: &Connection<S>) -> bool {
        self.by_name.get(name).is_some_and(|&index| connection.position(index).is_some())
    }

    /// The names of the channels that a connection is subscribed to.
    #[must_use]
    pub fn of(&self, connection: &Connection<S>) -> Vec<ChannelName> {
        let memberships = connection.memberships.borrow();
        memberships.iter().map(|member| self.channels[member.channel as usize].name.clone()).collect()
    }

    /// Queues frames for the next pass of their channel. Without subscribers the frames are done
    /// at once.
    pub fn enqueue(&mut self, dispatch: Arc<Dispatch>) {
        let Some(&index) = self.by_name.get(&dispatch.channel) else { return };
        let channel = &mut self.channels[index as usize];
        if channel.waiting.is_empty() && channel.pass.is_none() {
            self.scheduler.push(index, channel.subscribers.positions());
        }
        channel.waiting.push_back(dispatch);
    }

    /// The counters of every channel that has subscribers here.
    pub fn counters(&self) -> impl Iterator<Item = (&ChannelName, &DeliveryCounters)> {
        self.channels.iter().map(|(_, channel)| (&channel.name, &*channel.counters))
    }

    /// Whether nothing is left to send.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// Whether every channel with something to send waits for subscribers that are behind.
    #[must_use]
    pub fn is_paced(&self) -> bool {
        !self.scheduler.is_empty() && self.scheduler.iter().all(|index| self.channels[index as usize].paced)
    }

    /// Serves as many channels as `budget` allows; its unit is a send to a subscriber of a small
    /// channel. A step may send nothing, because a channel lingers before its pass; meanwhile the
    /// caller runs its other work.
    pub fn step(&mut self, context: &ChannelContext<'_, S>, mut budget: usize) -> Ended<S> {
        let mut ended = Vec::new();
        let now = Instant::now();
        // A step serves each channel at most once.
        for kind in self.scheduler.order().into_iter().flat_map(|(kind, number)| iter::repeat_n(kind, number)) {
            let share = budget / kind.cost();
            if share == 0 {
                break;
            }
            let Some(index) = self.scheduler.pop(kind) else { continue };
            let channel = &mut self.channels[index as usize];
            let subscribers = channel.subscribers.positions();
            if channel.lingers(now, context.pace_max) {
                self.scheduler.push(index, subscribers);
                continue;
            }
            // A pass without subscribers has a cost, too.
            let cost = channel.step(index, context, share, &mut ended).max(1);
            budget = budget.saturating_sub(cost * kind.cost());
            self.scheduler.sent(kind, cost);
            if channel.pass.is_some() || !channel.waiting.is_empty() {
                self.scheduler.push(index, subscribers);
            } else {
                self.forget_if_idle(index);
            }
        }
        ended
    }

    fn forget_if_idle(&mut self, index: u32) {
        let channel = &self.channels[index as usize];
        if channel.subscribers.is_empty() && channel.pass.is_none() && channel.waiting.is_empty() {
            self.by_name.remove(&channel.name);
            self.channels.remove(index as usize);
            // Frees the slab's empty entries at its end, and the map's memory when most of it is
            // empty.
            if self.by_name.len() < self.by_name.capacity() / 8 {
                self.by_name.shrink_to_fit();
                self.channels.shrink_to_fit();
            }
        }
    }
}

impl<S: Socket> Channel<S> {
    /// Whether the next pass has to wait.
    fn lingers(&mut self, now: Instant, pace_max: Duration) -> bool {
        if self.pass.is_some() {
            return false;
        }
        self.paced = false;
        if self.last.left_behind {
            match self.behind() {
                Behind::Few => {
                    self.last.left_behind = false;
                    self.gave_up = false;
                    self.begins_at = None;
                }
                Behind::Tasks => {
                    self.begins_at = None;
                    return true;
                }
                Behind::Sockets if !self.gave_up => {
                    self.paced = now < *self.begins_at.get_or_insert(now + pace_max);
                    self.gave_up = !self.paced;
                    return self.paced;
                }
                Behind::Sockets => {}
            }
        }
        now < *self.begins_at.get_or_insert(now + self.last.linger())
    }

    /// The reason for which the next pass may wait, judged by a sample of the subscribers.
    fn behind(&self) -> Behind {
        let stride = self.subscribers.positions() / PACE_SAMPLE + 1;
        let sample = (0..self.subscribers.positions()).step_by(stride);
        let (mut all, mut behind, mut due) = (0, 0, 0);
        for subscriber in sample.filter_map(|position| self.subscribers.get(position)) {
            all += 1;
            if subscriber.has_backlog() {
                behind += 1;
                due += usize::from(subscriber.awaits_its_task());
            }
        }
        match behind * 2 > all {
            false => Behind::Few,
            true if due * 2 > behind => Behind::Tasks,
            true => Behind::Sockets,
        }
    }

    /// Continues the pass, or begins the next one. Returns the cost in sends.
    fn step(&mut self, index: u32, context: &ChannelContext<'_, S>, budget: usize, ended: &mut Ended<S>) -> usize {
        let begun = self.pass.take();
        if begun.is_none() {
            self.subscribers.begin_pass();
        }
        let pass_context = PassContext {
            subscribers: &self.subscribers,
            channel: index,
            connections: context.connections,
            registry: context.registry,
            shard: context.shard,
            bound: context.bound,
            pages: context.pages,
        };
        let mut running = begun.unwrap_or_else(|| {
            let dispatches = take_batch(&mut self.waiting, context.bound.batch_bytes_max());
            let frames: Vec<_> = dispatches.iter().flat_map(|dispatch| &dispatch.frames).cloned().collect();
            let batch = Batch::new(&frames, self.counters.clone());
            let pass = context.fanout.begin(&pass_context, batch, self.start);
            self.start = self.start.wrapping_add(STRIDE);
            self.begins_at = None;
            self.last.frames = frames.len();
            Running { pass, dispatches, took: Duration::ZERO }
        });
        let begun = Instant::now();
        let cost = context.fanout.step(&pass_context, &mut running.pass, budget);
        running.took += begun.elapsed();
        ended.append(&mut running.pass.ended);
        if running.pass.is_done() {
            self.last.took = running.took;
            let left_behind = running.pass.left_most_behind();
            self.gave_up &= left_behind;
            self.last.left_behind = left_behind;
            running.finish();
            self.subscribers.end_pass();
        } else {
            self.pass = Some(running);
        }
        cost
    }
}

impl<S: Socket> Running<S> {
    /// Answers the receipts. Dropping the dispatches gives back their charge.
    fn finish(self) {
        let mut first = 0;
        for dispatch in self.dispatches {
            for (index, receipt) in &dispatch.receipts {
                receipt.add(self.pass.outcome(first + index));
            }
            first += dispatch.frames.len();
        }
    }
}

/// Added to the start of each pass; a full turn of the circle is 2^64. Each pass begins 9 % of a
/// turn before the last one: the fifth power of the inverse of the golden ratio. So every
/// subscriber comes first, and last, equally often. From one pass to the next no subscriber waits
/// much longer than a pass takes. That matters because Linux treats a connection that was silent
/// for 200 ms as a new one and acknowledges its first segments one by one, which makes a delivery
/// 40 % dearer. `cargo bench --bench delivery -- --subscribers 19000` would show a better value.
const STRIDE: usize = usize::MAX - 0x1715_609f_7c74_6c6d;

/// Takes the dispatches of one batch: at least one, up to `bytes_max` and `MAILBOX_FRAMES_MAX`
/// frames.
fn take_batch(waiting: &mut VecDeque<Arc<Dispatch>>, bytes_max: usize) -> Vec<Arc<Dispatch>> {
    let mut taken = Vec::new();
    let (mut bytes, mut frames) = (0, 0);
    while let Some(next) = waiting.front() {
        bytes += next.frames.iter().map(|frame| frame.wire().len()).sum::<usize>();
        frames += next.frames.len();
        if (bytes > bytes_max || frames > MAILBOX_FRAMES_MAX) && !taken.is_empty() {
            break;
        }
        taken.extend(waiting.pop_front());
    }
    taken
}
