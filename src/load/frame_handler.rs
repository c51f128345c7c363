//! The trait that gives the frames of a [`ClientPool`](super::client_pool::ClientPool) their
//! meaning, and the adapter from the frame parser to it.

use super::frames::{self, FrameSink};

/// Receives the messages and ends of all clients of a pool.
pub(crate) trait FrameHandler {
    /// Length of the start of each message that [`Self::head`] gets, in bytes; at least 1.
    fn head_bytes(&self) -> usize;
    /// The handshake of a client has been answered.
    fn joined(&mut self, client: usize, now_ns: u64);
    /// The start of a message. The returned mark comes back with [`Self::message`].
    fn head(&mut self, client: usize, head: &[u8]) -> u32;
    /// Bytes of a message behind its head, in any pieces. Returns the mark from here on.
    fn rest(&mut self, mark: u32, bytes: &[u8]) -> u32 {
        let _ = bytes;
        mark
    }
    /// A message is complete, with its length in bytes.
    fn message(&mut self, client: usize, mark: u32, message_bytes: u32, now_ns: u64);
    /// The server has ended a connection with this close code. Returns `false` if it had no reason
    /// to.
    fn ended(&mut self, client: usize, code: u16, now_ns: u64) -> bool;
}

/// Passes on the frames of one read of one client.
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
    fn rest(&mut self, mark: u32, bytes: &[u8]) -> u32 {
        self.handler.rest(mark, bytes)
    }

    #[inline]
    fn message(&mut self, mark: u32, message_bytes: u32) {
        if self.close.is_none() {
            self.handler.message(self.client, mark, message_bytes, self.now_ns);
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
