//! `hydrant load`: loads any WebSocket server that sends a posted body to its subscribers, and
//! counts exactly which messages arrive.
//!
//! One process with one thread and one mio event loop. It does as little work per delivery as
//! possible, so that a measurement shows the server. It uses only `config` of this library, and
//! nothing in the server uses it.
//!
//! | file | owns |
//! |---|---|
//! | `options.rs`, `target.rs` | the command line; URLs |
//! | `fanout.rs`, `churn.rs`, `slow.rs` | the load that publishes, step by step: [`Fanout`] |
//! | `chat.rs` | the article's test |
//! | `client_pool.rs`, `connect.rs` | the clients' connections; their handshakes |
//! | `frames.rs`, `frame_handler.rs` | parsing the frames of a server; the trait that gets them |
//! | `subscribers.rs`, `delivery_tracker.rs` | the messages that each subscriber has received |
//! | `message.rs` | the tag in each message |
//! | `publisher.rs`, `http_publisher.rs`, `say_publisher.rs`, `http.rs` | sending the messages |
//! | `schedule.rs`, `publish_plan.rs`, `latency.rs` | when messages are due; how long they took |
//! | `stream.rs`, `tls.rs` | a socket, with or without TLS |
//! | `event_loop.rs` | the clock and the wait |
//! | `process.rs`, `environment.rs` | the kernel's figures of a process; machine and commit |
//! | `report.rs`, `progress.rs` | the output at the end, and meanwhile |
//!
//! With a rate, latency counts from the time at which a message was due, not from when it could be
//! sent. So no delay that a slow server causes is left out. If more than a hundredth of the messages
//! could not be sent within the duration, the run fails; without a duration they are all sent, and
//! only the latency shows how late. At every other pace a message is due when it is sent: the next
//! one waits for the server, and latency does not include that wait.

mod chat;
mod churn;
mod client_pool;
mod connect;
mod delivery_tracker;
pub mod environment;
mod event_loop;
mod fanout;
mod frame_handler;
mod frames;
pub mod http;
mod http_publisher;
mod latency;
mod message;
mod options;
pub mod process;
mod progress;
mod publish_plan;
mod publisher;
mod report;
mod say_publisher;
mod schedule;
mod slow;
mod stream;
mod subscribers;
mod target;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;

use std::io;
use std::time::{Duration, Instant};

use self::chat::ChatResult;
pub use self::delivery_tracker::Counts;
pub use self::fanout::{Counted, Fanout};
pub use self::latency::{Latencies, Summary};
pub use self::message::TAG_BYTES;
pub use self::options::{Arguments, Options, Pace, PublishBy, Scenario};
pub use self::report::ClientFigures;
pub use self::report::Report;
use self::report::{ChatFigures, ChurnFigures, Connect, Connections, ServerFigures, SlowFigures, ratio};
pub use self::target::Target;

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The first connections failed.
    #[error("{0}")]
    Handshake(String),
    /// Fewer clients are connected than a figure would claim.
    #[error("{missing} of {requested} connections are missing: {first_error}")]
    MissingConnections {
        /// How many are missing.
        missing: u64,
        /// How many were requested.
        requested: u64,
        /// The first error.
        first_error: String,
    },
    /// A publication was not accepted.
    #[error("{0}")]
    Publish(String),
    /// The warm-up received nothing at all.
    #[error(
        "no published message has arrived at --url, but {0} other messages: check that --publish-url belongs to the same server"
    )]
    NothingReceived(u64),
    /// The warm-up was not exact, so nothing was measured.
    #[error(
        "the warm-up received {} of {} messages, with {} gaps, {} repeats, {} reordered",
        .0.received, .0.expected, .0.gaps, .0.repeats, .0.reordered
    )]
    WarmUp(Counts),
    /// The process given with --pid cannot be read.
    #[error("--pid {0}: {1}")]
    Process(u32, io::Error),
    /// There are more connections than open files allowed.
    #[error(
        "the load needs {needed} open files and {most} are allowed: use fewer --connections, or raise the hard limit (ulimit -Hn)"
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

/// A sample of the server's process.
#[derive(Clone, Copy)]
struct ServerSample {
    at: Instant,
    cpu: Duration,
    waited: Duration,
    rss_bytes: u64,
}

impl ServerSample {
    fn take(options: &Options) -> Result<Option<Self>, LoadError> {
        let read = |pid| {
            let (cpu, waited) = (process::cpu_time(pid)?, process::time_waited(pid)?);
            Ok(Self { at: Instant::now(), cpu, waited, rss_bytes: process::rss_bytes(pid)? })
        };
        options.pid.map(|pid| read(pid).map_err(|error| LoadError::Process(pid, error))).transpose()
    }

    /// The cost of the server since `earlier`, for this many deliveries. `rss_bytes` is the memory
    /// before any client connected and with all of them.
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

/// How long the server may finish its work before each sample. An idle server spends nothing in it.
const QUIET_TIME: Duration = Duration::from_millis(20);

/// Runs a load; `command` is printed in the report.
///
/// # Errors
/// When it could not be run. Lost messages are no error: they are in the report.
pub fn run(options: &Options, command: &str) -> Result<Report, LoadError> {
    match options.scenario {
        Scenario::Chat => run_chat(options, command),
        Scenario::Fanout | Scenario::Idle | Scenario::Churn | Scenario::Slow => run_fanout(options, command),
    }
}

/// A report without figures.
fn empty(options: &Options, command: &str, client: ClientFigures) -> Report {
    let (commit, machine) = (environment::commit(), environment::machine());
    Report {
        scenario: options.scenario,
        url: options.url.to_string(),
        command: command.to_owned(),
        machine,
        commit: Some(commit).filter(|commit| commit != environment::UNKNOWN),
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
        unexpected: 0,
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
        first_error: None,
        passed: false,
    }
}

fn run_fanout(options: &Options, command: &str) -> Result<Report, LoadError> {
    let before = ServerSample::take(options)?;
    let mut load = Fanout::connect(options)?;
    let connected = ServerSample::take(options)?;
    let handshakes = load.pool.handshakes.clone();
    if options.scenario != Scenario::Idle {
        load.warm_up()?;
    }
    std::thread::sleep(QUIET_TIME);
    let start = ServerSample::take(options)?;
    let counted = load.run_scenario()?;
    // A server that has died has no figures; the counts stay valid.
    let end = ServerSample::take(options).ok().flatten();
    let counts = &counted.counts;
    let handshakes_cpu = load.server_cpu_connected.zip(before).map(|(cpu, before)| cpu.saturating_sub(before.cpu));
    let per_handshake = |cpu: Duration| cpu.as_nanos() as f64 / handshakes.count().max(1) as f64;
    let server = before.zip(connected).zip(start.zip(end)).map(|((before, connected), (start, end))| {
        let rss_bytes = (before.rss_bytes, connected.rss_bytes);
        end.server_since(&start, counts.received + counts.slow_received, rss_bytes)
    });
    let pool = &load.pool;
    let slow_from = options.connections - options.slow;
    let slow_lost = if options.drops { 0 } else { counts.slow_gaps };
    let report = Report {
        connections: Connections {
            requested: options.connections as u64,
            open: pool.open as u64,
            failed: pool.failed,
            closed: pool.closed.clone(),
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
        unexpected: counts.unexpected,
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
            open: (slow_from..options.connections).filter(|client| pool.is_open(*client)).count() as u64,
            received: counts.slow_received,
            dropped: counts.slow_gaps,
        }),
        first_error: pool.first_error.clone(),
        passed: counts.is_exact()
            && slow_lost == 0
            && counted.unsent * 100 <= counted.counts.published
            && pool.failed == 0
            && pool.unexpected_closes == 0,
        ..empty(options, command, counted.client())
    };
    Ok(report)
}

fn run_chat(options: &Options, command: &str) -> Result<Report, LoadError> {
    let before = ServerSample::take(options)?;
    let result = chat::run(options)?;
    let end = ServerSample::take(options).ok().flatten();
    let (pool, counts) = (&result.pool, result.counts);
    let received = counts.messages_received + counts.errors_received + counts.unknown_received;
    let server = before.zip(end).map(|(before, end)| {
        let rss_bytes = (before.rss_bytes, result.rss_bytes_open_max.unwrap_or(end.rss_bytes));
        end.server_since(&before, received, rss_bytes)
    });
    let ChatResult { client_cpu_ns, client_waited_ns, elapsed_ns, .. } = result;
    let client = ClientFigures::new(client_cpu_ns, client_waited_ns, elapsed_ns, received);
    Ok(Report {
        connections: Connections {
            requested: options.connections as u64,
            open: result.open_max as u64,
            failed: pool.failed,
            closed: pool.closed.clone(),
        },
        connect: Connect {
            per_second: 1e9 * ratio(pool.handshakes.count(), elapsed_ns),
            latency_us: pool.handshakes.summary(),
            server_cpu_ns_per_handshake: None,
        },
        elapsed_ns,
        server,
        first_error: counts.first_error.clone().or_else(|| pool.first_error.clone()),
        passed: counts.checks_failed == 0 && pool.failed == 0 && pool.unexpected_closes == 0,
        chat: Some(ChatFigures { counts }),
        ..empty(options, command, client)
    })
}
