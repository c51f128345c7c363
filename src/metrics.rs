//! The delivery counters: what happened to every frame for every subscriber.
//!
//! Owns the counters of the conservation law, `matched = delivered + dropped{reason} + pending`,
//! and nothing else. [`DeliveryCounters`] belong to one shard and are plain cells; [`Totals`] cross
//! threads. A channel's counters write through to the shard's, so that both agree at every instant.

use std::cell::Cell;
use std::ops::AddAssign;
use std::rc::Rc;

use serde::Serialize;

/// Why a frame did not reach a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The backlog was full: `drop-newest`, `drop-oldest`, or the client was closed for it.
    Slow,
    /// The connection ended, for another reason, while the frame waited.
    Closed,
}

impl DropReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 2] = [Self::Slow, Self::Closed];

    /// The value of the metric label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Closed => "closed",
        }
    }
}

/// Counters of one channel on one shard, or of the whole shard; in frames times subscribers.
#[derive(Debug, Default)]
pub struct DeliveryCounters {
    matched: Cell<u64>,
    delivered: Cell<u64>,
    dropped: [Cell<u64>; DropReason::ALL.len()],
    parent: Option<Rc<Self>>,
}

impl DeliveryCounters {
    /// Counters that write through to `parent`.
    #[must_use]
    pub fn within(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { parent: Some(parent.clone()), ..Self::default() })
    }

    /// `frames` match a subscriber; until they are delivered or dropped they are pending.
    pub fn matched(&self, frames: u64) {
        self.matched.set(self.matched.get() + frames);
        if let Some(parent) = &self.parent {
            parent.matched(frames);
        }
    }

    /// `frames` were handed to the kernel, whole.
    pub fn delivered(&self, frames: u64) {
        self.delivered.set(self.delivered.get() + frames);
        if let Some(parent) = &self.parent {
            parent.delivered(frames);
        }
    }

    /// `frames` will not be sent.
    pub fn dropped(&self, reason: DropReason, frames: u64) {
        let cell = &self.dropped[reason as usize];
        cell.set(cell.get() + frames);
        if let Some(parent) = &self.parent {
            parent.dropped(reason, frames);
        }
    }

    /// The present figures.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let dropped = DropReason::ALL.map(|reason| self.dropped[reason as usize].get());
        let (matched, delivered) = (self.matched.get(), self.delivered.get());
        Totals { matched, delivered, dropped_slow: dropped[0], dropped_closed: dropped[1] }
    }
}

/// Sums of [`DeliveryCounters`], in frames times subscribers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Frames that matched subscribers.
    pub matched: u64,
    /// Frames handed to the kernel, whole.
    pub delivered: u64,
    /// Frames dropped because a backlog was full.
    pub dropped_slow: u64,
    /// Frames dropped because their connection ended first.
    pub dropped_closed: u64,
}

impl Totals {
    /// Frames dropped, whatever the reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_slow + self.dropped_closed
    }

    /// The pending frames by the conservation law: matched, and neither delivered nor dropped.
    /// `engine::ShardStats::pending` is an independent count of the frames in the backlogs. The two
    /// agree whenever the server is quiet.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        self.matched - self.delivered - self.dropped()
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.delivered += other.delivered;
        self.dropped_slow += other.dropped_slow;
        self.dropped_closed += other.dropped_closed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_writes_through_to_its_shard() {
        let shard = Rc::new(DeliveryCounters::default());
        let (a, b) = (DeliveryCounters::within(&shard), DeliveryCounters::within(&shard));
        a.matched(5);
        a.delivered(3);
        a.dropped(DropReason::Slow, 1);
        b.matched(2);
        b.dropped(DropReason::Closed, 2);
        assert_eq!(a.totals(), Totals { matched: 5, delivered: 3, dropped_slow: 1, dropped_closed: 0 });
        assert_eq!(a.totals().unsettled(), 1);
        let mut sum = a.totals();
        sum += b.totals();
        assert_eq!(shard.totals(), sum);
    }
}
