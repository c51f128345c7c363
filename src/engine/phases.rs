//! The HTTP phases at one port of a shard: who has a place, how far it has got, and who has to go when there are too many.
//!
//! At the bound, whoever has got least far goes, and among those whoever came, or was answered, first. But half of the places are for
//! newcomers, however many have been answered and stay; and no newcomer goes for another as soon as it has come. So who
//! only holds places, in whichever way, keeps nobody out who uses one. Each port has its own: a flood at one takes no place at another.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use tokio::sync::Notify;

use super::shard::Shard;
use super::turns::{Turn, Turns};

/// How far a socket has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It has had its last answer.
    Done,
    /// Nothing that it has sent has been looked at.
    #[default]
    Nothing,
    /// It has had a turn, and no request of it is whole.
    Begun,
    /// Its last request has been answered.
    Idle,
    /// A request is being answered: its place is safe.
    Busy,
}

/// A socket that asks for something by HTTP.
#[derive(Debug, Default)]
pub struct HttpPhase {
    /// How far it has got, and since when: the key of its place. Of two numbers, the higher one is later.
    place: Cell<(Standing, u64)>,
    evicted: Cell<bool>,
    notify: Notify,
    pub(super) turn: Cell<Turn>,
    /// Its task, while that waits for a turn.
    pub(super) waiting: RefCell<Option<Waker>>,
}

impl HttpPhase {
    pub(super) fn standing(&self) -> Standing {
        self.place.get().0
    }

    /// Whether a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.standing() == Standing::Busy
    }

    /// Whether nothing is known of it yet.
    pub(super) fn is_new(&self) -> bool {
        self.standing() < Standing::Idle && !self.is_evicted()
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

/// Those who have a place, whoever goes first first.
#[derive(Debug, Default)]
struct Places {
    by_standing: BTreeMap<(Standing, u64), Rc<HttpPhase>>,
    /// How many of them no request has come from.
    newcomers: usize,
}

impl Places {
    fn insert(&mut self, phase: Rc<HttpPhase>) {
        self.newcomers += usize::from(phase.standing() < Standing::Idle);
        self.by_standing.insert(phase.place.get(), phase);
    }

    fn remove(&mut self, place: (Standing, u64)) -> Option<Rc<HttpPhase>> {
        let phase = self.by_standing.remove(&place)?;
        self.newcomers -= usize::from(place.0 < Standing::Idle);
        Some(phase)
    }

    fn first(&self, standing: Standing) -> Option<(Standing, u64)> {
        let (&place, _) = self.by_standing.range((standing, 0)..).next()?;
        (place.0 == standing).then_some(place)
    }

    /// Who goes for the next one; those from `settled` on have just come.
    fn least(&self, settled: u64) -> Option<(Standing, u64)> {
        let idle = || self.first(Standing::Idle).filter(|_| self.newcomers < self.by_standing.len() / 2);
        let nothing = self.first(Standing::Nothing);
        self.first(Standing::Done)
            .or_else(idle)
            .or(nothing.filter(|nothing| nothing.1 < settled))
            .or_else(|| self.first(Standing::Begun))
            .or(nothing)
            .or_else(|| self.first(Standing::Idle))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Phases {
    places: RefCell<Places>,
    next: Cell<u64>,
    /// Whoever has a lower number was here when turns were last given.
    settled: Cell<u64>,
    turns: Turns,
}

impl Phases {
    /// No phases yet at a port, with TLS or without.
    #[must_use]
    pub fn new(secure: bool) -> Self {
        Self { places: RefCell::default(), next: Cell::default(), settled: Cell::default(), turns: Turns::new(secure) }
    }

    /// A place among at most `most`, and whether another had to go for it; nothing when everybody is being answered.
    pub fn take(&self, most: usize) -> Option<(Rc<HttpPhase>, bool)> {
        let mut places = self.places.borrow_mut();
        let full = places.by_standing.len() >= most;
        if full {
            let least = places.least(self.settled.get())?;
            places.remove(least)?.evict();
        }
        let phase = Rc::<HttpPhase>::default();
        phase.place.set((Standing::default(), self.now()));
        places.insert(phase.clone());
        Some((phase, full))
    }

    /// A round is over: gives turns to those who wait. Whether somebody goes on waiting.
    pub(super) fn next_round(&self) -> bool {
        self.settled.set(self.next.get());
        self.turns.refill()
    }

    /// Takes a turn, if there is one; without, the task is woken when it has one.
    pub(super) fn take_turn(&self, phase: &Rc<HttpPhase>, context: &Context<'_>, shard: &Shard) -> bool {
        let taken = self.turns.take(phase, context, shard);
        if taken && phase.standing() == Standing::Nothing {
            self.set(phase, Standing::Begun, phase.place.get().1);
        }
        taken
    }

    /// A whole request has come: until it is answered, the place is safe.
    pub fn begin(&self, phase: &HttpPhase) {
        self.set(phase, Standing::Busy, phase.place.get().1);
    }

    /// A request has been answered: from now on it is idle, if the request was whole.
    pub fn finish(&self, phase: &HttpPhase) {
        let standing = if phase.is_busy() { Standing::Idle } else { phase.standing() };
        self.set(phase, standing, self.now());
    }

    /// It has had its last answer: its place is anybody's.
    pub fn forget(&self, phase: &HttpPhase) {
        self.set(phase, Standing::Done, phase.place.get().1);
    }

    fn now(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Without a place there is nothing to set.
    fn set(&self, phase: &HttpPhase, standing: Standing, since: u64) {
        if !phase.is_evicted() {
            let mut places = self.places.borrow_mut();
            let holder = places.remove(phase.place.replace((standing, since)));
            holder.into_iter().for_each(|holder| places.insert(holder));
        }
    }

    /// Gives a place back, if it still is one; how much has happened here when that was the last.
    pub fn give_back(&self, phase: &HttpPhase) -> Option<u64> {
        let mut places = self.places.borrow_mut();
        if !phase.is_evicted() {
            places.remove(phase.place.get());
        }
        places.by_standing.is_empty().then(|| {
            self.settled.take();
            self.next.take()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_got_least_far_goes_and_who_is_answered_stays() {
        let phases = Phases::new(false);
        let take = || phases.take(4).map(|(phase, _)| phase);
        let all = [(); 4].map(|()| take().unwrap());
        let evicted = || all.each_ref().map(|phase| phase.is_evicted());
        phases.begin(&all[0]);
        phases.begin(&all[1]);
        let touch = |phase: &HttpPhase| phases.set(phase, Standing::Begun, phase.place.get().1);
        touch(&all[2]);
        phases.next_round();
        // The last one has not had a turn, and goes although it came last.
        let fifth = take().unwrap();
        assert_eq!(evicted(), [false, false, false, true]);
        phases.begin(&fifth);
        // Of the others, only the third has not finished a request.
        let sixth = take().unwrap();
        assert_eq!(evicted(), [false, false, true, true]);
        phases.begin(&sixth);
        assert!(take().is_none(), "everybody is being answered");
        phases.finish(&all[1]);
        phases.finish(&all[0]);
        // Both are idle; the second has been for longer.
        let seventh = take().unwrap();
        assert_eq!(evicted(), [false, true, true, true]);
        // Who has gone changes nothing any more.
        phases.finish(&all[1]);
        for phase in [&all[1], &all[2], &all[3], &fifth, &sixth, &seventh] {
            assert_eq!(phases.give_back(phase), None);
        }
        assert!(phases.give_back(&all[0]).is_some() && phases.places.borrow().by_standing.is_empty());
        assert_eq!(phases.places.borrow().newcomers, 0);
    }

    #[test]
    fn who_has_just_come_does_not_go_for_the_next_one() {
        let phases = Phases::new(false);
        let take = || phases.take(3).unwrap().0;
        let holders = [(); 3].map(|()| take());
        holders.iter().for_each(|phase| phases.set(phase, Standing::Begun, phase.place.get().1));
        phases.next_round();
        let newcomers = [(); 3].map(|()| take());
        assert!(holders.iter().all(|phase| phase.is_evicted()), "who only holds a place has gone");
        assert!(!newcomers.iter().any(|phase| phase.is_evicted()));
        let another = take();
        assert!(newcomers[0].is_evicted() && !newcomers[1].is_evicted(), "somebody has to go");
        phases.next_round();
        phases.begin(&newcomers[1]);
        phases.finish(&newcomers[1]);
        phases.forget(&another);
        take();
        assert!(another.is_evicted() && !newcomers[2].is_evicted(), "who has had its last answer is the first to go");
        take();
        assert!(newcomers[2].is_evicted() && !newcomers[1].is_evicted(), "and who was answered before is the last");
    }

    #[test]
    fn who_was_answered_and_stays_has_no_more_than_half() {
        let phases = Phases::new(false);
        let take = || phases.take(8).unwrap().0;
        let holders = [(); 8].map(|()| take());
        for holder in &holders {
            phases.begin(holder);
            phases.finish(holder);
        }
        let newcomers = [(); 5].map(|()| {
            phases.next_round();
            take()
        });
        let left = |phases: &[Rc<HttpPhase>]| phases.iter().filter(|phase| !phase.is_evicted()).count();
        assert_eq!((left(&holders), left(&newcomers)), (4, 4));
        assert!(newcomers[0].is_evicted(), "of the newcomers' half, the oldest");
    }

    #[test]
    fn who_has_gone_takes_no_place_with_it() {
        let phases = Phases::new(false);
        let (first, _) = phases.take(1).unwrap();
        let (second, instead) = phases.take(1).unwrap();
        assert!(instead && first.is_evicted());
        assert!(phases.give_back(&second).is_some());
        // The numbers begin anew.
        let (third, _) = phases.take(1).unwrap();
        assert_eq!(phases.give_back(&first), None);
        assert!(phases.give_back(&third).is_some());
    }
}
