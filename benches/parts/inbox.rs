//! `inbox`: one item from a producer's thread to the consumer, with 1 to 8 producers at once.
//!
//! `engine::inbox::Inbox` beside the queues that a shard could have in its place, each used the way it is meant to be:
//! the consumer takes what is there and sleeps when nothing is. std's mpsc is crossbeam-channel's algorithm, so the two
//! are one candidate. An item is as large as the engine's own. The clock runs from the producers' start to the last item
//! in the consumer's hands; every item has to come, each producer's in order.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use hydrant::engine::{self, Inbox};
use tokio::runtime::{Builder, Runtime};

const PRODUCERS: [u64; 4] = [1, 2, 4, 8];

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inbox");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(1));
    let runtime = Builder::new_current_thread().build().expect("a runtime without drivers needs nothing");
    for producers in PRODUCERS {
        let candidates: [(&str, &dyn Fn(u64) -> Duration); 3] = [
            ("Inbox", &|items| through_inbox(&runtime, producers, items)),
            ("tokio mpsc", &|items| through_tokio(&runtime, producers, items)),
            ("std mpsc", &|items| through_std(producers, items)),
        ];
        for (name, pass) in candidates {
            group.bench_function(BenchmarkId::new(name, producers), |bencher| bencher.iter_custom(pass));
        }
    }
    group.finish();
}

/// One item: whose, which, and padding up to the size of the engine's.
struct Item {
    producer: u64,
    number: u64,
    _rest: [u64; size_of::<engine::Item>() / size_of::<u64>() - 2],
}

/// What the consumer is still due.
struct Due {
    next: Vec<u64>,
    items: u64,
}

impl Due {
    fn enter(&mut self, item: &Item) {
        let next = &mut self.next[item.producer as usize];
        assert_eq!(item.number, *next, "an item of producer {} is lost or out of order", item.producer);
        *next += 1;
        self.items -= 1;
    }
}

/// Has `producers` threads push `items` in sum while `consume` takes them on this one; how long that took.
fn race(producers: u64, items: u64, push: impl Fn(Item) + Sync, consume: impl FnOnce(&mut Due)) -> Duration {
    let (ready, start) = (AtomicU64::new(0), Barrier::new(producers as usize + 1));
    let (ready, start, push) = (&ready, &start, &push);
    let mut due = Due { next: vec![0; producers as usize], items };
    thread::scope(|scope| {
        for producer in 0..producers {
            let share = items / producers + u64::from(producer < items % producers);
            scope.spawn(move || {
                // Relaxed: a count of who has come; the barrier orders the rest.
                ready.fetch_add(1, Ordering::Relaxed);
                start.wait();
                (0..share).for_each(|number| push(Item { producer, number, _rest: black_box(Default::default()) }));
            });
        }
        // The start of the threads is not part of the race.
        while ready.load(Ordering::Relaxed) < producers {
            thread::yield_now();
        }
        let begun = Instant::now();
        start.wait();
        consume(&mut due);
        let took = begun.elapsed();
        assert_eq!(due.items, 0);
        took
    })
}

fn through_inbox(runtime: &Runtime, producers: u64, items: u64) -> Duration {
    let inbox = Inbox::default();
    race(
        producers,
        items,
        |item| inbox.push(item),
        |due| {
            runtime.block_on(async {
                while due.items > 0 {
                    inbox.pushed().await;
                    inbox.clear_signal();
                    while let Some(item) = inbox.pop() {
                        due.enter(&item);
                    }
                }
            });
        },
    )
}

fn through_tokio(runtime: &Runtime, producers: u64, items: u64) -> Duration {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let push = |item| assert!(sender.send(item).is_ok());
    race(producers, items, push, |due| {
        runtime.block_on(async {
            while due.items > 0 {
                due.enter(&receiver.recv().await.expect("the sender is still there"));
            }
        });
    })
}

fn through_std(producers: u64, items: u64) -> Duration {
    let (sender, receiver) = mpsc::channel();
    let push = |item| assert!(sender.send(item).is_ok());
    race(producers, items, push, |due| {
        while due.items > 0 {
            due.enter(&receiver.recv().expect("the sender is still there"));
        }
    })
}
