//! Every frame that RFC 6455 forbids, with its close code; partly received frames; and the closing
//! handshake.

use std::net::Shutdown;
use std::num::NonZeroU32;

use hydrant::close::CloseReason;
use hydrant::settings::{Config, TooFastPolicy};

use crate::support::{Received, TestServer, config, masked};

/// A header that announces a length, without a payload.
fn header_of(length: u64) -> Vec<u8> {
    let mut header = vec![0x82, 0xff];
    header.extend(length.to_be_bytes());
    header.extend([0; 4]);
    header
}

#[test]
fn every_forbidden_frame_has_its_close_code() {
    let server = TestServer::start(Config { message_fragments_max: 4, ..config() });
    let fragments = [masked(0x01, b"a"), masked(0, b"b"), masked(0, b"c"), masked(0, b"d"), masked(0, b"e")].concat();
    let forbidden: [(Vec<u8>, u16, CloseReason); 18] = [
        (vec![0x81, 0x01, b'x'], 1002, CloseReason::Unmasked),
        (masked(0xc1, b"x"), 1002, CloseReason::ReservedBit),
        (masked(0xa1, b"x"), 1002, CloseReason::ReservedBit),
        (masked(0x91, b"x"), 1002, CloseReason::ReservedBit),
        (masked(0x83, b"x"), 1002, CloseReason::ReservedOpcode),
        (masked(0x8f, b"x"), 1002, CloseReason::ReservedOpcode),
        (masked(0x09, b"x"), 1002, CloseReason::BadControl),
        (masked(0x89, &[0; 126]), 1002, CloseReason::BadControl),
        (vec![0x81, 0xfe, 0, 1, 0, 0, 0, 0, b'x'], 1002, CloseReason::BadLength),
        (header_of(125), 1002, CloseReason::BadLength),
        (masked(0x80, b"x"), 1002, CloseReason::BadFragment),
        ([masked(0x01, b"x"), masked(0x81, b"y")].concat(), 1002, CloseReason::BadFragment),
        (masked(0x88, b"x"), 1002, CloseReason::BadClose),
        (masked(0x88, &1005_u16.to_be_bytes()), 1002, CloseReason::BadClose),
        (masked(0x81, b"\xff"), 1007, CloseReason::NotUtf8),
        (masked(0x82, b"x"), 1003, CloseReason::NotText),
        (header_of(64 * 1024 + 1), 1009, CloseReason::TooBig),
        (fragments, 1008, CloseReason::TooManyFragments),
    ];
    for (number, (wire, code, reason)) in forbidden.into_iter().enumerate() {
        let mut client = server.client("/ws");
        client.send_raw(&wire);
        assert_eq!(client.receive(), Received::Close(Some(code), reason.row().text.to_owned()), "{number}");
        // Later input of the client is discarded, and the stream ends without a reset.
        client.text(r#"{"event":"SAY","message":"ignored"}"#);
        assert_eq!(client.receive(), Received::End, "{number}");
        drop(client);
        server.wait_for_connections(0);
        assert!(server.stats().closed[reason as usize] > 0, "{number}: {reason:?}");
    }
    let report = server.stats();
    assert_eq!(report.says, 0);
    assert_eq!(report.closed.iter().sum::<u64>(), 18);
}

#[test]
fn a_client_that_sends_too_fast_is_closed_or_ignored() {
    let limited = |too_fast| Config { client_messages_max: NonZeroU32::new(3), too_fast, ..config() };
    // Pings count as messages, and these arrive well within a second.
    let flood = masked(0x89, b"x").repeat(50);
    let server = TestServer::start(limited(TooFastPolicy::Disconnect));
    let mut client = server.client("/ws");
    client.send_raw(&flood);
    for _ in 0..3 {
        assert_eq!(client.receive(), Received::Pong(b"x".to_vec()));
    }
    assert_eq!(client.receive(), Received::Close(Some(1008), CloseReason::TooFast.row().text.to_owned()));
    assert_eq!(client.receive(), Received::End);
    assert_eq!(server.stats().closed[CloseReason::TooFast as usize], 1);

    let server = TestServer::start(limited(TooFastPolicy::Drop));
    let mut client = server.client("/ws");
    client.send_raw(&[&flood[..], &masked(0x88, &1000_u16.to_be_bytes())].concat());
    let mut pongs = 0;
    while client.receive() == Received::Pong(b"x".to_vec()) {
        pongs += 1;
    }
    let report = server.stats_until(|report| report.closed[CloseReason::ByClient as usize] == 1);
    assert!((3..50).contains(&pongs) && report.ignored == 50 - pongs, "{pongs} pongs, {report:?}");
}

#[test]
fn frames_may_arrive_byte_by_byte() {
    let server = TestServer::start(config());
    let mut client = server.client("/echo");
    let long = "κόσμε ".repeat(500);
    let wire = [
        masked(0x01, &long.as_bytes()[..1001]),
        masked(0x89, b"between"),
        masked(0x80, &long.as_bytes()[1001..]),
        masked(0x82, &[]),
    ]
    .concat();
    for byte in &wire {
        client.send_raw(std::slice::from_ref(byte));
    }
    assert_eq!(client.receive(), Received::Pong(b"between".to_vec()));
    assert_eq!(client.receive(), Received::Text(long));
    assert_eq!(client.receive(), Received::Binary(Vec::new()));
}

#[test]
fn half_a_frame_disturbs_no_other_client_and_may_be_the_last() {
    let server = TestServer::start(config());
    let (mut half, mut whole) = (server.client("/ws/room"), server.client("/ws/room"));
    half.send_raw(&masked(0x81, b"0123456789")[..9]);
    assert_eq!(server.publish("room", b"hello").delivered, 2);
    assert_eq!((half.receive_text(), whole.receive_text()), ("hello".to_owned(), "hello".to_owned()));
    half.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.receive(), Received::End);
    server.wait_for_connections(1);
    assert_eq!(server.publish("room", b"again").delivered, 1);
    assert_eq!(whole.receive_text(), "again");
}

#[test]
fn frames_behind_the_handshake_are_read() {
    use std::io::Write;
    use std::net::TcpStream;

    let server = TestServer::start(config());
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", crate::support::HANDSHAKE.join("\r\n"));
    stream.write_all(&[head.as_bytes(), &masked(0x81, b"early"), &masked(0x89, b"bird")].concat()).unwrap();
    let answer = crate::support::read_answer(&mut stream);
    assert_eq!(answer.status, 101);
    let mut client = crate::support::Client { stream };
    assert_eq!(client.receive(), Received::Text("early".to_owned()));
    assert_eq!(client.receive(), Received::Pong(b"bird".to_vec()));
}

#[test]
fn a_close_is_answered_with_its_code_and_the_end_of_the_stream() {
    let server = TestServer::start(config());
    for (payload, code) in [(&b""[..], None), (b"\x03\xe8bye", Some(1000)), (b"\x0f\xa0", Some(4000))] {
        let mut client = server.client("/ws");
        client.send(0x88, payload);
        assert_eq!(client.receive(), Received::Close(code, String::new()));
        assert_eq!(client.receive(), Received::End);
        server.wait_for_connections(0);
    }
    assert_eq!(server.stats().closed[CloseReason::ByClient as usize], 3);
}

#[test]
fn large_messages_are_echoed_whole() {
    let server = TestServer::start(config());
    let mut client = server.client("/echo");
    let mut sender = crate::support::Client { stream: client.stream.try_clone().unwrap() };
    let body: Vec<u8> = (0..64 * 1024).map(|number| (number * 7) as u8).collect();
    let sent = body.clone();
    // Far more bytes than all buffers hold: the server stops reading while its answers wait.
    let writer = std::thread::spawn(move || (0..300).for_each(|_| sender.send(0x82, &sent)));
    for _ in 0..300 {
        assert_eq!(client.receive(), Received::Binary(body.clone()));
    }
    writer.join().unwrap();
    assert_eq!(server.engine.registry.len(), 1);
}
