//! The HTTP front with proxies, pages and publishers: their addresses, origins and kept
//! connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hydrant::admission::Rejection;
use hydrant::origin::AllowedOrigins;
use hydrant::settings::Config;

use crate::support::{
    Answer, Binary, Client, HANDSHAKE, PATIENCE, TestServer, begin, config, narrow_stream, read_answer, read_answer_to,
    request, two_ports, until,
};

fn handshake(more: &[&str]) -> String {
    let headers = [&HANDSHAKE[..], more].concat().join("\r\n");
    format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n")
}

/// Trusts proxies on this machine, and lets in one connection of each address.
fn one_each_behind_a_proxy() -> Config {
    let trusted_proxy = vec!["127.0.0.1".parse().unwrap()];
    Config { trusted_proxy, per_address_max: NonZeroUsize::new(1), ..config() }
}

/// The answer to a handshake with these headers, and its connection.
fn shake_hands(server: &TestServer, headers: &[&str]) -> (Answer, TcpStream) {
    let mut stream = begin(server.address, handshake(headers).as_bytes());
    (read_answer(&mut stream), stream)
}

#[test]
fn a_trusted_proxy_names_the_client_whose_limit_counts() {
    let server = TestServer::start(one_each_behind_a_proxy());
    let ask = |address: &str| shake_hands(&server, &[&format!("X-Forwarded-For: 203.0.113.9, {address}")]);
    let (first, second, other) = (ask("192.0.2.1"), ask("192.0.2.1"), ask("192.0.2.2"));
    assert_eq!((first.0.status, second.0.status, other.0.status), (101, 429, 101));
    assert_eq!(server.engine.rejections.get(Rejection::Address), 1);
    // Not trusted, the header counts for nothing: both come from this machine.
    let server = TestServer::start(Config { trusted_proxy: Vec::new(), ..one_each_behind_a_proxy() });
    let header = |address| format!("X-Forwarded-For: {address}");
    let both = ["192.0.2.1", "192.0.2.2"].map(|address| shake_hands(&server, &[&header(address)]));
    assert_eq!(both.each_ref().map(|(answer, _)| answer.status), [101, 429]);
}

#[test]
fn a_client_cannot_override_the_headers_of_its_proxy() {
    let server = TestServer::start(one_each_behind_a_proxy());
    let ask = |headers: &[&str]| shake_hands(&server, headers);
    let by_the_proxy = "X-Forwarded-For: 192.0.2.1";
    let (first, _stream) = ask(&[by_the_proxy]);
    assert_eq!(first.status, 101);
    for invented in ["for=192.0.2.9", "for=_hidden", "for=\"[2001:db8::1]\", for=192.0.2.9;proto=https"] {
        let (answer, _) = ask(&[&format!("Forwarded: {invented}"), by_the_proxy]);
        assert_eq!(answer.status, 400, "{invented}");
        assert!(answer.body.contains("let the proxy set one of them and remove the other"), "{}", answer.body);
    }
    assert_eq!(ask(&["Forwarded: for=192.0.2.1", by_the_proxy]).0.status, 429);
    assert_eq!(ask(&["Forwarded: proto=https", by_the_proxy]).0.status, 429);
    let hosts = ["Forwarded: for=192.0.2.2;host=a.example", "X-Forwarded-Host: b.example"];
    assert_eq!(ask(&hosts).0.status, 400);
    // Nobody has to agree with a header of a client that comes directly.
    let server = TestServer::start(config());
    let untrusted = handshake(&["Forwarded: for=192.0.2.9", by_the_proxy]);
    assert_eq!(read_answer(&mut begin(server.address, untrusted.as_bytes())).status, 101);
}

#[test]
fn websockets_of_a_trusted_proxy_that_names_no_client_share_the_limit_of_its_address() {
    let server = TestServer::start(one_each_behind_a_proxy());
    let ask = |headers: &[&str]| shake_hands(&server, headers);
    let (nameless, unknown) = (ask(&[]), ask(&["X-Forwarded-For: unknown"]));
    let named = ask(&["X-Forwarded-For: 192.0.2.1"]);
    assert_eq!((nameless.0.status, unknown.0.status, named.0.status), (101, 429, 101));
    let checks = [(); 3].map(|()| begin(server.address, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert_eq!(checks.map(|mut check| read_answer(&mut check).status), [200; 3], "its health checks do not count");
    drop(nameless);
    server.wait_for_connections(1);
    until(|| (ask(&[]).0.status == 101).then_some(()), || "the permit is not given back".to_owned());
}

#[test]
fn the_proxy_protocol_names_the_client() {
    let trusting = Config {
        trusted_proxy: vec!["127.0.0.0/8".parse().unwrap()],
        proxy_protocol: true,
        per_address_max: NonZeroUsize::new(1),
        ..config()
    };
    let server = TestServer::start(trusting);
    let ask = |header: &str| {
        let mut stream = begin(server.address, format!("{header}{}", handshake(&[])).as_bytes());
        (read_answer(&mut stream).status, stream)
    };
    let first = ask("PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\n");
    let second = ask("PROXY TCP4 192.0.2.1 192.0.2.9 3 2\r\n");
    let other = ask("PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
    assert_eq!((first.0, second.0, other.0), (101, 429, 101));
    // A proxy connects before its client has sent anything: the answer comes behind the request.
    let mut early = begin(server.address, b"PROXY TCP4 192.0.2.1 192.0.2.9 4 2\r\n");
    let healthz = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for _ in 0..20 {
        let header = &b"PROXY TCP4 192.0.2.7 192.0.2.9 5 2\r\n"[..];
        assert_eq!(read_answer(&mut begin(server.address, &[header, healthz].concat())).status, 200);
    }
    early.set_nonblocking(true).unwrap();
    assert_eq!(early.read(&mut [0]).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    early.set_nonblocking(false).unwrap();
    early.write_all(handshake(&[]).as_bytes()).unwrap();
    assert_eq!(read_answer(&mut early).status, 429);
    let mut without = begin(server.address, handshake(&[]).as_bytes());
    assert_eq!(without.read(&mut [0; 64]).unwrap_or_default(), 0, "closed without an answer");
}

#[test]
fn a_proxy_at_a_unix_socket_is_trusted_as_unix() {
    let path = std::env::temp_dir().join(format!("hydrant-front-{}.sock", std::process::id()));
    let start = |trusted: &str, proxy_protocol| {
        let mut listen = config().listen;
        listen.push(format!("unix:{}", path.display()).parse().unwrap());
        let trusted_proxy = vec![trusted.parse().unwrap()];
        let per_address_max = NonZeroUsize::new(1);
        TestServer::start(Config { listen, trusted_proxy, proxy_protocol, per_address_max, ..config() })
    };
    let ask = |header: &str, headers: &[&str]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{header}{}", handshake(headers)).as_bytes()).unwrap();
        (read_answer(&mut stream).status, stream)
    };
    let page = ["Origin: https://a.example", "X-Forwarded-Host: a.example"];
    for (trusted, right, of_page) in [("unix", [101, 429, 101], 101), ("127.0.0.1", [101; 3], 403)] {
        let _server = start(trusted, false);
        let streams = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|it| ask("", &[&format!("X-Forwarded-For: {it}")]));
        assert_eq!(streams.each_ref().map(|(status, _)| *status), right, "{trusted}");
        assert_eq!(ask("", &page).0, of_page, "{trusted}");
    }
    let _server = start("unix", true);
    let streams =
        ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|it| ask(&format!("PROXY TCP4 {it} 192.0.2.9 1 2\r\n"), &[]));
    assert_eq!(streams.each_ref().map(|(status, _)| *status), [101, 429, 101]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn behind_the_proxy_protocol_headers_of_another_trusted_proxy_count() {
    let server = TestServer::start(Config {
        trusted_proxy: ["127.0.0.1", "198.51.100.0/24"].map(|network| network.parse().unwrap()).into(),
        proxy_protocol: true,
        per_address_max: NonZeroUsize::new(1),
        ..config()
    });
    let ask = |from: &str, headers: &[&str]| {
        let head = format!("PROXY TCP4 {from} 192.0.2.9 1 2\r\n{}", handshake(headers));
        let mut stream = begin(server.address, head.as_bytes());
        (read_answer(&mut stream).status, stream)
    };
    let cdn = |client: &str| ask("198.51.100.7", &[&format!("X-Forwarded-For: {client}")]);
    let (first, second, other) = (cdn("192.0.2.1"), cdn("192.0.2.1"), cdn("192.0.2.2"));
    assert_eq!((first.0, second.0, other.0), (101, 429, 101));
    let direct = ["192.0.2.3", "192.0.2.4"].map(|spoofed| ask("203.0.113.5", &[&format!("Forwarded: for={spoofed}")]));
    assert_eq!(direct.each_ref().map(|(status, _)| *status), [101, 429], "a client may not name its address");
    let page = |from: &str| ask(from, &["Origin: https://a.example", "X-Forwarded-Host: a.example"]).0;
    assert_eq!((page("198.51.100.8"), page("203.0.113.6")), (101, 403));
}

#[test]
fn a_port_for_administration_alone_expects_no_proxy_header() {
    let trusted_proxy = vec!["127.0.0.0/8".parse().unwrap()];
    let server = TestServer::start(Config { trusted_proxy, proxy_protocol: true, ..two_ports() });
    let admin = server.addresses[1];
    assert_eq!(request(admin, "POST", "/publish", &[], b"x").status, 202);
    assert_eq!(request(admin, "GET", "/metrics", &[], b"").status, 200);
    // A header is no request there, so it cannot make its client local.
    let head = "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nPOST /publish HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(read_answer(&mut begin(admin, head.as_bytes())).status, 400);
    let mut without = begin(server.address, handshake(&[]).as_bytes());
    assert_eq!(without.read(&mut [0; 64]).unwrap_or_default(), 0, "clients' ports still expect it");
}

#[test]
fn connections_that_wait_for_a_proxy_header_are_bounded_and_end() {
    let trusting = |most| Config {
        trusted_proxy: vec!["127.0.0.0/8".parse().unwrap()],
        proxy_protocol: true,
        handshakes_max: most,
        ..config()
    };
    let mut server = TestServer::start(trusting(2));
    let mut waiting = [(); 3].map(|()| begin(server.address, b"PROXY TCP4 192.0."));
    assert_eq!(waiting[0].read(&mut [0; 64]).unwrap_or_default(), 0, "closed to make room");
    assert_eq!(server.engine.rejections.get(Rejection::Handshakes), 1);
    let rest = format!("2.1 192.0.2.9 1 2\r\n{}", handshake(&[]));
    waiting[1].write_all(rest.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut waiting[1]).status, 101, "the rest has come");
    server.stop();
    assert_eq!(waiting[2].read(&mut [0; 64]).unwrap_or_default(), 0, "the drain ends it");
    let brief = Config { handshake_timeout: Duration::from_millis(20), ..trusting(2) };
    let server = TestServer::start(brief);
    let mut slow = begin(server.address, b"PROXY");
    assert_eq!(slow.read(&mut [0; 64]).unwrap_or_default(), 0, "closed after --handshake-timeout");
}

#[test]
fn a_page_of_an_allowed_origin_publishes_and_reads_the_answer() {
    let allow_origin = AllowedOrigins::parse(&["https://app.example"]).unwrap();
    let server = TestServer::start(Config { allow_origin, ..two_ports() });
    let admin = server.addresses[1];
    let page = "Origin: https://app.example";
    let preflight = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type"];
    let granted = request(admin, "OPTIONS", "/publish/room", &[&[page], &preflight[..]].concat(), b"");
    assert_eq!((granted.status, granted.header("access-control-allow-origin")), (204, Some("https://app.example")));
    assert_eq!(granted.header("access-control-allow-methods"), Some("POST"));
    let published = request(admin, "POST", "/publish/room", &[page, "Content-Type: application/json"], b"{}");
    assert_eq!((published.status, published.header("access-control-allow-origin")), (202, Some("https://app.example")));
    let mut client = server.client("/ws/room");
    let stranger = "Origin: https://evil.example";
    let rejected = request(admin, "OPTIONS", "/publish/room", &[&[stranger], &preflight[..]].concat(), b"");
    assert_eq!((rejected.status, rejected.header("access-control-allow-origin")), (403, None));
    assert_eq!(request(admin, "POST", "/publish/room", &[stranger], b"no").status, 403);
    assert_eq!(request(admin, "POST", "/publish/room", &[page], b"yes").status, 202);
    assert_eq!(client.receive_text(), "yes", "nothing of the rejected request was delivered");
}

#[test]
fn every_origin_does_not_open_publishing_without_a_token() {
    let allow_origin = AllowedOrigins::parse(&["*"]).unwrap();
    let server = TestServer::start(Config { allow_origin: allow_origin.clone(), ..two_ports() });
    let page = ["Origin: https://evil.example"];
    assert_eq!(request(server.addresses[1], "POST", "/publish", &page, b"x").status, 403);
    assert_eq!(request(server.address, "GET", "/ws", &[&HANDSHAKE[..], &page].concat(), b"").status, 101);
    let token = Some("secret".to_owned().into());
    let server = TestServer::start(Config { allow_origin, token, ..two_ports() });
    let authorised = [&page[..], &["Authorization: Bearer secret"]].concat();
    assert_eq!(request(server.addresses[1], "POST", "/publish", &authorised, b"x").status, 202);
}

#[test]
fn an_open_server_lets_pages_publish_that_may_connect() {
    let page = ["Origin: https://evil.example"];
    let status = |allowed: &[&str]| {
        let server = TestServer::start(Config { allow_origin: AllowedOrigins::parse(allowed).unwrap(), ..config() });
        request(server.address, "POST", "/publish", &page, b"x").status
    };
    assert_eq!([&[][..], &["https://evil.example"], &["*"]].map(status), [403, 202, 202]);
}

#[test]
fn pages_of_this_machine_subscribe_and_do_not_publish() {
    let server = TestServer::start(two_ports());
    let page = ["Origin: http://localhost:5173"];
    assert_eq!(request(server.address, "GET", "/ws", &[&HANDSHAKE[..], &page].concat(), b"").status, 101);
    assert_eq!(request(server.addresses[1], "POST", "/publish", &page, b"x").status, 403);
}

#[test]
fn a_half_closed_request_gets_its_answer() {
    let server = TestServer::start(config());
    for request in [
        "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi",
        "POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /debug/mem HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut stream = begin(server.address, request.as_bytes());
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = read_answer(&mut stream);
        assert!(matches!(answer.status, 200 | 202), "{request}: {answer:?}");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "and then the end");
    }
}

#[test]
fn a_publication_goes_to_every_channel_that_it_names() {
    let server = TestServer::start(config());
    let mut clients = ["a", "b"].map(|room| server.client(&format!("/ws/{room}")));
    let one = request(server.address, "POST", "/publish?channel=a", &[], b"1");
    assert_eq!((one.status, &*one.body), (202, "{\"channel\":\"a\",\"offset\":1,\"matched\":1}\n"));
    let two = request(server.address, "POST", "/publish/a?channel=b", &[], b"2");
    let right = r#"[{"channel":"a","offset":2,"matched":1},{"channel":"b","offset":1,"matched":1}]"#;
    assert_eq!((two.status, two.body.trim_end()), (202, right));
    assert_eq!([clients[0].receive_text(), clients[0].receive_text()], ["1", "2"]);
    assert_eq!(clients[1].receive_text(), "2");
}

#[test]
fn a_response_that_leaves_a_body_unread_ends_the_connection() {
    let server = TestServer::start(Config { message_bytes_max: 1000, ..config() });
    for (path, status) in [("/publish", 413), ("/nothing", 404), ("/healthz", 405)] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nabc");
        let answer = read_answer(&mut begin(server.address, head.as_bytes()));
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{path}");
    }
    let kept = request_kept(&server, "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!((kept.0, kept.1.as_deref()), (202, None));
}

#[test]
fn a_rejection_keeps_the_connection_if_the_body_was_read_whole() {
    let server = TestServer::start(Config { token: Some("secret".into()), message_bytes_max: 100_000, ..config() });
    let length = |bytes: usize| format!("Content-Length: {bytes}");
    let chunked =
        |data: &str| ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{data}\r\n0\r\n\r\n", data.len()));
    let long = "x".repeat(17_000);
    // The first is answered without hyper, the others by hyper.
    for (line, (header, body), right) in [
        ("POST /publish", (length(2), "hi".to_owned()), (401, None)),
        ("POST /publish", chunked("hi"), (401, None)),
        (
            "POST /publish",
            ("X: x\r\nExpect: 100-continue\r\nContent-Length: 2".to_owned(), "hi".to_owned()),
            (401, Some("close")),
        ),
        ("POST /publish", (length(99_999), long.clone()), (401, Some("close"))),
        ("POST /publish", chunked(&long), (401, Some("close"))),
        ("POST /debug/mem/purge", (length(2), "hi".to_owned()), (401, None)),
        ("POST /nothing", (length(2), "hi".to_owned()), (404, None)),
        ("POST /nothing", chunked("hi"), (404, None)),
        ("POST /healthz", (length(2), "hi".to_owned()), (405, None)),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n{body}");
        let mut stream = begin(server.address, request.as_bytes());
        let answer = read_answer(&mut stream);
        assert_eq!((answer.status, answer.header("connection")), right, "{line} {header}");
        match right.1 {
            None => {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
                assert_eq!(read_answer(&mut stream).status, 200, "{line} {header}");
            }
            Some(_) => assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "{line} {header}"),
        }
    }
}

/// The status and the header `Connection` of the answer on a connection that may be kept.
fn request_kept(server: &TestServer, head: &str) -> (u16, Option<String>) {
    let answer = read_answer_to("POST", &mut begin(server.address, head.as_bytes()));
    (answer.status, answer.header("connection").map(str::to_owned))
}

#[test]
fn only_a_kept_connection_announces_how_long() {
    let server = TestServer::start(config());
    let keeps = (None, true);
    let closes = (Some("close"), false);
    for (version, options, right) in [
        ("1.1", &[][..], keeps),
        ("1.1", &["keep-alive"], keeps),
        ("1.1", &["x, Close"], closes),
        ("1.1", &["close"], closes),
        ("1.1", &["keep-alive", "close"], closes),
        ("1.1", &["close", "keep-alive"], closes),
        ("1.0", &[], closes),
        ("1.0", &["x, Keep-Alive"], (Some("keep-alive"), true)),
        ("1.0", &["keep-alive", "close"], closes),
    ] {
        for (line, body) in [("GET /healthz", ""), ("POST /publish", "hi"), ("POST /nothing", "")] {
            let options: String = options.iter().map(|option| format!("Connection: {option}\r\n")).collect();
            let length = body.len();
            let request =
                format!("{line} HTTP/{version}\r\nHost: localhost\r\n{options}Content-Length: {length}\r\n\r\n{body}");
            let mut stream = begin(server.address, request.as_bytes());
            let answer = read_answer(&mut stream);
            let is_announced = answer.header("keep-alive") == Some("timeout=75");
            assert_eq!((answer.header("connection"), is_announced), right, "{request}: {answer:?}");
            match is_announced {
                true => {
                    stream.write_all(request.as_bytes()).unwrap();
                    assert_eq!(read_answer(&mut stream).status, answer.status, "it goes on: {request}");
                }
                false => assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it ends: {request}"),
            }
        }
    }
    // A body that nobody reads ends the connection, whatever the client asks for.
    let unread = "POST /nothing HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 99999\r\n\r\nabc";
    let answer = read_answer(&mut begin(server.address, unread.as_bytes()));
    assert_eq!((answer.header("connection"), answer.header("keep-alive")), (Some("close"), None), "{answer:?}");
    let upgrade = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = read_answer(&mut begin(server.address, upgrade.as_bytes()));
    assert_eq!((answer.status, answer.header("connection")), (426, Some("upgrade, close")));
}

#[test]
fn a_kept_connection_is_closed_later_than_announced() {
    let server = TestServer::start(Config { keep_alive_timeout: Duration::from_secs(1), ..config() });
    let mut stream = TcpStream::connect(server.address).unwrap();
    let one = "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
    for request in [one, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_answer(&mut stream);
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        assert_eq!(answer.header("keep-alive"), Some("timeout=1"));
        // Longer than announced, and within the grace.
        std::thread::sleep(Duration::from_millis(1040));
    }
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "in the end it is closed");
}

#[test]
fn a_request_around_the_end_of_an_idle_connection_is_answered_unless_the_end_has_come() {
    const CLIENTS: u32 = 800;
    const STEP: Duration = Duration::from_micros(100);
    /// The time beyond the announced one.
    const GRACE: Duration = Duration::from_secs(2);
    let keep_alive_timeout = Duration::from_secs(1);
    let server = TestServer::start(Config { keep_alive_timeout, ..config() });
    // One that is answered without hyper, and one of hyper's.
    let requests = [
        "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    let open = |number: u32| {
        let request = requests[number as usize % 2];
        let mut stream = begin(server.address, request.as_bytes());
        read_answer(&mut stream);
        let end = Instant::now() + keep_alive_timeout + GRACE;
        (stream, request, end + number * STEP - CLIENTS / 2 * STEP)
    };
    let kept: Vec<_> = (0..CLIENTS).map(open).collect();
    let mut sent = Vec::new();
    for (mut stream, request, moment) in kept {
        std::thread::sleep((moment - STEP).saturating_duration_since(Instant::now()));
        while Instant::now() < moment {}
        stream.set_nonblocking(true).unwrap();
        // A client that sees the end opens another connection.
        if stream.peek(&mut [0]).is_err() && stream.write_all(request.as_bytes()).is_ok() {
            stream.set_nonblocking(false).unwrap();
            sent.push(stream);
        }
    }
    let number = sent.len();
    let is_lost = |stream: &mut TcpStream| stream.read(&mut [0; 1024]).unwrap_or(0) == 0;
    let lost = sent.into_iter().filter_map(|mut stream| is_lost(&mut stream).then_some(())).count();
    // The request and the end can cross on their way.
    assert!(number >= CLIENTS as usize / 10, "{number} sent");
    assert!(lost * 50 <= number, "{lost} of {number} lost");
}

#[test]
fn a_rejection_is_in_the_log_once_a_minute_with_its_reason() {
    let mut binary = Binary::start(&["--max-connections", "1", "--token", "a-token-of-some-length"]);
    let client = Client::connect(binary.address, "/ws");
    for _ in 0..3 {
        assert_eq!(request(binary.address, "GET", "/ws", &HANDSHAKE, b"").status, 503);
    }
    let without = request(binary.address, "POST", "/publish", &["Host: localhost"], b"x");
    let wrong = request(binary.address, "POST", "/publish", &["Host: localhost", "Authorization: Bearer x"], b"x");
    assert_eq!((without.status, wrong.status), (401, 401));
    assert!(without.body.contains("needs the header") && wrong.body.contains("is not the one"), "{wrong:?}");
    drop(client);
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
    let lines = |part: &str| binary.seen.iter().filter(|line| line.contains(part)).count();
    assert_eq!((lines("503 to 127.0.0.1: "), lines("401 to 127.0.0.1: ")), (1, 1), "{:?}", binary.seen);
}

#[test]
fn a_handshake_that_lost_its_upgrade_names_the_proxy() {
    let server = TestServer::start(config());
    let headers: Vec<_> = HANDSHAKE.iter().copied().filter(|header| !header.starts_with("Upgrade")).collect();
    let answer = request(server.address, "GET", "/ws", &headers, b"");
    assert_eq!(answer.status, 426);
    assert!(answer.body.contains("proxy_set_header Upgrade"), "{}", answer.body);
    let answer = request(server.address, "GET", "/ws", &["Host: localhost"], b"");
    assert!(answer.body.contains("connect with a WebSocket client"), "{}", answer.body);
}

#[test]
fn clients_that_do_not_read_answers_keep_nobody_out() {
    let server = TestServer::start(Config { handshakes_max: 8, ..config() });
    // The fast path of publications, and the router.
    for requests in [
        "POST /publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let deaf: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = narrow_stream(server.address);
                stream.set_nonblocking(true).unwrap();
                let all = requests.repeat(200_000);
                let mut sent = 0;
                // Until the server has stopped reading, since it cannot send.
                until(
                    || match stream.write(&all.as_bytes()[sent..]) {
                        Ok(bytes) => {
                            sent += bytes;
                            None
                        }
                        Err(_) => Some(()),
                    },
                    || "it reads on".to_owned(),
                );
                stream
            })
            .collect();
        // While all of them are still being answered, there is a 503.
        let healthz = || request(server.address, "GET", "/healthz", &["Host: localhost"], b"").status == 200;
        for _ in 0..20 {
            until(|| healthz().then_some(()), || "503".to_owned());
        }
        drop(deaf);
    }
}

#[test]
fn a_publication_that_is_rejected_is_answered_before_its_body_comes() {
    let server = TestServer::start(Config { token: Some("a-token-of-some-length".into()), ..config() });
    for length in [100, 20_000] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "POST /publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream).status, 401, "{length}");
    }
    let server = TestServer::start(config());
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST /publish/a HTTP/1.1\nHost: localhost\nContent-Length: 1\n\nx").unwrap();
    assert_eq!(read_answer(&mut stream).status, 202, "lines may end without a carriage return");
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST /publish/a HTTP/1.1\r\nno header\r\n").unwrap();
    assert_eq!(read_answer(&mut stream).status, 400);
}
