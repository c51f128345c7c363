//! `direct`: one system call per subscriber and batch, straight from the pass.
//!
//! No task is woken, nothing is copied, no reference is counted, and nothing is allocated, unless a socket is full. A large
//! batch is put into pages of the kernel's once, and every socket refers to them: then the kernel does not copy either.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::{Fanout, Pass, PassContext};
use crate::config::PAGES_SUBSCRIBERS_MIN;
use crate::conn::{Connection, Sent, Socket};
use crate::wire::Batch;

#[derive(Default)]
pub(super) struct Direct {
    /// Batches in pages that may still wait for somebody, at most as many as there are files of pages.
    paged: RefCell<Vec<Weak<Batch>>>,
}

impl Direct {
    /// Puts those batches back on the heap that wait for so few that pages are not worth it: else two clients that never read
    /// would keep all of a shard's from everybody else.
    fn reclaim_pages(&self) {
        self.paged.borrow_mut().retain(|batch| {
            let Some(batch) = batch.upgrade() else { return false };
            // One of the holders is here.
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
        let pass = Pass::new(batch, context.subscribers.places(), start);
        if pass.batch.has_pages() {
            let mut paged = self.paged.borrow_mut();
            paged.retain(|batch| batch.strong_count() > 0);
            paged.push(Rc::downgrade(&pass.batch));
        }
        pass
    }

    fn step(&self, context: &PassContext<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.visited, 0);
        let whole_before = pass.whole;
        while pass.cost_since(before) < budget {
            let Some(place) = pass.next_place() else { break };
            let Some(connection) = context.subscribers.at(place) else { continue };
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
