//! Admission: every rejection has the right status, is counted, and ends with its reason.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::num::{NonZeroU32, NonZeroUsize};

use hydrant::admission::Rejection;
use hydrant::origin::AllowedOrigins;
use hydrant::settings::Config;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{
    Answer, Binary, Client, HANDSHAKE, TestServer, begin, config, publish, read_answer, request, two_ports, until,
};

fn handshake(server: SocketAddr, more: &[&str]) -> Answer {
    request(server, "GET", "/ws", &[&HANDSHAKE[..], more].concat(), b"")
}

fn is_rejected(server: &TestServer, answer: &Answer, rejection: Rejection, times: u64) {
    assert_eq!((answer.status, answer.body.trim()), (rejection.status(), rejection.sentence()));
    assert_eq!(server.engine.rejections.get(rejection), times);
    let metrics = request(server.address, "GET", "/metrics", &[], b"").body;
    let line = format!("hydrant_rejected_total{{reason=\"{}\"}} {times}", rejection.label());
    assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
}

#[test]
fn a_full_server_rejects_websockets_and_answers_everything_else() {
    let server = TestServer::start(Config { connections_max: 3, ..config() });
    let mut clients: Vec<_> = (0..3).map(|_| server.client("/ws")).collect();
    let answer = handshake(server.address, &[]);
    assert_eq!(answer.header("retry-after"), Some("1"));
    is_rejected(&server, &answer, Rejection::Connections, 1);
    assert_eq!(server.publish("all", b"x").matched, 3);
    drop(clients.pop());
    server.wait_for_connections(2);
    clients.push(server.client("/ws"));
    is_rejected(&server, &handshake(server.address, &[]), Rejection::Connections, 2);
}

#[test]
fn a_race_for_the_last_connections_admits_no_more_than_allowed() {
    let server = TestServer::start(Config { connections_max: 20, ..config() });
    let address = server.address;
    let racers: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut streams: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
                let head = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
                streams.iter_mut().for_each(|stream| std::io::Write::write_all(stream, head.as_bytes()).unwrap());
                streams.retain_mut(|stream| read_answer(stream).status == 101);
                streams
            })
        })
        .collect();
    let streams: Vec<_> = racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect();
    assert_eq!((streams.len(), server.engine.rejections.get(Rejection::Connections)), (20, 60));
    drop(streams);
    server.wait_for_connections(0);
    assert_eq!(server.engine.registry.reserved(), 0);
}

#[test]
fn connections_above_the_accept_rate_wait_and_are_served() {
    // On two ports: neither may make the accept thread forget the sockets that wait at the other.
    let server = TestServer::start(Config { accept_rate: NonZeroU32::new(50), ..two_ports() });
    let [public, admin] = server.addresses[..] else { panic!("{:?}", server.addresses) };
    let idle: Vec<_> = (0..20).map(|_| [public, admin].map(|address| TcpStream::connect(address).unwrap())).collect();
    let clients: Vec<_> = (0..15).map(|_| server.client("/ws")).collect();
    assert_eq!(publish(admin, "all", b"x").matched, 15);
    assert_eq!(request(admin, "GET", "/healthz", &[], b"").status, 200);
    drop((clients, idle));
}

/// A connection from another loopback address.
fn connect_from(server: SocketAddr, last: u8) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(Ipv4Addr::new(127, 0, 0, last)), 0).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    socket.into()
}

#[test]
fn a_limit_per_address_leaves_other_addresses_alone() {
    let server = TestServer::start(Config { per_address_max: NonZeroUsize::new(2), ..config() });
    let head = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
    let ask = |last| {
        let mut stream = connect_from(server.address, last);
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        (read_answer(&mut stream), stream)
    };
    let first: Vec<_> = (0..2).map(|_| ask(9)).collect();
    assert!(first.iter().all(|(answer, _)| answer.status == 101));
    let (answer, _) = ask(9);
    is_rejected(&server, &answer, Rejection::Address, 1);
    let other = ask(10);
    assert_eq!(other.0.status, 101);
    drop(first);
    until(|| (ask(9).0.status == 101).then_some(()), || "the permits are not given back".to_owned());
}

/// The slow answer of this test is a profile.
#[cfg(feature = "profiling")]
#[test]
fn a_client_that_waits_for_its_answer_is_not_disconnected() {
    let server = TestServer::start(Config { handshakes_max: 4, shards: 1.try_into().unwrap(), ..config() });
    let connect = |first: &[u8]| begin(server.address, first);
    let mut waiting = connect(b"GET /debug/pprof/profile.svg?seconds=1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // The server records one profile at a time: it rejects the next once the first has begun.
    let is_next_rejected = || request(server.address, "GET", "/debug/pprof/profile?seconds=1", &[], b"").status != 200;
    until(|| is_next_rejected().then_some(()), || "it has not begun".to_owned());
    let halves = [(); 7].map(|()| connect(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"));
    server.stats_until(|_| server.engine.rejections.get(Rejection::Handshakes) >= 4);
    assert!([200, 409].contains(&read_answer(&mut waiting).status), "answered, in whichever order the two began");
    drop(halves);
}

#[test]
fn unfinished_requests_are_bounded_and_keep_no_client_out() {
    let server = TestServer::start(Config { handshakes_max: 2, shards: 1.try_into().unwrap(), ..config() });
    let connect = |first: &[u8]| begin(server.address, first);
    let half = b"GET /ws HTTP/1.1\r\nHost: localhost\r\n";
    let rejections = || server.engine.rejections.get(Rejection::Handshakes);
    let mut oldest = connect(half);
    let _second = connect(half);
    let _third = connect(half);
    // The oldest was closed; without an answer, and by a reset, if the server had not read its
    // bytes.
    let mut answer = String::new();
    let end = std::io::Read::read_to_string(&mut oldest, &mut answer).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{end:?}");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(rejections(), 1);
    // A handshake in one piece does not count as unfinished. Connections that are idle after a
    // finished request are closed last.
    let _client = server.client("/ws");
    let mut publishers = [(); 2].map(|()| {
        let mut stream = connect(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(read_answer(&mut stream).status, 202);
        stream
    });
    assert_eq!(rejections(), 3);
    let _idle = connect(half);
    let mut newer = connect(half);
    assert_eq!(std::io::Read::read(&mut publishers[0], &mut [0]).unwrap(), 0, "idle for longest");
    std::io::Write::write_all(&mut publishers[1], b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut publishers[1]).status, 200);
    std::io::Write::write_all(&mut newer, b"\r\n").unwrap();
    assert_eq!(read_answer(&mut newer).status, 426, "the newest connection is served");
    assert_eq!(rejections(), 5);
}

#[test]
fn pages_of_other_origins_may_not_connect() {
    let allowed = vec!["https://friend.example".to_owned()];
    let server = TestServer::start(Config { allow_origin: AllowedOrigins::parse(&allowed).unwrap(), ..config() });
    let stranger = handshake(server.address, &["Origin: https://stranger.example"]);
    assert_eq!((stranger.status, server.engine.rejections.get(Rejection::Origin)), (403, 1));
    assert!(stranger.body.contains("--allow-origin https://stranger.example"), "{}", stranger.body);
    for origin in ["Origin: https://friend.example", "Origin: http://localhost"] {
        assert_eq!(handshake(server.address, &[origin]).status, 101, "{origin}");
    }
    let echo = request(server.address, "GET", "/echo", &[&HANDSHAKE[..], &["Origin: null"]].concat(), b"");
    assert_eq!((echo.status, server.engine.rejections.get(Rejection::Origin)), (403, 2));
}

#[cfg(feature = "jemalloc")]
#[test]
fn a_heap_at_its_bound_rejects_websockets_until_it_is_smaller() {
    let mut binary =
        Binary::start(&["--max-memory", "3MiB", "--shards", "1", "--slow", "drop-newest", "--outbox-bytes", "4MiB"]);
    let _quick = Client::connect(binary.address, "/ws/other");
    let slow = Client::connect_narrow(binary.address, "/ws/room");
    // Its backlog is on the heap: the messages are too short for shared pages.
    for _ in 0..400 {
        publish(binary.address, "room", &[b'x'; 10_000]);
    }
    let status = || handshake(binary.address, &[]).status;
    until(|| (status() == 503).then_some(()), || "no client is rejected".to_owned());
    assert_eq!(request(binary.address, "GET", "/healthz", &[], b"").status, 200);
    drop(slow);
    until(|| (status() == 101).then_some(()), || "every client is still rejected".to_owned());
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn some_open_files_are_kept_for_http() {
    let binary = Binary::start_with_files(300, &["--shards", "1"]);
    let clients: Vec<_> = (0..44).map(|_| Client::connect(binary.address, "/ws")).collect();
    assert_eq!(handshake(binary.address, &[]).status, 503);
    assert_eq!(request(binary.address, "GET", "/debug/mem", &[], b"").status, 200);
    drop(clients);
}
