//! The clock of a run and the wait for events. One thread, one mio poll; knows nothing of
//! connections.

use std::hint;
use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry};

use super::process;

/// Events taken from the kernel at once.
const EVENTS: usize = 1024;
/// Pauses between two polls, a microsecond or two.
const PAUSES: usize = 100;
/// How long before the deadline a sleep ends, in nanoseconds: the kernel's timers are that coarse.
const WAKE_EARLY_NS: u64 = 1_500_000;

/// Nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that starts at 0 now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time in nanoseconds.
    pub(crate) fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// See the head of this file.
pub(crate) struct EventLoop {
    poll: Poll,
    clock: Clock,
    spins: bool,
    idle_ns: u64,
}

impl EventLoop {
    /// A loop that spins, or one that sleeps.
    pub(crate) fn new(clock: Clock, spins: bool) -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, clock, spins, idle_ns: 0 })
    }

    /// An empty list for [`Self::wait`] to fill.
    pub(crate) fn events() -> Events {
        Events::with_capacity(EVENTS)
    }

    /// Where sockets are registered.
    pub(crate) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// CPU time spent in polls without events, in nanoseconds.
    pub(crate) fn idle_ns(&self) -> u64 {
        self.idle_ns
    }

    /// Waits for events, at most until `until_ns`; returns the time afterwards.
    ///
    /// Under load it does not sleep: a server that sends to a sleeping process has to wake it,
    /// which costs the server another 2 µs on a virtual machine, and the more often the slower it
    /// is. Over a network a server never pays that.
    pub(crate) fn wait(&mut self, events: &mut Events, until_ns: u64) -> io::Result<u64> {
        let mut now = self.clock.now_ns();
        if !self.spins && until_ns > now + WAKE_EARLY_NS {
            let patience = Duration::from_nanos(until_ns - now - WAKE_EARLY_NS);
            // The kernel rounds up to its next millisecond.
            let patience = Duration::from_millis(patience.as_millis() as u64);
            self.poll(events, patience)?;
            now = self.clock.now_ns();
            if !events.is_empty() {
                return Ok(now);
            }
        }
        self.poll(events, Duration::ZERO)?;
        if !events.is_empty() {
            return Ok(now);
        }
        // In CPU time: while other processes have the core, this one spends nothing.
        let start = process::thread_cpu_time();
        loop {
            if !events.is_empty() || now >= until_ns {
                self.idle_ns += process::thread_cpu_time().saturating_sub(start).as_nanos() as u64;
                return Ok(now);
            }
            // Leaves the execution units to the sibling hyper-thread, which may be the server's
            // core.
            for _ in 0..PAUSES {
                hint::spin_loop();
            }
            self.poll(events, Duration::ZERO)?;
            now = self.clock.now_ns();
        }
    }

    fn poll(&mut self, events: &mut Events, patience: Duration) -> io::Result<()> {
        match self.poll.poll(events, Some(patience)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}
