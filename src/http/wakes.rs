//! Wakes between a front thread and the shards, shared by the requests that are in progress at the
//! same time: one system call serves many requests.
//!
//! Owns the list of shards that this thread has given something to and not woken yet, and the queue
//! for replies. Every shard in the list is woken before the thread sleeps: by the guard of a
//! publication, or by [`flush`].

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::sync::Arc;

use tokio::task::yield_now;

use crate::engine::Engine;
use crate::engine::publication::{Replies, deliver_replies};

thread_local! {
    /// The way back from the sequencers to the requests of this thread.
    static REPLIES: RefCell<Option<Arc<Replies>>> = const { RefCell::new(None) };
    /// Shards that have got something and no wake.
    static ASLEEP: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// Publications that wait for their replies.
    static WAITING: Cell<usize> = const { Cell::new(0) };
}

/// Lets the requests of this thread share wakes; the future delivers their replies and never
/// returns.
pub(crate) fn share() -> impl Future<Output = Infallible> {
    let replies = Arc::<Replies>::default();
    REPLIES.set(Some(replies.clone()));
    async move { deliver_replies(&replies).await }
}

/// The way back for a reply to a request of this thread.
pub(super) fn replies() -> Option<Arc<Replies>> {
    REPLIES.with_borrow(Clone::clone)
}

/// Notes that `shard` has to be woken: [`flush`] has to follow.
pub(super) fn note(shard: usize) {
    ASLEEP.with_borrow_mut(|asleep| {
        if !asleep.contains(&shard) {
            asleep.push(shard);
        }
    });
}

/// Wakes every shard that was noted on this thread.
pub(crate) fn flush(engine: &Engine) {
    ASLEEP.with_borrow_mut(|asleep| asleep.drain(..).for_each(|shard| engine.wake(shard)));
}

/// A publication that waits for its reply.
pub(super) struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    /// Wakes `shard`, which has got the publication. If others are on their way too, requests that
    /// have arrived meanwhile join the wake.
    pub(super) async fn wake(engine: &'a Engine, shard: usize) -> Self {
        let others = WAITING.replace(WAITING.get() + 1);
        let waiting = Self(engine);
        note(shard);
        if others > 0 {
            yield_now().await;
        }
        flush(engine);
        waiting
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        WAITING.set(WAITING.get() - 1);
        // A request that is dropped while it waits for others may have noted a shard.
        flush(self.0);
    }
}
