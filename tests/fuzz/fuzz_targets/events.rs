//! `wire::event`: any text. An accepted event has the fields that a general JSON parser finds in
//! it, a `CHAT_MSG` has the text of its `SAY` and fits an empty backlog, and an `ERROR` is short.

#![no_main]

use std::str;

use hydrant::engine::publication::CHANNEL_NAME_BYTES_MAX;
use hydrant::engine::publication::ChannelName;
use hydrant::outbox::ENTRY_BYTES;
use hydrant::settings::FRAME_EXTRA_BYTES;
use hydrant::wire::Frame;
use hydrant::wire::event::USER_NAME_BYTES_MAX;
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

/// The string fields of an event beside its name.
type Fields = Map<String, Value>;

/// The name of an event and its fields, as a general JSON parser finds them.
fn expected(text: &str) -> Option<(String, Fields)> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
    let event = object.get("event")?.as_str()?.to_owned();
    let (required, optional) = match &*event {
        "SET_NAME" => (Some("new_name"), None),
        "SAY" => (Some("message"), Some("channel")),
        "SUBSCRIBE" | "UNSUBSCRIBE" => (Some("channel"), None),
        "LEAVE" => (None, None),
        _ => return None,
    };
    let mut fields = Fields::new();
    if let Some(name) = required {
        fields.insert(name.to_owned(), object.get(name)?.as_str()?.into());
    }
    if let Some(name) = optional {
        match object.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => drop(fields.insert(name.to_owned(), value.as_str()?.into())),
        }
    }
    Some((event, fields))
}

/// The same of an accepted event.
fn found(event: &ClientEvent<'_>) -> (String, Fields) {
    let (name, fields) = match event {
        ClientEvent::SetName { new_name } => ("SET_NAME", vec![("new_name", new_name)]),
        ClientEvent::Say { message, channel } => {
            ("SAY", [("message", message)].into_iter().chain(channel.as_ref().map(|name| ("channel", name))).collect())
        }
        ClientEvent::Leave => ("LEAVE", vec![]),
        ClientEvent::Subscribe { channel } => ("SUBSCRIBE", vec![("channel", channel)]),
        ClientEvent::Unsubscribe { channel } => ("UNSUBSCRIBE", vec![("channel", channel)]),
    };
    (name.to_owned(), fields.into_iter().map(|(name, value)| (name.to_owned(), (**value).into())).collect())
}

fn check_chat(text: &str, user: &str, message: &str, channel: &str) {
    let frame = event::chat_msg(user, message, channel);
    let chat = object_in(&frame);
    let fields = ["event", "user", "message", "channel"].map(|name| chat[name].as_str().expect("a string"));
    assert_eq!((fields, chat.len()), (["CHAT_MSG", user, message, channel], 4));
    let most = text.len() + FRAME_EXTRA_BYTES;
    assert!(frame.wire().len() + ENTRY_BYTES <= most, "an accepted message may not fit an empty backlog");
}

fn check_channel(name: &str) {
    let Ok(channel) = ChannelName::new(name) else { return };
    assert_eq!(channel.as_str(), name);
    assert!((1..=CHANNEL_NAME_BYTES_MAX).contains(&name.len()) && name.is_ascii());
    assert_eq!(ChannelName::from_url(name), Ok(channel.clone()), "a name needs no escape in a URL");
    for (event, frame) in [("SUBSCRIBED", event::subscribed(name)), ("UNSUBSCRIBED", event::unsubscribed(name))] {
        let answer = object_in(&frame);
        assert_eq!((&answer["event"], &answer["channel"], answer.len()), (&event.into(), &name.into(), 2));
    }
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
            if let Some((name, mut once)) = expected {
                once.insert("event".to_owned(), name.into());
                assert!(event::parse(&Value::from(once).to_string()).is_ok(), "rejected: {text}");
            }
            return;
        }
    };
    assert_eq!(Some(found(&event)), expected, "{text}");
    match &event {
        ClientEvent::Say { message, channel } => {
            // The channel and the name that take most bytes: every byte of the name is escaped.
            let channel_longest = "c".repeat(CHANNEL_NAME_BYTES_MAX);
            check_chat(text, "anonymous", message, ChannelName::ALL);
            check_chat(text, &"\u{1}".repeat(USER_NAME_BYTES_MAX), message, &channel_longest);
            channel.iter().for_each(|name| check_channel(name));
        }
        ClientEvent::SetName { new_name } if new_name.len() <= USER_NAME_BYTES_MAX => {
            check_chat(text, new_name, "", ChannelName::ALL);
        }
        ClientEvent::Subscribe { channel } | ClientEvent::Unsubscribe { channel } => check_channel(channel),
        ClientEvent::SetName { .. } | ClientEvent::Leave => {}
    }
});
