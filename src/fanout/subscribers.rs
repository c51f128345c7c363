//! The subscribers of one channel on one shard: a dense list that may change during a pass over it.
//!
//! Outside a pass the list has no holes. During a pass a subscriber that leaves leaves a hole, and
//! a new one is added behind the positions of the pass. So a pass skips no subscriber, sends to
//! none twice, and sends to none what was published before it joined.

use std::rc::Rc;

use crate::conn::{Connection, Membership};

/// The list; each member knows its position in it.
#[derive(Debug)]
pub struct Subscribers<S> {
    channel: u32,
    members: Vec<Option<Rc<Connection<S>>>>,
    holes: usize,
    /// The number of positions that the present pass covers.
    pass: Option<usize>,
}

impl<S> Subscribers<S> {
    /// An empty list for the channel with this index.
    #[must_use]
    pub fn new(channel: u32) -> Self {
        Self { channel, members: Vec::new(), holes: 0, pass: None }
    }

    /// Number of subscribers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len() - self.holes
    }

    /// Whether there are no subscribers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions that a pass which begins now would cover.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.members.len()
    }

    /// The subscriber at this position; `None` for a hole.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<&Rc<Connection<S>>> {
        self.members[position].as_ref()
    }

    /// Whether the subscriber at `position` was subscribed when the present pass began.
    #[must_use]
    pub fn was_subscribed_at_start(&self, position: Option<u32>) -> bool {
        position.is_some_and(|position| (position as usize) < self.pass.unwrap_or(self.members.len()))
    }

    /// Adds a subscriber; false if it is one already.
    pub fn join(&mut self, connection: &Rc<Connection<S>>) -> bool {
        connection.catch_up();
        let mut memberships = connection.memberships.borrow_mut();
        if memberships.iter().any(|member| member.channel == self.channel) {
            return false;
        }
        memberships.push(Membership { channel: self.channel, position: self.members.len() as u32 });
        self.members.push(Some(connection.clone()));
        true
    }

    /// Removes a subscriber; false if it is none.
    pub fn leave(&mut self, connection: &Connection<S>) -> bool {
        connection.catch_up();
        let mut memberships = connection.memberships.borrow_mut();
        let Some(index) = memberships.iter().position(|member| member.channel == self.channel) else { return false };
        let position = memberships.swap_remove(index).position as usize;
        drop(memberships);
        if self.pass.is_some() {
            self.members[position] = None;
            self.holes += 1;
        } else {
            self.remove(position);
        }
        true
    }

    /// A pass begins: until [`Subscribers::end_pass`] every subscriber keeps its position.
    pub fn begin_pass(&mut self) {
        debug_assert!(self.pass.is_none() && self.holes == 0);
        self.pass = Some(self.members.len());
    }

    /// The pass is over: the holes are filled.
    pub fn end_pass(&mut self) {
        self.pass = None;
        let mut position = self.members.len();
        while self.holes > 0 {
            position -= 1;
            if self.members[position].is_none() {
                self.remove(position);
                self.holes -= 1;
            }
        }
    }

    /// Fills a position with the last member. Memory beyond four times the need is freed.
    fn remove(&mut self, position: usize) {
        self.members.swap_remove(position);
        if let Some(Some(moved)) = self.members.get(position) {
            let mut memberships = moved.memberships.borrow_mut();
            let member = memberships.iter_mut().find(|member| member.channel == self.channel);
            member.expect("every member knows its position").position = position as u32;
        }
        if self.members.capacity() > 64 && self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.capacity() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Load;
    use crate::conn::{Role, Socket};
    use crate::registry::ConnId;
    use std::io::{self, IoSlice};

    struct Nowhere;

    impl Socket for Nowhere {
        fn send(&self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn send_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn shutdown_write(&self) {}
    }

    fn connections(number: u64) -> Vec<Rc<Connection<Nowhere>>> {
        (0..number)
            .map(|id| Rc::new(Connection::new(ConnId(id), id as u32, Role::Events, Nowhere, Load::default().permit())))
            .collect()
    }

    fn ids(list: &Subscribers<Nowhere>) -> Vec<Option<u64>> {
        let ids = list.members.iter().map(|position| position.as_ref().map(|connection| connection.id.0)).collect();
        for (position, holder) in list.members.iter().enumerate() {
            assert!(holder.as_ref().is_none_or(|holder| holder.position(7) == Some(position as u32)));
        }
        ids
    }

    #[test]
    fn the_list_is_dense_between_passes() {
        let all = connections(4);
        let mut list = Subscribers::new(7);
        assert!(all.iter().all(|connection| list.join(connection)));
        assert!(!list.join(&all[1]), "once is enough");
        assert!(list.leave(&all[0]) && !list.leave(&all[0]));
        assert_eq!(ids(&list), [Some(3), Some(1), Some(2)]);
        assert!(list.leave(&all[2]));
        assert_eq!((ids(&list), list.len()), (vec![Some(3), Some(1)], 2));
    }

    #[test]
    fn subscribers_keep_their_positions_during_a_pass() {
        let all = connections(6);
        let mut list = Subscribers::new(7);
        all[..4].iter().for_each(|connection| assert!(list.join(connection)));
        list.begin_pass();
        list.leave(&all[0]);
        list.leave(&all[3]);
        list.join(&all[4]);
        list.join(&all[0]);
        list.join(&all[5]);
        list.leave(&all[5]);
        assert_eq!(ids(&list), [None, Some(1), Some(2), None, Some(4), Some(0), None]);
        assert_eq!(list.len(), 4);
        let there = |connection: &Rc<Connection<Nowhere>>| list.was_subscribed_at_start(connection.position(7));
        assert!(there(&all[1]) && !there(&all[0]) && !there(&all[3]) && !there(&all[4]));
        list.end_pass();
        let mut left = ids(&list);
        left.sort();
        assert_eq!(left, [Some(0), Some(1), Some(2), Some(4)]);
        assert_eq!(list.holes, 0);
    }

    #[test]
    fn memory_is_given_back() {
        let all = connections(1000);
        let mut list = Subscribers::new(7);
        all.iter().for_each(|connection| assert!(list.join(connection)));
        all.iter().for_each(|connection| assert!(list.leave(connection)));
        assert!(list.members.capacity() <= 64, "{}", list.members.capacity());
    }
}
