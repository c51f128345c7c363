//! `encode`: encodes a message as a frame, as happens once per message, and joins frames into a
//! batch, as happens once per pass.

use std::hint::black_box;
use std::rc::Rc;

use criterion::{BenchmarkId, Criterion, Throughput};
use hydrant::metrics::DeliveryCounters;
use hydrant::wire::{Batch, Frame};

/// Numbers of frames in a batch, each with 64 bytes of payload.
const JOINED: [usize; 2] = [16, 256];

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode/frame");
    for bytes in [64, 1024, 16 * 1024, 64 * 1024] {
        let text = "x".repeat(bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("text", bytes), |bencher| {
            bencher.iter(|| Frame::text(black_box(&text)));
        });
        group.bench_function(BenchmarkId::new("binary", bytes), |bencher| {
            bencher.iter(|| Frame::binary(black_box(text.as_bytes())));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("encode/batch");
    let counters = Rc::new(DeliveryCounters::default());
    for number in JOINED {
        let frames = vec![Frame::text(&"x".repeat(64)); number];
        group.throughput(Throughput::Elements(number as u64));
        group.bench_function(BenchmarkId::from_parameter(number), |bencher| {
            bencher.iter(|| Batch::new(black_box(&frames), counters.clone()));
        });
        assert_eq!(Batch::new(&frames, counters.clone()).frames(), number);
    }
    group.finish();
}
