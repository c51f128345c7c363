//! The table at the end: every strategy beside `bare`, in nanoseconds per delivery.

use std::time::Duration;

/// Samples of a cell that count: criterion's, without those of its warm-up, which come first.
pub(crate) const SAMPLES: usize = 10;

/// The cells that were measured, row by row.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<(String, Vec<Cell>)>,
}

/// A strategy's samples in one row, in nanoseconds per delivery.
struct Cell {
    name: String,
    samples: Vec<f64>,
}

impl Table {
    /// Begins a row.
    pub(crate) fn row(&mut self, name: String) {
        self.rows.push((name, Vec::new()));
    }

    /// Adds a sample to the cell of this strategy in the last row.
    pub(crate) fn add(&mut self, name: &str, took: Duration, deliveries: u64) {
        let cells = &mut self.rows.last_mut().expect("a row was begun").1;
        if cells.last().is_none_or(|cell| cell.name != name) {
            cells.push(Cell { name: name.to_owned(), samples: Vec::new() });
        }
        let cell = cells.last_mut().expect("added above");
        cell.samples.push(took.as_nanos() as f64 / deliveries as f64);
    }

    /// Prints the median of each cell, and how many times as long as `direct` it is.
    pub(crate) fn print(&self, strategies: &[String]) {
        println!("\nnanoseconds per delivery, median of at most {SAMPLES} samples (times as long as direct)");
        println!("{:<24}{}", "", strategies.iter().map(|name| format!("{name:>18}")).collect::<String>());
        for (row, cells) in self.rows.iter().filter(|(_, cells)| !cells.is_empty()) {
            let median = |name: &str| cells.iter().find(|cell| cell.name == name).map(Cell::median);
            let direct = median("direct");
            let columns = strategies.iter().map(|name| match (median(name), direct) {
                (Some(ns), Some(direct)) => format!("{:>18}", format!("{ns:.1} ({:.1})", ns / direct)),
                (Some(ns), None) => format!("{ns:>18.1}"),
                (None, _) => format!("{:>18}", "–"),
            });
            println!("{row:<24}{}", columns.collect::<String>());
        }
    }
}

impl Cell {
    fn median(&self) -> f64 {
        let mut samples = self.samples[self.samples.len().saturating_sub(SAMPLES)..].to_vec();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    }
}
