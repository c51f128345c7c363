//! Events, rooms, and which clients receive which messages.

use hydrant::config::{Config, SayPolicy};
use std::time::Duration;

use crate::support::{Received, TestServer, config};

#[test]
fn say_reaches_the_rooms_of_the_sender_and_no_others() {
    let server = TestServer::start(config());
    let (mut sender, mut receiver) = (server.client("/ws/room"), server.client("/ws?channel=other&channel=room"));
    let (mut elsewhere, mut plain) = (server.client("/ws/elsewhere"), server.client("/ws"));
    sender.text(r#"{"event":"SAY","message":"nameless"}"#);
    sender.text(r#"{"event":"SET_NAME","new_name":"Croc 1"}"#);
    sender.text(r#"{"event":"SAY","message":"quote \" and ünïcode"}"#);
    for client in [&mut sender, &mut receiver] {
        assert_eq!(client.receive_text(), r#"{"event":"CHAT_MSG","user":"anonymous","message":"nameless"}"#);
        let second = r#"{"event":"CHAT_MSG","user":"Croc 1","message":"quote \" and ünïcode"}"#;
        assert_eq!(client.receive_text(), second);
    }
    // The other clients receive nothing of it: this is their next message.
    for (client, channel) in [(&mut elsewhere, "elsewhere"), (&mut plain, "all")] {
        assert_eq!(server.publish(channel, b"for you").delivered, 1);
        assert_eq!(client.receive_text(), "for you");
    }
    assert_eq!(server.stats_until(|report| report.says == 2).totals.matched, 6);
}

#[test]
fn say_in_all_is_counted_and_published_only_if_configured() {
    for (say, received) in [(SayPolicy::Off, 0), (SayPolicy::Rooms, 0), (SayPolicy::All, 2)] {
        let server = TestServer::start(Config { say, ..config() });
        let (mut sender, mut receiver) = (server.client("/ws"), server.client("/ws"));
        sender.text(r#"{"event":"SAY","message":"hello"}"#);
        let report = server.stats_until(|report| report.says == 1 && report.totals.delivered == received);
        assert_eq!(report.totals.matched, received, "{say:?}");
        if received > 0 {
            assert_eq!(receiver.receive_text(), r#"{"event":"CHAT_MSG","user":"anonymous","message":"hello"}"#);
        }
        assert_eq!(server.publish("all", b"next").matched, 2);
    }
}

#[test]
fn leave_is_answered_with_close_1000() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws");
    client.text(r#"{"event":"LEAVE"}"#);
    assert_eq!(client.receive(), Received::Close(Some(1000), "left".to_owned()));
    server.wait_for_connections(0);
    client.send(0x88, &1000_u16.to_be_bytes());
    assert_eq!(client.receive(), Received::End);
}

#[test]
fn an_invalid_event_is_answered_with_an_error_and_the_connection_stays() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws/room");
    let long = format!(r#"{{"event":"SET_NAME","new_name":"{}"}}"#, "x".repeat(65));
    for (event, code) in [
        ("nonsense", "INVALID_JSON"),
        ("[1]", "INVALID_EVENT"),
        (r#"{"event":"SAY"}"#, "INVALID_EVENT"),
        (r#"{"event":"DANCE"}"#, "UNKNOWN_EVENT"),
        (r#"{"event":"SET_NAME","new_name":""}"#, "INVALID_NAME"),
        (&long, "INVALID_NAME"),
        (r#"{"event":"SUBSCRIBE","channel":"a b"}"#, "INVALID_CHANNEL"),
        (r#"{"event":"UNSUBSCRIBE","channel":"never"}"#, "INVALID_CHANNEL"),
    ] {
        client.text(event);
        let answer: serde_json::Value = serde_json::from_str(&client.receive_text()).unwrap();
        assert_eq!((&answer["event"], &answer["code"]), (&"ERROR".into(), &code.into()), "{event}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    client.text(r#"{"event":"SAY","message":"still here"}"#);
    assert!(client.receive_text().contains("still here"));
}

#[test]
fn channels_are_joined_and_left_by_events() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws/first");
    client.text(r#"{"event":"SUBSCRIBE","channel":"second"}"#);
    client.text(r#"{"event":"SUBSCRIBE","channel":"second"}"#);
    client.text(r#"{"event":"UNSUBSCRIBE","channel":"first"}"#);
    // Its own message comes back after the events before it were carried out.
    client.text(r#"{"event":"SAY","message":"here"}"#);
    assert!(client.receive_text().contains("here"));
    assert_eq!(server.publish("first", b"x").matched, 0);
    assert_eq!(server.publish("second", b"once").matched, 1);
    assert_eq!(client.receive_text(), "once");
    for number in 1..64 {
        client.text(&format!(r#"{{"event":"SUBSCRIBE","channel":"n{number}"}}"#));
    }
    client.text(r#"{"event":"SUBSCRIBE","channel":"one-too-many"}"#);
    assert!(client.receive_text().contains("at most 64 channels"));
}

#[test]
fn the_tick_is_sent_to_all_and_to_no_other_channel() {
    let server = TestServer::start(Config { tick: Some(Duration::from_millis(20)), ..config() });
    let (mut plain, mut room) = (server.client("/ws"), server.client("/ws/room"));
    for _ in 0..3 {
        let tick = r#"{"event":"CHAT_MSG","user":"server","message":"hello, this is server"}"#;
        assert_eq!(plain.receive_text(), tick);
    }
    server.publish("room", b"not a tick");
    assert_eq!(room.receive_text(), "not a tick");
}
