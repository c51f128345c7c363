//! The counts of one measured load.

use serde::{Deserialize, Serialize};

use super::delivery_tracker::Counts;
use super::latency::Latencies;
use super::report::ClientFigures;

/// The counts of one measured load.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Counted {
    /// Messages and deliveries.
    #[serde(flatten)]
    pub counts: Counts,
    /// Publications that the server rejected with 503 and that were sent again.
    pub rejected: u64,
    /// Messages that were due and could not be sent before the end.
    pub unsent: u64,
    /// Reads that returned data; `received / reads` is the number of frames that arrive together.
    pub reads: u64,
    /// Connections that were lost or never opened, without slow ones that the server closed as its
    /// policy says.
    pub absent: u64,
    /// From the first publication to the last delivery.
    pub elapsed_ns: u64,
    /// CPU time of this process over the same time, without polls that found no event.
    pub client_cpu_ns: u64,
    /// How long this process was ready in the same time while its core was taken.
    pub client_waited_ns: u64,
    /// Why the load ended before its time, if it did; the counts are partial then.
    pub ended_early: Option<String>,
    /// From due until received, for each delivery.
    pub deliveries: Latencies,
    /// From due until the last subscriber has it, for each message that every subscriber has.
    pub last_subscriber: Latencies,
}

impl Counted {
    /// Whether all connections stayed open, and every expected delivery arrived, once and in the
    /// one order, and nothing else.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.absent == 0 && self.counts.is_all()
    }

    /// The cost of the client.
    #[must_use]
    pub fn client(&self) -> ClientFigures {
        ClientFigures::new(self.client_cpu_ns, self.client_waited_ns, self.elapsed_ns, self.counts.received)
    }
}
