//! The channels that have subscribers on one shard, and the passes over them.
//!
//! Owns the subscriber lists and what waits for its pass. A step is at most a chunk of sockets, of the channels whose turn it is: `scheduler`.

use std::collections::{HashMap, VecDeque};
use std::iter;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::publication::{ChannelName, Dispatch};
use super::scheduler::Scheduler;
use crate::close::CloseReason;
use crate::config::{LINGER_MAX, MAILBOX_FRAMES_MAX, PACE_SAMPLE};
use crate::conn::{Connection, Socket};
use crate::fanout::{Fanout, Pass, PassContext, Subscribers};
use crate::metrics::DeliveryCounters;
use crate::outbox::Bound;
use crate::pages::PagePool;
use crate::registry::Registry;
use crate::wire::Batch;

/// See the module.
#[derive(Debug)]
pub struct Channels<S> {
    by_name: HashMap<ChannelName, u32>,
    /// Boxed: the slab keeps the places of its largest size for as long as one channel is left.
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
    /// Where the next pass starts.
    start: usize,
    last: LastPass,
    /// When the next pass may begin, once something waits for it.
    begins_at: Option<Instant>,
    /// The next pass waits for subscribers whose sockets are full.
    paced: bool,
    /// It has waited in vain for most subscribers to catch up: they do not read, and the bound of their backlog decides.
    gave_up: bool,
    counters: Rc<DeliveryCounters>,
}

/// What the last pass tells about the next.
#[derive(Clone, Copy, Debug, Default)]
struct LastPass {
    frames: usize,
    /// Time in its steps.
    took: Duration,
    /// It left more than half of the subscribers with a backlog.
    left_behind: bool,
}

impl LastPass {
    /// How long the next pass waits for more to join it: a hundredth of what the last one took, and only if that one
    /// carried more than one frame. Without it, a burst that comes over many sockets is split: its first frame has a
    /// pass to itself, the others share the next. Who has one message in flight does not wait, but for the first
    /// message after a burst. `benches/delivery`, 16 in flight: 8 → 16 frames a write.
    fn linger(self) -> Duration {
        if self.frames > 1 { (self.took / 100).min(LINGER_MAX) } else { Duration::ZERO }
    }
}

/// Why the next pass of a channel may wait for its subscribers. A few that are behind delay nobody.
enum Behind {
    /// At most half of them have a backlog.
    Few,
    /// Most have, mostly because their writer tasks have not had their turn: they get it, which takes no time but theirs.
    Tasks,
    /// Most have, because their sockets are full: they get time to read.
    Sockets,
}

/// A pass, and the dispatches whose frames it carries.
#[derive(Debug)]
struct Running<S> {
    pass: Pass<S>,
    dispatches: Vec<Arc<Dispatch>>,
    took: Duration,
}

/// Connections that a step found to be at their end.
pub type Ended<S> = Vec<(Rc<Connection<S>>, CloseReason)>;

/// What a step needs besides the channels.
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
    /// The longest that a channel waits for subscribers that are behind.
    pub pace_max: Duration,
}

impl<S: Socket> Channels<S> {
    /// No channels; theirs will write through to `counters`.
    #[must_use]
    pub fn new(counters: &Rc<DeliveryCounters>) -> Self {
        Self {
            by_name: HashMap::new(),
            channels: Slab::new(),
            scheduler: Scheduler::default(),
            counters: counters.clone(),
        }
    }

    /// Subscribes a connection; false if it was already.
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

    /// Queues frames for their channel's next pass. Without subscribers they are done at once: nobody was due to get them.
    pub fn enqueue(&mut self, dispatch: Arc<Dispatch>) {
        let Some(&index) = self.by_name.get(&dispatch.channel) else { return };
        let channel = &mut self.channels[index as usize];
        if channel.waiting.is_empty() && channel.pass.is_none() {
            self.scheduler.push(index, channel.subscribers.places());
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

    /// Spends about `budget`, in visits to subscribers of small channels, on as many channels as that is enough for. It may visit
    /// nobody: a channel lingers for a moment before its pass, and the caller looks at everything else meanwhile.
    pub fn step(&mut self, context: &ChannelContext<'_, S>, mut budget: usize) -> Ended<S> {
        let mut ended = Vec::new();
        let now = Instant::now();
        // Each at most once.
        for kind in self.scheduler.order().into_iter().flat_map(|(kind, number)| iter::repeat_n(kind, number)) {
            let share = budget / kind.cost();
            if share == 0 {
                break;
            }
            let Some(index) = self.scheduler.pop(kind) else { continue };
            let channel = &mut self.channels[index as usize];
            let subscribers = channel.subscribers.places();
            if channel.lingers(now, context.pace_max) {
                self.scheduler.push(index, subscribers);
                continue;
            }
            // A pass over nobody costs something too.
            let cost = channel.step(index, context, share, &mut ended).max(1);
            budget = budget.saturating_sub(cost * kind.cost());
            self.scheduler.visited(kind, cost);
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
            // Trailing empty places only, and the map when most of it is empty.
            if self.by_name.len() < self.by_name.capacity() / 8 {
                self.by_name.shrink_to_fit();
                self.channels.shrink_to_fit();
            }
        }
    }
}

impl<S: Socket> Channel<S> {
    /// Whether the next pass does not begin yet.
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

    /// What more than half of the subscribers wait for, as far as a sample tells.
    fn behind(&self) -> Behind {
        let stride = self.subscribers.places() / PACE_SAMPLE + 1;
        let sample = (0..self.subscribers.places()).step_by(stride);
        let (mut all, mut behind, mut due) = (0, 0, 0);
        for subscriber in sample.filter_map(|place| self.subscribers.at(place)) {
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

    /// Goes on with the pass, or begins the next one; what it cost, in visits.
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
    /// Answers the receipts; dropping the dispatches gives back their charge.
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

/// Added to the start of each pass, a full turn being 2^64: each begins a little before the last one, by the fifth power of
/// the golden ratio's inverse, 9 % of a turn. So everybody comes first, and last, equally often, and from one pass to the
/// next nobody waits much longer than a pass takes: Linux takes a connection that was silent for 200 ms for a new
/// one, whose first segments it acknowledges one by one, which makes a delivery two fifths dearer.
/// `cargo bench --bench delivery -- --subscribers 19000` would show a better value.
const STRIDE: usize = usize::MAX - 0x1715_609f_7c74_6c6d;

/// What is joined into one batch: at least one dispatch, up to `bytes_max` and `MAILBOX_FRAMES_MAX` frames.
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
