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

    /// Like [`Self::read`], with the tag anywhere in `head`.
    pub(crate) fn find(self, head: &[u8]) -> u32 {
        let tags = head.windows(TAG_BYTES).filter(|window| window.starts_with(&self.run));
        tags.map(|window| self.read(window)).find(|number| *number != NO_TAG).unwrap_or(NO_TAG)
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
            assert_eq!((tags.read(&event), tags.find(&event)), (NO_TAG, number));
        }
    }

    #[test]
    fn text_without_a_tag_of_this_run_has_no_number() {
        let tags = Tags::new(7);
        let mut payload = Vec::new();
        tags.write_payload(&mut payload, 0xabc, TAG_BYTES);
        assert_eq!(Tags::new(8).find(&payload), NO_TAG);
        assert_eq!(tags.find(&payload[..11]), NO_TAG);
        for wrong in (0..=255_u8).filter(|byte| !byte.is_ascii_digit() && !(b'a'..=b'f').contains(byte)) {
            for place in RUN_BYTES..TAG_BYTES {
                let mut broken = payload.clone();
                broken[place] = wrong;
                assert_eq!(tags.read(&broken), NO_TAG, "{wrong:#x} at {place}");
            }
        }
    }
}
