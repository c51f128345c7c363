//! Which channel goes on: those with few subscribers before those with many, and yet each kind half of the time. Pure.
//!
//! A pass over ten thousand takes tens of milliseconds, one over some hundreds a few. Were they to take turns, chunk by chunk, the small
//! channel would take twice as long as alone, and the large one hardly less than when it waits for the small one to be done. So
//! small ones go first, until they are [`AHEAD_MAX`] visits ahead of large ones that have something to send; then the large ones catch up.

use std::collections::VecDeque;

use crate::config::PASS_CHUNK;

/// Most subscribers of a small channel.
pub(super) const SMALL: usize = 4 * PASS_CHUNK;
/// Visits by which small channels may get ahead.
const AHEAD_MAX: usize = SMALL;

/// A kind of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At most [`SMALL`] subscribers.
    Small,
    /// More.
    Large,
}

impl Kind {
    /// What a visit takes of a chunk. What comes during a step waits for its end, and mostly that is a step of a large channel: these
    /// are half as long.
    pub(super) fn cost(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Large => 2,
        }
    }
}

/// Channels with something to send, each at most once.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    small: VecDeque<u32>,
    large: VecDeque<u32>,
    /// Visits by which small channels are ahead.
    ahead: usize,
    /// The large ones catch up.
    catching_up: bool,
}

impl Scheduler {
    /// Gives a channel its turn, behind the others of its kind.
    pub(super) fn push(&mut self, channel: u32, subscribers: usize) {
        if subscribers > SMALL { self.large.push_back(channel) } else { self.small.push_back(channel) }
    }

    /// The kinds in the order of the next step, and how many channels of each have something to send.
    #[must_use]
    pub(super) fn order(&mut self) -> [(Kind, usize); 2] {
        if self.large.is_empty() {
            // Nobody waits for them.
            (self.ahead, self.catching_up) = (0, false);
        }
        let (small, large) = ((Kind::Small, self.small.len()), (Kind::Large, self.large.len()));
        if self.catching_up { [large, small] } else { [small, large] }
    }

    /// Whose turn it is among one kind.
    pub(super) fn pop(&mut self, kind: Kind) -> Option<u32> {
        match kind {
            Kind::Small => self.small.pop_front(),
            Kind::Large => self.large.pop_front(),
        }
    }

    /// A channel of this kind has had its turn, and made so many visits.
    pub(super) fn visited(&mut self, kind: Kind, visits: usize) {
        match kind {
            Kind::Small if self.large.is_empty() => {}
            Kind::Small => self.ahead = (self.ahead + visits).min(AHEAD_MAX),
            Kind::Large => self.ahead = self.ahead.saturating_sub(visits),
        }
        self.catching_up = self.ahead >= AHEAD_MAX || self.catching_up && self.ahead > 0;
    }

    /// Every channel with something to send.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.small.iter().chain(&self.large).copied()
    }

    /// Whether there is none.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes turns of one chunk, with a channel that always has something to send and others that do until `done`; the turns in order.
    fn turns(scheduler: &mut Scheduler, number: usize, done: impl Fn(u32, usize) -> bool) -> Vec<u32> {
        let mut taken = Vec::new();
        while taken.len() < number
            && let Some((kind, channel)) =
                scheduler.order().into_iter().find_map(|(kind, _)| Some((kind, scheduler.pop(kind)?)))
        {
            taken.push(channel);
            scheduler.visited(kind, PASS_CHUNK / kind.cost());
            if !done(channel, taken.len()) {
                scheduler.push(channel, if kind == Kind::Small { SMALL } else { SMALL + 1 });
            }
        }
        taken
    }

    #[test]
    fn a_small_channel_does_not_wait_for_a_large_one() {
        let mut scheduler = Scheduler::default();
        scheduler.push(1, 10_000);
        scheduler.push(2, 700);
        assert_eq!(turns(&mut scheduler, 6, |channel, taken| channel == 2 && taken == 3), [2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn a_large_channel_has_half_of_the_visits_however_many_small_ones_there_are() {
        let mut scheduler = Scheduler::default();
        scheduler.push(0, 10_000);
        (1..=100).for_each(|small| scheduler.push(small, 100));
        let taken = turns(&mut scheduler, 600, |_, _| false);
        assert_eq!(taken.iter().filter(|&&channel| channel == 0).count(), 400, "whose steps are half as long");
        assert_eq!(taken[..14], [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5, 6], "each of the small ones in turn");
    }

    #[test]
    fn what_nobody_waited_for_is_not_made_up_for() {
        let mut scheduler = Scheduler::default();
        scheduler.push(2, 700);
        turns(&mut scheduler, 50, |_, _| false);
        scheduler.push(1, 10_000);
        assert_eq!(turns(&mut scheduler, 5, |_, _| false), [2, 2, 2, 2, 1]);
    }
}
