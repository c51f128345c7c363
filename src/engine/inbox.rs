//! The only way into a shard, but for sockets: a lock-free queue with many producers, one consumer, and one wake per batch.
//!
//! Items come out in the order in which they went in, whatever thread they came from: who is told that an item was
//! pushed may rely on it coming before everything pushed later. The queue itself has no bound; every kind of item is
//! bounded at its source: publications by [`Inbox::reserve`], subscriptions and
//! answers by what a shard takes from its connections in one round, which is less than what its peer takes from the
//! inbox in one.

use std::future::poll_fn;
use std::task::Poll;

use self::sync::{AtomicBool, AtomicUsize, AtomicWaker, Ordering, SegQueue};

/// What the queue is made of.
#[cfg(not(hydrant_loom))]
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    pub(super) use atomic_waker::AtomicWaker;
    pub(super) use crossbeam_queue::SegQueue;
}

/// The same for the model checker, which tries every interleaving and every value that a load may see.
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

    /// What is modelled is the signal: the queue's own correctness is its crate's matter.
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

/// See the module.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: SegQueue<T>,
    /// Something was pushed since the consumer last said that it looks.
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
    /// Adds an item; wakes the consumer if it has not been woken since it last looked. Without a consumer, the item is
    /// dropped.
    pub fn push(&self, item: T) {
        // Acquire: pairs with the release in `close`. Who misses it by a hair leaves an item that nobody takes.
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        self.queue.push(item);
        self.notify();
    }

    /// Wakes the consumer as a push does.
    pub fn notify(&self) {
        // Release: pairs with the acquire in `clear_signal`, so that the consumer sees the item above.
        // Acquire: keeps the chain of swaps whole when several producers find the flag set.
        if !self.signalled.swap(true, Ordering::AcqRel) {
            self.consumer.wake();
        }
    }

    /// Waits until something was pushed. One consumer only.
    pub async fn pushed(&self) {
        poll_fn(|context| {
            self.consumer.register(context.waker());
            // Acquire: pairs with the release in `push`. Registered first, so a push after this load wakes us.
            if self.signalled.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The consumer looks now: what is pushed from here on wakes it again.
    pub fn clear_signal(&self) {
        // Acquire: pairs with the release in `push`; every item whose push found the flag set is visible to `pop`.
        self.signalled.swap(false, Ordering::AcqRel);
    }

    /// The consumer ends: what is left is dropped, and everything that comes.
    pub fn close(&self) {
        // Release: pairs with the acquire in `push`.
        self.closed.store(true, Ordering::Release);
        while self.pop().is_some() {}
    }

    /// Takes the oldest item.
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Sets `bytes` aside for a publication that is about to be pushed; false when `bytes_max` are already set aside.
    #[must_use]
    pub fn reserve(&self, bytes: usize, bytes_max: usize) -> bool {
        // Relaxed: a bound, not a signal. Two that overshoot together are both refused, which is what a bound may do.
        if self.reserved_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= bytes_max {
            return true;
        }
        self.release(bytes);
        false
    }

    /// Gives back what was set aside, once the publication has been popped.
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
    fn nothing_is_lost_or_reordered_between_threads() {
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
    fn nothing_stays_in_a_closed_inbox() {
        let inbox = Inbox::default();
        let item = Arc::new(());
        inbox.push(item.clone());
        inbox.close();
        inbox.push(item.clone());
        assert_eq!((Arc::strong_count(&item), inbox.pop()), (1, None));
    }

    #[test]
    fn the_reserve_is_bounded() {
        let inbox = Inbox::<()>::default();
        assert!(inbox.reserve(60, 100));
        assert!(!inbox.reserve(60, 100));
        assert!(inbox.reserve(40, 100));
        inbox.release(100);
        assert!(inbox.reserve(100, 100));
    }
}

/// `RUSTFLAGS='--cfg hydrant_loom' cargo test --lib loom_tests`
#[cfg(all(test, hydrant_loom))]
mod loom_tests {
    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Every interleaving with at most three switches that no thread asked for: more take hours, and add nothing in practice.
    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Takes items as a shard does until it has `number`; hangs, which loom finds, if a push is slept through.
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
    fn no_push_is_slept_through() {
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
    fn what_one_thread_pushes_keeps_its_order() {
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
    fn a_consumer_that_looks_sees_what_was_signalled() {
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
            // Whatever was there before the look, or signals after it.
            let seen = inbox.pop().is_some();
            if pushed.load(Ordering::Acquire) && !seen {
                assert!(inbox.signalled.load(Ordering::Acquire) || inbox.pop().is_some());
            }
            producer.join().unwrap();
        });
    }

    #[test]
    fn the_reserve_is_never_overdrawn() {
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
