//! Wakes between a front thread and the shards, shared by the requests that are in progress at the
//! same time: one system call serves many requests.
//!
//! Owns two lists of this thread: the shards to wake, which have got something and no wake yet, and
//! the replies. Before the thread sleeps, every shard in the list is woken: by the guard of a
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
    static TO_WAKE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
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
    TO_WAKE.with_borrow_mut(|to_wake| {
        if !to_wake.contains(&shard) {
            to_wake.push(shard);
        }
    });
}

/// Wakes every shard that was noted on this thread.
pub(crate) fn flush(engine: &Engine) {
    TO_WAKE.with_borrow_mut(|to_wake| to_wake.drain(..).for_each(|shard| engine.wake(shard)));
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
