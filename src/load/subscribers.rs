//! The [`FrameHandler`] of subscribers: finds the tag in each message and records the delivery.

use super::client_pool::ABNORMAL;
use super::delivery_tracker::DeliveryTracker;
use super::frame_handler::FrameHandler;
use super::message::{NO_TAG, TAG_BYTES, Tags};

/// Length of the start of an event in which the tag is searched, in bytes.
const EVENT_HEAD_BYTES: usize = 256;
/// The close code of a server that cannot keep up with a client (1013, Try Again Later).
const TRY_AGAIN_LATER: u16 = 1013;

/// Records deliveries.
pub(super) struct Subscribers {
    pub(super) tracker: DeliveryTracker,
    pub(super) tags: Tags,
    /// Whether the tag is inside an event.
    pub(super) inside: bool,
    pub(super) slow_from: usize,
    pub(super) rooms: usize,
    pub(super) drops: bool,
}

impl FrameHandler for Subscribers {
    #[inline]
    fn head_bytes(&self) -> usize {
        if self.inside { EVENT_HEAD_BYTES } else { TAG_BYTES }
    }

    fn joined(&mut self, client: usize, _: u64) {
        self.tracker.join(client, client % self.rooms, client >= self.slow_from);
    }

    #[inline]
    fn head(&mut self, _: usize, head: &[u8]) -> u32 {
        if self.inside { self.tags.find(head) } else { self.tags.read(head) }
    }

    #[inline]
    fn message(&mut self, client: usize, number: u32, now_ns: u64) {
        if number == NO_TAG {
            self.tracker.unexpected();
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
