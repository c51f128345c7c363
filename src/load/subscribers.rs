//! The [`FrameHandler`] of subscribers: finds the tag in each message and records the delivery.

use super::client_pool::ABNORMAL;
use super::delivery_tracker::DeliveryTracker;
use super::frame_handler::FrameHandler;
use super::message::{self, DAMAGED, NO_TAG, Tags};

/// Length of the start of a message that is read for its tag and for a description, in bytes.
const HEAD_BYTES: usize = 64;
/// Longest event around a payload, in bytes: names and channels included.
const EVENT_BYTES: usize = 512;
/// The close code of a server that cannot keep up with a client (1013, Try Again Later).
const TRY_AGAIN_LATER: u16 = 1013;

/// Records deliveries.
pub(super) struct Subscribers {
    pub(super) tracker: DeliveryTracker,
    pub(super) tags: Tags,
    /// Length of each message, in bytes.
    pub(super) payload: usize,
    /// The first message that is not of this run, described.
    pub(super) first_unexpected: Option<String>,
    /// The first damage.
    pub(super) first_damage: Option<String>,
    /// Whether the tag is inside an event.
    pub(super) inside: bool,
    pub(super) slow_from: usize,
    pub(super) rooms: usize,
    pub(super) drops: bool,
}

impl FrameHandler for Subscribers {
    #[inline]
    fn head_bytes(&self) -> usize {
        if self.inside { EVENT_BYTES + self.payload } else { HEAD_BYTES }
    }

    fn joined(&mut self, client: usize, _: u64) {
        self.tracker.join(client, client % self.rooms, client >= self.slow_from);
    }

    #[inline]
    fn head(&mut self, _: usize, head: &[u8]) -> u32 {
        let number = if self.inside { self.tags.find(head, self.payload) } else { self.tags.read_checked(head) };
        if number == NO_TAG && self.first_unexpected.is_none() {
            self.first_unexpected = Some(message::describe(&head[..head.len().min(2 * HEAD_BYTES)]));
        }
        number
    }

    #[inline]
    fn rest(&mut self, mark: u32, bytes: &[u8]) -> u32 {
        if self.inside || mark >= DAMAGED || message::is_filler(bytes) { mark } else { DAMAGED }
    }

    #[inline]
    fn message(&mut self, client: usize, number: u32, message_bytes: u32, now_ns: u64) {
        if number == NO_TAG {
            self.tracker.unexpected();
        } else if number == DAMAGED || !self.inside && message_bytes as usize != self.payload {
            self.damaged(message_bytes);
        } else {
            self.tracker.receive(client, number, now_ns);
        }
    }

    fn ended(&mut self, client: usize, code: u16, _: u64) -> bool {
        self.tracker.abort(client);
        // A client that does not read may not get the close frame before the server closes the
        // socket. A client that reads as fast as it can must never be closed: messages that it
        // lacks are lost, whatever the code says.
        client >= self.slow_from && !self.drops && (code == TRY_AGAIN_LATER || code == ABNORMAL)
    }
}

impl Subscribers {
    #[cold]
    fn damaged(&mut self, message_bytes: u32) {
        let payload = self.payload;
        self.tracker.damaged();
        self.first_damage.get_or_insert_with(|| {
            format!("a message of {payload} bytes arrived changed, in a frame of {message_bytes} bytes")
        });
    }
}
