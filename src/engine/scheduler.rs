//! Decides which channel is served next: small channels first, yet each kind gets half of the
//! sends. Pure.
//!
//! A pass over ten thousand subscribers takes tens of milliseconds, one over a few hundred takes a
//! few. If a small and a large channel alternated chunk by chunk, the small one would take twice as
//! long as alone. The large one would hardly gain: it would end about as early as if it had waited
//! for the small one first. So small channels go first, until they are [`AHEAD_MAX`] sends ahead
//! of large channels that have something to send; then the large ones catch up.

use std::collections::VecDeque;

/// Most subscribers of a small channel.
pub(super) const SMALL: usize = 4 * PASS_CHUNK;
/// Sends by which small channels may get ahead of large ones.
const AHEAD_MAX: usize = SMALL;
/// Sockets that a shard writes to before it returns to its reads, new connections and inbox: about
/// a millisecond. A large channel gets half as many.
pub const PASS_CHUNK: usize = 256;

/// A channel's kind, by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At most [`SMALL`] subscribers.
    Small,
    /// More than [`SMALL`] subscribers.
    Large,
}

impl Kind {
    /// The cost of one send, in sends of a small channel. Items that arrive during a step wait for
    /// its end. Most of them arrive during a step of a large channel, so these steps are half as
    /// long.
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
    /// Sends by which small channels are ahead.
    ahead: usize,
    /// The large channels are catching up.
    catching_up: bool,
}

impl Scheduler {
    /// Queues a channel behind the others of its kind.
    pub(super) fn push(&mut self, channel: u32, subscribers: usize) {
        if subscribers > SMALL { self.large.push_back(channel) } else { self.small.push_back(channel) }
    }

    /// The kinds in the order of the next step, and how many channels of each have something to
    /// send.
    #[must_use]
    pub(super) fn order(&mut self) -> [(Kind, usize); 2] {
        if self.large.is_empty() {
            // No large channel waits, so there is nothing to catch up with.
            (self.ahead, self.catching_up) = (0, false);
        }
        let (small, large) = ((Kind::Small, self.small.len()), (Kind::Large, self.large.len()));
        if self.catching_up { [large, small] } else { [small, large] }
    }

    /// Takes the next channel of a kind.
    pub(super) fn pop(&mut self, kind: Kind) -> Option<u32> {
        match kind {
            Kind::Small => self.small.pop_front(),
            Kind::Large => self.large.pop_front(),
        }
    }

    /// Records that a channel of this kind was served with this number of sends.
    pub(super) fn sent(&mut self, kind: Kind, sends: usize) {
        match kind {
            Kind::Small if self.large.is_empty() => {}
            Kind::Small => self.ahead = (self.ahead + sends).min(AHEAD_MAX),
            Kind::Large => self.ahead = self.ahead.saturating_sub(sends),
        }
        self.catching_up = self.ahead >= AHEAD_MAX || self.catching_up && self.ahead > 0;
    }

    /// Every channel with something to send.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.small.iter().chain(&self.large).copied()
    }

    /// Whether no channel has something to send.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves one chunk at a time, `number` times at most. A channel has something to send until
    /// `done(channel, chunks served)`. Returns the channels in the order in which they were served.
    fn serve(scheduler: &mut Scheduler, number: usize, done: impl Fn(u32, usize) -> bool) -> Vec<u32> {
        let mut served = Vec::new();
        while served.len() < number
            && let Some((kind, channel)) =
                scheduler.order().into_iter().find_map(|(kind, _)| Some((kind, scheduler.pop(kind)?)))
        {
            served.push(channel);
            scheduler.sent(kind, PASS_CHUNK / kind.cost());
            if !done(channel, served.len()) {
                scheduler.push(channel, if kind == Kind::Small { SMALL } else { SMALL + 1 });
            }
        }
        served
    }

    #[test]
    fn a_small_channel_does_not_wait_for_a_large_one() {
        let mut scheduler = Scheduler::default();
        scheduler.push(1, 10_000);
        scheduler.push(2, 700);
        assert_eq!(serve(&mut scheduler, 6, |channel, served| channel == 2 && served == 3), [2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn a_large_channel_gets_half_of_the_sends_beside_any_number_of_small_ones() {
        let mut scheduler = Scheduler::default();
        scheduler.push(0, 10_000);
        (1..=100).for_each(|small| scheduler.push(small, 100));
        let served = serve(&mut scheduler, 600, |_, _| false);
        assert_eq!(served.iter().filter(|&&channel| channel == 0).count(), 400, "its steps are half as long");
        assert_eq!(served[..14], [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 5, 6], "the small ones alternate");
    }

    #[test]
    fn small_channels_are_not_ahead_of_a_large_one_that_had_nothing_to_send() {
        let mut scheduler = Scheduler::default();
        scheduler.push(2, 700);
        serve(&mut scheduler, 50, |_, _| false);
        scheduler.push(1, 10_000);
        assert_eq!(serve(&mut scheduler, 5, |_, _| false), [2, 2, 2, 2, 1]);
    }
}
