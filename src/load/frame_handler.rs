//! Who listens to a pool, and how the frames of one client get there.

use super::frames::{self, FrameSink};

/// Who listens to what the members receive.
pub(crate) trait FrameHandler {
    /// How many bytes of the start of each message [`Self::head`] wants; at least 1.
    fn head_bytes(&self) -> usize;
    /// A client's handshake has been answered.
    fn joined(&mut self, client: usize, now_ns: u64);
    /// The start of a message; the answer comes back with [`Self::message`].
    fn head(&mut self, client: usize, head: &[u8]) -> u32;
    /// A message is complete.
    fn message(&mut self, client: usize, mark: u32, now_ns: u64);
    /// The server has ended a connection, with this close code; `false` if it had no reason to.
    fn ended(&mut self, client: usize, code: u16, now_ns: u64) -> bool;
}

/// Hands on what one read of one client holds.
pub(crate) struct FrameReader<'a, H> {
    pub(crate) handler: &'a mut H,
    pub(crate) client: usize,
    pub(crate) now_ns: u64,
    pub(crate) replies: Vec<u8>,
    pub(crate) ponged: bool,
    pub(crate) close: Option<Option<u16>>,
}

impl<H: FrameHandler> FrameSink for FrameReader<'_, H> {
    #[inline]
    fn head(&mut self, head: &[u8]) -> u32 {
        self.handler.head(self.client, head)
    }

    #[inline]
    fn message(&mut self, mark: u32) {
        if self.close.is_none() {
            self.handler.message(self.client, mark, self.now_ns);
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
