//! The report as one screen of text.

use std::fmt::{self, Write};

use super::environment;
use super::latency::Summary;
use super::report::{ProcessFigures, Report};

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.1} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A number of bytes with groups of digits, and its sign if it is negative.
fn signed(bytes: i64) -> String {
    format!("{}{}", if bytes < 0 { "-" } else { "" }, grouped(bytes.unsigned_abs()))
}

impl Report {
    /// The heap and the resident memory of each connection, whichever are known. The kernel's
    /// figure of resident memory goes before the server's own.
    fn bytes_per_connection(&self) -> Option<String> {
        let own = |bytes: i64, kind| format!("{} of {kind} by /debug/mem", signed(bytes));
        let by_kernel = self.server.as_ref().and_then(|server| server.rss_bytes_per_connection);
        let heap = self.memory.and_then(|memory| memory.heap_bytes_per_connection);
        let rss = self.memory.and_then(|memory| memory.rss_bytes_per_connection);
        let rss = by_kernel
            .map(|bytes| format!("{} of resident memory", signed(bytes)))
            .or_else(|| rss.map(|bytes| own(bytes, "resident memory")));
        let known: Vec<_> = heap.map(|bytes| own(bytes, "heap")).into_iter().chain(rss).collect();
        (!known.is_empty()).then(|| known.join(", "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, text: String| writeln!(f, "{name:<22}{text}");
        if let Some(reason) = &self.ended_early {
            row("ENDED EARLY", format!("{reason}; these figures are of the time until then"))?;
        }
        row("command", self.command.clone())?;
        row("machine", self.machine.clone())?;
        let warning = if self.optimised { "" } else { " (NOT OPTIMISED: the figures mean nothing)" };
        let commit = self.commit.unwrap_or(environment::UNKNOWN);
        row("hydrant", format!("{}, commit {commit}{warning}; {}", self.version, self.date))?;
        row("server", self.url.clone())?;
        let connections = &self.connections;
        let mut text = format!("{} of {} open", grouped(connections.open), grouped(connections.requested));
        if connections.failed > 0 {
            write!(text, ", {} failed", grouped(connections.failed))?;
        }
        for (code, count) in &connections.closed {
            write!(text, ", {} closed with {code}", grouped(*count))?;
        }
        row("connections", text)?;
        let mut text = format!("{} per second", grouped(self.connect.per_second as u64));
        if let Some(cpu_ns) = self.connect.server_cpu_ns_per_handshake {
            write!(text, ", {:.1} µs of the server's CPU each", cpu_ns / 1e3)?;
        }
        row("handshakes", text)?;
        if self.published > 0 {
            let mut text = grouped(self.published);
            if self.rejected > 0 {
                write!(text, ", {} rejected and sent again", grouped(self.rejected))?;
            }
            if self.unsent > 0 {
                write!(text, "; THE RATE WAS NOT HELD: {} more were due", grouped(self.unsent))?;
            }
            row("messages", text)?;
            let share = match self.received_share {
                Some(1.0) => "exactly 1".to_owned(),
                Some(share) => format!("{share:.9}"),
                None => "no message was expected".to_owned(),
            };
            let text = format!("{} of {} expected: {share}", grouped(self.received), grouped(self.expected));
            row("received", text)?;
            let text = format!(
                "{} lost, {} gaps, {} repeats, {} reordered, {} damaged",
                grouped(self.lost_unexplained),
                self.gaps,
                self.repeats,
                self.reordered,
                self.damaged
            );
            row("faults", text)?;
        }
        if self.unexpected > 0 {
            let first = self.first_unexpected.as_ref().map(|first| format!("; the first is {first}"));
            row("unexpected", format!("{} messages{}", grouped(self.unexpected), first.unwrap_or_default()))?;
        }
        if self.received > 0 {
            let pace = grouped(self.deliveries_per_second as u64);
            let seconds = self.elapsed_ns as f64 / 1e9;
            let joined = self.frames_per_read.map_or(String::new(), |frames| format!(", {frames:.2} frames per read"));
            row("pace", format!("{pace} deliveries/s over {seconds:.2} s{joined}"))?;
        }
        if let Some(chat) = &self.chat {
            let counts = &chat.counts;
            row(
                "sessions",
                format!("{}, {} closed after LEAVE", grouped(counts.sessions), grouped(counts.closed_after_leave)),
            )?;
            row(
                "checks",
                format!("{} passed, {} failed", grouped(counts.checks_passed), grouped(counts.checks_failed)),
            )?;
            let text = format!(
                "{} received, {} of {} ticks, {} sent, {} errors, {} unknown",
                grouped(counts.messages_received),
                grouped(counts.ticks_received),
                grouped(counts.ticks_promised),
                grouped(counts.said),
                counts.errors_received,
                counts.unknown_received
            );
            row("chat", text)?;
        }
        if let Some(churn) = &self.churn {
            let (joins, leaves) = (grouped(churn.joins), grouped(churn.leaves));
            let among = grouped(churn.connections);
            row(
                "churn",
                format!("{leaves} left and {joins} joined, of {among}; {} times no client could leave", churn.skipped),
            )?;
        }
        if let Some(slow) = &self.slow {
            let text = format!(
                "{} of {} open; {} received, {} dropped by the server",
                slow.open,
                slow.connections,
                grouped(slow.received),
                grouped(slow.dropped)
            );
            row("slow readers", text)?;
        }
        if let Some(server) = &self.server {
            let each = server.cpu_ns_per_delivery.map_or(String::new(), |ns| format!("{ns:.0} ns per delivery, "));
            let text = format!(
                "{each}{:.0} % of a core, waited {:.0} % of the time for one",
                server.cpu_percent, server.waited_percent
            );
            row("server CPU", text)?;
            let (before, with) = (mebibytes(server.rss_bytes_before), mebibytes(server.rss_bytes_connected));
            row(
                "server memory",
                format!("{before} before, {with} with all clients, {} at the end", mebibytes(server.rss_bytes_after)),
            )?;
            for process in server.processes.iter().filter(|_| server.processes.len() > 1) {
                let ProcessFigures { pid, cpu_percent, waited_percent, rss_bytes_after } = process;
                let memory = mebibytes(*rss_bytes_after);
                let text = format!(
                    "{cpu_percent:.0} % of a core, waited {waited_percent:.0} % of the time for one, {memory} at the end"
                );
                row(&format!("process {pid}"), text)?;
            }
        }
        if let Some(text) = self.bytes_per_connection() {
            row("bytes per connection", text)?;
        }
        let client = &self.client;
        let warning = if client.saturated { ": THE CLIENT WAS THE BOTTLENECK" } else { "" };
        let mut text =
            format!("{:.0} % of a core, waited {:.0} % of the time for one", client.cpu_percent, client.waited_percent);
        if self.received > 0 {
            write!(text, ", {} deliveries in a second of it", grouped(client.deliveries_per_cpu_second as u64))?;
        }
        row("client CPU", format!("{text}{warning}"))?;
        let columns = [
            ("handshake", self.connect.latency_us),
            ("delivery", self.latency_us),
            ("last subscriber", self.last_subscriber_us),
        ];
        if columns.iter().any(|(_, summary)| summary.is_some()) {
            let head = ["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(|name| format!("{name:>11}"));
            row("\nlatency", format!("{}{}", " ", head.concat()))?;
        }
        for (name, summary) in columns {
            if let Some(Summary { p50, p90, p99, p99_9, p99_99, max }) = summary {
                let cells = [p50, p90, p99, p99_9, p99_99, max].map(|us| format!("{:>11}", time(us)));
                row(name, cells.concat())?;
            }
        }
        if let Some(first_error) = &self.first_error {
            row("\nfirst error", format!(" {first_error}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((time(0.5), time(1500.0), time(2.5e6)), ("0.5 µs".into(), "1.50 ms".into(), "2.50 s".into()));
    }
}
