//! What the engine adds to each delivery: every strategy over sockets that cost nothing.
//!
//! ```text
//! cargo bench --bench fanout                       everything, about two minutes
//! cargo bench --bench fanout -- 'fanout/16 x 64 B' the cells with 16 messages of 64 B pending
//! cargo bench --bench fanout -- --test             each cell once: is everything delivered
//! ```
//!
//! A cell delivers a number of pending messages to all subscribers of one channel, through the
//! engine's own channels, passes, batches and counters, and its throughput is in deliveries. The
//! sockets are [`sink::Sink`]s. `bare` is the reference: the messages joined by hand and one `send`
//! a socket, nothing else. What a strategy takes longer than `bare`, per delivery, is what the
//! engine adds to the system call; beside a real one of several thousand nanoseconds, not beside
//! the two of a `Sink`, it has to be judged. The caches are warm here, as they are not between real
//! system calls.
//!
//! | group | cells |
//! |---|---|
//! | `fanout` | 10,000 subscribers; 1, 16 and 256 pending messages; 64 B, 1 KiB, 16 KiB |
//! | `scaling` | 100, 1,000 and 10,000 subscribers; 1 and 16 pending messages of 64 B |
//!
//! The last output is a table of all cells that were measured, with the strategies side by side.
//! The strategies are those of `settings::Strategy`. How time is taken is in [`stage`].

mod bare;
mod sink;
mod stage;
mod table;

use std::time::Duration;

use clap::ValueEnum;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hydrant::settings::Strategy;
use hydrant::wire::Frame;

use bare::Bare;
use stage::Stage;
use table::{SAMPLES, Table};

const SUBSCRIBERS: usize = 10_000;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
        .nresamples(10_000)
        .configure_from_args();
    let mut table = Table::default();
    fanout(&mut criterion, &mut table);
    scaling(&mut criterion, &mut table);
    criterion.final_summary();
    let mut columns = vec!["bare".to_owned()];
    columns.extend(Strategy::value_variants().iter().map(|&strategy| name(strategy)));
    table.print(&columns);
}

fn name(strategy: Strategy) -> String {
    strategy.to_possible_value().expect("every strategy has a name").get_name().to_owned()
}

fn fanout(criterion: &mut Criterion, table: &mut Table) {
    let mut candidates = Candidates::new(SUBSCRIBERS);
    for pending in [1, 16, 256] {
        for payload in [64, 1024, 16 * 1024] {
            candidates.measure(criterion, table, "fanout", &format!("{pending} x {payload} B"), pending, payload);
        }
    }
}

fn scaling(criterion: &mut Criterion, table: &mut Table) {
    for subscribers in [100, 1_000, 10_000] {
        let mut candidates = Candidates::new(subscribers);
        for pending in [1, 16] {
            candidates.measure(criterion, table, "scaling", &format!("{pending} to {subscribers}"), pending, 64);
        }
    }
}

/// Everything that is measured beside each other, with its subscribers connected.
struct Candidates {
    subscribers: usize,
    bare: Bare,
    stages: Vec<(Strategy, Stage)>,
}

impl Candidates {
    fn new(subscribers: usize) -> Self {
        let stages = Strategy::value_variants().iter().map(|&strategy| (strategy, Stage::new(strategy, subscribers)));
        Self { subscribers, bare: Bare::new(subscribers), stages: stages.collect() }
    }

    /// One row of a group: the cells that are to be compared follow each other directly.
    fn measure(
        &mut self,
        criterion: &mut Criterion,
        table: &mut Table,
        group: &str,
        row: &str,
        pending: usize,
        payload: usize,
    ) {
        let messages = vec![Frame::text(&"x".repeat(payload)); pending];
        let deliveries = (pending * self.subscribers) as u64;
        table.row(format!("{group}/{row}"));
        let mut group = criterion.benchmark_group(format!("{group}/{row}"));
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(Throughput::Elements(deliveries));
        group.bench_function(BenchmarkId::from_parameter("bare"), |bencher| {
            bencher.iter_custom(|times| {
                let took = self.bare.deliver(&messages, times);
                table.add("bare", took, times * deliveries);
                took
            });
        });
        for (strategy, stage) in &mut self.stages {
            let name = name(*strategy);
            group.bench_function(BenchmarkId::from_parameter(&name), |bencher| {
                bencher.iter_custom(|times| {
                    let took = stage.deliver(&messages, times);
                    table.add(&name, took, times * deliveries);
                    took
                });
            });
        }
        group.finish();
    }
}
