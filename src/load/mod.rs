//! `hydrant load`: puts a load on any WebSocket server that sends a published body to its subscribers, and counts exactly
//! what arrives.
//!
//! One process, one thread, one mio event loop, as little work per delivery as it can be, so that the server is what a
//! measurement is about. Uses only `config` of this library; nothing in the server uses it.
//!
//! | file | owns |
//! |---|---|
//! | `options.rs`, `target.rs` | the command line; URLs |
//! | `fanout.rs` | the load that publishes, step by step: [`Fanout`]; with `churn.rs` and `slow.rs` |
//! | `chat.rs` | the article's test |
//! | `crowd.rs`, `audience.rs`, `connect.rs` | the subscribers' connections, who listens to them, their handshakes and ends |
//! | `frames.rs`, `message.rs` | the frames of a server, in any pieces; the tag in each message |
//! | `hearers.rs`, `tally.rs` | who has received what, and in which order |
//! | `publish.rs`, `post.rs`, `say.rs`, `http.rs` | who sends the messages |
//! | `pace.rs`, `sending.rs`, `latency.rs` | when messages are due; how long they took |
//! | `stream.rs`, `tls.rs` | a socket, with TLS or without |
//! | `event_loop.rs` | the clock and the wait |
//! | `process.rs`, `setting.rs` | what the kernel knows of processes; machine and commit |
//! | `report.rs`, `progress.rs` | what is said at the end, and meanwhile |
//!
//! With a rate, latency counts from the time a message was due, not from when it could be sent, so nothing that a slow
//! server delays is left out; if more than a hundredth of the messages could not be sent in the duration, the run fails
//! (without one, they are all sent, and latency alone says how late). At every other pace a message is due when it is sent: the next one waits for the server, and latency says nothing of that wait.

mod audience;
mod chat;
mod churn;
mod connect;
mod crowd;
mod event_loop;
mod fanout;
mod frames;
mod hearers;
pub mod http;
mod latency;
mod message;
mod options;
mod pace;
mod post;
pub mod process;
mod progress;
mod publish;
mod report;
mod say;
mod sending;
pub mod setting;
mod slow;
mod stream;
mod tally;
mod target;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;

use std::io;
use std::time::{Duration, Instant};

use self::chat::Chatted;
pub use self::fanout::{Counted, Fanout};
pub use self::latency::{Latencies, Summary};
pub use self::message::TAG_BYTES;
pub use self::options::{Arguments, Options, Pace, PublishBy, Scenario};
pub use self::report::ClientFigures;
pub use self::report::Report;
use self::report::{ChatFigures, ChurnFigures, Connect, Connections, ServerFigures, SlowFigures, ratio};
pub use self::tally::Counts;
pub use self::target::Target;

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nobody answers there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The first connections failed.
    #[error("{0}")]
    Handshake(String),
    /// Fewer are connected than a figure would say.
    #[error("{absent} of {requested} connections are missing: {complaint}")]
    Absent {
        /// How many are missing.
        absent: u64,
        /// How many were asked for.
        requested: u64,
        /// What went wrong first.
        complaint: String,
    },
    /// A publication was not accepted.
    #[error("{0}")]
    Publish(String),
    /// The warm-up got nothing at all.
    #[error(
        "nothing of what was published has come to --url, but {0} messages of somebody else: is --publish-url right?"
    )]
    Unheard(u64),
    /// The warm-up was not exact, so nothing was measured.
    #[error(
        "the warm-up got {} of {} messages, with {} gaps, {} repeats, {} reordered",
        .0.received, .0.expected, .0.gaps, .0.repeats, .0.reordered
    )]
    WarmUp(Counts),
    /// The process given with --pid cannot be looked at.
    #[error("--pid {0}: {1}")]
    Process(u32, io::Error),
    /// There are more connections than open files allowed.
    #[error(
        "{needed} open files are needed and {most} are allowed: fewer --connections, or a higher hard limit (ulimit -Hn)"
    )]
    OpenFiles {
        /// Files that the load would have open.
        needed: u64,
        /// The hard limit.
        most: u64,
    },
    /// A system call failed.
    #[error("the load cannot go on: {0}")]
    Kernel(#[from] io::Error),
}

/// Readings of the server's process.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    cpu: Duration,
    waited: Duration,
    rss_bytes: u64,
}

impl Reading {
    fn take(options: &Options) -> Result<Option<Self>, LoadError> {
        let read = |pid| {
            let (cpu, waited) = (process::cpu_time(pid)?, process::time_waited(pid)?);
            Ok(Self { at: Instant::now(), cpu, waited, rss_bytes: process::rss_bytes(pid)? })
        };
        options.pid.map(|pid| read(pid).map_err(|error| LoadError::Process(pid, error))).transpose()
    }

    /// What the server did since `earlier`, for so many deliveries; `rss_bytes`: before anybody came, and with everybody.
    fn server_since(&self, earlier: &Self, deliveries: u64, rss_bytes: (u64, u64)) -> ServerFigures {
        let percent = |part: Duration| 100.0 * part.as_secs_f64() / (self.at - earlier.at).as_secs_f64();
        let (cpu, waited) = (self.cpu.saturating_sub(earlier.cpu), self.waited.saturating_sub(earlier.waited));
        ServerFigures {
            cpu_ns_per_delivery: (deliveries > 0).then(|| cpu.as_nanos() as f64 / deliveries as f64),
            cpu_percent: percent(cpu),
            waited_percent: percent(waited),
            rss_bytes_before: rss_bytes.0,
            rss_bytes_connected: rss_bytes.1,
            rss_bytes_after: self.rss_bytes,
        }
    }
}

/// How long the server may finish what it still has on its hands before each reading. An idle server spends nothing in it.
const SETTLE: Duration = Duration::from_millis(20);

/// Runs a load; `command` stands in the report.
///
/// # Errors
/// When it could not be run. Losses are no error: they are in the report.
pub fn run(options: &Options, command: &str) -> Result<Report, LoadError> {
    match options.scenario {
        Scenario::Chat => run_chat(options, command),
        Scenario::Fanout | Scenario::Idle | Scenario::Churn | Scenario::Slow => run_fanout(options, command),
    }
}

/// A report of nothing.
fn empty(options: &Options, command: &str, client: ClientFigures) -> Report {
    let (commit, machine) = (setting::commit(), setting::machine());
    Report {
        scenario: options.scenario,
        url: options.url.to_string(),
        command: command.to_owned(),
        machine,
        commit: Some(commit).filter(|commit| commit != setting::UNKNOWN),
        seed: options.seed,
        connections: Connections {
            requested: options.connections as u64,
            open: 0,
            failed: 0,
            closed: Default::default(),
        },
        connect: Connect { per_second: 0.0, latency_us: None, server_cpu_ns_per_handshake: None },
        published: 0,
        refused: 0,
        unsent: 0,
        expected: 0,
        received: 0,
        received_share: None,
        gaps: 0,
        repeats: 0,
        reordered: 0,
        foreign: 0,
        lost_unexplained: 0,
        elapsed_ns: 0,
        deliveries_per_second: 0.0,
        frames_per_read: None,
        latency_us: None,
        last_subscriber_us: None,
        server: None,
        client,
        chat: None,
        churn: None,
        slow: None,
        complaint: None,
        passed: false,
    }
}

fn run_fanout(options: &Options, command: &str) -> Result<Report, LoadError> {
    let before = Reading::take(options)?;
    let mut load = Fanout::connect(options)?;
    let connected = Reading::take(options)?;
    let handshakes = load.crowd.handshakes.clone();
    if options.scenario != Scenario::Idle {
        load.warm_up()?;
    }
    std::thread::sleep(SETTLE);
    let start = Reading::take(options)?;
    let counted = load.run_as_told()?;
    // A server that has died has no figures; what was counted stands.
    let end = Reading::take(options).ok().flatten();
    let counts = &counted.counts;
    let handshakes_cpu = load.server_cpu_connected.zip(before).map(|(cpu, before)| cpu.saturating_sub(before.cpu));
    let per_handshake = |cpu: Duration| cpu.as_nanos() as f64 / handshakes.count().max(1) as f64;
    let server = before.zip(connected).zip(start.zip(end)).map(|((before, connected), (start, end))| {
        let rss_bytes = (before.rss_bytes, connected.rss_bytes);
        end.server_since(&start, counts.received + counts.slow_received, rss_bytes)
    });
    let crowd = &load.crowd;
    let slow_from = options.connections - options.slow;
    let slow_lost = if options.drops { 0 } else { counts.slow_gaps };
    let report = Report {
        connections: Connections {
            requested: options.connections as u64,
            open: crowd.open as u64,
            failed: crowd.failed,
            closed: crowd.closed.clone(),
        },
        connect: Connect {
            per_second: handshakes.count() as f64 / load.connecting.as_secs_f64(),
            latency_us: handshakes.summary(),
            server_cpu_ns_per_handshake: handshakes_cpu.map(per_handshake),
        },
        published: counts.published,
        refused: counted.refused,
        unsent: counted.unsent,
        expected: counts.expected,
        received: counts.received,
        received_share: (counts.expected > 0).then(|| counts.received as f64 / counts.expected as f64),
        gaps: counts.gaps,
        repeats: counts.repeats,
        reordered: counts.reordered,
        foreign: counts.foreign,
        lost_unexplained: counts.lost() + slow_lost,
        elapsed_ns: counted.elapsed_ns,
        deliveries_per_second: 1e9 * ratio(counts.received, counted.elapsed_ns),
        frames_per_read: (options.scenario == Scenario::Fanout).then(|| ratio(counts.received, counted.reads)),
        latency_us: counted.deliveries.summary(),
        last_subscriber_us: counted.last_subscriber.summary(),
        server,
        churn: load.churn.as_ref().map(|churn| ChurnFigures {
            connections: options.churners as u64,
            joins: churn.joins,
            leaves: churn.leaves,
            skipped: churn.skipped,
        }),
        slow: (options.slow > 0).then(|| SlowFigures {
            connections: options.slow as u64,
            open: (slow_from..options.connections).filter(|member| crowd.is_open(*member)).count() as u64,
            received: counts.slow_received,
            dropped: counts.slow_gaps,
        }),
        complaint: crowd.complaint.clone(),
        passed: counts.is_exact()
            && slow_lost == 0
            && counted.unsent * 100 <= counted.counts.published
            && crowd.failed == 0
            && crowd.unexpected == 0,
        ..empty(options, command, counted.client())
    };
    Ok(report)
}

fn run_chat(options: &Options, command: &str) -> Result<Report, LoadError> {
    let before = Reading::take(options)?;
    let chatted = chat::run(options)?;
    let end = Reading::take(options).ok().flatten();
    let (crowd, counts) = (&chatted.crowd, chatted.counts);
    let received = counts.messages_received + counts.errors_received + counts.unknown_received;
    let server = before.zip(end).map(|(before, end)| {
        let rss_bytes = (before.rss_bytes, chatted.rss_bytes_open_max.unwrap_or(end.rss_bytes));
        end.server_since(&before, received, rss_bytes)
    });
    let Chatted { client_cpu_ns, client_waited_ns, elapsed_ns, .. } = chatted;
    let client = ClientFigures::new(client_cpu_ns, client_waited_ns, elapsed_ns, received);
    Ok(Report {
        connections: Connections {
            requested: options.connections as u64,
            open: chatted.open_max as u64,
            failed: crowd.failed,
            closed: crowd.closed.clone(),
        },
        connect: Connect {
            per_second: 1e9 * ratio(crowd.handshakes.count(), elapsed_ns),
            latency_us: crowd.handshakes.summary(),
            server_cpu_ns_per_handshake: None,
        },
        elapsed_ns,
        server,
        complaint: counts.complaint.clone().or_else(|| crowd.complaint.clone()),
        passed: counts.checks_failed == 0 && crowd.failed == 0 && crowd.unexpected == 0,
        chat: Some(ChatFigures { counts }),
        ..empty(options, command, client)
    })
}
