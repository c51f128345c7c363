//! Events: the JSON text messages between client and server.
//!
//! Owns the parsing of client events and the encoding of server events. An invalid event is an
//! [`EventError`] whose text tells the client what to send instead; it never ends a connection.
//! Pure: what an event does is decided in `engine::events`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Frame;

/// An event that a client may send.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientEvent<'a> {
    /// Sets the client's name for its later messages.
    SetName {
        /// Not empty, at most `config::USER_NAME_BYTES_MAX` bytes.
        #[serde(borrow)]
        new_name: Cow<'a, str>,
    },
    /// A message to the rooms of the sender.
    Say {
        /// Any text.
        #[serde(borrow)]
        message: Cow<'a, str>,
    },
    /// Ends the connection: the server answers with close 1000.
    Leave,
    /// Subscribes to a channel.
    Subscribe {
        /// Its name.
        #[serde(borrow)]
        channel: Cow<'a, str>,
    },
    /// Unsubscribes from a channel.
    Unsubscribe {
        /// Its name.
        #[serde(borrow)]
        channel: Cow<'a, str>,
    },
}

/// The names of all client events; any other name is an unknown event.
const CLIENT_EVENTS: [&str; 5] = ["SET_NAME", "SAY", "LEAVE", "SUBSCRIBE", "UNSUBSCRIBE"];

/// The reason why an event was not carried out; [`EventError::frame`] is the answer to the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not JSON.
    #[error("not JSON: send an object such as {{\"event\":\"SAY\",\"message\":\"hi\"}}")]
    InvalidJson,
    /// JSON, but not an object with the fields of a known event.
    #[error("fields are missing or of the wrong type: {0}")]
    InvalidEvent(String),
    /// An event that does not exist.
    #[error("unknown event: send one of SET_NAME, SAY, LEAVE, SUBSCRIBE, UNSUBSCRIBE")]
    UnknownEvent,
    /// A name that is empty or too long.
    #[error("new_name must have 1 to {0} bytes")]
    InvalidName(usize),
    /// An invalid channel name, or one channel too many.
    #[error("{0}")]
    InvalidChannel(String),
    /// The client's token does not allow this channel.
    #[error("your token does not allow this channel")]
    Forbidden,
    /// The channel's bound of pending bytes is reached; the message was not sent.
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

/// An event that the server may send.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
enum ServerEvent<'a> {
    ChatMsg { user: &'a str, message: &'a str },
    Error { code: &'a str, message: &'a str },
}

impl ServerEvent<'_> {
    fn frame(&self) -> Frame {
        // Strings, written to memory: neither the values nor the writer can fail.
        Frame::text(&serde_json::to_string(self).expect("strings serialise"))
    }
}

/// The event `CHAT_MSG`: `user` sent `message`.
#[must_use]
pub fn chat_msg(user: &str, message: &str) -> Frame {
    ServerEvent::ChatMsg { user, message }.frame()
}

/// Reads one event.
///
/// # Errors
/// See [`EventError`].
pub fn parse(text: &str) -> Result<ClientEvent<'_>, EventError> {
    let event = serde_json::from_str(text).map_err(|error| explain(text, &error))?;
    // serde accepts a list of the fields as well.
    if text.trim_start().starts_with('[') {
        return Err(EventError::InvalidEvent("an object is expected".to_owned()));
    }
    Ok(event)
}

/// Finds out why an event is invalid. A valid event does not pay for this.
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
        // serde repeats what it read. The bound keeps the answer short for any input.
        _ => EventError::InvalidEvent(error.to_string().chars().take(120).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_event_parses() {
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
    fn invalid_events_have_their_error_code() {
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
    fn every_listed_event_is_known() {
        for event in CLIENT_EVENTS {
            let text = format!(r#"{{"event":"{event}"}}"#);
            assert_ne!(parse(&text), Err(EventError::UnknownEvent), "{event}");
        }
    }

    #[test]
    fn server_events_have_their_documented_form() {
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
