//! One load from start to report.

use std::thread;
use std::time::Duration;

use super::admin::MemoryFigures;
use super::chat::ChatResult;
use super::counted::Counted;
use super::error::LoadError;
use super::fanout::Fanout;
use super::latency::Latencies;
use super::options::{Options, Scenario};
use super::report::{
    ChatFigures, ChurnFigures, ClientFigures, Connect, Connections, MemoryGrowth, Report, SlowFigures, ratio,
};
use super::server_sample::{self, ServerSample};
use super::{QUIET_TIME, admin, chat, environment, process};

/// Runs a load; `command` is printed in the report, without the secrets in it. The first SIGINT or
/// SIGTERM from now on ends the load with a partial report.
///
/// # Errors
/// When it could not be run. Lost messages are no error: they are in the report.
pub fn run(options: &Options, command: &str) -> Result<Report, LoadError> {
    process::catch_interrupts()?;
    let secrets = options.secrets();
    let report = match options.scenario {
        Scenario::Chat => run_chat(options, command),
        Scenario::Fanout | Scenario::Idle | Scenario::Churn | Scenario::Slow => run_fanout(options, command),
    };
    report.map(|report| report.masked(&secrets)).map_err(|error| error.masked(&secrets))
}

/// A report without figures.
fn empty(options: &Options, command: &str, client: ClientFigures) -> Report {
    let commit = environment::binary_commit();
    Report {
        scenario: options.scenario,
        url: options.url.to_string(),
        command: command.to_owned(),
        version: environment::VERSION,
        commit: Some(commit).filter(|commit| *commit != environment::UNKNOWN),
        optimised: !cfg!(debug_assertions),
        date: environment::date(),
        machine: environment::machine(),
        seed: options.seed,
        ended_early: None,
        connections: Connections {
            requested: options.connections as u64,
            open: 0,
            failed: 0,
            closed: Default::default(),
        },
        connect: Connect { per_second: 0.0, latency_us: None, server_cpu_ns_per_handshake: None },
        published: 0,
        rejected: 0,
        unsent: 0,
        expected: 0,
        received: 0,
        received_share: None,
        gaps: 0,
        repeats: 0,
        reordered: 0,
        damaged: 0,
        unexpected: 0,
        first_unexpected: None,
        lost_unexplained: 0,
        elapsed_ns: 0,
        deliveries_per_second: 0.0,
        frames_per_read: None,
        latency_us: None,
        last_subscriber_us: None,
        server: None,
        memory: None,
        client,
        chat: None,
        churn: None,
        slow: None,
        first_error: None,
        passed: false,
    }
}

/// The measurements of a load that publishes; the later parts are missing if it ended early.
#[derive(Default)]
struct Measured {
    /// The handshakes of connecting, without those of connections that join again.
    handshakes: Option<Latencies>,
    connected: Option<ServerSample>,
    memory: Option<MemoryFigures>,
    start: Option<ServerSample>,
    counted: Counted,
}

/// Whether the memory of the server is asked of itself: an idle load of one process. Of several,
/// only one would answer, and not all clients are its own.
fn asks_for_memory(options: &Options) -> bool {
    options.scenario == Scenario::Idle && options.pids.len() <= 1
}

fn measure(load: &mut Fanout, options: &Options, measured: &mut Measured) -> Result<(), LoadError> {
    load.connect_all()?;
    measured.handshakes = Some(load.pool.handshakes.clone());
    measured.connected = ServerSample::take(options)?;
    measured.memory = asks_for_memory(options).then(|| admin::memory(options)).flatten();
    load.connect_publisher()?;
    if options.scenario != Scenario::Idle {
        load.warm_up()?;
    }
    thread::sleep(QUIET_TIME);
    measured.start = ServerSample::take(options)?;
    measured.counted = load.run_scenario()?;
    Ok(())
}

fn run_fanout(options: &Options, command: &str) -> Result<Report, LoadError> {
    let before = ServerSample::take(options)?;
    let memory_before = asks_for_memory(options).then(|| admin::memory(options)).flatten();
    let mut load = Fanout::new(options)?;
    let mut measured = Measured::default();
    let ended_early = match measure(&mut load, options, &mut measured) {
        Ok(()) => measured.counted.ended_early.take(),
        Err(LoadError::EndedEarly(reason)) => Some(reason),
        Err(error) => return Err(error),
    };
    // A server that has died has no figures; the counts stay valid.
    let end = ServerSample::take(options).ok().flatten();
    let Measured { handshakes, connected, memory, start, counted } = measured;
    let (counts, pool) = (&counted.counts, &load.pool);
    let handshakes = handshakes.as_ref().unwrap_or(&pool.handshakes);
    let connections = handshakes.count();
    let handshakes_cpu = load.server_cpu_connected.zip(before.as_ref());
    let handshakes_cpu = handshakes_cpu.map(|(cpu, before)| cpu.saturating_sub(before.cpu()));
    let per_handshake = |cpu: Duration| cpu.as_nanos() as f64 / connections.max(1) as f64;
    let server = before.zip(connected).zip(start.zip(end)).map(|((before, connected), (start, end))| {
        let rss_bytes = (before.rss_bytes(), connected.rss_bytes());
        end.figures_since(&start, counts.received + counts.slow_received, rss_bytes, connections)
    });
    let growth = |before: u64, with: u64| server_sample::per_connection((before, with), connections);
    let memory = memory_before.zip(memory).map(|(before, with)| MemoryGrowth {
        heap_bytes_per_connection: before
            .allocated_bytes
            .zip(with.allocated_bytes)
            .and_then(|(before, with)| growth(before, with)),
        rss_bytes_per_connection: growth(before.rss_bytes, with.rss_bytes),
    });
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
            per_second: connections as f64 / load.connecting.as_secs_f64().max(f64::MIN_POSITIVE),
            latency_us: handshakes.summary(),
            server_cpu_ns_per_handshake: handshakes_cpu.map(per_handshake),
        },
        published: counts.published,
        rejected: counted.rejected,
        unsent: counted.unsent,
        expected: counts.expected,
        received: counts.received,
        received_share: (counts.expected > 0).then(|| counts.received as f64 / counts.expected as f64),
        gaps: counts.gaps,
        repeats: counts.repeats,
        reordered: counts.reordered,
        damaged: counts.damaged,
        unexpected: counts.unexpected,
        first_unexpected: load.subscribers.first_unexpected.clone(),
        lost_unexplained: counts.lost() + slow_lost,
        elapsed_ns: counted.elapsed_ns,
        deliveries_per_second: 1e9 * ratio(counts.received, counted.elapsed_ns),
        frames_per_read: (options.scenario == Scenario::Fanout).then(|| ratio(counts.received, counted.reads)),
        latency_us: counted.deliveries.summary(),
        last_subscriber_us: counted.last_subscriber.summary(),
        server,
        memory,
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
        first_error: load.subscribers.first_damage.clone().or_else(|| pool.first_error.clone()),
        passed: ended_early.is_none()
            && counts.is_exact()
            && slow_lost == 0
            && counted.unsent * 100 <= counts.published
            && pool.failed == 0
            && pool.unexpected_closes == 0,
        ended_early,
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
        let rss_bytes = (before.rss_bytes(), result.rss_bytes_open_max.unwrap_or(end.rss_bytes()));
        end.figures_since(&before, received, rss_bytes, result.open_max as u64)
    });
    let ChatResult { client_cpu_ns, client_waited_ns, elapsed_ns, ended_early, .. } = result;
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
        unexpected: counts.unknown_received,
        first_unexpected: counts.first_unknown.clone(),
        elapsed_ns,
        server,
        first_error: counts.first_error.clone().or_else(|| pool.first_error.clone()),
        passed: ended_early.is_none() && counts.checks_failed == 0 && pool.failed == 0 && pool.unexpected_closes == 0,
        ended_early,
        chat: Some(ChatFigures { counts }),
        ..empty(options, command, client)
    })
}
