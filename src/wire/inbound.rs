//! The decoder of what clients send: bytes in, whole messages out.
//!
//! Owns the partly received frame and message of one connection; a [`Decoder`] without either takes
//! 8 bytes. A frame that arrived whole is unmasked in place and returned without a copy. Only a
//! partly received message is kept, in memory that grows with the bytes received, never with the
//! length that a header announces. Every violation of RFC 6455 is a [`CloseReason`], reported at
//! the first byte that shows it. Pure: no I/O, no clock.

use std::borrow::Cow;

use fastwebsockets::{CloseCode, OpCode};

use crate::close::CloseReason;

/// Longest header of a client's frame in bytes: 2, a length of 8, a mask of 4 (RFC 6455, section
/// 5.2).
const HEADER_BYTES_MAX: usize = 14;
/// Longest payload of a control frame in bytes (section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Bounds on one message, checked before memory is allocated for it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest message in bytes.
    pub message_bytes_max: usize,
    /// Most frames of one message.
    pub fragments_max: u32,
}

/// A message or a control frame, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// A text message.
    Text(Cow<'a, str>),
    /// A binary message.
    Binary(Cow<'a, [u8]>),
    /// A ping, to be answered by a pong with the same payload.
    Ping(Cow<'a, [u8]>),
    /// A pong.
    Pong,
    /// A close frame; its code, if it had one.
    Close(Option<u16>),
}

/// The bytes of one read that are not yet decoded.
#[derive(Debug)]
pub struct Input<'a>(&'a mut [u8]);

impl<'a> Input<'a> {
    /// Input from `bytes`, which are decoded in place.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, length: usize) -> &'a mut [u8] {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(length);
        self.0 = rest;
        taken
    }
}

/// The decoder of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// A partly received frame or message.
#[derive(Debug, Default)]
struct Partial {
    /// An incomplete header.
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// The frame whose payload is incomplete; its `payload_bytes` are those still missing.
    frame: Option<Header>,
    /// The payload received so far of an incomplete control frame.
    control: Vec<u8>,
    /// The message whose frames are incomplete.
    message: Option<Message>,
}

impl Partial {
    fn is_idle(&self) -> bool {
        self.header_bytes == 0 && self.frame.is_none() && self.message.is_none()
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    fin: bool,
    opcode: OpCode,
    /// Rotated as the payload is consumed: its first byte belongs to the next payload byte.
    mask: [u8; 4],
    payload_bytes: usize,
}

#[derive(Debug)]
struct Message {
    text: bool,
    bytes: Vec<u8>,
    /// For text: the bytes before this index are valid UTF-8.
    checked: usize,
    fragments: u32,
}

impl Message {
    /// Checks the received part of a text, up to a character that is still incomplete (section
    /// 8.1).
    fn check_utf8(&mut self) -> Result<(), CloseReason> {
        if self.text {
            match std::str::from_utf8(&self.bytes[self.checked..]) {
                Ok(_) => self.checked = self.bytes.len(),
                Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
                Err(_) => return Err(CloseReason::NotUtf8),
            }
        }
        Ok(())
    }

    fn finish<'a>(self) -> Result<Inbound<'a>, CloseReason> {
        if self.text {
            let text = String::from_utf8(self.bytes).map_err(|_| CloseReason::NotUtf8)?;
            Ok(Inbound::Text(text.into()))
        } else {
            Ok(Inbound::Binary(self.bytes.into()))
        }
    }
}

impl Decoder {
    /// The next complete message or control frame; `None` when `input` is used up.
    ///
    /// # Errors
    /// The reason to close the connection; the rest of the input must not be decoded.
    pub fn next<'a>(&mut self, input: &mut Input<'a>, limits: &Limits) -> Result<Option<Inbound<'a>>, CloseReason> {
        loop {
            let complete = |partial: &Partial| partial.frame.is_some_and(|frame| frame.payload_bytes == 0);
            if input.0.is_empty() && !self.partial.as_deref().is_some_and(complete) {
                if self.partial.as_ref().is_some_and(|partial| partial.is_idle()) {
                    self.partial = None;
                }
                return Ok(None);
            }
            let decoded = match &mut self.partial {
                Some(partial) if partial.frame.is_some() => partial.payload(input)?,
                Some(partial) if partial.header_bytes > 0 => {
                    partial.header(input, limits)?;
                    None
                }
                _ => self.frame(input, limits)?,
            };
            if decoded.is_some() {
                return Ok(decoded);
            }
        }
    }

    /// Payload bytes that are still missing of a partly received frame.
    #[must_use]
    pub fn missing_bytes(&self) -> usize {
        self.partial.as_ref().and_then(|partial| partial.frame).map_or(0, |frame| frame.payload_bytes)
    }

    /// Bytes of memory for a partly received message.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Partial>() + partial.control.capacity() + message
        })
    }

    /// Decodes from the start of a frame: in place if all of it is there, else into `partial`.
    fn frame<'a>(&mut self, input: &mut Input<'a>, limits: &Limits) -> Result<Option<Inbound<'a>>, CloseReason> {
        let Some((header, header_bytes)) = parse(input.0)? else {
            let partial = self.partial.get_or_insert_default();
            let rest = input.take(input.0.len());
            partial.header[..rest.len()].copy_from_slice(rest);
            partial.header_bytes = rest.len();
            return Ok(None);
        };
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        admit(&header, message, limits)?;
        input.take(header_bytes);
        let control = is_control(header.opcode);
        let whole = header.payload_bytes <= input.0.len();
        if whole && (control || (header.fin && header.opcode != OpCode::Continuation)) {
            let payload = input.take(header.payload_bytes);
            fastwebsockets::unmask(payload, header.mask);
            return finish(header.opcode, Cow::Borrowed(payload)).map(Some);
        }
        self.partial.get_or_insert_default().begin(header);
        Ok(None)
    }
}

impl Partial {
    /// Completes a partly received header.
    fn header(&mut self, input: &mut Input<'_>, limits: &Limits) -> Result<(), CloseReason> {
        while !input.0.is_empty() {
            self.header[self.header_bytes] = input.take(1)[0];
            self.header_bytes += 1;
            if let Some((header, _)) = parse(&self.header[..self.header_bytes])? {
                self.header_bytes = 0;
                admit(&header, self.message.as_ref(), limits)?;
                self.begin(header);
                break;
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: Header) {
        self.frame = Some(header);
        match (is_control(header.opcode), &mut self.message) {
            (true, _) => {}
            (false, Some(message)) => message.fragments += 1,
            (false, message) => {
                let text = header.opcode == OpCode::Text;
                *message = Some(Message { text, bytes: Vec::new(), checked: 0, fragments: 1 });
            }
        }
    }

    /// Takes the received part of the frame's payload; returns the message that it completes, if
    /// any.
    fn payload<'a>(&mut self, input: &mut Input<'a>) -> Result<Option<Inbound<'a>>, CloseReason> {
        let Some(frame) = &mut self.frame else { return Ok(None) };
        let chunk = input.take(frame.payload_bytes.min(input.0.len()));
        fastwebsockets::unmask(chunk, frame.mask);
        frame.mask.rotate_left(chunk.len() % 4);
        frame.payload_bytes -= chunk.len();
        let header = *frame;
        if header.payload_bytes == 0 {
            self.frame = None;
        }
        if is_control(header.opcode) {
            self.control.extend_from_slice(chunk);
            if self.frame.is_some() {
                return Ok(None);
            }
            return finish(header.opcode, Cow::Owned(std::mem::take(&mut self.control))).map(Some);
        }
        let message = self.message.as_mut().expect("begin() made one for this frame");
        message.bytes.extend_from_slice(chunk);
        message.check_utf8()?;
        if self.frame.is_some() || !header.fin {
            return Ok(None);
        }
        self.message.take().map(Message::finish).transpose()
    }
}

/// The message or control frame that consists of one whole frame.
fn finish(opcode: OpCode, payload: Cow<'_, [u8]>) -> Result<Inbound<'_>, CloseReason> {
    match opcode {
        OpCode::Text => match payload {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| CloseReason::NotUtf8),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| CloseReason::NotUtf8),
        }
        .map(Inbound::Text),
        OpCode::Binary | OpCode::Continuation => Ok(Inbound::Binary(payload)),
        OpCode::Ping => Ok(Inbound::Ping(payload)),
        OpCode::Pong => Ok(Inbound::Pong),
        OpCode::Close => match *payload {
            [] => Ok(Inbound::Close(None)),
            [_] => Err(CloseReason::BadClose),
            [high, low, ref text @ ..] => {
                let code = u16::from_be_bytes([high, low]);
                // 1014 is registered, but missing in fastwebsockets' list.
                if !CloseCode::from(code).is_allowed() && code != 1014 {
                    return Err(CloseReason::BadClose);
                }
                std::str::from_utf8(text).map_err(|_| CloseReason::NotUtf8)?;
                Ok(Inbound::Close(Some(code)))
            }
        },
    }
}

const fn is_control(opcode: OpCode) -> bool {
    matches!(opcode, OpCode::Close | OpCode::Ping | OpCode::Pong)
}

/// Reads a header and its length in bytes, `None` while it is incomplete. A violation of RFC 6455,
/// section 5.2, is an error as soon as the byte that shows it is there.
fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, CloseReason> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first & 0b0111_0000 != 0 {
        return Err(CloseReason::ReservedBit);
    }
    let fin = first & 0b1000_0000 != 0;
    let opcode = OpCode::try_from(first & 0b0000_1111).map_err(|_| CloseReason::ReservedOpcode)?;
    let control = is_control(opcode);
    if control && !fin {
        return Err(CloseReason::BadControl);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & 0b1000_0000 == 0 {
        return Err(CloseReason::Unmasked);
    }
    let short = usize::from(second & 0b0111_1111);
    if control && short > CONTROL_BYTES_MAX {
        return Err(CloseReason::BadControl);
    }
    let (payload_bytes, mask_at) = match short {
        126 => {
            let Some(length) = bytes.get(2..4) else { return Ok(None) };
            (u64::from(u16::from_be_bytes([length[0], length[1]])), 4)
        }
        127 => {
            let Some(length) = bytes.get(2..10) else { return Ok(None) };
            (length.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)), 10)
        }
        short => (short as u64, 2),
    };
    let shortest = match payload_bytes {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    if mask_at != shortest || payload_bytes >> 63 != 0 {
        return Err(CloseReason::BadLength);
    }
    let Some(mask) = bytes.get(mask_at..mask_at + 4) else { return Ok(None) };
    let mask = [mask[0], mask[1], mask[2], mask[3]];
    let payload_bytes = usize::try_from(payload_bytes).map_err(|_| CloseReason::TooBig)?;
    Ok(Some((Header { fin, opcode, mask, payload_bytes }, mask_at + 4)))
}

/// Rejects a frame that does not fit the message in progress, or the limits.
fn admit(header: &Header, message: Option<&Message>, limits: &Limits) -> Result<(), CloseReason> {
    if is_control(header.opcode) {
        return Ok(());
    }
    if (header.opcode == OpCode::Continuation) != message.is_some() {
        return Err(CloseReason::BadFragment);
    }
    let (bytes, fragments) = message.map_or((0, 0), |message| (message.bytes.len(), message.fragments));
    if header.payload_bytes > limits.message_bytes_max.saturating_sub(bytes) {
        return Err(CloseReason::TooBig);
    }
    if fragments >= limits.fragments_max {
        return Err(CloseReason::TooManyFragments);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 100_000, fragments_max: 4 };
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A client's frame, masked.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut wire = vec![first];
        match payload.len() {
            length @ 0..126 => wire.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                wire.push(0x80 | 126);
                wire.extend((length as u16).to_be_bytes());
            }
            length => {
                wire.push(0x80 | 127);
                wire.extend((length as u64).to_be_bytes());
            }
        }
        wire.extend(MASK);
        wire.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        wire
    }

    /// Decodes `wire` in reads of the given lengths; returns the messages, and the reason of the
    /// end if there was one.
    fn decode(wire: &[u8], reads: impl IntoIterator<Item = usize>) -> (Vec<String>, Option<CloseReason>, Decoder) {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        let mut wire = wire.to_vec();
        let mut rest = &mut wire[..];
        let mut reads = reads.into_iter();
        while !rest.is_empty() {
            let length = reads.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
            rest = later;
            let mut input = Input::new(now);
            loop {
                match decoder.next(&mut input, &LIMITS) {
                    Ok(Some(inbound)) => out.push(format!("{inbound:?}")),
                    Ok(None) => break,
                    Err(reason) => return (out, Some(reason), decoder),
                }
            }
        }
        (out, None, decoder)
    }

    fn rejection(wire: &[u8]) -> Option<CloseReason> {
        let in_one_read = decode(wire, []).1;
        assert_eq!(decode(wire, std::iter::repeat(1)).1, in_one_read, "byte by byte the same");
        in_one_read
    }

    #[test]
    fn the_example_of_the_rfc_decodes() {
        // RFC 6455, section 5.7: a single-frame masked text message "Hello".
        let wire = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decode(&wire, []).0, [r#"Text("Hello")"#]);
    }

    #[test]
    fn every_violation_has_its_close_reason() {
        assert_eq!(rejection(&[0xc1, 0x80]), Some(CloseReason::ReservedBit));
        assert_eq!(rejection(&[0x83, 0x80]), Some(CloseReason::ReservedOpcode));
        assert_eq!(rejection(&[0x8b, 0x80]), Some(CloseReason::ReservedOpcode));
        assert_eq!(rejection(&[0x81, 0x05]), Some(CloseReason::Unmasked));
        assert_eq!(rejection(&[0x09, 0x80]), Some(CloseReason::BadControl));
        assert_eq!(rejection(&[0x89, 0xfe]), Some(CloseReason::BadControl));
        assert_eq!(rejection(&[0x81, 0xfe, 0, 125]), Some(CloseReason::BadLength));
        assert_eq!(rejection(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Some(CloseReason::BadLength));
        assert_eq!(rejection(&[0x81, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0]), Some(CloseReason::BadLength));
        assert_eq!(rejection(&frame(0x80, b"x")), Some(CloseReason::BadFragment));
        assert_eq!(rejection(&[frame(0x01, b"x"), frame(0x81, b"x")].concat()), Some(CloseReason::BadFragment));
        assert_eq!(rejection(&frame(0x88, b"x")), Some(CloseReason::BadClose));
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            assert_eq!(rejection(&frame(0x88, &code.to_be_bytes())), Some(CloseReason::BadClose), "{code}");
        }
        assert_eq!(rejection(&frame(0x88, b"\x03\xe8\xff")), Some(CloseReason::NotUtf8));
        assert_eq!(rejection(&frame(0x81, b"\xff")), Some(CloseReason::NotUtf8));
        assert_eq!(rejection(&frame(0x81, b"\xe2\x82")), Some(CloseReason::NotUtf8));
    }

    #[test]
    fn limits_hold_before_a_payload_arrives() {
        let mut header = vec![0x82, 0xff];
        header.extend(100_001_u64.to_be_bytes());
        header.extend(MASK);
        assert_eq!(rejection(&header), Some(CloseReason::TooBig));
        header.splice(2..10, 100_000_u64.to_be_bytes());
        let (_, ended, decoder) = decode(&header, []);
        assert_eq!((ended, decoder.missing_bytes()), (None, 100_000));
        assert!(decoder.bytes() < 500, "an announced length takes no memory: {}", decoder.bytes());
        let half = frame(0x02, &[0; 60_000]);
        assert_eq!(rejection(&[half.clone(), frame(0x80, &[0; 60_000])].concat()), Some(CloseReason::TooBig));
        let many = [frame(0x01, b"a"), frame(0, b"b"), frame(0, b"c"), frame(0, b"d"), frame(0, b"e")];
        assert_eq!(rejection(&many.concat()), Some(CloseReason::TooManyFragments));
    }

    #[test]
    fn invalid_text_is_found_before_its_end() {
        let mut wire = frame(0x01, b"ok \xce\xba");
        wire.extend(&frame(0x80, b"\xff and much more")[..7]);
        assert_eq!(decode(&wire, []).1, Some(CloseReason::NotUtf8));
    }

    #[test]
    fn control_frames_between_fragments_decode_in_reads_of_any_length() {
        let wire = [
            frame(0x01, "κόσ".as_bytes()),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x8a, b"pong"),
            frame(0x80, "με".as_bytes()),
            frame(0x82, &[]),
            frame(0x80 | 0x08, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = [r#"Ping([112, 105, 110, 103])"#, "Pong", r#"Text("κόσμε")"#, "Binary([])", "Close(Some(1000))"];
        for length in 1..wire.len() {
            let (out, ended, decoder) = decode(&wire, std::iter::repeat(length));
            assert_eq!((out, ended), (expected.map(str::to_owned).to_vec(), None), "reads of {length} bytes");
            assert_eq!(decoder.bytes(), 0, "nothing is kept at rest");
        }
    }

    #[test]
    fn an_idle_decoder_is_a_pointer() {
        assert_eq!(size_of::<Decoder>(), 8);
    }

    proptest! {
        #[test]
        fn reads_of_any_length_decode_the_same(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
            reads in prop::collection::vec(1_usize..400, 0..50),
        ) {
            let wire: Vec<u8> = payloads.iter().flat_map(|payload| frame(0x82, payload)).collect();
            let expected: Vec<_> =
                payloads.iter().map(|payload| format!("{:?}", Inbound::Binary(payload.into()))).collect();
            prop_assert_eq!(decode(&wire, reads).0, expected);
        }

        #[test]
        fn no_bytes_panic(wire in prop::collection::vec(any::<u8>(), 0..400), reads in prop::collection::vec(1_usize..50, 0..50)) {
            let (in_one_read, in_several) = (decode(&wire, []), decode(&wire, reads));
            // Invalid text may be found before the message ends, so only the reasons have to agree.
            prop_assert_eq!(in_one_read.1, in_several.1);
        }
    }
}
