//! How a batch reaches the subscribers of one shard: one trait, one file per strategy.
//!
//! # The contract of a strategy
//! - A pass sends to every subscriber that was subscribed when it began and has not left since,
//!   once, in an order of the strategy's choice. A client that joins during a pass waits for the
//!   next one.
//! - A pass is divided into steps. Between two steps subscribers may come and go.
//! - Every send counts the batch's frames as matched for that subscriber. Each of these frames is
//!   delivered, waits within the [`Bound`], or is dropped with a reason: never silently, never
//!   twice, never reordered.
//! - No step blocks, and a slow subscriber costs the others nothing.
//!
//! Policy is decided before a pass; the loops read plain fields.

mod direct;
mod mailbox;
mod ring;
mod subscribers;
mod wake;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use slab::Slab;

pub use self::subscribers::Subscribers;
use crate::close::CloseReason;
use crate::conn::{Connection, Sent, Socket};
use crate::metrics::DropReason;
use crate::outbox::{Bound, Offered};
use crate::pages::PagePool;
use crate::registry::Registry;
use crate::settings::Strategy;
use crate::wire::Batch;

/// Batches that the ring of a shard holds with `ring`, a power of two. A connection that has not
/// taken the oldest one when the next comes takes all of them into its backlog.
const RING_BATCHES_MAX: usize = 1024;
/// The cost of closing a connection during a pass, in sends: it leaves its channels and is closed.
pub const SENDS_PER_CLOSE: usize = 8;

impl Strategy {
    /// Builds the strategy of this name for one shard, whose backlogs obey `bound`. No other code
    /// knows all strategies.
    #[must_use]
    pub fn build<S: Socket + 'static>(self, bound: Bound) -> Box<dyn Fanout<S>> {
        match self {
            Self::Direct => Box::<direct::Direct>::default(),
            Self::Wake => Box::new(wake::Wake),
            Self::Ring => Box::new(ring::Ring::new(RING_BATCHES_MAX, bound)),
            Self::Mailbox => Box::new(mailbox::Mailbox),
        }
    }
}

/// A strategy; the module has its contract.
pub trait Fanout<S: Socket> {
    /// Prepares a new connection for this strategy. Called within the shard's runtime.
    fn attach(&self, connection: &Rc<Connection<S>>);

    /// Begins to send `batch` to the subscribers of a channel. `start` chooses the first one on the
    /// circle of subscribers; a full turn is 2^64.
    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S>;

    /// Continues the pass until that has cost `budget` sends, or a little more; returns the cost.
    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize;
}

/// The parts of a shard that a strategy may use.
pub struct PassContext<'a, S> {
    /// The channel's subscribers on this shard.
    pub subscribers: &'a Subscribers<S>,
    /// The channel's index on this shard.
    pub channel: u32,
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
}

/// A batch on its way to the subscribers of one shard.
#[derive(Debug)]
pub struct Pass<S> {
    batch: Rc<Batch>,
    /// Positions to send to: in the list of subscribers, or in `slots`.
    positions: usize,
    /// The first position. The others follow in a circle, so that no subscriber is always last.
    start: usize,
    /// Positions that are done.
    done: usize,
    /// `mailbox` only: the slots of this shard's connections, as the registry had them.
    slots: Vec<u32>,
    matched: u64,
    /// Subscribers that took the whole batch at once.
    whole: u64,
    /// Subscribers that have the whole batch in their backlog.
    queued: u64,
    /// The fate of the batch for the other subscribers.
    parts: Vec<Offered>,
    /// Connections that have to be closed; the owner closes them after the step.
    pub ended: Vec<(Rc<Connection<S>>, CloseReason)>,
}

impl<S: Socket> Pass<S> {
    fn new(batch: Batch, positions: usize, start: usize) -> Self {
        Self {
            batch: Rc::new(batch),
            positions,
            start: ((start as u128 * positions as u128) >> usize::BITS) as usize,
            done: 0,
            slots: Vec::new(),
            matched: 0,
            whole: 0,
            queued: 0,
            parts: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Whether every position is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.positions
    }

    /// The cost, in sends, of a step that began with `before` positions done. A connection that has
    /// to be closed after the step costs several sends.
    fn cost_since(&self, before: usize) -> usize {
        self.done - before + SENDS_PER_CLOSE * self.ended.len()
    }

    /// The next position to send to.
    fn next_position(&mut self) -> Option<usize> {
        if self.is_done() {
            return None;
        }
        let position = self.start + self.done;
        self.done += 1;
        Some(if position < self.positions { position } else { position - self.positions })
    }

    /// Notes the fate of the batch for a subscriber that did not take all of it at once.
    fn record(&mut self, connection: &Rc<Connection<S>>, sent: Sent) {
        let frames = self.batch.frames();
        match sent {
            Sent::All => self.whole += 1,
            Sent::Part(offered) if offered.queued == (0..frames) && !offered.overflow => self.queued += 1,
            Sent::Part(offered) => {
                if offered.overflow {
                    self.ended.push((connection.clone(), CloseReason::Slow));
                }
                self.parts.push(offered);
            }
            Sent::Gone => {
                self.batch.counters().dropped(DropReason::Closed, frames as u64);
                self.ended.push((connection.clone(), CloseReason::Disconnected));
                self.parts.push(Offered::default());
            }
        }
    }

    /// Writes a step's results to the counters.
    fn finish(&mut self, matched: u64, whole: u64) {
        let frames = self.batch.frames() as u64;
        self.matched += matched;
        self.batch.counters().matched(matched * frames);
        self.batch.counters().delivered(whole * frames);
    }

    /// Whether more than half of the subscribers have a part of the batch in their backlog.
    #[must_use]
    pub fn left_most_behind(&self) -> bool {
        let behind = self.queued + self.parts.iter().filter(|part| part.pending() > 0).count() as u64;
        behind * 2 > self.matched
    }

    /// The fate of frame `index`, so far.
    #[must_use]
    pub fn outcome(&self, index: usize) -> Outcome {
        let count = |is: &dyn Fn(&Offered) -> bool| self.parts.iter().filter(|part| is(part)).count() as u64;
        let delivered = self.whole + count(&|part| index < part.delivered);
        let pending =
            self.queued + count(&|part| part.queued.contains(&index) || (part.started && index == part.delivered));
        Outcome { matched: self.matched, delivered, pending, dropped: self.matched - delivered - pending }
    }
}

/// The fate of one frame at the end of a pass, in subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Subscribers that should get it.
    pub matched: u64,
    /// Handed to the kernel, whole.
    pub delivered: u64,
    /// Waiting in a backlog.
    pub pending: u64,
    /// Will not be sent.
    pub dropped: u64,
}
