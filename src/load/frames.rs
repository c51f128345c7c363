//! Parses the frames of a server in the pieces in which they are read.
//!
//! Owns the state between two reads of one connection: 24 bytes, and a box only while a header, a
//! control frame or the head of a message is split. Knows every form that RFC 6455 allows a server:
//! lengths of 1, 2 and 8 bytes, messages in fragments, control frames between them. It never copies
//! a payload that lies in the buffer. Any split of a stream gives the same events.

/// Longest header of a frame without a mask, in bytes (RFC 6455, section 5.2).
const HEADER_BYTES_MAX: usize = 10;
/// Longest payload of a control frame, in bytes (section 5.5).
const CONTROL_BYTES_MAX: u32 = 125;

/// Inside a frame whose payload is incomplete.
const IN_FRAME: u8 = 1;
/// That frame is a control frame.
const CONTROL: u8 = 2;
/// That frame is the last one of its message.
const LAST: u8 = 4;
/// A message has begun and is incomplete.
const IN_MESSAGE: u8 = 8;
/// The head of that message was passed on.
const MARKED: u8 = 16;

/// Why a stream is not valid for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A mask, which only clients use (section 5.1).
    #[error("a frame of the server is masked, which only frames of clients are (RFC 6455, section 5.1)")]
    Masked,
    /// The ping of this client.
    #[error("the server sends the client's own bytes back: it is an echo server without WebSocket frames")]
    Echo,
    /// A reserved bit without a negotiated extension (section 5.2).
    #[error("a reserved bit is set")]
    ReservedBit,
    /// An opcode without a meaning (section 5.2).
    #[error("the opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// A length of 4 GiB or more: more than any message of a load, and mostly one with its highest
    /// bit set (section 5.2).
    #[error("the length of a frame is 4 GiB or more")]
    BadLength,
    /// A control frame in fragments, or too long (section 5.5).
    #[error("a control frame is fragmented or longer than 125 bytes")]
    BadControl,
    /// A continuation of nothing, or a message inside another (section 5.4).
    #[error("a continuation without a start, or a start inside a message")]
    BadFragment,
    /// A close frame of one byte (section 5.5.1).
    #[error("a close frame has half a code")]
    BadClose,
}

/// Receives the events of a parser.
pub(crate) trait FrameSink {
    /// The first bytes of a message: as many as the parser was asked for, or all of a shorter one.
    /// The returned mark comes back with the rest of the message.
    fn head(&mut self, head: &[u8]) -> u32;
    /// Bytes of a message behind its head, in any pieces. Returns the mark from here on.
    fn rest(&mut self, mark: u32, bytes: &[u8]) -> u32;
    /// A message is complete, with its length in bytes.
    fn message(&mut self, mark: u32, message_bytes: u32);
    /// A ping, which needs a pong with the same payload.
    fn ping(&mut self, payload: &[u8]);
    /// A pong.
    fn pong(&mut self);
    /// A close frame, and its code if it has one.
    fn close(&mut self, code: Option<u16>);
}

/// The parts that a read has split.
#[derive(Debug, Default)]
struct Held {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// Opcode of the control frame and its payload so far.
    opcode: u8,
    control: Vec<u8>,
    /// The head of the message so far.
    head: Vec<u8>,
}

/// The position in the stream of one connection.
#[derive(Debug, Default)]
pub(crate) struct FrameParser {
    /// Missing payload of the current frame, in bytes.
    left: u32,
    /// Payload of the current message so far, in bytes.
    message_bytes: u32,
    held: Option<Box<Held>>,
    mark: u32,
    flags: u8,
}

impl FrameParser {
    /// Parses the next bytes; heads of messages have `head_bytes` (at least 1).
    ///
    /// # Errors
    /// A frame that no server may send. The stream is unusable afterwards.
    pub(crate) fn parse(
        &mut self,
        mut bytes: &[u8],
        head_bytes: usize,
        sink: &mut impl FrameSink,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if self.flags == 0 && self.held.is_none() {
                bytes = whole_messages(bytes, head_bytes, sink);
            }
            if self.flags & IN_FRAME == 0 {
                let Some(rest) = self.header(bytes)? else {
                    return Ok(());
                };
                bytes = rest;
            }
            bytes =
                if self.flags & CONTROL == 0 { self.data(bytes, head_bytes, sink) } else { self.control(bytes, sink)? };
            self.release();
        }
        Ok(())
    }

    fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_default()
    }

    /// Frees the box when nothing is split any more.
    fn release(&mut self) {
        let is_empty = |held: &Held| held.header_bytes == 0 && held.head.is_empty();
        if self.flags & CONTROL == 0 && self.held.as_deref().is_some_and(is_empty) {
            self.held = None;
        }
    }

    /// Completes a header. Returns the bytes behind it, or `None` if it is still split.
    fn header<'a>(&mut self, mut bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Violation> {
        let mut header = [0; HEADER_BYTES_MAX];
        let mut have = 0;
        if let Some(held) = &mut self.held {
            have = std::mem::take(&mut held.header_bytes);
            header[..have].copy_from_slice(&held.header[..have]);
        }
        loop {
            let needed = match (have, header[1]) {
                (0 | 1, _) => 2,
                (_, 126) => 4,
                (_, 127) => 10,
                _ => 2,
            };
            if have >= 1 {
                check_first(header[0])?;
            }
            if have >= 2 && header[1] & 0x80 != 0 {
                return Err(if header[..2] == [PING, 0x80] { Violation::Echo } else { Violation::Masked });
            }
            if have == needed {
                break;
            }
            let Some((next, rest)) = bytes.split_first() else {
                if have > 0 {
                    let held = self.held();
                    held.header = header;
                    held.header_bytes = have;
                }
                return Ok(None);
            };
            header[have] = *next;
            have += 1;
            bytes = rest;
        }
        self.left = match header[1] {
            126 => u32::from(u16::from_be_bytes([header[2], header[3]])),
            127 => {
                let [_, _, length @ ..] = header;
                u32::try_from(u64::from_be_bytes(length)).map_err(|_| Violation::BadLength)?
            }
            length => u32::from(length),
        };
        let (last, opcode) = (header[0] & 0x80 != 0, header[0] & 0x0f);
        if opcode >= 8 {
            if !last || self.left > CONTROL_BYTES_MAX {
                return Err(Violation::BadControl);
            }
            self.held().opcode = opcode;
            self.flags |= IN_FRAME | CONTROL;
        } else {
            let continues = opcode == 0;
            if continues != (self.flags & IN_MESSAGE != 0) {
                return Err(Violation::BadFragment);
            }
            self.flags |= IN_FRAME | IN_MESSAGE | if last { LAST } else { 0 };
        }
        Ok(Some(bytes))
    }

    /// Handles payload of a data frame. Returns the bytes behind it.
    fn data<'a>(&mut self, bytes: &'a [u8], head_bytes: usize, sink: &mut impl FrameSink) -> &'a [u8] {
        let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let (payload, rest) = bytes.split_at(taken);
        // `taken` is at most `left`.
        self.left -= payload.len() as u32;
        self.message_bytes = self.message_bytes.saturating_add(payload.len() as u32);
        let ends_message = self.left == 0 && self.flags & LAST != 0;
        if self.flags & MARKED != 0 {
            self.mark = sink.rest(self.mark, payload);
        } else {
            let have = self.held.as_ref().map_or(0, |held| held.head.len());
            let (piece, behind) = payload.split_at(payload.len().min(head_bytes - have));
            if have + piece.len() == head_bytes || ends_message {
                self.mark = match &mut self.held {
                    Some(held) if have > 0 => {
                        held.head.extend_from_slice(piece);
                        sink.head(&std::mem::take(&mut held.head))
                    }
                    _ => sink.head(piece),
                };
                if !behind.is_empty() {
                    self.mark = sink.rest(self.mark, behind);
                }
                self.flags |= MARKED;
            } else if !piece.is_empty() {
                self.held().head.extend_from_slice(piece);
            }
        }
        if ends_message {
            self.flags = 0;
            sink.message(self.mark, std::mem::take(&mut self.message_bytes));
        } else if self.left == 0 {
            self.flags &= !IN_FRAME;
        }
        rest
    }

    /// Handles payload of a control frame. Returns the bytes behind it.
    fn control<'a>(&mut self, bytes: &'a [u8], sink: &mut impl FrameSink) -> Result<&'a [u8], Violation> {
        let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let (payload, rest) = bytes.split_at(taken);
        self.left -= payload.len() as u32;
        let left = self.left;
        let held = self.held();
        held.control.extend_from_slice(payload);
        if left > 0 {
            return Ok(rest);
        }
        let payload = std::mem::take(&mut held.control);
        match (held.opcode, payload.as_slice()) {
            (8, []) => sink.close(None),
            (8, [high, low, ..]) => sink.close(Some(u16::from_be_bytes([*high, *low]))),
            (8, _) => return Err(Violation::BadClose),
            (9, payload) => sink.ping(payload),
            _ => sink.pong(),
        }
        self.flags &= !(IN_FRAME | CONTROL);
        Ok(rest)
    }
}

/// Checks the first byte of a header.
fn check_first(first: u8) -> Result<(), Violation> {
    match first & 0x0f {
        _ if first & 0x70 != 0 => Err(Violation::ReservedBit),
        0..=2 | 8..=10 => Ok(()),
        opcode => Err(Violation::ReservedOpcode(opcode)),
    }
}

/// Handles the whole unfragmented messages at the start of `bytes`, which is nearly everything
/// under load. Returns the bytes behind them.
fn whole_messages<'a>(mut bytes: &'a [u8], head_bytes: usize, sink: &mut impl FrameSink) -> &'a [u8] {
    loop {
        let (start, length) = match *bytes {
            [0x81 | 0x82, length @ 0..126, ..] => (2, usize::from(length)),
            [0x81 | 0x82, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            _ => return bytes,
        };
        let Some((payload, rest)) = bytes[start..].split_at_checked(length) else {
            return bytes;
        };
        let (head, behind) = payload.split_at(length.min(head_bytes));
        let mut mark = sink.head(head);
        if !behind.is_empty() {
            mark = sink.rest(mark, behind);
        }
        // The length is below 2^16.
        sink.message(mark, length as u32);
        bytes = rest;
    }
}

/// Writes a frame of a client. It is masked, as the standard demands, with zeroes, so that the
/// payload stays as it is.
pub(crate) fn write_client_frame(out: &mut Vec<u8>, first_byte: u8, payload: &[u8]) {
    out.push(first_byte);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// First byte of a whole text message.
pub(crate) const TEXT: u8 = 0x81;
/// First byte of a close frame.
pub(crate) const CLOSE: u8 = 0x88;
/// First byte of a ping.
pub(crate) const PING: u8 = 0x89;
/// First byte of a pong.
pub(crate) const PONG: u8 = 0x8a;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Event {
        Head(Vec<u8>),
        Rest(Vec<u8>),
        Message(u32, u32),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    /// Marks messages with the number of their heads.
    #[derive(Default)]
    struct Notes(Vec<Event>, u32);

    impl FrameSink for Notes {
        fn head(&mut self, head: &[u8]) -> u32 {
            self.0.push(Event::Head(head.to_vec()));
            self.1 += 1;
            self.1
        }
        fn rest(&mut self, mark: u32, bytes: &[u8]) -> u32 {
            // Joined, so that the pieces in which it comes make no difference.
            match self.0.last_mut() {
                Some(Event::Rest(rest)) => rest.extend(bytes),
                _ => self.0.push(Event::Rest(bytes.to_vec())),
            }
            mark
        }
        fn message(&mut self, mark: u32, message_bytes: u32) {
            self.0.push(Event::Message(mark, message_bytes));
        }
        fn ping(&mut self, payload: &[u8]) {
            self.0.push(Event::Ping(payload.to_vec()));
        }
        fn pong(&mut self) {
            self.0.push(Event::Pong);
        }
        fn close(&mut self, code: Option<u16>) {
            self.0.push(Event::Close(code));
        }
    }

    /// A frame with its length in the form of 1, 2 or 8 bytes.
    fn frame(first: u8, payload: &[u8], form: u8) -> Vec<u8> {
        let mut wire = vec![first];
        match (payload.len(), form) {
            (length @ 0..126, 0) => wire.push(length as u8),
            (length @ 0..=0xffff, 0 | 1) => {
                wire.push(126);
                wire.extend((length as u16).to_be_bytes());
            }
            (length, _) => {
                wire.push(127);
                wire.extend((length as u64).to_be_bytes());
            }
        }
        wire.extend(payload);
        wire
    }

    fn events(pieces: &[&[u8]], head_bytes: usize) -> Result<Vec<Event>, Violation> {
        let (mut parser, mut notes) = (FrameParser::default(), Notes::default());
        for piece in pieces {
            parser.parse(piece, head_bytes, &mut notes)?;
        }
        Ok(notes.0)
    }

    #[test]
    fn messages_and_control_frames_are_told_apart() {
        let stream = [
            frame(0x81, b"hello world", 0),
            frame(0x89, b"still there", 0),
            frame(0x82, b"", 0),
            frame(0x8a, b"", 0),
            frame(0x81, &[b'y'; 70_000], 2),
            frame(0x01, b"he", 0),
            frame(0x89, b"", 0),
            frame(0x00, b"llo", 1),
            frame(0x80, b"!", 2),
            frame(0x88, b"\x03\xf5too slow", 0),
        ];
        let expected = vec![
            Event::Head(b"hello".to_vec()),
            Event::Rest(b" world".to_vec()),
            Event::Message(1, 11),
            Event::Ping(b"still there".to_vec()),
            Event::Head(vec![]),
            Event::Message(2, 0),
            Event::Pong,
            Event::Head(b"yyyyy".to_vec()),
            Event::Rest(vec![b'y'; 69_995]),
            Event::Message(3, 70_000),
            Event::Ping(vec![]),
            Event::Head(b"hello".to_vec()),
            Event::Rest(b"!".to_vec()),
            Event::Message(4, 6),
            Event::Close(Some(1013)),
        ];
        assert_eq!(events(&[&stream.concat()], 5), Ok(expected));
    }

    #[test]
    fn what_no_server_may_send_is_named() {
        let violation = |stream: &[u8]| events(&[stream], 4).unwrap_err();
        assert_eq!(violation(&[0x81, 0x81, 0, 0, 0, 0, 0]), Violation::Masked);
        assert_eq!(violation(&[0x89, 0x80, 0, 0, 0, 0]), Violation::Echo);
        assert_eq!(violation(&[0xc1, 0]), Violation::ReservedBit);
        assert_eq!(violation(&[0x83, 0]), Violation::ReservedOpcode(3));
        assert_eq!(violation(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), Violation::BadLength);
        assert_eq!(violation(&[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0]), Violation::BadLength);
        assert_eq!(violation(&[0x09, 0]), Violation::BadControl);
        assert_eq!(violation(&[0x89, 126, 0, 126]), Violation::BadControl);
        assert_eq!(violation(&[0x80, 0]), Violation::BadFragment);
        assert_eq!(violation(&[0x01, 0, 0x81, 0]), Violation::BadFragment);
        assert_eq!(violation(&[0x88, 1, 3]), Violation::BadClose);
    }

    #[test]
    fn nothing_is_held_between_whole_frames() {
        let mut parser = FrameParser::default();
        let stream = frame(0x81, b"hello world", 0);
        for cut in 1..stream.len() {
            parser.parse(&stream[..cut], 5, &mut Notes::default()).unwrap();
            parser.parse(&stream[cut..], 5, &mut Notes::default()).unwrap();
            assert!(parser.held.is_none() && parser.flags == 0, "{cut}");
        }
        assert!(size_of::<FrameParser>() <= 24);
    }

    fn any_stream() -> impl Strategy<Value = Vec<u8>> {
        let payload = || prop::collection::vec(any::<u8>(), 0..300);
        let control = (9_u8..=10, prop::collection::vec(any::<u8>(), 0..126))
            .prop_map(|(opcode, payload)| frame(0x80 | opcode, &payload, 0));
        let message = (prop::collection::vec((payload(), 0_u8..3), 1..4), prop::option::of(control.clone())).prop_map(
            |(fragments, control)| {
                let last = fragments.len() - 1;
                let mut wire = Vec::new();
                for (number, (payload, form)) in fragments.iter().enumerate() {
                    let first = if number == 0 { 1 } else { 0 } | if number == last { 0x80 } else { 0 };
                    wire.extend(frame(first, payload, *form));
                    if number < last {
                        wire.extend(control.iter().flatten());
                    }
                }
                wire
            },
        );
        prop::collection::vec(prop_oneof![3 => message, 1 => control], 0..12).prop_map(|frames| frames.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            stream in any_stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            head_bytes in 1_usize..40,
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect();
            let whole = events(&[&stream], head_bytes);
            prop_assert!(whole.is_ok());
            prop_assert_eq!(events(&pieces, head_bytes), whole.clone());
            let bytes: Vec<_> = stream.chunks(1).collect();
            prop_assert_eq!(events(&bytes, head_bytes), whole);
        }
    }
}
