//! The items that carry a message: from the publisher to the channel's sequencer, and from there to
//! the shards.
//!
//! Owns channel names, publications, dispatches and receipts. A receipt is sent exactly once, after
//! the last shard has finished. A charge counts its bytes as pending until it is dropped, on any
//! path. Nothing here sends or queues: the inbox and the sequencer do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::oneshot;

use super::inbox::Inbox;
use crate::fanout::Outcome;
use crate::registry::ConnId;
use crate::wire::Frame;

/// Longest channel name in bytes; a longer one gets 400.
pub const CHANNEL_NAME_BYTES_MAX: usize = 128;
/// Most channels of one connection or publication; a further one gets 400, or an `ERROR` event.
pub const CHANNELS_PER_CONNECTION_MAX: usize = 64;

/// The name of a channel: 1 to `CHANNEL_NAME_BYTES_MAX` of the characters that need no escape in a
/// URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The channel that every plain `/ws` client is subscribed to.
    pub const ALL: &'static str = "all";

    /// A valid name.
    ///
    /// # Errors
    /// One sentence with the rule for names.
    pub fn new(name: &str) -> Result<Self, InvalidChannel> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@".contains(&byte);
        if (1..=CHANNEL_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidChannel)
        }
    }

    /// A valid name from a URL: percent-encoded or not.
    ///
    /// # Errors
    /// As [`ChannelName::new`].
    pub fn from_url(name: &str) -> Result<Self, InvalidChannel> {
        Self::new(&percent_decode_str(name).decode_utf8().map_err(|_| InvalidChannel)?)
    }

    /// `all`.
    #[must_use]
    pub fn all() -> Self {
        Self(Self::ALL.into())
    }

    /// Whether this is `all`.
    #[must_use]
    pub fn is_all(&self) -> bool {
        &*self.0 == Self::ALL
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A channel name with a wrong length or wrong characters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a channel's name has 1 to {CHANNEL_NAME_BYTES_MAX} characters from A-Z a-z 0-9 - . _ ~ : @")]
pub struct InvalidChannel;

/// One message for one channel.
#[derive(Debug)]
pub struct Publication {
    /// The channel to publish to.
    pub channel: ChannelName,
    /// The message.
    pub frame: Frame,
    /// The source of the publication, which learns whether it was accepted.
    pub origin: Origin,
    /// Collects the outcome, if the publisher asked for it.
    pub receipt: Option<Arc<Receipt>>,
}

/// The source of a publication.
#[derive(Debug)]
pub enum Origin {
    /// The server itself.
    Server,
    /// A request, which waits for the answer.
    Request(ReplyTo),
    /// A connection, which gets an `ERROR` event if the publication is rejected.
    Connection {
        /// Its number.
        id: ConnId,
    },
}

/// The reply handle of a request that waits for its publication's offset.
#[derive(Debug)]
pub struct ReplyTo {
    sender: oneshot::Sender<Result<Accepted, PublishError>>,
    replies: Option<Arc<Replies>>,
}

impl ReplyTo {
    /// A reply handle and its receiver. The reply goes by way of `replies`, or directly without it.
    #[must_use]
    pub fn new(replies: Option<Arc<Replies>>) -> (Self, oneshot::Receiver<Result<Accepted, PublishError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender, replies }, receiver)
    }

    /// Sends the result to the request, if it still waits.
    pub fn send(self, result: Result<Accepted, PublishError>) {
        let reply = Reply { sender: self.sender, result };
        match self.replies {
            Some(replies) => replies.push(reply),
            None => reply.deliver(),
        }
    }
}

/// Replies on their way from the sequencers to the requests of one thread: one wake for many
/// replies. A oneshot for each would cost a system call each.
pub type Replies = Inbox<Reply>;

/// A reply, and the request that waits for it.
#[derive(Debug)]
pub struct Reply {
    sender: oneshot::Sender<Result<Accepted, PublishError>>,
    result: Result<Accepted, PublishError>,
}

impl Reply {
    /// Hands the reply to its request, if it still waits.
    pub fn deliver(self) {
        let _ = self.sender.send(self.result);
    }
}

/// Hands replies to their requests, on the thread of the requests; never returns.
pub async fn deliver_replies(replies: &Replies) -> std::convert::Infallible {
    loop {
        replies.pushed().await;
        replies.clear_signal();
        while let Some(reply) = replies.pop() {
            reply.deliver();
        }
    }
}

/// The answer to an accepted publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The message's number in its channel. It rises by one from message to message, for as long as
    /// the channel is in use.
    pub offset: u64,
    /// Subscribers of the channel on the whole node at that moment.
    pub matched: u64,
}

/// The reason why a publication was rejected; nothing of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The channel's bound of pending bytes is reached.
    #[error("the channel has too much pending: publish again later")]
    Overloaded,
    /// The server shuts down and accepts no more publications.
    #[error("the server is shutting down")]
    Draining,
}

/// Collects the outcome of one publication on every shard; the last shard to finish sends the sum.
#[derive(Debug)]
pub struct Receipt {
    matched: AtomicU64,
    delivered: AtomicU64,
    pending: AtomicU64,
    dropped: AtomicU64,
    started: Instant,
    done: Option<oneshot::Sender<ReceiptSum>>,
}

/// The sum of a [`Receipt`], in subscribers: `matched = delivered + dropped + pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiptSum {
    /// Subscribers of the channel when the message was sent to them.
    pub matched: u64,
    /// Subscribers whose whole message the kernel has taken.
    pub delivered: u64,
    /// Subscribers that will not get the message.
    pub dropped: u64,
    /// Subscribers whose message waits in a backlog.
    pub pending: u64,
    /// Time from the publication to the end of the last shard's pass, in microseconds.
    pub fanout_us: u64,
}

impl Receipt {
    /// A receipt, and the receiver of its sum.
    #[must_use]
    pub fn new() -> (Arc<Self>, oneshot::Receiver<ReceiptSum>) {
        let (done, sum) = oneshot::channel();
        let zero = || AtomicU64::new(0);
        let receipt = Self {
            matched: zero(),
            delivered: zero(),
            pending: zero(),
            dropped: zero(),
            started: Instant::now(),
            done: Some(done),
        };
        (Arc::new(receipt), sum)
    }

    /// Adds the outcome of one shard.
    pub fn add(&self, outcome: Outcome) {
        // Relaxed: the counts are read in `drop` only, which the reference count orders after every
        // use.
        self.matched.fetch_add(outcome.matched, Ordering::Relaxed);
        self.delivered.fetch_add(outcome.delivered, Ordering::Relaxed);
        self.pending.fetch_add(outcome.pending, Ordering::Relaxed);
        self.dropped.fetch_add(outcome.dropped, Ordering::Relaxed);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let sum = ReceiptSum {
            matched: *self.matched.get_mut(),
            delivered: *self.delivered.get_mut(),
            dropped: *self.dropped.get_mut(),
            pending: *self.pending.get_mut(),
            fanout_us: self.started.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
        };
        if let Some(done) = self.done.take() {
            // It fails only if the publisher is gone: then nothing waits for the sum.
            let _ = done.send(sum);
        }
    }
}

/// Frames of one channel with consecutive offsets: the one item that the sequencer sends to each
/// shard with subscribers.
#[derive(Debug)]
pub struct Dispatch {
    /// The channel of the frames.
    pub channel: ChannelName,
    /// The frames, in the order of their offsets.
    pub frames: Vec<Frame>,
    /// The receipts, with the index of their frame.
    pub receipts: Vec<(usize, Arc<Receipt>)>,
    /// Released when the last shard has finished.
    pub charge: Charge,
}

/// Bytes that count as pending for a channel until this is dropped.
#[derive(Debug)]
pub struct Charge {
    pending: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    /// A charge of `bytes` that are counted in `pending` already.
    #[must_use]
    pub fn new(pending: &Arc<AtomicUsize>, bytes: usize) -> Self {
        Self { pending: pending.clone(), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Relaxed: a bound, not a signal.
        self.pending.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["all", "room-1", "a.b_c~d:e@f", &"x".repeat(CHANNEL_NAME_BYTES_MAX)] {
            assert_eq!(ChannelName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a/b", "a b", "é", "a%20b", "a\n", &"x".repeat(CHANNEL_NAME_BYTES_MAX + 1)] {
            assert_eq!(ChannelName::new(bad), Err(InvalidChannel), "{bad:?}");
        }
        assert_eq!(ChannelName::from_url("room%3A1%40x").unwrap().as_str(), "room:1@x");
        assert_eq!(ChannelName::from_url("%ff"), Err(InvalidChannel));
        assert_eq!(ChannelName::from_url("a%2Fb"), Err(InvalidChannel));
    }

    #[test]
    fn a_receipt_comes_after_the_last_shard() {
        let (receipt, mut sum) = Receipt::new();
        let other = receipt.clone();
        receipt.add(Outcome { matched: 3, delivered: 1, pending: 1, dropped: 1 });
        drop(receipt);
        assert!(sum.try_recv().is_err());
        other.add(Outcome { matched: 2, delivered: 2, pending: 0, dropped: 0 });
        drop(other);
        let sum = sum.try_recv().unwrap();
        assert_eq!((sum.matched, sum.delivered, sum.pending, sum.dropped), (5, 3, 1, 1));
    }
}
