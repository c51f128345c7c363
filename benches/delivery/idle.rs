//! What an idle subscriber costs in memory, by the server's own memory_stats, and what is left when all have gone.

use std::io;
use std::thread;
use std::time::Duration;

use hydrant::load::http;
use serde_json::Value;

use crate::Cell;
use crate::options::Options;
use crate::report::print_aligned;

/// How long everybody has been gone when the second memory_stats is taken.
const GONE: Duration = Duration::from_secs(10);

/// Connects everybody to each strategy in turn, takes the memory_stats, lets everybody go, and takes it again; in every round to
/// the same server.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let head = ["strategy", "round", "connections", "heap B/connection", "RSS B/connection"];
    let moments = ["resident before", "with them", "10 s after", "RSS before", "with them", "10 s after"];
    let heap = ["allocated before", "10 s after"];
    let mut table = vec![head.into_iter().chain(moments).chain(heap).map(str::to_owned).collect::<Vec<_>>()];
    for candidate in options.candidates().into_iter().skip(1) {
        let mut cell = Cell::start(&candidate, 1, options)?;
        for round in 1..=options.rounds() {
            if round > 1 {
                cell.gather(options)?;
            }
            let here = memory_stats(cell.server.address())?;
            cell.disperse();
            thread::sleep(GONE);
            let gone = memory_stats(cell.server.address())?;
            let mut row = vec![candidate.to_string(), round.to_string(), here["connections"].to_string()];
            row.extend(["heap_bytes", "rss_bytes"].map(|name| here["per_connection"][name].to_string()));
            for name in ["resident_bytes", "rss_bytes"] {
                row.extend([&here["baseline"], &here, &gone].map(|memory_stats| mebibytes(&memory_stats[name])));
            }
            row.extend([&here["baseline"], &gone].map(|memory_stats| mebibytes(&memory_stats["allocated_bytes"])));
            table.push(row);
        }
    }
    print_aligned(&mut io::stdout().lock(), &table)
}

fn mebibytes(value: &Value) -> String {
    value.as_f64().map_or("–".to_owned(), |bytes| format!("{:.2} MiB", bytes / 1048576.0))
}

fn memory_stats(server: std::net::SocketAddr) -> io::Result<Value> {
    Ok(serde_json::from_str(&http::get(server, "/debug/mem")?)?)
}
