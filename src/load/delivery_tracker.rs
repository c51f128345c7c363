//! Tracks which subscriber has received which message. Numbers and times are arguments; no I/O.
//!
//! Publications are numbered over the whole run. Each room has one order, and the first arrival at
//! a position defines it; every other subscriber of the room has to receive the same publication
//! there. A publication is *owed* to every subscriber that was in its room when it was published. A
//! subscriber that joined later may receive earlier messages; from its first message on it must
//! have no gap. So `received == expected` holds exactly when nothing was lost, and every repeat,
//! reordering or gap is counted by name.
//!
//! A slow subscriber is held to the same order, but nothing waits for it and its messages are
//! counted apart.

use std::collections::HashMap;

use super::latency::Latencies;

/// The position of a publication that no subscriber has received yet.
const UNPLACED: u32 = u32::MAX;

/// A publication, by its number.
struct Publication {
    /// When it was due, in nanoseconds of the run's clock.
    due_ns: u64,
    /// Its position in the order of its room.
    position: u32,
    /// Subscribers that are owed it and do not have it.
    missing: u32,
    room: u32,
}

#[derive(Default)]
struct Room {
    /// Numbers of publications.
    order: Vec<u32>,
    /// Numbers of its publications that some subscriber still lacks; the oldest first.
    outstanding: Vec<u32>,
    /// Subscribers that are owed new publications.
    subscribers: u32,
}

/// The state of a subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SubscriberState {
    /// Nothing is owed.
    #[default]
    Absent,
    /// Has joined, and received nothing yet.
    Joined,
    Following,
    /// Only the order is checked.
    Slow,
}

/// One subscriber; 16 bytes.
#[derive(Clone, Copy, Default)]
struct Subscriber {
    /// The next position in the order of its room.
    next: u32,
    /// The first publication that is owed.
    owed_from: u32,
    room: u32,
    state: SubscriberState,
}

/// Counts of a run or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Counts {
    /// Messages published.
    pub published: u64,
    /// Deliveries that have to follow from them.
    pub expected: u64,
    /// Deliveries that arrived.
    pub received: u64,
    /// Messages that a subscriber lacks although it has a later one.
    pub gaps: u64,
    /// Messages that a subscriber received again.
    pub repeats: u64,
    /// Messages that a subscriber received after a later one.
    pub reordered: u64,
    /// Messages of this run whose bytes are not those that were published; none of them counts as
    /// received.
    pub damaged: u64,
    /// Messages that are not of this run.
    pub unexpected: u64,
    /// Messages that slow subscribers received.
    pub slow_received: u64,
    /// Messages that slow subscribers lack although they have later ones.
    pub slow_gaps: u64,
}

impl Counts {
    /// The counts since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            published: self.published - earlier.published,
            expected: self.expected - earlier.expected,
            received: self.received - earlier.received,
            gaps: self.gaps.saturating_sub(earlier.gaps),
            repeats: self.repeats - earlier.repeats,
            reordered: self.reordered - earlier.reordered,
            damaged: self.damaged - earlier.damaged,
            unexpected: self.unexpected - earlier.unexpected,
            slow_received: self.slow_received - earlier.slow_received,
            slow_gaps: self.slow_gaps.saturating_sub(earlier.slow_gaps),
        }
    }

    /// Expected deliveries that are missing; nothing is expected of a slow subscriber.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
    }

    /// Whether every subscriber received what was owed, once and in the one order.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.expected == self.received && (self.gaps, self.repeats, self.reordered, self.damaged) == (0, 0, 0, 0)
    }

    /// Whether every expected delivery arrived, once and in the one order, and nothing else.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.is_exact() && self.unexpected == 0
    }
}

/// See the head of this file.
pub(crate) struct DeliveryTracker {
    publications: Vec<Publication>,
    rooms: Vec<Room>,
    subscribers: Vec<Subscriber>,
    /// Positions that a subscriber has skipped, if any.
    skipped: HashMap<u32, Vec<u32>>,
    /// First messages of subscribers that cannot define the order yet: subscriber, publication,
    /// time. Mostly empty.
    early: Vec<(usize, u32, u64)>,
    counts: Counts,
    /// Messages that all subscribers have that are owed them.
    complete: u64,
    /// The first message that counts for slow subscribers: the rest of the warm-up does not.
    slow_from: u32,
    /// From due until received, for each delivery.
    pub(crate) deliveries: Latencies,
    /// From due until the last subscriber has it, for each message.
    pub(crate) last: Latencies,
}

impl DeliveryTracker {
    /// A tracker without subscribers and publications.
    pub(crate) fn new(subscribers: usize, rooms: usize) -> Self {
        Self {
            publications: Vec::new(),
            rooms: (0..rooms.max(1)).map(|_| Room::default()).collect(),
            subscribers: vec![Subscriber::default(); subscribers],
            skipped: HashMap::new(),
            early: Vec::new(),
            counts: Counts::default(),
            complete: 0,
            slow_from: 0,
            deliveries: Latencies::default(),
            last: Latencies::default(),
        }
    }

    /// Begins the measurement: publications from here on count.
    pub(crate) fn measure_from_here(&mut self) {
        self.slow_from = self.publications.len() as u32;
        self.deliveries.clear();
        self.last.clear();
    }

    /// Ends the measurement: messages that slow subscribers lack at the end of their order are gaps
    /// too.
    pub(crate) fn close_slow(&mut self) {
        self.receive_early(|_| true);
        for entry in self.subscribers.iter_mut().filter(|entry| entry.state == SubscriberState::Slow) {
            let order = &self.rooms[entry.room as usize].order;
            let measured = |number: &&u32| **number >= self.slow_from && **number >= entry.owed_from;
            self.counts.slow_gaps += order[entry.next as usize..].iter().filter(measured).count() as u64;
            entry.next = order.len() as u32;
        }
    }

    /// All counts so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Published messages that some subscriber still lacks.
    pub(crate) fn in_flight(&self) -> u64 {
        self.counts.published - self.complete
    }

    /// Adds a subscriber to its room. Nothing waits for a slow one.
    pub(crate) fn join(&mut self, subscriber: usize, room: usize, slow: bool) {
        let next = self.rooms[room].order.len() as u32;
        let state = if slow { SubscriberState::Slow } else { SubscriberState::Joined };
        let owed_from = self.publications.len() as u32;
        self.subscribers[subscriber] = Subscriber { next, owed_from, room: room as u32, state };
        self.rooms[room].subscribers += u32::from(!slow);
    }

    /// A subscriber leaves by its own choice: it is owed no more. Until the next [`Self::join`] its
    /// messages do not count.
    pub(crate) fn leave(&mut self, subscriber: usize) {
        self.counts.expected -= self.release(subscriber);
    }

    /// The server has closed the connection of a subscriber: owed messages that have not arrived
    /// are lost.
    pub(crate) fn abort(&mut self, subscriber: usize) {
        self.release(subscriber);
    }

    /// Removes a subscriber, with the positions that it has skipped, from all waits. Returns how
    /// many deliveries it lacks, without gaps. A message that becomes complete by that has no last
    /// delivery, and no latency of one.
    fn release(&mut self, subscriber: usize) -> u64 {
        if !self.early.is_empty() {
            self.receive_early(|early| early == subscriber);
        }
        let lacking = self.remove(subscriber);
        if !self.early.is_empty() {
            // Publications that this subscriber alone was owed have no position to wait for.
            self.receive_early(|_| false);
        }
        lacking
    }

    fn remove(&mut self, subscriber: usize) -> u64 {
        let entry = std::mem::take(&mut self.subscribers[subscriber]);
        let skipped = self.skipped.remove(&(subscriber as u32)).unwrap_or_default();
        if !matches!(entry.state, SubscriberState::Joined | SubscriberState::Following) {
            return 0;
        }
        let room = &mut self.rooms[entry.room as usize];
        room.subscribers -= 1;
        let mut lacking = 0;
        room.outstanding.retain(|number| {
            let publication = &mut self.publications[*number as usize];
            let is_owed = *number >= entry.owed_from && publication.missing > 0;
            let is_ahead = publication.position >= entry.next;
            if is_owed && (is_ahead || skipped.contains(&publication.position)) {
                lacking += u64::from(is_ahead);
                publication.missing -= 1;
                self.complete += u64::from(publication.missing == 0);
            }
            publication.missing > 0
        });
        lacking
    }

    /// Records a publication that was due at this time; returns its number.
    pub(crate) fn publish(&mut self, room: usize, due_ns: u64) -> u32 {
        // Four billion messages would need more memory than a machine has.
        let number = self.publications.len() as u32;
        let missing = self.rooms[room].subscribers;
        self.publications.push(Publication { due_ns, position: UNPLACED, missing, room: room as u32 });
        self.counts.published += 1;
        self.counts.expected += u64::from(missing);
        if missing == 0 {
            self.complete += 1;
        } else {
            let outstanding = &mut self.rooms[room].outstanding;
            // Complete ones are removed when they are most of the list: a constant cost for each
            // publication.
            if outstanding.len() == outstanding.capacity() {
                outstanding.retain(|number| self.publications[*number as usize].missing > 0);
                outstanding.reserve(outstanding.len().max(64));
            }
            outstanding.push(number);
        }
        number
    }

    /// A subscriber has received a message of this run whose bytes were changed.
    pub(crate) fn damaged(&mut self) {
        self.counts.damaged += 1;
    }

    /// A subscriber has received a message that is not of this run.
    pub(crate) fn unexpected(&mut self) {
        self.counts.unexpected += 1;
    }

    /// A subscriber has received publication `number`.
    #[inline]
    pub(crate) fn receive(&mut self, subscriber: usize, number: u32, now_ns: u64) {
        let entry = &mut self.subscribers[subscriber];
        let order = &self.rooms[entry.room as usize].order;
        if entry.state == SubscriberState::Following && order.get(entry.next as usize) == Some(&number) {
            entry.next += 1;
            let owed = number >= entry.owed_from;
            self.deliver(number, owed, now_ns);
        } else {
            self.receive_unusual(subscriber, number, now_ns);
        }
    }

    /// The first arrival at a position, the first message of a subscriber, a message of a slow one,
    /// or an error.
    #[inline(never)]
    fn receive_unusual(&mut self, subscriber: usize, number: u32, now_ns: u64) {
        if self.is_early(subscriber, number) {
            self.early.push((subscriber, number, now_ns));
            return;
        }
        let had_early = !self.early.is_empty();
        self.receive_in_order(subscriber, number, now_ns);
        if had_early {
            self.receive_early(|_| false);
        }
    }

    /// Whether this is a first message that would wrongly define the order: a publication from
    /// before the subscriber joined has no position yet. That one comes first, and this subscriber
    /// does not get it. Messages behind an early one are early too.
    fn is_early(&self, subscriber: usize, number: u32) -> bool {
        let entry = self.subscribers[subscriber];
        let is_unplaced = |number: &u32| {
            self.publications.get(*number as usize).is_some_and(|publication| publication.position == UNPLACED)
        };
        let outstanding = &self.rooms[entry.room as usize].outstanding;
        entry.state == SubscriberState::Joined
            && (self.early.iter().any(|(early, ..)| *early == subscriber)
                || is_unplaced(&number)
                    && outstanding.iter().take_while(|older| **older < entry.owed_from.min(number)).any(is_unplaced))
    }

    /// Takes in early messages whose order is known now, and those of subscribers for which
    /// `is_due` holds in any case.
    fn receive_early(&mut self, is_due: impl Fn(usize) -> bool) {
        loop {
            let early = std::mem::take(&mut self.early);
            let before = early.len();
            for (subscriber, number, now_ns) in early {
                if !is_due(subscriber) && self.is_early(subscriber, number) {
                    self.early.push((subscriber, number, now_ns));
                } else {
                    self.receive_in_order(subscriber, number, now_ns);
                }
            }
            if self.early.is_empty() || self.early.len() == before {
                return;
            }
        }
    }

    fn receive_in_order(&mut self, subscriber: usize, number: u32, now_ns: u64) {
        let entry = self.subscribers[subscriber];
        let Some(publication) = self.publications.get_mut(number as usize) else {
            self.counts.unexpected += 1;
            return;
        };
        if entry.state == SubscriberState::Absent {
            return;
        }
        if publication.room != entry.room {
            // A message of another room.
            self.counts.unexpected += 1;
            return;
        }
        let order = &mut self.rooms[entry.room as usize].order;
        if publication.position == UNPLACED {
            publication.position = order.len() as u32;
            order.push(number);
        }
        let position = publication.position;
        let slow = entry.state == SubscriberState::Slow;
        let joined = entry.state == SubscriberState::Joined;
        if position < entry.next && !joined {
            let skipped = self.skipped.get_mut(&(subscriber as u32));
            let place = skipped.as_ref().and_then(|skipped| skipped.iter().position(|skip| *skip == position));
            match (skipped, place) {
                (Some(skipped), Some(place)) => {
                    skipped.swap_remove(place);
                    self.counts.reordered += 1;
                    if !slow && number < entry.owed_from {
                        // It was counted as expected when the gap was seen, and is counted again
                        // when it is delivered.
                        self.counts.expected -= 1;
                    }
                    match slow {
                        true => self.counts.slow_gaps -= u64::from(number >= self.slow_from),
                        false => self.counts.gaps -= 1,
                    }
                }
                _ => {
                    self.counts.repeats += 1;
                    return;
                }
            }
        } else {
            // A message that a subscriber skips before its first one is missing only if it was
            // published after the subscriber had joined.
            let skipped = (entry.next..position)
                .filter(|skip| !joined || order[*skip as usize] >= entry.owed_from)
                .collect::<Vec<_>>();
            let entry = &mut self.subscribers[subscriber];
            entry.next = position + 1;
            if joined {
                entry.state = SubscriberState::Following;
            }
            if !skipped.is_empty() {
                let count = skipped.len() as u64;
                if slow {
                    let order = &self.rooms[entry.room as usize].order;
                    let measured = skipped.iter().filter(|skip| order[**skip as usize] >= self.slow_from);
                    self.counts.slow_gaps += measured.count() as u64;
                } else {
                    self.counts.gaps += count;
                    let order = &self.rooms[entry.room as usize].order;
                    let unowed = skipped.iter().filter(|skip| order[**skip as usize] < entry.owed_from).count();
                    self.counts.expected += unowed as u64;
                }
                self.skipped.entry(subscriber as u32).or_default().extend(skipped);
            }
        }
        if slow {
            self.counts.slow_received += u64::from(number >= self.slow_from);
        } else {
            self.deliver(number, number >= entry.owed_from, now_ns);
        }
    }

    /// Counts a delivery. One that was not owed becomes expected when it arrives.
    #[inline]
    fn deliver(&mut self, number: u32, owed: bool, now_ns: u64) {
        let publication = &mut self.publications[number as usize];
        let latency = now_ns.saturating_sub(publication.due_ns);
        self.deliveries.record(latency);
        self.counts.received += 1;
        if owed {
            publication.missing -= 1;
            if publication.missing == 0 {
                self.complete += 1;
                self.last.record(latency);
            }
        } else {
            self.counts.expected += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `subscribers` in one room, `messages` published.
    fn tracker(subscribers: usize, messages: usize) -> DeliveryTracker {
        let mut tracker = DeliveryTracker::new(subscribers + 1, 1);
        (0..subscribers).for_each(|subscriber| tracker.join(subscriber, 0, false));
        (0..messages).for_each(|number| assert_eq!(tracker.publish(0, 10), number as u32));
        tracker
    }

    fn receive(tracker: &mut DeliveryTracker, subscriber: usize, numbers: &[u32]) {
        numbers.iter().for_each(|number| tracker.receive(subscriber, *number, 1000));
    }

    #[test]
    fn everything_received_in_one_order_is_exact() {
        let mut tracker = tracker(2, 3);
        receive(&mut tracker, 0, &[1, 0, 2]);
        assert_eq!((tracker.complete, tracker.in_flight()), (0, 3));
        receive(&mut tracker, 1, &[1, 0]);
        assert!(!tracker.counts().is_exact());
        receive(&mut tracker, 1, &[2]);
        let counts = tracker.counts();
        assert!(counts.is_exact(), "{counts:?}");
        assert_eq!((counts.expected, counts.received, tracker.complete), (6, 6, 3));
        assert_eq!((tracker.deliveries.count(), tracker.last.count()), (6, 3));
    }

    #[test]
    fn a_loss_is_a_gap_and_is_missing() {
        let mut tracker = tracker(2, 3);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0, 2]);
        let counts = tracker.counts();
        assert_eq!((counts.gaps, counts.lost(), tracker.in_flight()), (1, 1, 1));
        // The last message has no later one that would show a gap.
        let mut tracker = self::tracker(1, 2);
        receive(&mut tracker, 0, &[0]);
        assert_eq!((tracker.counts().gaps, tracker.counts().lost()), (0, 1));
    }

    #[test]
    fn a_gap_is_a_loss_and_nothing_waits_for_it_when_its_subscriber_has_gone() {
        for leave in [DeliveryTracker::leave, DeliveryTracker::abort] {
            let mut tracker = tracker(2, 4);
            receive(&mut tracker, 0, &[0, 1, 2, 3]);
            receive(&mut tracker, 1, &[0, 2]);
            assert_eq!(tracker.in_flight(), 2);
            leave(&mut tracker, 1);
            assert_eq!((tracker.in_flight(), tracker.last.count(), tracker.counts().gaps), (0, 2, 1));
            assert!(tracker.counts().lost() >= 1);
            tracker.join(1, 0, false);
            tracker.publish(0, 10);
            receive(&mut tracker, 0, &[4]);
            receive(&mut tracker, 1, &[4]);
            assert_eq!((tracker.in_flight(), tracker.counts().reordered), (0, 0));
        }
    }

    #[test]
    fn a_repeat_does_not_make_up_for_a_loss() {
        let mut tracker = tracker(2, 3);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0, 0, 2, 2]);
        let counts = tracker.counts();
        assert_eq!((counts.received, counts.repeats, counts.gaps, counts.lost()), (5, 2, 1, 1));
    }

    #[test]
    fn another_order_than_the_first_subscribers_is_a_reordering() {
        let mut tracker = tracker(2, 3);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0, 2, 1]);
        let counts = tracker.counts();
        assert_eq!((counts.reordered, counts.gaps, counts.lost()), (1, 0, 0));
        assert_eq!(tracker.in_flight(), 0);
        assert!(!counts.is_exact());
    }

    #[test]
    fn a_late_subscriber_is_owed_what_comes_after_it_and_no_gap() {
        let mut tracker = tracker(1, 2);
        receive(&mut tracker, 0, &[0]);
        tracker.join(1, 0, false);
        tracker.publish(0, 10);
        tracker.publish(0, 10);
        // Publication 1 was in flight when it joined: not owed, and from there on no gap.
        receive(&mut tracker, 0, &[1, 2, 3]);
        receive(&mut tracker, 1, &[1, 3]);
        let counts = tracker.counts();
        assert_eq!((counts.expected, counts.received, counts.gaps, counts.lost()), (7, 6, 1, 1));
        receive(&mut tracker, 1, &[2]);
        assert_eq!(tracker.counts().lost(), 0);
        assert_eq!(tracker.in_flight(), 0);
    }

    #[test]
    fn a_late_subscriber_may_begin_before_or_behind_what_it_has_seen_placed() {
        // 0 had its position before the subscriber joined; it still arrives.
        let mut early = tracker(1, 1);
        receive(&mut early, 0, &[0]);
        early.join(1, 0, false);
        receive(&mut early, 1, &[0]);
        assert!(early.counts().is_exact(), "{:?}", early.counts());
        // 0 is not owed and never arrives; 1 is owed and is skipped.
        let mut late = tracker(1, 1);
        late.join(1, 0, false);
        late.publish(0, 10);
        late.publish(0, 10);
        receive(&mut late, 0, &[0, 1, 2]);
        receive(&mut late, 1, &[2]);
        assert_eq!((late.counts().gaps, late.counts().lost()), (1, 1));
    }

    #[test]
    fn a_late_subscriber_does_not_define_the_order_of_what_it_is_not_owed() {
        let mut tracker = tracker(2, 1);
        tracker.join(2, 0, false);
        assert_eq!((tracker.publish(0, 10), tracker.publish(0, 10)), (1, 2));
        // It has 1 and 2 before any other subscriber has 0, which comes first.
        receive(&mut tracker, 2, &[1, 2]);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0, 1, 2]);
        let counts = tracker.counts();
        assert!(counts.is_exact(), "{counts:?}");
        assert_eq!((counts.expected, counts.received, tracker.in_flight()), (8, 8, 0));
    }

    #[test]
    fn early_messages_count_when_their_subscriber_leaves_and_at_the_end() {
        let mut tracker = tracker(1, 1);
        tracker.join(1, 0, false);
        tracker.publish(0, 10);
        receive(&mut tracker, 1, &[1]);
        assert_eq!(tracker.counts().received, 0);
        tracker.leave(1);
        assert_eq!((tracker.counts().expected, tracker.counts().received), (3, 1));
        tracker.join(1, 0, false);
        tracker.publish(0, 10);
        receive(&mut tracker, 1, &[2]);
        tracker.close_slow();
        assert_eq!((tracker.counts().received, tracker.counts().lost()), (2, 3));
    }

    #[test]
    fn a_gap_in_what_was_a_gift_is_a_loss() {
        let mut tracker = tracker(1, 3);
        tracker.join(1, 0, false);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0, 2]);
        let counts = tracker.counts();
        assert_eq!((counts.expected, counts.received, counts.gaps, counts.lost()), (6, 5, 1, 1));
    }

    #[test]
    fn a_subscriber_that_leaves_is_owed_nothing_and_an_aborted_one_is() {
        let mut tracker = tracker(3, 3);
        receive(&mut tracker, 0, &[0, 1, 2]);
        receive(&mut tracker, 1, &[0]);
        tracker.leave(1);
        receive(&mut tracker, 1, &[1]);
        assert_eq!((tracker.counts().expected, tracker.counts().received), (7, 4));
        receive(&mut tracker, 2, &[0]);
        tracker.abort(2);
        assert_eq!((tracker.counts().lost(), tracker.in_flight()), (2, 0));
        assert!(!tracker.counts().is_exact());
        tracker.publish(0, 10);
        tracker.abort(0);
        assert_eq!((tracker.counts().lost(), tracker.in_flight()), (3, 0));
    }

    #[test]
    fn a_message_of_another_run_is_unexpected() {
        let mut tracker = tracker(1, 1);
        tracker.unexpected();
        receive(&mut tracker, 0, &[7, 0]);
        assert_eq!((tracker.counts().unexpected, tracker.counts().received), (2, 1));
        assert!(tracker.counts().is_exact());
    }

    #[test]
    fn a_damaged_message_is_not_received() {
        let mut tracker = tracker(1, 1);
        tracker.damaged();
        let counts = tracker.counts();
        assert_eq!((counts.damaged, counts.received, counts.lost()), (1, 0, 1));
        receive(&mut tracker, 0, &[0]);
        assert!(!tracker.counts().is_exact());
    }

    #[test]
    fn nothing_waits_for_a_slow_subscriber() {
        let mut tracker = tracker(1, 0);
        tracker.join(1, 0, true);
        assert_eq!([0; 4].map(|_| tracker.publish(0, 10)), [0, 1, 2, 3]);
        receive(&mut tracker, 0, &[0, 1, 2, 3]);
        assert_eq!(tracker.in_flight(), 0);
        receive(&mut tracker, 1, &[0, 3]);
        let counts = tracker.counts();
        assert_eq!((counts.expected, counts.received, counts.slow_received, counts.slow_gaps), (4, 4, 2, 2));
        receive(&mut tracker, 1, &[3, 2]);
        assert_eq!((tracker.counts().repeats, tracker.counts().reordered, tracker.counts().slow_gaps), (1, 1, 1));
    }

    #[test]
    fn what_a_slow_subscriber_reads_of_the_warm_up_does_not_count_and_a_missing_end_does() {
        let mut tracker = tracker(1, 0);
        tracker.join(1, 0, true);
        let publish = |tracker: &mut DeliveryTracker| {
            for _ in 0..3 {
                let number = tracker.publish(0, 10);
                receive(tracker, 0, &[number]);
            }
        };
        publish(&mut tracker);
        tracker.measure_from_here();
        publish(&mut tracker);
        receive(&mut tracker, 1, &[0, 2, 3]);
        assert_eq!((tracker.counts().slow_received, tracker.counts().slow_gaps), (1, 0));
        tracker.close_slow();
        tracker.close_slow();
        assert_eq!((tracker.counts().slow_received, tracker.counts().slow_gaps), (1, 2));
    }

    #[test]
    fn rooms_have_orders_of_their_own() {
        let mut tracker = DeliveryTracker::new(2, 2);
        tracker.join(0, 0, false);
        tracker.join(1, 1, false);
        assert_eq!((tracker.publish(1, 10), tracker.publish(0, 10)), (0, 1));
        receive(&mut tracker, 0, &[1]);
        receive(&mut tracker, 1, &[0]);
        assert!(tracker.counts().is_exact());
        receive(&mut tracker, 1, &[1]);
        assert_eq!(tracker.counts().unexpected, 1);
    }
}
