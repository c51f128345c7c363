//! The server's CPU time for one delivery, beside the bare system call in the same run.
//!
//! ```text
//! cargo bench --bench delivery                 10,000 subscribers, 5 rounds, about 5 minutes
//! cargo bench --bench delivery -- --test       50 subscribers, one round, a few seconds: checks that
//!                                              everything works
//! cargo bench --bench delivery -- --idle       memory per idle subscriber, and what is left 10 s
//!                                              after all have left; --rounds 10 repeats that with
//!                                              the same server
//! cargo bench --bench delivery -- --subscribers 1000 --messages 1000 --payload 4096 --stalled 1
//!                                              the cost that a subscriber which never reads causes
//!                                              for the others
//! cargo bench --bench delivery -- --help
//! ```
//!
//! A *cell* is one candidate with one number of messages in flight. A cell starts a fresh server on
//! one core and a fresh client process with all subscribers on another. After a warm-up it takes
//! the CPU time of the whole server process over a counted number of deliveries. The candidates are
//! the floor (one `send` per socket and nothing else, see [`floor`]) and `hydrant` with each
//! strategy of `--fanout`.
//!
//! On a shared machine absolute times drift by more than the differences that matter. So the cells
//! of a round follow each other directly, in an order that changes. Quote the ratio to the floor
//! *of the same round*, with its spread over the rounds.
//!
//! Server and client are child processes for two reasons: both ends of 10,000 connections rarely
//! fit under one process's limit of open files, and the client's CPU time must not count as the
//! server's. The floor and the client are this same executable, started again with a hidden first
//! argument.
//!
//! The run ends with exit code 1 if an expected message is missing, repeated or reordered, if a
//! message is unexpected, or if a subscriber is lost.
//!
//! | file | owns |
//! |---|---|
//! | `main.rs` | the cells, their order, and the measurement of one |
//! | `options.rs` | the command line |
//! | `server.rs` | starting a candidate and learning its address |
//! | `driver.rs` | starting the client and sending it commands |
//! | `sample.rs` | the figures of one cell in one round |
//! | `report.rs` | medians, ratios, the table and the JSON document |
//! | `floor.rs` | role `floor`: the reference server |
//! | `idle.rs` | `--idle`: the memory of idle subscribers |
//! | `client.rs` | role `client`: all subscribers and the publisher, which is `hydrant::load` |

mod client;
mod driver;
mod floor;
mod idle;
mod options;
mod report;
mod sample;
mod server;

use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use client::Task;
use driver::Driver;
use hydrant::load::{http, process};
use options::Options;
use report::Report;
use sample::Sample;
use server::{Candidate, Server};

/// Pause before each reading of the server's CPU clock, in which the server finishes what is left
/// (an HTTP answer, a task to park). An idle server uses no CPU in it.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match (arguments.next().as_deref(), arguments.next()) {
        (Some(floor::ROLE), Some(task)) => floor::run(&task).map(|()| true),
        (Some(client::ROLE), Some(task)) => client::run(&task).map(|()| true),
        _ => {
            let options = Options::read();
            if options.idle {
                options.check().and_then(|()| idle::run(&options)).map(|()| true)
            } else {
                orchestrate(&options)
            }
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("delivery: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cells and prints the report; `false` if any delivery was lost.
fn orchestrate(options: &Options) -> io::Result<bool> {
    options.check()?;
    let mut report = Report::new(options)?;
    'run: for round in 0..options.rounds() {
        for &in_flight in &options.in_flight {
            let mut candidates = options.candidates();
            // Each candidate is first, last, and behind each other one in turn.
            let first = round % candidates.len();
            candidates.rotate_left(first);
            for candidate in candidates {
                let sample = Cell::start(&candidate, in_flight, options)?.measure()?;
                eprintln!("round {}, {in_flight} in flight, {candidate}: {sample}", round + 1);
                report.add(in_flight, candidate, sample);
                if !report.is_complete() {
                    eprintln!(
                        "delivery: deliveries are missing, repeated, reordered or unexpected, or subscribers are \
                         lost: the run ends here"
                    );
                    break 'run;
                }
            }
        }
    }
    report.print(options.json)?;
    Ok(report.is_complete())
}

/// A candidate with its client, connected and warm.
struct Cell {
    name: String,
    stalled: usize,
    // Dropped in this order: server first, client second. The client's sockets reset on close, so
    // that no 10,000 ports are left in TIME_WAIT for the next cell.
    server: Server,
    client: Driver,
    /// Bytes of the machine's memory that were available before both started.
    memory_before: u64,
}

impl Cell {
    fn start(candidate: &Candidate, in_flight: usize, options: &Options) -> io::Result<Self> {
        let (server_cores, client_core) = options.cores()?;
        let name = format!("{candidate}, {in_flight} in flight");
        let memory_before = process::memory_available_bytes()?;
        let server = Server::start(candidate, options, &server_cores)
            .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
        let task = Task::new(server.address(), options, in_flight, candidate.stalled())?;
        let client = Driver::start(&task, client_core)?;
        let mut cell = Self { name, stalled: candidate.stalled(), server, client, memory_before };
        cell.warm()?;
        Ok(cell)
    }

    /// Waits until all clients are connected, then runs the warm-up.
    fn warm(&mut self) -> io::Result<()> {
        let warm = self.client.warm();
        warm.map_err(|error| self.explain(&error))
    }

    /// Disconnects all clients.
    fn disconnect(&mut self) {
        self.client.end();
    }

    /// Connects all clients again.
    fn reconnect(&mut self, options: &Options) -> io::Result<()> {
        let task = Task::new(self.server.address(), options, 1, self.stalled)?;
        self.client = Driver::start(&task, options.cores()?.1)?;
        self.warm()
    }

    /// Reads the server's clocks before and after the measured load.
    fn measure(&mut self) -> io::Result<Sample> {
        thread::sleep(PAUSE);
        let pid = self.server.pid();
        let (cpu, waited) = (process::cpu_time(pid)?, process::time_waited(pid)?);
        let counted = self.client.measure(None);
        let counted = counted.map_err(|error| self.explain(&error))?;
        thread::sleep(PAUSE);
        let sample = Sample {
            counted,
            server_cpu: process::cpu_time(pid)?.saturating_sub(cpu),
            server_waited: process::time_waited(pid)?.saturating_sub(waited),
        };
        if self.stalled > 0 {
            let metrics = http::get(self.server.address(), "/metrics")?;
            let counters =
                metrics.lines().filter(|line| line.starts_with("hydrant_frames") || line.contains("\"slow\""));
            let taken = self.memory_before.saturating_sub(process::memory_available_bytes()?) >> 20;
            let counters = counters.collect::<Vec<_>>().join("\n  ");
            eprintln!(
                "{}: {taken} MiB of the machine's memory are taken, the client's included\n  {counters}",
                self.name
            );
        }
        Ok(sample)
    }

    /// Adds the cell's name and the end of the server's output to an error. Ends the server for
    /// that.
    fn explain(&mut self, error: &io::Error) -> io::Error {
        io::Error::other(format!("{}: {error}{}", self.name, self.server.stop()))
    }
}
