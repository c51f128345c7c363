//! `mailbox`: an iteration over the `DashMap`, a bounded queue and a writer task per connection.
//!
//! The usual first design, and the baseline of every comparison: each frame is queued for each
//! subscriber on its own, wakes a task, and is written by fastwebsockets with its own header.

use std::rc::Rc;

use super::{Fanout, Pass, PassContext};
use crate::conn::{Connection, Phase, Sent, Socket, mailbox};
use crate::wire::Batch;

pub(super) struct Mailbox;

impl<S: Socket + 'static> Fanout<S> for Mailbox {
    fn attach(&self, connection: &Rc<Connection<S>>) {
        // The task ends when the connection is abandoned, as every connection is at its end.
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
        let (before, mut matched) = (pass.done, 0);
        while pass.cost_since(before) < budget {
            let Some(position) = pass.next_position() else { break };
            // A slot may be empty by now, or hold a newer connection: only connections that were
            // subscribed when the pass began count.
            let Some(connection) = context.connections.get(pass.slots[position] as usize) else { continue };
            if !context.subscribers.was_subscribed_at_start(connection.position(context.channel)) {
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
