//! The events: text messages of JSON between client and server.
//!
//! Parses what clients send and encodes what the server answers. A broken event is an [`EventError`] that says what
//! to do; it never ends a connection.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Frame;

/// What a client may say.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientEvent<'a> {
    /// The name to speak under from now on.
    SetName {
        /// Not empty, at most `config::USER_NAME_BYTES_MAX` bytes.
        #[serde(borrow)]
        new_name: Cow<'a, str>,
    },
    /// A message to the rooms of the speaker.
    Say {
        /// Any text.
        #[serde(borrow)]
        message: Cow<'a, str>,
    },
    /// The end: the server answers with close 1000.
    Leave,
    /// Receive a channel from now on.
    Subscribe {
        /// Its name.
        #[serde(borrow)]
        channel: Cow<'a, str>,
    },
    /// Receive a channel no more.
    Unsubscribe {
        /// Its name.
        #[serde(borrow)]
        channel: Cow<'a, str>,
    },
}

/// The names of all client events, for the answer to an unknown one.
const CLIENT_EVENTS: [&str; 5] = ["SET_NAME", "SAY", "LEAVE", "SUBSCRIBE", "UNSUBSCRIBE"];

/// Why an event was not carried out; [`EventError::frame`] is what the client gets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not JSON.
    #[error("not JSON: send an object such as {{\"event\":\"SAY\",\"message\":\"hi\"}}")]
    InvalidJson,
    /// JSON, but no object with a known event's fields.
    #[error("fields are missing or of the wrong type: {0}")]
    InvalidEvent(String),
    /// An event that does not exist.
    #[error("unknown event: send one of SET_NAME, SAY, LEAVE, SUBSCRIBE, UNSUBSCRIBE")]
    UnknownEvent,
    /// A name that is empty or too long.
    #[error("new_name must have 1 to {0} bytes")]
    InvalidName(usize),
    /// A channel's name that cannot be one, or one channel too many.
    #[error("{0}")]
    InvalidChannel(String),
    /// The client's token does not reach as far as this channel.
    #[error("your token does not reach as far as this channel")]
    Forbidden,
    /// Too much is pending for a room; the message was not sent.
    #[error("the channel has too much pending: the message was not sent, try again later")]
    Overloaded,
}

impl EventError {
    /// The `code` of the `ERROR` event.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidJson => "INVALID_JSON",
            Self::InvalidEvent(_) => "INVALID_EVENT",
            Self::UnknownEvent => "UNKNOWN_EVENT",
            Self::InvalidName(_) => "INVALID_NAME",
            Self::InvalidChannel(_) => "INVALID_CHANNEL",
            Self::Forbidden => "FORBIDDEN",
            Self::Overloaded => "OVERLOADED",
        }
    }

    /// The `ERROR` event.
    #[must_use]
    pub fn frame(&self) -> Frame {
        ServerEvent::Error { code: self.code(), message: &self.to_string() }.frame()
    }
}

/// What the server may say.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
enum ServerEvent<'a> {
    ChatMsg { user: &'a str, message: &'a str },
    Error { code: &'a str, message: &'a str },
}

impl ServerEvent<'_> {
    fn frame(&self) -> Frame {
        // Strings into memory: neither the values nor the writer can fail.
        Frame::text(&serde_json::to_string(self).expect("strings serialise"))
    }
}

/// The event `CHAT_MSG`: `user` said `message`.
#[must_use]
pub fn chat_msg(user: &str, message: &str) -> Frame {
    ServerEvent::ChatMsg { user, message }.frame()
}

/// Reads one event.
///
/// # Errors
/// What is wrong with it; see [`EventError`].
pub fn parse(text: &str) -> Result<ClientEvent<'_>, EventError> {
    let event = serde_json::from_str(text).map_err(|error| explain(text, &error))?;
    // serde would take a list of the fields as well.
    if text.trim_start().starts_with('[') {
        return Err(EventError::InvalidEvent("an object is expected".to_owned()));
    }
    Ok(event)
}

/// Only a broken event pays for finding out how it is broken.
fn explain(text: &str, error: &serde_json::Error) -> EventError {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
    }
    if !error.is_data() {
        return EventError::InvalidJson;
    }
    match serde_json::from_str::<Head<'_>>(text) {
        Ok(head) if !CLIENT_EVENTS.contains(&&*head.event) => EventError::UnknownEvent,
        Err(head_error) if !head_error.is_data() => EventError::InvalidJson,
        // serde repeats what it read: bounded, for the answer must not grow with the question.
        _ => EventError::InvalidEvent(error.to_string().chars().take(120).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_events_parse() {
        let set_name = parse(r#"{"event":"SET_NAME","new_name":"Croc 1"}"#);
        assert_eq!(set_name, Ok(ClientEvent::SetName { new_name: "Croc 1".into() }));
        assert_eq!(parse(r#"{"event":"SAY","message":"a\"b"}"#), Ok(ClientEvent::Say { message: "a\"b".into() }));
        assert_eq!(parse(r#"{"message":"x","event":"SAY","extra":[1]}"#), Ok(ClientEvent::Say { message: "x".into() }));
        assert_eq!(parse(r#"{"event":"LEAVE"}"#), Ok(ClientEvent::Leave));
        assert_eq!(parse(r#"{"event":"SUBSCRIBE","channel":"a"}"#), Ok(ClientEvent::Subscribe { channel: "a".into() }));
        assert_eq!(
            parse(r#"{"event":"UNSUBSCRIBE","channel":"a"}"#),
            Ok(ClientEvent::Unsubscribe { channel: "a".into() })
        );
    }

    #[test]
    fn what_is_broken_is_said() {
        let code = |text: &str| parse(text).unwrap_err().code();
        assert_eq!(code(""), "INVALID_JSON");
        assert_eq!(code("{"), "INVALID_JSON");
        assert_eq!(code("hello"), "INVALID_JSON");
        assert_eq!(code(r#"{"event":"SAY"} x"#), "INVALID_JSON");
        assert_eq!(code("[]"), "INVALID_EVENT");
        assert_eq!(code(r#" ["SAY","hi"]"#), "INVALID_EVENT");
        assert_eq!(code("{}"), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"SAY"}"#), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"SAY","message":7}"#), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":7}"#), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"DANCE"}"#), "UNKNOWN_EVENT");
        assert_eq!(code(&format!("{{\"x\":{}", "[".repeat(10_000))), "INVALID_JSON");
    }

    #[test]
    fn every_event_of_the_list_is_known() {
        for event in CLIENT_EVENTS {
            let text = format!(r#"{{"event":"{event}"}}"#);
            assert_ne!(parse(&text), Err(EventError::UnknownEvent), "{event}");
        }
    }

    #[test]
    fn server_events_are_those_of_the_contract() {
        assert_eq!(
            &chat_msg("server", "hello, this is server").wire()[2..],
            br#"{"event":"CHAT_MSG","user":"server","message":"hello, this is server"}"#
        );
        assert_eq!(
            &EventError::InvalidName(64).frame().wire()[2..],
            br#"{"event":"ERROR","code":"INVALID_NAME","message":"new_name must have 1 to 64 bytes"}"#
        );
        assert!(EventError::InvalidEvent("é".repeat(500)).frame().wire().len() > 100);
    }
}
