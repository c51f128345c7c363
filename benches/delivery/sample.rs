//! One measured cell: the client's counts, the server's CPU time, and the figures that follow from
//! both.

use std::fmt;
use std::time::Duration;

use hydrant::load::Counted;
use serde_json::{Value, json};

/// The result of one cell in one round.
pub(crate) struct Sample {
    /// What the client counted.
    pub(crate) counted: Counted,
    /// CPU time of the server, over all deliveries.
    pub(crate) server_cpu: Duration,
    /// Time in which threads of the server were ready to run while their core was in use, by other
    /// processes or by each other.
    pub(crate) server_waited: Duration,
}

impl Sample {
    /// CPU of the server per delivery that arrived, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> f64 {
        self.server_cpu.as_nanos() as f64 / self.counted.counts.received.max(1) as f64
    }

    /// The rate of the cell.
    pub(crate) fn deliveries_per_second(&self) -> f64 {
        self.counted.counts.received as f64 * 1e9 / self.counted.elapsed_ns as f64
    }

    /// Frames that arrived in one read, on average: the size of the server's batches.
    pub(crate) fn frames_per_read(&self) -> f64 {
        self.counted.counts.received as f64 / self.counted.reads.max(1) as f64
    }

    /// CPU of the client, in percent of a core.
    pub(crate) fn client_percent(&self) -> f64 {
        self.counted.client().cpu_percent
    }

    /// CPU of the server, in percent of a core.
    pub(crate) fn server_percent(&self) -> f64 {
        100.0 * self.server_cpu.as_nanos() as f64 / self.counted.elapsed_ns as f64
    }

    /// Time that the server waited for its core, in percent of the time measured.
    pub(crate) fn waited_percent(&self) -> f64 {
        100.0 * self.server_waited.as_nanos() as f64 / self.counted.elapsed_ns as f64
    }

    /// Whether all subscribers stayed and exactly the expected deliveries arrived, each once and in
    /// order.
    pub(crate) fn is_exact(&self) -> bool {
        self.counted.is_all()
    }

    /// All figures above, with the counts behind them.
    pub(crate) fn json(&self) -> Value {
        json!({
            "server_cpu_ns_per_delivery": self.cpu_ns(),
            "server_cpu_ns": self.server_cpu.as_nanos() as u64,
            "server_cpu_percent": self.server_percent(),
            "server_waited_percent": self.waited_percent(),
            "client_cpu_percent": self.client_percent(),
            "deliveries_per_second": self.deliveries_per_second(),
            "frames_per_read": self.frames_per_read(),
            "received": self.counted.counts.received,
            "expected": self.counted.counts.expected,
            "connections_absent": self.counted.absent,
            "elapsed_ns": self.counted.elapsed_ns,
        })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} ns/delivery, {} of {} received",
            self.cpu_ns(),
            self.counted.counts.received,
            self.counted.counts.expected
        )
    }
}
