//! Subscribers that read slowly, or not at all. They are not in the event loop: this module reads a
//! number of bytes at a time, and at the end everything, to learn which messages and which close
//! they got.

use std::io;

use mio::Registry;

use super::client_pool::ClientPool;
use super::options::Options;
use super::subscribers::Subscribers;

/// Time between two reads of all slow readers, in nanoseconds.
const INTERVAL_NS: u64 = 50_000_000;
/// Silence that ends the last read, in nanoseconds. A server stops waiting for the answer to a
/// close frame after some seconds.
const DRAINED_NS: u64 = 500_000_000;

/// See the head of this file.
pub(crate) struct SlowReaders {
    /// Clients from this number on are slow.
    from: usize,
    bytes_per_interval: f64,
    /// Bytes that each may read and has not.
    budget: f64,
    next_ns: u64,
    draining: bool,
}

impl SlowReaders {
    /// The last `options.slow` clients.
    pub(crate) fn new(options: &Options) -> Self {
        let (any, from) = (options.slow > 0, options.connections - options.slow);
        let bytes_per_interval = options.slow_rate as f64 * INTERVAL_NS as f64 / 1e9;
        Self { from, bytes_per_interval, budget: 0.0, next_ns: if any { 0 } else { u64::MAX }, draining: false }
    }

    /// Stops the events of the slow readers.
    pub(crate) fn stop_events(&self, pool: &mut ClientPool, registry: &Registry) -> io::Result<()> {
        (self.from..pool.len())
            .filter(|_| self.next_ns != u64::MAX)
            .try_for_each(|client| pool.stop_events(client, registry))
    }

    /// When they are read next.
    pub(crate) fn due_ns(&self) -> u64 {
        if self.bytes_per_interval > 0.0 || self.draining { self.next_ns } else { u64::MAX }
    }

    /// From now on they read everything.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether more may arrive for them, when nothing has arrived since `quiet_since_ns`.
    pub(crate) fn is_draining(&self, quiet_since_ns: u64, now_ns: u64) -> bool {
        self.draining && now_ns - quiet_since_ns < DRAINED_NS
    }

    /// Reads as much as they may, if it is time to.
    pub(crate) fn step(&mut self, now_ns: u64, pool: &mut ClientPool, subscribers: &mut Subscribers) {
        if self.due_ns() > now_ns {
            return;
        }
        self.next_ns = now_ns + INTERVAL_NS;
        self.budget += self.bytes_per_interval;
        let budget = if self.draining { usize::MAX } else { self.budget as usize };
        self.budget = self.budget.fract();
        for client in self.from..pool.len() {
            if budget > 0 {
                pool.receive(client, budget, self.draining, subscribers);
            }
        }
    }
}
