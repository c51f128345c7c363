//! The reasons for which a connection ends, one row per reason.
//!
//! Owns the table: [`CloseReason::row`] is the only source of close codes, close texts, metric
//! labels and log levels. Every connection ends with exactly one of these reasons. This module
//! closes nothing itself.

use tracing::Level;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client sent a close frame.
    ByClient,
    /// The client sent the event `LEAVE`.
    Left,
    /// The socket failed or ended without a close frame.
    Disconnected,
    /// The server shuts down.
    Drain,
    /// A ping was not answered in time.
    PingTimeout,
    /// The client's token has expired.
    Expired,
    /// The client sent faster than `settings::Config::client_messages_max` or `client_bytes_max`.
    TooFast,
    /// The client did not read fast enough; see `settings::SlowPolicy::Disconnect`.
    Slow,
    /// A frame without a mask (RFC 6455, section 5.1).
    Unmasked,
    /// A reserved bit was set; no extension was negotiated (section 5.2).
    ReservedBit,
    /// An opcode that RFC 6455 does not define (section 5.2).
    ReservedOpcode,
    /// A length not in its shortest form, or with its highest bit set (section 5.2).
    BadLength,
    /// A control frame in fragments, or longer than 125 bytes (section 5.5).
    BadControl,
    /// A continuation frame without a message, or a new message inside a fragmented one (section
    /// 5.4).
    BadFragment,
    /// A close frame of one byte, or with a code that may not be sent (section 7.4).
    BadClose,
    /// A text message or a close text that is not UTF-8 (section 8.1).
    NotUtf8,
    /// A binary message on a connection whose messages are events.
    NotText,
    /// A message longer than `settings::Config::message_bytes_max`.
    TooBig,
    /// A message of more than `settings::Config::message_fragments_max` fragments.
    TooManyFragments,
}

/// The row of one reason.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The status code of the close frame (RFC 6455, section 7.4.1); with `None` the server sends
    /// no code of its own.
    pub code: Option<u16>,
    /// The text of the close frame, for the client's author; at most 123 bytes.
    pub text: &'static str,
    /// The value of the metric label `reason`.
    pub label: &'static str,
    /// The level at which the close is logged.
    pub level: Level,
    /// Whether it makes sense for the same client to reconnect.
    pub retry: bool,
}

impl CloseReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::ByClient,
        Self::Left,
        Self::Disconnected,
        Self::Drain,
        Self::PingTimeout,
        Self::Expired,
        Self::TooFast,
        Self::Slow,
        Self::Unmasked,
        Self::ReservedBit,
        Self::ReservedOpcode,
        Self::BadLength,
        Self::BadControl,
        Self::BadFragment,
        Self::BadClose,
        Self::NotUtf8,
        Self::NotText,
        Self::TooBig,
        Self::TooManyFragments,
    ];

    /// The row of this reason.
    #[must_use]
    pub const fn row(self) -> Row {
        const fn normal(code: Option<u16>, text: &'static str, label: &'static str) -> Row {
            Row { code, text, label, level: Level::DEBUG, retry: true }
        }
        const fn violation(code: u16, text: &'static str, label: &'static str) -> Row {
            Row { code: Some(code), text, label, level: Level::DEBUG, retry: false }
        }
        match self {
            Self::ByClient => normal(None, "", "by_client"),
            Self::Left => normal(Some(1000), "left", "left"),
            Self::Disconnected => normal(None, "", "disconnected"),
            Self::Drain => normal(Some(1001), "server is shutting down", "drain"),
            Self::PingTimeout => normal(Some(1011), "a ping was not answered in time", "ping_timeout"),
            Self::Expired => normal(Some(1008), "the token has expired: reconnect with a new one", "expired"),
            Self::TooFast => violation(1008, "too many messages or bytes in a second", "too_fast"),
            Self::Slow => Row {
                code: Some(1013),
                text: "too slow: the backlog is full, read faster",
                label: "slow",
                level: Level::INFO,
                retry: true,
            },
            Self::Unmasked => violation(1002, "frame is not masked", "unmasked"),
            Self::ReservedBit => violation(1002, "reserved bit is set", "reserved_bit"),
            Self::ReservedOpcode => violation(1002, "opcode is reserved", "reserved_opcode"),
            Self::BadLength => violation(1002, "length is not in its shortest form", "bad_length"),
            Self::BadControl => violation(1002, "control frame is fragmented or longer than 125 bytes", "bad_control"),
            Self::BadFragment => {
                violation(1002, "continuation without a start, or start inside a message", "bad_fragment")
            }
            Self::BadClose => violation(1002, "close code is not allowed", "bad_close"),
            Self::NotUtf8 => violation(1007, "text is not UTF-8", "not_utf8"),
            Self::NotText => violation(1003, "binary message: only text events are understood here", "not_text"),
            Self::TooBig => violation(1009, "message is too big", "too_big"),
            Self::TooManyFragments => violation(1008, "message has too many fragments", "too_many_fragments"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_are_complete_and_fit_a_control_frame() {
        let labels: HashSet<_> = CloseReason::ALL.iter().map(|reason| reason.row().label).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len(), "labels are distinct");
        for (number, reason) in CloseReason::ALL.into_iter().enumerate() {
            let row = reason.row();
            assert_eq!(reason as usize, number, "ALL is in the order of the numbers");
            assert!(row.text.len() <= 123, "{reason:?}");
            assert!(row.code.is_some() || row.text.is_empty(), "{reason:?}");
        }
    }
}
