//! `wake`: push with batching. The pass adds the batch to each subscriber's outbox and wakes its writer task.
//!
//! The task writes everything that waits in one vectored write, so whatever came between the wake and its turn is
//! joined. That costs, beside the system call, an outbox and a wake for each subscriber and batch; it pays when a
//! connection gets small batches of several channels at a time, which `direct` writes one by one.

use std::rc::Rc;

use super::{Fanout, Pass, PassContext};
use crate::conn::{Connection, Socket, writer_kind};
use crate::wire::Batch;

pub(super) struct Wake;

impl<S: Socket + 'static> Fanout<S> for Wake {
    fn attach(&self, connection: &Rc<Connection<S>>) {
        // The connection ends its task when it is abandoned, which every connection is.
        tokio::task::spawn_local(writer_kind::open(connection));
    }

    fn begin(&self, context: &PassContext<'_, S>, batch: Batch, start: usize) -> Pass<S> {
        Pass::new(batch, context.subscribers.places(), start)
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.visited, 0);
        while pass.cost_since(before) < budget {
            let Some(place) = pass.next_place() else { break };
            let Some(connection) = context.subscribers.at(place) else { continue };
            matched += 1;
            pass.record(connection, connection.queue(&batch, context.bound));
        }
        pass.finish(matched, 0);
        pass.cost_since(before)
    }
}
