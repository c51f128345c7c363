//! Who listens to a crowd, and how the frames of one member get there.

use super::frames::{self, Sink};

/// Who listens to what the members receive.
pub(crate) trait Audience {
    /// How many bytes of the start of each message [`Self::head`] wants; at least 1.
    fn head_bytes(&self) -> usize;
    /// A member's handshake has been answered.
    fn joined(&mut self, member: usize, now_ns: u64);
    /// The start of a message; the answer comes back with [`Self::message`].
    fn head(&mut self, member: usize, head: &[u8]) -> u32;
    /// A message is complete.
    fn message(&mut self, member: usize, mark: u32, now_ns: u64);
    /// The server has ended a connection, with this close code; `false` if it had no reason to.
    fn ended(&mut self, member: usize, code: u16, now_ns: u64) -> bool;
}

/// Hands on what one read of one member holds.
pub(crate) struct Reader<'a, A> {
    pub(crate) audience: &'a mut A,
    pub(crate) member: usize,
    pub(crate) now_ns: u64,
    pub(crate) replies: Vec<u8>,
    pub(crate) ponged: bool,
    pub(crate) close: Option<Option<u16>>,
}

impl<A: Audience> Sink for Reader<'_, A> {
    #[inline]
    fn head(&mut self, head: &[u8]) -> u32 {
        self.audience.head(self.member, head)
    }

    #[inline]
    fn message(&mut self, mark: u32) {
        if self.close.is_none() {
            self.audience.message(self.member, mark, self.now_ns);
        }
    }

    fn ping(&mut self, payload: &[u8]) {
        frames::write_client_frame(&mut self.replies, frames::PONG, payload);
    }

    fn pong(&mut self) {
        self.ponged = true;
    }

    fn close(&mut self, code: Option<u16>) {
        self.close.get_or_insert(code);
    }
}
