//! Large batches from shared pages: every byte arrives, whatever the clients do.

use std::net::Shutdown;

use hydrant::pages::PAGES_FILES_MAX;
use hydrant::settings::{Config, SlowPolicy};

use crate::support::{Client, POLICIES, Received, TestServer, config, request};

/// Enough subscribers on one shard for pages.
const READERS: usize = 20;
const MESSAGES: usize = 12;
const MESSAGE_BYTES: usize = 150_001;

fn paged(slow: SlowPolicy) -> Config {
    Config {
        shards: 1.try_into().unwrap(),
        slow,
        message_bytes_max: MESSAGE_BYTES,
        outbox_bytes_max: 2 * 1024 * 1024,
        kernel_bytes_max: 16 * 1024,
        pages_bytes_min: 1,
        ..config()
    }
}

/// The bytes differ from index to index and from message to message; the length is no multiple of a
/// page.
fn message(number: usize) -> Vec<u8> {
    (0..MESSAGE_BYTES - number).map(|index| (index * 31 + index / 4096 + number * 7) as u8).collect()
}

fn publish(server: &TestServer, number: usize) -> u64 {
    let headers = ["Content-Type: application/octet-stream"];
    let answer = request(server.address, "POST", "/publish/room?receipt=1", &headers, &message(number));
    assert_eq!(answer.status, 202, "{}", answer.body);
    serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()["matched"].as_u64().unwrap()
}

#[test]
fn every_byte_arrives_from_shared_pages() {
    for slow in POLICIES {
        let server = TestServer::start(paged(slow));
        let mut readers: Vec<_> = (0..READERS).map(|_| Client::connect_narrow(server.address, "/ws/room")).collect();
        let disconnecting = Client::connect_narrow(server.address, "/ws/room");
        // No client reads: the messages wait in pages long after their batch was sent.
        for number in 0..MESSAGES {
            assert_eq!(publish(&server, number), READERS as u64 + 1);
        }
        assert!(server.stats().pages_open > 0, "pages are used");
        drop(disconnecting);
        let messages: Vec<_> = (0..MESSAGES).map(message).collect();
        for client in &mut readers {
            client.send(0x89, b"in between");
            let mut pong = false;
            for (number, message) in messages.iter().enumerate() {
                loop {
                    match client.receive() {
                        Received::Binary(bytes) => {
                            assert!(bytes == *message, "message {number} with {slow:?}");
                            break;
                        }
                        Received::Pong(payload) => pong |= payload == b"in between",
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert!(pong || client.receive() == Received::Pong(b"in between".to_vec()));
        }
        let report = server.stats_until(|report| report.pending == 0 && report.pages_open == 0);
        assert_eq!(report.queues.outbox_bytes, 0);
        assert_eq!(report.totals.matched, ((READERS + 1) * MESSAGES) as u64);
        assert!(report.totals.delivered >= (READERS * MESSAGES) as u64);
    }
}

#[test]
fn a_client_that_never_reads_leaves_pages_for_others() {
    let server = TestServer::start(paged(SlowPolicy::DropNewest));
    let mut quick: Vec<_> = (0..READERS).map(|_| server.client("/ws/room")).collect();
    let _slow = Client::connect_narrow(server.address, "/ws/room");
    server.wait_for_connections(READERS + 1);
    // More batches than the pool may have files, and fewer bytes than a backlog holds.
    for number in 0..2 * PAGES_FILES_MAX {
        let text = format!("{number:04}{}", "x".repeat(8000));
        server.publish("room", text.as_bytes());
        for client in &mut quick {
            assert_eq!(client.receive_text(), text);
        }
    }
    let report = server.stats();
    assert!(report.pending > PAGES_FILES_MAX as u64, "{report:?}");
    assert!(report.pages_rejected == 0 && report.pages_open < PAGES_FILES_MAX as u64, "{report:?}");
}

#[test]
fn a_close_goes_between_frames_in_pages() {
    let server = TestServer::start(paged(SlowPolicy::Disconnect));
    let mut clients: Vec<_> = (0..READERS).map(|_| Client::connect_narrow(server.address, "/ws/room")).collect();
    publish(&server, 0);
    publish(&server, 1);
    for client in &mut clients {
        client.text(r#"{"event":"LEAVE"}"#);
    }
    server.wait_for_connections(0);
    for client in &mut clients {
        // The partly written message is finished; the other is dropped.
        assert!(client.receive() == Received::Binary(message(0)));
        assert_eq!(client.receive(), Received::Close(Some(1000), "left".to_owned()));
        client.stream.shutdown(Shutdown::Write).unwrap();
    }
    let report = server.stats_until(|report| report.pending == 0);
    assert_eq!((report.totals.delivered, report.totals.dropped_closed), (READERS as u64, READERS as u64));
}

#[test]
fn every_policy_drops_whole_messages_of_pages() {
    for slow in POLICIES {
        let mut server = TestServer::start(Config { outbox_bytes_max: 600 * 1024, ..paged(slow) });
        let clients: Vec<_> = (0..READERS).map(|_| Client::connect_narrow(server.address, "/ws/room")).collect();
        for number in 0..MESSAGES {
            publish(&server, number);
        }
        let stalled = server.stats();
        assert!(stalled.totals.dropped_slow > 0, "{slow:?}: {stalled:?}");
        let messages: Vec<_> = (0..MESSAGES).map(message).collect();
        // A drain flushes the backlogs.
        server.stop();
        let mut received_by_all = 0;
        for mut client in clients {
            let mut seen = Vec::new();
            let code = loop {
                match client.receive() {
                    Received::Binary(bytes) => {
                        let number = MESSAGE_BYTES - bytes.len();
                        assert!(bytes == messages[number], "message {number} with {slow:?}");
                        seen.push(number);
                    }
                    Received::Close(code, _) => break code,
                    other => panic!("{other:?}"),
                }
            };
            client.send(0x88, &[]);
            assert!(seen.is_sorted() && seen.len() < MESSAGES, "{slow:?}: {seen:?}");
            match slow {
                SlowPolicy::Disconnect => assert_eq!(code, Some(1013)),
                SlowPolicy::DropNewest => assert!(seen.iter().copied().eq(0..seen.len()), "{seen:?}"),
                SlowPolicy::DropOldest => assert_eq!(seen.last(), Some(&(MESSAGES - 1))),
            }
            received_by_all += seen.len();
        }
        let report = server.finish();
        assert_eq!((report.totals.delivered, report.totals.outstanding()), (received_by_all as u64, 0), "{slow:?}");
    }
}
