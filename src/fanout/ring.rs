//! `ring`: one `tokio::sync::broadcast` per shard, from which each connection's writer task takes
//! the items.
//!
//! The pull design. A send puts one item into the ring, and a client that is behind costs a
//! position in it, not a queue. The pass then wakes the tasks and checks whether a connection's
//! backlog has reached its bound (`conn::ring` has the contract). Two properties make it a poor
//! default. Each connection has a task, and **every connection of the shard is woken and sees every
//! item**, whatever its channels: with a thousand channels on a shard, a message to ten subscribers
//! costs as much as one to all. A subscriber that is behind pays the same price.

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
        // The task ends when the connection is abandoned, as every connection is at its end.
        tokio::task::spawn_local(ring::open(connection, &self.ring));
    }

    /// Sends at once: the present subscribers are matched, and the batch waits for them.
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
        let before = pass.done;
        while pass.cost_since(before) < budget {
            let Some(position) = pass.next_position() else { break };
            let Some(connection) = context.connections.get(position) else { continue };
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
