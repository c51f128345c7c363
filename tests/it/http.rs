//! HTTP routes: the answer of each, and the requests that each rejects.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use hydrant::engine::publication::{ChannelName, Origin, Publication, PublishError};
use hydrant::settings::Config;
use hydrant::wire::Frame;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Answer, Client, HANDSHAKE, PATIENCE, Received, TestServer, begin, config, masked, read_answer, read_answer_to,
    request, two_ports,
};

#[test]
fn every_route_answers_as_it_should() {
    let server = TestServer::start(config());
    let without =
        |left_out: &str| -> Vec<_> { HANDSHAKE.into_iter().filter(|header| !header.starts_with(left_out)).collect() };
    let with = |left_out: &str, put_in: &'static str| [without(left_out), vec![put_in]].concat();
    let cases: Vec<(&str, &str, Vec<&str>, u16, Option<(&str, &str)>)> = vec![
        ("GET", "/healthz", vec![], 200, None),
        ("HEAD", "/healthz", vec![], 200, None),
        ("GET", "/readyz", vec![], 200, None),
        ("GET", "/metrics", vec![], 200, None),
        ("GET", "/debug/mem", vec![], 200, Some(("content-type", "application/json"))),
        ("POST", "/debug/mem/purge", vec![], 200, None),
        ("GET", "/nothing", vec![], 404, None),
        ("GET", "/ws/a/b", vec![], 404, None),
        ("GET", "/echo/", vec![], 426, Some(("upgrade", "websocket"))),
        ("GET", "/ws/", vec![], 426, Some(("upgrade", "websocket"))),
        ("GET", "//ws", vec![], 426, Some(("upgrade", "websocket"))),
        ("GET", "/", vec![], 200, None),
        ("HEAD", "/", vec![], 200, None),
        ("OPTIONS", "/", vec![], 200, Some(("allow", "GET, HEAD, OPTIONS"))),
        ("POST", "/", vec![], 405, Some(("allow", "GET, HEAD, OPTIONS"))),
        ("GET", "/", HANDSHAKE[1..].to_vec(), 200, None),
        ("GET", "/", without("Sec-WebSocket-Key"), 400, None),
        ("GET", "/ws?channels=a", HANDSHAKE.to_vec(), 400, None),
        ("GET", "/echo?channel=a", HANDSHAKE.to_vec(), 400, None),
        ("POST", "/publish?receipt=true", vec!["Content-Length: 0"], 400, None),
        ("POST", "/publish?room=a", vec!["Content-Length: 0"], 400, None),
        (
            "POST",
            "/publish",
            vec!["Content-Length: 0", "Content-Encoding: gzip"],
            415,
            Some(("accept-encoding", "identity")),
        ),
        ("POST", "/publish", vec!["Content-Length: 0", "Content-Type: application/x-ndjson"], 415, None),
        ("GET", "/publish", vec![], 405, Some(("allow", "POST, OPTIONS"))),
        ("DELETE", "/publish/room", vec![], 405, Some(("allow", "POST, OPTIONS"))),
        ("POST", "/ws", vec![], 405, Some(("allow", "GET"))),
        ("GET", "/debug/mem/purge", vec![], 405, Some(("allow", "POST"))),
        ("POST", "/healthz", vec![], 405, Some(("allow", "GET, HEAD"))),
        ("GET", "/ws", vec![], 426, Some(("upgrade", "websocket"))),
        ("GET", "/echo", without("Upgrade"), 426, Some(("upgrade", "websocket"))),
        ("GET", "/ws/room", without("Connection"), 426, Some(("upgrade", "websocket"))),
        ("GET", "/ws", without("Sec-WebSocket-Version"), 426, Some(("sec-websocket-version", "13"))),
        (
            "GET",
            "/ws",
            with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
            426,
            Some(("sec-websocket-version", "13")),
        ),
        ("GET", "/ws", without("Sec-WebSocket-Key"), 400, None),
        ("GET", "/ws", with("Sec-WebSocket-Key", "Sec-WebSocket-Key: short"), 400, None),
        ("GET", "/ws/a%20b", HANDSHAKE.to_vec(), 400, None),
        ("GET", "/ws?channel=", HANDSHAKE.to_vec(), 400, None),
        ("GET", "/ws", [HANDSHAKE.to_vec(), vec!["Host: another"]].concat(), 400, None),
        ("GET", "/ws", [HANDSHAKE.to_vec(), vec!["Content-Length: 3"]].concat(), 400, None),
        ("GET", "/ws", [HANDSHAKE.to_vec(), vec!["Sec-WebSocket-Version: 8"]].concat(), 400, None),
        ("POST", "/publish/room%3A1", vec!["Content-Length: 0"], 202, None),
        ("POST", "/publish/a%20b", vec![], 400, None),
    ];
    for (method, path, headers, status, header) in cases {
        let answer = request_as_is(server.address, method, path, &headers);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        if let Some((name, value)) = header {
            assert_eq!(answer.header(name), Some(value), "{method} {path}");
        }
        assert!(status < 300 || answer.body.len() > 5, "{method} {path}: a rejection says what to do");
    }
    let mut old = TcpStream::connect(server.address).unwrap();
    old.write_all(format!("GET /ws HTTP/1.0\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n")).as_bytes())
        .unwrap();
    assert!(matches!(read_answer(&mut old).status, 400 | 426));
    assert!(server.engine.registry.is_empty());
}

/// Sends `Host` and the given headers, and no body.
fn request_as_is(address: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes()).unwrap();
    read_answer_to(method, &mut stream)
}

#[test]
fn a_body_goes_verbatim_to_every_subscriber() {
    let server = TestServer::start(config());
    let (mut all, mut room) = (server.client("/ws"), server.client("/ws/room"));
    let answer = request(server.address, "POST", "/publish", &[], "τ\n\"".as_bytes());
    assert_eq!((answer.status, answer.body.as_str()), (202, "{\"channel\":\"all\",\"offset\":1,\"matched\":1}\n"));
    assert_eq!(all.receive_text(), "τ\n\"");
    let binary = ["Content-Type: Application/Octet-Stream; x=y"];
    assert_eq!(request(server.address, "POST", "/publish/room", &binary, b"\xff\x00").status, 202);
    assert_eq!(room.receive(), Received::Binary(b"\xff\x00".to_vec()));
    let chunked = ["Transfer-Encoding: chunked"];
    assert_eq!(request(server.address, "POST", "/publish", &chunked, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").status, 202);
    assert_eq!(all.receive_text(), "abcde");
    let published = server.publish("all", b"");
    assert_eq!((published.offset, published.matched, published.delivered), (3, 1, 1));
    assert_eq!(all.receive_text(), "");
}

#[test]
fn a_body_with_another_transfer_coding_is_rejected_and_the_connection_kept() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws");
    let mut stream = TcpStream::connect(server.address).unwrap();
    let mut ask = |codings: &str| {
        let head = format!("POST /publish HTTP/1.1\r\nHost: localhost\r\n{codings}\r\n\r\n");
        stream.write_all(format!("{head}3\r\nabc\r\n0\r\n\r\n").as_bytes()).unwrap();
        read_answer(&mut stream)
    };
    for codings in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: GZIP\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
    ] {
        let answer = ask(codings);
        assert_eq!(answer.status, 501, "{codings}: {answer:?}");
        assert!(answer.body.contains("no transfer coding but chunked"), "{answer:?}");
    }
    assert_eq!(ask("Transfer-Encoding: Chunked").status, 202);
    assert_eq!(client.receive_text(), "abc", "nothing of the others was published");
}

#[test]
fn invalid_and_too_long_bodies_are_rejected() {
    let server = TestServer::start(Config { message_bytes_max: 1000, ..config() });
    let mut client = server.client("/ws");
    assert_eq!(request(server.address, "POST", "/publish", &["Content-Type: text/plain"], b"\xff").status, 400);
    assert_eq!(request(server.address, "POST", "/publish", &[], &[b'x'; 1001]).status, 413);
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let chunked = ["Transfer-Encoding: chunked"];
    assert_eq!(request(server.address, "POST", "/publish", &chunked, chunk.as_bytes()).status, 413);
    assert_eq!(request(server.address, "POST", "/publish", &[], &[b'x'; 1000]).status, 202);
    assert_eq!(client.receive_text(), "x".repeat(1000));
}

#[test]
fn one_connection_takes_many_requests() {
    let server = TestServer::start(config());
    let mut stream = TcpStream::connect(server.address).unwrap();
    let one = "POST /publish/room HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
    stream.write_all(one.repeat(20).as_bytes()).unwrap();
    for offset in 1..=20 {
        let answer = read_answer(&mut stream);
        assert_eq!(answer.body, format!("{{\"channel\":\"room\",\"offset\":{offset},\"matched\":0}}\n"));
    }
}

#[test]
fn a_handshake_may_come_in_pieces_or_behind_another_request() {
    let server = TestServer::start(config());
    let handshake = format!("GET /ws/room HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
    let mut in_pieces = TcpStream::connect(server.address).unwrap();
    in_pieces.set_nodelay(true).unwrap();
    in_pieces.write_all(&handshake.as_bytes()[..20]).unwrap();
    let mut behind = TcpStream::connect(server.address).unwrap();
    let both = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n{handshake}");
    // With a first message.
    behind.write_all(&[both.as_bytes(), &masked(0x81, br#"{"event":"SUBSCRIBE","channel":"room"}"#)].concat()).unwrap();
    assert_eq!(read_answer(&mut behind).status, 200);
    assert_eq!(read_answer(&mut behind).status, 101);
    assert_eq!(
        Client { stream: behind.try_clone().unwrap() }.receive_text(),
        r#"{"event":"SUBSCRIBED","channel":"room"}"#
    );
    in_pieces.write_all(&handshake.as_bytes()[20..]).unwrap();
    assert_eq!(read_answer(&mut in_pieces).status, 101);
    assert_eq!(server.publish("room", b"x").matched, 2);
    for mut stream in [in_pieces, behind] {
        let mut message = [0; 3];
        stream.read_exact(&mut message).unwrap();
        assert_eq!(message, *b"\x81\x01x");
    }
}

#[test]
fn publishers_beyond_pending_bytes_get_503_and_nothing_is_lost() {
    // No client reads: the channel waits for its subscribers, and publications for the channel.
    let bounds = Config { message_bytes_max: 1000, pending_bytes_max: 2100, kernel_bytes_max: 4096, ..config() };
    let narrow = Config { pace_max: PATIENCE, ..bounds };
    let server = TestServer::start(narrow);
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect_narrow(server.address, "/ws")).collect();
    let mut accepted = Vec::new();
    loop {
        let body = format!("{:03}{}", accepted.len(), "x".repeat(997));
        let answer = request(server.address, "POST", "/publish", &[], body.as_bytes());
        if answer.status != 202 {
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
            break;
        }
        accepted.push(body);
    }
    for client in &mut clients {
        let seen: Vec<_> = accepted.iter().map(|_| client.receive_text()).collect();
        assert_eq!(seen, accepted);
    }
    let report = server.stats_until(|report| report.pending == 0);
    assert_eq!(report.totals.delivered as usize, accepted.len() * clients.len());
    assert_eq!(server.publish("all", b"room again").matched, 20);
}

#[test]
fn publish_and_admin_need_the_token() {
    let server = TestServer::start(Config { token: Some("secret".into()), ..config() });
    for (method, path) in [("POST", "/publish"), ("POST", "/publish/room"), ("GET", "/debug/mem"), ("GET", "/metrics")]
    {
        for wrong in [&[][..], &["Authorization: Bearer wrong"], &["Authorization: Basic secret"], &["Authorization: "]]
        {
            let answer = request(server.address, method, path, wrong, b"");
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        }
        let status = request(server.address, method, path, &["Authorization: bearer secret"], b"").status;
        assert!(status < 300 || status == 202, "{path}");
    }
    assert_eq!(request(server.address, "GET", "/healthz", &[], b"").status, 200);
    server.client("/ws");
}

#[test]
fn publish_and_admin_are_rejected_beyond_loopback_without_a_token() {
    let server = TestServer::start({
        let open: Vec<hydrant::settings::ListenAddress> = vec![SocketAddr::from(([0, 0, 0, 0], 0)).into()];
        Config { admin_listen: Some(open[0].clone()), listen: open, open: false, ..config() }
    });
    let address = SocketAddr::from(([127, 0, 0, 1], server.address.port()));
    for (method, path) in
        [("POST", "/publish"), ("GET", "/debug/mem"), ("POST", "/debug/mem/purge"), ("GET", "/metrics")]
    {
        let answer = request(address, method, path, &[], b"");
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("--token"));
    }
    assert_eq!(request(address, "GET", "/healthz", &[], b"").status, 200);
}

#[test]
fn pages_of_other_origins_may_not_publish() {
    let server = TestServer::start(two_ports());
    let admin = server.addresses[1];
    let status = |origin: &str| request(admin, "POST", "/publish", &[&format!("Origin: {origin}")], b"x").status;
    assert_eq!((status("https://evil.example"), status("http://localhost")), (403, 202));
    assert_eq!(request(admin, "GET", "/metrics", &["Origin: null"], b"").status, 403);
    // The same holds for a host name of theirs that resolves to this server.
    let head =
        "POST /publish HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nContent-Length: 1\r\n\r\nx";
    let answer = read_answer(&mut begin(admin, head.as_bytes()));
    assert!(answer.status == 403 && answer.body.contains("ask for localhost"), "{}: {}", answer.status, answer.body);
}

#[test]
fn admin_routes_may_have_a_port_of_their_own() {
    let open = vec![SocketAddr::from(([0, 0, 0, 0], 0)).into()];
    let server = TestServer::start(Config { listen: open, ..two_ports() });
    let [public, admin] = [0, 1].map(|n| SocketAddr::from(([127, 0, 0, 1], server.addresses[n].port())));
    for path in ["/metrics", "/debug/mem", "/debug/pprof/"] {
        let status = |address| request(address, "GET", path, &[], b"").status;
        assert_eq!((status(public), status(admin)), (404, 200), "{path}");
    }
    let mut client = Client::connect(public, "/ws/room");
    assert_eq!(request(admin, "GET", "/ws/room", &HANDSHAKE, b"").status, 404);
    // The public port says where publishing is.
    let elsewhere = request(public, "POST", "/publish/room?receipt=1", &[], b"x");
    assert_eq!(elsewhere.status, 404);
    let url = format!("http://{admin}/publish/room?receipt=1");
    assert!(elsewhere.body.contains(&url), "{}", elsewhere.body);
    assert_eq!(elsewhere.header("link"), Some(&*format!("<{url}>; rel=\"alternate\"")));
    assert_eq!(request(admin, "POST", "/publish/room", &[], b"x").status, 202);
    assert_eq!(client.receive_text(), "x");
    assert!([public, admin].map(|address| request(address, "GET", "/healthz", &[], b"").status) == [200, 200]);
}

#[test]
fn a_draining_server_rejects_publications() {
    let server = TestServer::start(config());
    let engine = server.engine.clone();
    let idle = TcpStream::connect(server.address).unwrap();
    let report = server.finish();
    assert_eq!((report.pending, report.aborted), (0, 0));
    drop(idle);
    let frame = Frame::text("late");
    let late = Publication { channel: ChannelName::all(), frame, origin: Origin::Server, receipt: None };
    assert_eq!(engine.publish(late), Err(PublishError::Draining));
}

#[test]
fn a_burst_of_publications_closes_no_client_that_reads() {
    // Together 1.6 MiB: more than the outbox and the kernel's buffer of one connection hold.
    const PUBLISHERS: usize = 26;
    for fanout in crate::support::STRATEGIES {
        let patient = Config { fanout, shards: 1.try_into().unwrap(), pace_max: PATIENCE, ..config() };
        let server = TestServer::start(patient);
        let readers: Vec<_> = (0..1)
            .map(|_| {
                let mut client = server.client("/ws");
                std::thread::spawn(move || (0..PUBLISHERS).map(|_| client.receive_text().len()).sum::<usize>())
            })
            .collect();
        let mut publishers: Vec<_> = (0..PUBLISHERS)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address).unwrap();
                let head = "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n";
                stream.write_all(&[head.as_bytes(), &[b'x'; 65_535]].concat()).unwrap();
                stream
            })
            .collect();
        publishers.iter_mut().for_each(|stream| stream.write_all(b"x").unwrap());
        for stream in &mut publishers {
            assert_eq!(read_answer(stream).status, 202);
        }
        for reader in readers {
            assert_eq!(reader.join().unwrap(), PUBLISHERS * 65_536, "{fanout:?}");
        }
    }
}

#[test]
fn the_metrics_show_the_delivery_counters() {
    let server = TestServer::start(config());
    let _clients = [server.client("/ws/a"), server.client("/ws/a"), server.client("/ws/b")];
    let mut leaving = server.client("/ws");
    for channel in ["a", "a", "b"] {
        server.publish(channel, b"x");
    }
    leaving.text(r#"{"event":"SAY","message":"x"}"#);
    leaving.text(r#"{"event":"LEAVE"}"#);
    leaving.receive();
    server.wait_for_connections(3);
    let metrics = request(server.address, "GET", "/metrics", &[], b"").body;
    for line in [
        "hydrant_connections 3",
        "hydrant_frames_matched_total 5",
        "hydrant_frames_delivered_total 5",
        "hydrant_frames_dropped_total{reason=\"slow\"} 0",
        "hydrant_frames_pending 0",
        "hydrant_channel_frames_matched_total{channel=\"a\"} 4",
        "hydrant_channel_frames_delivered_total{channel=\"b\"} 1",
        "hydrant_channel_frames_dropped_total{channel=\"a\"} 0",
        "hydrant_says_total 1",
        "hydrant_closed_total{reason=\"left\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn a_peer_of_another_address_may_not_publish_without_a_token() {
    // Any address of this machine but loopback, as after DNAT; no packet leaves for it.
    let outward = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Some(outward) = outward.ok().filter(|address| !address.ip().is_loopback()) else { return };
    let server = TestServer::start(two_ports());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(outward.ip(), 0).into()).unwrap();
    socket.connect(&server.addresses[1].into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx").unwrap();
    let answer = read_answer(&mut stream);
    assert!(answer.status == 403 && answer.body.contains("this machine only"), "{answer:?}");
    assert_eq!(request(server.addresses[1], "POST", "/publish", &[], b"x").status, 202);
}

#[test]
fn the_lowest_limit_of_a_head_serves_shorter_ones() {
    const LOWEST: usize = 8 * 1024;
    let server = TestServer::start(Config { header_bytes_max: LOWEST, ..config() });
    // hyper answers both paths.
    for path in ["/healthz", "/metrics"] {
        assert_eq!(request(server.address, "GET", path, &[], b"").status, 200);
        let long = format!("X: {}", "x".repeat(LOWEST));
        assert_eq!(request(server.address, "GET", path, &[&long], b"").status, 431);
    }
    assert!(Config { header_bytes_max: LOWEST - 1, ..config() }.check().is_err());
}

#[test]
fn a_head_beyond_the_limits_gets_431_whole_or_in_pieces() {
    const BYTES: usize = 8 * 1024;
    let server = TestServer::start(Config { headers_max: 8, header_bytes_max: BYTES, ..config() });
    let handshake = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{}\r\n", HANDSHAKE.join("\r\n"));
    let publication = "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n".to_owned();
    for (head, headers, right) in [(handshake, 5, 101), (publication, 2, 202)] {
        let of_number = |number: usize| [head.as_str(), &"A: b\r\n".repeat(number - headers), "\r\n"].concat();
        let of_length = |length: usize| format!("{head}A: {}\r\n\r\n", "b".repeat(length - head.len() - 7));
        for (request, status) in
            [(of_number(8), right), (of_number(9), 431), (of_length(BYTES), right), (of_length(BYTES + 1), 431)]
        {
            assert_eq!(read_answer(&mut begin(server.address, request.as_bytes())).status, status, "{request}");
            let mut stream = begin(server.address, &request.as_bytes()[..20]);
            // By this answer, the server has read the piece.
            assert_eq!(crate::support::request(server.address, "GET", "/healthz", &[], b"").status, 200);
            stream.write_all(&request.as_bytes()[20..]).unwrap();
            assert_eq!(read_answer(&mut stream).status, status, "in pieces: {request}");
        }
    }
}
