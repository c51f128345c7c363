//! The report of a load: its figures, under the names of the JSON document. `report_text` makes one
//! screen of text of the same figures.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::chat::ChatCounts;
use super::latency::Summary;
use super::options::Scenario;
use super::secrets::Secrets;

/// Share of its core from which on the client counts as the bottleneck, in percent.
const SATURATED_PERCENT: f64 = 95.0;
/// Fewest connections for a figure of memory for each connection. The server's tables and buffers
/// grow meanwhile, by more than a few connections cost.
pub(super) const CONNECTIONS_FOR_MEMORY: u64 = 1000;

/// The figures of one load; the names are those of the JSON document.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The load that was run.
    pub scenario: Scenario,
    /// Where subscribers connected.
    pub url: String,
    /// The command line.
    pub command: String,
    /// Version of this program.
    pub version: &'static str,
    /// The commit that this program was built from, if its build knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<&'static str>,
    /// Whether this build is optimised; the figures of another one mean nothing.
    pub optimised: bool,
    /// Date and time of the end of the load, in UTC.
    pub date: String,
    /// Processor and kernel.
    pub machine: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Why the load ended before its time; all figures are those until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<String>,
    /// The connections and their ends.
    pub connections: Connections,
    /// The handshakes.
    pub connect: Connect,
    /// Messages published.
    pub published: u64,
    /// Publications rejected with 503 and sent again.
    pub rejected: u64,
    /// Messages that were due and could not be sent in the duration; the run has failed if they are
    /// more than a hundredth.
    pub unsent: u64,
    /// Deliveries that had to follow.
    pub expected: u64,
    /// Deliveries that arrived.
    pub received: u64,
    /// Exactly 1, or a number that cannot be mistaken for it; nothing if nothing was expected.
    #[serde(serialize_with = "share")]
    pub received_share: Option<f64>,
    /// Messages that a subscriber lacks although it has a later one.
    pub gaps: u64,
    /// Messages received again.
    pub repeats: u64,
    /// Messages received after a later one.
    pub reordered: u64,
    /// Messages of this run that arrived with other bytes than were published; they count as lost.
    pub damaged: u64,
    /// Messages that are not of this run.
    pub unexpected: u64,
    /// The first of them, described.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_unexpected: Option<String>,
    /// Lost deliveries. Nothing is expected of a slow subscriber that is closed as its policy says.
    pub lost_unexplained: u64,
    /// From the first publication to the last delivery, in nanoseconds.
    pub elapsed_ns: u64,
    /// Deliveries per second over that time.
    pub deliveries_per_second: f64,
    /// How many frames arrived together; of fanout only, where clients read nothing else.
    pub frames_per_read: Option<f64>,
    /// From due until received, for each delivery. With a rate, a message is due on schedule, else
    /// when it is sent.
    pub latency_us: Option<Summary>,
    /// From due until the last subscriber has it, for each message that every subscriber has.
    pub last_subscriber_us: Option<Summary>,
    /// The cost of the server, if its process is known.
    pub server: Option<ServerFigures>,
    /// Memory of the server by its own account, if it has `/debug/mem`; of idle only. With several
    /// processes there is none, because only one of them would answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryGrowth>,
    /// The cost of the client.
    pub client: ClientFigures,
    /// The article's test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatFigures>,
    /// Connections that left and joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub churn: Option<ChurnFigures>,
    /// Subscribers that read slowly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<SlowFigures>,
    /// The first error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// Whether nearly all due messages were sent, all expected deliveries arrived, no connection
    /// was lost, and the load ran to its end.
    pub passed: bool,
}

/// The connections and their ends.
#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    /// How many were requested.
    pub requested: u64,
    /// Open at the end; in the chat, most at the same time.
    pub open: u64,
    /// Could not be opened, or did not end.
    pub failed: u64,
    /// Ended by the server, by close code; 1006 is no close frame, 1005 one without a code.
    pub closed: BTreeMap<u16, u64>,
}

/// The handshakes.
#[derive(Clone, Debug, Serialize)]
pub struct Connect {
    /// Handshakes per second.
    pub per_second: f64,
    /// From the start of a connection until its handshake was answered.
    pub latency_us: Option<Summary>,
    /// CPU of the server for each handshake and the ping after it.
    pub server_cpu_ns_per_handshake: Option<f64>,
}

/// The cost of the server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerFigures {
    /// CPU for each delivery.
    pub cpu_ns_per_delivery: Option<f64>,
    /// CPU in percent of one core, over the time between the two samples: the load, and the tenth
    /// of a second or more after it in which the client still listens.
    pub cpu_percent: f64,
    /// How long its threads were ready and waited for a core, in percent of the same time.
    pub waited_percent: f64,
    /// Memory before any client was connected.
    pub rss_bytes_before: u64,
    /// Memory with all clients connected; in the chat, with most at the same time.
    pub rss_bytes_connected: u64,
    /// Memory at the end.
    pub rss_bytes_after: u64,
    /// Growth of the memory for each connection, from `CONNECTIONS_FOR_MEMORY` on.
    pub rss_bytes_per_connection: Option<i64>,
    /// Each process that was given.
    pub processes: Vec<ProcessFigures>,
}

/// The cost of one process of the server; see [`ServerFigures`].
#[derive(Clone, Debug, Serialize)]
pub struct ProcessFigures {
    /// The process.
    pub pid: u32,
    /// CPU in percent of one core.
    pub cpu_percent: f64,
    /// How long its threads were ready and waited for a core, in percent.
    pub waited_percent: f64,
    /// Memory at the end.
    pub rss_bytes_after: u64,
}

/// Growth of the server's memory for each connection, in bytes, by its own account, from
/// `CONNECTIONS_FOR_MEMORY` on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryGrowth {
    /// Heap in use, if the server's allocator tells it.
    pub heap_bytes_per_connection: Option<i64>,
    /// Resident memory.
    pub rss_bytes_per_connection: Option<i64>,
}

/// The cost of the client.
#[derive(Clone, Debug, Serialize)]
pub struct ClientFigures {
    /// CPU of this process without polls that found no event, in percent of a core.
    pub cpu_percent: f64,
    /// How long it was ready and waited for a core, in percent of the time.
    pub waited_percent: f64,
    /// Whether it was the bottleneck: it spent all its time on work and on waiting for a core.
    pub saturated: bool,
    /// Deliveries per second of that CPU time.
    pub deliveries_per_cpu_second: f64,
}

impl ClientFigures {
    pub(super) fn new(cpu_ns: u64, waited_ns: u64, elapsed_ns: u64, received: u64) -> Self {
        let percent = |part_ns: u64| 100.0 * ratio(part_ns, elapsed_ns);
        let deliveries_per_cpu_second = 1e9 * ratio(received, cpu_ns);
        let (cpu_percent, waited_percent) = (percent(cpu_ns), percent(waited_ns));
        let saturated = cpu_percent + waited_percent >= SATURATED_PERCENT;
        Self { cpu_percent, waited_percent, saturated, deliveries_per_cpu_second }
    }
}

/// The article's test.
#[derive(Clone, Debug, Serialize)]
pub struct ChatFigures {
    #[serde(flatten)]
    pub(super) counts: ChatCounts,
}

/// Connections that left and joined.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnFigures {
    /// How many connections take part.
    pub connections: u64,
    /// How often a client began to join again.
    pub joins: u64,
    /// How often a client left.
    pub leaves: u64,
    /// How often no client could leave.
    pub skipped: u64,
}

/// Subscribers that read slowly.
#[derive(Clone, Debug, Serialize)]
pub struct SlowFigures {
    /// How many.
    pub connections: u64,
    /// How many of them are still open.
    pub open: u64,
    /// Messages that they received.
    pub received: u64,
    /// Messages that they lack although they have later ones.
    pub dropped: u64,
}

/// The quotient; 0 for a division by 0.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A share of 1 is written as a whole number.
fn share<S: Serializer>(share: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match share {
        Some(1.0) => serializer.serialize_u64(1),
        Some(share) => serializer.serialize_f64(*share),
        None => serializer.serialize_none(),
    }
}

impl Report {
    /// The same report without secrets in it.
    pub(super) fn masked(self, secrets: &Secrets) -> Self {
        let mask = |text: Option<String>| text.map(|text| secrets.mask(&text));
        Self {
            url: secrets.mask(&self.url),
            command: secrets.mask(&self.command),
            ended_early: mask(self.ended_early),
            first_unexpected: mask(self.first_unexpected),
            first_error: mask(self.first_error),
            chat: self.chat.map(|ChatFigures { mut counts }| {
                counts.first_error = mask(counts.first_error);
                ChatFigures { counts }
            }),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exactly_one_or_visibly_not() {
        let written = |number| serde_json::to_string(&Wrapped { share: number }).unwrap();
        assert_eq!(written(Some(1.0)), r#"{"share":1}"#);
        assert_eq!(written(Some(999_999_999.0 / 1e9)), r#"{"share":0.999999999}"#);
        assert_eq!(written(None), r#"{"share":null}"#);
    }

    #[derive(Serialize)]
    struct Wrapped {
        #[serde(serialize_with = "share")]
        share: Option<f64>,
    }
}
