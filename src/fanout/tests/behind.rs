//! Properties that only `ring` has: positions that are behind, a ring that wraps around, items of
//! other channels.

use clap::ValueEnum;

use super::*;
use crate::fanout::ring::Ring;

/// A frame of this many bytes behind its number has 110 bytes on the wire and counts 174.
const SIZE: usize = 101;
const COUNTS: usize = 110 + crate::outbox::ENTRY_BYTES;

fn world(batches_max: usize, policy: SlowPolicy, bytes_max: usize) -> World {
    let bound = Bound { bytes_max, policy };
    World::new(Box::new(Ring::new(batches_max, bound)), bound)
}

/// A subscriber of channel 0 whose task has run once, and whose socket has room for `room` bytes.
async fn subscriber(world: &mut World, room: usize) -> Client {
    let client = world.connect(room);
    world.channels[0].join(&client);
    quiet().await;
    client
}

/// A subscriber whose outbox has the rest of a started frame, while `waiting` more frames wait in
/// the ring.
async fn behind(world: &mut World, waiting: usize) -> Client {
    let client = subscriber(world, 10).await;
    for _ in 0..=waiting {
        world.publish(0, &[SIZE]);
        quiet().await;
    }
    client
}

#[test]
fn a_client_that_is_behind_keeps_a_position() {
    run(async || {
        let mut world = world(16, SlowPolicy::Disconnect, 1000);
        let client = behind(&mut world, 3).await;
        assert_eq!(client.backlog(), (COUNTS - 10 + 3 * COUNTS, 4));
        world.check("behind");
        // Another subscriber, whose socket has room, is not behind.
        let reading = subscriber(&mut world, usize::MAX).await;
        world.publish(0, &[SIZE]);
        quiet().await;
        assert_eq!((received(reading.socket(), 0), reading.has_backlog()), (vec![4], false));
        writable(&client, usize::MAX);
        assert_eq!(received(client.socket(), 0), [0, 1, 2, 3, 4]);
        world.check("caught up");
    });
}

#[test]
fn at_the_bound_the_policy_decides() {
    for (policy, seen) in [
        (SlowPolicy::Disconnect, &[][..]),
        (SlowPolicy::DropNewest, &[0, 1, 2, 3]),
        (SlowPolicy::DropOldest, &[0, 4, 5, 6]),
    ] {
        run(async || {
            let mut world = world(16, policy, 4 * COUNTS);
            let client = behind(&mut world, 6).await;
            let totals = world.counters.totals();
            if policy == SlowPolicy::Disconnect {
                assert_eq!((client.phase(), totals.delivered), (Phase::Closing, 0));
                // The client left its channel with the message beyond the bound; later messages do
                // not match it.
                assert_eq!((totals.matched, totals.dropped_slow, totals.dropped_closed), (5, 5, 0));
            } else {
                assert_eq!(totals.dropped_slow, 3, "{policy:?}");
                writable(&client, usize::MAX);
                assert_eq!(received(client.socket(), 0), seen, "{policy:?}");
            }
            world.check("at the bound");
        });
    }
}

#[test]
fn a_receipt_counts_frames_dropped_at_the_bound() {
    run(async || {
        let mut world = world(16, SlowPolicy::DropNewest, 2 * COUNTS);
        let _client = behind(&mut world, 1).await;
        let outcome = world.publish(0, &[SIZE, SIZE]).outcome(1);
        assert_eq!(outcome, Outcome { matched: 1, delivered: 0, pending: 0, dropped: 1 });
    });
}

#[test]
fn a_change_of_membership_does_not_affect_waiting_items() {
    run(async || {
        let mut world = world(16, SlowPolicy::Disconnect, 5000);
        let client = behind(&mut world, 1).await;
        world.publish(1, &[SIZE]);
        world.channels[1].join(&client);
        world.publish(1, &[SIZE]);
        world.channels[0].leave(&client);
        world.publish(0, &[SIZE]);
        world.publish(1, &[SIZE]);
        world.channels[1].leave(&client);
        world.publish(1, &[SIZE]);
        world.check("left");
        writable(&client, usize::MAX);
        assert_eq!((received(client.socket(), 0), received(client.socket(), 1)), (vec![0, 1], vec![1, 2]));
        world.check("caught up");
    });
}

#[test]
fn an_item_is_taken_before_the_ring_overwrites_it() {
    run(async || {
        let mut world = world(4, SlowPolicy::DropNewest, 100_000);
        let client = behind(&mut world, 3).await;
        let elsewhere = world.connect(0);
        world.channels[1].join(&elsewhere);
        for _ in 0..50 {
            // No task runs meanwhile.
            world.publish(0, &[SIZE]);
            world.check("wrapped around");
        }
        assert_eq!((client.backlog().1, elsewhere.has_backlog()), (54, false));
        writable(&client, usize::MAX);
        assert!(received(client.socket(), 0).into_iter().eq(0..54));
        world.check("caught up");
    });
}

#[test]
fn an_overflow_before_the_pass_notices_leaves_no_gap() {
    run(async || {
        let mut world = world(16, SlowPolicy::Disconnect, 4 * COUNTS);
        let client = behind(&mut world, 2).await;
        world.channels[1].join(&client);
        // The client leaves before the pass notices the overflow: the first item exceeds the bound,
        // the second would fit.
        let mut first = world.begin(0, &[SIZE, SIZE]);
        let mut second = world.begin(1, &[1]);
        world.channels[0].leave(&client);
        writable(&client, usize::MAX);
        assert_eq!((received(client.socket(), 0), received(client.socket(), 1)), (vec![0, 1, 2], vec![]));
        assert_eq!((world.counters.totals().dropped_slow, client.phase()), (3, Phase::Open));
        world.step(0, &mut first, 100);
        world.step(1, &mut second, 100);
        assert_eq!(client.phase(), Phase::Closing);
        world.check("ended");
    });
}

#[test]
fn frames_of_a_client_that_ends_while_behind_are_counted() {
    run(async || {
        let mut world = world(16, SlowPolicy::Disconnect, 5000);
        let client = behind(&mut world, 5).await;
        world.end(&client, DropReason::Closed);
        quiet().await;
        let totals = world.counters.totals();
        assert_eq!((totals.matched, totals.dropped_closed, totals.outstanding()), (6, 6, 0));
        assert_eq!(Rc::strong_count(&client), 1, "the task has ended");
    });
}

#[test]
fn a_full_socket_is_not_tried_until_it_can_be_written() {
    for &strategy in Strategy::value_variants() {
        run(async || {
            let bound = Bound { bytes_max: 3 * COUNTS, policy: SlowPolicy::DropOldest };
            let mut world = World::new(strategy.build(bound), bound);
            let client = behind(&mut world, 1).await;
            let rejected = client.socket().rejected.get();
            for _ in 0..20 {
                world.publish(0, &[SIZE]);
                quiet().await;
            }
            assert_eq!(client.socket().rejected.get(), rejected, "{strategy:?}");
        });
    }
}
