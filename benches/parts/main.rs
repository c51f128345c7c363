//! The parts of the engine, each on its own, beside what could stand in its place.
//!
//! ```text
//! cargo bench --bench parts                everything, about two minutes
//! cargo bench --bench parts -- registry    one of: encode inbox registry parse
//! cargo bench --bench parts -- --test      each cell once
//! ```
//!
//! One executable, because each links the whole package at its own cost of a minute. Every cell checks what it did:
//! a queue that loses an item or a decoder that loses a message fails the bench.

mod encode;
mod inbox;
mod parse;
mod registry;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000))
        .nresamples(10_000)
        .configure_from_args();
    encode::run(&mut criterion);
    inbox::run(&mut criterion);
    registry::run(&mut criterion);
    parse::run(&mut criterion);
    criterion.final_summary();
}
