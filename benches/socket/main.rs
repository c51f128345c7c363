//! Every strategy end to end: real connections over loopback, the server on one core, all clients
//! in a process on another.
//!
//! ```text
//! cargo bench --bench socket                  everything, about 3 minutes
//! cargo bench --bench socket -- 'socket/16'   16 messages in flight
//! cargo bench --bench socket -- --test        each cell once, with 50 subscribers: checks that
//!                                             everything arrives
//! ```
//!
//! The time is wall-clock time from the first publication until the last subscriber has the last
//! message, measured by the client process. The throughput is in deliveries. One iteration
//! publishes as many messages as are in flight. `floor` is the reference in the same run: a bare
//! loop of `send` that joins what is pending.
//!
//! The processes, the floor and the pinning to cores are those of the bench `delivery`. For small
//! differences use `delivery`: it measures CPU time and rotates the order, and the cells to compare
//! follow each other more closely.
//!
//! | group | cells |
//! |---|---|
//! | `socket` | 10,000 subscribers; 1 and 16 messages in flight; the floor and every strategy |
//! | `socket-scaling` | 100, 1,000, 10,000 subscribers; 1 and 16 in flight; floor and `direct` |

#[path = "../delivery/client.rs"]
mod client;
#[path = "../delivery/driver.rs"]
mod driver;
#[path = "../delivery/floor.rs"]
mod floor;
#[path = "../delivery/options.rs"]
#[allow(dead_code, reason = "most of it is the command line of the bench `delivery`")]
mod options;
#[path = "../delivery/server.rs"]
#[allow(dead_code, reason = "the process id is for the bench `delivery`")]
mod server;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hydrant::settings::Strategy;

use client::Task;
use driver::Driver;
use options::Options;
use server::{Candidate, Server};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match (arguments.next().as_deref(), arguments.next()) {
        (Some(floor::ROLE), Some(task)) => floor::run(&task),
        (Some(client::ROLE), Some(task)) => client::run(&task),
        _ => {
            measure(std::env::args().any(|argument| argument == "--test"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("socket: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(test: bool) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .nresamples(10_000)
        .configure_from_args();
    let strategies: Vec<_> = Strategy::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
    let strategies: Vec<_> = strategies.iter().map(|strategy| strategy.get_name()).collect();
    for in_flight in [1, 16] {
        compare(&mut criterion, "socket", in_flight, if test { 50 } else { 10_000 }, &strategies);
    }
    for subscribers in [100, 1_000, 10_000] {
        for in_flight in [1, 16] {
            compare(&mut criterion, "socket-scaling", in_flight, if test { 50 } else { subscribers }, &["direct"]);
        }
    }
    criterion.final_summary();
}

/// Measures the floor and these strategies, one after the other.
fn compare(criterion: &mut Criterion, group: &str, in_flight: usize, subscribers: usize, strategies: &[&str]) {
    let mut group = criterion.benchmark_group(format!("{group}/{in_flight} to {subscribers}"));
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements((in_flight * subscribers) as u64));
    let hydrant = |fanout: &&str| Candidate::Hydrant { fanout: (*fanout).to_owned(), stalled: 0 };
    for candidate in std::iter::once(Candidate::Floor).chain(strategies.iter().map(hydrant)) {
        // The first iteration starts it, so a cell that a filter excludes starts nothing.
        let mut pair = None;
        group.bench_function(BenchmarkId::from_parameter(&candidate), |bencher| {
            bencher.iter_custom(|times| {
                let pair = pair.get_or_insert_with(|| {
                    let started = Pair::start(&candidate, subscribers, in_flight);
                    started.unwrap_or_else(|error| panic!("{candidate}: {error}"))
                });
                pair.deliver(times * in_flight as u64)
            });
        });
    }
    group.finish();
}

/// A server and its clients, connected and warmed up.
struct Pair {
    // Dropped first, see `delivery`.
    _server: Server,
    clients: Driver,
}

impl Pair {
    fn start(candidate: &Candidate, subscribers: usize, in_flight: usize) -> io::Result<Self> {
        let options = Options::with_subscribers(subscribers);
        options.check()?;
        let (server_cores, client_core) = options.cores()?;
        let server = Server::start(candidate, &options, &server_cores)?;
        let mut clients = Driver::start(&Task::new(server.address(), &options, in_flight, 0)?, client_core)?;
        clients.warm()?;
        Ok(Self { _server: server, clients })
    }

    /// Publishes this number of messages. Returns the time until all subscribers have all of them.
    ///
    /// # Panics
    /// If a message is missing, repeated, reordered or unexpected, or a subscriber is lost.
    fn deliver(&mut self, messages: u64) -> Duration {
        let counted = self.clients.measure(Some(messages)).expect("the client counts");
        let (counts, absent) = (&counted.counts, counted.absent);
        assert!(
            counted.is_all(),
            "not every delivery arrived once and in order: {counts:?}, {absent} subscribers lost"
        );
        Duration::from_nanos(counted.elapsed_ns)
    }
}
