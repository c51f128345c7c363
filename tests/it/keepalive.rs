//! Silent clients get a ping, and are closed without an answer; clients that read nothing are
//! closed by a timeout.

use std::time::Duration;

use hydrant::close::CloseReason;
use hydrant::settings::{Config, SlowPolicy};

use crate::support::{Client, Received, STRATEGIES, TestServer, config, until};

fn impatient() -> Config {
    let short = Duration::from_millis(200);
    Config { ping_interval: Some(short), idle_timeout: short, ..config() }
}

#[test]
fn a_client_that_does_not_answer_a_ping_is_closed() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, ..impatient() });
        let mut silent = server.client("/ws/room");
        assert_eq!(silent.receive(), Received::Ping(Vec::new()), "{fanout:?}");
        let close = Received::Close(Some(1011), CloseReason::PingTimeout.row().text.to_owned());
        assert_eq!(silent.receive(), close, "{fanout:?}");
        silent.send(0x88, &1011_u16.to_be_bytes());
        assert_eq!(silent.receive(), Received::End);
        assert_eq!(server.stats().closed[CloseReason::PingTimeout as usize], 1);
    }
}

#[test]
fn a_client_that_answers_stays() {
    let server = TestServer::start(Config { idle_timeout: crate::support::PATIENCE, ..impatient() });
    let mut client = server.client("/ws/room");
    for answer in 0..3 {
        assert_eq!(client.receive(), Received::Ping(Vec::new()));
        // A pong, another frame, or half of one.
        match answer {
            0 => client.send(0x8a, &[]),
            1 => client.text("whatever"),
            _ => client.send_raw(&[0x81]),
        }
        if answer == 1 {
            assert!(matches!(client.receive(), Received::Text(error) if error.contains("ERROR")));
        }
    }
    assert_eq!(server.engine.registry.len(), 1);
    assert_eq!(server.publish("room", b"still there").delivered, 1);
}

#[test]
fn a_client_that_reads_nothing_is_ended_by_the_kernel() {
    let narrow = Config { outbox_bytes_max: 20 * 1024, message_bytes_max: 2048, kernel_bytes_max: 4096, ..config() };
    let write_timeout = Duration::from_millis(300);
    let server = TestServer::start(Config { slow: SlowPolicy::DropOldest, write_timeout, ..narrow });
    let _stalled = Client::connect_narrow(server.address, "/ws/room");
    server.wait_for_connections(1);
    let gone = || (server.publish("room", &[b'x'; 1000]).matched == 0).then_some(());
    until(gone, || "it is still subscribed".to_owned());
    let report = server.stats_until(|report| report.pending == 0);
    assert_eq!(report.closed[CloseReason::Disconnected as usize], 1);
}
