//! `GET /metrics`: the counters of requests and publications.

use crate::support::{TestServer, begin, config, read_answer, request, until};

#[test]
fn errors_and_publications_are_counted() {
    let server = TestServer::start(config());
    let long_head = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    for (first, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /publish HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("POST /publish/a%20b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", 400),
        ("POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n", 413),
        ("not HTTP\r\n\r\n", 400),
        (&long_head, 431),
    ] {
        assert_eq!(read_answer(&mut begin(server.address, first.as_bytes())).status, status, "{first:.80}");
    }
    server.publish("a", b"x");
    let mut client = server.client("/ws/a");
    client.text(r#"{"event":"SAY","message":"x"}"#);
    client.receive();
    let metrics = || request(server.address, "GET", "/metrics", &[], b"").body;
    // An answer is counted when its connection has ended, if hyper gave it.
    for line in [
        "# TYPE hydrant_http_errors_total counter",
        "hydrant_http_errors_total{status=\"400\"} 2",
        "hydrant_http_errors_total{status=\"404\"} 1",
        "hydrant_http_errors_total{status=\"405\"} 1",
        "hydrant_http_errors_total{status=\"408\"} 0",
        "hydrant_http_errors_total{status=\"413\"} 1",
        "hydrant_http_errors_total{status=\"431\"} 1",
        "hydrant_http_errors_total{status=\"other\"} 0",
        "# TYPE hydrant_publications_total counter",
        "hydrant_publications_total{result=\"accepted\"} 2",
        "hydrant_publications_total{result=\"overloaded\"} 0",
    ] {
        until(|| metrics().lines().any(|found| found == line).then_some(()), || format!("{line}\n{}", metrics()));
    }
}
