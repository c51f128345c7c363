//! `wire::inbound`: any bytes under any limits, compared with a simple reference decoder; and the
//! frames of a valid client, which have to be decoded as they were written. Both in reads of any
//! lengths.
//!
//! The input chooses one of the two, the limits and the reads; the rest of it is the wire, or the
//! messages to write.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use hydrant::close::CloseReason;
use hydrant::wire::inbound::{Decoder, Inbound, Input, Limits};
use libfuzzer_sys::fuzz_target;

/// Bytes that a decoder may keep beside the partly received message: its own state, and a control
/// frame.
const KEPT_BYTES: usize = 512;
/// From this length on reads are longer: more reads in one run take time and find nothing new.
const WIRE_BYTES_SHORT: usize = 1024;
/// Longest message that is written: long enough for a length of eight bytes.
const WRITTEN_BYTES_MAX: usize = 70_000;

/// As `Inbound`, with owned bytes.
#[derive(Clone, Debug, PartialEq)]
enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

impl From<Inbound<'_>> for Decoded {
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

/// The state after the last byte.
#[derive(Debug, PartialEq)]
enum End {
    /// Between two messages.
    Idle,
    /// In a message.
    Partial,
    Rejected(CloseReason),
}

/// Runs the real decoder with reads of these lengths, repeated, and scaled for a long wire; without
/// lengths, in one read.
fn decode(wire: &[u8], reads: &[u8], limits: &Limits) -> (Vec<Decoded>, End) {
    let scale = 1 + wire.len() / WIRE_BYTES_SHORT;
    let mut wire = wire.to_vec();
    let mut rest = &mut wire[..];
    let mut reads = reads.iter().cycle();
    let (mut decoder, mut decoded, mut read) = (Decoder::default(), Vec::new(), 0);
    while !rest.is_empty() {
        let length = reads.next().map_or(rest.len(), |&length| scale * usize::from(length)).clamp(1, rest.len());
        let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
        (rest, read) = (later, read + length);
        let mut input = Input::new(now);
        loop {
            match decoder.next(&mut input, limits) {
                Ok(Some(inbound)) => decoded.push(inbound.into()),
                Ok(None) => break,
                Err(reason) => return (decoded, End::Rejected(reason)),
            }
            if let Some(Decoded::Text(_) | Decoded::Binary(_)) = decoded.last() {
                assert!(
                    bytes_of(&decoded[decoded.len() - 1]) <= limits.message_bytes_max,
                    "a message beyond the limit"
                );
            }
        }
        assert!(decoder.missing_bytes() <= limits.message_bytes_max.max(125), "it waits for more bytes than the limit");
        // A vector may have twice the room that its bytes need.
        let most = KEPT_BYTES + 2 * read.min(limits.message_bytes_max);
        assert!(decoder.bytes() <= most, "{} bytes kept of {read}, {limits:?}", decoder.bytes());
    }
    let end = if decoder.bytes() == 0 { End::Idle } else { End::Partial };
    (decoded, end)
}

fn bytes_of(decoded: &Decoded) -> usize {
    match decoded {
        Decoded::Text(text) => text.len(),
        Decoded::Binary(bytes) => bytes.len(),
        Decoded::Ping(_) | Decoded::Pong | Decoded::Close(_) => 0,
    }
}

/// The reference: RFC 6455 and the limits, applied to the whole wire at once, whatever that costs.
fn reference(mut wire: &[u8], limits: &Limits) -> (Vec<Decoded>, End) {
    let mut decoded = Vec::new();
    let mut message: Option<(u8, Vec<u8>, u32)> = None;
    let end = loop {
        if wire.is_empty() && message.is_none() {
            break End::Idle;
        }
        match frame(&mut wire, &mut message, limits) {
            Ok(None) => {}
            Ok(Some(next)) => decoded.push(next),
            Err(end) => break end,
        }
    };
    (decoded, end)
}

/// Takes one frame from the wire; returns the message that it completes.
fn frame(
    wire: &mut &[u8],
    message: &mut Option<(u8, Vec<u8>, u32)>,
    limits: &Limits,
) -> std::result::Result<Option<Decoded>, End> {
    let reject_if = |wrong: bool, reason| if wrong { Err(End::Rejected(reason)) } else { Ok(()) };
    let mut take = |length: usize| wire.split_off(..length).ok_or(End::Partial);
    let first = take(1)?[0];
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    reject_if(first & 0x70 != 0, CloseReason::ReservedBit)?;
    reject_if(![0, 1, 2, 8, 9, 10].contains(&opcode), CloseReason::ReservedOpcode)?;
    reject_if(opcode >= 8 && !fin, CloseReason::BadControl)?;
    let second = take(1)?[0];
    reject_if(second & 0x80 == 0, CloseReason::Unmasked)?;
    let short = u64::from(second & 0x7f);
    reject_if(opcode >= 8 && short > 125, CloseReason::BadControl)?;
    let long = |bytes: &[u8]| bytes.iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
    let (length, shortest) = match short {
        126 => (long(take(2)?), 126..=0xffff),
        127 => (long(take(8)?), 0x1_0000..=u64::MAX >> 1),
        _ => (short, 0..=125),
    };
    reject_if(!shortest.contains(&length), CloseReason::BadLength)?;
    let mask = take(4)?;
    if opcode < 8 {
        reject_if((opcode == 0) != message.is_some(), CloseReason::BadFragment)?;
        let (_, bytes, fragments) = message.get_or_insert((opcode, Vec::new(), 0));
        reject_if(length > (limits.message_bytes_max - bytes.len()) as u64, CloseReason::TooBig)?;
        reject_if(*fragments == limits.fragments_max, CloseReason::TooManyFragments)?;
        *fragments += 1;
    }
    let there = wire.split_off(..wire.len().min(length as usize)).unwrap_or_default();
    let is_whole = there.len() as u64 == length;
    let there = there.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    if opcode >= 8 {
        let payload: Vec<u8> = there.collect();
        return if is_whole { control(opcode, payload).map(Some) } else { Err(End::Partial) };
    }
    let Some((kind, bytes, _)) = message else { unreachable!("it was inserted above") };
    bytes.extend(there);
    if *kind == 1 {
        let broken = std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some() || fin && is_whole);
        reject_if(broken, CloseReason::NotUtf8)?;
    }
    if !is_whole {
        return Err(End::Partial);
    }
    let finished = if fin { message.take() } else { None };
    Ok(finished.map(|(kind, bytes, _)| match kind {
        1 => Decoded::Text(String::from_utf8(bytes).expect("it was checked")),
        _ => Decoded::Binary(bytes),
    }))
}

fn control(opcode: u8, payload: Vec<u8>) -> std::result::Result<Decoded, End> {
    match (opcode, &payload[..]) {
        (9, _) => Ok(Decoded::Ping(payload)),
        (10, _) => Ok(Decoded::Pong),
        (_, []) => Ok(Decoded::Close(None)),
        (_, [high, low, text @ ..]) => match u16::from_be_bytes([*high, *low]) {
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) if std::str::from_utf8(text).is_ok() => {
                Ok(Decoded::Close(Some(code)))
            }
            1000..=1003 | 1007..=1014 | 3000..=4999 => Err(End::Rejected(CloseReason::NotUtf8)),
            _ => Err(End::Rejected(CloseReason::BadClose)),
        },
        (_, _) => Err(End::Rejected(CloseReason::BadClose)),
    }
}

/// A message, and how to write it.
#[derive(Arbitrary, Debug)]
struct Written {
    text: bool,
    bytes: Vec<u8>,
    /// How often `bytes` is repeated; the highest number means up to the longest message. So a long
    /// message needs no long input.
    times: u8,
    /// Lengths of the fragments before the last.
    fragments: Vec<u8>,
    mask: [u8; 4],
    /// The control frame behind each fragment, and behind the message.
    control: Option<Control>,
}

#[derive(Arbitrary, Debug)]
enum Control {
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close,
}

impl Written {
    /// Appends the frames; returns what they decode to.
    fn write(&self, wire: &mut Vec<u8>, limits: &mut Limits) -> Vec<Decoded> {
        let mut decoded = Vec::new();
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
            decoded.extend(self.write_control(wire));
        }
        write_frame(wire, 0x80 | opcode, self.mask, rest);
        limits.message_bytes_max = limits.message_bytes_max.max(bytes.len());
        limits.fragments_max = limits.fragments_max.max(self.fragments.len() as u32 + 1);
        decoded.push(if self.text {
            Decoded::Text(String::from_utf8(bytes).expect("it was made from text"))
        } else {
            Decoded::Binary(bytes)
        });
        decoded.extend(self.write_control(wire));
        decoded
    }

    fn write_control(&self, wire: &mut Vec<u8>) -> Option<Decoded> {
        let (opcode, payload) = match self.control.as_ref()? {
            Control::Ping(payload) => (0x89, &payload[..]),
            Control::Pong(payload) => (0x8a, &payload[..]),
            Control::Close => (0x88, &b"\x03\xe8bye"[..]),
        };
        let payload = &payload[..payload.len().min(125)];
        write_frame(wire, opcode, self.mask, payload);
        Some(match opcode {
            0x89 => Decoded::Ping(payload.to_vec()),
            0x8a => Decoded::Pong,
            _ => Decoded::Close(Some(1000)),
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
    // With a limit that allows any length, a decoder that allocates for a header fails.
    let bytes = if bytes == u16::MAX { usize::MAX / 2 } else { usize::from(bytes) };
    let limits = Limits { message_bytes_max: bytes, fragments_max: u32::from(fragments) };
    let wire = input.take_rest();
    let expected = reference(wire, &limits);
    assert_eq!(decode(wire, &[], &limits), expected, "in one read");
    assert_eq!(decode(wire, &[1], &limits), expected, "byte by byte");
    assert_eq!(decode(wire, reads, &limits), expected, "in reads of {reads:?}");
    Ok(())
}

fn a_valid_client(mut input: Unstructured<'_>, reads: &[u8]) -> Result<()> {
    let (mut wire, mut limits) = (Vec::new(), Limits { message_bytes_max: 0, fragments_max: 0 });
    let mut expected = Vec::new();
    for message in input.arbitrary_iter::<Written>()?.take(8) {
        expected.extend(message?.write(&mut wire, &mut limits));
    }
    for reads in [&[][..], &[1], reads] {
        let (decoded, end) = decode(&wire, reads, &limits);
        assert_eq!((decoded, end), (expected.clone(), End::Idle), "in reads of {reads:?}");
    }
    if let Some(fewer) = limits.message_bytes_max.checked_sub(1) {
        let (_, end) = decode(&wire, reads, &Limits { message_bytes_max: fewer, ..limits });
        assert_eq!(end, End::Rejected(CloseReason::TooBig), "a byte too long");
    }
    if let Some(fewer) = limits.fragments_max.checked_sub(1) {
        let (_, end) = decode(&wire, reads, &Limits { fragments_max: fewer, ..limits });
        assert_eq!(end, End::Rejected(CloseReason::TooManyFragments), "a fragment too many");
    }
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let mut run = || {
        let head: u8 = input.arbitrary()?;
        let reads = input.bytes(usize::from(head & 7))?;
        let rest = Unstructured::new(input.bytes(input.len())?);
        if head & 0x80 == 0 { any_bytes(rest, reads) } else { a_valid_client(rest, reads) }
    };
    // An input that is too short is ignored.
    let _ = run();
});
