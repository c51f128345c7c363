//! Turns of HTTP phases that have not got as far as a whole request: they may be thousands, and strangers.
//!
//! The runtime polls every task that is ready before it comes back to the shard's own loop; messages would wait for all of
//! them. So a newcomer's task is polled only with a turn, of which there are [`NEWCOMER_TURNS`] in a round of that loop, with TLS
//! [`NEWCOMER_TURNS_TLS`]. Half of them are for those who have had one before and are about to get further, half for the others; each in
//! the order in which they were asked for. But of those who have not had one, and are a flood, whoever has waited longest is the
//! next who loses its place anyway: the last ones go first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::phases::{HttpPhase, Phases, Standing};
use super::shard::Shard;
use crate::config::{NEWCOMER_TURNS, NEWCOMER_TURNS_TLS};

/// Where a newcomer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has not asked.
    #[default]
    None,
    /// It is in the queue.
    Waiting,
    /// It was its turn, and it has not used it.
    Granted,
}

/// Newcomers without a turn from which on they are a flood: more than have theirs within some tens of milliseconds.
const FLOOD: usize = 128;

/// The turns of a round.
#[derive(Debug)]
pub(super) struct Turns {
    /// So many in each round.
    each: usize,
    left: Cell<usize>,
    /// Who has not had a turn yet; also some who have gone.
    fresh: RefCell<VecDeque<Rc<HttpPhase>>>,
    /// Who has had one.
    begun: RefCell<VecDeque<Rc<HttpPhase>>>,
}

impl Turns {
    /// Turns at a port, with TLS or without.
    pub(super) fn new(secure: bool) -> Self {
        let each = if secure { NEWCOMER_TURNS_TLS } else { NEWCOMER_TURNS };
        Self { each, left: Cell::new(each), fresh: RefCell::default(), begun: RefCell::default() }
    }

    /// A round is over: gives turns to those who wait. Whether somebody goes on waiting.
    pub(super) fn refill(&self) -> bool {
        let mut left = self.each;
        let (mut fresh, mut begun) = (self.fresh.borrow_mut(), self.begun.borrow_mut());
        // What one kind leaves of its half, the other has.
        let kept = fresh.len().min(left / 2);
        for (queue, keep, flood) in [(&mut *begun, kept, usize::MAX), (&mut *fresh, 0, FLOOD)] {
            while left > keep
                && let Some(phase) = if queue.len() > flood { queue.pop_back() } else { queue.pop_front() }
            {
                // Who was woken for another reason, to go, waits no more.
                if let Some(task) = phase.waiting.take() {
                    phase.turn.set(Turn::Granted);
                    task.wake();
                    left -= 1;
                }
            }
            // Those who go are the first.
            while queue.front().is_some_and(|phase| phase.waiting.borrow().is_none()) {
                queue.pop_front();
            }
            if queue.is_empty() {
                // After a storm, its room is given back.
                queue.shrink_to(self.each);
            }
        }
        self.left.set(left);
        !(fresh.is_empty() && begun.is_empty())
    }

    /// Takes a turn; without one left, the task is woken when it has one.
    pub(super) fn take(&self, phase: &Rc<HttpPhase>, context: &Context<'_>, shard: &Shard) -> bool {
        match (phase.turn.take(), self.left.get()) {
            (Turn::Granted, _) => return true,
            (Turn::None, left @ 1..) => {
                self.left.set(left - 1);
                return true;
            }
            (Turn::None, 0) => {
                let queue = if phase.standing() == Standing::Begun { &self.begun } else { &self.fresh };
                let mut queue = queue.borrow_mut();
                phase.waiting.replace(Some(context.waker().clone()));
                queue.push_back(phase.clone());
                if queue.len() == 1 {
                    // The loop may be asleep: nothing else has to happen in this round.
                    shard.inbox().notify();
                }
            }
            (Turn::Waiting, _) => {}
        }
        phase.turn.set(Turn::Waiting);
        false
    }
}

/// The task of an HTTP phase, which needs turns for as long as it is new.
pub struct Newcomer<F> {
    shard: Rc<Shard>,
    phases: Rc<Phases>,
    phase: Rc<HttpPhase>,
    task: Pin<Box<F>>,
}

impl<F> Newcomer<F> {
    /// Lets `task` take turns among these phases.
    pub fn new(shard: Rc<Shard>, phases: Rc<Phases>, phase: Rc<HttpPhase>, task: F) -> Self {
        Self { shard, phases, phase, task: Box::pin(task) }
    }
}

impl<F: Future> Future for Newcomer<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { shard, phases, phase, task } = self.get_mut();
        if phase.is_new() && !phases.take_turn(phase, context, shard) {
            return Poll::Pending;
        }
        task.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::runtime::LocalRuntime;
    use tokio::sync::mpsc;
    use tokio::task::{spawn_local, yield_now};

    use super::*;
    use crate::config::Config;
    use crate::engine::Engine;

    /// Lets newcomers run that have to be polled twice, one of them known, with `between` for the first of them between two rounds.
    /// Who was through, in order; `None` for the known one.
    fn rounds(count: usize, between: impl Fn(&Waker)) -> Vec<Vec<Option<usize>>> {
        let (shard, _set) = Shard::new(Engine::new(Config::default(), mpsc::channel(1).0), 0).unwrap();
        let through = Rc::new(RefCell::new(Vec::new()));
        let wakers = Rc::new(RefCell::new(Vec::new()));
        let mut rounds = Vec::new();
        LocalRuntime::new().unwrap().block_on(async {
            for number in (0..count).map(Some).chain([None]) {
                let (through, wakers) = (through.clone(), wakers.clone());
                let (phase, _) = shard.http_phases[0].take(usize::MAX).unwrap();
                if number.is_none() {
                    shard.http_phases[0].begin(&phase);
                }
                let gate = Newcomer::new(shard.clone(), shard.http_phases[0].clone(), phase, async move {
                    through.borrow_mut().push(number)
                });
                let mut gate = Box::pin(gate);
                spawn_local(poll_fn(move |context| {
                    wakers.borrow_mut().push(context.waker().clone());
                    gate.as_mut().poll(context)
                }));
            }
            while through.borrow().len() <= count {
                for _ in 0..3 {
                    yield_now().await;
                }
                // The runtime may come back before it has polled all of them.
                while wakers.borrow().len() <= count {
                    yield_now().await;
                }
                between(&wakers.borrow()[count - 1]);
                yield_now().await;
                rounds.push(through.borrow().clone());
                shard.http_phases[0].next_round();
                assert!(rounds.len() < FLOOD, "somebody waits for ever");
            }
        });
        rounds.push(through.take());
        rounds
    }

    #[test]
    fn newcomers_have_so_many_turns_in_a_round_and_in_order() {
        let count = 2 * NEWCOMER_TURNS + 1;
        let rounds = rounds(count, |_| {});
        assert!(rounds[0].contains(&None), "who is known needs none");
        let mut order = rounds.last().unwrap().clone();
        order.retain(Option::is_some);
        assert!(order.is_sorted());
        let sizes: Vec<_> = rounds.iter().map(|round| round.len() - 1).collect();
        assert_eq!(sizes[..3], [NEWCOMER_TURNS, 2 * NEWCOMER_TURNS, count]);
    }

    #[test]
    fn in_a_flood_the_last_ones_go_first() {
        let count = FLOOD + 3 * NEWCOMER_TURNS;
        let order: Vec<_> = rounds(count, |_| {}).pop().unwrap().into_iter().flatten().collect();
        let (first, last) = (0..NEWCOMER_TURNS, count - 2 * NEWCOMER_TURNS..count);
        let then = NEWCOMER_TURNS..last.start;
        assert!(order.into_iter().eq(first.chain(last.rev()).chain(then)));
    }

    #[test]
    fn who_has_had_a_turn_does_not_wait_for_all_who_have_not() {
        let (shard, _set) = Shard::new(Engine::new(Config::default(), mpsc::channel(1).0), 0).unwrap();
        let phases = &shard.http_phases[0];
        LocalRuntime::new().unwrap().block_on(async {
            let begin = || {
                let (phase, _) = phases.take(usize::MAX).unwrap();
                // It says half of what it has to say, and later the rest.
                let newcomer = Newcomer::new(shard.clone(), phases.clone(), phase, yield_now());
                spawn_local(newcomer)
            };
            let first = begin();
            let crowd: Vec<_> = (0..50 * NEWCOMER_TURNS).map(|_| begin()).collect();
            let mut rounds = 0;
            while !first.is_finished() {
                for _ in 0..crowd.len() {
                    yield_now().await;
                }
                phases.next_round();
                rounds += 1;
            }
            assert!(rounds <= 3, "{rounds}");
            assert!(!crowd[crowd.len() - 1].is_finished());
        });
    }

    #[test]
    fn who_is_woken_without_a_turn_waits_on_and_is_not_forgotten() {
        // The last one is woken in every round, as by its socket.
        let count = 3 * NEWCOMER_TURNS;
        assert_eq!(rounds(count, Waker::wake_by_ref).last().unwrap().len(), count + 1);
    }
}
