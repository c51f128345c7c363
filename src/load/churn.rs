//! Connections that leave and join again while messages are published. Owns the times and the
//! choice. The pool owns the connections, the tracker the deliveries that are owed.

use std::collections::HashSet;

use mio::Registry;

use super::LoadError;
use super::client_pool::ClientPool;
use super::options::Options;
use super::schedule::{Random, Schedule};
use super::subscribers::Subscribers;

/// See the head of this file.
pub(crate) struct Churn {
    random: Random,
    /// The connections below this number leave and join.
    churners: usize,
    per_second: f64,
    schedule: Option<Schedule>,
    /// Number of times at which a client had to leave.
    steps: u64,
    /// Clients that have left and not yet begun to join.
    left: HashSet<usize>,
    /// Connections that left.
    pub(crate) leaves: u64,
    /// Connections that began to join again.
    pub(crate) joins: u64,
    /// Number of times at which every candidate was still leaving or joining.
    pub(crate) skipped: u64,
}

impl Churn {
    /// Nothing happens before [`Self::start`].
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            random: Random(options.seed),
            churners: options.churners,
            per_second: options.churn_rate,
            schedule: None,
            steps: 0,
            left: HashSet::new(),
            leaves: 0,
            joins: 0,
            skipped: 0,
        }
    }

    /// Starts the schedule.
    pub(crate) fn start(&mut self, now_ns: u64) {
        self.schedule = Some(Schedule::new(now_ns, self.per_second));
    }

    /// Stops the schedule; clients that have left join again.
    pub(crate) fn stop(&mut self) {
        self.schedule = None;
    }

    /// When the next client leaves.
    pub(crate) fn due_ns(&self) -> u64 {
        self.schedule.map_or(u64::MAX, |schedule| schedule.due_ns(self.steps))
    }

    /// Lets all clients leave that are due, and all clients join that have left.
    pub(crate) fn step(
        &mut self,
        now_ns: u64,
        pool: &mut ClientPool,
        subscribers: &mut Subscribers,
        registry: &Registry,
    ) -> Result<(), LoadError> {
        while self.due_ns() <= now_ns {
            self.steps += 1;
            let first = self.random.below(self.churners as u64) as usize;
            let mut candidates = (0..self.churners).map(|step| (first + step) % self.churners);
            match candidates.find(|churner| pool.is_open(*churner)) {
                Some(churner) => {
                    subscribers.tracker.leave(churner);
                    pool.leave(churner);
                    self.left.insert(churner);
                    self.leaves += 1;
                }
                None => {
                    // The other steps that are due by now would find no candidate either.
                    let due = self.schedule.map_or(0, |schedule| schedule.due_before(now_ns + 1)).max(self.steps);
                    self.skipped += 1 + due - self.steps;
                    self.steps = due;
                }
            }
        }
        for gone in pool.take_gone() {
            if self.left.remove(&gone) && pool.is_closed(gone) {
                pool.connect(gone, now_ns, registry)?;
                self.joins += 1;
            }
        }
        Ok(())
    }
}
