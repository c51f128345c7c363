//! The HTTP phases of a shard: who has a place, who is busy, and who has to go when there are too many.
//!
//! At the bound, whoever has been longest without finishing a request goes, and if everybody has finished one, whoever has
//! been idle longest since. So who only holds places, in whichever way, keeps nobody out who uses one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;

use tokio::sync::Notify;

use super::turns::Turn;

/// A socket that asks for something by HTTP.
#[derive(Debug, Default)]
pub struct HttpPhase {
    /// Its place; higher numbers have been active later.
    number: Cell<u64>,
    /// A whole request of it has come.
    known: Cell<bool>,
    /// One is being answered.
    busy: Cell<bool>,
    evicted: Cell<bool>,
    notify: Notify,
    pub(super) turn: Cell<Turn>,
    /// Its task, while that waits for a turn.
    pub(super) waiting: RefCell<Option<Waker>>,
}

impl HttpPhase {
    /// A whole request has come: until it is answered, the place is safe.
    pub fn begin(&self) {
        self.known.set(true);
        self.busy.set(true);
    }

    /// Nothing of it matters any more: its place is anybody's.
    pub fn forget(&self) {
        self.known.set(false);
        self.busy.set(false);
    }

    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.busy.get()
    }

    /// Whether nothing is known of it yet.
    pub(super) fn is_new(&self) -> bool {
        !self.known.get() && !self.evicted.get()
    }

    /// Whether its place was taken away.
    pub fn is_evicted(&self) -> bool {
        self.evicted.get()
    }

    /// Waits until its place is taken away.
    pub async fn evicted(&self) {
        self.notify.notified().await;
    }

    fn evict(&self) {
        self.evicted.set(true);
        self.notify.notify_one();
        if let Some(task) = self.waiting.take() {
            task.wake();
        }
    }
}

/// The places of a shard, in the order of their last activity.
#[derive(Debug, Default)]
pub struct Phases {
    places: RefCell<BTreeMap<u64, Rc<HttpPhase>>>,
    next: Cell<u64>,
}

impl Phases {
    /// A place among at most `most`, and whether another had to go for it; nothing when everybody is being answered.
    pub fn take(&self, most: usize) -> Option<(Rc<HttpPhase>, bool)> {
        let mut places = self.places.borrow_mut();
        let full = places.len() >= most;
        if full {
            let idle = || places.iter().filter(|(_, phase)| !phase.busy.get());
            let (&number, _) = idle().find(|(_, phase)| !phase.known.get()).or_else(|| idle().next())?;
            places.remove(&number)?.evict();
        }
        let phase = Rc::<HttpPhase>::default();
        phase.number.set(self.next.replace(self.next.get() + 1));
        places.insert(phase.number.get(), phase.clone());
        Some((phase, full))
    }

    /// A request has been answered: it is idle from now on, as the last of all.
    pub fn finish(&self, phase: &HttpPhase) {
        phase.busy.set(false);
        let mut places = self.places.borrow_mut();
        if let Some(phase) = places.remove(&phase.number.get()) {
            phase.number.set(self.next.replace(self.next.get() + 1));
            places.insert(phase.number.get(), phase);
        }
    }

    /// Gives a place back, if it still is one; how many there have been when that was the last.
    pub fn give_back(&self, phase: &HttpPhase) -> Option<u64> {
        let mut places = self.places.borrow_mut();
        places.remove(&phase.number.get());
        places.is_empty().then(|| self.next.take())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.borrow().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_idle_longest_goes_and_who_is_answered_stays() {
        let phases = Phases::default();
        let take = || phases.take(3).map(|(phase, _)| phase);
        let all = [(); 3].map(|()| take().unwrap());
        let evicted = || all.each_ref().map(|phase| phase.is_evicted());
        all[0].begin();
        all[1].begin();
        // The third has finished nothing, and goes although it came last.
        let fourth = take().unwrap();
        assert_eq!(evicted(), [false, false, true]);
        fourth.begin();
        assert!(take().is_none(), "everybody is being answered");
        phases.finish(&all[1]);
        phases.finish(&all[0]);
        // Both are idle; the second has been for longer.
        let fifth = take().unwrap();
        assert_eq!(evicted(), [false, true, true]);
        assert_eq!((phases.give_back(&all[1]), phases.len()), (None, 3));
        for phase in [&fourth, &fifth] {
            assert_eq!(phases.give_back(phase), None);
        }
        assert!(phases.give_back(&all[0]).is_some() && phases.is_empty());
    }
}
