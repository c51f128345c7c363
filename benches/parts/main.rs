//! The parts of the engine, each alone, beside alternatives to it.
//!
//! ```text
//! cargo bench --bench parts                everything, about 2 minutes
//! cargo bench --bench parts -- registry    one of: encode inbox registry parse
//! cargo bench --bench parts -- --test      each cell once
//! ```
//!
//! The parts share one executable, because linking the whole package takes a minute each time.
//! Every cell checks its result: a queue that loses an item or a decoder that loses a message fails
//! the bench.

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
