//! `wake`: push with batching. The pass adds the batch to each subscriber's outbox and wakes its
//! writer task.
//!
//! The task writes everything that waits in one vectored write, so batches that arrive between the
//! wake and the task's run are joined. Its cost beside the system call is an outbox and a wake for
//! each subscriber and batch. It pays off when a connection gets small batches of several channels
//! at a time, which `direct` writes one by one.

use std::rc::Rc;

use super::{Fanout, Pass, PassContext};
use crate::conn::{Connection, Socket, writer_kind};
use crate::wire::Batch;

pub(super) struct Wake;

impl<S: Socket + 'static> Fanout<S> for Wake {
    fn attach(&self, connection: &Rc<Connection<S>>) {
        // The task ends when the connection is abandoned, as every connection is at its end.
        tokio::task::spawn_local(writer_kind::open(connection));
    }

    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S> {
        Pass::new(batch, context.subscribers.positions(), start)
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.done, 0);
        while pass.cost_since(before) < budget {
            let Some(position) = pass.next_position() else { break };
            let Some(connection) = context.subscribers.get(position) else { continue };
            matched += 1;
            pass.record(connection, connection.queue(&batch, context.bound));
        }
        pass.finish(matched, 0);
        pass.cost_since(before)
    }
}
