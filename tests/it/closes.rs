//! Every close reason, provoked: its close frame, and its counter in the metrics.

use std::num::NonZeroU32;
use std::time::{Duration, UNIX_EPOCH};

use hydrant::close::CloseReason;
use hydrant::jwt::TokenKey;
use hydrant::settings::Config;
use serde_json::json;

use crate::support::{Client, Received, TestServer, config, masked, request};

/// The input that provokes the reason; empty if the client has to send nothing.
fn provocation(reason: CloseReason) -> Vec<u8> {
    let announce = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    match reason {
        CloseReason::ByClient => masked(0x88, &1000_u16.to_be_bytes()),
        CloseReason::Left => masked(0x81, br#"{"event":"LEAVE"}"#),
        CloseReason::TooFast => masked(0x89, b"").repeat(50),
        CloseReason::Unmasked => vec![0x81, 0x01, b'x'],
        CloseReason::ReservedBit => masked(0xc1, b"x"),
        CloseReason::ReservedOpcode => masked(0x83, b"x"),
        CloseReason::BadLength => announce(1),
        CloseReason::BadControl => masked(0x09, b"x"),
        CloseReason::BadFragment => masked(0x80, b"x"),
        CloseReason::BadClose => masked(0x88, b"x"),
        CloseReason::NotUtf8 => masked(0x81, b"\xff"),
        CloseReason::NotText => masked(0x82, b"x"),
        CloseReason::TooBig => announce(1 << 40),
        CloseReason::TooManyFragments => [masked(0x01, b"a"), masked(0, b"b").repeat(5)].concat(),
        CloseReason::Disconnected
        | CloseReason::Drain
        | CloseReason::PingTimeout
        | CloseReason::Expired
        | CloseReason::Slow => Vec::new(),
    }
}

/// A server that ends its clients for this reason soon, and for no other.
fn server(reason: CloseReason) -> TestServer {
    let mut config = Config { message_fragments_max: 4, ..config() };
    match reason {
        CloseReason::TooFast => config.client_messages_max = NonZeroU32::new(1),
        CloseReason::Expired => {
            config.subscriber_key = Some(TokenKey::from_secret("secret").with_leeway(Duration::ZERO))
        }
        CloseReason::PingTimeout => {
            let short = Duration::from_millis(100);
            (config.ping_interval, config.idle_timeout) = (Some(short), short);
        }
        CloseReason::Slow => {
            (config.message_bytes_max, config.outbox_bytes_max, config.kernel_bytes_max) = (2048, 8192, 4096);
        }
        _ => {}
    }
    TestServer::start(config)
}

#[test]
fn every_close_reason_is_provoked() {
    for reason in CloseReason::ALL {
        let mut server = server(reason);
        let soon = UNIX_EPOCH.elapsed().unwrap().as_secs() + 5;
        let token = crate::signing::token(&json!({"exp": soon}), b"secret");
        let mut client = Client::connect_narrow(server.address, &format!("/ws/room?token={token}"));
        client.send_raw(&provocation(reason));
        if reason == CloseReason::Slow {
            // A client sees the 101 before its connection is registered.
            server.wait_for_connections(1);
            while server.engine.registry.len() == 1 {
                server.publish("room", &[b'x'; 1000]);
            }
        }
        if reason == CloseReason::Drain {
            server.stop();
        }
        if reason == CloseReason::Disconnected {
            drop(client);
        } else {
            let close = loop {
                match client.receive() {
                    Received::Close(code, text) => break (code, text),
                    Received::End => panic!("{reason:?}: no close frame"),
                    _ => {}
                }
            };
            let row = reason.row();
            // The client's own close frame is answered with its own code.
            let code = if reason == CloseReason::ByClient { Some(1000) } else { row.code };
            assert_eq!(close, (code, row.text.to_owned()), "{reason:?}");
            client.send(0x88, &1000_u16.to_be_bytes());
        }
        let counted = |report: &hydrant::engine::ShardStats| report.closed[reason as usize] == 1;
        if reason == CloseReason::Drain {
            assert!(counted(&server.finish()), "{reason:?}");
            continue;
        }
        let report = server.stats_until(counted);
        assert_eq!(report.closed.iter().sum::<u64>(), 1, "{reason:?} and nothing else");
        let metrics = request(server.address, "GET", "/metrics", &[], b"").body;
        let line = format!("hydrant_closed_total{{reason=\"{}\"}} 1\n", reason.row().label);
        assert!(metrics.contains(&line), "{line}");
    }
}
