//! `direct`: one system call per subscriber and batch, straight from the pass.
//!
//! No task is woken, nothing is copied, no reference is counted, and nothing is allocated, unless a socket is full. A large
//! batch is put into pages of the kernel's once, and every socket refers to them: then the kernel does not copy either.

use std::rc::Rc;

use super::{Fanout, Pass, Scope};
use crate::conn::{Connection, Sent, Socket};
use crate::wire::Batch;

pub(super) struct Direct;

impl<S: Socket> Fanout<S> for Direct {
    fn attach(&self, _: &Rc<Connection<S>>) {}

    fn begin(&self, scope: &Scope<'_, S>, mut batch: Batch, start: usize) -> Pass<S> {
        batch.move_to_pages(|bytes| scope.pages.hold(bytes, scope.subscribers.len()));
        Pass::new(batch, scope.subscribers.places(), start)
    }

    fn step(&self, scope: &Scope<'_, S>, pass: &mut Pass<S>, budget: usize) -> usize {
        let batch = pass.batch.clone();
        let (before, mut matched) = (pass.visited, 0);
        let whole_before = pass.whole;
        while pass.visited - before < budget {
            let Some(place) = pass.next_place() else { break };
            let Some(connection) = scope.subscribers.at(place) else { continue };
            matched += 1;
            match connection.send(&batch, scope.bound) {
                Sent::All => pass.whole += 1,
                sent => pass.record(connection, sent),
            }
        }
        pass.settle(matched, pass.whole - whole_before);
        pass.visited - before
    }
}
