//! Slow and disconnecting clients: the effect of each policy, and that every frame is counted.

use std::net::Shutdown;
use std::time::Duration;

use hydrant::close::CloseReason;
use hydrant::settings::{Config, SlowPolicy, Strategy};
use socket2::SockRef;

use crate::support::{Client, POLICIES, Received, STRATEGIES, TestServer, config, masked, until};

/// Messages of 1 KiB, against a backlog of 20 KiB and small kernel buffers.
const MESSAGES: usize = 200;

fn narrow() -> Config {
    Config { outbox_bytes_max: 20 * 1024, message_bytes_max: 2048, kernel_bytes_max: 4096, ..config() }
}

fn message(number: usize) -> String {
    format!("{number:04}{}", "x".repeat(1020))
}

fn number(text: &str) -> usize {
    assert_eq!(text.len(), 1024);
    text[..4].parse().unwrap()
}

/// A server that has published all messages to a client that reads nothing, and to one that reads
/// each message before the next. If the server closes the first client, it has published as many as
/// that took.
fn after_all_messages(fanout: Strategy, slow: SlowPolicy) -> (TestServer, Client, Client, usize) {
    let server = TestServer::start(Config { fanout, slow, ..narrow() });
    let stalled = Client::connect_narrow(server.address, "/ws/room");
    let mut quick = server.client("/ws/room");
    // A client sees the 101 before its connection is registered.
    server.wait_for_connections(2);
    let mut published = 0;
    while published < MESSAGES && server.engine.registry.len() == 2 {
        server.publish("room", message(published).as_bytes());
        assert_eq!(quick.receive_text(), message(published));
        published += 1;
    }
    (server, stalled, quick, published)
}

#[test]
fn disconnect_closes_the_slow_client_and_no_other() {
    for fanout in STRATEGIES {
        let (server, mut slow, _quick, published) = after_all_messages(fanout, SlowPolicy::Disconnect);
        server.wait_for_connections(1);
        let (seen, code) = slow.receive_to_close();
        assert_eq!(code, Some(1013));
        assert!(seen.iter().map(|text| number(text)).eq(0..seen.len()), "{fanout:?}: a prefix without gaps");
        slow.send(0x88, &1013_u16.to_be_bytes());
        assert_eq!(slow.receive(), Received::End);
        let report = server.stats_until(|report| report.pending == 0);
        assert_eq!(report.totals.delivered, (published + seen.len()) as u64, "{fanout:?}");
        assert!(report.totals.dropped_slow > 0);
        assert_eq!(report.closed[CloseReason::Slow as usize], 1);
    }
}

#[test]
fn drop_newest_keeps_the_first_and_continues_later() {
    for fanout in STRATEGIES {
        let (server, mut slow, _quick, _) = after_all_messages(fanout, SlowPolicy::DropNewest);
        let stalled = server.stats();
        assert!(stalled.totals.dropped_slow > 0 && stalled.pending > 0, "{fanout:?}: {stalled:?}");
        let kept = MESSAGES - stalled.totals.dropped_slow as usize;
        for expected in 0..kept {
            assert_eq!(number(&slow.receive_text()), expected, "{fanout:?}");
        }
        let published = server.publish("room", message(7777).as_bytes());
        assert_eq!((published.matched, published.dropped), (2, 0));
        assert_eq!(number(&slow.receive_text()), 7777);
        let report = server.stats_until(|report| report.pending == 0);
        assert_eq!(report.totals.delivered as usize, MESSAGES + kept + 2);
        assert_eq!(server.engine.registry.len(), 2);
    }
}

#[test]
fn drop_oldest_keeps_the_last() {
    for fanout in STRATEGIES {
        let (server, mut slow, _quick, _) = after_all_messages(fanout, SlowPolicy::DropOldest);
        let stalled = server.stats();
        assert!(stalled.totals.dropped_slow > 0 && stalled.pending > 0, "{fanout:?}: {stalled:?}");
        let kept = MESSAGES - stalled.totals.dropped_slow as usize;
        let seen: Vec<_> = (0..kept).map(|_| number(&slow.receive_text())).collect();
        assert!(seen.is_sorted_by(|earlier, later| earlier < later), "{fanout:?}: {seen:?}");
        assert_eq!(seen.last(), Some(&(MESSAGES - 1)), "{fanout:?}: the newest is there");
        let gaps = seen.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        assert_eq!(gaps, 1, "{fanout:?}: one gap, between what had left and what was kept: {seen:?}");
        server.stats_until(|report| report.pending == 0);
    }
}

#[test]
fn frames_of_a_disconnected_client_are_counted() {
    for fanout in STRATEGIES {
        for slow in POLICIES {
            let server = TestServer::start(Config { fanout, slow, ..narrow() });
            let mut quick = server.client("/ws/room");
            // One client has a backlog and is reset; one ends its stream without a close frame.
            let reset = Client::connect_narrow(server.address, "/ws/room");
            let ended = server.client("/ws/room");
            for text in (0..15).map(message) {
                server.publish("room", text.as_bytes());
            }
            SockRef::from(&reset.stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(reset);
            ended.stream.shutdown(Shutdown::Write).unwrap();
            server.wait_for_connections(1);
            for expected in (0..15).map(message) {
                assert_eq!(quick.receive_text(), expected);
            }
            let report = server.stats_until(|report| report.pending == 0);
            assert_eq!(report.totals.matched, 45, "{fanout:?} {slow:?}");
            assert_eq!(report.closed[CloseReason::Disconnected as usize], 2);
        }
    }
}

#[test]
fn a_drained_backlog_is_freed() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, slow: SlowPolicy::DropNewest, ..narrow() });
        let mut slow = Client::connect_narrow(server.address, "/ws/room");
        for text in (0..MESSAGES).map(message) {
            server.publish("room", text.as_bytes());
        }
        let stalled = server.socket_stats();
        assert!((1..=20 * 1024).contains(&stalled.queues.outbox_bytes), "{fanout:?}: {stalled:?}");
        assert!(stalled.queues.kernel_socket_bytes > 0);
        for _ in 0..MESSAGES - stalled.totals.dropped_slow as usize {
            slow.receive_text();
        }
        let drained = server.stats_until(|report| report.pending == 0);
        assert_eq!(drained.queues.outbox_bytes, 0);
    }
}

#[test]
fn the_kernel_does_not_hold_megabytes_for_a_client_that_reads_nothing() {
    let server = TestServer::start(config());
    let _stalled = server.client("/ws/room");
    server.wait_for_connections(1);
    let body = [b'x'; 60_000];
    while !server.engine.registry.is_empty() {
        server.publish("room", &body);
    }
    let held = server.socket_stats().queues.kernel_socket_bytes;
    // Four times the bound: it applies to unsent and to unacknowledged bytes, and the kernel
    // doubles it for its overhead.
    assert!((1..=4 * 256 * 1024).contains(&held), "{held}");
}

#[test]
fn control_frames_go_ahead_of_a_backlog() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, slow: SlowPolicy::DropNewest, ..narrow() });
        let mut slow = Client::connect_narrow(server.address, "/ws/room");
        for text in (0..MESSAGES).map(message) {
            server.publish("room", text.as_bytes());
        }
        let stalled = server.stats();
        let left = (stalled.totals.delivered) as usize;
        assert!(stalled.pending > 1, "{stalled:?}");
        slow.send(0x89, b"are you there");
        // The server reads the ping before this event.
        slow.text(r#"{"event":"SUBSCRIBE","channel":"mark"}"#);
        until(|| (server.publish("mark", b"").matched == 1).then_some(()), || "the ping was not read".to_owned());
        let mut before = 0;
        while slow.receive() != Received::Pong(b"are you there".to_vec()) {
            before += 1;
        }
        // The frames in the kernel, the partly written one, and with `mailbox` the one that its
        // task had taken.
        assert!(before <= left + 2, "{fanout:?}: {before} came before the pong, {left} had left before the ping");
    }
}

#[test]
fn answers_are_not_dropped_with_messages() {
    for fanout in STRATEGIES {
        for slow in [SlowPolicy::DropNewest, SlowPolicy::DropOldest] {
            let (server, mut stalled, _quick, _) = after_all_messages(fanout, slow);
            stalled.text(r#"{"event":"SUBSCRIBE","channel":"mark"}"#);
            stalled.text(r#"{"event":"DANCE"}"#);
            stalled.text(r#"{"event":"UNSUBSCRIBE","channel":"room"}"#);
            let publish = || server.publish("room", message(0).as_bytes());
            until(|| (publish().matched == 1).then_some(()), || "they were not read".to_owned());
            // Of these, more arrive than its backlog holds.
            for text in (0..MESSAGES).map(message) {
                server.publish("mark", text.as_bytes());
            }
            let mut answers = Vec::new();
            while answers.len() < 3 {
                let text = stalled.receive_text();
                answers.extend((text.len() != 1024).then_some(text));
            }
            for (answer, right) in answers.iter().zip(["SUBSCRIBED", "UNKNOWN_EVENT", "UNSUBSCRIBED"]) {
                assert!(answer.contains(&format!("\"{right}\"")), "{fanout:?} {slow:?}: {answers:?}");
            }
            // A client that sends and does not read is closed in the end.
            let mut sender = Client::connect_narrow(server.address, "/ws");
            sender.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            server.wait_for_connections(3);
            let event = masked(0x81, br#"{"event":"DANCE"}"#).repeat(50);
            until(
                || {
                    let failed = std::io::Write::write_all(&mut sender.stream, &event).is_err();
                    (failed || server.engine.registry.len() == 2).then_some(())
                },
                || format!("{fanout:?} {slow:?}: it is still there"),
            );
            server.wait_for_connections(2);
            assert_eq!(server.stats().closed[CloseReason::Slow as usize], 1, "{fanout:?} {slow:?}");
        }
    }
}

#[test]
fn a_close_without_an_answer_is_aborted() {
    let server = TestServer::start(Config { close_timeout: Duration::from_millis(100), ..config() });
    let mut silent = server.client("/ws");
    silent.text(r#"{"event":"LEAVE"}"#);
    assert_eq!(silent.receive(), Received::Close(Some(1000), "left".to_owned()));
    // The client stays silent; the server waits for it no longer than the timeout.
    let loads = || server.engine.loads.iter().map(hydrant::admission::Load::get).sum::<usize>();
    until(|| (loads() == 0).then_some(()), || "the connection is still there".to_owned());
}

#[test]
fn a_close_behind_a_started_frame_ends_the_stream_cleanly() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, slow: SlowPolicy::DropNewest, ..narrow() });
        for (close, code) in [(0x88, 1000), (0xc8, 1002)] {
            let mut slow = Client::connect_narrow(server.address, "/ws/room");
            for text in (0..MESSAGES).map(message) {
                server.publish("room", text.as_bytes());
            }
            slow.send(close, &1000_u16.to_be_bytes());
            server.wait_for_connections(0);
            // Whole messages, the close frame, and the end of the stream: no reset.
            assert_eq!(slow.receive_to_close().1, Some(code), "{fanout:?}");
            assert_eq!(slow.receive(), Received::End, "{fanout:?}");
        }
        server.stats_until(|report| report.pending == 0);
    }
}

#[test]
fn a_disconnected_client_joins_no_channel() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, ..config() });
        let mut quick = server.client("/ws/room");
        for _ in 0..20 {
            // The pong fails, because the reset has arrived already; the SUBSCRIBE was in the same
            // read as the ping.
            let mut gone = server.client("/ws/other");
            let subscribe = masked(0x81, br#"{"event":"SUBSCRIBE","channel":"room"}"#);
            gone.send_raw(&[masked(0x89, b"x"), subscribe].concat());
            SockRef::from(&gone.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        server.wait_for_connections(1);
        let published = until(
            || Some(server.publish("room", b"x")).filter(|published| published.matched == 1),
            || format!("{fanout:?}: more than one subscriber is left"),
        );
        assert_eq!(published.dropped, 0);
        assert_eq!(quick.receive_text(), "x");
        let loads = || server.engine.loads.iter().map(|load| load.get()).sum::<usize>();
        until(|| (loads() == 1).then_some(()), || format!("{fanout:?}: {} connections are kept", loads()));
        server.stats_until(|report| report.pending == 0);
    }
}
