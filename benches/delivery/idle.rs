//! What an idle subscriber costs in memory, by the server's own ledger, and what is left when all have gone.

use std::io;
use std::thread;
use std::time::Duration;

use hydrant::load::http;
use serde_json::Value;

use crate::Cell;
use crate::options::Options;
use crate::report::print_aligned;

/// How long everybody has been gone when the second ledger is taken.
const GONE: Duration = Duration::from_secs(10);

/// Connects everybody to each strategy in turn, takes the ledger, lets everybody go, and takes it again.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let head = ["strategy", "connections", "heap B/connection", "RSS B/connection"];
    let moments = ["RSS before", "RSS with them", "RSS 10 s after", "allocated before", "allocated 10 s after"];
    let mut table = vec![head.into_iter().chain(moments).map(str::to_owned).collect::<Vec<_>>()];
    for candidate in options.candidates().into_iter().skip(1) {
        let Cell { server, client, .. } = Cell::start(&candidate, 1, options)?;
        let here = ledger(server.address())?;
        drop(client);
        thread::sleep(GONE);
        let gone = ledger(server.address())?;
        let mib =
            |value: &Value| value.as_f64().map_or("–".to_owned(), |bytes| format!("{:.2} MiB", bytes / 1048576.0));
        let each = &here["per_connection"];
        table.push(vec![
            candidate.to_string(),
            here["connections"].to_string(),
            each["heap_bytes"].to_string(),
            each["rss_bytes"].to_string(),
            mib(&here["baseline"]["rss_bytes"]),
            mib(&here["rss_bytes"]),
            mib(&gone["rss_bytes"]),
            mib(&here["baseline"]["allocated_bytes"]),
            mib(&gone["allocated_bytes"]),
        ]);
    }
    print_aligned(&mut io::stdout().lock(), &table)
}

fn ledger(server: std::net::SocketAddr) -> io::Result<Value> {
    Ok(serde_json::from_str(&http::get(server, "/debug/mem")?)?)
}
