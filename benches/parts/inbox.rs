//! `inbox`: passes one item from a producer's thread to the consumer, with 1 to 8 producers at
//! once.
//!
//! Compares `engine::inbox::Inbox` with the queues that a shard could use instead, each used as
//! intended: the consumer takes what is there and sleeps when the queue is empty. std's mpsc is
//! crossbeam-channel's algorithm, so the two are one candidate. An item is as large as the engine's
//! own. The time runs from the producers' start until the consumer has the last item. Every item
//! must arrive, those of one producer in order.

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

/// One item: its producer, its number, and padding up to the size of the engine's item.
struct Item {
    producer: u64,
    number: u64,
    _rest: [u64; size_of::<engine::Item>() / size_of::<u64>() - 2],
}

/// The items that have not arrived yet.
struct Expected {
    /// By producer, the number of its next item.
    next: Vec<u64>,
    items: u64,
}

impl Expected {
    fn receive(&mut self, item: &Item) {
        let next = &mut self.next[item.producer as usize];
        assert_eq!(item.number, *next, "an item of producer {} is lost or out of order", item.producer);
        *next += 1;
        self.items -= 1;
    }
}

/// Lets `producers` threads push `items` items in total while `consume` takes them on this thread.
/// Returns the time.
fn race(producers: u64, items: u64, push: impl Fn(Item) + Sync, consume: impl FnOnce(&mut Expected)) -> Duration {
    let (ready, start) = (AtomicU64::new(0), Barrier::new(producers as usize + 1));
    let (ready, start, push) = (&ready, &start, &push);
    let mut expected = Expected { next: vec![0; producers as usize], items };
    thread::scope(|scope| {
        for producer in 0..producers {
            let share = items / producers + u64::from(producer < items % producers);
            scope.spawn(move || {
                // Relaxed: a count of started threads; the barrier orders the rest.
                ready.fetch_add(1, Ordering::Relaxed);
                start.wait();
                (0..share).for_each(|number| push(Item { producer, number, _rest: black_box(Default::default()) }));
            });
        }
        // The time to start the threads is not measured.
        while ready.load(Ordering::Relaxed) < producers {
            thread::yield_now();
        }
        let started = Instant::now();
        start.wait();
        consume(&mut expected);
        let elapsed = started.elapsed();
        assert_eq!(expected.items, 0);
        elapsed
    })
}

fn through_inbox(runtime: &Runtime, producers: u64, items: u64) -> Duration {
    let inbox = Inbox::default();
    race(
        producers,
        items,
        |item| inbox.push(item),
        |expected| {
            runtime.block_on(async {
                while expected.items > 0 {
                    inbox.pushed().await;
                    inbox.clear_signal();
                    while let Some(item) = inbox.pop() {
                        expected.receive(&item);
                    }
                }
            });
        },
    )
}

fn through_tokio(runtime: &Runtime, producers: u64, items: u64) -> Duration {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let push = |item| assert!(sender.send(item).is_ok());
    race(producers, items, push, |expected| {
        runtime.block_on(async {
            while expected.items > 0 {
                expected.receive(&receiver.recv().await.expect("the sender is still there"));
            }
        });
    })
}

fn through_std(producers: u64, items: u64) -> Duration {
    let (sender, receiver) = mpsc::channel();
    let push = |item| assert!(sender.send(item).is_ok());
    race(producers, items, push, |expected| {
        while expected.items > 0 {
            expected.receive(&receiver.recv().expect("the sender is still there"));
        }
    })
}
