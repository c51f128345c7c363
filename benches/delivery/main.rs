//! What one delivery costs the server in CPU, beside the bare system call, in one run.
//!
//! ```text
//! cargo bench --bench delivery                  10,000 subscribers, five rounds, about five minutes
//! cargo bench --bench delivery -- --test        50 subscribers, one round, a few seconds: does it still work
//! cargo bench --bench delivery -- --idle        memory per idle subscriber, and what is left 10 s after they left;
//!                                               with --rounds 10, again and again by the same server
//! cargo bench --bench delivery -- --subscribers 1000 --messages 1000 --payload 4096 --stalled 1
//!                                               does a subscriber that never reads cost the others anything
//! cargo bench --bench delivery -- --help
//! ```
//!
//! A *cell* is one candidate with one number of messages in flight. It starts a fresh server on one core and a fresh
//! client process with all the subscribers on another, warms them up, and takes the CPU time of the whole server process
//! over a counted number of deliveries. The candidates are the floor (one `send` a socket and nothing else, see
//! [`floor`]) and `hydrant` with each strategy asked for. On a shared machine absolute times drift, by more than the
//! differences that matter; so the cells of a round follow each other directly, in an order that changes, and the figure
//! to quote is the ratio to the floor *of the same round*, with its spread over the rounds.
//!
//! Server and client are child processes because two ends of 10,000 connections rarely fit under one process's limit
//! of open files, and because the client's CPU time must not be charged to the server. The floor and the client are
//! this same executable, started again with a hidden first argument.
//!
//! The run ends with exit code 1 if a single expected message is missing, repeated, reordered or foreign, or a subscriber
//! is gone.
//!
//! | file | owns |
//! |---|---|
//! | `main.rs` | the cells, their order, and the measurement of one |
//! | `options.rs` | the command line |
//! | `server.rs` | starting a candidate and learning its address |
//! | `driver.rs` | starting the client and the words spoken with it |
//! | `sample.rs` | the figures of one cell in one round |
//! | `report.rs` | medians, ratios, the table and the JSON document |
//! | `floor.rs` | role `floor`: the reference server |
//! | `idle.rs` | `--idle`: the memory of subscribers that wait |
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

/// How long the server may finish what it still has on its hands (an HTTP answer, a task to park) before each reading
/// of its CPU clock. An idle server spends nothing in it.
const SETTLE: Duration = Duration::from_millis(20);

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
            // Everybody is first, last, and behind everybody else in turn.
            let first = round % candidates.len();
            candidates.rotate_left(first);
            for candidate in candidates {
                let sample = Cell::start(&candidate, in_flight, options)?.measure()?;
                eprintln!("round {}, {in_flight} in flight, {candidate}: {sample}", round + 1);
                report.add(in_flight, candidate, sample);
                if !report.is_complete() {
                    eprintln!(
                        "delivery: deliveries are missing, repeated, reordered or foreign, or subscribers gone: the run ends here"
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
    // In this order: server first, client second. The client's sockets are set to reset on close, so that this leaves no
    // 10,000 ports in TIME_WAIT to the next cell.
    server: Server,
    client: Driver,
    /// Bytes of the machine's memory that were available before both.
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

    /// Waits until everybody is connected and the server is at its pace.
    fn warm(&mut self) -> io::Result<()> {
        let warm = self.client.warm();
        warm.map_err(|error| self.explain(&error))
    }

    /// Lets everybody go.
    fn disperse(&mut self) {
        self.client.end();
    }

    /// Connects everybody again.
    fn gather(&mut self, options: &Options) -> io::Result<()> {
        let task = Task::new(self.server.address(), options, 1, self.stalled)?;
        self.client = Driver::start(&task, options.cores()?.1)?;
        self.warm()
    }

    /// Clock, load, clock.
    fn measure(&mut self) -> io::Result<Sample> {
        thread::sleep(SETTLE);
        let pid = self.server.pid();
        let (cpu, waited) = (process::cpu_time(pid)?, process::time_waited(pid)?);
        let counted = self.client.measure(None);
        let counted = counted.map_err(|error| self.explain(&error))?;
        thread::sleep(SETTLE);
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

    /// An error with everything that helps to find its cause. Ends the server to get at the last of its output.
    fn explain(&mut self, error: &io::Error) -> io::Error {
        io::Error::other(format!("{}: {error}{}", self.name, self.server.stop()))
    }
}
