//! The bytes of one message: a tag, and a filler of `x` up to the requested length. It is valid
//! text and needs no escapes in JSON.
//!
//! A tag is four letters that name the run, and the number of the publication as eight hexadecimal
//! digits. The letters are no hexadecimal digits, so a tag is found inside other text too, and the
//! tag of another run is not mistaken for one of this run.

/// Length of a tag, in bytes.
pub const TAG_BYTES: usize = RUN_BYTES + 8;
const RUN_BYTES: usize = 4;

/// The result where no tag of this run was found. No publication has this number.
pub(crate) const NO_TAG: u32 = u32::MAX;
/// The result where the bytes behind a tag of this run are wrong. No publication has this number.
pub(crate) const DAMAGED: u32 = u32::MAX - 1;

/// Whether all of these bytes are those of a filler. Without a branch in it, so that it takes many
/// bytes at a time.
#[inline]
pub(crate) fn is_filler(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |difference, byte| difference | (byte ^ b'x')) == 0
}

/// Describes a message that is not of this run, by its first bytes.
pub(crate) fn describe(head: &[u8]) -> String {
    let text = String::from_utf8_lossy(head);
    let is_client_event = [r#"{"event":"SAY""#, r#"{"event":"SET_NAME""#, r#"{"event":"LEAVE""#];
    let is_tag = |window: &[u8]| {
        let (run, digits) = window.split_at(RUN_BYTES);
        run.iter().all(|letter| (b'g'..b'g' + 20).contains(letter))
            && digits.iter().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit))
    };
    if is_client_event.iter().any(|event| text.starts_with(event)) {
        format!("a client's own event, sent back by an echo server: {text}")
    } else if head.windows(TAG_BYTES).any(is_tag) {
        format!("a message of another load: {text}")
    } else if text.contains(r#""user":"server""#) {
        format!("a message of the server itself: {text}")
    } else {
        format!("{text:?}")
    }
}

/// Writes and finds the tags of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tags {
    run: [u8; RUN_BYTES],
}

impl Tags {
    /// The tags of the run with this seed.
    pub(crate) fn new(mut seed: u64) -> Self {
        let run = std::array::from_fn(|_| {
            let letter = b'g' + (seed % 20) as u8;
            seed /= 20;
            letter
        });
        Self { run }
    }

    /// Appends the payload of publication `number`, of `bytes` bytes (at least [`TAG_BYTES`]).
    pub(crate) fn write_payload(self, out: &mut Vec<u8>, number: u32, bytes: usize) {
        let end = out.len() + bytes;
        out.extend_from_slice(&self.run);
        for place in (0..8).rev() {
            out.push(b"0123456789abcdef"[(number >> (4 * place) & 0xf) as usize]);
        }
        out.resize(end, b'x');
    }

    /// The number of the publication that begins with `head`, or [`NO_TAG`].
    #[inline]
    pub(crate) fn read(self, head: &[u8]) -> u32 {
        let Some((tag, _)) = head.split_first_chunk::<TAG_BYTES>() else {
            return NO_TAG;
        };
        let [a, b, c, d, digits @ ..] = *tag;
        if [a, b, c, d] == self.run { hexadecimal(u64::from_be_bytes(digits)).unwrap_or(NO_TAG) } else { NO_TAG }
    }

    /// The number of the publication that begins with `head`;
    /// [`NO_TAG`], or [`DAMAGED`] if another byte than a filler follows the tag.
    #[inline]
    pub(crate) fn read_checked(self, head: &[u8]) -> u32 {
        match self.read(head) {
            NO_TAG => NO_TAG,
            number if is_filler(&head[TAG_BYTES..]) => number,
            _ => DAMAGED,
        }
    }

    /// The number of the publication whose payload of `bytes` bytes stands in this JSON text;
    /// [`NO_TAG`], or [`DAMAGED`] if the payload does not end there with a quote.
    pub(crate) fn find(self, text: &[u8], bytes: usize) -> u32 {
        let mut tags = text.windows(TAG_BYTES).enumerate().filter(|(_, window)| window.starts_with(&self.run));
        let Some((at, number)) =
            tags.find_map(|(at, window)| Some((at, self.read(window))).filter(|(_, number)| *number != NO_TAG))
        else {
            return NO_TAG;
        };
        let payload = text[at..].split_at_checked(bytes);
        match payload {
            Some((payload, [b'"', ..])) if is_filler(&payload[TAG_BYTES..]) => number,
            _ => DAMAGED,
        }
    }
}

/// Converts eight digits at once, the first in the highest byte; `None` if one of them is no digit.
fn hexadecimal(digits: u64) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // A digit is 0x3d, a letter 0x61 to 0x66: bit 6 tells them apart and is worth 9.
    let letters = (digits >> 6) & ONES;
    let values = (digits & (0x0f * ONES)) + 9 * letters;
    // Written as digits again, these values must give the input.
    let written = values + 0x30 * ONES + 0x27 * letters;
    if written != digits || letters != (((values + 6 * ONES) >> 4) & ONES) || values & (0xf0 * ONES) != 0 {
        return None;
    }
    let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((fours | fours >> 16) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_found_again() {
        let tags = Tags::new(12_345);
        for number in [0, 9, 10, 0xdead_beef, 0x0123_4567, 0x89ab_cdef, u32::MAX - 1] {
            let mut payload = Vec::new();
            tags.write_payload(&mut payload, number, 100);
            assert_eq!(payload.len(), 100);
            assert_eq!(tags.read(&payload), number, "{:?}", String::from_utf8_lossy(&payload));
            let event = [br#"{"event":"CHAT_MSG","user":"a","message":""#, &payload[..], b"\"}"].concat();
            assert_eq!((tags.read(&event), tags.find(&event, 100)), (NO_TAG, number));
            assert_eq!((tags.find(&event, 99), tags.find(&event, 101)), (DAMAGED, DAMAGED));
        }
    }

    #[test]
    fn text_without_a_tag_of_this_run_has_no_number() {
        let tags = Tags::new(7);
        let mut payload = Vec::new();
        tags.write_payload(&mut payload, 0xabc, TAG_BYTES);
        assert_eq!(Tags::new(8).find(&payload, TAG_BYTES), NO_TAG);
        assert_eq!(tags.find(&payload[..11], TAG_BYTES), NO_TAG);
        for wrong in (0..=255_u8).filter(|byte| !byte.is_ascii_digit() && !(b'a'..=b'f').contains(byte)) {
            for place in RUN_BYTES..TAG_BYTES {
                let mut broken = payload.clone();
                broken[place] = wrong;
                assert_eq!(tags.read(&broken), NO_TAG, "{wrong:#x} at {place}");
            }
        }
    }

    #[test]
    fn every_byte_of_a_payload_counts() {
        let tags = Tags::new(7);
        let mut payload = Vec::new();
        tags.write_payload(&mut payload, 3, 100);
        assert_eq!(tags.read_checked(&payload), 3);
        for place in TAG_BYTES..100 {
            let mut broken = payload.clone();
            broken[place] = b'y';
            assert_eq!(tags.read_checked(&broken), DAMAGED, "{place}");
            let event = [&br#"{"message":""#[..], &broken, b"\"}"].concat();
            assert_eq!(tags.find(&event, 100), DAMAGED, "{place}");
        }
    }

    #[test]
    fn messages_of_others_are_told_apart() {
        let mut payload = Vec::new();
        Tags::new(8).write_payload(&mut payload, 3, 20);
        for (head, words) in [
            (&br#"{"event":"SAY","message":"x"}"#[..], "echo"),
            (&payload, "another load"),
            (br#"{"event":"CHAT_MSG","user":"server","message":"hi"}"#, "the server itself"),
            (b"hello", r#""hello""#),
        ] {
            assert!(describe(head).contains(words), "{}", describe(head));
        }
    }
}
