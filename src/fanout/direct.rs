//! `direct`: one system call per subscriber and batch, straight from the pass.
//!
//! Unless a socket is full, the pass wakes no task, copies nothing, counts no reference and
//! allocates nothing. A large batch is written to kernel pages once and every socket refers to
//! them, so the kernel does not copy it either.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::{Fanout, Pass, PassContext};
use crate::conn::{Connection, Sent, Socket};
use crate::pages::PAGES_SUBSCRIBERS_MIN;
use crate::wire::Batch;

#[derive(Default)]
pub(super) struct Direct {
    /// Batches in pages that may still wait in a backlog; never more than the pool has files.
    paged: RefCell<Vec<Weak<Batch>>>,
}

impl Direct {
    /// Moves batches back to the heap when too few clients wait for them to be worth pages.
    /// Otherwise two clients that never read could keep all pages of a shard from all other
    /// clients.
    fn reclaim_pages(&self) {
        self.paged.borrow_mut().retain(|batch| {
            let Some(batch) = batch.upgrade() else { return false };
            // This function holds one of the references.
            if Rc::strong_count(&batch) <= PAGES_SUBSCRIBERS_MIN {
                batch.leave_pages();
            }
            batch.has_pages()
        });
    }
}

impl<S: Socket> Fanout<S> for Direct {
    fn attach(&self, _: &Rc<Connection<S>>) {}

    fn begin(&self, context: &PassContext<'_, S>, mut batch: Batch, start: usize) -> Pass<S> {
        if context.pages.is_full() {
            self.reclaim_pages();
        }
        batch.move_to_pages(|bytes| context.pages.hold(bytes, context.subscribers.len()));
        let pass = Pass::new(batch, context.subscribers.positions(), start);
        if pass.batch.has_pages() {
            let mut paged = self.paged.borrow_mut();
            paged.retain(|batch| batch.strong_count() > 0);
            paged.push(Rc::downgrade(&pass.batch));
        }
        pass
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.done, 0);
        let whole_before = pass.whole;
        while pass.cost_since(before) < budget {
            let Some(position) = pass.next_position() else { break };
            let Some(connection) = context.subscribers.get(position) else { continue };
            matched += 1;
            match connection.send(&batch, context.bound) {
                Sent::All => pass.whole += 1,
                sent => pass.record(connection, sent),
            }
        }
        pass.finish(matched, pass.whole - whole_before);
        pass.cost_since(before)
    }
}
