//! `wire::inbound`: any bytes under any limits, compared with a decoder that is too simple to be wrong; and what a careful
//! client has written, which has to come out as it went in. Both in any reads.
//!
//! The input says which of the two, the limits and the reads; the wire, or what is to be written, is the rest of it.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use hydrant::close::CloseReason;
use hydrant::wire::inbound::{Decoder, Inbound, Input, Limits};
use libfuzzer_sys::fuzz_target;

/// What a decoder may keep beside the message that has arrived in part: its own state, and a control frame.
const KEPT_BYTES: usize = 512;
/// From here on reads are longer: so many in one run take time and show nothing new.
const WIRE_BYTES_SHORT: usize = 1024;
/// Longest message that is written: beyond where the length takes eight bytes.
const WRITTEN_BYTES_MAX: usize = 70_000;

/// As `Inbound`, with bytes of its own.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

impl From<Inbound<'_>> for Said {
    fn from(inbound: Inbound<'_>) -> Self {
        match inbound {
            Inbound::Text(text) => Self::Text(text.into_owned()),
            Inbound::Binary(bytes) => Self::Binary(bytes.into_owned()),
            Inbound::Ping(bytes) => Self::Ping(bytes.into_owned()),
            Inbound::Pong => Self::Pong,
            Inbound::Close(code) => Self::Close(code),
        }
    }
}

/// How the bytes end.
#[derive(Debug, PartialEq)]
enum End {
    /// Between two messages.
    AtRest,
    /// In a message.
    InPart,
    Refused(CloseReason),
}

/// The real decoder, with reads of these lengths again and again, longer ones for a long wire; one read without any.
fn decode(wire: &[u8], reads: &[u8], limits: &Limits) -> (Vec<Said>, End) {
    let scale = 1 + wire.len() / WIRE_BYTES_SHORT;
    let mut wire = wire.to_vec();
    let mut rest = &mut wire[..];
    let mut reads = reads.iter().cycle();
    let (mut decoder, mut said, mut read) = (Decoder::default(), Vec::new(), 0);
    while !rest.is_empty() {
        let length = reads.next().map_or(rest.len(), |&length| scale * usize::from(length)).clamp(1, rest.len());
        let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
        (rest, read) = (later, read + length);
        let mut input = Input::new(now);
        loop {
            match decoder.next(&mut input, limits) {
                Ok(Some(inbound)) => said.push(inbound.into()),
                Ok(None) => break,
                Err(reason) => return (said, End::Refused(reason)),
            }
            if let Some(Said::Text(_) | Said::Binary(_)) = said.last() {
                assert!(bytes_of(&said[said.len() - 1]) <= limits.message_bytes_max, "a message beyond the limit");
            }
        }
        assert!(decoder.missing_bytes() <= limits.message_bytes_max.max(125), "it waits for what it will not take");
        // A vector may have twice the room that its bytes need.
        let most = KEPT_BYTES + 2 * read.min(limits.message_bytes_max);
        assert!(decoder.bytes() <= most, "{} bytes kept of {read}, {limits:?}", decoder.bytes());
    }
    let end = if decoder.bytes() == 0 { End::AtRest } else { End::InPart };
    (said, end)
}

fn bytes_of(said: &Said) -> usize {
    match said {
        Said::Text(text) => text.len(),
        Said::Binary(bytes) => bytes.len(),
        Said::Ping(_) | Said::Pong | Said::Close(_) => 0,
    }
}

/// The same by RFC 6455 and the limits, with all of the wire at hand and no care for its cost.
fn reference(mut wire: &[u8], limits: &Limits) -> (Vec<Said>, End) {
    let mut said = Vec::new();
    let mut message: Option<(u8, Vec<u8>, u32)> = None;
    let end = loop {
        if wire.is_empty() && message.is_none() {
            break End::AtRest;
        }
        match frame(&mut wire, &mut message, limits) {
            Ok(None) => {}
            Ok(Some(next)) => said.push(next),
            Err(end) => break end,
        }
    };
    (said, end)
}

/// Takes one frame from the wire; what it completes.
fn frame(
    wire: &mut &[u8],
    message: &mut Option<(u8, Vec<u8>, u32)>,
    limits: &Limits,
) -> std::result::Result<Option<Said>, End> {
    let refuse = |wrong: bool, reason| if wrong { Err(End::Refused(reason)) } else { Ok(()) };
    let mut take = |length: usize| wire.split_off(..length).ok_or(End::InPart);
    let first = take(1)?[0];
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    refuse(first & 0x70 != 0, CloseReason::ReservedBit)?;
    refuse(![0, 1, 2, 8, 9, 10].contains(&opcode), CloseReason::ReservedOpcode)?;
    refuse(opcode >= 8 && !fin, CloseReason::BadControl)?;
    let second = take(1)?[0];
    refuse(second & 0x80 == 0, CloseReason::Unmasked)?;
    let short = u64::from(second & 0x7f);
    refuse(opcode >= 8 && short > 125, CloseReason::BadControl)?;
    let long = |bytes: &[u8]| bytes.iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
    let (length, shortest) = match short {
        126 => (long(take(2)?), 126..=0xffff),
        127 => (long(take(8)?), 0x1_0000..=u64::MAX >> 1),
        _ => (short, 0..=125),
    };
    refuse(!shortest.contains(&length), CloseReason::BadLength)?;
    let mask = take(4)?;
    if opcode < 8 {
        refuse((opcode == 0) != message.is_some(), CloseReason::BadFragment)?;
        let (_, bytes, fragments) = message.get_or_insert((opcode, Vec::new(), 0));
        refuse(length > (limits.message_bytes_max - bytes.len()) as u64, CloseReason::TooBig)?;
        refuse(*fragments == limits.fragments_max, CloseReason::TooManyFragments)?;
        *fragments += 1;
    }
    let there = wire.split_off(..wire.len().min(length as usize)).unwrap_or_default();
    let is_whole = there.len() as u64 == length;
    let there = there.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    if opcode >= 8 {
        let payload: Vec<u8> = there.collect();
        return if is_whole { control(opcode, payload).map(Some) } else { Err(End::InPart) };
    }
    let Some((kind, bytes, _)) = message else { unreachable!("it was inserted above") };
    bytes.extend(there);
    if *kind == 1 {
        let broken = std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some() || fin && is_whole);
        refuse(broken, CloseReason::NotUtf8)?;
    }
    if !is_whole {
        return Err(End::InPart);
    }
    let finished = if fin { message.take() } else { None };
    Ok(finished.map(|(kind, bytes, _)| match kind {
        1 => Said::Text(String::from_utf8(bytes).expect("it was checked")),
        _ => Said::Binary(bytes),
    }))
}

fn control(opcode: u8, payload: Vec<u8>) -> std::result::Result<Said, End> {
    match (opcode, &payload[..]) {
        (9, _) => Ok(Said::Ping(payload)),
        (10, _) => Ok(Said::Pong),
        (_, []) => Ok(Said::Close(None)),
        (_, [high, low, text @ ..]) => match u16::from_be_bytes([*high, *low]) {
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) if std::str::from_utf8(text).is_ok() => {
                Ok(Said::Close(Some(code)))
            }
            1000..=1003 | 1007..=1014 | 3000..=4999 => Err(End::Refused(CloseReason::NotUtf8)),
            _ => Err(End::Refused(CloseReason::BadClose)),
        },
        (_, _) => Err(End::Refused(CloseReason::BadClose)),
    }
}

/// A message and how it is to be written.
#[derive(Arbitrary, Debug)]
struct Written {
    text: bool,
    bytes: Vec<u8>,
    /// Repeated a few times, or with the highest number as long as it may be, for length without an input of that length.
    times: u8,
    /// Lengths of the fragments before the last.
    fragments: Vec<u8>,
    mask: [u8; 4],
    /// What comes behind each fragment, and at last behind the message.
    control: Option<Control>,
}

#[derive(Arbitrary, Debug)]
enum Control {
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close,
}

impl Written {
    /// Appends the frames; what they say.
    fn write(&self, wire: &mut Vec<u8>, limits: &mut Limits) -> Vec<Said> {
        let mut said = Vec::new();
        let times = match self.times {
            u8::MAX => WRITTEN_BYTES_MAX / self.bytes.len().max(1),
            times => 1 + usize::from(times % 8),
        };
        let mut bytes = self.bytes.repeat(times);
        if self.text {
            bytes = String::from_utf8_lossy(&bytes).into_owned().into_bytes();
        }
        let mut opcode = if self.text { 1 } else { 2 };
        let mut rest = &bytes[..];
        for &length in &self.fragments {
            let fragment = rest.split_off(..rest.len().min(usize::from(length))).unwrap_or_default();
            write_frame(wire, opcode, self.mask, fragment);
            opcode = 0;
            said.extend(self.write_control(wire));
        }
        write_frame(wire, 0x80 | opcode, self.mask, rest);
        limits.message_bytes_max = limits.message_bytes_max.max(bytes.len());
        limits.fragments_max = limits.fragments_max.max(self.fragments.len() as u32 + 1);
        said.push(if self.text {
            Said::Text(String::from_utf8(bytes).expect("it was made so"))
        } else {
            Said::Binary(bytes)
        });
        said.extend(self.write_control(wire));
        said
    }

    fn write_control(&self, wire: &mut Vec<u8>) -> Option<Said> {
        let (opcode, payload) = match self.control.as_ref()? {
            Control::Ping(payload) => (0x89, &payload[..]),
            Control::Pong(payload) => (0x8a, &payload[..]),
            Control::Close => (0x88, &b"\x03\xe8bye"[..]),
        };
        let payload = &payload[..payload.len().min(125)];
        write_frame(wire, opcode, self.mask, payload);
        Some(match opcode {
            0x89 => Said::Ping(payload.to_vec()),
            0x8a => Said::Pong,
            _ => Said::Close(Some(1000)),
        })
    }
}

fn write_frame(wire: &mut Vec<u8>, first: u8, mask: [u8; 4], payload: &[u8]) {
    wire.push(first);
    match payload.len() {
        length @ 0..126 => wire.push(0x80 | length as u8),
        length @ 126..0x1_0000 => {
            wire.push(0x80 | 126);
            wire.extend((length as u16).to_be_bytes());
        }
        length => {
            wire.push(0x80 | 127);
            wire.extend((length as u64).to_be_bytes());
        }
    }
    wire.extend(mask);
    wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

fn any_bytes(mut input: Unstructured<'_>, reads: &[u8]) -> Result<()> {
    let (bytes, fragments): (u16, u8) = input.arbitrary()?;
    // A limit that allows any promise shows who believes one.
    let bytes = if bytes == u16::MAX { usize::MAX / 2 } else { usize::from(bytes) };
    let limits = Limits { message_bytes_max: bytes, fragments_max: u32::from(fragments) };
    let wire = input.take_rest();
    let expected = reference(wire, &limits);
    assert_eq!(decode(wire, &[], &limits), expected, "in one read");
    assert_eq!(decode(wire, &[1], &limits), expected, "byte by byte");
    assert_eq!(decode(wire, reads, &limits), expected, "in reads of {reads:?}");
    Ok(())
}

fn a_careful_client(mut input: Unstructured<'_>, reads: &[u8]) -> Result<()> {
    let (mut wire, mut limits) = (Vec::new(), Limits { message_bytes_max: 0, fragments_max: 0 });
    let mut expected = Vec::new();
    for message in input.arbitrary_iter::<Written>()?.take(8) {
        expected.extend(message?.write(&mut wire, &mut limits));
    }
    for reads in [&[][..], &[1], reads] {
        let (said, end) = decode(&wire, reads, &limits);
        assert_eq!((said, end), (expected.clone(), End::AtRest), "in reads of {reads:?}");
    }
    if let Some(fewer) = limits.message_bytes_max.checked_sub(1) {
        let (_, end) = decode(&wire, reads, &Limits { message_bytes_max: fewer, ..limits });
        assert_eq!(end, End::Refused(CloseReason::TooBig), "a byte too long");
    }
    if let Some(fewer) = limits.fragments_max.checked_sub(1) {
        let (_, end) = decode(&wire, reads, &Limits { fragments_max: fewer, ..limits });
        assert_eq!(end, End::Refused(CloseReason::TooManyFragments), "a fragment too many");
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let mut run = || {
        let head: u8 = input.arbitrary()?;
        let reads = input.bytes(usize::from(head & 7))?;
        let rest = Unstructured::new(input.bytes(input.len())?);
        if head & 0x80 == 0 { any_bytes(rest, reads) } else { a_careful_client(rest, reads) }
    };
    // An input that is too short for what it begins with has nothing to say.
    let _ = run();
});
