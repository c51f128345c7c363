//! `--idle`: the memory of an idle subscriber by the server's own `/debug/mem`, and the memory that
//! is left after all subscribers have disconnected.

use std::io;
use std::thread;
use std::time::Duration;

use hydrant::load::http;
use serde_json::Value;

use crate::Cell;
use crate::options::Options;
use crate::report::print_aligned;

/// Time between the last disconnect and the second reading of the memory statistics.
const DISCONNECTED: Duration = Duration::from_secs(10);

/// For each strategy in turn: connects all subscribers, reads the memory statistics, disconnects
/// all, and reads them again. All rounds of a strategy use the same server.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let head = ["strategy", "round", "connections", "heap B/connection", "RSS B/connection"];
    let moments = ["resident before", "with them", "10 s after", "RSS before", "with them", "10 s after"];
    let heap = ["allocated before", "10 s after"];
    let mut table = vec![head.into_iter().chain(moments).chain(heap).map(str::to_owned).collect::<Vec<_>>()];
    for candidate in options.candidates().into_iter().skip(1) {
        let mut cell = Cell::start(&candidate, 1, options)?;
        for round in 1..=options.rounds() {
            if round > 1 {
                cell.reconnect(options)?;
            }
            let connected = memory_stats(cell.server.address())?;
            cell.disconnect();
            thread::sleep(DISCONNECTED);
            let disconnected = memory_stats(cell.server.address())?;
            let mut row = vec![candidate.to_string(), round.to_string(), connected["connections"].to_string()];
            row.extend(["heap_bytes", "rss_bytes"].map(|name| connected["per_connection"][name].to_string()));
            for name in ["resident_bytes", "rss_bytes"] {
                row.extend([&connected["baseline"], &connected, &disconnected].map(|stats| mebibytes(&stats[name])));
            }
            row.extend([&connected["baseline"], &disconnected].map(|stats| mebibytes(&stats["allocated_bytes"])));
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
