//! TLS: clients over TLS get the same messages with the same guarantees, and SIGHUP replaces the
//! certificate.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hydrant::close::CloseReason;
use hydrant::settings::{Config, SlowPolicy};
use hydrant::tls::Tls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::support::{
    Binary, Client, HANDSHAKE, PATIENCE, Received, STRATEGIES, TestServer, begin, config, masked, narrow_stream,
    read_answer, until,
};

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys");

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

fn pem(name: &str) -> PathBuf {
    Path::new(KEYS).join(format!("{name}.pem"))
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(pem(name)).unwrap()
}

fn secure() -> Config {
    Config { tls: Some(Tls::load(&pem("tls-cert"), &pem("tls-key")).unwrap().into()), ..config() }
}

/// A TLS session over `stream` that trusts both test certificates.
fn session(stream: TcpStream, version: &'static SupportedProtocolVersion) -> TlsStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut roots = RootCertStore::empty();
    for name in ["tls-cert", "other-cert"] {
        roots.add(certificate(name)).unwrap();
    }
    let config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    StreamOwned::new(ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap(), stream)
}

fn dial(address: SocketAddr) -> TlsStream {
    session(TcpStream::connect(address).unwrap(), &TLS13)
}

fn connect(address: SocketAddr, path: &str) -> Client<TlsStream> {
    Client::shake_hands(dial(address), path)
}

fn publish(address: SocketAddr, channel: &str, body: &[u8]) -> String {
    let mut stream = dial(address);
    let head = format!(
        "POST /publish/{channel}?receipt=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let answer = read_answer(&mut stream);
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body
}

#[test]
fn clients_over_tls_get_the_same_messages() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, ..secure() });
        let mut clients = [&TLS13, &TLS12].map(|version| {
            let stream = session(TcpStream::connect(server.address).unwrap(), version);
            Client::shake_hands(stream, "/ws/room")
        });
        let receipt = publish(server.address, "room", b"hello");
        assert!(receipt.contains("\"matched\":2"), "{receipt}");
        assert_eq!(clients.each_mut().map(Client::receive_text), ["hello"; 2], "{fanout:?}");
        clients[0].text(r#"{"event":"SAY","message":"there"}"#);
        assert!(clients.each_mut().map(Client::receive_text).iter().all(|text| text.contains("there")));
        for client in &mut clients {
            client.send(0x89, b"!");
            assert_eq!(client.receive(), Received::Pong(b"!".to_vec()));
            client.send(0x88, &1000_u16.to_be_bytes());
            assert_eq!(client.receive(), Received::Close(Some(1000), String::new()));
            assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "the session ends with close_notify");
        }
        let totals = server.stats_until(|report| report.pending == 0).totals;
        assert_eq!((totals.matched, totals.delivered), (4, 4), "{fanout:?}");
    }
}

#[test]
fn records_may_come_in_any_pieces() {
    let server = TestServer::start(secure());
    let message = "m".repeat(40_000);
    let mut client = connect(server.address, "/echo");
    // A message longer than one TLS record, then several messages in one record.
    client.text(&message);
    assert_eq!(client.receive_text(), message);
    client.send_raw(&[masked(0x81, b"a"), masked(0x81, b"b"), masked(0x81, b"c")].concat());
    assert_eq!([(); 3].map(|()| client.receive_text()), ["a", "b", "c"]);
    // A record that arrives byte by byte.
    let mut record = Vec::new();
    client.stream.conn.writer().write_all(&masked(0x81, b"slowly")).unwrap();
    client.stream.conn.write_tls(&mut record).unwrap();
    record.iter().for_each(|byte| client.stream.sock.write_all(&[*byte]).unwrap());
    assert_eq!(client.receive_text(), "slowly");
    // Messages behind the handshake, sent before its answer has come.
    let mut stream = dial(server.address);
    let head = format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
    stream.write_all(&[head.as_bytes(), &masked(0x81, b"early"), &masked(0x81, message.as_bytes())].concat()).unwrap();
    assert_eq!(read_answer(&mut stream).status, 101);
    let mut client = Client { stream };
    assert_eq!((client.receive_text().as_str(), client.receive_text()), ("early", message));
}

#[test]
fn slow_clients_over_tls_are_counted() {
    let bounds = Config { outbox_bytes_max: 100_000, message_bytes_max: 20_000, kernel_bytes_max: 4096, ..secure() };
    for fanout in STRATEGIES {
        for slow in [SlowPolicy::Disconnect, SlowPolicy::DropNewest, SlowPolicy::DropOldest] {
            let server = TestServer::start(Config { fanout, slow, pages_bytes_min: 1, ..bounds.clone() });
            let mut client = Client::shake_hands(session(narrow_stream(server.address), &TLS13), "/ws/room");
            server.wait_for_connections(1);
            // Messages of all lengths, together more than twice the outbox bound.
            let bodies: Vec<_> = (0..30).map(|n| format!("{n:02}{}", "x".repeat(n * 611))).collect();
            let matched =
                bodies.iter().filter(|body| publish(server.address, "room", body.as_bytes()).contains("\"matched\":1"));
            let matched = matched.count();
            if slow != SlowPolicy::Disconnect {
                assert_eq!(matched, bodies.len());
                publish(server.address, "room", b"end");
            }
            let context = format!("{fanout:?} {slow:?}");
            let mut seen = Vec::new();
            loop {
                match client.receive() {
                    Received::Text(end) if end == "end" => break,
                    Received::Text(text) => seen.push(text),
                    Received::Close(code, _) => {
                        assert_eq!((code, slow), (Some(1013), SlowPolicy::Disconnect), "{context}");
                        break;
                    }
                    other => panic!("{context}: {other:?}"),
                }
                if slow == SlowPolicy::DropNewest && seen.len() % 5 == 0 {
                    // The outbox has room again: send `end` again, as it may have been dropped.
                    publish(server.address, "room", b"end");
                }
            }
            assert!(seen.len() < bodies.len() && !seen.is_empty(), "{context}: {}", seen.len());
            // Messages are whole, in order, and never repeated.
            let mut expected = bodies.iter();
            assert!(seen.iter().all(|text| expected.any(|body| body == text)), "{context}");
            drop(client);
            let totals = server.stats_until(|report| report.pending == 0 && report.totals.outstanding() == 0).totals;
            assert_eq!(totals.matched, totals.delivered + totals.dropped_slow + totals.dropped_closed, "{context}");
            assert!(totals.dropped_slow > 0, "{context}");
        }
    }
}

#[test]
fn broken_tls_ends_its_own_connection_and_no_other() {
    let server = TestServer::start(Config { handshake_timeout: Duration::from_secs(4), ..secure() });
    let mut bystander = connect(server.address, "/ws/room");
    let mut plain = begin(server.address, b"\x80GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut answer = Vec::new();
    // The server sends an alert and closes.
    plain.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    // A handshake that stops in the middle.
    let mut record = Vec::new();
    let mut half = dial(server.address);
    half.conn.write_tls(&mut record).unwrap();
    half.sock.write_all(&record[..record.len() / 2]).unwrap();
    assert_eq!(half.sock.read(&mut [0; 100]).unwrap(), 0, "closed after --handshake-timeout");
    // A record that was changed on its way.
    let mut forger = connect(server.address, "/ws/room");
    server.wait_for_connections(2);
    let mut record = Vec::new();
    forger.stream.conn.writer().write_all(&masked(0x81, b"x")).unwrap();
    forger.stream.conn.write_tls(&mut record).unwrap();
    *record.last_mut().unwrap() ^= 1;
    forger.stream.sock.write_all(&record).unwrap();
    let broken = forger.stream.read(&mut [0; 100]).unwrap_err();
    assert!(broken.to_string().contains("BadRecordMac"), "{broken}");
    server.stats_until(|report| report.closed[CloseReason::Disconnected as usize] == 1);
    publish(server.address, "room", b"still here");
    assert_eq!(bystander.receive_text(), "still here");
}

#[test]
fn plain_http_on_the_tls_port_gets_400_in_plain_text() {
    let server = TestServer::start(secure());
    let address = server.address;
    let upgrade = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", HANDSHAKE.join("\r\n"));
    let post = format!("POST /publish HTTP/1.1\r\nHost: [::1]:9\r\nContent-Length: 9999\r\n\r\n{}", "x".repeat(9999));
    for (request, url) in [
        (&*upgrade, "wss://localhost/ws".to_owned()),
        (&*post, "https://[::1]:9/publish".to_owned()),
        ("g", format!("https://{address}")),
    ] {
        let mut stream = begin(address, request.as_bytes());
        let answer = read_answer(&mut stream);
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")), "{request}");
        assert_eq!(answer.body, format!("this port needs TLS: connect to {url}\n"));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{request}");
    }
    assert!(server.engine.http_errors.series().any(|(status, number)| (status, number) == ("400", 3)));
    drop(connect(address, "/ws/room"));
}

#[test]
fn a_silent_client_of_the_tls_port_ends_with_the_handshake_timeout_or_gives_way() {
    let brief = Config { handshake_timeout: Duration::from_millis(20), ..secure() };
    let server = TestServer::start(brief);
    assert_eq!(begin(server.address, b"").read(&mut [0]).unwrap(), 0, "closed after --handshake-timeout");
    let server = TestServer::start(Config { handshakes_max: 1, ..secure() });
    // The kernel hands over silent sockets late, and in either order.
    let mut silent = [(); 2].map(|()| begin(server.address, b""));
    silent.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let mut ended = || silent.iter_mut().filter_map(|stream| stream.read(&mut [0]).ok()).next();
    assert_eq!(until(&mut ended, || "neither was evicted".to_owned()), 0);
}

#[test]
fn garbage_on_the_tls_port_harms_no_other_client() {
    let server = TestServer::start(secure());
    let mut bystander = connect(server.address, "/ws/room");
    let hello = {
        let mut record = Vec::new();
        dial(server.address).conn.write_tls(&mut record).unwrap();
        record
    };
    let garbage: [&[u8]; 7] = [
        // A handshake message with the greatest length, in a whole record.
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x05hello",
        b"GET /ws HTTP/1.1\r\n\r\n",
    ];
    for bytes in garbage {
        for before in [&[][..], &hello[..hello.len() / 2], &hello] {
            for after in [&[][..], b"\x16\x03\x01\x00\x04\x01\x00\x00\x04", &hello] {
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.write_all(&[before, bytes, after].concat()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut answer = Vec::new();
                let ended = stream.read_to_end(&mut answer);
                if before.is_empty() && bytes.starts_with(b"GET") {
                    assert!(ended.is_ok() && answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
                } else {
                    // Any answer will do, as long as the connection ends.
                    assert!(!answer.starts_with(b"HTTP/"), "{bytes:?} {answer:?}");
                }
            }
        }
    }
    // The same bytes behind a finished handshake.
    for bytes in garbage {
        let mut client = connect(server.address, "/echo");
        client.stream.sock.write_all(bytes).unwrap();
        client.stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.stream.sock.read_to_end(&mut Vec::new());
    }
    publish(server.address, "room", b"still here");
    assert_eq!(bystander.receive_text(), "still here");
}

#[test]
fn keys_may_change_at_any_time() {
    let server = TestServer::start(secure());
    let mut client = connect(server.address, "/echo");
    for number in 0..200 {
        client.stream.conn.refresh_traffic_keys().unwrap();
        let text = number.to_string();
        client.text(&text);
        assert_eq!(client.receive_text(), text);
    }
}

#[test]
fn a_drain_sends_close_frames_over_tls() {
    let server = TestServer::start(secure());
    let mut client = connect(server.address, "/ws/room");
    server.wait_for_connections(1);
    let reader = std::thread::spawn(move || {
        let closed = client.receive();
        client.send(0x88, &1001_u16.to_be_bytes());
        (closed, client.receive())
    });
    let report = server.finish();
    assert_eq!((report.aborted, report.pending), (0, 0));
    let close = Received::Close(Some(1001), CloseReason::Drain.row().text.to_owned());
    assert_eq!(reader.join().unwrap(), (close, Received::End));
}

#[test]
fn the_certificate_is_read_again_at_sighup() {
    let folder = std::env::temp_dir().join(format!("hydrant-tls-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let put = |name: &str| {
        for part in ["cert", "key"] {
            fs::copy(pem(&format!("{name}-{part}")), folder.join(part)).unwrap();
        }
    };
    put("tls");
    let (cert, key) = (folder.join("cert"), folder.join("key"));
    let mut binary =
        Binary::start(&["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap(), "--shards", "1"]);
    let shown = |client: &Client<TlsStream>| client.stream.conn.peer_certificates().unwrap()[0].clone();
    let mut old = connect(binary.address, "/ws/room");
    assert_eq!(shown(&old), certificate("tls-cert"));
    put("other");
    binary.signal(libc::SIGHUP);
    binary.wait_for_line("reloaded: the content of --tls-cert, the content of --tls-key");
    let mut new = connect(binary.address, "/ws/room");
    assert_eq!(shown(&new), certificate("other-cert"));
    binary.signal(libc::SIGHUP);
    binary.wait_for_line("reloaded: no setting has changed");
    fs::write(&key, "nothing").unwrap();
    binary.signal(libc::SIGHUP);
    let error = binary.wait_for_line("not reloaded");
    assert!(error.contains("private key") && error.contains(key.to_str().unwrap()), "{error}");
    let mut newest = connect(binary.address, "/ws/room");
    assert_eq!(shown(&newest), certificate("other-cert"));
    publish(binary.address, "room", b"x");
    for client in [&mut old, &mut new, &mut newest] {
        assert_eq!(client.receive_text(), "x");
    }
    drop((old, new, newest));
    binary.signal(libc::SIGTERM);
    let status = until(|| Some(binary.wait()), String::new);
    assert_eq!(status.code(), Some(0));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn plain_and_tls_clients_share_a_channel() {
    let server = TestServer::start(Config { tls_listen: config().listen, ..secure() });
    let [plain_port, tls_port] = server.addresses[..] else { panic!("{:?}", server.addresses) };
    let mut plain = Client::connect(plain_port, "/ws/room");
    let mut secure = connect(tls_port, "/ws/room");
    assert_eq!(server.publish("room", b"from a plain port").matched, 2);
    assert!(publish(tls_port, "room", b"over TLS").contains("\"matched\":2"));
    for text in ["from a plain port", "over TLS"] {
        assert_eq!((plain.receive_text().as_str(), secure.receive_text().as_str()), (text, text));
    }
}
