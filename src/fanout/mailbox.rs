//! `mailbox`: a walk of the `DashMap`, a bounded queue and a writer task per connection.
//!
//! The shape that everybody writes first, and the baseline of every comparison: each frame is queued for each subscriber
//! on its own, wakes a task, and is written by fastwebsockets with a header of its own.

use std::rc::Rc;

use super::{Fanout, Pass, PassContext};
use crate::conn::{Connection, Phase, Sent, Socket, mailbox};
use crate::wire::Batch;

pub(super) struct Mailbox;

impl<S: Socket + 'static> Fanout<S> for Mailbox {
    fn attach(&self, connection: &Rc<Connection<S>>) {
        // The connection ends its task when it is abandoned, which every connection is.
        tokio::task::spawn_local(mailbox::open(connection));
    }

    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S> {
        let slots = context.registry.on_shard(context.shard);
        let mut pass = Pass::new(batch, slots.len(), start);
        pass.slots = slots;
        pass
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.visited, 0);
        while pass.cost_since(before) < budget {
            let Some(place) = pass.next_place() else { break };
            // A slot may be empty by now, or hold a newer connection: only who was subscribed at the beginning counts.
            let Some(connection) = context.connections.get(pass.slots[place] as usize) else { continue };
            if !context.subscribers.was_there_at_the_start(connection.position(context.channel)) {
                continue;
            }
            matched += 1;
            let sent = match connection.mailbox() {
                Some(mailbox) if connection.phase() == Phase::Open => Sent::Part(mailbox.offer(&batch, context.bound)),
                _ => Sent::Gone,
            };
            pass.record(connection, sent);
        }
        pass.finish(matched, 0);
        pass.cost_since(before)
    }
}
