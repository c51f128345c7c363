//! The shard's inbox: a lock-free queue with many producers, one consumer, and one wake per batch.
//! Except for sockets it is the only way into a shard.
//!
//! Items come out in the order in which they went in, whatever thread pushed them. A thread that
//! knows of a push may rely on that item coming before everything pushed later. The queue itself
//! has no bound, because every kind of item is bounded at its source. [`Inbox::reserve`] bounds
//! publications. Subscriptions and answers are bounded by the number of messages that a shard reads
//! from its connections in one round: the shard that gets them takes more than that from its inbox
//! in one round.

use std::future::poll_fn;
use std::task::Poll;

use self::sync::{AtomicBool, AtomicUsize, AtomicWaker, Ordering, SegQueue};

/// The parts of the queue.
#[cfg(not(hydrant_loom))]
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use crossbeam_queue::SegQueue;
}

/// The same parts for the model checker, which tries every interleaving and every value that a load
/// may see.
#[cfg(hydrant_loom)]
mod sync {
    use std::collections::VecDeque;
    use std::task::Waker;

    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    pub(super) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(super) fn new() -> Self {
            Self::default()
        }
        pub(super) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }
        pub(super) fn wake(&self) {
            self.0.wake();
        }
    }

    /// The model checks the signal only, not the queue of `crossbeam-queue`.
    #[derive(Debug)]
    pub(super) struct SegQueue<T>(loom::sync::Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(super) fn new() -> Self {
            Self(loom::sync::Mutex::new(VecDeque::new()))
        }
        pub(super) fn push(&self, item: T) {
            self.0.lock().expect("nobody panics with it").push_back(item);
        }
        pub(super) fn pop(&self) -> Option<T> {
            self.0.lock().expect("nobody panics with it").pop_front()
        }
    }
}

/// A queue with one consumer; the module describes it.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: SegQueue<T>,
    /// Something was pushed since the consumer last called [`Inbox::clear_signal`].
    signalled: AtomicBool,
    consumer: AtomicWaker,
    reserved_bytes: AtomicUsize,
    /// The consumer has ended.
    closed: AtomicBool,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self {
            queue: SegQueue::new(),
            signalled: AtomicBool::new(false),
            consumer: AtomicWaker::new(),
            reserved_bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }
}

impl<T> Inbox<T> {
    /// Adds an item, and wakes the consumer unless it was woken already and has not cleared the
    /// signal since. Without a consumer the item is dropped.
    pub fn push(&self, item: T) {
        if self.push_quietly(item) {
            self.notify();
        }
    }

    /// Adds an item without a wake: [`Inbox::notify`] has to follow. False without a consumer: then
    /// the item is dropped.
    pub fn push_quietly(&self, item: T) -> bool {
        // Acquire: pairs with the release in `close`. A push that just misses it leaves an item
        // that nobody takes.
        let is_open = !self.closed.load(Ordering::Acquire);
        if is_open {
            self.queue.push(item);
        }
        is_open
    }

    /// Wakes the consumer as a push does.
    pub fn notify(&self) {
        // Release: pairs with the acquire in `clear_signal`, so that the consumer sees the item
        // above.
        // Acquire: keeps the chain of swaps whole when several producers find the flag set.
        if !self.signalled.swap(true, Ordering::AcqRel) {
            self.consumer.wake();
        }
    }

    /// Waits until something was pushed; whether it had to wait. There may be one consumer only.
    pub async fn pushed(&self) -> bool {
        let mut has_waited = false;
        poll_fn(|context| {
            self.consumer.register(context.waker());
            // Acquire: pairs with the release in `notify`. The waker is registered first, so a push
            // after this load wakes the consumer.
            match self.signalled.load(Ordering::Acquire) {
                true => Poll::Ready(has_waited),
                false => {
                    has_waited = true;
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Clears the signal before the consumer takes items: a later push wakes it again.
    pub fn clear_signal(&self) {
        // Acquire: pairs with the release in `notify`; every item whose push found the flag set is
        // visible to `pop`.
        self.signalled.swap(false, Ordering::AcqRel);
    }

    /// Ends the consumer: drops the remaining items and all later ones.
    pub fn close(&self) {
        // Release: pairs with the acquire in `push`.
        self.closed.store(true, Ordering::Release);
        while self.pop().is_some() {}
    }

    /// Takes the oldest item.
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Reserves `bytes` for a publication that is about to be pushed; false when more than
    /// `bytes_max` would be reserved.
    #[must_use]
    pub fn reserve(&self, bytes: usize, bytes_max: usize) -> bool {
        // Relaxed: a bound, not a signal. Two calls that overshoot together are both rejected,
        // which is allowed.
        if self.reserved_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= bytes_max {
            return true;
        }
        self.release(bytes);
        false
    }

    /// Releases bytes that were reserved, once the publication has been popped.
    pub fn release(&self, bytes: usize) {
        self.reserved_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(hydrant_loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::task::{Context, Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_batch_costs_one_wake() {
        let inbox = Inbox::default();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut waiting = Box::pin(inbox.pushed());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        (0..100).for_each(|item| inbox.push(item));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        inbox.clear_signal();
        assert_eq!(std::iter::from_fn(|| inbox.pop()).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        let mut waiting = Box::pin(inbox.pushed());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        inbox.push(100);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn no_item_is_lost_or_reordered_between_threads() {
        const EACH: u32 = 20_000;
        let inbox = Arc::new(Inbox::default());
        let producers: Vec<_> = (0..4_u32)
            .map(|producer| {
                let inbox = inbox.clone();
                std::thread::spawn(move || (0..EACH).for_each(|number| inbox.push((producer, number))))
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut next = [0; 4];
        runtime.block_on(async {
            while next.iter().sum::<u32>() < 4 * EACH {
                inbox.pushed().await;
                inbox.clear_signal();
                while let Some((producer, number)) = inbox.pop() {
                    assert_eq!(number, next[producer as usize]);
                    next[producer as usize] += 1;
                }
            }
        });
        producers.into_iter().for_each(|producer| producer.join().unwrap());
    }

    #[test]
    fn a_closed_inbox_keeps_no_item() {
        let inbox = Inbox::default();
        let item = Arc::new(());
        inbox.push(item.clone());
        inbox.close();
        inbox.push(item.clone());
        assert_eq!((Arc::strong_count(&item), inbox.pop()), (1, None));
    }

    #[test]
    fn reserved_bytes_are_bounded() {
        let inbox = Inbox::<()>::default();
        assert!(inbox.reserve(60, 100));
        assert!(!inbox.reserve(60, 100));
        assert!(inbox.reserve(40, 100));
        inbox.release(100);
        assert!(inbox.reserve(100, 100));
    }
}

/// `RUSTC_WORKSPACE_WRAPPER=$PWD/tests/loom.sh cargo test --lib --no-default-features --features
/// mimalloc loom_tests`
#[cfg(all(test, hydrant_loom))]
mod loom_tests {
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Tries every interleaving with at most three preemptions. More take hours and find nothing
    /// more in practice.
    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Takes `number` items as a shard does; hangs, which loom detects, if a push wakes nobody.
    fn take(inbox: &Inbox<u32>, number: usize) -> Vec<u32> {
        let mut items = Vec::new();
        while items.len() < number {
            block_on(inbox.pushed());
            inbox.clear_signal();
            while let Some(item) = inbox.pop() {
                items.push(item);
            }
        }
        items
    }

    #[test]
    fn every_push_wakes_the_consumer() {
        explore(|| {
            let inbox = Arc::new(Inbox::default());
            let producers = [1, 2].map(|item| {
                let inbox = inbox.clone();
                thread::spawn(move || inbox.push(item))
            });
            let mut items = take(&inbox, 2);
            items.sort_unstable();
            assert_eq!(items, [1, 2]);
            for producer in producers {
                producer.join().unwrap();
            }
        });
    }

    #[test]
    fn items_of_one_thread_keep_their_order() {
        explore(|| {
            let inbox = Arc::new(Inbox::default());
            let producer = {
                let inbox = inbox.clone();
                thread::spawn(move || (1..=3).for_each(|item| inbox.push(item)))
            };
            assert_eq!(take(&inbox, 3), [1, 2, 3]);
            producer.join().unwrap();
        });
    }

    #[test]
    fn after_clear_signal_every_signalled_item_is_visible() {
        explore(|| {
            let inbox = Arc::new(Inbox::default());
            let pushed = Arc::new(AtomicBool::new(false));
            let producer = {
                let (inbox, pushed) = (inbox.clone(), pushed.clone());
                thread::spawn(move || {
                    inbox.push(1);
                    pushed.store(true, Ordering::Release);
                })
            };
            inbox.clear_signal();
            // The item is visible to this pop, or the push sets the signal after it.
            let seen = inbox.pop().is_some();
            if pushed.load(Ordering::Acquire) && !seen {
                assert!(inbox.signalled.load(Ordering::Acquire) || inbox.pop().is_some());
            }
            producer.join().unwrap();
        });
    }

    #[test]
    fn reserved_bytes_never_exceed_the_bound() {
        explore(|| {
            let inbox = Arc::new(Inbox::<u32>::default());
            let others = {
                let inbox = inbox.clone();
                thread::spawn(move || inbox.reserve(60, 100))
            };
            let ours = inbox.reserve(60, 100);
            assert!(!(others.join().unwrap() && ours));
            assert_eq!(inbox.reserved_bytes.load(Ordering::Relaxed) % 60, 0);
        });
    }
}
