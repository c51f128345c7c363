//! `wire::event`: any text. An accepted event has the fields that a general JSON parser finds in
//! it, a `CHAT_MSG` has the text of its `SAY` and fits an empty backlog, and an `ERROR` is short.

#![no_main]

use std::str;

use hydrant::config::{CHANNEL_NAME_BYTES_MAX, FRAME_EXTRA_BYTES, USER_NAME_BYTES_MAX};
use hydrant::engine::publication::ChannelName;
use hydrant::outbox::ENTRY_BYTES;
use hydrant::wire::Frame;
use hydrant::wire::event::{self, ClientEvent};
use hydrant::wire::frame::header_bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

/// Longest `ERROR`, on the wire.
const ERROR_BYTES_MAX: usize = 1024;

/// The JSON object in a frame of the server.
fn object_in(frame: &Frame) -> Map<String, Value> {
    let wire = frame.wire();
    let payload = str::from_utf8(&wire[header_bytes(wire)..]).expect("it is text");
    assert_eq!(frame, &Frame::text(payload));
    match serde_json::from_str(payload) {
        Ok(Value::Object(object)) => object,
        other => panic!("no object: {other:?} in {payload}"),
    }
}

/// The name of an event and its field, as a general JSON parser finds them.
fn expected(text: &str) -> Option<(String, Option<(&'static str, String)>)> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    let string = |name: &str| object.get(name)?.as_str().map(str::to_owned);
    let event = string("event")?;
    let field = match &*event {
        "SET_NAME" => "new_name",
        "SAY" => "message",
        "SUBSCRIBE" | "UNSUBSCRIBE" => "channel",
        "LEAVE" => return Some((event, None)),
        _ => return None,
    };
    let value = string(field)?;
    Some((event, Some((field, value))))
}

/// The same of an event that was accepted.
fn found(event: &ClientEvent<'_>) -> (String, Option<(&'static str, String)>) {
    let (name, field) = match event {
        ClientEvent::SetName { new_name } => ("SET_NAME", Some(("new_name", new_name))),
        ClientEvent::Say { message } => ("SAY", Some(("message", message))),
        ClientEvent::Leave => ("LEAVE", None),
        ClientEvent::Subscribe { channel } => ("SUBSCRIBE", Some(("channel", channel))),
        ClientEvent::Unsubscribe { channel } => ("UNSUBSCRIBE", Some(("channel", channel))),
    };
    (name.to_owned(), field.map(|(field, value)| (field, value.clone().into_owned())))
}

fn check_chat(text: &str, user: &str, message: &str) {
    let frame = event::chat_msg(user, message);
    let chat = object_in(&frame);
    let fields = ["event", "user", "message"].map(|name| chat[name].as_str().expect("a string"));
    assert_eq!((fields, chat.len()), (["CHAT_MSG", user, message], 3));
    let most = text.len() + FRAME_EXTRA_BYTES;
    assert!(frame.wire().len() + ENTRY_BYTES <= most, "an accepted message may not fit an empty backlog");
}

fn check_channel(name: &str) {
    let Ok(channel) = ChannelName::new(name) else { return };
    assert_eq!(channel.as_str(), name);
    assert!((1..=CHANNEL_NAME_BYTES_MAX).contains(&name.len()) && name.is_ascii());
    assert_eq!(ChannelName::from_url(name), Ok(channel.clone()), "a name needs no escape in a URL");
    let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(ChannelName::from_url(&escaped), Ok(channel), "and may be escaped");
}

fuzz_target!(|text: &str| {
    let expected = expected(text);
    let event = match event::parse(text) {
        Ok(event) => event,
        Err(error) => {
            let frame = error.frame();
            let answer = object_in(&frame);
            assert_eq!((&answer["event"], &answer["code"]), (&"ERROR".into(), &error.code().into()));
            assert_eq!(answer["message"], error.to_string());
            assert!(frame.wire().len() <= ERROR_BYTES_MAX, "an answer grows with its event");
            // The only difference from a general JSON parser: a field that appears twice is
            // rejected.
            if let Some((name, field)) = expected {
                let mut once = Map::from_iter([("event".to_owned(), name.into())]);
                once.extend(field.map(|(field, value)| (field.to_owned(), value.into())));
                assert!(event::parse(&Value::from(once).to_string()).is_ok(), "rejected: {text}");
            }
            return;
        }
    };
    assert_eq!(Some(found(&event)), expected, "{text}");
    match &event {
        ClientEvent::Say { message } => {
            check_chat(text, "anonymous", message);
            // The name that takes most bytes: every byte of it is escaped.
            check_chat(text, &"\u{1}".repeat(USER_NAME_BYTES_MAX), message);
        }
        ClientEvent::SetName { new_name } if new_name.len() <= USER_NAME_BYTES_MAX => check_chat(text, new_name, ""),
        ClientEvent::Subscribe { channel } | ClientEvent::Unsubscribe { channel } => check_channel(channel),
        ClientEvent::SetName { .. } | ClientEvent::Leave => {}
    }
});
