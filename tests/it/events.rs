//! Events, rooms, and which clients receive which messages.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hydrant::jwt::TokenKey;
use hydrant::settings::{Config, SayPolicy};
use serde_json::{Value, json};

use crate::support::{Received, STRATEGIES, TestServer, config, publish};

#[test]
fn say_reaches_the_rooms_of_the_sender_and_no_others() {
    let server = TestServer::start(config());
    let (mut sender, mut receiver) = (server.client("/ws/room"), server.client("/ws?channel=other&channel=room"));
    let (mut elsewhere, mut plain) = (server.client("/ws/elsewhere"), server.client("/ws"));
    sender.text(r#"{"event":"SAY","message":"nameless"}"#);
    sender.text(r#"{"event":"SET_NAME","new_name":"Croc 1"}"#);
    sender.text(r#"{"event":"SAY","message":"quote \" and ünïcode"}"#);
    for client in [&mut sender, &mut receiver] {
        let first = r#"{"event":"CHAT_MSG","user":"anonymous","message":"nameless","channel":"room"}"#;
        assert_eq!(client.receive_text(), first);
        let second = r#"{"event":"CHAT_MSG","user":"Croc 1","message":"quote \" and ünïcode","channel":"room"}"#;
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
            assert_eq!(
                receiver.receive_text(),
                r#"{"event":"CHAT_MSG","user":"anonymous","message":"hello","channel":"all"}"#
            );
        }
        assert_eq!(server.publish("all", b"next").matched, 2);
        // The sender got its own message, or nothing: no ERROR event, as it has named no channel.
        if received > 0 {
            assert!(sender.receive_text().contains("hello"));
        }
        assert_eq!(sender.receive_text(), "next", "{say:?}");
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
        (r#"{"event":"SET_NAME","new_name":"server"}"#, "INVALID_NAME"),
        (r#"{"event":"SET_NAME","new_name":" SerVer"}"#, "INVALID_NAME"),
        (r#"{"event":"SUBSCRIBE","channel":"a b"}"#, "INVALID_CHANNEL"),
        (r#"{"event":"UNSUBSCRIBE","channel":"a b"}"#, "INVALID_CHANNEL"),
        (r#"{"event":"UNSUBSCRIBE","channel":"never"}"#, "NOT_SUBSCRIBED"),
        (r#"{"event":"SAY","message":"x","channel":"a b"}"#, "INVALID_CHANNEL"),
        (r#"{"event":"SAY","message":"x","channel":""}"#, "INVALID_CHANNEL"),
        (r#"{"event":"SAY","message":"x","channel":7}"#, "INVALID_EVENT"),
        (r#"{"event":"SAY","message":"x","channel":"never"}"#, "NOT_SUBSCRIBED"),
    ] {
        client.text(event);
        let answer: Value = serde_json::from_str(&client.receive_text()).unwrap();
        assert_eq!((&answer["event"], &answer["code"]), (&"ERROR".into(), &code.into()), "{event}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    client.text(r#"{"event":"SAY","message":"still here"}"#);
    assert!(client.receive_text().contains("still here"));
}

#[test]
fn subscribe_and_unsubscribe_are_acknowledged() {
    let server = TestServer::start(config());
    let mut client = server.client("/ws/first");
    let (subscribed, unsubscribed) =
        (r#"{"event":"SUBSCRIBED","channel":"second"}"#, r#"{"event":"UNSUBSCRIBED","channel":"first"}"#);
    client.text(r#"{"event":"SUBSCRIBE","channel":"second"}"#);
    assert_eq!(client.receive_text(), subscribed);
    client.text(r#"{"event":"SUBSCRIBE","channel":"second"}"#);
    assert_eq!(client.receive_text(), subscribed, "a repeated SUBSCRIBE changes nothing");
    client.text(r#"{"event":"UNSUBSCRIBE","channel":"first"}"#);
    assert_eq!(client.receive_text(), unsubscribed);
    client.text(r#"{"event":"UNSUBSCRIBE","channel":"first"}"#);
    assert_eq!(
        client.receive_text(),
        r#"{"event":"ERROR","code":"NOT_SUBSCRIBED","message":"you are not subscribed to this channel, so there is nothing to unsubscribe from","channel":"first"}"#
    );
    client.text(r#"{"event":"SAY","message":"x","channel":"first"}"#);
    assert_eq!(
        client.receive_text(),
        r#"{"event":"ERROR","code":"NOT_SUBSCRIBED","message":"you are not subscribed to this channel: send SUBSCRIBE first","channel":"first"}"#
    );
    assert_eq!(server.publish("first", b"x").matched, 0);
    assert_eq!(server.publish("second", b"once").matched, 1);
    assert_eq!(client.receive_text(), "once");
    for number in 1..64 {
        client.text(&format!(r#"{{"event":"SUBSCRIBE","channel":"n{number}"}}"#));
        assert_eq!(client.receive_text(), format!(r#"{{"event":"SUBSCRIBED","channel":"n{number}"}}"#));
    }
    client.text(r#"{"event":"SUBSCRIBE","channel":"one-too-many"}"#);
    let error = client.receive_text();
    assert!(error.contains("at most 64 channels") && error.contains(r#""channel":"one-too-many""#), "{error}");
    client.text(r#"{"event":"SUBSCRIBE","channel":"n1"}"#);
    assert_eq!(client.receive_text(), r#"{"event":"SUBSCRIBED","channel":"n1"}"#, "one that it has");
}

#[test]
fn a_client_that_has_seen_subscribed_misses_nothing() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, shards: 3.try_into().unwrap(), ..config() });
        let mut client = server.client("/ws/other");
        for number in 0..40 {
            let room = format!("room-{number}");
            client.text(&format!(r#"{{"event":"SUBSCRIBE","channel":"{room}"}}"#));
            assert_eq!(client.receive_text(), format!(r#"{{"event":"SUBSCRIBED","channel":"{room}"}}"#));
            let published = server.publish(&room, room.as_bytes());
            assert_eq!((published.matched, published.dropped), (1, 0), "{fanout:?}");
            assert_eq!(client.receive_text(), room);
        }
    }
}

#[test]
fn acknowledgements_enclose_the_messages_of_a_channel() {
    for fanout in STRATEGIES {
        let server = TestServer::start(Config { fanout, shards: 2.try_into().unwrap(), ..config() });
        // Another subscriber on each shard: passes run without the client, too.
        let _others: Vec<_> = (0..4).map(|_| server.client("/ws/room")).collect();
        let mut client = server.client("/ws/other");
        let (address, next, stop) = (server.address, AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    publish(address, "room", number.to_string().as_bytes());
                }
            });
            for _ in 0..10 {
                client.text(r#"{"event":"SUBSCRIBE","channel":"room"}"#);
                assert_eq!(client.receive_text(), r#"{"event":"SUBSCRIBED","channel":"room"}"#, "{fanout:?}");
                // Every publication from this number on starts later.
                let next = next.load(Ordering::Relaxed);
                let mut expected: usize = client.receive_text().parse().unwrap();
                assert!(expected <= next, "{fanout:?}: {next} and what came before {expected} did not arrive");
                while expected < next + 5 {
                    expected += 1;
                    assert_eq!(client.receive_text(), expected.to_string(), "{fanout:?}");
                }
                client.text(r#"{"event":"UNSUBSCRIBE","channel":"room"}"#);
                while client.receive_text() != r#"{"event":"UNSUBSCRIBED","channel":"room"}"# {}
                assert_eq!(server.publish("other", b"the next").matched, 1);
                assert_eq!(client.receive_text(), "the next", "{fanout:?}: nothing comes behind UNSUBSCRIBED");
            }
            stop.store(true, Ordering::Relaxed);
            publisher.join().unwrap();
        });
    }
}

#[test]
fn say_with_a_channel_reaches_that_room_only() {
    let server = TestServer::start(config());
    let mut sender = server.client("/ws?channel=a&channel=b&channel=all");
    let (mut in_a, mut in_b) = (server.client("/ws/a"), server.client("/ws/b"));
    server.wait_for_connections(3);
    sender.text(r#"{"event":"SAY","message":"for a","channel":"a"}"#);
    sender.text(r#"{"event":"SAY","message":"for both"}"#);
    let [for_a, both_a, both_b] = [("for a", "a"), ("for both", "a"), ("for both", "b")].map(|(message, channel)| {
        format!(r#"{{"event":"CHAT_MSG","user":"anonymous","message":"{message}","channel":"{channel}"}}"#)
    });
    assert_eq!([in_a.receive_text(), in_a.receive_text()], [for_a.clone(), both_a.clone()]);
    assert_eq!(in_b.receive_text(), both_b);
    let mut own: Vec<_> = (0..3).map(|_| sender.receive_text()).collect();
    own.sort();
    assert_eq!(own, [for_a, both_a, both_b], "once per room");
    // By default, SAY is not published to `all`.
    sender.text(r#"{"event":"SAY","message":"x","channel":"all"}"#);
    let error = sender.receive_text();
    assert!(error.contains(r#""code":"FORBIDDEN""#) && error.contains("--say"), "{error}");
    let report = server.stats_until(|report| report.pending == 0);
    // Six messages and the error.
    assert_eq!((report.says, report.totals.delivered), (2, 7));
}

#[test]
fn say_with_a_channel_obeys_the_policy() {
    for (say, room, all) in
        [(SayPolicy::Off, false, false), (SayPolicy::Rooms, true, false), (SayPolicy::All, true, true)]
    {
        let server = TestServer::start(Config { say, ..config() });
        let mut sender = server.client("/ws?channel=room&channel=all");
        for (channel, published) in [("room", room), ("all", all)] {
            sender.text(&format!(r#"{{"event":"SAY","message":"x","channel":"{channel}"}}"#));
            let received = sender.receive_text();
            let event = if published { "CHAT_MSG" } else { "ERROR" };
            assert!(received.contains(event) && received.contains(channel), "{say:?} {channel}: {received}");
        }
        let says = u64::from(room) + u64::from(all);
        assert_eq!(server.stats().says, says, "{say:?}");
    }
}

#[test]
fn the_sub_of_a_token_is_the_name_of_its_client() {
    let server = TestServer::start(Config { subscriber_key: Some(TokenKey::from_secret("secret")), ..config() });
    let connect = |sub: Value| {
        let claims = json!({"exp": 4_000_000_000_u64, "sub": sub});
        let token = crate::signing::token(&claims, b"secret");
        server.client(&format!("/ws/room?token={token}"))
    };
    let chat = |user: &str| format!(r#"{{"event":"CHAT_MSG","user":"{user}","message":"x","channel":"room"}}"#);
    let mut ann = connect(json!("ann"));
    ann.text(r#"{"event":"SET_NAME","new_name":"bob"}"#);
    assert_eq!(
        ann.receive_text(),
        r#"{"event":"ERROR","code":"FORBIDDEN","message":"your name is the sub of your token: SET_NAME cannot change it"}"#
    );
    // Its own name is no change.
    ann.text(r#"{"event":"SET_NAME","new_name":"ann"}"#);
    ann.text(r#"{"event":"SAY","message":"x"}"#);
    assert_eq!(ann.receive_text(), chat("ann"));
    for sub in [json!("server"), json!("x".repeat(385))] {
        let mut unusable = connect(sub);
        unusable.text(r#"{"event":"SAY","message":"x"}"#);
        let error = unusable.receive_text();
        assert!(error.contains("FORBIDDEN") && error.contains("the sub of your token"), "{error}");
    }
    // Without `sub`, the client chooses its name.
    let mut nameless = connect(json!(null));
    nameless.text(r#"{"event":"SET_NAME","new_name":"carl"}"#);
    nameless.text(r#"{"event":"SAY","message":"x"}"#);
    assert_eq!(nameless.receive_text(), chat("carl"));
}

#[test]
fn the_tick_is_sent_to_all_and_to_no_other_channel() {
    let server = TestServer::start(Config { tick: Some(Duration::from_millis(20)), ..config() });
    let (mut plain, mut room) = (server.client("/ws"), server.client("/ws/room"));
    for _ in 0..3 {
        let tick = r#"{"event":"CHAT_MSG","user":"server","message":"hello, this is server","channel":"all"}"#;
        assert_eq!(plain.receive_text(), tick);
    }
    server.publish("room", b"not a tick");
    assert_eq!(room.receive_text(), "not a tick");
}
