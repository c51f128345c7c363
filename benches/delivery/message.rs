//! The bytes of one message. A payload is a tag (the number of the publication as hexadecimal text) and a filler of
//! `x`, so it is valid text, every message is different, and all have the same length. The tag alone stands for the
//! message where only its number matters: it is the whole record on the floor's control connection.

/// Length of a tag, in bytes: a `u32` as hexadecimal digits.
pub(crate) const TAG_BYTES: usize = 8;

/// Longest payload, in bytes: what the 16-bit length of a WebSocket header holds.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 65_535;

/// The number of a publication as it stands at the start of the payload.
pub(crate) type Tag = [u8; TAG_BYTES];

/// The tag of publication `number`.
pub(crate) fn tag(number: u32) -> Tag {
    let mut tag = [0; TAG_BYTES];
    for (place, digit) in tag.iter_mut().enumerate() {
        let nibble = number >> (4 * (TAG_BYTES - 1 - place)) & 0xf;
        *digit = b"0123456789abcdef"[nibble as usize];
    }
    tag
}

/// The number that `tag` stands for; `None` if it is no tag.
pub(crate) fn number(tag: &Tag) -> Option<u32> {
    let text = std::str::from_utf8(tag).ok()?;
    u32::from_str_radix(text, 16).ok()
}

/// Appends the header of an unfragmented, unmasked text frame (RFC 6455, section 5.2).
pub(crate) fn write_header(out: &mut Vec<u8>, payload: usize) {
    debug_assert!(payload <= PAYLOAD_BYTES_MAX);
    out.push(0x81);
    if payload < 126 {
        out.push(payload as u8);
    } else {
        out.push(126);
        out.extend_from_slice(&(payload as u16).to_be_bytes());
    }
}

/// Appends the payload of the message with this tag.
pub(crate) fn write_payload(out: &mut Vec<u8>, tag: &Tag, payload: usize) {
    let end = out.len() + payload;
    out.extend_from_slice(tag);
    out.resize(end, b'x');
}

/// First byte of a ping, unfragmented (RFC 6455, section 5.5.2).
pub(crate) const PING: u8 = 0x89;

/// First byte of the pong that answers it.
pub(crate) const PONG: u8 = 0x8a;

/// A control frame from a client: masked, as it has to be, with zeroes, so that the payload stands as it is.
pub(crate) fn client_control(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() < 126);
    let mut frame = vec![first_byte, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}
