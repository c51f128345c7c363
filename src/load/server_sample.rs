//! Samples of the server's processes: CPU time, time waited for a core, resident memory.

use std::io;
use std::time::{Duration, Instant};

use super::options::Options;
use super::report::{CONNECTIONS_FOR_MEMORY, ProcessFigures, ServerFigures};
use super::{LoadError, process};

/// One process at the time of a sample.
#[derive(Clone, Copy)]
struct ProcessSample {
    pid: u32,
    cpu: Duration,
    waited: Duration,
    rss_bytes: u64,
}

/// All processes given with `--pid`, at one time.
#[derive(Clone)]
pub(super) struct ServerSample {
    at: Instant,
    processes: Vec<ProcessSample>,
}

/// Resident memory of all processes, in bytes.
pub(super) fn rss_bytes(pids: &[u32]) -> io::Result<u64> {
    pids.iter().map(|pid| process::rss_bytes(*pid)).sum()
}

/// CPU time of all processes.
pub(super) fn cpu_time(pids: &[u32]) -> io::Result<Duration> {
    pids.iter().map(|pid| process::cpu_time(*pid)).sum()
}

impl ServerSample {
    /// A sample of every process; `None` without `--pid`.
    ///
    /// # Errors
    /// When a process cannot be read.
    pub(super) fn take(options: &Options) -> Result<Option<Self>, LoadError> {
        let read = |pid| {
            let (cpu, waited) = (process::cpu_time(pid)?, process::time_waited(pid)?);
            Ok(ProcessSample { pid, cpu, waited, rss_bytes: process::rss_bytes(pid)? })
        };
        let read = |pid: &u32| read(*pid).map_err(|error| LoadError::Process(*pid, error));
        let processes = options.pids.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok((!processes.is_empty()).then(|| Self { at: Instant::now(), processes }))
    }

    /// CPU time of all processes.
    pub(super) fn cpu(&self) -> Duration {
        self.processes.iter().map(|process| process.cpu).sum()
    }

    /// Resident memory of all processes, in bytes.
    pub(super) fn rss_bytes(&self) -> u64 {
        self.processes.iter().map(|process| process.rss_bytes).sum()
    }

    /// The cost of the server since `earlier`, for this many deliveries. `rss_bytes` is the memory
    /// before any client connected and with all of them, whose number is `connections`.
    pub(super) fn figures_since(
        &self,
        earlier: &Self,
        deliveries: u64,
        rss_bytes: (u64, u64),
        connections: u64,
    ) -> ServerFigures {
        let percent = |part: Duration| 100.0 * part.as_secs_f64() / (self.at - earlier.at).as_secs_f64();
        let pairs = self.processes.iter().zip(&earlier.processes);
        let processes: Vec<_> = pairs
            .map(|(now, then)| ProcessFigures {
                pid: now.pid,
                cpu_percent: percent(now.cpu.saturating_sub(then.cpu)),
                waited_percent: percent(now.waited.saturating_sub(then.waited)),
                rss_bytes_after: now.rss_bytes,
            })
            .collect();
        let cpu = self.cpu().saturating_sub(earlier.cpu());
        ServerFigures {
            cpu_ns_per_delivery: (deliveries > 0).then(|| cpu.as_nanos() as f64 / deliveries as f64),
            cpu_percent: processes.iter().map(|process| process.cpu_percent).sum(),
            waited_percent: processes.iter().map(|process| process.waited_percent).sum(),
            rss_bytes_before: rss_bytes.0,
            rss_bytes_connected: rss_bytes.1,
            rss_bytes_after: self.rss_bytes(),
            rss_bytes_per_connection: per_connection(rss_bytes, connections),
            processes,
        }
    }
}

/// Growth of a memory figure for each connection, in bytes; `None` below
/// [`CONNECTIONS_FOR_MEMORY`].
pub(super) fn per_connection((before, with): (u64, u64), connections: u64) -> Option<i64> {
    (connections >= CONNECTIONS_FOR_MEMORY).then(|| (with as i64 - before as i64) / connections as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_have_no_figure_of_memory() {
        assert_eq!(per_connection((34_000, 68_030), 10), None);
        assert_eq!(per_connection((1000, 201_000), CONNECTIONS_FOR_MEMORY - 1), None);
        assert_eq!(per_connection((1000, 201_000), CONNECTIONS_FOR_MEMORY), Some(200));
        assert_eq!(per_connection((201_000, 1000), CONNECTIONS_FOR_MEMORY), Some(-200));
    }
}
