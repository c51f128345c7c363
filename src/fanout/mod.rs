//! How a batch reaches the subscribers of one shard: one trait, one file per strategy.
//!
//! # The contract of a strategy
//! - A pass visits every subscriber that was there when it began and has not left since, once, in an order of the
//!   strategy's choice; whoever joins during a pass waits for the next.
//! - A pass is cut into steps; between two steps subscribers may come and go.
//! - Every subscriber visited is matched in the counters of the channel, by the number of frames; each of those frames is
//!   delivered, waits within the [`Bound`], or is dropped with a reason. Never silently, never twice, never reordered.
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
use crate::config::{RING_BATCHES_MAX, Strategy, VISITS_PER_END};
use crate::conn::{Connection, Sent, Socket};
use crate::metrics::DropReason;
use crate::outbox::{Bound, Offered};
use crate::pages::PagePool;
use crate::registry::Registry;
use crate::wire::Batch;

impl Strategy {
    /// The strategy of this name, for one shard whose backlogs obey `bound`; the only place that knows them all.
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

/// A strategy; see the module for its contract.
pub trait Fanout<S: Socket> {
    /// Gives a new connection what this strategy needs. Called within the shard's runtime.
    fn attach(&self, connection: &Rc<Connection<S>>);

    /// Starts to send `batch` to the subscribers of a channel; the first one is that far around the circle of them, a
    /// full turn being 2^64.
    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S>;

    /// Goes on with the pass until that costs `budget` visits, or a little more; what it cost.
    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize;
}

/// What a strategy may look at.
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
    /// Places to visit: positions of subscribers, or of `slots`.
    places: usize,
    /// The first place; the rest follows in a circle, so that nobody is always the last.
    start: usize,
    visited: usize,
    /// `mailbox`: the connections of this shard, as the registry had them.
    slots: Vec<u32>,
    matched: u64,
    /// Subscribers that took the whole batch at once.
    whole: u64,
    /// Subscribers for whom the whole batch waits.
    queued: u64,
    /// What became of the batch for the others.
    parts: Vec<Offered>,
    /// Connections that the pass found to be at their end; the owner closes them after the step.
    pub ended: Vec<(Rc<Connection<S>>, CloseReason)>,
}

impl<S: Socket> Pass<S> {
    fn new(batch: Batch, places: usize, start: usize) -> Self {
        Self {
            batch: Rc::new(batch),
            places,
            start: ((start as u128 * places as u128) >> usize::BITS) as usize,
            visited: 0,
            slots: Vec::new(),
            matched: 0,
            whole: 0,
            queued: 0,
            parts: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Whether every place has been visited.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.visited == self.places
    }

    /// What a step has cost that began after so many visits, in visits: who is at its end has to be closed after it.
    fn cost_since(&self, visited: usize) -> usize {
        self.visited - visited + VISITS_PER_END * self.ended.len()
    }

    /// The next place to visit.
    fn next_place(&mut self) -> Option<usize> {
        if self.is_done() {
            return None;
        }
        let place = self.start + self.visited;
        self.visited += 1;
        Some(if place < self.places { place } else { place - self.places })
    }

    /// Notes what became of the batch for a subscriber that did not take all of it at once.
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

    /// Whether something waits for more than half of the subscribers.
    #[must_use]
    pub fn left_most_behind(&self) -> bool {
        let behind = self.queued + self.parts.iter().filter(|part| part.pending() > 0).count() as u64;
        behind * 2 > self.matched
    }

    /// What became of frame `index`, so far.
    #[must_use]
    pub fn outcome(&self, index: usize) -> Outcome {
        let count = |is: &dyn Fn(&Offered) -> bool| self.parts.iter().filter(|part| is(part)).count() as u64;
        let delivered = self.whole + count(&|part| index < part.delivered);
        let pending =
            self.queued + count(&|part| part.queued.contains(&index) || (part.started && index == part.delivered));
        Outcome { matched: self.matched, delivered, pending, dropped: self.matched - delivered - pending }
    }
}

/// What became of one frame at the end of a pass, in subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Subscribers that were due to get it.
    pub matched: u64,
    /// Handed to the kernel, whole.
    pub delivered: u64,
    /// Waits in a backlog.
    pub pending: u64,
    /// Will not be sent.
    pub dropped: u64,
}
