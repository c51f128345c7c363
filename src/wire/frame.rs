//! One message as WebSocket wire bytes, encoded once and shared by every subscriber.
//!
//! Owns the encoding of frames from server to client. A [`Frame`] is always complete (FIN set),
//! never masked (RFC 6455, section 5.1), and never changes. This module does no I/O.

use bytes::{BufMut, Bytes, BytesMut};
use fastwebsockets::{OpCode, Payload};

use crate::close::CloseReason;

/// One message: header and payload in one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// A text message.
    #[must_use]
    pub fn text(payload: &str) -> Self {
        Self::encode(OpCode::Text, payload.as_bytes())
    }

    /// A binary message.
    #[must_use]
    pub fn binary(payload: &[u8]) -> Self {
        Self::encode(OpCode::Binary, payload)
    }

    /// A ping without a payload (RFC 6455, section 5.5.2).
    #[must_use]
    pub fn ping() -> Self {
        Self::encode(OpCode::Ping, &[])
    }

    /// The answer to a ping: the same payload, at most 125 bytes (RFC 6455, section 5.5.3).
    #[must_use]
    pub fn pong(payload: &[u8]) -> Self {
        Self::encode(OpCode::Pong, payload)
    }

    /// A close frame with the code and text of `reason`; without a code, an empty one.
    #[must_use]
    pub fn close(reason: CloseReason) -> Self {
        let row = reason.row();
        match row.code {
            Some(code) => Self::close_with(code, row.text),
            None => Self::encode(OpCode::Close, &[]),
        }
    }

    /// A close frame with `code` and `text` (at most 123 bytes).
    #[must_use]
    pub fn close_with(code: u16, text: &str) -> Self {
        let mut payload = Vec::with_capacity(2 + text.len());
        payload.put_u16(code);
        payload.put_slice(text.as_bytes());
        Self::encode(OpCode::Close, &payload)
    }

    /// Bytes that are on the wire as they are: a response head, ahead of the first frame.
    #[must_use]
    pub(crate) fn from_wire(bytes: Bytes) -> Self {
        Self(bytes)
    }

    fn encode(opcode: OpCode, payload: &[u8]) -> Self {
        let mut head = [0; 16];
        let size = fastwebsockets::Frame::new(true, opcode, None, Payload::Borrowed(payload)).fmt_head(&mut head);
        let mut wire = BytesMut::with_capacity(size + payload.len());
        wire.put_slice(&head[..size]);
        wire.put_slice(payload);
        Self(wire.freeze())
    }

    /// Header and payload.
    #[must_use]
    pub fn wire(&self) -> &Bytes {
        &self.0
    }

    /// Header and payload, without a clone of the reference.
    #[must_use]
    pub fn into_wire(self) -> Bytes {
        self.0
    }
}

/// Length in bytes of the header that starts `wire`, a whole frame of a server.
#[must_use]
pub fn header_bytes(wire: &[u8]) -> usize {
    match wire[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(frame: &Frame) -> String {
        frame.wire().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn wire_bytes_are_those_of_the_rfc() {
        // RFC 6455, section 5.7: a single-frame unmasked text message "Hello".
        assert_eq!(hex(&Frame::text("Hello")), "810548656c6c6f");
        assert_eq!(hex(&Frame::binary(&[1, 2])), "82020102");
        assert_eq!(hex(&Frame::pong(b"Hello")), "8a0548656c6c6f");
        assert_eq!(hex(&Frame::close_with(1000, "")), "880203e8");
        assert_eq!(hex(&Frame::close(CloseReason::Left)), "880603e86c656674");
        assert_eq!(hex(&Frame::close(CloseReason::ByClient)), "8800");
    }

    #[test]
    fn lengths_have_their_shortest_form() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = Frame::binary(&vec![7; length]);
            assert_eq!(frame.wire().len(), header + length);
            assert_eq!(header_bytes(frame.wire()), header);
        }
        assert!(hex(&Frame::binary(&[0; 256])).starts_with("827e0100"));
        assert!(hex(&Frame::binary(&[0; 65_536])).starts_with("827f0000000000010000"));
    }
}
