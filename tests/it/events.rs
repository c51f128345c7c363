//! The article's events, rooms, and who hears what.

use hydrant::config::{Config, SayPolicy};
use std::time::Duration;

use crate::support::{Received, TestServer, config};

#[test]
fn say_reaches_the_rooms_of_the_speaker_and_only_those() {
    let server = TestServer::start(config());
    let (mut speaker, mut listener) = (server.client("/ws/room"), server.client("/ws?channel=other&channel=room"));
    let (mut elsewhere, mut plain) = (server.client("/ws/elsewhere"), server.client("/ws"));
    speaker.text(r#"{"event":"SAY","message":"nameless"}"#);
    speaker.text(r#"{"event":"SET_NAME","new_name":"Croc 1"}"#);
    speaker.text(r#"{"event":"SAY","message":"quote \" and ünïcode"}"#);
    for client in [&mut speaker, &mut listener] {
        assert_eq!(client.receive_text(), r#"{"event":"CHAT_MSG","user":"anonymous","message":"nameless"}"#);
        let second = r#"{"event":"CHAT_MSG","user":"Croc 1","message":"quote \" and ünïcode"}"#;
        assert_eq!(client.receive_text(), second);
    }
    // Whoever was not meant gets nothing: the next thing that comes is this.
    for (client, channel) in [(&mut elsewhere, "elsewhere"), (&mut plain, "all")] {
        assert_eq!(server.publish(channel, b"for you").delivered, 1);
        assert_eq!(client.receive_text(), "for you");
    }
    assert_eq!(server.stats_until(|report| report.says == 2).totals.matched, 6);
}

#[test]
fn say_in_all_is_counted_and_repeated_only_if_asked_for() {
    for (say, heard) in [(SayPolicy::Off, 0), (SayPolicy::Rooms, 0), (SayPolicy::All, 2)] {
        let server = TestServer::start(Config { say, ..config() });
        let (mut speaker, mut listener) = (server.client("/ws"), server.client("/ws"));
        speaker.text(r#"{"event":"SAY","message":"hello"}"#);
        let report = server.stats_until(|report| report.says == 1 && report.totals.delivered == heard);
        assert_eq!(report.totals.matched, heard, "{say:?}");
        if heard > 0 {
            assert_eq!(listener.receive_text(), r#"{"event":"CHAT_MSG","user":"anonymous","message":"hello"}"#);
        }
        assert_eq!(server.publish("all", b"next").matched, 2);
    }
}

#[test]
fn leave_is_answered_by_close_1000() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws");
    client.text(r#"{"event":"LEAVE"}"#);
    assert_eq!(client.receive(), Received::Close(Some(1000), "left".to_owned()));
    server.wait_for_connections(0);
    client.send(0x88, &1000_u16.to_be_bytes());
    assert_eq!(client.receive(), Received::End);
}

#[test]
fn a_broken_event_is_answered_and_nothing_else_is_lost() {
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
    // An echo of its own, to know that the events before it are done.
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
fn the_tick_comes_to_all_and_to_nobody_else() {
    let server = TestServer::start(Config { tick: Some(Duration::from_millis(20)), ..config() });
    let (mut plain, mut room) = (server.client("/ws"), server.client("/ws/room"));
    for _ in 0..3 {
        let tick = r#"{"event":"CHAT_MSG","user":"server","message":"hello, this is server"}"#;
        assert_eq!(plain.receive_text(), tick);
    }
    server.publish("room", b"not a tick");
    assert_eq!(room.receive_text(), "not a tick");
}
