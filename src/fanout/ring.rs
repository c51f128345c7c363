//! `ring`: one `tokio::sync::broadcast` per shard, which each connection's writer task takes from.
//!
//! The pull shape: to send is to put one item into the ring, and a client that is behind costs a position in it, not a
//! queue. The pass then only wakes the tasks, and looks whether what waits for a connection has reached its bound
//! (`conn::ring` has the contract). Two things make it a poor default: a task per connection, and that **every
//! connection of the shard is woken and sees every item**, whatever its channels: with a thousand rooms on a shard, a
//! message to ten subscribers costs as much as one to all. The price of a subscriber that is also behind is the same.

use std::rc::Rc;

use super::{Fanout, Pass, PassContext};
use crate::close::CloseReason;
use crate::conn::{Connection, Sent, Socket, ring};
use crate::outbox::Bound;
use crate::wire::Batch;

pub(super) struct Ring {
    ring: Rc<ring::Ring>,
}

impl Ring {
    pub(super) fn new(batches_max: usize, bound: Bound) -> Self {
        Self { ring: ring::Ring::new(batches_max, bound) }
    }
}

impl<S: Socket + 'static> Fanout<S> for Ring {
    fn attach(&self, connection: &Rc<Connection<S>>) {
        // The connection ends its task when it is abandoned, which every connection is.
        tokio::task::spawn_local(ring::open(connection, &self.ring));
    }

    /// Sends: whoever is subscribed now is matched, and the batch waits for it.
    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S> {
        let subscribers = context.subscribers.len() as u64;
        if subscribers == 0 {
            return Pass::new(batch, 0, start);
        }
        let mut pass = Pass::new(batch, context.connections.capacity(), start);
        if self.ring.is_full() {
            for (_, connection) in context.connections {
                if connection.make_room() {
                    pass.ended.push((connection.clone(), CloseReason::Slow));
                }
            }
        }
        self.ring.send(context.channel, &pass.batch);
        pass.queued = subscribers;
        pass.finish(subscribers, 0);
        pass
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let before = pass.visited;
        while pass.cost_since(before) < budget {
            let Some(place) = pass.next_place() else { break };
            let Some(connection) = context.connections.get(place) else { continue };
            let noticed = connection.notice(&batch);
            if let Some(offered) = noticed.offered {
                pass.queued -= 1;
                pass.record(connection, Sent::Part(offered));
            }
            if noticed.overflow {
                pass.ended.push((connection.clone(), CloseReason::Slow));
            }
        }
        pass.cost_since(before)
    }
}
