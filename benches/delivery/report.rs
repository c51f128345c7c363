//! The report: samples become rows; rows become a table for people or a JSON document for programs.
//! Beside every figure stands what is needed to judge it: deliveries received of those expected,
//! the batch size, which process was saturated, machine, commit and command.

use std::io::{self, Write};

use hydrant::load::{Latencies, environment};
use serde_json::{Value, json};

use crate::options::Options;
use crate::sample::Sample;
use crate::server::Candidate;

/// Longest time that a server waits for its core without a note in the table, in percent of the
/// time measured. Above it, other processes or the server's own threads competed for that core.
const WAITED_PERCENT_MAX: f64 = 2.0;

/// One cell over all rounds.
struct Row {
    in_flight: usize,
    candidate: Candidate,
    samples: Vec<Sample>,
}

impl Row {
    fn median(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        quantile(self.samples.iter().map(figure).collect(), 0.5)
    }

    /// Time from a publication until the last subscriber has it, over the messages of all rounds,
    /// in milliseconds.
    fn latency_ms(&self, share: f64) -> f64 {
        let mut latencies = Latencies::default();
        self.samples.iter().for_each(|s| latencies.add(&s.counted.last_subscriber));
        latencies.quantile_ns(share) as f64 / 1e6
    }

    /// Received and expected deliveries of all rounds.
    fn deliveries(&self) -> (u64, u64) {
        self.samples.iter().fold((0, 0), |(received, expected), s| {
            (received + s.counted.counts.received, expected + s.counted.counts.expected)
        })
    }

    /// `1` if all were received, otherwise a share with nine decimals.
    fn received_share(&self) -> String {
        match self.deliveries() {
            (received, expected) if received == expected => "1".to_owned(),
            (received, expected) => format!("{:.9}", received as f64 / expected as f64),
        }
    }

    fn is_client_saturated(&self) -> bool {
        let saturated = self.samples.iter().filter(|sample| sample.counted.client().saturated).count();
        2 * saturated > self.samples.len()
    }

    /// Reasons to doubt the row's figures.
    fn notes(&self) -> String {
        let mut notes = Vec::new();
        if self.is_client_saturated() {
            notes.push("client was the bottleneck");
        }
        if self.median(Sample::waited_percent) > WAITED_PERCENT_MAX {
            notes.push("server waited for its core");
        }
        notes.join(", ")
    }
}

/// All cells of a run.
pub(crate) struct Report {
    /// The conditions of the run, printed above the figures.
    conditions: Vec<(&'static str, String)>,
    rows: Vec<Row>,
}

impl Report {
    /// No cells yet.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let (server_cores, client_core) = options.cores()?;
        let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let conditions = vec![
            ("command", format!("cargo bench --bench delivery -- {}", arguments.join(" "))),
            ("commit", environment::commit()),
            ("machine", environment::machine()),
            ("cores", format!("server {server_cores:?}, client {client_core}")),
            ("subscribers", options.subscribers().to_string()),
            ("payload bytes", options.payload.to_string()),
        ];
        Ok(Self { conditions, rows: Vec::new() })
    }

    /// Adds one cell of the current round.
    pub(crate) fn add(&mut self, in_flight: usize, candidate: Candidate, sample: Sample) {
        let row = self.rows.iter_mut().find(|row| row.in_flight == in_flight && row.candidate == candidate);
        match row {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { in_flight, candidate, samples: vec![sample] }),
        }
    }

    /// Whether, in every cell, all subscribers stayed and exactly the expected deliveries arrived,
    /// each once and in order.
    pub(crate) fn is_complete(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.samples).all(Sample::is_exact)
    }

    /// Writes the report to stdout.
    pub(crate) fn print(&self, as_json: bool) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if as_json {
            return writeln!(stdout, "{:#}", self.json());
        }
        writeln!(stdout)?;
        for (name, value) in &self.conditions {
            writeln!(stdout, "{name}: {value}")?;
        }
        writeln!(
            stdout,
            "\nServer CPU per delivery in ns, median of the rounds; its ratio to the floor in the same round, median \
             and middle half;\nlatency from a publication until its last subscriber has it, in ms; `waited`: time that \
             the server was ready to run,\nwhile its core was in use.\n"
        )?;
        print_aligned(&mut stdout, &self.table())?;
        writeln!(stdout, "\nServer CPU per delivery in each round, in ns.\n")?;
        print_aligned(&mut stdout, &self.rounds())
    }

    /// For each round, the row's CPU per delivery ÷ the floor's. Both were measured within seconds
    /// of each other.
    fn ratios(&self, row: &Row) -> Vec<f64> {
        let floor =
            self.rows.iter().find(|other| other.in_flight == row.in_flight && other.candidate == Candidate::Floor);
        floor.map_or_else(Vec::new, |floor| {
            let rounds = row.samples.iter().zip(&floor.samples);
            rounds.map(|(sample, floor)| sample.cpu_ns() / floor.cpu_ns()).collect()
        })
    }

    fn table(&self) -> Vec<Vec<String>> {
        let head = [
            "in flight",
            "candidate",
            "ns/delivery",
            "÷ floor",
            "middle half",
            "deliveries/s",
            "received÷expected",
            "frames/read",
            "server CPU",
            "waited",
            "client CPU",
            "p50",
            "p99",
            "",
        ];
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let ratio = |share| quantile(self.ratios(row), share);
            lines.push(vec![
                row.in_flight.to_string(),
                row.candidate.to_string(),
                format!("{:.0}", row.median(Sample::cpu_ns)),
                format!("{:.3}", ratio(0.5)),
                format!("{:.3}–{:.3}", ratio(0.25), ratio(0.75)),
                format!("{:.0}", row.median(Sample::deliveries_per_second)),
                row.received_share(),
                format!("{:.2}", row.median(Sample::frames_per_read)),
                format!("{:.0} %", row.median(Sample::server_percent)),
                format!("{:.0} %", row.median(Sample::waited_percent)),
                format!("{:.0} %", row.median(Sample::client_percent)),
                format!("{:.2}", row.latency_ms(0.50)),
                format!("{:.2}", row.latency_ms(0.99)),
                row.notes(),
            ]);
        }
        lines
    }

    fn rounds(&self) -> Vec<Vec<String>> {
        let rounds = self.rows.iter().map(|row| row.samples.len()).max();
        let mut head = vec!["in flight".to_owned(), "candidate".to_owned()];
        head.extend((1..=rounds.unwrap_or_default()).map(|round| round.to_string()));
        let mut lines = vec![head];
        for row in &self.rows {
            let mut line = vec![row.in_flight.to_string(), row.candidate.to_string()];
            line.extend(row.samples.iter().map(|s| format!("{:.0}", s.cpu_ns())));
            lines.push(line);
        }
        lines
    }

    fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let ratios = self.ratios(row);
                let (received, expected) = row.deliveries();
                json!({
                    "in_flight": row.in_flight,
                    "candidate": row.candidate.to_string(),
                    "server_cpu_ns_per_delivery": row.median(Sample::cpu_ns),
                    "floor_ratio": quantile(ratios.clone(), 0.5),
                    "floor_ratios": ratios,
                    "received": received,
                    "expected": expected,
                    "latency_p50_ms": row.latency_ms(0.50),
                    "latency_p99_ms": row.latency_ms(0.99),
                    "client_saturated": row.is_client_saturated(),
                    "rounds": row.samples.iter().map(Sample::json).collect::<Vec<_>>(),
                })
            })
            .collect();
        let conditions: serde_json::Map<_, _> =
            self.conditions.iter().map(|(name, value)| (name.replace(' ', "_"), Value::from(value.as_str()))).collect();
        json!({"conditions": conditions, "rows": rows})
    }
}

/// The quantile of the values at `share`, interpolated between its two neighbours; NaN if there are
/// none.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let position = values.len().saturating_sub(1) as f64 * share;
    let neighbours = (values.get(position.floor() as usize), values.get(position.ceil() as usize));
    match neighbours {
        (Some(below), Some(above)) => below + (above - below) * position.fract(),
        _ => f64::NAN,
    }
}

/// Prints a table with right-aligned columns, because nearly all cells are numbers. Lines may
/// differ in length.
pub(crate) fn print_aligned(out: &mut impl Write, table: &[Vec<String>]) -> io::Result<()> {
    let columns = table.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = table.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).filter_map(width).collect();
    for line in table {
        let cells = line.iter().zip(&widths);
        let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:>width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}
