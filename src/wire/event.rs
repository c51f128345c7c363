//! Events: the JSON text messages between client and server.
//!
//! Owns the parsing of client events and the encoding of server events. An invalid event is an
//! [`EventError`] whose text tells the client what to send instead; it never ends a connection.
//! Pure: what an event does is decided in `engine::events`.
//!
//! | client event | fields | effect and answer |
//! |---|---|---|
//! | `SET_NAME` | `new_name` | sets the client's name, 1 to 64 bytes; no answer |
//! | `SAY` | `message` | publishes `CHAT_MSG` to the client's rooms, as `--say` allows |
//! | `SAY` | `message`, `channel` | publishes `CHAT_MSG` to this room of the client |
//! | `SUBSCRIBE` | `channel` | `SUBSCRIBED`, before the channel's first message |
//! | `UNSUBSCRIBE` | `channel` | `UNSUBSCRIBED`, after the channel's last message |
//! | `LEAVE` | | closes the connection with code 1000 |
//!
//! | server event | fields |
//! |---|---|
//! | `CHAT_MSG` | `user`, `message`, `channel` |
//! | `SUBSCRIBED`, `UNSUBSCRIBED` | `channel` |
//! | `ERROR` | `code`, `message`; `channel` if the error concerns one |
//!
//! Every message that is published after the client has seen `SUBSCRIBED` is sent to it. A repeated
//! `SUBSCRIBE` is acknowledged again and changes nothing. Answers wait in the client's backlog like
//! messages, and no policy drops them: a client that sends and does not read is closed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Frame;

/// Longest name that `SET_NAME` takes, in bytes; a longer one gets an `ERROR` event.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// An event that a client may send.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientEvent<'a> {
    /// Sets the client's name for its later messages.
    SetName {
        /// Not empty, at most `wire::event::USER_NAME_BYTES_MAX` bytes.
        #[serde(borrow)]
        new_name: Cow<'a, str>,
    },
    /// A message to the rooms of the sender.
    Say {
        /// Any text.
        #[serde(borrow)]
        message: Cow<'a, str>,
        /// The room that gets it, one of the sender's; without it, all rooms of the sender.
        #[serde(borrow)]
        channel: Option<Cow<'a, str>>,
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
    /// A name that looks like the server's own; see [`is_reserved_name`].
    #[error("no client can have the name server: choose another new_name")]
    ReservedName,
    /// The client's token says who it is.
    #[error("your name is the sub of your token: SET_NAME cannot change it")]
    NameOfToken,
    /// The `sub` of the client's token is too long, or the server's own name.
    #[error("the sub of your token cannot be a name here: it is too long, or the server's own name")]
    UnusableSub,
    /// A channel name that cannot be one.
    #[error("{0}")]
    InvalidChannel(String),
    /// The connection has as many channels as it may have.
    #[error("a connection has at most {most} channels: send UNSUBSCRIBE for one of them first")]
    TooManyChannels {
        /// The channel that was not subscribed to.
        channel: String,
        /// The bound.
        most: usize,
    },
    /// The client sent `SAY` for a channel that it is not subscribed to.
    #[error("you are not subscribed to this channel: send SUBSCRIBE first")]
    NotSubscribed(String),
    /// The client sent `UNSUBSCRIBE` for a channel that it is not subscribed to.
    #[error("you are not subscribed to this channel, so there is nothing to unsubscribe from")]
    NothingToUnsubscribe(String),
    /// The client's token does not allow this channel.
    #[error("your token does not allow this channel")]
    Forbidden(String),
    /// The server does not publish `SAY` to this channel; see `settings::SayPolicy`.
    #[error("this server does not publish SAY to this channel (see its option --say)")]
    SayDisabled(String),
    /// The channel's bound of pending bytes is reached; the message was not sent.
    #[error("the channel has too much pending: the message was not sent, try again later")]
    Overloaded(String),
}

impl EventError {
    /// The `code` of the `ERROR` event.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidJson => "INVALID_JSON",
            Self::InvalidEvent(_) => "INVALID_EVENT",
            Self::UnknownEvent => "UNKNOWN_EVENT",
            Self::InvalidName(_) | Self::ReservedName => "INVALID_NAME",
            Self::InvalidChannel(_) | Self::TooManyChannels { .. } => "INVALID_CHANNEL",
            Self::NotSubscribed(_) | Self::NothingToUnsubscribe(_) => "NOT_SUBSCRIBED",
            Self::NameOfToken | Self::UnusableSub | Self::Forbidden(_) | Self::SayDisabled(_) => "FORBIDDEN",
            Self::Overloaded(_) => "OVERLOADED",
        }
    }

    /// The `channel` of the `ERROR` event, if the event named a valid one.
    #[must_use]
    pub fn channel(&self) -> Option<&str> {
        match self {
            Self::TooManyChannels { channel, .. }
            | Self::NotSubscribed(channel)
            | Self::NothingToUnsubscribe(channel)
            | Self::Forbidden(channel)
            | Self::SayDisabled(channel)
            | Self::Overloaded(channel) => Some(channel),
            Self::InvalidJson
            | Self::InvalidEvent(_)
            | Self::UnknownEvent
            | Self::InvalidName(_)
            | Self::ReservedName
            | Self::NameOfToken
            | Self::UnusableSub
            | Self::InvalidChannel(_) => None,
        }
    }

    /// The `ERROR` event.
    #[must_use]
    pub fn frame(&self) -> Frame {
        ServerEvent::Error { code: self.code(), message: &self.to_string(), channel: self.channel() }.frame()
    }
}

/// The name under which the server itself sends `CHAT_MSG`.
pub const SERVER_NAME: &str = "server";

/// Whether a client with this name could be taken for the server: in any case of letters, and with
/// spaces or invisible characters added. Look-alike letters of other scripts are not recognised.
#[must_use]
pub fn is_reserved_name(name: &str) -> bool {
    let is_invisible = |char: char| {
        let formatting = ['\u{ad}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{feff}'];
        char.is_control()
            || formatting.contains(&char)
            || ('\u{202a}'..='\u{202e}').contains(&char)
            || ('\u{2060}'..='\u{206f}').contains(&char)
    };
    let visible: String = name.chars().filter(|&char| !is_invisible(char)).collect();
    visible.trim().eq_ignore_ascii_case(SERVER_NAME)
}

/// Whether a `CHAT_MSG` has room for this name: the room that the longest name of SET_NAME takes if
/// each of its bytes is escaped.
#[must_use]
pub fn fits_name(name: &str) -> bool {
    // A control character is the longest escape: \u0001.
    const ESCAPED_BYTES_MAX: usize = 6;
    let json = serde_json::to_string(name).expect("a string serialises");
    json.len() - "\"\"".len() <= ESCAPED_BYTES_MAX * USER_NAME_BYTES_MAX
}

/// An event that the server may send.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE")]
enum ServerEvent<'a> {
    ChatMsg {
        user: &'a str,
        message: &'a str,
        channel: &'a str,
    },
    Subscribed {
        channel: &'a str,
    },
    Unsubscribed {
        channel: &'a str,
    },
    Error {
        code: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a str>,
    },
}

impl ServerEvent<'_> {
    fn frame(&self) -> Frame {
        // Strings, written to memory: neither the values nor the writer can fail.
        Frame::text(&serde_json::to_string(self).expect("strings serialise"))
    }
}

/// The event `CHAT_MSG`: `user` sent `message` to `channel`.
#[must_use]
pub fn chat_msg(user: &str, message: &str, channel: &str) -> Frame {
    ServerEvent::ChatMsg { user, message, channel }.frame()
}

/// The event `SUBSCRIBED`: the client is subscribed to `channel`.
#[must_use]
pub fn subscribed(channel: &str) -> Frame {
    ServerEvent::Subscribed { channel }.frame()
}

/// The event `UNSUBSCRIBED`: the client is no longer subscribed to `channel`.
#[must_use]
pub fn unsubscribed(channel: &str) -> Frame {
    ServerEvent::Unsubscribed { channel }.frame()
}

/// Reads one event.
///
/// # Errors
/// See [`EventError`].
pub fn parse(text: &str) -> Result<ClientEvent<'_>, EventError> {
    let event = serde_json::from_str(text).map_err(|error| explain(text, &error))?;
    // serde accepts a list of the fields as well.
    if is_list(text) { Err(not_an_object()) } else { Ok(event) }
}

fn is_list(text: &str) -> bool {
    text.trim_start().starts_with('[')
}

fn not_an_object() -> EventError {
    EventError::InvalidEvent("an object is expected".to_owned())
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
    if is_list(text) {
        return not_an_object();
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
    use crate::wire::frame;

    #[test]
    fn every_client_event_parses() {
        let set_name = parse(r#"{"event":"SET_NAME","new_name":"Croc 1"}"#);
        assert_eq!(set_name, Ok(ClientEvent::SetName { new_name: "Croc 1".into() }));
        let say = |message: &'static str, channel: Option<&'static str>| {
            Ok(ClientEvent::Say { message: message.into(), channel: channel.map(Into::into) })
        };
        assert_eq!(parse(r#"{"event":"SAY","message":"a\"b"}"#), say("a\"b", None));
        assert_eq!(parse(r#"{"message":"x","event":"SAY","extra":[1]}"#), say("x", None));
        assert_eq!(parse(r#"{"event":"SAY","message":"x","channel":"room"}"#), say("x", Some("room")));
        assert_eq!(parse(r#"{"event":"SAY","message":"x","channel":null}"#), say("x", None));
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
        assert_eq!(code(r#"["SAY","hi",null]"#), "INVALID_EVENT");
        assert_eq!(code("{}"), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"SAY"}"#), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"SAY","message":7}"#), "INVALID_EVENT");
        assert_eq!(code(r#"{"event":"SAY","message":"x","channel":7}"#), "INVALID_EVENT");
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
    fn names_that_look_like_the_servers_are_reserved() {
        for name in ["server", "Server", "SERVER", " server ", "ser\u{200b}ver", "\u{202e}server", "server\u{0}"] {
            assert!(is_reserved_name(name), "{name:?}");
        }
        for name in ["", " ", "serve", "servers", "my server", "Croc 1"] {
            assert!(!is_reserved_name(name), "{name:?}");
        }
    }

    #[test]
    fn names_fit_by_their_escaped_length() {
        for (name, fits) in [
            ("x".repeat(384), true),
            ("x".repeat(385), false),
            ("\u{1}".repeat(64), true),
            ("\u{1}".repeat(65), false),
            ("\"".repeat(192), true),
            ("\"".repeat(193), false),
        ] {
            assert_eq!(fits_name(&name), fits, "{} bytes", name.len());
        }
    }

    #[test]
    fn server_events_have_their_documented_form() {
        let text =
            |frame: Frame| String::from_utf8(frame.wire()[frame::header_bytes(frame.wire())..].to_vec()).unwrap();
        assert_eq!(
            text(chat_msg("server", "hello, this is server", "all")),
            r#"{"event":"CHAT_MSG","user":"server","message":"hello, this is server","channel":"all"}"#
        );
        assert_eq!(text(subscribed("room-1")), r#"{"event":"SUBSCRIBED","channel":"room-1"}"#);
        assert_eq!(text(unsubscribed("room-1")), r#"{"event":"UNSUBSCRIBED","channel":"room-1"}"#);
        assert_eq!(
            text(EventError::InvalidName(64).frame()),
            r#"{"event":"ERROR","code":"INVALID_NAME","message":"new_name must have 1 to 64 bytes"}"#
        );
        assert_eq!(
            text(EventError::Forbidden("a".to_owned()).frame()),
            r#"{"event":"ERROR","code":"FORBIDDEN","message":"your token does not allow this channel","channel":"a"}"#
        );
        assert!(EventError::InvalidEvent("é".repeat(500)).frame().wire().len() > 100);
    }
}
