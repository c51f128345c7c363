//! `GET /debug/mem`: every field of the contract, under either allocator.

use serde_json::Value;

use crate::support::{Binary, Client, TestServer, config, request, until};

fn memory_stats(address: std::net::SocketAddr) -> Value {
    let answer = request(address, "GET", "/debug/mem", &[], b"");
    assert_eq!(answer.status, 200);
    serde_json::from_str(&answer.body).unwrap()
}

/// The names of the fields, nested ones with a dot, in the order of their text.
fn fields(value: &Value, prefix: &str, names: &mut Vec<String>) {
    for (name, value) in value.as_object().unwrap() {
        match value {
            Value::Object(_) => fields(value, &format!("{name}."), names),
            _ => names.push(format!("{prefix}{name}")),
        }
    }
}

#[test]
fn the_fields_are_those_of_the_contract() {
    let server = TestServer::start(config());
    let mut names = Vec::new();
    fields(&memory_stats(server.address), "", &mut names);
    names.sort();
    let mut expected = [
        "allocator",
        "connections",
        "allocated_bytes",
        "active_bytes",
        "metadata_bytes",
        "resident_bytes",
        "mapped_bytes",
        "retained_bytes",
        "rss_bytes",
        "baseline.allocated_bytes",
        "baseline.resident_bytes",
        "baseline.rss_bytes",
        "peak.connections",
        "peak.allocated_bytes",
        "peak.rss_bytes",
        "outbox_bytes",
        "kernel_socket_bytes",
        "per_connection.heap_bytes",
        "per_connection.rss_bytes",
        "per_connection.kernel_bytes",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
}

#[test]
fn figures_are_there_or_null() {
    let binary = Binary::start(&[]);
    let empty = memory_stats(binary.address);
    let is_number = |value: &Value| value.as_u64().is_some_and(|value| value > 0);
    let jemalloc = cfg!(feature = "jemalloc");
    assert_eq!(empty["allocator"], if jemalloc { "jemalloc" } else { "mimalloc" });
    for field in ["allocated_bytes", "active_bytes", "metadata_bytes", "resident_bytes", "retained_bytes"] {
        if jemalloc {
            assert!(empty[field].is_u64(), "{field}: {empty}");
        } else {
            assert!(empty[field].is_null(), "{field}: {empty}");
        }
    }
    assert!(is_number(&empty["mapped_bytes"]) && is_number(&empty["rss_bytes"]), "{empty}");
    assert_eq!(empty["baseline"]["allocated_bytes"].is_u64(), jemalloc);
    assert_eq!(empty["baseline"]["resident_bytes"].is_u64(), jemalloc);
    assert!(is_number(&empty["baseline"]["rss_bytes"]) && is_number(&empty["peak"]["rss_bytes"]));
    assert_eq!(empty["peak"]["allocated_bytes"].is_u64(), jemalloc);
    for field in ["heap_bytes", "rss_bytes", "kernel_bytes"] {
        assert!(empty["per_connection"][field].is_null(), "without connections: {empty}");
    }

    let clients: Vec<_> = (0..50).map(|_| Client::connect(binary.address, "/ws")).collect();
    let full = memory_stats(binary.address);
    assert_eq!((&full["connections"], &full["peak"]["connections"]), (&50.into(), &50.into()));
    assert_eq!(full["per_connection"]["heap_bytes"].is_i64(), jemalloc, "{full}");
    assert!(full["per_connection"]["rss_bytes"].is_i64() && full["per_connection"]["kernel_bytes"].is_i64());
    assert_eq!(full["outbox_bytes"], 0);
    drop(clients);
    let left = until(
        || Some(memory_stats(binary.address)).filter(|memory_stats| memory_stats["connections"] == 0),
        String::new,
    );
    assert_eq!(left["peak"]["connections"], 50);
    let purged = request(binary.address, "POST", "/debug/mem/purge", &[], b"");
    assert_eq!(purged.status, 200);
    let mut names = Vec::new();
    fields(&serde_json::from_str(&purged.body).unwrap(), "", &mut names);
    assert_eq!(names.len(), 20);
}

#[cfg(feature = "jemalloc")]
#[test]
fn an_idle_connection_costs_at_most_560_bytes_of_heap() {
    let binary = Binary::start(&[]);
    let clients: Vec<_> = (0..3000).map(|_| Client::connect(binary.address, "/ws")).collect();
    // A handshake's buffers are freed with its task, just after the 101.
    until(
        || {
            memory_stats(binary.address)["per_connection"]["heap_bytes"]
                .as_i64()
                .filter(|bytes| (1..=560).contains(bytes))
        },
        || memory_stats(binary.address).to_string(),
    );
    drop(clients);
}

#[cfg(feature = "jemalloc")]
#[test]
fn channels_without_subscribers_free_their_memory() {
    let binary = Binary::start(&["--shards", "1"]);
    let _staying = Client::connect(binary.address, "/ws");
    let allocated = || memory_stats(binary.address)["allocated_bytes"].as_i64().unwrap();
    let mut client = Client::connect(binary.address, "/ws/first");
    let before = allocated();
    for round in 0..200 {
        for (event, number) in
            (0..60).map(|number| ("SUBSCRIBE", number)).chain((0..60).map(|number| ("UNSUBSCRIBE", number)))
        {
            client.text(&format!(r#"{{"event":"{event}","channel":"room-{round}-{number}"}}"#));
            assert!(client.receive_text().contains(&format!("{event}D")), "it is acknowledged");
        }
    }
    let rooms: Vec<_> =
        (0..2000).map(|room| Client::connect(binary.address, &format!("/ws/of-its-own-{room}"))).collect();
    assert!(allocated() - before > 500_000, "rooms and connections take something");
    drop(rooms);
    until(|| (allocated() - before < 200_000).then_some(()), || format!("{} more than before", allocated() - before));
}
